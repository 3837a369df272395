"""Deadlines of one length, kept in the order in which they fall due.

A DelayedCall for every step of every lookup costs more than the step. All
deadlines of one kind are equally long, so they fall due in the order in which
they were made: one timer looks at the oldest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger


class Deadlines:
    """Deadlines of *seconds*; each fires at most 1/8 of that late."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._due: OrderedDict[object, tuple[float, Callable[[], None]]] = OrderedDict()
        self._timer: IDelayedCall | None = None

    def set(self, owner: object, expired: Callable[[], None]) -> None:
        """Call *expired* when the time is over, once; *owner* has one deadline here at a time."""
        self._due.pop(owner, None)
        self._due[owner] = (self._clock.seconds() + self.seconds, expired)
        if self._timer is None:
            self._timer = self._clock.callLater(self.seconds, self._look)

    def is_set(self, owner: object) -> bool:
        """Tell whether *owner* has a deadline here."""
        return owner in self._due

    def cancel(self, owner: object) -> None:
        """Forget *owner*'s deadline, if it has one."""
        self._due.pop(owner, None)

    def close(self) -> None:
        """Forget all of them."""
        self._due.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        now = self._clock.seconds()
        while self._due:
            owner = next(iter(self._due))
            due, expired = self._due[owner]
            if due > now:
                self._timer = self._clock.callLater(max(due - now, self.seconds / 8), self._look)
                return
            del self._due[owner]
            try:
                expired()  # may set new ones: the timer, though it has fired, still counts as set
            except Exception:
                self._log.failure("what follows a deadline failed")  # and the other deadlines still hold
        self._timer = None
