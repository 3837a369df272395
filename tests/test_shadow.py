"""plumberd.pure.policy.shadow: a rule that is said never to have its turn never has it."""

from __future__ import annotations

import dataclasses
import ipaddress
import random
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, Verdict, decide
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination, IPNetwork, Peer
from plumberd.pure.policy.rule import Action, Rule, parse_rule
from plumberd.pure.policy.shadow import WORK, Left, Shadow, find_shadows, leaves
from plumberd.pure.policy.subject import ANYBODY, UNMAPPED, Standing, Subject
from plumberd.pure.uri import IPAddress
from tests.strategies import DANGEROUS, FEW, OWN, rules
from tests.tables import PROPERTY, each

ADDRESSES: tuple[IPAddress, ...] = (
    *DANGEROUS,
    *map(
        ipaddress.ip_address,
        (
            *("198.51.100.1", "198.51.200.1", "192.0.2.5", "8.8.8.8", "127.9.9.9", "169.254.3.3", "255.255.255.255"),
            *("2001:db8::9", "2001:db8:1::9", "fe80::a9fe:a9fe", "fe80::2%7", "fe80::200:5efe:7f00:1"),
            *("64:ff9b::c633:6401", "2002:c633:6401::1", "64:ff9b::a9fe:a9fe", "::c000:205"),
        ),
    ),
)
"""Of every zone, of every network that rules are made of here, and IPv6 addresses that hold some of them."""

SUBJECTS = (
    ANYBODY,
    *(
        Subject(standing, uid, gids, cgroup)
        for standing in (Standing.LOCAL, Standing.CONFINED)
        for uid, gids, cgroup in (
            (0, frozenset(), None),
            (1000, frozenset((27,)), "/system.slice/ci.service"),
            (1001, frozenset((27, UNMAPPED)), "/user.slice"),
            (1000, frozenset((100,)), None),
            (UNMAPPED, frozenset((27,)), "/system.slice/ci.service"),
        )
    ),
)

CALLERS = tuple(
    Subject(Standing.REMOTE, words=frozenset(words))
    for words in (
        (),
        ("cert:a.example",),
        ("cert:x.b.example", "psk:laptop"),
        ("cert:b.example", "login:alice", "spiffe://d.example/w"),
        ("cert:a.example", "cert:x.b.example", "psk:laptop", "login:alice", "spiffe://d.example/w"),
    )
)


def rule(text: str) -> Rule:
    """Parse a rule; user alice is 1000, and group audio 27."""
    parsed = parse_rule(text)
    numbers = {"user:alice": 1000, "group:audio": 27}
    bound = tuple(dataclasses.replace(c, number=numbers.get(str(c), c.number)) for c in parsed.conditions)
    return dataclasses.replace(parsed, conditions=bound)


def sample_about(asked: Rule, seed: int, count: int = 150) -> list[Question]:
    """Return questions of the rule's direction, mostly such as it speaks of, by everybody; the same for a *seed*."""
    choose = random.Random(seed).choice
    way, peer = asked.direction, asked.peer
    services = ("pong", "audio", "other") if asked.service is not None or way is not Direction.OUT else (None, "pong")
    schemes = ("tcp", "tls", "unix") if peer.scheme is None else (peer.scheme,)
    known = (None, *((address,) for address in ADDRESSES))
    subjects = {Direction.IN: CALLERS, Direction.OUT: (*SUBJECTS, *CALLERS), Direction.SERVE: SUBJECTS}[way]

    def one() -> Question:
        service, scheme = choose(services), choose(schemes)
        if way is Direction.SERVE:
            return Question(way, service, Destination("unix", service, None, None), choose(subjects))
        if way is Direction.IN:
            return Question(way, service, Destination(scheme, None, choose(known), 51234), choose(subjects))
        if scheme == "unix":
            return Question(way, service, Destination("unix", choose(("pong", "audio")), None, None), choose(subjects))
        name, port = choose((None, "a.example", "x.b.example")), choose((None, 80, 443, 8080))
        return Question(way, service, Destination(scheme, name, choose(known), port), choose(subjects))

    return [one() for _ in range(count)]


