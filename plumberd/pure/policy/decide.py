"""The decision: one pure function from a question to a verdict. It fails closed.

The first rule that matches decides; else the defaults do. Without a rule,
plumberd grants nobody anything that they could not have had without it: nothing
comes in, an unconfined client may dial out and reach local services, a confined
one neither, and a remote caller whose service leads away from here neither.

Some addresses need a rule that names them: link-local, metadata, multicast and
unspecified ones for everybody; for confined clients and remote callers loopback
and the machine's own addresses too, with a port. An `allow` that does not name
such an address does not match it, so a later rule may; a `deny` always does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from plumberd.pure.address import Zone, unwrap, zone, zone_networks
from plumberd.pure.modes import Mode
from plumberd.pure.names import SCHEMES
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.index import Rules
from plumberd.pure.policy.peer import Destination, IPNetwork, is_within
from plumberd.pure.policy.rule import Action, Match, Rule, explain_match, matches
from plumberd.pure.policy.subject import ANYBODY, Standing, Subject
from plumberd.pure.tls import peer_key
from plumberd.pure.uri import IPAddress

DEFAULTS: Mapping[Direction, bool] = {Direction.IN: False, Direction.OUT: True}
"""What holds where no rule matches: nothing comes in, an unconfined client may dial out."""

STRICTNESS = (Mode.DIRECT, Mode.AUTO, Mode.LOCKED, Mode.RELAYED, Mode.FRAMED)
"""Wishes for the hand-over, the strictest last."""

PROVING = ("tls", "wss")
"""Schemes in which this machine may prove who it is."""

WOULD = "denied"
"""What a verdict says that lets through only because refusals are just to be logged."""


@dataclass(frozen=True)
class Policy:
    """Rules in their order, and the defaults in force.

    :ivar own_addresses: the machine's addresses other than loopback, which confined
        clients need a rule for as well.
    :ivar audit_only: what would be refused is granted, and says so; but no address that needs a
        rule which names it, and no claim to a service.
    :ivar proves: destinations (``host:port``) to which this machine proves something by tls; like an endpoint
        that does what a client could not do by itself, they need a rule.
    """

    rules: tuple[Rule, ...] = ()
    defaults: Mapping[Direction, bool] = field(default_factory=lambda: dict(DEFAULTS))
    own_addresses: frozenset[IPAddress] = frozenset()
    audit_only: bool = False
    proves: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Rules):
            object.__setattr__(self, "rules", Rules(self.rules))

    @property
    def asks_who(self) -> bool:
        """Whether any rule speaks of some clients only."""
        return any(rule.conditions for rule in self.rules)

    @property
    def asks_unit(self) -> bool:
        """Whether any rule speaks of a cgroup."""
        return any(condition.kind == "unit" for rule in self.rules for condition in rule.conditions)


@dataclass(frozen=True)
class Question:
    """May this connection be made?

    :ivar service: what was asked for, before redirects; ``None`` matches only ``any``.
    :ivar to: the far end. With addresses, each is judged for itself.
    :ivar subject: who asks.
    """

    direction: Direction
    service: str | None
    to: Destination
    subject: Subject = ANYBODY


@dataclass(frozen=True)
class Verdict:
    """The answer.

    :ivar granted: ``None`` only where the question had no addresses and needs them.
    :ivar rule: the rule that decided, as written, or ``default out=allow`` and the like.
    :ivar reason: a sentence for a person.
    :ivar handover: the mode that the rule asks for.
    :ivar addresses: those that passed, in the order of the question.
    :ivar number: the rule's, counted from 1; ``None`` where a default decided.
    :ivar source: where that rule was written, ``rules.toml:12`` say.
    :ivar would: ``denied`` where it is granted only because a refusal is just to be logged.
    """

    granted: bool | None
    rule: str
    reason: str
    handover: Mode | None = None
    addresses: tuple[IPAddress, ...] = ()
    number: int | None = None
    source: str = ""
    would: str = ""


@dataclass(frozen=True)
class Tried:
    """One rule that was tried, for people.

    :ivar number: counted from 1.
    :ivar why: why it did not match, or could not be told yet.
    """

    number: int
    rule: Rule
    match: Match
    why: str


def decide(policy: Policy, question: Question) -> Verdict:
    """Decide. A question without addresses is refused only where that needs none.

    :returns: a :class:`Verdict`; with several addresses it is granted if one passes,
        and ``addresses`` holds those that did.
    """
    addresses = question.to.addresses
    if addresses is None:
        return _judge(policy, question, None)
    if not addresses:
        return Verdict(False, "default", f"{question.to} has no address")
    granted: list[tuple[IPAddress, Verdict]] = []
    refused: Verdict | None = None
    for address in addresses:
        one = dataclasses.replace(question, to=dataclasses.replace(question.to, addresses=(address,)))
        verdict = _judge(policy, one, address)
        if verdict.granted:
            granted.append((address, verdict))
        elif refused is None:
            refused = verdict
    if granted:
        # One connection has one mode: an address whose rule asks for another waits its turn; and
        # what really passes comes before what would be refused.
        first = next((v for _, v in granted if not v.would), granted[0][1])
        same = [a for a, v in granted if (v.handover, v.would) == (first.handover, first.would)]
        return dataclasses.replace(first, addresses=tuple(same))
    assert refused is not None
    return refused


def judge(decide_one: Callable[[Question], Verdict], question: Question, far_service: str | None) -> Verdict:
    """Decide for the service that was asked for and, where it is another, for the one that the URI names."""
    verdict = decide_one(question)
    if verdict.granted is False or far_service is None or far_service == question.service:
        return verdict
    return both(verdict, decide_one(dataclasses.replace(question, service=far_service)))


def both(first: Verdict, second: Verdict) -> Verdict:
    """Return the verdict for a connection that has to pass twice: for two services, say.

    Of several wishes for the hand-over the strictest holds.
    """
    if first.granted is False or second.granted is False:
        return first if first.granted is False else second
    if first.granted is None or second.granted is None:
        return first if first.granted is None else second
    addresses = tuple(a for a in first.addresses if a in second.addresses)
    if first.addresses and not addresses:
        return dataclasses.replace(second, granted=False, addresses=(), reason="no address passes for both services")
    wishes = [v.handover for v in (first, second) if v.handover is not None]
    wish = max(wishes, key=STRICTNESS.index) if wishes else None
    decided = second if second.would and not first.would else first
    return dataclasses.replace(decided, addresses=addresses, handover=wish)


def tried(policy: Policy, question: Question) -> tuple[Tried, ...]:
    """Return every rule in its order up to the one that decides: what :func:`decide` does, told.

    A question with several addresses is to be told one by one.
    """
    address = question.to.addresses[0] if question.to.addresses else None
    need = _needs_naming(policy, question, address)
    found = []
    for number, rule in enumerate(policy.rules, 1):
        match, why = explain_match(rule, question.direction, question.service, question.to, question.subject)
        if match is not Match.NO and rule.action.opens and need is not None and not _names(rule, need):
            match, why = Match.NO, f"it does not name {need.kind} address"
        found.append(Tried(number, rule, match, why))
        if match is not Match.NO:
            break
    return tuple(found)


def _judge(policy: Policy, question: Question, address: IPAddress | None) -> Verdict:
    need = _needs_naming(policy, question, address)
    verdict = _by_rules(policy, question, need) or _default(policy, question, need)
    if verdict.granted is False and policy.audit_only and need is None and _can_be_tried(policy, question):
        return dataclasses.replace(verdict, granted=True, would=WOULD)
    return verdict


def _can_be_tried(policy: Policy, question: Question) -> bool:
    """Tell whether a refusal may be just logged: not of a claim, nor of what only this machine could do."""
    return question.direction is not Direction.SERVE and not _is_special(policy, question.to)


def _is_special(policy: Policy, to: Destination) -> bool:
    """Tell whether going there does what a client could not do by itself."""
    if to.special or not policy.proves or to.scheme not in PROVING or to.port is None:
        return to.special
    hosts = [to.name] if to.name is not None else [str(address) for address in to.addresses or ()]
    return any(peer_key(host, to.port) in policy.proves for host in hosts)


def _by_rules(policy: Policy, question: Question, need: _Need | None) -> Verdict | None:
    direction, service, to, subject = question.direction, question.service, question.to, question.subject
    rules = policy.rules
    assert isinstance(rules, Rules)
    for at in rules.candidates(direction, service, to, subject):
        rule = rules[at]
        match = matches(rule, direction, service, to, subject)
        if match is Match.NO or (rule.action.opens and need is not None and not _names(rule, need)):
            continue
        if match is Match.MAYBE:
            return Verdict(None, "", "the addresses decide")
        ask = _ask(question, need) if rule.action is Action.DENY else ""
        return Verdict(
            rule.action.opens,
            f"{at + 1}: {rule}",
            _REASONS[rule.action].format(number=at + 1, ask=ask),
            rule.handover,
            number=at + 1,
            source=rule.source,
            would=WOULD if rule.action is Action.LOG else "",
        )
    return None


_REASONS = {
    Action.ALLOW: "rule {number} allows it",
    Action.DENY: "rule {number} denies it; it would take a rule in front of that one: {ask}",
    Action.LOG: "rule {number} lets it through, and logs that it would be denied",
}


@dataclass(frozen=True)
class _Need:
    """An address that a rule has to name.

    :ivar kind: for people, with its article.
    :ivar networks: what lies wholly in the zone; only metadata and own addresses have to be named alone.
    """

    kind: str
    address: IPAddress
    networks: tuple[IPNetwork, ...]
    with_port: bool


def _needs_naming(policy: Policy, question: Question, address: IPAddress | None) -> _Need | None:
    if address is None or question.direction is not Direction.OUT:
        return None
    can_dial = question.subject.standing is Standing.LOCAL
    found = zone(address)
    if found is Zone.LOOPBACK:
        return None if can_dial else _Need("a loopback", address, zone_networks(found), True)
    if found is Zone.ORDINARY:
        if can_dial or not any(one in policy.own_addresses for one in unwrap(address)):
            return None
        return _Need("this machine's own", address, (), True)
    kind = f"{'an' if found is Zone.UNSPECIFIED else 'a'} {found.value}"
    return _Need(kind, address, zone_networks(found), not can_dial)


def _names(rule: Rule, need: _Need) -> bool:
    """Tell whether *rule* names the address: alone, or by a network that holds nothing but its zone."""
    network = rule.peer.network
    if network is None or (need.with_port and rule.peer.ports is None):
        return False
    return rule.peer.address is not None or any(is_within(network, whole) for whole in need.networks)


def _default(policy: Policy, question: Question, need: _Need | None) -> Verdict:
    standing = question.subject.standing
    if need is not None:
        if question.to.scheme == "udp" and zone(need.address) in (Zone.MULTICAST, Zone.UNSPECIFIED):
            reason = (
                f"{need.address} is many machines' or nobody's: datagrams go to single machines, whatever rules say"
            )
            return Verdict(False, "default", reason)
        port = " and its port" if need.with_port else ""
        reason = f"{need.address} is {need.kind} address: it needs a rule that names it{port}: {_ask(question, need)}"
        return Verdict(False, "default", reason)
    if question.direction is Direction.SERVE:
        return Verdict(False, "default serve=deny", f"to serve a name takes a rule: {_ask(question)}")
    if question.direction is Direction.IN:
        return _by_default(policy, question)
    if standing is not Standing.LOCAL:
        who = "confined clients" if standing is Standing.CONFINED else "remote callers"
        reason = f"a {who[:-1]} needs a rule for what leads further: {_ask(question)}"
        return Verdict(False, f"default for {who}", reason)
    if _is_special(policy, question.to):
        what = f"the route's {question.to.scheme} endpoint does what the client could not do by itself"
        if not question.to.special:
            what = f"this machine proves who it is at {question.to}, which the client could not do by itself"
        return Verdict(False, "default for endpoints", f"{what}: it needs a rule, {_ask(question)}")
    if question.to.scheme == "unix":
        return Verdict(True, "default for local services", "local services are open to unconfined clients")
    return _by_default(policy, question)


def _by_default(policy: Policy, question: Question) -> Verdict:
    allowed = policy.defaults[question.direction]
    rule = f"default {question.direction.value}={'allow' if allowed else 'deny'}"
    if allowed:
        return Verdict(True, rule, "no rule matches, and the default lets it through")
    return Verdict(False, rule, f"no rule matches, and the default refuses it; a rule for it: {_ask(question)}")


def _ask(question: Question, need: _Need | None = None) -> str:
    """The rule that would let just this through, for people to ask for."""
    to = question.to
    if to.addresses is not None:  # there is one; no rule can hold its zone id
        name = to.name if need is None else None
        to = dataclasses.replace(to, name=name, addresses=(next(unwrap(to.addresses[0])),))
    words = ["allow", question.direction.value, question.service or "any"]
    if question.direction is not Direction.SERVE:
        # what an endpoint string does not tell cannot be named
        told = to.scheme in SCHEMES and (to.name is not None or to.addresses is not None)
        proved = sorted(question.subject.words) if question.direction is Direction.IN else []
        if proved:  # who somebody is says more than where it is
            words += [f"{to.scheme}:any", "for", proved[0]]
        else:
            words.append(to.as_peer(question.direction) if told else "any")
    return " ".join(words)
