"""plumberd.pure.plumb_handshake: both sides, whole, byte by byte and with a tail."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.handshake import SaidNo
from plumberd.pure.plumb_handshake import (
    ANSWER_BYTES,
    GRANTED,
    REQUEST_BYTES,
    Called,
    Caller,
    Login,
    Request,
    refusal,
    request,
)
from plumberd.pure.refusals import FAR_REASON_CHARS, Refusal, Refused
from tests.tables import PROPERTY, each

TAIL = b"\x00tail\n\n"


def dealt(data: bytes) -> Iterator[list[bytes]]:
    """Deal *data* out in every way: whole, byte by byte, in two at each place."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


class CalledSide(SynchronousTestCase):
    def receive(self, *pieces: bytes) -> tuple[Request | None, bytes]:
        called = Called()
        found = None
        for at, piece in enumerate(pieces):
            found = called.receive(piece)
            if found is not None:
                return found, called.rest + b"".join(pieces[at + 1 :])
        return found, b""

    @each(
        ("plain", request("pong"), Request("pong")),
        ("login", request("pong", Login("carol", "pa:ss wörd")), Request("pong", Login("carol", "pa:ss wörd"))),
        ("hops", request("pong", hops=3), Request("pong", hops=3)),
        ("other_headers", b"pong\nx-hops: x\nAuthorization: Basic YTpi\n\n", Request("pong", Login("a", "b"))),
        ("empty_password", b"pong\nauthorization: basic YTo=\n\n", Request("pong", Login("a", ""))),
    )
    def test_a_request_is_understood_however_it_is_dealt_out_and_its_tail_is_left(
        self, _: str, data: bytes, wanted: Request
    ) -> None:
        for pieces in dealt(data + TAIL):
            self.assertEqual(self.receive(*pieces), (wanted, TAIL))

    @each(
        ("malformed_name", b"../x\n\n", Refusal.BAD_REQUEST),
        ("empty_name", b"\n\n", Refusal.BAD_REQUEST),
        ("reserved", b"tls\n\n", Refusal.DENIED),
        ("uri_for_a_name", b"tls://u:secret@h/x\n\n", Refusal.BAD_REQUEST),
        ("no_colon", b"pong\nauthorization\n\n", Refusal.BAD_REQUEST),
        ("no_blank", b"pong\nauthorization:basic YTpi\n\n", Refusal.BAD_REQUEST),
        ("twice", b"pong\nauthorization: basic YTpi\nAUTHORIZATION: basic YTpi\n\n", Refusal.BAD_REQUEST),
        ("control", b"pong\nx: a\x01b\n\n", Refusal.BAD_REQUEST),
        ("return", b"pong\r\n\n", Refusal.BAD_REQUEST),
        ("hops_that_are_none", b"pong\nhops: -1\n\n", Refusal.BAD_REQUEST),
        ("not_ascii", "pong\nx: ü\n\n".encode(), Refusal.BAD_REQUEST),
        ("another_scheme", b"pong\nauthorization: bearer abc\n\n", Refusal.BAD_REQUEST),
        ("no_base64", b"pong\nauthorization: basic %%%\n\n", Refusal.BAD_REQUEST),
        ("no_user", b"pong\nauthorization: basic OmI=\n\n", Refusal.BAD_REQUEST),
        ("nul_in_it", b"pong\nauthorization: basic YTpiAA==\n\n", Refusal.BAD_REQUEST),
    )
    def test_what_is_no_request_is_refused(self, _: str, data: bytes, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            self.receive(data)
        self.assertIs(caught.exception.word, word)
        self.assertNotIn("secret", caught.exception.reason)

    def test_the_longest_request_is_taken_and_a_longer_one_is_not_waited_for(self) -> None:
        head, end = b"pong\nx: ", b"\n\n"
        longest = head + b"a" * (REQUEST_BYTES - len(head) - len(end)) + end
        self.assertEqual(self.receive(longest), (Request("pong"), b""))
        with self.assertRaises(Refused):
            self.receive(head + b"a" * (REQUEST_BYTES - len(head)))
        called = Called()
        called.receive(b"pong")
        self.assertEqual(called.wanted_bytes, REQUEST_BYTES + 1 - 4)

    def test_a_password_shows_in_no_repr(self) -> None:
        self.assertNotIn("secret", repr(Request("pong", Login("a", "secret"))))

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_anything_at_all_is_a_request_a_refusal_or_not_complete(self, data: bytes) -> None:
        called = Called()
        try:
            found = called.receive(data)
        except Refused as e:
            self.assertIn(e.word, (Refusal.BAD_REQUEST, Refusal.DENIED))
        else:
            self.assertEqual(found is None, b"\n\n" not in data)


class CallerSide(SynchronousTestCase):
    def receive(self, *pieces: bytes) -> tuple[bool, bytes]:
        caller = Caller()
        for at, piece in enumerate(pieces):
            if caller.receive(piece):
                return True, caller.rest + b"".join(pieces[at + 1 :])
        return False, b""

    def test_ok_is_understood_however_it_is_dealt_out_and_what_follows_is_the_client_s(self) -> None:
        for pieces in dealt(GRANTED + TAIL):
            self.assertEqual(self.receive(*pieces), (True, TAIL))

    @each(
        ("denied", refusal(Refusal.DENIED), Refusal.DENIED, "the far side refused: denied"),
        ("reason", refusal(Refusal.BUSY, "relays=5"), Refusal.BUSY, "the far side refused: busy: relays=5"),
        ("unknown_word", b"no way\n", Refusal.DENIED, "the far side refused: way"),
        ("nothing", b"no \n", Refusal.DENIED, "the far side refused: it gave no reason"),
        ("a_web_server", b"HTTP/1.1 400 Bad\r\n", Refusal.UNREACHABLE, "neither ok nor no"),
        ("almost", b"okay\n", Refusal.UNREACHABLE, "neither ok nor no"),
    )
    def test_a_refusal_is_understood_however_it_is_dealt_out(
        self, _: str, data: bytes, word: Refusal, reason: str
    ) -> None:
        for pieces in dealt(data):
            with self.assertRaises(Refused) as caught:
                self.receive(*pieces)
            self.assertIs(caught.exception.word, word)
            self.assertIn(reason, caught.exception.reason)
            self.assertIs(isinstance(caught.exception, SaidNo), data.startswith(b"no "))

    @each(("at_once", b""), ("after_a_byte", b"o"), ("within_a_reason", b"no den"))
    def test_one_that_hangs_up_is_unreachable(self, _: str, before: bytes) -> None:
        caller = Caller()
        if before:
            self.assertFalse(caller.receive(before))
        with self.assertRaises(Refused) as caught:
            caller.receive(b"")
        self.assertIs(caught.exception.word, Refusal.UNREACHABLE)

    def test_a_reason_without_an_end_is_not_waited_for_and_shown_shortened(self) -> None:
        with self.assertRaises(Refused):
            self.receive(b"no " + b"x" * ANSWER_BYTES)
        with self.assertRaises(Refused) as caught:
            self.receive(b"no " + b"\xff" * 400 + b"\n")
        self.assertLess(len(caught.exception.reason), FAR_REASON_CHARS + 40)
        self.assertTrue(caught.exception.reason.isascii())


class Sent(SynchronousTestCase):
    def test_a_user_with_a_colon_has_no_place_and_nothing_is_too_long(self) -> None:
        with self.assertRaises(Refused):
            request("pong", Login("a:b", "c"))
        with self.assertRaises(Refused) as caught:
            request("pong", Login("a", "s3cret" * 1000))
        self.assertNotIn("s3cret", str(caught.exception))

    def test_a_chain_of_eight_gateways_goes_on_and_one_of_nine_ends(self) -> None:
        self.assertIn(b"hops: 8\n", request("pong", hops=8))
        with self.assertRaises(Refused) as caught:
            request("pong", hops=9)
        self.assertIs(caught.exception.word, Refusal.NOT_POSSIBLE)

    @PROPERTY
    @given(st.sampled_from(Refusal), st.text(max_size=2000))
    def test_a_refusal_is_one_line_within_its_limit(self, word: Refusal, reason: str) -> None:
        data = refusal(word, reason)
        self.assertLessEqual(len(data), ANSWER_BYTES)
        self.assertEqual((data.count(b"\n"), data[-1:]), (1, b"\n"))
