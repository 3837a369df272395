"""What no policy may ever do, whatever its rules: properties of plumberd.pure.policy.decide."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools

from hypothesis import assume, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import Zone, unwrap, zone, zone_networks
from plumberd.pure.policy.decide import (
    DEFAULTS,
    STRICTNESS,
    WOULD,
    Policy,
    Question,
    Verdict,
    both,
    decide,
    judge,
    tried,
)
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination, IPNetwork, Peer, is_within
from plumberd.pure.policy.rule import Action, Match, Rule, matches, parse_rule
from plumberd.pure.policy.subject import UNMAPPED, Condition, Holds, Standing, Subject
from plumberd.pure.uri import IPAddress
from tests.strategies import DANGEROUS, FEW, NESTED, OWN, callers, cases, locals_, questions, rules
from tests.tables import PROPERTY

ALLOW, DENY, LOG = Action.ALLOW, Action.DENY, Action.LOG
IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
OPENNESS = {False: 0, None: 1, True: 2}
Case = tuple[Policy, Question]


def about(question: Question, known: tuple[IPAddress, ...] | None) -> Question:
    """Return *question* with *known* for its addresses."""
    return dataclasses.replace(question, to=dataclasses.replace(question.to, addresses=known))


def one_by_one(question: Question) -> list[Question]:
    """Return *question* for each of its addresses."""
    addresses = question.to.addresses
    return [question] if addresses is None else [about(question, (address,)) for address in addresses]


def match_of(rule: Rule, question: Question) -> Match:
    return matches(rule, question.direction, question.service, question.to, question.subject)


def with_rules(found: Policy, *drawn: Rule) -> Policy:
    return dataclasses.replace(found, rules=drawn)


def outcome(verdict: Verdict) -> tuple[object, ...]:
    """Return what a verdict means, without the rule's number."""
    return verdict.granted, verdict.handover, verdict.addresses, verdict.would


def names_it(rule: Rule, address: IPAddress, *, with_port: bool) -> bool:
    """Tell whether *rule* names a dangerous address, as docs/security.md says."""
    network = rule.peer.network
    if network is None or (with_port and rule.peer.ports is None):
        return False
    alone = network.prefixlen == network.max_prefixlen
    return alone or any(is_within(network, whole) for whole in zone_networks(zone(address)))


