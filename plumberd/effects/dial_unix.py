"""Connect to a local service's socket in the run directory."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects import rundir
from plumberd.effects.actas import ActAs
from plumberd.effects.credentials import maker_of
from plumberd.pure.names import check_service
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho

RETRY_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05)
"""A full backlog has no event to wait for; the last pause repeats."""

TOKEN_BEGINS = b"\0plumberd-"
"""How the abstract name begins that our end of a caller's connection is bound to; random digits follow."""

TOKEN_BYTES = 16

_SCHEME_FAILURES = {
    errno.ENOENT: "there is no socket, it does not run",
    errno.ECONNREFUSED: "the socket is stale, it does not run any more",
    errno.EAGAIN: "it does not accept, its queue is full",
}

Connected = Callable[["socket.socket | Refused"], None]
"""Takes the connected socket, and owns it from then on; or the refusal."""


@dataclass
class LocalServices:
    """The services of one run directory.

    :ivar trusted_uids: whose listeners count: root's, the broker's, configured ones.
    :ivar own: device and inode of every socket that the broker itself listens on.
    """

    path: str
    actas: ActAs
    trusted_uids: Collection[int]
    own: Collection[tuple[int, int]]

    def dial(self, service: str, who: LocalWho | None, *, packets: bool = False) -> socket.socket:
        """Connect to *service* as *who*, or as the broker where that is ``None`` (inbound).

        A service listens on ``<name>``, with a stream or packets, or, in the oldest
        generation, on ``<name>-0-0`` with packets. Where there are several, the one like
        the client's own comes first.

        :param packets: whether the client's own kind is packets.
        :returns: a connected, non-blocking socket that the caller owns; its type tells the kind. As the
            broker it has a name (:func:`token_of`), in the network namespace of this process.
        :raises Refused: what the client is told.
        :raises BlockingIOError: the service's backlog is full.
        """
        check_service(service)
        told: Refused | None = None
        for name, kind in _places(service, packets=packets):
            try:
                return self._dial(service, os.path.join(self.path, name), kind, who)
            except _Untrusted as e:
                told = e  # somebody else's socket beside the service's keeps nobody from the service
            except Refused as e:
                if e.word not in (Refusal.UNKNOWN_SERVICE, Refusal.NOT_POSSIBLE):
                    raise
                if told is None or (name == service and not isinstance(told, _Untrusted)):
                    told = e
        assert told is not None
        raise told

    def dial_scheme(self, scheme: str) -> socket.socket:
        """Connect to the scheme daemon that serves ``<run directory>/<scheme>`` in another process.

        :returns: a connected, non-blocking socket that the caller owns.
        :raises Refused: ``unreachable`` where none serves there, ``denied`` where its user is not to be trusted.
        """
        path = os.path.join(self.path, scheme)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            try:
                code = self._connect(sock, path, scheme)
            except Refused as e:
                raise Refused(Refusal.UNREACHABLE, f"the scheme daemon for {scheme}: {e.reason} ({path})") from None
            if code:
                why = _SCHEME_FAILURES.get(code, os.strerror(code))
                raise Refused(Refusal.UNREACHABLE, f"the scheme daemon for {scheme}: {why} ({path})")
            self._check_listener(sock, f"the scheme {scheme}")
        except BaseException:
            sock.close()
            raise
        return sock

    def _dial(self, service: str, path: str, kind: int, who: LocalWho | None) -> socket.socket:
        if len(os.fsencode(path)) > rundir.PATH_BYTES:
            raise Refused(Refusal.UNKNOWN_SERVICE, f"the path of {service} is longer than {rundir.PATH_BYTES} bytes")
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        try:
            if who is None:
                # By this name, which getpeername shows, the service asks about its caller (unix(7), abstract).
                sock.bind(TOKEN_BEGINS + secrets.token_hex(TOKEN_BYTES).encode("ascii"))
                code = self._connect(sock, path, service)
            else:
                code = self.actas.call(who, lambda: self._connect(sock, path, service))
            if code:
                raise _failure(code, service)
            self._check_listener(sock, service)
        except BaseException:
            sock.close()
            raise
        return sock

    def _connect(self, sock: socket.socket, path: str, service: str) -> int:
        """Connect to the very inode that was looked at; return connect(2)'s code.

        Looking at a path and then connecting to it would be two things: in between, its
        owner could put a symbolic link there, to a socket that he may not open himself.

        :raises Refused: it is no socket, or one of our own.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            return e.errno or errno.ENOENT
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                raise Refused(Refusal.UNKNOWN_SERVICE, f"what lies at the name {service} is no socket")
            if (status.st_dev, status.st_ino) in self.own:
                raise Refused(Refusal.DENIED, f"{service} is a socket of the broker itself")
            return sock.connect_ex(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def _check_listener(self, sock: socket.socket, service: str) -> None:
        _, uid, _ = maker_of(sock)
        if uid not in self.trusted_uids:
            raise _Untrusted(
                Refusal.DENIED,
                f"{service} is served by uid {uid}, which this broker does not trust with a service (--service-user)",
            )


class _Untrusted(Refused):
    """A user listens there who is not trusted with a service."""


class UnixDial:
    """One attempt to connect to a local service, repeated while its backlog is full."""

    def __init__(
        self,
        clock: IReactorTime,
        services: LocalServices,
        service: str,
        who: LocalWho | None,
        done: Connected,
        *,
        packets: bool = False,
    ) -> None:
        self._clock = clock
        self._services = services
        self._service = service
        self._who = who
        self._done = done
        self._packets = packets
        self._timer: IDelayedCall | None = None
        self._tries = 0

    def start(self) -> None:
        """Try; *done* may be called before this returns."""
        self._timer = None
        try:
            result: socket.socket | Refused = self._services.dial(self._service, self._who, packets=self._packets)
        except BlockingIOError:
            pause = RETRY_SECONDS[min(self._tries, len(RETRY_SECONDS) - 1)]
            self._tries += 1
            self._timer = self._clock.callLater(pause, self.start)
            return
        except Refused as e:
            result = e
        except OSError as e:
            result = Refused(Refusal.BUSY, f"no descriptor for it: {e.strerror}")
        self._done(result)

    def cancel(self) -> None:
        """Give up; *done* will not be called."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def token_of(sock: socket.socket) -> str:
    """Return the name that our end of a caller's connection is bound to, without the NUL in front; or nothing."""
    name = sock.getsockname() if sock.family == socket.AF_UNIX else b""
    return name[1:].decode("ascii") if isinstance(name, bytes) and name.startswith(TOKEN_BEGINS) else ""


def _places(service: str, *, packets: bool) -> tuple[tuple[str, int], ...]:
    stream = (service, socket.SOCK_STREAM)
    packet = (service, socket.SOCK_SEQPACKET)
    oldest = (service + "-0-0", socket.SOCK_SEQPACKET)
    return (oldest, packet, stream) if packets else (stream, packet, oldest)


def _failure(code: int, service: str) -> Exception:
    if code == errno.EAGAIN:
        return BlockingIOError(code, "backlog full")
    if code == errno.ENOENT:
        return Refused(Refusal.UNKNOWN_SERVICE, f"no local service is called {service}")
    if code == errno.ECONNREFUSED:
        return Refused(Refusal.UNKNOWN_SERVICE, f"nobody listens on the socket of {service}")
    if code == errno.EACCES:
        return Refused(Refusal.DENIED, f"the mode of the socket of {service} does not let this user in")
    if code == errno.EPROTOTYPE:
        return Refused(Refusal.NOT_POSSIBLE, f"{service} listens on a socket of another type")
    return Refused(Refusal.UNREACHABLE, f"connecting to {service}: {os.strerror(code)}")
