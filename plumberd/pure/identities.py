"""What a certificate proves, as conditions of rules are written: ``cert:NAME`` and ``spiffe://DOMAIN/PATH``."""

from __future__ import annotations

from collections.abc import Iterable

from plumberd.pure.host import UriError, parse_host
from plumberd.pure.policy.subject import ConditionError, parse_condition

SPIFFE = "spiffe://"

MOST_NAMES = 64
"""So many names of a certificate count; each is tried against rules."""


def certified(dns_names: Iterable[str], uris: Iterable[str]) -> frozenset[str]:
    """Return the identities in a certificate that was verified.

    A name that no rule could say counts for nothing, nor does one that says less than a rule would make
    of it. One with ``*`` proves none: whoever has it may be anybody below. A certificate has one SPIFFE
    ID, and with it no other URI (X509-SVID, 2 and 5.2): with more of them it is nobody's.
    """
    words = [f"cert:{name.lower()}" for name in list(dns_names)[:MOST_NAMES] if _is_plain(name)]
    found = list(uris)
    if len(found) == 1 and found[0].startswith(SPIFFE):
        words.append(found[0])
    return frozenset(word for text in words if (word := _condition(text)) is not None)


def keyed(psk_identity: str) -> frozenset[str]:
    """Return the identity that a pre-shared key proves."""
    word = _condition(f"psk:{psk_identity}")
    return frozenset(() if word is None else (word,))


def logged_in(user: str) -> frozenset[str]:
    """Return the identity that a login proves."""
    word = _condition(f"login:{user}")
    return frozenset(() if word is None else (word,))


def with_token(name: str) -> frozenset[str]:
    """Return the identity that a bearer token proves."""
    word = _condition(f"token:{name}")
    return frozenset(() if word is None else (word,))


def _is_plain(name: str) -> bool:
    try:
        return parse_host(name) == name.lower()
    except UriError:
        return False


def _condition(text: str) -> str | None:
    try:
        return str(parse_condition(text))
    except ConditionError:
        return None
