"""plumberd.pure.policy.decide: the one decision, and what no policy may ever do."""

from __future__ import annotations

import dataclasses
import ipaddress
import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import Zone, zone
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, Verdict, both, decide
from plumberd.pure.policy.rule import Destination, Direction, Match, Peer, Rule, matches, parse_rule
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.arguments import group
from tests.strategies import DANGEROUS, FEW, OWN, cases, questions, rules
from tests.tables import PROPERTY, each

IN, OUT = Direction.IN, Direction.OUT
OPENNESS = {False: 0, None: 1, True: 2}


def policy(*lines: str, out: bool = True, inward: bool = False) -> Policy:
    """Return the policy of these rules."""
    return Policy(tuple(map(parse_rule, lines)), {IN: inward, OUT: out}, OWN)


def ask(text: str, *known: str, service: str | None = "pong", confined: bool = False, way: Direction = OUT) -> Question:
    """Ask about ``scheme://host:port``, or ``unix:name``, with the *known* addresses."""
    scheme, rest = text.split(":", 1)
    if scheme == "unix":
        return Question(way, service, Destination(scheme, rest, None, None), confined)
    host, port = rest.removeprefix("//").rsplit(":", 1)
    own = Uri(scheme, host.strip("[]"), int(port)).address
    found = (own,) if own else tuple(map(ipaddress.ip_address, known))
    return Question(way, service, Destination(scheme, None if own else host, found or None, int(port)), confined)


def caller(address: str, service: str = "pong", scheme: str = "tcp", name: str | None = None) -> Question:
    """Ask about a peer that comes in from *address*, having proved *name*."""
    return Question(IN, service, Destination(scheme, name, (ipaddress.ip_address(address),), 51234))


def about(question: Question, known: tuple[IPAddress, ...] | None) -> Question:
    """Return *question* with *known* for its addresses."""
    return dataclasses.replace(question, to=dataclasses.replace(question.to, addresses=known))


def in_front(rule: Rule, behind: Policy) -> Policy:
    """Return *behind* with *rule* in front of its own."""
    return dataclasses.replace(behind, rules=(rule, *behind.rules))


class Defaults(SynchronousTestCase):
    def test_nothing_comes_in_and_an_unconfined_client_may_dial_out(self) -> None:
        self.assertEqual(dict(DEFAULTS), {IN: False, OUT: True})
        self.assertEqual(Policy().defaults, DEFAULTS)

    @each(
        ("caller", caller("192.0.2.1"), False, "default in=deny"),
        ("dialling", ask("tcp://example.com:80"), True, "default out=allow"),
        ("dialling_a_known_address", ask("tcp://192.0.2.1:80"), True, "default out=allow"),
        ("loopback", ask("tcp://127.0.0.1:80"), True, "default out=allow"),
        ("the_machine_s_own", ask("tcp://192.0.2.7:80"), True, "default out=allow"),
        ("local_service", ask("unix:pong"), True, "default for local services"),
        ("confined", ask("tcp://example.com:80", confined=True), False, "default for confined clients"),
        ("confined_local", ask("unix:pong", confined=True), False, "default for confined clients"),
    )
    def test_without_rules_the_defaults_decide(self, _: str, question: Question, granted: bool, rule: str) -> None:
        verdict = decide(policy(), question)
        self.assertEqual((verdict.granted, verdict.rule), (granted, rule))

    @each(
        ("dialling", ask("tcp://example.com:80"), False),
        ("local_service", ask("unix:pong"), True),
        ("confined_local", ask("unix:pong", confined=True), False),
    )
    def test_out_deny_takes_dialling_away_but_not_the_local_services(
        self, _: str, question: Question, granted: bool
    ) -> None:
        self.assertEqual(decide(policy(out=False), question).granted, granted)

    def test_out_allow_is_no_rule_for_a_confined_client(self) -> None:
        self.assertIs(decide(policy(out=True), ask("tcp://example.com:80", confined=True)).granted, False)

    def test_in_allow_lets_everybody_in(self) -> None:
        verdict = decide(policy(inward=True), caller("192.0.2.1"))
        self.assertEqual(
            verdict,
            Verdict(
                True,
                "default in=allow",
                "no rule matches, and the default lets it through",
                addresses=(ipaddress.ip_address("192.0.2.1"),),
            ),
        )

    def test_a_route_that_does_what_the_client_could_not_needs_a_rule(self) -> None:
        for scheme in ("unix", "tls", "systemd"):
            for confined in (False, True):
                question = Question(OUT, "pong", Destination(scheme, None, None, None, True), confined)
                self.assertIs(decide(policy(), question).granted, False)
                self.assertIs(decide(policy("allow out other any", "allow out any tcp:any"), question).granted, False)
                self.assertIs(decide(policy("allow out pong any"), question).granted, True)

    @each(
        ("confined", policy(), ask("tcp://example.com:80", confined=True)),
        ("confined_local", policy(), ask("unix:pong", confined=True)),
        ("confined_without_service", policy(), ask("tcp://192.0.2.1:80", confined=True, service=None)),
        ("out", policy(out=False), ask("tls://[2001:db8::1]:443")),
        ("in", policy(), caller("192.0.2.1")),
    )
    def test_a_refusal_by_default_names_a_rule_that_helps(self, _: str, found: Policy, question: Question) -> None:
        verdict = decide(found, question)
        self.assertIs(verdict.granted, False)
        proposed = parse_rule("allow " + verdict.reason.rpartition("allow ")[2])
        self.assertIs(decide(in_front(proposed, found), question).granted, True)


