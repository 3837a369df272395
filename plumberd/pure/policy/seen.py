"""One line of the audit log as what rules would have to grant.

The log is hostile: it holds names and addresses of the clients' own choice.
What no rule can say is left out with a reason, never bent into one that says
more: a service called ``any`` would open all of them. Loopback, link-local,
metadata, multicast and unspecified addresses are never proposed.
"""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plumberd.pure.address import Zone, unmapped, zone
from plumberd.pure.names import is_reserved, is_service
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import ANY, Peer, PeerError, parse_peer
from plumberd.pure.policy.subject import PROVED_KINDS, UNMAPPED, ConditionError, parse_condition
from plumberd.pure.record import LISTED
from plumberd.pure.uri import IPAddress, UriError, parse_uri

LINE_BYTES = 65536
"""Longest line that is read; an audit line is far shorter."""

NO_RECORD = "no audit record"
DROPPED = "never written: the log was too slow, and says so"
NO_SERVICE = "a lookup that names no service, which only a rule for any service would match"
NO_WORD = "a service, host or identity that no rule can name"
NO_WHO = "somebody whom no rule can name"
NO_ADDRESSES = "a name whose addresses the log does not tell"
LOCAL_STAYS = "a local service, which stays open to unconfined clients without a rule"
ZONES = {one: f"{'an' if one is Zone.UNSPECIFIED else 'a'} {one.value} address" for one in Zone}
"""Why an event is left out for its address."""

Who = int | tuple[str, ...]
"""A local client's uid; or what a caller has proved, nothing where its address has to do."""


@dataclass(frozen=True)
class Seen:
    """What one rule has to grant.

    :ivar name: a DNS name, or the name of a local service.
    :ivar address: instead of a name. Without either it is any host, for a proof stands in its place.
    :ivar port: ``None`` where there is none, or where it says nothing.
    """

    direction: Direction
    service: str
    who: Who
    scheme: str
    name: str | None = None
    address: IPAddress | None = None
    port: int | None = None


