"""One line of the firewall.

    allow|deny in|out SERVICE PEER [handover=MODE]

SERVICE is a name, ``any`` or ``*``. PEER is ``any``, ``*``, ``scheme:any`` or
``scheme:HOST[:PORT]``, also written ``scheme://HOST[:PORT]``, where HOST is an
exact name or address; ``unix:NAME`` is a local service. No port is any port.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
from dataclasses import dataclass

from plumberd.pure.address import unmapped, unwrap
from plumberd.pure.modes import WISHES, Mode
from plumberd.pure.names import SCHEMES, is_service
from plumberd.pure.uri import IPAddress, UriError, parse_host, parse_port, show_host

RULE_CHARS = 1024
"""Longest rule."""

ANY = ("any", "*")
"""The two spellings of anything; a shell expands the second."""


class Direction(enum.Enum):
    """Which way a connection goes, seen from this machine."""

    IN = "in"
    OUT = "out"


class RuleError(ValueError):
    """The text is no rule: what was wanted, what was found, what would be accepted."""


class Match(enum.Enum):
    """Whether a rule matches: without addresses it may be too early to tell."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


@dataclass(frozen=True)
class Peer:
    """The far end that a rule speaks of; ``None`` in a field is anything.

    :ivar name: a DNS name, or the name of a local service where the scheme is ``unix``.
    """

    scheme: str | None = None
    name: str | None = None
    address: IPAddress | None = None
    port: int | None = None

    def __str__(self) -> str:
        if self.scheme is None:
            return "any"
        host = self.name or (show_host(str(self.address)) if self.address else "any")
        return f"{self.scheme}:{host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Rule:
    """A parsed rule.

    :ivar allow: whether it lets through.
    :ivar service: a name, or ``None`` for any (and for a lookup that names none).
    :ivar handover: the mode it asks for.
    :ivar text: the rule as it was written.
    :ivar source: where it was written, for messages: ``--rule``, or a file and line.
    """

    allow: bool
    direction: Direction
    service: str | None
    peer: Peer
    handover: Mode | None = None
    text: str = ""
    source: str = ""

    def __str__(self) -> str:
        """The rule in its one normal form, which parses back to the same value."""
        words = (
            "allow" if self.allow else "deny",
            self.direction.value,
            self.service or "any",
            str(self.peer),
        )
        return " ".join(words) + (f" handover={self.handover.value}" if self.handover else "")