class NoPolicy(SynchronousTestCase):
    @PROPERTY
    @given(questions(), st.booleans(), st.booleans())
    def test_without_a_rule_gives_what_could_not_be_had_without_it(
        self, question: Question, out: bool, inward: bool
    ) -> None:
        granted = decide(Policy((), {IN: inward, OUT: out}, OWN), question).granted
        if question.direction is SERVE:
            self.assertIs(granted, False)
        elif question.direction is IN:
            self.assertIs(granted, inward)
        elif question.subject.standing is not Standing.LOCAL or question.to.special:
            self.assertIs(granted, False)
        elif question.to.scheme == "unix":
            self.assertIs(granted, True)
        elif not out:
            self.assertIs(granted, False)

    @PROPERTY
    @given(cases(), rules(DENY))
    def test_is_opened_by_a_deny_in_front(self, case: Case, deny: Rule) -> None:
        found, question = case
        before, after = decide(found, question), decide(with_rules(found, deny, *found.rules), question)
        if question.to.addresses is not None:
            self.assertLessEqual(OPENNESS[after.granted], OPENNESS[before.granted])
            self.assertLessEqual(set(after.addresses), set(question.to.addresses))
        if before.granted is not True:  # it may take the addresses to tell, but it stays closed
            self.assertIsNot(after.granted, True)
        for one in one_by_one(question):
            if match_of(deny, one) is Match.YES:
                self.assertIs(decide(with_rules(found, deny, *found.rules), one).granted, False)

    @PROPERTY
    @given(cases(), rules(ALLOW))
    def test_is_closed_by_an_allow_in_front(self, case: Case, allow: Rule) -> None:
        found, question = case
        if question.to.addresses is not None:
            before, after = decide(found, question), decide(with_rules(found, allow, *found.rules), question)
            self.assertGreaterEqual(OPENNESS[after.granted], OPENNESS[before.granted])

    @PROPERTY
    @given(cases(), rules(), st.integers(0, 5))
    def test_is_changed_by_a_rule_that_speaks_of_something_else(self, case: Case, rule: Rule, place: int) -> None:
        """So no rule changes a default, in its own direction or in another one."""
        found, question = case
        assume(all(match_of(rule, one) is Match.NO for one in one_by_one(question)))
        more = with_rules(found, *found.rules[:place], rule, *found.rules[place:])
        before, after = decide(found, question), decide(more, question)
        self.assertEqual(outcome(after), outcome(before))
        if before.number is None:
            self.assertEqual(after, before)

    @PROPERTY
    @given(cases())
    def test_changes_a_default(self, case: Case) -> None:
        """A question that no rule matches gets what it would get if there were none."""
        found, question = case
        for one in one_by_one(question):
            verdict = decide(found, one)
            if verdict.number is None and verdict.granted is not None:
                self.assertEqual(verdict, decide(with_rules(found), one))

    @PROPERTY
    @given(cases())
    def test_decides_by_another_rule_than_the_first_that_is_not_a_no(self, case: Case) -> None:
        found, question = case
        verdict = decide(found, about(question, None))
        for number, rule in enumerate(found.rules, 1):
            match = match_of(rule, about(question, None))
            if match is not Match.NO:
                wanted = (None, None) if match is Match.MAYBE else (rule.action.opens, number)
                self.assertEqual((verdict.granted, verdict.number), wanted)
                return
        self.assertEqual((verdict.number, verdict.rule[:7]), (None, "default"))

    @PROPERTY
    @given(cases(), st.lists(FEW.addresses, min_size=1, max_size=3, unique=True))
    def test_takes_back_what_it_said_without_addresses(self, case: Case, known: list[IPAddress]) -> None:
        found, question = case
        early, late = decide(found, about(question, None)), decide(found, about(question, tuple(known)))
        self.assertIsNotNone(late.granted)
        if early.granted is False:
            self.assertIs(late.granted, False)
        ordinary = all(zone(address) is Zone.ORDINARY and not OWN & set(unwrap(address)) for address in known)
        if early.granted and ordinary:
            self.assertIs(late.granted, True)

    @PROPERTY
    @given(cases(questions().filter(lambda question: question.direction is OUT)))
    def test_gives_a_confined_client_more_than_an_unconfined_one(self, case: Case) -> None:
        found, question = case
        granted = []
        for standing in (Standing.CONFINED, Standing.LOCAL):
            subject = dataclasses.replace(question.subject, standing=standing, words=frozenset())
            granted.append(OPENNESS[decide(found, dataclasses.replace(question, subject=subject)).granted])
        self.assertLessEqual(*granted)

    @PROPERTY
    @given(cases(questions().filter(lambda question: question.subject.standing is Standing.REMOTE)))
    def test_carries_a_caller_outward_without_a_rule(self, case: Case) -> None:
        found, question = case
        verdict = decide(found, question)
        if question.direction is OUT and verdict.granted:
            self.assertIsNotNone(verdict.number)
            self.assertTrue(found.rules[(verdict.number or 0) - 1].action.opens)

    @PROPERTY
    @given(cases())
    def test_takes_a_dangerous_address_for_another(self, case: Case) -> None:
        found, question = case
        verdict = decide(found, question)
        confined = question.subject.standing is not Standing.LOCAL
        for address in verdict.addresses if question.direction is OUT else ():
            danger = zone(address)
            if danger in (Zone.ORDINARY, Zone.LOOPBACK) and not confined:
                continue
            if danger is Zone.ORDINARY and not OWN & set(unwrap(address)):
                continue
            self.assertTrue(
                any(rule.action.opens and names_it(rule, address, with_port=confined) for rule in found.rules)
            )

    @PROPERTY
    @given(st.sampled_from(NESTED), st.sampled_from((ALLOW, LOG)), locals_ | callers)
    def test_opens_addresses_of_a_zone_by_a_network_that_does_not_lie_in_it(
        self, network: IPNetwork, action: Action, subject: Subject
    ) -> None:
        found = Policy((Rule(action, OUT, None, Peer("tcp", network=network, ports=(80, 80))),), DEFAULTS, OWN)
        for address in DANGEROUS:
            question = Question(OUT, "pong", Destination("tcp", "a.example", (address,), 80), subject)
            inside = any(is_within(network, whole) for whole in zone_networks(zone(address)))
            by_itself = subject.standing is Standing.LOCAL and zone(address) in (Zone.ORDINARY, Zone.LOOPBACK)
            alone = network.prefixlen == network.max_prefixlen
            if not inside and not alone and not by_itself:
                self.assertIs(decide(found, question).granted, False, str(address))

    @PROPERTY
    @given(cases())
    def test_grants_where_no_rule_and_no_default_does(self, case: Case) -> None:
        found, question = case
        denying = [dataclasses.replace(rule, action=DENY, handover=None) for rule in found.rules]
        closed = Policy(tuple(denying), {IN: False, OUT: False}, OWN)
        local = question.to.scheme == "unix" and question.subject.standing is Standing.LOCAL
        if not local or question.direction is not OUT or question.to.special:
            self.assertIsNot(decide(closed, question).granted, True)

    @PROPERTY
    @given(cases())
    def test_opens_more_by_log_than_by_allow(self, case: Case) -> None:
        found, question = case
        swap = {ALLOW: LOG, LOG: ALLOW, DENY: DENY}
        drawn = [r if r.direction is SERVE else dataclasses.replace(r, action=swap[r.action]) for r in found.rules]
        for one in one_by_one(question):
            before, after = decide(found, one), decide(with_rules(found, *drawn), one)
            self.assertEqual((after.granted, after.number), (before.granted, before.number))
            if before.number is not None and before.granted and question.direction is not SERVE:
                self.assertNotEqual(before.would, after.would)

    @PROPERTY
    @given(cases())
    def test_that_only_logs_opens_an_address_that_needs_naming_or_a_claim(self, case: Case) -> None:
        found, question = case
        for one in one_by_one(question):
            before = decide(found, one)
            after = decide(dataclasses.replace(found, audit_only=True), one)
            if before.granted is not False:
                self.assertEqual(after, before)
            elif after.granted:
                self.assertEqual(
                    after, dataclasses.replace(before, granted=True, would=WOULD, addresses=after.addresses)
                )
                self.assertIsNot(question.direction, SERVE)
                self.assertFalse(question.to.special)
                ((address, *_),) = ((one.to.addresses or (None,)),)
                if question.direction is OUT and address is not None:
                    confined = question.subject.standing is not Standing.LOCAL
                    harmless = (Zone.ORDINARY,) if confined else (Zone.ORDINARY, Zone.LOOPBACK)
                    self.assertIn(zone(address), harmless)
                    self.assertFalse(confined and OWN & set(unwrap(address)))
            else:
                self.assertEqual(after, before)

    @PROPERTY
    @given(cases())
    def test_lets_an_address_pass_that_does_not_pass_alone(self, case: Case) -> None:
        found, question = case
        verdict = decide(found, question)
        if question.to.addresses is None:
            self.assertEqual(verdict.addresses, ())
            return
        alone = {address: decide(found, about(question, (address,))) for address in question.to.addresses}
        for address in verdict.addresses:
            self.assertEqual(outcome(alone[address]), (True, verdict.handover, (address,), verdict.would))
        self.assertEqual(verdict.granted, any(one.granted for one in alone.values()))
        self.assertEqual(bool(verdict.addresses), verdict.granted)
        self.assertEqual(bool(verdict.would), verdict.granted and all(v.would for v in alone.values() if v.granted))


