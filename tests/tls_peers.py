"""What the tests of TLS share: a certificate, contexts of ours, and peers of Python's ssl module."""

from __future__ import annotations

import contextlib
import datetime
import functools
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import Poll
from plumberd.effects.relay import Relay
from plumberd.effects.tls_ending import Want
from plumberd.effects.tls_handshake import TlsHandshake
from plumberd.effects.tls_pumps import BufferPool, make_tls_pumps
from plumberd.effects.tls_wire import Wire
from plumberd.pure.refusals import Refused
from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread, real_reactor, until

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
NUMBERS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}

KEY_NAME = "laptop"
KEY = bytes(range(32))
"""A pre-shared key, and its name."""


@functools.cache
def certificate() -> tuple[bytes, bytes]:
    """Return a self-signed certificate for localhost and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM), pem


@contextlib.contextmanager
def certificate_file() -> Iterator[str]:
    """Yield the path of a file with the certificate and its key, for whom wants files."""
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(b"".join(certificate()))
        file.flush()
        yield file.name


def our_context(server: bool, version: str = "", *, certified: bool = True) -> SSL.Context:
    """Return a context as plumberd has them, which believes every certificate.

    :param certified: a server has a certificate.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(NUMBERS.get(version, SSL.TLS1_2_VERSION))
    context.set_max_proto_version(NUMBERS.get(version, SSL.TLS1_3_VERSION))
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    openssl.prepare_context(context)
    if server and certified:
        pem, key = certificate()
        context.use_certificate(x509.load_pem_x509_certificate(pem))
        loaded = serialization.load_pem_private_key(key, None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        context.use_privatekey(loaded)
    return context


def peer_context(server: bool, version: str = "") -> ssl.SSLContext:
    """Return a context of Python's ssl module for the other side."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    if server:
        with certificate_file() as path:
            context.load_cert_chain(path)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if version:
        context.minimum_version = context.maximum_version = VERSIONS[version]
    return context


class Peer:
    """The far side, over memory: it writes what is asked for and no record more, and can end its half alone.

    It blocks, so it is used in threads: one may read while another one writes.
    """

    def __init__(self, sock: socket.socket, server: bool, version: str = "") -> None:
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._state = threading.Lock()
        self._sending = threading.Lock()
        self._early = b""
        self.tls = peer_context(server, version).wrap_bio(self._in, self._out, server_side=server)
        sock.settimeout(DEADLINE_SECONDS)

    def handshake(self, then: bytes = b"") -> None:
        """Run the handshake to its end; *then* goes out together with its last flight."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self._more()
            else:
                if then:
                    self.tls.write(then)
                self.flush()
                return

    def records(self, data: bytes | memoryview) -> bytes:
        """Return the records that *data* becomes; nothing is sent."""
        with self._state:
            self.tls.write(data)
            return self._out.read()

    def sendall(self, data: bytes) -> None:
        """Send *data*."""
        view = memoryview(data)
        for at in range(0, len(data), 1 << 18):
            with self._sending:
                self.sock.sendall(self.records(view[at : at + (1 << 18)]))

    def flush(self) -> None:
        """Send what TLS has written on its own account."""
        with self._sending:
            with self._state:
                data = self._out.read()
            self.sock.sendall(data)

    def recv(self, most: int = 65536) -> bytes:
        """Read; ``b""`` at the orderly end.

        :raises ssl.SSLError: for anything else that ends it.
        """
        while True:
            try:
                with self._state:
                    if self._early:
                        data, self._early = self._early[:most], self._early[most:]
                    else:
                        data = self.tls.read(most)
            except ssl.SSLWantReadError:
                self._more()
            except ssl.SSLZeroReturnError:
                return b""
            else:
                return data

    def _more(self) -> None:
        data = self.sock.recv(1 << 18)
        with self._state:
            if data:
                self._in.write(data)
            else:
                self._in.write_eof()

    def end(self) -> None:
        """Send close_notify; it can still read."""
        with self._state:
            # unwrap() reads on for the other side's close_notify, and would lose what comes before that.
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while data := self.tls.read(1 << 18):
                    self._early += data
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        self.flush()

    def read_all(self) -> bytes:
        """Read to the orderly end."""
        parts = []
        while part := self.recv():
            parts.append(part)
        return b"".join(parts)


class TlsTestCase(CleanTestCase):
    """Wires, handshakes and relays of ours with peers."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.pipes = PipePool()
        self.addCleanup(self.pipes.close)
        self.buffers = BufferPool()
        self.ended: list[Relay] = []

    def wire_of(self, sock: socket.socket, context: SSL.Context, *, server: bool, name: str = "") -> Wire:
        """Return a wire on *sock*."""
        sock.setblocking(False)
        connection = openssl.connect(context, sock, server=server)
        if name:
            connection.set_tlsext_host_name(name.encode())
        return Wire(connection, sock, server=server)

    async def shake(self, sock: socket.socket, context: SSL.Context, *, server: bool) -> Wire | Refused:
        """Run a handshake of ours over the poll."""
        outcome: list[Wire | Refused] = []
        sock.setblocking(False)
        connection = openssl.connect(context, sock, server=server)
        handshake = TlsHandshake(self.poll, sock, connection, outcome.append, server=server)
        self.addCleanup(handshake.cancel)
        handshake.start()
        await until(lambda: outcome)
        return outcome[0]

    async def relay(
        self, version: str = "", *, server: bool, context: SSL.Context | None = None
    ) -> tuple[Peer, socket.socket, Relay]:
        """Return the peer, the plain socket of our side's user, and the running relay between the two.

        :param server: our side of TLS is the server's.
        """
        far, near = self.tcp_pair()
        plain, inner = self.pair()
        peer = Peer(far, not server, version)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, context or our_context(server, version), server=server)
        await shaking
        assert isinstance(wire, Wire), wire
        return peer, plain, self.relay_of(wire, near, inner)

    def relay_of(self, wire: Wire, tls: socket.socket, plain: socket.socket) -> Relay:
        """Start a relay between *tls*, the socket below *wire*, and *plain*."""
        forth, back = make_tls_pumps(wire, tls, plain, self.buffers)
        relay = Relay(self.poll, real_reactor, self.pipes, tls, plain, self.ended.append, forth=forth, back=back)
        self.addCleanup(self._end, relay)
        relay.start()
        return relay

    async def _end(self, relay: Relay) -> None:
        relay.abort()
        await until(lambda: relay in self.ended)


def shake_both(*wires: Wire) -> None:
    """Run the handshake of two wires that are connected with each other."""
    waits: list[Want | None] = [Want.READ] * len(wires)
    while any(waits):
        waits = [wire.handshake() for wire in wires]
