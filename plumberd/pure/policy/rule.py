"""One line of the firewall.

    allow|deny|log in|out SERVICE PEER [for WHO]... [handover=MODE]
    allow|deny serve SERVICE [for WHO]...

SERVICE is a name, a glob of ``*`` and ``?``, or ``any``; PEER is in
:mod:`plumberd.pure.policy.peer`, WHO in :mod:`plumberd.pure.policy.subject`.
``log`` stands in the place of a ``deny`` that is being tried out: it lets
through, and the log says what would have been refused.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from plumberd.pure.address import unwrap
from plumberd.pure.modes import WISHES, Mode
from plumberd.pure.names import is_service
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import ANY, ANYWHERE, Destination, Peer, PeerError, parse_peer
from plumberd.pure.policy.subject import Condition, ConditionError, Subject, all_hold, bind, parse_condition

RULE_CHARS = 1024
"""Longest rule."""

_GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_EXPANDED = "did the shell expand the *? write any"


class RuleError(ValueError):
    """The text is no rule: what was wanted, what was found, what would be accepted."""


class Action(enum.Enum):
    """What a rule does with what it matches."""

    ALLOW = "allow"
    DENY = "deny"
    LOG = "log"

    @property
    def opens(self) -> bool:
        """Whether it lets through: then what can't be told does not match it."""
        return self is not Action.DENY


_ACTIONS = {action.value: action for action in Action}
_DIRECTIONS = {direction.value: direction for direction in Direction}


class Match(enum.Enum):
    """Whether a rule matches: without addresses it may be too early to tell."""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"


@dataclass(frozen=True)
class Rule:
    """A parsed rule. Two are equal if they say the same, however and wherever they were written.

    :ivar service: a name or a glob, or ``None`` for any (and for a lookup that names none).
    :ivar conditions: all of them have to hold.
    :ivar handover: the mode it asks for.
    :ivar text: the rule as it was written.
    :ivar source: where it was written, for messages: ``--rule``, or a file and line.
    """

    action: Action
    direction: Direction
    service: str | None
    peer: Peer = ANYWHERE
    conditions: tuple[Condition, ...] = ()
    handover: Mode | None = None
    text: str = field(default="", compare=False)
    source: str = field(default="", compare=False)

    @property
    def is_glob(self) -> bool:
        """Whether the service is a pattern."""
        return self.service is not None and ("*" in self.service or "?" in self.service)

    def has_service(self, service: str | None) -> bool:
        """Tell whether it speaks of *service*; of a lookup that names none only ``any`` does."""
        if self.service is None or service is None:
            return self.service is None
        return self._glob.match(service) is not None if self.is_glob else self.service == service

    @functools.cached_property
    def _glob(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.service or ""))  # which never backtracks across a star

    @property
    def normal(self) -> str:
        """The rule in its one normal form, which parses back to the same value."""
        words = [self.action.value, self.direction.value, self.service or "any"]
        if self.direction is not Direction.SERVE:
            words.append(str(self.peer))
        for condition in self.conditions:
            words += ["for", str(condition)]
        if self.handover is not None:
            words.append(f"handover={self.handover.value}")
        return " ".join(words)

    def __str__(self) -> str:
        """The rule as it was written, or in its normal form."""
        return self.text or self.normal


def parse_rule(text: str, source: str = "") -> Rule:
    """Parse one rule. Users and groups keep their names; :func:`bind_rule` asks for their numbers.

    :raises RuleError: naming the word that is wrong and what would be accepted.
    """
    if len(text) > RULE_CHARS:
        raise RuleError(f"a rule of {len(text)} characters: at most {RULE_CHARS} are accepted")
    if _CONTROL.search(text):
        raise RuleError("a control character in a rule")
    words = text.split()
    if "@" in text and any("@" in word for word in words[:4]):
        raise RuleError("a rule holds no user and no password: its peer is SCHEME:HOST[:PORT], without an @")
    if len(words) < 3 or (words[1] != Direction.SERVE.value and len(words) < 4):
        raise RuleError(f"{text!r}: wanted allow|deny|log in|out SERVICE PEER [for WHO]... [handover=MODE]")
    action, way, service, *rest = words
    if action not in _ACTIONS:
        raise RuleError(f"{action!r}: wanted allow, deny or log")
    if way not in _DIRECTIONS:
        raise RuleError(f"{way!r}: wanted in, out or serve")
    direction = _DIRECTIONS[way]
    peer = ANYWHERE
    try:
        if direction is not Direction.SERVE:
            peer = parse_peer(rest.pop(0), direction)
        conditions, handover = _tail(rest, _ACTIONS[action], direction)
    except (PeerError, ConditionError) as e:
        raise RuleError(str(e)) from None
    if direction is Direction.SERVE and action == Action.LOG.value:
        raise RuleError("log: a claim to a service is allowed or denied, and never just logged")
    return Rule(_ACTIONS[action], direction, _service(service), peer, conditions, handover, " ".join(words), source)


