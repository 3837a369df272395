"""The message formats of every generation of libipc: bytes in, messages out, and back. Standard library alone.

    decoder = Decoder("libipc-zig")
    while data := sock.recv(65536):
        for message in decoder.feed(data):
            sock.sendall(encode("libipc-zig", message))

=================================================  ==============================================================
framing                                            one message
=================================================  ==============================================================
``libipc-2019``, ``libipc-2020``, ``libipc-2023``  type 1 byte, length 4 bytes big endian, user type 1 byte, payload
``libipc-zig``                                     length 4 bytes big endian, payload
``raw``                                            whatever one read brings
=================================================  ==============================================================

The length is the payload's. Services of ``libipc-2019`` and ``libipc-2020``
listen on SOCK_SEQPACKET, where one message is one packet; all others on
SOCK_STREAM, where it may arrive in any pieces. The formats are facts, read off
the traffic of the programs themselves.

Nothing here does input or output. :class:`Decoder` makes messages of a stream,
:func:`decode_packet` one of a packet, and :class:`FrameCutter` leaves them as
they are: it cuts a stream into the very bytes that would be packets.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

LIMIT_BYTES = 2_000_000
"""Longest payload where nobody says otherwise: what libipc's own programs take with one read."""

DATA = 2
"""The type of a data message, in the framings that have types."""

LOOKUP = 3
"""The type of a question to the broker, and the user type that goes with it."""

_TYPED = struct.Struct(">BIB")
"""Type, payload's length, user type."""

_LENGTH = struct.Struct(">I")
_LENGTH_MAX = 2**32 - 1
_BYTE_MAX = 255


class FramingError(ValueError):
    """A message that its framing cannot carry, or bytes that are none; the message says what was found."""


class Framing(enum.Enum):
    """A way to mark where messages end. ``Framing("libipc-zig")`` finds one by its name."""

    RAW = "raw"
    LIBIPC_2019 = "libipc-2019"
    LIBIPC_2020 = "libipc-2020"
    LIBIPC_2023 = "libipc-2023"
    LIBIPC_ZIG = "libipc-zig"

    @property
    def typed(self) -> bool:
        """Whether a message carries its type and a user type."""
        return self in _TYPED_ONES

    @property
    def header_bytes(self) -> int:
        """How many bytes stand in front of a payload."""
        if self is Framing.RAW:
            return 0
        return _TYPED.size if self.typed else _LENGTH.size

    @property
    def packets(self) -> bool:
        """Whether its programs use SOCK_SEQPACKET, one packet a message."""
        return self in (Framing.LIBIPC_2019, Framing.LIBIPC_2020)

    def socket_name(self, service: str) -> str:
        """Return the name of the socket in the run directory on which its programs expect *service*."""
        return f"{service}-0-0" if self is Framing.LIBIPC_2019 else service

    @classmethod
    def _missing_(cls, value: object) -> Framing:
        raise ValueError(f"{value!r} is no framing: wanted one of {', '.join(one.value for one in cls)}")


_TYPED_ONES = frozenset((Framing.LIBIPC_2019, Framing.LIBIPC_2020, Framing.LIBIPC_2023))


@dataclass(frozen=True)
class Message:
    """One message.

    :ivar payload: its bytes.
    :ivar user_type: 0 to 255, for the programs' own use; ``libipc-zig`` and ``raw`` have no place for it.
    :ivar kind: its type, 0 to 255, likewise: :data:`DATA` or, to a broker, :data:`LOOKUP`.
    :raises FramingError: for a type that does not fit into its byte.
    """

    payload: bytes
    user_type: int = 0
    kind: int = DATA

    def __post_init__(self) -> None:
        for name, value in (("user_type", self.user_type), ("kind", self.kind)):
            if not 0 <= value <= _BYTE_MAX:
                raise FramingError(f"{name} {value}: wanted 0 to {_BYTE_MAX}")


def encode(framing: Framing | str, message: Message) -> bytes:
    """Return the bytes of *message*; on SOCK_SEQPACKET they are one packet, to be sent at once.

    A framing that has no types leaves :attr:`Message.user_type` and :attr:`Message.kind` out.

    :raises FramingError: for a payload whose length does not fit into the header.
    :raises ValueError: for a *framing* that does not exist.
    """
    framing = Framing(framing)
    length = len(message.payload)
    if framing is Framing.RAW:
        return message.payload
    if length > _LENGTH_MAX:
        raise FramingError(f"a message of {length} bytes: the header has room for {_LENGTH_MAX}")
    if framing.typed:
        return _TYPED.pack(message.kind, length, message.user_type) + message.payload
    return _LENGTH.pack(length) + message.payload


