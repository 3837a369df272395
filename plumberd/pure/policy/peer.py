"""PEER, the far end that a rule speaks of.

    any   *   SCHEME:any[:PORT]   SCHEME:HOST[:PORT]   SCHEME://HOST[:PORT]   unix:NAME

HOST is a DNS name, ``*.NAME`` (every name below NAME, and not NAME itself), an
address, or a network: ``192.0.2.0/24``, ``[2001:db8::]/32``. PORT is a number or
a range, ``80-90``; none is any.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass

from plumberd.pure.address import unmapped
from plumberd.pure.names import SCHEMES, is_service
from plumberd.pure.policy.direction import Direction
from plumberd.pure.uri import IPAddress, UriError, parse_host, parse_port, show_host

ANY = ("any", "*")
"""The two spellings of anything; a shell expands the second."""

PROVES_NOTHING = ("tcp", "udp", "ws")
"""Schemes whose callers have an address and no name."""

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Ports = tuple[int, int]
"""First and last."""

_PREFIX = re.compile(r"(?:0|[1-9][0-9]{0,2})\Z")
_MAPPED_BITS = 96  # RFC 4291, 2.5.5.2


class PeerError(ValueError):
    """The text is no peer: what was wanted, what was found, what would be accepted."""


@dataclass(frozen=True)
class Peer:
    """The far end that a rule speaks of; ``None`` in a field is anything.

    :ivar name: a DNS name, or the name of a local service where the scheme is ``unix``.
    :ivar suffix: the NAME of ``*.NAME``.
    :ivar network: addresses; one alone is a network of its full length.
    :ivar ports: first and last.
    """

    scheme: str | None = None
    name: str | None = None
    suffix: str | None = None
    network: IPNetwork | None = None
    ports: Ports | None = None

    def __str__(self) -> str:
        """The one normal form, which parses back to the same value."""
        if self.scheme is None:
            return "any"
        return f"{self.scheme}:{self._host()}{self._port()}"

    @property
    def address(self) -> IPAddress | None:
        """The one address, where there is just one."""
        network = self.network
        return network.network_address if network is not None and network.prefixlen == network.max_prefixlen else None

    @property
    def has_host(self) -> bool:
        """Whether it speaks of certain hosts, or local services, and not of all that its scheme leads to."""
        return not (self.name is None and self.suffix is None and self.network is None)

    def has_port(self, port: int | None, *, untold: bool) -> bool:
        """Tell whether *port* is one of those that it speaks of; *untold* is the answer where nobody knows the port."""
        if self.ports is None:
            return True
        return untold if port is None else self.ports[0] <= port <= self.ports[1]

    def has_name(self, name: str | None) -> bool:
        """Tell whether it names the DNS name or local service *name*; one without a name names none."""
        if name is None:
            return False
        return name == self.name if self.suffix is None else name.endswith("." + self.suffix)

    def _host(self) -> str:
        if self.network is not None:
            host = show_host(str(self.network.network_address))
            return host if self.address is not None else f"{host}/{self.network.prefixlen}"
        return f"*.{self.suffix}" if self.suffix is not None else self.name or "any"

    def _port(self) -> str:
        if self.ports is None:
            return ""
        first, last = self.ports
        return f":{first}" if first == last else f":{first}-{last}"


ANYWHERE = Peer()
"""``any``."""


@dataclass(frozen=True)
class Destination:
    """Where a connection goes to, or comes from, as rules see it.

    :ivar name: the DNS name (out) or the local service (``unix``); ``None`` where there is none. The
        names that a caller has proved are its subject's.
    :ivar addresses: every address, or ``None`` where they are not known yet.
    :ivar special: it is an administrator's endpoint that does what a client could not do by
        itself, and so needs a rule.
    """

    scheme: str
    name: str | None
    addresses: tuple[IPAddress, ...] | None
    port: int | None
    special: bool = False

    def as_peer(self, direction: Direction) -> str:
        """This destination as the PEER of a rule; a caller's source port says nothing."""
        return str(self if direction is Direction.OUT else dataclasses.replace(self, port=None))

    def __str__(self) -> str:
        host = self.name or (show_host(str(self.addresses[0])) if self.addresses else "?")
        return f"{self.scheme}:{host}" + (f":{self.port}" if self.port else "")


