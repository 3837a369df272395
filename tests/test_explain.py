"""plumberd.pure.policy.explain: every step of a decision is told, and it is the decision that is made in earnest."""

from __future__ import annotations

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.modes import Mode
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy import explain as module
from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, Verdict, decide, tried
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import ADDRESSES, LISTED, MANY, TRIED, Answer, Asked, Explanation, explain
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Choice, Endpoint, Routes, parse_redirect, parse_route
from plumberd.pure.policy.rule import Match, parse_rule
from plumberd.pure.policy.subject import ANYBODY, Standing, Subject, parse_condition
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from tests.strategies import policies, questions
from tests.tables import PROPERTY, each

CALLER = Subject(Standing.REMOTE)
CAGED = Subject(Standing.CONFINED)


def address(text: str) -> IPAddress:
    """Return an address."""
    return ipaddress.ip_address(text)


def told(
    *rules: str,
    service: str | None = "web",
    uri: str | None = None,
    pairs: str = "",
    direction: Direction = Direction.OUT,
    routes: Routes | None = None,
    subject: Subject = ANYBODY,
    answers: dict[str, Answer] | None = None,
    mode: Any = "locked",
    **policy: Any,
) -> Explanation:
    """Return an explanation; a name that is resolved and has no answer is a failure."""
    peer = Destination("tcp", None, (address("192.0.2.1"),), None) if direction is Direction.IN else None
    asked = Asked(direction, service, Pairs(pairs.encode()), uri, peer)
    whole = Policy(tuple(parse_rule(rule, f"rules:{n}") for n, rule in enumerate(rules, 1)), **policy)

    def mode_of(verdict: Verdict, target: Uri | Endpoint) -> str:
        if isinstance(mode, Refused):
            raise mode
        return str(mode)

    steps = explain(whole, routes or Routes(), asked, subject, "who asks", mode_of)
    try:
        name = next(steps)
        while True:
            name = steps.send((answers or {})[name])
    except StopIteration as done:
        found: Explanation = done.value
        return found


def lines(explanation: Explanation) -> list[tuple[str, str]]:
    """Return the steps as pairs of what and text."""
    return [(step.step, step.text) for step in explanation.steps]


