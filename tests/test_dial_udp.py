"""plumberd.effects.dial_udp: a connected socket, and a session where a service is named."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from twisted.internet.task import Clock

from plumberd.effects import dial_udp
from plumberd.effects.dial_udp import Connected, UdpDial
from plumberd.effects.poll import Poll
from plumberd.effects.udp import new_socket
from plumberd.pure.refusals import Refusal, Refused
from tests.children import needs_root
from tests.datagram_peer import take
from tests.ports import free_port
from tests.support import DEADLINE_SECONDS, CleanTestCase, Readers, in_thread, real_reactor, until
from tests.tables import each

HERE, HERE6 = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")


class DialTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.results: list[Connected | Refused] = []

    def server(self, host: str = "127.0.0.1", port: int = 0) -> tuple[socket.socket, int]:
        """Return a bound socket and its port."""
        sock = self.owned(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((host, port))
        return sock, sock.getsockname()[1]

    def dial(self, *addresses: Any, port: int, service: str | None = None, **more: Any) -> UdpDial:
        """Begin."""
        owner = more.pop("owner", None)
        dial = UdpDial(self.poll, real_reactor, addresses, port, service, owner, self.results.append, **more)
        self.addCleanup(dial.cancel)
        dial.start()
        return dial

    async def result(self) -> Any:
        """Wait for it; a socket is closed at the end."""
        await until(lambda: self.results)
        (found,) = self.results
        if not isinstance(found, Refused):
            self.addCleanup(found[0].close)
            self.addCleanup(self.poll.forget, found[0].fileno())
        return found


class Without(DialTestCase):
    """Without a service nobody is told anything."""

    @each((HERE,), (HERE6,))
    async def test_it_is_connected_at_once(self, address: Any) -> None:
        server, port = self.server(str(address))
        self.dial(address, port=port)
        sock, where, session = await self.result()
        self.assertEqual((where, session, sock.getpeername()[:2]), (address, b"", (str(address), port)))
        server.settimeout(0)
        with self.assertRaises(BlockingIOError):
            server.recv(10)

    async def test_only_what_comes_from_there_comes_in(self) -> None:
        server, port = self.server()
        self.dial(HERE, port=port)
        sock, _, _ = await self.result()
        stranger, _ = self.server()
        stranger.sendto(b"forged", sock.getsockname())
        server.sendto(b"true", sock.getsockname())
        sock.settimeout(DEADLINE_SECONDS)
        self.assertEqual(await in_thread(sock.recv, 100), b"true")
        sock.settimeout(0)
        with self.assertRaises(BlockingIOError):
            sock.recv(100)

    async def test_the_next_address_where_there_is_no_way_to_the_first(self) -> None:
        _, port = self.server()
        self.dial(ipaddress.ip_address("127.255.255.255"), HERE, port=port)
        _, where, _ = await self.result()
        self.assertEqual(where, HERE)

    @each(("multicast", "224.0.0.1"), ("multicast6", "ff02::1"), ("unspecified", "0.0.0.0"), ("all", "255.255.255.255"))
    def test_an_address_of_many_is_refused(self, _: str, text: str) -> None:
        with self.assertRaises(Refused) as caught:
            self.dial(ipaddress.ip_address(text), port=9)
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)

    async def test_a_network_s_broadcast_address_cannot_be_reached(self) -> None:
        self.dial(ipaddress.ip_address("127.255.255.255"), port=9)
        refused = await self.result()
        self.assertEqual(refused.word, Refusal.UNREACHABLE)
        self.assertIn("127.255.255.255:9: Permission denied", refused.reason)

    @needs_root
    async def test_the_socket_is_its_user_s_before_it_is_connected(self) -> None:
        _, port = self.server()
        self.dial(HERE, port=port, owner=(65533, 65533))
        sock, _, _ = await self.result()
        local = sock.getsockname()[1]
        with open("/proc/net/udp", encoding="ascii") as table:
            rows = [line.split() for line in table]
        self.assertEqual([row[7] for row in rows if row[1].endswith(f":{local:04X}")], ["65533"])

    async def test_it_is_never_connected_to_itself(self) -> None:
        made: list[socket.socket] = []

        def make(family: int) -> socket.socket:
            sock = new_socket(family)
            if not made:
                sock.bind(("127.0.0.1", port))  # as the kernel might pick it
            made.append(sock)
            return sock

        port = free_port()
        self.dial(HERE, port=port, make=make)
        sock, _, _ = await self.result()
        self.assertEqual(len(made), 2)
        self.assertNotEqual(sock.getsockname()[1], port)


class With(DialTestCase):
    """With one there is a handshake; the other side is an implementation of its own."""

    @each((HERE,), (HERE6,))
    async def test_a_session(self, address: Any) -> None:
        server, port = self.server(str(address))
        taking = in_thread(take, server)
        self.dial(address, port=port, service="pong")
        sock, where, session = await self.result()
        peer, name = await taking
        assert peer is not None
        self.assertEqual((where, session, name), (address, peer.session, b"pong"))

    async def test_a_refusal_has_the_far_side_s_word(self) -> None:
        server, port = self.server()
        taking = in_thread(take, server, b"busy")
        self.dial(HERE, port=port, service="pong")
        refused = await self.result()
        await taking
        self.assertEqual((refused.word, refused.reason), (Refusal.BUSY, "the far side refused: busy"))

    async def test_what_is_lost_is_said_again(self) -> None:
        server, port = self.server()

        def lose_some() -> bytes:
            hello = server.recv(200)
            if server.recv(200) != hello:
                raise AssertionError("not the same again")
            peer, _ = take(server)
            assert peer is not None
            return peer.session

        losing = in_thread(lose_some)
        self.dial(HERE, port=port, service="pong")
        _, _, session = await self.result()
        self.assertEqual(session, await losing)

    async def test_where_nobody_listens_it_is_unreachable_at_once(self) -> None:
        port = free_port()
        self.dial(HERE, port=port, service="pong")
        refused = await self.result()
        self.assertEqual((refused.word, refused.reason), (Refusal.UNREACHABLE, f"127.0.0.1:{port}: Connection refused"))

    async def test_the_next_address_has_its_turn_where_the_first_is_silent_or_gone(self) -> None:
        for silent in (True, False):
            self.results.clear()
            server, port = self.server("127.0.0.2", free_port())
            first, _ = self.server("127.0.0.1", port)
            if not silent:
                first.close()
            taking = in_thread(take, server)
            self.dial(HERE, ipaddress.ip_address("127.0.0.2"), port=port, service="pong")
            _, where, _ = await self.result()
            await taking
            self.assertEqual(str(where), "127.0.0.2")

    async def test_given_up_it_is_silent_and_leaves_nothing(self) -> None:
        _, port = self.server()
        dial = self.dial(HERE, port=port, service="pong")
        dial.cancel()
        dial.cancel()
        await in_thread(lambda: None)
        self.assertEqual(self.results, [])

    async def test_a_stranger_s_answers_are_passed_over(self) -> None:
        server, port = self.server()

        def forge_then_take() -> None:
            hello, address = server.recvfrom(200)
            server.sendto(b"\1\4" + b"another." + b"sessions", address)
            server.sendto(b"\1\5" + b"another." + b"denied", address)
            server.sendto(b"", address)
            take(server)

        taking = in_thread(forge_then_take)
        self.dial(HERE, port=port, service="pong")
        self.assertNotIsInstance(await self.result(), Refused)
        await taking


class Flooded(DialTestCase):
    """Who answers with more than is read in a turn."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(dial_udp, "A_TURN", 2)
        self.clock = Clock()
        self.rounds = Poll(Readers(), self.clock)  # type: ignore[arg-type]
        self.addCleanup(self.rounds.close)
        self.asked, port = self.server()
        dial = UdpDial(self.rounds, self.clock, [HERE], port, "pong", None, self.results.append)
        self.addCleanup(dial.cancel)
        dial.start()
        hello, where = self.asked.recvfrom(200)
        self.asked.connect(where)
        self.nonce = hello[2:10]

    def test_others_have_their_turn_in_between(self) -> None:
        for datagram in (*[b"flood"] * 5, b"\1\5" + self.nonce + b"busy"):
            self.asked.send(datagram)
        seen: list[int] = []
        self.rounds.turn()
        for _ in range(2):
            self.rounds.again(lambda: seen.append(len(self.results)))
            self.clock.advance(0)
        self.assertEqual(seen, [0, 1])

    def test_however_often_there_is_more_it_goes_on_once(self) -> None:
        for _ in range(3):
            for _ in range(3):
                self.asked.send(b"flood")
            self.rounds.turn()
        self.assertEqual(len(self.rounds._again), 1)

    def test_what_comes_behind_the_session_s_name_is_left(self) -> None:
        for _ in range(2):
            self.asked.send(b"flood")
        self.rounds.turn()
        self.asked.send(b"\1\4" + self.nonce + b"session!")
        self.asked.send(b"the session's")
        self.rounds.turn()
        self.clock.advance(0)
        ((sock, _, session),) = self.results  # type: ignore[misc]
        self.addCleanup(sock.close)
        self.assertEqual((session, sock.recv(100)), (b"session!", b"the session's"))

    def test_what_was_given_up_meanwhile_is_not_read(self) -> None:
        for _ in range(3):
            self.asked.send(b"flood")
        self.rounds.turn()
        self.asked.send(b"\1\5" + self.nonce + b"busy")
        self.rounds.turn()
        self.assertEqual(len(self.results), 1)
        self.clock.advance(0)
        self.assertEqual(len(self.results), 1)
