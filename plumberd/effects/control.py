"""Our end of an inherited control socket: one packet is one request, and brings where its answer goes.

A packet is a JSON object, without a length, with one end of a fresh stream socket
pair attached. The answer comes over that pair alone: processes that share the
control socket never read each other's descriptors.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable

from plumberd.effects.credentials import Sender, sender_of
from plumberd.effects.poll import ERR, HUP, Poll

A_ROUND = 16
"""Packets taken before others have their turn."""

MOST_DESCRIPTORS = 253  # SCM_MAX_FD
_ANCILLARY_BYTES = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * MOST_DESCRIPTORS)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_FD = struct.Struct("i")

Asked = Callable[[socket.socket, bytes, "Sender | None"], None]
"""``asked(answer_socket, payload, sender)``; the socket is its own from then on, non-blocking."""


class ControlSocket:
    """Owns our end; ends when every copy of the other one is closed."""

    def __init__(self, poll: Poll, limit_bytes: int, asked: Asked, ended: Callable[[ControlSocket], None]) -> None:
        """Make the pair; :meth:`start` begins to read.

        :param limit_bytes: longest request; a longer one is not answered, and what it brought is closed.
        :param ended: told once that nobody can ask here any more.
        :raises OSError: there are no descriptors.
        """
        self._poll = poll
        self._limit_bytes = limit_bytes
        self._asked = asked
        self._ended = ended
        self._sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        # Set before the other end is given away: every packet has its true sender.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._again = False
        self._events = 0

    def start(self) -> None:
        """Begin to read. The other end, :attr:`theirs`, belongs to who takes it; until then it is closed with this one.

        :raises OSError: it cannot be watched; it is to be closed.
        """
        self._poll.watch(self._sock.fileno(), self._ready)

    def close(self) -> None:
        """Read no more; what was asked is still answered. Idempotent."""
        if self._sock.fileno() >= 0:
            self._poll.forget(self._sock.fileno())
            self._sock.close()
            self.theirs.close()
            self._ended(self)

    def _go_on(self) -> None:
        self._again = False
        self._ready(self._events)

    def _ready(self, events: int) -> None:
        if self._again:
            self._events |= events
            return  # its turn comes with the next round
        for _ in range(A_ROUND):
            if self._sock.fileno() < 0:
                return
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(self._limit_bytes + 1, _ANCILLARY_BYTES, _FLAGS)
            except BlockingIOError:
                if events & (HUP | ERR):
                    self.close()
                return
            except OSError:
                self.close()
                return
            if not data and not ancillary:
                self.close()  # the end; an empty packet has its sender with it
                return
            self._take(data, ancillary, flags)
        self._again = True
        self._events = events
        self._poll.again(self._go_on)

    def _take(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        sender: Sender | None = None
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = sender_of(payload)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += [fd for (fd,) in _FD.iter_unpack(payload[: len(payload) // _FD.size * _FD.size])]
        whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(data) <= self._limit_bytes
        sock = _pair_end(fds) if whole and data else None
        for fd in fds:
            if sock is None or fd != sock.fileno():
                os.close(fd)
        if sock is not None:
            self._asked(sock, data, sender)


def _pair_end(fds: list[int]) -> socket.socket | None:
    """Return the one descriptor as a socket, non-blocking, if it is one end of a pair; else it stays the caller's.

    A socket that is connected to somebody's listener is none: what is written into it would come
    from this process, and somebody who trusts this process could take it for a request.
    """
    if len(fds) != 1:
        return None
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError:
        return None
    if not _is_pair(sock):
        sock.detach()
        return None
    sock.setblocking(False)
    return sock


def _is_pair(sock: socket.socket) -> bool:
    """Tell whether it is one end of a stream pair: of what a listener accepts, one end or the other has a name."""
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return False
    try:
        return not sock.getsockname() and not sock.getpeername()
    except OSError:
        return False  # not connected
