"""plumberd.wiring.inbound.inbound_transport: the same callers, behind an endpoint that has no socket of its own."""

from __future__ import annotations

import os
import socket
import time
from unittest import mock

from plumberd.effects.kernel import unread_bytes
from plumberd.pure.limits import Limits
from tests.support import in_thread, read_exactly, until
from tests.test_generations import bounce_packets, old_message
from tests.test_inbound import Callers, end_of

PROXIED = "haproxy:tcp:0:interface=127.0.0.1"


class BehindAProxy(Callers):
    """The same through Twisted's PROXY-protocol endpoint, whose header tells the peer's address."""

    endpoint = PROXIED
    first_bytes = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 9000\r\n"
    peer_address = "192.0.2.7"

    async def test_a_service_with_packets_keeps_them_whole(self) -> None:
        service = self.run_tcpd("allow in pong any")
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(service.settings.rundir, "pong"))
        listener.listen(16)
        self.serve_on(listener, bounce_packets)
        sock = await self.ask(service, b"pong")
        for payload in (b"hello", b"x" * 150_000):
            message = old_message(payload)
            await in_thread(sock.sendall, message)
            self.assertTrue(await in_thread(read_exactly, sock, len(message)) == message)
        sock.close()
        await self.wait_until_idle(service)

    async def test_the_tail_of_a_service_that_closes_with_bytes_unread_arrives(self) -> None:
        service = self.run_tcpd("allow in pong any")
        data = b"x" * 150_000

        def answer(sock: socket.socket) -> None:
            sock.recv(1)
            sock.sendall(data)
            while not unread_bytes(sock.fileno()):
                time.sleep(0.001)

        self.serve(service.settings.rundir, "pong", answer)
        sock = await self.ask(service, b"pong")
        sock.sendall(b"y" * 50_000)
        got = await in_thread(read_exactly, sock, len(data))
        self.assertTrue(got == data, len(got))

    async def test_a_header_that_makes_no_sense_ends_the_connection_and_no_more(self) -> None:
        service = self.run_tcpd("allow in pong any")
        for header in (b"PROXY TCP4 x y z w\r\n", b"PROXY nonsense\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\xff\0\0"):
            sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(service))))
            sock.sendall(header)
            sock.shutdown(socket.SHUT_WR)
            self.assertEqual(await in_thread(end_of, sock), b"")
        await self.wait_until_idle(service)

    async def test_who_connects_to_a_published_service_and_goes_before_its_header_holds_no_place(self) -> None:
        service = self.run_broker("allow in pong any", publish=(("pong", PROXIED),))
        for _ in range(5):
            socket.create_connection(("127.0.0.1", self.tcpd_port(service))).close()
        assert service.tcpd is not None
        peers = service.tcpd.peers
        await until(lambda: len(self.outcomes) == 5 and not peers)
        self.assertEqual({o.verdict for o in self.outcomes}, {"gone"})

    async def test_a_caller_of_whom_the_proxy_tells_no_address_has_none_and_not_the_proxy_s(self) -> None:
        service = self.run_tcpd("allow in near tcp:127.0.0.1", "allow in any_ any")
        self.serve(service.settings.rundir, "near")
        self.serve(service.settings.rundir, "any_", lambda sock: None)
        self.first_bytes = b"PROXY UNKNOWN x x x x\r\n"
        self.assertEqual(await self.refusal(service, b"near"), b"no denied")
        self.assertIn("without address", str(self.outcomes[0].who))
        self.assertEqual(await self.refusal(service, b"any_"), b"ok")

    async def test_a_published_service_waits_in_vain_for_a_caller_of_whom_the_proxy_tells_nothing(self) -> None:
        service = self.run_broker(
            "allow in pong any", publish=(("pong", PROXIED),), limits=Limits(handshake_seconds=0.1)
        )
        self.serve(service.settings.rundir, "pong")
        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(service))))
        sock.sendall(b"PROXY UNKNOWN x x x x\r\nhello")
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["timeout"])
        await self.wait_until_idle(service)

    async def test_without_descriptors_for_the_way_to_the_service_nothing_is_left(self) -> None:
        service = self.run_tcpd("allow in pong any")
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(service.settings.rundir, "pong"))
        listener.listen(16)
        self.serve_on(listener, bounce_packets)

        def refuse() -> tuple[socket.socket, socket.socket]:
            raise OSError(24, "Too many open files")

        with mock.patch("plumberd.wiring.inbound.inbound_transport.socket.socketpair", refuse):
            sock = self.call(service)
            sock.sendall(b"pong")
            await in_thread(end_of, sock)
        await self.wait_until_idle(service)
        assert service.core is not None
        self.assertEqual(service.core.relay_places.active, 0)