class Steps(SynchronousTestCase):
    def test_a_local_service_by_the_default(self) -> None:
        found = told(mode="local")
        self.assertEqual(
            lines(found),
            [
                ("who", "who asks"),
                ("route", "the local service web"),
                ("default", "default for local services: local services are open to unconfined clients"),
                ("mode", "local"),
            ],
        )
        self.assertIsNone(found.refusal)

    def test_redirects_and_a_route(self) -> None:
        routes = Routes(
            {"web": (Choice(("next",), (parse_condition("uid:7"),)), Choice(("next",)))},
            {"next": (Choice((parse_route("next", "tcp://192.0.2.1:80/x"),)),)},
        )
        found = told("allow out any any", routes=routes)
        self.assertEqual(lines(found)[1:3], [("redirect", "web to next"), ("route", "next = tcp://192.0.2.1:80/x")])

    def test_the_lookup_s_own_pair(self) -> None:
        self.assertIn(("route", "the lookup's own: tcp://192.0.2.1:80"), lines(told(pairs="web tcp://192.0.2.1:80")))

    def test_a_uri_that_names_no_service(self) -> None:
        found = told(service=None, uri="tcp://192.0.2.1:80")
        self.assertIn(("route", "the address itself: tcp://192.0.2.1:80"), lines(found))

    def test_passwords_are_masked(self) -> None:
        for found in (told(pairs="web tls://u:hunter2@192.0.2.1"), told(service=None, uri="tls://u:hunter2@192.0.2.1")):
            self.assertNotIn("hunter2", repr(found) + str(found.members))

    def test_of_alternatives_the_first_is_told(self) -> None:
        targets = tuple(parse_route("web", text) for text in ("tcp://192.0.2.1:80", "tcp://192.0.2.2:80"))
        found = told(routes=Routes({}, {"web": (Choice(targets),)}))
        self.assertIn(("route", "web = tcp://192.0.2.1:80 or tcp://192.0.2.2:80"), lines(found))
        self.assertEqual(found.verdict and found.verdict.addresses, (address("192.0.2.1"),))

    def test_every_rule_up_to_the_one_that_decides_with_its_number_and_place_and_why_not(self) -> None:
        found = told(
            "deny out x any", "deny out web tls:any", "allow out web any for uid:7", "allow out web any",
            pairs="web tcp://192.0.2.1:80",
        )  # fmt: skip
        rules = [(s.number, s.source, s.matches, s.why) for s in found.steps if s.step == "rule"]
        self.assertEqual(
            rules,
            [
                (1, "rules:1", "no", "another service"),
                (2, "rules:2", "no", "another scheme"),
                (3, "rules:3", "no", "somebody else"),
                (4, "rules:4", "yes", ""),
            ],
        )

    def test_the_service_that_the_far_side_is_asked_for_has_its_rules_too(self) -> None:
        found = told("allow out web any", "deny out secret any", pairs="web tcp://192.0.2.1:80/secret")
        self.assertIn(("service", "the far side is asked for secret: that has to pass too"), lines(found))
        self.assertEqual([s.number for s in found.steps if s.step == "rule"], [1, 1, 2])
        assert found.refusal is not None
        self.assertIs(found.refusal.word, Refusal.DENIED)

    def test_a_local_service_by_its_bare_name_is_the_lookup_of_that_name(self) -> None:
        for uri in ("unix:///web", "unix://web", "web"):
            found = told("allow out web unix:web", "deny out any any", service=None, uri=uri, mode="local")
            self.assertIsNone(found.refusal, uri)

    def test_what_only_logs_is_told(self) -> None:
        for found in (told("log out web any"), told("deny out web any", audit_only=True)):
            self.assertEqual(found.members["would"], "denied")
            self.assertIn("refusals are only logged", "".join(text for _, text in lines(found)))

    def test_who_may_serve(self) -> None:
        found = told("allow serve web for uid:7", direction=Direction.SERVE, subject=Subject(uid=8))
        assert found.refusal is not None
        self.assertIn("to serve a name takes a rule: allow serve web", found.refusal.reason)
        self.assertEqual(lines(found)[-2][0], "rule")

    def test_a_redirect_to_a_reserved_name_or_a_pair_that_is_no_uri_is_told_as_its_refusal(self) -> None:
        for pairs, word in (("web tcp://h:99999", Refusal.BAD_REQUEST), ("web tcp://h/ipc", Refusal.DENIED)):
            found = told(pairs=pairs)
            assert found.refusal is not None
            self.assertEqual((found.refusal.word, lines(found)), (word, [("who", "who asks")]))

    def test_a_mode_that_is_not_possible(self) -> None:
        found = told(mode=Refused(Refusal.NOT_POSSIBLE, "it cannot be"))
        self.assertEqual((found.members["granted"], found.members["word"]), (False, "not-possible"))

    def test_an_endpoint_whose_addresses_would_decide(self) -> None:
        routes = Routes({}, {"web": (Choice((Endpoint("tls:web.example:443"),)),)})
        found = told("deny out web tls:192.0.2.0/24", routes=routes)
        assert found.refusal is not None
        self.assertEqual(found.refusal.word, Refusal.DENIED)
        self.assertIn("a rule for addresses comes first", found.refusal.reason)


class Names(SynchronousTestCase):
    """A name is resolved only where a lookup would."""

    addresses = (address("192.0.2.1"), address("2001:db8::1"))

    @each(
        ("by_name", ("deny out web tcp:web.example",)),
        ("by_service", ("deny out web any",)),
        ("before_an_address", ("deny out web any", "allow out web tcp:192.0.2.1")),
        ("by_suffix", ("deny out any tcp:*.example",)),
    )
    def test_what_is_refused_without_it_needs_none(self, _: str, rules: tuple[str, ...]) -> None:
        found = told(*rules, pairs="web tcp://web.example:80")
        self.assertIn(("addresses", "not resolved: its name is enough"), lines(found))
        self.assertIsNotNone(found.refusal)

    @each(
        ("allowed_by_name", ("allow out web tcp:web.example",), True),
        ("an_address_first", ("deny out web tcp:192.0.2.9", "deny out web tcp:web.example"), False),
        ("nothing", (), True),
    )
    def test_the_rest_is_resolved_and_each_address_is_told(self, _: str, rules: tuple[str, ...], granted: bool) -> None:
        found = told(*rules, pairs="web tcp://web.example:80", answers={"web.example": self.addresses})
        self.assertIn(("addresses", "192.0.2.1, 2001:db8::1"), lines(found))
        self.assertEqual(found.refusal is None, granted)

    def test_a_confined_client_s_name_is_refused_by_the_default_alone(self) -> None:
        self.assertIsNotNone(told(pairs="web tcp://web.example:80", subject=CAGED).refusal)

    def test_one_without_an_address_is_that_refusal(self) -> None:
        gone = Refused(Refusal.UNREACHABLE, "web.example has no address")
        found = told(pairs="web tcp://web.example:80", answers={"web.example": gone})
        self.assertIs(found.refusal, gone)
        self.assertEqual(lines(found)[-1], ("addresses", "web.example has no address"))

    def test_rules_that_differ_by_address_are_told_for_each(self) -> None:
        found = told(
            "deny out web tcp:192.0.2.0/24", "allow out web any",
            pairs="web tcp://web.example:80", answers={"web.example": self.addresses},
        )  # fmt: skip
        self.assertEqual([text for step, text in lines(found) if step == "address"], ["192.0.2.1", "2001:db8::1"])
        self.assertEqual([s.number for s in found.steps if s.step == "rule"], [1, 1, 2])
        self.assertEqual(found.verdict and found.verdict.addresses, (address("2001:db8::1"),))

    def test_of_hundreds_some_are_told_and_the_one_that_is_connected_to(self) -> None:
        many = tuple(address(f"192.0.2.{n}") for n in range(1, 250))
        found = told(
            *(f"deny out web tcp:192.0.2.{n}" for n in range(1, 249)), "allow out web any",
            pairs="web tcp://web.example:80", answers={"web.example": many},
        )  # fmt: skip
        addresses = [text for step, text in lines(found) if step == "address"]
        self.assertEqual(addresses[-2:], ["192.0.2.249", f"{249 - ADDRESSES} more, each judged likewise"])
        self.assertEqual(len(addresses), ADDRESSES + 2)
        listed = next(text for step, text in lines(found) if step == "addresses")
        self.assertTrue(listed.endswith(f", and {249 - LISTED} more"))

    def test_an_address_is_not_asked_for_again(self) -> None:
        found = told("allow out web any", pairs="web tcp://192.0.2.1:80")
        self.assertNotIn("addresses", dict(lines(found)))


