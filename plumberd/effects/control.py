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

    def start(self) -> None:
        """Begin to read. The other end, :attr:`theirs`, was given away or belongs to who takes it."""
        self._poll.watch(self._sock.fileno(), self._ready)
        self._ready(0)

    def close(self) -> None:
        """Read no more; what was asked is still answered. Idempotent."""
        if self._sock.fileno() >= 0:
            self._poll.forget(self._sock.fileno())
            self._sock.close()
            self._ended(self)

    def _ready(self, events: int) -> None:
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
            if not data and not ancillary_has_rights(ancillary):
                self.close()  # the end; an empty packet is no request either
                return
            self._take(data, ancillary, flags)
        self._poll.again(lambda: self._ready(events))

    def _take(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        sender: Sender | None = None
        fds: list[int] = []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = sender_of(payload)
            elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds += [fd for (fd,) in _FD.iter_unpack(payload[: len(payload) // _FD.size * _FD.size])]
        whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(data) <= self._limit_bytes
        sock = _stream_of(fds) if whole and data else None
        for fd in fds:
            if sock is None or fd != sock.fileno():
                os.close(fd)
        if sock is not None:
            self._asked(sock, data, sender)


def ancillary_has_rights(ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Tell whether descriptors came along."""
    return any(level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS for level, kind, _ in ancillary)


def _stream_of(fds: list[int]) -> socket.socket | None:
    """Return the one descriptor as a socket, non-blocking, if it is a UNIX stream; else it is still the caller's."""
    if len(fds) != 1:
        return None
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError:
        return None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        sock.detach()
        return None
    sock.setblocking(False)
    return sock
