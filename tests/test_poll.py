"""plumberd.effects.poll: every edge once, and nobody else's."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any
from unittest import mock

from twisted.internet.task import Clock

from plumberd.effects import poll as poll_module
from plumberd.effects.kernel import unsent_bytes
from plumberd.effects.poll import ERR, HUP, IN, OUT, Poll
from tests.support import CleanTestCase, Readers, in_thread, read_exactly, real_reactor, until


class PollTestCase(CleanTestCase):
    """A Poll whose rounds the test makes."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.readers: Any = Readers()
        self.poll = Poll(self.readers, self.clock)  # type: ignore[arg-type]
        self.addCleanup(self.poll.close)
        self.seen: list[tuple[str, int]] = []

    def watch(self, sock: socket.socket, name: str = "it", *, level: bool = False) -> None:
        self.poll.watch(sock.fileno(), lambda events: self.seen.append((name, events)), level=level)

    def round(self) -> list[tuple[str, int]]:
        """Make one round; return what it told."""
        self.seen.clear()
        self.poll.turn()
        return list(self.seen)


class Edges(PollTestCase):
    def test_the_present_state_is_told_first(self) -> None:
        left, right = self.pair()
        right.sendall(b"x")
        self.watch(left)
        self.assertEqual(self.round(), [("it", IN | OUT)])

    def test_a_state_that_stays_is_told_once(self) -> None:
        left, right = self.pair()
        right.sendall(b"x")
        self.watch(left)
        self.round()
        self.assertEqual(self.round(), [])

    def test_without_room_what_has_left_is_no_edge_until_it_is_asked_for(self) -> None:
        left, right = self.pair()
        self.poll.watch(left.fileno(), lambda events: self.seen.append(("it", events)), room=False)
        left.sendall(b"x")
        right.recv(1)
        self.assertEqual(self.round(), [])
        right.sendall(b"x")
        self.assertEqual(self.round(), [("it", IN)])
        self.poll.tell_room(left.fileno(), wanted=True)
        self.assertEqual(self.round(), [("it", IN | OUT)])
        left.sendall(b"x")
        right.recv(1)
        self.assertEqual(self.round(), [("it", IN | OUT)])
        self.poll.tell_room(left.fileno(), wanted=False)
        self.round()
        left.sendall(b"x")
        right.recv(1)
        self.assertEqual(self.round(), [])

    def test_every_arrival_is_told(self) -> None:
        left, right = self.pair()
        self.watch(left)
        self.round()
        for _ in range(2):
            right.sendall(b"x")
            ((name, events),) = self.round()
            self.assertEqual((name, events & IN), ("it", IN))

    def test_with_level_it_is_told_as_long_as_something_is_there(self) -> None:
        left, right = self.pair()
        right.sendall(b"x")
        self.watch(left, level=True)
        self.assertEqual(self.round(), [("it", IN)])
        self.assertEqual(self.round(), [("it", IN)])
        left.recv(1)
        self.assertEqual(self.round(), [])

    def test_a_unix_peer_that_closed_is_a_hang_up(self) -> None:
        left, right = self.pair()
        self.watch(left)
        self.round()
        right.close()
        ((_, events),) = self.round()
        self.assertEqual(events & HUP, HUP)

    def test_a_half_close_is_no_hang_up(self) -> None:
        left, right = self.pair()
        self.watch(left)
        self.round()
        right.shutdown(socket.SHUT_WR)
        ((_, events),) = self.round()
        self.assertEqual(events & (IN | HUP), IN)

    async def test_a_reset_after_a_half_close_is_an_error(self) -> None:
        left, right = self.tcp_pair()
        right.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(left.recv, 1), b"")
        self.watch(left)
        self.round()
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        right.close()
        await until(self.round)
        self.assertEqual(self.seen[0][1] & ERR, ERR)

    def test_the_moment_when_the_peer_has_taken_all_is_told(self) -> None:
        left, right = self.pair()
        self.watch(left)
        self.round()
        left.sendall(b"answer")
        self.assertEqual(self.round(), [])
        right.recv(6)
        ((_, events),) = self.round()
        self.assertEqual(events & OUT, OUT)
        self.assertEqual(unsent_bytes(left.fileno()), 0)

    def test_a_round_takes_no_more_than_its_share_and_the_next_one_goes_on(self) -> None:
        self.patch(poll_module, "EVENTS_A_ROUND", 2)
        pairs = [self.pair() for _ in range(3)]
        for number, (left, _) in enumerate(pairs):
            self.watch(left, str(number))
        self.assertEqual((len(self.round()), len(self.round())), (2, 1))


