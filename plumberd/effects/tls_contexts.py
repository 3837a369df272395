"""OpenSSL's contexts: what both sides of a TLS connection may agree on, prove and believe.

One context for each destination, since who has to be at the other end stands in
it, and one or more for each listener. They hold for one generation of the
configuration: the next makes new ones, with new keys for its tickets, and
connections go on with theirs.

TLS 1.2 and 1.3, with ephemeral keys and authenticated encryption alone; no
compression, no renegotiation, no early data. Who is not believed is told in a
sentence: :func:`fault_of`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from cryptography import x509
from OpenSSL import SSL, crypto
from service_identity import CertificateError as NoIdentity
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address

from plumberd.effects import openssl
from plumberd.pure import certificates
from plumberd.pure.host import literal_address
from plumberd.pure.refusals import printable
from plumberd.pure.tls import Certificate, ClientCertificates, PeerSettings, TlsSettings, Trust, choose, peer_key
from plumberd.pure.verification import NO_CRL, OK
from plumberd.pure.verification import verify_reason as verify_reason

CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: ephemeral keys, and authenticated encryption (RFC 9325, 4.2)."""

LEVEL = b"@SECLEVEL=2"
"""OpenSSL's minimum for keys, curves and signatures, 112 bits; for the rest there is ``certificates.weakness``."""

SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
"""Of TLS 1.3."""

KEPT = 256
"""Most contexts of destinations; each has 13 KiB, and takes 0.3 ms to make."""

DEPTH = 8
"""Most authorities above a certificate."""

TICKET_SECONDS = 300
"""So long a caller may go on with what it has proved before, without proving it anew."""

NAMES_SHOWN = 3
NO_KEY = "it knows no pre-shared key of that name, and showed a certificate in its place"

Verify = Callable[[SSL.Connection, crypto.X509, int, int, int], bool]

_faults: WeakKeyDictionary[SSL.Connection, str] = WeakKeyDictionary()


def fault_of(connection: SSL.Connection) -> str | None:
    """Return why the far side was not believed, in a sentence; ``None`` where that is not what went wrong."""
    return _faults.get(connection)


@dataclass(frozen=True)
class Outward:
    """How this machine goes out to one destination: the far side has to be that one.

    :ivar server_name: what to ask for (SNI); empty for an address, which is none (RFC 6066, 3).
    """

    context: SSL.Context
    server_name: str


@dataclass(frozen=True)
class Inward:
    """How this machine meets the callers of one listener."""

    context: SSL.Context


class Contexts:
    """The contexts of one generation of the configuration, each made when it is first needed."""

    def __init__(self, tls: TlsSettings, peers: Mapping[str, PeerSettings]) -> None:
        self._tls = tls
        self._peers = peers
        self._believers: dict[str | None, _Believer] = {}
        self._made = functools.lru_cache(KEPT)(self._make)

    def outward(self, host: str, port: int, alpn: Sequence[str] = ()) -> Outward:
        """Return how to go out.

        :param host: a DNS name or an address, as a URI has it; the far side has to have a certificate for it.
        :param alpn: the protocols to offer; where there are none, nothing is said of it.
        """
        return self._made(host, port, tuple(alpn))

    def inward(self, alpn: Sequence[str] = ()) -> Inward:
        """Return how to meet the callers of one listener, anew each time: its tickets are nobody else's.

        :param alpn: the protocols that are accepted, the preferred one first; where there are none, nothing
            is said of it.
        :raises ValueError: there is nothing to prove.
        """
        return Inward(_listener(self._tls, alpn))

    def _make(self, host: str, port: int, alpn: tuple[str, ...]) -> Outward:
        key = peer_key(host, port)
        peer = self._peers.get(key, PeerSettings())
        context = _context()
        if alpn:
            context.set_alpn_protos([name.encode("ascii") for name in alpn])
        if peer.psk is not None:
            openssl.PskClient(peer.psk.identity, peer.psk.key).attach(context)
            context.set_verify(SSL.VERIFY_PEER, _refuse_certificates)
        else:
            if peer.certificate is not None:
                _use(context, peer.certificate)
            name = key if peer.trust is not None or peer.pins else None
            if name not in self._believers:
                self._believers[name] = _Believer(self._tls, peer.trust or self._tls.trust, peer.pins)
            self._believers[name].believe_server(context, host)
        return Outward(context, host if literal_address(host) is None else "")


