"""plumberd.effects.endpoint_relay: every byte and every end, between Twisted's own transports."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import select
import socket
import ssl
import struct
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import endpoints

from plumberd.effects.endpoint_relay import EARLY_BYTES, Half, HalfFactory, adopt
from plumberd.effects.kernel import unread_bytes
from plumberd.effects.poll import Poll
from tests.support import (
    DEADLINE_SECONDS,
    CleanTestCase,
    in_thread,
    is_reset,
    open_descriptors,
    read_all,
    read_exactly,
    real_reactor,
    until,
)

server_from_string: Any = endpoints.serverFromString
client_from_string: Any = endpoints.clientFromString


class RelayTestCase(CleanTestCase):
    """A peer at a server endpoint, and a local service at the other side of a UNIX pair."""

    description = "tcp:0:interface=127.0.0.1"

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.halves: list[Half] = []
        self.made: list[Half] = []
        self.unwrapped: list[Half] = []
        self.ended: list[Half] = []
        self.first: list[bytes] = []
        self.addCleanup(self._end)

    async def _end(self) -> None:
        for half in self.halves:
            half.abort()
        await until(lambda: all(half.lost for half in self.halves))

    def half(self, *, first: bool = False) -> Half:
        half = Half(
            self.poll,
            first=(lambda _, data: self.first.append(data)) if first else None,
            made=self.made.append,
            unwrapped=self.unwrapped.append,
            ended=self.ended.append,
        )
        self.halves.append(half)
        return half

    async def accepted(self, *, first: bool = False) -> tuple[socket.socket, Half]:
        """Return a peer, connected to the endpoint, and its half."""
        port = await server_from_string(real_reactor, self.description).listen(
            HalfFactory(lambda: self.half(first=first))
        )
        self.addCleanup(port.stopListening)
        peer = self.owned(socket.socket())
        await in_thread(peer.connect, ("127.0.0.1", port.getHost().port))
        await until(lambda: self.made)
        return peer, self.made[0]

    def local(self, *, first: bool = False) -> tuple[socket.socket, Half]:
        """Return a local service and its half."""
        service, ours = self.pair()
        half = self.half(first=first)
        adopt(real_reactor, ours, half)
        return service, half

    async def relay(self) -> tuple[socket.socket, socket.socket]:
        """Return the peer and the service, with the running relay between them."""
        peer, half = await self.accepted()
        service, local = self.local()
        half.join(local)
        return peer, service

    async def all_ended(self) -> None:
        await until(lambda: len(self.ended) == 2)
        self.assertEqual(len(set(self.ended)), 2)


class Bytes(RelayTestCase):
    async def test_a_large_transfer_is_byte_exact_in_both_directions_at_once(self) -> None:
        peer, service = await self.relay()
        data = random.Random(1).randbytes(5 << 20)

        def send(sock: socket.socket) -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sending = [in_thread(send, sock) for sock in (peer, service)]
        receiving = [in_thread(read_all, sock) for sock in (service, peer)]
        for got in receiving:
            self.assertTrue(await got == data)
        for sent in sending:
            await sent
        await self.all_ended()
        self.assertEqual([half.moved for half in self.ended], [5 << 20, 5 << 20])

    async def test_messages_go_back_and_forth(self) -> None:
        peer, service = await self.relay()

        def echo() -> None:
            while data := service.recv(4096):
                service.sendall(data)

        def ask() -> list[bytes]:
            answers = []
            for n in range(200):
                peer.sendall(b"%08d" % n)
                answers.append(read_exactly(peer, 8))
            peer.shutdown(socket.SHUT_WR)
            return answers

        echoing = in_thread(echo)
        self.assertEqual(await in_thread(ask), [b"%08d" % n for n in range(200)])
        await echoing

    async def slow(self, sender: socket.socket, reader: socket.socket) -> None:
        """Send until nothing is taken any more; then read, and nothing is missing."""
        sender.setblocking(False)
        data = random.Random(2).randbytes(1 << 16)
        sent = refused = 0
        while refused < 50:  # the relay had its turns, and took no more
            try:
                sent += sender.send(data)
                refused = 0
            except BlockingIOError:
                refused += 1
                await in_thread(lambda: None)
        self.assertLess(sent, 32 << 20)
        sender.shutdown(socket.SHUT_WR)
        self.assertEqual(len(await in_thread(read_all, reader)), sent)

    async def test_a_service_that_reads_slowly_slows_the_peer_and_loses_nothing(self) -> None:
        peer, service = await self.relay()
        await self.slow(peer, service)

    async def test_a_peer_that_reads_slowly_slows_the_service_and_loses_nothing(self) -> None:
        peer, service = await self.relay()
        await self.slow(service, peer)


class HalfCloses(RelayTestCase):
    async def test_the_peers_end_reaches_the_service_which_may_still_answer(self) -> None:
        peer, service = await self.relay()
        peer.sendall(b"request")
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"request")
        service.sendall(b"answer")
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"answer")
        await self.all_ended()
        self.assertEqual([half.reset for half in self.ended], [False, False])

    async def test_the_services_end_reaches_the_peer_which_may_still_speak(self) -> None:
        peer, service = await self.relay()
        service.sendall(b"hello")
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, peer), b"hello")
        peer.sendall(b"late")
        peer.close()
        self.assertEqual(await in_thread(read_all, service), b"late")
        await self.all_ended()

    async def test_a_tail_larger_than_every_buffer_arrives_after_the_service_has_closed(self) -> None:
        peer, service = await self.relay()
        peer.sendall(b"?")
        peer.shutdown(socket.SHUT_WR)
        data = random.Random(3).randbytes(8 << 20)

        def send() -> None:
            read_all(service)
            service.sendall(data)
            service.close()

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_all, peer) == data)
        await sending

    async def test_a_tail_larger_than_every_buffer_arrives_after_the_peer_has_closed(self) -> None:
        peer, service = await self.relay()
        data = random.Random(3).randbytes(8 << 20)

        def send() -> None:
            peer.sendall(data)
            peer.close()

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_all, service) == data)
        await sending


class Ends(RelayTestCase):
    async def test_a_service_that_has_gone_ends_the_connection_of_a_silent_peer(self) -> None:
        peer, service = await self.relay()
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"")
        await self.all_ended()

    async def test_its_last_bytes_arrive_before(self) -> None:
        peer, service = await self.relay()
        service.sendall(b"so long")
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"so long")
        await self.all_ended()

    async def test_a_service_that_has_gone_after_its_half_close_ends_it_too(self) -> None:
        peer, service = await self.relay()
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, peer), b"")
        self.assertEqual(self.ended, [])
        service.close()
        await self.all_ended()

    async def test_a_service_that_closes_with_bytes_unread_becomes_a_reset(self) -> None:
        peer, service = await self.relay()
        peer.sendall(b"never read")
        await until(lambda: unread_bytes(service.fileno()))
        service.close()
        self.assertTrue(await in_thread(is_reset, peer))
        await self.all_ended()

    async def test_one_that_does_so_after_its_half_close_becomes_a_reset_too(self) -> None:
        peer, service = await self.relay()
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, peer), b"")
        peer.sendall(b"never read")
        await until(lambda: unread_bytes(service.fileno()))
        service.close()
        await self.all_ended()
        await until(lambda: is_hung_up(peer))
        with self.assertRaises(BrokenPipeError):  # the reset is there; behind an orderly close this would go out
            peer.send(b"x")

    async def test_a_peers_reset_closes_the_services_connection(self) -> None:
        peer, service = await self.relay()
        reset(peer)
        self.assertEqual(await in_thread(read_all, service), b"")
        await self.all_ended()
        with self.assertRaises(BrokenPipeError):
            service.send(b"x")
        self.assertEqual({half.reset for half in self.ended if half is self.made[0]}, {True})

    async def test_a_peers_reset_after_its_half_close_is_seen_too(self) -> None:
        peer, service = await self.relay()
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"")
        service.sendall(b"x" * 10)
        await until(lambda: unread_bytes(peer.fileno()))
        peer.close()  # with bytes unread: a reset
        await self.all_ended()
        with self.assertRaises(BrokenPipeError):
            service.send(b"x")

    async def test_aborting_ends_both_sides_and_tells_each_once(self) -> None:
        peer, service = await self.relay()
        for half in self.halves:
            half.abort()
            half.abort()
        self.assertEqual(await in_thread(read_all, service), b"")
        self.assertTrue(await in_thread(is_reset, peer))
        await self.all_ended()
        self.assertEqual(len(self.ended), 2)

    async def test_a_half_that_has_ended_is_no_longer_watched(self) -> None:
        peer, service = await self.relay()
        peer.close()
        service.close()
        await self.all_ended()
        self.assertEqual([fd for fd in open_descriptors() if self.poll.watches(fd)], [])


class Early(RelayTestCase):
    """What arrives before the other side is there."""

    async def test_bytes_of_the_peers_come_first(self) -> None:
        peer, half = await self.accepted()
        peer.sendall(b"early")
        await until(lambda: half._early)
        service, local = self.local()
        half.join(local)
        peer.sendall(b" late")
        self.assertEqual(await in_thread(read_exactly, service, 10), b"early late")

    async def test_bytes_of_the_services_come_first(self) -> None:
        peer, half = await self.accepted()
        service, local = self.local()
        service.sendall(b"banner")
        await until(lambda: local._early)
        local.join(half)
        service.sendall(b" more")
        self.assertEqual(await in_thread(read_exactly, peer, 11), b"banner more")

    async def test_the_peers_end_is_passed_on_behind_them(self) -> None:
        peer, half = await self.accepted()
        peer.sendall(b"early")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: half._early)
        service, local = self.local()
        half.join(local)
        self.assertEqual(await in_thread(read_all, service), b"early")
        service.sendall(b"answer")
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"answer")

    async def test_so_is_its_loss(self) -> None:
        peer, half = await self.accepted()
        peer.sendall(b"early")
        await until(lambda: half._early)
        half.abort()
        await until(lambda: half.lost)
        service, local = self.local()
        half.join(local)
        self.assertEqual(await in_thread(read_all, service), b"early")
        await self.all_ended()

    async def test_no_more_is_taken_than_one_read(self) -> None:
        peer, half = await self.accepted()
        peer.setblocking(False)
        sent = refused = 0
        while refused < 50:
            try:
                sent += peer.send(b"x" * 65536)
                refused = 0
            except BlockingIOError:
                refused += 1
                await in_thread(lambda: None)
        self.assertLessEqual(len(half._early), EARLY_BYTES)
        self.assertFalse(half.lost)
        service, local = self.local()
        half.join(local)
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(len(await in_thread(read_all, service)), sent)


class Handshakes(RelayTestCase):
    async def test_without_a_header_to_wait_for_the_peer_is_known_at_once(self) -> None:
        _peer, half = await self.accepted(first=True)
        self.assertEqual(self.unwrapped, [half])

    async def test_the_first_bytes_go_to_the_handshake_and_none_behind_them(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.sendall(b"pong")
        await until(lambda: self.first)
        peer.sendall(b"data")
        await in_thread(lambda: None)
        self.assertEqual((self.first, half._early), ([b"pong"], b""))
        service, local = self.local()
        half.wire.write(b"ok")
        half.join(local)
        self.assertEqual(await in_thread(read_exactly, service, 4), b"data")
        self.assertEqual(await in_thread(read_exactly, peer, 2), b"ok")

    async def test_a_peer_that_ends_without_a_word_is_gone(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, peer), b"")
        await until(lambda: self.ended)
        self.assertEqual((self.ended, self.first, half.reset), ([half], [], False))

    async def test_the_services_first_bytes_are_held_until_the_peer_has_spoken(self) -> None:
        peer, half = await self.accepted()
        service, local = self.local()
        local.hold(real_reactor, 15)
        half.join(local)
        service.sendall(b"banner")
        await in_thread(lambda: None)
        self.assertEqual(unread_bytes(peer.fileno()), 0)
        peer.sendall(b"x")
        self.assertEqual(await in_thread(read_exactly, service, 1), b"x")
        self.assertEqual(await in_thread(read_exactly, peer, 6), b"banner")

    async def test_they_are_held_no_longer_than_told(self) -> None:
        peer, half = await self.accepted()
        service, local = self.local()
        local.hold(real_reactor, 0.05)
        half.join(local)
        service.sendall(b"banner")
        self.assertEqual(await in_thread(read_exactly, peer, 6), b"banner")

    async def test_a_held_side_that_goes_away_leaves_no_delayed_call(self) -> None:
        peer, half = await self.accepted()
        _service, local = self.local()
        local.hold(real_reactor, 15)
        half.join(local)
        reset(peer)
        await self.all_ended()
        self.assertEqual([c for c in real_reactor.getDelayedCalls() if c.func == local._release], [])


class ProxyProtocol(RelayTestCase):
    """haproxy: endpoints wrap the transport in a protocol that knows no half-close by itself."""

    description = "haproxy:tcp:0:interface=127.0.0.1"
    HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 5555 9000\r\n"

    async def test_the_tail_of_the_answer_survives_the_peers_half_close(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.sendall(self.HEADER + b"pong")
        await until(lambda: self.first)
        service, local = self.local()
        half.join(local)
        peer.sendall(b"request")
        peer.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, service), b"request")
        data = random.Random(4).randbytes(3 << 20)

        def send() -> None:
            service.sendall(data)
            service.close()

        sending = in_thread(send)
        self.assertTrue(await in_thread(read_all, peer) == data)
        await sending
        await self.all_ended()

    async def test_the_headers_address_is_the_peers(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.sendall(self.HEADER)
        peer.sendall(b"pong")
        await until(lambda: self.first)
        address = half.wire.getPeer()
        self.assertEqual((address.host, address.port, self.first), ("192.0.2.7", 5555, [b"pong"]))

    async def test_a_peers_reset_closes_the_services_connection(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.sendall(self.HEADER + b"pong")
        await until(lambda: self.first)
        service, local = self.local()
        half.join(local)
        reset(peer)
        self.assertEqual(await in_thread(read_all, service), b"")
        await self.all_ended()

    async def test_until_the_header_has_come_the_peer_is_not_known_and_then_is_told_once(self) -> None:
        peer, half = await self.accepted(first=True)
        peer.sendall(self.HEADER[:20])
        await in_thread(lambda: None)
        self.assertEqual(self.unwrapped, [])
        peer.sendall(self.HEADER[20:])
        await until(lambda: self.unwrapped)
        peer.sendall(b"pong")
        await until(lambda: self.first)
        self.assertEqual(self.unwrapped, [half])

    async def test_what_is_no_header_ends_the_connection(self) -> None:
        peer, _half = await self.accepted(first=True)
        peer.sendall(b"pong, with no header in front of it\r\n")
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(await in_thread(read_all, peer), b"")
        await until(lambda: self.ended)
        self.assertEqual(self.first, [])


class Tls(RelayTestCase):
    """A transport that knows no half-close."""

    def setUp(self) -> None:
        super().setUp()
        path = os.path.join(self.folder(), "pem")
        write_certificate(path)
        self.description = f"ssl:0:interface=127.0.0.1:privateKey={path}:certKey={path}"

    async def tls_relay(self) -> tuple[ssl.SSLSocket, socket.socket]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        plain, half = await self.accepted()
        peer = await in_thread(context.wrap_socket, plain)
        self.addCleanup(peer.close)
        peer.settimeout(DEADLINE_SECONDS)
        service, local = self.local()
        half.join(local)
        return peer, service

    async def test_a_large_answer_is_byte_exact(self) -> None:
        peer, service = await self.tls_relay()
        data = random.Random(5).randbytes(3 << 20)
        sending = in_thread(service.sendall, data)
        self.assertTrue(await in_thread(read_exactly, peer, len(data)) == data)
        await sending

    async def test_it_is_not_told_of_the_services_end_and_may_still_speak(self) -> None:
        peer, service = await self.tls_relay()
        service.sendall(b"hello")
        service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_exactly, peer, 5), b"hello")
        peer.sendall(b"late")
        self.assertEqual(await in_thread(read_exactly, service, 4), b"late")

    async def test_it_is_closed_when_the_service_has_gone(self) -> None:
        peer, service = await self.tls_relay()
        service.sendall(b"hello")
        service.close()
        self.assertEqual(await in_thread(read_all, peer), b"hello")
        peer.close()
        await self.all_ended()

    async def test_its_own_end_reaches_the_service(self) -> None:
        peer, service = await self.tls_relay()
        peer.sendall(b"request")

        def unwrap() -> None:
            with contextlib.suppress(OSError):
                peer.unwrap().close()

        closing = in_thread(unwrap)
        self.assertEqual(await in_thread(read_all, service), b"request")
        await closing
        await self.all_ended()


class AsClient(RelayTestCase):
    """The way out: an administrator's client endpoint."""

    async def test_bytes_and_ends_go_both_ways(self) -> None:
        listener, port = self.listener()
        half = self.half()
        await client_from_string(real_reactor, f"tcp:127.0.0.1:{port}").connect(HalfFactory(lambda: half))
        far = self.owned(listener.accept()[0])
        far.sendall(b"banner ")
        client, local = self.local()
        local.join(half)
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, far), b"request")
        far.sendall(b"answer")
        far.close()
        self.assertEqual(await in_thread(read_all, client), b"banner answer")
        await self.all_ended()


class Adopting(RelayTestCase):
    async def test_the_given_socket_is_the_half_s_and_is_closed_with_it(self) -> None:
        service, ours = self.pair()
        half = self.half()
        adopt(real_reactor, ours, half)
        half.wire.write(b"x")
        self.assertEqual(await in_thread(read_exactly, service, 1), b"x")
        service.close()
        await until(lambda: half.lost)
        self.assertEqual(ours.fileno(), -1)

    async def test_a_factory_without_a_half_refuses_the_connection(self) -> None:
        port = await server_from_string(real_reactor, self.description).listen(HalfFactory(lambda: None))
        self.addCleanup(port.stopListening)
        peer = self.owned(socket.socket())
        await in_thread(peer.connect, ("127.0.0.1", port.getHost().port))
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(await in_thread(read_all, peer), b"")


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_hung_up(sock: socket.socket) -> bool:
    """Tell whether nothing goes either way any more."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def write_certificate(path: str) -> None:
    """Write a new key and a certificate for it, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with open(path, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
