"""Decisions that are foregone: the same for everybody, wherever the names resolve to.

A route to where nobody may go is a mistake, and so is a listener that lets nobody
in. What is said here is certain; where it depends on who asks or on addresses,
it is not foregone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.globs import is_within_glob
from plumberd.pure.policy.index import Rules
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.rule import Match, Rule, matches
from plumberd.pure.policy.subject import ANYBODY


def lets_in(
    policy: Policy, schemes: Collection[str], service: str | None = None, *, proves: Collection[str] = ()
) -> bool:
    """Tell whether anybody may come in by one of *schemes*: to *service*, or, without one, to any at all.

    :param proves: the kinds of identity that such callers can prove.
    """
    left = set(schemes)
    for rule in policy.rules:
        if rule.direction is not Direction.IN or not _may_speak_of(rule, service):
            continue
        hit = left if rule.peer.scheme is None else left & {rule.peer.scheme}
        if rule.action.opens and hit and all(condition.kind in proves for condition in rule.conditions):
            return True
        if not rule.action.opens and _takes_all(rule, service):
            left -= hit
    return bool(left) and policy.defaults[Direction.IN]


class Outward:
    """What is foregone of the way out. Made once for a policy, it answers quickly."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        out = [(at, rule) for at, rule in enumerate(policy.rules) if rule.direction is Direction.OUT]
        # Who opens for some may let somebody through; who denies to some, or some addresses, decides nothing.
        counting = [(at, _for_all(rule)) for at, rule in out if rule.action.opens or not rule.conditions]
        unresolved = [(at, rule) for at, rule in counting if rule.action.opens or rule.peer.network is None]
        self._counting, self._unresolved = _Numbered(counting), _Numbered(unresolved)
        self._last = len(policy.rules)
        self._opens: dict[str | None, int] = {}
        self._denies: dict[str | None, int] = {}
        for at, rule in counting:
            if rule.action.opens:
                self._opens.setdefault(None if rule.is_glob else rule.service, at)
            elif rule.peer.scheme is None and not rule.is_glob:
                self._denies.setdefault(rule.service, at)

    def refusing(self, service: str, to: Destination) -> str | None:
        """Return what refuses *service* to everybody on its way to *to*: ``rule 3``, or a default.

        ``None`` is that somebody may be let through. A caller needs no rule for a local service.
        """
        numbered = self._unresolved if to.addresses is None else self._counting
        for at in numbered.rules.candidates(Direction.OUT, service, to, ANYBODY):
            rule = numbered.rules[at]
            match = matches(rule, Direction.OUT, service, to, ANYBODY)
            if match is not Match.NO and rule.action.opens:
                return None
            if match is Match.YES:
                return f"rule {numbered.positions[at] + 1}"
        if to.special:
            return f"the default for endpoints (it needs a rule: allow out {service} any)"
        if to.scheme == "unix" or self._policy.defaults[Direction.OUT]:
            return None
        return "default out=deny"

    def closing(self, service: str) -> str | None:
        """Return the rule that refuses *service* to everybody wherever it leads, ``rule 3``; ``None`` as above."""
        opens, denies = (
            min(found.get(service, self._last), found.get(None, self._last)) for found in (self._opens, self._denies)
        )
        return f"rule {denies + 1}" if denies < opens else None


class _Numbered:
    """Some rules of a policy.

    :ivar positions: where they stand in it.
    """

    def __init__(self, numbered: Sequence[tuple[int, Rule]]) -> None:
        self.rules = Rules(rule for _, rule in numbered)
        self.positions = [at for at, _ in numbered]


def _for_all(rule: Rule) -> Rule:
    return dataclasses.replace(rule, conditions=()) if rule.conditions else rule


def _may_speak_of(rule: Rule, service: str | None) -> bool:
    if rule.service is None or service is None or rule.service == service:
        return True
    return rule.is_glob and is_within_glob(service, rule.service)


def _takes_all(rule: Rule, service: str | None) -> bool:
    """Tell whether it speaks of *service*, or of all services, whoever asks from wherever."""
    peer = rule.peer
    return not peer.has_host and not rule.conditions and (rule.service is None or service is not None)