@dataclass(frozen=True)
class Destination:
    """Where a connection goes to, or comes from, as rules see it.

    :ivar name: the DNS name (out), the local service (``unix``), or the identity that
        the scheme proved (in); ``None`` where there is none.
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


def parse_rule(text: str, source: str = "") -> Rule:
    """Parse one rule.

    :raises RuleError: naming the word that is wrong and what would be accepted.
    """
    if len(text) > RULE_CHARS:
        raise RuleError(f"a rule of {len(text)} characters: at most {RULE_CHARS} are accepted")
    if any(c < " " or c == "\x7f" for c in text):
        raise RuleError("a control character in a rule")
    words = text.split()
    if any("@" in word for word in words[:4]):
        raise RuleError("a rule holds no user and no password: its peer is SCHEME:HOST[:PORT], without an @")
    if len(words) < 4:
        raise RuleError(f"{text!r}: wanted allow|deny in|out SERVICE PEER [handover=MODE]")
    verdict, way, service, peer, *rest = words
    if verdict not in ("allow", "deny"):
        raise RuleError(f"{verdict!r}: wanted allow or deny")
    if way not in ("in", "out"):
        raise RuleError(f"{way!r}: wanted in or out")
    direction = Direction(way)
    return Rule(
        allow=verdict == "allow",
        direction=direction,
        service=_service(service),
        peer=_peer(peer, direction),
        handover=_handover(rest, verdict, direction),
        text=text,
        source=source,
    )


def matches(rule: Rule, direction: Direction, service: str | None, to: Destination) -> Match:
    """Tell whether *rule* speaks of this connection.

    *to* holds at most one address here: the one that is being judged.
    """
    if rule.direction is not direction:
        return Match.NO
    if rule.service is not None and rule.service != service:
        return Match.NO
    peer = rule.peer
    if peer.scheme is None:
        return Match.YES
    if peer.scheme != to.scheme:
        return Match.NO
    if direction is Direction.OUT and peer.port is not None and to.port is not None and peer.port != to.port:
        return Match.NO  # for `in`, the peer's source port says nothing and is ignored
    if peer.name is not None:
        return Match.YES if peer.name == to.name else Match.NO
    if peer.address is not None:
        if to.addresses is None:
            return Match.MAYBE
        if peer.address in to.addresses:
            return Match.YES
        # an allow opens the very address that it names, a deny closes its other spellings too
        hidden = not rule.allow and any(peer.address in unwrap(address) for address in to.addresses)
        return Match.YES if hidden else Match.NO
    return Match.YES


def _service(word: str) -> str | None:
    if word in ANY:
        return None
    if not is_service(word):
        raise RuleError(f"{word!r} is no service: wanted a name, any or *")
    return word


def _peer(word: str, direction: Direction) -> Peer:
    if word in ANY:
        return Peer()
    scheme, colon, rest = word.partition(":")
    if not colon or scheme not in SCHEMES:
        raise RuleError(
            f"{word!r} is no peer: wanted any, SCHEME:any or SCHEME:HOST[:PORT]; schemes are {', '.join(SCHEMES)}"
        )
    rest = rest.removeprefix("//")
    if scheme == "unix" and direction is Direction.IN:
        raise RuleError(f"{word!r}: a remote peer has no local name; unix: stands in out rules")
    if rest in ANY:
        return Peer(scheme)
    if scheme == "unix":
        if not is_service(rest):
            raise RuleError(f"{word!r}: wanted unix:NAME, the name of a local service")
        return Peer(scheme, rest)
    try:
        host, port = _host_and_port(rest)
        host = parse_host(host)
    except UriError as e:
        raise RuleError(f"{word!r}: {e}") from None
    if host in ANY:
        # no host is called so: the rule would silently never match
        raise RuleError(f"{word!r}: any host is {scheme}:any, without a port")
    try:
        address = unmapped(ipaddress.ip_address(host))
    except ValueError:
        if direction is Direction.IN and scheme in ("tcp", "udp", "ws"):
            raise RuleError(
                f"{word!r}: a {scheme} peer proves no name, so this would never match; "
                f"wanted {scheme}:ADDRESS, or tls:{host}"
            ) from None
        return Peer(scheme, host, None, port)
    return Peer(scheme, None, address, port)


def _host_and_port(rest: str) -> tuple[str, int | None]:
    if rest.startswith("["):
        host, bracket, tail = rest.partition("]")
        if tail and not tail.startswith(":"):
            raise UriError("only :PORT may stand behind an IPv6 address")
        return host + bracket, parse_port(tail[1:]) if tail and tail[1:] not in ANY else None
    host, colon, tail = rest.partition(":")
    if ":" in tail:
        raise UriError("an IPv6 address stands in brackets")
    return host, parse_port(tail) if colon and tail not in ANY else None


def _handover(words: list[str], verdict: str, direction: Direction) -> Mode | None:
    mode: Mode | None = None
    for word in words:
        key, equals, value = word.partition("=")
        if key != "handover" or not equals:
            raise RuleError(f"{word!r} left over behind the peer; did the shell expand the *? write any")
        if mode is not None:
            raise RuleError("handover= stands twice")
        if verdict != "allow" or direction is not Direction.OUT:
            raise RuleError(f"{word!r}: only an `allow out` rule hands anything over")
        wished = [m for m in WISHES if m.value == value]
        if not wished:
            raise RuleError(f"{word!r}: wanted handover={'|'.join(m.value for m in WISHES)}")
        mode = wished[0]
    return mode
