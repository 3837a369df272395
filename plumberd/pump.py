"""Carry bytes between a connected socket and two descriptors, for ``plumb connect``."""

from __future__ import annotations

import os
import select
import socket

CHUNK_BYTES = 65536


def carry(sock: socket.socket, source: int, sink: int) -> int:
    """Copy *source* to *sock* and *sock* to *sink* until both directions have ended; own *sock*.

    The end of *source* becomes the end of that direction alone, and so does the other's. A
    terminal is not waited for when the far side has closed. What the far side sent before it
    refused to take more is delivered.

    :returns: the exit status: 0, or 2 where the connection broke.
    """
    with sock:
        sock.setblocking(False)
        up = _Direction(source, sock.fileno())
        down = _Direction(sock.fileno(), sink)
        poll = select.poll()
        while True:
            if up.copy():
                _shut(sock)
            if down.copy():
                os.close(sink)
                if os.isatty(source):
                    return 0
            if down.broken or (up.broken and (down.done or not up.refused)):
                return 2
            if up.done and down.done:
                return 0
            wanted: dict[int, int] = {}
            for direction in (up, down):
                fd, event = direction.waits_for()
                if event:
                    wanted[fd] = wanted.get(fd, 0) | event
            for fd, event in wanted.items():
                poll.register(fd, event)
            poll.poll()
            for fd in wanted:
                poll.unregister(fd)


class _Direction:
    """One direction; its reads and writes are only made where poll(2) promises that they do not block."""

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.waiting = b""
        self.ended = False
        self.done = False
        self.broken = False
        self.refused = False
        """Broken because the sink takes no more."""

    def copy(self) -> bool:
        """Move what can be moved now; tell whether this direction has ended just now."""
        if self.done or self.broken:
            return False
        try:
            if self.waiting and _can(self.sink, select.POLLOUT):
                # A pipe that is ready takes at least PIPE_BUF bytes without blocking.
                self.waiting = self.waiting[os.write(self.sink, self.waiting[: select.PIPE_BUF]) :]
            elif not self.waiting and not self.ended and _can(self.source, select.POLLIN):
                self.waiting = os.read(self.source, CHUNK_BYTES)
                self.ended = not self.waiting
        except BlockingIOError:
            return False
        except OSError:
            self.broken = True
            self.refused = bool(self.waiting)
            return False
        self.done = self.ended and not self.waiting
        return self.done

    def waits_for(self) -> tuple[int, int]:
        """Return the descriptor and the event that this direction needs to go on; no event if it has ended."""
        if self.done or self.broken:
            return self.sink, 0
        if self.waiting:
            return self.sink, select.POLLOUT
        return self.source, select.POLLIN


def _can(fd: int, event: int) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(0))


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the far side is gone; reading tells
