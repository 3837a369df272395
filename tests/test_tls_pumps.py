"""plumberd.effects.tls_pumps: relays between TLS and plain sockets, every byte, every end, every fault."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import socket
import ssl
import struct
import weakref
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.kernel import unread_bytes
from plumberd.effects.poll import ERR, HUP, IN, OUT
from plumberd.effects.pumps import NOTHING
from plumberd.effects.relay import Relay
from plumberd.effects.tls_ending import Want
from plumberd.effects.tls_pumps import KEPT, MOST_LARGE, BufferPool, make_tls_pumps
from plumberd.effects.tls_wire import Wire
from tests.support import in_thread, is_reset, read_all, read_exactly, real_reactor, until
from tests.tables import each
from tests.tls_peers import Peer, TlsTestCase, our_context, shake_both
from tests.tls_records import ALERT, CLOSE_NOTIFY, DATA, HANDSHAKE, KEY_UPDATE, RecordPeer

MIB = 1 << 20


def send_and_end(send: Callable[[bytes], None], end: Callable[[], None], data: bytes, times: int) -> None:
    for _ in range(times):
        send(data)
    end()


def digest_all(receive: Callable[[int], bytes]) -> tuple[int, str]:
    count, digest = 0, hashlib.sha256()
    while data := receive(256 * 1024):
        count += len(data)
        digest.update(data)
    return count, digest.hexdigest()


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class _Both(TlsTestCase):
    """What holds for both sides of TLS, and both versions."""

    timeout = 60.0
    server = True
    version = "1.3"

    async def test_64_mib_each_way_at_once_arrive_whole(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        times, data = 16, random.Random(1).randbytes(4 * MIB)
        expected = hashlib.sha256(data * times).hexdigest()
        sending = [
            in_thread(send_and_end, peer.sendall, peer.end, data, times),
            in_thread(send_and_end, plain.sendall, lambda: plain.shutdown(socket.SHUT_WR), data, times),
        ]
        receiving = [in_thread(digest_all, plain.recv), in_thread(digest_all, peer.recv)]
        for got in receiving:
            self.assertEqual(await got, (64 * MIB, expected))
        for sent in sending:
            await sent
        await until(lambda: self.ended)
        done = self.ended[0]
        self.assertEqual((done.up, done.down, done.ending), (64 * MIB, 64 * MIB, "closed"))

    async def test_messages_go_back_and_forth(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)

        def ask() -> list[bytes]:
            answers = []
            for n in range(200):
                peer.sendall(b"%08d" % n)
                plain.sendall(read_exactly(plain, 8))
                answers.append(peer.recv(8))
            return answers

        self.assertEqual(await in_thread(ask), [b"%08d" % n for n in range(200)])

    async def test_records_that_come_byte_by_byte_arrive_whole(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        records = b"".join(peer.records(data) for data in (b"one", b"t", b"w" * 40, b"three"))

        def dribble() -> None:
            for at in range(len(records)):
                peer.sock.sendall(records[at : at + 1])
            peer.end()

        sending = in_thread(dribble)
        self.assertEqual(await in_thread(read_all, plain), b"onet" + b"w" * 40 + b"three")
        await sending

    async def test_the_peers_end_reaches_the_plain_side_which_may_still_answer_at_length(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        tail = random.Random(2).randbytes(6 * MIB)
        peer.sendall(b"request")
        await in_thread(peer.end)
        self.assertEqual(await in_thread(read_all, plain), b"request")

        def answer() -> None:
            plain.sendall(tail)
            plain.close()

        sending = in_thread(answer)
        self.assertTrue(await in_thread(peer.read_all) == tail)
        await sending
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "closed")

    async def test_the_plain_sides_end_reaches_the_peer_which_may_still_speak_at_length(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        tail = random.Random(3).randbytes(6 * MIB)
        plain.sendall(b"hello")
        plain.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(peer.read_all), b"hello")

        def answer() -> None:
            peer.sendall(tail)
            peer.end()
            peer.sock.close()

        sending = in_thread(answer)
        self.assertTrue(await in_thread(read_all, plain) == tail)
        await sending
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "closed")

    async def test_tcps_end_without_a_close_notify_is_a_truncation(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        peer.sendall(b"half of")
        self.assertEqual(await in_thread(read_exactly, plain, 7), b"half of")
        peer.sock.shutdown(socket.SHUT_WR)
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "truncated by left")
        with self.assertRaises(BrokenPipeError):
            plain.send(b"x")

    async def test_a_truncation_is_a_reset_for_a_plain_side_that_has_spoken(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        plain.sendall(b"question")
        self.assertEqual(await in_thread(peer.recv), b"question")
        peer.sendall(b"half an ans")
        peer.sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_exactly, plain, 11), b"half an ans")
        self.assertTrue(await in_thread(is_reset, plain))

    async def test_an_orderly_end_is_none(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        plain.sendall(b"question")
        self.assertEqual(await in_thread(peer.recv), b"question")
        peer.sendall(b"answer")
        await in_thread(peer.end)
        self.assertEqual(await in_thread(read_exactly, plain, 6), b"answer")
        plain.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(peer.recv), b"")
        await until(lambda: self.ended)
        self.assertFalse(await in_thread(is_reset, plain))

    async def test_what_stood_before_a_truncation_is_delivered(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        data = random.Random(4).randbytes(3 * MIB)

        def send() -> None:
            peer.sendall(data)
            peer.sock.shutdown(socket.SHUT_WR)

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_all, plain) == data)
        await sending
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "truncated by left")

    async def test_an_end_within_a_record_is_a_truncation(self) -> None:
        peer, _, _ = await self.relay(self.version, server=self.server)
        peer.sock.sendall(peer.records(b"x" * 1000)[:500])
        peer.sock.shutdown(socket.SHUT_WR)
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "truncated by left")

    async def test_a_reset_within_a_record_ends_both_sides(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        peer.sock.sendall(peer.records(b"x" * 1000)[:500])
        reset(peer.sock)
        self.assertEqual(await in_thread(read_all, plain), b"")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "reset by left")

    async def test_what_is_no_record_ends_it_and_the_peer_is_told(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        peer.sock.sendall(b"\x17\3\3\0\x20" + b"?" * 32)
        self.assertEqual(await in_thread(read_all, plain), b"")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "garbled by left")
        with self.assertRaisesRegex(ssl.SSLError, "(?i)alert bad record mac"):
            await in_thread(peer.read_all)

    async def test_a_peer_that_does_not_read_slows_the_plain_side_and_gets_all_of_it_later(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        sent = await self.push_until_it_stops(plain)
        self.assertLess(sent, 64 * MIB)
        plain.shutdown(socket.SHUT_WR)
        self.assertEqual(len(await in_thread(peer.read_all)), sent)

    async def test_a_plain_side_that_does_not_read_slows_the_peer_and_gets_all_of_it_later(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        data, begun = bytes(64 * MIB), []

        def send() -> None:
            for at in range(0, len(data), 1 << 16):
                begun.append(at)
                peer.sendall(data[at : at + (1 << 16)])
            peer.end()

        sending = in_thread(send)
        await self.until_it_stands_still(lambda: len(begun))
        self.assertLess(len(begun), 1024)
        self.assertEqual(await in_thread(digest_all, plain.recv), (len(data), hashlib.sha256(data).hexdigest()))
        await sending

    async def test_a_plain_side_that_closes_gets_everything_to_the_peer_and_an_orderly_end(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        plain.sendall(b"so long")
        plain.close()
        self.assertEqual(await in_thread(peer.read_all), b"so long")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "closed by right")

    async def test_a_plain_side_that_dies_with_bytes_unread_is_a_reset_for_the_peer(self) -> None:
        peer, plain, _ = await self.relay(self.version, server=self.server)
        peer.sendall(b"never read")
        await until(lambda: unread_bytes(plain.fileno()))
        plain.close()
        with self.assertRaises((ConnectionResetError, ssl.SSLError)):
            await in_thread(peer.read_all)
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "reset by right")

    async def push_until_it_stops(self, sock: socket.socket) -> int:
        sock.setblocking(False)
        sent = refused = 0
        data = bytes(1 << 16)
        while refused < 50:  # the relay had its turns, and took no more
            try:
                sent += sock.send(data)
                refused = 0
            except BlockingIOError:
                refused += 1
                await until(lambda: True)
                await in_thread(lambda: None)
        return sent

    async def until_it_stands_still(self, figure: Callable[[], int]) -> None:
        same, last = 0, -1
        while same < 50:
            await in_thread(lambda: None)
            await until(lambda: True)
            same, last = (same + 1, last) if figure() == last else (0, figure())


class OurServer13(_Both):
    """TLS 1.3, our side is the server."""


class OurServer12(_Both):
    """TLS 1.2, our side is the server."""

    version = "1.2"


class OurClient13(_Both):
    """TLS 1.3, our side is the client: tickets come behind the handshake."""

    server = False


class OurClient12(_Both):
    """TLS 1.2, our side is the client."""

    server = False
    version = "1.2"


del _Both  # trial would run it as well


class Records(TlsTestCase):
    """What no library's peer would send."""

    async def crafted(self) -> tuple[RecordPeer, socket.socket, Relay]:
        far, near = self.tcp_pair()
        plain, inner = self.pair()
        peer = RecordPeer(far)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True, "1.3"), server=True)
        await shaking
        assert isinstance(wire, Wire), wire
        return peer, plain, self.relay_of(wire, near, inner)

    async def test_bytes_go_on_under_the_peers_new_keys(self) -> None:
        peer, plain, _ = await self.crafted()
        peer.send(DATA, b"old")
        peer.send(HANDSHAKE, KEY_UPDATE + b"\0")
        peer.out.update()
        peer.send(DATA, b"new")
        self.assertEqual(await in_thread(read_exactly, plain, 6), b"oldnew")

    async def test_new_keys_alone_stall_nothing(self) -> None:
        peer, plain, _ = await self.crafted()
        for _ in range(3):
            peer.send(HANDSHAKE, KEY_UPDATE + b"\0")
            peer.out.update()
        peer.send(DATA, b"x")
        self.assertEqual(await in_thread(read_exactly, plain, 1), b"x")

    async def test_our_keys_are_renewed_before_our_next_bytes_where_the_peer_asks_for_it(self) -> None:
        peer, plain, _ = await self.crafted()
        peer.send(HANDSHAKE, KEY_UPDATE + b"\1")
        peer.out.update()
        peer.send(DATA, b"q")
        self.assertEqual(await in_thread(read_exactly, plain, 1), b"q")
        plain.sendall(b"answer")
        self.assertEqual(await in_thread(peer.receive), (HANDSHAKE, KEY_UPDATE + b"\0"))
        self.assertEqual(await in_thread(peer.receive), (DATA, b"answer"))

    async def test_new_keys_are_asked_for_while_our_bytes_cannot_go(self) -> None:
        peer, plain, _ = await self.crafted()
        data = random.Random(5).randbytes(24 * MIB)
        sending = in_thread(plain.sendall, data)
        await until(lambda: unread_bytes(peer.sock.fileno()) > 100_000)
        peer.send(HANDSHAKE, KEY_UPDATE + b"\1")
        peer.out.update()
        peer.send(DATA, b"q")
        self.assertEqual(await in_thread(read_exactly, plain, 1), b"q")
        self.assertTrue(await in_thread(peer.read, len(data)) == data)
        await sending

    async def test_an_empty_record_is_no_end(self) -> None:
        peer, plain, _ = await self.crafted()
        peer.send(DATA, b"")
        peer.send(DATA, b"x")
        self.assertEqual(await in_thread(read_exactly, plain, 1), b"x")

    async def test_records_of_one_byte_arrive(self) -> None:
        peer, plain, _ = await self.crafted()
        data = bytes(range(256)) * 8
        peer.sock.sendall(b"".join(peer.out.seal(DATA, data[at : at + 1]) for at in range(len(data))))
        self.assertEqual(await in_thread(read_exactly, plain, len(data)), data)

    async def test_what_follows_a_close_notify_is_not_part_of_the_stream(self) -> None:
        peer, plain, _ = await self.crafted()
        records = [peer.out.seal(*one) for one in ((DATA, b"end"), (ALERT, CLOSE_NOTIFY), (DATA, b"late"))]
        peer.sock.sendall(b"".join(records))
        self.assertEqual(await in_thread(read_all, plain), b"end")

    async def test_a_record_that_was_changed_ends_it(self) -> None:
        peer, plain, _ = await self.crafted()
        record = bytearray(peer.out.seal(DATA, b"pay 100"))
        record[7] ^= 1
        peer.sock.sendall(record)
        self.assertEqual(await in_thread(read_all, plain), b"")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "garbled by left")

    async def test_a_record_that_comes_twice_ends_it(self) -> None:
        peer, plain, _ = await self.crafted()
        peer.sock.sendall(peer.out.seal(DATA, b"pay 100") * 2)
        self.assertEqual(await in_thread(read_all, plain), b"pay 100")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "garbled by left")

    async def test_the_peers_alert_ends_it(self) -> None:
        peer, plain, _ = await self.crafted()
        peer.send(ALERT, b"\2\x50")
        self.assertEqual(await in_thread(read_all, plain), b"")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "broken off by left")

    async def test_a_truncation_is_a_reset_for_a_tcp_side(self) -> None:
        far, near = self.tcp_pair()
        plain, inner = self.tcp_pair()
        peer = RecordPeer(far)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True, "1.3"), server=True)
        await shaking
        assert isinstance(wire, Wire)
        self.relay_of(wire, near, inner)
        peer.send(DATA, b"half")
        self.assertEqual(await in_thread(read_exactly, plain, 4), b"half")
        peer.sock.shutdown(socket.SHUT_WR)
        self.assertTrue(await in_thread(is_reset, plain))