def decides_second(early: Rule, late: Rule, question: Question) -> bool:
    """Tell whether *late* has its turn behind *early*."""
    alone = decide(Policy((early,), dict(DEFAULTS), OWN), question)
    if alone.granted is None or alone.number is not None:
        return False
    both = decide(Policy((early, late), dict(DEFAULTS), OWN), question)
    return both.granted is None or both.number is not None


def said(verdict: Verdict) -> tuple[object, ...]:
    """What a verdict says but for the numbers of rules."""
    return verdict.granted, verdict.handover, verdict.addresses, verdict.would, verdict.rule.partition(": ")[2]


def widened() -> st.SearchStrategy[tuple[Rule, Rule]]:
    """Two rules, the first of which says what the second does, or more."""

    def in_front(late: Rule) -> st.SearchStrategy[tuple[Rule, Rule]]:
        services = [st.just(late.service), st.none()]
        if late.service is not None:
            services.append(FEW.globs)
        kept = st.sets(st.sampled_from(late.conditions)).map(tuple) if late.conditions else st.just(())
        actions = tuple(Action) if late.direction is not Direction.SERVE else (Action.ALLOW, Action.DENY)
        early = st.builds(
            lambda action, service, peer, conditions: Rule(action, late.direction, service, peer, conditions),
            st.sampled_from(actions),
            st.one_of(services),
            _wider(late.peer),
            kept,
        )
        return st.tuples(early, st.just(late))

    return rules().flatmap(in_front)


def _wider(peer: Peer) -> st.SearchStrategy[Peer]:
    found = [st.just(peer), st.just(Peer())]
    if peer.scheme is not None:
        spans = st.sampled_from((None, peer.ports, (1, 65535)))
        found.append(st.builds(Peer, st.just(peer.scheme), ports=spans))
    if peer.network is not None:
        network: IPNetwork = peer.network
        lengths = st.integers(0, network.prefixlen)
        nets = lengths.map(lambda length: network.supernet(new_prefix=length))
        found.append(st.builds(Peer, st.just(peer.scheme), network=nets, ports=spans))
    name = peer.name or peer.suffix
    if name is not None and peer.scheme != "unix":
        found.append(st.builds(Peer, st.just(peer.scheme), suffix=st.sampled_from((name, "b.example")), ports=spans))
    return st.one_of(found)


