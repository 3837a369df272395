"""plumberd.claimed: ``ipc:SERVICE:registered=yes`` as Twisted knows it."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import defer, endpoints, error
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from zope.interface.verify import verifyObject

from plumberd import client
from plumberd.claimed import ClaimedServerEndpoint
from plumberd.endpoints import IpcServerEndpoint
from plumberd.transports import CallerAddress, ServiceAddress
from plumberd.wiring.service import PlumberdService
from tests.claims import ClaimTestCase, say_nothing, wanted_peer
from tests.fake_broker import FakeBrokerTestCase, frame, refuse, send
from tests.support import in_thread, is_reset, read_all, real_reactor, until
from tests.tables import each
from tests.test_endpoints import Echo, quote, server_from_string


class Told(Factory):
    """Echoes, and keeps the address of each caller and how often it was started and stopped."""

    protocol = Echo
    noisy = False

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.starts = self.stops = 0

    def startFactory(self) -> None:
        self.starts += 1

    def stopFactory(self) -> None:
        self.stops += 1

    def buildProtocol(self, addr: Any) -> Any:
        self.addresses.append(addr)
        return super().buildProtocol(addr)


class PortTestCase(ClaimTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(until, lambda: not Echo.alive)

    async def listen(self, broker: PlumberdService, factory: Any = None) -> Any:
        text = f"ipc:pong:registered=yes:rundir={quote(broker.settings.rundir)}"
        port = await server_from_string(real_reactor, text).listen(factory or Told())
        self.addCleanup(port.stopListening)
        return port


class Serving(PortTestCase):
    async def test_a_local_client_and_a_caller_are_answered_and_the_factory_knows_them(self) -> None:
        broker, factory = self.claimable(), Told()
        port = await self.listen(broker, factory)
        self.assertEqual(port.getHost(), ServiceAddress("pong"))
        self.assertTrue(verifyObject(IListeningPort, port))
        for call in (self.call, self.call_in):
            far = await call(broker)
            await self.check_echo(far)
            far.shutdown(socket.SHUT_WR)
            self.assertEqual(await in_thread(read_all, far), b"")
            address, peer = factory.addresses.pop(), wanted_peer(far)
            assert isinstance(address, CallerAddress)
            self.assertEqual(address.host or address.uid, peer.get("address") or peer.get("uid"))
            self.assertEqual(address.port or address.pid, peer.get("port") or peer.get("pid"))
            self.assertIn(address.rule, ("default for local services", "2: allow in pong tcp:127.0.0.1"))

    async def test_it_stops_and_what_was_accepted_goes_on(self) -> None:
        broker, factory = self.claimable(), Told()
        port = await self.listen(broker, factory)
        far = await self.call(broker)
        await self.check_echo(far)
        await port.stopListening()
        await port.stopListening()
        await self.claimed(broker, 0)
        await self.check_echo(far)
        self.assertEqual((factory.starts, factory.stops), (1, 1))

    async def test_a_factory_that_fails_costs_one_connection(self) -> None:
        class Failing(Told):
            def buildProtocol(self, addr: Any) -> Any:
                if not self.addresses:
                    self.addresses.append(addr)
                    raise RuntimeError("on purpose")
                return super().buildProtocol(addr)

        broker = self.claimable()
        await self.listen(broker, Failing())
        self.assertEqual(await in_thread(read_all, await self.call(broker)), b"")
        await self.check_echo(await self.call(broker))
        self.assertEqual([str(f.value) for f in self.flushLoggedErrors(RuntimeError)], ["on purpose"])

    async def test_it_ends_with_the_reactor(self) -> None:
        broker = self.claimable()
        triggers: list[Any] = []
        self.patch(real_reactor, "addSystemEventTrigger", lambda *args: triggers.append(args))
        self.patch(real_reactor, "removeSystemEventTrigger", lambda trigger: None)
        await self.listen(broker)
        ((phase, event, close),) = triggers
        self.assertEqual((phase, event), ("during", "shutdown"))
        close()
        await self.claimed(broker, 0)


class Again(PortTestCase):
    async def test_a_claim_is_made_again_when_the_broker_is_back(self) -> None:
        broker = self.claimable()
        await self.listen(broker)
        await broker.stopService()
        again = self.restart(broker, "deny serve pong")
        await until(lambda: [o for o in self.outcomes if o.verdict == "denied"])
        await again.stopService()
        again = self.restart(broker)
        await self.claimed(again)
        await self.check_echo(await self.call(again))

    async def test_stopping_ends_the_trying(self) -> None:
        broker = self.claimable()
        port = await self.listen(broker)
        await broker.stopService()
        await until(lambda: port._trying)
        await port.stopListening()
        self.assertIsNone(port._trying)  # and no delayed call is left


class Claiming(FakeBrokerTestCase):
    def listening(self, rundir: str, seconds: float = 10) -> defer.Deferred[Any]:
        return ClaimedServerEndpoint(real_reactor, "pong", rundir, seconds).listen(Factory.forProtocol(Protocol))

    async def fails(self, rundir: str, seconds: float = 10) -> client.Error:
        with self.assertRaises(error.CannotListenError) as raised:
            await self.listening(rundir, seconds)
        found: Any = raised.exception
        self.assertEqual(found.port, "pong")
        assert isinstance(found.socketError, client.Error)
        return found.socketError

    async def test_a_refusal_is_told(self) -> None:
        self.assertEqual(str(await self.fails(self.broker(refuse("denied", "no rule")))), "denied: no rule")

    async def test_no_broker_is_told(self) -> None:
        self.assertIsInstance(await self.fails(self.folder()), client.NoBroker)

    async def test_a_hang_up_is_told(self) -> None:
        self.assertIn("hung up", str(await self.fails(self.broker(lambda *_: None))))

    async def test_silence_is_late(self) -> None:
        rundir = self.broker(say_nothing)
        self.assertIn("within 0.1 seconds", str(await self.fails(rundir, 0.1)))

    async def test_a_full_backlog_is_waited_for_and_not_for_ever(self) -> None:
        rundir = self.folder()
        self.unix_listener(f"{rundir}/plumberd", backlog=0)
        self.owned(socket.socket(socket.AF_UNIX)).connect(f"{rundir}/plumberd")
        self.assertIn("within 0.1 seconds", str(await self.fails(rundir, 0.1)))

    async def test_cancelled_it_gives_the_claim_back(self) -> None:
        told: list[str] = []

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": True})[:-1])
            told.append("asked")
            is_reset(sock)  # or the end of the stream
            told.append("ended")

        listening = self.listening(self.broker(answer))
        await until(lambda: told)
        listening.cancel()
        with self.assertRaises(defer.CancelledError):
            await listening
        await until(lambda: told == ["asked", "ended"])


class Strings(ClaimTestCase):
    @each(
        ("ipc:pong", IpcServerEndpoint),
        ("ipc:pong:registered=no", IpcServerEndpoint),
        ("ipc:pong:registered=yes", ClaimedServerEndpoint),
    )
    def test_which_endpoint_it_is(self, text: str, kind: type[Any]) -> None:
        self.assertIs(type(server_from_string(real_reactor, text)), kind)

    @each(
        ("ipc:pong:registered=maybe",), ("ipc:pong:registered=",), ("ipc:ipc:registered=yes",), ("ipc::registered=yes",)
    )
    def test_what_is_no_server_s(self, text: str) -> None:
        with self.assertRaises(ValueError):
            endpoints.serverFromString(real_reactor, text)  # type: ignore[no-untyped-call]
