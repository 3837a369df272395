"""Both ends of pipes and sockets, read and written at the same time, within a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterable

CHUNK_BYTES = 65536


class Mismatch(Exception):
    """What was wanted, and what was found instead."""

    def __init__(self, wanted: str, found: object) -> None:
        super().__init__(f"wanted {wanted}; found {found if isinstance(found, str) else shown(found)}")


def shown(value: object) -> str:
    """Return *value* as it is shown to people: not more of it than fits into a line."""
    if isinstance(value, bytes | bytearray):
        text = repr(bytes(value[:60]))
        return text if len(value) <= 60 else f"{text}… ({len(value)} bytes)"
    return repr(value)


class Deadline:
    """A moment, by which everything has to be over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left, 0 at least."""
        return max(0.0, self._ends - time.monotonic())


class Stream:
    """Our end of a pipe or a socket, which it owns.

    :ivar inbox: what has been read.
    :ivar outbox: what is still to be written.
    :ivar ended: whether the other end has said that nothing more comes.
    :ivar broken: how writing or reading failed.
    :ivar reading: whether it is to be read at all.
    """

    def __init__(self, end: int | socket.socket, *, reading: bool = True) -> None:
        self._sock = end if isinstance(end, socket.socket) else None
        self._fd = end if isinstance(end, int) else end.fileno()
        os.set_blocking(self._fd, False)
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.reading = reading
        self.ended = False
        self.broken: str | None = None
        self._ending = False
        self._closed = False

    def put(self, data: bytes, *, end: bool = False) -> None:
        """Write *data* as soon as it can be written; with *end* nothing follows."""
        self.outbox += data
        self._ending |= end

    def events(self) -> int:
        """Return what it waits for."""
        if self._closed:
            return 0
        reading = self.reading and not self.ended and not self.broken
        writing = self.outbox or self._ending
        return (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def move(self) -> None:
        """Read and write what can be read and written now."""
        try:
            if self.events() & select.POLLIN:
                self._read()
            if self.events() & select.POLLOUT:
                self._write()
        except BlockingIOError:
            return
        except OSError as e:
            self.broken = e.strerror
            self.ended = True
            self.outbox.clear()
            self._ending = False

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            part = os.read(self._fd, CHUNK_BYTES)
            self.inbox += part
            self.ended = not part

    def _write(self) -> None:
        if self.outbox:
            del self.outbox[: os.write(self._fd, self.outbox[:CHUNK_BYTES])]
        if self._ending and not self.outbox:
            self._ending = False
            if self._sock is not None:
                self._sock.shutdown(socket.SHUT_WR)
            else:
                self.close()

    def reset(self) -> None:
        """Close a TCP connection so that the other end sees a reset."""
        assert self._sock is not None
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._sock is not None:
            self._sock.close()
        else:
            os.close(self._fd)


def carry(streams: Iterable[Stream], done: Callable[[], object], wanted: str, deadline: Deadline) -> None:
    """Read and write all *streams* until *done*.

    :raises Mismatch: at the deadline, or when nothing can happen any more.
    """
    streams = list(streams)
    while not done():
        poll = select.poll()
        waiting = {s.fileno(): s for s in streams if s.events()}
        for fd, stream in waiting.items():
            poll.register(fd, stream.events())
        ready = poll.poll(deadline.left() * 1000) if waiting else []
        if not ready:
            raise Mismatch(f"{wanted} {within(deadline)}", _seen(streams))
        for fd, _ in ready:
            waiting[fd].move()


def within(deadline: Deadline) -> str:
    """Return the deadline as part of a sentence."""
    return f"within {deadline.seconds:g} s"


def _seen(streams: Iterable[Stream]) -> str:
    seen = [f"{shown(s.inbox)}{' and the end' if s.ended else ''}" for s in streams if s.reading]
    return "only " + ", ".join(seen) if seen else "nothing"
