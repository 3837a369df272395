"""plumberd.effects.ws_line: what is below a WebSocket, plain or inside TLS."""

from __future__ import annotations

import socket

from plumberd.effects import openssl
from plumberd.effects.poll import IN, OUT
from plumberd.effects.tls_pumps import BufferPool
from plumberd.effects.tls_wire import Wire
from plumberd.effects.ws_line import READ_BYTES, Line, PlainLine, TlsLine
from tests.support import CleanTestCase
from tests.tls_peers import our_context


class Plain(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.far, near = self.tcp_pair()
        near.setblocking(False)
        self.near = near
        self.line: Line = PlainLine(near)

    def test_a_short_read_is_all_until_an_edge_tells_of_more(self) -> None:
        self.assertRaises(BlockingIOError, self.line.recv)
        self.far.sendall(b"one")
        self.line.told(IN)
        self.assertEqual(self.line.recv(), b"one")
        self.far.sendall(b"two")
        self.assertRaises(BlockingIOError, self.line.recv)  # without asking the kernel
        self.line.told(IN)
        self.assertEqual(self.line.recv(), b"two")

    def test_an_end_that_came_with_the_bytes_is_seen_behind_them(self) -> None:
        self.far.sendall(b"one")
        self.far.shutdown(socket.SHUT_WR)
        self.line.told(IN | 0x2000)  # EPOLLRDHUP
        self.assertEqual((self.line.recv(), self.line.recv()), (b"one", b""))

    def test_the_first_read_trusts_no_edge(self) -> None:
        self.far.sendall(b"one")
        self.far.shutdown(socket.SHUT_WR)
        while (data := self.line.recv(1)) != b"e":
            self.assertTrue(data)
        self.assertEqual(self.line.recv(), b"")

    def test_what_is_given_back_comes_first(self) -> None:
        self.line.give_back(b"ahead")
        self.assertEqual((self.line.recv(3), self.line.recv(3)), (b"ahe", b"ad"))

    def test_where_there_is_no_room_nothing_is_taken(self) -> None:
        while self.line.send(bytes(1 << 20)):
            pass
        self.assertTrue(self.line.flush())
        self.assertFalse(self.line.holds)
        self.assertEqual((self.line.writes(OUT), self.line.writes(IN), self.line.reads(OUT)), (True, False, False))

    def test_its_end_is_half_of_it(self) -> None:
        self.assertTrue(self.line.end())
        self.assertEqual(self.far.recv(10), b"")
        self.far.sendall(b"still")
        self.line.told(IN)
        self.assertEqual(self.line.recv(), b"still")


class InsideTls(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        left, right = self.pair()
        left.setblocking(False)
        right.setblocking(False)
        self.buffers = BufferPool()
        contexts = our_context(False), our_context(True)
        self.wires = [
            Wire(openssl.connect(context, sock, server=server), sock, server=server)
            for context, sock, server in zip(contexts, (left, right), (False, True), strict=True)
        ]
        while [want for wire in self.wires if (want := wire.handshake()) is not None]:
            pass
        self.here, self.there = (TlsLine(wire, self.buffers) for wire in self.wires)

    def test_bytes_pass(self) -> None:
        self.here.let_go()
        self.assertIsNone(self.wires[0].connection)
        self.assertEqual(self.here.send(b"hello"), 5)
        self.assertEqual(self.there.recv(), b"hello")
        self.assertRaises(BlockingIOError, self.there.recv)

    def test_what_was_taken_and_has_not_gone_is_held_and_goes_on(self) -> None:
        taken = 0
        while not self.here.holds:
            taken += self.here.send(bytes(1 << 20))
        self.assertEqual(self.here.send(b"more"), 0)
        self.assertFalse(self.here.flush())
        read = 0
        while read < taken:
            self.there.told(IN)
            try:
                read += len(self.there.recv(READ_BYTES))
            except BlockingIOError:
                self.here.flush()
        self.assertTrue(self.here.flush())
        self.assertFalse(self.here.holds)

    def test_its_end_is_close_notify_and_half_of_it(self) -> None:
        self.assertTrue(self.here.end())
        self.there.told(IN)
        self.assertEqual(self.there.recv(), b"")
        self.there.send(b"still")
        self.here.told(IN)
        self.assertEqual(self.here.recv(), b"still")

    def test_what_is_given_back_comes_first(self) -> None:
        self.there.give_back(b"ahead")
        self.assertEqual(self.there.recv(), b"ahead")
