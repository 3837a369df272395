"""Ask a broker for a service and get a connected socket. Standard library alone.

    import plumberd.client
    sock = plumberd.client.connect("pong")

The broker leaves the path: the socket is the connection itself (or one end of a
relayed one), blocking, and the caller owns it.

:class:`Search`, :func:`lookup_request`, :func:`encode_request` and
:class:`Answer` are the same without the waiting: plumberd.aio and
plumberd.endpoints wait in their own ways.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from typing import Any

from plumberd.pure.places import client_rundirs

SOCKET_NAME = "plumberd"
ANSWER_BYTES = 65536
TIMEOUT_SECONDS = 30.0
PAUSES_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05)
"""A full backlog (EAGAIN) has no event to wait for; the last pause repeats."""
_LENGTH = struct.Struct(">I")
_FD = struct.Struct("i")
_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)
_SPACE = socket.CMSG_SPACE(_FD.size)


class Error(OSError):
    """Something is wrong between this program and the broker; the message says what to do."""


class NoBroker(Error):
    """No broker answers; the message says where was looked."""


class Refused(Error):
    """The broker refused.

    :ivar word: one of the closed list in docs/protocol.md: ``denied``, ``unreachable``, …
    :ivar reason: a sentence for a person.
    :ivar answer: the broker's whole answer, for what it tells besides.
    """

    def __init__(self, word: str, reason: str, answer: dict[str, Any] | None = None) -> None:
        super().__init__(f"{word}: {reason}")
        self.word = word
        self.reason = reason
        self.answer = answer or {}


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
    answer = _ask(lookup_request(service, routes, uri), rundir, timeout)
    try:
        return answer.take_socket()
    finally:
        answer.close()


def ask(
    request: dict[str, Any], *, rundir: str | None = None, timeout: float = TIMEOUT_SECONDS
) -> tuple[dict[str, Any], int]:
    """Send one request of the native protocol; return its answer and a descriptor or -1.

    The caller owns the descriptor, which is close-on-exec.

    :raises Error: as :func:`connect`.
    """
    answer = _ask(request, rundir, timeout)
    try:
        return answer.take()
    finally:
        answer.close()


def find_broker(rundir: str | None = None, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """Return a connection to the first live broker's native socket; the caller owns it.

    :raises NoBroker: telling where was looked and what was found.
    :raises Error: there is one, and it may not be asked (which group to join), or its
        directory is not safe; or it accepts nobody.
    """
    search = Search(rundir)
    ends = time.monotonic() + timeout
    while (sock := search.attempt()) is None:
        if time.monotonic() + search.pause_seconds > ends:
            raise timed_out(timeout)
        time.sleep(search.pause_seconds)
    sock.settimeout(timeout)
    return sock


def timed_out(seconds: float) -> Error:
    """Return the error for a lookup that took longer than *seconds*."""
    return Error(errno.ETIMEDOUT, f"the broker did not answer within {seconds:g} seconds")


def lookup_request(service: str | None, routes: str | None, uri: str | None) -> dict[str, Any]:
    """Return the request for a lookup; see :func:`connect` for what *routes* is by default.

    :raises ValueError: unless there is a service or a uri, and not both.
    """
    if (service is None) == (uri is None):
        raise ValueError("wanted a service or a uri")
    request: dict[str, Any] = {"op": "lookup"}
    if uri is not None:
        request["uri"] = uri
        return request
    request["service"] = service
    if routes is None:
        routes = os.environ.get("IPC_NETWORKD") or os.environ.get("IPC_NETWORK")
    if routes:
        request["routes"] = routes
    return request


def encode_request(request: dict[str, Any]) -> bytes:
    """Return the bytes of a request, which are the first on a connection to the native socket."""
    payload = json.dumps(request).encode()
    return _LENGTH.pack(len(payload)) + payload


class Search:
    """Looks for the first live broker, one attempt at a time.

    A connection to a UNIX socket is made at once or not at all, so nothing here waits.
    """

    def __init__(self, rundir: str | None = None) -> None:
        """*rundir*: as for :func:`connect`."""
        self._directories = [rundir] if rundir else list(client_rundirs(os.environ))
        self._looked: list[str] = []
        self._attempts = 0

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next attempt."""
        return PAUSES_SECONDS[min(self._attempts, len(PAUSES_SECONDS)) - 1]

    def attempt(self) -> socket.socket | None:
        """Return a non-blocking connection, the caller's; or ``None`` to try again after a pause.

        :raises NoBroker: telling where was looked and what was found.
        :raises Error: there is one, and it may not be asked (which group to join), or its
            directory is not safe.
        """
        self._attempts += 1
        while self._directories:
            directory = self._directories[0]
            path = os.path.join(directory, SOCKET_NAME)
            try:
                check_directory(directory)
                return _checked(_dial(path), directory, path)
            except Error:
                raise
            except BlockingIOError:
                return None  # its backlog is full: it is alive
            except PermissionError:
                why = f"{path}: you may not ask this broker; {_who_may(directory, path)}"
                raise Error(errno.EACCES, why) from None
            except OSError as e:
                self._looked.append(f"{path} ({os.strerror(e.errno) if e.errno else e})")
            del self._directories[0]
        raise NoBroker(errno.ENOENT, "no broker answers; looked at " + ", ".join(self._looked))


