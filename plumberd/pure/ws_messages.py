"""Between a WebSocket's messages and the bytes of what is at the other end: a stream or packets, in any framing.

``ipc``: one message of the WebSocket is one message's payload, whatever stands around it there.
``raw``: bytes; where messages begin and end means nothing. A long message on its way to the
WebSocket is cut into fragments as it comes, so nothing has to be kept of it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

from plumberd.framing import DATA, Framing, FramingError, Message, decode_packet, encode
from plumberd.pure.ws_frames import BINARY, CONTINUATION, FIN, PIECE, START, TEXT, Form, Frame, frame, head

LONG_BYTES = 65536
"""A message of a stream that is longer goes on in fragments, as it comes; up to here it is waited for."""

MESSAGES = 256
"""So many go out at once: one read of a service may bring thousands of short ones."""

_LARGE = 4096
"""From here on a payload is not copied before it is joined to its head."""

_TYPED = struct.Struct(">BIB")
_LENGTH = struct.Struct(">I")
_LENGTH_MAX = 2**32 - 1
_HEADS = tuple(bytes((FIN | BINARY, length)) for length in range(126))


class Subprotocol(enum.Enum):
    """What the messages mean."""

    IPC = "ipc"
    """One message is one message."""
    IPC_TEXT = "ipc.text"
    """The same; towards the client those that are UTF-8 are text."""
    RAW = "raw"
    """Bytes."""


Masks = Callable[[], bytes]
"""Gives four random bytes, for each frame of a client."""


def form_of(protocol: Subprotocol, framing: Framing, *, packets: bool) -> Form:
    """Return how messages are wanted that go to a stream, or to *packets*."""
    if protocol is Subprotocol.RAW or (framing is Framing.RAW and not packets):
        return Form.BYTES
    return Form.WHOLE if packets else Form.STARTED


class Inward:
    """From the WebSocket: what to write, for what the decoder of :func:`form_of` has given."""

    __slots__ = ("_framing", "_packets")

    def __init__(self, framing: Framing, *, packets: bool) -> None:
        self._framing = framing
        self._packets = packets

    def pieces(self, frames: list[Frame]) -> list[bytes]:
        """Return what to write, each piece by itself: for packets one packet each, for a stream one in all.

        Control frames are passed over. An empty message has no bytes in ``raw``, and nothing is written of it.

        :raises FramingError: a message that the framing cannot carry.
        """
        framing = self._framing
        if len(frames) == 1:
            # The usual case, by a shorter way.
            ((kind, payload),) = frames
            if kind == PIECE:
                return [payload]
            if framing is Framing.LIBIPC_ZIG and not self._packets and kind in (BINARY, TEXT):
                return [_LENGTH.pack(len(payload)) + payload]
        found: list[bytes] = []
        if framing is Framing.LIBIPC_ZIG and not self._packets:
            pack = _LENGTH.pack
            for kind, payload in frames:
                if kind in (BINARY, TEXT):
                    found.append(pack(len(payload)))
                    found.append(payload)
                elif kind == PIECE:
                    found.append(payload)
                elif kind == START:
                    found.append(self._header(int.from_bytes(payload, "big")))
        else:
            for kind, payload in frames:
                if kind in (BINARY, TEXT):
                    found.append(encode(framing, Message(payload)))
                elif kind == PIECE:
                    found.append(payload)
                elif kind == START:
                    found.append(self._header(int.from_bytes(payload, "big")))
        if self._packets:
            return [one for one in found if one]
        return [b"".join(found)] if found else []

    def _header(self, length: int) -> bytes:
        if length > _LENGTH_MAX:
            raise FramingError(f"a message of {length} bytes: the header has room for {_LENGTH_MAX}")
        if self._framing is Framing.RAW:
            return b""
        return _TYPED.pack(DATA, length, 0) if self._framing.typed else _LENGTH.pack(length)


class Outward:
    """To the WebSocket: frames, for what one read of a stream, or one packet, has brought.

    :ivar is_full: it has stopped after :data:`MESSAGES`, and goes on with the next call, which brings no data.
    """

    __slots__ = (
        "_framing",
        "_is_counted",
        "_is_plain",
        "_is_stream",
        "_left",
        "_limit",
        "_masks",
        "_packets",
        "_rest",
        "_size",
        "_text",
        "_wanted",
        "_whole",
        "is_full",
    )

    def __init__(
        self,
        framing: Framing,
        *,
        packets: bool,
        limit_bytes: int,
        text: bool = False,
        masks: Masks | None = None,
    ) -> None:
        """Prepare.

        :param framing: ``raw``: one read is one message.
        :param packets: whether one packet is one message.
        :param limit_bytes: longest message.
        :param text: send what is UTF-8 as text, the rest as binary.
        :param masks: for the frames of a client.
        """
        self._framing = framing
        self._packets = packets or framing is Framing.RAW
        self._is_stream = framing is Framing.RAW and not packets
        self._limit = limit_bytes
        self._text = text
        self._masks = masks
        self._size = framing.header_bytes
        self._rest = bytearray()
        self._wanted = 0
        """How long the rest has to be for a message to be whole; before that it is not looked at again."""
        self.is_full = False
        self._left = 0
        """How much of a message is still to come whose beginning has gone."""
        self._whole = text or masks is not None
        self._is_plain = framing is Framing.RAW and not self._whole
        self._is_counted = framing is Framing.LIBIPC_ZIG and not (self._whole or packets)

    @property
    def pending(self) -> bool:
        """Whether a message has begun and is not whole: the stream should not end here."""
        return bool(self._rest or self._left)

    def frames(self, data: bytes) -> bytes:
        """Take what one read has brought; return frames, of :data:`MESSAGES` at most: see :attr:`is_full`.

        :raises FramingError: it makes no message, or one that is too long. What stood in front of it is lost with it.
        """
        # The usual cases, by a shorter way: bytes, and one whole message.
        self.is_full = False
        length = len(data)
        if self._is_plain and length <= self._limit:
            return _head(length) + data
        if self._is_counted and not (self._left or self._rest):
            length -= _LENGTH.size
            if 0 <= length <= min(self._limit, _LARGE) and data.startswith(_LENGTH.pack(length)):
                return _head(length) + data[_LENGTH.size :]
        if self._is_stream and length > self._limit:  # bytes: where a message ends means nothing
            return b"".join(self._one(data[at : at + self._limit]) for at in range(0, length, self._limit))
        if self._packets:
            return self._one(decode_packet(self._framing, data).payload)
        out: list[bytes | memoryview] = []
        at = 0
        if self._left:
            at = min(self._left, len(data))
            self._left -= at
            self._put(CONTINUATION if self._left else FIN | CONTINUATION, data, 0, at, out)
        elif self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:
                return b""
            data = bytes(self._rest)
            self._rest.clear()
        self._rest += self._cut(data, at, out)
        return b"".join(out)

    def _cut(self, data: bytes, at: int, out: list[bytes | memoryview]) -> bytes:
        """Put the messages of *data* from *at* on into *out*; return what is left for the next time."""
        size, limit, whole, end = self._size, self._limit, self._whole, len(data)
        offset = 1 if self._framing.typed else 0
        unpack = _LENGTH.unpack_from
        left = MESSAGES
        self._wanted = 0
        while end - at >= size:
            if not left:
                self.is_full = True
                break
            left -= 1
            (length,) = unpack(data, at + offset)
            start = at + size
            stop = start + length
            if length > limit:
                raise FramingError(f"a message of {length} bytes: at most {limit} are carried")
            if stop > end:
                if length <= LONG_BYTES or self._text or start == end:
                    self._wanted = stop - at if start < end else 0
                    break
                self._put(BINARY, data, start, end, out)
                self._left = stop - end
                return b""
            if whole:
                out.append(self._one(data[start:stop]))
            else:
                out.append(_head(length))
                out.append(data[start:stop] if length < _LARGE else memoryview(data)[start:stop])
            at = stop
        return data[at:]

    def _put(self, first: int, data: bytes, start: int, stop: int, out: list[bytes | memoryview]) -> None:
        """Put a frame of a part of *data* into *out*; it is copied when all are joined, and not before."""
        if self._masks is not None:
            out.append(self._frame(first, data[start:stop]))
        else:
            out.append(head(first, stop - start))
            out.append(memoryview(data)[start:stop])

    def _one(self, payload: bytes) -> bytes:
        if len(payload) > self._limit:
            raise FramingError(f"a message of {len(payload)} bytes: at most {self._limit} are carried")
        return self._frame(FIN | (TEXT if self._text and _is_text(payload) else BINARY), payload)

    def _frame(self, first: int, payload: bytes) -> bytes:
        return frame(first, payload, self._masks() if self._masks is not None else None)


def _head(length: int) -> bytes:
    """Return the head of a whole message of a server's."""
    return _HEADS[length] if length < len(_HEADS) else head(FIN | BINARY, length)


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