class Starts(TlsTestCase):
    async def test_bytes_that_come_with_the_last_flight_of_the_handshake_arrive(self) -> None:
        for version in ("1.2", "1.3"):
            far, near = self.tcp_pair()
            plain, inner = self.pair()
            peer = Peer(far, False, version)
            shaking = in_thread(peer.handshake, b"early bird")
            wire = await self.shake(near, our_context(True, version), server=True)
            await shaking
            assert isinstance(wire, Wire)
            self.relay_of(wire, near, inner)
            self.assertEqual(await in_thread(read_exactly, plain, 10), b"early bird")

    async def test_bytes_that_come_between_the_last_read_and_the_relay_arrive(self) -> None:
        far, near = self.tcp_pair()
        plain, inner = self.pair()
        peer = Peer(far, False)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True), server=True)
        await shaking
        assert isinstance(wire, Wire)
        with self.assertRaises(BlockingIOError):
            wire.recv(100)
        self.poll.watch(near.fileno(), lambda events: None)
        peer.sendall(b"in between")
        await until(lambda: unread_bytes(near.fileno()))
        await until(lambda: True)  # and the edge has gone to who watched before
        self.relay_of(wire, near, inner)
        self.assertEqual(await in_thread(read_exactly, plain, 10), b"in between")

    async def test_bytes_that_were_read_and_given_back_arrive(self) -> None:
        far, near = self.tcp_pair()
        plain, inner = self.pair()
        peer = Peer(far, False)
        shaking = in_thread(peer.handshake, b"too much")
        wire = await self.shake(near, our_context(True), server=True)
        await shaking
        assert isinstance(wire, Wire)
        forth, back = make_tls_pumps(wire, near, inner, self.buffers)
        self.assertEqual(wire.recv(100), b"too much")
        with self.assertRaises(BlockingIOError):
            wire.recv(100)
        wire.give_back(b"much")
        relay = Relay(self.poll, real_reactor, self.pipes, near, inner, self.ended.append, forth=forth, back=back)
        self.addCleanup(self._end, relay)
        relay.start()
        self.assertEqual(await in_thread(read_exactly, plain, 4), b"much")

    async def test_bytes_that_were_given_back_come_first(self) -> None:
        far, near = self.tcp_pair()
        plain, inner = self.pair()
        peer = Peer(far, False)
        shaking = in_thread(peer.handshake, b" and later")
        wire = await self.shake(near, our_context(True), server=True)
        await shaking
        assert isinstance(wire, Wire)
        wire.give_back(b"before")
        self.relay_of(wire, near, inner)
        self.assertEqual(await in_thread(read_exactly, plain, 16), b"before and later")


