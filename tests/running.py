"""A plumberd that runs within the test's own reactor, over real sockets."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from plumberd.effects.audit import Outcome
from plumberd.pure.limits import Limits
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.route import Choice, Table, Target
from plumberd.pure.policy.rule import parse_rule
from plumberd.wiring.service import PlumberdService
from plumberd.wiring.settings import Settings
from tests.support import CleanTestCase, in_thread, real_reactor, until

QUICK = Limits(connect_seconds=5.0, handshake_seconds=5.0)


class RunningTestCase(CleanTestCase):
    """Starts brokers, keeps what they log, and stops them."""

    def setUp(self) -> None:
        super().setUp()
        self.outcomes: list[Outcome] = []

    def run_broker(self, *rules: str, limits: Limits = QUICK, **settings: Any) -> PlumberdService:
        """Start a broker in a run directory of its own."""
        defaults = settings.pop("defaults", dict(DEFAULTS))
        policy = Policy(tuple(parse_rule(r) for r in rules), defaults, settings.pop("own_addresses", frozenset()))
        rundir = settings.pop("rundir", None) or os.path.join(self.folder(), "r")
        service = PlumberdService(Settings(rundir=rundir, policy=policy, limits=limits, **settings), real_reactor)
        service.startService()
        self.addCleanup(service.stopService)
        core = service.core
        assert core is not None
        note = core.audit.note

        def keep(outcome: Outcome) -> None:
            self.outcomes.append(outcome)
            note(outcome)

        core.audit.note = keep  # type: ignore[method-assign]
        return service

    def tcpd_port(self, service: PlumberdService, number: int = 0) -> int:
        """Return the TCP port that tcpd listens on."""
        assert service.tcpd is not None
        host: Any = service.tcpd.ports[number].getHost()
        return int(host.port)

    def serve(self, rundir: str, name: str, answer: Any = None) -> socket.socket:
        """Run a local service that gives each connection to *answer*, or echoes; return its listener."""
        return self.serve_on(self.unix_listener(os.path.join(rundir, name)), answer or echo)

    def serve_tcp(self, answer: Any = None, host: str = "127.0.0.1") -> int:
        """Run a TCP server of nobody's that gives each connection to *answer*, or echoes; return its port."""
        listener, port = self.listener(host)
        self.serve_on(listener, answer or echo)
        return port

    def serve_on(self, listener: socket.socket, answer: Any) -> socket.socket:
        """Give each connection to *listener* to *answer*, in a thread of its own; return *listener*."""
        threads: list[threading.Thread] = []
        connections: list[socket.socket] = []

        def accept() -> None:
            listener.settimeout(None)
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                connections.append(sock)
                threads.append(threading.Thread(target=one, args=(sock,), daemon=True))
                threads[-1].start()

        def one(sock: socket.socket) -> None:
            with sock:
                try:
                    answer(sock)
                except OSError:
                    return

        def shut(sock: socket.socket) -> None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return

        async def stop() -> None:
            shut(listener)
            await in_thread(accepting.join)
            for sock in connections:
                shut(sock)
            for thread in threads:
                await in_thread(thread.join)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        self.addCleanup(stop)
        return listener

    async def wait_until_idle(self, service: PlumberdService) -> None:
        """Wait until the broker holds nothing for anybody."""
        core, broker, tcpd = service.core, service.broker, service.tcpd
        assert core is not None
        assert broker is not None
        assert tcpd is not None
        await until(
            lambda: (
                not (
                    broker.conversations
                    or broker.lookups.active
                    or broker.lookups.waiting
                    or broker.unread.active
                    or core.relays
                    or tcpd.peers
                )
            )
        )


def leading(**targets: Target) -> Table:
    """Return the table in which each name leads to one target, for everybody."""
    return {name: (Choice((target,)),) for name, target in targets.items()}


def echo(sock: socket.socket) -> None:
    """Send everything back, and pass the end on."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
