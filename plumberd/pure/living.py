"""The TCP sockets that were handed over and still live, by the user who has them.

Nothing is kept open: a socket is known by its cookie, and nobody tells when it is
closed. Somebody who has asked the kernel which cookies there are takes the dead out.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from typing import NamedTuple


class HandedOver(NamedTuple):
    """One socket in another process; the same number of bytes for each, so that many can be remembered.

    :ivar cookie: the kernel's number for it (SO_COOKIE).
    :ivar uid: of the user who got it.
    :ivar service: what was asked for; empty where no service was.
    :ivar mode: ``locked`` or ``direct``.
    :ivar pid: of the process that asked; it may have given the socket away since.
    :ivar at: when it was handed over, in seconds since the epoch.
    :ivar ident: the number of the attempt in the audit log.
    """

    cookie: int
    uid: int
    service: str
    mode: str
    pid: int
    at: float
    ident: int


class Living:
    """What was handed over, and is not known to be closed."""

    def __init__(self) -> None:
        self._of_uid: dict[int, dict[int, HandedOver]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[HandedOver]:
        for entries in self._of_uid.values():
            yield from entries.values()

    def add(self, entry: HandedOver) -> None:
        """Remember *entry*; once, if it is told twice."""
        entries = self._of_uid.setdefault(entry.uid, {})
        if entry.cookie not in entries:
            entries[entry.cookie] = entry
            self._count += 1

    def of(self, uid: int) -> Collection[HandedOver]:
        """Return *uid*'s, the oldest first."""
        return self._of_uid.get(uid, {}).values()

    def count_of(self, uid: int) -> int:
        """How many *uid* has."""
        return len(self._of_uid.get(uid, ()))

    def most(self, count: int) -> list[tuple[int, int]]:
        """Return the *count* users that have most, and how many, the busiest first."""
        sizes = ((uid, len(entries)) for uid, entries in self._of_uid.items())
        return heapq.nlargest(count, sizes, key=lambda pair: pair[1])

    def find(self, cookie: int) -> HandedOver | None:
        """Return the entry of *cookie*, if there is one."""
        for entries in self._of_uid.values():
            if cookie in entries:
                return entries[cookie]
        return None

    def remove(self, uid: int, cookie: int) -> None:
        """Forget one, if it is there."""
        entries = self._of_uid.get(uid, {})
        if entries.pop(cookie, None) is not None:
            self._count -= 1
            if not entries:
                del self._of_uid[uid]

    def clear(self) -> None:
        """Forget all."""
        self._of_uid.clear()
        self._count = 0


class Check:
    """One look at who lives: told every cookie that there is, it takes out those of whom nothing was told.

    Only what was there at its beginning is judged: what is added later may have been missed.

    :ivar unseen: the cookies of which nothing was told yet, and whose they are.
    :ivar seen: how many were seen.
    """

    def __init__(self, living: Living) -> None:
        self._living = living
        self.unseen = {entry.cookie: entry.uid for entry in living}
        self.seen = 0
        self._seen_of: dict[int, int] = {}

    def saw(self, cookie: int) -> bool:
        """Take note of a living socket; tell whether all are seen, so that nobody need look on."""
        uid = self.unseen.pop(cookie, None)
        if uid is not None:
            self.seen += 1
            self._seen_of[uid] = self._seen_of.get(uid, 0) + 1
        return not self.unseen

    def seen_of(self, uid: int) -> int:
        """How many of *uid*'s were seen."""
        return self._seen_of.get(uid, 0)

    def end(self) -> int:
        """Take out who was not seen; return how many."""
        unseen, self.unseen = self.unseen, {}
        for cookie, uid in unseen.items():
            self._living.remove(uid, cookie)
        return len(unseen)