def group(all_: Sequence[Certificate]) -> list[tuple[Certificate, ...]]:
    """Put those together that are for the same names and have other kinds of keys: of them OpenSSL picks by caller."""
    groups: list[list[Certificate]] = []
    for one in all_:
        for members in groups:
            if set(members[0].dns_names) == set(one.dns_names) and one.kind not in [m.kind for m in members]:
                members.append(one)
                break
        else:
            groups.append([one])
    return [tuple(members) for members in groups]


class _Believer:
    """Who is believed, and why not; all its contexts share what it has read."""

    def __init__(self, tls: TlsSettings, trust: Trust, pins: Sequence[str] = ()) -> None:
        self._pins = pins
        self._checked: dict[tuple[bytes, bool, str | None], str | None] = {}
        crls = [x509.load_pem_x509_crl(one.pem) for one in tls.crls]
        self._listed = {one.issuer for one in crls}
        self._trusted = SSL.Context(SSL.TLS_METHOD)
        if trust.system:
            self._trusted.set_default_verify_paths()
        store = self._trusted.get_cert_store()
        assert store is not None
        for authority in trust.authorities:
            store.add_cert(crypto.X509.from_cryptography(x509.load_pem_x509_certificate(authority.pem)))
        # Whoever is in the list is trusted, whoever has issued it.
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN
        for crl in crls:
            store.add_crl(crl)
        if crls:
            flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        store.set_flags(flags)

    def believe_server(self, context: SSL.Context, host: str) -> None:
        """Let *context* believe nobody but *host*."""

        def verify(connection: SSL.Connection, found: crypto.X509, code: int, depth: int, ok: int) -> bool:
            return _judged(connection, self._judge(found, code, depth, host))

        self._attach(context, SSL.VERIFY_PEER, verify)

    def believe_callers(self, context: SSL.Context, *, required: bool) -> None:
        """Let *context* ask callers who they are."""

        def verify(connection: SSL.Connection, found: crypto.X509, code: int, depth: int, ok: int) -> bool:
            return _judged(connection, self._judge(found, code, depth, None))

        must = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0
        self._attach(context, SSL.VERIFY_PEER | must, verify)

    def _attach(self, context: SSL.Context, mode: int, verify: Verify) -> None:
        openssl.share_store(context, self._trusted)
        context.set_verify_depth(DEPTH)
        context.set_verify(mode, verify)

    def _judge(self, found: crypto.X509, code: int, depth: int, host: str | None) -> str | None:
        try:
            return self._fault(found, code, depth, host)
        except Exception:
            # A stranger's certificate may be wrong in any way. pyOpenSSL would keep what is raised here for ever, and
            # with it the connection.
            return "a certificate in its chain cannot be read"

    def _fault(self, found: crypto.X509, code: int, depth: int, host: str | None) -> str | None:
        """Return what is wrong with one certificate of a chain, which OpenSSL has judged already: *code*."""
        if code == NO_CRL and found.to_cryptography().issuer not in self._listed:
            return None  # lists are looked at where there are some; a public authority has none here
        if code != OK:
            return verify_reason(code, depth)
        # What is asked here changes with no time and no list, and asking takes a third of a whole handshake.
        der = crypto.dump_certificate(crypto.FILETYPE_ASN1, found)
        key = hashlib.sha256(der).digest(), depth == 0, host
        if key not in self._checked:
            if len(self._checked) >= KEPT:
                self._checked.clear()
            self._checked[key] = self._check(found.to_cryptography(), depth, host)
        return self._checked[key]

    def _check(self, one: x509.Certificate, depth: int, host: str | None) -> str | None:
        weak = certificates.weakness(one, is_anchor=depth > 0 and one.issuer == one.subject)
        if weak is not None:
            return f"{'an authority in its chain' if depth else 'its certificate'} has {weak}"
        return (_wrong_name(one, host) or self._wrong_pin(one)) if depth == 0 and host is not None else None

    def _wrong_pin(self, one: x509.Certificate) -> str | None:
        found = certificates.pin(one)
        if not self._pins or found in self._pins:
            return None
        return f"its key is another than the one that is pinned: it has {found}"


