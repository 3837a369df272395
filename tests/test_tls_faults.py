"""plumberd.pure.tls_faults: each fault has its own sentence and its word."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.refusals import Refusal
from plumberd.pure.tls_faults import VERIFY_FAILED, explain, word_of
from plumberd.pure.verification import verify_reason
from tests.tables import each


class Sentences(SynchronousTestCase):
    @each(
        (193, "no cipher suite in common"),
        (258, "no version of TLS in common: 1.2 and 1.3 are spoken here"),
        (267, "what it speaks is not TLS"),
        (156, "what it speaks is HTTP without TLS"),
        (199, "it shows no certificate, and one is wanted"),
        (235, "no protocol in common (ALPN)"),
        (253, "it knows another pre-shared key, or what it sent was changed on the way"),
        (294, "it hung up"),
        (399, "its certificate has a weak key"),
    )
    def test_what_this_side_has_found(self, reason: int, sentence: str) -> None:
        self.assertEqual(explain(reason, "whatever"), sentence)

    @each(
        (40, "it broke the handshake off: handshake failure"),
        (48, "it broke the handshake off: unknown authority"),
        (70, "it broke the handshake off: no version of TLS in common"),
        (115, "it broke the handshake off: unknown pre-shared key"),
        (116, "it broke the handshake off: it wants a certificate"),
        (200, "it broke the handshake off: alert 200"),
    )
    def test_what_the_far_side_has_found(self, alert: int, beginning: str) -> None:
        self.assertTrue(explain(1000 + alert, "whatever", alert=alert).startswith(beginning))

    @each((10,), (18,), (20,), (23,), (66,))
    def test_why_a_certificate_is_not_believed(self, code: int) -> None:
        self.assertEqual(explain(VERIFY_FAILED, "whatever", verify_error=code), verify_reason(code))

    def test_a_key_that_nobody_has_goes_before_what_came_of_it(self) -> None:
        self.assertEqual(explain(193, "", psk_named="ab\n"), "no pre-shared key is called 'ab?' here")

    def test_what_has_no_sentence_is_told_in_openssls_words_without_controls(self) -> None:
        self.assertEqual(explain(1, "odd\x1b thing"), "the handshake failed: odd? thing")


class Words(SynchronousTestCase):
    @each(
        ("it wants a certificate", 1116, 116, False, Refusal.UNAUTHENTICATED),
        ("it does not know our authority", 1048, 48, True, Refusal.UNAUTHENTICATED),
        ("it has nothing in common with us", 1040, 40, False, Refusal.UNREACHABLE),
        ("a caller is not believed", VERIFY_FAILED, None, True, Refusal.UNAUTHENTICATED),
        ("a server is not believed", VERIFY_FAILED, None, False, Refusal.UNREACHABLE),
        ("a caller shows nothing", 199, None, True, Refusal.UNAUTHENTICATED),
        ("a caller speaks no TLS", 267, None, True, Refusal.UNREACHABLE),
    )
    def test_where(self, what: str, reason: int, alert: int | None, inbound: bool, word: Refusal) -> None:
        self.assertIs(word_of(reason, alert=alert, inbound=inbound), word)

    def test_a_caller_that_names_no_known_key_is_unauthenticated(self) -> None:
        self.assertIs(word_of(193, alert=None, inbound=True, psk_named="x"), Refusal.UNAUTHENTICATED)
