"""What goes over the wire of plain UDP where a service is named: the datagrams, one by one.

Every datagram begins with a version and a type, one byte each; numbers are big
endian. docs/protocol.md has the table, and is enough to implement it from.

A caller proves its address before anything is kept for it: its hello is
answered with a cookie, which its open brings back. Both are padded, so that no
answer is longer than what it answers. From then on the session's 64 random bits
stand in front of every datagram.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from plumberd.pure.refusals import Refusal, printable

VERSION = 1

HELLO, COOKIE, OPEN, OK, NO, DATA, END, CLOSE, HERE = range(1, 10)
"""The types. A caller sends HELLO, OPEN and HERE, the called COOKIE, OK and NO, both DATA, END and CLOSE."""

PADDED_BYTES = 128
"""A hello and an open are at least that long, zeros behind the name; nothing that answers them is longer."""

REQUEST_BYTES = 512
"""Nobody has a reason to pad them to more; it costs time to look at."""

NONCE_BYTES = 8
COOKIE_BYTES = 20
SESSION_BYTES = 8

NAME_BYTES = 64
"""Longest name of a service."""

NO_BYTES = PADDED_BYTES - 2 - NONCE_BYTES
"""Longest text of a refusal."""

_NONCE_AT = 2
_HEADER = struct.Struct(">BB8sI")
HEADER_BYTES = _HEADER.size
"""What stands in front of each message: version, type, session, sequence number."""

SEQUENCES = 1 << 32


@dataclass(frozen=True)
class Request:
    """A hello, or an open, which has a cookie.

    :ivar nonce: the caller's own random bits, echoed in every answer.
    :ivar service: the name as it came; nobody has checked it.
    """

    nonce: bytes
    service: str
    cookie: bytes = b""


def hello(nonce: bytes, service: str) -> bytes:
    """Return a caller's first datagram."""
    return _padded(bytes((VERSION, HELLO)) + nonce + _named(service))


def open_(nonce: bytes, cookie: bytes, service: str) -> bytes:
    """Return a caller's second one, which brings the cookie back."""
    return _padded(bytes((VERSION, OPEN)) + nonce + cookie + _named(service))


def cookie(nonce: bytes, text: bytes) -> bytes:
    """Return the answer to a hello."""
    return bytes((VERSION, COOKIE)) + nonce + text


def ok(nonce: bytes, session: bytes) -> bytes:
    """Return the answer to an open that is granted."""
    return bytes((VERSION, OK)) + nonce + session


def no(nonce: bytes, word: Refusal) -> bytes:
    """Return the answer to one that is not."""
    return bytes((VERSION, NO)) + nonce + word.value.encode("ascii")[:NO_BYTES]


def close_unknown(datagram: bytes) -> bytes | None:
    """Return what answers data of a session that does not exist here: its close; nothing for anything else.

    It is never longer than what it answers, and is not itself answered.
    """
    if len(datagram) < HEADER_BYTES or datagram[0] != VERSION or datagram[1] not in (DATA, END, HERE):
        return None
    return _HEADER.pack(VERSION, CLOSE, session_of(datagram), 0)


def session_of(datagram: bytes) -> bytes:
    """Return the session that a datagram of one is of; of any other it means nothing."""
    return datagram[2 : 2 + SESSION_BYTES]


def is_of_session(datagram: bytes) -> bool:
    """Tell whether it belongs to a session at all."""
    return len(datagram) >= HEADER_BYTES and datagram[0] == VERSION and datagram[1] in (DATA, END, CLOSE, HERE)


def parse_request(datagram: bytes) -> Request | None:
    """Return the hello or the open that is *datagram*, or ``None``: then it is not answered.

    Shorter than its padding it is none, for the answer might be longer.
    """
    if not PADDED_BYTES <= len(datagram) <= REQUEST_BYTES or datagram[0] != VERSION:
        return None
    at = _NONCE_AT + NONCE_BYTES
    nonce, text = datagram[_NONCE_AT:at], b""
    if datagram[1] == OPEN:
        text = datagram[at : at + COOKIE_BYTES]
        at += COOKIE_BYTES
    elif datagram[1] != HELLO:
        return None
    length = datagram[at]
    name = datagram[at + 1 : at + 1 + length]
    if not 0 < length <= NAME_BYTES or len(name) != length or any(datagram[at + 1 + length :]):
        return None
    return Request(nonce, name.decode("latin-1"), text)


def other_version(datagram: bytes) -> bytes | None:
    """Return the answer to a hello or an open of another version: ``bad-request``, in this one; or ``None``."""
    if not PADDED_BYTES <= len(datagram) <= REQUEST_BYTES or datagram[0] == VERSION or datagram[1] not in (HELLO, OPEN):
        return None
    return no(datagram[_NONCE_AT : _NONCE_AT + NONCE_BYTES], Refusal.BAD_REQUEST)


@dataclass(frozen=True)
class Reply:
    """What the called side says to a hello or an open.

    :ivar kind: :data:`COOKIE`, :data:`OK` or :data:`NO`.
    :ivar body: the cookie, the session, or the text of the refusal.
    """

    kind: int
    body: bytes

    @property
    def said(self) -> str:
        """A refusal's text, for people."""
        return printable(self.body)


