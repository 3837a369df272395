"""plumberd.effects.tls_ending: a fault's words, and OpenSSL's numbers in it."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.pumps import Broken
from plumberd.effects.tls_ending import ALERT_REASONS, EOF_REASON, TlsFault, truncated


class Faults(SynchronousTestCase):
    def test_an_end_without_a_word_is_openssl_s(self) -> None:
        fault = truncated()
        self.assertIsInstance(fault, Broken)
        self.assertEqual((fault.how, fault.reason, fault.alert), ("truncated", EOF_REASON, None))
        self.assertEqual(EOF_REASON, SSL._lib.SSL_R_UNEXPECTED_EOF_WHILE_READING)  # type: ignore[attr-defined]

    def test_the_far_side_s_alert_is_in_its_reason(self) -> None:
        self.assertEqual(TlsFault("broken off", ALERT_REASONS + 42, "").alert, 42)

    def test_the_same_again_is_another_object_that_says_the_same(self) -> None:
        fault = TlsFault("garbled", 7, "why")
        again = fault.again()
        self.assertIsNot(again, fault)
        self.assertEqual((again.how, again.reason, str(again)), ("garbled", 7, "why"))
