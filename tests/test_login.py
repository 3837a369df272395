"""Which login goes along with a lookup: over what is encrypted alone, and this machine's own where it belongs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.login import LoginSettings, authorization_for, check_credentials, login_for
from plumberd.pure.names import SCHEMES
from plumberd.pure.passwords import Cost, Entry, Passwords
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls import PeerSettings
from plumberd.pure.uri import parse_uri
from tests.tables import each

MACHINE = PeerSettings(login="build", password="hunter3")


class Sent(SynchronousTestCase):
    @each(
        ("none", "tls://h/x", None, None),
        ("the_lookup_s_own", "tls://al:hunter2@h/x", None, Login("al", "hunter2")),
        ("in_the_first_documents_form", "tls://al@hunter2:h:9001/x", None, Login("al", "hunter2")),
        ("percent_encoded", "wss://a%20l:hunter%3a2@h/x", None, Login("a l", "hunter:2")),
        ("an_empty_password", "tls://al:@h/x", None, Login("al", "")),
        ("the_machine_s", "tls://h/x", MACHINE, Login("build", "hunter3")),
        ("the_lookup_s_before_the_machine_s", "tls://al:hunter2@h/x", MACHINE, Login("al", "hunter2")),
        ("the_machine_s_by_name", "tls://build@h/x", MACHINE, Login("build", "hunter3")),
        ("the_machine_s_to_a_server_of_any_kind", "tls://h", MACHINE, None),
        ("the_machine_s_in_the_clear", "tcp://h/x", MACHINE, None),
        ("the_machine_proves_something_else", "tls://h/x", PeerSettings(pins=("sha256:" + "0" * 64,)), None),
        ("a_local_service", "pong", MACHINE, None),
    )
    def test_it_is(self, _: str, uri: str, peer: PeerSettings | None, wanted: Login | None) -> None:
        self.assertEqual(login_for(parse_uri(uri), peer), wanted)

    @each(
        ("in_the_clear", "tcp://al:hunter2@h/x", None, "not sent over plain tcp; tls and wss carry them"),
        ("a_user_in_the_clear", "tcp://al@h/x", None, "not sent over plain tcp"),
        ("over_udp", "udp://al:hunter2@h/x", None, "not sent over plain udp"),
        ("over_ws", "ws://al:hunter2@h/x", None, "not sent over plain ws"),
        ("to_a_server_of_any_kind", "tls://al:hunter2@h", None, "the URI names none"),
        ("nobody_s_password", "tls://:hunter2@h/x", None, "without the name of a user"),
        ("a_colon_in_the_name", "tls://a%3Al:hunter2@h/x", None, "holds no colon"),
        ("a_user_alone", "tls://al@h/x", None, "no login of that name for h:9001"),
        ("another_user_than_the_machine_s", "tls://al@h/x", MACHINE, "no login of that name for h:9001"),
    )
    def test_it_is_refused(self, _: str, uri: str, peer: PeerSettings | None, wanted: str) -> None:
        with self.assertRaises(Refused) as caught:
            login_for(parse_uri(uri), peer)
        self.assertIs(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertIn(wanted, caught.exception.reason)
        self.assertNotIn("hunter", str(caught.exception))

    def test_two_schemes_carry_it_and_no_other(self) -> None:
        carrying = []
        for scheme in SCHEMES:
            if scheme == "unix":
                continue
            try:
                check_credentials(parse_uri(f"{scheme}://al:hunter2@h/x"))
            except Refused:
                continue
            carrying.append(scheme)
        self.assertEqual(carrying, ["tls", "wss"])


class Checked(SynchronousTestCase):
    def test_without_anything_nobody_can_prove_a_login(self) -> None:
        self.assertFalse(LoginSettings().can_check)
        self.assertTrue(LoginSettings("/p").can_check)
        self.assertTrue(LoginSettings(checkers=("unix",)).can_check)

    def test_what_checks_is_told_in_its_order_and_without_secrets(self) -> None:
        entry = Entry("alice", Cost(), b"salt of alice", b"hash of alice")
        made = LoginSettings("/p", Passwords([entry]), ("file:/f", "ldap:bind:hunter2"))
        self.assertEqual(made.names, ("/p", "file", "ldap"))
        self.assertNotIn("hunter2", repr(made))
        self.assertNotIn("of alice", repr(made))


class InHttp(SynchronousTestCase):
    TOKEN = PeerSettings(token_file="/t", token="secret-token")

    @each(
        ("none", "wss://h/x", None, None),
        ("the_lookup_s_own", "wss://al:x@h/x", None, "Basic YWw6eA=="),
        ("to_a_server_of_any_kind", "wss://al:x@h", None, "Basic YWw6eA=="),
        ("the_machine_s_login", "wss://h/x", MACHINE, "Basic YnVpbGQ6aHVudGVyMw=="),
        ("the_machine_s_token", "wss://h", TOKEN, "Bearer secret-token"),
        ("the_lookup_s_own_before_it", "wss://al:x@h/x", TOKEN, "Basic YWw6eA=="),
        ("the_machine_s_token_in_the_clear", "ws://h/x", TOKEN, None),
        ("the_machine_s_login_in_the_clear", "ws://h/x", MACHINE, None),
    )
    def test_what_is_said(self, _: str, uri: str, peer: PeerSettings | None, wanted: str | None) -> None:
        self.assertEqual(authorization_for(parse_uri(uri), peer), wanted)

    def test_a_login_in_the_clear_is_refused(self) -> None:
        self.assertRaises(Refused, authorization_for, parse_uri("ws://al:hunter2@h/x"), None)
        self.assertRaises(Refused, authorization_for, parse_uri("ws://al:hunter2@h"), None)

    def test_a_token_is_a_proof_and_does_not_show(self) -> None:
        self.assertTrue(self.TOKEN.proves)
        self.assertNotIn("secret-token", f"{self.TOKEN!r} {self.TOKEN}")
