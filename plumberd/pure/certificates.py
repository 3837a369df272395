"""Certificates, keys and revocation lists: bytes in, values of the cryptography library out, or what is wrong.

What is asked of others is asked of ourselves: RSA keys of 2048 bits, curves of
256, no signature with MD5 or SHA-1 (NIST SP 800-131A).
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from plumberd.pure.identities import certified
from plumberd.pure.refusals import printable

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

LEAST_RSA_BITS = 2048
LEAST_CURVE_BITS = 256
FILE_BYTES = 1 << 20
"""Longest file of a certificate or key; those of authorities may have more."""

TRUST_BYTES = 16 << 20
"""Longest file of authorities, or of revocation lists."""

CHAIN = 10
"""Most certificates in a chain: OpenSSL sends what it is given, and others stop reading at 100 KiB."""

_WEAK_HASHES = ("md5", "sha1")
_KINDS = (
    ("RSA", rsa.RSAPublicKey),
    ("EC", ec.EllipticCurvePublicKey),
    ("Ed25519", ed25519.Ed25519PublicKey),
    ("Ed448", ed448.Ed448PublicKey),
)
_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class CertificateError(ValueError):
    """It cannot be used: what was found, and what would be accepted."""


def parse_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a file, at least one.

    :raises CertificateError: otherwise.
    """
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise CertificateError("no certificate in it: wanted PEM, -----BEGIN CERTIFICATE-----")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateError("a certificate in it is damaged") from None


def parse_chain(pem: bytes) -> list[x509.Certificate]:
    """Return a certificate and those of who has issued it, each issued by the next one.

    :raises CertificateError: otherwise, and for a weak one.
    """
    chain = parse_certificates(pem)
    if len(chain) > CHAIN:
        raise CertificateError(f"{len(chain)} certificates: a chain of at most {CHAIN} is accepted")
    for one in chain:
        weak = weakness(one, is_anchor=one.issuer == one.subject)
        if weak is not None:
            raise CertificateError(f"the certificate of {subject(one)} has {weak}")
    for issued, issuer in itertools.pairwise(chain):
        if not is_issued_by(issued, issuer):
            raise CertificateError(
                f"the chain is broken: {subject(issued)} was not issued by {subject(issuer)}, which stands behind it"
                "; wanted our own certificate first, then who has issued it, and so on"
            )
    return chain


def parse_key(pem: bytes) -> PrivateKey:
    """Return a private key.

    :raises CertificateError: where there is none, or a passphrase before it.
    """
    if b"PRIVATE KEY-----" not in pem:
        raise CertificateError("no private key in it: wanted PEM, -----BEGIN PRIVATE KEY-----")
    try:
        key = load_pem_private_key(pem, None)
    except TypeError:
        raise CertificateError("the key has a passphrase, and nobody is there to type it: wanted one without") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("the key in it is damaged, or of an unknown kind") from None
    if not isinstance(key, PrivateKey):
        raise CertificateError("a key of this kind is not accepted: wanted RSA, EC, Ed25519 or Ed448")
    return key


def check_pair(certificate: x509.Certificate, key: PrivateKey) -> None:
    """Check that they belong together.

    :raises CertificateError: otherwise.
    """
    if spki(certificate) != key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise CertificateError(f"the key does not belong to the certificate of {subject(certificate)}")


def parse_revocation_lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Return the revocation lists of a file, at least one.

    :raises CertificateError: otherwise.
    """
    blocks = _CRL_BLOCK.findall(pem)
    if not blocks:
        raise CertificateError("no revocation list in it: wanted PEM, -----BEGIN X509 CRL-----")
    try:
        return [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError:
        raise CertificateError("a revocation list in it is damaged") from None


def weakness(certificate: x509.Certificate, *, is_anchor: bool = False) -> str | None:
    """Return what is weak about it, or ``None``; of one that is trusted for itself nobody looks at the signature."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "a key of an unknown kind"
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            return f"a weak key: RSA of {key.key_size} bits, and at least {LEAST_RSA_BITS} are wanted"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.key_size < LEAST_CURVE_BITS:
            return f"a weak key: the curve {key.curve.name}, and one of at least {LEAST_CURVE_BITS} bits is wanted"
    elif not isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return "a key of another kind than RSA, EC, Ed25519 and Ed448"
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return "a signature of an unknown kind"
    if not is_anchor and algorithm is not None and algorithm.name in _WEAK_HASHES:
        return f"a weak signature, with {algorithm.name.upper()}"
    return None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tell whether *issuer* has signed it, and is called what it says."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def subject(certificate: x509.Certificate) -> str:
    """Return what it calls itself, for people: whatever others have chosen is printable."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    text = str(names[0].value) if names else certificate.subject.rfc4514_string()
    return printable(text or ", ".join((*dns_names(certificate), *uris(certificate))) or "nobody", 80)


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the DNS names that it proves: those of its subjectAltName alone (RFC 9525, 2)."""
    return tuple(_alternatives(certificate, x509.DNSName))


def addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the addresses that it proves."""
    return tuple(map(str, _alternatives(certificate, x509.IPAddress)))


def uris(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the URIs that it proves."""
    return tuple(_alternatives(certificate, x509.UniformResourceIdentifier))


def identities(certificate: x509.Certificate) -> frozenset[str]:
    """Return what it proves, as conditions of rules are written. It has to have been verified."""
    return certified(dns_names(certificate), uris(certificate))


def kind(certificate: x509.Certificate) -> str:
    """Return the kind of its key."""
    key = certificate.public_key()
    return next((name for name, type_ in _KINDS if isinstance(key, type_)), "unknown")


def spki(certificate: x509.Certificate) -> bytes:
    """Return its public key, as DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def pin(certificate: x509.Certificate) -> str:
    """Return the pin of its key, as :func:`plumberd.pure.tls.parse_pin` has it."""
    return f"sha256:{hashlib.sha256(spki(certificate)).hexdigest()}"


def begins(certificates: Sequence[x509.Certificate]) -> int:
    """Return from when on all of them are valid, in seconds since 1970."""
    return max(int(one.not_valid_before_utc.timestamp()) for one in certificates)


def ends(certificates: Sequence[x509.Certificate]) -> int:
    """Return when the first of them ends."""
    return min(int(one.not_valid_after_utc.timestamp()) for one in certificates)


def _alternatives(certificate: x509.Certificate, type_: type[x509.GeneralName]) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []  # a damaged one proves nothing
    return [name.value for name in names if isinstance(name, type_)]
