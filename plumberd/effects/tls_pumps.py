"""The pumps of a relay whose one side is TLS; see :mod:`plumberd.effects.relay`.

A buffer is large, so that few system calls carry many bytes, and lent only while
bytes are under way: ten thousand idle relays share a few. What is below has none of its own then.

The place for TLS in the kernel is :func:`make_tls_pumps`: where the kernel can carry
a connection's records (tcp_available_ulp), it would be told the keys that
:class:`plumberd.effects.tls_carrier.Records` has, the socket itself could be handed
over, and nothing would have to be pumped.
"""

from __future__ import annotations

import socket
from abc import abstractmethod

from plumberd.effects.last_byte import LastByte
from plumberd.effects.openssl import Buffer
from plumberd.effects.poll import OUT
from plumberd.effects.pumps import NOTHING, Pump
from plumberd.effects.tls_ending import Want
from plumberd.effects.tls_wire import Wire

LARGE_BYTES = 256 * 1024
"""Sixteen records: each turn of Python costs as much as one of them."""

SMALL_BYTES = 64 * 1024
MOST_LARGE = 64
"""So many large buffers are out at once, then small ones: a relay whose reader stands still holds one all the time."""

KEPT = 32
"""So many of each kind are kept while nobody has them."""

RECORD_BYTES = 16384  # RFC 8446, 5.1

_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class BufferPool:
    """Lends buffers, large ones as long as few are out."""

    def __init__(self, large: int = LARGE_BYTES, small: int = SMALL_BYTES) -> None:
        self._sizes = small, large
        self._free: tuple[list[Buffer], list[Buffer]] = [], []
        self._large_out = 0

    def take(self) -> Buffer:
        """Return an empty buffer."""
        large = self._large_out < MOST_LARGE
        self._large_out += large
        free = self._free[large]
        return free.pop() if free else Buffer(self._sizes[large])

    def give_back(self, buffer: Buffer) -> None:
        """Take one back; what is in it is forgotten."""
        large = len(buffer.view) == self._sizes[1]
        self._large_out -= large
        free = self._free[large]
        if len(free) < KEPT:
            buffer.start = buffer.end = 0
            free.append(buffer)


class _Buffered(Pump):
    """Holds what it has read in a lent buffer, until the sink has taken all of it."""

    def __init__(self, wire: Wire, source: socket.socket, sink: socket.socket, buffers: BufferPool) -> None:
        super().__init__(source, sink)
        self._wire = wire
        self._buffers = buffers
        self._buffer: Buffer | None = None

    @property
    def holds(self) -> bool:
        return self._buffer is not None

    def drop(self) -> None:
        """See :meth:`Pump.drop`."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._buffers.give_back(buffer)

    def fill(self) -> int:
        """See :meth:`Pump.fill`."""
        if self._buffer is not None:
            return NOTHING
        buffer = self._buffers.take()
        try:
            count = self._read(buffer)
        except OSError:
            self._buffers.give_back(buffer)
            raise
        if count > 0:
            self._buffer = buffer
        else:
            self._buffers.give_back(buffer)
        return count

    @abstractmethod
    def _read(self, buffer: Buffer) -> int:
        """Read once into *buffer*, as :meth:`fill`."""


class TlsReader(_Buffered):
    """From TLS to a socket: *source* is the socket below the wire."""

    def __init__(self, wire: Wire, source: socket.socket, sink: socket.socket, buffers: BufferPool) -> None:
        super().__init__(wire, source, sink, buffers)
        wire.is_drained = False  # the edges since the last read were somebody else's

    def fill(self) -> int:
        """See :meth:`Pump.fill`; the socket is not asked again until :meth:`wants` has heard of it."""
        return NOTHING if self._wire.is_drained else super().fill()

    def _read(self, buffer: Buffer) -> int:
        return self._wire.read_into(buffer)

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        buffer = self._buffer
        if buffer is None:
            return False
        try:
            count = self.sink.send(buffer.view[buffer.start : buffer.end], _SEND)
        except BlockingIOError:
            return False
        self.moved += count
        buffer.start += count
        if buffer.start == buffer.end:
            self.drop()
        return True

    def wants(self, sock: socket.socket, events: int) -> bool:
        """See :meth:`Pump.wants`: reading may have to write first, when the far side has asked for new keys."""
        if sock is self.source and events & ~OUT:
            self._wire.is_drained = False
        if sock is self.source and events & OUT and self._wire.reading_waits is Want.WRITE:
            return True
        return super().wants(sock, events)

    def has_more(self) -> bool:
        """See :meth:`Pump.has_more`: what lies in the socket may be the orderly end, or no bytes of the stream."""
        if self.holds:
            return True
        self._wire.is_drained = False
        try:
            return self.fill() > 0
        except OSError:
            return True


class TlsWriter(_Buffered):
    """From a socket to TLS: *sink* is the socket below the wire."""

    _ending = False

    def __init__(self, wire: Wire, source: socket.socket, sink: socket.socket, buffers: BufferPool) -> None:
        super().__init__(wire, source, sink, buffers)
        self._corks = wire.writes_apart and sink.family != socket.AF_UNIX
        # What TLS has cut off is to be no orderly end for whoever reads at the other end of a UNIX socket.
        self._last = LastByte(source) if source.family == socket.AF_UNIX else None

    def _read(self, buffer: Buffer) -> int:
        try:
            if self._last is not None:
                return self._last.read_into(buffer)
            buffer.end = self.source.recv_into(buffer.view, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return NOTHING
        return buffer.end

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        buffer = self._buffer
        if buffer is None:
            return False
        count = buffer.end - buffer.start
        # Let TCP put records together that are written one by one, and send the rest at once.
        corked = self._corks and count > RECORD_BYTES
        if corked:
            self._cork(True)
        written = self._wire.write_from(buffer)
        if corked:
            self._cork(False)
        if written:
            self.moved += count
            self.drop()
        return written

    def _cork(self, on: bool) -> None:
        self.sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)

    def pass_end(self) -> bool:
        """See :meth:`Pump.pass_end`: close_notify; TCP stays open both ways until both directions have ended."""
        self._ending = True
        return self._wire.close_notify()

    def settle(self) -> None:
        """See :meth:`Pump.settle`."""
        if self._last is not None:
            self._last.take()

    def wants(self, sock: socket.socket, events: int) -> bool:
        """See :meth:`Pump.wants`."""
        if sock is self.source or not (self.holds or self._ending):
            return sock is self.source and super().wants(sock, events)
        return bool(events & OUT) or self._wire.writing_waits is Want.READ


def make_tls_pumps(
    wire: Wire, tls: socket.socket, plain: socket.socket, buffers: BufferPool
) -> tuple[TlsReader, TlsWriter]:
    """Return the pumps from *tls*, the socket below *wire*, to *plain* and back; what *wire* has proved is let go."""
    wire.let_go()
    return TlsReader(wire, tls, plain, buffers), TlsWriter(wire, plain, tls, buffers)
