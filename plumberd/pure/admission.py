"""Limits with a fair queue: at most so many at once, in all and for each key.

What finds no place waits, first come first served among its own key; keys take
turns, so that one busy user delays itself alone.
"""

from __future__ import annotations

import enum
import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class Admission(enum.Enum):
    """What became of an entry."""

    NOW = "now"
    WAITS = "waits"
    FULL = "full"


class FairQueue(Generic[Key, Item]):
    """Counts places; every :meth:`enter` that was admitted is followed by one :meth:`leave`."""

    def __init__(self, per_key: int, total: int, waiting_per_key: int) -> None:
        self.per_key = per_key
        self.total = total
        self.waiting_per_key = waiting_per_key
        self._active: dict[Key, int] = {}
        self._count = 0
        self._waiting: OrderedDict[Key, deque[Item]] = OrderedDict()

    @property
    def active(self) -> int:
        """How many are in."""
        return self._count

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(len(q) for q in self._waiting.values())

    def active_of(self, key: Key) -> int:
        """How many of *key* are in."""
        return self._active.get(key, 0)

    def waiting_of(self, key: Key) -> int:
        """How many of *key* wait."""
        return len(self._waiting.get(key, ()))

    def most_active(self, count: int) -> list[tuple[Key, int]]:
        """Return the *count* keys of which most are in, and how many, the busiest first."""
        return heapq.nlargest(count, self._active.items(), key=lambda pair: pair[1])

    def most_waiting(self, count: int) -> list[tuple[Key, int]]:
        """Return the *count* keys of which most wait, and how many, the busiest first."""
        return heapq.nlargest(count, ((key, len(q)) for key, q in self._waiting.items()), key=lambda pair: pair[1])

    def enter(self, key: Key, item: Item) -> Admission:
        """Ask for a place for *item*: it is in, or waits for a :meth:`leave` to return it, or is refused."""
        if key not in self._waiting and self._fits(key):
            self._active[key] = self._active.get(key, 0) + 1
            self._count += 1
            return Admission.NOW
        queue = self._waiting.setdefault(key, deque())
        if len(queue) >= self.waiting_per_key:
            if not queue:
                del self._waiting[key]
            return Admission.FULL
        queue.append(item)
        return Admission.WAITS

    def leave(self, key: Key) -> Item | None:
        """Give a place of *key* back; return the waiting item that has it now, if one waits."""
        left = self._active[key] - 1
        if left:
            self._active[key] = left
        else:
            del self._active[key]
        self._count -= 1
        return self._next() if self._waiting else None

    def withdraw(self, key: Key, item: Item) -> bool:
        """Take a waiting *item* out of the queue; tell whether it was there."""
        queue = self._waiting.get(key)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._waiting[key]
        return True

    def change(self, per_key: int, total: int, waiting_per_key: int) -> list[Item]:
        """Take other limits; return the waiting items that have a place now, each to be left like any other.

        Who is in stays in, and who waits goes on waiting: smaller limits hold for who comes from now on.
        """
        self.per_key = per_key
        self.total = total
        self.waiting_per_key = waiting_per_key
        admitted = []
        while self._waiting and (item := self._next()) is not None:
            admitted.append(item)
        return admitted

    def _fits(self, key: Key) -> bool:
        return self._count < self.total and self._active.get(key, 0) < self.per_key

    def _next(self) -> Item | None:
        for key in list(self._waiting):
            if not self._fits(key):
                continue
            queue = self._waiting[key]
            item = queue.popleft()
            if queue:
                self._waiting.move_to_end(key)
            else:
                del self._waiting[key]
            self._active[key] = self._active.get(key, 0) + 1
            self._count += 1
            return item
        return None
