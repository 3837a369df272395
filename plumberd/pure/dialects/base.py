"""What every dialect is made of: requests, answers, decoders and their errors."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from plumberd.pure.shape import SocketType


class Malformed(Exception):
    """The client broke its dialect; the message says what was wanted and what was found.

    Nothing that follows on that connection can be understood.
    """


@dataclass(frozen=True)
class Request:
    """One request of a local client.

    :ivar op: ``lookup`` or, on the native socket, another operation.
    :ivar service: the wanted service, well-formed and not reserved; ``None`` for a
        lookup that names none and for other operations.
    :ivar pairs: the lookup's own routes.
    :ivar uri: the address of a lookup that names no service.
    :ivar type: the socket that is wanted, where the dialect lets the client say.
    :ivar ident: the client's own mark, echoed in the answer.
    :ivar members: what other operations bring, each of the type that the dialect has checked.
    """

    op: str
    service: str | None = None
    pairs: Pairs = field(default_factory=Pairs)
    uri: str | None = field(default=None, repr=False)
    ident: str | int | None = None
    type: SocketType | None = None
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Send:
    """Bytes to send at once, in one system call.

    :ivar descriptor: whether the granted descriptor is attached to the first of them.
    """

    data: bytes
    descriptor: bool = False


class Decoder(Protocol):
    """Cuts requests out of a stream of bytes, however they are dealt out."""

    def feed(self, data: bytes) -> Iterator[Request | Refused]:
        """Take *data*, yield the requests that are complete.

        A request that was understood as one, and has to be refused, comes as a
        :class:`Refused`; the stream goes on behind it.

        :raises Malformed: where the stream cannot go on.
        """

    @property
    def pending(self) -> bool:
        """Whether a request has begun and is not complete."""


@dataclass(frozen=True)
class Refused:
    """A request that the codec itself refuses: its name is reserved, a member is of a wrong type."""

    word: Refusal
    reason: str
    ident: str | int | None = None


class Grant(Protocol):
    """What to send when a descriptor is there."""

    def __call__(self, request: Request, mode: str, rule: str, message_bytes: int = 0) -> tuple[Send, ...]:
        """*message_bytes*: the longest message that goes through, where that is known; else 0."""


Refuse = Callable[[str | int | None, Refusal, str], bytes]
"""``refuse(ident, word, reason)``: what to send instead."""


class FrameDecoder(ABC):
    """Cuts frames with a big-endian 32-bit length out of a stream.

    :ivar header: a :mod:`struct` format whose one ``I`` is the payload's length.
    """

    header = struct.Struct(">I")

    def __init__(self, limit: int) -> None:
        """*limit* is the longest payload in bytes."""
        self._limit = limit
        self._buffer = b""

    @property
    def pending(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Request | Refused]:
        """See :meth:`Decoder.feed`."""
        buffer = self._buffer + data if self._buffer else data
        size = self.header.size
        while len(buffer) >= size:
            length = self.length(self.header.unpack_from(buffer))
            if length > self._limit:
                raise Malformed(f"a message of {length} bytes: at most {self._limit} are accepted")
            if len(buffer) < size + length:
                break
            payload = buffer[size : size + length]
            buffer = self._buffer = buffer[size + length :]
            yield self.request(payload)
        self._buffer = buffer

    def length(self, fields: tuple[int, ...]) -> int:
        """Return the payload's length out of the header's fields.

        :raises Malformed: where another field has a value that makes no sense.
        """
        return fields[0]

    @abstractmethod
    def request(self, payload: bytes) -> Request | Refused:
        """Turn a payload into a request."""