class Callers(SynchronousTestCase):
    def test_one_that_may_come_in_has_the_mode_of_its_local_service(self) -> None:
        found = told("allow in web tcp:192.0.2.0/24", direction=Direction.IN, subject=CALLER)
        self.assertEqual(lines(found)[-2:], [("route", "the local service web"), ("mode", "locked")])

    def test_one_that_may_not_is_told_no_way(self) -> None:
        routes = Routes({}, {"web": (Choice((parse_route("web", "tcp://far.example"),)),)})
        found = told(direction=Direction.IN, subject=CALLER, routes=routes)
        self.assertEqual([step for step, _ in lines(found)], ["who", "default"])

    def test_the_way_on_passes_the_out_rules(self) -> None:
        routes = Routes({}, {"web": (Choice((parse_route("web", "tcp://192.0.2.9:80"),)),)})
        rules = ("allow in web any", "deny out web tcp:192.0.2.9")
        found = told(*rules, direction=Direction.IN, subject=CALLER, routes=routes, mode="relayed")
        self.assertEqual([s.number for s in found.steps if s.step == "rule"], [1, 1, 2])
        self.assertEqual(found.verdict and found.verdict.number, 2)

    def test_the_route_for_every_name_is_not_for_them(self) -> None:
        routes = Routes({}, {"*": (Choice((parse_route("*", "tcp://192.0.2.9:80"),)),)})
        found = told("allow in web any", direction=Direction.IN, subject=CALLER, routes=routes)
        self.assertIn(("route", "the local service web"), lines(found))

    def test_what_is_only_logged_on_the_way_in_is_told_though_the_way_on_is_allowed(self) -> None:
        routes = Routes({"web": (Choice((parse_redirect("web", "tcp://192.0.2.9:80"),)),)})
        rules = ("log in web any", "allow out web tcp:192.0.2.9:80")
        found = told(*rules, direction=Direction.IN, subject=CALLER, routes=routes, mode="relayed")
        self.assertEqual((found.members["granted"], found.members["would"]), (True, "denied"))

    def test_a_listener_that_leads_to_itself_is_what_the_mode_refuses(self) -> None:
        routes = Routes({}, {"web": (Choice((parse_route("web", "tcp://192.0.2.9:80"),)),)})
        rules = ("allow in web any", "allow out web tcp:192.0.2.9:80")
        here = Refused(Refusal.NOT_POSSIBLE, "this very process listens")
        found = told(*rules, direction=Direction.IN, subject=CALLER, routes=routes, mode=here)
        self.assertIs(found.refusal, here)


