"""plumberd.pure.policy.learn: a draft that grants what was seen, and nothing else."""

from __future__ import annotations

import ipaddress
import json
import tomllib
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy import learn
from plumberd.pure.policy.decide import Policy, Question, Verdict, decide, judge
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.learn import TOO_MANY, Draft, Learner, draft_toml
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.rule import bind_rule, parse_rule
from plumberd.pure.policy.seen import NO_RECORD, NO_WORD
from plumberd.pure.record import Outcome, line
from plumberd.pure.uri import IPAddress, Uri
from plumberd.pure.who import LocalWho, RemoteWho
from tests.strategies import DANGEROUS
from tests.tables import PROPERTY, each
from tests.test_seen import inward, local, local_service, out, remote

CLOSED = {Direction.IN: False, Direction.OUT: False}
USERS = {1000: "alice", 1001: "bob", 1002: "bob", 1003: "al ice", 1004: None}
"""Two have one name, which is the first one's; one has a name that no rule can hold, one has none."""
UIDS = {"alice": 1000, "bob": 1001}


def learnt(*records: dict[str, Any], everything: bool = False) -> Draft:
    """Return the draft of these records."""
    learner = Learner(everything=everything)
    for record in records:
        learner.add(json.dumps(record).encode() + b"\n")
    return learner.draft()


def rules(draft: Draft) -> list[str]:
    return [rule.normal for rule, _ in draft.rules]


def to_ports(*ports: int, **members: Any) -> list[dict[str, Any]]:
    return [out(to=f"tcp:h.example:{port}", uri=f"tcp://h.example:{port}", **members) for port in ports]


def to_hosts(*hosts: str, port: int = 443) -> list[dict[str, Any]]:
    return [out(to=f"tcp:{host}:{port}", uri=None, address=None, addresses=[]) for host in hosts]


