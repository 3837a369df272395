"""Claimants, clients, callers and holders of control sockets at once, each as it likes: all they take is given back."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import DeferredList

from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from tests.holders import Claim, control_of
from tests.serving_case import PLAIN, ServingTestCase
from tests.support import dial, in_thread, native_frame, native_read, until

NAMES = tuple(f"s{number}" for number in range(5))
PROXIED = "haproxy:tcp:0:interface=127.0.0.1"
HEADER = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 9000\r\n"
RESET = b"\1\0\0\0\0\0\0\0"
TURNS = 12
POLICIES = (
    ("allow serve any", "allow in any any"),
    ("deny serve s1", "allow serve any", "allow in any any"),
    ("allow serve any", "deny in s2 any", "allow in any any", "deny out s3 any"),
)


class Commotion(ServingTestCase):
    timeout = 60.0

    async def check(self, **settings: Any) -> None:
        limits = Limits(handshake_seconds=0.25, connect_seconds=1.0, unread_descriptors_per_uid=8, lookups_per_uid=8)
        self.start(*POLICIES[0], tcpd=(PLAIN, PROXIED), limits=limits, **settings)
        self.ports = [self.tcpd_port(self.service, number) for number in (0, 1)]
        parts = [self.claimant_s_turn] * 3 + [self.client_s_turn] * 2 + [self.caller_s_turn] * 2 + [self.holder_s_turn]
        threads = [in_thread(self.turns, part, random.Random(seed)) for seed, part in enumerate(parts)]
        results: list[tuple[bool, Any]] = []
        for number, thread in enumerate(threads):
            self.put_in_force(self.service, *POLICIES[number % len(POLICIES)])
            results += await DeferredList([thread], consumeErrors=True)
        self.assertEqual([error for ok, error in results if not ok], [])
        await self.check_all_is_given_back()

    def turns(self, turn: Callable[[random.Random], None], chance: random.Random) -> None:
        """Do whatever it is again and again; that the broker hangs up is no error."""
        for _ in range(TURNS):
            try:
                turn(chance)
            except (OSError, EOFError):
                continue

    def claimant_s_turn(self, chance: random.Random) -> None:
        claim = Claim(self.rundir)
        try:
            claim.sock.settimeout(0.3)
            for name in chance.sample(NAMES, chance.randint(1, 3)):
                claim.serve(name)
            for _ in range(chance.randint(0, 6)):
                _, sock = claim.take()
                with sock:
                    sock.send(b"hello" * chance.choice((1, 1000)))
            if chance.random() < 0.3:
                claim.sock.shutdown(chance.choice((socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR)))
        finally:
            claim.close()

    def client_s_turn(self, chance: random.Random) -> None:
        with dial(self.rundir, "plumberd") as sock:
            for _ in range(chance.randint(1, 3)):
                sock.sendall(native_frame({"op": "lookup", "service": chance.choice(NAMES)}))
                if chance.random() < 0.2:
                    return
                if chance.random() < 0.1:
                    sock.shutdown(socket.SHUT_RDWR)
                    return
                for fd in native_read(sock)[1]:
                    os.close(fd)

    def caller_s_turn(self, chance: random.Random) -> None:
        number = chance.randrange(2)
        with socket.create_connection(("127.0.0.1", self.ports[number]), timeout=1.0) as sock:
            sock.sendall((HEADER if number else b"") + chance.choice(NAMES).encode())
            if chance.random() < 0.2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            elif sock.recv(2) == b"ok" and chance.random() < 0.7:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                sock.recv(100)

    def holder_s_turn(self, chance: random.Random) -> None:
        try:
            control = control_of(self.rundir, *NAMES)
        except AssertionError:  # refused
            return
        with control.sock:
            for _ in range(chance.randint(1, 4)):
                with control.begin(op=chance.choice(("lookup", "status")), service=chance.choice(NAMES)) as sock:
                    sock.settimeout(1.0)
                    if chance.random() < 0.7:
                        for fd in native_read(sock)[1]:
                            os.close(fd)
                control.send(b"nonsense")

    async def check_all_is_given_back(self) -> None:
        core, broker, tcpd = self.core, self.broker, self.service.tcpd
        assert tcpd is not None
        await until(lambda: not (broker.conversations or broker.controls or core.relays or tcpd.peers))
        await until(lambda: not (broker.lookups.active or broker.lookups.waiting or broker.unread.waiting))
        left = {
            "claims": list(core.registrations),
            "connections": dict(broker.connections_by_uid),
            "waiting": dict(core.registrations.waiting_of),
            "relays": core.relay_places.active,
            "handshakes": tcpd.callers.handshakes.active,
            "expected": core.census.used - len(core.census.living),
        }
        self.assertEqual({name: value for name, value in left.items() if value}, {})
        claimed = [o.ident for o in self.outcomes if o.direction == "serve" and o.verdict == "granted"]
        ended = [o.ident for o in self.outcomes if o.direction == "serve" and o.verdict == "ended"]
        self.assertEqual(sorted(claimed), sorted(ended))
        self.assertTrue(claimed)

    async def test_with_sockets_that_are_handed_over(self) -> None:
        await self.check()

    async def test_where_everything_is_relayed(self) -> None:
        await self.check(handover=Mode.RELAYED)
