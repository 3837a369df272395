"""plumberd.commands.token: a token, shown once, and a line that does not tell it."""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib

from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.tokens import parse_tokens
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine
from tests.configured import ConfiguredTestCase
from tests.plumb_case import PlumbTestCase
from tests.tables import each


class New(PlumbTestCase, ConfiguredTestCase):
    def made(self, *words: str) -> str:
        status, out, err = self.ran("token", "new", *words)
        self.assertEqual((status, err), (0, ""))
        return out

    def mistake(self, *words: str) -> str:
        status, out, err = self.ran("token", "new", *words)
        self.assertEqual((status, out), (2, ""))
        return err.replace(self.home + "/", "")

    def test_each_has_256_random_bits_and_its_line_is_a_digest(self) -> None:
        found = [json.loads(self.made("phone", "--json")) for _ in range(3)]
        self.assertEqual({len(one["token"]) for one in found}, {43})
        self.assertEqual(len({one["token"] for one in found}), 3)
        for one in found:
            self.assertEqual(parse_tokens(one["line"].encode()).name_of(one["token"]), "phone")
            self.assertNotIn(one["token"], one["line"])

    def test_what_is_printed_is_a_configuration(self) -> None:
        path = self.path("tokens")
        out = self.made("phone", "--append", path)
        token = out.splitlines()[1]
        self.assertEqual(out.count(token), 1)
        text = out.partition("# there, in plumberd.toml\n")[2]
        self.assertTrue(tomllib.loads(text))
        web = read_settings(CommandLine(self.write(text))).web
        self.assertEqual((web.token_file, web.tokens.name_of(token)), (path, "phone"))
        (rule,) = re.findall(r"^# and a rule: (.*)$", text, flags=re.MULTILINE)
        self.assertEqual(str(parse_rule(rule.replace("SERVICE", "pong")).conditions[0]), "token:phone")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)

    def test_a_second_one_stands_behind_the_first_and_none_is_called_the_same(self) -> None:
        path = self.path("tokens")
        self.made("phone", "--append", path)
        self.made("laptop", "--append", path)
        with open(path, "rb") as file:
            self.assertEqual([name for name, _ in parse_tokens(file.read()).digests], ["phone", "laptop"])
        self.assertIn("it has a token called phone already", self.mistake("phone", "--append", path))

    @each(("two words",), ("#a",), ("a:b",), ("",))
    def test_what_is_no_name(self, name: str) -> None:
        self.assertIn("no name of a token: wanted", self.mistake(name))

    def test_a_file_that_others_can_read_or_that_is_none(self) -> None:
        path = self.write("", "tokens", 0o644)
        self.assertIn("others can read it (mode 0644)", self.mistake("phone", "--append", path))
        broken = self.write("phone:secret\n", "broken", 0o600)
        told = self.mistake("other", "--append", broken)
        self.assertIn("line 1: wanted NAME:sha256:", told)
        self.assertNotIn("secret", told)
