"""One structured log event per outcome, written in batches off the path.

Formatting a log line costs about as much as half a lookup. So outcomes are
kept for a moment and logged together; under ordinary load each one is still an
event of its own, and only where many come in one moment do they share one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

BATCH_SECONDS = 0.1
APART = 50
"""Up to so many outcomes of one batch are events of their own."""


@dataclass(slots=True)
class Outcome:
    """What became of one attempt. It holds no secret.

    :ivar verdict: ``granted``, ``ended``, or the word of a refusal.
    :ivar direction: ``out``, ``in``; empty where it was no attempt yet.
    :ivar service: what was asked for; empty for none.
    :ivar to: where it went, or would have gone; a value that prints without its password.
    :ivar who: who asked; a value.
    :ivar rule: the rule or default that decided.
    :ivar mode: of the hand-over; ``relayed`` for what comes in.
    :ivar seconds: from the request to the outcome.
    :ivar reason: a sentence.
    :ivar up, down: bytes carried, for the end of a relay.
    """

    verdict: str
    direction: str = ""
    service: str = ""
    to: object = ""
    who: object = ""
    rule: str = ""
    mode: str = ""
    seconds: float = 0.0
    reason: str = ""
    up: int = 0
    down: int = 0

    def __str__(self) -> str:
        words = [self.verdict, self.direction, self.service or ("-" if self.direction else ""), str(self.to)]
        text = " ".join(w for w in words if w)
        for key, value in (("mode", self.mode), ("rule", self.rule), ("who", str(self.who))):
            if value:
                text += f" {key}=[{value}]" if " " in value else f" {key}={value}"
        if self.up or self.down:
            text += f" up={self.up} down={self.down}"
        text += f" {self.seconds * 1000:.1f} ms" if self.seconds else ""
        return text + (f": {self.reason}" if self.reason else "")


class Audit:
    """Collects outcomes and logs them."""

    def __init__(self, clock: IReactorTime, log: Logger | None = None) -> None:
        self._clock = clock
        self._log = log or Logger("plumberd.audit")
        self._kept: list[tuple[float, Outcome]] = []
        self._timer: IDelayedCall | None = None
        self.counts: dict[str, int] = {}

    def note(self, outcome: Outcome) -> None:
        """Log *outcome* soon."""
        key = f"{outcome.direction} {outcome.verdict}".strip()
        self.counts[key] = self.counts.get(key, 0) + 1
        self._kept.append((time.time(), outcome))
        if self._timer is None:
            self._timer = self._clock.callLater(BATCH_SECONDS, self.flush)

    def flush(self) -> None:
        """Log what is kept now."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        kept, self._kept = self._kept, []
        if len(kept) <= APART:
            for when, outcome in kept:
                self._log.info("{outcome}", outcome=outcome, when=when)
        else:
            self._log.info("{outcomes}", outcomes=_Many(kept))


class _Many(list[tuple[float, Outcome]]):
    """Outcomes that share one event, a line each."""

    def __str__(self) -> str:
        return f"{len(self)} outcomes\n" + "\n".join(
            f"{time.strftime('%H:%M:%S', time.gmtime(when))} {outcome}" for when, outcome in self
        )

    __format__ = object.__format__
