"""Ask the kernel which TCP sockets there are, and close one: sock_diag(7) over netlink.

The kernel answers out of the network namespace in which this process is, and makes the
next part of a dump when the last one is read. So a dump costs nobody else much time:
a few datagrams are read in each round of the reactor.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Collection

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects import kernel
from plumberd.effects.poll import Poll
from plumberd.pure.inetdiag import (
    FAMILIES,
    LISTENING,
    LIVING,
    Answer,
    MalformedError,
    TcpSocket,
    cookie_of,
    destroy_request,
    dump_request,
    tcp_socket,
)

NETLINK_SOCK_DIAG = 4
DATAGRAM_BYTES = 32768
"""The kernel makes a dump's datagrams no longer; about 250 sockets."""

DATAGRAMS_A_ROUND = 4
"""Read before others have their turn: a thousand sockets, between one and two milliseconds."""

DUMP_SECONDS = 30.0
"""A dump that is not over by then has failed; half a million sockets take about one."""

_COOKIE = struct.Struct("=Q")


class DestroyError(Exception):
    """A socket was not closed; the text says why."""


class SocketGoneError(DestroyError):
    """It is not there any more."""

    def __init__(self) -> None:
        super().__init__("the connection is closed already")


class DestroyDeniedError(DestroyError):
    """This process may not close others' sockets."""


class DestroyUnknownError(DestroyError):
    """This kernel cannot do it."""


def socket_cookie(sock: socket.socket) -> int:
    """Return the number that the kernel has for *sock*, whoever holds it; never another one's.

    :raises OSError: before Linux 4.12.
    """
    (cookie,) = _COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, kernel.SO_COOKIE, _COOKIE.size))
    return int(cookie)


def try_sock_diag() -> str:
    """Find out by trying, and return why the kernel does not tell about TCP sockets, or nothing. Blocks shortly."""
    try:
        with _open() as sock:
            sock.send(dump_request(FAMILIES[0], LISTENING, 1))  # these are few, and no others are looked at
            answer = Answer(1)
            for _ in answer.receive(_receive(sock)):
                break
    except (OSError, MalformedError) as e:
        return _why(e)
    return ""


def destroy(found: TcpSocket) -> None:
    """Close the socket that a dump has *found*, whoever holds it: both ends see a reset.

    :raises SocketGoneError: it has been closed in the meantime.
    :raises DestroyDeniedError: without CAP_NET_ADMIN.
    :raises DestroyUnknownError: the kernel is built without CONFIG_INET_DIAG_DESTROY, or is older than Linux 4.5.
    :raises DestroyError: anything else.
    """
    try:
        with _open() as sock:
            sock.send(destroy_request(found, 1))
            answer = Answer(1)
            while not answer.over:
                for _ in answer.receive(_receive(sock)):
                    pass
    except (OSError, MalformedError) as e:
        number = e.errno if isinstance(e, OSError) else None
        if number == errno.ENOENT:
            raise SocketGoneError from None
        if number in (errno.EPERM, errno.EACCES):
            raise DestroyDeniedError("to close others' connections the broker needs CAP_NET_ADMIN") from None
        if number in (errno.EOPNOTSUPP, errno.EINVAL):
            raise DestroyUnknownError("this kernel closes no others' connections (CONFIG_INET_DIAG_DESTROY)") from None
        raise DestroyError(f"the connection could not be closed: {_why(e)}") from None


