"""plumberd.commands.issuing: what OpenSSL verifies strictly, for its purpose and no other."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from unittest import SkipTest

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from plumberd.commands.issuing import IssuingError, Made, check_names, issue, new_authority
from plumberd.pure import certificates
from plumberd.pure.tls import parse_pin
from tests.configured import ConfiguredTestCase
from tests.issued import DAY, root, rsa_key
from tests.tables import each

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
AUTHORITY = new_authority("the authority", 30, NOW)
PAIR = (AUTHORITY.certificate, AUTHORITY.key)
IDENTITY = "spiffe://example.com/laptop"


def parsed(made: Made) -> x509.Certificate:
    return certificates.parse_certificates(made.certificate)[0]


class Names(ConfiguredTestCase):
    @each(
        (["Pong.Example.COM."], ("pong.example.com",)),
        (["*.Example.com", "b"], ("*.example.com", "b")),
        (["192.0.2.1", "2001:DB8::0:1", "[::1]"], ("192.0.2.1", "2001:db8::1", "::1")),
        (["bücher.example"], ("xn--bcher-kva.example",)),
        (["a", "A", "a."], ("a",)),
    )
    def test_each_has_one_spelling(self, texts: list[str], wanted: tuple[str, ...]) -> None:
        self.assertEqual(check_names(texts), wanted)

    @each(("",), ("a b",), ("a/b",), ("*",), ("*.192.0.2.1",), ("a.*.b",), ("127.1",), ("any",), ("tls://a",))
    def test_what_is_none(self, text: str) -> None:
        with self.assertRaises(IssuingError) as caught:
            check_names(["a", text])
        self.assertIn(text, str(caught.exception))


class Issued(ConfiguredTestCase):
    def test_an_authority_can_issue_certificates_and_revocation_lists_and_nothing_below(self) -> None:
        one = parsed(AUTHORITY)
        usage = one.extensions.get_extension_for_class(x509.KeyUsage)
        self.assertEqual((usage.critical, usage.value.key_cert_sign, usage.value.crl_sign), (True, True, True))
        self.assertFalse(usage.value.digital_signature)
        basic = one.extensions.get_extension_for_class(x509.BasicConstraints)
        self.assertEqual((basic.critical, basic.value.ca, basic.value.path_length), (True, True, 0))
        self.assertEqual(certificates.subject(one), "the authority")

    def test_what_is_proved(self) -> None:
        made = issue(PAIR, ["a.example", "*.b.example", "192.0.2.1", "::1"], 10, NOW, spiffe=IDENTITY)
        one = parsed(made)
        self.assertEqual(certificates.subject(one), "a.example")
        self.assertEqual(certificates.dns_names(one), ("a.example", "*.b.example"))
        self.assertEqual(certificates.addresses(one), ("192.0.2.1", "::1"))
        self.assertEqual(certificates.identities(one), {"cert:a.example", IDENTITY})
        self.assertEqual(made.names, ("a.example", "*.b.example", "192.0.2.1", "::1", IDENTITY))
        self.assertEqual(parse_pin(made.pin), made.pin)

    def test_the_keys_are_new_and_belong_to_their_certificates(self) -> None:
        made = [issue(PAIR, ["a"], 1, NOW), issue(PAIR, ["a"], 1, NOW), AUTHORITY]
        self.assertEqual(len({one.key for one in made}), 3)
        for one in made:
            key = certificates.parse_key(one.key)
            certificates.check_pair(parsed(one), key)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            self.assertEqual(key.curve.name, "secp256r1")
            self.assertNotIn("PRIVATE", repr(one))
        self.assertEqual(len({parsed(one).serial_number for one in made}), 3)

    def test_it_is_valid_a_little_before_now_and_no_longer_than_its_authority(self) -> None:
        one = parsed(issue(PAIR, ["a"], 10, NOW))
        self.assertEqual(one.not_valid_after_utc, NOW + 10 * DAY)
        self.assertLess(one.not_valid_before_utc, NOW)
        long = issue(PAIR, ["a"], 365, NOW)
        self.assertEqual((parsed(long).not_valid_after_utc, long.ends), (AUTHORITY.ends, AUTHORITY.ends))

    def test_a_name_that_is_too_long_for_a_subject_is_proved_all_the_same(self) -> None:
        name = ".".join(["a" * 40] * 3)
        one = parsed(issue(PAIR, [name], 1, NOW))
        self.assertEqual(certificates.dns_names(one), (name,))
        self.assertTrue(one.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical)

    @each(("ec", None), ("rsa", rsa_key(2048)), ("ed25519", ed25519.Ed25519PrivateKey.generate()))
    def test_any_authority_will_do(self, _: str, key: object) -> None:
        other = root("other", key)
        one = parsed(issue((other.pem, other.key_pem), ["a"], 1, NOW))
        self.assertTrue(certificates.is_issued_by(one, other.certificate))

    @each(
        ("no_certificate", b"", AUTHORITY.key, "the authority: no certificate in it"),
        ("no_key", AUTHORITY.certificate, b"", "the authority: no private key in it"),
        (
            "another_key",
            AUTHORITY.certificate,
            new_authority("b", 1, NOW).key,
            "the authority: the key does not belong",
        ),
        (
            "expired",
            *(lambda a: (a.certificate, a.key))(new_authority("b", 1, NOW - 2 * DAY)),
            "has expired; make a new one",
        ),
    )
    def test_what_is_no_authority(self, _: str, certificate: bytes, key: bytes, wanted: str) -> None:
        with self.assertRaises(IssuingError) as caught:
            issue((certificate, key), ["a"], 1, NOW)
        self.assertIn(wanted, str(caught.exception))

    @each(("spiffe:example.com",), ("spiffe://EXAMPLE/a",), ("login:alice",), ("https://a/b",), ("",))
    def test_what_is_no_spiffe_id(self, text: str) -> None:
        self.assertRaises(IssuingError, issue, PAIR, ["a"], 1, NOW, spiffe=text)

    @each(("",), ("x" * 65,), ("a\nb",))
    def test_what_is_no_name_of_an_authority(self, name: str) -> None:
        self.assertRaises(IssuingError, new_authority, name, 1, NOW)


class Strictly(ConfiguredTestCase):
    """What OpenSSL's own program says."""

    def verify(self, made: Made, purpose: str) -> bool:
        if shutil.which("openssl") is None:
            raise SkipTest("openssl is not there")
        words = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        words += ["-CAfile", self.write(AUTHORITY.certificate, "ca.pem"), self.write(made.certificate, "a.pem")]
        return subprocess.run(words, capture_output=True).returncode == 0

    @each(
        ("both", True, True),
        ("server", True, False),
        ("client", False, True),
    )
    def test_a_certificate_is_good_for_its_purpose_alone(self, _: str, server: bool, client: bool) -> None:
        made = issue(PAIR, ["a.example", "::1"], 1, NOW, server=server, client=client, spiffe=IDENTITY)
        found = [self.verify(made, purpose) for purpose in ("sslserver", "sslclient")]
        self.assertEqual(found, [server, client])

    def test_one_without_a_subject_is_good_too(self) -> None:
        self.assertTrue(self.verify(issue(PAIR, [".".join(["a" * 40] * 3)], 1, NOW), "sslserver"))

    def test_the_authority_itself_is_good(self) -> None:
        self.assertTrue(self.verify(AUTHORITY, "crlsign"))
