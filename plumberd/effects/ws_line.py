"""The connection below a WebSocket: a plain socket, or TLS on one. It owns neither.

Both read what there is and write what fits. Edges come once: who reads goes on until
there is nothing, and a short read of TCP says that already.
"""

from __future__ import annotations

import socket
from typing import Protocol

from plumberd.effects.openssl import Buffer
from plumberd.effects.poll import IN, OUT
from plumberd.effects.pumps import NOTHING
from plumberd.effects.tls_ending import Want
from plumberd.effects.tls_pumps import BufferPool
from plumberd.effects.tls_wire import Wire

READ_BYTES = 65536
"""One read: more of them at once would only be copied once more."""

_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_NOW = int(socket.MSG_DONTWAIT)


class Line(Protocol):
    """What carries the frames."""

    @property
    def holds(self) -> bool:
        """Whether something was taken that has not gone."""

    @property
    def has_more(self) -> bool:
        """Whether there may be something to read that no event will tell of."""

    def recv(self, most: int = READ_BYTES) -> bytes:
        """Read; ``b""`` is the end.

        :raises BlockingIOError: there is nothing now.
        :raises OSError: it is broken.
        """

    def send(self, data: bytes) -> int:
        """Write; return how much of *data* was taken, 0 where there is no room.

        :raises OSError: it is broken.
        """

    def flush(self) -> bool:
        """Go on with what was taken; tell whether all of it has gone.

        :raises OSError: it is broken.
        """

    def give_back(self, data: bytes) -> None:
        """Put *data* in front of what is read next."""

    def let_go(self) -> None:
        """Forget what only the beginning needed: messages are carried from now on."""

    def told(self, events: int) -> None:
        """Hear of events of the socket, before anything is read."""

    def reads(self, events: int) -> bool:
        """Tell whether *events* are a reason to read."""

    def writes(self, events: int) -> bool:
        """Tell whether *events* are a reason to write what waits."""

    def end(self) -> bool:
        """Say that nothing more comes; ``False`` where that has to wait.

        :raises OSError: it is broken.
        """


class PlainLine:
    """A plain socket."""

    __slots__ = ("_ahead", "_ends", "_more", "_sock")

    holds = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = b""
        self._more = True
        """Whether there may be something to read that no edge will tell of."""
        self._ends = True
        """Whether the end may be there already, behind what is read."""

    @property
    def has_more(self) -> bool:
        """See :attr:`Line.has_more`."""
        return self._more or bool(self._ahead)

    def recv(self, most: int = READ_BYTES) -> bytes:
        """See :meth:`Line.recv`."""
        if self._ahead:
            data, self._ahead = self._ahead[:most], self._ahead[most:]
            return data
        if not self._more:
            raise BlockingIOError
        try:
            data = self._sock.recv(most, _NOW)
        except BlockingIOError:
            self._more = self._ends = False
            raise
        self._more = self._ends or len(data) == most
        return data

    def send(self, data: bytes) -> int:
        """See :meth:`Line.send`."""
        try:
            return self._sock.send(data, _SEND)
        except BlockingIOError:
            return 0

    def flush(self) -> bool:
        """See :meth:`Line.flush`."""
        return True

    def give_back(self, data: bytes) -> None:
        """See :meth:`Line.give_back`."""
        self._ahead = data + self._ahead

    def let_go(self) -> None:
        """See :meth:`Line.let_go`."""

    def told(self, events: int) -> None:
        """See :meth:`Line.told`."""
        if events & ~OUT:
            self._more = True
            self._ends = self._ends or bool(events & ~(IN | OUT))

    def reads(self, events: int) -> bool:
        """See :meth:`Line.reads`."""
        return bool(events & ~OUT)

    def writes(self, events: int) -> bool:
        """See :meth:`Line.writes`."""
        return bool(events & OUT)

    def end(self) -> bool:
        """See :meth:`Line.end`."""
        self._sock.shutdown(socket.SHUT_WR)
        return True


class TlsLine:
    """TLS on a socket."""

    __slots__ = ("_buffers", "_unsent", "_wire")

    def __init__(self, wire: Wire, buffers: BufferPool) -> None:
        self._wire = wire
        self._buffers = buffers
        self._unsent: Buffer | None = None
        wire.is_drained = False

    @property
    def holds(self) -> bool:
        """See :attr:`Line.holds`."""
        return self._unsent is not None

    @property
    def has_more(self) -> bool:
        """See :attr:`Line.has_more`."""
        return not self._wire.is_drained

    def recv(self, most: int = READ_BYTES) -> bytes:
        """See :meth:`Line.recv`."""
        if self._wire.is_drained:
            raise BlockingIOError
        buffer = self._buffers.take()
        try:
            count = self._wire.read_into(buffer)
            if count == NOTHING:
                raise BlockingIOError
            return bytes(buffer.view[:count])
        finally:
            self._buffers.give_back(buffer)

    def send(self, data: bytes) -> int:
        """See :meth:`Line.send`; what OpenSSL has begun with it has to go on with."""
        if self._unsent is not None:
            return 0
        buffer = self._buffers.take()
        count = min(len(data), len(buffer.view))
        buffer.view[:count] = data[:count] if count < len(data) else data
        buffer.start, buffer.end = 0, count
        self._unsent = buffer
        self.flush()
        return count

    def flush(self) -> bool:
        """See :meth:`Line.flush`."""
        buffer = self._unsent
        if buffer is None:
            return True
        try:
            if not self._wire.write_from(buffer):
                return False
        except OSError:
            self._let_go()
            raise
        self._let_go()
        return True

    def give_back(self, data: bytes) -> None:
        """See :meth:`Line.give_back`."""
        self._wire.give_back(data)

    def let_go(self) -> None:
        """See :meth:`Line.let_go`."""
        self._wire.let_go()

    def told(self, events: int) -> None:
        """See :meth:`Line.told`."""
        if events & ~OUT:
            self._wire.is_drained = False

    def reads(self, events: int) -> bool:
        """See :meth:`Line.reads`: reading may have to write first, when the far side has asked for new keys."""
        if events & OUT and self._wire.reading_waits is Want.WRITE:
            self._wire.is_drained = False
            return True
        return bool(events & ~OUT)

    def writes(self, events: int) -> bool:
        """See :meth:`Line.writes`."""
        return bool(events & OUT) or (bool(events & IN) and self._wire.writing_waits is Want.READ)

    def end(self) -> bool:
        """See :meth:`Line.end`: close_notify; TCP stays open both ways."""
        return self._wire.close_notify()

    def _let_go(self) -> None:
        buffer, self._unsent = self._unsent, None
        if buffer is not None:
            self._buffers.give_back(buffer)
