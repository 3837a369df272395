"""A broker that hands accepted connections to whoever claims a service, for the three libraries that do."""

from __future__ import annotations

import os
import socket
from typing import Any

from plumberd import client
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase
from tests.support import in_thread, read_all, read_exactly, until

RULES = ("allow serve pong", "allow in pong tcp:127.0.0.1")
LOOPBACK = ("tcp:0:interface=127.0.0.1",)


class ClaimTestCase(RunningTestCase):
    """Runs the broker, and its callers."""

    def claimable(self, *rules: str, rundir: str | None = None, **settings: Any) -> PlumberdService:
        """Start a broker in which ``pong`` may be claimed, and which callers from loopback reach."""
        return self.run_broker(*(rules or RULES), tcpd=LOOPBACK, rundir=rundir, **settings)

    async def call(self, broker: PlumberdService) -> socket.socket:
        """Call pong as a local client; return the connection."""
        sock = await in_thread(client.connect, "pong", rundir=broker.settings.rundir)
        return self.owned(sock)

    async def call_in(self, broker: PlumberdService) -> socket.socket:
        """Call pong from outside, with the handshake; return the connection, which has been told ok."""
        sock = self.owned(socket.socket())
        await in_thread(sock.connect, ("127.0.0.1", self.tcpd_port(broker)))
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
        return sock

    async def check_echo(self, sock: socket.socket, word: bytes = b"hello") -> None:
        """Say something, and hear it again."""
        sock.sendall(word)
        self.assertEqual(await in_thread(read_exactly, sock, len(word)), word)

    async def claimed(self, broker: PlumberdService, count: int = 1) -> None:
        """Wait until so many claims are in force."""
        core = broker.core
        assert core is not None
        await until(lambda: len([*core.registrations]) == count)

    def restart(self, broker: PlumberdService, *rules: str) -> PlumberdService:
        """Start another broker in the place of one that has stopped."""
        return self.claimable(*rules, rundir=broker.settings.rundir)


def say_nothing(sock: socket.socket, request: dict[str, Any]) -> None:
    """Answer a request with silence, until the client has gone."""
    read_all(sock)


def wanted_peer(sock: socket.socket) -> dict[str, Any]:
    """Return what a service is to be told of *sock*, the caller's end."""
    if sock.family == socket.AF_INET:
        host, port = sock.getsockname()
        return {"scheme": "tcp", "address": host, "port": port}
    return {"scheme": "unix", "uid": os.geteuid(), "gid": os.getegid(), "pid": os.getpid()}
