"""plumberd.pure.forwarded: what a gateway says of its caller."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.forwarded import parse_caller, show_caller
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import RemoteWho
from tests.tables import each

GATEWAY = RemoteWho("tls", ipaddress.ip_address("192.0.2.1"), 1, frozenset({"psk:edge"}))

addresses = st.none() | st.ip_addresses(v=4) | st.ip_addresses(v=6, network="2001:db8::/32")
words = st.sampled_from(["cert:a.example", "spiffe://example.org/b", "psk:laptop", "login:al"])


class Caller(SynchronousTestCase):
    @given(addresses, st.integers(0, 65535), st.frozensets(words))
    def test_what_is_shown_is_read_back(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int, proved: frozenset[str]
    ) -> None:
        found = parse_caller(show_caller(RemoteWho("tcp", address, port, proved)), GATEWAY)
        self.assertEqual(found, RemoteWho("tls", address, port, proved, "psk:edge"))

    def test_the_gateway_s_own_identities_are_not_the_caller_s(self) -> None:
        found = parse_caller("192.0.2.7 5", GATEWAY)
        self.assertEqual(found.subject.words, frozenset())
        self.assertIn("via psk:edge", str(found))

    @each(
        ("nothing", ""),
        ("no port", "192.0.2.7"),
        ("a port that is none", "192.0.2.7 x"),
        ("a port that is too large", "192.0.2.7 65536"),
        ("a name", "a.example 1"),
        ("a network", "192.0.2.0/24 1"),
        ("a zone", "fe80::1%eth0 1"),
        ("IPv4 in disguise", "::ffff:192.0.2.7 1"),
        ("two blanks", "192.0.2.7 1  cert:a.example"),
        ("a blank behind", "192.0.2.7 1 "),
        ("a local condition", "192.0.2.7 1 uid:0"),
        ("another local condition", "192.0.2.7 1 unit:a.service"),
        ("no condition", "192.0.2.7 1 anybody"),
        ("a name that is written otherwise", "192.0.2.7 1 cert:A.Example"),
        ("half of it wrong", "192.0.2.7 1 cert:a.example x"),
    )
    def test_refused_as_a_whole(self, _: str, text: str) -> None:
        with self.assertRaises(Refused) as caught:
            parse_caller(text, GATEWAY)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)

    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
    def test_anything_is_a_caller_or_refused(self, text: str) -> None:
        try:
            found = parse_caller(text, GATEWAY)
        except Refused:
            return
        self.assertEqual(parse_caller(show_caller(found), GATEWAY), found)
