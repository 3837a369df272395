"""plumberd.pure.policy.foregone: what is decided whoever asks."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, decide
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.foregone import Outward, lets_in
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.subject import Standing
from tests.strategies import FEW, OWN, policies
from tests.tables import PROPERTY, each
from tests.test_shadow import ADDRESSES, CALLERS, SUBJECTS, rule


def policy(*lines: str, out: bool = True, inward: bool = False) -> Policy:
    """Return the policy of these rules."""
    return Policy(tuple(map(rule, lines)), {Direction.IN: inward, Direction.OUT: out}, OWN)


def by_name(scheme: str = "tcp", name: str = "a.example", port: int = 80, *, special: bool = False) -> Destination:
    """Return where a route leads whose host is a name."""
    return Destination(scheme, name, None, port, special)


LOCAL = Destination("unix", "audio", None, None)


class Inward(SynchronousTestCase):
    @each(
        ("any", "pong", "allow in any any"),
        ("the service", "pong", "allow in pong tcp:192.0.2.1"),
        ("a glob", "pong", "allow in p* any"),
        ("log", "pong", "log in pong any"),
        ("any service at all", None, "allow in pong any"),
        ("behind a deny of some", "pong", "deny in pong tcp:192.0.2.0/24", "allow in pong any"),
        ("behind a deny of another service", "pong", "deny in audio any", "allow in any any"),
        ("behind a deny of one of all services", None, "deny in pong any", "allow in pong any"),
        ("behind a deny of who proves something", "pong", "deny in any any for psk:x", "allow in pong any"),
    )
    def test_somebody_may(self, _: str, service: str | None, *lines: str) -> None:
        self.assertTrue(lets_in(policy(*lines), ("tcp",), service))

    @each(
        ("no rule", "pong"),
        ("another service", "pong", "allow in audio any"),
        ("another glob", "pong", "allow in a* any"),
        ("another scheme", "pong", "allow in pong tls:any"),
        ("another direction", "pong", "allow out any any"),
        ("a proof that nobody can give", "pong", "allow in any any for psk:laptop"),
        ("behind a deny of all", "pong", "deny in any any", "allow in pong any"),
        ("behind a deny of the scheme", "pong", "deny in pong tcp:any", "allow in pong any"),
        ("behind a deny of its globs", "pong", "deny in p* any", "allow in pong any"),
        ("any service behind a deny of all", None, "deny in any tcp:any", "allow in pong any"),
    )
    def test_nobody_may(self, _: str, service: str | None, *lines: str) -> None:
        self.assertFalse(lets_in(policy(*lines), ("tcp",), service))

    def test_by_default(self) -> None:
        self.assertTrue(lets_in(policy("deny in audio any", inward=True), ("tcp",), "pong"))
        self.assertFalse(lets_in(policy("deny in pong tcp:any", inward=True), ("tcp",), "pong"))
        self.assertTrue(lets_in(policy("deny in pong tcp:any", inward=True), ("tcp", "tls"), "pong"))

    def test_who_can_prove_something(self) -> None:
        self.assertTrue(lets_in(policy("allow in any any for psk:laptop"), ("tls",), "pong", proves=("psk",)))

    def test_by_nothing_nobody_comes(self) -> None:
        self.assertFalse(lets_in(policy("allow in any any", inward=True), ()))

    @PROPERTY
    @given(policies(most=5, directions=(Direction.IN,)), FEW.services)
    def test_where_nobody_may_nobody_is_let_in(self, drawn: Policy, service: str) -> None:
        if lets_in(drawn, ("tcp",), service):
            return
        for address in (None, *((one,) for one in ADDRESSES)):
            verdict = decide(
                drawn, Question(Direction.IN, service, Destination("tcp", None, address, 51234), CALLERS[0])
            )
            self.assertIsNot(verdict.granted, True)


class Refusing(SynchronousTestCase):
    @each(
        ("a deny of all", by_name(), "rule 1", "deny out any any"),
        ("of the service", by_name(), "rule 2", "allow out audio any", "deny out pong tcp:any", "allow out any any"),
        ("of the host", by_name(), "rule 1", "deny out any tcp:a.example"),
        ("of a local service", LOCAL, "rule 1", "deny out pong unix:audio"),
        ("of an endpoint", by_name("tls", special=True), "rule 1", "deny out pong tls:*.example"),
        ("behind a deny of some", by_name(), "rule 2", "deny out any any for user:alice", "deny out any tcp:any"),
        ("behind a deny of addresses", by_name(), "rule 2", "deny out any tcp:0.0.0.0/0", "deny out any tcp:any"),
    )
    def test_a_rule_refuses_it_to_everybody(self, _: str, to: Destination, by: str, *lines: str) -> None:
        self.assertEqual(Outward(policy(*lines)).refusing("pong", to), by)

    @each(
        ("no rule", by_name()),
        ("a deny of some", by_name(), "deny out any any for user:alice"),
        ("a deny of addresses", by_name(), "deny out any tcp:0.0.0.0/0"),
        ("behind an allow of some", by_name(), "allow out pong any for user:alice", "deny out any any"),
        ("behind an allow of addresses", by_name(), "allow out any tcp:0.0.0.0/0", "deny out any any"),
        ("another port", by_name(), "deny out any tcp:any:81"),
        ("another service", by_name(), "deny out audio any"),
        ("local", LOCAL, "deny out any tcp:any"),
        ("an endpoint with a rule", by_name("tls", special=True), "allow out pong any for user:alice"),
    )
    def test_somebody_may_go(self, _: str, to: Destination, *lines: str) -> None:
        self.assertIsNone(Outward(policy(*lines)).refusing("pong", to))

    def test_by_default(self) -> None:
        self.assertEqual(Outward(policy(out=False)).refusing("pong", by_name()), "default out=deny")
        self.assertIsNone(
            Outward(policy("allow out any tls:any", "allow out any tcp:any", out=False)).refusing("pong", by_name())
        )
        self.assertIsNone(Outward(policy(out=False)).refusing("pong", LOCAL))

    def test_among_many_rules_the_one_that_does_it_is_named(self) -> None:
        many = [f"deny out any tcp:10.0.{n}.0/24" for n in range(100)]
        found = Outward(policy("deny in any any", *many, "deny out b any for user:alice", "deny out any tcp:*.example"))
        self.assertEqual(found.refusing("pong", by_name()), "rule 103")
        there = Destination("tcp", None, (ipaddress.ip_address("10.0.7.1"),), 80)
        self.assertEqual(found.refusing("pong", there), "rule 9")

    def test_an_endpoint_that_needs_a_rule(self) -> None:
        self.assertEqual(
            Outward(policy("allow out audio any")).refusing("pong", by_name("tls", special=True)),
            "the default for endpoints (it needs a rule: allow out pong any)",
        )

    @PROPERTY
    @given(policies(most=5, directions=(Direction.OUT,)), FEW.services, st.booleans(), FEW.names | FEW.addresses)
    def test_where_it_is_foregone_nobody_may_go(self, drawn: Policy, service: str, special: bool, host: object) -> None:
        name = host if isinstance(host, str) else None
        known = [None, *((one,) for one in ADDRESSES)] if name else [(ipaddress.ip_address(str(host)),)]
        to = Destination("tcp", name, known[0], 80, special)
        if Outward(drawn).refusing(service, to) is None:
            return
        for addresses in known:
            for subject in (one for one in SUBJECTS if one.standing is not Standing.REMOTE):
                one = Destination("tcp", name, addresses, 80, special)
                self.assertIsNot(decide(drawn, Question(Direction.OUT, service, one, subject)).granted, True)


class Closed(SynchronousTestCase):
    @each(
        ("all", "rule 1", "deny out any any"),
        ("the service", "rule 1", "deny out pong any", "allow out any any"),
        ("all, behind another", "rule 2", "allow out audio any", "deny out any any", "allow out pong any"),
        ("no rule", None),
        ("only some destinations", None, "deny out pong tcp:any"),
        ("only some clients", None, "deny out pong any for user:alice"),
        ("behind an allow", None, "allow out pong tcp:a.example", "deny out any any"),
        ("behind an allow of all", None, "allow out any tcp:a.example", "deny out pong any"),
        ("behind an allow of a glob", None, "allow out p* any", "deny out pong any"),
        ("another service", None, "deny out audio any"),
        ("callers", None, "deny in any any"),
    )
    def test_a_service(self, _: str, by: str | None, *lines: str) -> None:
        self.assertEqual(Outward(policy(*lines)).closing("pong"), by)

    @PROPERTY
    @given(policies(most=5, directions=(Direction.OUT,)), FEW.services)
    def test_a_closed_service_leads_nobody_anywhere(self, drawn: Policy, service: str) -> None:
        if Outward(drawn).closing(service) is None:
            return
        found = [by_name(), LOCAL, *(Destination("tls", None, (one,), 443) for one in ADDRESSES)]
        for to in found:
            # Of a name a rule in front may say that its addresses decide: each of them is refused.
            refused = (False, None) if to.addresses is None else (False,)
            for subject in SUBJECTS:
                self.assertIn(decide(drawn, Question(Direction.OUT, service, to, subject)).granted, refused)

    def test_the_defaults_close_none(self) -> None:
        self.assertIsNone(Outward(Policy((), {**DEFAULTS, Direction.OUT: False})).closing("pong"))
