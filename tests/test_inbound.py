"""plumberd.wiring.inbound.inbound: remote callers, on sockets of their own."""

from __future__ import annotations

import gc
import os
import random
import socket
import time
from typing import Any

from plumberd.effects.kernel import unread_bytes
from plumberd.pure.limits import Limits
from plumberd.pure.policy.route import Routes
from plumberd.wiring.dialing.approach import Approach
from plumberd.wiring.inbound import inbound_raw, inbound_transport
from plumberd.wiring.inbound.inbound import Inbound
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase, leading, noting
from tests.support import in_thread, is_reset, read_all, read_exactly, until

PLAIN = "tcp:0:interface=127.0.0.1"
LONG_HOLD_SECONDS = 1.0
"""For a test in which a thread has to take ok before the service's first bytes are let go."""


class TcpdTestCase(RunningTestCase):
    endpoint = PLAIN
    first_bytes = b""
    """What a caller sends before the name: the PROXY header, where there is one."""

    def run_tcpd(self, *rules: str, **settings: Any) -> PlumberdService:
        return self.run_broker(*rules, tcpd=(self.endpoint,), **settings)

    def call(self, service: PlumberdService) -> socket.socket:
        """Connect; the caller names the service itself."""
        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(service))))
        if self.first_bytes:
            sock.sendall(self.first_bytes)
        return sock

    async def ask(self, service: PlumberdService, name: bytes) -> socket.socket:
        sock = self.call(service)

        def one() -> bytes:
            sock.sendall(name)
            return read_exactly(sock, 2)

        self.assertEqual(await in_thread(one), b"ok")
        return sock

    async def refusal(self, service: PlumberdService, name: bytes) -> bytes:
        sock = self.call(service)

        def one() -> bytes:
            with sock:  # who goes on reading lingers for a second
                sock.sendall(name)
                return read_all(sock)

        return await in_thread(one)


class Over(TcpdTestCase):
    async def test_what_is_over_waits_for_no_collector(self) -> None:
        service = self.run_tcpd("allow in pong tcp:any")
        self.serve(service.settings.rundir, "pong")
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(2):
            with await self.ask(service, b"pong") as sock:
                sock.shutdown(socket.SHUT_WR)
                await in_thread(read_all, sock)
        self.assertEqual(await self.refusal(service, b"other"), b"no denied")
        await self.wait_until_idle(service)
        self.assertEqual(self.outcomes[0].verdict, "granted")
        await until(lambda: not any(isinstance(one, Inbound | Approach) for one in gc.get_objects()))