class NobodyUntold(SynchronousTestCase):
    """What the kernel does not tell about who asks fulfils no condition of what opens."""

    UNTOLD = st.sampled_from(
        (
            Subject(Standing.LOCAL, UNMAPPED, frozenset((UNMAPPED,))),
            Subject(Standing.CONFINED, UNMAPPED, frozenset((27, 100))),
            Subject(Standing.CONFINED, UNMAPPED, frozenset()),
            Subject(Standing.LOCAL),
        )
    )

    @PROPERTY
    @given(cases(), UNTOLD)
    def test_opens_nothing_by_a_rule_for_somebody(self, case: Case, subject: Subject) -> None:
        found, question = case
        question = dataclasses.replace(question, subject=subject)
        verdict = decide(found, question)
        if verdict.granted and verdict.number is not None:
            self.assertEqual(found.rules[verdict.number - 1].conditions, ())

    @PROPERTY
    @given(cases(), UNTOLD, FEW.local)
    def test_is_denied_by_a_deny_for_somebody(self, case: Case, subject: Subject, condition: Condition) -> None:
        found, question = case
        question = dataclasses.replace(question, subject=subject)
        deny = Rule(DENY, question.direction, None, conditions=(condition,))
        if condition.holds(subject) is Holds.UNTOLD:
            verdict = decide(with_rules(found, deny, *found.rules), question)
            self.assertEqual((verdict.granted, verdict.number), (False, 1))

    @PROPERTY
    @given(cases(), FEW.local | FEW.proved)
    def test_is_let_through_only_where_all_is_told(self, case: Case, condition: Condition) -> None:
        found, question = case
        drawn = [dataclasses.replace(rule, conditions=(*rule.conditions, condition)) for rule in found.rules]
        verdict = decide(with_rules(found, *drawn), question)
        if verdict.granted and verdict.number is not None:
            for one in drawn[verdict.number - 1].conditions:
                self.assertIs(one.holds(question.subject), Holds.YES)