class Two(SynchronousTestCase):
    """What one rule leaves to another."""

    @each(
        ("the same", "allow out a tcp:h.example", "allow out a tcp:h.example"),
        ("a deny of all", "deny out any any", "allow out a tcp:127.0.0.1:5"),
        ("a deny of all before one", "deny out any any", "deny out a unix:b"),
        ("an allow of all before a name", "allow out any any", "allow out a tcp:h.example"),
        ("an allow of all before a local service", "allow out any any", "deny out a unix:b"),
        ("an allow of callers", "allow in a any", "deny in a tcp:192.0.2.1"),
        ("a glob before a name", "deny out p* any", "deny out pong any"),
        ("a glob before a glob", "deny out p* any", "deny out po?? any"),
        ("any service before a glob", "deny out any any", "deny out ?* any"),
        ("a scheme before a host", "deny out any tcp:any", "deny out any tcp:h.example:80"),
        ("ports before one of them", "deny out any tcp:h.example:80-90", "deny out any tcp:h.example:85"),
        ("all hosts' port", "deny out any tcp:any:80-90", "deny out any tcp:192.0.2.1:80"),
        ("a suffix before a name", "deny out any tcp:*.b.example", "deny out any tcp:x.b.example"),
        ("a suffix before a longer one", "deny out any tcp:*.example", "deny out any tcp:*.b.example"),
        ("a suffix before itself", "deny out any tcp:*.example", "allow out any tcp:*.example"),
        ("a network before an address", "deny out any tcp:192.0.2.0/24", "allow out any tcp:192.0.2.9:80"),
        ("a network before a part of it", "deny out any tcp:[2001:db8::]/32", "allow out any tcp:[2001:db8::]/64"),
        ("a port that callers choose", "allow in a tcp:192.0.2.0/24:5", "allow in a tcp:192.0.2.1:6"),
        ("fewer conditions", "allow out a any for group:audio", "allow out a any for user:alice for group:audio"),
        (
            "certificates of a domain",
            "allow in a tls:any for cert:*.b.example",
            "allow in a tls:any for cert:x.b.example",
        ),
        ("certificates of more", "deny in a tls:any for cert:*.example", "deny in a tls:any for cert:*.b.example"),
        ("what callers have proved", "allow in a tls:any for psk:laptop", "deny in a tls:any for psk:laptop"),
        ("who may serve", "deny serve any", "allow serve a for user:alice"),
        ("an address with its port", "allow out any tcp:[::1]:1-99", "allow out any tcp:[::1]:5"),
        ("loopback without a port", "allow out any any", "allow out any tcp:127.0.0.1"),
        ("a network of no zone", "allow out any any", "allow out any tcp:198.51.100.0/24:5"),
        ("a zone before a part of it", "allow out any tcp:127.0.0.0/8:80", "allow out any tcp:127.0.0.0/9:80"),
        ("another mode", "allow out a any handover=relayed", "allow out a any"),
    )
    def test_nothing(self, _: str, early: str, late: str) -> None:
        self.assertEqual(leaves(rule(early), rule(late)), frozenset())

    @each(
        ("another direction", "deny in any any", "deny out any any"),
        ("another service", "deny out a any", "deny out b any"),
        ("lookups without a service", "deny out ?* any", "deny out any any"),
        ("a narrower glob", "deny out po* any", "deny out p* any"),
        ("another scheme", "deny out any tls:any", "deny out any tcp:any"),
        ("any scheme", "deny out any tcp:any", "deny out any any"),
        ("another host", "deny out any tcp:a.example", "deny out any tcp:b.example"),
        ("a host's addresses", "deny out any tcp:a.example", "deny out any tcp:192.0.2.1"),
        ("an address's names", "deny out any tcp:0.0.0.0/0", "deny out any tcp:a.example"),
        ("the domain itself", "deny out any tcp:*.b.example", "deny out any tcp:b.example"),
        ("a name that only ends alike", "deny out any tcp:*.b.example", "deny out any tcp:xb.example"),
        ("a larger network", "deny out any tcp:192.0.2.0/25", "deny out any tcp:192.0.2.0/24"),
        ("the other family", "deny out any tcp:0.0.0.0/0", "deny out any tcp:[::1]"),
        ("another port", "deny out any tcp:a.example:80", "deny out any tcp:a.example:81"),
        ("more ports", "deny out any tcp:a.example:80-90", "deny out any tcp:a.example:80-91"),
        ("any port", "deny out any tcp:a.example:1-65535", "deny out any tcp:a.example"),
        ("somebody else", "deny out a any for user:alice", "deny out a any for group:audio"),
        ("everybody", "deny out a any for user:alice", "deny out a any"),
        (
            "a certificate of another domain",
            "deny in a tls:any for cert:*.b.example",
            "deny in a tls:any for cert:b.example",
        ),
        ("the same number in other words", "deny out a any for user:alice", "deny out a any for uid:1000"),
        ("another local service", "deny out any unix:a", "deny out any unix:b"),
    )
    def test_anything(self, _: str, early: str, late: str) -> None:
        self.assertIsNone(leaves(rule(early), rule(late)))

    @each(
        ("an allow of all", "allow out any any", "deny out a tcp:h.example", Left.NAMED),
        ("an allow before one of loopback", "allow out any any", "allow out a tcp:127.0.0.1:5", Left.NAMED),
        ("one of link-local", "allow out any tcp:any", "allow out a tcp:169.254.0.0/16", Left.NAMED),
        ("a zone's metadata", "allow out a tcp:169.254.0.0/16", "allow out a tcp:169.254.169.254", Left.NAMED),
        ("more than a zone", "allow out a tcp:169.254.0.0/15", "allow out a tcp:169.254.0.0/16", Left.NAMED),
        ("an address that may be the machine's own", "allow out a any", "allow out a tcp:192.0.2.7:80", Left.NAMED),
        ("an address whose port is not named", "allow out a tcp:[::1]", "allow out a tcp:[::1]:80", Left.NAMED),
        ("an IPv6 address that is named", "allow out a tcp:[::1]:80", "deny out a tcp:[::1]:80", Left.PORTLESS),
        ("callers' IPv4 addresses", "allow in a tcp:192.0.2.0/24", "deny in a tcp:192.0.2.1", Left.WRAPPED),
        ("users", "allow serve a for user:alice", "deny serve a for user:alice", Left.UNTOLD),
        ("units", "allow out a unix:b for unit:ci.service", "deny out a unix:b for unit:ci.service", Left.UNTOLD),
    )  # fmt: skip
    def test_a_little(self, _: str, early: str, late: str, left: Left) -> None:
        self.assertEqual(leaves(rule(early), rule(late)), {left})

    def test_several_at_once(self) -> None:
        early, late = (
            rule("allow out a tcp:192.0.2.0/24:80 for user:alice"),
            rule("deny out a tcp:192.0.2.1:80 for user:alice"),
        )
        self.assertEqual(leaves(early, late), set(Left))

    @PROPERTY
    @given(widened(), st.integers(0, 2**32))
    def test_what_is_hidden_never_decides(self, two: tuple[Rule, Rule], seed: int) -> None:
        early, late = two
        left = leaves(early, late)
        if left == frozenset():
            turns = [q for q in sample_about(late, seed) if decides_second(early, late, q)]
            self.assertEqual(turns, [])
        else:
            self.assertTrue(left is None or left <= set(Left))

    @PROPERTY
    @given(rules(), rules(), st.integers(0, 2**32))
    def test_nor_does_it_of_any_two(self, early: Rule, late: Rule, seed: int) -> None:
        hidden = leaves(early, late) == frozenset()
        turns = [q for q in sample_about(late, seed, 100) if decides_second(early, late, q)]
        self.assertTrue(not hidden or not turns, turns[:1])

    @PROPERTY
    @given(widened(), st.integers(0, 2**32))
    def test_what_is_left_is_all_that_it_decides(self, two: tuple[Rule, Rule], seed: int) -> None:
        early, late = two
        left = leaves(early, late)
        for question in sample_about(late, seed) if left else ():
            if decides_second(early, late, question):
                self.assertTrue(_is_left(question, left or frozenset(), early), question)


