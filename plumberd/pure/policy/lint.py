"""Doubts about rules: those that can do nothing, and those that do more than they seem to.

A doubt is certain, or it is not told: one that is wrong makes people overlook the
others. A warning is mostly about one rule; a note, of what may well be meant so,
is about all rules of which it holds.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from plumberd.pure.address import Zone, zone_networks
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.globs import is_within_glob
from plumberd.pure.policy.idle import ACCOUNTS, ROOT, Surroundings, why_idle
from plumberd.pure.policy.peer import IPNetwork, Peer, is_within
from plumberd.pure.policy.rule import Action, Rule
from plumberd.pure.policy.shadow import Left, Shadow, find_shadows, zone_of

LISTED = 10
"""So many rules are named in one note."""

_LOG = "log lets through what is to be refused one day, and writes it down"
"""Of all notes the one that is a warning."""


@dataclass(frozen=True)
class Doubt:
    """What is doubtful.

    :ivar number: the rule's, counted from 1; ``None`` where it is not about just one.
    :ivar source: where that rule was written.
    :ivar text: what stands behind the rule's number, or a whole sentence.
    :ivar is_note: it may well be meant so.
    """

    number: int | None
    source: str
    text: str
    is_note: bool = False

    def __str__(self) -> str:
        """The whole sentence."""
        return self.text if self.number is None else f"{name_rule(self.number, self.source)} {self.text}"


def lint(rules: Sequence[Rule], defaults: Mapping[Direction, bool], around: Surroundings | None = None) -> list[Doubt]:
    """Return what is doubtful about *rules*: first what opens much, then what does nothing, then notes.

    Ten thousand rules take a second or two, see :mod:`plumberd.pure.policy.shadow`.
    """
    return _Lint(rules, defaults, around or Surroundings()).doubts()


def name_rule(number: int, source: str) -> str:
    """Name a rule to people; of the command line everybody sees where on it a rule is."""
    return f"rule {number}" if not source or source.startswith("--") else f"rule {number} ({source})"


def name_rules(positions: Collection[int], rules: Sequence[Rule]) -> str:
    """Name the rules at *positions*, counted from 0, to people; of many the first ones."""
    named = sorted(positions)
    if len(named) == 1:
        return name_rule(named[0] + 1, rules[named[0]].source)
    more = f" and {len(named) - LISTED} more" if len(named) > LISTED else ""
    return f"rules {', '.join(str(at + 1) for at in named[:LISTED])}{more}"


@dataclass
class _Behind:
    """What the rules behind one speak of.

    :ivar services: their services; ``None`` stands for any and for globs.
    """

    services: set[str | None] = field(default_factory=set)

    def add(self, rule: Rule) -> None:
        self.services.add(None if rule.is_glob else rule.service)

    def may_overlap(self, rule: Rule) -> bool:
        """Tell whether one of them may match what *rule* matches too."""
        if None in self.services or rule.service is None or rule.is_glob:
            return bool(self.services)
        return rule.service in self.services


class _Lint:
    """One look at all rules. Positions count from 0."""

    def __init__(self, rules: Sequence[Rule], defaults: Mapping[Direction, bool], around: Surroundings) -> None:
        self._rules = rules
        self._defaults = defaults
        self._around = around
        self._warnings: dict[int, str] = {}
        self._notes: defaultdict[str, list[int]] = defaultdict(list)
        """By their text, the positions of the rules that they are about."""

    def doubts(self) -> list[Doubt]:
        """See :func:`lint`."""
        rules = self._rules
        idle = {at: why for at, rule in enumerate(rules) if (why := why_idle(rule, self._around))}
        shadows, unseen = find_shadows(rules, idle)
        hidden = {shadow.late: text for shadow in shadows if (text := self._tell_shadow(shadow))}
        working = [at for at in range(len(rules)) if at not in idle and at not in hidden]
        wide = [self._doubt(at, text) for at in working if (text := _why_wide(rules[at]))]
        self._warnings.update({**hidden, **idle})
        self._compare_with_defaults(idle, {shadow.late for shadow in shadows if not shadow.left})
        for at in working:
            for text in self._peculiar(rules[at]):
                self._notes[text].append(at)
        found = [*wide, *(self._doubt(at, self._warnings[at]) for at in sorted(self._warnings))]
        if unseen:
            text = f"the last {unseen} rules were not compared with those before them: too many are alike"
            found.append(Doubt(None, "", text))
        notes = sorted(self._notes.items(), key=lambda note: (note[0] != _LOG, min(note[1])))
        return [*found, *(Doubt(None, "", f"{text}: {name_rules(at, rules)}", text != _LOG) for text, at in notes)]

    def _doubt(self, at: int, text: str) -> Doubt:
        return Doubt(at + 1, self._rules[at].source, text)

    def _tell_shadow(self, shadow: Shadow) -> str:
        early, late = self._rules[shadow.early], self._rules[shadow.late]
        name = name_rule(shadow.early + 1, early.source)
        if early == late:
            return f"says the same as {name}"
        if not shadow.left:
            return f"never has its turn: {name} matches first"
        if late.action.opens or (Left.NAMED in shadow.left and _is_set_apart(late.peer.network)):
            return ""  # it names an address, and has its turn for just that
        left = " and ".join(sorted(one.value for one in shadow.left))
        return f"has its turn only for {left}: else {name} matches first"

    # -- what a default does already

    def _compare_with_defaults(self, idle: Collection[int], hidden: Collection[int]) -> None:
        """Note rules that say what their default says, where no rule behind them could say anything else.

        One that is hidden could: it may be hidden by the very rule that would be left out. One for
        addresses could, whatever it does: who has none that is known is not let through by it.
        """
        opening, closing = defaultdict[Direction, _Behind](_Behind), defaultdict[Direction, _Behind](_Behind)
        for at in range(len(self._rules) - 1, -1, -1):
            rule = self._rules[at]
            if at in idle:
                continue
            others = (closing if rule.action.opens else opening)[rule.direction]
            if at not in hidden and not others.may_overlap(rule):
                self._compare_with_default(at, rule)
            if rule.action.opens:
                opening[rule.direction].add(rule)
            if rule.action is not Action.ALLOW or rule.handover is not None or rule.peer.network is not None:
                closing[rule.direction].add(rule)

    def _compare_with_default(self, at: int, rule: Rule) -> None:
        if rule.action is Action.DENY:
            if self._is_refused_anyway(rule):
                self._notes[f"default {rule.direction.value}=deny refuses this anyway"].append(at)
        elif rule.action is Action.LOG or rule.handover is not None:
            return
        elif rule.direction is Direction.IN and self._defaults[Direction.IN]:
            self._warnings.setdefault(at, "changes nothing: default in=allow lets it through anyway")
        elif rule.direction is Direction.OUT and self._may_go_anyway(rule):
            who = "confined clients and remote callers" if self._around.listens else "confined clients"
            self._notes[f"only {who} need this, the defaults let others do it anyway"].append(at)

    def _may_go_anyway(self, rule: Rule) -> bool:
        """Tell whether an unconfined client could do without any rule whatever this one lets it do."""
        peer, special = rule.peer, self._around.special
        if any(not condition.is_local for condition in rule.conditions) or _is_set_apart(peer.network):
            return False
        if special and (peer.scheme is None or peer.scheme in special):
            return False
        return peer.scheme == "unix" or self._defaults[Direction.OUT]

    def _is_refused_anyway(self, rule: Rule) -> bool:
        """Tell whether without any rule all that this one refuses would be refused.

        A rule for every service and host is not meant: it ends a list, so that who reads it need
        not know the default.
        """
        peer = rule.peer
        if rule.service is None and not peer.has_host and not rule.conditions:
            return False
        if rule.direction is Direction.OUT:
            return not self._defaults[Direction.OUT] and peer.scheme not in (None, "unix")
        return rule.direction is Direction.SERVE or not self._defaults[Direction.IN]

    # -- what is peculiar

    def _peculiar(self, rule: Rule) -> Iterator[str]:
        peer, opens = rule.peer, rule.action.opens
        if rule.action is Action.LOG:
            yield _LOG
        if rule.direction is Direction.IN and peer.ports is not None:
            yield "a caller's port is its own choice, so the port here is ignored"
        if rule.direction is Direction.OUT and opens and peer.ports is None and self._is_own(peer.network):
            yield "loopback and the machine's own addresses open to confined clients only with a port"
        if rule.direction is Direction.OUT and not opens and self._can_be_passed(peer):
            yield "a host that is denied by its name can be reached by its address"
        uids = {condition.number for condition in rule.conditions if condition.kind in ACCOUNTS}
        if opens and ROOT in uids:
            yield "root of a container without a user namespace of its own is root to rules too"
        if not opens and uids & {ROOT, self._around.uid}:
            yield "root and the broker's own user can do without plumberd, and are not held back"
        if not self._around.tells_units and any(condition.kind == "unit" for condition in rule.conditions):
            yield "this kernel does not tell whose unit a client is (Linux 6.5), so this denies it to everybody"

    def _is_own(self, network: IPNetwork | None) -> bool:
        """Tell whether it is loopback's, or the machine's own address."""
        if network is None:
            return False
        if any(is_within(network, whole) for whole in zone_networks(Zone.LOOPBACK)):
            return True
        return network.prefixlen == network.max_prefixlen and network.network_address in self._around.addresses

    def _can_be_passed(self, peer: Peer) -> bool:
        has_name = peer.scheme != "unix" and (peer.name is not None or peer.suffix is not None)
        return has_name and self._goes_everywhere

    @functools.cached_property
    def _goes_everywhere(self) -> bool:
        """Whether addresses that no rule speaks of can be dialled."""
        return self._defaults[Direction.OUT] and not any(
            rule.direction is Direction.OUT and not rule.action.opens and rule.service is None
            for rule in self._rules
            if not rule.peer.has_host
        )


def _why_wide(rule: Rule) -> str:
    """Return in what way a rule opens more than almost anybody wants, or nothing."""
    peer, service = rule.peer, rule.service
    if not rule.action.opens or rule.conditions or not (service is None or is_within_glob("*", service)):
        return ""
    if rule.direction is Direction.SERVE:
        return "lets everybody register for every service"
    if rule.direction is Direction.OUT:
        is_all = service is None and peer.scheme is None
        return "lets confined clients out too, to wherever no earlier rule denies it" if is_all else ""
    if peer.scheme is None:
        return "lets everybody reach every local service"
    if peer.network is not None and peer.network.prefixlen == 0:
        return f"lets everybody who comes by {peer.scheme} over IPv{peer.network.version} reach every local service"
    return "" if peer.has_host else f"lets everybody who comes by {peer.scheme} reach every local service"


def _is_set_apart(network: IPNetwork | None) -> bool:
    """Tell whether every client needs a rule that names these addresses."""
    return network is not None and zone_of(network) not in (None, Zone.ORDINARY, Zone.LOOPBACK)
