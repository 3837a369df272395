"""A service for asyncio that listens on nothing: what :func:`plumberd.aio.start_server` starts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from plumberd import client
from plumberd.aio import readable
from plumberd.claim import Claim, claim_request, pauses, why_lost

Answering = Callable[[asyncio.StreamReader, asyncio.StreamWriter], "Awaitable[None] | None"]

_log = logging.getLogger("plumberd.aio")


async def start(answer: Answering, service: str, rundir: str | None, timeout: float) -> Server:
    """Return a server that has its claim; the arguments are those of :func:`plumberd.aio.start_server`."""
    return Server(answer, service, rundir, timeout, await _claim(service, rundir, timeout))


class Server(asyncio.AbstractServer):
    """Owns its claim until :meth:`close`; each connection is its streams', and goes on after that."""

    def __init__(self, answer: Answering, service: str, rundir: str | None, timeout: float, claim: Claim) -> None:
        self.service = service
        self._answer = answer
        self._rundir = rundir
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._answering: set[asyncio.Future[Any]] = set()
        self._claim = claim
        self._keeping = self._loop.create_task(self._keep())
        # Cancelled before its first step, it would never get to closing anything.
        self._keeping.add_done_callback(lambda _: self._claim.close())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop in which it was started."""
        return self._loop

    def is_serving(self) -> bool:
        """Tell whether it takes connections, or will when there is a broker again."""
        return not self._keeping.done()

    async def start_serving(self) -> None:
        """Do nothing: it serves from the beginning."""

    async def serve_forever(self) -> None:
        """Wait until somebody cancels this, which closes the server, or closes it."""
        try:
            await asyncio.shield(self._keeping)
        finally:
            self.close()
            await self.wait_closed()

    def close(self) -> None:
        """Give the claim back. Idempotent."""
        self._keeping.cancel()

    async def wait_closed(self) -> None:
        """Wait until the claim is given back."""
        await asyncio.wait([self._keeping])

    async def _keep(self) -> None:
        """Take what comes, and make the claim again whenever it is lost."""
        while True:
            try:
                await self._take_all()
            except client.Error as e:
                _log.warning("the claim to %s is lost, and will be made again: %s", self.service, why_lost(e))
            self._claim.close()
            await self._claim_again()

    async def _take_all(self) -> None:
        """Answer what comes.

        :raises Error: the claim is lost.
        """
        while True:
            try:
                accepted = self._claim.receive()
            except BlockingIOError:
                await readable(self._claim.fileno())
                continue
            if accepted is not None:
                await self._begin(*accepted)

    async def _claim_again(self) -> None:
        """Try until the claim is had, however long it takes."""
        told = ""
        for seconds in pauses():
            await asyncio.sleep(seconds)
            try:
                self._claim = await _claim(self.service, self._rundir, self._timeout)
            except client.Error as e:
                if (why := why_lost(e)) != told:
                    told = why
                    _log.warning("%s cannot be claimed for now: %s", self.service, why)
            else:
                _log.info("%s is claimed again: %s", self.service, self._claim.rule)
                return

    async def _begin(self, sock: socket.socket, told: dict[str, Any]) -> None:
        """Give the streams of a connection to who answers it."""
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        try:
            sock.setblocking(False)
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, sock)
        except BaseException as e:
            sock.close()
            if isinstance(e, OSError):
                return  # the far side has gone already
            raise
        writer = _Writer(transport, protocol, reader, self._loop)
        writer.told = told
        task = self._loop.create_task(self._talk(reader, writer))
        self._answering.add(task)  # the loop alone would forget it
        task.add_done_callback(self._answering.discard)
        task.add_done_callback(lambda _: transport.close() if task.cancelled() else None)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answering = self._answer(reader, writer)
            if answering is not None:
                await answering
        except Exception as e:
            message = f"the answering of a connection to {self.service} failed"
            self._loop.call_exception_handler({"message": message, "exception": e, "transport": writer.transport})
            writer.transport.close()


class _Writer(asyncio.StreamWriter):
    """Knows what the broker tells of its connection."""

    told: dict[str, Any]

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See :meth:`asyncio.BaseTransport.get_extra_info`."""
        return self.told if name == "plumberd" else super().get_extra_info(name, default)


async def _claim(service: str, rundir: str | None, timeout: float) -> Claim:
    """Return a claim that is granted, the caller's.

    :raises Error: it is not granted, or not in time.
    """
    search = client.Search(rundir)
    try:
        async with asyncio.timeout(timeout):
            while (sock := search.attempt()) is None:
                await asyncio.sleep(search.pause_seconds)
            claim = Claim(sock)
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    await asyncio.get_running_loop().sock_sendall(sock, client.encode_request(claim_request(service)))
                while claim.rule is None:
                    with contextlib.suppress(BlockingIOError):
                        claim.receive()
                        continue
                    await readable(claim.fileno())
            except BaseException:
                claim.close()
                raise
            return claim
    except TimeoutError:
        raise client.timed_out(timeout) from None
