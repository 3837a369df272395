"""plumberd.pure.policy.index: few rules of many are tried, and the answer is the same."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Callable
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy import decide as decide_module
from plumberd.pure.policy.decide import Policy, Question, decide
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.index import FEW, Index, Rules
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.rule import Match, Rule, matches, parse_rule
from plumberd.pure.policy.subject import UNMAPPED, Standing, Subject
from tests.strategies import OWN, questions, rules
from tests.tables import PROPERTY, each
from tests.test_decide import CAGED, ask, caller, claim, rule_of

MANY = 10_000
A_FEW = 5
"""Most rules that a question may match by what they are filed under, in the rule sets below."""

many_rules = st.lists(rules(), min_size=FEW + 1, max_size=60).map(Rules)


def one_by_one(question: Question) -> list[Question]:
    """Return *question* for each of its addresses, as it is judged."""
    addresses = question.to.addresses
    if addresses is None:
        return [question]
    to = question.to
    return [dataclasses.replace(question, to=dataclasses.replace(to, addresses=(one,))) for one in addresses]


def all_rules(found: Rules, *_: object) -> range:
    """Return every position, as if there were no index."""
    return range(len(found))


class SameAnswer(SynchronousTestCase):
    """The index leaves out nothing but what cannot match."""

    @PROPERTY
    @given(many_rules, questions(), st.booleans(), st.booleans())
    def test_a_decision_is_that_of_trying_all(
        self, found: Rules, question: Question, inward: bool, audit_only: bool
    ) -> None:
        for one in one_by_one(question):
            asked = (one.direction, one.service, one.to, one.subject)
            candidates = list(found.candidates(*asked))
            self.assertEqual(candidates, sorted(candidates))
            matching = {n for n, rule in enumerate(found) if matches(rule, *asked) is not Match.NO}
            self.assertLessEqual(matching, set(candidates))
        policy = Policy(found, {Direction.IN: inward, Direction.OUT: True}, OWN, audit_only)
        with mock.patch.object(Rules, "candidates", all_rules):
            plain = decide(policy, question)
        self.assertEqual(decide(policy, question), plain)

    @PROPERTY
    @given(st.lists(rules(), max_size=FEW), questions())
    def test_few_rules_decide_as_they_do_among_many(self, found: list[Rule], question: Question) -> None:
        """What is tried one by one and what is looked up are the same rules."""
        few = Policy(tuple(found), own_addresses=OWN)
        many = Policy((*found, *fillers()), own_addresses=OWN)
        self.assertEqual(decide(many, question), decide(few, question))

    @each(
        ("his_own", Subject(uid=1001), 2),
        ("another_s", Subject(uid=7), None),
        ("nobody_in_particular", Subject(), None),
        ("unmapped", Subject(uid=UNMAPPED), 1),
        ("described_by_a_word", Subject(words=frozenset(("uid:1002",))), 3),
        ("described_by_a_uid_and_a_word", Subject(uid=7, words=frozenset(("uid:1002",))), 3),
        ("a_caller_who_says_so", Subject(Standing.REMOTE, words=frozenset(("uid:1002",))), None),
        ("both_conditions", Subject(uid=1003, gids=frozenset((27,))), 4),
        ("one_of_both", Subject(uid=1003), None),
    )
    def test_a_deny_is_found_by_whom_it_is_for_and_by_who_cannot_be_told(
        self, _: str, subject: Subject, number: int | None
    ) -> None:
        lines = [f"deny out any any for uid:{1000 + n}" for n in range(3)]
        found = [*map(rule_of, [*lines, "deny out any any for group:audio for uid:1003"]), *fillers()]
        self.assertEqual(decide(Policy(tuple(found)), ask("tcp://a.example:80", who=subject)).number, number)

    @each(
        ("6to4", "2002:c633:6401::1"),
        ("nat64", "64:ff9b::198.51.100.1"),
        ("isatap", "2001:db8::5efe:198.51.100.1"),
        ("mapped", "::ffff:198.51.100.1"),
        ("teredo_server", "2001:0:c633:6401::1"),
        ("with_a_zone_id", "fe80::5efe:198.51.100.1%eth0"),
    )
    def test_a_deny_is_found_by_every_spelling_of_its_address(self, _: str, text: str) -> None:
        for network in ("198.51.100.1", "198.51.100.0/24", "0.0.0.0/0"):
            found = [*fillers(), parse_rule(f"deny out any tcp:{network}")]
            verdict = decide(Policy(tuple(found)), ask("tcp://a.example:80", text))
            self.assertEqual((verdict.granted, verdict.number), (False, len(found)))

    def test_an_address_with_a_zone_id_is_found_by_the_address(self) -> None:
        found = [*fillers(), parse_rule("allow out any tcp:[fe80::1]:80")]
        verdict = decide(Policy(tuple(found)), ask("tcp://a.example:80", "fe80::1%eth0", who=CAGED))
        self.assertEqual((verdict.granted, verdict.number), (True, len(found)))


def fillers() -> list[Rule]:
    """Return rules that match nothing here, more than are tried one by one."""
    return [parse_rule(f"deny out filler{n} tcp:192.0.2.{n}") for n in range(FEW + 1)]


def host(n: int) -> str:
    return f"h{n}.example"


def address(n: int) -> str:
    return str(ipaddress.IPv4Address(0x0B000000 + n))


def network(n: int) -> str:
    return f"{ipaddress.IPv4Address(0x0B000000 + (n << 8))}/24"


def network6(n: int) -> str:
    return f"[2001:db8:{n:x}::]/48"


Make = Callable[[int], str]


class FewAreTried(SynchronousTestCase):
    """Of 10,000 rules a question tries a handful, so that a lookup costs no more than with ten."""

    def tried(self, policy: Policy, question: Question) -> tuple[int, int | None]:
        """Return how many rules were tried, and which decided."""
        with mock.patch.object(decide_module, "matches", wraps=matches) as counted:
            verdict = decide(policy, question)
        return counted.call_count, verdict.number

    @each(
        (
            "by_service",
            lambda n: f"allow out s{n} any",
            lambda n: ask("tcp://a.example:80", "198.51.100.1", service=f"s{n}", who=CAGED),
        ),
        (
            "by_the_front_of_a_glob",
            lambda n: f"allow out s{n}-* any",
            lambda n: ask("tcp://a.example:80", service=f"s{n}-x", who=CAGED),
        ),
        (
            "by_the_back_of_a_glob",
            lambda n: f"allow out ?*-s{n} tcp:any",
            lambda n: ask("tcp://a.example:80", service=f"x-s{n}", who=CAGED),
        ),
        (
            "by_user",
            lambda n: f"allow out any any for uid:{n}",
            lambda n: ask("tcp://a.example:80", who=Subject(Standing.CONFINED, n)),
        ),
        (
            "by_user_and_more",
            lambda n: f"allow out s{n % 10} tcp:*.example:80 for unit:ci.service for uid:{n}",
            lambda n: ask(
                "tcp://a.example:80",
                service=f"s{n % 10}",
                who=Subject(Standing.CONFINED, n, cgroup="/system.slice/ci.service"),
            ),
        ),
        ("by_service_in", lambda n: f"allow in s{n} any", lambda n: caller("192.0.2.1", f"s{n}")),
        ("by_service_to_serve", lambda n: f"allow serve s{n}", lambda n: claim(f"s{n}")),
        ("by_host", lambda n: f"allow out any tcp:{host(n)}:80", lambda n: ask(f"tcp://{host(n)}:80", who=CAGED)),
        (
            "by_host_whose_addresses_are_known",
            lambda n: f"allow out any tcp:{host(n)}",
            lambda n: ask(f"tcp://{host(n)}:80", "198.51.100.1", "198.51.100.2", who=CAGED),
        ),
        (
            "by_host_in_turn_of_both",
            lambda n: f"{('allow', 'deny')[n % 2]} out s{n % 100} tcp:{host(n)}",
            lambda n: ask(f"tcp://{host(n)}:80", service=f"s{n % 100}", who=CAGED),
        ),
        (
            "by_suffix",
            lambda n: f"allow out any tls:*.{host(n)}",
            lambda n: ask(f"tls://a.b.{host(n)}:443", who=CAGED),
        ),
        (
            "by_address",
            lambda n: f"deny out any tcp:{address(n)}",
            lambda n: ask("tcp://a.example:80", address(n)),
        ),
        (
            "by_network",
            lambda n: f"deny out any tcp:{network(n)}",
            lambda n: ask("tcp://a.example:80", network(n).replace(".0/24", ".77")),
        ),
        (
            "by_network_of_six",
            lambda n: f"deny out any tcp:{network6(n)}:80",
            lambda n: ask(f"tcp://{network6(n).replace('::]/48', ':1::7]')}:80"),
        ),
        (
            "by_a_caller_s_network",
            lambda n: f"allow in any tcp:{network(n)}",
            lambda n: caller(network(n).replace(".0/24", ".77")),
        ),
        (
            "by_a_caller_s_name",
            lambda n: f"allow in any tls:{host(n)}",
            lambda n: caller("192.0.2.1", "s", "tls", (f"cert:{host(n)}", "psk:k")),
        ),
        (
            "by_a_caller_s_name_below",
            lambda n: f"allow in any tls:*.{host(n)}",
            lambda n: caller("192.0.2.1", "s", "tls", (f"cert:www.{host(n)}",)),
        ),
        (
            "by_local_service",
            lambda n: f"allow out any unix:s{n}",
            lambda n: ask(f"unix:s{n}", service="x", who=CAGED),
        ),
        (
            "by_service_and_network",
            lambda n: f"allow out s{n} tcp:{network(n)}",
            lambda n: ask("tcp://a.example:80", network(n).replace(".0/24", ".77"), service=f"s{n}", who=CAGED),
        ),
    )
    def test_of_ten_thousand(self, _: str, make: Make, about: Callable[[int], Question]) -> None:
        policy = Policy(tuple(parse_rule(make(n)) for n in range(MANY)))
        for n in (0, 1, 4_321, MANY - 1):
            question = about(n)
            count, number = self.tried(policy, question)
            self.assertEqual(number, n + 1)
            self.assertLessEqual(count, A_FEW * len(question.to.addresses or (None,)))
        count, number = self.tried(policy, about(MANY + 7))  # of which no rule speaks
        self.assertLessEqual(count, A_FEW * 2)
        self.assertIsNone(number)

    @each(
        ("networks_of_one_scheme", lambda n: f"deny out any tcp:{network(n)}", "tcp"),
        ("networks_of_another_scheme", lambda n: f"deny out any tls:{network(n)}", "tcp"),
        ("networks_with_another_port", lambda n: f"deny out any tcp:{network(n)}:25", "tcp"),
        ("networks_of_other_services", lambda n: f"deny out s{n} tcp:{network(n)}", "tcp"),
    )
    def test_of_ten_thousand_networks_before_the_addresses_are_known(self, _: str, make: Make, scheme: str) -> None:
        policy = Policy(tuple(parse_rule(make(n)) for n in range(MANY)))
        count, _number = self.tried(policy, ask(f"{scheme}://a.example:80"))
        self.assertLessEqual(count, A_FEW)

    def test_rules_for_everything_are_tried_in_their_turn_among_them(self) -> None:
        lines = [f"deny out any tcp:{host(n)}" for n in range(MANY)]
        lines[100] = "allow out any tcp:any:80"
        policy = Policy(tuple(map(parse_rule, lines)))
        for n, number in ((99, 100), (100, 101), (101, 101)):
            self.assertEqual(decide(policy, ask(f"tcp://{host(n)}:80")).number, number)

    def test_few_are_tried_one_by_one(self) -> None:
        found = Rules(fillers()[:FEW])
        question = ask("tcp://a.example:80")
        asked = (question.direction, question.service, question.to, question.subject)
        self.assertEqual(list(found.candidates(*asked)), list(range(FEW)))
        self.assertEqual(list(Rules(fillers()).candidates(*asked)), [])

    def test_the_index_is_made_once_and_only_where_it_is_needed(self) -> None:
        question = ask("tcp://a.example:80")
        with mock.patch("plumberd.pure.policy.index.Index", wraps=Index) as made:
            decide(Policy(tuple(fillers()[:FEW])), question)
            self.assertEqual(made.call_count, 0)
            policy = Policy(tuple(fillers()))
            for _ in range(3):
                decide(policy, question)
                decide(dataclasses.replace(policy, own_addresses=OWN), question)
            self.assertEqual(made.call_count, 1)

    def test_the_empty_set_has_no_candidates(self) -> None:
        to = Destination("tcp", None, None, None)
        self.assertEqual(list(Rules().candidates(Direction.IN, "a", to, Subject(Standing.REMOTE))), [])
        self.assertEqual(list(Index(()).candidates(Direction.IN, "a", to, Subject(Standing.REMOTE))), [])
