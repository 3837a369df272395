"""plumberd.pure.handshake: both sides of plain tcp, byte for byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.handshake import NAME_READ_BYTES, REFUSAL_BYTES, Caller, SaidNo, call, called, refusal
from plumberd.pure.refusals import Refusal, Refused
from tests.tables import PROPERTY, each

NAME = bytes.fromhex("706f6e67")
"""The service wanted, as one TCP daemon sends it to the other: ``pong``, raw."""

OK = bytes.fromhex("6f6b")
"""Connected, raw; behind it the stream is the client's."""


class Conversation:
    """A far side's bytes, of which the caller reads what it wants, *at_once* bytes at most in one read."""

    def __init__(self, stream: bytes, at_once: int = 1 << 16) -> None:
        self._left = stream
        self._at_once = at_once
        self.caller = Caller()

    def run(self) -> bytes:
        """Read until it is granted; return what is left unread.

        :raises Refused: as the caller does.
        """
        while True:
            wanted = self.caller.wanted_bytes
            if not 0 < wanted <= REFUSAL_BYTES:
                raise AssertionError(f"the caller wants {wanted} bytes")
            count = min(wanted, self._at_once)
            part, self._left = self._left[:count], self._left[count:]
            if self.caller.receive(part):
                return self._left

    def refused(self) -> tuple[Refusal, str]:
        """Read until it is refused; return the word and the reason."""
        try:
            left = self.run()
        except Refused as e:
            return e.word, e.reason
        raise AssertionError(f"granted, with {left!r} unread")


class Granted(SynchronousTestCase):
    def test_the_caller_sends_the_name_and_nothing_else(self) -> None:
        self.assertEqual(call("pong"), NAME)

    @each(
        ("nothing_behind", b""),
        ("a_message_behind", bytes.fromhex("00000009626f756e6365206d65")),
        ("another_ok_behind", b"ok"),
        ("a_no_behind", b"no denied"),
        ("much_behind", b"x" * 100000),
    )
    def test_what_stands_behind_the_ok_stays_unread(self, _: str, behind: bytes) -> None:
        for at_once in (1, 2, 1 << 16):
            self.assertEqual(Conversation(OK + behind, at_once).run(), behind)

    def test_byte_by_byte_it_wants_two_bytes_and_then_one(self) -> None:
        caller = Caller()
        self.assertEqual(caller.wanted_bytes, 2)
        self.assertFalse(caller.receive(b"o"))
        self.assertEqual(caller.wanted_bytes, 1)
        self.assertTrue(caller.receive(b"k"))
        self.assertEqual(caller.wanted_bytes, 0)

    @PROPERTY
    @given(st.binary(max_size=40), st.integers(1, 5))
    def test_a_grant_is_two_bytes_and_no_more_whatever_follows(self, behind: bytes, at_once: int) -> None:
        self.assertEqual(Conversation(OK + behind, at_once).run(), behind)


