"""plumberd.pure.datagram_call: the caller's side of the handshake over datagrams."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure import datagrams
from plumberd.pure.datagram_call import OPENS, RETRY_SECONDS, DatagramCall
from plumberd.pure.handshake import SaidNo
from plumberd.pure.refusals import Refusal
from tests.tables import PROPERTY, each

NONCE, BAKED, IDENT = b"nonce...", bytes(range(20)), b"session!"


class Called(SynchronousTestCase):
    def setUp(self) -> None:
        self.call = DatagramCall(NONCE, "pong")

    def test_hello_cookie_open_ok(self) -> None:
        self.assertEqual(self.call.send(), datagrams.hello(NONCE, "pong"))
        self.assertTrue(self.call.receive(datagrams.cookie(NONCE, BAKED)))
        self.assertEqual(self.call.send(), datagrams.open_(NONCE, BAKED, "pong"))
        self.assertTrue(self.call.receive(datagrams.ok(NONCE, IDENT)))
        self.assertEqual(self.call.session, IDENT)

    def test_the_same_is_sent_again_later_and_later(self) -> None:
        pauses = []
        for _ in range(7):
            self.assertEqual(self.call.send(), datagrams.hello(NONCE, "pong"))
            pauses.append(self.call.pause_seconds)
        self.assertEqual(pauses, [*RETRY_SECONDS, RETRY_SECONDS[-1], RETRY_SECONDS[-1]])
        self.call.receive(datagrams.cookie(NONCE, BAKED))
        self.call.send()
        self.assertEqual(self.call.pause_seconds, RETRY_SECONDS[0])

    def test_a_cookie_without_an_answer_is_asked_for_anew(self) -> None:
        self.call.receive(datagrams.cookie(NONCE, BAKED))
        opened, hello = datagrams.open_(NONCE, BAKED, "pong"), datagrams.hello(NONCE, "pong")
        self.assertEqual([self.call.send() for _ in range(OPENS + 2)], [opened] * OPENS + [hello] * 2)
        self.assertTrue(self.call.receive(datagrams.cookie(NONCE, BAKED)))
        self.assertEqual(self.call.send(), opened)
        self.assertTrue(self.call.receive(datagrams.ok(NONCE, IDENT)))  # of whichever

    def test_another_cookie_is_brought_back_too_the_same_is_not(self) -> None:
        self.assertTrue(self.call.receive(datagrams.cookie(NONCE, BAKED)))
        self.assertFalse(self.call.receive(datagrams.cookie(NONCE, BAKED)))
        other = bytes(20)
        self.assertTrue(self.call.receive(datagrams.cookie(NONCE, other)))
        self.assertEqual(self.call.send(), datagrams.open_(NONCE, other, "pong"))

    @each(*((word.value, word) for word in Refusal))
    def test_a_no_has_its_word(self, _: str, word: Refusal) -> None:
        with self.assertRaises(SaidNo) as caught:
            self.call.receive(datagrams.no(NONCE, word))
        self.assertEqual(caught.exception.word, word)

    @each(
        ("another_call_s", datagrams.cookie(b"another.", BAKED)),
        ("another_call_s_no", datagrams.no(b"another.", Refusal.DENIED)),
        ("data", datagrams.Session(IDENT).data(b"x")),
        ("nothing", b""),
    )
    def test_what_anybody_could_send_changes_nothing(self, _: str, datagram: bytes) -> None:
        self.assertFalse(self.call.receive(datagram))
        self.assertEqual((self.call.outgoing, self.call.session), (datagrams.hello(NONCE, "pong"), b""))

    def test_a_session_stays(self) -> None:
        self.call.receive(datagrams.ok(NONCE, IDENT))
        for datagram in (datagrams.ok(NONCE, b"another!"), datagrams.no(NONCE, Refusal.DENIED)):
            self.assertFalse(self.call.receive(datagram))
        self.assertEqual(self.call.session, IDENT)

    @PROPERTY
    @given(st.binary(max_size=150))
    def test_whatever_comes_is_no_session_unless_it_knows_the_nonce(self, datagram: bytes) -> None:
        call = DatagramCall(NONCE, "pong")
        if datagram[2:10] != NONCE:
            self.assertFalse(call.receive(datagram))