class Rules(SynchronousTestCase):
    """One for what is the same."""

    @each(
        ("a name", [out()], ["allow out pong tcp:h.example:9000 for user:alice"]),
        ("the same twice", [out(), out()], ["allow out pong tcp:h.example:9000 for user:alice"]),
        (
            "several users",
            [out(), out(who=local(uid=1001, user="bob")), out(who=local(uid=1002, user=None))],
            [f"allow out pong tcp:h.example:9000 for {who}" for who in ("uid:1002", "user:alice", "user:bob")],
        ),
        (
            "one name of two users",
            [out(), out(who=local(uid=1001))],
            [f"allow out pong tcp:h.example:9000 for uid:{uid}" for uid in (1000, 1001)],
        ),
        (
            "two names of one user",
            [out(), out(who=local(user="alicia"))],
            ["allow out pong tcp:h.example:9000 for uid:1000"],
        ),
        (
            "a name that no rule can hold",
            [out(who=local(user="alice for uid:0"))],
            ["allow out pong tcp:h.example:9000 for uid:1000"],
        ),
        (
            "a name that is a number",
            [out(who=local(user="0"))],
            ["allow out pong tcp:h.example:9000 for uid:1000"],
        ),
        (
            "neighbouring ports",
            to_ports(80, 82, 81, 90),
            [f"allow out pong tcp:h.example:{ports} for user:alice" for ports in ("80-82", "90")],
        ),
        (
            "neighbouring addresses",
            to_hosts("198.51.100.2", "198.51.100.3", "198.51.100.4"),
            [f"allow out pong tcp:{host}:443 for user:alice" for host in ("198.51.100.2/31", "198.51.100.4")],
        ),
        (
            "both families",
            to_hosts("[2001:db8::1]", "[2001:db8::]", "198.51.100.2"),
            [f"allow out pong tcp:{host}:443 for user:alice" for host in ("198.51.100.2", "[2001:db8::]/127")],
        ),
        (
            "neighbouring addresses with neighbouring ports",
            [one for port in (1, 2) for one in to_hosts("198.51.100.2", "198.51.100.3", port=port)],
            ["allow out pong tcp:198.51.100.2/31:1-2 for user:alice"],
        ),
        ("a local service", [local_service()], ["allow out pong unix:pong for user:alice"]),
        (
            "callers by their addresses",
            [inward(who=remote(address=f"198.51.100.{n}")) for n in (8, 9, 10, 11, 12)],
            ["allow in pong tcp:198.51.100.8/30", "allow in pong tcp:198.51.100.12"],
        ),
        (
            "callers by their proofs, wherever they come from",
            [
                inward(who=remote(scheme="tls", address=f"198.51.100.{n}", identities=["cert:example.com"]))
                for n in (1, 9)
            ],
            ["allow in pong tls:any for cert:example.com"],
        ),
        (
            "all that a caller has proved",
            [inward(who=remote(scheme="tls", identities=["psk:laptop", "cert:example.com"]))],
            ["allow in pong tls:any for cert:example.com for psk:laptop"],
        ),
        (
            "a URI that names another service",
            [out(uri="tcp://h.example:9000/audio")],
            [f"allow out {name} tcp:h.example:9000 for user:alice" for name in ("audio", "pong")],
        ),
        (
            "the way in before the way out",
            [out(), inward()],
            ["allow in pong tcp:198.51.100.1", "allow out pong tcp:h.example:9000 for user:alice"],
        ),
        ("nothing", [], []),
    )
    def test_what_is_the_same_is_one(self, label: str, records: list[dict[str, Any]], wanted: list[str]) -> None:
        draft = learnt(*records)
        self.assertEqual((rules(draft), draft.events, draft.left), (wanted, len(records), {}))

    @each(("his own", 1000, "user:alice"), ("nobody's here", None, "user:alice"), ("another's", 7, "uid:1000"))
    def test_a_name_of_somebody_else_here_is_not_proposed(self, label: str, uid: int | None, who: str) -> None:
        learner = Learner(uid_of={"alice": uid}.get)
        learner.add(json.dumps(out()).encode())
        self.assertEqual(rules(learner.draft()), [f"allow out pong tcp:h.example:9000 for {who}"])

    def test_each_is_told_with_how_often_and_when_last(self) -> None:
        times = ("2026-10-04T12:00:03.000Z", "2026-10-05T01:00:00.000Z", "2026-10-04T12:00:02.000Z", "yesterday")
        draft = learnt(*(one for port, time in enumerate(times, 1) for one in to_ports(port, time=time)))
        self.assertEqual([(tally.count, tally.last) for _, tally in draft.rules], [(4, times[1])])


