"""Why: the steps of a decision, told, and no connection made.

The same functions decide here and in earnest. :func:`explain` is a generator,
so that it needs no resolver: it yields a host name, and is sent the addresses or
the refusal; it returns the :class:`Explanation`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Policy, Question, Verdict, decide, judge, tried
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.index import Rules
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Endpoint, Routes, Way, destination, find_way, parse_target_uri
from plumberd.pure.policy.rule import Match
from plumberd.pure.policy.subject import Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri

Answer = tuple[IPAddress, ...] | Refused
"""What a name resolves to."""

ModeOf = Callable[[Verdict, Uri | Endpoint], str]
"""Tells the mode that a connection to such a target would have; may raise Refused."""

TRIED = 60
"""Most rules that are told of one decision; of more, those of other services are left out first."""

MANY = 200
"""Of more rules than that only those are tried that the index finds: telling all would take a tenth of a second."""

ADDRESSES = 8
"""Most addresses of one name whose rules are told, besides the one that would be connected to."""

LISTED = 32
"""Most addresses of one name that are listed."""

_DULL = ("another service", "the lookup names no service", "it speaks of in", "it speaks of out", "it speaks of serve")


@dataclass(frozen=True)
class Asked:
    """What is to be explained.

    :ivar service: ``None`` for a lookup that names none.
    :ivar pairs: the lookup's own routes.
    :ivar uri: the address of a lookup that names no service, as its text.
    :ivar peer: the far end of a caller.
    """

    direction: Direction
    service: str | None
    pairs: Pairs = field(default_factory=Pairs)
    uri: str | None = field(default=None, repr=False)
    peer: Destination | None = None


@dataclass(frozen=True)
class Told:
    """One step.

    :ivar step: ``who``, ``redirect``, ``route``, ``addresses``, ``rule``, ``default``, ``scheme`` or ``mode``.
    :ivar number, source, matches, why: of a rule that was tried.
    """

    step: str
    text: str
    number: int | None = None
    source: str = ""
    matches: str = ""
    why: str = ""

    @property
    def members(self) -> dict[str, Any]:
        """The step as JSON."""
        if self.step != "rule":
            return {"step": self.step, "text": self.text}
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Explanation:
    """What would become of it, and why.

    :ivar refusal: the word and reason, or ``None`` where it would be granted.
    """

    steps: tuple[Told, ...]
    verdict: Verdict | None
    refusal: Refused | None
    mode: str = ""

    @property
    def members(self) -> dict[str, Any]:
        """The explanation as JSON, as docs/protocol.md has it."""
        verdict, refusal = self.verdict, self.refusal
        text = verdict.rule if verdict else ""
        if verdict and verdict.number is not None:
            text = text.removeprefix(f"{verdict.number}: ")
        return {
            "granted": refusal is None,
            "word": refusal.word.value if refusal else "",
            "reason": refusal.reason if refusal else verdict.reason if verdict else "",
            "mode": self.mode,
            "would": verdict.would if verdict and refusal is None else "",
            "rule": {
                "number": verdict.number if verdict else None,
                "text": text,
                "source": verdict.source if verdict else "",
            },
            "steps": [step.members for step in self.steps],
        }


def explain(
    policy: Policy, routes: Routes, asked: Asked, subject: Subject, who: str, mode_of: ModeOf
) -> Generator[str, Answer, Explanation]:
    """Tell each step of a decision.

    :param subject: who asks; *who* is the same for people.
    """
    teller = _Teller(policy, subject, [Told("who", who)])
    try:
        if asked.direction is Direction.SERVE:
            to = Destination("unix", asked.service, None, None)
            teller.decide(Question(Direction.SERVE, asked.service, to, subject))
        elif asked.direction is Direction.OUT:
            service, way = _way_out(asked, routes, subject)
            yield from teller.follow(service, way, mode_of)
        else:
            yield from _inbound(teller, asked, routes, mode_of)
    except Refused as e:
        return Explanation(tuple(teller.steps), teller.verdict, e)
    return Explanation(tuple(teller.steps), teller.verdict, None, teller.mode)


def not_known_here(to: Destination) -> Refused:
    """Return the refusal of what resolves its name by itself, where a rule for addresses would decide."""
    return Refused(Refusal.DENIED, f"a rule for addresses comes first, and those of {to} are not known here")


def _way_out(asked: Asked, routes: Routes, subject: Subject) -> tuple[str | None, Way]:
    """Return the service that the rules see, and where it leads."""
    if asked.service is not None:
        return asked.service, find_way(asked.service, asked.pairs, routes, subject)
    uri = parse_target_uri(asked.uri or "")
    if uri.scheme == "unix" and uri.service is not None:
        return uri.service, find_way(uri.service, asked.pairs, routes, subject)
    return None, Way((uri,))


def _inbound(teller: _Teller, asked: Asked, routes: Routes, mode_of: ModeOf) -> Generator[str, Answer, None]:
    assert asked.service is not None and asked.peer is not None
    teller.decide(Question(Direction.IN, asked.service, asked.peer, teller.subject))
    let_in = teller.verdict
    way = find_way(asked.service, Pairs(), routes, teller.subject, for_caller=True)
    if way.local_service is not None:
        teller.add_way(way)
        assert let_in is not None
        teller.tell_mode(mode_of(let_in, way.target))
    else:
        yield from teller.follow(asked.service, way, mode_of)
        if let_in is not None and let_in.would and teller.verdict is not None and not teller.verdict.would:
            teller.verdict = let_in


class _Teller:
    """Decides, and writes down how."""

    def __init__(self, policy: Policy, subject: Subject, steps: list[Told]) -> None:
        self.policy = policy
        self.subject = subject
        self.steps = steps
        self.verdict: Verdict | None = None
        self.mode = ""

    def add_way(self, way: Way) -> None:
        """Tell the redirects and the route."""
        self.steps += [Told(step.kind, step.text) for step in way.steps]
        if not way.steps:
            self.steps.append(Told("route", f"the address itself: {way.target}"))

    def follow(self, service: str | None, way: Way, mode_of: ModeOf) -> Generator[str, Answer, None]:
        """Decide about the first alternative; the others are for when it cannot be reached.

        :raises Refused: as a lookup would be.
        """
        self.add_way(way)
        target = way.target
        to = target.destination() if isinstance(target, Endpoint) else destination(target)
        far_service = None if isinstance(target, Endpoint) else target.service
        question = Question(Direction.OUT, service, to, self.subject)
        if to.addresses is None and isinstance(target, Uri) and target.scheme != "unix":
            if judge(self._decide, question, far_service).granted is False:
                self.steps.append(Told("addresses", "not resolved: its name is enough"))
            else:
                answer = yield target.host
                if isinstance(answer, Refused):
                    self.steps.append(Told("addresses", answer.reason))
                    raise answer
                question = dataclasses.replace(question, to=dataclasses.replace(to, addresses=answer))
                more = f", and {len(answer) - LISTED} more" if len(answer) > LISTED else ""
                self.steps.append(Told("addresses", ", ".join(map(str, answer[:LISTED])) + more))
        self.decide(question, far_service)
        assert self.verdict is not None
        self.tell_mode(mode_of(self.verdict, target))

    def decide(self, question: Question, far_service: str | None = None) -> None:
        """Decide, and tell every rule up to the one that decided.

        :raises Refused: where it is refused.
        """
        self.verdict = verdict = judge(self._decide, question, far_service)
        self._tell_rules(question, verdict)
        if far_service is not None and far_service != question.service:
            self.steps.append(Told("service", f"the far side is asked for {far_service}: that has to pass too"))
            self._tell_rules(dataclasses.replace(question, service=far_service), verdict)
        if verdict.number is None:
            self.steps.append(Told("default", f"{verdict.rule}: {verdict.reason}" if verdict.rule else verdict.reason))
        if verdict.would:
            self.steps.append(Told("log", "refusals are only logged: it would be denied, and is granted"))
        if verdict.granted is None:
            raise not_known_here(question.to)
        if not verdict.granted:
            raise Refused(Refusal.DENIED, verdict.reason)

    def tell_mode(self, mode: str) -> None:
        """Tell how it would be handed over."""
        self.mode = mode
        if mode:
            self.steps.append(Told("mode", mode))

    def _decide(self, question: Question) -> Verdict:
        return decide(self.policy, question)

    def _tell_rules(self, question: Question, verdict: Verdict) -> None:
        addresses = question.to.addresses or ()
        told: list[tuple[Told, ...]] = []
        # The one that is connected to is the first that passed; where none did, the first of all was refused first.
        for address in dict.fromkeys((*addresses[:ADDRESSES], *verdict.addresses[:1])) or (None,):
            one = question
            if address is not None:
                one = dataclasses.replace(question, to=dataclasses.replace(question.to, addresses=(address,)))
            steps = _rules_tried(self.policy, one)
            if steps not in told:
                told.append(steps)
                if len(addresses) > 1:
                    self.steps.append(Told("address", str(address)))
                self.steps += steps
        if len(addresses) > ADDRESSES:
            self.steps.append(Told("address", f"{len(addresses) - ADDRESSES} more, each judged likewise"))


def _rules_tried(policy: Policy, question: Question) -> tuple[Told, ...]:
    """Return the rules up to the one that decides."""
    rules = policy.rules
    assert isinstance(rules, Rules)
    numbers: Sequence[int] = range(len(rules))
    if len(rules) > MANY:
        numbers = list(rules.candidates(question.direction, question.service, question.to, question.subject))
        policy = dataclasses.replace(policy, rules=Rules(rules[at] for at in numbers))
    found = [
        Told("rule", str(one.rule), numbers[one.number - 1] + 1, one.rule.source, one.match.value, one.why)
        for one in tried(policy, question)
    ]
    telling = found
    if len(found) > TRIED:
        telling = [step for step in found if step.why not in _DULL or step.matches != Match.NO.value][-TRIED:]
    decides = bool(found) and found[-1].matches != Match.NO.value
    left_out = (found[-1].number or 0 if decides else len(rules)) - len(telling)
    if not left_out:
        return tuple(telling)
    return (Told("rules", f"{left_out} more were tried, and do not match"), *telling)
