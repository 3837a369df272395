"""Decisions that are foregone: the same for everybody, wherever the names resolve to.

A route to where nobody may go is a mistake, and so is a listener that lets nobody
in. What is said here is certain; where it depends on who asks or on addresses,
it is not foregone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

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


def refusing(policy: Policy, service: str, to: Destination) -> str | None:
    """Return what refuses *service* to every local client on its way to *to*: ``rule 3``, or a default.

    ``None`` is that somebody may be let through.
    """
    rules = policy.rules
    assert isinstance(rules, Rules)
    for at in rules.candidates(Direction.OUT, service, to, ANYBODY):
        rule = rules[at]
        if rule.action.opens:
            for_all = dataclasses.replace(rule, conditions=()) if rule.conditions else rule
            if matches(for_all, Direction.OUT, service, to, ANYBODY) is not Match.NO:
                return None
        elif not rule.conditions and matches(rule, Direction.OUT, service, to, ANYBODY) is Match.YES:
            return f"rule {at + 1}"
    if to.special:
        return f"the default for endpoints (it needs a rule: allow out {service} any)"
    if to.scheme == "unix" or policy.defaults[Direction.OUT]:
        return None
    return "default out=deny"


class ClosedServices:
    """Services that a rule refuses to every local client, wherever they lead."""

    def __init__(self, policy: Policy) -> None:
        self._opens: dict[str | None, int] = {}
        self._denies: dict[str | None, int] = {}
        self._last = len(policy.rules)
        for at, rule in enumerate(policy.rules):
            if rule.direction is not Direction.OUT:
                continue
            service = None if rule.is_glob else rule.service
            if rule.action.opens:
                self._opens.setdefault(service, at)
            elif not rule.is_glob and rule.peer.scheme is None and not rule.conditions:
                self._denies.setdefault(service, at)

    def refusing(self, service: str) -> str | None:
        """Return the rule that does it, ``rule 3``; ``None`` is that somebody may be let through."""
        opens, denies = (
            min(found.get(service, self._last), found.get(None, self._last)) for found in (self._opens, self._denies)
        )
        return f"rule {denies + 1}" if denies < opens else None


def _may_speak_of(rule: Rule, service: str | None) -> bool:
    return rule.service is None or service is None or is_within_glob(service, rule.service)


def _takes_all(rule: Rule, service: str | None) -> bool:
    """Tell whether it speaks of *service*, or of all services, whoever asks from wherever."""
    peer = rule.peer
    has_host = not (peer.name is None and peer.suffix is None and peer.network is None)
    return not has_host and not rule.conditions and (rule.service is None or service is not None)