class Many(SynchronousTestCase):
    """With many rules some are told, and it is said how many are not."""

    def rules_told(self, found: Explanation) -> tuple[list[int | None], list[str]]:
        return (
            [s.number for s in found.steps if s.step == "rule"],
            [s.text for s in found.steps if s.step == "rules"],
        )

    def test_more_than_are_told_leave_those_of_other_services_out_first(self) -> None:
        rules = [f"deny out service{n} any" for n in range(TRIED)] + ["deny out web tls:any", "allow out web any"]
        numbers, said = self.rules_told(told(*rules, pairs="web tcp://192.0.2.1:80"))
        self.assertEqual(numbers, [TRIED + 1, TRIED + 2])
        self.assertEqual(said, [f"{TRIED} more were tried, and do not match"])

    def test_of_very_many_only_those_that_may_match_are_looked_at(self) -> None:
        rules = [f"deny out service{n} any" for n in range(2 * MANY)] + ["deny out web tls:any", "allow out web any"]
        looked_at: list[int] = []

        def count(policy: Policy, question: Question) -> Any:
            looked_at.append(len(policy.rules))
            return tried(policy, question)

        self.patch(module, "tried", count)
        numbers, said = self.rules_told(told(*rules, pairs="web tcp://192.0.2.1:80"))
        self.assertEqual(numbers, [2 * MANY + 1, 2 * MANY + 2])
        self.assertEqual(said, [f"{2 * MANY} more were tried, and do not match"])
        self.assertEqual(looked_at, [2])

    def test_where_none_decides_all_were_tried(self) -> None:
        rules = [f"deny out service{n} any" for n in range(MANY + 1)]
        numbers, said = self.rules_told(told(*rules))
        self.assertEqual((numbers, said), ([], [f"{MANY + 1} more were tried, and do not match"]))

    def test_the_address_that_needs_naming_is_why(self) -> None:
        rules = [f"deny out service{n} any" for n in range(MANY)] + ["allow out web any"]
        found = told(*rules, pairs="web tcp://169.254.169.254")
        (last,) = [s for s in found.steps if s.step == "rule"]
        self.assertEqual((last.number, last.matches), (MANY + 1, "no"))
        self.assertIn("it does not name", last.why)


padding = [parse_rule(f"deny out padding{n} tcp:198.51.100.{n % 200}:9") for n in range(MANY + 1)]


class Properties(SynchronousTestCase):
    """What is told is what is decided."""

    def check(self, policy: Policy, question: Question) -> None:
        verdict = decide(policy, question)
        steps = module._rules_tried(policy, question)
        matching = [step for step in steps if step.step == "rule" and step.matches != Match.NO.value]
        if verdict.number is not None:
            self.assertEqual([step.number for step in matching], [verdict.number])
        elif verdict.granted is None:
            self.assertEqual([step.matches for step in matching], ["maybe"])
        else:
            self.assertEqual(matching, [])

    @PROPERTY
    @given(policies(most=12), questions())
    def test_the_last_rule_that_is_told_decides(self, policy: Policy, question: Question) -> None:
        if question.to.addresses is None or len(question.to.addresses) == 1:
            self.check(policy, question)

    @PROPERTY
    @given(policies(least=1, most=12), questions(), st.integers(0, 12))
    def test_and_so_it_is_among_hundreds(self, policy: Policy, question: Question, at: int) -> None:
        if question.to.addresses is None or len(question.to.addresses) == 1:
            rules = [*policy.rules[:at], *padding, *policy.rules[at:]]
            self.check(Policy(tuple(rules), policy.defaults, policy.own_addresses), question)


class Members(SynchronousTestCase):
    def test_a_grant_as_json(self) -> None:
        found = told("allow out web any", pairs="web tcp://192.0.2.1:80").members
        steps = found.pop("steps")
        self.assertEqual(
            found,
            {
                "granted": True,
                "word": "",
                "reason": "rule 1 allows it",
                "mode": "locked",
                "would": "",
                "rule": {"number": 1, "text": "allow out web any", "source": "rules:1"},
            },
        )
        self.assertEqual(steps[0], {"step": "who", "text": "who asks"})
        self.assertEqual(
            steps[2],
            {
                "step": "rule",
                "text": "allow out web any",
                "number": 1,
                "source": "rules:1",
                "matches": "yes",
                "why": "",
            },
        )

    def test_a_refusal_as_json(self) -> None:
        found = told(pairs="web tcp://192.0.2.1:80", defaults={**DEFAULTS, Direction.OUT: False}).members
        self.assertEqual((found["granted"], found["word"], found["mode"]), (False, "denied", ""))
        self.assertEqual(found["rule"], {"number": None, "text": "default out=deny", "source": ""})
        self.assertIn("allow out web tcp:192.0.2.1:80", found["reason"])

    def test_every_mode_is_a_word(self) -> None:
        self.assertEqual(told(mode=Mode.RELAYED.value).members["mode"], "relayed")