class Selection(SynchronousTestCase):
    """What is learnt from at all."""

    @each(
        ("what would have been refused", out(), 1, 1),
        ("what a default granted", out(would=None), 0, 1),
        ("what a rule granted", out(would=None, rule={"number": 1, "source": "rules.toml:1"}), 0, 0),
        ("the end of a connection", out(verdict="ended"), 0, 0),
        ("a refusal", out(verdict="denied", would=None), 0, 0),
    )
    def test_events(self, label: str, record: dict[str, Any], usually: int, everything: int) -> None:
        self.assertEqual(learnt(record).events, usually)
        draft = learnt(record, everything=True)
        self.assertEqual((draft.events, draft.left), (everything, {}))

    @each(
        ("unreachable", "an attempt that led nowhere (unreachable)"),
        ("gone", "an attempt that led nowhere (gone)"),
        ("whatever\nstands there", "an attempt that led nowhere (gone)"),
    )
    def test_what_led_nowhere_is_counted(self, verdict: str, why: str) -> None:
        self.assertEqual(learnt(out(verdict=verdict)).left, {why: 1})

    def test_lines_that_are_no_records_are_counted_and_empty_ones_are_not(self) -> None:
        learner = Learner()
        for text in (b"\n", b"  \n", b"plumberd starts\n", b"{}\n"):
            learner.add(text)
        self.assertEqual(learner.draft().left, {NO_RECORD: 2})

    def test_nothing_of_an_event_is_proposed_if_a_part_of_it_cannot_be(self) -> None:
        draft = learnt(out(uri="tcp://h.example:9000/any"))
        self.assertEqual((draft.rules, draft.left), ((), {NO_WORD: 1}))

    def test_a_rule_that_is_too_long_to_be_read_again_is_left_out(self) -> None:
        proofs = [f"psk:{n}{'x' * 200}" for n in range(6)]
        draft = learnt(inward(who=remote(scheme="tls", identities=proofs)))
        self.assertEqual((draft.rules, draft.left), ((), {NO_WORD: 1}))

    def test_only_so_many_different_ones_are_remembered(self) -> None:
        with mock.patch.object(learn, "MOST_SEEN", 3):
            draft = learnt(*to_ports(1, 2, 3, 4, 1, 5))
        self.assertEqual((draft.events, draft.left), (4, {TOO_MANY: 2}))

    def test_rules_that_would_have_refused_are_told(self) -> None:
        by_rule = out(rule={"number": 3, "text": "log out any any", "source": "rules.toml:12"})
        draft = learnt(by_rule, by_rule, out(), out(rule={"number": 4, "source": None}))
        self.assertEqual(draft.refusing, {"rules.toml:12": 2, "rule 4": 1})

    def test_only_so_many_of_those_are_told_apart(self) -> None:
        with mock.patch.object(learn, "MOST_PLACES", 1):
            draft = learnt(*(out(rule={"number": n, "source": None}) for n in (1, 2, 1, 3)))
        self.assertEqual(draft.refusing, {"rule 1": 2, "elsewhere": 2})


class Toml(SynchronousTestCase):
    def test_it_is_a_file_that_can_be_included(self) -> None:
        records = [*to_ports(80, 81), local_service(), out(service=None), inward(who=remote(address="127.0.0.1"))]
        records.append(out(rule={"number": 1, "source": "rules.toml:12"}))
        text = draft_toml(learnt(*records))
        self.assertEqual(
            text,
            "# A draft by plumb learn: 3 rules, which grant 4 events that were seen.\n"
            "# They grant what was seen, wanted or not. Read each line before you put it in force.\n"
            "#\n"
            "# Left out:\n"
            "#   1  a lookup that names no service, which only a rule for any service would match\n"
            "#   1  a loopback address\n"
            "#\n"
            "# These rules would have refused. Where one has its turn first, the draft changes nothing:\n"
            "#   1  rules.toml:12\n"
            "rules = [\n"
            '    "allow out pong tcp:h.example:80-81 for user:alice",  # 2 times, last 2026-10-04T12:00:01.250Z\n'
            '    "allow out pong tcp:h.example:9000 for user:alice",   # 1 time, last 2026-10-04T12:00:01.250Z\n'
            '    "allow out pong unix:pong for user:alice",            # 1 time, last 2026-10-04T12:00:01.250Z\n'
            "]\n",
        )
        self.assertEqual(tomllib.loads(text), {"rules": rules(learnt(*records))})

    def test_an_empty_draft_is_one_too(self) -> None:
        self.assertEqual(tomllib.loads(draft_toml(learnt())), {"rules": []})

    @each(
        ("a quote", 'psk:a"b'),
        ("a backslash", "psk:a\\b"),
        ("a comment", "psk:#x"),
        ("a line", "psk:\\n"),
        ("a bracket", "login:]"),
    )
    def test_what_toml_has_a_meaning_for_is_quoted(self, label: str, proof: str) -> None:
        text = draft_toml(learnt(inward(who=remote(scheme="tls", identities=[proof]))))
        self.assertEqual(tomllib.loads(text), {"rules": [f"allow in pong tls:any for {proof}"]})

    def test_nothing_that_a_client_chose_is_in_the_comments(self) -> None:
        evil = 'x"]\nrules = ["allow in any any'
        records = [
            out(service=evil),
            out(to=f"tcp:{evil}:1"),
            out(verdict=evil),
            out(time=evil),
            out(who=local(user=evil)),
            out(rule={"number": evil, "source": f"\x1b[2J{evil}"}),
        ]
        text = draft_toml(learnt(*records))
        self.assertEqual(len(tomllib.loads(text)["rules"]), 1)
        self.assertTrue(text.isprintable() or text.replace("\n", "").isprintable())


