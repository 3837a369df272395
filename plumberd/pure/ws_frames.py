"""Frames of a WebSocket (RFC 6455, 5): bytes in, messages and control frames out, and back.

It is the path of the data, and the only part of the protocol that is ours: libraries that
carry whole programs make an object of each frame, and none came near (docs/web.md has the
figures). Unmasking is a library's, in C where that is built.

Every buffer has a limit: one message, and one frame's head. Nothing is kept at all where
messages may come out in pieces (:class:`Form`): what has come of a frame comes out.
"""

from __future__ import annotations

import codecs
import enum
from dataclasses import dataclass
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # where the library was installed without its extension
    from websockets.utils import apply_mask

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

START: Final = 0x10
"""No opcode: a large message begins, and the payload here is its length, 8 bytes big endian."""
PIECE: Final = 0x11
"""No opcode: what has come of it."""

FIN: Final = 0x80
MASKED: Final = 0x80

MASK_BYTES = 4
CONTROL_BYTES = 125
"""Longest payload of a control frame (5.5)."""

REASON_BYTES = CONTROL_BYTES - 2
"""Longest reason of a close."""

NORMAL = 1000
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
NO_CODE = 1005
"""What an empty Close counts as; never sent (7.4.1)."""
BAD_DATA = 1007
TOO_BIG = 1009
SERVICE_DIED = 1011
TRY_LATER = 1013

HEADS = 256
"""So many frames are read in one go: one read of a connection may bring thousands of short ones."""

EMPTY_FRAGMENTS = 1024
"""So many of one message. The others are bounded by its length, and these by nothing else."""

_SENDABLE = frozenset((*range(1000, 1004), *range(1007, 1015)))  # 7.4.1, and IANA's registry
_OWN_CODES = range(3000, 5000)  # 7.4.2
_LARGE = 4096
"""From here on a payload is looked at where it lies, and not copied first."""

_FIN_TEXT: Final = FIN | TEXT
_FIN_BINARY: Final = FIN | BINARY

Frame = tuple[int, bytes]
"""Opcode and payload: a whole message as TEXT or BINARY, a control frame; or START, or PIECE."""


class Form(enum.Enum):
    """How messages come out."""

    WHOLE = "whole"
    """Each as one."""
    STARTED = "started"
    """Each as one; a large one that is not in fragments as its length (START), then in pieces as they come."""
    BYTES = "bytes"
    """As bytes (PIECE), whatever the messages are."""


class WsError(ValueError):
    """The peer broke the protocol.

    :ivar code: to close the connection with.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Closing:
    """What a Close says."""

    code: int
    reason: str = ""


def parse_close(payload: bytes) -> Closing:
    """Return what stands in a Close.

    :raises WsError: it is none.
    """
    if not payload:
        return Closing(NO_CODE)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in _SENDABLE or code in _OWN_CODES):
        raise WsError(PROTOCOL_ERROR, "a Close without a code that may be sent")
    try:
        return Closing(code, payload[2:].decode("utf-8"))
    except UnicodeDecodeError:
        raise WsError(BAD_DATA, "a Close whose reason is no UTF-8") from None


def close_payload(code: int, reason: str = "") -> bytes:
    """Return the payload of a Close; a *reason* that is too long is cut."""
    text = reason.encode("utf-8")[:REASON_BYTES].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + text.encode("utf-8")


def head(first: int, length: int, mask: bool = False) -> bytes:
    """Return a frame's first bytes, without the mask: *first* is FIN and opcode."""
    bit = MASKED if mask else 0
    if length < 126:
        return bytes((first, bit | length))
    if length < 65536:
        return bytes((first, bit | 126)) + length.to_bytes(2, "big")
    return bytes((first, bit | 127)) + length.to_bytes(8, "big")


def frame(first: int, payload: bytes, mask: bytes | None = None) -> bytes:
    """Return a whole frame; with *mask*, four random bytes, as clients have to send it."""
    if mask is None:
        return head(first, len(payload)) + payload
    return head(first, len(payload), True) + mask + apply_mask(payload, mask)