class Dump:
    """One look at all TCP sockets of both families. It owns its netlink socket.

    *found* gets what tells of each socket, as :mod:`plumberd.pure.inetdiag` reads it, and returns whether
    that was enough. *done* is called once: with ``None`` at the end, or with why there was none, and then what was
    found is a part only. A socket that was made during the dump may be missing, and so, rarely, may one be whose
    hash bucket changed between two datagrams.
    """

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        found: Callable[[bytes], object],
        done: Callable[[OSError | None], None],
        *,
        info: bool = False,
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._found = found
        self._done = done
        self._info = info
        self._sequence = 0
        self._answer = Answer(0)
        self._sock: socket.socket | None = None
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begin; *done* is called later.

        :raises OSError: there is no sock_diag for this process; *done* will not be called.
        """
        self._sock = _open()
        try:
            self._ask()
            self._poll.watch(self._sock.fileno(), self._ready, level=True)
        except BaseException:
            self.cancel()
            raise
        self._timer = self._clock.callLater(DUMP_SECONDS, self._end, OSError(errno.ETIMEDOUT, "a dump without end"))

    def cancel(self) -> None:
        """Give up; *done* will not be called. Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poll.forget(sock.fileno())
            sock.close()

    def _ask(self) -> None:
        assert self._sock is not None
        self._sequence += 1
        self._answer = Answer(self._sequence)
        family = FAMILIES[self._sequence - 1]
        self._sock.send(dump_request(family, LIVING, self._sequence, info=self._info))

    def _ready(self, events: int) -> None:
        try:
            for _ in range(DATAGRAMS_A_ROUND):
                if self._sock is None:
                    return
                if self._read(self._sock):
                    self._end(None)
                    return
        except BlockingIOError:
            return
        except OSError as e:
            self._end(e)
        except MalformedError as e:
            self._end(OSError(errno.EBADMSG, str(e)))

    def _read(self, sock: socket.socket) -> bool:
        """Take one datagram; tell whether there is nothing more to ask."""
        for body in self._answer.receive(_receive(sock)):
            if self._found(body):
                return True
            if self._sock is None:  # cancelled by who was told
                return False
        if not self._answer.over:
            return False
        if self._sequence == len(FAMILIES):
            return True
        self._ask()
        return False

    def _end(self, error: OSError | None) -> None:
        self.cancel()
        self._done(error)


def look_for(
    poll: Poll,
    clock: IReactorTime,
    cookies: Collection[int],
    done: Callable[[dict[int, TcpSocket] | OSError], None],
) -> Dump:
    """Find the living ones of the sockets with *cookies*, with their ``info``; *done* is called later.

    :raises OSError: see :meth:`Dump.start`.
    """
    missing = set(cookies)
    found: dict[int, TcpSocket] = {}

    def take(body: bytes) -> bool:
        cookie = cookie_of(body)
        if cookie in missing:
            found[cookie] = tcp_socket(body)
            missing.discard(cookie)
        return not missing

    dump = Dump(poll, clock, take, lambda error: done(found if error is None else error), info=True)
    dump.start()
    return dump


def find_and_destroy(poll: Poll, clock: IReactorTime, cookie: int, done: Callable[[Exception | None], None]) -> Dump:
    """Close the socket with *cookie*; *done* is called later, with what :func:`destroy` raises, or an OSError.

    :raises OSError: see :meth:`Dump.start`.
    """

    def found(sockets: dict[int, TcpSocket] | OSError) -> None:
        error: Exception | None = None
        if isinstance(sockets, OSError):
            error = sockets
        elif cookie not in sockets:
            error = SocketGoneError()
        else:
            try:
                destroy(sockets[cookie])
            except DestroyError as e:
                error = e
        done(error)

    return look_for(poll, clock, {cookie}, found)


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_SOCK_DIAG)
    try:
        sock.bind((0, 0))
    except BaseException:
        sock.close()
        raise
    return sock


def _receive(sock: socket.socket) -> bytes:
    """Return one datagram of the kernel's.

    :raises OSError: there is none, or it is cut off.
    """
    while True:
        data, _, flags, (port, _) = sock.recvmsg(DATAGRAM_BYTES)
        if port != 0:  # another process may send here too; the kernel's number is 0
            continue
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "a datagram that is cut off")
        return data


def _why(e: Exception) -> str:
    number = e.errno if isinstance(e, OSError) else None
    return os.strerror(number) if number else str(e)
