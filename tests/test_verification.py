"""Why a certificate was not believed: OpenSSL's numbers have sentences."""

from __future__ import annotations

from OpenSSL.SSL import _lib  # type: ignore[attr-defined]
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.verification import KNOWN, NO_CRL, OK, verify_reason
from tests.tables import each

UNTOLD = 99
"""A number that OpenSSL does not use."""


class Reasons(SynchronousTestCase):
    @each(
        ("CERT_NOT_YET_VALID", 0, "its certificate is not valid yet"),
        ("CERT_HAS_EXPIRED", 0, "its certificate has expired"),
        ("CERT_HAS_EXPIRED", 1, "an authority in its chain has expired"),
        ("DEPTH_ZERO_SELF_SIGNED_CERT", 0, "its certificate is self-signed, and not one that is trusted here"),
        ("SELF_SIGNED_CERT_IN_CHAIN", 1, "unknown authority: "),
        ("UNABLE_TO_GET_ISSUER_CERT_LOCALLY", 0, "unknown authority: "),
        ("UNABLE_TO_VERIFY_LEAF_SIGNATURE", 0, "unknown authority: "),
        ("CERT_SIGNATURE_FAILURE", 0, "the signature of its certificate is wrong"),
        ("CERT_REVOKED", 0, "its certificate was revoked"),
        ("CERT_REVOKED", 1, "an authority in its chain was revoked"),
        ("INVALID_PURPOSE", 0, "its certificate is not for this purpose"),
        ("INVALID_CA", 1, "an authority in its chain is no authority"),
        ("PATH_LENGTH_EXCEEDED", 2, "its chain is longer than an authority in it allows"),
        ("PERMITTED_VIOLATION", 0, "its authority may not issue certificates for such a name"),
        ("UNHANDLED_CRITICAL_EXTENSION", 0, "its certificate has a critical extension"),
        ("CRL_HAS_EXPIRED", 0, "the revocation list of its authority has expired"),
        ("CRL_SIGNATURE_FAILURE", 0, "the revocation list of its authority has a wrong signature"),
        ("UNABLE_TO_GET_CRL", 0, "nobody knows whether its certificate was revoked"),
    )
    def test_each_has_its_own(self, name: str, depth: int, wanted: str) -> None:
        reason = verify_reason(getattr(_lib, f"X509_V_ERR_{name}"), depth)
        self.assertTrue(reason.startswith(wanted), reason)

    def test_weak_keys_and_signatures_have_theirs(self) -> None:
        weak = [verify_reason(code, 1) for code in (66, 67, 68)]  # the bindings have no names for them
        self.assertTrue(all("weak" in reason for reason in weak), weak)

    def test_each_sentence_is_for_a_person(self) -> None:
        for code in KNOWN:
            for depth in (0, 1):
                self.assertRegex(verify_reason(code, depth), r"^(its|an?|the|nobody|unknown) [a-zA-Z][^.]*$")

    def test_one_that_has_none_is_told_by_its_number(self) -> None:
        self.assertEqual(verify_reason(UNTOLD), "its certificate cannot be verified (OpenSSL's error 99)")

    def test_the_numbers_that_are_asked_for_are_openssl_s(self) -> None:
        self.assertEqual((OK, NO_CRL), (_lib.X509_V_OK, _lib.X509_V_ERR_UNABLE_TO_GET_CRL))
