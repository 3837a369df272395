"""plumberd.effects.datagram_relay: messages between a program and a far side, and how that ends."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from unittest import mock

from twisted.internet.task import Clock

from plumberd.effects import datagram_relay
from plumberd.effects.datagram_relay import BATCH, DRAIN_SECONDS, DatagramRelay, Far
from plumberd.effects.messages import MessageEnd, message_pair
from plumberd.effects.poll import Poll
from plumberd.pure.datagrams import Counts, Session
from plumberd.pure.shape import Shape, SocketType
from tests.datagram_peer import END
from tests.support import CleanTestCase, Readers
from tests.tables import each

IDLE = 60.0


class FakeFar(Far):
    """Writes down what it is told; *room* is how many messages it takes before it is full."""

    def __init__(self, limit: int = 1000) -> None:
        super().__init__()
        self.limit = limit
        self.room = 1 << 30
        self.sent: list[bytes] = []
        self.told: list[str] = []
        self.error: OSError | None = None

    @property
    def limit_bytes(self) -> int:
        return self.limit

    def start(self) -> None:
        self.told.append("start")

    def send(self, messages: list[bytes]) -> int:
        if self.error is not None:
            raise self.error
        count = min(self.room, len(messages))
        self.room -= count
        self.sent += messages[:count]
        return count

    def read_on(self) -> None:
        self.told.append("read on")

    def end(self) -> None:
        self.told.append("end")

    def here(self) -> None:
        self.told.append("here")

    def close(self, *, tell: bool) -> None:
        self.told.append("close" if tell else "closed")


class RelayTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.poll = Poll(Readers(), self.clock)  # type: ignore[arg-type]
        self.addCleanup(self.poll.close)
        self.far = FakeFar()
        self.ended: list[str] = []
        self.large: list[tuple[int, int]] = []

    def relay(self, kind: SocketType = SocketType.SEQPACKET, framing: str = "raw") -> socket.socket:
        """Start one; return the program's socket."""
        ours, theirs = message_pair(Shape(kind, framing))
        near = MessageEnd(ours, framing)
        self.made = DatagramRelay(
            self.poll,
            self.clock,
            near,
            self.far,
            IDLE,
            lambda relay: self.ended.append(relay.ending),
            too_large=lambda size, limit: self.large.append((size, limit)),
        )
        self.addCleanup(self.made.abort)
        self.made.start()
        return self.owned(theirs)

    def turn(self, until: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is ready."""
        for _ in range(20):
            self.poll.doRead()
            self.clock.advance(0)
            if until is not None and until():
                return


class Carried(RelayTestCase):
    def test_messages_go_both_ways_and_bytes_are_counted(self) -> None:
        program = self.relay()
        program.send(b"up")
        program.send(b"again")
        self.turn()
        self.made.received([b"down", b"x"])
        self.assertEqual(self.far.sent, [b"up", b"again"])
        self.assertEqual([program.recv(9), program.recv(9)], [b"down", b"x"])
        self.assertEqual((self.made.up, self.made.down), (7, 5))

    def test_many_take_their_turns_and_all_go(self) -> None:
        program = self.relay()
        program.settimeout(None)
        sent = []
        for number in range(BATCH * 3):
            program.send(number.to_bytes(2, "big"))
            sent.append(number.to_bytes(2, "big"))
        self.turn()
        self.assertEqual(self.far.sent, sent)

    def test_of_one_the_answer_is_looked_for_at_once_and_of_more_not(self) -> None:
        looks: list[str] = []
        self.patch(self.poll, "expect", lambda: looks.append("look"))
        program = self.relay()
        program.send(b"one")
        self.poll.turn()
        self.assertEqual((self.far.sent, len(looks)), ([b"one"], 1))
        self.made.received([b"answer"])
        self.assertEqual(len(looks), 2)
        for message in (b"two", b"three"):
            program.send(message)
        self.poll.turn()
        self.made.received([b"two", b"three"])
        self.assertEqual((self.far.sent[1:], len(looks)), ([b"two", b"three"], 2))

    def test_a_far_side_without_room_stops_the_reading(self) -> None:
        program = self.relay()
        self.far.room = 2
        for number in range(5):
            program.send(bytes((number,)))
        self.turn()
        self.assertEqual(self.far.sent, [b"\0", b"\1"])
        program.send(b"\5")
        self.turn()
        self.assertEqual(len(self.far.sent), 2)
        self.far.room = 100
        self.made.resume()
        self.assertEqual(self.far.sent, [bytes((number,)) for number in range(6)])

    def test_a_far_side_that_waits_is_told_when_the_program_has_read(self) -> None:
        program = self.relay(SocketType.STREAM)
        self.made.received([b"one", b"two"])
        self.assertFalse(self.made.has_room)
        self.assertEqual(program.recv(9), b"one")
        self.turn(lambda: "read on" in self.far.told)
        self.assertEqual(program.recv(9), b"two")
        self.assertIn("read on", self.far.told)

    def test_what_does_not_fit_is_counted_and_the_first_is_told(self) -> None:
        self.relay()
        for size in (1001, 2000):
            self.made.too_large(size, 1000)
        self.assertEqual((self.large, self.made.counts.too_large), ([(1001, 1000)], 2))

    def test_what_the_program_was_too_slow_for_is_counted_once(self) -> None:
        self.relay()
        self.made.received([b""])
        self.assertEqual([self.made.counts.dropped, self.made.counts.dropped], [1, 1])


class Gone(RelayTestCase):
    """A program that takes no more: what it sent before goes, and nothing is written to it any more."""

    @each((SocketType.STREAM, "libipc-zig", b"\0\0\0\4last"), (SocketType.SEQPACKET, "raw", b"last"))
    def test_what_it_sent_goes_where_something_for_it_comes_first(
        self, kind: SocketType, framing: str, last: bytes
    ) -> None:
        program = self.relay(kind, framing)
        program.send(last)
        program.close()
        self.made.received([b"too late"])
        self.assertEqual((self.far.sent, self.far.told[-1], self.ended), ([b"last"], "close", ["closed by left"]))

    def test_what_it_sent_goes_where_something_for_it_waits(self) -> None:
        program = self.relay(SocketType.STREAM, "libipc-zig")
        while self.made.has_room:
            self.made.received([bytes(60000)])
        self.turn()
        program.send(b"\0\0\0\4last")
        program.close()
        self.turn()
        self.assertEqual((self.far.sent, self.ended), ([b"last"], ["closed by left"]))

    @each((SocketType.SEQPACKET,), (SocketType.DGRAM,))
    def test_a_far_side_without_room_is_waited_for(self, kind: SocketType) -> None:
        program = self.relay(kind)
        self.far.room = 1
        for message in (b"one", b"two", b"three"):
            program.send(message)
        self.turn()
        program.close()
        with mock.patch.object(self.made._near, "write", wraps=self.made._near.write) as write:
            for _ in range(3):
                self.made.received([b"too late"])
                self.turn()
            self.made.far_ended()
        self.assertEqual((write.call_count, self.far.sent, self.ended), (1, [b"one"], []))
        self.far.room = 100
        self.made.resume()
        self.assertEqual((self.far.sent, self.ended), ([b"one", b"two", b"three"], ["closed by left; 2 dropped"]))

    def test_nor_for_ever(self) -> None:
        program = self.relay()
        self.far.room = 0
        program.send(b"last")
        program.close()
        for _ in range(4):
            self.made.received([b"too late"])
            self.clock.advance(IDLE / 4)
        self.assertEqual(self.ended, ["idle for 60 seconds; 3 dropped"])

    def test_more_than_goes_in_a_turn_goes_in_several(self) -> None:
        self.patch(datagram_relay, "A_TURN", 1)
        self.patch(datagram_relay, "BATCH", 2)
        program = self.relay()
        for number in range(5):
            program.send(bytes((number,)))
        program.close()
        self.made.received([b"too late"])
        self.assertEqual((self.far.sent, self.ended), ([b"\0", b"\1"], []))
        self.made.received([b"too late"])
        self.turn()
        self.assertEqual((len(self.far.sent), self.ended), (5, ["closed by left; 1 dropped"]))

    def test_one_that_had_sent_all_before_is_over_at_once(self) -> None:
        program = self.relay()
        program.shutdown(socket.SHUT_WR)
        self.turn()
        program.close()
        self.made.received([b"too late"])
        self.assertEqual((self.far.told, self.ended), (["start", "end", "close"], ["closed by left"]))

    def test_what_waits_for_room_goes_though_the_far_side_sends_no_more(self) -> None:
        program = self.relay()
        self.far.room = 0
        program.send(b"last")
        program.shutdown(socket.SHUT_WR)
        self.turn()
        self.made.far_ended()
        self.assertEqual(self.ended, [])
        self.far.room = 1
        self.made.resume()
        self.assertEqual((self.far.sent, self.ended), ([b"last"], ["closed"]))


class Ended(RelayTestCase):
    @each((SocketType.STREAM,), (SocketType.SEQPACKET,))
    def test_a_program_that_sends_no_more_still_receives(self, kind: SocketType) -> None:
        program = self.relay(kind)
        program.send(b"last")
        program.shutdown(socket.SHUT_WR)
        self.turn()
        self.assertEqual((self.far.sent, self.far.told, self.ended), ([b"last"], ["start", "end"], []))
        self.made.received([b"answer"])
        self.assertEqual(program.recv(9), b"answer")
        self.made.far_ended()
        self.assertEqual(self.ended, ["closed"])
        self.assertEqual(program.recv(9), b"")

    @each((SocketType.STREAM,), (SocketType.SEQPACKET,))
    def test_a_program_that_closes_ends_it_behind_its_last_message(self, kind: SocketType) -> None:
        program = self.relay(kind)
        program.send(b"last")
        program.close()
        self.turn()
        self.assertEqual((self.far.sent, self.far.told, self.ended), ([b"last"], ["start", "close"], ["closed"]))

    def test_what_it_sent_before_it_closed_with_something_unread_goes_too(self) -> None:
        program = self.relay()
        self.made.received([b"unread"])
        for message in (b"one", b"two"):
            program.send(message)
        program.close()
        self.turn()
        self.assertEqual((self.far.sent, self.ended), ([b"one", b"two"], ["broken: Connection reset by peer"]))

    def test_a_datagram_socket_s_owner_that_has_gone_is_noticed_with_the_next_message(self) -> None:
        program = self.relay(SocketType.DGRAM)
        program.close()
        self.turn()
        self.assertEqual(self.ended, [])
        self.made.received([b"x"])
        self.assertEqual((self.ended, self.far.told[-1]), (["closed by left"], "close"))

    def test_the_far_side_s_end_is_passed_on_and_the_program_may_go_on(self) -> None:
        program = self.relay()
        self.made.received([b"last"])
        self.made.far_ended()
        self.assertEqual([program.recv(9), program.recv(9)], [b"last", b""])
        program.send(b"more")
        self.turn()
        self.assertEqual(self.far.sent, [b"more"])
        self.made.received([b"too late"])
        program.close()
        self.turn()
        self.assertEqual(self.ended, ["closed; 1 dropped"])

    @each(
        ("in_one_reading", [(b"one", 0), (END, 2), (b"late", 1)]),
        ("in_several", [(b"one", 0)], [(END, 2)], [(b"late", 1)]),
    )
    def test_what_the_far_side_s_end_has_overtaken_is_dropped_and_counted(
        self, _: str, *readings: list[tuple[bytes, int]]
    ) -> None:
        program, session = self.relay(), Session(b"session!")
        self.far.counts = session.counts
        for reading in readings:
            self.made.heard(session, [self.datagram(*one) for one in reading])
        self.assertEqual([program.recv(9), program.recv(9)], [b"one", b""])
        self.assertEqual(self.made.counts, Counts(received=2, reordered=1, dropped=1))

    @staticmethod
    def datagram(message: bytes, number: int) -> bytes:
        """Return the far side's, with a message or END."""
        if message == END:
            return END + b"session!" + number.to_bytes(4, "big")
        return b"\1\6session!" + number.to_bytes(4, "big") + message

    def test_what_comes_behind_a_close_is_too(self) -> None:
        self.relay(SocketType.STREAM)
        self.made.received([b"one", b"two"])
        self.made.far_closed("closed")
        self.made.received([b"late"])
        self.clock.advance(DRAIN_SECONDS)
        self.assertEqual(self.ended, ["closed; 1 dropped"])

    def test_what_was_sent_before_a_close_is_read_first(self) -> None:
        program = self.relay(SocketType.STREAM)
        self.made.received([b"one", b"two"])
        self.made.far_closed("closed")
        self.assertEqual((program.recv(9), self.ended), (b"one", []))
        self.turn(lambda: bool(self.ended))
        self.assertEqual([program.recv(9), program.recv(9)], [b"two", b""])
        self.assertEqual((self.ended, self.far.told[-1]), (["closed"], "closed"))

    def test_but_not_waited_for_for_ever(self) -> None:
        self.relay(SocketType.STREAM)
        self.made.received([b"one", b"two"])
        self.made.far_closed("closed")
        self.clock.advance(DRAIN_SECONDS)
        self.assertEqual(self.ended, ["closed"])

    def test_a_program_that_goes_meanwhile_ends_it(self) -> None:
        program = self.relay(SocketType.STREAM)
        self.made.received([b"one", b"two"])
        self.made.far_closed("closed")
        program.close()
        self.turn()
        self.assertEqual(self.ended, ["closed by left"])

    def test_after_the_idle_time_it_is_over(self) -> None:
        program = self.relay()
        self.clock.advance(IDLE - 1)
        program.send(b"x")
        self.turn()
        self.clock.advance(IDLE - 1)
        self.made.received([b"y"])
        self.clock.advance(IDLE - 1)
        self.assertEqual(self.ended, [])
        self.clock.advance(1)
        self.assertEqual((self.ended, self.far.told[-1]), (["idle for 60 seconds"], "close"))
        self.assertEqual([program.recv(9), program.recv(9)], [b"y", b""])

    def test_where_the_far_side_alone_counts_what_the_program_sends_does_not_keep_it(self) -> None:
        self.far.alone_counts = True
        program = self.relay()
        for _ in range(3):
            self.clock.advance(IDLE / 4)
            program.send(b"x")
            self.turn()
        self.made.is_here()
        self.clock.advance(IDLE - 1)
        program.send(b"x")
        self.turn()
        self.assertEqual(self.ended, [])
        self.clock.advance(1)
        self.assertEqual(self.ended, ["idle for 60 seconds"])

    def test_who_listens_alone_says_so_now_and_then(self) -> None:
        program = self.relay()
        for _ in range(8):
            self.clock.advance(IDLE / 8)
            self.made.received([b"x"])
        self.assertEqual(self.far.told, ["start", "here", "here"])
        program.send(b"x")
        self.turn()
        self.clock.advance(IDLE / 4)
        self.made.received([b"x"])
        self.assertEqual(self.far.told, ["start", "here", "here"])

    @each((errno.ECONNREFUSED, "refused by right: nobody listens there"), (errno.EPERM, "broken: Operation not"))
    def test_a_far_side_that_takes_no_more(self, code: int, ending: str) -> None:
        program = self.relay()
        self.far.error = OSError(code, "")
        program.send(b"x")
        self.turn()
        self.assertTrue(self.ended[0].startswith(ending), self.ended)

    def test_what_makes_no_message_ends_it_behind_those_that_came_before(self) -> None:
        program = self.relay(SocketType.SEQPACKET, "libipc-2019")
        program.send(b"\2\0\0\0\3\0one")
        program.send(b"x")
        self.turn()
        self.assertEqual(self.far.sent, [b"one"])
        self.assertIn("a packet of 1 bytes", self.ended[0])

    def test_what_went_wrong_stands_behind_how_it_ended(self) -> None:
        self.relay()
        self.far.counts.lost, self.far.counts.reordered = 3, 1
        self.made.too_large(2000, 1000)
        self.made.received([b""])
        self.made.abort()
        self.assertEqual(self.ended, ["aborted; 3 lost, 1 reordered, 1 dropped, 1 too large"])

    def test_it_ends_once_and_nothing_is_done_afterwards(self) -> None:
        program = self.relay()
        self.made.abort()
        self.made.abort()
        self.made.received([b"x"])
        self.made.far_ended()
        self.made.far_closed("closed")
        self.made.resume()
        program.close()
        self.turn()
        self.assertEqual((self.ended, self.far.told), (["aborted"], ["start", "close"]))