class First(SynchronousTestCase):
    @each(
        ("allow_first", ("allow out pong any", "deny out pong any"), True),
        ("deny_first", ("deny out pong any", "allow out pong any"), False),
        ("another_service_first", ("deny out audio any", "allow out pong any"), True),
        ("another_scheme_first", ("deny out any tls:any", "allow out any tcp:any"), True),
        ("another_port_first", ("deny out any tcp:example.com:81", "allow out any tcp:example.com"), True),
        ("the_other_direction_first", ("deny in any any", "allow out any any"), True),
    )
    def test_the_first_rule_that_matches_decides(self, _: str, lines: tuple[str, ...], granted: bool) -> None:
        for out in (True, False):
            self.assertIs(decide(policy(*lines, out=out), ask("tcp://example.com:80")).granted, granted)

    def test_the_verdict_names_the_rule_its_words_its_place_and_its_mode(self) -> None:
        first = parse_rule("deny out audio *")
        second = parse_rule("allow  out pong * handover=relayed", "plumberd.toml:7")
        verdict = decide(Policy((first, second)), ask("tcp://example.com:80"))
        self.assertEqual(
            verdict,
            Verdict(True, "2: allow  out pong * handover=relayed", "rule 2 (plumberd.toml:7) allows it", Mode.RELAYED),
        )

    def test_a_lookup_that_names_no_service_matches_rules_for_any_alone(self) -> None:
        question = ask("tcp://example.com:80", service=None)
        self.assertIs(decide(policy("allow out pong any", out=False), question).granted, False)
        self.assertIs(decide(policy("allow out any tcp:any", out=False), question).granted, True)


class DocumentedCommandLines(SynchronousTestCase):
    def rules_of(self, words: Sequence[str]) -> Policy:
        """Return the policy of a command line's words."""
        lines = [word.removeprefix("--").replace("=", " ", 1) for word in group(words)]
        return policy(*lines)

    def test_the_three_rules_of_the_first_do_what_they_say(self) -> None:
        found = self.rules_of(
            [
                *("--allow", "in", "authd", "tls:example.com"),
                *("--deny", "in", "*", "*"),
                *("--allow", "out", "pong", "tls:pong.example.com:9000"),
            ]
        )
        for question, granted, number in (
            (caller("192.0.2.1", "authd", "tls", "example.com"), True, "1"),
            (caller("192.0.2.1", "authd", "tls", "evil.example"), False, "2"),
            (caller("192.0.2.1", "authd", "tls"), False, "2"),
            (caller("192.0.2.1", "authd"), False, "2"),
            (caller("192.0.2.1", "pong", "tls", "example.com"), False, "2"),
            (ask("tls://pong.example.com:9000", confined=True), True, "3"),
            (ask("tls://pong.example.com:9001", confined=True), False, "d"),
            (ask("tls://pong.example.com:9000", service="audio", confined=True), False, "d"),
            (ask("tls://elsewhere.example:9000"), True, "d"),
        ):
            verdict = decide(found, question)
            self.assertEqual((verdict.granted, verdict.rule[0]), (granted, number), str(question))

    def test_rules_see_the_service_of_the_second_before_it_is_redirected(self) -> None:
        question = ask("unix:nextversion-authd", service="authd", confined=True)
        self.assertIs(decide(policy("allow out authd unix:nextversion-authd"), question).granted, True)
        self.assertIs(decide(policy("allow out nextversion-authd any"), question).granted, False)

    def test_the_route_of_the_third_is_open_by_default_and_closed_by_one_rule(self) -> None:
        question = ask("tls://example.com:9000", service="authd")
        self.assertIs(decide(policy(), question).granted, True)
        self.assertIs(decide(policy("deny out authd tls:example.com"), question).granted, False)


