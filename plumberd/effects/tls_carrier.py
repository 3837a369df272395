"""What carries bytes on a connection whose TLS handshake is over: OpenSSL, or the record layer that is ours.

OpenSSL keeps 16 KiB for every connection and reads each record with two system
calls. In TLS 1.3 nothing is left for it to do behind the handshake but to protect
records; then :class:`Records` takes its place, which keeps the keys alone. TLS 1.2
stays with OpenSSL.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Protocol

from plumberd.effects import openssl
from plumberd.effects.openssl import Buffer
from plumberd.effects.tls_ending import ALERT_REASONS, TlsFault, Want, truncated
from plumberd.pure.tls_records import (
    ALERT,
    CONTENT_BYTES,
    MOST_RECORDS,
    OVERHEAD_BYTES,
    RECORD_BYTES,
    Alerted,
    Opener,
    Sealer,
    Suite,
)

SEAL_BYTES = 8 * 16384
"""So much is protected before it is written: what the socket does not take of it has to be kept."""

HEAD_BYTES = 8192
"""What waits to be written goes together with what comes behind it, if it is no longer than that."""

READ_BYTES = 1 << 16
"""Four records: they cost more than a read does. What is read and has to wait is kept for each connection."""

_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_DONTWAIT = int(socket.MSG_DONTWAIT)
_CLOSE_NOTIFY = b"\1\0"
_FATAL = 2  # RFC 8446, 6

# One thread uses them, and nothing stays in them between two calls.
_read = memoryview(bytearray(READ_BYTES + RECORD_BYTES))
_sealed = memoryview(bytearray(HEAD_BYTES + SEAL_BYTES + SEAL_BYTES // 512 * OVERHEAD_BYTES))


class Carrier(Protocol):
    """Reads and writes; see :class:`plumberd.effects.tls_wire.Wire` for what is the same there.

    :ivar writes_apart: each record is written by itself.
    """

    writes_apart: bool

    def read(self, buffer: Buffer) -> tuple[int, Want | None, OSError | None]:
        """See :func:`plumberd.effects.openssl.read`."""

    def write(self, buffer: Buffer) -> Want | None:
        """See :func:`plumberd.effects.openssl.write`."""

    def close_notify(self) -> Want | None:
        """See :func:`plumberd.effects.openssl.close_notify`."""


class ByOpenSsl:
    """OpenSSL, on the socket itself."""

    __slots__ = ("_ssl",)

    writes_apart = True

    def __init__(self, ssl: Any) -> None:
        self._ssl = ssl

    def read(self, buffer: Buffer) -> tuple[int, Want | None, OSError | None]:
        """See :meth:`Carrier.read`."""
        return openssl.read(self._ssl, buffer)

    def write(self, buffer: Buffer) -> Want | None:
        """See :meth:`Carrier.write`."""
        return openssl.write(self._ssl, buffer)

    def close_notify(self) -> Want | None:
        """See :meth:`Carrier.close_notify`."""
        return openssl.close_notify(self._ssl)


class Records:
    """The record layer of TLS 1.3 on *sock*, which is its caller's, and whose next byte begins a record."""

    __slots__ = ("_gone", "_is_behind", "_is_told", "_opener", "_part", "_sealer", "_sock", "_unsent")

    writes_apart = False

    def __init__(
        self,
        sock: socket.socket,
        suite: Suite,
        ours: bytes,
        theirs: bytes,
        written: int,
        most: int = CONTENT_BYTES,
        *,
        server: bool,
    ) -> None:
        """Take the traffic secrets of both directions, and how many records ours has protected already.

        :param most: bytes in a record that is written.
        """
        self._sock = sock
        self._sealer = Sealer(suite, ours, written, most)
        self._opener = Opener(suite, theirs, is_client=not server)
        self._part = b""  # of a record; or of several, where those before were as many as are read at once
        self._is_behind = False
        self._unsent = b""  # protected, and not taken by the socket
        self._gone = 0  # bytes of what is being written that are protected already
        self._is_told = False

    def read(self, buffer: Buffer) -> tuple[int, Want | None, OSError | None]:
        """See :meth:`Carrier.read`; *buffer* is full when the longest record has no room in it.

        It stops behind :data:`~plumberd.pure.tls_records.MOST_RECORDS` as well: a far side that makes
        records of one byte is not to have this thread for as long as it likes.
        """
        opener, view, begin = self._opener, buffer.view, buffer.end
        fault: OSError | None = None
        want: Want | None = None
        left = MOST_RECORDS
        while left and fault is None and not opener.ended and len(view) - buffer.end >= RECORD_BYTES:
            have = len(self._part)
            _read[:have] = self._part
            if not self._is_behind:
                try:
                    count = self._sock.recv_into(_read[have : have + READ_BYTES], 0, _DONTWAIT)
                except BlockingIOError:
                    want = Want.READ
                    break
                except OSError as e:
                    fault = OSError(e.errno, e.strerror)
                    break
                if not count:
                    fault = truncated()
                    break
                have += count
            rest, buffer.end, left = opener.open_into(_read, 0, have, view, buffer.end, left)
            is_over = opener.ended or opener.fault is not None
            self._part = b"" if is_over else bytes(_read[rest:have])
            self._is_behind = bool(self._part) and (not left or len(view) - buffer.end < RECORD_BYTES)
            if opener.fault is not None:
                fault = self._told(opener.fault)
            elif not left and buffer.end == begin:
                left = MOST_RECORDS  # nothing would look like the end; how much may bring nothing is limited
        return buffer.end - begin, want, fault

    def _told(self, why: Alerted | Exception) -> TlsFault:
        """Tell the far side, unless it was that which broke off, as far as that can be done now."""
        if isinstance(why, Alerted):
            return TlsFault("broken off", ALERT_REASONS + why.alert, str(why))
        alert = getattr(why, "alert", 80)
        with contextlib.suppress(OSError):
            if not self._unsent:
                self._sock.send(self._sealer.seal(ALERT, bytes((_FATAL, alert))), _SEND)
        return TlsFault("garbled", 0, str(why))

    def write(self, buffer: Buffer) -> Want | None:
        """See :meth:`Carrier.write`."""
        sealer, end = self._sealer, buffer.end
        start = buffer.start + self._gone
        if self._unsent and (self._gone or len(self._unsent) > HEAD_BYTES // 2) and not self._flush():
            return Want.WRITE
        while start < end:
            if self._opener.owes_keys or sealer.is_worn:
                self._opener.owes_keys = False
                self._unsent += sealer.seal_new_keys()
            head = len(self._unsent)
            _sealed[:head] = self._unsent
            self._unsent = b""
            stop = min(start + SEAL_BYTES, end)
            length = head + sealer.seal_into(buffer.whole, start, stop, _sealed[head:])
            start = stop
            self._gone = start - buffer.start
            try:
                sent = self._sock.send(_sealed[:length], _SEND)
            except BlockingIOError:
                sent = 0
            self._opener.pay(sent)
            if sent < length:
                self._unsent = bytes(_sealed[sent:length])
                return Want.WRITE
        self._gone = 0
        return None

    def owe(self, flight: bytes) -> None:
        """Write *flight*, the handshake's last words, in front of what is written first: that comes at once."""
        self._unsent = flight

    def _flush(self) -> bool:
        try:
            sent = self._sock.send(self._unsent, _SEND)
        except BlockingIOError:
            return False
        self._opener.pay(sent)
        self._unsent = self._unsent[sent:]
        return not self._unsent

    def close_notify(self) -> Want | None:
        """See :meth:`Carrier.close_notify`."""
        if not self._is_told:
            self._is_told = True
            self._unsent += self._sealer.seal(ALERT, _CLOSE_NOTIFY)
        return None if not self._unsent or self._flush() else Want.WRITE
