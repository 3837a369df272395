"""plumberd.effects.messages: a program's end, whose messages come out and go in as payloads."""

from __future__ import annotations

import errno
import os
import socket
from unittest import mock

from plumberd.effects.messages import (
    MESSAGE_BYTES,
    QUEUE_BYTES,
    QUEUE_MESSAGES,
    MessageEnd,
    Room,
    bound_packets,
    message_pair,
)
from plumberd.framing import FramingError, Message, decode_packet, encode
from plumberd.pure.shape import Shape, SocketType
from tests.support import CleanTestCase
from tests.tables import each

STREAM, SEQPACKET, DGRAM = SocketType.STREAM, SocketType.SEQPACKET, SocketType.DGRAM


class EndTestCase(CleanTestCase):
    def end(self, kind: SocketType, framing: str = "raw", *, framed: bool = False) -> tuple[MessageEnd, socket.socket]:
        """Return an end, and the program's socket."""
        ours, theirs = message_pair(Shape(kind, framing))
        self.owned(ours)
        return MessageEnd(ours, framing, framed=framed), self.owned(theirs)


class Read(EndTestCase):
    @each(
        ("a_stream_s_read_is_one", STREAM, "raw", [b"one", b"another"], [b"oneanother"]),
        ("packets", SEQPACKET, "raw", [b"one", b"another"], [b"one", b"another"]),
        ("datagrams_and_an_empty_one", DGRAM, "raw", [b"one", b"", b"another"], [b"one", b"", b"another"]),
        ("frames", STREAM, "libipc-zig", [b"\0\0\0\1a\0\0", b"\0\2bc\0\0\0\0"], [b"a", b"bc", b""]),
        ("typed_frames", STREAM, "libipc-2023", [b"\2\0\0\0\1\7a"], [b"a"]),
        ("typed_packets", SEQPACKET, "libipc-2019", [b"\2\0\0\0\1\7a", b"\2\0\0\0\0\0"], [b"a", b""]),
    )
    def test_messages_come_out_without_their_headers(
        self, _: str, kind: SocketType, framing: str, sent: list[bytes], messages: list[bytes]
    ) -> None:
        end, program = self.end(kind, framing)
        for piece in sent:
            program.send(piece)
        self.assertEqual(end.read(16), messages)
        self.assertEqual(end.read(16), [])
        self.assertFalse(end.ended)

    def test_no_more_reads_than_were_asked_for(self) -> None:
        end, program = self.end(SEQPACKET)
        for number in range(5):
            program.send(bytes((number,)))
        self.assertEqual(end.read(3), [b"\0", b"\1", b"\2"])

    def test_of_one_read_that_brings_thousands_no_more_come_than_were_asked_for(self) -> None:
        end, program = self.end(STREAM, "libipc-zig")
        program.sendall(bytes(4 * 1000) + b"\0\0\0\1x")
        program.shutdown(socket.SHUT_WR)
        got = []
        while not end.ended:
            got.append(end.read(64))
        self.assertEqual([*map(len, got)], [64] * 15 + [41])
        self.assertEqual(got[-1], [b""] * 40 + [b"x"])

    def test_what_makes_no_message_behind_those_is_told_in_its_turn(self) -> None:
        end, program = self.end(STREAM, "libipc-zig")
        program.sendall(bytes(4 * 3) + b"\xff" * 4)
        self.assertEqual(end.read(2), [b"", b""])
        self.assertFalse(end.was_emptied)
        with self.assertRaises(FramingError):
            end.read(2)
            end.read(2)

    @each(
        ("frames", STREAM, "libipc-zig", [b"\0\0\0\3one\0\0\0\3two\xff\xff\xff\xff"]),
        ("typed_packets", SEQPACKET, "libipc-2019", [b"\2\0\0\0\3\0one", b"\2\0\0\0\3\0two", b"bad"]),
    )
    def test_what_stands_in_front_of_a_broken_message_comes_out_first(
        self, _: str, kind: SocketType, framing: str, sent: list[bytes]
    ) -> None:
        end, program = self.end(kind, framing)
        for piece in sent:
            program.send(piece)
        self.assertEqual((end.read(16), end.was_emptied, end.ended), ([b"one", b"two"], False, False))
        for _again in range(2):
            with self.assertRaises(FramingError):
                end.read(16)

    @each((STREAM,), (SEQPACKET,))
    def test_the_end_comes_behind_the_last_message(self, kind: SocketType) -> None:
        end, program = self.end(kind)
        program.send(b"last")
        program.shutdown(socket.SHUT_WR)
        self.assertEqual(end.read(16), [b"last"])
        self.assertTrue(end.ended)

    @each(
        ("packets", SEQPACKET, "raw", [b"one", b"two"]),
        ("frames", STREAM, "libipc-zig", [b"\0\0\0\3one", b"\0\0\0\3two"]),
        ("nothing", SEQPACKET, "raw", []),
    )
    def test_who_closes_with_something_unread_is_broken_behind_its_last_message(
        self, _: str, kind: SocketType, framing: str, sent: list[bytes]
    ) -> None:
        end, program = self.end(kind, framing)
        end.write([b"unread"])
        for piece in sent:
            program.send(piece)
        program.close()
        got: list[bytes] = []
        with self.assertRaises(ConnectionResetError):
            while True:
                self.assertFalse(end.ended)
                got += end.read(16)
        self.assertEqual((got, end.ended), ([b"one", b"two"] if sent else [], True))

    def test_of_a_reset_without_an_end_it_is_broken_all_the_same(self) -> None:
        end, _ = self.end(SEQPACKET)
        end.sock.close()
        told: list[bytes | OSError] = [ConnectionResetError(), b"one", BlockingIOError(), BlockingIOError()]
        end.sock = mock.Mock(type=socket.SOCK_SEQPACKET, recv=mock.Mock(side_effect=told))
        self.assertEqual((end.read(16), end.was_emptied), ([b"one"], False))
        with self.assertRaises(ConnectionResetError):
            end.read(16)

    @each(
        ("a_packet_that_is_no_message", SEQPACKET, "libipc-2019", b"x"),
        ("a_packet_of_another_length", SEQPACKET, "libipc-zig", b"\0\0\0\2a"),
        ("a_frame_too_long", STREAM, "libipc-zig", (MESSAGE_BYTES + 1).to_bytes(4, "big")),
    )
    def test_what_makes_no_message_is_an_error(self, _: str, kind: SocketType, framing: str, sent: bytes) -> None:
        end, program = self.end(kind, framing)
        program.send(sent)
        with self.assertRaises(FramingError):
            end.read(16)
            end.read(16)


