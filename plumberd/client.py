"""Ask a broker for a service and get a connected socket. Standard library alone.

    import plumberd.client
    sock = plumberd.client.connect("pong")

The broker leaves the path: the socket is the connection itself (or one end of a
relayed one), blocking, and the caller owns it. To be a service without listening
on anything:

    for sock, told in plumberd.client.serve("pong"):
        ...

Where ``$PLUMB_FD`` names an inherited control socket, lookups go over that.

:class:`Search`, :class:`Asking`, :func:`lookup_request`, :func:`encode_request` and
:class:`Answer` are the same without the waiting: plumberd.aio and plumberd.endpoints
wait in their own ways.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from plumberd.answer import ANSWER_BYTES, Answer, Error, NoBroker, Refused, encode_request, timed_out
from plumberd.search import Asking, Search, check_directory
from plumberd.whois import check_maker, token_of

if TYPE_CHECKING:
    from plumberd.serving import Serving

__all__ = [
    "ANSWER_BYTES",
    "TIMEOUT_SECONDS",
    "Answer",
    "Asking",
    "Error",
    "NoBroker",
    "Refused",
    "Search",
    "ask",
    "check_directory",
    "connect",
    "control_socket",
    "encode_request",
    "find_broker",
    "lookup",
    "lookup_request",
    "serve",
    "timed_out",
    "whois",
]

TIMEOUT_SECONDS = 30.0

T = TypeVar("T")


def connect(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    type: str | None = None,  # noqa: A002 - as of socket.socket
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> socket.socket:
    """Return a connected, blocking socket to *service*; the caller owns it.

    :param routes: ``service URI`` pairs separated by ``;``; the default is the value of
        $IPC_NETWORKD or $IPC_NETWORK.
    :param uri: an address instead of a service.
    :param type: the socket that is wanted: ``stream``, which it is by default, ``seqpacket``, or ``dgram`` for
        what is carried in datagrams. Where it is not a stream, what one write sends is what one read brings.
    :param rundir: the run directory; the default is the control socket that $PLUMB_FD names,
        or else the first directory with a live broker of $IPC_RUNDIR, $RUNDIR,
        $XDG_RUNTIME_DIR/ipc and /run/ipc.
    :param timeout: seconds for the whole lookup.
    :raises Refused: the broker says no.
    :raises NoBroker: nobody answers.
    :raises Error: the broker may not be asked, or does not answer as it should.
    """
    sock, _ = lookup(service, routes, uri=uri, type=type, rundir=rundir, timeout=timeout)
    return sock


def lookup(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    type: str | None = None,  # noqa: A002 - as of socket.socket
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> tuple[socket.socket, dict[str, Any]]:
    """Like :func:`connect`, and return the broker's answer besides: its ``mode`` and ``rule``."""
    answer = _ask(lookup_request(service, routes, uri, type), rundir, timeout)
    try:
        return answer.take_socket()
    finally:
        answer.close()


