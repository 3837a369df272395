"""plumberd.wiring.config.configuration: files are put together, and every mistake says where it is."""

from __future__ import annotations

import os
from unittest import mock

from plumberd.effects.accounts import Accounts
from plumberd.wiring.config import configuration
from plumberd.wiring.config.configuration import FILE_BYTES, FILES, read_configuration
from tests.configured import ConfiguredTestCase
from tests.tables import each


class Included(ConfiguredTestCase):
    """Rules in their order, tables put together."""

    def rules(self, text: str) -> list[tuple[str, str]]:
        """Return each rule with its source."""
        settings = self.settings(text)
        return [(str(rule), *self.bare([rule.source])) for rule in settings.policy.rules]  # type: ignore[misc]

    def test_the_files_own_rules_come_first_then_the_included_ones_by_name(self) -> None:
        self.write("rules = ['deny in b any']", "rules.d/20-b.toml")
        self.write("\nrules = [\n'deny in a any',\n'deny in c any']", "rules.d/10-a.toml")
        self.write("rules = ['deny in d any']", "d.toml")
        self.assertEqual(
            self.rules("include = ['rules.d/*.toml', 'd.toml']\nrules = ['deny in z any']\n"),
            [
                ("deny in z any", "plumberd.toml:2"),
                ("deny in a any", "rules.d/10-a.toml:3"),
                ("deny in c any", "rules.d/10-a.toml:4"),
                ("deny in b any", "rules.d/20-b.toml:1"),
                ("deny in d any", "d.toml:1"),
            ],
        )

    def test_the_members_of_tables_come_together(self) -> None:
        self.write("routes.b = 'tcp://b.example'\nlisten.publish.b = ['7000']\nlimits.relays = 5", "b.toml")
        settings = self.settings(
            "include = ['b.toml']\nroutes.a = 'tcp://a.example'\nlisten.publish.a = ['7001']\nlimits.lookups = 6"
        )
        self.assertEqual(list(settings.routes.routes), ["a", "b"])
        self.assertEqual([name for name, _ in settings.publish], ["a", "b"])
        self.assertEqual((settings.limits.relays, settings.limits.lookups), (5, 6))

    def test_a_pattern_that_finds_nothing_is_fine(self) -> None:
        os.mkdir(self.path("rules.d"), 0o755)
        self.assertEqual(self.rules("include = ['rules.d/*.toml', 'no.d/*.toml']"), [])

    def test_a_file_that_two_patterns_mean_is_read_once(self) -> None:
        self.write("rules = ['deny in a any']\nrundir = '/r'", "a.toml")
        self.assertEqual(len(self.rules("include = ['*.toml', 'a.toml', './a.toml']")), 1)

    def test_relative_paths_are_meant_from_the_folder_of_the_file_that_says_them(self) -> None:
        self.write("[audit]\nfile = 'a.jsonl'", "more/a.toml")
        settings = self.settings("include = ['more/a.toml']\nrundir = 'run'")
        self.assertEqual((settings.rundir, settings.audit_file), (self.path("run"), self.path("more/a.jsonl")))

    def test_a_relative_configuration_is_meant_from_where_the_program_was_started(self) -> None:
        self.write("rules = ['deny in a any']", "etc/rules.d/a.toml")
        self.write("include = ['rules.d/*']\nrules = ['deny in b any']", "etc/plumberd.toml")
        found = read_configuration("etc/plumberd.toml", self.home, Accounts())
        self.assertEqual(found.mistakes, ())
        self.assertEqual(
            [rule.source for rule in found.configuration.rules], ["etc/plumberd.toml:2", "etc/rules.d/a.toml:1"]
        )