def _wrong_name(one: x509.Certificate, host: str) -> str | None:
    try:
        if literal_address(host) is None:
            verify_certificate_hostname(one, host)
        else:
            verify_certificate_ip_address(one, host)
    except (VerificationError, NoIdentity, ValueError):
        names = (*certificates.dns_names(one), *certificates.addresses(one))
        shown = ", ".join(printable(name, 80) for name in names[:NAMES_SHOWN]) or "no name at all"
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return f"its certificate is for {shown}{more}, and not for {host}"
    return None


def _judged(connection: SSL.Connection, reason: str | None) -> bool:
    if reason is not None:
        _faults.setdefault(connection, reason)
    return reason is None


def _refuse_certificates(connection: SSL.Connection, found: crypto.X509, code: int, depth: int, ok: int) -> bool:
    """Believe no certificate, however good: in TLS 1.3 whoever does not know the key may show one instead."""
    return _judged(connection, NO_KEY)


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_cipher_list(CIPHERS + b":" + LEVEL)
    context.set_tls13_ciphersuites(SUITES)
    # Tickets need no cache here; who calls does not come back with one.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    openssl.prepare_context(context)
    return context


def _listener(tls: TlsSettings, alpn: Sequence[str]) -> SSL.Context:
    if not tls.can_listen:
        raise ValueError("neither a certificate nor a pre-shared key")
    groups = group(tls.certificates) or [()]
    names = [tuple(name for one in members for name in one.dns_names) for members in groups]
    session_id = secrets.token_bytes(32)
    psks = openssl.PskServer({one.identity: one.key for one in tls.psks}) if tls.psks else None
    asks = tls.client_certificates is not ClientCertificates.NONE and tls.certificates
    believer = _Believer(tls, tls.trust) if asks else None
    first, *others = contexts = [_inward(tls, members, psks, believer, alpn, session_id) for members in groups]

    def select(connection: SSL.Connection) -> None:
        name = (connection.get_servername() or b"").decode("ascii", "replace")
        chosen = contexts[choose(names, name)]
        if chosen is not first:
            connection.set_context(chosen)

    if others:
        first.set_tlsext_servername_callback(select)
    return first


def _inward(
    tls: TlsSettings,
    own: Sequence[Certificate],
    psks: openssl.PskServer | None,
    believer: _Believer | None,
    alpn: Sequence[str],
    session_id: bytes,
) -> SSL.Context:
    context = _context()
    context.set_session_id(session_id)
    context.set_timeout(TICKET_SECONDS)
    for one in own:
        _use(context, one)
    if psks is not None:
        psks.attach(context, CIPHERS + b":" + LEVEL if own else LEVEL)
        # A ticket does not say with which key its session began, and so would prove nothing.
        context.set_options(SSL.OP_NO_TICKET)
    if believer is not None:
        believer.believe_callers(context, required=tls.client_certificates is ClientCertificates.REQUIRED)
        for authority in tls.trust.authorities:
            known = x509.load_pem_x509_certificate(authority.pem)
            context.add_client_ca(crypto.X509.from_cryptography(known))
    if alpn:
        accepted = [name.encode("ascii") for name in alpn]

        def select(connection: SSL.Connection, offered: list[bytes]) -> Any:
            # Who offers nothing of it is told nothing; what that means is for who reads the handshake.
            return next((name for name in accepted if name in offered), SSL.NO_OVERLAPPING_PROTOCOLS)

        context.set_alpn_select_callback(select)
    return context


def _use(context: SSL.Context, certificate: Certificate) -> None:
    """Give *context* a certificate with its own chain; a second one has another kind of key.

    OpenSSL takes a chain for one certificate only out of a file; this one is nowhere on a disk.
    """
    fd = os.memfd_create("chain", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate.chain)
        context.use_certificate_chain_file(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    context.use_privatekey(certificates.parse_key(certificate.key))
