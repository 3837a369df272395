"""Finds the few rules of many that a question can match.

A rule is filed under its most telling words: the host, network or name of its
peer, its service or the longer end of a glob, and the user it is for. A question
looks under its own, and under "any". What is found is tried in the order of the
rules, and tried whole: the index only leaves out what cannot match.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from plumberd.pure.address import unwrap
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.globs import ends
from plumberd.pure.policy.peer import Destination, Peer, Ports
from plumberd.pure.policy.rule import Rule
from plumberd.pure.policy.subject import UNMAPPED, Standing, Subject

FEW = 16
"""So many rules are tried one by one: looking them up would cost more."""

_Key = tuple[object, ...]


class Rules(tuple[Rule, ...]):
    """Rules in their order, with an index that is made when it is needed first."""

    _index: Index | None = None

    def candidates(self, direction: Direction, service: str | None, to: Destination, subject: Subject) -> Iterator[int]:
        """Yield, in order, the positions of all rules that may match; rules that cannot are mostly left out."""
        if len(self) <= FEW:
            return iter(range(len(self)))
        if self._index is None:
            self._index = Index(self)
        return self._index.candidates(direction, service, to, subject)


class Index:
    """Positions of rules by what they speak of."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._by: defaultdict[_Key, list[int]] = defaultdict(list)
        self._lengths: dict[int, set[int]] = {4: set(), 6: set()}
        self._spans: defaultdict[str | None, set[Ports | None]] = defaultdict(set)
        self._uids: set[int | None] = {None}
        self._ends: dict[bool, set[int]] = {True: set(), False: set()}
        for at, rule in enumerate(rules):
            service = self._glob_key(rule.service) if rule.is_glob and rule.service else rule.service
            uid = next((c.number for c in rule.conditions if c.kind in ("user", "uid")), None)
            self._uids.add(uid)
            self._by[(rule.direction, service, uid, *self._key(rule.peer))].append(at)
            if rule.peer.network is not None:
                # once more, for questions whose addresses are not known yet
                scheme, span = rule.peer.scheme, rule.peer.ports
                self._spans[scheme].add(span)
                self._by[(rule.direction, service, uid, "networks", scheme, span)].append(at)

    def candidates(self, direction: Direction, service: str | None, to: Destination, subject: Subject) -> Iterator[int]:
        """See :meth:`Rules.candidates`."""
        uids = self._uids_of(subject)
        keys = [(uid, *key) for key in self._keys(direction, to, subject) for uid in uids]
        services: list[str | _Key | None] = [None]
        if service is not None:
            services += [service, *((True, service[:n]) for n in self._ends[True] if n <= len(service))]
            services += [(False, service[-n:]) for n in self._ends[False] if n <= len(service)]
        found = [self._by[key] for s in services for k in keys if (key := (direction, s, *k)) in self._by]
        return iter(found[0]) if len(found) == 1 else heapq.merge(*found)

    def _uids_of(self, subject: Subject) -> Collection[int | None]:
        if subject.standing is not Standing.REMOTE and (subject.uid == UNMAPPED or subject.words):
            return self._uids  # who can't be told, or is described by words, may be whoever is denied
        return dict.fromkeys((None, subject.uid))

    def _glob_key(self, glob: str) -> _Key:
        """Return the end of *glob* that tells more, and whether it is the front."""
        front, back = ends(glob)
        is_front = len(front) >= len(back)
        end = front if is_front else back
        self._ends[is_front].add(len(end))
        return (is_front, end)

    def _key(self, peer: Peer) -> _Key:
        if peer.network is not None:
            network = peer.network
            self._lengths[network.version].add(network.prefixlen)
            return ("network", network.version, network.prefixlen, int(network.network_address))
        if peer.suffix is not None:
            return ("suffix", peer.suffix)
        return ("any",) if peer.name is None else ("name", peer.name)

    def _keys(self, direction: Direction, to: Destination, subject: Subject) -> Iterator[_Key]:
        yield ("any",)
        for name in subject.proved_names if direction is Direction.IN else (to.name,):
            if name is None:
                continue
            yield ("name", name)
            while name := name.partition(".")[2]:
                yield ("suffix", name)
        if to.addresses is None:
            # a caller's port says nothing, and one that nobody knows may be any
            port = to.port if direction is Direction.OUT else None
            for span in self._spans.get(to.scheme, ()):
                if span is None or port is None or span[0] <= port <= span[1]:
                    yield ("networks", to.scheme, span)
            return
        for one in dict.fromkeys(o for address in to.addresses for o in unwrap(address)):
            bits = 32 if isinstance(one, ipaddress.IPv4Address) else 128
            for length in self._lengths[one.version]:
                number = int(one) >> (bits - length) << (bits - length)
                yield ("network", one.version, length, number)