class LeftOut(Exception):
    """No rule comes of this event, or of these.

    :ivar reason: why, for people.
    """

    def __init__(self, reason: str, count: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.count = count


def read_record(line: bytes) -> dict[str, Any]:
    """Parse a line.

    :raises LeftOut: it is no record, or the one that stands for those that were dropped.
    """
    if len(line) > LINE_BYTES:
        raise LeftOut(NO_RECORD)
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise LeftOut(NO_RECORD) from None
    if isinstance(record, dict) and type(record.get("dropped")) is int:
        raise LeftOut(DROPPED, max(record["dropped"], 1))
    if not isinstance(record, dict) or not isinstance(record.get("who"), dict):
        raise LeftOut(NO_RECORD)
    if record.get("direction") not in ("in", "out") or not isinstance(record.get("verdict"), str):
        raise LeftOut(NO_RECORD)
    return record


def is_refusal_to_be(record: dict[str, Any]) -> bool:
    """Tell whether it was let through only because refusals are just being logged."""
    return record.get("would") == "denied"


def deciding_rule(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the rule that decided, or ``None`` where a default did."""
    rule = record.get("rule")
    return rule if isinstance(rule, dict) and rule.get("number") is not None else None


def seen_in(record: dict[str, Any]) -> tuple[Seen, ...]:
    """Return what has to be granted for this event: two things, where the URI names another service.

    :raises LeftOut: where no rule can do it, or none should.
    """
    service = record.get("service")
    if not service:
        raise LeftOut(NO_SERVICE)
    if record["direction"] == "in":
        return (_caller(record, _service(service)),)
    return tuple(dict.fromkeys(_outward(record, _service(service))))


def _outward(record: dict[str, Any], service: str) -> Iterator[Seen]:
    who, peer, addresses = record["who"], _peer(record), _addresses(record)
    _check_zones([peer.address, *addresses])
    asker = _asker(who)
    local = peer.scheme == "unix"
    if local and not is_refusal_to_be(record) and isinstance(asker, int) and not who.get("confined"):
        raise LeftOut(LOCAL_STAYS)
    told = [address for address in addresses if address is not None]
    if not local and peer.address is None and not 0 < len(told) < LISTED:
        raise LeftOut(NO_ADDRESSES)  # none, or perhaps not all: one could be this very machine's
    port = peer.ports[0] if peer.ports else None
    for one in (service, _far_service(record, peer) or service):
        yield Seen(Direction.OUT, _service(one), asker, peer.scheme or "", peer.name, peer.address, port)


def _caller(record: dict[str, Any], service: str) -> Seen:
    who = record["who"]
    address, scheme = _address(who.get("address")), who.get("scheme")
    if who.get("kind") != "remote" or not isinstance(scheme, str):
        raise LeftOut(NO_WHO)
    _check_zones([address, *_addresses(record)])
    proved = _proved(who)
    if not proved and address is None:
        raise LeftOut(NO_WHO)
    return Seen(Direction.IN, service, proved, scheme, address=None if proved else address)


def _asker(who: dict[str, Any]) -> Who:
    """Return who wants to go out: a local client, or a caller whom this machine carries on."""
    if who.get("kind") == "remote" and (proved := _proved(who)):
        return proved
    uid = who.get("uid")
    if who.get("kind") != "local" or type(uid) is not int or not 0 <= uid < 2**32 - 1 or uid == UNMAPPED:
        raise LeftOut(NO_WHO)
    return uid


def _proved(who: dict[str, Any]) -> tuple[str, ...]:
    words = who.get("identities") or []
    if not isinstance(words, list):
        raise LeftOut(NO_RECORD)
    for word in words:
        try:
            condition = parse_condition(word if isinstance(word, str) else "")
        except ConditionError:
            raise LeftOut(NO_WORD) from None
        # cert:*.NAME in a rule is every name below it
        if condition.kind not in PROVED_KINDS or str(condition) != word or condition.value.startswith("*."):
            raise LeftOut(NO_WORD)
    return tuple(sorted(set(words)))


def _peer(record: dict[str, Any]) -> Peer:
    """Return where it went: one name or one address, and one port."""
    to = record.get("to")
    try:
        peer = _parse_peer(to if isinstance(to, str) else "")
    except PeerError:
        raise LeftOut(NO_WORD) from None
    one_port = peer.ports is not None and peer.ports[0] == peer.ports[1]
    if (peer.name is None and peer.address is None) or peer.name in ANY or not (one_port or peer.scheme == "unix"):
        raise LeftOut(NO_WORD)
    return peer


def _far_service(record: dict[str, Any], peer: Peer) -> str | None:
    """Return the service that the address names: it has to pass as well."""
    if peer.scheme == "unix":
        return peer.name
    uri = record.get("uri")
    try:
        return _uri_service(uri) if isinstance(uri, str) and "://" in uri else None
    except UriError:
        raise LeftOut(NO_WORD) from None


def _service(name: object) -> str:
    if not isinstance(name, str) or not is_service(name) or is_reserved(name) or name in ANY:
        raise LeftOut(NO_WORD)
    return name


def _addresses(record: dict[str, Any]) -> list[IPAddress | None]:
    many = record.get("addresses")
    return [_address(text) for text in (record.get("address"), *(many if isinstance(many, list) else ()))]


def _address(text: object) -> IPAddress | None:
    if text is None:
        return None
    try:
        address = _parse_address(text if isinstance(text, str) else "")
    except ValueError:
        raise LeftOut(NO_WORD) from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        raise LeftOut(ZONES[Zone.LINK_LOCAL])
    return address


# A log says the same again and again; these three are most of the work.


@functools.lru_cache(maxsize=4096)
def _parse_address(text: str) -> IPAddress:
    return unmapped(ipaddress.ip_address(text))


@functools.lru_cache(maxsize=4096)
def _parse_peer(text: str) -> Peer:
    return parse_peer(text, Direction.OUT)


@functools.lru_cache(maxsize=4096)
def _uri_service(text: str) -> str | None:
    return parse_uri(text).service


def _check_zones(addresses: list[IPAddress | None]) -> None:
    for address in addresses:
        found = Zone.ORDINARY if address is None else zone(address)
        if found is not Zone.ORDINARY:
            raise LeftOut(ZONES[found])
