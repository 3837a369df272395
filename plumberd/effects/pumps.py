"""What carries the bytes of one direction of a relay: spliced in the kernel, or cut and joined as messages.

A pump moves from its source to its sink and holds what the sink has not taken
yet: at most one pipe, one packet, or the frames of one read. It knows nothing of
the other direction; :mod:`plumberd.effects.relay` looks after ends and resets.
"""

from __future__ import annotations

import errno
import os
import socket
from abc import ABC, abstractmethod
from collections import deque
from typing import Protocol

from plumberd.effects import kernel
from plumberd.effects.pipes import Pipe, PipePool
from plumberd.effects.poll import OUT
from plumberd.framing import FrameCutter

PACKET_BYTES = 2 << 20
"""Longest packet that is carried; the older generations' clients read up to 2 MB at once."""

READ_BYTES = 65536
"""One read of a stream; where a route says framing=raw, that is one packet."""

FRAMES = 64
"""So many are cut at once: one read may bring thousands of short ones, each of which is a packet to be sent."""

_SPLICE = kernel.SPLICE_F_MOVE | kernel.SPLICE_F_NONBLOCK
_PEEK = int(socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT)
_NOW = int(socket.MSG_DONTWAIT)
_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

NOTHING = -1
"""There was nothing to read, or no room for it."""


class Untranslatable(Exception):
    """What came cannot be carried on as messages; the connection ends, and the log says why."""


class Broken(ConnectionError):
    """The source has ended in a way that it must not; what it sent before has been read.

    :ivar how: for the ending: ``truncated``, and the like.
    """

    def __init__(self, how: str, text: str) -> None:
        super().__init__(text)
        self.how = how


class Cutter(Protocol):
    """Cuts a stream into whole frames, unchanged."""

    def feed(self, data: bytes, most: int | None = None) -> list[bytes]:
        """Take *data*; return the frames that are complete, *most* at most; the others stay for the next call.

        :raises ValueError: where the bytes make no frame.
        """

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and is not complete."""


class Pump(ABC):
    """One direction.

    :ivar moved: bytes that reached the sink.
    :ivar ended: the source has ended.
    :ivar finished: … and all of it, and the end, has reached the sink.
    :ivar is_heavy: what :meth:`fill` did last was much work: the rest is for the next turn.
    """

    is_heavy = False

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.moved = 0
        self.ended = False
        self.finished = False

    @property
    @abstractmethod
    def holds(self) -> bool:
        """Whether there is something that the sink has not taken."""

    @abstractmethod
    def fill(self) -> int:
        """Read once; return how many bytes, 0 at the source's end, :data:`NOTHING` where there was nothing.

        :raises OSError: the source is broken; everything before that has been read.
        :raises Untranslatable: it sent what makes no message.
        """

    @abstractmethod
    def empty(self) -> bool:
        """Write what can be written; tell whether anything was.

        :raises OSError: the sink is broken.
        :raises Untranslatable: a message does not fit.
        """

    def pass_end(self) -> bool:
        """Tell the sink that all has come; ``False`` where it takes that later, when :meth:`wants` says.

        :raises OSError: the sink is broken.
        """
        self.sink.shutdown(socket.SHUT_WR)
        return True

    def wants(self, sock: socket.socket, events: int) -> bool:
        """Tell whether *events* of *sock*, one of the relay's two, are any of this pump's business."""
        if sock is self.source:
            return bool(events & ~OUT)
        return bool(events & OUT) and self.holds

    def has_more(self) -> bool:
        """Tell whether there is something that has not reached the sink, here or at the source."""
        return self.holds or kernel.unread_bytes(self.source.fileno()) > 0

    def settle(self) -> None:  # noqa: B027 - a hook: most have nothing there
        """Leave nothing at the source that would make its close a reset: both ends are orderly."""

    @abstractmethod
    def drop(self) -> None:
        """Forget what is held."""


class SplicePump(Pump):
    """Stream to stream, in the kernel; it has a pipe only while bytes are under way."""

    def __init__(self, source: socket.socket, sink: socket.socket, pipes: PipePool) -> None:
        super().__init__(source, sink)
        self._pipes = pipes
        self._pipe: Pipe | None = None

    @property
    def holds(self) -> bool:
        return self._pipe is not None

    def fill(self) -> int:
        """See :meth:`Pump.fill`."""
        pipe = self._pipe = self._pipe or self._pipes.take()
        try:
            count = os.splice(self.source.fileno(), pipe.write, 1 << 20, flags=_SPLICE)
        except BlockingIOError:
            count = NOTHING  # nothing there, or the pipe is full
        except OSError:
            self._give_back_if_empty()
            raise
        if count > 0:
            pipe.held += count
        else:
            self._give_back_if_empty()
        return count

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        pipe = self._pipe
        if pipe is None:
            return False
        moved = False
        while pipe.held:
            try:
                count = os.splice(pipe.read, self.sink.fileno(), pipe.held, flags=_SPLICE)
            except BlockingIOError:
                return moved
            pipe.held -= count
            self.moved += count
            moved = True
        self._give_back_if_empty()
        return moved

    def drop(self) -> None:
        """See :meth:`Pump.drop`."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._pipes.give_back(pipe)

    def _give_back_if_empty(self) -> None:
        if self._pipe is not None and not self._pipe.held:
            self.drop()