class WithoutAddresses(SynchronousTestCase):
    @each(
        ("plain_deny", ("deny out any tcp:example.com",), False),
        ("plain_deny_behind_what_does_not_match", ("allow out x any", "deny out any tcp:any"), False),
        ("deny_by_address", ("deny out any tcp:192.0.2.1",), None),
        ("allow_by_address", ("allow out any tcp:192.0.2.1",), None),
        ("deny_behind_an_allow_by_address", ("allow out any tcp:192.0.2.1", "deny out any any"), None),
        ("deny_behind_one_of_another_port", ("allow out any tcp:192.0.2.1:81", "deny out any any"), False),
        ("deny_behind_a_deny_by_address", ("deny out any tcp:192.0.2.1", "deny out any any"), None),
        ("allow_by_name_in_front", ("allow out any tcp:example.com", "deny out any tcp:192.0.2.1"), True),
        ("nothing_matches", ("deny out any tls:any",), True),
    )
    def test_it_is_refused_only_where_no_address_could_change_that(
        self, _: str, lines: tuple[str, ...], granted: bool | None
    ) -> None:
        self.assertIs(decide(policy(*lines), ask("tcp://example.com:80")).granted, granted)

    def test_a_default_that_refuses_needs_no_addresses(self) -> None:
        self.assertIs(decide(policy(out=False), ask("tcp://example.com:80")).granted, False)
        self.assertIs(decide(policy(), ask("tcp://example.com:80", confined=True)).granted, False)

    def test_a_caller_without_address_is_not_let_in_by_a_rule_by_address(self) -> None:
        question = Question(IN, "pong", Destination("tcp", None, None, None))
        self.assertFalse(decide(policy("allow in any tcp:192.0.2.1"), question).granted)
        self.assertFalse(decide(policy("deny in any tcp:192.0.2.1", "allow in any any"), question).granted)

    @PROPERTY
    @given(cases())
    def test_the_first_rule_that_is_not_a_no_says_what_is_known(self, case: tuple[Policy, Question]) -> None:
        found, question = case
        question = about(question, None)
        verdict = decide(found, question)
        for rule in found.rules:
            match = matches(rule, question.direction, question.service, question.to)
            if match is not Match.NO:
                self.assertIs(verdict.granted, None if match is Match.MAYBE else rule.allow)
                return
        self.assertIn("default", verdict.rule)

    @PROPERTY
    @given(cases(), st.lists(FEW.addresses, min_size=1, max_size=3, unique=True))
    def test_what_is_refused_without_addresses_is_refused_with_any(
        self, case: tuple[Policy, Question], known: list[IPAddress]
    ) -> None:
        found, question = case
        early, late = decide(found, about(question, None)), decide(found, about(question, tuple(known)))
        self.assertIsNotNone(late.granted)
        if early.granted is False:
            self.assertIs(late.granted, False)
        if early.granted and all(zone(address) is Zone.ORDINARY and address not in OWN for address in known):
            self.assertIs(late.granted, True)


DANGERS = ("169.254.169.254", "169.254.3.4", "fd00:ec2::254", "100.100.100.200", "224.0.0.1", "0.0.0.0", "fe80::1")
NEARS = ("127.0.0.1", "::1", "192.0.2.7", "64:ff9b::7f00:1", "64:ff9b::192.0.2.7")