class Gone(TlsTestCase):
    """What OpenSSL needs for a connection is large: it is freed at its end, and not by a round of the collector."""

    @each(
        ("an orderly end", lambda wire, sock: (wire.close_notify(), sock.close())),
        ("a truncation", lambda wire, sock: sock.shutdown(socket.SHUT_WR)),
        ("a reset", lambda wire, sock: reset(sock)),
        ("no TLS", lambda wire, sock: sock.sendall(b"?" * 100)),
    )
    async def test_after(self, what: str, end: Callable[[Wire, socket.socket], object]) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        left, right = self.tcp_pair()
        plain, inner = self.pair()
        far = self.wire_of(left, our_context(False), server=False)
        near = self.wire_of(right, our_context(True), server=True)
        shake_both(far, near)
        left_alive = weakref.ref(near.connection)
        forth, back = make_tls_pumps(near, right, inner, self.buffers)
        done = self.ended.append
        relay = Relay(self.poll, real_reactor, self.pipes, right, inner, done, forth=forth, back=back)
        relay.start()
        plain.shutdown(socket.SHUT_WR)
        end(far, left)
        await until(lambda: self.ended)
        self.ended.clear()
        del near, forth, back, relay
        self.assertIsNone(left_alive())


class Pumps(TlsTestCase):
    """One pump at a time."""

    def setUp(self) -> None:
        super().setUp()
        left, right = self.tcp_pair()
        self.client = self.wire_of(left, our_context(False), server=False)
        self.server = self.wire_of(right, our_context(True), server=True)
        shake_both(self.client, self.server)
        self.plain, inner = self.pair()
        inner.setblocking(False)
        self.far, self.tls, self.inner = left, right, inner
        self.reader, self.writer = make_tls_pumps(self.server, right, inner, self.buffers)

    def test_an_idle_pump_holds_no_buffer(self) -> None:
        self.assertEqual((self.reader.fill(), self.writer.fill()), (NOTHING, NOTHING))
        self.assertFalse(self.reader.holds or self.writer.holds)

    def test_a_buffer_is_given_back_when_its_bytes_have_gone(self) -> None:
        self.client.send(b"hello")
        self.assertEqual(self.reader.fill(), 5)
        self.assertTrue(self.reader.holds)
        self.assertTrue(self.reader.empty())
        self.assertFalse(self.reader.holds)
        self.assertEqual((self.plain.recv(10), self.reader.moved), (b"hello", 5))

    def test_what_is_dropped_does_not_reach_the_next_one(self) -> None:
        self.client.send(b"dropped")
        self.reader.fill()
        self.reader.drop()
        self.client.send(b"x")
        self.reader.wants(self.tls, IN)
        self.reader.fill()
        self.reader.empty()
        self.assertEqual(self.plain.recv(100), b"x")

    def test_nothing_is_read_while_bytes_are_held(self) -> None:
        self.client.send(b"one")
        self.reader.fill()
        self.client.send(b"two")
        self.reader.wants(self.tls, IN)
        self.assertEqual(self.reader.fill(), NOTHING)

    def test_a_drained_socket_is_not_asked_again_before_its_next_edge(self) -> None:
        self.assertEqual(self.reader.fill(), NOTHING)
        self.client.send(b"x")
        self.assertEqual(self.reader.fill(), NOTHING)
        self.reader.wants(self.tls, OUT)
        self.assertEqual(self.reader.fill(), NOTHING)
        self.reader.wants(self.tls, IN)
        self.assertEqual(self.reader.fill(), 1)

    def test_an_orderly_end_is_not_something_more(self) -> None:
        self.client.close_notify()
        self.assertFalse(self.reader.has_more())

    def test_tickets_and_an_end_are_nothing_more_and_bytes_are(self) -> None:
        self.assertFalse(self.reader.has_more())
        self.client.send(b"x")
        self.assertTrue(self.reader.has_more())
        self.assertTrue(self.reader.has_more())

    @each(
        ("something to read", IN, Want.READ, True),
        ("an end", HUP, Want.READ, True),
        ("an error", ERR, Want.READ, True),
        ("room to write", OUT, Want.READ, False),
        ("room to write, which reading waits for", OUT, Want.WRITE, True),
    )
    def test_a_reader_wants(self, what: str, events: int, waits: Want, wanted: bool) -> None:
        self.server.reading_waits = waits
        self.assertEqual(self.reader.wants(self.tls, events), wanted)

    def test_a_reader_wants_room_at_its_sink_when_it_holds_something(self) -> None:
        self.assertFalse(self.reader.wants(self.inner, OUT))
        self.client.send(b"x")
        self.reader.fill()
        self.assertTrue(self.reader.wants(self.inner, OUT))

    @each(
        ("room to write", OUT, Want.WRITE, True),
        ("something to read", IN, Want.WRITE, False),
        ("something to read, which writing waits for", IN, Want.READ, True),
    )
    def test_a_writer_that_holds_something_wants(self, what: str, events: int, waits: Want, wanted: bool) -> None:
        self.plain.send(b"x")
        self.writer.fill()
        self.server.writing_waits = waits
        self.assertEqual(self.writer.wants(self.tls, events), wanted)

    def test_a_writer_that_holds_nothing_wants_nothing_of_its_sink(self) -> None:
        self.assertFalse(self.writer.wants(self.tls, IN | OUT))
        self.assertTrue(self.writer.wants(self.inner, IN))

    def test_an_end_that_cannot_be_written_yet_is_written_later(self) -> None:
        filler = bytes(1 << 16)
        self.tls.setblocking(False)
        try:
            while True:
                self.tls.send(filler)  # below TLS: only its room matters here
        except BlockingIOError:
            pass
        self.assertFalse(self.writer.pass_end())
        self.assertTrue(self.writer.wants(self.tls, OUT))
        below = self.far.fileno()
        taken = 0
        while not self.writer.pass_end():
            taken += len(os.read(below, 1 << 16))
        self.assertGreater(taken, 0)


class Pool(SynchronousTestCase):
    def test_it_lends_the_same_buffer_again_and_empty(self) -> None:
        pool = BufferPool(100)
        one = pool.take()
        one.start, one.end = 3, 7
        pool.give_back(one)
        again = pool.take()
        self.assertIs(again, one)
        self.assertEqual((again.start, again.end, len(again.view)), (0, 0, 100))

    def test_it_keeps_a_few_of_each_kind_alone(self) -> None:
        pool = BufferPool(20, 10)
        lent = [pool.take() for _ in range(MOST_LARGE * 2)]
        for one in lent:
            pool.give_back(one)
        taken = [pool.take() for _ in range(MOST_LARGE * 2)]
        self.assertEqual(sum(one in lent for one in taken), 2 * KEPT)

    def test_large_ones_are_lent_as_long_as_few_are_out(self) -> None:
        pool = BufferPool(20, 10)
        lent = [pool.take() for _ in range(MOST_LARGE)]
        self.assertEqual({len(one.view) for one in lent}, {20})
        small = pool.take()
        self.assertEqual(len(small.view), 10)
        pool.give_back(small)
        self.assertEqual(len(pool.take().view), 10)
        pool.give_back(lent[0])
        self.assertEqual(len(pool.take().view), 20)
