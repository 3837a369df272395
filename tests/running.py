"""A plumberd that runs within the test's own reactor, over real sockets."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from plumberd.effects.accounts import Accounts
from plumberd.effects.audit import Outcome
from plumberd.effects.resolve import Answer, Resolver
from plumberd.pure.limits import Limits
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.index import Rules
from plumberd.pure.policy.route import Choice, Table, Target, parse_route
from plumberd.pure.policy.rule import Rule, bind_rule, parse_rule
from plumberd.pure.refusals import Refused
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.service import PlumberdService
from tests.support import CleanTestCase, in_thread, read_all, real_reactor, until

T = TypeVar("T")

QUICK = Limits(connect_seconds=5.0, handshake_seconds=5.0)


class RunningTestCase(CleanTestCase):
    """Starts brokers, keeps what they log, and stops them."""

    def setUp(self) -> None:
        super().setUp()
        self.outcomes: list[Outcome] = []

    def run_broker(self, *rules: str, limits: Limits = QUICK, **settings: Any) -> PlumberdService:
        """Start a broker in a run directory of its own."""
        defaults = settings.pop("defaults", dict(DEFAULTS))
        policy = Policy(rules_of(*rules), defaults, settings.pop("own_addresses", frozenset()))
        rundir = settings.pop("rundir", None) or os.path.join(self.folder(), "r")
        return self.run_with_settings(Settings(rundir=rundir, policy=policy, limits=limits, **settings))

    def run_with_settings(self, settings: Settings) -> PlumberdService:
        """Start a broker with these very settings."""
        service = PlumberdService(settings, real_reactor)
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

    def put_in_force(self, service: PlumberdService, *rules: str, **settings: Any) -> None:
        """Put other rules and settings in force, as a reload that has read them does."""
        core, broker, tcpd = service.core, service.broker, service.tcpd
        assert core is not None
        assert broker is not None
        assert tcpd is not None
        policy = dataclasses.replace(core.settings.policy, rules=Rules(rules_of(*rules)))
        core.reconfigure(dataclasses.replace(core.settings, policy=policy, **settings))
        broker.reconfigure()
        tcpd.reconfigure()

    def resolve_with(self, service: PlumberdService, lookup: Callable[[str], Answer | Refused]) -> None:
        """Let *lookup*, which blocks a thread, stand in the place of the name servers."""
        core = service.core
        assert core is not None
        core.resolver.close()
        core.resolver = Resolver(real_reactor, lookup, core.settings.limits)

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


def rules_of(*rules: str) -> tuple[Rule, ...]:
    """Parse rules, and find the users and groups that they name."""
    accounts = Accounts()
    return tuple(bind_rule(parse_rule(rule), accounts.uid_of, accounts.gid_of) for rule in rules)


def leading_first(name: str, *texts: str) -> Table:
    """Return the table in which *name* leads to the first of several targets that can be reached."""
    return {name: (Choice(tuple(parse_route(name, text) for text in texts)),)}


def leading(**targets: Target) -> Table:
    """Return the table in which each name leads to one target, for everybody."""
    return {name: (Choice((target,)),) for name, target in targets.items()}


def noting(asked: list[T], what: T, says: bytes = b"") -> Callable[[socket.socket], None]:
    """Return a server that writes down that it was asked, says something, and reads to the end."""

    def answer(sock: socket.socket) -> None:
        asked.append(what)
        sock.sendall(says)
        read_all(sock)

    return answer


def echo(sock: socket.socket) -> None:
    """Send everything back, and pass the end on."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
