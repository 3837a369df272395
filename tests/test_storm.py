"""Everything at once: clients, callers and claimants that come and go while the configuration changes again and again.

Nobody counts who is let in. What counts is that everything is given back afterwards:
every place, every descriptor, every deadline.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import random
import socket
import threading
from typing import Any

from twisted.internet import task

from plumberd.pure.limits import Limits
from plumberd.pure.policy.route import Routes, Table
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase, leading_first
from tests.support import dialled, in_thread, native_frame, read_all, real_reactor, until
from tests.test_inbound import PLAIN

CLIENTS = 12
RELOADS = 40

LIMITS = Limits(
    connect_seconds=0.5,
    handshake_seconds=0.5,
    lookups_per_uid=5,
    unread_descriptors_per_uid=3,
    relays=30,
    relays_per_peer=20,
    handshakes_per_address=20,
    resolving_per_uid=2,
)

ANY_PORT = "allow out any tcp:127.0.0.1:1-65535"
POLICIES = (
    ("allow in any any", ANY_PORT, "allow serve mine"),
    ("deny out web any", "allow in pong any"),
    ("allow in any any", "deny out any tcp:127.0.0.0/8"),
    ("allow in any any", f"{ANY_PORT} handover=relayed", "allow serve mine"),
)

SERVICES = ("web", "pub", "pong", "mine", "absent")


class Storm(RunningTestCase):
    timeout = 60.0

    def setUp(self) -> None:
        super().setUp()
        self.seed = int(os.environ.get("STORM_SEED", "1"))
        self.random = random.Random(self.seed)
        self.over = threading.Event()
        self.addCleanup(self.over.set)

    async def test_everything_is_given_back(self) -> None:
        service = self.start()
        clients = [in_thread(self.come_and_go, service, number) for number in range(CLIENTS)]
        for _ in range(RELOADS):
            await task.deferLater(real_reactor, 0.05)  # time for what is under way, no waiting for it
            limits = dataclasses.replace(
                LIMITS,
                lookups_per_uid=self.random.randint(1, 8),
                unread_descriptors_per_uid=self.random.randint(1, 5),
                relays=self.random.randint(3, 30),
            )
            self.put_in_force(
                service, *self.random.choice(POLICIES), routes=Routes({}, self.some_routes()), limits=limits
            )
        self.over.set()
        for client in clients:
            await client
        await until(lambda: not any(self.held(service).values()))
        self.assertEqual(self.flushLoggedErrors(), [], f"STORM_SEED={self.seed}")
        self.assertIn("granted", {o.verdict for o in self.outcomes})

    def start(self) -> PlumberdService:
        """Run a gateway that is published too, what it leads to, and what it does not reach."""
        far = self.run_broker("allow in pong tcp:127.0.0.1", tcpd=(PLAIN,), limits=LIMITS)
        self.serve(far.settings.rundir, "pong")
        plain, silent = self.serve_tcp(), self.serve_tcp(lambda sock: read_all(sock))
        listen: dict[str, Any] = {"tcpd": (PLAIN, f"haproxy:{PLAIN}"), "publish": (("pub", PLAIN),)}
        service = self.run_broker(*POLICIES[0], limits=LIMITS, **listen)
        self.serve(service.settings.rundir, "pong")
        self.ports = [self.tcpd_port(service, number) for number in range(3)]
        self.targets = (
            f"tcp://127.0.0.1:{self.tcpd_port(far)}/pong",
            f"tcp://127.0.0.1:{plain}",
            f"tcp://127.0.0.1:{silent}/x",
            f"tcp:host=127.0.0.1:port={plain}:timeout=3",
            f"tcp://there.example:{plain}",
            "tcp://gone.example:1",
            f"tcp://127.0.0.1:{self.ports[0]}/pub",
            "unix:///pong",
            "unix:///absent",
        )

        def look_up(name: str) -> Any:
            self.over.wait(self.random.random() * 0.2)
            return (ipaddress.ip_address("127.0.0.1"),) if name[0] == "t" else Refused(Refusal.UNREACHABLE, "gone")

        self.resolve_with(service, look_up)
        return service

    def some_routes(self) -> Table:
        found: dict[str, Any] = {}
        for name in SERVICES[:4]:
            if self.random.random() < 0.8:
                found.update(leading_first(name, *self.random.sample(self.targets, self.random.randint(1, 4))))
        return found

    def held(self, service: PlumberdService) -> dict[str, int]:
        """Return what a running broker holds for somebody; but for what lies unread in a queue that it does not see."""
        core, broker, tcpd = service.core, service.broker, service.tcpd
        assert core is not None
        assert broker is not None
        assert tcpd is not None
        return {
            "lookups": broker.lookups.active + broker.lookups.waiting,
            "unread": broker.unread.active + broker.unread.waiting - len(broker._forgotten._due),
            "connections": sum(broker.connections_by_uid.values()),
            "relays": len(core.relays) + core.relay_places.active,
            "callers": len(tcpd.peers) + tcpd.callers.handshakes.active,
            "names": core.resolver.places.active + core.resolver.places.waiting + len(broker._operations._resolving),
            "counted": len(core.census._expected) + len(core.census._waiting),
            "claims": len([*core.registrations]),
            "deadlines": len(core.connect_deadline._due),
        }

    # -- in threads

    def come_and_go(self, service: PlumberdService, number: int) -> None:
        """Be one client after the other."""
        mine = random.Random(self.seed * 1000 + number)
        rundir = service.settings.rundir
        kinds = (self.look_up, self.look_up, self.look_up, self.call, self.call, self.call, self.explain, self.claim)
        while not self.over.is_set():
            try:
                mine.choice(kinds)(rundir, mine)
            except OSError:
                continue

    def look_up(self, rundir: str, mine: random.Random) -> None:
        name, dialect = mine.choice(SERVICES), mine.choice(("plumberd", "ipc", "network"))
        asked = {
            "plumberd": native_frame({"op": "lookup", "service": name}) * mine.randint(1, 3),
            "ipc": len(name).to_bytes(4, "big") + name.encode(),
            "network": b"\3" + len(name).to_bytes(4, "big") + b"\3" + name.encode(),
        }[dialect]
        with dialled(rundir, dialect) as sock:
            sock.settimeout(2)
            sock.sendall(asked)
            if mine.random() < 0.4:
                self.over.wait(mine.random() * 0.2)
                return
            for fd in socket.recv_fds(sock, 65536, 5)[1]:
                with socket.socket(fileno=fd) as found:
                    self.talk(found)

    def call(self, rundir: str, mine: random.Random) -> None:
        kind = mine.randrange(3)
        with socket.create_connection(("127.0.0.1", self.ports[kind]), 3) as sock:
            if kind == 1:
                sock.sendall(b"PROXY TCP4 192.0.2.%d 127.0.0.1 4000 9000\r\n" % mine.randint(1, 3))
            if kind < 2 and mine.random() < 0.9:
                sock.sendall(mine.choice(SERVICES).encode())
            if mine.random() < 0.3:
                return
            if mine.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.talk(sock)

    def explain(self, rundir: str, mine: random.Random) -> None:
        with dialled(rundir, "plumberd") as sock:
            sock.sendall(native_frame({"op": "explain", "direction": "out", "service": mine.choice(SERVICES)}))
            if mine.random() < 0.5:
                sock.recv(65536)

    def claim(self, rundir: str, mine: random.Random) -> None:
        with dialled(rundir, "plumberd") as sock:
            sock.settimeout(0.3)
            sock.sendall(native_frame({"op": "serve", "service": "mine"}))
            for _ in range(4):
                for fd in socket.recv_fds(sock, 65536, 5)[1]:
                    os.close(fd)

    def talk(self, sock: socket.socket) -> None:
        sock.settimeout(0.5)
        sock.recv(2)
        sock.sendall(b"hello")
        sock.recv(5)
