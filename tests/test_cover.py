"""plumberd.pure.policy.cover: few networks and ranges, and exactly what was there."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.cover import Cell, cells_of, cover, networks, ranges
from plumberd.pure.policy.peer import Ports
from tests.tables import PROPERTY, each

NEAR = st.one_of(
    st.integers(0, 15).map(lambda n: ipaddress.ip_address(int(ipaddress.ip_address("198.51.100.0")) + n)),
    st.integers(0, 15).map(lambda n: ipaddress.ip_address(int(ipaddress.ip_address("2001:db8::")) + n)),
)
"""So near each other that some are neighbours."""


def grid(hosts: str, ports: tuple[int | None, ...]) -> list[Cell]:
    return [(address, port) for address in ipaddress.ip_network(hosts) for port in ports]


def shown(cells: list[Cell]) -> list[str]:
    return sorted(f"{network} {span}" for network, span in cover(cells))


class Cover(SynchronousTestCase):
    @each(
        ([], []),
        (grid("198.51.100.7", (80,)), ["198.51.100.7/32 (80, 80)"]),
        (grid("198.51.100.0/30", (80, 81, 82)), ["198.51.100.0/30 (80, 82)"]),
        (
            grid("198.51.100.1/32", (80,)) + grid("198.51.100.2/32", (80,)),
            ["198.51.100.1/32 (80, 80)", "198.51.100.2/32 (80, 80)"],
        ),
        (grid("198.51.100.0/31", (None,)), ["198.51.100.0/31 None"]),
        # by address: .0 has 80-81 and .1 has 80 alone, three rules; by port two
        (
            grid("198.51.100.0/31", (80,)) + grid("198.51.100.0/32", (82,)),
            ["198.51.100.0/31 (80, 80)", "198.51.100.0/32 (82, 82)"],
        ),
        (
            grid("2001:db8::/127", (443,)) + grid("198.51.100.0/31", (443,)),
            ["198.51.100.0/31 (443, 443)", "2001:db8::/127 (443, 443)"],
        ),
    )
    def test_neighbours_are_one(self, cells: list[Cell], wanted: list[str]) -> None:
        self.assertEqual(shown(cells), wanted)

    @given(st.lists(st.tuples(NEAR, st.integers(80, 86) | st.none()), max_size=40))
    @PROPERTY
    def test_each_pair_is_held_once_and_nothing_else_is(self, cells: list[Cell]) -> None:
        held = [cell for rectangle in cover(cells) for cell in cells_of(rectangle)]
        self.assertEqual(len(held), len(set(held)))
        self.assertEqual(set(held), set(cells))

    @given(st.lists(st.tuples(NEAR, st.integers(80, 86)), max_size=40))
    @PROPERTY
    def test_there_are_never_more_than_there_were_pairs(self, cells: list[Cell]) -> None:
        self.assertLessEqual(len(cover(cells)), len(set(cells)))


class Ranges(SynchronousTestCase):
    @each(
        ("none", [], []),
        ("one", [5], [(5, 5)]),
        ("in any order, and twice", [3, 1, 2, 2], [(1, 3)]),
        ("with a gap", [1, 3, 4], [(1, 1), (3, 4)]),
        ("without a port", [None], [None]),
        ("at the limits", [65534, 65535, 1], [(1, 1), (65534, 65535)]),
    )
    def test_neighbours_are_one(self, label: str, ports: list[int | None], wanted: list[Ports | None]) -> None:
        self.assertEqual(ranges(ports), wanted)


class Networks(SynchronousTestCase):
    def test_both_families_at_once(self) -> None:
        given = [ipaddress.ip_address(text) for text in ("2001:db8::1", "192.0.2.3", "192.0.2.2", "2001:db8::")]
        self.assertEqual([str(n) for n in networks(given)], ["192.0.2.2/31", "2001:db8::/127"])

    def test_a_network_is_never_wider_than_what_was_there(self) -> None:
        given = [ipaddress.ip_address(f"192.0.2.{n}") for n in range(1, 255)]
        self.assertEqual(sum(n.num_addresses for n in networks(given)), 254)
