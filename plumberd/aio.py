"""Ask a broker for a service from asyncio. Standard library alone.

    from plumberd import aio
    reader, writer = await aio.open_connection("pong")

It is :mod:`plumberd.client` with another way to wait: the loop goes on while the
broker decides, resolves and connects. The errors are the same ones. A lookup
that is cancelled closes whatever it had, a descriptor that has just arrived too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from plumberd import client

__all__ = ["connect", "open_connection"]


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
    rundir: str | None = None,
    timeout: float = client.TIMEOUT_SECONDS,
) -> socket.socket:
    """Return a connected, non-blocking socket to *service*, for the loop's ``sock_…`` methods; the caller owns it.

    Arguments and errors are those of :func:`plumberd.client.connect`.
    """
    request = client.encode_request(client.lookup_request(service, routes, uri))
    answer = client.Answer()
    try:
        async with asyncio.timeout(timeout):
            await _ask(request, rundir, answer)
        sock, _ = answer.take_socket()
    except TimeoutError:
        raise client.timed_out(timeout) from None
    finally:
        answer.close()
    sock.setblocking(False)
    return sock


async def _ask(request: bytes, rundir: str | None, answer: client.Answer) -> None:
    """Send *request* to the first live broker and wait until *answer* is complete."""
    search = client.Search(rundir)
    while (broker := search.attempt()) is None:
        # The loop's own sock_connect would take a full backlog for a connection.
        await asyncio.sleep(search.pause_seconds)
    with broker:
        # A broker that has no place for us may say so, and hang up before it reads.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await asyncio.get_running_loop().sock_sendall(broker, request)
        while True:
            with contextlib.suppress(BlockingIOError):
                if answer.receive(broker):
                    return
            await _readable(broker)


async def _readable(sock: socket.socket) -> None:
    """Wait until there is something to read; the loop's own sock_recv would drop descriptors."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
