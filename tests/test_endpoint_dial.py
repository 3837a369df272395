"""plumberd.wiring.dialing.endpoint_dial: an administrator's endpoint becomes one end of a socket pair, or a refusal."""

from __future__ import annotations

import socket

from plumberd.pure.limits import Limits
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.endpoint_dial import EndpointDial
from tests.ports import free_port
from tests.running import RunningTestCase
from tests.support import in_thread, read_all, read_exactly, until


class EndpointDialTestCase(RunningTestCase):
    def start(self, description: str, core: Core | None = None) -> tuple[Core, EndpointDial]:
        """Begin to connect; results and ends are collected."""
        self.results: list[socket.socket | Refused] = []
        self.ends: list[tuple[int, int]] = []
        core = core or self.core()
        dial = EndpointDial(
            core, description, "uid 0", self.results.append, lambda half, up, down: self.ends.append((up, down))
        )
        dial.start()
        return core, dial

    def core(self, limits: Limits | None = None) -> Core:
        core = self.run_broker(limits=limits or Limits()).core
        assert core is not None
        return core


class Connected(EndpointDialTestCase):
    async def test_bytes_and_ends_pass_and_the_place_is_given_back(self) -> None:
        core, _ = self.start(f"tcp:127.0.0.1:{self.serve_tcp()}:timeout=5")
        await until(lambda: self.results)
        (sock,) = self.results
        assert isinstance(sock, socket.socket)
        self.owned(sock)
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"")
        sock.close()
        await until(lambda: not core.relays)
        self.assertEqual((core.relay_places.active, self.ends), (0, [(5, 5)]))


class NotConnected(EndpointDialTestCase):
    async def test_a_far_side_that_refuses_is_unreachable(self) -> None:
        port = free_port()
        core, _ = self.start(f"tcp:127.0.0.1:{port}:timeout=5")
        await until(lambda: self.results)
        (refused,) = self.results
        assert isinstance(refused, Refused)
        self.assertIs(refused.word, Refusal.UNREACHABLE)
        self.assertEqual(core.relay_places.active, 0)

    async def test_what_is_cancelled_calls_nobody_and_holds_nothing(self) -> None:
        listener, port = self.listener()
        core, dial = self.start(f"tcp:127.0.0.1:{port}:timeout=5")
        dial.cancel()
        await until(lambda: core.relay_places.active == 0)
        self.assertEqual(self.results, [])
        listener.close()

    def test_a_string_that_makes_no_endpoint_is_unreachable(self) -> None:
        core = self.core()
        with self.assertRaises(Refused) as caught:
            self.start("tls:..:443", core)
        self.assertIs(caught.exception.word, Refusal.UNREACHABLE)
        self.assertEqual(core.relay_places.active, 0)

    def test_too_many_are_busy(self) -> None:
        core = self.core(Limits(relays=1))
        core.begin_relay("another")
        with self.assertRaises(Refused) as caught:
            self.start("tcp:127.0.0.1:9:timeout=5", core)
        self.assertIs(caught.exception.word, Refusal.BUSY)
