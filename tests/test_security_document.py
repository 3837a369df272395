"""docs/security.md: its tables are what escapes have to come to, and every attack in it has its test, or a reason."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.escapes.expected import (
    BY_ASKER,
    BY_CAPABILITY,
    BY_MODE,
    CAPABILITIES,
    COUNTERED,
    MODES,
    WITHOUT_DAEMON,
)
from tests.escapes.trials import COUNTER_MEASURES
from tests.tables import each
from tests.test_docs import read, rows, section

ROOT = Path(__file__).resolve().parent.parent

ATTACKS = (
    "Names and sockets",
    "Descriptors",
    "Who may do what",
    "Names and addresses",
    "Remote",
    "Datagrams",
    "Web pages",
    "TLS and identities",
    "Gateways",
    "Reload",
    "Limits",
    "What this version does not have",
    "Other people's names, connections and processes",
)
"""The sections in which each point is an attack."""

OTHERS = (
    "The principle",
    "Who is trusted with what",
    "What the modes let through",
    "Escapes",
    "In a cage",
    "Known to be open",
    "To be closed",
)

_TEST = re.compile(r"\b[Tt]ests?:\s.*?`(tests/[\w/]+\.py)`", re.DOTALL)


def points(heading: str) -> list[str]:
    """Return the points of a section, each with its continuation."""
    return re.split(r"^- ", section("security.md", heading), flags=re.MULTILINE)[1:]


class Attacks(SynchronousTestCase):
    def test_every_section_is_looked_at_or_is_none_of_attacks(self) -> None:
        headings = re.findall(r"^## (.+)$", read("security.md"), flags=re.MULTILINE)
        self.assertEqual(sorted(headings), sorted(ATTACKS + OTHERS))

    @each(*((heading,) for heading in ATTACKS))
    def test_every_point_of(self, heading: str) -> None:
        """It names a test, or says why there is none."""
        found = points(heading)
        self.assertGreater(len(found), 2)
        without = [one.split("**")[1:2] or one for one in found if not _TEST.search(one) and "No test: " not in one]
        self.assertEqual(without, [])

    def test_the_tests_that_are_named_are_there(self) -> None:
        named = set(_TEST.findall(read("security.md")))
        self.assertGreater(len(named), 40)
        self.assertEqual([path for path in named if not (ROOT / path).exists()], [])


class Tables(SynchronousTestCase):
    """The tables of outcomes, in the document and in the code."""

    def check(
        self, heading: str, expected: Mapping[str, tuple[str, ...]], head: tuple[str, ...], number: int = 0
    ) -> None:
        """Compare the *number*th table below *heading*."""
        tables = [part for part in section("security.md", heading).split("\n\n") if part.startswith("| ")]
        first, *found = rows(tables[number])
        self.assertEqual(tuple(cell.strip("`") for cell in first[1:]), head)
        plain = {name: tuple(cell.strip("*") for cell in cells) for name, *cells in found}
        self.assertEqual(list(plain.items()), list(expected.items()))

    def test_what_a_mode_lets_through(self) -> None:
        self.check("Escapes", BY_MODE, MODES)

    def test_what_is_left_of_it_behind_the_packet_filter(self) -> None:
        expected = {name: (outcome,) for name, outcome in COUNTERED.items()}
        self.check("What is still possible", expected, ("what comes of it",))

    def test_the_packet_filter_is_the_one_that_is_tried(self) -> None:
        (text,) = re.findall(r"^ +nft '(.*)'$", read("security.md"), flags=re.MULTILINE)
        tried = " ".join(COUNTER_MEASURES.replace("escapes", "plumberd").split())
        self.assertEqual(text.replace(";", "").split(), tried.replace(";", "").split())

    def test_what_a_capability_adds(self) -> None:
        self.check("With capabilities", BY_CAPABILITY, CAPABILITIES)

    def test_what_comes_of_it_without_a_broker(self) -> None:
        expected = {name: (outcome,) for name, outcome in WITHOUT_DAEMON.items()}
        self.check("While the broker does not run", expected, ("what comes of it",))

    def test_what_comes_of_who_asks(self) -> None:
        self.check("Who is asking", {name: (outcome,) for name, outcome in BY_ASKER.items()}, ("what comes of it",))