def parse_reply(datagram: bytes, nonce: bytes) -> Reply | None:
    """Return the answer to the request with that *nonce*, or ``None``: somebody else's, or nothing at all."""
    body_at = _NONCE_AT + NONCE_BYTES
    if len(datagram) < body_at or datagram[0] != VERSION or datagram[_NONCE_AT:body_at] != nonce:
        return None
    kind, body = datagram[1], datagram[body_at:]
    if (kind, len(body)) in ((COOKIE, COOKIE_BYTES), (OK, SESSION_BYTES)):
        return Reply(kind, body)
    if kind == NO and len(body) <= NO_BYTES:
        return Reply(kind, body)
    return None


@dataclass
class Counts:
    """What became of the datagrams of one session, or of many.

    :ivar sent, received: messages.
    :ivar lost: that never came, as far as later ones tell.
    :ivar repeated: that came more than once; they are delivered each time.
    :ivar reordered: that came behind a later one; they are delivered as they come.
    :ivar dropped: that came and were not delivered: whoever reads them was too slow, or takes no more, or an END
        had overtaken them, which was passed on; and those that the kernel refused to send.
    :ivar too_large: that did not fit into a datagram of this path, and were not sent.
    """

    sent: int = 0
    received: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    dropped: int = 0
    too_large: int = 0

    def add(self, other: Counts) -> None:
        """Count what *other* has counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


WINDOW = 64
"""How far behind the newest one a datagram is still told to be new or repeated; an older one counts as reordered."""

_WINDOW_MASK = (1 << WINDOW) - 1


class Session:
    """One side of a session: puts its header in front of messages, and counts what comes.

    Nothing is sent again and nothing put in order: that is what UDP is.
    """

    def __init__(self, ident: bytes) -> None:
        """*ident* is the session's 64 random bits."""
        self.ident = ident
        self.counts = Counts()
        self._next = 0
        self._expected = 0
        self._seen = 0
        """Which of the last :data:`WINDOW` before the expected one have come, the newest in the lowest bit."""

    def data(self, message: bytes) -> bytes:
        """Return the datagram of a message; it counts as sent."""
        sequence = self._next
        self._next = (sequence + 1) % SEQUENCES
        self.counts.sent += 1
        return _HEADER.pack(VERSION, DATA, self.ident, sequence) + message

    def unsent(self, count: int = 1) -> None:
        """The last *count* datagrams were not sent after all: their numbers are given again."""
        self._next = (self._next - count) % SEQUENCES
        self.counts.sent -= count

    def end(self) -> bytes:
        """Return what tells that no more is sent; the other direction goes on."""
        return _HEADER.pack(VERSION, END, self.ident, self._next)

    def close(self) -> bytes:
        """Return what tells that the session is over."""
        return _HEADER.pack(VERSION, CLOSE, self.ident, self._next)

    def here(self) -> bytes:
        """Return what tells that somebody still listens."""
        return _HEADER.pack(VERSION, HERE, self.ident, self._next)

    def is_quoted(self, datagram: bytes) -> bool:
        """Tell whether *datagram*, of which the end may be missing, was one of this session."""
        return datagram[:1] == bytes((VERSION,)) and session_of(datagram) == self.ident

    def receive(self, datagram: bytes) -> tuple[int, bytes] | None:
        """Take a datagram; return its type, :data:`DATA`, :data:`END`, :data:`CLOSE` or :data:`HERE`, and the message.

        ``None`` where it is none of this session.
        """
        if len(datagram) < HEADER_BYTES:
            return None
        version, kind, ident, sequence = _HEADER.unpack_from(datagram)
        if version != VERSION or ident != self.ident:
            return None
        if kind == DATA:
            self._count(sequence)
            return DATA, datagram[HEADER_BYTES:]
        if kind in (END, CLOSE, HERE) and len(datagram) == HEADER_BYTES:
            self._reach(sequence)
            return kind, b""
        return None

    def _count(self, sequence: int) -> None:
        counts = self.counts
        counts.received += 1
        if sequence == self._expected:  # nearly always
            self._expected = (sequence + 1) % SEQUENCES
            self._seen = (self._seen << 1 | 1) & _WINDOW_MASK
            return
        ahead = (sequence - self._expected) % SEQUENCES
        if ahead < SEQUENCES // 2:
            counts.lost += ahead
            self._expected = (sequence + 1) % SEQUENCES
            self._seen = (self._seen << min(ahead + 1, WINDOW) | 1) & _WINDOW_MASK
            return
        behind = SEQUENCES - ahead  # 1 is the newest that has come
        bit = 1 << (behind - 1)
        if behind <= WINDOW and self._seen & bit:
            counts.repeated += 1
            return
        counts.reordered += 1
        counts.lost = max(counts.lost - 1, 0)  # it was only late
        if behind <= WINDOW:
            self._seen |= bit

    def _reach(self, sequence: int) -> None:
        """The far side has sent as many as *sequence* says: what is missing at the end was lost."""
        ahead = (sequence - self._expected) % SEQUENCES
        if 0 < ahead < SEQUENCES // 2:
            self.counts.lost += ahead
            self._expected = sequence
            self._seen = (self._seen << min(ahead, WINDOW)) & _WINDOW_MASK


def _named(service: str) -> bytes:
    name = service.encode("ascii")
    return bytes((len(name),)) + name


def _padded(datagram: bytes) -> bytes:
    return datagram.ljust(PADDED_BYTES, b"\0")