class IncludedWrongly(ConfiguredTestCase):
    def test_an_included_file_cannot_include(self) -> None:
        self.write("include = []", "a.toml")
        self.assertEqual(
            self.mistakes("include = ['a.toml']"), ["a.toml: include: an included file cannot include others"]
        )

    def test_a_file_that_is_not_there(self) -> None:
        self.assertEqual(self.mistakes("include = ['a.toml']"), ["a.toml: No such file or directory"])

    @each(
        ("a_key", "rundir = '/r'", "rundir"),
        ("a_list", "dialects = ['native']", "dialects"),
        ("a_member", "routes.a = 'tcp://h.example'", "routes.a"),
        ("a_member_with_dots", 'routes."a.b" = "tcp://h.example"', 'routes."a.b"'),
        ("a_member_of_a_member", "listen.publish.a = ['7000']", "listen.publish.a"),
        ("a_limit", "limits.relays = 5", "limits.relays"),
        ("a_framing", "services.a.framing = 'raw'", "services.a.framing"),
        ("a_default", "default.in = 'deny'", "default.in"),
    )
    def test_what_two_files_set_names_both(self, _: str, line: str, key: str) -> None:
        self.write(line, "a.toml")
        found = self.mistakes(f"include = ['a.toml']\n{line}")
        self.assertEqual(found, [f"a.toml: {key}: plumberd.toml has it already, and one file alone may set it"])

    def test_a_table_here_and_a_string_there(self) -> None:
        self.write("rules = 'deny in any any'", "a.toml")
        found = self.mistakes("include = ['a.toml']\nrules = []")
        self.assertEqual(found, ["a.toml: rules: plumberd.toml has it already, and one file alone may set it"])

    def test_a_pattern_of_another_type_is_told_with_the_others(self) -> None:
        self.assertEqual(
            self.mistakes("include = [5, 'a.toml']"),
            ["a.toml: No such file or directory", "plumberd.toml: include[0]: 5: wanted a string"],
        )
        self.assertEqual(
            self.mistakes("include = 'a.toml'"),
            ["plumberd.toml: include: 'a.toml': wanted an array, between [ and ]"],
        )

    def test_a_folder_that_others_can_write(self) -> None:
        self.write("", "rules.d/a.toml")
        os.chmod(self.path("rules.d"), 0o1777)
        (found,) = self.mistakes("include = ['rules.d/*.toml']")
        self.assertIn("plumberd.toml: include[0]: others can write the folder rules.d (mode 1777)", found)

    def test_as_many_files_as_are_accepted_and_not_one_more(self) -> None:
        for number in range(FILES):
            self.write("rules = ['deny in a any']", f"rules.d/{number}.toml")
        self.assertEqual(len(self.settings("include = ['rules.d/*.toml']").policy.rules), FILES)
        self.write("", "rules.d/one-more.toml")
        wanted = [f"plumberd.toml: include: more than {FILES} files are not accepted"]
        self.assertEqual(self.mistakes("include = ['rules.d/*.toml']"), wanted)

    def test_ten_thousand_includes_are_one_mistake(self) -> None:
        names = ", ".join(f"'{number}.toml'" for number in range(10000))
        wanted = [f"plumberd.toml: include: more than {FILES} files are not accepted"]
        self.assertEqual(self.mistakes(f"include = [{names}]"), wanted)
        patterns = ", ".join(f"'{number}.*'" for number in range(10000))
        self.assertEqual(self.mistakes(f"include = [{patterns}]"), wanted)

    def test_more_bytes_in_all_than_are_accepted_are_one_mistake(self) -> None:
        for number in range(9):
            self.write("#" * 200, f"{number}.toml")
        with mock.patch.object(configuration, "ALL_BYTES", 1000):
            found = self.mistakes("include = ['?.toml']")
        self.assertEqual(found, ["plumberd.toml: include: more than 1000 bytes in all"])