# -- the property: what was seen is granted, and nothing else is

HOSTS: tuple[IPAddress, ...] = tuple(
    ipaddress.ip_address(text)
    for text in ("198.51.100.0", "198.51.100.1", "198.51.100.2", "2001:db8::", "2001:db8::1", "203.0.113.9")
)
SERVICES = ("pong", "audio", "any")
PORTS = st.integers(80, 84)


@dataclass(frozen=True)
class Event:
    """One connection: who, for which service, where to."""

    who: LocalWho | RemoteWho
    service: str | None
    to: Destination
    far_service: str | None = None

    @property
    def question(self) -> Question:
        direction = Direction.IN if isinstance(self.who, RemoteWho) else Direction.OUT
        return Question(direction, self.service, self.to, self.who.subject)

    def is_granted(self, policy: Policy) -> bool:
        def one(question: Question) -> Verdict:
            return decide(policy, question)

        return bool(judge(one, self.question, self.far_service).granted)

    def line(self, verdict: Verdict) -> bytes:
        uri = None
        to = self.to
        if isinstance(self.who, LocalWho):
            host = to.name or str((to.addresses or ("",))[0])
            uri = (
                Uri("unix", "", 0, host)
                if to.scheme == "unix"
                else Uri(to.scheme, host, to.port or 0, self.far_service)
            )
        outcome = Outcome(
            "granted",
            self.question.direction.value,
            self.service or "",
            to,
            self.who,
            decided=verdict,
            uri=uri,
            addresses=to.addresses or (),
            address=to.addresses[0] if to.addresses else None,
        )
        user = USERS[self.who.uid] if isinstance(self.who, LocalWho) else None
        return line(outcome, 1.0, user).data


def names_and_addresses() -> st.SearchStrategy[Destination]:
    addresses = st.sampled_from((*HOSTS, *HOSTS, *HOSTS, *DANGEROUS))
    names = st.sampled_from(("a.example", "b.example", "any"))
    many = st.lists(addresses, min_size=1, max_size=2, unique=True).map(tuple)
    scheme = st.sampled_from(("tcp", "tls"))
    return st.builds(Destination, scheme, st.none(), addresses.map(lambda a: (a,)), PORTS) | st.builds(
        Destination, scheme, names, many, PORTS
    )


def events() -> st.SearchStrategy[Event]:
    clients = st.builds(
        LocalWho, st.sampled_from(sorted(USERS)), st.just(1), st.just(()), st.just(7), st.sampled_from(("", "a cage"))
    )
    callers = st.builds(
        RemoteWho,
        st.just("tls"),
        st.sampled_from((*HOSTS, DANGEROUS[0])),
        st.just(4711),
        st.sets(st.sampled_from(("cert:example.com", "psk:laptop", "cert:*.example.com"))).map(frozenset),
    )
    service = st.sampled_from(SERVICES)
    away = st.builds(Event, clients, st.none() | service, names_and_addresses(), st.none() | service)
    locally = st.builds(
        lambda who, asked, name: Event(who, asked, Destination("unix", name, None, None), name),
        clients,
        service,
        service,
    )
    inwards = st.builds(
        lambda who, asked: Event(who, asked, Destination("tls", None, (who.address,), who.port)), callers, service
    )
    return st.one_of(away, away, locally, inwards)