def bind_rule(rule: Rule, uid_of: Callable[[str], int | None], gid_of: Callable[[str], int | None]) -> Rule:
    """Return *rule* with the numbers of the users and groups that it names.

    :raises RuleError: for one that this machine does not have.
    """
    try:
        return dataclasses.replace(rule, conditions=bind(rule.conditions, uid_of, gid_of))
    except ConditionError as e:
        raise RuleError(str(e)) from None


def matches(rule: Rule, direction: Direction, service: str | None, to: Destination, subject: Subject) -> Match:
    """Tell whether *rule* speaks of this connection.

    *to* holds at most one address here: the one that is being judged.
    """
    return explain_match(rule, direction, service, to, subject)[0]


def explain_match(
    rule: Rule, direction: Direction, service: str | None, to: Destination, subject: Subject
) -> tuple[Match, str]:
    """Like :func:`matches`, with the reason where it does not."""
    if rule.direction is not direction:
        return Match.NO, f"it speaks of {rule.direction.value}"
    if not rule.has_service(service):
        return Match.NO, "another service" if service is not None else "the lookup names no service"
    match, why = _match_peer(rule, direction, to, subject)
    if match is not Match.NO and rule.conditions and not all_hold(rule.conditions, subject, opens=rule.action.opens):
        return Match.NO, "somebody else"
    return match, why


def _match_peer(rule: Rule, direction: Direction, to: Destination, subject: Subject) -> tuple[Match, str]:
    peer = rule.peer
    if peer.scheme is None:
        return Match.YES, ""
    if peer.scheme != to.scheme:
        return Match.NO, "another scheme"
    if direction is Direction.OUT and not peer.has_port(to.port, untold=not rule.action.opens):
        return Match.NO, "another port"  # for `in`, the peer's source port says nothing and is ignored
    if peer.name is not None or peer.suffix is not None:
        names = subject.proved_names if direction is Direction.IN else (to.name,)
        found = any(peer.has_name(name) for name in names)
        return (Match.YES, "") if found else (Match.NO, "another host")
    if peer.network is None:
        return Match.YES, ""
    if to.addresses is None:
        return Match.MAYBE, "the addresses decide"
    # What opens opens the very addresses that it names, a deny closes their other spellings too.
    inside = any(
        one in peer.network
        for address in to.addresses
        for one in ((address,) if rule.action.opens else unwrap(address))
    )
    return (Match.YES, "") if inside else (Match.NO, "another address")


def _service(word: str) -> str | None:
    if word in ANY:
        return None
    if is_service(word):
        return word
    if _GLOB.match(word) and ("*" in word or "?" in word):
        return word
    raise RuleError(f"{word!r} is no service: wanted a name, a glob of * and ?, or any")


def _tail(words: list[str], action: Action, direction: Direction) -> tuple[tuple[Condition, ...], Mode | None]:
    conditions: list[Condition] = []
    mode: Mode | None = None
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "for":
            if not left:
                raise RuleError("for: the WHO is missing behind it")
            conditions.append(_condition(left.pop(0), direction))
        elif word.startswith("handover="):
            if mode is not None:
                raise RuleError("handover= stands twice")
            mode = _mode(word, action, direction)
        else:
            raise RuleError(f"{word!r} left over behind the rule; {_EXPANDED}")
    return tuple(conditions), mode


def _condition(text: str, direction: Direction) -> Condition:
    condition = parse_condition(text)
    if direction is Direction.IN and condition.is_local:
        raise RuleError(f"{condition}: callers are not local; they prove cert:, spiffe:, psk: or login:")
    if direction is Direction.SERVE and not condition.is_local:
        raise RuleError(f"{condition}: who serves is local: user:, group:, uid: or unit:")
    return condition


def _mode(word: str, action: Action, direction: Direction) -> Mode:
    if action is Action.DENY or direction is not Direction.OUT:
        raise RuleError(f"{word!r}: only an `allow out` rule hands anything over")
    for mode in WISHES:
        if word == f"handover={mode.value}":
            return mode
    raise RuleError(f"{word!r}: wanted handover={'|'.join(m.value for m in WISHES)}")