class Unreadable(ConfiguredTestCase):
    """One clear mistake, and nothing of the file holds."""

    @each(
        ("no_syntax", "a = 1\nrules = [\n'a',\n\nb = 2\n", "plumberd.toml:5: no TOML: "),
        ("no_end", "rules = [", "plumberd.toml:1: no TOML: "),
        ("twice", "rundir = '/a'\nrundir = '/b'\n", "plumberd.toml:2: no TOML: "),
        ("no_utf_8", b"# ok\nrundir = '\xff'", "plumberd.toml:2: byte 0xff is not UTF-8, which TOML is written in"),
        (
            "utf_16",
            "rundir = '/a'".encode("utf-16"),
            "plumberd.toml:1: byte 0xff is not UTF-8, which TOML is written in",
        ),
        (
            "a_nul",
            b"rules = ['deny in any any\0']",
            "plumberd.toml:1: no TOML: ",
        ),
        (
            "deep",
            "rules = " + "[" * 5000 + "]" * 5000,
            "plumberd.toml: no TOML of ours: arrays or tables within each other",
        ),
        ("a_number_of_5000_digits", f"limits.relays = {'9' * 5000}", "plumberd.toml: no TOML: "),
    )
    def test_what_is_no_toml(self, _: str, text: str | bytes, wanted: str) -> None:
        (found,) = self.mistakes(text)
        self.assertTrue(found.startswith(wanted), found)

    def test_ten_megabytes_of_rules(self) -> None:
        rules = "'deny in any any',\n" * (10 * 2**20 // 19)
        self.assertEqual(
            self.mistakes(f"rules = [\n{rules}]"), [f"plumberd.toml: it is longer than {FILE_BYTES} bytes"]
        )

    def test_a_directory(self) -> None:
        os.mkdir(self.path("a.toml"))
        self.assertEqual(self.mistakes_in(self.path("a.toml")), ["a.toml: it is a directory; wanted a file"])

    def test_no_permission(self) -> None:
        path = self.write("")
        with mock.patch("os.open", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.mistakes_in(path), ["plumberd.toml: Permission denied"])

    def test_what_others_can_write(self) -> None:
        wanted = ["plumberd.toml: others can write it (mode 0666): chmod go-w"]
        self.assertEqual(self.mistakes("", mode=0o666), wanted)

    def test_the_other_files_mistakes_are_told_with_it(self) -> None:
        self.write("x = [", "a.toml")
        self.write("rundir = 5", "b.toml")
        found = self.mistakes("include = ['?.toml']\ny = 1")
        self.assertEqual(
            [line.partition(" no ")[0] for line in found],
            ["a.toml:1:", "b.toml: rundir: 5: wanted a string", "plumberd.toml: y:"],
        )


class Decoded(ConfiguredTestCase):
    def test_a_rule_is_told_with_its_file_its_line_and_its_place_there(self) -> None:
        self.write("rules = [ 'deny in a any',\n 5, 'deny sideways b any' ]", "a.toml")
        found = self.mistakes("include = ['a.toml']\nrules = [\n  'deny in any any',\n  'permit in any any',\n]")
        self.assertEqual(
            found,
            [
                "plumberd.toml:4: rules[1]: 'permit': wanted allow, deny or log",
                "a.toml: rules[1]: 5: wanted a string",
                "a.toml:2: rules[2]: 'sideways': wanted in, out or serve",
            ],
        )

    def test_a_nul_in_a_rule(self) -> None:
        self.assertEqual(
            self.mistakes('rules = ["deny in any any\\u0000"]'),
            ["plumberd.toml:1: rules[0]: a control character in a rule"],
        )

    def test_the_same_rule_twice_has_two_lines(self) -> None:
        rules = self.settings("rules = ['deny in a any',\n'deny in a any']").policy.rules
        self.assertEqual(self.bare(rule.source for rule in rules), ["plumberd.toml:1", "plumberd.toml:2"])

    def test_what_is_wrong_hides_nothing_else(self) -> None:
        found = self.mistakes("rundirs = 1\nredirect.a = 'b'\nredirect.b = 'a'\nredirect.ipc = 'x'\nlimits.relays = 0")
        self.assertEqual(
            [line.split(": ")[1] for line in found], ["redirect.ipc", "limits.relays", "rundirs", "redirect"]
        )
        self.assertIn("a loop of redirects: a → b → a", found[-1])


class Secrets(ConfiguredTestCase):
    SECRET = "routes.a = ['tcp://h.example', 'tls://user:hunter2@h.example/a']"

    @each((0o600,), (0o640,))
    def test_they_may_stand_where_not_everybody_reads_them(self, mode: int) -> None:
        path = self.write(self.SECRET, mode=mode)
        found = read_configuration(path, "/", Accounts())
        self.assertEqual(found.mistakes, ())
        self.assertEqual(str(found.configuration.routes["a"][0].targets[1]), "tls://user:***@h.example:9001/a")

    def test_but_nowhere_else(self) -> None:
        wanted = "plumberd.toml: routes.a: a secret in a readable file: chmod o-r"
        (found,) = self.mistakes(self.SECRET)
        self.assertTrue(found.startswith(wanted), found)

    def test_it_is_their_own_file_that_counts(self) -> None:
        self.write("redirect.a = [{to = 'tls://user:hunter2@h.example/a', for = 'uid:7'}]", "a.toml", 0o644)
        self.write(self.SECRET, "b.toml", 0o600)
        (found,) = self.mistakes("include = ['a.toml', 'b.toml']", mode=0o600)
        self.assertTrue(found.startswith("a.toml: redirect.a: a secret in a readable file"), found)

    @each(
        ("in_the_wrong_key", "rundirs = 'tls://user:hunter2@h.example'"),
        ("as_a_key", "'tls://user:hunter2@h.example' = 1"),
        ("in_a_rule", "rules = ['allow out a tls://user:hunter2@h.example']"),
        ("in_a_list_of_words", "dialects = ['tls://user:hunter2@h.example']"),
        ("in_a_listener", "listen.tcpd = ['tls://user:hunter2@h.example']"),
        ("in_a_framing", "services.a.framing = 'tls://user:hunter2@h.example'"),
        ("in_a_wrong_uri", "routes.a = 'tls://user:hunter2@h.example:0'"),
        ("in_the_wrong_type", "limits.relays = 'user:hunter2@h.example'"),
        ("behind_a_wrong_quote", "routes.a = 'tls://user:hunter2@h.example"),
        ("without_quotes", "routes.a = tls://user:hunter2@h.example"),
    )
    def test_no_mistake_repeats_them(self, _: str, text: str) -> None:
        (found,) = self.mistakes(text, mode=0o600)
        self.assertNotIn("hunter2", found)
