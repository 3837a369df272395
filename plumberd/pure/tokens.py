"""Bearer tokens of callers in a browser, and the file in which their digests stand: ``NAME:sha256:HEX`` a line.

A token is 256 random bits, so a plain digest of it tells nobody anything, and nobody has to be
slowed down who tries to find it. Nothing here shows one: the file holds digests alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from plumberd.pure.psk import WANTED_IDENTITY, PskError, check_identity

TOKEN_BYTES = 32
"""How many random bytes a token has."""

TOKEN_CHARS = 256
"""Longest token that is looked at."""

FILE_BYTES = 1 << 20
"""Longest file."""

TOKENS = 4096
"""Most tokens of a file: each is compared with what a caller shows."""

_HEX = re.compile(r"[0-9a-f]{64}\Z")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,256}=*\Z")  # RFC 6750, 2.1
_KIND = "sha256"


class TokenError(ValueError):
    """The text is no file of tokens.

    :ivar mistakes: all of them: the number of the line, counted from 1 (0 for the whole), and what is wrong
        there; nothing of a line is repeated, for it may be a token.
    """

    def __init__(self, mistakes: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"line {number}: {text}" if number else text for number, text in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True)
class Tokens:
    """Whose tokens are known, by their digests."""

    digests: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.digests)

    def name_of(self, token: str) -> str | None:
        """Return whose *token* it is; the time that takes says nothing of it."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: str | None = None
        for name, known in self.digests:
            if hmac.compare_digest(known, digest):
                found = name
        return found


def new_token(random_bytes: bytes) -> str:
    """Return a token of :data:`TOKEN_BYTES` random bytes, as base64url, which a subprotocol's name may hold."""
    if len(random_bytes) != TOKEN_BYTES:
        raise ValueError(f"{len(random_bytes)} bytes: wanted {TOKEN_BYTES}")
    return base64.urlsafe_b64encode(random_bytes).rstrip(b"=").decode("ascii")


def is_token(text: str) -> bool:
    """Tell whether *text* may be a token at all."""
    return len(text) <= TOKEN_CHARS and _TOKEN.match(text) is not None


def check_name(text: str) -> str:
    """Return *text*, which is the name of a token.

    :raises TokenError: it does not repeat *text*, which may be a token in the wrong place.
    """
    try:
        return check_identity(text)
    except PskError:
        raise TokenError([(0, f"no name of a token: wanted {WANTED_IDENTITY}")]) from None


def format_line(name: str, token: str) -> str:
    """Return the line of *token*, without its end; :func:`parse_tokens` reads it back."""
    return f"{name}:{_KIND}:{hashlib.sha256(token.encode('ascii')).hexdigest()}"


def parse_tokens(data: bytes) -> Tokens:
    """Return the tokens of a file. Empty lines, and those that begin with ``#``, are nothing.

    :raises TokenError: with every mistake in it.
    """
    found: dict[str, bytes] = {}
    lines: dict[str, int] = {}
    mistakes: list[tuple[int, str]] = []
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n"), 1):
        line = line.removesuffix("\r")
        if not line or line.startswith("#"):
            continue
        try:
            name, digest = _parse_line(line)
        except TokenError as e:
            mistakes += [(number, text) for _, text in e.mistakes]
            continue
        if name in found:
            mistakes.append((number, f"{name} stands in line {lines[name]} already"))
        else:
            found[name], lines[name] = digest, number
    if len(found) > TOKENS:
        mistakes.append((0, f"{len(found)} tokens: at most {TOKENS} are accepted"))
    if mistakes:
        raise TokenError(mistakes)
    return Tokens(tuple(found.items()))


def _parse_line(line: str) -> tuple[str, bytes]:
    name, _, rest = line.partition(":")
    kind, colon, digest = rest.partition(":")
    if not colon or kind != _KIND or not _HEX.match(digest):
        raise TokenError([(0, "wanted NAME:sha256: and 64 hexadecimal digits, as plumb token new prints them")])
    return check_name(name), bytes.fromhex(digest)
