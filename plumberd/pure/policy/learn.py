"""Audit lines in, a draft of rules out that grants what was seen and nothing else.

Seen is what was let through though the policy would have refused it; with
*everything* also what no rule but a default let through. Each rule of the draft
is printed, read again and compared, so that it says what is meant.

One rule for what is the same: neighbouring ports become a range, neighbouring
addresses the networks that hold exactly them, each user has rules of his own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from plumberd.pure.policy.cover import Cell, cells_of, cover, ranges
from plumberd.pure.policy.peer import Peer
from plumberd.pure.policy.rule import Action, Rule, RuleError, parse_rule
from plumberd.pure.policy.seen import (
    NO_WORD,
    LeftOut,
    Seen,
    Who,
    deciding_rule,
    is_refusal_to_be,
    read_record,
    seen_in,
)
from plumberd.pure.policy.subject import Condition, ConditionError, parse_condition
from plumberd.pure.refusals import Refusal, printable

MOST_SEEN = 100_000
"""Most different things that are remembered: who can write the log cannot fill the memory."""

MOST_PLACES = 100
"""Most rules that are told as those that would have refused."""

TOO_MANY = f"beyond the {MOST_SEEN} different ones that are remembered"

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?Z\Z")
_WIDTH = 100
"""Rules up to this long have their comments in one column."""


@dataclass
class Tally:
    """How often something was seen, and when last (RFC 3339; empty where the log does not tell)."""

    count: int = 0
    last: str = ""

    def add(self, count: int, last: str) -> None:
        """Count it *count* times more."""
        self.count += count
        self.last = max(self.last, last)


@dataclass(frozen=True)
class Draft:
    """What became of a log.

    :ivar rules: the proposal, in a readable order; each with how often it was seen.
    :ivar events: how many events it grants.
    :ivar left: how many lines and events it does not, by the reason.
    :ivar refusing: how many of them a rule would have refused, by where that stands: the draft
        changes nothing while such a rule has its turn first.
    """

    rules: tuple[tuple[Rule, Tally], ...]
    events: int
    left: dict[str, int]
    refusing: dict[str, int]


class Learner:
    """Reads lines, and remembers only what is different."""

    def __init__(self, *, everything: bool = False, uid_of: Callable[[str], int | None] | None = None) -> None:
        """Begin.

        :param everything: whether what a default granted is learnt as well.
        :param uid_of: whose number a name has where the draft will be used, ``None`` where that is
            not known: a name of somebody else is never proposed.
        """
        self._everything = everything
        self._uid_of = uid_of
        self._seen: dict[Seen, Tally] = {}
        self._events: Counter[tuple[Seen, ...]] = Counter()
        self._users: dict[int, set[str]] = defaultdict(set)
        self._left: Counter[str] = Counter()
        self._refusing: Counter[str] = Counter()

    def add(self, line: bytes) -> None:
        """Take one line of the log; what cannot be learnt from is counted."""
        if not line.strip():
            return
        try:
            record = read_record(line)
            if self._concerns(record):
                self._remember(record, seen_in(record))
        except LeftOut as e:
            self._left[e.reason] += e.count

    def draft(self) -> Draft:
        """Return the rules for what has been seen so far."""
        left = Counter(self._left)
        rules: list[tuple[Rule, Tally]] = []
        granted: set[Seen] = set()
        for rule, those in self._proposals():
            if not _says_what_it_means(rule):
                continue
            tally = Tally()
            for one in those:
                tally.add(self._seen[one].count, self._seen[one].last)
            granted.update(those)
            rules.append((rule, tally))
        events = 0
        for parts, count in self._events.items():
            if granted.issuperset(parts):
                events += count
            else:
                left[NO_WORD] += count
        rules.sort(key=lambda pair: _order(pair[0]))
        return Draft(tuple(rules), events, dict(left), dict(self._refusing))

    def _concerns(self, record: dict[str, Any]) -> bool:
        """Tell whether this is an event to be learnt from.

        :raises LeftOut: it led nowhere, so nothing shows that it was good for something.
        """
        verdict = record["verdict"]
        if verdict == "granted":
            return is_refusal_to_be(record) or (self._everything and deciding_rule(record) is None)
        if is_refusal_to_be(record) and verdict != "ended":  # that is a granted one's end
            known = [word.value for word in Refusal if word.value == verdict]
            raise LeftOut(f"an attempt that led nowhere ({known[0] if known else 'gone'})")
        return False

    def _remember(self, record: dict[str, Any], found: tuple[Seen, ...]) -> None:
        new = [one for one in found if one not in self._seen]
        if any(not _says_what_it_means(_rule(one)) for one in new):
            raise LeftOut(NO_WORD)
        if len(self._seen) + len(new) > MOST_SEEN:
            raise LeftOut(TOO_MANY)
        when = record.get("time")
        last = when if isinstance(when, str) and _TIME.match(when) else ""
        for one in found:
            self._seen.setdefault(one, Tally()).add(1, last)
        self._events[found] += 1
        uid, user = found[0].who, record["who"].get("user")
        if isinstance(uid, int) and isinstance(user, str) and len(self._users[uid]) < 2:
            self._users[uid].add(user)  # whether there is more than one is all that matters
        rule = deciding_rule(record)
        if rule is not None and is_refusal_to_be(record):
            place = printable(str(rule.get("source") or f"rule {rule['number']}"), 80)
            told = place in self._refusing or len(self._refusing) < MOST_PLACES
            self._refusing[place if told else "elsewhere"] += 1

    def _proposals(self) -> Iterator[tuple[Rule, list[Seen]]]:
        """Yield rules that grant what was seen, each with what it grants."""
        names = self._names()
        alike: dict[tuple[object, ...], list[Seen]] = defaultdict(list)
        for one in self._seen:
            # what differs in its port alone, or in its port and its address
            alike[one.direction, one.service, one.who, one.scheme, one.name, one.address is None].append(one)
        for those in alike.values():
            who = those[0].who
            conditions = (names[who],) if isinstance(who, int) else _conditions(who)
            for peer, granted in _peers(those):
                yield dataclasses.replace(_rule(those[0]), peer=peer, conditions=conditions), granted

    def _names(self) -> dict[int, Condition]:
        """Return what each local client is called: a name where it is one uid's, and the only one."""
        uids = {one.who for one in self._seen if isinstance(one.who, int)}
        owners = Counter(name for uid in uids for name in self._users[uid])
        found = {}
        for uid in uids:
            found[uid] = _conditions(uid)[0]
            own = [name for name in self._users[uid] if owners[name] == 1]
            if len(self._users[uid]) == len(own) == 1:
                with contextlib.suppress(ConditionError):
                    named = parse_condition(f"user:{own[0]}")
                    if self._uid_of is None or self._uid_of(own[0]) in (None, uid):
                        found[uid] = named
        return found


