"""The pumps of a relay whose one side is a WebSocket; see :mod:`plumberd.effects.relay`.

Nothing is read of one side as long as the other has not taken what came before, so a slow
browser slows the service, and costs what one read brings.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque

from plumberd.effects import kernel
from plumberd.effects.poll import OUT
from plumberd.effects.pumps import NOTHING, Broken, PacketTaker, Pump, Untranslatable, grow
from plumberd.effects.ws_line import READ_BYTES, Line
from plumberd.framing import FramingError
from plumberd.pure.ws_frames import (
    CLOSE,
    FIN,
    NORMAL,
    PING,
    PONG,
    PROTOCOL_ERROR,
    SERVICE_DIED,
    TOO_BIG,
    Closing,
    Frame,
    FrameDecoder,
    WsError,
    close_payload,
    frame,
    parse_close,
)
from plumberd.pure.ws_messages import Inward, Masks, Outward

_MASKS_BYTES = 256
"""So many random bytes are asked for at once: each is a system call."""

_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_NOW = int(socket.MSG_DONTWAIT)


class Untold(Untranslatable):
    """The far side broke the protocol, and is to be told so with a Close.

    :ivar code: of that Close.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class RandomMasks:
    """Gives each frame of a client its four random bytes (RFC 6455, 5.3)."""

    __slots__ = ("_at", "_random")

    def __init__(self) -> None:
        self._random = b""
        self._at = 0

    def next(self) -> bytes:
        """Return four bytes that nobody can have foreseen."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(_MASKS_BYTES)
            at = 0
        self._at = at + 4
        return self._random[at : at + 4]


class Session:
    """What both directions of one WebSocket know of each other.

    :ivar heard: the far side's Close.
    :ivar said: the code of ours, once it is on its way.
    :ivar code: what ours will say.
    :ivar reason: why, where that is the far side's own fault.
    :ivar alive: whether anything came since somebody asked last.
    :ivar asked: whether a ping of ours has not been answered.
    """

    __slots__ = ("alive", "asked", "code", "fault", "heard", "masks", "reason", "said")

    def __init__(self, masks: Masks | None = None) -> None:
        """*masks*: for the frames of a client."""
        self.masks = masks
        self.heard: Closing | None = None
        self.said: int | None = None
        self.code = NORMAL
        self.reason = ""
        self.fault: WsError | None = None
        self.alive = True
        self.asked = False

    def control(self, opcode: int, payload: bytes = b"") -> bytes:
        """Return a control frame."""
        return frame(FIN | opcode, payload, self.masks() if self.masks is not None else None)


class WsWriter(Pump):
    """From a socket to the WebSocket.

    :ivar over: no more is read: what is written from now on is the end.
    """

    def __init__(
        self, line: Line, source: socket.socket, sink: socket.socket, outward: Outward, session: Session
    ) -> None:
        super().__init__(source, sink)
        self.over = False
        self._line = line
        self._outward = outward
        self._session = session
        self._unsent = b""
        self._pong: bytes | None = None
        self._packets = PacketTaker() if source.type == socket.SOCK_SEQPACKET else None
        self._closing = False

    @property
    def holds(self) -> bool:
        """See :attr:`Pump.holds`."""
        return bool(self._unsent) or self._line.holds or self._pong is not None

    def preface(self, data: bytes) -> None:
        """Send *data* in front of everything: the answer to the handshake."""
        self._unsent = data + self._unsent

    def ping(self) -> bool:
        """Ask whether anybody is there, if there is room for the question; tell whether there was.

        :raises OSError: the sink is broken.
        """
        if self.holds:
            return False
        self._unsent = self._session.control(PING)
        self.empty()
        return True

    def pong(self, payload: bytes) -> None:
        """Answer a ping; of several that wait, only the last is answered (RFC 6455, 5.5.3).

        :raises OSError: the sink is broken.
        """
        held, self._pong = self.holds, payload
        if not held:  # else it goes with what waits, in this pump's own turn, which reads on behind it
            self.empty()

    def fill(self) -> int:
        """See :meth:`Pump.fill`."""
        if self._unsent or self._line.holds or self._pong is not None:
            return NOTHING
        if self.over:
            return 0
        if self._outward.is_full:
            return self._take(b"")
        try:
            data = self.source.recv(READ_BYTES, _NOW) if self._packets is None else self._packets.take(self.source)
        except BlockingIOError:
            return NOTHING
        except Untranslatable as e:
            raise self._unfit(str(e)) from None
        if not data:
            if self._outward.pending:
                raise self._unfit("the service ended in the middle of a message")
            return 0
        return self._take(data)

    def _take(self, data: bytes) -> int:
        """Make frames of *data*, and of what is left of the read before; return more than 0."""
        outward = self._outward
        try:
            self._unsent = outward.frames(data)
        except FramingError as e:
            raise self._unfit(f"what the service sent is no message: {e}") from None
        self.is_heavy = outward.is_full
        return len(data) or 1

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        moved = False
        line = self._line
        if line.holds and not line.flush():
            return False
        while True:
            if not self._unsent:
                if self._pong is None:
                    return moved
                self._unsent, self._pong = self._session.control(PONG, self._pong), None
            unsent = self._unsent
            count = line.send(unsent)
            if not count:
                return moved
            self.moved += count
            moved = True
            self._unsent = unsent[count:] if count < len(unsent) else b""
            if line.holds:
                return moved

    def pass_end(self) -> bool:
        """See :meth:`Pump.pass_end`: a Close; the connection stays until the far side's has come."""
        session = self._session
        if session.said is None:
            session.said = session.code
            self._unsent += session.control(CLOSE, close_payload(session.code, session.reason))
            self._closing = True
        self.empty()
        return not self.holds

    def end_line(self) -> None:
        """Say that nothing more comes, behind a Close.

        :raises OSError: the sink is broken.
        """
        self._line.end()

    def wants(self, sock: socket.socket, events: int) -> bool:
        """See :meth:`Pump.wants`."""
        if sock is self.source:
            return bool(events & ~OUT)
        return (self._closing or self.holds) and self._line.writes(events)

    def drop(self) -> None:
        """See :meth:`Pump.drop`; what has begun to go has to go on."""

    def _unfit(self, text: str) -> Untold:
        return Untold(SERVICE_DIED, text)


