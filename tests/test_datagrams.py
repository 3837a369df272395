"""plumberd.pure.datagrams: the datagrams, one by one, and what a session counts."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure import datagrams
from plumberd.pure.datagrams import (
    CLOSE,
    COOKIE,
    DATA,
    END,
    HEADER_BYTES,
    HERE,
    NO,
    NO_BYTES,
    OK,
    PADDED_BYTES,
    REQUEST_BYTES,
    SEQUENCES,
    WINDOW,
    Counts,
    Reply,
    Request,
    Session,
)
from plumberd.pure.refusals import Refusal
from tests import datagram_peer
from tests.tables import PROPERTY, each
from tests.test_docs import section

NONCE, BAKED, IDENT = b"nonce...", bytes(range(20)), b"session!"


class Asked(SynchronousTestCase):
    """A hello and an open."""

    @each(("p",), ("pong",), ("x" * 64,))
    def test_each_is_read_as_it_was_meant_and_padded(self, name: str) -> None:
        hello, opened = datagrams.hello(NONCE, name), datagrams.open_(NONCE, BAKED, name)
        self.assertEqual(datagrams.parse_request(hello), Request(NONCE, name))
        self.assertEqual(datagrams.parse_request(opened), Request(NONCE, name, BAKED))
        self.assertEqual((len(hello), len(opened)), (PADDED_BYTES, PADDED_BYTES))

    def test_they_are_what_another_implementation_sends(self) -> None:
        self.assertEqual(datagrams.hello(NONCE, "pong"), datagram_peer.asked(datagram_peer.HELLO, NONCE, b"pong"))
        opened = datagram_peer.asked(datagram_peer.OPEN, NONCE, b"pong", BAKED)
        self.assertEqual(datagrams.open_(NONCE, BAKED, "pong"), opened)

    def test_they_are_what_the_document_shows(self) -> None:
        text = re.sub(r"[\s`]", "", section("protocol.md", "udp, between plumberds"))
        for datagram in (datagrams.hello(NONCE, "pong"), datagrams.open_(NONCE, BAKED, "pong")):
            self.assertIn(datagram.rstrip(b"\0").hex(), text)

    @each(
        ("empty", b""),
        ("one_byte_too_short", datagrams.hello(NONCE, "pong")[:-1]),
        ("an_open_too_short", datagrams.open_(NONCE, BAKED, "pong")[:-1]),
        ("another_type", b"\1\6" + datagrams.hello(NONCE, "pong")[2:]),
        ("type_0", b"\1\0" + datagrams.hello(NONCE, "pong")[2:]),
        ("no_name", datagrams.hello(NONCE, "")),
        ("a_name_too_long", datagrams.hello(NONCE, "x" * 65)),
        ("something_behind_the_name", datagrams.hello(NONCE, "pong")[:-1] + b"x"),
        ("a_name_beyond_the_end", bytes((1, 1)) + NONCE + b"\xff" + b"x" * 200),
    )
    def test_what_is_neither_is_passed_over(self, _: str, datagram: bytes) -> None:
        self.assertIsNone(datagrams.parse_request(datagram))

    def test_longer_ones_than_anybody_needs_are_not_looked_at(self) -> None:
        for length, found in ((REQUEST_BYTES, Request(NONCE, "pong")), (REQUEST_BYTES + 1, None)):
            padded = datagrams.hello(NONCE, "pong").ljust(length, b"\0")
            self.assertEqual(datagrams.parse_request(padded), found)
            self.assertEqual(datagrams.other_version(b"\2" + padded[1:]) is None, found is None)

    def test_another_version_is_told_so_and_no_longer_than_it_was(self) -> None:
        for datagram in (b"\2" + datagrams.hello(NONCE, "pong")[1:], b"\0\3" + NONCE + bytes(200)):
            answer = datagrams.other_version(datagram)
            assert answer is not None
            self.assertEqual(datagrams.parse_reply(answer, NONCE), Reply(NO, b"bad-request"))
            self.assertLessEqual(len(answer), len(datagram))

    @each(
        ("ours", datagrams.hello(NONCE, "pong")),
        ("short", b"\2" + datagrams.hello(NONCE, "pong")[1:-1]),
        ("no", b"\2\5" + bytes(200)),
        ("data", b"\2\6" + bytes(200)),
        ("empty", b""),
    )
    def test_nothing_else_is(self, _: str, datagram: bytes) -> None:
        self.assertIsNone(datagrams.other_version(datagram))


class Replies(SynchronousTestCase):
    @each(
        ("cookie", datagrams.cookie(NONCE, BAKED), Reply(COOKIE, BAKED)),
        ("ok", datagrams.ok(NONCE, IDENT), Reply(OK, IDENT)),
        *((word.value, datagrams.no(NONCE, word), Reply(NO, word.value.encode())) for word in Refusal),
        ("longest", bytes((1, NO)) + NONCE + b"x" * NO_BYTES, Reply(NO, b"x" * NO_BYTES)),
    )
    def test_each_is_read_and_not_longer_than_what_it_answers(self, _: str, datagram: bytes, reply: Reply) -> None:
        self.assertEqual(datagrams.parse_reply(datagram, NONCE), reply)
        self.assertLessEqual(len(datagram), PADDED_BYTES)
        self.assertIsNone(datagrams.parse_reply(datagram, b"another."))

    @each(
        ("empty", b""),
        ("another_version", b"\2" + datagrams.ok(NONCE, IDENT)[1:]),
        ("a_cookie_too_short", datagrams.cookie(NONCE, BAKED)[:-1]),
        ("a_cookie_too_long", datagrams.cookie(NONCE, BAKED) + b"x"),
        ("a_session_too_short", datagrams.ok(NONCE, IDENT)[:-1]),
        ("no_and_too_much", bytes((1, NO)) + NONCE + b"x" * (NO_BYTES + 1)),
        ("a_hello", datagrams.hello(NONCE, "pong")),
    )
    def test_what_is_none_is_passed_over(self, _: str, datagram: bytes) -> None:
        self.assertIsNone(datagrams.parse_reply(datagram, NONCE))

    def test_what_a_far_side_says_is_shown_printable(self) -> None:
        self.assertNotIn("\x1b", Reply(NO, b"denied\x1b[31m").said)


class OfNoSession(SynchronousTestCase):
    def test_data_and_ends_are_answered_by_a_close_as_long_at_most(self) -> None:
        session = Session(IDENT)
        for datagram in (session.data(b""), session.data(b"hello"), session.end()):
            answer = datagrams.close_unknown(datagram)
            assert answer is not None
            self.assertLessEqual(len(answer), len(datagram))
            self.assertEqual(Session(IDENT).receive(answer), (CLOSE, b""))

    @each(
        ("a_close", Session(IDENT).close()),
        ("an_ok", datagrams.ok(NONCE, IDENT)),
        ("too_short", Session(IDENT).data(b"")[:-1]),
        ("another_version", b"\2" + Session(IDENT).data(b"x")[1:]),
        ("empty", b""),
    )
    def test_nothing_else_is(self, _: str, datagram: bytes) -> None:
        self.assertIsNone(datagrams.close_unknown(datagram))


class Sessions(SynchronousTestCase):
    def counted(self, *numbers: int, ends: int | None = None) -> Counts:
        """Return what is counted where data with these numbers comes, and at last an end."""
        receiver, sender = Session(IDENT), datagram_peer.Peer(None, IDENT)  # type: ignore[arg-type]
        for number in numbers:
            self.assertEqual(receiver.receive(sender.datagram(b"x", number)), (DATA, b"x"))
        if ends is not None:
            sender.sent = ends
            closing = datagram_peer.CLOSE + IDENT + ends.to_bytes(4, "big")
            self.assertEqual(receiver.receive(closing), (CLOSE, b""))
        return receiver.counts

    @each(
        ("all_in_order", (0, 1, 2), Counts(received=3)),
        ("one_is_missing", (0, 2), Counts(received=2, lost=1)),
        ("the_first_are", (5,), Counts(received=1, lost=5)),
        ("one_is_late", (0, 2, 1), Counts(received=3, reordered=1)),
        ("two_change_places", (1, 0, 2), Counts(received=3, reordered=1)),
        ("one_comes_twice", (0, 0, 1), Counts(received=3, repeated=1)),
        ("a_late_one_comes_twice", (0, 2, 1, 1), Counts(received=4, reordered=1, repeated=1)),
        ("one_comes_thrice", (0, 1, 1, 1), Counts(received=4, repeated=2)),
        ("older_than_is_remembered", (*range(WINDOW + 5), 1), Counts(received=WINDOW + 6, reordered=1)),
        ("the_oldest_that_is", (*range(WINDOW), 0), Counts(received=WINDOW + 1, repeated=1)),
        ("a_jump_over_all_that_is", (0, 1000, 0), Counts(received=3, lost=998, reordered=1)),
    )
    def test_it_counts(self, _: str, numbers: tuple[int, ...], counts: Counts) -> None:
        self.assertEqual(self.counted(*numbers), counts)

    @each(
        ("all_has_come", (0, 1), 2, Counts(received=2)),
        ("the_last_two_have_not", (0,), 3, Counts(received=1, lost=2)),
        ("none_was_sent", (), 0, Counts()),
        ("a_close_that_has_overtaken", (0, 1, 2), 2, Counts(received=3)),
    )
    def test_the_end_tells_what_is_missing_there(
        self, _: str, numbers: tuple[int, ...], ends: int, counts: Counts
    ) -> None:
        self.assertEqual(self.counted(*numbers, ends=ends), counts)

    def test_the_numbers_begin_again_behind_the_last(self) -> None:
        session = Session(IDENT)
        session._next = session._expected = SEQUENCES - 1
        peer = Session(IDENT)
        peer._expected = SEQUENCES - 1
        for _ in range(3):
            peer.receive(session.data(b""))
        self.assertEqual(peer.counts, Counts(received=3))

    def test_what_was_not_sent_has_no_number(self) -> None:
        one, other = Session(IDENT), Session(IDENT)
        one.data(b"a")
        one.data(b"b")
        one.unsent(2)
        other.receive(one.data(b"c"))
        self.assertEqual((one.counts, other.counts), (Counts(sent=1), Counts(received=1)))

    def test_of_another_session_it_takes_nothing(self) -> None:
        session, stranger = Session(IDENT), Session(b"another!")
        for datagram in (stranger.data(b"x"), stranger.end(), stranger.close(), b"", IDENT):
            self.assertIsNone(session.receive(datagram))
        self.assertEqual(session.counts, Counts())

    def test_it_says_that_somebody_is_here_and_counts_what_is_missing_there(self) -> None:
        caller, called = Session(IDENT), Session(IDENT)
        caller.data(b"lost on its way")
        self.assertEqual(called.receive(caller.here()), (HERE, b""))
        self.assertEqual(called.counts.lost, 1)

    @each(
        ("whole", Session(IDENT).data(b"x"), True),
        ("what_icmp_has_to_quote_of_ipv4_is_too_little", b"", False),
        ("its_name_is_enough", Session(IDENT).data(b"x")[:10], True),
        ("another_s", Session(b"another!").data(b"x"), False),
        ("of_another_version", b"\2" + Session(IDENT).data(b"x")[1:], False),
    )
    def test_what_was_quoted_is_known_again(self, _: str, datagram: bytes, known: bool) -> None:
        self.assertIs(Session(IDENT).is_quoted(datagram), known)

    def test_an_end_has_nothing_behind_it(self) -> None:
        session = Session(IDENT)
        for datagram in (session.end(), session.close()):
            self.assertIsNotNone(session.receive(datagram))
            self.assertIsNone(session.receive(datagram + b"x"))
        self.assertEqual(session.receive(session.end()), (END, b""))

    @PROPERTY
    @given(st.lists(st.integers(0, 100), max_size=60))
    def test_what_came_once_is_never_counted_as_lost(self, numbers: list[int]) -> None:
        counts = self.counted(*numbers)
        self.assertEqual(counts.received, len(numbers))
        if len(set(numbers)) <= WINDOW and numbers and max(numbers) < WINDOW:
            self.assertEqual(counts.repeated, len(numbers) - len(set(numbers)))
            self.assertEqual(counts.lost, max(numbers) + 1 - len(set(numbers)))

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_whatever_comes_is_understood_or_passed_over(self, datagram: bytes) -> None:
        for parse in (datagrams.parse_request, datagrams.other_version, datagrams.close_unknown):
            answer = parse(datagram)
            if isinstance(answer, bytes):
                self.assertLessEqual(len(answer), len(datagram))
        datagrams.parse_reply(datagram, NONCE)
        Session(datagrams.session_of(datagram).ljust(8)).receive(datagram)

    def test_the_header_is_what_the_document_says(self) -> None:
        self.assertEqual(len(Session(IDENT).data(b"")), HEADER_BYTES)
        self.assertIn(
            f"session 8, sequence number 4, the message | {HEADER_BYTES} and",
            section("protocol.md", "udp, between plumberds"),
        )

    def test_counts_are_added(self) -> None:
        total = Counts(1, 2, 3, 4, 5, 6, 7)
        total.add(Counts(1, 1, 1, 1, 1, 1, 1))
        self.assertEqual(total, Counts(2, 3, 4, 5, 6, 7, 8))