class Callers(TcpdTestCase):
    """What holds for every kind of endpoint."""

    async def test_a_caller_reaches_the_service_that_it_names(self) -> None:
        service = self.run_tcpd("allow in pong tcp:any")
        self.serve(service.settings.rundir, "pong")
        sock = await self.ask(service, b"pong")
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"")
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["granted", "ended"])
        self.assertEqual((self.outcomes[1].up, self.outcomes[1].down), (5, 5))

    async def test_a_large_transfer_is_byte_exact_both_ways_with_half_closes(self) -> None:
        service = self.run_tcpd("allow in pong any")
        data = random.Random(7).randbytes(5 << 20)
        got: list[bytes] = []

        def answer(sock: socket.socket) -> None:
            got.append(read_all(sock))  # all of the request, to its end, and only then the answer
            sock.sendall(data[::-1])

        self.serve(service.settings.rundir, "pong", answer)
        sock = await self.ask(service, b"pong")

        def talk() -> bytes:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

        self.assertTrue(await in_thread(talk) == data[::-1])
        self.assertTrue(got == [data])
        await self.wait_until_idle(service)

    async def test_a_service_that_speaks_first_is_held_until_ok_was_taken(self) -> None:
        for module in (inbound_raw, inbound_transport):
            self.patch(module, "HOLD_SECONDS", LONG_HOLD_SECONDS)
        service = self.run_tcpd("allow in pong any")
        self.serve(service.settings.rundir, "pong", lambda sock: (sock.sendall(b"banner"), read_all(sock)))
        sock = self.call(service)

        def one() -> bytes:
            sock.sendall(b"pong")
            # LibIPC's caller: one read takes the answer, and what else has come with it is lost.
            return sock.recv(4096)

        self.assertEqual(await in_thread(one), b"ok")
        self.assertEqual(await in_thread(read_exactly, sock, 6), b"banner")

    async def test_every_refusal_is_the_same_for_a_stranger(self) -> None:
        service = self.run_tcpd("allow in pong any", "allow in closed any", "deny in secret any")
        self.serve(service.settings.rundir, "secret")
        self.unix_listener(os.path.join(service.settings.rundir, "closed")).close()
        names = [b"pong", b"closed", b"secret", b"unheard-of", b"ipc", b"../x", b"x" * 65, b"\xff\0"]
        for name in names:
            self.assertEqual(await self.refusal(service, name), b"no denied", name)
        self.assertEqual(
            [o.verdict for o in self.outcomes],
            ["unknown-service", "unknown-service", "denied", "denied", "denied", *["bad-request"] * 3],
        )
        await self.wait_until_idle(service)

    async def test_refusals_take_equally_long(self) -> None:
        service = self.run_tcpd("allow in pong any")
        for name in (b"pong", b"denied", b"../x"):
            began = time.monotonic()
            await self.refusal(service, name)
            self.assertGreater(time.monotonic() - began, 0.045)

    async def test_a_rule_by_address_lets_that_address_in(self) -> None:
        service = self.run_tcpd(f"allow in pong tcp:{self.peer_address}", f"deny in other tcp:{self.peer_address}")
        self.serve(service.settings.rundir, "pong")
        await self.ask(service, b"pong")
        self.assertIn(self.peer_address, str(self.outcomes[0].who))

    peer_address = "127.0.0.1"

    async def test_a_redirect_leads_to_another_local_service(self) -> None:
        service = self.run_tcpd("allow in pong any", routes=Routes(leading(pong="pong-next")))
        self.serve(service.settings.rundir, "pong-next", lambda sock: sock.sendall(b"next"))
        sock = await self.ask(service, b"pong")
        self.assertEqual(await in_thread(read_all, sock), b"next")

    async def test_a_caller_that_says_nothing_is_dropped_in_time(self) -> None:
        service = self.run_tcpd("allow in any any", limits=Limits(handshake_seconds=0.1))
        sock = self.call(service)
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["timeout"])
        await self.wait_until_idle(service)

    async def test_a_caller_that_hangs_up_costs_nothing(self) -> None:
        service = self.run_tcpd("allow in any any")
        self.call(service).close()
        await until(lambda: self.outcomes or not self.first_bytes)
        await self.wait_until_idle(service)

    async def test_too_many_handshakes_of_one_address_are_turned_away(self) -> None:
        service = self.run_tcpd("allow in pong any", limits=Limits(handshakes_per_address=2))
        assert service.tcpd is not None
        peers = service.tcpd.peers
        self.serve(service.settings.rundir, "pong")
        waiting = [self.call(service) for _ in range(2)]
        await until(lambda: len(peers) == 2)
        self.assertEqual(await in_thread(end_of, self.call(service)), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["busy"])
        for sock in waiting:
            sock.close()
        await until(lambda: not peers)
        await self.ask(service, b"pong")

    async def test_no_more_relays_than_allowed(self) -> None:
        service = self.run_tcpd("allow in pong any", limits=Limits(relays=1))
        self.serve(service.settings.rundir, "pong")
        await self.ask(service, b"pong")
        self.assertEqual(await self.refusal(service, b"pong"), b"no denied")
        self.assertEqual(self.outcomes[-1].verdict, "busy")
        self.assertIn("relays", self.outcomes[-1].reason)

    async def test_whom_there_is_no_room_to_carry_reaches_nothing(self) -> None:
        service = self.run_tcpd("allow in pong any", limits=Limits(relays=1))
        reached: list[int] = []
        self.serve(service.settings.rundir, "pong", noting(reached, 1))
        assert service.core is not None
        service.core.begin_relay("somebody")
        self.assertEqual(await self.refusal(service, b"pong"), b"no denied")
        self.assertEqual((self.outcomes[-1].verdict, reached), ("busy", []))

    async def test_the_place_of_a_relay_that_comes_to_nothing_is_given_back(self) -> None:
        service = self.run_tcpd("allow in any any", limits=Limits(relays=1))
        self.unix_listener(os.path.join(service.settings.rundir, "closed")).close()
        self.serve(service.settings.rundir, "pong")
        for name in (b"closed", b"absent"):
            self.assertEqual(await self.refusal(service, name), b"no denied")
        await self.ask(service, b"pong")
        self.assertEqual([o.verdict for o in self.outcomes], ["unknown-service", "unknown-service", "granted"])

    async def test_the_place_of_a_caller_that_hangs_up_meanwhile_is_given_back(self) -> None:
        service = self.run_tcpd("allow in any any", limits=Limits(relays=1))
        assert service.core is not None
        places = service.core.relay_places
        path = os.path.join(service.settings.rundir, "full")
        self.unix_listener(path, backlog=0)
        while True:
            filling = self.owned(socket.socket(socket.AF_UNIX))
            filling.setblocking(False)
            if filling.connect_ex(path):
                break
        sock = self.call(service)
        sock.sendall(b"full")
        await until(lambda: places.active == 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        await until(lambda: not places.active)
        await self.wait_until_idle(service)

    async def test_a_callers_reset_closes_the_services_connection_at_once(self) -> None:
        service = self.run_tcpd("allow in pong any")
        ended: list[bytes] = []
        self.serve(service.settings.rundir, "pong", lambda sock: ended.append(read_all(sock)))
        sock = await self.ask(service, b"pong")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        await until(lambda: ended)
        await self.wait_until_idle(service)

    async def test_a_service_that_closes_with_bytes_unread_becomes_a_reset(self) -> None:
        service = self.run_tcpd("allow in pong any")

        def answer(sock: socket.socket) -> None:
            while not unread_bytes(sock.fileno()):
                time.sleep(0.001)

        self.serve(service.settings.rundir, "pong", answer)
        sock = await self.ask(service, b"pong")
        sock.sendall(b"nobody reads this")
        self.assertTrue(await in_thread(is_reset, sock))


def end_of(sock: socket.socket) -> bytes:
    """Read to the end; a dropped connection may end with a reset."""
    try:
        return read_all(sock)
    except ConnectionResetError:
        return b""