def _is_left(question: Question, left: frozenset[Left], early: Rule) -> bool:
    """Tell whether a question is of one of the kinds that are left."""
    address = question.to.addresses[0] if question.to.addresses else None
    plain = dataclasses.replace(question, subject=ANYBODY)
    found = set()
    if question.to.port is None:
        found.add(Left.PORTLESS)
    if question.subject.uid == UNMAPPED or UNMAPPED in question.subject.gids or question.subject.cgroup is None:
        found.add(Left.UNTOLD)
    if address is not None and address.version == 6:
        found.add(Left.WRAPPED)
    if address is not None and (question.subject.standing is not Standing.LOCAL or not _may_dial(plain)):
        found.add(Left.NAMED)
    return bool(found & left)


def _may_dial(question: Question) -> bool:
    """Tell whether an unconfined client needs no rule that names the address."""
    return decide(Policy((rule("allow out any any"),), {**DEFAULTS, Direction.OUT: False}), question).granted is True


class Many(SynchronousTestCase):
    """Finding them among many."""

    def found(self, *lines: str, idle: tuple[int, ...] = ()) -> list[tuple[int, int]]:
        shadows, unseen = find_shadows([rule(line) for line in lines], idle)
        self.assertEqual(unseen, 0)
        return [(shadow.late, shadow.early) for shadow in shadows]

    def test_the_first_that_hides_it_is_named(self) -> None:
        self.assertEqual(
            self.found("deny out a any", "deny out any tcp:any", "deny out any any", "allow out a tcp:h.example"),
            [(3, 0)],
        )

    def test_a_hidden_rule_hides_nothing_by_itself(self) -> None:
        self.assertEqual(
            self.found("deny out any any", "deny out a any", "allow out a tcp:h.example"), [(1, 0), (2, 0)]
        )

    def test_one_that_hides_it_wholly_counts_more_than_an_earlier_one(self) -> None:
        self.assertEqual(
            self.found("allow out any any", "deny out a any", "deny out a tcp:h.example"), [(1, 0), (2, 1)]
        )

    def test_one_that_matches_nothing_hides_nothing_and_is_not_looked_at(self) -> None:
        self.assertEqual(self.found("deny out any any", "deny out any any", "deny out a any", idle=(0, 2)), [])

    def test_a_later_rule_hides_nothing(self) -> None:
        self.assertEqual(self.found("deny out a any", "deny out any any"), [])

    @PROPERTY
    @given(st.lists(rules(), min_size=2, max_size=24))
    def test_it_finds_what_comparing_each_with_each_finds(self, drawn: list[Rule]) -> None:
        self.assertEqual(find_shadows(drawn), (list(_plain(drawn)), 0))

    @PROPERTY
    @given(st.lists(rules(directions=(Direction.OUT,)), min_size=2, max_size=6), st.integers(0, 2**32))
    def test_without_a_hidden_rule_everything_is_decided_alike(self, drawn: list[Rule], seed: int) -> None:
        for shadow in find_shadows(drawn)[0]:
            if shadow.left:
                continue
            less = Policy((*drawn[: shadow.late], *drawn[shadow.late + 1 :]), dict(DEFAULTS), OWN)
            for question in sample_about(drawn[shadow.late], seed, 60):
                whole = decide(Policy(tuple(drawn), dict(DEFAULTS), OWN), question)
                self.assertEqual(said(decide(less, question)), said(whole))

    @each(
        ("services", "deny out s{0} tcp:any"),
        ("hosts", "deny out any tcp:h{0}.a.example:443"),
        ("networks", "deny out any tcp:10.{1}.{2}.0/24"),
        ("users", "deny out pong tcp:any for uid:{0}"),
        ("users and groups", "deny out pong tcp:any for uid:{1} for group:g{2}"),
        ("ports", "deny out any tcp:a.example:{3}"),
        ("ranges", "deny out any tcp:a.example:{3}-{4}"),
        ("globs", "deny out s{0}-* any"),
        ("globs with another end", "deny out *-s{0} any"),
        ("one", "deny out any any"),
    )
    def test_of_ten_thousand_alike_each_is_compared_with_few(self, _: str, form: str) -> None:
        forms = [form.format(n, n // 100, n % 100, n + 1, n + 9) for n in range(10_000)]
        shadows, unseen = find_shadows([parse_rule(text) for text in forms], most=1_500_000)
        self.assertEqual((len(shadows), unseen), (9999 if form == forms[0] else 0, 0))

    def test_where_too_many_are_alike_it_ends_and_tells_how_many_are_left(self) -> None:
        alike = [parse_rule(f"deny out *a{n}b* any") for n in range(300)]
        shadows, unseen = find_shadows([*alike, alike[0]], most=10_000)
        self.assertEqual(shadows, [])
        self.assertGreater(unseen, 200)
        self.assertEqual(find_shadows([*alike, alike[0]], most=WORK), ([Shadow(300, 0, frozenset())], 0))


def _plain(drawn: Sequence[Rule]) -> Iterator[Shadow]:
    """Yield what is hidden, each rule compared with each before it that is not hidden itself."""
    whole: set[int] = set()
    for late, one in enumerate(drawn):
        found = [
            (bool(left), at, left)
            for at in range(late)
            if at not in whole and (left := leaves(drawn[at], one)) is not None
        ]
        if found:
            _, early, left = min(found, key=lambda entry: entry[:2])
            yield Shadow(late, early, left)
            if not left:
                whole.add(late)
