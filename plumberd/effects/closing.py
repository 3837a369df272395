"""Close descriptors that others have, or had, a hand on, and wait for nobody.

close(2) can take as long as somebody else likes. The last copy of a TCP socket with
SO_LINGER waits for its unsent bytes, which its peer never reads; a file of a user's
own file system (FUSE) waits for that. Whoever can send such a descriptor, or is
handed one and closes its copy first, would stop everybody's broker.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorFromThreads

from plumberd.pure.admission import Admission, FairQueue

LINGER_SECONDS = 0.002
"""So long may the close of a socket take that was handed over; unhindered it takes microseconds."""

IN_ALL = 64
"""Threads that close what was sent unasked, a quarter of them for one user; while they are busy, no more is taken."""


def close_handed_over(fd: int) -> None:
    """Close our copy of a socket whose new owner may have it already, and may have closed it.

    Then ours is the last one, and a linger that the owner has set would be ours to wait for. A
    signal ends that wait, and the kernel goes on with it alone. The timer that sends it belongs
    to the process, and the signal to its main thread: elsewhere, and where SIGALRM is somebody
    else's, the descriptor is just closed.
    """
    if not _is_guarded():
        os.close(fd)
        return
    signal.setitimer(signal.ITIMER_REAL, LINGER_SECONDS, LINGER_SECONDS)
    try:
        os.close(fd)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _is_guarded() -> bool:
    return threading.get_ident() == threading.main_thread().ident and _is_signal_ours()


@functools.cache  # asking takes longer than closing
def _is_signal_ours() -> bool:
    """See to it that the signal does nothing but interrupt; tell whether that could be had."""
    if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN):
        return False
    signal.signal(signal.SIGALRM, _interrupt)
    return True


def _interrupt(number: int, frame: object) -> None:
    """Nothing: that a signal came is all that is wanted of it."""


@dataclass(eq=False)
class _Batch:
    key: Hashable
    fds: tuple[int, ...]
    done: Callable[[], None] | None


class Closer:
    """Closes what was sent unasked, in daemon threads; a few for each user and in all."""

    def __init__(self, reactor: IReactorFromThreads, total: int = IN_ALL) -> None:
        self._reactor = reactor
        self._places: FairQueue[Hashable, _Batch] = FairQueue(max(total // 4, 1), total, 2**31)
        self._waiting: list[Callable[[], None]] = []

    @property
    def active(self) -> int:
        """How many threads are at it."""
        return self._places.active

    def has_room(self, key: Hashable, later: Callable[[], None]) -> bool:
        """Tell whether more may be taken from *key*; if not, *later* is called when that may have changed."""
        places = self._places
        if places.active_of(key) < places.per_key and places.active < places.total:
            return True
        self._waiting.append(later)
        return False

    def close(self, key: Hashable, fds: Sequence[int], done: Callable[[], None] | None = None) -> None:
        """Close *fds* on behalf of *key*; they are not the caller's any more.

        :param done: called, later and in the reactor's thread, when all of them are closed.
        """
        batch = _Batch(key, tuple(fds), done)
        if self._places.enter(key, batch) is Admission.NOW:
            self._begin(batch)

    def _begin(self, batch: _Batch) -> None:
        try:
            threading.Thread(target=self._run, args=(batch, os.close), name="closer", daemon=True).start()
        except RuntimeError:  # no more threads: a file of FUSE could stop us here, and a linger only for a moment
            self._run(batch, close_handed_over)

    def _run(self, batch: _Batch, close: Callable[[int], None]) -> None:
        for fd in batch.fds:
            with contextlib.suppress(OSError):
                close(fd)
        self._reactor.callFromThread(self._closed, batch)

    def _closed(self, batch: _Batch) -> None:
        following = self._places.leave(batch.key)
        if following is not None:
            self._begin(following)
        if batch.done is not None:
            batch.done()
        waiting, self._waiting = self._waiting, []
        for later in waiting:
            later()
