"""What a call of TLS may come to, short of being done: it waits, or it has failed."""

from __future__ import annotations

import enum

from plumberd.effects.pumps import Broken

EOF_REASON = 294
"""OpenSSL's reason for an end of the socket without an end of TLS (sslerr.h: SSL_R_UNEXPECTED_EOF_WHILE_READING)."""

ALERT_REASONS = 1000
"""A reason that is higher is the far side's alert, with its number added (SSL_AD_REASON_OFFSET)."""


class Want(enum.Enum):
    """What TLS waits for before it can go on, whichever way the bytes go."""

    READ = "read"
    WRITE = "write"


class TlsFault(Broken):
    """TLS cannot go on.

    :ivar reason: its number in ``sslerr.h``, 0 where it is none of those.
    """

    def __init__(self, how: str, reason: int, text: str) -> None:
        super().__init__(how, text)
        self.reason = reason

    def again(self) -> TlsFault:
        """Return the same, to be raised once more."""
        return TlsFault(self.how, self.reason, str(self))

    @property
    def alert(self) -> int | None:
        """The alert that the far side has sent (RFC 8446, 6), if that is what happened."""
        return self.reason - ALERT_REASONS if self.reason >= ALERT_REASONS else None


def truncated() -> TlsFault:
    """Return the fault that an end of the socket is, where TLS has not said one."""
    return TlsFault("truncated", EOF_REASON, "the far side has hung up without a word")