def seen_parts(event: Event) -> list[tuple[object, ...]]:
    """Return what granting *event* takes: each part is a connection of its own that may be had then."""
    who, to = event.who, event.to
    if isinstance(who, RemoteWho):
        return [("in", event.service, who.identities, None if who.identities else who.address)]
    host = to.name or (to.addresses or ("",))[0]
    return [
        ("out", service, who.uid, to.scheme, host, to.port)
        for service in dict.fromkeys((event.service, event.far_service or event.service))
    ]


def implied(parts: set[tuple[object, ...]], event: Event) -> bool:
    """Tell whether *event* is no more than what was seen."""
    if isinstance(event.who, RemoteWho):
        return any(
            part[0] == "in"
            and part[1] == event.service
            and (part[2] <= event.who.identities if part[2] else part[3] == event.who.address)  # type: ignore[operator]
            for part in parts
        )
    return all(part in parts for part in seen_parts(event))


class Exact(SynchronousTestCase):
    """Under ``--default out=deny`` and ``in=deny``."""

    @given(st.lists(events(), max_size=12), st.lists(events(), min_size=1, max_size=12))
    @PROPERTY
    def test_what_was_seen_is_granted_and_nothing_else_is(self, seen: list[Event], others: list[Event]) -> None:
        audit_only = Policy((), CLOSED, audit_only=True)
        learner = Learner(uid_of=UIDS.get)
        learnt_from: list[Event] = []
        for event in seen:
            verdict = judge(lambda question: decide(audit_only, question), event.question, event.far_service)
            if not verdict.granted:
                continue
            alone = Learner()
            for one in (learner, alone):
                one.add(event.line(verdict))
            if alone.draft().events:
                learnt_from.append(event)
            else:
                self.assertTrue(not verdict.would or alone.draft().left)
        draft = learner.draft()
        self.assertEqual(draft.events, len(learnt_from))
        texts = tomllib.loads(draft_toml(draft))["rules"]
        policy = Policy(tuple(bind_rule(parse_rule(t), UIDS.get, lambda name: None) for t in texts), CLOSED)
        for event in learnt_from:
            self.assertTrue(event.is_granted(policy), f"{event} was seen, and is refused by {texts}")
        parts = {part for event in learnt_from for part in seen_parts(event)}
        for event in (*seen, *others):
            if event.is_granted(policy) and not event.is_granted(Policy((), CLOSED)):
                self.assertTrue(implied(parts, event), f"{event} was not seen, and is granted by {texts}")

    @given(st.lists(events(), max_size=12))
    @PROPERTY
    def test_there_are_never_more_rules_than_different_connections(self, seen: list[Event]) -> None:
        learner = Learner()
        for event in seen:
            learner.add(event.line(Verdict(True, "default out=deny", "", would="denied")))
        parts = {part for event in seen for part in seen_parts(event)}
        self.assertLessEqual(len(learner.draft().rules), len(parts))

    @given(st.lists(events(), max_size=8), st.randoms(use_true_random=False))
    @PROPERTY
    def test_the_order_of_the_lines_says_nothing(self, seen: list[Event], random: Any) -> None:
        lines = [event.line(Verdict(True, "default out=deny", "", would="denied")) for event in seen]
        first, second = Learner(), Learner()
        for text in lines:
            first.add(text)
        for text in random.sample(lines, len(lines)):
            second.add(text)
        self.assertEqual(draft_toml(first.draft()), draft_toml(second.draft()))

    def test_no_dangerous_address_is_in_a_draft(self) -> None:
        who = LocalWho(1000, 1, (), 7)
        for address in DANGEROUS:
            for host in (None, "a.example"):
                event = Event(who, "pong", Destination("tcp", host, (HOSTS[0], address), 80))
                if host is None:
                    event = replace(event, to=replace(event.to, addresses=(address,)))
                learner = Learner()
                learner.add(event.line(Verdict(True, "", "", would="denied")))
                if str(address) != "192.0.2.7":  # which is dangerous only where it is the machine's own
                    self.assertEqual(learner.draft().rules, (), f"{host} {address}")
