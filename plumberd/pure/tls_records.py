"""The record layer of TLS 1.3, for a connection whose handshake is over (RFC 8446, 5).

One object protects what one side says, another reads what the other side says;
both change their keys when they are told to. What makes their keys is OpenSSL's:
it has led the handshake, and what it has proved stays proved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

HEADER_BYTES = 5
CONTENT_BYTES = 16384  # RFC 8446, 5.1
RECORD_BYTES = HEADER_BYTES + CONTENT_BYTES + 256  # 5.2
"""The longest record that is accepted, header and all."""

OVERHEAD_BYTES = HEADER_BYTES + 1 + 16
"""What a record has beside its content: the header, the content's type and the tag."""

RECORDS_A_KEY = 1 << 24
"""After so many records there are new keys, short of what AES-GCM bears (RFC 8446, 5.5)."""

MOST_IN_VAIN = 1024
"""So many records may bring nothing of the stream: empty ones, tickets, new keys. Each costs time.

Java asks for new keys with each record that is under way when its limit is reached: hundreds of times.
"""

PAYING_BYTES = 512
"""… and for each time so many bytes are carried, one more."""

MOST_RECORDS = 256
"""So many are read at once: about a millisecond, whatever is in them."""

HELLO_BYTES = 1 << 14
"""Of a longer hello nobody looks for what it asks for."""

MOST_MESSAGE_BYTES = 1 << 16
"""The longest message behind the handshake, of which only tickets are long; they are not kept."""

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23  # B.1
_TICKET, _KEY_UPDATE = 4, 24  # B.3
_CLOSE_NOTIFY, _USER_CANCELED = 0, 90  # B.2
UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, ILLEGAL_PARAMETER, DECODE_ERROR = 10, 20, 22, 47, 50
_HEADER = b"\x17\x03\x03"
_TYPES = {kind: bytes((kind,)) for kind in (ALERT, HANDSHAKE, DATA)}


class Unreadable(Exception):
    """What came is no record of this connection, or has no place in it.

    :ivar alert: what the far side is to be told (RFC 8446, 6.2).
    """

    def __init__(self, alert: int, text: str) -> None:
        super().__init__(text)
        self.alert = alert


class Alerted(Exception):
    """The far side has broken off; *alert* says why (RFC 8446, 6.2)."""

    def __init__(self, alert: int) -> None:
        super().__init__(f"alert {alert}")
        self.alert = alert


@dataclass(frozen=True)
class Suite:
    """What protects records (RFC 8446, B.4)."""

    hash: Callable[[bytes], Any]
    block_bytes: int
    hash_bytes: int
    key_bytes: int
    aead: type[Any]


SUITES = {
    "TLS_AES_128_GCM_SHA256": Suite(hashlib.sha256, 64, 32, 16, AESGCM),
    "TLS_AES_256_GCM_SHA384": Suite(hashlib.sha384, 128, 48, 32, AESGCM),
    "TLS_CHACHA20_POLY1305_SHA256": Suite(hashlib.sha256, 64, 32, 32, ChaCha20Poly1305),
}

_INNER, _OUTER = (bytes(one ^ pad for one in range(256)) for pad in (0x36, 0x5C))  # RFC 2104, 2


