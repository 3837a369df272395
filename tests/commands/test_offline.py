"""plumberd.commands.offline: a configuration is asked, and no broker and no name server."""

from __future__ import annotations

import ipaddress
import os
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.client import Refused
from plumberd.commands.explain import request_of
from plumberd.commands.offline import AddressesError, Configured, UnreadableError
from plumberd.pure import refusals
from plumberd.pure.policy.direction import Direction
from tests.support import CleanTestCase
from tests.tables import each

IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
CONFIGURATION = """rules = [
    "allow out pong tcp:198.51.100.0/24:80-90",
    "allow out audio tcp:audio.example.com:9000 for user:root",
    "deny out audio tcp:203.0.113.0/24",
    "allow out audio tcp:*.example.com",
    "allow in web tls:*.example.com",
    "allow out web any for cert:a.example.com",
]
[default]
out = "deny"
[routes]
far = "tcp://far.example.com:7/audio"
web = "tcp://web.example.com:80"
"""
V4 = ipaddress.ip_address("198.51.100.9")
NEAR = ipaddress.ip_address("203.0.113.9")


def write_configuration(folder: str, text: str = CONFIGURATION) -> str:
    """Write a configuration that is trusted; return its path."""
    path = os.path.join(folder, "plumberd.toml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)
    return path


class OfflineTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.configured = Configured(write_configuration(self.folder()))

    def prove(self, *words: str, at: tuple[Any, ...] = (), who: tuple[str, ...] = ()) -> dict[str, Any]:
        direction, service, target = (*words, None)[:3]
        assert direction is not None and service is not None
        return self.configured.prove(request_of(Direction(direction), service, target, who), at)


class Proving(OfflineTestCase):
    @each(
        ("an address", ("out", "pong", "tcp://198.51.100.9:80"), (), (), 1),
        ("a name with an address that is told", ("out", "pong", "tcp://pong.example:80"), (V4,), (), 1),
        ("a name by its name", ("out", "audio", "tcp://audio.example.com:9000"), (), ("user:root",), 2),
        ("a name behind rules for addresses", ("out", "audio", "tcp://b.example.com:9000"), (V4,), (), 4),
        ("a caller", ("in", "web", "tls:a.example.com"), (), (), 6),
    )
    def test_it_is_granted_by(
        self, label: str, words: tuple[str, ...], at: tuple[Any, ...], who: tuple[str, ...], number: int
    ) -> None:
        with mock.patch("plumberd.effects.resolve.look_up", side_effect=AssertionError("a name was looked up")):
            answer = self.prove(*words, at=at, who=who)
        self.assertEqual((answer["granted"], answer["rule"]["number"]), (True, number))

    @each(
        ("another port", ("out", "pong", "tcp://198.51.100.9:91"), (), ()),
        ("an address that a rule denies", ("out", "audio", "tcp://b.example.com:9000"), (NEAR,), ()),
        ("a name that no rule knows, whatever its addresses", ("out", "video", "tcp://h.example:1"), (), ()),
        ("somebody else", ("out", "audio", "tcp://audio.example.com:9000"), (NEAR,), ("user:nobody",)),
        ("a dangerous address", ("out", "audio", "tcp://b.example.com:9000"), ("169.254.169.254",), ()),
        ("a claim to a service", ("serve", "pong"), (), ("user:root",)),
    )
    def test_it_is_refused(self, label: str, words: tuple[str, ...], at: tuple[Any, ...], who: tuple[str, ...]) -> None:
        answer = self.prove(*words, at=tuple(map(ipaddress.ip_address, map(str, at))), who=who)
        self.assertEqual((answer["granted"], answer["word"]), (False, "denied"))

    @each(
        ("a rule for a network", ("out", "pong", "tcp://pong.example:80"), "pong.example"),
        ("a rule for a network in front", ("out", "audio", "tcp://b.example.com:9000"), "b.example.com"),
        ("a configured route", ("out", "far"), "far.example.com"),
        ("the service that the address names", ("out", "web", "tcp://far.example.com:7/audio"), "far.example.com"),
    )
    def test_where_the_addresses_decide_they_have_to_be_told(
        self, label: str, words: tuple[str, ...], name: str
    ) -> None:
        who = ("cert:a.example.com",) if "web" in words else ()
        if "far" in words:
            self.configured = Configured(
                write_configuration(
                    self.folder(), CONFIGURATION.replace("out pong", "out far").replace("com:7/audio", "com:85")
                )
            )
        self.assertEqual(str(self.assertRaises(AddressesError, self.prove, *words, who=who)), name)

    def test_a_lookup_that_names_no_service_is_one_too(self) -> None:
        text = 'rules = ["allow out any tcp:198.51.100.0/24"]\n[default]\nout = "deny"\n'
        self.configured = Configured(write_configuration(self.folder(), text))
        self.assertRaises(AddressesError, self.prove, "out", "any", "tcp://h.example:1")
        self.assertIs(self.prove("out", "any", "tcp://h.example:1", at=(V4,))["granted"], True)

    def test_a_caller_that_is_carried_on_is_one_too(self) -> None:
        text = CONFIGURATION.replace("allow out web any", "allow out web tcp:198.51.100.0/24")
        self.configured = Configured(write_configuration(self.folder(), text))
        self.assertRaises(AddressesError, self.prove, "in", "web", "tls:a.example.com")
        self.assertIs(self.prove("in", "web", "tls:a.example.com", at=(V4,))["granted"], True)


class Explaining(OfflineTestCase):
    def test_a_name_is_resolved_as_a_lookup_would(self) -> None:
        request = request_of(OUT, "pong", "tcp://pong.example:80", ())
        with mock.patch("plumberd.effects.resolve.look_up", return_value=(V4,)) as look_up:
            self.assertIs(self.configured.explain(request)["granted"], True)
        look_up.assert_called_once_with("pong.example")

    def test_a_name_without_an_address_is_refused_as_a_lookup_would_be(self) -> None:
        unreachable = refusals.Refused(refusals.Refusal.UNREACHABLE, "pong.example has no address")
        with mock.patch("plumberd.effects.resolve.look_up", return_value=unreachable):
            answer = self.configured.explain(request_of(OUT, "pong", "tcp://pong.example:80", ()))
        self.assertEqual((answer["granted"], answer["word"]), (False, "unreachable"))

    def test_what_makes_no_sense_is_refused_as_the_broker_would(self) -> None:
        error = self.assertRaises(Refused, self.configured.explain, {"op": "explain", "direction": "sideways"})
        self.assertEqual(error.word, "bad-request")


class Unreadable(CleanTestCase):
    def test_every_mistake_is_told(self) -> None:
        path = write_configuration(self.folder(), 'handover = "thrown"\ngrup = "ipc"\n')
        error = self.assertRaises(UnreadableError, Configured, path)
        self.assertEqual(len(error.mistakes), 2)
        self.assertTrue(all(path in mistake for mistake in error.mistakes))

    def test_a_file_that_is_not_there_is_told(self) -> None:
        path = os.path.join(self.folder(), "none.toml")
        (mistake,) = self.assertRaises(UnreadableError, Configured, path).mistakes
        self.assertIn(path, mistake)


class Late(SynchronousTestCase):
    def test_it_says_what_it_takes_the_broker_for(self) -> None:
        from plumberd.commands.offline import ABLE

        self.assertEqual((ABLE.lock, ABLE.give, ABLE.uid), (True, True, 0))
