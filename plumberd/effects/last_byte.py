"""Leave the last byte of a UNIX stream unread, so that its other end can still be told of a fault.

A UNIX socket has no reset of its own: who reads gets an end of file, whatever has
happened. But Linux gives ECONNRESET to the other end of one that is closed with
bytes unread. So the last byte that came is passed on and stays where it is; before
an orderly close it is taken, and before any other one it is not. Whoever has never
sent a byte gets an end of file either way.
"""

from __future__ import annotations

import contextlib
import select
import socket

from plumberd.effects import kernel
from plumberd.effects.openssl import Buffer

_NOW = int(socket.MSG_DONTWAIT)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # put together once: flags are slow to add up
_ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class LastByte:
    """The reading of one UNIX stream, which stays its owner's.

    :ivar kept: the first byte that lies in the socket was passed on already.
    """

    __slots__ = ("_sock", "kept")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.kept = False

    def read_into(self, buffer: Buffer) -> int:
        """Put what has come into the empty *buffer*; return how many bytes, 0 at the end.

        :raises BlockingIOError: there is nothing new.
        :raises OSError: the socket is broken.
        """
        sock = self._sock
        there = kernel.unread_bytes(sock.fileno())
        if there <= self.kept:
            return self._read_end(buffer)
        most = min(there - 1, len(buffer.view) - 1)
        took = sock.recv_into(buffer.view, most, _NOW) if most else 0
        buffer.start, buffer.end = (1, took) if self.kept and took else (0, took)
        if took:
            self.kept = False
        if took == there - 1:
            sock.recv_into(buffer.view[took : took + 1], 1, _PEEK)
            buffer.end += 1
            self.kept = True
        # A read ends early behind a message with descriptors: the old byte alone is no end.
        return buffer.end - buffer.start or self.read_into(buffer)

    def take(self) -> None:
        """Take the byte: the close that follows is an orderly one."""
        if self.kept:
            self.kept = False
            with contextlib.suppress(OSError):
                self._sock.recv(1, _NOW)

    def _read_end(self, buffer: Buffer) -> int:
        """Tell an end from nothing, which one byte that lies there makes look alike."""
        if not self.kept:
            count = self._sock.recv_into(buffer.view, 0, _NOW)
            buffer.start, buffer.end = 0, count
            return count
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        if any(events & _ENDED for _, events in poll.poll(0)) and kernel.unread_bytes(self._sock.fileno()) == 1:
            return 0
        raise BlockingIOError
