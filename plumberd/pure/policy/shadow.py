"""Rules that never have their turn, since an earlier one matches whatever they match.

One earlier rule has to do it alone; that several do it together is not looked
for. What is found is certain: where it is hard to tell, nothing is said.

Rules are filed like in the index of a decision, by what must be alike for one to
hide the other, so that ten thousand are compared with few others each. Where too
many are alike all the same, the search ends after :data:`WORK`.
"""

from __future__ import annotations

import bisect
import enum
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from plumberd.pure.address import Zone, zone, zone_networks
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.globs import ends, is_glob, is_within_glob
from plumberd.pure.policy.peer import ANYWHERE, IPNetwork, Peer, Ports, is_within
from plumberd.pure.policy.rule import Rule
from plumberd.pure.policy.subject import Condition

WORK = 3_000_000
"""Most that is compared, which takes two seconds: a pair of rules is one, and one that is looked at closely more."""

_CLOSELY = 10
"""As many times longer it takes to look at a pair closely."""

_Key = tuple[object, ...]
_LAST_PORT = 65535


class Left(enum.Enum):
    """What an earlier rule that opens leaves to a later one of the same: mostly to a `deny`."""

    NAMED = "addresses that a rule has to name"
    WRAPPED = "IPv6 addresses that hold an IPv4 address of its own"
    UNTOLD = "clients of whom it can't be told who they are"
    PORTLESS = "endpoints whose port is not known"


@dataclass(frozen=True)
class Shadow:
    """A rule that is hidden by an earlier one. Positions count from 0.

    :ivar left: for what it has its turn all the same; for nothing, mostly.
    """

    late: int
    early: int
    left: frozenset[Left]


def find_shadows(rules: Sequence[Rule], idle: Collection[int] = (), most: int = WORK) -> tuple[list[Shadow], int]:
    """Return what is hidden, in order, and how many rules at the end were not looked at.

    :param idle: positions of rules that match nothing anyway: they hide none, and are not looked at.
    :param most: how much is compared at most.
    """
    found: list[Shadow] = []
    filed = _Filed(rules)
    for at in range(len(rules)):
        if at in idle:
            continue
        if filed.work > most:
            return found, len(rules) - at
        shadow = filed.shadow_of(at)
        if shadow is not None:
            found.append(shadow)
        if shadow is None or shadow.left:  # whatever a hidden rule hides, the one that hides it hides too
            filed.add(at)
    return found, 0


def leaves(early: Rule, late: Rule) -> frozenset[Left] | None:
    """Return what *early* leaves of whatever *late* matches behind it, or ``None`` where that may be anything."""
    if early.direction is not late.direction or not _has_service(early.service, late.service):
        return None
    if not _has_peer(early.peer, late.peer, late.direction):
        return None
    left = set()
    for condition in early.conditions:
        if not any(_implies(other, condition) for other in late.conditions):
            return None
        if early.action.opens and not late.action.opens and condition.is_local:
            left.add(Left.UNTOLD)
    if early.action.opens and late.direction is Direction.OUT and late.peer.scheme != "unix":
        left |= _left_addresses(early.peer, late.peer, late_opens=late.action.opens)
    elif early.action.opens and not late.action.opens and early.peer.network is not None and _is_ipv4(late.peer):
        left.add(Left.WRAPPED)
    return frozenset(left)


def _has_service(early: str | None, late: str | None) -> bool:
    if early is None or late is None:
        return early is None
    return early == late or (is_glob(early) and is_within_glob(late, early))


def _has_peer(early: Peer, late: Peer, direction: Direction) -> bool:
    if early.scheme is None or early.scheme != late.scheme:
        return early.scheme is None
    if direction is Direction.OUT and not _has_ports(early.ports, late.ports):
        return False
    if early.network is not None:
        return late.network is not None and is_within(late.network, early.network)
    if early.suffix is not None:
        return late.suffix == early.suffix or early.has_name(late.suffix or late.name)
    return early.name is None or early.name == late.name


def _has_ports(early: Ports | None, late: Ports | None) -> bool:
    if early is None or late is None:
        return early is None
    return early[0] <= late[0] and late[1] <= early[1]


