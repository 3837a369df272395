"""plumberd.pure.datagram_door: who brings its cookie back is let in, and nothing is kept before."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure import datagrams
from plumberd.pure.datagram_door import COOKIE_SECONDS, ENDED, ENDED_PER_ACCOUNT, KEY_SECONDS, Door, Ended, Opening
from plumberd.pure.refusals import Refusal
from tests.tables import PROPERTY, each
from tests.test_docs import section

NONCE, HERE, KEY = b"nonce...", b"192.0.2.1 4711", bytes(32)


class Over(SynchronousTestCase):
    def test_it_is_answered_again_as_long_as_a_cookie_is_good(self) -> None:
        ended = Ended()
        self.assertEqual(ended.answers("one", 1000.0), ())
        ended.add("one", (b"ok", b"close"), "192.0.2.1", 1000.0)
        for now, answers in ((1000.0, (b"ok", b"close")), (1000.0 + COOKIE_SECONDS, (b"ok", b"close")), (1017.0, ())):
            self.assertEqual(ended.answers("one", now), answers)
            self.assertEqual(ended.answers("another", now), ())

    def test_of_one_account_there_are_so_many_and_of_all(self) -> None:
        ended = Ended()
        for number in range(ENDED_PER_ACCOUNT + 1):
            ended.add(number, (b"ok",), "192.0.2.1", 1000.0)
        self.assertEqual(ended.answers(ENDED_PER_ACCOUNT - 1, 1000.0), (b"ok",))
        self.assertEqual(ended.answers(ENDED_PER_ACCOUNT, 1000.0), ())
        for number in range(ENDED):
            ended.add(("other", number), (b"ok",), str(number), 1001.0)
        self.assertEqual(ended.answers(0, 1001.0), ())
        self.assertEqual(ended.answers(("other", 0), 1001.0), (b"ok",))
        ended.add("again", (b"ok",), "192.0.2.1", 1002.0)
        self.assertEqual(ended.answers("again", 1002.0), (b"ok",))


class Doors(SynchronousTestCase):
    def setUp(self) -> None:
        self.door = Door(KEY, 1000.0)

    def cookie(self, now: float = 1000.0, source: bytes = HERE, name: str = "pong", nonce: bytes = NONCE) -> bytes:
        """Return the cookie for a hello."""
        answer = self.door.receive(datagrams.hello(nonce, name), source, now)
        assert isinstance(answer, bytes)
        reply = datagrams.parse_reply(answer, nonce)
        assert reply is not None
        self.assertEqual(reply.kind, datagrams.COOKIE)
        return reply.body

    def opened(self, cookie: bytes, now: float = 1000.0, source: bytes = HERE, name: str = "pong") -> object:
        """Return what comes of an open."""
        return self.door.receive(datagrams.open_(NONCE, cookie, name), source, now)

    def test_a_cookie_opens_from_where_it_was_sent(self) -> None:
        self.assertEqual(self.opened(self.cookie()), Opening(NONCE, "pong"))

    @each(
        ("another_address", {"source": b"192.0.2.2 4711"}, {}),
        ("another_port", {"source": b"192.0.2.1 4712"}, {}),
        ("another_service", {"name": "ping"}, {}),
        ("too_late", {"now": 1000.0 + COOKIE_SECONDS + 1}, {}),
        ("before_it_was_made", {"now": 999.0}, {}),
        ("another_nonce", {}, {"nonce": b"another."}),
    )
    def test_nothing_else_does_and_is_not_answered(
        self, _: str, opened: dict[str, object], made: dict[str, object]
    ) -> None:
        self.assertIsNone(self.opened(self.cookie(**made), **opened))  # type: ignore[arg-type]

    def test_a_changed_bit_does_not(self) -> None:
        cookie = self.cookie()
        for bit in range(len(cookie) * 8):
            changed = (int.from_bytes(cookie, "big") ^ (1 << bit)).to_bytes(len(cookie), "big")
            self.assertIsNone(self.opened(changed), bit)

    def test_it_is_good_to_the_last_second(self) -> None:
        self.assertEqual(self.opened(self.cookie(), 1000.0 + COOKIE_SECONDS), Opening(NONCE, "pong"))

    def test_the_clock_may_begin_again(self) -> None:
        late = 2.0**32 - 1
        self.assertEqual(self.opened(self.cookie(late), late + 2), Opening(NONCE, "pong"))

    def test_after_a_change_the_key_before_is_still_good_and_the_one_before_that_is_not(self) -> None:
        cookie = self.cookie()
        self.assertFalse(self.door.wants_key(1000.0 + KEY_SECONDS - 1))
        self.assertTrue(self.door.wants_key(1000.0 + KEY_SECONDS))
        self.door.change_key(b"1" * 32, 1000.0)
        self.assertEqual(self.opened(cookie), Opening(NONCE, "pong"))
        self.door.change_key(b"2" * 32, 1000.0)
        self.assertIsNone(self.opened(cookie))

    def test_a_key_that_is_too_old_is_not_kept(self) -> None:
        cookie = self.cookie()
        self.door.change_key(b"1" * 32, 1000.0 + 2 * KEY_SECONDS)
        self.assertIsNone(self.opened(cookie))

    def test_another_process_s_cookie_is_nothing_here(self) -> None:
        other = Door(b"1" * 32, 1000.0)
        answer = other.receive(datagrams.hello(NONCE, "pong"), HERE, 1000.0)
        assert isinstance(answer, bytes)
        self.assertIsNone(self.opened(answer[10:]))

    def test_another_version_is_refused_and_data_is_not_answered(self) -> None:
        hello = datagrams.hello(NONCE, "pong")
        answer = self.door.receive(b"\2" + hello[1:], HERE, 0.0)
        self.assertEqual(answer, datagrams.no(NONCE, Refusal.BAD_REQUEST))
        self.assertIsNone(self.door.receive(datagrams.Session(b"session!").data(bytes(200)), HERE, 0.0))

    def test_names_and_addresses_cannot_be_shifted_into_each_other(self) -> None:
        cookie = self.cookie(source=b"ab", name="c")
        self.assertIsNone(self.opened(cookie, source=b"a", name="bc"))

    def test_it_holds_no_more_after_many_than_after_one(self) -> None:
        before = sys.getsizeof(self.door), vars(self.door).keys()
        for number in range(1000):
            self.door.receive(datagrams.hello(number.to_bytes(8, "big"), "pong"), str(number).encode(), 1000.0)
        self.assertEqual((sys.getsizeof(self.door), vars(self.door).keys()), before)
        self.assertTrue(all(isinstance(value, tuple | float) for value in vars(self.door).values()))

    def test_the_times_are_those_of_the_document(self) -> None:
        text = section("protocol.md", "udp, between plumberds")
        self.assertIn(f"younger than {COOKIE_SECONDS} seconds", text)
        self.assertIn(f"every {KEY_SECONDS} seconds", text)

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_no_answer_is_longer_than_its_request(self, datagram: bytes) -> None:
        answer = Door(KEY, 0.0).receive(datagram, HERE, 0.0)
        self.assertFalse(isinstance(answer, Opening))
        if isinstance(answer, bytes):
            self.assertLessEqual(len(answer), len(datagram))
