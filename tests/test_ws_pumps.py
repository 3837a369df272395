"""plumberd.effects.ws_pumps: one direction each, between real sockets, step by step."""

from __future__ import annotations

import contextlib
import socket

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.poll import IN, OUT
from plumberd.effects.pumps import NOTHING, Broken
from plumberd.effects.ws_line import PlainLine
from plumberd.effects.ws_pumps import RandomMasks, Session, Untold, WsReader, WsWriter
from plumberd.framing import Framing, Message, encode
from plumberd.pure.ws_frames import (
    BINARY,
    CLOSE,
    FIN,
    HEADS,
    PING,
    PONG,
    TOO_BIG,
    Closing,
    FrameDecoder,
    close_payload,
    frame,
)
from plumberd.pure.ws_messages import MESSAGES, Inward, Outward, Subprotocol, form_of
from tests.support import CleanTestCase, read_exactly

MASK = b"abcd"
ZIG = Framing.LIBIPC_ZIG


class PumpTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.prepare(*self.pair())

    def prepare(self, service: socket.socket, ours: socket.socket, *, packets: bool = False) -> None:
        self.peer, wire = self.tcp_pair()
        self.service = service
        for sock in (wire, ours):
            sock.setblocking(False)
        self.session = Session()
        line = PlainLine(wire)
        self.writer = WsWriter(line, ours, wire, Outward(ZIG, packets=packets, limit_bytes=1 << 20), self.session)
        decoder = FrameDecoder(masked=True, limit_bytes=1 << 20, form=form_of(Subprotocol.IPC, ZIG, packets=packets))
        inward = Inward(ZIG, packets=packets)
        self.reader = WsReader(line, wire, ours, decoder, inward, self.session, self.writer)

    def send(self, opcode: int, payload: bytes = b"") -> None:
        """Send a frame, and let the reader read."""
        self.peer.sendall(frame(FIN | opcode, payload, MASK))
        self.reader.wants(self.reader.source, IN)


class Reading(PumpTestCase):
    def test_a_message_reaches_the_service(self) -> None:
        self.send(BINARY, b"hello")
        self.assertGreater(self.reader.fill(), 0)
        self.assertTrue(self.reader.empty())
        self.assertEqual(self.service.recv(100), encode(ZIG, Message(b"hello")))
        self.assertEqual((self.reader.moved, self.reader.fill()), (9, NOTHING))

    def test_nothing_is_read_as_long_as_the_service_has_not_taken_what_came(self) -> None:
        self.reader.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.send(BINARY, bytes(50_000))
        self.assertGreater(self.reader.fill(), 0)
        self.reader.empty()
        self.assertTrue(self.reader.holds)
        self.send(BINARY, b"more")
        self.assertEqual(self.reader.fill(), NOTHING)
        self.assertTrue(self.reader.wants(self.reader.sink, OUT))
        while self.reader.holds:
            self.service.recv(65536)
            self.reader.empty()
        self.assertGreater(self.reader.fill(), 0)

    def test_thousands_of_messages_are_more_than_one_turn_and_all_of_them_come(self) -> None:
        self.peer.sendall(frame(FIN | BINARY, b"", MASK) * (2 * HEADS) + frame(FIN | BINARY, b"last", MASK))
        self.peer.shutdown(socket.SHUT_WR)
        self.reader.wants(self.reader.source, IN)
        for heavy in (True, True, False):
            self.assertGreater(self.reader.fill(), 0)
            self.assertEqual((self.reader.is_heavy, self.reader.has_more()), (heavy, True))
            self.assertTrue(self.reader.empty())
        self.assertEqual(read_exactly(self.service, 8 * HEADS + 8)[-8:], encode(ZIG, Message(b"last")))
        self.assertRaises(Broken, self.reader.fill)

    def test_of_many_pings_in_one_read_the_last_is_answered_once(self) -> None:
        self.peer.sendall(b"".join(frame(FIN | PING, b"%d" % number, MASK) for number in range(100)))
        self.reader.wants(self.reader.source, IN)
        self.reader.fill()
        self.assertEqual(self.peer.recv(1000), frame(FIN | PONG, b"99"))

    def test_a_ping_is_answered_at_once(self) -> None:
        self.send(PING, b"there?")
        self.reader.fill()
        self.assertEqual(read_exactly(self.peer, 8), frame(FIN | PONG, b"there?"))

    def test_a_close_ends_it_and_nothing_behind_it_counts(self) -> None:
        data = frame(FIN | CLOSE, close_payload(1000), MASK) + frame(FIN | BINARY, b"late", MASK)
        self.peer.sendall(data)
        self.reader.wants(self.reader.source, IN)
        self.assertGreater(self.reader.fill(), 0)
        self.assertEqual((self.reader.fill(), self.session.heard), (0, Closing(1000)))
        self.assertFalse(self.reader.holds)

    def test_an_end_without_one_is_no_end(self) -> None:
        self.peer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.assertRaises(Broken, self.reader.fill).how, "cut off")
        self.session.said = 1000
        self.assertEqual(self.reader.fill(), 0)

    def test_a_mistake_is_told_behind_what_stood_in_front_of_it(self) -> None:
        self.peer.sendall(frame(FIN | BINARY, b"good", MASK) + b"\x83\x80")
        self.reader.wants(self.reader.source, IN)
        self.assertGreater(self.reader.fill(), 0)
        self.reader.empty()
        self.assertEqual(self.service.recv(100), encode(ZIG, Message(b"good")))
        self.assertEqual(self.assertRaises(Untold, self.reader.fill).code, 1002)

    def test_who_is_deaf_reads_on_and_carries_nothing(self) -> None:
        self.reader.deaf = True
        self.send(BINARY, b"hello")
        self.assertGreater(self.reader.fill(), 0)
        self.assertFalse(self.reader.holds)
        self.assertTrue(self.reader.pass_end())

    def test_a_packet_that_does_not_fit(self) -> None:
        service, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.prepare(self.owned(service), self.owned(ours), packets=True)
        self.reader.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.send(BINARY, bytes(60_000))
        while not self.reader.holds:
            self.reader.fill()
            self.reader.wants(self.reader.source, IN)
        with self.assertRaises(Untold) as caught:
            self.reader.empty()
        self.assertEqual(caught.exception.code, TOO_BIG)


