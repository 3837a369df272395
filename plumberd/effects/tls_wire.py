"""TLS on a connected TCP socket, without waiting.

OpenSSL reads and writes the socket itself; whoever watches it asks again when
there is something to read or room to write. The two directions end apart: the
far side's close_notify is the end of what it says, ours of what we say. TCP's
end without one is a truncation, and a fault.
"""

from __future__ import annotations

from cryptography import x509
from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.openssl import Buffer, TlsFault, Want
from plumberd.effects.pumps import NOTHING

__all__ = ["NOTHING", "Buffer", "TlsFault", "Want", "Wire"]


class Wire:
    """One TLS connection. It owns what OpenSSL needs; the socket is its caller's, who closes it afterwards.

    :ivar connection: pyOpenSSL's object, for what looks at certificates.
    :ivar psk_identity: the name of the pre-shared key that both sides have proved, if it was one.
    :ivar is_open: the handshake is over.
    :ivar is_drained: the last read has found the socket empty, so that there is nothing before its next edge.
    :ivar reading_waits, writing_waits: what the last call that could not go on waits for. Reading may have
        to write (an answer to the far side's new keys), and the other way round.
    """

    __slots__ = (
        "_ahead",
        "_context",
        "_fault",
        "_ssl",
        "connection",
        "is_drained",
        "is_open",
        "psk_identity",
        "reading_waits",
        "server",
        "writing_waits",
    )

    def __init__(self, connection: SSL.Connection, *, server: bool) -> None:
        """Take a *connection* that has not begun, of :func:`plumberd.effects.openssl.connect`; nothing is sent yet."""
        self.server = server
        # What TLS calls back stands in the context that it began with, whatever SNI makes of it.
        self._context = connection.get_context()
        self.connection = connection
        self._ssl = openssl.ssl_of(connection)
        self._forget_named()
        self._ahead = b""
        self._fault: OSError | None = None
        self.reading_waits = self.writing_waits = Want.READ
        self.psk_identity: str | None = None
        self.is_open = False
        self.is_drained = False

    def handshake(self) -> Want | None:
        """Go on with the handshake; return what it waits for, ``None`` when it is over.

        :raises OSError: the socket is broken.
        :raises TlsFault: it has failed; :attr:`verify_error` and :attr:`psk_named` may say why.
        """
        want = openssl.do_handshake(self._ssl)
        if want is None and not self.is_open:
            self.is_open = True
            self.psk_identity = self._proved_psk()
        return want

    def read_into(self, buffer: Buffer) -> int:
        """Read behind what is in *buffer*, as much as there is and as fits.

        :return: how many bytes, 0 at the orderly end, NOTHING where there is nothing now.
        :raises OSError: the socket is broken.
        :raises TlsFault: it is truncated, or what came is no TLS; everything before that has been read.
        """
        if self._ahead:
            return self._take_ahead(buffer)
        if self._fault is not None:
            raise _again(self._fault)
        count, want, self._fault = openssl.read(self._ssl, buffer)
        self.is_drained = want is Want.READ
        if want is not None:
            self.reading_waits = want
            return count or NOTHING
        if self._fault is not None and not count:
            raise _again(self._fault)
        return count

    def write_from(self, buffer: Buffer) -> bool:
        """Write what is in *buffer*; tell whether all of it has gone.

        Else it has to be called again with the same bytes before anything else is written.

        :raises OSError: the socket is broken.
        :raises TlsFault: TLS is.
        """
        want = openssl.write(self._ssl, buffer)
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
        want = openssl.close_notify(self._ssl)
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
    def alpn(self) -> str:
        """The protocol that was agreed on (RFC 7301), or an empty string."""
        return self.connection.get_alpn_proto_negotiated().decode("ascii", "replace")

    @property
    def version(self) -> str:
        """``TLSv1.3`` or ``TLSv1.2``."""
        return self.connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        """The suite, by OpenSSL's name."""
        return self.connection.get_cipher_name() or ""

    @property
    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """What the far side has shown, its own certificate first; verified where the context asks for that."""
        leaf = self.connection.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        shown = self.connection.get_peer_cert_chain(as_cryptography=True) or []
        return (leaf, *(one for one in shown if one != leaf))

    @property
    def verify_error(self) -> int:
        """OpenSSL's number for what is wrong with the far side's certificate, 0 for nothing."""
        return openssl.verify_result(self._ssl)

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


def _again(fault: OSError) -> OSError:
    """Return the same fault: one that was raised holds its frames, and they hold the wire."""
    return fault.again() if isinstance(fault, TlsFault) else OSError(fault.errno, fault.strerror)
