"""plumberd.effects.pumps: one direction at a time, on socket pairs."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast
from unittest import mock

from plumberd.effects.pipes import PipePool
from plumberd.effects.pumps import (
    FRAMES,
    NOTHING,
    PACKET_BYTES,
    Packets,
    PacketsToFrames,
    Pump,
    SplicePump,
    StreamToFrames,
    StreamToPackets,
    Untranslatable,
    make_pumps,
    packet_pair,
)
from plumberd.framing import FrameCutter
from tests.support import CleanTestCase
from tests.tables import each


def message(payload: bytes) -> bytes:
    """A data message of the older generations."""
    return b"\2" + len(payload).to_bytes(4, "big") + b"\0" + payload


class PumpTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.pipes = PipePool()
        self.addCleanup(self.pipes.close)

    def stream(self) -> tuple[socket.socket, socket.socket]:
        """Return the outer end, as of a client, and the end that a pump has."""
        outer, inner = self.pair()
        inner.setblocking(False)
        return outer, inner

    def packets(self) -> tuple[socket.socket, socket.socket]:
        outer, inner = map(self.owned, packet_pair())
        inner.setblocking(False)
        return outer, inner

    def run_dry(self, pump: Pump) -> None:
        """Fill and empty until there is nothing more to do."""
        while pump.fill() > 0 or pump.holds:
            if not pump.empty() and pump.holds:
                return


class Spliced(PumpTestCase):
    def test_bytes_pass_and_the_pipe_is_given_back(self) -> None:
        (source, a), (sink, b) = self.stream(), self.stream()
        pump = SplicePump(a, b, self.pipes)
        source.sendall(b"hello")
        self.assertEqual(pump.fill(), 5)
        self.assertTrue(pump.holds)
        self.assertTrue(pump.empty())
        self.assertFalse(pump.holds)
        self.assertEqual((sink.recv(10), pump.moved), (b"hello", 5))
        self.assertEqual(pump.fill(), NOTHING)
        self.assertFalse(pump.holds)

    def test_the_end_is_0(self) -> None:
        (source, a), (_, b) = self.stream(), self.stream()
        source.shutdown(socket.SHUT_WR)
        pump = SplicePump(a, b, self.pipes)
        self.assertEqual(pump.fill(), 0)
        self.assertFalse(pump.holds)

    def test_what_is_dropped_does_not_reach_the_next_one(self) -> None:
        (source, a), (_, b) = self.stream(), self.stream()
        pump = SplicePump(a, b, self.pipes)
        source.sendall(b"dropped")
        pump.fill()
        pump.drop()
        (other, c), (sink, d) = self.stream(), self.stream()
        next_one = SplicePump(c, d, self.pipes)
        other.sendall(b"x")
        self.run_dry(next_one)
        self.assertEqual(sink.recv(100), b"x")


class Translated(PumpTestCase):
    def test_packets_become_a_stream_of_the_same_bytes(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        for payload in (b"one", b"", b"three"):
            source.send(message(payload))
        self.run_dry(pump)
        self.assertEqual(sink.recv(1000), message(b"one") + message(b"") + message(b"three"))

    def test_many_packets_in_the_queue_are_no_large_packet(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        count, piece = 0, message(b"x" * 60_000)
        source.setblocking(False)
        try:
            while count < 60:
                source.send(piece)
                count += 1
        except BlockingIOError:
            pass
        self.assertGreater(count * len(piece), PACKET_BYTES)
        got = 0
        while got < count * len(piece):
            self.run_dry(pump)
            got += len(sink.recv(1 << 20))
        self.assertEqual(pump.moved, got)

    def test_a_packet_that_comes_while_the_pump_looks_is_not_cut(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        large = message(b"x" * 150_000)
        peek = a.recv_into

        class Racing:
            """A socket at which a larger packet is second in the queue as soon as somebody looks at the first."""

            def __getattr__(self, name: str) -> Any:
                return getattr(a, name)

            def recv_into(self, *args: Any) -> int:
                length = peek(*args)
                source.send(large)
                return length

        source.send(message(b"first"))
        pump.source = cast(socket.socket, Racing())
        self.assertEqual(pump.fill(), 11)
        pump.source = a
        pump.empty()
        self.assertEqual(pump.fill(), len(large))
        self.assertEqual(sink.recv(100), message(b"first"))

    def test_a_stream_is_cut_into_packets_however_it_is_dealt_out(self) -> None:
        for step in (1, 7, 100_000):
            (source, a), (sink, b) = self.stream(), self.packets()
            pump = StreamToPackets(a, b, FrameCutter("libipc-2019", PACKET_BYTES))
            data = message(b"one") + message(b"") + message(b"3" * 50)
            for at in range(0, len(data), step):
                source.sendall(data[at : at + step])
                self.run_dry(pump)
            self.assertEqual([sink.recv(1000) for _ in range(3)], [message(b"one"), message(b""), message(b"3" * 50)])

    def test_of_one_read_that_brings_thousands_some_go_at_a_time(self) -> None:
        (source, a), (_, b) = self.stream(), self.packets()
        pump = StreamToPackets(a, b, FrameCutter("libipc-2019", PACKET_BYTES))
        source.sendall(message(b"") * 200 + message(b"last")[:-1])
        counts = []
        while (count := pump.fill()) > 0:
            counts.append(count)
            self.assertTrue(pump.has_more())
            self.assertTrue(pump.empty())
        self.assertEqual(counts[1:], [6 * FRAMES, 6 * FRAMES, 6 * (200 - 3 * FRAMES)])
        self.assertFalse(pump.has_more())
        source.sendall(b"t")
        self.assertEqual(pump.fill(), 1)
        self.assertTrue(pump.holds)

    def test_raw_makes_a_packet_of_each_read(self) -> None:
        (source, a), (sink, b) = self.stream(), self.packets()
        pump = StreamToPackets(a, b, None)
        source.sendall(b"anything")
        self.run_dry(pump)
        self.assertEqual(sink.recv(1000), b"anything")

    @each(
        ("too_long", b"\2\xff\xff\xff\xff\0", False),
        ("ends_within", message(b"whole")[:-1], True),
    )
    def test_what_makes_no_message_is_told(self, _: str, data: bytes, end: bool) -> None:
        (source, a), (_sink, b) = self.stream(), self.packets()
        pump = StreamToPackets(a, b, FrameCutter("libipc-2019", PACKET_BYTES))
        source.sendall(data)
        if end:
            source.shutdown(socket.SHUT_WR)
        with self.assertRaises(Untranslatable):
            while True:
                pump.fill()
                pump.empty()

    def test_a_message_that_does_not_fit_into_a_packet_is_told(self) -> None:
        (source, a), (_, b) = self.stream(), self.packets()
        pump = StreamToPackets(a, b, FrameCutter("libipc-2019", PACKET_BYTES))
        b.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        source.sendall(message(b"x" * 60_000))
        with self.assertRaises(Untranslatable) as caught:
            self.run_dry(pump)
        self.assertIn("60006 bytes", str(caught.exception))

    def test_a_full_sink_is_waited_for(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        piece = message(b"x" * 100_000)
        for _ in range(10):
            source.send(piece)
        self.run_dry(pump)
        self.assertTrue(pump.holds)
        got = b""
        while len(got) < 10 * len(piece):
            got += sink.recv(1 << 20)
            self.run_dry(pump)
        self.assertTrue(got == 10 * piece)


class Reset(PumpTestCase):
    """A program that closes with something unread: of packets the kernel tells that before what is queued."""

    def test_what_it_sent_before_comes_first(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        a.send(b"unread")
        for payload in (b"one", b"two"):
            source.send(payload)
        source.close()
        with self.assertRaises(ConnectionResetError):
            self.run_dry(pump)
        self.assertEqual(sink.recv(100), b"onetwo")
        with self.assertRaises(ConnectionResetError):
            pump.fill()

    def test_one_that_closes_while_the_pump_looks_loses_nothing(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = Packets(a, b)
        a.send(b"unread")
        source.send(b"one")
        calls = mock.Mock(wraps=a)

        def look(*args: Any) -> int:
            length = a.recv_into(*args)
            source.close()
            return length

        calls.recv_into.side_effect = look
        pump.source = calls
        with self.assertRaises(ConnectionResetError):
            self.run_dry(pump)
        self.assertEqual(sink.recv(100), b"one")

    def test_without_an_end_behind_it_it_is_broken_all_the_same(self) -> None:
        pump = Packets(self.packets()[1], self.stream()[1])
        pump.source = mock.Mock(recv_into=mock.Mock(side_effect=[ConnectionResetError(), BlockingIOError()]))
        with self.assertRaises(ConnectionResetError):
            pump.fill()


class Framed(PumpTestCase):
    def test_the_next_message_waits_until_the_last_was_taken(self) -> None:
        (source, a), (sink, b) = self.stream(), self.stream()
        pump = StreamToFrames(a, b, FrameCutter("libipc-2023", PACKET_BYTES))
        source.sendall(message(b"one") + message(b"two"))
        pump.fill()
        self.assertTrue(pump.empty())
        self.assertFalse(pump.empty())
        self.assertEqual(sink.recv(1000), message(b"one"))
        self.assertTrue(pump.empty())
        self.assertEqual(sink.recv(1000), message(b"two"))

    def test_a_packet_is_one_message_too(self) -> None:
        (source, a), (sink, b) = self.packets(), self.stream()
        pump = PacketsToFrames(a, b)
        for payload in (b"x" * 100_000, b"two"):
            source.send(message(payload))
        pump.fill()
        pump.empty()
        self.assertEqual(pump.fill(), 9)
        self.assertFalse(pump.empty())
        self.assertTrue(sink.recv(1 << 20) == message(b"x" * 100_000))
        self.assertTrue(pump.empty())
        self.assertEqual(sink.recv(1 << 20), message(b"two"))

    def test_packets_stay_whole_between_packets(self) -> None:
        (source, a), (sink, b) = self.packets(), self.packets()
        pump = Packets(a, b)
        source.send(message(b"x" * 150_000))
        self.run_dry(pump)
        self.assertTrue(sink.recv(1 << 20) == message(b"x" * 150_000))


class Made(PumpTestCase):
    def test_by_the_kinds_of_the_sockets(self) -> None:
        stream, packets = self.stream()[1], self.packets()[1]
        other = self.stream()[1]
        for left, right, framed, wanted in (
            (stream, other, False, (SplicePump, SplicePump)),
            (packets, stream, False, (Packets, StreamToPackets)),
            (stream, packets, False, (StreamToPackets, Packets)),
            (stream, other, True, (SplicePump, StreamToFrames)),
            (stream, packets, True, (StreamToPackets, PacketsToFrames)),
            (packets, self.packets()[1], False, (Packets, Packets)),
        ):
            pumps = make_pumps(left, right, self.pipes, "libipc-2023", framed=framed)
            self.assertEqual(tuple(map(type, pumps)), wanted)

    def test_a_broken_source_is_an_os_error(self) -> None:
        (source, a), (_, b) = self.stream(), self.stream()
        a.send(b"unread")
        source.close()
        pump = SplicePump(a, b, self.pipes)
        with self.assertRaises(OSError) as caught:
            while pump.fill():
                pass
        self.assertEqual(caught.exception.errno, errno.ECONNRESET)
