"""What is said about TLS, read and checked, as values: what this machine proves, to whom, and whom it believes.

The files' contents are in here, since what was checked is what has to be used;
what is secret shows in no ``repr``. Times are seconds since 1970.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from plumberd.pure.host import UriError, parse_host, show_host
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.uri import parse_port

ALPN_BYTES = 255  # RFC 7301, 3.1
ALPN_NAMES = 16
"""Most protocols of the services that are published."""

SYSTEM = "system"
"""What ``trust`` calls the authorities that the system trusts; a file of that name is ``./system``."""

EXPIRY_NOTICE_SECONDS = 14 * 24 * 3600
"""From so long before on, the end of a certificate is told: time for who looks once a week, and is away the next."""

_DAY_SECONDS = 24 * 3600
_ALPN = re.compile(r"[!-~]{1,255}\Z")
_PIN = re.compile(r"sha256:([0-9a-f]{64})\Z")


class TlsError(ValueError):
    """A value that makes no sense: what was wanted. What may be a secret is not repeated."""


class ClientCertificates(enum.Enum):
    """What a listener asks of callers."""

    NONE = "none"
    """Nothing is asked for."""
    OPTIONAL = "optional"
    """A certificate is asked for; one that is shown has to be good."""
    REQUIRED = "required"
    """A caller without a good one, and without a pre-shared key, is refused."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its chain and its key, which belong together.

    :ivar chain: PEM, this machine's own first.
    :ivar key: PEM, without a passphrase.
    :ivar name: its subject, for people.
    :ivar dns_names: for which servers it is, ``*.example.com`` among them.
    :ivar kind: of its key: ``RSA``, ``EC``, ``Ed25519``, ``Ed448``.
    :ivar begins, ends: when all of the chain is valid.
    """

    chain_file: str
    key_file: str
    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    name: str = ""
    dns_names: tuple[str, ...] = ()
    kind: str = ""
    begins: int = 0
    ends: int = 0

    def __str__(self) -> str:
        """What it is called, and until when it is valid."""
        return f"{self.name}, until {_day(self.ends)}"


@dataclass(frozen=True)
class Authority:
    """A certificate that is trusted, and whatever it has issued.

    :ivar pem: it alone.
    :ivar name: its subject.
    """

    file: str
    pem: bytes = field(repr=False)
    name: str = ""
    begins: int = 0
    ends: int = 0


@dataclass(frozen=True)
class Trust:
    """Whom to believe.

    :ivar system: the authorities that the system trusts.
    """

    system: bool = True
    authorities: tuple[Authority, ...] = ()

    def __str__(self) -> str:
        """Whom, by their files."""
        return ", ".join([SYSTEM] * self.system + list(dict.fromkeys(one.file for one in self.authorities)))


@dataclass(frozen=True)
class RevocationList:
    """What an authority takes back (a CRL, RFC 5280, 5).

    :ivar pem: it alone.
    :ivar name: of the authority.
    :ivar ends: when there should be a newer one; then nothing of that authority's is believed.
    """

    file: str
    pem: bytes = field(repr=False)
    name: str = ""
    ends: int | None = None


@dataclass(frozen=True)
class TlsSettings:
    """What holds for listeners, and for every destination of which nothing else is said.

    :ivar psks: the keys that callers may prove. One that proves this machine itself somewhere is none of
        them: a caller could have our own words reflected to us (RFC 9257, 4.1).
    :ivar alpn: the protocols of the services that are published, the preferred one first.
    """

    certificates: tuple[Certificate, ...] = ()
    trust: Trust = Trust()
    crls: tuple[RevocationList, ...] = ()
    psk_file: str | None = None
    psks: tuple[PreSharedKey, ...] = ()
    client_certificates: ClientCertificates = ClientCertificates.NONE
    alpn: tuple[str, ...] = ()

    @property
    def can_listen(self) -> bool:
        """Whether there is anything that a listener could prove itself with."""
        return bool(self.certificates or self.psks)


@dataclass(frozen=True)
class PeerSettings:
    """What this machine may prove to one destination, and what is wanted of that.

    :ivar psk: then both sides prove that they know it, and no certificate is looked at.
    :ivar certificate: ours.
    :ivar login: a user's name, for the handshake inside.
    :ivar pins: its certificate's own key has to be one of these: ``sha256:`` and 64 hexadecimal digits.
    :ivar trust: in the place of what else is trusted.
    :ivar token: a bearer token, for webipcd there, or any WebSocket server.
    :ivar forward: whether it is told on whose behalf this machine calls, as a gateway.
    """

    psk: PreSharedKey | None = None
    certificate: Certificate | None = None
    login: str | None = None
    password_file: str | None = None
    password: str | None = field(default=None, repr=False)
    pins: tuple[str, ...] = ()
    trust: Trust | None = None
    forward: bool = False
    token_file: str | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def proves(self) -> bool:
        """Whether this machine proves something there, that no client could prove by itself."""
        proofs = (self.psk, self.certificate, self.login, self.token_file)
        return any(proof is not None for proof in proofs)

    def __str__(self) -> str:
        """What is said, without a secret."""
        said = (
            ("psk", self.psk and self.psk.identity),
            ("certificate", self.certificate and self.certificate.chain_file),
            ("login", self.login),
            ("token", self.token_file),
            ("pin", ", ".join(self.pins)),
            ("trust", self.trust and str(self.trust)),
        )
        return "; ".join(f"{name} {text}" for name, text in said if text) or "nothing"


@dataclass(frozen=True)
class Expiry:
    """Something that is not valid, or soon will not be.

    :ivar what: ``certificate``, ``authority`` or ``revocation list``.
    :ivar at: when it begins or ends.
    """

    what: str
    file: str
    name: str
    at: int
    text: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.what} {self.file} ({self.name}) {self.text}"


def peer_key(host: str, port: int) -> str:
    """Return what a destination is called among the peers; *host* as :func:`parse_host` returns it."""
    return f"{show_host(host)}:{port}"


def parse_peer_key(text: str) -> str:
    """Return the one spelling of ``HOST:PORT``, as :func:`peer_key` has it: the host is written as in a rule.

    :raises TlsError: otherwise.
    """
    host, colon, port = text.rpartition(":")
    try:
        if not colon or "@" in text:
            raise UriError("wanted HOST:PORT (IPv6 in brackets)")
        return peer_key(parse_host(host), parse_port(port))
    except UriError as e:
        raise TlsError(str(e)) from None


def check_alpn(text: str) -> str:
    """Return *text*, the name of a protocol (RFC 7301).

    :raises TlsError: otherwise.
    """
    if not _ALPN.match(text):
        raise TlsError(f"wanted the name of a protocol, 1 to {ALPN_BYTES} printable characters, such as http/1.1")
    return text


def parse_pin(text: str) -> str:
    """Return the one spelling of a pin, ``sha256:`` and the digest of a key in hexadecimal digits.

    Colons between them, and capital letters, are fine: tools print them so.

    :raises TlsError: otherwise.
    """
    head, _, digest = text.partition(":")
    pin = f"{head.lower()}:{digest.replace(':', '').lower()}"
    if not _PIN.match(pin):
        raise TlsError("wanted sha256: and 64 hexadecimal digits, the digest of a public key (SPKI)")
    return pin


def check_login(text: str) -> str:
    """Return *text*, the name of a user.

    :raises TlsError: otherwise.
    """
    if not text or len(text) > 255 or ":" in text or not text.isprintable():
        raise TlsError("wanted the name of a user: 1 to 255 printable characters without a colon")
    return text


def choose(certificates: Iterable[tuple[str, ...]], name: str | None) -> int:
    """Return which of several *certificates*, each given by its DNS names, is for the server *name* of a caller.

    One that has the name itself goes before one with ``*`` in the place of its first label; where none
    has it, and where the caller names nobody, it is the first.
    """
    wanted = (name or "").lower().removesuffix(".")
    known = [{n.lower() for n in names} for names in certificates]
    for spelling in (wanted, f"*.{wanted.partition('.')[2]}"):
        for number, names in enumerate(known):
            if spelling in names:
                return number
    return 0


def expiring(tls: TlsSettings, peers: Mapping[str, PeerSettings], now: float) -> tuple[Expiry, ...]:
    """Return what is not valid at the time *now*, or will have ended 14 days later; the first to end first.

    Each file's certificate is told once, in however many places it is used.
    """
    found = dict.fromkeys(one for one in _all(tls, peers, now) if one is not None)
    return tuple(sorted(found, key=lambda one: one.at))


def _all(tls: TlsSettings, peers: Mapping[str, PeerSettings], now: float) -> Iterator[Expiry | None]:
    trusts = [tls.trust, *(peer.trust for peer in peers.values() if peer.trust is not None)]
    own = [*tls.certificates, *(peer.certificate for peer in peers.values() if peer.certificate is not None)]
    for mine in own:
        yield _expiry("certificate", mine.chain_file, mine.name, mine.begins, mine.ends, now)
    for trust in trusts:
        for one in trust.authorities:
            yield _expiry("authority", one.file, one.name, one.begins, one.ends, now)
    for crl in tls.crls:
        # Lists live for days, so that one is about to end says nothing.
        if crl.ends is not None and crl.ends <= now:
            text = f"should have been renewed on {_day(crl.ends)}: whatever it covers is refused"
            yield Expiry("revocation list", crl.file, crl.name, crl.ends, text)


def _expiry(what: str, file: str, name: str, begins: int, ends: int, now: float) -> Expiry | None:
    if begins > now:
        return Expiry(what, file, name, begins, f"is valid from {_day(begins)} on, and not yet")
    if ends <= now:
        return Expiry(what, file, name, ends, f"has expired on {_day(ends)}")
    if ends - now <= EXPIRY_NOTICE_SECONDS:
        days = int((ends - now) // _DAY_SECONDS)
        left = "today" if days == 0 else f"in {days} day{'s' if days > 1 else ''}"
        return Expiry(what, file, name, ends, f"expires on {_day(ends)}, {left}")
    return None


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
