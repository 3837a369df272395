"""plumberd.commands.ca: files that are never overwritten, and what to write where."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from unittest import mock

from plumberd.commands.ca import file_name
from plumberd.effects.tls_files import TlsFiles
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.tls import parse_pin
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine
from tests.children import Child
from tests.configured import ConfiguredTestCase
from tests.plumb_case import PlumbTestCase
from tests.tables import each


class CaTestCase(PlumbTestCase, ConfiguredTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.dir = self.path("ca")

    def done(self, *words: str) -> str:
        """Return what a command prints."""
        status, out, err = self.ran(*words, "--dir", self.dir)
        self.assertEqual((status, err), (0, ""))
        return out

    def mistake(self, *words: str) -> str:
        status, out, err = self.ran(*words, "--dir", self.dir)
        self.assertEqual((status, out), (2, ""))
        (line,) = err.splitlines()
        return line.replace(self.home + "/", "")

    def modes(self) -> dict[str, int]:
        """Return the files that there are, with their modes."""
        return {name: os.stat(os.path.join(self.dir, name)).st_mode & 0o777 for name in sorted(os.listdir(self.dir))}

    def read(self, text: str) -> None:
        """Read what was printed for a configuration."""
        self.assertTrue(tomllib.loads(text))
        self.settings_read = read_settings(CommandLine(self.write(text.replace("HOST", "h.example"))))


class Authority(CaTestCase):
    def test_its_key_is_nobody_else_s_whatever_the_umask(self) -> None:
        os.umask(0)
        self.done("ca", "init")
        self.assertEqual(self.modes(), {"ca.key": 0o600, "ca.pem": 0o644})
        self.assertEqual(os.stat(self.dir).st_mode & 0o777, 0o700)

    def test_it_is_called_what_was_said_and_lives_so_long(self) -> None:
        out = json.loads(self.done("ca", "init", "--name", "Alice's", "--days", "10", "--json"))
        (found,) = TlsFiles().authorities(out["certificate"])
        self.assertEqual((found.name, out["names"]), ("Alice's", ["Alice's"]))
        self.assertEqual(found.ends - found.begins, (10 * 24 + 1) * 3600)

    def test_what_is_printed_is_a_configuration(self) -> None:
        out = self.done("ca", "init")
        self.read(out.partition("# there, in plumberd.toml\n")[2])
        self.assertEqual(str(self.settings_read.tls.trust), os.path.join(self.dir, "ca.pem"))

    @each(("ca.key",), ("ca.pem",))
    def test_nothing_is_overwritten(self, name: str) -> None:
        os.mkdir(self.dir)
        self.write("mine", f"ca/{name}")
        self.assertEqual(
            self.mistake("ca", "init"), f"plumb: ca/{name}: it is there already, and is never overwritten; move it away"
        )
        self.assertEqual(os.listdir(self.dir), [name])

    def test_a_second_one_is_refused(self) -> None:
        self.done("ca", "init")
        before = TlsFiles().authorities(os.path.join(self.dir, "ca.pem"))
        self.assertIn("it is there already", self.mistake("ca", "init"))
        self.assertEqual(TlsFiles().authorities(os.path.join(self.dir, "ca.pem")), before)

    @each(
        ("--days 0", "wanted a number from 1 to 7300"),
        ("--days ten", "wanted a number from 1 to 7300"),
        ("--days 7301", "wanted a number from 1 to 7300"),
    )
    def test_how_long_is_said_in_days(self, words: str, wanted: str) -> None:
        status, _, err = self.ran("ca", "init", *words.split(), "--dir", self.dir)
        self.assertEqual(status, 2)
        self.assertIn(wanted, err)
        self.assertFalse(os.path.exists(self.dir))

    def test_a_name_that_is_too_long(self) -> None:
        self.assertIn("the name of an authority: wanted 1 to 64", self.mistake("ca", "init", "--name", "x" * 65))
        self.assertFalse(os.path.exists(self.dir))

    def test_a_folder_that_cannot_be_made(self) -> None:
        self.dir = self.path("none/ca")
        self.assertIn("none/ca: No such file or directory", self.mistake("ca", "init"))

    def test_what_cannot_be_written_whole_is_taken_away(self) -> None:
        with mock.patch("os.fchmod", side_effect=[None, OSError(28, "No space left on device")]):
            self.assertIn("No space left", self.mistake("ca", "init"))
        self.assertEqual(os.listdir(self.dir), [])


class Certificates(CaTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.done("ca", "init", "--name", "the authority")

    def test_one_is_written_beside_its_authority(self) -> None:
        os.umask(0)
        self.done("cert", "Pong.example.com", "192.0.2.1")
        self.assertEqual(self.modes()["pong.example.com.key"], 0o600)
        found = TlsFiles().certificate(
            os.path.join(self.dir, "pong.example.com.pem"), os.path.join(self.dir, "pong.example.com.key")
        )
        self.assertEqual((found.name, found.dns_names, found.kind), ("pong.example.com", ("pong.example.com",), "EC"))

    @each(("a", "a"), ("*.a.example", "_.a.example"), ("2001:db8::1", "2001_db8__1"), ("ca", "_ca"))
    def test_its_files_are_called_after_its_first_name(self, name: str, wanted: str) -> None:
        self.assertEqual(file_name(name), wanted)
        self.done("cert", name, "another")
        self.assertEqual(set(self.modes()), {"ca.key", "ca.pem", f"{wanted}.key", f"{wanted}.pem"})

    def test_what_is_printed_is_a_configuration_for_listening_and_for_connecting(self) -> None:
        out = self.done("cert", "laptop", "--spiffe", "spiffe://example.com/laptop")
        listens, connects = re.split(r"^# where .*plumberd\.toml$", out, flags=re.MULTILINE)[1:]
        self.read(listens)
        self.assertEqual([one.name for one in self.settings_read.tls.certificates], ["laptop"])
        self.assertEqual(len(self.settings_read.tlsd), 1)
        self.read(connects)
        self.assertIn("certificate ", str(self.settings_read.peers["h.example:9001"]))
        rule = parse_rule(out.splitlines()[-1].removeprefix("# ").replace("SERVICE", "pong"))
        self.assertEqual(str(rule.conditions[0]), "spiffe://example.com/laptop")

    @each(
        ("--server", ["# where it listens, in plumberd.toml"]),
        ("--client", ["# where it connects, in plumberd.toml"]),
        ("--server --client", ["# where it listens, in plumberd.toml", "# where it connects, in plumberd.toml"]),
    )
    def test_it_is_told_for_its_purpose_alone(self, words: str, wanted: list[str]) -> None:
        out = self.done("cert", "laptop", *words.split())
        self.assertEqual([line for line in out.splitlines() if line.startswith("# where it")], wanted)

    def test_one_that_proves_no_name_in_a_rule_has_no_rule(self) -> None:
        self.assertNotIn("for cert:", self.done("cert", "192.0.2.1", "*.a.example", "--client"))

    def test_for_programs(self) -> None:
        out = json.loads(self.done("cert", "a", "--json", "--days", "1"))
        self.assertEqual(sorted(out), ["certificate", "ends", "key", "names", "pin"])
        self.assertTrue(os.path.exists(out["key"]) and os.path.exists(out["certificate"]))
        self.assertEqual(parse_pin(out["pin"]), out["pin"])

    @each(("a.key",), ("a.pem",))
    def test_nothing_is_overwritten(self, name: str) -> None:
        self.write("mine", f"ca/{name}")
        self.assertIn(f"ca/{name}: it is there already", self.mistake("cert", "a"))
        with open(os.path.join(self.dir, name), encoding="ascii") as file:
            self.assertEqual(file.read(), "mine")

    def test_what_is_no_name(self) -> None:
        self.assertIn("plumb: a b: the host is neither", self.mistake("cert", "a b"))
        self.assertIn("wanted spiffe://DOMAIN/PATH", self.mistake("cert", "a", "--spiffe", "login:a"))

    def test_without_an_authority(self) -> None:
        self.dir = self.path("none")
        self.assertEqual(
            self.mistake("cert", "a"), "plumb: none/ca.pem: there is no authority; plumb ca init makes one"
        )
        self.assertFalse(os.path.exists(self.dir))

    def test_with_a_broken_authority(self) -> None:
        self.write("x", "ca/ca.pem")
        self.assertIn("the authority: no certificate in it", self.mistake("cert", "a"))


class Quick(CaTestCase):
    async def test_the_other_commands_do_not_wait_for_the_cryptography_library(self) -> None:
        code = "import sys; from plumberd import plumb; plumb.parser(); "
        code += "import plumberd.commands.psk, plumberd.commands.ca; "
        code += "print([n for n in ('cryptography', 'OpenSSL', 'twisted') if n in sys.modules])"
        child: Child = self.command([sys.executable, "-c", code])
        self.assertEqual(child.finish()[:2], (0, "[]\n"))