class OfPackets(PumpTestCase):
    def test_what_a_service_sent_before_it_ended_with_something_unread_goes_out_in_front_of_that(self) -> None:
        service, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.prepare(self.owned(service), self.owned(ours), packets=True)
        ours.send(encode(ZIG, Message(b"unread")))
        for payload in (b"one", b"two"):
            service.send(encode(ZIG, Message(payload)))
        service.close()
        for _ in range(2):
            self.assertGreater(self.writer.fill(), 0)
            self.writer.empty()
        self.assertRaises(ConnectionResetError, self.writer.fill)
        self.assertEqual(read_exactly(self.peer, 10), b"\x82\x03one\x82\x03two")


class Writing(PumpTestCase):
    def test_messages_of_the_service_go_out(self) -> None:
        self.service.sendall(encode(ZIG, Message(b"one")) + encode(ZIG, Message(b"two")))
        self.assertGreater(self.writer.fill(), 0)
        self.assertTrue(self.writer.empty())
        self.assertEqual(read_exactly(self.peer, 10), b"\x82\x03one\x82\x03two")

    def test_thousands_of_messages_go_out_in_more_than_one_turn(self) -> None:
        self.service.sendall(encode(ZIG, Message(b"")) * (2 * MESSAGES) + encode(ZIG, Message(b"last")))
        self.service.close()
        for heavy in (True, True, False):
            self.assertGreater(self.writer.fill(), 0)
            self.assertEqual(self.writer.is_heavy, heavy)
            self.assertTrue(self.writer.empty())
        self.assertEqual(read_exactly(self.peer, 4 * MESSAGES + 6)[-6:], b"\x82\x04last")
        self.assertEqual(self.writer.fill(), 0)

    def test_nothing_is_read_of_it_as_long_as_the_far_side_takes_nothing(self) -> None:
        for sock in (self.peer, self.writer.sink):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.service.setblocking(False)
        while self.writer.fill() != NOTHING or not self.writer.holds:
            self.writer.empty()
            try:
                self.service.send(encode(ZIG, Message(bytes(30_000))))
            except BlockingIOError:
                self.assertTrue(self.writer.holds)
                break
        self.assertEqual(self.writer.fill(), NOTHING)
        self.assertTrue(self.writer.wants(self.writer.sink, OUT))

    def test_of_several_pings_that_wait_the_last_is_answered(self) -> None:
        while not self.writer.holds:
            self.service.sendall(encode(ZIG, Message(bytes(60_000))))
            self.writer.fill()
            self.writer.empty()
        for text in (b"1", b"2", b"3"):
            self.writer.pong(text)
        self.peer.setblocking(False)
        data = b""
        while self.writer.holds:
            with contextlib.suppress(BlockingIOError):
                data += self.peer.recv(1 << 20)
            self.writer.empty()
        self.peer.setblocking(True)
        self.peer.settimeout(5)
        while not data.endswith(b"\x8a\x013"):
            data += self.peer.recv(1 << 20)
        self.assertNotIn(b"\x8a\x011", data)

    def test_the_answer_to_the_handshake_stands_in_front(self) -> None:
        self.service.sendall(encode(ZIG, Message(b"one")))
        self.writer.preface(b"HTTP")
        self.assertEqual(self.writer.fill(), NOTHING)
        self.writer.empty()
        self.writer.fill()
        self.writer.empty()
        self.assertEqual(read_exactly(self.peer, 9), b"HTTP\x82\x03one")

    def test_the_end_is_a_close_once(self) -> None:
        self.service.close()
        self.assertEqual(self.writer.fill(), 0)
        self.assertTrue(self.writer.pass_end())
        self.assertTrue(self.writer.pass_end())
        self.writer.sink.close()
        self.assertEqual((read_exactly(self.peer, 100), self.session.said), (b"\x88\x02\x03\xe8", 1000))

    def test_an_end_in_the_middle_and_no_message_at_all(self) -> None:
        self.service.sendall(encode(ZIG, Message(b"one"))[:5])
        self.writer.fill()
        self.service.close()
        self.assertEqual(self.assertRaises(Untold, self.writer.fill).code, 1011)

    def test_what_is_over_reads_no_more(self) -> None:
        self.service.sendall(encode(ZIG, Message(b"one")))
        self.writer.over = True
        self.assertEqual(self.writer.fill(), 0)

    def test_a_ping_waits_for_no_room(self) -> None:
        self.writer.ping()
        self.assertEqual(read_exactly(self.peer, 2), b"\x89\x00")


class Masks(SynchronousTestCase):
    def test_each_is_four_bytes_and_another(self) -> None:
        masks = RandomMasks()
        found = [masks.next() for _ in range(1000)]
        self.assertEqual({len(one) for one in found}, {4})
        self.assertGreater(len(set(found)), 990)