class Twice(SynchronousTestCase):
    @PROPERTY
    @given(cases(), FEW.services | st.none())
    def test_a_connection_passes_only_where_both_services_do(self, case: Case, far_service: str | None) -> None:
        found, question = case
        verdict = judge(lambda one: decide(found, one), question, far_service)
        asked = {question.service, question.service if far_service is None else far_service}
        alone = [decide(found, dataclasses.replace(question, service=service)) for service in asked]
        if verdict.granted is not False:
            self.assertTrue(all(one.granted is not False for one in alone))
        if verdict.granted:
            self.assertTrue(all(one.granted for one in alone))
            for one in alone:
                self.assertLessEqual(set(verdict.addresses), set(one.addresses))
                if one.handover is not None:
                    assert verdict.handover is not None
                    stricter = STRICTNESS.index(verdict.handover) >= STRICTNESS.index(one.handover)
                    self.assertTrue(stricter)
            self.assertEqual(bool(verdict.would), any(one.would for one in alone))
            self.assertEqual(bool(verdict.addresses), question.to.addresses is not None)

    @PROPERTY
    @given(cases(), cases())
    def test_which_comes_first_opens_nothing(self, one: Case, other: Case) -> None:
        question = one[1]
        first, second = decide(one[0], question), decide(other[0], question)
        self.assertIs(both(first, second).granted, both(second, first).granted)
        self.assertEqual(set(both(first, second).addresses), set(both(second, first).addresses))


class TriedInTurn(SynchronousTestCase):
    @PROPERTY
    @given(cases())
    def test_what_is_told_ends_at_the_very_rule_that_decides(self, case: Case) -> None:
        found, question = case
        for one in one_by_one(question):
            verdict, told = decide(found, one), tried(found, one)
            self.assertEqual([step.number for step in told], list(range(1, len(told) + 1)))
            self.assertEqual([step.rule for step in told], list(found.rules[: len(told)]))
            self.assertTrue(all(step.match is Match.NO and step.why for step in told[:-1]))
            if verdict.number is not None:
                self.assertEqual((told[-1].number, told[-1].match), (verdict.number, Match.YES))
            elif verdict.granted is None:
                self.assertIs(told[-1].match, Match.MAYBE)
            else:
                self.assertEqual(len(told), len(found.rules))
                self.assertTrue(all(step.match is Match.NO for step in told))


class Advice(SynchronousTestCase):
    @PROPERTY
    @given(cases())
    def test_the_rule_that_a_refusal_names_would_let_it_through_if_it_came_first(self, case: Case) -> None:
        found, question = case
        for one in one_by_one(question):
            verdict = decide(found, one)
            unknown = one.to.scheme != "unix" and one.to.addresses is None and one.to.name is None
            if verdict.granted is not False or (unknown and one.direction is OUT and not one.to.special):
                continue
            proposed = parse_rule("allow " + verdict.reason.rpartition("allow ")[2])
            self.assertIs(decide(with_rules(found, proposed, *found.rules), one).granted, True, proposed.normal)

    @PROPERTY
    @given(cases(questions().filter(lambda question: question.direction is OUT)))
    def test_it_lets_through_nothing_more_than_was_asked_for(self, case: Case) -> None:
        found, question = case
        for one in one_by_one(question):
            verdict = decide(found, one)
            if verdict.granted is False and one.to.name is not None and not one.to.special:
                proposed = parse_rule("allow " + verdict.reason.rpartition("allow ")[2])
                self.assertEqual(proposed.service, one.service)
                self.assertEqual((proposed.peer.scheme, proposed.peer.ports), (one.to.scheme, _just(one.to.port)))
                self.assertIn(proposed.peer.name, (one.to.name, None))
                self.assertTrue(proposed.peer.name is not None or proposed.peer.address is not None)


def _just(port: int | None) -> tuple[int, int] | None:
    return None if port is None else (port, port)