class Refusing(SynchronousTestCase):
    @each(
        ("no", b"no", Refusal.DENIED, "the far side refused: it gave no reason"),
        ("half_a_no", b"n", Refusal.DENIED, "the far side refused: it gave no reason"),
        ("no_and_a_blank", b"no ", Refusal.DENIED, "the far side refused: it gave no reason"),
        ("our_own", b"no denied", Refusal.DENIED, "the far side refused: denied"),
        ("a_word_of_ours", b"no unknown-service", Refusal.UNKNOWN_SERVICE, "the far side refused: unknown-service"),
        ("a_word_and_more", b"no busy: 5 wait", Refusal.BUSY, "the far side refused: busy: 5 wait"),
        ("other_words", b"no such luck", Refusal.DENIED, "the far side refused: such luck"),
        ("a_word_inside", b"no really busy", Refusal.DENIED, "the far side refused: really busy"),
        ("hostile", b"no \x1b[2J\xff\n", Refusal.DENIED, "the far side refused: ?[2J??"),
    )
    def test_a_no_is_read_to_the_end_of_the_stream(self, _: str, stream: bytes, word: Refusal, reason: str) -> None:
        for at_once in (1, 2, 3, 1 << 16):
            self.assertEqual(Conversation(stream, at_once).refused(), (word, reason))

    def test_a_no_is_not_judged_before_the_stream_ends(self) -> None:
        caller = Caller()
        self.assertFalse(caller.receive(b"no"))
        self.assertFalse(caller.receive(b" denied"))
        with self.assertRaises(SaidNo) as caught:
            caller.receive(b"")
        self.assertEqual(caught.exception.word, Refusal.DENIED)

    @each(("hung_up", b""), ("nonsense", b"HTTP"))
    def test_what_is_no_answer_is_no_no_of_the_far_side(self, _: str, data: bytes) -> None:
        with self.assertRaises(Refused) as caught:
            Caller().receive(data)
        self.assertNotIsInstance(caught.exception, SaidNo)

    @each(("whole", 1 << 16), ("dealt_out", 7))
    def test_an_endless_no_is_cut_at_512_bytes_and_its_reason_at_200_characters(self, _: str, at_once: int) -> None:
        conversation = Conversation(b"no " + b"x" * 100000, at_once)
        self.assertEqual(conversation.refused(), (Refusal.DENIED, "the far side refused: " + "x" * 200))

    def test_a_no_of_exactly_512_bytes_needs_no_end_of_the_stream(self) -> None:
        caller = Caller()
        self.assertFalse(caller.receive(b"no" + b" " + b"x" * 508))
        self.assertEqual(caller.wanted_bytes, 1)
        with self.assertRaises(Refused) as caught:
            caller.receive(b"x")
        self.assertEqual(caught.exception.word, Refusal.DENIED)

    def test_a_hang_up_is_unreachable(self) -> None:
        self.assertEqual(
            Conversation(b"").refused(), (Refusal.UNREACHABLE, "the far side hung up instead of answering")
        )

    @each(
        ("half_an_ok", b"o"),
        ("another_ok", b"OK"),
        ("ne", b"ne"),
        ("nonsense", b"nonsense"),
        ("no_and_no_blank", b"no\n"),
        ("a_web_server", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("a_mail_server", b"220 mail.example ESMTP\r\n"),
        ("tls", b"\x15\x03\x01\x00\x02\x02\x46"),
        ("nul", b"\0\0"),
        ("ok_the_wrong_way_round", b"ko"),
    )
    def test_any_other_answer_is_unreachable_and_shown_printable(self, _: str, stream: bytes) -> None:
        for at_once in (1, 2, 1 << 16):
            word, reason = Conversation(stream, at_once).refused()
            self.assertEqual(word, Refusal.UNREACHABLE)
            self.assertIn("neither ok nor no: is it a plumberd?", reason)
            self.assertTrue(reason.isascii() and reason.isprintable())

    def test_data_that_was_read_beyond_what_was_wanted_grants_nothing(self) -> None:
        with self.assertRaises(Refused) as caught:
            Caller().receive(b"okx")
        self.assertEqual(caught.exception.word, Refusal.UNREACHABLE)

    @PROPERTY
    @given(st.one_of(st.binary(max_size=600), st.binary(max_size=600).map(lambda b: b"no " + b)), st.integers(1, 40))
    def test_only_ok_is_granted_and_a_refusal_is_short_printable_ascii(self, stream: bytes, at_once: int) -> None:
        if stream[:2] == OK:
            self.assertEqual(Conversation(stream, at_once).run(), stream[2:])
        else:
            _, reason = Conversation(stream, at_once).refused()
            self.assertTrue(reason.isascii() and reason.isprintable() and len(reason) < 250)


class Called(SynchronousTestCase):
    def test_the_name_is_what_the_first_read_brings(self) -> None:
        self.assertEqual(called(NAME), "pong")

    def test_a_name_of_64_bytes_is_read_and_one_of_65_is_noticed(self) -> None:
        self.assertEqual(called(b"x" * 64), "x" * 64)
        with self.assertRaises(Refused) as caught:
            called((b"x" * 70)[:NAME_READ_BYTES])
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)

    @each(
        ("nothing", b"", Refusal.BAD_REQUEST),
        ("line_end", b"pong\n", Refusal.BAD_REQUEST),
        ("two", b"pong\0pong", Refusal.BAD_REQUEST),
        ("path", b"/pong", Refusal.BAD_REQUEST),
        ("climbing", b"../../etc", Refusal.BAD_REQUEST),
        ("http", b"GET / HTTP/1.1\r\n", Refusal.BAD_REQUEST),
        ("not_ascii", "pöng".encode(), Refusal.BAD_REQUEST),
        ("the_broker", b"plumberd", Refusal.DENIED),
        ("the_broker_of_libipc", b"ipc", Refusal.DENIED),
        ("a_scheme_daemon", b"tcp", Refusal.DENIED),
        ("a_lock", b"pong.lock", Refusal.DENIED),
    )
    def test_anything_but_a_free_name_is_refused(self, _: str, first_read: bytes, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            called(first_read)
        self.assertEqual(caught.exception.word, word)

    @each(*((word.value, word) for word in Refusal))
    def test_a_peer_that_has_proved_nothing_is_told_the_same_for_every_reason(self, _: str, word: Refusal) -> None:
        self.assertEqual(refusal(word), b"no denied")

    @each(*((word.value, word) for word in Refusal))
    def test_our_own_caller_understands_our_own_refusal(self, _: str, word: Refusal) -> None:
        self.assertEqual(Conversation(refusal(word)).refused(), (Refusal.DENIED, "the far side refused: denied"))