class WsReader(Pump):
    """From the WebSocket to a socket.

    :ivar deaf: what comes goes nowhere: only the end of it is waited for.
    :ivar over: nothing is waited for any more.
    """

    def __init__(
        self,
        line: Line,
        source: socket.socket,
        sink: socket.socket,
        decoder: FrameDecoder,
        inward: Inward,
        session: Session,
        writer: WsWriter,
        *,
        framed: bool = False,
    ) -> None:
        """*framed*: write each message by itself, when the last was taken."""
        super().__init__(source, sink)
        self.deaf = False
        self.over = False
        self._line = line
        self._decoder = decoder
        self._inward = inward
        self._session = session
        self._writer = writer
        self._queue: deque[bytes] = deque()
        self._framed = framed
        self._in_part = False
        if sink.type == socket.SOCK_SEQPACKET:
            grow(sink)

    @property
    def holds(self) -> bool:
        """See :attr:`Pump.holds`."""
        return bool(self._queue)

    @property
    def goes_on(self) -> bool:
        """Whether :meth:`fill` has something to tell that no event will announce."""
        session = self._session
        is_due = session.heard is not None or session.fault is not None
        return is_due or self._decoder.is_full or self._line.has_more

    def has_more(self) -> bool:
        """See :meth:`Pump.has_more`."""
        return self._decoder.is_full or super().has_more()

    def told(self, events: int) -> None:
        """Hear of events of the far side's socket, before :meth:`fill`."""
        self._line.told(events)

    def fill(self) -> int:
        """See :meth:`Pump.fill`."""
        if self._queue:
            return NOTHING
        session = self._session
        if session.heard is not None or self.over:
            return 0
        if session.fault is not None and not self.deaf:
            raise Untold(session.fault.code, str(session.fault))
        decoder = self._decoder
        data = b""
        if not decoder.is_full:
            try:
                data = self._line.recv()
            except BlockingIOError:
                return NOTHING
            if not data:
                if session.said is not None:
                    return 0
                raise Broken("cut off", "the connection ended without a Close")
        session.alive = True
        frames = decoder.feed(data)
        self.is_heavy = decoder.is_full
        self._hear(frames)
        if decoder.error is not None:
            session.fault = session.fault or decoder.error
        if frames and not self.deaf:
            try:
                self._queue.extend(self._inward.pieces(frames))
            except FramingError as e:
                raise Untold(PROTOCOL_ERROR, str(e)) from None
        return len(data) or 1

    def _hear(self, frames: list[Frame]) -> None:
        """Look at the control frames among *frames*; take away what stands behind a Close, where nothing counts."""
        session = self._session
        asked: bytes | None = None
        for at, (kind, payload) in enumerate(frames):
            if kind == PING:
                asked = payload
            elif kind == CLOSE:
                try:
                    session.heard = parse_close(payload)
                except WsError as e:
                    session.fault = session.fault or e
                del frames[at:]
                break
        # Of several the last is answered: each answer is a system call.
        if asked is not None and session.said is None and session.heard is None:
            self._writer.pong(asked)

    def empty(self) -> bool:
        """See :meth:`Pump.empty`."""
        moved = False
        queue = self._queue
        while queue:
            piece = queue[0]
            if self._framed and not self._in_part and kernel.is_untaken(self.sink.fileno()):
                break
            try:
                count = self.sink.send(piece, _SEND)
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno in (errno.EMSGSIZE, errno.ENOBUFS):  # than the buffer, or than the kernel makes any
                    raise Untold(TOO_BIG, f"a message of {len(piece)} bytes does not fit into a packet") from None
                raise
            self.moved += count
            moved = True
            self._in_part = count < len(piece)
            if self._in_part:
                queue[0] = piece[count:]
                break
            queue.popleft()
        return moved

    def pass_end(self) -> bool:
        """See :meth:`Pump.pass_end`; to who is gone nothing can be passed."""
        return True if self.deaf else super().pass_end()

    def wants(self, sock: socket.socket, events: int) -> bool:
        """See :meth:`Pump.wants`."""
        if sock is self.source:
            self._line.told(events)
            return self._line.reads(events)
        return bool(events & OUT) and bool(self._queue)

    def drop(self) -> None:
        """See :meth:`Pump.drop`."""
        self._queue.clear()
