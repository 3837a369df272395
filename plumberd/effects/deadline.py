"""Deadlines of one length, kept in the order in which they fall due.

A DelayedCall for every step of every lookup costs more than the step. All
deadlines of one kind are equally long, so they fall due in the order in which
they were made: one timer looks at the oldest. The length may change: each that
was ever in use and still has deadlines keeps a line of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_Line = OrderedDict[object, tuple[float, Callable[[], None]]]
"""Whose deadline it is, when it falls due, and what follows; the oldest first."""


class Deadlines:
    """Deadlines of *seconds*; each fires at most 1/8 of that late."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self.seconds = seconds
        self._clock = clock
        self._due: _Line = OrderedDict()
        self._former: dict[float, _Line] = {}
        """The lines of other lengths that still have deadlines, by their length."""
        self._timer: IDelayedCall | None = None

    def set(self, owner: object, expired: Callable[[], None]) -> None:
        """Call *expired* when the time is over, once; *owner* has one deadline here at a time."""
        self.cancel(owner)
        due = self._clock.seconds() + self.seconds
        is_first = not self._due
        self._due[owner] = (due, expired)
        if self._timer is None:
            self._timer = self._clock.callLater(self.seconds, self._look)
        elif is_first and self._timer.active() and self._timer.getTime() > due:
            self._timer.reset(self.seconds)  # it waits for a line that is slower

    def is_set(self, owner: object) -> bool:
        """Tell whether *owner* has a deadline here."""
        return owner in self._due or any(owner in line for line in self._former.values())

    def cancel(self, owner: object) -> None:
        """Forget *owner*'s deadline, if it has one."""
        self._due.pop(owner, None)
        for line in self._former.values():
            line.pop(owner, None)

    def change(self, seconds: float) -> None:
        """Make the deadlines that are set from now on *seconds* long; the others keep their time."""
        if seconds == self.seconds:
            return
        if self._due:
            self._former[self.seconds] = self._due
        self._due = self._former.pop(seconds, OrderedDict())
        self.seconds = seconds

    def close(self) -> None:
        """Forget all of them."""
        self._due.clear()
        self._former.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        now = self._clock.seconds()
        for seconds in (self.seconds, *self._former):
            line = self._due if seconds == self.seconds else self._former.get(seconds)
            while line:
                owner = next(iter(line))
                due, expired = line[owner]
                if due > now:
                    break
                del line[owner]
                try:
                    expired()  # may set new ones: the timer, though it has fired, still counts as set
                except Exception:
                    self._log.failure("what follows a deadline failed")  # and the other deadlines still hold
        self._former = {seconds: line for seconds, line in self._former.items() if line}
        if self._timer is not None and self._timer.active():  # closed by what followed, and set anew
            return
        lines = [(seconds, line) for seconds, line in ((self.seconds, self._due), *self._former.items()) if line]
        waits = [max(line[next(iter(line))][0] - now, seconds / 8) for seconds, line in lines]
        self._timer = self._clock.callLater(min(waits), self._look) if waits else None
