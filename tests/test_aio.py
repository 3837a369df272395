"""plumberd.aio: lookups from asyncio, whose loop runs in a thread beside the reactor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from typing import Any

from plumberd import aio, client
from tests import lookup_contract
from tests.children import ChildTestCase, needs_root
from tests.inside import NOBODY
from tests.lookup_contract import HELLO, Attempt, Failure, explained
from tests.running import RunningTestCase
from tests.support import in_thread, read_all, read_exactly, until

Work = Callable[[], Awaitable[bytes]]


def begun(work: Work) -> Attempt:
    """Run *work* in a loop of its own."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def run() -> bytes | Failure | None:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        try:
            return await work()
        except client.Error as e:
            return explained(e)
        except asyncio.CancelledError:
            return None

    def cancel() -> None:
        if started:
            loop, task = started[0]
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(task.cancel)

    return Attempt(in_thread(lambda: asyncio.run(run(), debug=True)), cancel)


class Streams(lookup_contract.CancelContract):
    """open_connection."""

    def begin(self, service: str, routes: str | None, rundir: str | None, timeout: float) -> Attempt:
        async def work() -> bytes:
            reader, writer = await aio.open_connection(service, routes, rundir=rundir, timeout=timeout)
            try:
                writer.write(HELLO)
                return await reader.readexactly(len(HELLO))
            finally:
                writer.close()
                await writer.wait_closed()

        return begun(work)


class Sockets(lookup_contract.CancelContract):
    """connect, and the loop's own methods for sockets."""

    def begin(self, service: str, routes: str | None, rundir: str | None, timeout: float) -> Attempt:
        async def work() -> bytes:
            with await aio.connect(service, routes, rundir=rundir, timeout=timeout) as sock:
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, HELLO)
                data = b""
                while len(data) < len(HELLO):
                    data += await loop.sock_recv(sock, len(HELLO) - len(data))
                return data

        return begun(work)


class Blocking(lookup_contract.LookupContract):
    """plumberd.client itself, held to the same contract: the errors are the same ones."""

    def begin(self, service: str, routes: str | None, rundir: str | None, timeout: float) -> Attempt:
        def work() -> bytes | Failure:
            try:
                with client.connect(service, routes, rundir=rundir, timeout=timeout) as sock:
                    sock.sendall(HELLO)
                    return read_exactly(sock, len(HELLO))
            except client.Error as e:
                return explained(e)

        return Attempt(in_thread(work), lambda: None)


class Results(RunningTestCase):
    async def run_in_loop(self, work: Work) -> Any:
        return await begun(work).result

    async def test_the_socket_does_not_block_and_is_closed_on_exec(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")

        async def work() -> bytes:
            with await aio.connect("pong", rundir=broker.settings.rundir) as sock:
                flags = fcntl.fcntl(sock.fileno(), fcntl.F_GETFL), fcntl.fcntl(sock.fileno(), fcntl.F_GETFD)
                return bytes((bool(flags[0] & os.O_NONBLOCK), flags[1] == fcntl.FD_CLOEXEC, sock.gettimeout() == 0))

        self.assertEqual(await self.run_in_loop(work), b"\1\1\1")

    async def test_an_address_instead_of_a_service(self) -> None:
        broker = self.run_broker()
        uri = f"tcp://127.0.0.1:{self.serve_tcp(lambda sock: sock.sendall(b'welcome'))}"

        async def work() -> bytes:
            reader, writer = await aio.open_connection(uri=uri, rundir=broker.settings.rundir)
            try:
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()

        self.assertEqual(await self.run_in_loop(work), b"welcome")

    async def test_a_half_close_passes(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong", lambda sock: sock.sendall(read_all(sock)[::-1]))

        async def work() -> bytes:
            reader, writer = await aio.open_connection("pong", rundir=broker.settings.rundir)
            writer.write(b"abc")
            writer.write_eof()
            try:
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()

        self.assertEqual(await self.run_in_loop(work), b"cba")

    async def test_a_service_and_an_address_are_one_too_many_and_none_is_one_too_few(self) -> None:
        for service, uri, more in ((None, None, b""), ("pong", "tcp://h", b", not both")):

            async def work(service: str | None = service, uri: str | None = uri) -> bytes:
                try:
                    await aio.connect(service, uri=uri)
                except ValueError as e:
                    return str(e).encode()
                return b""

            self.assertEqual(await self.run_in_loop(work), b"wanted a service or a uri" + more)

    async def test_the_loop_goes_on_while_the_broker_decides(self) -> None:
        rundir = self.folder()
        told = lookup_contract.silent(self, rundir)
        ticks: list[int] = []

        async def work() -> bytes:
            lookup = asyncio.create_task(aio.connect("pong", rundir=rundir))
            while len(ticks) < 100 or not told:
                ticks.append(1)
                await asyncio.sleep(0)
            lookup.cancel()
            await asyncio.wait([lookup])
            return b"cancelled" if lookup.cancelled() else b""

        self.assertEqual(await self.run_in_loop(work), b"cancelled")

    async def test_a_timeout_of_the_caller_s_own_is_the_caller_s(self) -> None:
        rundir = self.folder()
        told = lookup_contract.silent(self, rundir)

        async def expire(time: asyncio.Timeout) -> None:
            while not told:
                await asyncio.sleep(0.001)
            time.reschedule(0)

        async def work() -> bytes:
            try:
                async with asyncio.timeout(None) as time:
                    expiring = asyncio.create_task(expire(time))
                    await aio.connect("pong", rundir=rundir)
            except TimeoutError as e:
                await expiring
                return type(e).__name__.encode()
            return b""

        self.assertEqual(await self.run_in_loop(work), b"TimeoutError")
        await until(lambda: told == ["asked", "ended"])

    async def test_a_lookup_that_is_late_is_an_error_of_the_client_s(self) -> None:
        rundir = self.folder()
        lookup_contract.silent(self, rundir)

        async def work() -> bytes:
            try:
                await aio.connect("pong", rundir=rundir, timeout=0.05)
            except client.Error as e:
                return errno.errorcode[e.errno or 0].encode()
            return b""

        self.assertEqual(await self.run_in_loop(work), b"ETIMEDOUT")


@needs_root
class NotAllowed(ChildTestCase, RunningTestCase):
    """A user that the broker's group does not hold."""

    async def test_it_is_told_which_group_to_join(self) -> None:
        broker = self.run_broker()
        rundir = broker.settings.rundir
        for path, mode in ((os.path.dirname(rundir), 0o755), (rundir, 0o1771)):
            os.chmod(path, mode)
        code = (
            "import asyncio, sys\n"
            "from plumberd import aio, client\n"
            "from tests.inside import become\n"
            "import grp\n"
            f"become({NOBODY})\n"
            "try:\n"
            "    asyncio.run(aio.connect('pong', rundir=sys.argv[1]))\n"
            "except client.Error as e:\n"
            "    print(type(e).__name__, e.errno, e.strerror)\n"
        )
        said = f"{rundir}/plumberd: you may not ask this broker; join the group root\n"
        self.assertEqual(await self.run_child(code, rundir), f"Error {errno.EACCES} {said}")


class Importing(ChildTestCase):
    async def test_it_needs_the_standard_library_alone_and_the_client_not_even_asyncio(self) -> None:
        code = (
            "import sys, {}; print(*({{m.partition('.')[0] for m in sys.modules}} & {{'twisted', 'zope', 'asyncio'}}))"
        )
        self.assertEqual(await self.run_child(code.format("plumberd.aio")), "asyncio\n")
        self.assertEqual(await self.run_child(code.format("plumberd.client")), "\n")