class _Copying(Pump):
    """Through this process: a queue of pieces, each written by itself."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        super().__init__(source, sink)
        self._queue: deque[bytes] = deque()

    @property
    def holds(self) -> bool:
        return bool(self._queue)

    def drop(self) -> None:
        """See :meth:`Pump.drop`."""
        self._queue.clear()

    def fill(self) -> int:
        """See :meth:`Pump.fill`."""
        if self._queue:
            return NOTHING
        try:
            return self._read()
        except BlockingIOError:
            return NOTHING

    @abstractmethod
    def _read(self) -> int:
        """Read once into the queue, as :meth:`fill`."""

    def _write(self) -> bool:
        """Write the first piece, or a part of it, which leaves the rest in its place; tell whether it went."""
        piece = self._queue[0]
        try:
            count = self.sink.send(piece, _SEND)
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno in (errno.EMSGSIZE, errno.ENOBUFS):  # than the buffer, or than the kernel makes any
                raise Untranslatable(f"a message of {len(piece)} bytes does not fit into a packet") from None
            raise
        self.moved += count
        if count < len(piece):
            self._queue[0] = piece[count:]
        else:
            self._queue.popleft()
        return True

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        moved = False
        while self._queue and self._write():
            moved = True
        return moved


class PacketTaker:
    """Takes whole packets off one socket, and tells of a reset behind them; it owns nothing.

    Of packets the kernel tells a reset first, once, and gives what is queued behind it.
    """

    def __init__(self) -> None:
        self._peeked = bytearray(1)
        self._was_reset = False

    def take(self, sock: socket.socket) -> bytes:
        """Return the next packet of *sock*, whole; empty at the end.

        :raises BlockingIOError: there is none.
        :raises ConnectionResetError: there is none any more: who sent them has closed with something unread.
        :raises Untranslatable: it is too long.
        """
        if not self._was_reset:
            try:
                return self._next(sock)
            except ConnectionResetError:
                self._was_reset = True
        try:
            data = self._next(sock)
        except BlockingIOError:
            data = b""
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return data

    def _next(self, sock: socket.socket) -> bytes:
        # The length of the first packet, whatever comes behind it or meanwhile: what does not fit
        # into the read that takes it would be lost.
        length = sock.recv_into(self._peeked, 1, _PEEK)
        if length > PACKET_BYTES:
            raise Untranslatable(f"a packet of {length} bytes: at most {PACKET_BYTES} are carried")
        return sock.recv(max(length, 1), _NOW)


class Packets(_Copying):
    """Each packet as it is: to a stream one behind the other, for a message looks the same in both."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        super().__init__(source, sink)
        self._packets = PacketTaker()
        if sink.type == socket.SOCK_SEQPACKET:
            grow(sink)

    def _read(self) -> int:
        data = self._packets.take(self.source)
        if data:
            self._queue.append(data)
        return len(data)


class StreamToPackets(_Copying):
    """Each frame of the stream as one packet; without a cutter one read is one packet."""

    def __init__(self, source: socket.socket, sink: socket.socket, cutter: Cutter | None) -> None:
        super().__init__(source, sink)
        self._cutter = cutter
        self._is_uncut = False
        if sink.type == socket.SOCK_SEQPACKET:
            grow(sink)

    def has_more(self) -> bool:
        """See :meth:`Pump.has_more`."""
        return self._is_uncut or super().has_more()

    def _read(self) -> int:
        if self._is_uncut and (count := self._cut(b"")):
            return count
        data = self.source.recv(READ_BYTES)
        if self._cutter is None:
            if data:
                self._queue.append(data)
            return len(data)
        if not data and self._cutter.pending:
            raise Untranslatable("the stream ended in the middle of a message")
        self._cut(data)
        return len(data)

    def _cut(self, data: bytes) -> int:
        """Cut *data*, and what is left from before; return how many bytes there are in the frames."""
        assert self._cutter is not None
        try:
            frames = self._cutter.feed(data, FRAMES)
        except ValueError as e:
            raise Untranslatable(str(e)) from None
        self._is_uncut = len(frames) == FRAMES
        self._queue.extend(frames)
        return sum(map(len, frames))


class _OneByOne(_Copying):
    """Each message in one write, and the next when the last was taken.

    For clients that take one read for one message.
    """

    _in_part = False

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        moved = False
        while self._queue:
            if not self._in_part and kernel.is_untaken(self.sink.fileno()):
                break
            before = len(self._queue)
            if not self._write():
                break
            self._in_part = len(self._queue) == before
            moved = True
        return moved


class StreamToFrames(_OneByOne, StreamToPackets):
    """Each frame of a stream as one message."""


class PacketsToFrames(_OneByOne, Packets):
    """Each packet as one message."""


def make_pumps(
    left: socket.socket, right: socket.socket, pipes: PipePool, framing: str, *, framed: bool = False
) -> tuple[Pump, Pump]:
    """Return the pumps from *left* to *right* and back, by the kinds of the two sockets.

    :param framing: how messages look that a stream is cut into; ``raw``: one read is one packet.
    :param framed: write whole messages to *left*, each when the last was taken.
    """
    back: Pump
    if not framed:
        back = _make_pump(right, left, pipes, framing)
    elif right.type == socket.SOCK_SEQPACKET:
        back = PacketsToFrames(right, left)
    else:
        back = StreamToFrames(right, left, FrameCutter(framing, PACKET_BYTES))
    return _make_pump(left, right, pipes, framing), back


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a pair for packets, with room for the largest in each; the caller owns them."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in pair:
        grow(sock)
    return pair


def _make_pump(source: socket.socket, sink: socket.socket, pipes: PipePool, framing: str) -> Pump:
    if source.type == sink.type == socket.SOCK_STREAM:
        return SplicePump(source, sink, pipes)
    if source.type == socket.SOCK_SEQPACKET:
        return Packets(source, sink)
    return StreamToPackets(source, sink, None if framing == "raw" else FrameCutter(framing, PACKET_BYTES))


def grow(sock: socket.socket) -> None:
    """Make room for the largest packet, as far as the kernel lets us."""
    kernel.set_buffer(sock, socket.SO_SNDBUF, 2 * PACKET_BYTES)
