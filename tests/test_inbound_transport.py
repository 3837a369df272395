"""plumberd.wiring.inbound_transport: the same callers, behind an endpoint that has no socket of its own."""

from __future__ import annotations

import os
import socket

from tests.support import in_thread, read_exactly
from tests.test_generations import bounce_packets, old_message
from tests.test_inbound import Callers

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