class AddressesThatNeedARule(SynchronousTestCase):
    @each(*((text,) for text in DANGERS))
    def test_a_dangerous_one_is_refused_without_a_rule_by_address(self, text: str) -> None:
        host = f"[{text}]" if ":" in text else text
        for question in (ask("tcp://a.example:80", text), ask(f"tcp://{host}:80")):
            for peer in ("any", "tcp:any", "tcp:a.example", "tcp:a.example:80"):
                line = f"allow out any {peer}"
                verdict = decide(policy(line), question)
                self.assertIs(verdict.granted, False, line)
                self.assertIn("it needs a rule that names it", verdict.reason)

    @each(*((text,) for text in DANGERS))
    def test_a_rule_by_address_opens_it(self, text: str) -> None:
        host = f"[{text}]" if ":" in text else text
        for question in (ask("tcp://a.example:80", text), ask(f"tcp://{host}:80")):
            self.assertIs(decide(policy(f"allow out any tcp:{host}"), question).granted, True)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:80"), question).granted, True)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:81"), question).granted, False)

    @each(*((text,) for text in (*DANGERS, *NEARS)))
    def test_a_confined_client_s_rule_has_to_name_the_port_too(self, text: str) -> None:
        host = f"[{text}]" if ":" in text else text
        for question in (ask("tcp://a.example:80", text, confined=True), ask(f"tcp://{host}:80", confined=True)):
            for line in ("allow out any any", "allow out any tcp:a.example:80", f"allow out any tcp:{host}"):
                verdict = decide(policy(line), question)
                self.assertIs(verdict.granted, False, line)
                self.assertIn("it needs a rule that names it and its port", verdict.reason)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:80"), question).granted, True)

    @each(*((text,) for text in NEARS))
    def test_loopback_and_the_machine_s_own_are_ordinary_to_an_unconfined_client(self, text: str) -> None:
        question = ask("tcp://a.example:80", text)
        self.assertIs(decide(policy(), question).granted, True)
        self.assertIs(decide(policy("allow out any tcp:a.example", out=False), question).granted, True)
        self.assertIs(decide(policy(out=False), question).granted, False)

    @each(
        ("127.0.0.1", "tcp:127.0.0.1:80 is a loopback address: it needs a rule that names it and its port"),
        ("192.0.2.7", "tcp:192.0.2.7:80 is this machine's own address: it needs a rule that names it and its port"),
        ("169.254.169.254", "tcp:169.254.169.254:80 is a metadata address: it needs a rule that names it and its port"),
        ("0.0.0.0", "tcp:0.0.0.0:80 is an unspecified address: it needs a rule that names it and its port"),
        ("169.254.3.4", "tcp:169.254.3.4:80 is a link-local address: it needs a rule that names it and its port"),
    )
    def test_the_reason_says_what_kind_of_address_it_is(self, text: str, reason: str) -> None:
        self.assertEqual(decide(policy(), ask(f"tcp://{text}:80", confined=True)).reason, reason)

    def test_an_ordinary_address_needs_no_rule_by_address_even_from_a_confined_client(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.1", confined=True)
        self.assertIs(decide(policy("allow out any tcp:a.example"), question).granted, True)

    def test_a_rule_that_does_not_open_it_leaves_it_to_a_later_one_that_does(self) -> None:
        question = ask("tcp://a.example:80", "169.254.3.4")
        self.assertEqual(decide(policy("allow out any any", "allow out any tcp:169.254.3.4"), question).rule[0], "2")
        self.assertIs(
            decide(policy("allow out any any", "deny out any any", "allow out any tcp:169.254.3.4"), question).granted,
            False,
        )

    def test_a_deny_closes_a_dangerous_address_as_any_other(self) -> None:
        question = ask("tcp://a.example:80", "169.254.3.4")
        verdict = decide(policy("deny out any tcp:a.example", "allow out any tcp:169.254.3.4"), question)
        self.assertEqual((verdict.granted, verdict.rule[0]), (False, "1"))

    @each(("metadata", "169.254.169.254"), ("loopback", "127.0.0.1"))
    def test_where_a_peer_comes_from_needs_no_such_rule(self, _: str, text: str) -> None:
        self.assertIs(decide(policy("allow in pong any"), caller(text)).granted, True)

    def test_a_deny_by_address_closes_its_other_spellings_too(self) -> None:
        found = policy("deny out any tcp:203.0.113.9")
        for text in ("::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2002:cb00:7109::1", "::203.0.113.9"):
            self.assertIs(decide(found, ask("tcp://a.example:80", text)).granted, False, text)
        self.assertIs(decide(found, ask("tcp://a.example:80", "64:ff9b::203.0.113.8")).granted, True)


class SeveralAddresses(SynchronousTestCase):
    def test_those_that_pass_pass_in_their_order(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.3", "169.254.169.254", "192.0.2.1", "192.0.2.2")
        verdict = decide(policy("deny out any tcp:192.0.2.1"), question)
        self.assertIs(verdict.granted, True)
        self.assertEqual(verdict.addresses, (ipaddress.ip_address("192.0.2.3"), ipaddress.ip_address("192.0.2.2")))

    def test_where_none_passes_the_first_refusal_is_told(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.1", "169.254.169.254")
        verdict = decide(policy("deny out any tcp:192.0.2.1"), question)
        self.assertEqual(verdict, Verdict(False, "1: deny out any tcp:192.0.2.1", "rule 1 denies it"))

    def test_one_connection_has_one_mode(self) -> None:
        found = policy(
            "allow out any tcp:192.0.2.1 handover=locked",
            "allow out any tcp:192.0.2.3 handover=locked",
            "allow out any any handover=relayed",
        )
        verdict = decide(found, ask("tcp://a.example:80", "192.0.2.1", "192.0.2.2", "192.0.2.3"))
        self.assertEqual(verdict.handover, Mode.LOCKED)
        self.assertEqual(verdict.addresses, (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.3")))

    @PROPERTY
    @given(cases())
    def test_an_address_passes_only_if_it_passes_alone(self, case: tuple[Policy, Question]) -> None:
        found, question = case
        verdict = decide(found, question)
        alone = {address: decide(found, about(question, (address,))) for address in question.to.addresses or ()}
        for address in verdict.addresses:
            self.assertEqual((alone[address].granted, alone[address].handover), (True, verdict.handover))
        if alone:
            self.assertEqual(verdict.granted, any(one.granted for one in alone.values()))
            self.assertEqual(bool(verdict.addresses), verdict.granted)


class NoPolicy(SynchronousTestCase):
    @PROPERTY
    @given(questions(), st.booleans())
    def test_without_a_rule_lets_anybody_in_or_a_confined_client_out(self, question: Question, out: bool) -> None:
        granted = decide(policy(out=out), question).granted
        if question.direction is IN or question.confined:
            self.assertIs(granted, False)
        elif question.to.scheme == "unix":
            self.assertIs(granted, True)
        elif not out:
            self.assertIs(granted, False)

    @PROPERTY
    @given(cases(), rules(allow=False))
    def test_is_opened_by_a_deny_in_front(self, case: tuple[Policy, Question], deny: Rule) -> None:
        found, question = case
        before, after = decide(found, question), decide(in_front(deny, found), question)
        if question.to.addresses:
            self.assertLessEqual(OPENNESS[after.granted], OPENNESS[before.granted])
        if before.granted is not True:  # it may take the addresses to tell, but it stays closed
            self.assertIsNot(after.granted, True)

    @PROPERTY
    @given(cases(), rules(allow=True))
    def test_is_closed_by_an_allow_in_front(self, case: tuple[Policy, Question], allow: Rule) -> None:
        found, question = case
        if question.to.addresses:
            before, after = decide(found, question), decide(in_front(allow, found), question)
            self.assertGreaterEqual(OPENNESS[after.granted], OPENNESS[before.granted])

    @PROPERTY
    @given(cases(), rules(), st.integers(0, 5))
    def test_is_changed_by_a_rule_that_speaks_of_something_else(
        self, case: tuple[Policy, Question], rule: Rule, place: int
    ) -> None:
        """So no rule changes a default, in its own direction or in the other one."""
        found, question = case
        addresses = question.to.addresses
        asked = [about(question, (one,)).to for one in addresses] if addresses else [question.to]
        if any(matches(rule, question.direction, question.service, to) is not Match.NO for to in asked):
            return
        more = dataclasses.replace(found, rules=(*found.rules[:place], rule, *found.rules[place:]))
        before, after = decide(found, question), decide(more, question)
        self.assertEqual(
            (after.granted, after.handover, after.addresses), (before.granted, before.handover, before.addresses)
        )
        if "default" in before.rule:
            self.assertEqual((after.rule, after.reason), (before.rule, before.reason))

    @PROPERTY
    @given(cases())
    def test_gives_a_confined_client_more_than_an_unconfined_one(self, case: tuple[Policy, Question]) -> None:
        found, question = case
        confined = decide(found, dataclasses.replace(question, confined=True))
        unconfined = decide(found, dataclasses.replace(question, confined=False))
        self.assertLessEqual(OPENNESS[confined.granted], OPENNESS[unconfined.granted])

    @PROPERTY
    @given(cases())
    def test_takes_a_dangerous_address_for_another(self, case: tuple[Policy, Question]) -> None:
        found, question = case
        verdict = decide(found, question)
        for address in verdict.addresses:
            if question.direction is OUT and zone(address) not in (Zone.ORDINARY, Zone.LOOPBACK):
                self.assertIn(address, [rule.peer.address for rule in found.rules if rule.allow])

    @PROPERTY
    @given(cases())
    def test_grants_where_no_rule_and_no_default_does(self, case: tuple[Policy, Question]) -> None:
        found, question = case
        denying = [dataclasses.replace(rule, allow=False, handover=None) for rule in found.rules]
        closed = Policy(tuple(denying), {IN: False, OUT: False}, OWN)
        if question.to.scheme != "unix" or question.confined or question.direction is IN:
            self.assertIsNot(decide(closed, question).granted, True)


class Order(SynchronousTestCase):
    def assert_order_does_not_matter(self, drawn: list[Rule], question: Question) -> None:
        """Decide under every order of the rules."""
        verdicts = [decide(Policy(order, DEFAULTS, OWN), question) for order in itertools.permutations(drawn)]
        self.assertEqual(len({(one.granted, one.handover, one.addresses) for one in verdicts}), 1)

    @PROPERTY
    @given(st.lists(rules(), min_size=2, max_size=3), st.integers(0, 2), questions())
    def test_of_rules_for_different_services_never_matters(
        self, found: list[Rule], asked: int, question: Question
    ) -> None:
        drawn = [dataclasses.replace(rule, service=f"service{number}") for number, rule in enumerate(found)]
        self.assert_order_does_not_matter(drawn, dataclasses.replace(question, service=f"service{asked}"))

    @PROPERTY
    @given(
        st.lists(st.sampled_from(DANGEROUS[:-1]), min_size=2, max_size=4, unique=True),
        st.lists(st.tuples(st.booleans(), st.sampled_from((None, 80))), min_size=4, max_size=4),
        st.lists(st.sampled_from(DANGEROUS[:-1]), max_size=3, unique=True),
        st.booleans(),
    )
    def test_of_rules_for_different_addresses_never_matters(
        self, named: list[IPAddress], kinds: list[tuple[bool, int | None]], known: list[IPAddress], confined: bool
    ) -> None:
        drawn = [
            Rule(allow, OUT, None, Peer("tcp", None, address, port))
            for address, (allow, port) in zip(named, kinds, strict=False)
        ]
        to = Destination("tcp", "a.example", tuple(known) or None, 80)
        self.assert_order_does_not_matter(drawn, Question(OUT, "pong", to, confined))


class Twice(SynchronousTestCase):
    """A connection that has to pass for two services."""

    YES = Verdict(True, "1", "yes")
    NO = Verdict(False, "2", "no")
    LATER = Verdict(None, "", "later")

    @each(
        ("yes_yes", YES, YES, True),
        ("yes_no", YES, NO, False),
        ("no_yes", NO, YES, False),
        ("later_no", LATER, NO, False),
        ("no_later", NO, LATER, False),
        ("later_yes", LATER, YES, None),
        ("yes_later", YES, LATER, None),
    )
    def test_it_is_granted_only_where_both_are(
        self, _: str, first: Verdict, second: Verdict, granted: bool | None
    ) -> None:
        self.assertIs(both(first, second).granted, granted)

    def test_only_addresses_that_pass_both_are_left(self) -> None:
        one, two, three = (ipaddress.ip_address(f"192.0.2.{n}") for n in (1, 2, 3))
        first = dataclasses.replace(self.YES, addresses=(one, two))
        self.assertEqual(both(first, dataclasses.replace(self.YES, addresses=(two, three))).addresses, (two,))
        neither = both(first, dataclasses.replace(self.YES, addresses=(three,)))
        self.assertEqual((neither.granted, neither.addresses), (False, ()))

    @each((None, None, None), (Mode.DIRECT, None, Mode.DIRECT), (Mode.DIRECT, Mode.LOCKED, Mode.LOCKED))
    def test_the_strictest_wish_holds(self, one: Mode | None, other: Mode | None, wanted: Mode | None) -> None:
        first, second = (dataclasses.replace(self.YES, handover=wish) for wish in (one, other))
        self.assertIs(both(first, second).handover, wanted)
        self.assertIs(both(second, first).handover, wanted)
