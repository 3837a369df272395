"""What checks logins, read out of a configuration and the command line: every mistake, with its place."""

from __future__ import annotations

import os

from plumberd.pure.passwords import Cost, Entry, format_entry
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.mistakes import ConfigurationError
from plumberd.wiring.config.settings import CommandLine
from tests.configured import ConfiguredTestCase
from tests.tables import each

ALICE = format_entry(Entry("alice", Cost(), bytes(16), bytes(32))) + "\n"


class Tables(ConfiguredTestCase):
    def test_nothing_said_is_nobody_s_login(self) -> None:
        self.assertFalse(self.settings("").logins.can_check)

    def test_a_password_file_is_meant_from_the_folder_of_the_configuration(self) -> None:
        self.write(ALICE, "keys/passwords", 0o600)
        logins = self.settings("auth.password_file = 'keys/passwords'").logins
        self.assertEqual((logins.password_file, len(logins.passwords)), (self.path("keys/passwords"), 1))

    def test_an_included_file_may_say_it(self) -> None:
        self.write(ALICE, "more/passwords", 0o600)
        self.write("[auth]\npassword_file = 'passwords'\n", "more/auth.toml")
        logins = self.settings("include = ['more/*.toml']").logins
        self.assertEqual(logins.password_file, self.path("more/passwords"))

    def test_the_command_line_s_checkers_are_asked_before_the_configuration_s(self) -> None:
        self.write("bob:x\n", "plain", 0o600)
        path = self.write("auth.checkers = ['file:plain']")
        logins = self.settings("auth.checkers = ['file:plain']", CommandLine(path, checkers=("unix",))).logins
        self.assertEqual(logins.checkers, ("unix", f"file:{self.path('plain')}"))

    def test_who_only_asks_a_configuration_needs_no_files(self) -> None:
        path = self.write("[auth]\npassword_file = '/nowhere'\ncheckers = ['file:/nowhere', 'nosuch:x']\n")
        logins = read_settings(CommandLine(path), reads_keys=False).logins
        self.assertEqual((logins.password_file, len(logins.passwords), len(logins.checkers)), ("/nowhere", 0, 2))

    @each(
        ("it_is_not_there", None, 0, "passwords: No such file or directory"),
        ("its_group_can_read_it", ALICE, 0o640, "passwords: others than its owner can read it (mode 0640)"),
        ("everybody_can_read_it", ALICE, 0o644, "passwords: others than its owner can read it (mode 0644)"),
        ("its_group_can_write_it", ALICE, 0o620, "passwords: others can write it (mode 0620)"),
        ("it_is_too_long", ALICE + "\n" * (1 << 20), 0o600, "passwords: it is longer than 1048576 bytes"),
        ("a_line_is_none", ALICE + "bob:hunter2\n", 0o600, "passwords:2: bob: wanted $scrypt$"),
    )
    def test_a_password_file_cannot_be_used_where(self, _: str, text: str | None, mode: int, wanted: str) -> None:
        if text is not None:
            self.write(text, "passwords", mode)
        (mistake,) = self.mistakes("auth.password_file = 'passwords'")
        self.assertIn(f"plumberd.toml: auth.password_file: {wanted}", mistake)
        self.assertNotIn("hunter2", mistake)

    def test_somebody_else_s_file_cannot_be_used(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can give a file away")
        os.chown(self.write(ALICE, "passwords", 0o600), 4711, 4711)
        (mistake,) = self.mistakes("auth.password_file = 'passwords'")
        self.assertIn("belongs to uid 4711", mistake)

    def test_every_mistake_is_told_with_its_place(self) -> None:
        self.write("a\nb\n", "passwords", 0o600)
        self.write("bob:hunter2\n", "plain", 0o644)
        mistakes = self.mistakes(
            "[auth]\npassword_file = 'passwords'\n"
            "checkers = ['unix', 'nosuch:hunter2', 'file:plain', 'memory:bob:hunter2', 'file:']\n"
        )
        wanted = (
            "auth.password_file: passwords:1: wanted user:",
            "auth.password_file: passwords:2: wanted user:",
            "auth.checkers[1]: no such type",
            "auth.checkers[2]: plain: others than its owner can read it",
            "auth.checkers[3]: memory holds passwords in its own words",
            "auth.checkers[4]: ",
        )
        self.assertEqual(len(mistakes), len(wanted))
        for mistake, text in zip(mistakes, wanted, strict=True):
            self.assertTrue(mistake.startswith(f"plumberd.toml: {text}"), mistake)
            self.assertNotIn("hunter2", mistake)

    def test_a_mistake_of_the_command_line_names_the_option(self) -> None:
        with self.assertRaises(ConfigurationError) as caught:
            read_settings(CommandLine(checkers=("anonymous", "file:/nowhere/plain")))
        first, second = str(caught.exception).splitlines()
        self.assertTrue(first.startswith("--auth: anonymous checks no user names"), first)
        self.assertEqual(second, "--auth: /nowhere/plain: No such file or directory")

    @each(
        ("a_file_without_a_name", "password_file = ''", "auth.password_file: '': wanted a path"),
        ("one_checker_alone", "checkers = 'unix'", "auth.checkers: 'unix': wanted an array"),
        ("a_number", "checkers = [1]", "auth.checkers[0]: 1: wanted a string"),
        ("another_key", "passwords = 'x'", "auth.passwords: no such key here; did you mean password_file?"),
    )
    def test_a_table_is_wrong_with(self, _: str, text: str, wanted: str) -> None:
        (mistake,) = self.mistakes(f"[auth]\n{text}\n")
        self.assertIn(wanted, mistake)

    def test_no_secret_shows_in_what_was_read(self) -> None:
        self.write(ALICE, "passwords", 0o600)
        said = "auth.password_file = 'passwords'"
        line = CommandLine(self.write(said), checkers=("ldap:hunter2",))
        settings = read_settings(line, reads_keys=False)
        for secret in ("hunter2", "AAAAAAAA"):
            self.assertNotIn(secret, repr((line, settings, settings.logins, self.settings(said))))
