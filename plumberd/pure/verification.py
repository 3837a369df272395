"""Why a certificate was not believed, in sentences.

The numbers are OpenSSL's (``x509_vfy.h``), and a part of its binary interface.
Each sentence begins with whose certificate it is; whoever prints it knows of
whom it speaks.
"""

from __future__ import annotations

OK = 0
NO_CRL = 3
"""There is no revocation list of who has issued it."""

_OWN = {
    2: "an authority in its chain was issued by nobody who is known here",
    7: "the signature of its certificate is wrong",
    9: "its certificate is not valid yet",
    10: "its certificate has expired",
    18: "its certificate is self-signed, and not one that is trusted here",
    19: "unknown authority: its chain ends in an authority that is not trusted here",
    20: "unknown authority: its certificate was issued by nobody who is trusted here",
    21: "unknown authority: it shows its own certificate alone, and who has issued it is not known here",
    22: "its chain of certificates is too long",
    23: "its certificate was revoked",
    26: "its certificate is not for this purpose (extended key usage)",
    28: "its certificate was rejected",
    32: "its authority may not issue certificates (key usage)",
    34: "its certificate has a critical extension that is not known here",
    47: "its authority may not issue certificates for such a name (name constraints)",
    48: "its authority may not issue certificates for such a name (name constraints)",
    66: "its certificate has a weak key",
    67: "an authority in its chain has a weak key",
    68: "its certificate has a weak signature",
    79: "an authority in its chain is no authority",
    94: "a certificate in its chain has a key on a curve of its own",
}

_LISTS = {
    3: "nobody knows whether its certificate was revoked: no list here is its authority's own",
    4: "the revocation list of its authority is damaged",
    8: "the revocation list of its authority has a wrong signature",
    11: "the revocation list of its authority is not valid yet",
    12: "the revocation list of its authority has expired: it wants a newer one",
    15: "the revocation list of its authority is damaged",
    16: "the revocation list of its authority is damaged",
    33: "the revocation list of its authority was issued by somebody else",
    35: "the authority may not issue revocation lists (key usage)",
    36: "the revocation list of its authority has a critical extension that is not known here",
    44: "the revocation list of its authority covers other certificates",
    54: "the revocation list of its authority was issued by nobody who is trusted here",
}

_ABOVE = {
    9: "an authority in its chain is not valid yet",
    10: "an authority in its chain has expired",
    23: "an authority in its chain was revoked",
    24: "an authority in its chain has no key",
    25: "its chain is longer than an authority in it allows",
    26: "an authority in its chain is not for this purpose (extended key usage)",
    68: "an authority in its chain has a weak signature",
}
"""The same of who has issued it."""

KNOWN = frozenset((*_OWN, *_LISTS, *_ABOVE))
"""The numbers that have a sentence of their own."""


def verify_reason(code: int, depth: int = 0) -> str:
    """Return a sentence for one of OpenSSL's X509_V_ERR numbers.

    :param depth: 0 is the certificate itself, 1 who has issued it, and so on.
    """
    if depth > 0 and code in _ABOVE:
        return _ABOVE[code]
    found = _OWN.get(code) or _LISTS.get(code) or _ABOVE.get(code)
    return found or f"its certificate cannot be verified (OpenSSL's error {code})"
