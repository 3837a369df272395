"""What kind of address is this, whatever spelling it hides in?

Addresses are judged after unwrapping: an IPv6 address that carries an IPv4 one
is judged by the one inside as well, so that no translation smuggles a
link-local or metadata address past a rule.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Iterator

from plumberd.pure.uri import IPAddress


class Zone(enum.Enum):
    """Which rules an address needs."""

    ORDINARY = "ordinary"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "metadata"
    MULTICAST = "multicast"
    UNSPECIFIED = "unspecified"


_METADATA = frozenset(
    ipaddress.ip_address(a)
    for a in (
        "169.254.169.254",  # the common one
        "169.254.170.2",  # Amazon's for containers
        "169.254.170.23",  # ... and for pods
        "fd00:ec2::254",  # Amazon's over IPv6
        "fd00:ec2::23",
        "fd20:ce::254",  # Google's over IPv6
        "169.254.42.42",  # Scaleway's
        "fd00:42::42",
        "169.254.0.23",  # Tencent's
        "fe80::a9fe:a9fe",  # OpenStack's over IPv6
        "100.100.100.200",  # Alibaba's
        "168.63.129.16",  # Azure's
        "192.0.0.192",  # Oracle's
    )
)
_NAT64 = (
    ipaddress.IPv6Network("64:ff9b::/96"),  # RFC 6052, 2.1
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # RFC 2765, 2.1: IPv4-translated
)
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215; how long the prefix really is, its operator decides
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291, 2.5.5.1
_ISATAP = 0x00005EFE  # RFC 5214, 6.1
_ISATAP_MASK = 0xFCFFFFFF  # the bits "universal" and "group" (RFC 4291, 2.5.1) may be set
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 6890; Linux sends 0.0.0.0 to itself
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


_ZONE_NETWORKS: dict[Zone, tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]] = {
    zone: tuple(map(ipaddress.ip_network, texts))
    for zone, texts in {
        Zone.LOOPBACK: ("127.0.0.0/8", "::1/128"),
        Zone.LINK_LOCAL: ("169.254.0.0/16", "fe80::/10", "fec0::/10"),
        Zone.MULTICAST: ("224.0.0.0/4", "ff00::/8"),
        Zone.UNSPECIFIED: ("0.0.0.0/8", "::/128"),
    }.items()
}


def zone_networks(zone: Zone) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    """Return the networks that a zone is, for zones that are whole networks; metadata services are single addresses."""
    return _ZONE_NETWORKS.get(zone, ())


def unmapped(address: IPAddress) -> IPAddress:
    """Return the IPv4 address of an IPv4-mapped one, for dialling; others as they are."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@functools.lru_cache(maxsize=4096)
def zone(address: IPAddress) -> Zone:
    """Return the most dangerous zone among *address* and all that it wraps."""
    worst = Zone.ORDINARY
    for one in unwrap(address):
        found = _plain_zone(one)
        if found is not Zone.ORDINARY and (worst is Zone.ORDINARY or worst is Zone.LOOPBACK):
            worst = found
    return worst


def unwrap(address: IPAddress) -> Iterator[IPAddress]:
    """Yield *address*, without its zone id, and every address that it may stand for."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
        return
    number = int(address)
    yield ipaddress.IPv6Address(number) if address.scope_id else address
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    elif address.sixtofour:
        yield address.sixtofour
    elif address.teredo:
        yield from address.teredo
    elif any(address in net for net in _NAT64) or (address in _COMPATIBLE and number > 1):
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
    elif address in _NAT64_LOCAL:
        yield from _nat64_local(address.packed)
    if number >> 32 & _ISATAP_MASK == _ISATAP:
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)


def account_of_address(address: IPAddress | None) -> str:
    """Return on whose account what *address* does is: its own; an IPv6 /64 is one, and so is all that has none."""
    if address is None:
        return "no address"
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _nat64_local(packed: bytes) -> Iterator[IPAddress]:
    """Yield what a prefix of 48, 56, 64 or 96 bits makes of an address (RFC 6052, 2.2; byte 8 is skipped)."""
    for four in (packed[6:8] + packed[9:11], packed[7:8] + packed[9:12], packed[9:13]):
        if four[0]:  # else the prefix is a longer one
            yield ipaddress.IPv4Address(four)
    yield ipaddress.IPv4Address(packed[12:])


def _plain_zone(address: IPAddress) -> Zone:
    if address in _METADATA:
        return Zone.METADATA
    if address.is_unspecified or (isinstance(address, ipaddress.IPv4Address) and address in _THIS_NETWORK):
        return Zone.UNSPECIFIED
    if address.is_multicast or address == _BROADCAST:
        return Zone.MULTICAST
    if address.is_link_local or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local):
        return Zone.LINK_LOCAL
    if address.is_loopback:
        return Zone.LOOPBACK
    return Zone.ORDINARY