class Waiting(EndTestCase):
    def test_a_burst_fills_the_kernel_s_room_before_anything_is_dropped(self) -> None:
        ours, theirs = message_pair(Shape(STREAM, "libipc-zig"))
        self.owned(ours), self.owned(theirs)
        end = MessageEnd(ours, "libipc-zig", queue_bytes=1000)
        end.write([bytes(900)] * 20)
        self.assertEqual((end.dropped, end.holds), (0, False))

    def test_what_waits_is_bounded_for_all_together(self) -> None:
        room = Room(1500)
        ends = []
        for _ in range(2):
            ours, theirs = message_pair(Shape(STREAM, "raw"))
            self.owned(ours), self.owned(theirs)
            ends.append((MessageEnd(ours, "raw", room=room), theirs))
        (one, taker), (another, _) = ends
        one.write([bytes(1000)] * 3)  # the first has gone: each waits until the last was taken
        self.assertEqual((one.dropped, room.held_bytes), (1, 1000))
        another.write([bytes(1000)] * 2)
        self.assertEqual((another.dropped, room.held_bytes), (1, 1000))
        taker.recv(1000)
        one.flush()
        self.assertEqual(room.held_bytes, 0)
        another.write([bytes(1000)])
        self.assertEqual(room.held_bytes, 1000)
        another.forget()
        self.assertEqual((another.holds, room.held_bytes), (False, 0))
        another.write([bytes(1000)])
        another.close()
        another.close()
        self.assertEqual(room.held_bytes, 0)


