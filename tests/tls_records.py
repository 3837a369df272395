"""A far side that writes its own records (TLS 1.3, TLS_AES_128_GCM_SHA256), for what no library's peer would send."""

from __future__ import annotations

import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from OpenSSL import SSL

from tests.support import DEADLINE_SECONDS, read_exactly
from tests.tls_peers import our_context

ALERT, HANDSHAKE, DATA = 21, 22, 23
"""Content types (RFC 8446, B.1)."""

CLOSE_NOTIFY = b"\1\0"
KEY_UPDATE = b"\x18\0\0\1"
"""A KeyUpdate (RFC 8446, 4.6.3) but for its last byte: 1 where the other side is to have new keys too."""


def expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label without a context (RFC 8446, 7.1)."""
    full = b"tls13 " + label
    info = struct.pack(">HB", length, len(full)) + full + b"\0"
    return HKDFExpand(SHA256(), length, info).derive(secret)


class Keys:
    """The keys of one direction."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._make()

    def _make(self) -> None:
        self._aead = AESGCM(expand(self._secret, b"key", 16))
        self._iv = int.from_bytes(expand(self._secret, b"iv", 12), "big")
        self.sequence = 0

    def update(self) -> None:
        """Go on to the next keys."""
        self._secret = expand(self._secret, b"traffic upd", 32)
        self._make()

    def _nonce(self) -> bytes:
        self.sequence += 1
        return (self._iv ^ (self.sequence - 1)).to_bytes(12, "big")

    def seal(self, kind: int, data: bytes) -> bytes:
        """Return one record."""
        header = struct.pack(">BHH", 23, 0x0303, len(data) + 1 + 16)
        return header + self._aead.encrypt(self._nonce(), data + bytes((kind,)), header)

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Return the content type and the content of one record."""
        plain = self._aead.decrypt(self._nonce(), record[5:], record[:5])
        return plain[-1], plain[:-1]


class RecordPeer:
    """A client that has made its handshake; it blocks, so it is used in threads.

    :ivar out, in_: the keys of what it writes and of what it reads.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_SECONDS)

    def handshake(self) -> None:
        """Run it; what comes behind it stays in the socket."""
        context = our_context(False, "1.3")
        context.set_tls13_ciphersuites(b"TLS_AES_128_GCM_SHA256")
        secrets: dict[bytes, bytes] = {}

        def keep(connection: SSL.Connection, line: bytes) -> None:
            label, _, secret = line.split()
            secrets[label] = bytes.fromhex(secret.decode())

        context.set_keylog_callback(keep)
        self.sock.settimeout(None)  # OpenSSL reads it itself
        connection = SSL.Connection(context, self.sock)
        connection.set_connect_state()
        connection.do_handshake()
        self.sock.settimeout(DEADLINE_SECONDS)
        self.out = Keys(secrets[b"CLIENT_TRAFFIC_SECRET_0"])
        self.in_ = Keys(secrets[b"SERVER_TRAFFIC_SECRET_0"])

    def send(self, kind: int, data: bytes) -> None:
        """Write one record."""
        self.sock.sendall(self.out.seal(kind, data))

    def receive(self) -> tuple[int, bytes]:
        """Read one record that is no ticket; keys change as it says.

        :raises EOFError: the connection has ended.
        """
        while True:
            header = read_exactly(self.sock, 5)
            if len(header) < 5:
                raise EOFError
            kind, data = self.in_.open(header + read_exactly(self.sock, int.from_bytes(header[3:], "big")))
            if kind == HANDSHAKE and data[:1] == b"\4":
                continue
            if kind == HANDSHAKE and data[:4] == KEY_UPDATE:
                self.in_.update()
            return kind, data

    def read(self, count: int) -> bytes:
        """Read *count* bytes of the stream."""
        got = bytearray()
        while len(got) < count:
            kind, data = self.receive()
            if kind == DATA:
                got += data
        return bytes(got)
