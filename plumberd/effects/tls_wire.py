"""TLS on a connected TCP socket, without waiting.

OpenSSL makes the handshake in memory, and what carries the bytes then is
:mod:`plumberd.effects.tls_carrier`. Whoever watches the socket asks again when
there is something to read or room to write. The two directions end apart: the
far side's close_notify is the end of what it says, ours of what we say. TCP's
end without one is a truncation, and a fault.
"""

from __future__ import annotations

import contextlib
import socket

from cryptography import x509
from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.openssl import Buffer
from plumberd.effects.pumps import NOTHING
from plumberd.effects.tls_carrier import ByOpenSsl, Carrier, Records
from plumberd.effects.tls_ending import TlsFault, Want, truncated
from plumberd.pure.tls_records import (
    DATA,
    HEADER_BYTES,
    HELLO_BYTES,
    RECORD_BYTES,
    SUITES,
    asked_content_bytes,
    message_of,
)

_PEEK = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_DONTWAIT = int(socket.MSG_DONTWAIT)

_peeked = Buffer(1 << 14)
"""What the far side has sent of the handshake, while it is looked at."""


class Wire:
    """One TLS connection. The socket is its caller's, who closes it afterwards.

    :ivar connection: pyOpenSSL's object, for what looks at certificates; ``None`` once it was :meth:`let_go`.
    :ivar psk_identity: the name of the pre-shared key that both sides have proved, if it was one.
    :ivar is_open: the handshake is over.
    :ivar is_drained: the last read has found the socket empty, so that there is nothing before its next edge.
    :ivar reading_waits, writing_waits: what the last call that could not go on waits for. Reading may have
        to write (an answer to the far side's new keys), and the other way round.
    """

    __slots__ = (
        "_ahead",
        "_carrier",
        "_context",
        "_fault",
        "_flights",
        "_hello",
        "_is_hello",
        "_secrets",
        "_sock",
        "_speaks_at_once",
        "_ssl",
        "_unsent",
        "alpn",
        "cipher",
        "connection",
        "is_drained",
        "is_open",
        "psk_identity",
        "reading_waits",
        "server",
        "version",
        "writing_waits",
    )

    def __init__(
        self, connection: SSL.Connection, sock: socket.socket, *, server: bool, speaks_at_once: bool = False
    ) -> None:
        """Take a *connection* on *sock* that has not begun, of :func:`plumberd.effects.openssl.connect`.

        Nothing is sent yet.

        :param speaks_at_once: something is written as soon as the handshake is over; its last words may go with that.
        """
        self._speaks_at_once = speaks_at_once
        self.server = server
        # What TLS calls back stands in the context that it began with, whatever SNI makes of it.
        self._context: SSL.Context | None = connection.get_context()
        self.connection: SSL.Connection | None = connection
        self._ssl = openssl.ssl_of(connection)
        self._sock = sock
        if sock.family != socket.AF_UNIX:
            # What is said behind a flight would wait for the far side's acknowledgement of that, up to 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._forget_named()
        self._flights: openssl.Flights | None = None
        self._secrets: dict[bool, bytes] = {}
        self._hello = b""
        self._is_hello = True
        self._carrier: Carrier | None = None
        self._unsent = self._ahead = b""
        self._fault: OSError | None = None
        self.reading_waits = self.writing_waits = Want.READ
        self.psk_identity: str | None = None
        self.alpn = self.version = self.cipher = ""
        self.is_open = False
        self.is_drained = False

    # -- the handshake

    def handshake(self) -> Want | None:
        """Go on with the handshake; return what it waits for, ``None`` when it is over.

        Exactly its own bytes are taken out of the socket.

        :raises OSError: the socket is broken.
        :raises TlsFault: it has failed; :attr:`verify_error` and :attr:`psk_named` may say why.
        """
        if self.is_open:
            return None
        if self._unsent and not self._flush():
            return Want.WRITE
        if self._carrier is not None:
            self.is_open = True
            return None
        if self._flights is None:
            self._flights = openssl.Flights(self._ssl)
            if not self.server:
                self._shake(self._flights)
        while self._carrier is None and self._read_flight(self._flights):
            pass
        if self._unsent:
            return Want.WRITE
        self.is_open = self._carrier is not None
        return None if self.is_open else Want.READ

    def _read_flight(self, flights: openssl.Flights) -> bool:
        """Give OpenSSL what has come; tell whether there may be more."""
        try:
            count = self._sock.recv_into(_peeked.view, 0, _PEEK)
        except BlockingIOError:
            return False
        if not count:
            raise truncated()
        flights.feed(_peeked, 0, count)
        if self.server and self._is_hello and len(self._hello) < HELLO_BYTES:
            self._hello += _peeked.view[:count]
        unread = 0
        try:
            unread = self._shake(flights)
        finally:
            # Whatever comes of it: what stays unread in a socket makes its close a reset, and our alert would be lost.
            # Only what came behind the handshake stays: that is for the carrier.
            if unread < count:
                self._sock.recv_into(_peeked.view, count - unread, _DONTWAIT)
        return True

    def _shake(self, flights: openssl.Flights) -> int:
        """Let OpenSSL go on with what it has; send what it says.

        :return: how many bytes of what it has came behind the handshake, which is over then.
        """
        try:
            want = openssl.do_handshake(self._ssl)
        except OSError:
            self._secrets.clear()
            self._unsent += flights.take()
            with contextlib.suppress(OSError):
                self._flush()
            raise
        finally:
            noted = openssl.take_secrets()
        self._secrets |= noted
        said = flights.take()
        self._is_hello = self._is_hello and not said
        self._unsent += said
        unread = 0
        if want is None:
            unread = flights.unread()
            self._begin(said)
        if self._unsent:
            try:
                self._flush()
            except OSError:
                if want is not None or not self.server:
                    raise
                # Who has said all that there is to say may be gone before it gets its tickets: what it said counts.
                self._unsent = b""
        return unread

    def _begin(self, last_flight: bytes) -> None:
        """The handshake is over; *last_flight* is what OpenSSL has said since it knew."""
        connection = self.connection
        assert connection is not None
        self.alpn = connection.get_alpn_proto_negotiated().decode("ascii", "replace")
        self.version = connection.get_protocol_version_name()
        self.cipher = connection.get_cipher_name() or ""
        self.psk_identity = self._proved_psk()
        secrets, self._secrets, self._flights = self._secrets, {}, None
        hello, self._hello = self._hello, b""
        if self.version == "TLSv1.3":
            suite = SUITES.get(self.cipher)
            if suite is None or len(secrets) != 2:
                raise TlsFault("broken off", 0, f"the keys of {self.cipher} are not known")
            # A client's last words are still protected as the handshake. A server knows that it is over when it has
            # read those, and what it has said since are its tickets.
            written = count_protected(last_flight) if self.server else 0
            ours, theirs = secrets[self.server], secrets[not self.server]
            most = asked_content_bytes(message_of(hello))
            self._carrier = Records(self._sock, suite, ours, theirs, written, most, server=self.server)
            if self._speaks_at_once:
                self._carrier.owe(self._unsent)
                self._unsent = b""
        else:
            openssl.use_socket(self._ssl, self._sock.fileno())
            self._carrier = ByOpenSsl(self._ssl)

    def _flush(self) -> bool:
        try:
            sent = self._sock.send(self._unsent, _SEND)
        except BlockingIOError:
            return False
        self._unsent = self._unsent[sent:]
        return not self._unsent

    def let_go(self) -> None:
        """Forget what only the handshake needed: what the far side has shown is not known any more."""
        if isinstance(self._carrier, Records):
            self.connection = self._ssl = self._context = None

    # -- behind it

    @property
    def writes_apart(self) -> bool:
        """Whether each record is written by itself, so that TCP had better put them together."""
        return self._carrier is not None and self._carrier.writes_apart

    def read_into(self, buffer: Buffer) -> int:
        """Read behind what is in *buffer*, as much as there is and as fits.

        :return: how many bytes, 0 at the orderly end, NOTHING where there is nothing now.
        :raises OSError: the socket is broken.
        :raises TlsFault: it is truncated, or what came is no TLS; everything before that has been read.
        """
        if self._ahead:
            return self._take_ahead(buffer)
        if len(buffer.view) - buffer.end < RECORD_BYTES:
            return self._read_little(buffer)
        if self._fault is not None:
            raise _again(self._fault)
        assert self._carrier is not None
        count, want, self._fault = self._carrier.read(buffer)
        self.is_drained = want is Want.READ
        if want is not None:
            self.reading_waits = want
            return count or NOTHING
        if self._fault is not None and not count:
            raise _again(self._fault)
        return count

    def _read_little(self, buffer: Buffer) -> int:
        """Read where a whole record has no room: what does not fit comes with the next read."""
        whole = Buffer(RECORD_BYTES)
        count = self.read_into(whole)
        if count > 0:
            self._ahead = bytes(whole.view[:count])
            return self._take_ahead(buffer)
        return count

    def write_from(self, buffer: Buffer) -> bool:
        """Write what is in *buffer*; tell whether all of it has gone.

        Else it has to be called again with the same bytes before anything else is written.

        :raises OSError: the socket is broken.
        :raises TlsFault: TLS is.
        """
        assert self._carrier is not None
        want = self._carrier.write(buffer)
        if want is not None:
            self.writing_waits = want
            return False
        buffer.start = buffer.end = 0
        return True

    def close_notify(self) -> bool:
        """Tell the far side that nothing more comes; ``False`` where that has to wait, and be called again.

        What it says can still be read.

        :raises OSError: the socket is broken.
        :raises TlsFault: TLS is.
        """
        assert self._carrier is not None
        want = self._carrier.close_notify()
        if want is not None:
            self.writing_waits = want
        return want is None

    def recv(self, most: int) -> bytes:
        """Read as from a socket, for what comes before a relay: ``b""`` is the orderly end.

        :raises BlockingIOError: there is nothing now.
        :raises OSError, TlsFault: see :meth:`read_into`.
        """
        buffer = Buffer(most)
        count = self.read_into(buffer)
        if count == NOTHING:
            raise BlockingIOError
        return bytes(buffer.view[:count])

    def send(self, data: bytes) -> int:
        """Write as to a socket, all of *data* at once: for what fits into any send buffer.

        :raises BlockingIOError: it cannot be written now; another call has to write the same *data* again.
        :raises OSError, TlsFault: see :meth:`write_from`.
        """
        buffer = Buffer(len(data))
        buffer.view[:] = data
        buffer.end = len(data)
        if not self.write_from(buffer):
            raise BlockingIOError
        return len(data)

    def give_back(self, data: bytes) -> None:
        """Put *data* in front of what is read next: what came behind a handshake within."""
        self._ahead = data + self._ahead
        self.is_drained = False

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """What the far side has shown, its own certificate first; verified where the context asks for that."""
        connection = self.connection
        leaf = connection.get_peer_certificate(as_cryptography=True) if connection is not None else None
        if leaf is None:
            return ()
        assert connection is not None
        shown = connection.get_peer_cert_chain(as_cryptography=True) or []
        return (leaf, *(one for one in shown if one != leaf))

    @property
    def verify_error(self) -> int:
        """OpenSSL's number for what is wrong with the far side's certificate, 0 for nothing."""
        return openssl.verify_result(self._ssl) if self._ssl is not None else 0

    @property
    def psk_named(self) -> str | None:
        """The name of a key that the far side gave and that nobody has here; for the log. Asked once."""
        keys = openssl.psk_of(self._context)
        if isinstance(keys, openssl.PskServer):
            name, known = keys.take_named(self._ssl)
            if name and not known:
                return name
        return None

    def _forget_named(self) -> None:
        """Let nothing be left of an SSL object that had this one's place in memory before."""
        keys = openssl.psk_of(self._context)
        if isinstance(keys, openssl.PskServer):
            keys.take_named(self._ssl)

    def _proved_psk(self) -> str | None:
        """Return the name of the key that this handshake rests on."""
        keys = openssl.psk_of(self._context)
        if keys is None:
            return None
        # A key that was named, found and then passed over has proved nothing: no certificate may take its place.
        # In TLS 1.3 a key is a session to resume; in 1.2 it has its own suites, and a session resumed names none.
        resumed = openssl.is_resumed(self._ssl)
        rests = resumed if self.version == "TLSv1.3" else "PSK" in self.cipher and not resumed
        if isinstance(keys, openssl.PskClient):
            return keys.name if rests else None
        name, known = keys.take_named(self._ssl)
        return name if rests and known else None

    def _take_ahead(self, buffer: Buffer) -> int:
        count = min(len(self._ahead), len(buffer.view) - buffer.end)
        buffer.view[buffer.end : buffer.end + count] = self._ahead[:count]
        buffer.end += count
        self._ahead = self._ahead[count:]
        return count


def count_protected(flight: bytes) -> int:
    """Return how many records of whole ones are protected (RFC 8446, 5.2)."""
    at = count = 0
    while at < len(flight):
        count += flight[at] == DATA
        at += HEADER_BYTES + int.from_bytes(flight[at + 3 : at + 5], "big")
    return count


def _again(fault: OSError) -> OSError:
    """Return the same fault: one that was raised holds its frames, and they hold the wire."""
    return fault.again() if isinstance(fault, TlsFault) else OSError(fault.errno, fault.strerror)
