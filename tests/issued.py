"""Certificates for tests: good ones, and every kind of bad one."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import SkipTest

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plumberd.pure import tls

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def ec_key(curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    """Return a new key on a curve, P-256 if none is named."""
    return ec.generate_private_key(curve or ec.SECP256R1())


@functools.cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """Return a key; making one takes its time, so that all tests have the same."""
    return rsa.generate_private_key(65537, bits)


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and who has issued it.

    :ivar above: the certificates that stand behind it in its chain; a root is not among them.
    """

    certificate: x509.Certificate
    key: Any
    above: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def chain(self) -> bytes:
        """The certificate and what stands behind it."""
        return self.pem + b"".join(one.public_bytes(Encoding.PEM) for one in self.above)

    @property
    def key_pem(self) -> bytes:
        """The key."""
        return key_pem(self.key)

    @property
    def value(self) -> tls.Certificate:
        """It as the settings have it, without having been checked."""
        names = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        kind = "RSA" if isinstance(self.key, rsa.RSAPrivateKey) else "EC"
        return tls.Certificate(
            "chain.pem",
            "key.pem",
            self.chain,
            self.key_pem,
            dns_names=tuple(names.get_values_for_type(x509.DNSName)),
            kind=kind,
            ends=int(self.certificate.not_valid_after_utc.timestamp()),
        )

    def behind(self, *above: x509.Certificate) -> Issued:
        """Return it with another chain."""
        return replace(self, above=above)

    def authority(self, name: str, **wanted: Any) -> Issued:
        """Issue the certificate of an authority below this one."""
        return self.issue(name, is_authority=True, **wanted)

    def issue(
        self,
        *names: str,
        addresses: Sequence[str] = (),
        uris: Sequence[str] = (),
        key: Any = None,
        begins: datetime.datetime | None = None,
        ends: datetime.datetime | None = None,
        purposes: Sequence[x509.ObjectIdentifier] = BOTH,
        is_authority: bool = False,
    ) -> Issued:
        """Issue a certificate for *names*; the first is its subject too."""
        key = key or ec_key()
        builder = (
            _builder(names[0] if names else "nobody", key, begins, ends, is_authority)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )
        if not is_authority:
            said: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
            said += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            said += [x509.UniformResourceIdentifier(uri) for uri in uris]
            builder = builder.add_extension(x509.SubjectAlternativeName(said), False)
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), False)
        signed = builder.sign(self.key, _hash(self.key))
        is_root = self.certificate.subject == self.certificate.issuer
        return Issued(signed, key, () if is_root else (self.certificate, *self.above))

    def revoke(
        self, *revoked: Issued, begins: datetime.datetime | None = None, ends: datetime.datetime | None = None
    ) -> bytes:
        """Return the revocation list that takes *revoked* back."""
        begins = begins or NOW - DAY
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(begins)
            .next_update(ends or NOW + DAY)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(begins).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def with_sha1(authority: Issued, name: str) -> Issued:
    """Return a certificate whose signature is weak; the cryptography library makes none, and so ``openssl`` does.

    :raises SkipTest: where there is no such program.
    """
    if shutil.which("openssl") is None:
        raise SkipTest("openssl is not there")
    key = ec_key()
    with tempfile.TemporaryDirectory() as folder:
        for file, data in (("ca.pem", authority.pem), ("ca.key", authority.key_pem), ("key", key_pem(key))):
            with open(f"{folder}/{file}", "wb") as out:
                out.write(data)
        words = f"openssl req -x509 -CA ca.pem -CAkey ca.key -key key -sha1 -days 2 -subj /CN={name}"
        words += f" -addext subjectAltName=DNS:{name} -addext basicConstraints=critical,CA:FALSE"
        made = subprocess.run(words.split(), cwd=folder, capture_output=True, check=True)
    return Issued(x509.load_pem_x509_certificate(made.stdout), key)


def key_pem(key: Any) -> bytes:
    """Return a key as PEM."""
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def root(name: str = "test authority", key: Any = None, **wanted: Any) -> Issued:
    """Return a new authority that has issued its own certificate."""
    key = key or ec_key()
    builder = _builder(name, key, wanted.get("begins"), wanted.get("ends"), True)
    signed = builder.issuer_name(_name(name)).sign(key, _hash(key))
    return Issued(signed, key)


def self_signed(*names: str, **wanted: Any) -> Issued:
    """Return a certificate that nobody else has issued, and that is no authority's."""
    key = ec_key()
    builder = _builder(names[0], key, wanted.get("begins"), wanted.get("ends"), False).issuer_name(_name(names[0]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    return Issued(builder.sign(key, hashes.SHA256()), key)


def _hash(key: Any) -> hashes.SHA256 | None:
    """Return what to sign with; keys on Edwards curves have their own hash."""
    return hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else None


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    name: str,
    key: Any,
    begins: datetime.datetime | None,
    ends: datetime.datetime | None,
    is_authority: bool,
) -> x509.CertificateBuilder:
    public = key.public_key()
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    ) | dict.fromkeys(("encipher_only", "decipher_only"), False)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins or NOW - DAY)
        .not_valid_after(ends or NOW + 30 * DAY)
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **usage
            ),
            True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    )
