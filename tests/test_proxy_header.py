"""plumberd.pure.proxy_header, read back by Twisted's own parser and by the specification's figures."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.proxy_header import IDENTITIES, IDENTITIES_BYTES, header

FOUR, HERE = (ipaddress.ip_address("192.0.2.7"), 50123), (ipaddress.ip_address("192.0.2.1"), 443)
SIX, HERE6 = (ipaddress.ip_address("2001:db8::7"), 50123), (ipaddress.ip_address("2001:db8::1"), 443)
BEHIND = {0x11: 12, 0x21: 36, 0x00: 0}


def vectors(data: bytes) -> dict[int, bytes]:
    """Return the TLVs of a header (section 2.2), each of which stands once; nothing may be left over."""
    family, length = struct.unpack("!BH", data[13:16])
    assert len(data) == 16 + length
    rest, found = data[16 + BEHIND[family] :], {}
    while rest:
        kind, size = struct.unpack("!BH", rest[:3])
        assert kind not in found and len(rest) >= 3 + size
        found[kind], rest = rest[3 : 3 + size], rest[3 + size :]
    return found


class Header(SynchronousTestCase):
    def test_addresses_of_both_families_are_read_back(self) -> None:
        for caller, here in ((FOUR, HERE), (SIX, HERE6)):
            info: Any = V2Parser.parse(header(caller, here, service="pong"))
            self.assertEqual((ipaddress.ip_address(_text(info.source.host)), info.source.port), caller)
            self.assertEqual((ipaddress.ip_address(_text(info.destination.host)), info.destination.port), here)

    def test_the_bytes_of_the_specification(self) -> None:
        self.assertEqual(
            header(FOUR, HERE),
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 7, 192, 0, 2, 1)) + b"\xc3\xcb\x01\xbb",
        )

    def test_datagrams_are_told_to_be_such(self) -> None:
        for host, family in (("192.0.2.1", 0x12), ("2001:db8::1", 0x22)):
            end = (ipaddress.ip_address(host), 7)
            self.assertEqual(header(end, end, datagrams=True)[13], family)
            self.assertEqual(header(end, end)[13], family - 1)

    def test_without_two_addresses_of_one_family_none_is_told(self) -> None:
        for caller, here in ((None, HERE), (FOUR, None), (FOUR, HERE6), (None, None)):
            data = header(caller, here, service="pong")
            self.assertEqual(data[13], 0)
            self.assertEqual(vectors(data), {0x02: b"pong"})

    def test_plain_tcp_tells_of_no_tls(self) -> None:
        self.assertEqual(vectors(header(FOUR, HERE)), {})

    def test_a_verified_certificate(self) -> None:
        found = vectors(header(FOUR, HERE, version="TLSv1.3", identities=["login:al", "cert:a.example"]))
        self.assertEqual(found[0x20], b"\x03\0\0\0\0\x21\0\x07TLSv1.3")
        self.assertEqual(found[IDENTITIES], b"cert:a.example login:al")

    def test_tls_without_a_certificate_is_not_verified(self) -> None:
        for proved in ([], ["psk:cert"], ["login:spiffe"]):
            found = vectors(header(FOUR, HERE, version="TLSv1.2", identities=proved))
            self.assertEqual(found[0x20], b"\x01\0\0\0\x01\x21\0\x07TLSv1.2")

    @given(st.lists(st.text("abc:/.", min_size=1, max_size=300), max_size=64))
    def test_identities_are_whole_words_within_the_bound(self, words: list[str]) -> None:
        told = vectors(header(SIX, HERE6, identities=words)).get(IDENTITIES, b"")
        self.assertLessEqual(len(told), IDENTITIES_BYTES)
        count = len(told.split(b" ")) if told else 0
        self.assertEqual(told.decode().split(" ") if told else [], sorted(words)[:count])
        if sum(map(len, words)) + len(words) <= IDENTITIES_BYTES:
            self.assertEqual(count, len(words))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