class Written(EndTestCase):
    @each(
        ("packets", SEQPACKET, "raw"),
        ("datagrams", DGRAM, "raw"),
        ("typed_packets", SEQPACKET, "libipc-2019"),
        ("packets_with_a_length", SEQPACKET, "libipc-zig"),
    )
    def test_each_message_is_one_packet(self, _: str, kind: SocketType, framing: str) -> None:
        end, program = self.end(kind, framing)
        end.write([b"one", b"another"])
        got = [decode_packet(framing, program.recv(100)) for _ in range(2)]
        self.assertEqual(got, [Message(b"one"), Message(b"another")])

    def test_frames_stand_one_behind_the_other(self) -> None:
        end, program = self.end(STREAM, "libipc-zig")
        end.write([b"a", b"", b"bc"])
        self.assertEqual(program.recv(100), b"\0\0\0\1a\0\0\0\0\0\0\0\2bc")

    @each(("without_headers", "raw", False), ("framed", "libipc-zig", True))
    def test_on_a_stream_of_reads_the_next_comes_when_the_last_was_taken(
        self, _: str, framing: str, framed: bool
    ) -> None:
        end, program = self.end(STREAM, framing, framed=framed)
        end.write([b"one", b"another"])
        self.assertTrue(end.holds)
        end.flush()
        self.assertEqual(program.recv(100), encode(framing, Message(b"one")))
        end.flush()
        self.assertEqual(program.recv(100), encode(framing, Message(b"another")))
        self.assertFalse(end.holds)

    def test_an_empty_message_that_would_be_the_end_is_dropped(self) -> None:
        for kind in (STREAM, SEQPACKET):
            end, program = self.end(kind)
            end.write([b"", b"x", b""])
            self.assertEqual((program.recv(100), end.dropped), (b"x", 2))
        end, program = self.end(DGRAM)
        end.write([b""])
        self.assertEqual((program.recv(100), end.dropped), (b"", 0))

    def test_what_a_program_is_too_slow_for_is_dropped_and_the_rest_comes_in_order(self) -> None:
        end, program = self.end(SEQPACKET)
        program.settimeout(0)
        count = 4000
        for number in range(count):
            end.write([number.to_bytes(4, "big")])
        self.assertGreater(end.dropped, 0)
        self.assertTrue(end.holds)
        got: list[int] = []
        while len(got) < count - end.dropped:
            try:
                got.append(int.from_bytes(program.recv(100), "big"))
            except BlockingIOError:
                end.flush()
        self.assertEqual(got, [*range(count - end.dropped)])
        self.assertFalse(end.holds)

    def test_no_more_waits_than_the_limits_say(self) -> None:
        end, program = self.end(SEQPACKET)
        end.write([bytes(60000)] * 40)
        self.assertLessEqual(sum(map(len, end._queue)), QUEUE_BYTES)
        self.assertGreater(end.dropped, 0)
        end, program = self.end(STREAM)
        end.write([b"x"] * (QUEUE_MESSAGES + 50))
        self.assertLessEqual(len(end._queue), QUEUE_MESSAGES)

    @each((STREAM, "raw"), (STREAM, "libipc-zig"), (SEQPACKET, "raw"), (DGRAM, "raw"))
    def test_a_program_that_has_gone_is_an_error(self, kind: SocketType, framing: str) -> None:
        end, program = self.end(kind, framing)
        program.close()
        with self.assertRaises(OSError):
            end.write([b"x"])

    def test_a_large_message_goes_out_in_parts_on_a_stream(self) -> None:
        end, program = self.end(STREAM, "libipc-zig")
        message = os.urandom(900_000)
        end.write([message])
        got = b""
        while len(got) < len(message) + 4:
            got += program.recv(65536)
            end.flush()
        self.assertEqual(got[4:], message)

    @each((STREAM,), (SEQPACKET,))
    def test_the_end_is_passed_on_and_the_other_direction_goes_on(self, kind: SocketType) -> None:
        end, program = self.end(kind)
        end.pass_end()
        self.assertEqual(program.recv(100), b"")
        program.send(b"still")
        self.assertEqual(end.read(1), [b"still"])


class Bound(EndTestCase):
    """EMSGSIZE from the kernel itself."""

    @each((SEQPACKET, 4576), (SEQPACKET, 8952), (DGRAM, 8952), (DGRAM, 65506), (SEQPACKET, 65507))
    def test_a_packet_that_is_too_long_is_refused_and_one_that_is_not_goes(self, kind: SocketType, most: int) -> None:
        end, program = self.end(kind)
        self.assertTrue(bound_packets(program, most))
        program.send(bytes(most))
        self.assertEqual(end.read(1), [bytes(most)])
        with self.assertRaises(OSError) as caught:
            program.send(bytes(most + 2))
        self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    @each((SEQPACKET, 1458), (SEQPACKET, 4575), (STREAM, 65000))
    def test_what_the_kernel_cannot_do_is_left(self, kind: SocketType, most: int) -> None:
        _, program = self.end(kind)
        self.assertFalse(bound_packets(program, most))
        program.send(bytes(10000))
