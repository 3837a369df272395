"""plumberd.pure.names: what a service may be called."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.names import RESERVED, SCHEMES, check_service, is_reserved, is_service
from plumberd.pure.refusals import Refusal, Refused
from tests.tables import PROPERTY, each


class Form(SynchronousTestCase):
    @each(
        ("pong",),
        ("a",),
        ("Z",),
        ("0",),
        ("_",),
        ("a.b-c_d",),
        ("a-",),
        ("a..b",),
        ("x" * 64,),
        ("7.7.7.7",),
    )
    def test_a_well_formed_name_is_one(self, name: str) -> None:
        self.assertTrue(is_service(name))

    @each(
        ("",),
        (".",),
        ("..",),
        (".hidden",),
        ("-rf",),
        ("x" * 65,),
        ("a/b",),
        ("../a",),
        ("a b",),
        ("a\n",),
        ("\na",),
        ("a\0",),
        ("a;b",),
        ("a:b",),
        ("a@b",),
        ("a%62",),
        ("*",),
        ("é",),
        ("a\u0661",),
        ("\uff41",),
    )
    def test_anything_else_is_none(self, name: str) -> None:
        self.assertFalse(is_service(name))

    @PROPERTY
    @given(st.text(max_size=80))
    def test_a_name_never_leaves_the_run_directory(self, text: str) -> None:
        if is_service(text):
            self.assertFalse(set(text) & {"/", "\0", "\n", " "} or text.startswith((".", "-")) or len(text) > 64)


class Reserved(SynchronousTestCase):
    @each(
        ("plumberd",),
        ("ipc",),
        ("network",),
        ("network-0-0",),
        ("tcp",),
        ("tls",),
        ("udp",),
        ("ws",),
        ("wss",),
        ("unix",),
        ("pong.lock",),
        ("plumberd.lock",),
    )
    def test_what_plumberd_listens_on_and_locks_is_denied(self, name: str) -> None:
        self.assertTrue(is_reserved(name))
        with self.assertRaises(Refused) as caught:
            check_service(name)
        self.assertEqual(caught.exception.word, Refusal.DENIED)
        self.assertIn(repr(name), caught.exception.reason)

    @each(("pong",), ("lock",), ("pong.locked",), ("TCP",), ("network-1-0",), ("tcpd",), ("ipcd",))
    def test_names_that_only_look_alike_are_free(self, name: str) -> None:
        self.assertFalse(is_reserved(name))
        self.assertEqual(check_service(name), name)

    def test_no_service_is_called_what_rules_call_every_service(self) -> None:
        """Else the rule that a refusal proposes for it would open every service."""
        with self.assertRaises(Refused) as caught:
            check_service("any")
        self.assertEqual(caught.exception.word, Refusal.DENIED)
        self.assertIn("in rules it is every service", caught.exception.reason)
        self.assertEqual([check_service(name) for name in ("Any", "any.", "many")], ["Any", "any.", "many"])

    def test_every_scheme_is_reserved(self) -> None:
        self.assertEqual(RESERVED & set(SCHEMES), set(SCHEMES))


class Refusals(SynchronousTestCase):
    @each(("",), ("..",), ("a/b",), ("x" * 65,))
    def test_a_malformed_name_is_a_bad_request_that_says_what_is_wanted(self, name: str) -> None:
        with self.assertRaises(Refused) as caught:
            check_service(name)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertIn("wanted 1 to 64 of A-Z", caught.exception.reason)

    def test_malformed_and_reserved_is_malformed(self) -> None:
        with self.assertRaises(Refused) as caught:
            check_service("../x.lock")
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)

    def test_the_reason_shows_hostile_text_cut_and_printable(self) -> None:
        with self.assertRaises(Refused) as caught:
            check_service("\x1b[2J\u2028" + "y" * 500)
        self.assertIn("'?[2J?" + "y" * 75 + "'", caught.exception.reason)
        self.assertNotIn("y" * 76, caught.exception.reason)

    @each(
        ("tls://me:hunter2@a.example/x",),
        ("tls://me@hunter2:a.example:9000/x",),
        ("authd tls://me@hunter2:a.example:9000/authd",),
    )
    def test_a_whole_uri_in_the_name_s_place_does_not_show_its_password(self, name: str) -> None:
        with self.assertRaises(Refused) as caught:
            check_service(name)
        self.assertNotIn("hunter2", str(caught.exception))
