"""The dialects of libipc's generations: 2019, 2020 and 2023 (C, framed with types), and zig (LibIPC, the current one).

Facts, read off the wire of the programs themselves; docs/protocol.md tells them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from plumberd.pure.dialects.base import FrameDecoder, Malformed, Refused, Request, Send
from plumberd.pure.pairs import parse_lookup
from plumberd.pure.refusals import REASON_BYTES, Refusal
from plumberd.pure.refusals import Refused as RefusedError

_HEADER = struct.Struct(">BIB")
"""Type, payload's length, user type."""

_LOOKUP = 3
"""Type and user type of a lookup."""

_ANSWER = 2
"""Type of the broker's answer, which is an ordinary data message."""

ZIG_REFUSAL_BYTES = 1400
"""Its client reads a refusal with one read of a buffer of that size."""


def _lookup(payload: bytes) -> Request | Refused:
    try:
        service, pairs = parse_lookup(payload)
    except RefusedError as e:
        return Refused(e.word, e.reason)
    return Request("lookup", service, pairs)


class Libipc2023Decoder(FrameDecoder):
    """Type 1 B, length 4 B, user type 1 B, payload."""

    header = _HEADER

    def length(self, fields: tuple[int, ...]) -> int:
        """See :meth:`FrameDecoder.length`."""
        kind, length, user = fields
        if kind != _LOOKUP or user != _LOOKUP:
            raise Malformed(f"a message of type {kind}, user type {user}: a lookup has 3 and 3")
        return length

    def request(self, payload: bytes) -> Request | Refused:
        """See :meth:`FrameDecoder.request`."""
        return _lookup(payload)


class LibipcPacketDecoder:
    """The same message as one packet, for the generations on SOCK_SEQPACKET."""

    pending = False

    def __init__(self, limit: int) -> None:
        """*limit* is the longest payload in bytes."""
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Request | Refused]:
        """See :meth:`plumberd.pure.dialects.base.Decoder.feed`; *data* is one packet."""
        if len(data) < _HEADER.size:
            raise Malformed(f"a packet of {len(data)} bytes: a lookup begins with a header of {_HEADER.size}")
        kind, length, user = _HEADER.unpack_from(data)
        if kind != _LOOKUP or user != _LOOKUP:
            raise Malformed(f"a message of type {kind}, user type {user}: a lookup has 3 and 3")
        if length > self._limit:
            raise Malformed(f"a message of {length} bytes: at most {self._limit} are accepted")
        if length != len(data) - _HEADER.size:
            raise Malformed(f"a packet with {len(data) - _HEADER.size} bytes of payload that announces {length}")
        yield _lookup(data[_HEADER.size :])


class LibipcZigDecoder(FrameDecoder):
    """Length 4 B, payload."""

    def request(self, payload: bytes) -> Request | Refused:
        """See :meth:`FrameDecoder.request`."""
        return _lookup(payload)


def grant_2019(request: Request, mode: str, rule: str, message_bytes: int = 0) -> tuple[Send, ...]:
    """One packet of one byte with the descriptor."""
    return (Send(b"\0", descriptor=True),)


def refuse_2019(ident: str | int | None, word: Refusal, reason: str) -> bytes:
    """Nothing: the connection is closed without a word, and the client goes on to the local service."""
    return b""


def grant_2023(request: Request, mode: str, rule: str, message_bytes: int = 0) -> tuple[Send, ...]:
    """``ok`` in a message (a packet, in 2020); then, when the client has taken that, one byte with the descriptor.

    Its client takes ``ok`` with a plain recv of up to 2 MB: were the byte
    already queued behind it, that recv would swallow it and drop the descriptor.
    """
    return (Send(_HEADER.pack(_ANSWER, 2, 0) + b"ok"), Send(b"\0", descriptor=True))


def refuse_2023(ident: str | int | None, word: Refusal, reason: str) -> bytes:
    """A message whose payload is not two bytes long and ends with a NUL: the client prints it with ``%s``."""
    payload = f"{word.value}: {reason}".encode()[:REASON_BYTES] + b"\0"
    return _HEADER.pack(_ANSWER, len(payload), 0) + payload


def grant_zig(request: Request, mode: str, rule: str, message_bytes: int = 0) -> tuple[Send, ...]:
    """Two raw bytes ``ok`` with the descriptor attached, which its client takes with one recvmsg."""
    return (Send(b"ok", descriptor=True),)


def refuse_zig(ident: str | int | None, word: Refusal, reason: str) -> bytes:
    """Raw ``no <reason>``, then the end of the stream."""
    return f"no {word.value}: {reason}".encode()[:ZIG_REFUSAL_BYTES]
