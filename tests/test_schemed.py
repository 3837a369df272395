"""plumberd.wiring.inbound.schemed: the scheme daemon's socket, asked as a broker asks it."""

from __future__ import annotations

import os
import socket

from plumberd.pure.carry import carry, ok
from plumberd.pure.limits import Limits
from plumberd.pure.uri import Uri
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase
from tests.support import dial, in_thread, is_reset, read_all, read_exactly, until


class SchemeDaemonTestCase(RunningTestCase):
    def start(self, limits: Limits | None = None) -> PlumberdService:
        return self.run_broker(parts=frozenset(("tcpd",)), limits=limits or Limits())

    def ask(self, service: PlumberdService, port: int, name: str | None = "pong") -> socket.socket:
        sock = self.owned(dial(service.settings.rundir, "tcp"))
        if name is None:
            text = f"tcp://127.0.0.1:{port}".encode()
            sock.sendall(len(text).to_bytes(4, "big") + text)
        else:
            sock.sendall(carry(Uri("tcp", "127.0.0.1", port, name)))
        return sock

    async def wait_until_carried(self, service: PlumberdService) -> None:
        (schemed,) = service.scheme_daemons
        await until(lambda: not schemed.requests)
        await self.wait_until_idle(service)


class Carried(SchemeDaemonTestCase):
    async def test_the_broker_takes_ok_with_one_read_and_nothing_behind_it(self) -> None:
        service = self.start()
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"okearly"), read_all(sock)))
        sock = self.ask(service, port)
        # Early bytes are there already; they come only when the answer has been taken.
        self.assertEqual(await in_thread(sock.recv, 4096), ok())
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"early")
        sock.close()
        await self.wait_until_carried(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["granted", "ended"])

    async def test_a_server_without_handshake_is_carried_too(self) -> None:
        service = self.start()
        sock = self.ask(service, self.serve_tcp(), None)
        self.assertEqual(await in_thread(read_exactly, sock, 6), ok())
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"hello")

    async def test_only_its_own_socket_is_there(self) -> None:
        service = self.start()
        self.assertEqual(sorted(os.listdir(service.settings.rundir)), ["tcp", "tcp.lock"])
        await service.stopService()
        self.assertEqual(os.listdir(service.settings.rundir), [])


class NotCarried(SchemeDaemonTestCase):
    async def test_a_broker_that_goes_while_the_far_side_thinks_cancels(self) -> None:
        service = self.start()
        (schemed,) = service.scheme_daemons
        asked: list[bytes] = []
        gone: list[bytes] = []

        def far_side(sock: socket.socket) -> None:
            asked.append(sock.recv(64))
            gone.append(read_all(sock))

        sock = self.ask(service, self.serve_tcp(far_side))
        await until(lambda: asked)  # before that nobody may have been dialled
        self.assertEqual(len(schemed.requests), 1)
        sock.close()
        await self.wait_until_carried(service)
        await until(lambda: gone)

    async def test_a_far_side_that_says_nothing_is_given_up_in_time(self) -> None:
        service = self.start(Limits(connect_seconds=0.2))
        sock = self.ask(service, self.serve_tcp(lambda sock: read_all(sock)))
        self.assertIn(b"no timeout", await in_thread(read_all, sock))
        await self.wait_until_carried(service)

    async def test_who_says_nothing_is_given_up_in_time(self) -> None:
        service = self.start(Limits(handshake_seconds=0.1))
        sock = self.owned(dial(service.settings.rundir, "tcp"))
        self.assertIn(b"no timeout", await in_thread(read_all, sock))
        await self.wait_until_carried(service)

    async def test_garbage_is_refused(self) -> None:
        service = self.start()
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\0", carry(Uri("tcp", "127.0.0.1", 9, "x")) + b"x"):
            sock = self.owned(dial(service.settings.rundir, "tcp"))
            sock.sendall(data)
            self.assertIn(b"no bad-request", await in_thread(read_all, sock))
        await self.wait_until_carried(service)

    async def test_an_answer_that_is_never_taken_ends_it(self) -> None:
        service = self.start(Limits(handshake_seconds=0.2))
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"ok"), read_all(sock)))
        sock = self.ask(service, port)
        await until(lambda: self.outcomes)
        await self.wait_until_carried(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["timeout"])
        self.assertEqual(await in_thread(read_all, sock), ok())

    async def test_a_far_side_s_reset_ends_the_carried_connection(self) -> None:
        service = self.start()

        def answer(sock: socket.socket) -> None:
            sock.recv(64)
            sock.sendall(b"ok")
            sock.recv(1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        sock = self.ask(service, self.serve_tcp(answer))
        self.assertEqual(await in_thread(read_exactly, sock, 6), ok())
        sock.sendall(b"xyz")
        await in_thread(is_reset, sock)
        await self.wait_until_carried(service)
        self.assertIn("reset", self.outcomes[-1].reason)
