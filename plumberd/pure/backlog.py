"""A queue with a limit, which counts what it has no room for.

What is put in comes out in the same order. Whoever is slow loses the newest,
never the oldest; and where something was lost, a mark stands in its place, made
when there is room again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """At most *most* items, and a mark for those that were dropped behind them.

    :ivar items: what waits; whoever takes from its left end calls :meth:`settle` afterwards.
    :ivar dropped: how many were dropped in all.
    """

    def __init__(self, most: int, mark: Callable[[int, float], T]) -> None:
        """*mark* makes an item of how many were dropped, and of when the first was."""
        self.items: deque[T] = deque()
        self.dropped = 0
        self._most = most
        self._mark = mark
        self._unmarked = 0
        self._since = 0.0

    def __len__(self) -> int:
        return len(self.items)

    def put(self, items: Sequence[T], now: float) -> int:
        """Append *items* as far as there is room; return how many there was none for.

        :param now: the time that a mark shows; seconds.
        """
        self.settle()
        room = max(self._most - len(self.items), 0)
        lost = len(items) - room
        if lost <= 0:
            self.items.extend(items)
            return 0
        self.items.extend(items[:room])
        if not self._unmarked:
            self._since = now
        self._unmarked += lost
        self.dropped += lost
        return lost

    def take(self, most: int) -> list[T]:
        """Remove and return the *most* oldest items, or what there is."""
        taken = [self.items.popleft() for _ in range(min(most, len(self.items)))]
        self.settle()
        return taken

    def settle(self) -> None:
        """Put the mark behind the rest, if one is due and there is room."""
        if self._unmarked and len(self.items) < self._most:
            self.items.append(self._mark(self._unmarked, self._since))
            self._unmarked = 0
