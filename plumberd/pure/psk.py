"""Pre-shared keys, and the file in which they stand: stunnel's ``PSKsecrets``, ``identity:key`` a line.

A key of hexadecimal digits alone is what they say; any other is its own text, as
bytes. What stunnel takes silently for something that nobody can have meant is a
mistake here: an odd number of hexadecimal digits, blanks around a key, the same
identity twice, a line that was meant as a comment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LEAST_KEY_BYTES = 16
"""Shortest key (stunnel has the same): whoever sees a handshake may try keys at leisure (RFC 4279, 7.2)."""

MOST_KEY_BYTES = 512
"""Longest key: OpenSSL's PSK_MAX_PSK_LEN."""

IDENTITY_CHARS = 128
"""Longest identity: what everybody has to support (RFC 4279, 5.3)."""

FILE_BYTES = 4 << 20
"""Longest file, as of a configuration."""

NEW_KEY_BYTES = 32
"""How long a key is that is made here."""

WANTED_IDENTITY = f"1 to {IDENTITY_CHARS} printable ASCII characters without blank or colon, and no # in front"

_IDENTITY = re.compile(r"(?!#)[!-9;-~]{1,128}\Z")  # a rule's `psk:` has the same characters
_HEX = re.compile(rb"[0-9A-Fa-f]+\Z")


class PskError(ValueError):
    """The text is no identity, or no file of keys.

    :ivar mistakes: all of them: the number of the line, counted from 1 (0 for the whole), and what is wrong
        there; no key is repeated.
    """

    def __init__(self, mistakes: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"line {number}: {text}" if number else text for number, text in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True)
class PreSharedKey:
    """A name, and the secret that proves it."""

    identity: str
    key: bytes = field(repr=False)


def check_identity(text: str) -> str:
    """Return *text*, which is the name of a key.

    :raises PskError: it does not repeat *text*, which may be a key that stands in the wrong place.
    """
    if not _IDENTITY.match(text):
        raise PskError([(0, f"no name of a key: wanted {WANTED_IDENTITY}")])
    return text


def parse_keys(data: bytes) -> tuple[PreSharedKey, ...]:
    """Return the keys of a file, in their order.

    :raises PskError: with every mistake in it.
    """
    found: dict[str, PreSharedKey] = {}
    lines: dict[str, int] = {}
    mistakes: list[tuple[int, str]] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        try:
            key = _parse_line(line)
        except PskError as e:
            mistakes += [(number, text) for _, text in e.mistakes]
            continue
        if key.identity in found:
            mistakes.append((number, f"{key.identity} stands in line {lines[key.identity]} already"))
        else:
            found[key.identity], lines[key.identity] = key, number
    if not found and not mistakes:
        mistakes.append((0, "no key: wanted lines of identity:key"))
    if mistakes:
        raise PskError(mistakes)
    return tuple(found.values())


def format_key(key: PreSharedKey) -> str:
    """Return the line of *key*, without its end; :func:`parse_keys` reads it back."""
    return f"{key.identity}:{key.key.hex()}"


def _parse_line(line: bytes) -> PreSharedKey:
    identity, colon, text = line.partition(b":")
    if line.startswith(b"#"):
        raise _error("this format has no comments: stunnel would take the line for a key, or end with it")
    if not colon:
        raise _error("wanted identity:key")
    name = check_identity(identity.decode("latin-1"))
    if text != text.strip():
        raise _error("a blank before or behind the key would be a part of it")
    key = text
    if _HEX.match(text):
        if len(text) % 2:
            raise _error("an odd number of hexadecimal digits: one is missing, or one too many")
        key = bytes.fromhex(text.decode("ascii"))
    if not LEAST_KEY_BYTES <= len(key) <= MOST_KEY_BYTES:
        accepted = f"{LEAST_KEY_BYTES} to {MOST_KEY_BYTES} bytes"
        raise _error(f"a key of {len(key)} bytes: {accepted} are accepted, twice as many hexadecimal digits")
    if b"\0" in key and key is text:
        raise _error("a NUL in the key")
    return PreSharedKey(name, key)


def _error(text: str) -> PskError:
    return PskError([(0, text)])
