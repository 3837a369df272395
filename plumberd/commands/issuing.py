"""An authority of one's own, and the certificates that it issues.

ECDSA on P-256, with the extensions that RFC 5280 asks of each: what ``openssl
verify -x509_strict`` accepts. This module alone, among the commands, needs the
cryptography library; who uses it imports it where it is called.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plumberd.pure import certificates
from plumberd.pure.certificates import CertificateError
from plumberd.pure.host import UriError, literal_address, parse_host
from plumberd.pure.policy.subject import ConditionError, parse_condition

BACKDATED = datetime.timedelta(hours=1)
"""So far other machines' clocks may be behind."""

COMMON_NAME_CHARS = 64  # RFC 5280, appendix A: ub-common-name
_USAGES = (
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "encipher_only",
    "decipher_only",
)


class IssuingError(Exception):
    """No certificate can be made of it; the message says why."""


@dataclass(frozen=True)
class Made:
    """A new certificate and its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    names: tuple[str, ...]
    ends: datetime.datetime
    pin: str


@dataclass(frozen=True)
class RevocationList:
    """A list of certificates that are taken back, PEM.

    :ivar added: what is new on it, for people.
    :ivar count: how many there are on it.
    """

    pem: bytes
    added: tuple[str, ...]
    count: int
    ends: datetime.datetime


def check_names(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a certificate, each in its one spelling: hosts, ``*.HOST``, addresses.

    :raises IssuingError: for anything else.
    """
    found = []
    for text in texts:
        wild = "*." if text.startswith("*.") else ""
        bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text.removeprefix(wild)
        try:
            name = parse_host(bare)
        except UriError as e:
            raise IssuingError(f"{text}: {e}") from None
        if wild and literal_address(name) is not None:
            raise IssuingError(f"{text}: an address has no names below it")
        found.append(wild + name)
    return tuple(dict.fromkeys(found))


def new_authority(name: str, days: int, now: datetime.datetime) -> Made:
    """Return an authority that has issued its own certificate, valid for *days* from *now* on.

    :raises IssuingError: it cannot be called that.
    """
    if not 0 < len(name) <= COMMON_NAME_CHARS or not name.isprintable():
        raise IssuingError(f"the name of an authority: wanted 1 to {COMMON_NAME_CHARS} printable characters")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _begun(key, subject, subject, now - BACKDATED, now + datetime.timedelta(days))
        .add_extension(x509.BasicConstraints(True, 0), True)  # there are no authorities below it
        .add_extension(_usage(digital_signature=False, key_cert_sign=True, crl_sign=True), True)
        .add_extension(identifier, False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)
    )
    return _made(builder.sign(key, hashes.SHA256()), key, (name,))


def issue(
    authority: tuple[bytes, bytes],
    names: Sequence[str],
    days: int,
    now: datetime.datetime,
    *,
    server: bool = True,
    client: bool = True,
    spiffe: str | None = None,
) -> Made:
    """Return a certificate for *names*, valid for *days* from *now* on, but no longer than its authority.

    :param authority: its certificate and its key, both PEM.
    :param names: as :func:`check_names` returns them.
    :param spiffe: a SPIFFE ID that it proves as well.
    :raises IssuingError: the authority is none, or the SPIFFE ID.
    """
    issuer, signer, known = _authority(authority, now)
    key = ec.generate_private_key(ec.SECP256R1())
    short = [name for name in names if len(name) <= COMMON_NAME_CHARS][:1]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in short])
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    begins = max(now - BACKDATED, issuer.not_valid_before_utc)
    ends = min(now + datetime.timedelta(days), issuer.not_valid_after_utc)
    builder = (
        _begun(key, subject, issuer.subject, begins, ends)
        .add_extension(x509.BasicConstraints(False, None), True)
        .add_extension(_usage(digital_signature=True, key_cert_sign=False, crl_sign=False), True)
        .add_extension(x509.ExtendedKeyUsage(purposes), False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(names, spiffe)), not short)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), False)
    )
    said = (*names, spiffe) if spiffe else tuple(names)
    return _made(builder.sign(signer, None if _signs_alone(signer) else hashes.SHA256()), key, said)


