"""One structured log event per outcome, written in batches off the path.

Formatting a log line costs about as much as half a lookup. So outcomes are
kept for a moment and logged together; under ordinary load each one is still an
event of its own, and only where many come in one moment do they share one.
What is to be kept for longer, and read by programs, goes to a sink as well: the
audit log, which makes its lines in a thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import time
from collections import deque
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from plumberd.pure.record import REFUSED, refusal
from plumberd.pure.record import Outcome as Outcome  # who notes one finds it here
from plumberd.pure.uri import Uri
from plumberd.pure.who import LocalWho

BATCH_SECONDS = 0.1
APART = 50
"""Up to so many outcomes of one batch are events of their own."""

REFUSALS = 16
"""So many refusals of each local user are remembered."""

REFUSED_USERS = 1024
"""Of so many users."""


class Sink(Protocol):
    """The audit log, :class:`plumberd.effects.auditlog.AuditLog`. Nothing here waits for it but its closing."""

    def write(self, batch: list[tuple[float, Outcome]]) -> None:
        """Take outcomes, each with its time in seconds since 1970."""

    def reopen(self) -> None:
        """Open anew what it writes to, where that can be."""

    def close(self, wait_seconds: float = ...) -> None:
        """Write what waits, and end."""


class Audit:
    """Collects outcomes, logs them, and remembers whom it has refused what.

    :ivar counts: of outcomes, by direction and verdict.
    """

    def __init__(self, clock: IReactorTime, log: Logger | None = None, sink: Sink | None = None) -> None:
        """*sink* is this object's own from then on."""
        self._clock = clock
        self._log = log or Logger("plumberd.audit")
        self._sink = sink
        self._kept: list[tuple[float, Outcome]] = []
        self._timer: IDelayedCall | None = None
        self._unwritten: list[tuple[float, Outcome]] = []
        self._writing: IDelayedCall | None = None
        self._refusals: dict[int, deque[tuple[float, Outcome]]] = {}
        # Several processes may write one log, and each begins again: 52 bits, which every reader of JSON keeps.
        self._idents = itertools.count((secrets.randbits(32) << 20) + 1)
        self.counts: dict[str, int] = {}

    def new_ident(self) -> int:
        """Return what all outcomes of one connection have in common; below 2**53."""
        return next(self._idents)

    def note(self, outcome: Outcome) -> None:
        """Log *outcome* soon."""
        key = f"{outcome.direction} {outcome.verdict}".strip()
        self.counts[key] = self.counts.get(key, 0) + 1
        kept = (time.time(), outcome)
        self._kept.append(kept)
        if outcome.verdict in REFUSED:
            self._remember(kept)
        if self._timer is None:
            self._timer = self._clock.callLater(BATCH_SECONDS, self.flush)
        if self._sink is not None:
            # Within this turn of the reactor's: a client that ends with its answer is not looked into any more.
            self._unwritten.append(kept)
            if self._writing is None:
                self._writing = self._clock.callLater(0, self._write)

    def flush(self) -> None:
        """Log what is kept now."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        self._write()
        kept, self._kept = self._kept, []
        if len(kept) <= APART:
            for when, outcome in kept:
                self._log.info("{outcome}", outcome=outcome, when=when)
        else:
            self._log.info("{outcomes}", outcomes=_Many(kept))

    def set_sink(self, sink: Sink | None) -> None:
        """Write to *sink* from now on. The old one gets what is kept, and ends by itself: nobody waits for it."""
        if sink is self._sink:
            return
        self.flush()
        old, self._sink = self._sink, sink
        if old is not None:
            old.close(0)

    def reopen(self) -> None:
        """Let the sink look again where it writes to."""
        if self._sink is not None:
            self._sink.reopen()

    def close(self) -> None:
        """Log what is kept, and end the sink: it has a second for what waits. Idempotent."""
        self.flush()
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def refusals_of(self, uid: int, service: str | None = None) -> list[dict[str, Any]]:
        """Return the last refusals of the local user *uid*, the newest first.

        :param service: leave all others out.
        :returns: dictionaries with ``time``, ``service``, ``uri``, ``to``, ``word``, ``reason``
            and ``rule``; texts, or ``None`` where there is none.
        """
        found = reversed(self._refusals.get(uid, ()))
        return [refusal(outcome, when) for when, outcome in found if service is None or outcome.service == service]

    def _write(self) -> None:
        if self._writing is not None and self._writing.active():
            self._writing.cancel()
        self._writing = None
        unwritten, self._unwritten = self._unwritten, []
        if unwritten and self._sink is not None:
            self._sink.write(unwritten)

    def _remember(self, kept: tuple[float, Outcome]) -> None:
        when, outcome = kept
        uid = outcome.who.uid if isinstance(outcome.who, LocalWho) else outcome.uid
        if uid is None or outcome.direction != "out":
            return
        mine = self._refusals.pop(uid, None)
        if mine is None:
            mine = deque(maxlen=REFUSALS)
            if len(self._refusals) >= REFUSED_USERS:
                del self._refusals[next(iter(self._refusals))]
        self._refusals[uid] = mine  # at the end: who was refused last is forgotten last
        mine.append((when, _without_password(outcome)))


def _without_password(outcome: Outcome) -> Outcome:
    """Return what prints the same: a password is not kept for longer than its connection needs it."""
    uri, to = _masked(outcome.uri), outcome.to
    if isinstance(to, Uri):
        to = _masked(to)
    if uri is outcome.uri and to is outcome.to:
        return outcome
    return dataclasses.replace(outcome, uri=uri, to=to)


def _masked(uri: Uri | None) -> Uri | None:
    return uri if uri is None or uri.password is None else dataclasses.replace(uri, password="")


class _Many(list[tuple[float, Outcome]]):
    """Outcomes that share one event, a line each."""

    def __str__(self) -> str:
        return f"{len(self)} outcomes\n" + "\n".join(
            f"{time.strftime('%H:%M:%S', time.gmtime(when))} {outcome}" for when, outcome in self
        )

    __format__ = object.__format__
