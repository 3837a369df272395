"""plumberd.aio_server: a service in asyncio's manner; its loop runs in a thread beside the reactor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from plumberd import aio, client
from plumberd.aio_server import Server
from plumberd.wiring.service import PlumberdService
from tests.claims import ClaimTestCase, say_nothing, wanted_peer
from tests.fake_broker import FakeBrokerTestCase, frame, refuse, send
from tests.lookup_contract import Attempt
from tests.support import in_thread, is_reset, read_all, until
from tests.test_aio import begun

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "Awaitable[None] | None"]


class Running:
    """A server in a loop of its own, which ends when it is told to."""

    def __init__(self, answer: Handler, rundir: str) -> None:
        self._started: list[tuple[asyncio.AbstractEventLoop, Server, asyncio.Event]] = []
        self.contexts: list[dict[str, Any]] = []
        self.attempt: Attempt = begun(lambda: self._serve(answer, rundir))

    async def _serve(self, answer: Handler, rundir: str) -> bytes:
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, context: self.contexts.append(context))
        async with await aio.start_server(answer, "pong", rundir=rundir) as server:
            self._started.append((loop, server, end))
            await end.wait()
            assert server.get_loop() is loop
        return b"ended" if not server.is_serving() else b""

    async def ready(self) -> Server:
        await until(lambda: self._started or self.attempt.result.called)
        if not self._started:
            await self.attempt.result
        return self._started[0][1]

    def end(self) -> None:
        for loop, _, event in self._started:
            loop.call_soon_threadsafe(event.set)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


class ServerTestCase(ClaimTestCase):
    async def server(self, broker: PlumberdService, answer: Handler = echo) -> Running:
        running = Running(answer, broker.settings.rundir)
        self.addCleanup(self.ended, running)
        await running.ready()
        return running

    async def ended(self, running: Running) -> None:
        running.end()
        self.assertEqual(await running.attempt.result, b"ended")

    def logged(self) -> list[str]:
        """Return a list that grows with what the library logs."""
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        log = logging.getLogger("plumberd.aio")
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        self.addCleanup(log.removeHandler, handler)
        self.addCleanup(log.setLevel, logging.NOTSET)
        return lines


class Serving(ServerTestCase):
    async def test_a_local_client_and_a_caller_are_answered(self) -> None:
        broker = self.claimable()
        await self.server(broker)
        for call in (self.call, self.call_in):
            far = await call(broker)
            await self.check_echo(far)
            far.shutdown(socket.SHUT_WR)
            self.assertEqual(await in_thread(read_all, far), b"")

    async def test_what_the_broker_tells_is_had_from_the_writer(self) -> None:
        told: list[Any] = []

        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.append((writer.get_extra_info("plumberd"), writer.get_extra_info("socket").family))
            writer.close()

        broker = self.claimable()
        await self.server(broker, answer)
        for call, family in ((self.call, socket.AF_UNIX), (self.call_in, socket.AF_INET)):
            far = await call(broker)
            self.assertEqual(await in_thread(read_all, far), b"")
            members, found = told.pop()
            self.assertEqual((members["peer"], members["service"], found), (wanted_peer(far), "pong", family))

    async def test_a_handler_that_fails_costs_its_own_connection_alone(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.readexactly(1) == b"!":
                raise RuntimeError("on purpose")
            writer.write(b"fine")
            writer.close()

        broker = self.claimable()
        running = await self.server(broker, answer)
        for word, said in ((b"!", b""), (b".", b"fine")):
            far = await self.call(broker)
            far.sendall(word)
            self.assertEqual(await in_thread(read_all, far), said)
        self.assertEqual([str(context["exception"]) for context in running.contexts], ["on purpose"])

    async def test_what_was_accepted_goes_on_when_the_server_is_closed(self) -> None:
        broker = self.claimable()
        running = await self.server(broker)
        far = await self.call(broker)
        await self.check_echo(far)
        server = await running.ready()
        server.get_loop().call_soon_threadsafe(server.close)
        await self.claimed(broker, 0)
        await self.check_echo(far)

    async def test_it_serves_until_that_is_cancelled(self) -> None:
        broker = self.claimable()

        async def work() -> bytes:
            server = await aio.start_server(echo, "pong", rundir=broker.settings.rundir)
            await server.start_serving()
            await server.serve_forever()
            return b""

        attempt = begun(work)
        await self.claimed(broker)
        attempt.cancel()
        self.assertIsNone(await attempt.result)
        await self.claimed(broker, 0)

    async def test_one_that_is_closed_at_once_keeps_nothing(self) -> None:
        broker = self.claimable()

        async def work() -> bytes:
            server = await aio.start_server(echo, "pong", rundir=broker.settings.rundir)
            server.close()
            server.close()
            await server.wait_closed()
            return b"closed"

        self.assertEqual(await begun(work).result, b"closed")
        await self.claimed(broker, 0)


class Again(ServerTestCase):
    async def test_a_claim_is_made_again_when_the_broker_is_back(self) -> None:
        lines = self.logged()
        broker = self.claimable()
        await self.server(broker)
        await broker.stopService()
        await until(lambda: lines)
        again = self.restart(broker, "deny serve pong")
        await until(lambda: any("denied" in line for line in lines))
        await again.stopService()
        again = self.restart(broker)
        await self.claimed(again)
        await self.check_echo(await self.call(again))
        self.assertEqual(lines[0], "the claim to pong is lost, and will be made again: the broker hung up")
        await until(lambda: lines[-1] == "pong is claimed again: 1: allow serve pong")


class Claiming(ServerTestCase, FakeBrokerTestCase):
    async def fails(self, rundir: str, timeout: float = 10) -> client.Error:
        found: list[client.Error] = []

        async def work() -> bytes:
            try:
                await aio.start_server(echo, "pong", rundir=rundir, timeout=timeout)
            except client.Error as e:
                found.append(e)
            return b""

        await begun(work).result
        return found[0]

    async def test_a_refusal_has_its_word(self) -> None:
        error = await self.fails(self.broker(refuse("denied", "no rule")))
        assert isinstance(error, client.Refused)
        self.assertEqual(error.word, "denied")

    async def test_a_hang_up_is_an_error(self) -> None:
        self.assertIn("hung up", str((await self.fails(self.broker(lambda *_: None))).strerror))

    async def test_no_broker_is_one_too(self) -> None:
        self.assertIsInstance(await self.fails(self.folder()), client.NoBroker)

    async def test_silence_is_late(self) -> None:
        error = await self.fails(self.broker(say_nothing), 0.1)
        self.assertIn("within 0.1 seconds", str(error.strerror))

    async def test_cancelled_it_gives_the_claim_back(self) -> None:
        told: list[str] = []

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": True})[:-1])
            told.append("asked")
            is_reset(sock)  # or the end of the stream
            told.append("ended")

        async def work() -> bytes:
            await aio.start_server(echo, "pong", rundir=rundir)
            return b""

        rundir = self.broker(answer)
        attempt = begun(work)
        await until(lambda: told)
        attempt.cancel()
        self.assertIsNone(await attempt.result)
        await until(lambda: told == ["asked", "ended"])