def parse_peer(word: str, direction: Direction) -> Peer:
    """Parse PEER.

    :raises PeerError: naming what is wrong and what would be accepted.
    """
    if word in ANY:
        return ANYWHERE
    scheme, colon, rest = word.partition(":")
    if not colon or scheme not in SCHEMES:
        raise PeerError(
            f"{word!r} is no peer: wanted any, SCHEME:any or SCHEME:HOST[:PORT]; schemes are {', '.join(SCHEMES)}"
        )
    rest = rest.removeprefix("//")
    if scheme == "unix":
        return _local(word, rest, direction)
    if rest in ANY:
        return Peer(scheme)
    try:
        return _remote(scheme, rest, direction)
    except (UriError, PeerError) as e:
        raise PeerError(f"{word!r}: {e}") from None


def is_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    """Tell whether every address of *inner* is one of *outer*; families are not mixed."""
    if isinstance(inner, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and inner.subnet_of(outer)


def _local(word: str, rest: str, direction: Direction) -> Peer:
    if direction is Direction.IN:
        raise PeerError(f"{word!r}: a remote peer has no local name; unix: stands in out rules")
    if rest in ANY:
        return Peer("unix")
    if not is_service(rest):
        raise PeerError(f"{word!r}: wanted unix:NAME, the name of a local service")
    return Peer("unix", rest)


def _remote(scheme: str, rest: str, direction: Direction) -> Peer:
    host, prefix, port = _cut(rest)
    ports = None if port is None or port in ANY else _ports(port)
    if host in ANY and prefix is None:
        return Peer(scheme, ports=ports)
    wild = host.startswith("*.")
    if "*" in host[1 if wild else 0 :]:
        raise PeerError("the only wildcard in a host is *.NAME, for every name below NAME")
    name = parse_host(host[2:] if wild else host)
    try:
        address = unmapped(ipaddress.ip_address(name))
    except ValueError:
        if prefix is not None:
            raise PeerError("only an address has a prefix length (192.0.2.0/24), and no path stands here") from None
        if direction is Direction.IN and scheme in PROVES_NOTHING:
            raise PeerError(
                f"a {scheme} peer proves no name, so this would never match; wanted {scheme}:ADDRESS, or tls:{host}"
            ) from None
        return Peer(scheme, None, name, None, ports) if wild else Peer(scheme, name, None, None, ports)
    if wild:
        raise PeerError("an address has no wildcard: a network is written 192.0.2.0/24")
    return Peer(scheme, None, None, _network(host, address, prefix), ports)


def _cut(rest: str) -> tuple[str, str | None, str | None]:
    """Cut ``HOST[/PREFIX][:PORT]`` into its parts; IPv6 stands in brackets."""
    if rest.startswith("["):
        host, bracket, tail = rest.partition("]")
        host += bracket
    else:
        at = min((n for n in (rest.find("/"), rest.find(":")) if n >= 0), default=len(rest))
        host, tail = rest[:at], rest[at:]
    prefix = port = None
    if tail.startswith("/"):
        prefix, colon, port = tail[1:].partition(":")
        return host, prefix, port if colon else None
    if tail.startswith(":"):
        port = tail[1:]
        if ":" in port:
            raise PeerError("an IPv6 address stands in brackets")
        if "/" in port:
            raise PeerError("no path stands here: the service is the word in front of the peer")
    elif tail:
        raise PeerError("only /LENGTH and :PORT may stand behind an IPv6 address")
    return host, prefix, port


def _network(host: str, address: IPAddress, prefix: str | None) -> IPNetwork:
    if prefix is None:
        return ipaddress.ip_network(address)
    if not _PREFIX.match(prefix):
        raise PeerError("the length of a network is a number behind its address: 192.0.2.0/24")
    length = int(prefix)
    if host.startswith("[") and address.version == 4:
        # an IPv4-mapped network is one of IPv4, or of more than that
        if length < _MAPPED_BITS:
            raise PeerError("a network of IPv4-mapped addresses has a length of 96 or more; write it as IPv4")
        length -= _MAPPED_BITS
    try:
        return ipaddress.ip_network((address, length))
    except ValueError:
        pass
    if length > address.max_prefixlen:
        raise PeerError(f"the length of a network of this family is at most {address.max_prefixlen}")
    whole = ipaddress.ip_network((address, length), strict=False)
    raise PeerError(f"{address} is not where a network of that length begins; wanted {Peer('', network=whole)._host()}")


def _ports(text: str) -> Ports:
    first, dash, last = text.partition("-")
    if not dash:
        port = parse_port(first)
        return port, port
    ports = parse_port(first), parse_port(last)
    if ports[0] > ports[1]:
        raise PeerError("a range of ports is written FIRST-LAST")
    return ports