def draft_toml(draft: Draft) -> str:
    """Print a draft as a file that a configuration can include."""
    lines = [
        f"# A draft by plumb learn: {len(draft.rules)} rules, which grant {draft.events} events that were seen.",
        "# They grant what was seen, wanted or not. Read each line before you put it in force.",
    ]
    lines += _told("Left out:", draft.left)
    lines += _told(
        "These rules would have refused. Where one has its turn first, the draft changes nothing:", draft.refusing
    )
    lines.append("rules = [")
    quoted = [f"    {json.dumps(rule.normal)}," for rule, _ in draft.rules]
    width = max((len(text) for text in quoted if len(text) <= _WIDTH), default=0)
    for text, (_, tally) in zip(quoted, draft.rules, strict=True):
        last = f", last {tally.last}" if tally.last else ""
        lines.append(f"{text:<{width}}  # {tally.count} {'time' if tally.count == 1 else 'times'}{last}")
    lines.append("]")
    return "\n".join(lines) + "\n"


def _told(heading: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    width = len(str(max(counts.values())))
    return ["#", f"# {heading}", *(f"#   {count:>{width}}  {what}" for what, count in sorted(counts.items()))]


def _rule(seen: Seen) -> Rule:
    """Return the rule that grants this alone."""
    network = ipaddress.ip_network(seen.address) if seen.address is not None else None
    ports = None if seen.port is None else (seen.port, seen.port)
    peer = Peer(seen.scheme, seen.name, network=network, ports=ports)
    return Rule(Action.ALLOW, seen.direction, seen.service, peer, _conditions(seen.who))


def _conditions(who: Who) -> tuple[Condition, ...]:
    return tuple(map(parse_condition, (f"uid:{who}",) if isinstance(who, int) else who))


def _peers(those: list[Seen]) -> Iterator[tuple[Peer, list[Seen]]]:
    """Yield peers that hold exactly *those*, which have one scheme and one name, or all an address each."""
    first = those[0]
    if first.address is not None:
        cells: dict[Cell, Seen] = {(one.address, one.port): one for one in those if one.address is not None}
        for rectangle in cover(cells):
            peer = Peer(first.scheme, network=rectangle[0], ports=rectangle[1])
            yield peer, [cells[cell] for cell in cells_of(rectangle)]
        return
    by_port = {one.port: one for one in those}
    for span in ranges(by_port):
        ports = [None] if span is None else range(span[0], span[1] + 1)
        yield Peer(first.scheme, first.name, ports=span), [by_port[port] for port in ports]


def _says_what_it_means(rule: Rule) -> bool:
    """Tell whether what is printed is read as the same: a host called any, say, would be every host."""
    try:
        return parse_rule(rule.normal) == rule
    except RuleError:
        return False


def _order(rule: Rule) -> tuple[object, ...]:
    network = rule.peer.network
    where = (network.version, int(network.network_address)) if network else (0, 0)
    return (rule.direction.value, rule.service, rule.peer.scheme, rule.peer.name or "", *where, rule.normal)