def decode_packet(framing: Framing | str, packet: bytes) -> Message:
    """Return the message that is *packet*, the whole of it.

    An empty packet, which in ``raw`` is a message, looks like the end of the connection to who
    receives it: that is for the caller to tell.

    :raises FramingError: where the packet is no message: too short for a header, or of another
        length than its header says.
    :raises ValueError: for a *framing* that does not exist.
    """
    framing = Framing(framing)
    size = framing.header_bytes
    if len(packet) < size:
        raise FramingError(f"a packet of {len(packet)} bytes: a header alone has {size}")
    kind, length, user_type = DATA, len(packet), 0
    if framing.typed:
        kind, length, user_type = _TYPED.unpack_from(packet)
    elif size:
        (length,) = _LENGTH.unpack_from(packet)
    if len(packet) != size + length:
        raise FramingError(f"a packet with {len(packet) - size} bytes behind its header, which announces {length}")
    return Message(packet[size:], user_type, kind)


class FrameCutter:
    """Cuts a stream into whole frames and leaves them unchanged: put together again, they are the stream.

    It holds one frame that is not whole, of at most *limit_bytes* and its header. In ``raw`` there
    are no frames: what is fed comes out at once, in pieces of at most *limit_bytes*.
    """

    def __init__(self, framing: Framing | str, limit_bytes: int = LIMIT_BYTES) -> None:
        """*limit_bytes* is the longest payload.

        :raises ValueError: for a *framing* that does not exist, or a limit below 1.
        """
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes {limit_bytes}: wanted at least 1")
        framing = Framing(framing)
        self._size = framing.header_bytes
        self._length_at = 1 if framing.typed else 0
        self._limit = limit_bytes
        self._buffer = bytearray()
        self._error: FramingError | None = None

    @property
    def pending(self) -> bool:
        """Whether a frame has begun and is not whole: the stream should not end here."""
        return bool(self._buffer)

    @property
    def error(self) -> FramingError | None:
        """Why the stream cannot be cut any further; the next :meth:`feed` raises it."""
        return self._error

    def feed(self, data: bytes, most: int | None = None) -> list[bytes]:
        """Take *data*; return the frames that are whole by now.

        Frames in front of a broken one come out first: then the error is there in :attr:`error`,
        and raised by the next call.

        :param most: cut so many at most. The others stay here until the next call, which may bring
            no data: feed on only when one has returned fewer, or what is held grows.
        :raises FramingError: where the stream cannot be cut any further.
        """
        if self._error is not None:
            raise self._error
        frames = self._cut(data, most)
        if self._error is not None and not frames:
            raise self._error
        return frames

    def _cut(self, data: bytes, most: int | None = None) -> list[bytes]:
        size, limit = self._size, self._limit
        if not size:
            return [data[at : at + limit] for at in range(0, len(data), limit)]
        frames: list[bytes] = []
        at = 0
        self._buffer += data
        with memoryview(self._buffer) as view:
            while len(view) - at >= size and (most is None or len(frames) < most):
                (length,) = _LENGTH.unpack_from(view, at + self._length_at)
                if length > limit:
                    self._error = FramingError(f"a message of {length} bytes: at most {limit} are accepted")
                    break
                end = at + size + length
                if end > len(view):
                    break
                frames.append(bytes(view[at:end]))
                at = end
        if self._error is None:
            del self._buffer[:at]
        else:
            self._buffer.clear()
        return frames


class Decoder:
    """Makes messages of a stream, however its bytes are dealt out."""

    def __init__(self, framing: Framing | str, limit_bytes: int = LIMIT_BYTES) -> None:
        """*limit_bytes* is the longest payload; see :class:`FrameCutter` for ``raw``.

        :raises ValueError: for a *framing* that does not exist, or a limit below 1.
        """
        self._framing = Framing(framing)
        self._cutter = FrameCutter(self._framing, limit_bytes)
        self._frames: deque[bytes] = deque()

    @property
    def pending(self) -> bool:
        """Whether a message has begun and is not complete, or was not asked for yet."""
        return bool(self._frames) or self._cutter.pending

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take *data* at once; yield the messages that are complete.

        What is not asked for stays, and comes with the next call.

        :raises FramingError: while iterating, behind the last good message, where the stream cannot
            go on; and so does every further call.
        """
        if self._cutter.error is None:
            self._frames.extend(self._cutter._cut(data))
        return self._messages()

    def _messages(self) -> Iterator[Message]:
        while self._frames:
            yield decode_packet(self._framing, self._frames.popleft())
        if self._cutter.error is not None:
            raise self._cutter.error
