"""What tests of claims share: a broker, and claimants that are hung up on at the end."""

from __future__ import annotations

import socket
from typing import Any

from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.core import Core
from plumberd.wiring.service import PlumberdService
from tests.holders import Claim
from tests.running import RunningTestCase
from tests.support import in_thread, read_exactly

ALLOW = "allow serve pong"
PLAIN = "tcp:0:interface=127.0.0.1"


class ServingTestCase(RunningTestCase):
    """One broker, whose services are claimed."""

    def start(self, *rules: str, **settings: Any) -> PlumberdService:
        """Start a broker with *rules*; keep its parts."""
        self.service = service = self.run_broker(*rules, **settings)
        self.rundir = service.settings.rundir
        assert service.broker is not None and service.core is not None
        self.broker: Broker = service.broker
        self.core: Core = service.core
        return service

    def claimant(self) -> Claim:
        """Connect as somebody who will claim."""
        claim = Claim(self.rundir)
        self.owned(claim.sock)
        return claim

    async def claim(self, *services: str) -> Claim:
        """Claim services, which must be granted."""
        claim = self.claimant()
        for service in services or ("pong",):
            answer = await in_thread(claim.serve, service)
            self.assertEqual((answer["ok"], answer.get("service")), (True, service), answer)
        return claim

    async def take(self, claim: Claim) -> tuple[dict[str, Any], socket.socket]:
        """Take the next connection."""
        told, sock = await in_thread(claim.take)
        return told, self.owned(sock)

    async def check_talks(self, left: socket.socket, right: socket.socket) -> None:
        """Check that bytes go both ways between two ends."""
        for here, there in ((left, right), (right, left)):
            await in_thread(here.sendall, b"some bytes")
            self.assertEqual(await in_thread(read_exactly, there, 10), b"some bytes")
