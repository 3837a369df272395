"""plumberd.commands.psk: a key, once, in a file that nobody else can read."""

from __future__ import annotations

import json
import os
import re
import tomllib

from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.psk import parse_keys
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine
from tests.configured import ConfiguredTestCase
from tests.plumb_case import PlumbTestCase
from tests.tables import each


class New(PlumbTestCase, ConfiguredTestCase):
    def made(self, *words: str) -> str:
        """Return what is printed of a new key."""
        status, out, err = self.ran("psk", "new", *words)
        self.assertEqual((status, err), (0, ""))
        return out

    def mistake(self, *words: str) -> str:
        status, out, err = self.ran("psk", "new", *words)
        self.assertEqual((status, out), (2, ""))
        (line,) = err.splitlines()
        return line.replace(self.home + "/", "")

    def test_each_has_256_random_bits(self) -> None:
        lines = [self.made("laptop").splitlines()[1] for _ in range(3)]
        keys = [parse_keys(line.encode())[0] for line in lines]
        self.assertEqual({(key.identity, len(key.key)) for key in keys}, {("laptop", 32)})
        self.assertEqual(len({key.key for key in keys}), 3)

    def test_what_is_printed_is_a_configuration_for_each_side(self) -> None:
        path = self.path("psk")
        out = self.made("laptop", "--append", path)
        _, listens, connects = re.split(r"^# .*plumberd\.toml$|^# both machines.*$", out, flags=re.MULTILINE)[1:]
        (rule,) = re.findall(r"^# and a rule: (.*)$", listens, flags=re.MULTILINE)
        self.assertEqual(str(parse_rule(rule.replace("SERVICE", "pong")).conditions[0]), "psk:laptop")
        for text in (listens, connects):
            self.assertTrue(tomllib.loads(text))
            read = read_settings(CommandLine(self.write(text.replace("HOST", "h.example"))))
            self.assertEqual(read.tls.psk_file, path)
        self.assertEqual(str(read.peers["h.example:9001"]), "psk laptop")

    def test_for_programs(self) -> None:
        found = json.loads(self.made("laptop", "--json", "--append", self.path("psk")))
        self.assertEqual((found["identity"], found["file"]), ("laptop", self.path("psk")))
        self.assertEqual(parse_keys(found["line"].encode())[0].identity, "laptop")

    @each(("two words",), ("#a",), ("a:b",), ("",), ("ä",))
    def test_what_is_no_name(self, name: str) -> None:
        self.assertIn("no name of a key: wanted", self.mistake(name))

    def test_the_first_makes_the_file_whatever_the_umask(self) -> None:
        os.umask(0)
        self.made("laptop", "--append", self.path("psk"))
        self.assertEqual(os.stat(self.path("psk")).st_mode & 0o777, 0o600)

    @each((b"a:" + b"0f" * 16,), (b"a:" + b"0f" * 16 + b"\n",), (b"",), (b"\n",))
    def test_others_stay_in_front(self, there: bytes) -> None:
        path = self.write(there, "psk", 0o640)
        self.made("laptop", "--append", path)
        with open(path, "rb") as file:
            data = file.read()
        self.assertTrue(data.startswith(there))
        self.assertEqual([one.identity for one in parse_keys(data)], ["a"] * bool(there.strip()) + ["laptop"])
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o640)

    @each(
        ("twice", b"laptop:" + b"0f" * 16, 0o600, "psk: it has a key called laptop already"),
        ("readable", b"", 0o644, "psk: others can read it (mode 0644): chmod 0600"),
        ("a_mistake", b"a:s3cret", 0o600, "psk: line 1: a key of 6 bytes"),
        ("long", b"\n" * (4 << 20) + b"x", 0o600, "psk: it is longer than"),
    )
    def test_a_file_that_is_left_as_it_is(self, _: str, there: bytes, mode: int, wanted: str) -> None:
        path = self.write(there, "psk", mode)
        said = self.mistake("laptop", "--append", path)
        self.assertTrue(said.startswith(f"plumb: {wanted}"), said)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), there)

    def test_what_is_no_file(self) -> None:
        os.symlink(self.write("", "psk", 0o600), self.path("link"))
        self.assertIn("symbolic link", self.mistake("laptop", "--append", self.path("link")))
        self.assertIn("directory", self.mistake("laptop", "--append", self.home))
        self.assertIn("it is no regular file", self.mistake("laptop", "--append", "/dev/null"))
        self.assertIn("No such file", self.mistake("laptop", "--append", self.path("none/psk")))
