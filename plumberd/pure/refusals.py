"""Why something was refused: one closed list of words, and the exception that carries them.

The same word stands on the wire, in the log, in ``plumb``'s output and in
docs/protocol.md. The reason beside it is a sentence for a person.
"""

from __future__ import annotations

import enum

REASON_BYTES = 400
"""Longest reason that is sent to a client; a sentence, not a story."""

FAR_REASON_CHARS = 200
"""A far side's own words are cut to this many printable ASCII characters before they are shown."""


class Refusal(enum.Enum):
    """The closed enumeration of refusals."""

    DENIED = "denied"
    """A rule, a default, a mode bit or a reserved name says no."""
    UNAUTHENTICATED = "unauthenticated"
    """The far side wants a proof that was not given."""
    UNKNOWN_SERVICE = "unknown-service"
    """Nobody listens under that name."""
    UNREACHABLE = "unreachable"
    """The far side could not be reached, or did not answer as it should."""
    TIMEOUT = "timeout"
    """A step took longer than its deadline."""
    BAD_REQUEST = "bad-request"
    """The request cannot be understood."""
    BUSY = "busy"
    """A limit is reached; the reason names it."""
    NOT_POSSIBLE = "not-possible"
    """What was asked for cannot be done here: a scheme, a mode, an identity."""


class Refused(Exception):
    """A request is refused.

    :ivar word: the :class:`Refusal`.
    :ivar reason: a sentence for a person; it holds no secret.
    """

    def __init__(self, word: Refusal, reason: str) -> None:
        super().__init__(f"{word.value}: {reason}")
        self.word = word
        self.reason = reason


def printable(text: bytes | str, limit: int = FAR_REASON_CHARS) -> str:
    """Cut hostile text to *limit* printable ASCII characters; all others become ``?``."""
    if isinstance(text, bytes):
        text = text[: limit * 4].decode("ascii", "replace")
    return "".join(c if " " <= c <= "~" else "?" for c in text[:limit])
