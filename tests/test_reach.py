"""plumberd.wiring.dialing.reach: one connection to one place, made, or given up at any step without a trace."""

from __future__ import annotations

import ipaddress
import os
import socket
from types import SimpleNamespace
from typing import Any
from unittest import mock

from plumberd.effects.dial_tcp import new_socket
from plumberd.pure.policy.route import Endpoint, parse_target_uri
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from plumberd.wiring.dialing import reach
from plumberd.wiring.dialing.reach import Reach, Reached, Traveller
from plumberd.wiring.service import PlumberdService
from tests.children import needs_root
from tests.ports import free_port
from tests.running import RunningTestCase, echo
from tests.support import in_thread, read_all, read_exactly, until
from tests.tables import each

HERE = ipaddress.ip_address("127.0.0.1")


class ReachTestCase(RunningTestCase):
    """Reaches from within a running broker, which here is only what everything is made of."""

    def setUp(self) -> None:
        super().setUp()
        self.service: PlumberdService = self.run_broker()
        core = self.service.core
        assert core is not None
        self.core = core
        self.done: list[Reached | Refused] = []
        self.marks: list[str] = []

    def reach(self, target: str, *addresses: str, **traveller: Any) -> Reach:
        """Begin to reach *target*; what comes of it goes to :attr:`done`."""
        leads_to = Endpoint(target) if "://" not in target else parse_target_uri(target)
        where = tuple(map(ipaddress.ip_address, addresses or ("127.0.0.1",)))
        one = Reach(self.core, leads_to, where, Traveller("somebody", **traveller), self.done.append, self.marks.append)
        one.start()
        return one

    async def reached(self, *args: Any, **traveller: Any) -> Reached:
        self.reach(*args, **traveller)
        await until(lambda: self.done)
        (result,) = self.done
        assert isinstance(result, Reached), result
        result.sock.setblocking(True)
        self.owned(result.sock)
        return result

    async def refused(self, *args: Any, **traveller: Any) -> Refused:
        self.reach(*args, **traveller)
        await until(lambda: self.done)
        (result,) = self.done
        assert isinstance(result, Refused), result
        return result

    async def check_idle(self) -> None:
        await until(lambda: not self.core.relays and not self.core.relay_places.active)

    def daemon(self, *says: bytes) -> int:
        """Run what reads a name and answers; without an answer it waits for the end."""

        def answer(sock: socket.socket) -> None:
            sock.recv(64)
            for one in says:
                sock.sendall(one)
            read_all(sock)

        return self.serve_tcp(answer)


class ReachedPlaces(ReachTestCase):
    async def test_a_server(self) -> None:
        port = self.serve_tcp()
        result = await self.reached(f"tcp://127.0.0.1:{port}")
        self.assertEqual((result.address, result.sock.getpeername()), (HERE, ("127.0.0.1", port)))
        self.assertEqual(self.marks, ["connect"])

    async def test_a_service_behind_a_handshake_of_which_nothing_is_left_to_read(self) -> None:
        result = await self.reached(f"tcp://127.0.0.1:{self.daemon(b'okhello')}/pong")
        self.assertEqual(await in_thread(read_exactly, result.sock, 5), b"hello")
        self.assertEqual(self.marks, ["connect", "handshake"])

    async def test_a_local_service_as_the_broker_itself(self) -> None:
        self.serve(self.service.settings.rundir, "pong", lambda sock: sock.sendall(b"pong"))
        result = await self.reached("unix:///pong")
        self.assertEqual(await in_thread(read_all, result.sock), b"pong")

    async def test_an_endpoint_whose_end_is_told(self) -> None:
        ended: list[tuple[str, int, int]] = []
        port = self.serve_tcp()
        result = await self.reached(f"tcp:host=127.0.0.1:port={port}", ended=lambda *how: ended.append(how))
        self.assertEqual(self.core.relay_places.active_of("somebody"), 1)
        result.sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, result.sock, 5), b"hello")
        result.sock.close()
        await until(lambda: ended)
        self.assertEqual(ended, [("closed", 5, 5)])
        await self.check_idle()

    async def test_the_address_that_answers_of_several(self) -> None:
        port = self.serve_tcp()
        result = await self.reached(f"tcp://h.example:{port}", "127.0.0.2", "127.0.0.1")
        self.assertEqual(result.address, HERE)

    @needs_root
    async def test_a_socket_is_its_owner_s_before_it_connects(self) -> None:
        result = await self.reached(f"tcp://127.0.0.1:{self.serve_tcp()}", owner=(5003, 5004))
        status = os.fstat(result.sock.fileno())
        self.assertEqual((status.st_uid, status.st_gid), (5003, 5004))

    @needs_root
    @each(("as_the_client", True), ("as_the_broker", False))
    async def test_a_socket_is_made_as_the_client_where_that_can_be_done(self, _: str, can_switch: bool) -> None:
        """Of a socket that it is merely given, a packet filter says that it is the broker's: tests/escapes."""
        makers: list[tuple[int, int]] = []

        def make(family: int) -> socket.socket:
            makers.append((os.geteuid(), os.getegid()))
            return new_socket(family)

        self.patch(self.core.services.actas, "can_switch", can_switch)
        self.patch(reach, "new_socket", make)
        result = await self.reached(
            f"tcp://127.0.0.1:{self.serve_tcp()}", who=LocalWho(5003, 5004, (), 1), owner=(5003, 5004)
        )
        self.assertEqual(makers, [(5003, 5004) if can_switch else (0, os.getegid())])
        self.assertEqual(os.fstat(result.sock.fileno()).st_uid, 5003)


