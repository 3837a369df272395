"""Why TLS came to no end, in sentences.

The numbers are OpenSSL's (``sslerr.h``, a part of its binary interface) and those of
the alerts (RFC 8446, section 6), which the far side sends. A sentence says ``it`` of the far side.
"""

from __future__ import annotations

from plumberd.pure.refusals import Refusal, printable
from plumberd.pure.verification import verify_reason

VERIFY_FAILED = 134
"""The certificate was not believed; why is another number (X509_V_ERR)."""

_NOT_TLS = "what it speaks is not TLS"
_NO_VERSION = "no version of TLS in common: 1.2 and 1.3 are spoken here"
_NO_CIPHER = "no cipher suite in common"
_NO_GROUP = "no group for the key exchange in common"
_NO_SIGNATURE = "no kind of signature in common"
_WRONG_SECRET = "it knows another pre-shared key, or what it sent was changed on the way"  # noqa: S105 (no secret)

_OURS = {
    101: _NO_GROUP,
    118: _NO_SIGNATURE,
    149: _WRONG_SECRET,
    155: _NOT_TLS,
    156: "what it speaks is HTTP without TLS",
    166: _NO_VERSION,
    193: _NO_CIPHER,
    198: _NOT_TLS,
    199: "it shows no certificate, and one is wanted",
    213: _NOT_TLS,
    235: "no protocol in common (ALPN)",
    244: "it sent something that has no place in the handshake",
    245: _NOT_TLS,
    252: _NOT_TLS,
    253: _WRONG_SECRET,
    258: _NO_VERSION,
    266: _NO_VERSION,
    267: _NOT_TLS,
    281: _WRONG_SECRET,
    294: "it hung up",
    339: "it wants to negotiate again, which is off",
    376: _NO_SIGNATURE,
    394: "its key exchange is weak",
    396: _NO_VERSION,
    397: "an authority in its chain has a weak key",
    398: "a certificate in its chain has a weak signature",
    399: "its certificate has a weak key",
    410: _NO_GROUP,
    443: _NOT_TLS,
}
"""What this side has found."""

_ALERTS = {
    10: "unexpected message",
    20: "bad record",
    22: "record overflow",
    40: "handshake failure: nothing in common, or it wants a proof that was not given",
    42: "bad certificate",
    43: "unsupported certificate",
    44: "certificate revoked",
    45: "certificate expired",
    46: "certificate unknown",
    47: "illegal parameter",
    48: "unknown authority",
    49: "access denied",
    50: "decode error",
    51: "decrypt error: a wrong signature or pre-shared key",
    70: "no version of TLS in common",
    71: "insufficient security",
    80: "internal error",
    86: "inappropriate fallback",
    90: "cancelled",
    109: "missing extension",
    110: "unsupported extension",
    112: "it has no certificate for that name",
    115: "unknown pre-shared key",
    116: "it wants a certificate",
    120: "no protocol in common (ALPN)",
}
"""What the far side has found."""

_UNPROVED_ALERTS = frozenset((42, 43, 44, 45, 46, 48, 49, 51, 115, 116))
_UNPROVED = frozenset((VERIFY_FAILED, 149, 199, 253, 281, 397, 398, 399))


def explain(
    reason: int, text: str, *, alert: int | None = None, verify_error: int = 0, psk_named: str | None = None
) -> str:
    """Return a sentence.

    :param reason: OpenSSL's number, and *text* what it calls that.
    :param alert: the far side's alert, where that is what ended it.
    :param verify_error: what was wrong with the far side's certificate, where *reason* says that it was not believed.
    :param psk_named: a pre-shared key that it named, and that nobody has here.
    """
    if alert is not None:
        return f"it broke the handshake off: {_ALERTS.get(alert, f'alert {alert}')}"
    if psk_named is not None:
        return f"no pre-shared key is called {printable(psk_named, 64)!r} here"
    if reason == VERIFY_FAILED:
        return verify_reason(verify_error)
    return _OURS.get(reason) or f"the handshake failed: {printable(text, 80)}"


def word_of(reason: int, *, alert: int | None, inbound: bool, psk_named: str | None = None) -> Refusal:
    """Return the word that goes with the sentence: who is believed by nobody is ``unauthenticated``.

    :param inbound: the far side has called us, and has proved nothing where that is what was wrong.
    """
    if alert is not None:
        return Refusal.UNAUTHENTICATED if alert in _UNPROVED_ALERTS else Refusal.UNREACHABLE
    if inbound and (psk_named is not None or reason in _UNPROVED):
        return Refusal.UNAUTHENTICATED
    return Refusal.UNREACHABLE
