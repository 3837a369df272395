"""Rules that match nothing which can come up: for a scheme that nobody listens for, a name that is reserved.

What can come up depends on more than the rules; :class:`Surroundings` says it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from plumberd.pure.names import is_reserved
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.globs import is_within_glob
from plumberd.pure.policy.rule import Rule
from plumberd.pure.policy.subject import PROVED_KINDS, Condition, cgroup_path
from plumberd.pure.uri import IPAddress

ACCOUNTS = ("user", "uid")
"""Conditions that one user alone fulfils."""

ROOT = 0


@dataclass(frozen=True)
class Surroundings:
    """What is around the rules, as far as it says which questions come up.

    :ivar listens: the schemes by which callers come in; none where nothing listens.
    :ivar services: those that callers can ask for, where they cannot name any by themselves.
    :ivar proves: the kinds of identity that a caller can prove.
    :ivar carries: the schemes of all connections that are made; ``None`` is not known.
    :ivar special: the schemes of administrators' endpoints that need a rule.
    :ivar tells_units: whether a client's cgroup can be told at all.
    :ivar uid: the broker's own user, who can do without plumberd as root can.
    :ivar addresses: the machine's own.
    """

    listens: Collection[str] = ("tcp",)
    services: Collection[str] | None = None
    proves: Collection[str] = PROVED_KINDS
    carries: Collection[str] | None = None
    special: Collection[str] = ()
    tells_units: bool = True
    uid: int = ROOT
    addresses: Collection[IPAddress] = frozenset()


_BY_CERTIFICATE = 'tls.client_certificates is "none", or nothing listens inside TLS'
_PROVED_BY = {
    "cert": _BY_CERTIFICATE,
    "spiffe": _BY_CERTIFICATE,
    "psk": "there is no tls.psk_file, or nothing listens inside TLS",
    "login": "there is neither auth.password_file nor --auth, or nothing listens inside TLS",
    "token": "there is no web.token_file, or no webipcd",
}
"""What keeps callers from proving each kind of identity."""


def why_idle(rule: Rule, around: Surroundings) -> str:
    """Return why no question that can come up is one that *rule* speaks of, behind its number; or nothing.

    Where nobody listens at all, that is not said of each rule for callers.
    """
    peer = rule.peer
    for name in (rule.service, peer.name if peer.scheme == "unix" else None):
        if name is not None and is_reserved(name):
            return f"can match nothing: {name} is a name that plumberd keeps for itself"
    if rule.direction is Direction.OUT and not (around.carries is None or peer.scheme in (None, *around.carries)):
        return f"opens and closes nothing: no connection is made by {peer.scheme} here"
    if rule.direction is Direction.IN and around.listens:
        if peer.scheme is not None and peer.scheme not in around.listens:
            return f"can match nobody: nothing here listens for {peer.scheme}"
        if around.services is not None and not _speaks_of_some(rule, around.services):
            return "can match nobody: a service that is not published cannot be asked for without --tcpd"
        if peer.name is not None and peer.scheme in ("tls", "wss") and "cert" not in around.proves:
            return f"can match nobody: callers cannot prove a name here ({_PROVED_BY['cert']})"
    return _why_nobody(rule, around)


def _why_nobody(rule: Rule, around: Surroundings) -> str:
    """Return why its conditions can't hold, or nothing."""
    proved = [condition for condition in rule.conditions if not condition.is_local]
    if proved and len(proved) < len(rule.conditions):
        return "can match nobody: local clients prove nothing, and callers are no users of this machine"
    unproved = next((condition.kind for condition in proved if condition.kind not in around.proves), None)
    if unproved is not None and (around.listens or rule.direction is Direction.OUT):
        return f"can match nobody: callers cannot prove {unproved}: here ({_PROVED_BY[unproved]})"
    if rule.action.opens:
        # A deny holds for whom it can't be told of as well, whatever its conditions are.
        two = _two_at_once(rule.conditions)
        if two is not None:
            return f"can match nobody: nobody is {two[0]} and {two[1]} at once"
        if not around.tells_units and any(condition.kind == "unit" for condition in rule.conditions):
            return "can match nobody: this kernel does not tell whose unit a client is (Linux 6.5)"
    return ""


def _speaks_of_some(rule: Rule, services: Collection[str]) -> bool:
    pattern = rule.service
    if pattern is None or not rule.is_glob:
        return pattern is None or pattern in services
    return any(is_within_glob(service, pattern) for service in services)


def _two_at_once(conditions: Iterable[Condition]) -> tuple[Condition, Condition] | None:
    """Return two conditions of which nobody fulfils both: a process has one user and one cgroup."""
    user: tuple[int, Condition] | None = None
    unit: tuple[str, Condition] | None = None
    for condition in conditions:
        if condition.kind in ACCOUNTS and condition.number is not None:
            user = user or (condition.number, condition)
            if user[0] != condition.number:
                return user[1], condition
        elif condition.kind == "unit":
            path = cgroup_path(condition.value)
            unit = unit or (path, condition)
            if unit[0] != path:
                return unit[1], condition
    return None