def expand(suite: Suite, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label without a context, for no more than one block (RFC 8446, 7.1; RFC 5869, 2.3)."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\0\1"
    # HMAC (RFC 2104), written out: the library's costs 10 microseconds a call, of which a connection has four.
    key = secret.ljust(suite.block_bytes, b"\0")
    inner = suite.hash(key.translate(_INNER) + info).digest()
    expanded: bytes = suite.hash(key.translate(_OUTER) + inner).digest()
    return expanded[:length]


class _Protection:
    """The keys of one direction."""

    __slots__ = ("_aead", "_iv", "_secret", "_sequence", "_suite")

    def __init__(self, suite: Suite, secret: bytes, sequence: int = 0) -> None:
        self._suite = suite
        self._begin(secret)
        self._sequence = sequence

    def _begin(self, secret: bytes) -> None:
        suite = self._suite
        self._secret = secret
        self._aead = suite.aead(expand(suite, secret, b"key", suite.key_bytes))
        self._iv = int.from_bytes(expand(suite, secret, b"iv", 12), "big")
        self._sequence = 0

    def update(self) -> None:
        """Go on to the next keys (RFC 8446, 7.2); the old ones are forgotten."""
        self._begin(expand(self._suite, self._secret, b"traffic upd", self._suite.hash_bytes))


class Sealer(_Protection):
    """Protects what this side says."""

    __slots__ = ("_most",)

    def __init__(self, suite: Suite, secret: bytes, sequence: int = 0, most: int = CONTENT_BYTES) -> None:
        """*secret* is the traffic secret of this direction, *sequence* how many records it has protected already.

        :param most: bytes in a record.
        """
        super().__init__(suite, secret, sequence)
        self._most = most

    def seal(self, kind: int, content: bytes) -> bytes:
        """Return one record."""
        header = _HEADER + (len(content) + 17).to_bytes(2, "big")
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        sealed: bytes = self._aead.encrypt(nonce, content + _TYPES[kind], header)
        return header + sealed

    def seal_into(self, data: memoryview, start: int, stop: int, out: memoryview) -> int:
        """Write records of ``data[start:stop]`` to *out*, which has room, and return their length.

        ``data[stop]`` has to be there: the byte behind each piece is another one for a moment.
        """
        at, seal, iv, sequence = 0, self._aead.encrypt_into, self._iv, self._sequence
        most = self._most
        while start < stop:
            end = min(start + most, stop)
            length = end - start + 17
            header = _HEADER + length.to_bytes(2, "big")
            out[at : at + HEADER_BYTES] = header
            at += HEADER_BYTES
            behind, data[end] = data[end], DATA
            seal((iv ^ sequence).to_bytes(12, "big"), data[start : end + 1], header, out[at : at + length])
            data[end] = behind
            sequence += 1
            at += length
            start = end
        self._sequence = sequence
        return at

    @property
    def is_worn(self) -> bool:
        """Whether it is time for new keys."""
        return self._sequence >= RECORDS_A_KEY

    def seal_new_keys(self) -> bytes:
        """Return the record that announces this side's new keys, and go on with those (RFC 8446, 4.6.3)."""
        record = self.seal(HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, 0)))
        self.update()
        return record


