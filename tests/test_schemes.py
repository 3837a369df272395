"""What holds for every scheme, from a client of one broker to a service behind another.

A scheme is one subclass of :class:`_Contract`, which says what it does not promise: datagrams
may be lost, and come in another order, so there the messages that came are looked at and not how many.
"""

from __future__ import annotations

import socket
from typing import Any

from plumberd.framing import Decoder, Message, encode
from plumberd.pure.limits import Limits
from plumberd.pure.tls import TlsSettings
from plumberd.wiring.config.settings import WebListener
from plumberd.wiring.service import PlumberdService
from tests.issued import root
from tests.running import RunningTestCase
from tests.support import DEADLINE_SECONDS, dialled, in_thread, native_frame, until, zig_lookup
from tests.test_inbound_tls import trusting
from tests.web_clients import web

HERE = "interface=127.0.0.1"
GENERATION = "libipc-zig"
MESSAGES = [b"message %d" % number for number in range(100)]


class _Contract(RunningTestCase):
    scheme = ""
    others = ("tcp", "tls", "ws", "wss", "udp")
    """With which a rule does not let this one in."""

    is_lossy = False
    modes: tuple[str, ...] = ("relayed",)

    def setUp(self) -> None:
        super().setUp()
        ca = root()
        server = ca.issue("localhost", addresses=("127.0.0.1",))
        self.listener_tls = TlsSettings((server.value,))
        self.caller_tls = TlsSettings(trust=trusting(ca))

    # -- what a subclass says

    def listening(self) -> dict[str, Any]:
        """Return the settings of a broker that listens."""
        raise NotImplementedError  # a subclass says it

    def port_of(self, far: PlumberdService) -> int:
        return self.tcpd_port(far)

    def silent(self) -> int:
        """Return the port of somebody who takes what comes, and says nothing."""
        return self.listener()[1]

    # -- what is shared

    def far(self, *rules: str) -> PlumberdService:
        return self.run_broker(*rules, tls=self.listener_tls, **self.listening())

    def near(self, *rules: str, **settings: Any) -> PlumberdService:
        return self.run_broker(*rules, tls=self.caller_tls, **settings)

    async def look_up(self, near: PlumberdService, port: int) -> tuple[bytes, socket.socket | None]:
        text = f"pong;pong {self.scheme}://127.0.0.1:{port}/pong".encode()
        said, sock = await in_thread(zig_lookup, near.settings.rundir, text)
        if sock is not None:
            self.owned(sock).settimeout(DEADLINE_SECONDS)
        return said, sock

    async def granted(self, near: PlumberdService, far: PlumberdService) -> socket.socket:
        said, sock = await self.look_up(near, self.port_of(far))
        assert sock is not None, said
        return sock

    def verdicts(self, direction: str) -> list[str]:
        return [outcome.verdict for outcome in self.outcomes if outcome.direction == direction]

    async def test_messages_come_back_and_nothing_is_left(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        self.serve(far.settings.rundir, "pong")
        sock = await self.granted(near, far)

        def talk() -> list[bytes]:
            decoder = Decoder(GENERATION)
            found: list[bytes] = []
            for message in MESSAGES:
                sock.sendall(encode(GENERATION, Message(message)))
                while not found or found[-1] != message:
                    found.extend(one.payload for one in decoder.feed(sock.recv(65536)))
            return found

        # Each is sent when the one before is back: there is nothing to lose or to reorder.
        found = await in_thread(talk)
        self.assertEqual(found, MESSAGES)
        sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)
        for direction, mode in (("in", ("relayed",)), ("out", self.modes)):
            granted = next(o for o in self.outcomes if o.direction == direction)
            self.assertEqual(granted.verdict, "granted")
            self.assertIn(granted.mode, mode)

    async def test_many_at_once_arrive_whole(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        self.serve(far.settings.rundir, "pong")
        sock = await self.granted(near, far)

        def talk() -> list[bytes]:
            decoder = Decoder(GENERATION)
            found: list[bytes] = []
            for message in MESSAGES:
                sock.sendall(encode(GENERATION, Message(message)))
            sock.shutdown(socket.SHUT_WR)
            while data := sock.recv(65536):
                found.extend(one.payload for one in decoder.feed(data))
            return found

        found = await in_thread(talk)
        if self.is_lossy:
            self.assertTrue(found)
            self.assertEqual(set(found) - set(MESSAGES), set())
        else:
            self.assertEqual(found, MESSAGES)
        sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)

    async def test_what_a_service_said_before_it_ended_arrives_and_then_its_end(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(encode(GENERATION, Message(b"the last"))))
        sock = await self.granted(near, far)

        def read() -> bytes:
            got = b""
            while data := sock.recv(65536):
                got += data
            return got

        self.assertEqual(await in_thread(read), encode(GENERATION, Message(b"the last")))

    async def test_without_a_rule_it_is_denied(self) -> None:
        far, near = self.far(), self.near()
        self.serve(far.settings.rundir, "pong")
        said, sock = await self.look_up(near, self.port_of(far))
        self.assertEqual((said[:2], sock), (b"no", None))
        await until(lambda: self.verdicts("in") and self.verdicts("out"))
        self.assertEqual((self.verdicts("in"), self.verdicts("out")), (["denied"], ["denied"]))
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)

    async def test_a_rule_for_another_scheme_lets_nobody_in(self) -> None:
        far = self.far(*(f"allow in pong {scheme}:any" for scheme in self.others if scheme != self.scheme))
        self.serve(far.settings.rundir, "pong")
        _, sock = await self.look_up(self.near(), self.port_of(far))
        self.assertIsNone(sock)
        self.assertEqual(self.verdicts("in"), ["denied"])

    async def test_what_the_near_broker_denies_the_far_one_never_hears_of(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near(f"deny out any {self.scheme}:any")
        _, sock = await self.look_up(near, self.port_of(far))
        self.assertIsNone(sock)
        self.assertEqual((self.verdicts("out"), self.verdicts("in")), (["denied"], []))

    async def test_where_nobody_listens_it_is_unreachable(self) -> None:
        near = self.near()
        far = self.far()
        port = self.port_of(far)
        await far.stopService()
        _, sock = await self.look_up(near, port)
        self.assertIsNone(sock)
        self.assertEqual(self.verdicts("out"), ["unreachable"])

    async def test_a_silent_far_side_is_given_up_in_time(self) -> None:
        near = self.near(limits=Limits(connect_seconds=0.3))
        _, sock = await self.look_up(near, self.silent())
        self.assertIsNone(sock)
        self.assertEqual(self.verdicts("out"), ["timeout"])
        await self.wait_until_idle(near)

    async def test_a_client_that_hangs_up_meanwhile_leaves_nothing(self) -> None:
        near = self.near()
        with dialled(near.settings.rundir, "plumberd") as sock:
            uri = f"{self.scheme}://127.0.0.1:{self.silent()}/pong"
            sock.sendall(native_frame({"op": "lookup", "uri": uri}))
            broker = near.broker
            assert broker is not None
            await until(lambda: broker.lookups.active)
        await self.wait_until_idle(near)
        self.assertEqual(self.verdicts("out"), ["gone"])


class Tcp(_Contract):
    scheme = "tcp"
    modes = ("locked", "direct", "relayed")

    def listening(self) -> dict[str, Any]:
        return {"tcpd": (f"tcp:0:{HERE}",)}


class Tls(_Contract):
    scheme = "tls"

    def listening(self) -> dict[str, Any]:
        return {"tlsd": (f"tcp:0:{HERE}",)}


class Ws(_Contract):
    scheme = "ws"

    def listening(self) -> dict[str, Any]:
        return {"webipcd": (WebListener(f"tcp:0:{HERE}"),), "web": web()}


class Wss(_Contract):
    scheme = "wss"

    def listening(self) -> dict[str, Any]:
        return {"webipcd": (WebListener(f"tcp:0:{HERE}", True),), "web": web()}


class Udp(_Contract):
    scheme = "udp"
    is_lossy = True

    def listening(self) -> dict[str, Any]:
        return {"udpd": (f"udp:0:{HERE}",)}

    def port_of(self, far: PlumberdService) -> int:
        assert far.tcpd is not None
        (port,) = far.tcpd.datagram_ports
        return port.port

    def silent(self) -> int:
        sock = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


del _Contract
