"""How much of each limit is in use: for a client what is its own, for an administrator everything."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from plumberd.pure.admission import FairQueue
from plumberd.pure.limits import Limits
from plumberd.pure.living import Living
from plumberd.pure.who import LocalWho

BUSIEST = 3
"""So many of those who use most of a limit are told."""


OF_USERS = frozenset(
    {limit.name for limit in dataclasses.fields(Limits) if limit.name.endswith("_per_uid")} | {"relays_per_peer"}
)
"""What holds for each local user."""


class _Settings(Protocol):
    @property
    def limits(self) -> Limits: ...


class _Resolver(Protocol):
    @property
    def places(self) -> FairQueue[Hashable, Any]: ...


class _Census(Protocol):
    per_uid: int
    total: int
    living: Living
    why_not: str

    @property
    def used(self) -> int: ...
    def used_of(self, uid: int) -> int: ...


class _Core(Protocol):
    @property
    def settings(self) -> _Settings: ...
    @property
    def relay_places(self) -> FairQueue[str, Any]: ...
    @property
    def resolver(self) -> _Resolver: ...
    @property
    def census(self) -> _Census: ...


class _Broker(Protocol):
    @property
    def lookups(self) -> FairQueue[int, Any]: ...
    @property
    def unread(self) -> FairQueue[int, Any]: ...
    @property
    def connections_by_uid(self) -> Mapping[int, int]: ...
    @property
    def connections_per_uid(self) -> int: ...


class _Callers(Protocol):
    @property
    def handshakes(self) -> FairQueue[str, Any]: ...


class _Tcpd(Protocol):
    @property
    def callers(self) -> _Callers: ...


@dataclass(frozen=True)
class _Use:
    """The use of one limit.

    :ivar limit: that is in force; the descriptors that there are may make it smaller than the one that was set.
    :ivar used: in all, or where a limit holds for each user how much the client itself uses; ``None`` where
        that is not counted.
    :ivar most: for a limit that holds for each user or address: return those who use most, and how much.
    """

    limit: float
    used: int | None = None
    most: Callable[[int], list[tuple[Any, int]]] | None = None


def usage(core: _Core, broker: _Broker, tcpd: _Tcpd, who: LocalWho, admin: bool) -> list[dict[str, Any]]:
    """Return ``name``, ``limit``, ``used`` and ``of`` (whose use it is), in the order of :class:`Limits`.

    *admin*: every limit; where one holds for each user or address, a row for each of the :data:`BUSIEST`.
    Else those that hold for each local user, and what *who* itself uses. What is no count (seconds, bytes)
    and what cannot be counted here is used ``None``.
    """
    rows = []
    for name, use in _uses(core, broker, tcpd, who.uid).items():
        if not admin:
            if name in OF_USERS:
                rows.append(_row(name, use.limit, use.used, who.uid))
        elif use.most is None:
            rows.append(_row(name, use.limit, use.used))
        else:
            busiest = use.most(BUSIEST)
            rows += [_row(name, use.limit, used, key) for key, used in busiest]
            if not busiest:
                rows.append(_row(name, use.limit, None if use.used is None else 0))
    return rows


def _uses(core: _Core, broker: _Broker, tcpd: _Tcpd, uid: int) -> dict[str, _Use]:
    limits, lookups, census = core.settings.limits, broker.lookups, core.census
    resolving, handshakes, relays = core.resolver.places, tcpd.callers.handshakes, core.relay_places
    connections, me = broker.connections_by_uid, _name(uid)
    counts = not census.why_not
    found = {
        "lookups_per_uid": _each(lookups, uid),
        "lookups": _all(lookups),
        "waiting_per_uid": _Use(lookups.waiting_per_key, lookups.waiting_of(uid), lookups.most_waiting),
        "resolving_per_uid": _each(resolving, me),
        "resolving": _all(resolving),
        "connections_per_uid": _Use(
            broker.connections_per_uid,
            connections.get(uid, 0),
            lambda count: heapq.nlargest(count, connections.items(), key=lambda pair: pair[1]),
        ),
        "unread_descriptors_per_uid": _each(broker.unread, uid),
        "handed_over_per_uid": _Use(census.per_uid, census.used_of(uid) if counts else None, census.living.most),
        "handed_over": _Use(census.total, census.used if counts else None),
        "handshakes_per_address": _each(handshakes, me),
        "handshakes": _all(handshakes),
        "relays": _all(relays),
        "relays_per_peer": _each(relays, me),
    }
    return {name: found.get(name, _Use(value)) for name, value in vars(limits).items()}


def _each(queue: FairQueue[Any, Any], key: Hashable) -> _Use:
    return _Use(queue.per_key, queue.active_of(key), queue.most_active)


def _all(queue: FairQueue[Any, Any]) -> _Use:
    return _Use(queue.total, queue.active)


def _name(key: object) -> str:
    """Return whose use it is, for people; local users are numbers in some places, and accounts in others."""
    return f"uid {key}" if isinstance(key, int) else str(key)


def _row(name: str, limit: float, used: int | None, key: object = None) -> dict[str, Any]:
    return {"name": name, "limit": limit, "used": used, "of": None if key is None else _name(key)}
