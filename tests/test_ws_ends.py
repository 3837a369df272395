"""plumberd.wiring.dialing.ws_ends: a slow browser slows the service, and costs what one read brings."""

from __future__ import annotations

import socket
import tracemalloc

from plumberd.framing import Message, encode
from plumberd.pure.limits import Limits
from tests.support import DEADLINE_SECONDS, in_thread, read_exactly, until
from tests.tables import each
from tests.test_inbound_web import ANYBODY, WebTestCase
from tests.web_clients import UPGRADE, parsed

MIB = 1 << 20


class Slow(WebTestCase):
    async def opened(self, port: int, protocol: str) -> socket.socket:
        """Open a WebSocket with small buffers, on which nobody reads."""

        def work() -> socket.socket:
            sock = self.owned(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.connect(("127.0.0.1", port))
            head = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
            sock.sendall(head.encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += sock.recv(1)
            assert parsed(answer)[0] == 101
            return sock

        return await in_thread(work)

    @each(("raw",), ("ipc",))
    async def test_a_browser_that_does_not_read_stops_the_service(self, protocol: str) -> None:
        broker = self.listen(ANYBODY)
        sent = [0]
        piece = encode("libipc-zig", Message(bytes(MIB - 4)))

        def service(sock: socket.socket) -> None:
            while sent[0] < 256 * MIB:
                sent[0] += sock.send(piece[sent[0] % MIB :][:65536])

        self.serve(broker.settings.rundir, "pong", service)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        sock = await self.opened(self.tcpd_port(broker), protocol)
        before = -1
        while before != sent[0] or not sent[0]:  # until nothing moves any more
            before = sent[0]
            turns = iter(range(200))
            await until(lambda turns=turns: next(turns) == 199)  # type: ignore[misc]
        self.assertLess(sent[0], 16 * MIB)  # what the kernel's own buffers hold
        self.assertLess(tracemalloc.get_traced_memory()[1], 4 * MIB)

        def read() -> int:
            count = 0
            while count < 64 * MIB:
                count += len(sock.recv(MIB))
            return count

        self.assertGreaterEqual(await in_thread(read), 64 * MIB)
        self.assertLess(tracemalloc.get_traced_memory()[1], 6 * MIB)
        sock.close()
        await self.wait_until_idle(broker)

    async def test_a_service_that_does_not_read_stops_the_browser(self) -> None:
        broker = self.listen(ANYBODY, limits=Limits(message_bytes=1 << 30))
        holding: list[socket.socket] = []

        def service(sock: socket.socket) -> None:
            holding.append(sock)
            read_exactly(sock, 1)
            go.recv(1)
            while sock.recv(MIB):
                pass

        go, come = self.pair()
        self.serve(broker.settings.rundir, "pong", service)
        sock = await self.opened(self.tcpd_port(broker), "ipc")
        sock.setblocking(False)
        sock.send(bytes.fromhex("82ff0000000010000000 00000000"))  # 256 MiB in one message
        sent = 0
        while True:
            try:
                sent += sock.send(bytes(MIB))
            except BlockingIOError:
                turns = iter(range(200))
                await until(lambda turns=turns: next(turns) == 199)  # type: ignore[misc]
                try:
                    sent += sock.send(bytes(MIB))
                except BlockingIOError:
                    break
        self.assertLess(sent, 32 * MIB)
        come.send(b"x")
        sock.settimeout(DEADLINE_SECONDS)
        await in_thread(sock.sendall, bytes(256 * MIB - sent))
        await in_thread(sock.sendall, bytes.fromhex("888200000000 03e8"))  # the kernel may have no room for it yet
        self.assertTrue((await in_thread(sock.recv, 100)).endswith(b"\x88\x02\x03\xe8"))
        await self.wait_until_idle(broker)