class Forgetting(PollTestCase):
    def test_a_forgotten_socket_is_silent(self) -> None:
        left, right = self.pair()
        self.watch(left)
        self.poll.forget(left.fileno())
        right.sendall(b"x")
        self.assertEqual(self.round(), [])
        self.assertFalse(self.poll.watches(left.fileno()))

    def test_a_forgotten_socket_may_be_watched_again(self) -> None:
        left, _right = self.pair()
        self.watch(left, "first")
        self.poll.forget(left.fileno())
        self.watch(left, "second")
        self.assertEqual(self.round(), [("second", OUT)])

    def test_what_is_not_watched_can_be_forgotten(self) -> None:
        left, _right = self.pair()
        self.poll.forget(left.fileno())
        self.poll.forget(-1)
        self.assertEqual(self.round(), [])

    def test_a_socket_that_was_closed_already_can_be_forgotten(self) -> None:
        left, _right = self.pair()
        self.watch(left)
        number = left.fileno()
        left.close()
        self.poll.forget(number)
        self.assertFalse(self.poll.watches(number))
        self.assertEqual(self.round(), [])

    def test_a_forgotten_socket_that_lives_on_elsewhere_is_silent(self) -> None:
        left, right = self.pair()
        self.watch(left)
        copy = self.owned(left.dup())
        self.poll.forget(left.fileno())
        left.close()
        right.sendall(b"x")
        self.assertEqual(self.round(), [])
        self.assertEqual(copy.recv(1), b"x")

    def test_within_a_round_a_forgotten_socket_is_silent_too(self) -> None:
        pairs = [self.pair() for _ in range(2)]
        numbers = [left.fileno() for left, _ in pairs]

        def forget_both(events: int) -> None:
            self.seen.append(("one of them", events))
            for number in numbers:
                self.poll.forget(number)

        for number in numbers:
            self.poll.watch(number, forget_both)
        self.assertEqual(self.round(), [("one of them", OUT)])

    def test_a_number_that_is_used_again_within_a_round_gets_no_event_of_its_predecessor(self) -> None:
        # Both are ready in one round. Whichever has its turn first closes the other one, and a
        # new socket, with nothing to read, gets that one's number.
        pairs = [self.pair() for _ in range(2)]
        news: list[socket.socket] = []

        def replace(mine: socket.socket, others: socket.socket) -> None:
            number = others.fileno()
            self.poll.forget(number)
            others.close()
            new, far = self.pair()
            if new.fileno() != number:
                new, far = far, new
            self.assertEqual(new.fileno(), number)
            news.append(new)
            self.watch(new, "new")
            self.poll.forget(mine.fileno())

        (one, one_far), (two, two_far) = pairs
        self.poll.watch(one.fileno(), lambda _: replace(one, two))
        self.poll.watch(two.fileno(), lambda _: replace(two, one))
        for far in (one_far, two_far):
            far.sendall(b"x")
        self.assertEqual(self.round(), [])
        self.assertEqual(len(news), 1)
        # The new one's own first edge is not lost: nothing to read, and it can be written.
        self.assertEqual(self.round(), [("new", OUT)])

    def test_a_redirected_sockets_edges_go_elsewhere(self) -> None:
        left, right = self.pair()
        self.watch(left, "old")
        self.round()
        self.poll.redirect(left.fileno(), lambda events: self.seen.append(("new", events & IN)))
        right.sendall(b"x")
        self.assertEqual(self.round(), [("new", IN)])


