"""The decision: one pure function from a question to a verdict. It fails closed.

The first rule that matches decides; else the defaults do. Without a rule,
plumberd grants nobody anything that they could not have had without it: nothing
comes in, an unconfined client may dial out and reach local services, a confined
one neither.

Some addresses need a rule that names them: link-local, metadata, multicast and
unspecified ones for everybody; for confined clients loopback and the machine's
own addresses too, with a port. An `allow` that does not name such an address
does not match it, so a later rule may; a `deny` always does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from plumberd.pure.address import Zone, unwrap, zone
from plumberd.pure.modes import Mode
from plumberd.pure.policy.rule import Destination, Direction, Match, Rule, matches
from plumberd.pure.uri import IPAddress

DEFAULTS: Mapping[Direction, bool] = {Direction.IN: False, Direction.OUT: True}
"""What holds where no rule matches: nothing comes in, an unconfined client may dial out."""


STRICTNESS = (Mode.DIRECT, Mode.AUTO, Mode.LOCKED, Mode.RELAYED, Mode.FRAMED)
"""Wishes for the hand-over, the strictest last."""


@dataclass(frozen=True)
class Policy:
    """Rules in their order, and the defaults in force.

    :ivar own_addresses: the machine's addresses other than loopback, which confined
        clients need a rule for as well.
    """

    rules: tuple[Rule, ...] = ()
    defaults: Mapping[Direction, bool] = field(default_factory=lambda: dict(DEFAULTS))
    own_addresses: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True)
class Question:
    """May this connection be made?

    :ivar service: what was asked for, before redirects; ``None`` matches only ``any``.
    :ivar to: the far end. With addresses, each is judged for itself.
    :ivar confined: whether the local client is confined.
    """

    direction: Direction
    service: str | None
    to: Destination
    confined: bool = False


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


def decide(policy: Policy, question: Question) -> Verdict:
    """Decide. A question without addresses is refused only where that needs none.

    :returns: a :class:`Verdict`; with several addresses it is granted if one passes,
        and ``addresses`` holds those that did.
    """
    addresses = question.to.addresses
    if not addresses:
        return _judge(policy, question, None)
    passed: list[IPAddress] = []
    first: Verdict | None = None
    refused: Verdict | None = None
    for address in addresses:
        one = dataclasses.replace(question, to=dataclasses.replace(question.to, addresses=(address,)))
        verdict = _judge(policy, one, address)
        if verdict.granted:
            if first is None:
                first = verdict
            if verdict.handover is first.handover:
                # one connection has one mode: an address whose rule asks for another waits its turn
                passed.append(address)
        elif refused is None:
            refused = verdict
    if first is not None:
        return dataclasses.replace(first, addresses=tuple(passed))
    assert refused is not None
    return refused


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
    return dataclasses.replace(first, addresses=addresses, handover=wish)


def _judge(policy: Policy, question: Question, address: IPAddress | None) -> Verdict:
    need = _needs_naming(policy, question, address)
    for number, rule in enumerate(policy.rules, 1):
        match = matches(rule, question.direction, question.service, question.to)
        if match is Match.NO or (rule.allow and need and not _names(rule, need)):
            continue
        if match is Match.MAYBE:
            return Verdict(None, "", "the addresses decide")
        where = f" ({rule.source})" if rule.source else ""
        return Verdict(
            rule.allow,
            f"{number}: {rule.text or rule}",
            f"rule {number}{where} {'allows' if rule.allow else 'denies'} it",
            rule.handover,
            number=number,
            source=rule.source,
        )
    return _default(policy, question, need)


@dataclass(frozen=True)
class _Need:
    """An address that a rule has to name."""

    kind: str
    with_port: bool


def _needs_naming(policy: Policy, question: Question, address: IPAddress | None) -> _Need | None:
    if address is None or question.direction is not Direction.OUT:
        return None
    found = zone(address)
    if found is Zone.LOOPBACK or (
        found is Zone.ORDINARY
        and policy.own_addresses
        and question.confined
        and any(one in policy.own_addresses for one in unwrap(address))
    ):
        if question.confined:
            return _Need("a loopback" if found is Zone.LOOPBACK else "this machine's own", True)
        return None
    if found is Zone.ORDINARY:
        return None
    return _Need(f"{'an' if found is Zone.UNSPECIFIED else 'a'} {found.value}", question.confined)


def _names(rule: Rule, need: _Need) -> bool:
    return rule.peer.address is not None and (rule.peer.port is not None or not need.with_port)


def _default(policy: Policy, question: Question, need: _Need | None) -> Verdict:
    if need is not None:
        port = " and its port" if need.with_port else ""
        return Verdict(
            False,
            "default",
            f"{question.to} is {need.kind} address: it needs a rule that names it{port}",
        )
    if question.direction is Direction.IN:
        allowed = policy.defaults[Direction.IN]
        return Verdict(allowed, f"default in={_word(allowed)}", _by_default(question, allowed))
    if question.confined:
        return Verdict(
            False,
            "default for confined clients",
            f"a confined client needs a rule for it: allow out {question.service or 'any'} {question.to}",
        )
    if question.to.special:
        return Verdict(
            False,
            "default for endpoints",
            f"the route's {question.to.scheme} endpoint does what the client could not do by itself: "
            f"it needs a rule, allow out {question.service or 'any'} any",
        )
    if question.to.scheme == "unix":
        return Verdict(True, "default for local services", "local services are open to unconfined clients")
    allowed = policy.defaults[Direction.OUT]
    return Verdict(allowed, f"default out={_word(allowed)}", _by_default(question, allowed))


def _by_default(question: Question, allowed: bool) -> str:
    if allowed:
        return "no rule matches, and the default lets it through"
    rule = f"allow {question.direction.value} {question.service or 'any'} {question.to.as_peer(question.direction)}"
    return f"no rule matches, and the default refuses it; a rule for it: {rule}"


def _word(allowed: bool) -> str:
    return "allow" if allowed else "deny"
