"""plumberd.pure.policy.idle: rules that match nothing that can come up."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.idle import Surroundings, why_idle
from plumberd.pure.policy.rule import Match, Rule, matches
from tests.strategies import rules
from tests.tables import PROPERTY, each
from tests.test_shadow import rule, sample_about

BARE = Surroundings(("tcp",), None, (), ("tcp", "unix"))
"""Plain tcp and local services."""


KEPT = "is a name that plumberd keeps for itself"
NO_CERTIFICATES = 'tls.client_certificates is "none", or nothing listens inside TLS'


class Why(SynchronousTestCase):
    def idle(self, text: str, around: Surroundings = BARE) -> str:
        return why_idle(rule(text), around)

    @each(
        ("a scheme of callers", "allow in a tls:any", "can match nobody: nothing here listens for tls"),
        ("a reserved service", "deny out ipc any", f"can match nothing: ipc {KEPT}"),
        ("a reserved end", "deny in a.lock any", f"can match nothing: a.lock {KEPT}"),
        ("a reserved local name", "allow out a unix:tcp", f"can match nothing: tcp {KEPT}"),
        ("a scheme", "allow out a tls:any", "opens and closes nothing: no connection is made by tls here"),
        (
            "a proof",
            "allow in a any for psk:laptop",
            "can match nobody: callers cannot prove psk: here "
            "(there is no tls.psk_file, or nothing listens inside TLS)",
        ),
        (
            "of callers",
            "deny out a any for cert:b.example",
            f"can match nobody: callers cannot prove cert: here ({NO_CERTIFICATES})",
        ),
        (
            "local and proved",
            "deny out a any for user:alice for cert:b.example",
            "can match nobody: local clients prove nothing, and callers are no users of this machine",
        ),
        (
            "two users",
            "allow out a any for user:alice for group:audio for uid:1001",
            "can match nobody: nobody is user:alice and uid:1001 at once",
        ),
        (
            "two units",
            "allow out a any for unit:a.service for unit:/b",
            "can match nobody: nobody is unit:a.service and unit:/b at once",
        ),
    )  # fmt: skip
    def test_it_is(self, _: str, text: str, why: str) -> None:
        self.assertEqual(self.idle(text), why)

    def test_a_caller_s_name_is_what_a_certificate_proves(self) -> None:
        unasked = Surroundings(listens=("tls", "wss"), proves=("token",))
        asked = Surroundings(listens=("tls", "wss"), proves=("cert", "spiffe"))
        for text in ("allow in a tls:b.example", "allow in a wss:b.example"):
            self.assertEqual(
                self.idle(text, unasked), f"can match nobody: callers cannot prove a name here ({NO_CERTIFICATES})"
            )
            self.assertEqual(self.idle(text, asked), "")
        self.assertEqual(self.idle("allow in a wss:192.0.2.7", unasked), "")

    @each(
        ("any caller", "allow in a any"),
        ("callers by tcp", "allow in a tcp:192.0.2.0/24"),
        ("local services", "deny out any unix:a"),
        ("any scheme", "deny out a any"),
        ("registering", "allow serve a for user:alice"),
        ("a glob that a reserved name fits", "deny out i* any"),
        ("two users who can't be told, and are denied", "deny out a any for user:alice for uid:1001"),
        ("a user in two words", "allow out a any for user:alice for uid:1000"),
        ("two groups", "allow out a any for group:audio for group:video"),
        ("a unit in two words", "allow out a any for unit:a.service for unit:/system.slice/a.service"),
    )
    def test_it_is_not(self, _: str, text: str) -> None:
        self.assertEqual(self.idle(text), "")

    def test_where_nothing_listens_that_is_not_said_of_each_rule_for_callers(self) -> None:
        around = dataclasses.replace(BARE, listens=())
        self.assertEqual(self.idle("allow in a tls:any for cert:b.example", around), "")
        self.assertNotEqual(self.idle("allow out a any for cert:b.example", around), "")

    def test_a_service_that_no_caller_can_name(self) -> None:
        around = dataclasses.replace(BARE, services=("pong", "authd"))
        why = "can match nobody: a service that is not published cannot be asked for without --tcpd"
        self.assertEqual(self.idle("allow in audio any", around), why)
        self.assertEqual([self.idle(f"allow in {service} any", around) for service in ("any", "p*", "authd")], [""] * 3)
        self.assertEqual(self.idle("allow out audio any", around), "")

    def test_units_where_the_kernel_tells_none(self) -> None:
        around = dataclasses.replace(BARE, tells_units=False)
        why = "can match nobody: this kernel does not tell whose unit a client is (Linux 6.5)"
        self.assertEqual(self.idle("allow out a any for unit:a.service", around), why)
        self.assertEqual(self.idle("deny out a any for unit:a.service", around), "")

    def test_where_everything_can_come_up_a_rule_for_anything_is_none(self) -> None:
        for text in ("allow in a tls:b.example for psk:laptop", "allow out a wss:any", "allow serve a"):
            self.assertEqual(why_idle(rule(text), Surroundings(listens=("tcp", "tls"))), "")

    @PROPERTY
    @given(rules(), st.integers(0, 2**32))
    def test_no_question_that_can_come_up_is_one_that_it_speaks_of(self, drawn: Rule, seed: int) -> None:
        asked = sample_about(drawn, seed, 100) if why_idle(drawn, BARE) else []
        for question in asked:
            way, to, subject = question.direction, question.to, question.subject
            if to.scheme in ("tcp", "unix") and not subject.words:
                self.assertIs(matches(drawn, way, question.service, to, subject), Match.NO)
        self.assertLessEqual(len(asked), 100)
