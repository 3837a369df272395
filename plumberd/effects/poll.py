"""Readiness of raw sockets: one edge-triggered epoll descriptor inside the reactor.

Twisted's reactor polls nothing for a descriptor that is registered for neither
reading nor writing, so a hang-up goes unseen; and its transports cannot give
their socket away. Here a socket is registered once, for every edge, and its
callback sees hang-ups, resets, and the moment when a client has taken what was
sent to it. The reactor sees one more reader, this object.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.logger import Logger
from zope.interface import implementer

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HUP = select.EPOLLHUP
ERR = select.EPOLLERR
_EDGES = IN | OUT | select.EPOLLRDHUP | select.EPOLLET
_EDGES_BUT_OUT = IN | select.EPOLLRDHUP | select.EPOLLET

EVENTS_A_ROUND = 256
"""Events taken before the reactor's other descriptors and timers have their turn."""

FEW_EVENTS = 8
"""More than that in a round, and the reactor has its turn: its own work is little then beside theirs."""

ROUNDS = 32
"""Rounds at most, then it has its turn in any case: as many events as in one large round."""

LOOKS = 16
"""How often one looks for an answer: some 20 µs, which is less than a round of the reactor."""

MOST_SKIPS = 63
"""Where that is in vain it is tried more and more seldom; at least once in so many times."""

Ready = Callable[[int], None]
"""``ready(events)``, events being a bit set of IN, OUT, HUP, ERR."""


@implementer(IReadDescriptor)
class Poll:
    """Watches raw sockets; it owns none of them.

    Whoever watches a descriptor calls :meth:`forget` before it closes it or gives it away:
    epoll goes on reporting a description that lives on in another process.
    """

    _log = Logger()

    def __init__(self, fds: IReactorFDSet, clock: IReactorTime) -> None:
        self._fds = fds
        self._clock = clock
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._fresh: set[int] = set()
        self._again: list[Callable[[], None]] = []
        self._timer: IDelayedCall | None = None
        self._expects = False
        self._skips = 0
        """How many chances to look again are let pass, since it was in vain."""
        self._penalty = 0
        fds.addReader(self)

    def watch(self, fd: int, ready: Ready, *, level: bool = False, room: bool = True) -> None:
        """Call *ready* at every edge of *fd*, beginning with the present state.

        *level* watches for reading alone, and again as long as there is something. Without *room* there
        is no edge for :data:`OUT` until :meth:`tell_room` asks for it: each packet that has left is one.
        """
        self._epoll.register(fd, IN if level else _EDGES if room else _EDGES_BUT_OUT)
        self._ready[fd] = ready
        self._fresh.add(fd)

    def tell_room(self, fd: int, *, wanted: bool) -> None:
        """Let a watched *fd* have edges for :data:`OUT` or not; where they are wanted, the present state is one."""
        self._epoll.modify(fd, _EDGES if wanted else _EDGES_BUT_OUT)

    def redirect(self, fd: int, ready: Ready) -> None:
        """Send the edges of a watched *fd* elsewhere."""
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Stop watching *fd*, if it is watched."""
        if self._ready.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed already, by who owns it
                self._epoll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Tell whether *fd* is watched."""
        return fd in self._ready

    def again(self, work: Callable[[], None]) -> None:
        """Call *work* in the next round: for who has more to do than is fair in one."""
        self._again.append(work)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._resume)

    def close(self) -> None:
        """Let the reactor forget this object; no watched socket is closed, and nothing is called any more."""
        self._fds.removeReader(self)
        self._ready.clear()
        self._again.clear()
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._epoll.close()

    def expect(self) -> None:
        """Say that a short message was passed on, whose answer may be here in a moment.

        A round of the reactor costs more than to carry one. So it is put off for that moment.
        """
        self._expects = True

    def doRead(self) -> None:
        """Dispatch what is ready; and where an answer is expected, and little else is going on, what comes of it."""
        for _ in range(ROUNDS):
            events = self._look() if self._expects else self._epoll.poll(0, EVENTS_A_ROUND)
            self._expects = False
            self._dispatch(events)
            if not self._expects or len(events) > FEW_EVENTS or self._again or self._epoll.closed:
                break
        self._expects = False

    def turn(self) -> None:
        """Dispatch what is ready, once."""
        self._dispatch(self._epoll.poll(0, EVENTS_A_ROUND))

    def _look(self) -> list[tuple[int, int]]:
        """Return what comes within a few looks; where nothing did, there is only one for a while."""
        events = self._epoll.poll(0, EVENTS_A_ROUND)
        if events:
            return events
        if self._skips:
            self._skips -= 1
            return []
        os.sched_yield()  # who has to answer may wait for this very processor
        for _ in range(LOOKS):
            if events := self._epoll.poll(0, EVENTS_A_ROUND):
                self._penalty = 0
                return events
        self._skips = self._penalty = min(2 * self._penalty + 1, MOST_SKIPS)
        return []

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        fresh = self._fresh
        fresh.clear()
        ready = self._ready
        for fd, bits in events:
            callback = ready.get(fd)
            # A descriptor registered during this round may have the number of one that
            # was closed in it: its own first edge comes with the next round.
            if callback is None or fd in fresh:
                continue
            try:
                callback(bits)
            except Exception:
                self._log.failure("a callback for a socket failed; the socket is no longer watched")
                if ready.get(fd) is callback:  # else it has gone already, and the number is another's
                    self.forget(fd)

    def fileno(self) -> int:
        """Return the epoll descriptor, for the reactor."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the prefix for the reactor's own messages."""
        return "poll"

    def connectionLost(self, reason: object) -> None:
        """Do nothing: the reactor calls this when it stops."""

    def _resume(self) -> None:
        self._timer = None
        works, self._again = self._again, []
        for work in works:
            if self._epoll.closed:
                return
            try:
                work()
            except Exception:
                self._log.failure("a continued piece of work failed")