class Opener(_Protection):
    """Reads what the far side says.

    :ivar fault: why it cannot go on; everything before that has been read.
    :ivar ended: it has said that nothing more comes; what comes all the same is not read.
    :ivar owes_keys: it wants this side to have new keys before that speaks again.
    """

    __slots__ = ("_is_client", "_message", "_vain", "ended", "fault", "owes_keys")

    def __init__(self, suite: Suite, secret: bytes, *, is_client: bool) -> None:
        """*secret* is the traffic secret of the direction; a client is sent tickets, a server is not."""
        super().__init__(suite, secret)
        self._is_client = is_client
        self._message = b""
        self._vain = 0
        self.fault: Unreadable | Alerted | None = None
        self.ended = False
        self.owes_keys = False

    def open_into(
        self, raw: memoryview, start: int, stop: int, out: memoryview, at: int, left: int = MOST_RECORDS
    ) -> tuple[int, int, int]:
        """Read whole records out of ``raw[start:stop]``, and write their content to *out*, from *at* on.

        It stops before a record that is not whole, or that *out* has no room for, behind *left* of them, and
        behind the last one where something has ended it: :attr:`ended` or :attr:`fault`.

        :return: where the rest of *raw* begins, where the content ends, and how many records more it would have read.
        """
        try:
            while left and stop - start >= HEADER_BYTES and not self.ended and self.fault is None:
                left -= 1
                body = start + HEADER_BYTES
                length = self._length(raw, start)
                end, plain = body + length, at + length - 16
                if end > stop or plain > len(out):
                    left += 1
                    break
                nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
                self._aead.decrypt_into(nonce, raw[body:end], raw[start:body], out[at:plain])
                self._sequence += 1
                start = end
                if out[plain - 1] == DATA and 1 < plain - at <= CONTENT_BYTES + 1 and not self._message:
                    if self._vain:
                        self.pay(plain - 1 - at)
                    at = plain - 1
                else:
                    at += self._other(bytes(out[at:plain]))
        except InvalidTag:
            self.fault = Unreadable(BAD_RECORD_MAC, "a record that was changed on the way")
        except (Unreadable, Alerted) as e:
            self.fault = e.with_traceback(None)
        return start, at, left

    def pay(self, count: int) -> None:
        """Let *count* bytes that were carried, either way, make up for records that bring nothing."""
        self._vain = max(self._vain - count // PAYING_BYTES, 0)

    @staticmethod
    def _length(raw: memoryview, start: int) -> int:
        """Return how long the record is that begins at *start*, without its header."""
        length = raw[start + 3] << 8 | raw[start + 4]
        if raw[start] != DATA or raw[start + 1] != 3:
            raise Unreadable(UNEXPECTED_MESSAGE, f"a record of type {raw[start]}, which is not protected")
        if length > RECORD_BYTES - HEADER_BYTES:
            raise Unreadable(RECORD_OVERFLOW, f"a record of {length} bytes")
        if length < 17:
            raise Unreadable(DECODE_ERROR, f"a record of {length} bytes")
        return length

    def _other(self, plain: bytes) -> int:
        """Take a record that is padded, empty or no data; return how many bytes of the stream it has brought."""
        if len(plain) > CONTENT_BYTES + 1:  # RFC 8446, 5.4: with its type and its padding
            raise Unreadable(RECORD_OVERFLOW, f"{len(plain) - 1} bytes in a record")
        inner = plain.rstrip(b"\0")
        if not inner:
            raise Unreadable(UNEXPECTED_MESSAGE, "a record without a type")
        kind, content = inner[-1], inner[:-1]
        if kind == DATA and content and not self._message:
            self.pay(len(content))
            return len(content)
        self._vain += 1
        if self._vain > MOST_IN_VAIN:
            raise Unreadable(UNEXPECTED_MESSAGE, "too many records that bring nothing")
        if kind == HANDSHAKE and content:
            self._messages(content)
        elif self._message:
            raise Unreadable(UNEXPECTED_MESSAGE, "a message that breaks off")
        elif kind == ALERT:
            self._alert(content)
        elif kind != DATA:
            raise Unreadable(UNEXPECTED_MESSAGE, f"a protected record of type {kind}")
        return 0

    def _alert(self, content: bytes) -> None:
        if len(content) != 2:
            raise Unreadable(DECODE_ERROR, f"an alert of {len(content)} bytes")
        if content[1] == _CLOSE_NOTIFY:
            self.ended = True
        elif content[1] != _USER_CANCELED:
            raise Alerted(content[1])

    def _messages(self, content: bytes) -> None:
        buffer = self._message + content
        while len(buffer) >= 4:
            kind, length = buffer[0], int.from_bytes(buffer[1:4], "big")
            if kind not in (_TICKET, _KEY_UPDATE) or (kind == _TICKET and not self._is_client):
                raise Unreadable(UNEXPECTED_MESSAGE, f"a message of type {kind} behind the handshake")
            if length > MOST_MESSAGE_BYTES:
                raise Unreadable(ILLEGAL_PARAMETER, f"a message of {length} bytes behind the handshake")
            if len(buffer) < 4 + length:
                break
            body, buffer = buffer[4 : 4 + length], buffer[4 + length :]
            if kind == _KEY_UPDATE:
                if buffer:  # RFC 8446, 5.1: new keys begin with a record
                    raise Unreadable(UNEXPECTED_MESSAGE, "a message behind the one that changes the keys")
                self._new_keys(body)
        self._message = buffer

    def _new_keys(self, body: bytes) -> None:
        if body not in (b"\0", b"\1"):
            raise Unreadable(ILLEGAL_PARAMETER, "a change of keys that asks for something unknown")
        self.update()
        self.owes_keys |= body == b"\1"


def asked_content_bytes(hello: bytes) -> int:
    """Return how much a record may hold, as the client's first words ask (RFC 6066, 4): small ones read no more.

    Where it was not agreed on, short records are right as well. *hello* is as OpenSSL read it: it has its say
    about what is none.
    """
    if b"\0\1\0\1" not in hello or len(hello) > HELLO_BYTES:
        return CONTENT_BYTES
    # RFC 8446, 4.1.2: the message's header, version and random; then three that have their lengths before them.
    at = 4 + 2 + 32
    for width in (1, 2, 1):
        at += width + int.from_bytes(hello[at : at + width], "big")
    at += 2
    while at + 4 <= len(hello):
        kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        if kind == 1 and length == 1 and hello[at + 4 : at + 5] in (b"\1", b"\2", b"\3", b"\4"):
            return 256 << hello[at + 4]
        at += 4 + length
    return CONTENT_BYTES


def message_of(flight: bytes) -> bytes:
    """Return what plain handshake records hold, one behind the other."""
    at, message = 0, b""
    while at + HEADER_BYTES <= len(flight) and flight[at] == HANDSHAKE:
        end = at + HEADER_BYTES + int.from_bytes(flight[at + 3 : at + 5], "big")
        message += flight[at + HEADER_BYTES : end]
        at = end
    return message