class Answer:
    """One answer as it arrives, and the descriptor that comes with it.

    It owns the descriptor until it is taken; :meth:`close` closes one that was not.
    """

    def __init__(self) -> None:
        self._data = b""
        self._wanted = _LENGTH.size
        self._fd = -1

    @property
    def missing_bytes(self) -> int:
        """How much to read next, and no more; 0 when the answer is complete."""
        return self._wanted - len(self._data)

    def receive(self, sock: socket.socket) -> bool:
        """Read once from *sock*, as :meth:`add` and :meth:`add_descriptor`.

        :raises BlockingIOError: nothing is there, on a non-blocking socket.
        :raises TimeoutError: nothing came, on one with a timeout.
        :raises Error: as :meth:`add`.
        """
        try:
            data, ancillary, _, _ = sock.recvmsg(self.missing_bytes, _SPACE, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, TimeoutError):
            raise
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # There is room for a second one: the kernel rounds up.
                for (fd,) in _FD.iter_unpack(payload[: len(payload) // _FD.size * _FD.size]):
                    self.add_descriptor(fd)
        return self.add(data)

    def add(self, data: bytes) -> bool:
        """Take bytes, none at the stream's end; return whether the answer is complete.

        :raises Error: the broker hung up before it was, or it is too long.
        """
        if not data:
            raise Error(errno.ECONNRESET, "the broker hung up without an answer")
        self._data += data
        if self._wanted == _LENGTH.size <= len(self._data):
            (length,) = _LENGTH.unpack_from(self._data)
            if length > ANSWER_BYTES:
                raise Error(errno.EPROTO, f"the broker announces an answer of {length} bytes")
            self._wanted += length
        self._data = self._data[: self._wanted]
        return not self.missing_bytes

    def add_descriptor(self, fd: int) -> None:
        """Own *fd*, instead of one that came before."""
        self.close()
        self._fd = fd

    def take(self) -> tuple[dict[str, Any], int]:
        """Return the complete answer and the descriptor, the caller's from now on, or -1.

        :raises Refused: the broker says no.
        :raises Error: this is no answer.
        """
        try:
            answer = json.loads(self._data[_LENGTH.size :])
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Error(errno.EPROTO, "the broker's answer is no JSON object")
        if answer.get("ok") is not True:
            raise Refused(str(answer.get("error")), str(answer.get("reason")), answer)
        fd, self._fd = self._fd, -1
        return answer, fd

    def take_socket(self) -> tuple[socket.socket, dict[str, Any]]:
        """Like :meth:`take` for a lookup: return the blocking socket, the caller's, and the answer.

        :raises Error: besides, where there is no descriptor, or it is no socket.
        """
        answer, fd = self.take()
        if fd < 0:
            raise Error(errno.EPROTO, "the broker granted the lookup and sent no descriptor")
        try:
            return socket.socket(fileno=fd), answer
        except OSError:
            os.close(fd)
            raise Error(errno.EPROTO, "the broker granted the lookup and sent a descriptor that is no socket") from None

    def close(self) -> None:
        """Close the descriptor, if there is one that was not taken. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _checked(broker: socket.socket, directory: str, path: str) -> socket.socket:
    """Return *broker* if who listens there can be trusted; in a sticky directory a neighbour may have put it up.

    :raises Error: it is neither root, nor ourselves, nor the owner of the directory.
    """
    try:
        _, uid, _ = _CREDENTIALS.unpack(broker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        owner = os.lstat(directory).st_uid
        if uid not in (0, os.geteuid(), owner):
            why = f"{path} is served by uid {uid}, neither root nor you nor the owner of {directory} (uid {owner})"
            raise Error(errno.EPERM, why)
    except BaseException:
        broker.close()
        raise
    return broker


def check_directory(directory: str) -> None:
    """Refuse a directory in which anybody could have put his own socket.

    :raises Error: saying what is wrong with it.
    :raises OSError: there is none.
    """
    mode = os.lstat(directory).st_mode
    if stat.S_ISLNK(mode):
        raise Error(errno.EPERM, f"{directory} is a symbolic link; name the directory itself")
    if mode & 0o022 and not mode & stat.S_ISVTX:
        why = f"{directory}: others can write it and its sticky bit is not set; its sockets can't be trusted"
        raise Error(errno.EPERM, why)


def _ask(request: dict[str, Any], rundir: str | None, timeout: float) -> Answer:
    """Return the complete answer, which the caller closes."""
    ends = time.monotonic() + timeout
    answer = Answer()
    try:
        with find_broker(rundir, timeout) as broker:
            _set_deadline(broker, ends)
            # A broker that has no place for us may say so, and hang up before it reads.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                broker.sendall(encode_request(request))
            while not answer.receive(broker):
                _set_deadline(broker, ends)
        return answer
    except BaseException as e:
        answer.close()
        if isinstance(e, TimeoutError):
            raise timed_out(timeout) from None
        raise


def _set_deadline(sock: socket.socket, ends: float) -> None:
    sock.settimeout(max(ends - time.monotonic(), 0.001))  # 0 would mean non-blocking


def _dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


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
