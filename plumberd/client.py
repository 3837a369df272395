"""Ask a broker for a service and get a connected socket. Standard library alone.

    import plumberd.client
    sock = plumberd.client.connect("pong")

The broker leaves the path: the socket is the connection itself (or one end of a
relayed one), blocking, and the caller owns it.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import struct
from typing import Any

from plumberd.pure.places import client_rundirs

SOCKET_NAME = "plumberd"
ANSWER_BYTES = 65536
TIMEOUT_SECONDS = 30.0
_LENGTH = struct.Struct(">I")
_FD = struct.Struct("i")
_SPACE = socket.CMSG_SPACE(_FD.size)


class Error(OSError):
    """Something is wrong between this program and the broker; the message says what to do."""


class NoBroker(Error):
    """No broker answers; the message says where was looked."""


class Refused(Error):
    """The broker refused.

    :ivar word: one of the closed list in docs/protocol.md: ``denied``, ``unreachable``, …
    :ivar reason: a sentence for a person.
    """

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(f"{word}: {reason}")
        self.word = word
        self.reason = reason


def connect(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> socket.socket:
    """Return a connected, blocking socket to *service*; the caller owns it.

    :param routes: ``service URI`` pairs separated by ``;``; the default is the value of
        $IPC_NETWORKD or $IPC_NETWORK.
    :param uri: an address instead of a service.
    :param rundir: the run directory; the default is the first with a live broker of
        $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc and /run/ipc.
    :param timeout: seconds for the whole lookup.
    :raises Refused: the broker says no.
    :raises NoBroker: nobody answers.
    :raises Error: the broker may not be asked, or does not answer as it should.
    """
    sock, _ = lookup(service, routes, uri=uri, rundir=rundir, timeout=timeout)
    return sock


def lookup(
    service: str | None = None,
    routes: str | None = None,
    *,
    uri: str | None = None,
    rundir: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> tuple[socket.socket, dict[str, Any]]:
    """Like :func:`connect`, and return the broker's answer besides: its ``mode`` and ``rule``."""
    if (service is None) == (uri is None):
        raise ValueError("wanted a service or a uri")
    request: dict[str, Any] = {"op": "lookup"}
    if uri is not None:
        request["uri"] = uri
    else:
        request["service"] = service
        if routes is None:
            routes = os.environ.get("IPC_NETWORKD") or os.environ.get("IPC_NETWORK")
        if routes:
            request["routes"] = routes
    answer, fd = ask(request, rundir=rundir, timeout=timeout)
    if fd < 0:
        raise Error(errno.EPROTO, "the broker granted the lookup and sent no descriptor")
    try:
        return socket.socket(fileno=fd), answer
    except BaseException:
        os.close(fd)
        raise


def ask(
    request: dict[str, Any], *, rundir: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> tuple[dict[str, Any], int]:
    """Send one request of the native protocol; return its answer and a descriptor or -1.

    The caller owns the descriptor, which is close-on-exec.

    :raises Error: as :func:`connect`.
    """
    with find_broker(rundir, timeout) as broker:
        payload = json.dumps(request).encode()
        broker.sendall(_LENGTH.pack(len(payload)) + payload)
        fd = -1
        try:
            head, fd = _receive(broker, _LENGTH.size, fd)
            (length,) = _LENGTH.unpack(head)
            if length > ANSWER_BYTES:
                raise Error(errno.EPROTO, f"the broker announces an answer of {length} bytes")
            body, fd = _receive(broker, length, fd)
            answer = json.loads(body)
            if not answer.get("ok"):
                raise Refused(str(answer.get("error")), str(answer.get("reason")))
        except TimeoutError:
            _close(fd)
            raise Error(errno.ETIMEDOUT, f"the broker did not answer within {timeout:g} seconds") from None
        except BaseException:
            _close(fd)
            raise
        return answer, fd


def find_broker(rundir: str | None = None, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """Return a connection to the first live broker's native socket; the caller owns it.

    :raises NoBroker: telling where was looked and what was found.
    :raises Error: there is one, and it may not be asked (which group to join), or its
        directory is not safe.
    """
    looked = []
    for directory in (rundir,) if rundir else client_rundirs(os.environ):
        path = os.path.join(directory, SOCKET_NAME)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _check_directory(directory)
            sock.settimeout(timeout)
            sock.connect(path)
            return sock
        except PermissionError:
            sock.close()
            raise Error(errno.EACCES, f"{path}: you may not ask this broker; {_who_may(directory, path)}") from None
        except OSError as e:
            sock.close()
            if isinstance(e, Error):
                raise
            looked.append(f"{path} ({os.strerror(e.errno) if e.errno else e})")
    raise NoBroker(errno.ENOENT, "no broker answers; looked at " + ", ".join(looked))


def _check_directory(directory: str) -> None:
    """Refuse a directory in which anybody could have put his own socket."""
    mode = os.stat(directory).st_mode
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise Error(errno.EPERM, f"{directory}: others can write it and its sticky bit is not set; its sockets can't be trusted")


def _who_may(directory: str, path: str) -> str:
    import grp  # late: most programs never get here

    for place in (path, directory):
        try:
            gid = os.stat(place).st_gid
        except OSError:
            continue
        try:
            return f"join the group {grp.getgrgid(gid).gr_name}"
        except KeyError:
            return f"join the group with gid {gid}"
    return "its directory is closed to you"


def _receive(broker: socket.socket, count: int, fd: int) -> tuple[bytes, int]:
    """Read exactly *count* bytes and take along a descriptor."""
    data = b""
    while len(data) < count:
        part, ancillary, _, _ = broker.recvmsg(count - len(data), _SPACE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(payload) >= _FD.size:
                _close(fd)
                (fd,) = _FD.unpack(payload[: _FD.size])
        if not part:
            _close(fd)
            raise Error(errno.ECONNRESET, "the broker hung up without an answer")
        data += part
    return data, fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)
