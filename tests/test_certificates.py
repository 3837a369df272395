"""Certificates, keys and revocation lists: what is read, and what is wrong with it."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure import certificates
from plumberd.pure.certificates import CertificateError
from plumberd.pure.identities import MOST_NAMES
from plumberd.pure.tls import parse_pin
from tests.issued import DAY, NOW, Issued, ec_key, key_pem, root, rsa_key, with_sha1
from tests.tables import PROPERTY, each

ROOT = root()
BETWEEN = ROOT.authority("between")
LEAF = BETWEEN.issue("a.example", "*.b.example", addresses=["192.0.2.1", "2001:db8::1"], uris=["spiffe://a/b"])
DAMAGED = LEAF.pem.replace(b"M", b"*", 1)
EMPTY = b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"


class Chains(SynchronousTestCase):
    @each(
        ("one_alone", ROOT.issue("a.example"), 1),
        ("with_who_has_issued_it", LEAF, 2),
        ("up_to_the_root", LEAF.behind(BETWEEN.certificate, ROOT.certificate), 3),
        ("a_root", ROOT, 1),
        ("rsa", ROOT.issue("a.example", key=rsa_key(2048)), 1),
        ("ed25519", ROOT.issue("a.example", key=ed25519.Ed25519PrivateKey.generate()), 1),
        ("ed448", ROOT.issue("a.example", key=ed448.Ed448PrivateKey.generate()), 1),
    )
    def test_what_is_one(self, _: str, issued: Issued, count: int) -> None:
        self.assertEqual(len(certificates.parse_chain(issued.chain)), count)

    @each(
        ("nothing", b"", "no certificate in it: wanted PEM"),
        ("a_key", LEAF.key_pem, "no certificate in it: wanted PEM"),
        ("der", LEAF.certificate.public_bytes(Encoding.DER), "no certificate in it: wanted PEM"),
        ("damaged", DAMAGED, "a certificate in it is damaged"),
        ("empty", EMPTY, "a certificate in it is damaged"),
        ("turned_round", BETWEEN.pem + LEAF.pem, "the chain is broken: between was not issued by a.example"),
        (
            "another_issuer",
            LEAF.pem + ROOT.authority("between").pem,
            "the chain is broken: a.example was not issued by between",
        ),
        ("one_left_out", LEAF.pem + ROOT.pem, "the chain is broken: a.example was not issued by test authority"),
        ("too_long", LEAF.pem * 11, "11 certificates: a chain of at most 10 is accepted"),
        (
            "weak_rsa",
            ROOT.issue("a.example", key=rsa_key(1024)).pem,
            "the certificate of a.example has a weak key: RSA of 1024",
        ),
        ("weak_curve", ROOT.issue("a.example", key=ec_key(ec.SECP224R1())).pem, "a weak key: the curve secp224r1"),
        (
            "a_weak_authority",
            ROOT.authority("weak", key=rsa_key(1024)).issue("a.example").chain,
            "the certificate of weak has a weak key",
        ),
    )
    def test_what_is_none(self, _: str, pem: bytes, wanted: str) -> None:
        with self.assertRaises(CertificateError) as caught:
            certificates.parse_chain(pem)
        self.assertIn(wanted, str(caught.exception))

    def test_a_weak_signature_is_none_unless_it_is_trusted_anyway(self) -> None:
        weak = with_sha1(ROOT, "a.example")
        with self.assertRaises(CertificateError) as caught:
            certificates.parse_chain(weak.pem)
        self.assertEqual(str(caught.exception), "the certificate of a.example has a weak signature, with SHA1")
        self.assertIsNone(certificates.weakness(weak.certificate, is_anchor=True))

    def test_a_chain_is_valid_from_the_last_beginning_to_the_first_end(self) -> None:
        between = ROOT.authority("between", begins=NOW - 9 * DAY, ends=NOW + 2 * DAY)
        chain = certificates.parse_chain(between.issue("a.example", begins=NOW - 3 * DAY, ends=NOW + 5 * DAY).chain)
        self.assertEqual(certificates.begins(chain), (NOW - 3 * DAY).timestamp())
        self.assertEqual(certificates.ends(chain), (NOW + 2 * DAY).timestamp())

    @PROPERTY
    @given(st.binary(max_size=300), st.integers(0, len(LEAF.chain)))
    def test_nothing_else_is_ever_raised(self, data: bytes, at: int) -> None:
        for pem in (data, LEAF.chain[:at] + data + LEAF.chain[at:]):
            try:
                self.assertTrue(certificates.parse_chain(pem))
            except CertificateError as e:
                self.assertTrue(str(e))


class Keys(SynchronousTestCase):
    @each(
        ("pkcs8", ec_key(), PrivateFormat.PKCS8),
        ("openssl_s_own", ec_key(), PrivateFormat.TraditionalOpenSSL),
        ("rsa", rsa_key(2048), PrivateFormat.TraditionalOpenSSL),
        ("ed25519", ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8),
    )
    def test_what_is_one(self, _: str, key: certificates.PrivateKey, format_: PrivateFormat) -> None:
        pem = key.private_bytes(Encoding.PEM, format_, NoEncryption())
        self.assertEqual(key_pem(certificates.parse_key(b"# a comment\n" + pem)), key_pem(key))

    @each(
        ("nothing", b"", "no private key in it: wanted PEM"),
        ("a_certificate", LEAF.pem, "no private key in it: wanted PEM"),
        ("damaged", LEAF.key_pem.replace(b"M", b"*", 1), "the key in it is damaged"),
        (
            "with_a_passphrase",
            LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
            "the key has a passphrase, and nobody is there to type it",
        ),
        (
            "with_an_old_passphrase",
            LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")),
            "the key has a passphrase, and nobody is there to type it",
        ),
        ("x25519", key_pem(x25519.X25519PrivateKey.generate()), "a key of this kind is not accepted"),
        ("dsa", key_pem(dsa.generate_private_key(2048)), "a key of this kind is not accepted"),
    )
    def test_what_is_none(self, _: str, pem: bytes, wanted: str) -> None:
        with self.assertRaises(CertificateError) as caught:
            certificates.parse_key(pem)
        self.assertIn(wanted, str(caught.exception))

    def test_it_belongs_to_its_own_certificate_alone(self) -> None:
        certificates.check_pair(LEAF.certificate, LEAF.key)
        with self.assertRaises(CertificateError) as caught:
            certificates.check_pair(LEAF.certificate, BETWEEN.key)
        self.assertEqual(str(caught.exception), "the key does not belong to the certificate of a.example")

    def test_no_mistake_repeats_it(self) -> None:
        for pem in (LEAF.key_pem.replace(b"M", b"*", 1), LEAF.key_pem[:-60]):
            with self.assertRaises(CertificateError) as caught:
                certificates.parse_key(pem)
            self.assertNotIn(pem.splitlines()[1][5:25].decode(), str(caught.exception))


class Lists(SynchronousTestCase):
    def test_all_of_a_file_are_read(self) -> None:
        found = certificates.parse_revocation_lists(ROOT.revoke(LEAF) + b"between\n" + BETWEEN.revoke())
        self.assertEqual([one.issuer for one in found], [ROOT.certificate.subject, BETWEEN.certificate.subject])

    @each(
        ("nothing", b"", "no revocation list in it"),
        ("a_certificate", ROOT.pem, "no revocation list in it"),
        ("damaged", ROOT.revoke().replace(b"M", b"*", 1), "a revocation list in it is damaged"),
    )
    def test_what_is_none(self, _: str, pem: bytes, wanted: str) -> None:
        with self.assertRaises(CertificateError) as caught:
            certificates.parse_revocation_lists(pem)
        self.assertIn(wanted, str(caught.exception))


class Contents(SynchronousTestCase):
    def test_the_names_that_it_proves(self) -> None:
        one = LEAF.certificate
        self.assertEqual(certificates.dns_names(one), ("a.example", "*.b.example"))
        self.assertEqual(certificates.addresses(one), ("192.0.2.1", "2001:db8::1"))
        self.assertEqual(certificates.uris(one), ("spiffe://a/b",))

    @each(
        (
            "names",
            ROOT.issue("a.example", "B.Example", "xn--bcher-kva.example"),
            "cert:a.example cert:b.example cert:xn--bcher-kva.example",
        ),
        ("a_wildcard", ROOT.issue("*.example", "a.example"), "cert:a.example"),
        ("no_name", ROOT.issue("any", "127.1", "a%2eexample", "a.example.", "two words", "a\n.example", ""), ""),
        ("an_address", ROOT.issue(addresses=["192.0.2.1"]), ""),
        ("a_spiffe_id", ROOT.issue(uris=["spiffe://example.com/db/main"]), "spiffe://example.com/db/main"),
        ("another_uri", ROOT.issue(uris=["https://example.com/db"]), ""),
        ("two_uris", ROOT.issue(uris=["spiffe://example.com/a", "spiffe://example.com/b"]), ""),
        ("a_malformed_spiffe_id", ROOT.issue(uris=["spiffe://EXAMPLE.com/../a"]), ""),
        ("a_word_of_another_kind", ROOT.issue(uris=["login:alice"]), ""),
        ("a_subject", ROOT, ""),
    )
    def test_what_it_proves_in_the_words_of_rules(self, _: str, issued: Issued, wanted: str) -> None:
        self.assertEqual(sorted(certificates.identities(issued.certificate)), wanted.split())

    def test_few_names_count(self) -> None:
        names = [f"n{number}.example" for number in range(MOST_NAMES + 1)]
        found = certificates.identities(ROOT.issue(*names).certificate)
        self.assertEqual(found, {f"cert:{name}" for name in names[:-1]})

    def test_its_subject_proves_none(self) -> None:
        self.assertEqual(certificates.subject(ROOT.certificate), "test authority")
        self.assertEqual(certificates.dns_names(ROOT.certificate), ())

    def test_what_it_calls_itself_is_printable(self) -> None:
        self.assertEqual(certificates.subject(ROOT.issue("a\x1b]0;b\x07").certificate), "a?]0;b?")

    def test_its_pin_is_its_key_s(self) -> None:
        again = ROOT.issue("b.example", key=LEAF.key)
        pin = certificates.pin(LEAF.certificate)
        self.assertEqual(parse_pin(pin), pin)
        self.assertEqual(certificates.pin(again.certificate), pin)
        self.assertNotEqual(certificates.pin(ROOT.certificate), pin)

    @each(
        (ec_key(), "EC"),
        (rsa_key(2048), "RSA"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (ed448.Ed448PrivateKey.generate(), "Ed448"),
    )
    def test_its_kind_is_its_key_s(self, key: certificates.PrivateKey, wanted: str) -> None:
        self.assertEqual(certificates.kind(ROOT.issue("a.example", key=key).certificate), wanted)

    def test_a_key_of_another_kind_is_weak(self) -> None:
        one = ROOT.issue("a.example", key=dsa.generate_private_key(2048)).certificate
        self.assertEqual(certificates.weakness(one), "a key of another kind than RSA, EC, Ed25519 and Ed448")
