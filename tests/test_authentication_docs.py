"""docs/authentication.md: its numbers are those that hold, and its examples are what is read."""

from __future__ import annotations

import re

from plumberd.effects.checkers import PROVED, PROVED_SECONDS, THREADS, checker_types
from plumberd.effects.logins import CHECKER_SECONDS, FLOOR_SECONDS, WAITING_PER_ADDRESS
from plumberd.plumb import parser
from plumberd.pure.attempts import DELAYS_SECONDS, FREE_FAILURES, REMEMBERED, WINDOW_SECONDS
from plumberd.pure.identities import MOST_NAMES
from plumberd.pure.limits import Limits
from plumberd.pure.login import CARRYING, login_for
from plumberd.pure.names import SCHEMES
from plumberd.pure.passwords import (
    LEAST_MEMORY_BYTES,
    MOST_MEMORY_BYTES,
    MOST_WORK_BYTES,
    PASSWORD_BYTES,
    USER_CHARS,
    Cost,
    parse_file,
)
from plumberd.pure.plumb_handshake import AUTHORIZATION, Login
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.policy.subject import PROVED_KINDS
from plumberd.pure.tls import PeerSettings
from plumberd.pure.uri import parse_uri
from tests.configured import ConfiguredTestCase
from tests.tables import each
from tests.test_docs import quoted, read, section

DOCUMENT = "authentication.md"


def indented(heading: str) -> list[str]:
    """Return the indented lines below a heading."""
    return re.findall(r"^    (.+)$", section(DOCUMENT, heading), flags=re.MULTILINE)


class Document(ConfiguredTestCase):
    def test_every_word_that_is_proved_stands_in_the_table(self) -> None:
        table = re.findall(r"^\| .*? \| (`.*?) \|", read(DOCUMENT), flags=re.MULTILINE)
        self.assertEqual({cell.strip("`").partition(":")[0] for cell in table}, set(PROVED_KINDS))

    def test_the_rules_are_rules(self) -> None:
        rules = [parse_rule(line.partition("#")[0].strip()) for line in indented("Who proves what, and how")[:4]]
        self.assertEqual(sum(len(rule.conditions) for rule in rules), 4)

    def test_the_password_file_is_read_with_the_line_that_is_shown(self) -> None:
        lines = indented("The password file")
        (shown,) = [line for line in lines if line.startswith("alice:")]
        self.assertEqual(len(parse_file(shown.encode())), 1)
        self.assertIn(f"${Cost()}$", shown)
        path = self.write(shown, "passwords", 0o600)
        self.assertEqual(lines[0], "[auth]")
        said = "\n".join(lines[:2]).replace("/etc/plumberd/passwords", path)
        self.assertEqual(self.settings(said).logins.password_file, path)

    def test_the_command_is_understood(self) -> None:
        (line,) = [line for line in indented("The password file") if line.startswith("plumb ")]
        self.assertEqual(parser().parse_args(line.split()[1:]).user, "alice")

    def test_the_forms_of_a_login_mean_one(self) -> None:
        text = section(DOCUMENT, "User names and passwords")
        uris = [parse_uri(uri) for uri in sorted(quoted(text)) if uri.startswith("tls://alice")]
        self.assertEqual([login_for(uri, None) for uri in uris], [Login("alice", "secret")] * 2)
        (machine,) = [parse_uri(uri) for uri in quoted(text) if uri.startswith("tls://build")]
        peer = PeerSettings(login="build", password="x")
        self.assertEqual(login_for(machine, peer), Login("build", "x"))
        self.assertIn(f"`{AUTHORIZATION}`", text)

    def test_the_schemes_that_are_refused_are_all_others(self) -> None:
        others = [scheme for scheme in SCHEMES if scheme not in (*CARRYING, "unix")]
        self.assertIn(f"credentials for {', '.join(others[:-1])} and {others[-1]}", read(DOCUMENT))
        self.assertIn(f"They go over `{CARRYING[0]}` and `{CARRYING[1]}` alone", section("protocol.md", "URIs"))

    def test_the_checkers_that_twisted_brings_stand_in_the_table(self) -> None:
        text = section(DOCUMENT, "Other checkers")
        for name in ("file", "unix"):
            self.assertIn(name, checker_types())
            self.assertRegex(text, rf"\| `{name}[:`]")
        self.assertIn(f"not answered after {CHECKER_SECONDS:g} seconds", text)

    @each(
        ("The password file", f"1 to {USER_CHARS} printable ASCII characters"),
        ("The password file", f"1 to {PASSWORD_BYTES} bytes"),
        (
            "The password file",
            f"at most {MOST_MEMORY_BYTES >> 20} MiB of memory",
        ),
        ("The password file", f"at most {MOST_WORK_BYTES >> 20} MiB"),
        ("Certificates", f"(the first {MOST_NAMES})"),
        ("Limits, and equal time", f"{WAITING_PER_ADDRESS} of each; more are `busy`"),
        ("Limits, and equal time", f"with {Limits().login_failures_per_minute} failures within a minute"),
        ("Limits, and equal time", ", ".join(f"{s:g} s" for s in DELAYS_SECONDS[2:3])),
        ("Limits, and equal time", f"a whole number of {FLOOR_SECONDS:g} s"),
        ("Limits, and equal time", f"remembered for {PROVED_SECONDS:g} seconds"),
        ("Limits, and equal time", f"failures of {REMEMBERED} addresses"),
        ("Limits, and equal time", f"{PROVED} logins that were right"),
    )
    def test_a_number_is_the_one_that_holds(self, heading: str, wanted: str) -> None:
        self.assertIn(wanted, section(DOCUMENT, heading))

    def test_the_other_numbers_hold_too(self) -> None:
        text = section(DOCUMENT, "Limits, and equal time")
        self.assertEqual((THREADS, FREE_FAILURES, WINDOW_SECONDS), (2, 3, 60))
        self.assertIn("**Two** passwords", text)
        self.assertIn("From the fourth failure in a minute on", text)
        first, *between, last = (f"{seconds:g} s" for seconds in DELAYS_SECONDS)
        self.assertIn(f"{first}, then {', '.join(between)} and {last}", text)
        self.assertEqual(Cost(14, 8, 1).memory_bytes, LEAST_MEMORY_BYTES)
        self.assertIn(f"at least `{Cost(14, 8, 1)}`", section(DOCUMENT, "The password file"))
