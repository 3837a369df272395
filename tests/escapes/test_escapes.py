"""What programs get out of what they are handed, whoever they say they are: each trial, with what has to come of it."""

from __future__ import annotations

import shutil

from tests.escapes.askers import ASKERS
from tests.escapes.attempts import ATTEMPTS
from tests.escapes.expected import (
    BY_ASKER,
    BY_CAPABILITY,
    BY_MODE,
    CAPABILITIES,
    COUNTERED,
    MODES,
    NONE,
    WITHOUT_DAEMON,
)
from tests.escapes.machine import CLIENT, OTHER
from tests.escapes.running import EscapeTestCase, outcomes, strains
from tests.escapes.sent import CLOSED, CONTROL, REFUSED, SOCKETS
from tests.escapes.strains import FINE, STRAINS
from tests.escapes.trials import ACCEPTED, CAPABLE, FIREWALLS, OUTBOUND
from tests.tables import each


class ByMode(EscapeTestCase):
    """With a socket that was dialled and one that was accepted, over IPv4 and IPv6."""

    def test_every_attempt_is_expected_to_come_to_something(self) -> None:
        self.assertEqual(list(BY_MODE), sorted(ATTEMPTS, key=list(BY_MODE).index))

    def test_every_mode_is_tried_both_ways(self) -> None:
        self.assertEqual(tuple(OUTBOUND), MODES)
        self.assertEqual(tuple(ACCEPTED), tuple(mode for mode in MODES if mode != "framed"))

    @each(*BY_MODE.items())
    def test(self, name: str, expected: tuple[str, ...]) -> None:
        wanted = dict(zip(MODES, expected, strict=True))
        found = {
            (direction, mode, family): told[name]
            for direction in ("out", "in")
            for mode, families in outcomes()[direction].items()
            for family, told in families.items()
            if name in told
        }
        self.assertEqual(found, {key: wanted[key[1]] for key in found})
        self.assertEqual({mode for _, mode, _ in found}, {mode for mode in MODES if wanted[mode] != NONE})

    def test_every_attempt_is_made_over_ipv4_or_ipv6_and_most_over_both(self) -> None:
        families = outcomes()["out"]["locked"]
        self.assertEqual(families["AF_INET"].keys() | families["AF_INET6"].keys(), BY_MODE.keys())
        self.assertGreater(len(families["AF_INET"].keys() & families["AF_INET6"].keys()), 25)


class ByCapability(EscapeTestCase):
    """With a locked socket, by what the program may do besides."""

    @each(*BY_CAPABILITY.items())
    def test(self, name: str, expected: tuple[str, ...]) -> None:
        found = tuple(outcomes()["capable"][capabilities][name] for capabilities in CAPABILITIES)
        self.assertEqual(found, expected)

    def test_every_column_is_tried(self) -> None:
        self.assertEqual(tuple(CAPABLE), CAPABILITIES)


class Countered(EscapeTestCase):
    """Behind the packet filter that docs/security.md proposes."""

    if shutil.which("nft") is None:
        skip = "there is no nft"

    @each(*COUNTERED.items())
    def test(self, name: str, expected: str) -> None:
        self.assertEqual(outcomes()["countered"][name], expected)


class WithoutDaemon(EscapeTestCase):
    """While the broker restarts."""

    @each(*WITHOUT_DAEMON.items())
    def test(self, name: str, expected: str) -> None:
        self.assertEqual(outcomes()["without_daemon"][name], expected)


class ByAsker(EscapeTestCase):
    """Who is asking."""

    @each(*BY_ASKER.items())
    def test(self, name: str, expected: str) -> None:
        self.assertEqual(outcomes()["askers"][name], expected)

    def test_every_asker_is_expected_to_be_told_something(self) -> None:
        self.assertEqual(list(ASKERS), list(BY_ASKER))


class SentDescriptors(EscapeTestCase):
    """Of every kind, to every socket, by hundreds; the trials check that the broker keeps none and serves others."""

    def test_the_broker_s_own_sockets_refuse_them(self) -> None:
        for kind, told in outcomes()["sent"].items():
            self.assertEqual({name: told[name] for name in SOCKETS}, dict.fromkeys(SOCKETS, REFUSED), kind)

    def test_a_control_socket_closes_what_is_no_place_for_an_answer(self) -> None:
        self.assertEqual({told[CONTROL] for told in outcomes()["sent"].values()}, {CLOSED})


class Firewalls(EscapeTestCase):
    """The host's own rules that speak of a user hold for what root's broker dials for that user."""

    @each(*((name,) for name in FIREWALLS))
    def test(self, name: str) -> None:
        needed = FIREWALLS[name][0]
        if shutil.which(needed) is None:
            self.skipTest(f"there is no {needed}")
        self.assertEqual(outcomes()["firewalls"][name], {str(CLIENT): "unreachable", str(OTHER): "locked"})


class Strained(EscapeTestCase):
    """What would leave something behind, or let others wait; behind each one the broker has nothing left of it."""

    @each(*((name,) for name in STRAINS))
    def test(self, name: str) -> None:
        self.assertEqual(strains()[name], FINE)
