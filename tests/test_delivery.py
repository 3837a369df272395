"""plumberd.wiring.clients.delivery: what a client is handed, by mode."""

from __future__ import annotations

import ipaddress
import os
import socket

from plumberd.effects.relay import Relay
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.clients.delivery import Handing, prepare
from plumberd.wiring.core import Core
from tests.children import needs_root
from tests.running import RunningTestCase
from tests.support import in_thread, read_exactly, until
from tests.tables import each

LOOPBACK = ipaddress.IPv4Address("127.0.0.1")


class Prepared(RunningTestCase):
    def core(self, limits: Limits | None = None) -> Core:
        core = self.run_broker(limits=limits or Limits()).core
        assert core is not None
        return core

    def handing(self, mode: Mode, port: int = 1, *, packets: bool = False, carried: bool = False) -> Handing:
        return Handing(mode, packets, carried, "libipc-2019", (LOOPBACK, port), "uid 0")

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """Return the far end, and the non-blocking near one that was made for a client."""
        near, far = self.tcp_pair()
        near.setblocking(False)
        return far, near

    @each((Mode.LOCAL, False), (Mode.RELAYED, True))
    def test_what_needs_no_relay_of_ours_is_handed_over_itself(self, mode: Mode, carried: bool) -> None:
        _, near = self.pair()
        near.setblocking(False)
        relay, theirs = prepare(self.core(), near, self.handing(mode, carried=carried), lambda relay: None)
        self.assertIsNone(relay)
        self.assertIs(theirs, near)
        self.assertTrue(os.get_blocking(theirs.fileno()))

    def test_a_bare_socket_is_quick_kept_alive_and_blocks(self) -> None:
        _, near = self.connection()
        relay, theirs = prepare(self.core(), near, self.handing(Mode.DIRECT), lambda relay: None)
        self.assertIsNone(relay)
        self.assertTrue(os.get_blocking(theirs.fileno()))
        self.assertEqual(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)

    @needs_root
    def test_a_locked_socket_s_filter_cannot_be_taken_off(self) -> None:
        far, near = self.connection()
        _, theirs = prepare(self.core(), near, self.handing(Mode.LOCKED, far.getsockname()[1]), lambda relay: None)
        with self.assertRaises(PermissionError):
            theirs.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER

    async def test_a_relayed_one_is_an_end_of_a_pair_for_a_stream(self) -> None:
        await self.check_relayed(False, socket.SOCK_STREAM)

    async def test_a_relayed_one_is_an_end_of_a_pair_for_packets(self) -> None:
        await self.check_relayed(True, socket.SOCK_SEQPACKET)

    async def check_relayed(self, packets: bool, kind: int) -> None:
        core = self.core()
        far, near = self.connection()
        ended: list[Relay] = []

        def end(relay: Relay) -> None:
            core.end_relay("uid 0", relay)
            ended.append(relay)

        relay, theirs = prepare(core, near, self.handing(Mode.RELAYED, packets=packets), end)
        assert relay is not None
        self.owned(theirs)
        relay.start()
        self.assertEqual((theirs.family, theirs.type), (socket.AF_UNIX, kind))
        message = b"\2\0\0\0\5\0hello"
        theirs.send(message)
        self.assertEqual(await in_thread(read_exactly, far, len(message)), message)
        theirs.close()
        await until(lambda: ended)

    def test_one_too_many_is_busy_and_leaves_the_connection_to_its_owner(self) -> None:
        core = self.core(Limits(relays=1))
        core.begin_relay("another")
        _, near = self.connection()
        with self.assertRaises(Refused) as caught:
            prepare(core, near, self.handing(Mode.RELAYED), lambda relay: None)
        self.assertEqual(caught.exception.word, Refusal.BUSY)
        self.assertGreaterEqual(near.fileno(), 0)
