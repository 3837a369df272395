"""Which alternative to try first: one that failed waits its turn behind the others for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import TypeVar

FIRST_SECONDS = 1.0
MOST_SECONDS = 60.0
KEPT = 1024
"""Most targets that are remembered; the one that failed longest ago is forgotten first."""

T = TypeVar("T", bound=Hashable)


class Backoff:
    """Remembers what failed and until when it is put last: 1 s, then twice as long each time, up to 60 s."""

    def __init__(self) -> None:
        self._failed: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def order(self, targets: Sequence[T], now: float) -> tuple[T, ...]:
        """Return *targets* with those behind that are resting; none is left out, for it may be the only one."""
        if len(targets) < 2 or not self._failed:
            return tuple(targets)
        return tuple(sorted(targets, key=lambda target: self.rests(target, now)))

    def rests(self, target: Hashable, now: float) -> bool:
        """Tell whether *target* failed a short while ago."""
        until, _ = self._failed.get(target, (now, 0.0))
        return until > now

    def failed(self, target: Hashable, now: float) -> None:
        """Put *target* last, for twice as long as the last time."""
        until, seconds = self._failed.pop(target, (0.0, 0.0))
        if until <= now:  # else several were under way at once, and failed once
            seconds = min(MOST_SECONDS, seconds * 2 or FIRST_SECONDS)
            until = now + seconds
        self._failed[target] = (until, seconds)
        if len(self._failed) > KEPT:
            self._failed.popitem(last=False)

    def worked(self, target: Hashable) -> None:
        """Forget that *target* ever failed."""
        if self._failed:
            self._failed.pop(target, None)

    def clear(self) -> None:
        """Forget everything."""
        self._failed.clear()