def revoke(
    authority: tuple[bytes, bytes],
    old: bytes,
    taken_back: Sequence[tuple[str, bytes]],
    days: int,
    now: datetime.datetime,
) -> RevocationList:
    """Return the authority's list, valid for *days* from *now* on: what *old* has, and *taken_back*.

    :param authority: its certificate and its key, both PEM.
    :param old: the list before, PEM; empty where there was none.
    :param taken_back: where each certificate is from, and its PEM.
    :raises IssuingError: the authority is none, the list is another's, or a certificate is.
    """
    issuer, signer, known = _authority(authority, now)
    entries, number = _entries(issuer, old)
    added = []
    for where, pem in taken_back:
        try:
            one = certificates.parse_certificates(pem)[0]
        except CertificateError as e:
            raise IssuingError(f"{where}: {e}") from None
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            raise IssuingError(f"{where}: {certificates.subject(one)}: the authority has not issued it") from None
        if one.serial_number not in entries:
            new = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(now)
            entries[one.serial_number] = new.build()
            added.append(f"{certificates.subject(one)}, until {one.not_valid_after_utc:%Y-%m-%d}")
    ends = min(now + datetime.timedelta(days), issuer.not_valid_after_utc)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(max(now - BACKDATED, issuer.not_valid_before_utc))
        .next_update(ends)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), False)
        .add_extension(x509.CRLNumber(number + 1), False)
    )
    for entry in entries.values():
        builder = builder.add_revoked_certificate(entry)
    made = builder.sign(signer, None if _signs_alone(signer) else hashes.SHA256())
    return RevocationList(made.public_bytes(Encoding.PEM), tuple(added), len(entries), ends)


def _entries(issuer: x509.Certificate, old: bytes) -> tuple[dict[int, x509.RevokedCertificate], int]:
    """Return what the list before has, by serial numbers, and that list's number (RFC 5280, 5.2.3)."""
    if not old:
        return {}, 0
    try:
        (before,) = certificates.parse_revocation_lists(old)
    except (CertificateError, ValueError) as e:
        raise IssuingError(f"the list before: {e}") from None
    if not before.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type] # a key that signs
        raise IssuingError("the list before: it is another authority's")
    try:
        number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        number = 0
    return {one.serial_number: one for one in before}, number


def _authority(
    authority: tuple[bytes, bytes], now: datetime.datetime
) -> tuple[x509.Certificate, certificates.PrivateKey, x509.SubjectKeyIdentifier]:
    try:
        issuer, signer = certificates.parse_chain(authority[0])[0], certificates.parse_key(authority[1])
        certificates.check_pair(issuer, signer)
    except CertificateError as e:
        raise IssuingError(f"the authority: {e}") from None
    if issuer.not_valid_after_utc <= now:
        raise IssuingError("the authority: its certificate has expired; make a new one")
    try:
        known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        raise IssuingError("the authority: its certificate has no subjectKeyIdentifier") from None
    return issuer, signer, known


def _begun(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    issuer: x509.Name,
    begins: datetime.datetime,
    ends: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _usage(*, digital_signature: bool, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        **dict.fromkeys(_USAGES, False),
    )


def _alternatives(names: Sequence[str], spiffe: str | None) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        address = literal_address(name)
        found.append(x509.DNSName(name) if address is None else x509.IPAddress(ipaddress.ip_address(str(address))))
    if spiffe is not None:
        try:
            if not spiffe.startswith("spiffe:"):
                raise ConditionError(f"{spiffe}: wanted spiffe://DOMAIN/PATH")
            found.append(x509.UniformResourceIdentifier(str(parse_condition(spiffe))))
        except ConditionError as e:
            raise IssuingError(str(e)) from None
    return found


def _signs_alone(signer: certificates.PrivateKey) -> bool:
    """Tell whether the kind of key has its hash built in."""
    return not hasattr(signer, "key_size")


def _made(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, names: tuple[str, ...]) -> Made:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    ends = certificate.not_valid_after_utc
    return Made(certificate.public_bytes(Encoding.PEM), pem, names, ends, certificates.pin(certificate))