class FrameDecoder:
    """Makes messages of a stream of frames, however its bytes are dealt out.

    What stands in front of a mistake comes out first; then :attr:`error` is set, and nothing more comes.

    :ivar error: what the peer did wrong.
    :ivar is_full: it has stopped after :data:`HEADS` frames, and goes on with the next call, which brings no data.
    """

    __slots__ = (
        "_empty",
        "_form",
        "_fragments",
        "_kind",
        "_limit",
        "_mask",
        "_masked",
        "_missing",
        "_opened",
        "_pieces",
        "_rest",
        "_streams",
        "_text",
        "error",
        "is_full",
    )

    def __init__(self, *, masked: bool, limit_bytes: int, form: Form = Form.WHOLE) -> None:
        """Prepare.

        :param masked: whether the peer is a client, whose frames have to be masked (5.1); a server's must not be.
        :param limit_bytes: longest message, but for BYTES.
        """
        self._masked = MASKED if masked else 0
        self._limit = limit_bytes
        self._form = form
        self._rest = b""
        self._opened = 0
        """The first byte of the frame whose payload has not come yet in full."""
        self._missing = 0
        self._mask = b""
        self._streams = False
        """Whether what comes of that frame goes out at once."""
        self._pieces = bytearray()
        self._kind = 0
        """What the message is of which fragments have come, TEXT or BINARY."""
        self._fragments = bytearray()
        self._empty = 0
        """How many of them had no bytes."""
        self._text: codecs.IncrementalDecoder | None = None
        self.error: WsError | None = None
        self.is_full = False

    @property
    def pending_bytes(self) -> int:
        """How much is kept of what has begun."""
        return len(self._rest) + len(self._fragments) + len(self._pieces)

    def feed(self, data: bytes) -> list[Frame]:
        """Take *data*; return the messages (or pieces) and control frames that are complete by now.

        At most :data:`HEADS` at once: see :attr:`is_full`.
        """
        found: list[Frame] = []
        self.is_full = False
        if self.error is None:
            try:
                self._take(data, found)
            except WsError as e:
                self.error = e
                self._rest = b""
                self._pieces.clear()
                self._fragments.clear()
        return found

    def _take(self, data: bytes, found: list[Frame]) -> None:
        if self._missing:
            data = self._collect(data, found)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        at, end, bit = 0, len(data), self._masked
        keeps = self._form is not Form.BYTES
        left = HEADS
        while end - at >= 2:
            if not left:
                self.is_full = True
                break
            left -= 1
            first, length = data[at], data[at + 1]
            if length & MASKED != bit:
                raise WsError(
                    PROTOCOL_ERROR, "a client's frame without mask" if bit else "a server's frame with a mask"
                )
            length &= 0x7F
            start = at + 2
            if length > CONTROL_BYTES:
                size = 2 if length == 126 else 8
                if end - start < size:
                    break
                length = int.from_bytes(data[start : start + size], "big")
                start += size
                if length < (126 if size == 2 else 65536) or length >> 63:
                    raise WsError(PROTOCOL_ERROR, "a length that is not written as short as it can be")
            is_simple = first == _FIN_BINARY and not self._kind
            if not is_simple or length > self._limit:
                self._check(first, length)
            mask = b""
            if bit:
                mask = data[start : start + MASK_BYTES]
                start += MASK_BYTES
                if start > end:
                    break
            stop = start + length
            if stop > end:
                if first & 0x8:
                    break
                self._open(first, length, mask, data[start:], found)
                return
            if length > _LARGE:
                view = memoryview(data)[start:stop]
                payload = apply_mask(view, mask) if bit else bytes(view)
            else:
                payload = data[start:stop]
                if bit:
                    payload = apply_mask(payload, mask)
            at = stop
            if is_simple:
                if keeps:
                    found.append((BINARY, payload))
                elif payload:
                    found.append((PIECE, payload))
            else:
                self._frame(first, payload, found)
        self._rest = data[at:]

    def _check(self, first: int, length: int) -> None:
        """Check the head of a frame."""
        opcode = first & 0xF
        if first & 0x70:
            raise WsError(PROTOCOL_ERROR, "a reserved bit is set, and no extension was agreed on")
        if opcode & 0x8:
            if opcode > PONG:
                raise WsError(PROTOCOL_ERROR, f"opcode {opcode} is none")
            if not first & FIN or length > CONTROL_BYTES:
                raise WsError(PROTOCOL_ERROR, "a control frame in fragments, or of more than 125 bytes")
            return
        if opcode > BINARY:
            raise WsError(PROTOCOL_ERROR, f"opcode {opcode} is none")
        if (opcode == CONTINUATION) != bool(self._kind):
            what = "a message begins within another" if self._kind else "a continuation of nothing"
            raise WsError(PROTOCOL_ERROR, what)
        if self._form is not Form.BYTES and len(self._fragments) + length > self._limit:
            raise WsError(TOO_BIG, f"a message of more than {self._limit} bytes")

    def _open(self, first: int, length: int, mask: bytes, data: bytes, found: list[Frame]) -> None:
        """Begin with a frame whose payload has not come in full."""
        self._opened, self._missing, self._mask = first, length, mask
        self._streams = self._form is Form.BYTES
        if self._form is Form.STARTED and first == _FIN_BINARY and length > _LARGE:
            self._streams = True
            found.append((START, length.to_bytes(8, "big")))
        self._collect(data, found)

    def _collect(self, data: bytes, found: list[Frame]) -> bytes:
        """Take what belongs to the open frame; return what stands behind it."""
        piece = data[: self._missing] if len(data) > self._missing else data
        taken = len(piece)
        self._missing -= taken
        if self._streams:
            if self._masked and piece:
                turn = taken % MASK_BYTES
                piece, self._mask = apply_mask(piece, self._mask), self._mask[turn:] + self._mask[:turn]
            self._part(self._opened, piece, found, ends=not self._missing)
        else:
            self._pieces += piece
            if not self._missing:
                payload = bytes(self._pieces)
                self._pieces.clear()
                self._frame(self._opened, apply_mask(payload, self._mask) if self._masked else payload, found)
        return data[taken:] if len(data) > taken else b""

    def _frame(self, first: int, payload: bytes, found: list[Frame]) -> None:
        """Take a whole frame."""
        opcode = first & 0xF
        if opcode & 0x8:
            found.append((opcode, payload))
        elif self._form is Form.BYTES:
            self._part(first, payload, found, ends=True)
        elif first == _FIN_BINARY:
            found.append((BINARY, payload))
        else:
            kind = opcode or self._kind
            if not first & FIN:
                self._kind = kind
                self._fragments += payload
                self._empty += not payload
                if self._empty > EMPTY_FRAGMENTS:
                    raise WsError(TOO_BIG, f"a message with more than {EMPTY_FRAGMENTS} empty fragments")
                return
            if self._kind:
                self._fragments += payload
                payload = bytes(self._fragments)
                self._fragments.clear()
                self._kind = self._empty = 0
            if kind == TEXT:
                _check_text(payload)
            found.append((kind, payload))

    def _part(self, first: int, payload: bytes, found: list[Frame], *, ends: bool) -> None:
        """Take a piece of a data frame, where pieces come out; *ends*: the frame does."""
        kind = (first & 0xF) or self._kind
        is_last = ends and bool(first & FIN)
        if kind == TEXT:
            self._text = self._text or codecs.getincrementaldecoder("utf-8")()
            try:
                self._text.decode(payload, is_last)
            except UnicodeDecodeError:
                raise WsError(BAD_DATA, "a text message that is no UTF-8") from None
        if payload:
            found.append((PIECE, payload))
        # Another frame of the same message is a continuation; the one that is still open is told by its head.
        if ends:
            self._kind = 0 if is_last else kind
        if is_last:
            self._text = None


def _check_text(payload: bytes) -> None:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise WsError(BAD_DATA, "a text message that is no UTF-8") from None
