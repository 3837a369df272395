"""plumberd.effects.relay: every byte, every end, every reset, between real sockets."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from typing import Any

from twisted.internet.task import Clock

from plumberd.effects.kernel import unread_bytes
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import Poll
from plumberd.effects.pumps import SplicePump
from plumberd.effects.relay import Relay
from tests.support import CleanTestCase, in_thread, is_reset, read_all, read_exactly, real_reactor, until


class RelayTestCase(CleanTestCase):
    """A relay between a TCP connection, as of a remote peer, and a UNIX pair, as of a local service."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.pipes = PipePool()
        self.addCleanup(self.pipes.close)
        self.ended: list[Relay] = []

    def relay(self, hold_seconds: float = 0, clock: Any = real_reactor) -> tuple[socket.socket, socket.socket, Relay]:
        """Return the peer's socket, the service's, and the running relay between them."""
        peer, near = self.tcp_pair()
        service, far = self.pair()
        relay = Relay(self.poll, clock, self.pipes, near, far, self.ended.append)
        self.addCleanup(self._end, relay)
        relay.start(hold_seconds)
        return peer, service, relay

    async def _end(self, relay: Relay) -> None:
        relay.abort()
        await until(lambda: relay in self.ended)


class Heavy(SplicePump):
    """One whose every read is much work."""

    is_heavy = True
    fills = 0

    def fill(self) -> int:
        self.fills += 1
        return super().fill()


class Turns(RelayTestCase):
    async def test_one_read_that_was_much_work_is_a_turn(self) -> None:
        peer, near = self.tcp_pair()
        service, far = self.pair()
        pump = Heavy(near, far, self.pipes)
        relay = Relay(self.poll, real_reactor, self.pipes, near, far, self.ended.append, forth=pump)
        self.addCleanup(self._end, relay)
        peer.sendall(b"bytes")
        await until(lambda: unread_bytes(near.fileno()) == 5)
        relay.start()
        self.assertEqual(pump.fills, 1)
        self.assertEqual(await in_thread(read_exactly, service, 5), b"bytes")
        await until(lambda: pump.fills > 1)
        peer.sendall(b"more")
        self.assertEqual(await in_thread(read_exactly, service, 4), b"more")


class Descriptors(RelayTestCase):
    async def test_none_can_be_sent_into_it_not_even_before_it_runs(self) -> None:
        service, far = self.pair()
        peer, near = self.pair()
        relay = Relay(self.poll, real_reactor, self.pipes, near, far, self.ended.append)
        self.addCleanup(self._end, relay)
        for sock in (peer, service):
            self.assertRaises(PermissionError, socket.send_fds, sock, [b"x"], [sock.fileno()])
        relay.start()
        peer.sendall(b"bytes")
        self.assertEqual(await in_thread(read_exactly, service, 5), b"bytes")


class Bytes(RelayTestCase):
    async def test_a_large_transfer_is_byte_exact_in_both_directions_at_once(self) -> None:
        peer, service, _ = self.relay()
        data = random.Random(1).randbytes(8 << 20)

        def send(sock: socket.socket) -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sending = [in_thread(send, sock) for sock in (peer, service)]
        receiving = [in_thread(read_all, sock) for sock in (service, peer)]
        for got in receiving:
            self.assertTrue(await got == data)
        for sent in sending:
            await sent
        await until(lambda: self.ended)
        self.assertEqual((self.ended[0].up, self.ended[0].down, self.ended[0].ending), (8 << 20, 8 << 20, "closed"))

    async def test_messages_go_back_and_forth(self) -> None:
        peer, service, _ = self.relay()

        def echo() -> None:
            while data := service.recv(4096):
                service.sendall(data)
            service.shutdown(socket.SHUT_WR)

        def ask() -> list[bytes]:
            answers = []
            for n in range(200):
                peer.sendall(b"%08d" % n)
                answers.append(read_exactly(peer, 8))
            peer.shutdown(socket.SHUT_WR)
            answers.append(peer.recv(1))
            return answers

        echoing = in_thread(echo)
        self.assertEqual(await in_thread(ask), [b"%08d" % n for n in range(200)] + [b""])
        await echoing

    async def test_a_reader_that_is_slow_slows_the_sender_and_loses_nothing(self) -> None:
        peer, service, relay = self.relay()
        service.setblocking(False)
        data = random.Random(2).randbytes(1 << 16)
        sent = refused = 0
        while refused < 50:  # the relay had its turns, and took no more
            try:
                sent += service.send(data)
                refused = 0
            except BlockingIOError:
                refused += 1
                await until(lambda: True)
                await in_thread(lambda: None)
        # No reader: what is under way is bounded by socket buffers and one pipe.
        self.assertLess(sent, 64 << 20)
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(len(await in_thread(read_all, peer)), sent)

    async def test_the_services_first_bytes_are_held_until_the_peer_has_spoken(self) -> None:
        peer, service, _ = self.relay(hold_seconds=15)
        service.sendall(b"banner")
        peer.sendall(b"x")
        self.assertEqual(await in_thread(read_exactly, service, 1), b"x")
        self.assertEqual(await in_thread(read_exactly, peer, 6), b"banner")

    async def test_the_services_first_bytes_are_held_no_longer_than_told(self) -> None:
        clock = Clock()
        peer, service, _ = self.relay(hold_seconds=15, clock=clock)
        service.sendall(b"banner")
        clock.advance(14)
        await in_thread(lambda: None)
        self.assertEqual(_unread(peer), 0)
        clock.advance(1)
        self.assertEqual(await in_thread(read_exactly, peer, 6), b"banner")


