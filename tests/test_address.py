"""plumberd.pure.address: what an address is, in whatever spelling it hides."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import Zone, unmapped, unwrap, zone
from tests.tables import PROPERTY, each


def spellings(inner: ipaddress.IPv4Address) -> dict[str, ipaddress.IPv6Address]:
    """Return every way known to write an IPv4 address into an IPv6 one."""
    number = int(inner)
    four = inner.packed

    def with_low(prefix: str, low: int = number) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | low)

    def local(front: bytes) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Address(front.ljust(16, b"\x08"))

    prefix = bytes.fromhex("0064ff9b0001")
    return {
        "mapped (RFC 4291)": with_low("::ffff:0:0"),
        "compatible (RFC 4291)": with_low("::"),
        "translated (RFC 2765)": with_low("::ffff:0:0:0"),
        "6to4 (RFC 3056)": with_low("2002::", number << 80),
        "6to4 of 8.8.8.8 with ISATAP behind": with_low("2002:808:808::5efe:0:0"),
        "NAT64 (RFC 6052)": with_low("64:ff9b::"),
        "NAT64 local /96 (RFC 8215)": with_low("64:ff9b:1::"),
        "NAT64 local /64": local(prefix + b"\x08\x08\x00" + four),
        "NAT64 local /56": local(prefix + b"\x08" + four[:1] + b"\x00" + four[1:]),
        "NAT64 local /48": local(prefix + four[:2] + b"\x00" + four[2:]),
        "Teredo client (RFC 4380)": with_low("2001:0:808:808::", number ^ 0xFFFFFFFF),
        "Teredo server (RFC 4380)": with_low("2001::f7f7:f7f7", number << 64),
        "ISATAP (RFC 5214)": with_low("2001:db8::5efe:0:0"),
        "ISATAP, universal": with_low("2001:db8::200:5efe:0:0"),
        "ISATAP, of a group": with_low("2001:db8::300:5efe:0:0"),
    }


METADATA = (
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42", "169.254.0.23"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
)


class Plain(SynchronousTestCase):
    @each(
        ("fd00:ec2::254", Zone.METADATA),
        ("fd00:ec2::23", Zone.METADATA),
        ("fd20:ce::254", Zone.METADATA),
        ("fd00:42::42", Zone.METADATA),
        ("fe80::a9fe:a9fe", Zone.METADATA),
        *((text, Zone.METADATA) for text in METADATA),
        ("169.254.0.1", Zone.LINK_LOCAL),
        ("169.254.255.255", Zone.LINK_LOCAL),
        ("169.253.255.255", Zone.ORDINARY),
        ("169.255.0.0", Zone.ORDINARY),
        ("fe80::", Zone.LINK_LOCAL),
        ("febf:ffff::1", Zone.LINK_LOCAL),
        ("fec0::1", Zone.LINK_LOCAL),
        ("fe7f::1", Zone.ORDINARY),
        ("127.0.0.0", Zone.LOOPBACK),
        ("127.255.255.255", Zone.LOOPBACK),
        ("126.255.255.255", Zone.ORDINARY),
        ("128.0.0.0", Zone.ORDINARY),
        ("::1", Zone.LOOPBACK),
        ("0.0.0.0", Zone.UNSPECIFIED),
        ("0.255.255.255", Zone.UNSPECIFIED),
        ("1.0.0.0", Zone.ORDINARY),
        ("::", Zone.UNSPECIFIED),
        ("::2", Zone.UNSPECIFIED),
        ("224.0.0.0", Zone.MULTICAST),
        ("239.255.255.255", Zone.MULTICAST),
        ("223.255.255.255", Zone.ORDINARY),
        ("240.0.0.1", Zone.ORDINARY),
        ("255.255.255.254", Zone.ORDINARY),
        ("255.255.255.255", Zone.MULTICAST),
        ("ff00::", Zone.MULTICAST),
        ("ff0e::1", Zone.MULTICAST),
        ("feff::1", Zone.LINK_LOCAL),
        ("10.0.0.1", Zone.ORDINARY),
        ("192.168.1.1", Zone.ORDINARY),
        ("100.100.100.201", Zone.ORDINARY),
        ("168.63.129.17", Zone.ORDINARY),
        ("192.0.0.191", Zone.ORDINARY),
        ("8.8.8.8", Zone.ORDINARY),
        ("fd00:ec2::255", Zone.ORDINARY),
        ("fd00::1", Zone.ORDINARY),
        ("2001:db8::1", Zone.ORDINARY),
    )
    def test_the_zone_of_an_address(self, text: str, wanted: Zone) -> None:
        self.assertEqual(zone(ipaddress.ip_address(text)), wanted)

    @each(("fe80::1%eth0", Zone.LINK_LOCAL), ("fd00:ec2::254%2", Zone.METADATA), ("::1%lo", Zone.LOOPBACK))
    def test_a_zone_id_hides_nothing(self, text: str, wanted: Zone) -> None:
        self.assertEqual(zone(ipaddress.ip_address(text)), wanted)


class Hidden(SynchronousTestCase):
    @each(*((name,) for name in spellings(ipaddress.IPv4Address(0))))
    def test_an_address_is_found_in_every_spelling(self, name: str) -> None:
        for text, wanted in (
            *((text, Zone.METADATA) for text in METADATA),
            ("169.254.3.4", Zone.LINK_LOCAL),
            ("127.0.0.1", Zone.LOOPBACK),
            ("127.8.8.8", Zone.LOOPBACK),
            ("224.0.0.251", Zone.MULTICAST),
            ("255.255.255.255", Zone.MULTICAST),
            ("8.8.8.8", Zone.ORDINARY),
            ("192.0.2.7", Zone.ORDINARY),
        ):
            inner = ipaddress.IPv4Address(text)
            outer = spellings(inner)[name]
            self.assertIn(inner, list(unwrap(outer)))
            self.assertEqual(zone(outer), wanted, f"{outer} hides {inner}")

    @each(
        ("mapped", "::ffff:0.0.0.0", Zone.UNSPECIFIED),
        ("compatible_with_the_smallest", "::2", Zone.UNSPECIFIED),
        ("link_local_wins_over_the_loopback_in_it", "fe80::5efe:127.0.0.1", Zone.LINK_LOCAL),
        ("metadata_wins_over_the_loopback_beside_it", "2002:7f00:1::5efe:a9fe:a9fe", Zone.METADATA),
        ("teredo_server", "2001:0:7f00:1::f7f7:f7f7", Zone.LOOPBACK),
        ("teredo_client_wins_over_its_server", "2001:0:7f00:1::5601:5601", Zone.METADATA),
    )
    def test_the_most_dangerous_one_counts(self, _: str, text: str, wanted: Zone) -> None:
        self.assertEqual(zone(ipaddress.ip_address(text)), wanted)

    @each(
        ("::1:7f00:1", Zone.ORDINARY),
        ("::fffe:127.0.0.1", Zone.ORDINARY),
        ("2003:7f00:1::", Zone.ORDINARY),
        ("64:ff9c::127.0.0.1", Zone.ORDINARY),
        ("64:ff9b:2::127.0.0.1", Zone.ORDINARY),
        ("2001:1:7f00:1::f7f7:f7f7", Zone.ORDINARY),
        ("2001:db8::5eff:127.0.0.1", Zone.ORDINARY),
    )
    def test_what_is_none_of_these_spellings_hides_nothing(self, text: str, wanted: Zone) -> None:
        address = ipaddress.ip_address(text)
        self.assertEqual((zone(address), list(unwrap(address))), (wanted, [address]))

    @PROPERTY
    @given(st.ip_addresses(v=4).filter(lambda inner: inner.packed[0] != 0))
    def test_every_spelling_of_an_address_that_needs_a_rule_needs_one(self, inner: ipaddress.IPv4Address) -> None:
        for name, outer in spellings(inner).items():
            self.assertIn(inner, list(unwrap(outer)), name)
            if zone(inner) is not Zone.ORDINARY:
                self.assertNotEqual(zone(outer), Zone.ORDINARY, name)


class Unmapped(SynchronousTestCase):
    @each(
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:0.0.0.0", "0.0.0.0"),
        ("1.2.3.4", "1.2.3.4"),
        ("::1.2.3.4", "::1.2.3.4"),
        ("64:ff9b::1.2.3.4", "64:ff9b::1.2.3.4"),
        ("::1", "::1"),
    )
    def test_only_a_mapped_address_is_dialled_as_ipv4(self, text: str, wanted: str) -> None:
        self.assertEqual(unmapped(ipaddress.ip_address(text)), ipaddress.ip_address(wanted))