class Order(SynchronousTestCase):
    """The order of rules that do not overlap never matters."""

    def assert_order_does_not_matter(self, drawn: list[Rule], question: Question) -> None:
        """Decide under every order of the rules."""
        verdicts = [decide(Policy(order, DEFAULTS, OWN), question) for order in itertools.permutations(drawn)]
        self.assertEqual(len(set(map(outcome, verdicts))), 1)

    @PROPERTY
    @given(cases())
    def test_of_rules_of_which_one_at_most_matches(self, case: Case) -> None:
        found, question = case
        for one in one_by_one(question):
            self.assert_order_does_not_matter(
                [r for n, r in enumerate(found.rules) if self._is_alone(n, found.rules, one)], one
            )

    def _is_alone(self, number: int, drawn: tuple[Rule, ...], question: Question) -> bool:
        """Tell whether no rule before this one matches where it does."""
        if match_of(drawn[number], question) is Match.NO:
            return True
        return all(match_of(rule, question) is Match.NO for rule in drawn[:number])

    @PROPERTY
    @given(st.lists(rules(), min_size=2, max_size=3), st.integers(0, 2), questions())
    def test_of_rules_for_different_services(self, found: list[Rule], asked: int, question: Question) -> None:
        drawn = [dataclasses.replace(rule, service=f"service{number}") for number, rule in enumerate(found)]
        self.assert_order_does_not_matter(drawn, dataclasses.replace(question, service=f"service{asked}"))

    @PROPERTY
    @given(st.lists(rules(directions=(OUT,)), min_size=2, max_size=3), st.integers(0, 2), questions())
    def test_of_rules_for_different_users(self, found: list[Rule], asked: int, question: Question) -> None:
        drawn = [
            dataclasses.replace(rule, conditions=(*rule.conditions, Condition("uid", str(number), number)))
            for number, rule in enumerate(found)
        ]
        subject = Subject(Standing.LOCAL, asked)
        self.assert_order_does_not_matter(drawn, dataclasses.replace(question, subject=subject))

    @PROPERTY
    @given(st.lists(rules(directions=(OUT,)), min_size=2, max_size=3), st.integers(0, 2), questions())
    def test_of_rules_for_different_ports(self, found: list[Rule], asked: int, question: Question) -> None:
        drawn = [
            dataclasses.replace(rule, peer=Peer("tcp", rule.peer.name, ports=(10 * n + 1, 10 * n + 10)))
            for n, rule in enumerate(found)
        ]
        to = dataclasses.replace(question.to, scheme="tcp", port=10 * asked + 5)
        self.assert_order_does_not_matter(drawn, dataclasses.replace(question, direction=OUT, to=to))

    @PROPERTY
    @given(
        st.lists(st.sampled_from(DANGEROUS[:-1]), min_size=2, max_size=4, unique=True),
        st.lists(st.tuples(st.sampled_from(Action), st.sampled_from((None, (80, 80)))), min_size=4, max_size=4),
        st.lists(st.sampled_from(DANGEROUS[:-1]), max_size=3, unique=True),
        locals_ | callers,
    )
    def test_of_rules_for_different_addresses(
        self,
        named: list[IPAddress],
        kinds: list[tuple[Action, tuple[int, int] | None]],
        known: list[IPAddress],
        subject: Subject,
    ) -> None:
        drawn = [
            Rule(action, OUT, None, Peer("tcp", network=ipaddress.ip_network(address), ports=span))
            for address, (action, span) in zip(named, kinds, strict=False)
        ]
        to = Destination("tcp", "a.example", tuple(known) or None, 80)
        self.assert_order_does_not_matter(drawn, Question(OUT, "pong", to, subject))

    @PROPERTY
    @given(
        st.lists(st.sampled_from(NESTED), min_size=2, max_size=4, unique=True),
        st.lists(st.sampled_from(Action), min_size=4, max_size=4),
        FEW.addresses,
        locals_,
    )
    def test_of_networks_that_are_apart(
        self, drawn: list[IPNetwork], actions: list[Action], address: IPAddress, subject: Subject
    ) -> None:
        apart = [
            network
            for n, network in enumerate(drawn)
            if not any(is_within(network, other) or is_within(other, network) for other in drawn[:n])
        ]
        assume(address not in DANGEROUS[-1:])  # one that carries another lies in networks of both families
        found = [
            Rule(action, OUT, None, Peer("tcp", network=network, ports=(1, 100)))
            for network, action in zip(apart, actions, strict=False)
        ]
        to = Destination("tcp", "a.example", (address,), 80)
        self.assert_order_does_not_matter(found, Question(OUT, "pong", to, subject))