class HalfCloses(RelayTestCase):
    async def test_the_peers_end_reaches_the_service_which_may_still_answer(self) -> None:
        peer, service, _ = self.relay()
        peer.sendall(b"request")
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"request")
        service.sendall(b"answer")
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"answer")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "closed")

    async def test_the_services_end_reaches_the_peer_which_may_still_speak(self) -> None:
        peer, service, _ = self.relay()
        service.sendall(b"hello")
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, peer), b"hello")
        peer.sendall(b"late")
        peer.close()
        self.assertEqual(await in_thread(read_all, service), b"late")
        await until(lambda: self.ended)

    async def test_a_tail_larger_than_every_buffer_arrives_after_the_service_has_closed(self) -> None:
        peer, service, _ = self.relay()
        data = random.Random(3).randbytes(16 << 20)

        def send() -> None:
            service.sendall(data)
            service.close()

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_all, peer) == data)
        await sending


class Resets(RelayTestCase):
    async def test_a_service_that_closes_with_bytes_unread_becomes_a_reset_after_its_own_bytes(self) -> None:
        peer, service, _ = self.relay()
        peer.sendall(b"never read")
        await until(lambda: _unread(service))
        service.sendall(b"so long")
        service.close()
        self.assertEqual(await in_thread(read_exactly, peer, 7), b"so long")
        self.assertTrue(await in_thread(is_reset, peer))
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "reset by right")

    async def test_the_tail_before_such_a_reset_arrives_whole(self) -> None:
        peer, service, _ = self.relay()
        peer.sendall(b"never read")
        await until(lambda: _unread(service))
        data = random.Random(4).randbytes(6 << 20)

        def send() -> None:
            service.sendall(data)
            service.close()

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_exactly, peer, len(data)) == data)
        await sending
        self.assertTrue(await in_thread(is_reset, peer))

    async def test_a_peers_reset_closes_the_services_connection_at_once(self) -> None:
        peer, service, _ = self.relay()
        _reset(peer)
        self.assertEqual(await in_thread(read_all, service), b"")
        with self.assertRaises(BrokenPipeError):
            service.send(b"x")
        await until(lambda: self.ended)
        self.assertEqual(self.ended[0].ending, "reset by left")

    async def test_a_peers_reset_after_its_half_close_is_seen_too(self) -> None:
        peer, service, _ = self.relay()
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"")
        service.sendall(b"x" * 10)
        await until(lambda: _unread(peer))
        _reset(peer)  # closing with bytes unread
        await until(lambda: self.ended)
        with self.assertRaises(BrokenPipeError):
            service.send(b"x")

    async def test_what_the_peer_sent_before_its_reset_is_delivered(self) -> None:
        peer, service, _ = self.relay()
        peer.sendall(b"last words")
        await until(lambda: _unread(service))
        _reset(peer)
        self.assertEqual(await in_thread(read_all, service), b"last words")

    async def test_a_service_that_has_gone_ends_the_peers_connection(self) -> None:
        peer, service, _ = self.relay()
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"")
        await until(lambda: self.ended)

    async def test_bytes_for_a_service_that_stopped_reading_become_a_reset_when_it_has_ended(self) -> None:
        peer, service, _ = self.relay()
        service.shutdown(socket.SHUT_RD)
        peer.sendall(b"nobody reads this")
        service.sendall(b"still here")
        self.assertEqual(await in_thread(read_exactly, peer, 10), b"still here")
        service.close()
        self.assertTrue(await in_thread(is_reset, peer))


class Ends(RelayTestCase):
    async def test_idle_relays_hold_no_pipe(self) -> None:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(5):
            self.relay()
        await until(lambda: True)
        pipes = [fd for fd in set(os.listdir("/proc/self/fd")) - before if _is_pipe(fd)]
        self.assertLessEqual(len(pipes), 2)

    async def test_aborting_resets_the_peer_and_tells_once(self) -> None:
        peer, service, relay = self.relay()
        relay.abort()
        relay.abort()
        self.assertTrue(await in_thread(is_reset, peer))
        self.assertEqual(await in_thread(read_all, service), b"")
        self.assertEqual(self.ended, [relay])


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _unread(sock: socket.socket) -> int:
    return unread_bytes(sock.fileno())


def _is_pipe(fd: str) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    return False


class Unwatched(RelayTestCase):
    async def test_one_that_cannot_be_watched_ends_and_closes_both_sides(self) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch(self.poll, "watch", refuse)
        peer, service, relay = self.relay(hold_seconds=1)
        self.assertEqual(self.ended, [relay])
        self.assertEqual(await in_thread(read_all, service), b"")
        self.assertTrue(await in_thread(is_reset, peer))


class Stopped(RelayTestCase):
    async def test_one_whose_reset_waits_for_a_peer_that_does_not_read_ends_when_it_is_aborted(self) -> None:
        """At a stop nobody waits for half a minute."""
        peer, service, relay = self.relay()
        peer.sendall(b"nobody reads this")
        await until(lambda: unread_bytes(service.fileno()))
        await in_thread(
            service.sendall, b"x" * 400_000
        )  # more than the peer takes without reading, less than the kernel
        await until(lambda: relay.down == 400_000)
        service.close()
        await until(lambda: relay.ending)
        self.assertEqual(self.ended, [])  # it waits
        began = real_reactor.seconds()
        relay.abort()
        await until(lambda: self.ended)
        self.assertLess(real_reactor.seconds() - began, 5)
        self.assertEqual(len(await in_thread(peer.recv, 10)), 10)

    async def test_a_peer_that_resets_while_its_side_is_held_leaves_no_timer(self) -> None:
        """Letting go of what was held ends it: there is nothing left to wait for."""
        peer, service, relay = self.relay(hold_seconds=10)
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        await until(lambda: self.ended)
        self.assertEqual((relay.ending, relay._timer), ("reset by left", None))