def _implies(condition: Condition, wanted: Condition) -> bool:
    """Tell whether *wanted* is as true as *condition* wherever that may hold."""
    if condition == wanted:
        return True
    both_certificates = condition.kind == wanted.kind == "cert"
    return both_certificates and wanted.value.startswith("*.") and condition.value.endswith(wanted.value[1:])


def _left_addresses(early: Peer, late: Peer, *, late_opens: bool) -> set[Left]:
    """Return which addresses a rule that opens leaves, on the way out, to a later one for the same.

    It passes over addresses that need a rule which names them, over IPv6 addresses that stand for
    an IPv4 address which it speaks of, and over ports that nobody knows; a `deny` speaks of all those.
    """
    if late_opens:
        return {Left.NAMED} if _names_more(late, early) else set()
    left = set()
    if early.network is not None and _is_ipv4(late):
        left.add(Left.WRAPPED)
    if early.address is None or early.ports is None:
        left.add(Left.NAMED)
    if early.ports is not None:
        left.add(Left.PORTLESS)
    return left


def _names_more(late: Peer, early: Peer) -> bool:
    """Tell whether *late* names an address, where that is needed, which *early* speaks of and does not name."""
    network = late.network
    if network is None:
        return False
    where = zone_of(network)
    if where is None or (late.ports is None and where in (Zone.LOOPBACK, Zone.ORDINARY)):
        return False
    if early.network is None or (early.ports is None and late.ports is not None):
        return True
    return early.address is None and not any(is_within(early.network, whole) for whole in zone_networks(where))


def zone_of(network: IPNetwork) -> Zone | None:
    """Return the zone of a single address, or that in which a network lies wholly; of others nothing is named."""
    if network.prefixlen == network.max_prefixlen:
        return zone(network.network_address)
    return next((one for one in Zone if any(is_within(network, whole) for whole in zone_networks(one))), None)


def _is_ipv4(peer: Peer) -> bool:
    return peer.network is not None and peer.network.version == 4


class _Leaf:
    """Rules that are alike but for their ports, further conditions and, of globs, the rest of the service."""

    def __init__(self) -> None:
        self._by_ports: dict[Ports | None, list[int]] = {}
        self._ranges: list[Ports] = []
        self._widest = 0

    def add(self, at: int, ports: Ports | None) -> None:
        """Add a position behind all others."""
        if ports not in self._by_ports:
            self._by_ports[ports] = []
            if ports is not None:
                bisect.insort(self._ranges, ports)
                self._widest = max(self._widest, ports[1] - ports[0])
        self._by_ports[ports].append(at)

    def positions(self, ports: Ports | None) -> Iterator[list[int]]:
        """Yield the positions of all that have these ports, or more than these."""
        if None in self._by_ports:
            yield self._by_ports[None]
        if ports is not None:
            begin = bisect.bisect_left(self._ranges, (ports[1] - self._widest, 0))
            end = bisect.bisect_right(self._ranges, (ports[0], _LAST_PORT))
            for wider in self._ranges[begin:end]:
                yield self._by_ports[wider] if _has_ports(wider, ports) else []


class _Branch:
    """Rules of one direction and host: by service, and by one of their conditions."""

    def __init__(self) -> None:
        self._services: dict[_Key, dict[str, _Leaf]] = {}
        self._prefixes: set[int] = set()
        self._tails: set[int] = set()

    def leaf(self, service: str | None, word: str) -> _Leaf:
        """Return where a rule of this service belongs, and of this condition."""
        key: _Key = (service,)
        if service is not None and is_glob(service):
            prefix, tail = ends(service)
            (self._prefixes if prefix else self._tails).add(len(prefix or tail))
            key = ("prefix", prefix) if prefix else ("tail", tail)
        return self._services.setdefault(key, {}).setdefault(word, _Leaf())

    def leaves(self, service: str | None, words: Collection[str]) -> Iterator[_Leaf]:
        """Yield all whose services may hold *service*, and which have one of the conditions, or none."""
        for key in self._keys(service):
            found = self._services.get(key)
            if found is not None:
                yield from (found[word] for word in words if word in found)

    def _keys(self, service: str | None) -> Iterator[_Key]:
        yield (None,)
        if service is None:
            return
        yield (service,)
        prefix, tail = ends(service)
        yield from (("prefix", prefix[:length]) for length in self._prefixes if length <= len(prefix))
        yield from (("tail", tail[len(tail) - length :]) for length in self._tails if length <= len(tail))