class Failures(PollTestCase):
    def test_a_callback_that_fails_is_logged_and_its_socket_is_no_longer_watched(self) -> None:
        left, right = self.pair()

        def fail(events: int) -> None:
            raise ZeroDivisionError

        self.poll.watch(left.fileno(), fail)
        self.round()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(self.poll.watches(left.fileno()))
        right.sendall(b"x")
        self.assertEqual(self.round(), [])

    def test_the_others_of_that_round_have_their_turn(self) -> None:
        pairs = [self.pair() for _ in range(3)]

        def fail(events: int) -> None:
            raise ZeroDivisionError

        self.watch(pairs[0][0], "before")
        self.poll.watch(pairs[1][0].fileno(), fail)
        self.watch(pairs[2][0], "behind")
        self.assertEqual([name for name, _ in self.round()], ["before", "behind"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_callback_that_fails_after_its_number_went_to_another_harms_only_itself(self) -> None:
        left, _right = self.pair()

        def replace_and_fail(events: int) -> None:
            number = left.fileno()
            self.poll.forget(number)
            left.close()
            new, far = self.pair()
            self.watch(new if new.fileno() == number else far, "new")
            raise ZeroDivisionError

        self.poll.watch(left.fileno(), replace_and_fail)
        self.round()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.round(), [("new", OUT)])


class Again(PollTestCase):
    def test_work_goes_on_in_the_next_round(self) -> None:
        done: list[str] = []
        self.poll.again(lambda: done.append("first"))
        self.poll.again(lambda: done.append("second"))
        self.assertEqual(done, [])
        self.clock.advance(0)
        self.assertEqual(done, ["first", "second"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_work_that_fails_is_logged_and_the_rest_is_done(self) -> None:
        done: list[str] = []

        def fail() -> None:
            raise ZeroDivisionError

        self.poll.again(fail)
        self.poll.again(lambda: done.append("rest"))
        self.clock.advance(0)
        self.assertEqual(done, ["rest"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_work_that_closes_the_poll_is_the_last(self) -> None:
        done: list[str] = []
        poll = Poll(self.readers, self.clock)
        poll.again(poll.close)
        poll.again(lambda: done.append("after the end"))
        self.clock.advance(0)
        self.assertEqual((done, self.clock.getDelayedCalls()), ([], []))


class Ends(PollTestCase):
    def test_closing_leaves_the_watched_sockets_open(self) -> None:
        left, right = self.pair()
        poll = Poll(self.readers, self.clock)
        poll.watch(left.fileno(), self.seen.append)  # type: ignore[arg-type]
        poll.close()
        self.assertEqual(self.readers.readers, [self.poll])
        right.sendall(b"x")
        self.assertEqual(left.recv(1), b"x")
        self.assertEqual((poll.fileno(), self.seen), (-1, []))

    def test_closing_leaves_no_delayed_call(self) -> None:
        done: list[str] = []
        poll = Poll(self.readers, self.clock)
        poll.again(lambda: done.append("after the end"))
        poll.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1)
        self.assertEqual(done, [])

    def test_closing_within_a_round_ends_that_round(self) -> None:
        poll = Poll(self.readers, self.clock)
        told: list[int] = []

        def close(events: int) -> None:
            told.append(events)
            poll.close()

        for left, _ in (self.pair(), self.pair()):
            poll.watch(left.fileno(), close)
        poll.turn()
        self.assertEqual(told, [OUT])


class Answers(PollTestCase):
    """Where an answer is expected it is seen to without a round of the reactor."""

    def hopping(self, times: int) -> list[int]:
        """Let a byte come back to a socket *times* times; return where its arrivals are counted."""
        left, right = self.pair()
        right.sendall(b"x")
        counted: list[int] = []

        def pass_on(events: int) -> None:
            if events & IN:
                left.recv(1)
                counted.append(events)
                if len(counted) < times:
                    right.sendall(b"x")
                    self.poll.expect()

        self.poll.watch(left.fileno(), pass_on)
        return counted

    def test_what_comes_of_it_is_dispatched_at_once(self) -> None:
        counted = self.hopping(10)
        self.poll.doRead()
        self.assertEqual(len(counted), 10)

    def test_the_reactor_has_its_turn_all_the_same(self) -> None:
        counted = self.hopping(1000)
        self.poll.doRead()
        self.assertEqual(len(counted), poll_module.ROUNDS)

    def test_work_that_waits_for_the_reactor_ends_it(self) -> None:
        counted = self.hopping(10)
        self.poll.again(lambda: None)
        self.poll.doRead()
        self.assertEqual(len(counted), 1)

    def test_much_that_is_going_on_ends_it(self) -> None:
        for _ in range(poll_module.FEW_EVENTS):
            self.watch(self.pair()[0])
        counted = self.hopping(10)
        self.poll.doRead()
        self.assertEqual(len(counted), 1)

    def test_nobody_waits_for_what_is_not_expected(self) -> None:
        left, right = self.pair()
        right.sendall(b"x")
        self.watch(left)
        with mock.patch("os.sched_yield") as gives_way:
            self.poll.doRead()
        self.assertEqual(gives_way.call_count, 0)

    def expecting(self, answers: int, rounds: int) -> int:
        """Expect an answer in each of *rounds*, of which the first *answers* come; return how often it was waited."""
        left, right = self.pair()
        other, _ = self.pair()
        self.watch(left)
        self.poll.doRead()
        with mock.patch("os.sched_yield") as gives_way:
            for number in range(rounds):
                gives_way.side_effect = (lambda: right.sendall(b"x")) if number < answers else None
                self.poll.watch(other.fileno(), lambda events: self.poll.expect())
                self.poll.doRead()
                self.poll.forget(other.fileno())
        return int(gives_way.call_count)

    def test_who_answers_is_waited_for_each_time(self) -> None:
        self.assertEqual(self.expecting(answers=20, rounds=20), 20)

    def test_who_does_not_is_waited_for_more_and_more_seldom(self) -> None:
        self.assertEqual(self.expecting(answers=0, rounds=1 + 2 + 4 + 8), 4)


class InTheReactor(CleanTestCase):
    async def test_the_reactor_makes_the_rounds(self) -> None:
        poll = Poll(real_reactor, real_reactor)
        self.addCleanup(poll.close)
        left, right = self.tcp_pair()
        got: list[bytes] = []

        def ready(events: int) -> None:
            if events & IN:
                got.append(os.read(left.fileno(), 100))

        poll.watch(left.fileno(), ready)
        right.sendall(b"ping")
        await until(lambda: got)
        left.sendall(b"pong")
        self.assertEqual((got, await in_thread(read_exactly, right, 4)), ([b"ping"], b"pong"))

    async def test_work_that_asks_for_more_takes_turns_with_others(self) -> None:
        poll = Poll(real_reactor, real_reactor)
        self.addCleanup(poll.close)
        turns: list[str] = []

        def work() -> None:
            turns.append("work")
            if len(turns) < 6:
                poll.again(work)

        def other() -> None:
            turns.append("other")
            if len(turns) < 6:
                real_reactor.callLater(0, other)

        poll.again(work)
        real_reactor.callLater(0, other)
        await until(lambda: len(turns) >= 6)
        self.assertEqual(turns[:6], ["work", "other"] * 3)
