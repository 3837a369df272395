"""Our end of an inherited control socket: one packet is one request, and brings where its answer goes.

A packet is a JSON object, without a length, with one end of a fresh stream socket
pair attached. The answer comes over that pair alone: processes that share the
control socket never read each other's descriptors.

Whatever else comes along is closed aside (:mod:`plumberd.effects.closing`), and until
it is, nothing more is read here: a sender who makes that slow waits for himself.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Hashable

from plumberd.effects.closing import Closer
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

    def __init__(
        self,
        poll: Poll,
        limit_bytes: int,
        asked: Asked,
        ended: Callable[[ControlSocket], None],
        closer: Closer,
        key: Hashable = None,
    ) -> None:
        """Make the pair; :meth:`start` begins to read.

        :param limit_bytes: longest request; a longer one is not answered, and what it brought is closed.
        :param ended: told once that nobody can ask here any more.
        :param closer: closes, on behalf of *key*, what is no answer socket.
        :raises OSError: there are no descriptors.
        """
        self._poll = poll
        self._limit_bytes = limit_bytes
        self._asked = asked
        self._ended = ended
        self._closer = closer
        self._key = key
        self._sock, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        # Set before the other end is given away: every packet has its true sender.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._again = False
        self._events = 0
        self._unwanted: list[int] = []

    def start(self) -> None:
        """Begin to read. The other end, :attr:`theirs`, belongs to who takes it; until then it is closed with this one.

        :raises OSError: it cannot be watched; it is to be closed.
        """
        self._poll.watch(self._sock.fileno(), self._ready)

    def close(self) -> None:
        """Read no more; what was asked is still answered. Idempotent."""
        if self._sock.fileno() >= 0:
            self._poll.forget(self._sock.fileno())
            self._drain()
            self._sock.close()
            self.theirs.close()
            self._ended(self)

    def _drain(self) -> None:
        """Take what lies in the queue out of it: closing with descriptors in it would close them here."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)
            while True:
                data, ancillary, _, _ = self._sock.recvmsg(1, _ANCILLARY_BYTES, _FLAGS)
                if not data and not ancillary:
                    break
                self._unwanted += _sent_with(ancillary)[1]
        if self._unwanted:
            self._closer.close(self._key, self._unwanted)

    def _go_on(self) -> None:
        self._again = False
        self._ready(0)

    def _ready(self, events: int) -> None:
        self._events |= events
        if self._again:
            return  # its turn comes with the next round, or when what it sent is closed
        for _ in range(A_ROUND):
            if self._sock.fileno() < 0:
                return
            if not self._closer.has_room(self._key, self._go_on):
                self._again = True
                return
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(self._limit_bytes + 1, _ANCILLARY_BYTES, _FLAGS)
            except BlockingIOError:
                if self._events & (HUP | ERR):
                    self.close()
                return
            except OSError:
                self.close()
                return
            if not data and not ancillary:
                self.close()  # the end; an empty packet has its sender with it
                return
            self._take(data, ancillary, flags)
            if self._unwanted:
                self._again = True
                unwanted, self._unwanted = self._unwanted, []
                self._closer.close(self._key, unwanted, self._go_on)
                return
        self._again = True
        self._poll.again(self._go_on)

    def _take(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        sender, fds = _sent_with(ancillary)
        whole = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(data) <= self._limit_bytes
        sock = _pair_end(fds) if whole and data else None
        if sock is None:
            self._unwanted += fds
        else:
            self._asked(sock, data, sender)


def _sent_with(ancillary: list[tuple[int, int, bytes]]) -> tuple[Sender | None, list[int]]:
    """Return who sent a packet, and the descriptors that came with it."""
    sender: Sender | None = None
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            sender = sender_of(payload)
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += [fd for (fd,) in _FD.iter_unpack(payload[: len(payload) // _FD.size * _FD.size])]
    return sender, fds


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
    if not _is_pair(sock) or not _is_quiet(sock):
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


def _is_quiet(sock: socket.socket) -> bool:
    """See to it that nothing comes in on an answer socket; tell whether nothing has.

    It is closed here, and what lies in its queue then would be closed here as well.
    """
    try:
        sock.shutdown(socket.SHUT_RD)
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return False  # its other end has gone