class RefusedPlaces(ReachTestCase):
    async def test_where_nobody_listens(self) -> None:
        self.assertEqual((await self.refused(f"tcp://127.0.0.1:{free_port()}")).word, Refusal.UNREACHABLE)

    async def test_a_far_side_that_says_no(self) -> None:
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"no busy today")))
        refused = await self.refused(f"tcp://127.0.0.1:{port}/pong")
        self.assertEqual((refused.word, refused.reason), (Refusal.BUSY, "the far side refused: busy today"))

    async def test_a_far_side_that_hangs_up(self) -> None:
        port = self.serve_tcp(lambda sock: sock.recv(64))
        self.assertEqual((await self.refused(f"tcp://127.0.0.1:{port}/pong")).word, Refusal.UNREACHABLE)

    async def test_a_local_service_that_is_not_there(self) -> None:
        self.assertEqual((await self.refused("unix:///pong")).word, Refusal.UNKNOWN_SERVICE)

    async def test_an_endpoint_that_cannot_be_reached(self) -> None:
        refused = await self.refused(f"tcp:host=127.0.0.1:port={free_port()}")
        self.assertEqual(refused.word, Refusal.UNREACHABLE)
        await self.check_idle()

    def test_what_nothing_carries_is_raised_and_nothing_is_under_way(self) -> None:
        with mock.patch("plumberd.wiring.dialing.served.SERVED", ("tcp",)), self.assertRaises(Refused):
            self.reach("ws://127.0.0.1:1")
        self.assertEqual(self.done, [])

    def test_a_string_that_makes_no_endpoint_is_raised(self) -> None:
        with self.assertRaises(Refused) as caught:
            self.reach("tcp:host=127.0.0.1:port=1:nonsense=2")
        self.assertEqual((caught.exception.word, self.core.relay_places.active), (Refusal.UNREACHABLE, 0))


class GivenUp(ReachTestCase):
    """After `cancel` nobody is told anything, and nothing is left."""

    async def check_given_up(self, one: Reach, ended: list[bytes]) -> None:
        one.cancel()
        one.cancel()
        await until(lambda: ended)
        self.assertEqual((ended, self.done), ([b""], []))
        await self.check_idle()

    def watching(self) -> tuple[int, list[bytes]]:
        """Return the port of a server that says nothing, and what it reads to the end of a connection."""
        ended: list[bytes] = []
        return self.serve_tcp(lambda sock: ended.append(read_all(sock).replace(b"pong", b""))), ended

    async def test_in_the_handshake(self) -> None:
        port, ended = self.watching()
        one = self.reach(f"tcp://127.0.0.1:{port}/pong")
        await until(lambda: "connect" in self.marks)
        await self.check_given_up(one, ended)

    async def test_while_it_connects(self) -> None:
        """Nobody takes what lies in a full backlog, so that connecting goes on for ever."""
        listener = self.owned(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(2):
            filling = self.owned(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        one = self.reach(f"tcp://127.0.0.1:{port}")
        await in_thread(lambda: None)
        one.cancel()
        self.assertEqual(self.done, [])

    async def test_while_a_local_service_s_backlog_is_full(self) -> None:
        path = os.path.join(self.service.settings.rundir, "pong")
        self.unix_listener(path, backlog=0)
        while True:
            filling = self.owned(socket.socket(socket.AF_UNIX))
            filling.setblocking(False)
            if filling.connect_ex(path):
                break
        one = self.reach("unix:///pong")
        await in_thread(lambda: None)
        one.cancel()
        self.assertEqual(self.done, [])

    async def test_while_an_endpoint_connects(self) -> None:
        port = self.serve_tcp(echo)
        one = self.reach(f"tcp:host=127.0.0.1:port={port}")
        one.cancel()
        await self.check_idle()
        self.assertEqual(self.done, [])

    async def test_before_a_scheme_daemon_has_answered(self) -> None:
        settings = self.core.settings
        object.__setattr__(settings, "parts", frozenset(("broker",)))
        ended: list[bytes] = []
        self.serve(settings.rundir, "tcp", lambda sock: ended.append(read_all(sock)[:0]))
        one = self.reach("tcp://127.0.0.1:9/pong")
        await self.check_given_up(one, ended)


class Here(RunningTestCase):
    """Where this process listens for callers."""

    async def test_every_listener_counts_with_its_address(self) -> None:
        service = self.run_broker(
            tcpd=("tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1", "tcp6:0:interface=\\:\\:1"),
            publish=(("pong", "tcp:0:interface=127.0.0.2"),),
        )
        core, tcpd = service.core, service.tcpd
        assert core is not None and tcpd is not None
        for port in tcpd.ports:
            host: Any = port.getHost()
            for text in ("127.0.0.1", "127.0.0.2", "::1", "192.0.2.1"):
                self.assertEqual(core.is_here(ipaddress.ip_address(text), host.port), text == host.host)

    async def test_one_on_every_address_counts_for_all_that_the_machine_has(self) -> None:
        service = self.run_broker(tcpd=("tcp:0:interface=127.0.0.1",))
        core, tcpd = service.core, service.tcpd
        assert core is not None and tcpd is not None
        host = SimpleNamespace(host="0.0.0.0", port=9000)
        self.patch(tcpd._listening[0], "port", SimpleNamespace(getHost=lambda: host))
        own = ipaddress.ip_address("192.0.2.7")
        with_own = core.addresses | {own}
        self.patch(type(core), "addresses", property(lambda _: with_own))
        for address, wanted in ((own, True), (HERE, True), (ipaddress.ip_address("192.0.2.8"), False)):
            self.assertEqual(core.is_here(address, 9000), wanted)
        self.assertFalse(core.is_here(own, 9001))

    def test_where_nothing_listens_nothing_is_here(self) -> None:
        core = self.run_broker().core
        assert core is not None
        self.assertFalse(core.is_here(HERE, 9000))