def ask(
    request: dict[str, Any], *, rundir: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> tuple[dict[str, Any], int]:
    """Send one request of the native protocol; return its answer and a descriptor or -1.

    The caller owns the descriptor, which is close-on-exec. Only a lookup goes over $PLUMB_FD.

    :raises Error: as :func:`connect`.
    """
    answer = _ask(request, rundir, timeout)
    try:
        return answer.take()
    finally:
        answer.close()


def control_socket(
    services: Sequence[str],
    routes: str | None = None,
    *,
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> socket.socket:
    """Return a control socket on which *services* may be looked up, on the caller's behalf, and nothing else.

    It is the caller's, and close-on-exec: a child inherits it (``pass_fds``), with its number in $PLUMB_FD.

    :param routes: the only ones that count for these lookups; the default is as for :func:`connect`.
    :raises Error: as :func:`connect`.
    """
    request: dict[str, Any] = {"op": "confine", "services": [*services], "control": True}
    if routes is None:
        routes = _own_routes()
    if routes:
        request["routes"] = routes
    answer = _ask(request, rundir, timeout)
    try:
        return answer.take_socket("granted a control socket")[0]
    finally:
        answer.close()


def serve(
    service: str,
    *,
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
    waiting: int = 128,
    log: Callable[[str], object] | None = None,
) -> Serving:
    """Claim *service*; return an iterator of its accepted connections: the socket, and what the broker tells of it.

    Each socket is the caller's, and blocking. See :class:`plumberd.serving.Serving`.

    :param timeout: seconds for the claim.
    :param waiting: how many accepted connections are held until they are taken; more are closed.
    :param log: told, in a thread, a line whenever the claim is lost, or had again, or a connection is closed.
    :raises Refused: no rule allows it, or somebody serves it already.
    :raises Error: as :func:`connect`.
    """
    from plumberd.serving import Serving  # late: who only connects needs no threads

    return Serving(service, rundir=rundir, timeout=timeout, waiting=waiting, log=log)


def whois(sock: socket.socket, *, rundir: str | None = None, timeout: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    """Return who is at the other end of *sock*, a connection that a service has accepted on its UNIX socket.

    For a caller from outside: ``service``, as it named it; ``peer``, its scheme, address and port;
    ``identities``, what it has proved; ``rule``, what let it in; ``since``, when. Of a program on this machine
    its own credentials tell more (SO_PEERCRED), and the broker knows nothing.

    :raises Refused: ``unknown-service``: the caller is gone, or was carried by another process;
        ``denied``: the service's socket was made by another user than this program's.
    :raises Error: it is no connection that a broker made; or as :func:`connect`.
    """
    answer, _ = ask({"op": "whois", "token": token_of(sock)}, rundir=rundir, timeout=timeout)
    check_maker(sock, answer)
    return answer


def find_broker(rundir: str | None = None, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """Return a connection to the first live broker's native socket; the caller owns it.

    :raises NoBroker: telling where was looked and what was found.
    :raises Error: there is one, and it may not be asked (which group to join), or its
        directory is not safe; or it accepts nobody.
    """
    search = Search(rundir)
    sock = _patiently(search.attempt, search, time.monotonic() + timeout, timeout)
    sock.settimeout(timeout)
    return sock


def lookup_request(
    service: str | None,
    routes: str | None,
    uri: str | None,
    type: str | None = None,  # noqa: A002 - as of socket.socket
) -> dict[str, Any]:
    """Return the request for a lookup; see :func:`connect` for what *routes* is by default.

    :raises ValueError: unless there is a service or a uri, and not both.
    """
    if (service is None) == (uri is None):
        raise ValueError("wanted a service or a uri" + ("" if uri is None else ", not both"))
    request: dict[str, Any] = {"op": "lookup"}
    if type is not None:
        request["type"] = type
    if uri is not None:
        request["uri"] = uri
        return request
    request["service"] = service
    if routes is None:
        routes = _own_routes()
    if routes:
        request["routes"] = routes
    return request


def _ask(request: dict[str, Any], rundir: str | None, timeout: float) -> Answer:
    """Return the complete answer, which the caller closes."""
    ends = time.monotonic() + timeout
    asking = Asking(request, rundir)
    answer = Answer()
    try:
        broker, data = _patiently(asking.attempt, asking, ends, timeout)
        with broker:
            _set_deadline(broker, ends)
            # A broker that has no place for us may say so, and hang up before it reads.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                broker.sendall(data)
            while not answer.receive(broker):
                _set_deadline(broker, ends)
        return answer
    except BaseException as e:
        answer.close()
        if isinstance(e, TimeoutError):
            raise timed_out(timeout) from None
        raise


def _patiently(attempt: Callable[[], T | None], pauses: Asking | Search, ends: float, timeout: float) -> T:
    """Return what the first attempt returns that returns something."""
    while (found := attempt()) is None:
        if time.monotonic() + pauses.pause_seconds > ends:
            raise timed_out(timeout)
        time.sleep(pauses.pause_seconds)
    return found


def _set_deadline(sock: socket.socket, ends: float) -> None:
    sock.settimeout(max(ends - time.monotonic(), 0.001))  # 0 would mean non-blocking


def _own_routes() -> str | None:
    return os.environ.get("IPC_NETWORKD") or os.environ.get("IPC_NETWORK")