class _Filed:
    """Earlier rules, by what must be alike for one to hide a later rule."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.work = 0
        self._rules = rules
        self._branches: defaultdict[_Key, _Branch] = defaultdict(_Branch)
        self._lengths: defaultdict[_Key, set[int]] = defaultdict(set)
        self._words = [frozenset(map(str, rule.conditions)) for rule in rules]
        self._often = Counter(word for words in self._words for word in words)

    def add(self, at: int) -> None:
        """File the rule at position *at*, behind all that are filed already."""
        rule = self._rules[at]
        peer = rule.peer
        if peer.network is not None:
            self._lengths[(rule.direction, peer.scheme, peer.network.version)].add(peer.network.prefixlen)
        # The rarest of its conditions: a rule that it hides has that one too.
        rarest = min(self._words[at], key=lambda word: (self._often[word], word), default="")
        leaf = self._branches[(rule.direction, *_host(peer))].leaf(rule.service, rarest)
        leaf.add(at, _ports(rule))

    def shadow_of(self, at: int) -> Shadow | None:
        """Return the first rule that hides the one at *at* wholly, or else as good as wholly."""
        late = self._rules[at]
        implied = {"", *_implied_words(late)}
        best: Shadow | None = None
        for positions in self._alike(late, implied):
            self.work += 1
            for early in positions:
                if best is not None and not best.left and early > best.early:
                    break
                self.work += 1
                if not self._words[early] <= implied:
                    continue
                self.work += _CLOSELY
                left = leaves(self._rules[early], late)
                if left is not None and (best is None or (bool(left), early) < (bool(best.left), best.early)):
                    best = Shadow(at, early, left)
        return best

    def _alike(self, late: Rule, words: Collection[str]) -> Iterator[list[int]]:
        """Yield the positions of all rules that could hide *late*, and of few others."""
        for host in self._hosts(late):
            branch = self._branches.get((late.direction, *host))
            if branch is not None:
                for leaf in branch.leaves(late.service, words):
                    yield from leaf.positions(_ports(late))

    def _hosts(self, late: Rule) -> Iterator[_Key]:
        """Yield the keys of all hosts that hold *late*'s."""
        peer = late.peer
        yield _host(ANYWHERE)
        if peer.scheme is None:
            return
        yield _host(Peer(peer.scheme))
        if peer.network is not None:
            network = peer.network
            for length in self._lengths[(late.direction, peer.scheme, network.version)]:
                if length <= network.prefixlen:
                    yield _host(Peer(peer.scheme, network=network.supernet(new_prefix=length)))
            return
        if peer.name is not None:
            yield _host(peer)
        for below in _above(peer.name) if peer.suffix is None else (peer.suffix, *_above(peer.suffix)):
            yield _host(Peer(peer.scheme, suffix=below))


def _host(peer: Peer) -> _Key:
    if peer.network is not None:
        network = peer.network
        return (peer.scheme, network.version, network.prefixlen, int(network.network_address))
    return (peer.scheme, peer.name, peer.suffix)


def _ports(rule: Rule) -> Ports | None:
    return rule.peer.ports if rule.direction is Direction.OUT else None


def _above(name: str | None) -> Iterator[str]:
    """Yield the domains above a DNS name, the nearest first."""
    while name := (name or "").partition(".")[2]:
        yield name


def _implied_words(rule: Rule) -> Iterator[str]:
    """Yield every condition that one of *rule*'s implies, as its text."""
    for condition in rule.conditions:
        yield str(condition)
        if condition.kind == "cert":
            yield from (f"cert:*.{domain}" for domain in _above(condition.value))
