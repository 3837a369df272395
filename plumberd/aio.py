"""Ask a broker for a service from asyncio, or be one. Standard library alone.

    from plumberd import aio
    reader, writer = await aio.open_connection("pong")
    server = await aio.start_server(answer, "pong")

It is :mod:`plumberd.client` with another way to wait: the loop goes on while the
broker decides, resolves and connects. The errors are the same ones. A lookup
that is cancelled closes whatever it had, a descriptor that has just arrived too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from plumberd import client

if TYPE_CHECKING:
    from plumberd.aio_server import Server

__all__ = ["connect", "open_connection", "start_server"]


async def open_connection(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    rundir: str | None = None,
    timeout: float = client.TIMEOUT_SECONDS,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the streams of a connection to *service*; closing the writer closes it.

    Arguments and errors are those of :func:`plumberd.client.connect`.
    """
    sock = await connect(service, routes, uri=uri, rundir=rundir, timeout=timeout)
    try:
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


async def connect(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    type: str | None = None,  # noqa: A002 - as of socket.socket
    rundir: str | None = None,
    timeout: float = client.TIMEOUT_SECONDS,
) -> socket.socket:
    """Return a connected, non-blocking socket to *service*, for the loop's ``sock_…`` methods; the caller owns it.

    Arguments and errors are those of :func:`plumberd.client.connect`.
    """
    asking = client.Asking(client.lookup_request(service, routes, uri, type), rundir)
    answer = client.Answer()
    try:
        async with asyncio.timeout(timeout):
            await _ask(asking, answer)
        sock, _ = answer.take_socket()
    except TimeoutError:
        raise client.timed_out(timeout) from None
    finally:
        answer.close()
    sock.setblocking(False)
    return sock


async def start_server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None],
    service: str,
    *,
    rundir: str | None = None,
    timeout: float = client.TIMEOUT_SECONDS,
) -> Server:
    """Claim *service*, and call *answer* with the streams of each connection; if it is a coroutine, in a task.

    ``writer.get_extra_info("plumberd")`` is what the broker tells of a connection: a dict with
    ``mode``, ``peer``, ``identities`` and ``rule``. A claim that is lost is made again.

    :raises Refused: no rule allows it, or somebody serves it already.
    :raises Error: as :func:`plumberd.client.connect`.
    """
    from plumberd.aio_server import start  # late: most programs only connect

    return await start(answer, service, rundir, timeout)


async def readable(sock: socket.socket | int) -> None:
    """Wait until there is something to read; the loop's own sock_recv would drop descriptors."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


async def _ask(asking: client.Asking, answer: client.Answer) -> None:
    """Send the request on its way, and wait until *answer* is complete."""
    while (found := asking.attempt()) is None:
        # The loop's own sock_connect would take a full backlog for a connection.
        await asyncio.sleep(asking.pause_seconds)
    broker, data = found
    with broker:
        # A broker that has no place for us may say so, and hang up before it reads.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(broker, data)
        while True:
            with contextlib.suppress(BlockingIOError):
                if answer.receive(broker):
                    return
            await readable(broker)
