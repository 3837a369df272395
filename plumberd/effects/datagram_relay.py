"""Carry messages between a program's end and datagrams, one message a datagram, until one side has ended.

What holds:

- Nothing is sent again, put in order or fragmented. What is too long for the path
  is not sent, and counted; so is what a program was too slow to read.
- A program that sends faster than the network takes is slowed.
- A program that sends no more can still receive; when it has closed, and what it sent before has gone, it is over.
- Where nothing went either way for the idle time, it is over. A service that goes on sending does not keep
  the session of a caller who is gone: on the called side only what comes from the caller counts.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects.messages import MessageEnd
from plumberd.effects.poll import ERR, HUP, OUT, Poll
from plumberd.framing import FramingError
from plumberd.pure.datagrams import CLOSE, DATA, END, HERE, Counts, Session

BATCH = 64
"""Messages of one side before they are passed on together, and before the other side has its turn."""

A_TURN = 4
"""Batches before other connections have theirs."""

_HERE_PARTS = 3
"""Who receives, and has sent nothing for such a part of the idle time, says that it is here: two may be lost."""

DRAIN_SECONDS = 30.0
"""How long what the far side sent before its end waits for a program that does not read."""


class Far(ABC):
    """The datagrams' side. The relay closes it.

    :ivar counts: what became of the messages.
    :cvar alone_counts: what the program sends does not keep the relay: the far side has to be heard of.
    """

    alone_counts = False

    def __init__(self) -> None:
        self.counts = Counts()
        self.relay: DatagramRelay | None = None

    @property
    @abstractmethod
    def limit_bytes(self) -> int:
        """The longest message that goes through, as far as is known."""

    @abstractmethod
    def start(self) -> None:
        """Begin to give the relay what comes: :meth:`DatagramRelay.received` and the rest."""

    @abstractmethod
    def send(self, messages: list[bytes]) -> int:
        """Send them in order; return how many are done with: fewer where :meth:`DatagramRelay.resume` tells of room.

        :raises OSError: the far side takes nothing any more.
        """

    def read_on(self) -> None:  # noqa: B027 - a hook: who shares a socket with others cannot wait
        """The program has room again for what comes."""

    def end(self) -> None:  # noqa: B027 - a hook: without a session nobody is told
        """The program sends no more."""

    def here(self) -> None:  # noqa: B027 - a hook: without a session nobody wants to know
        """The program sends nothing, and still listens."""

    @abstractmethod
    def close(self, *, tell: bool) -> None:
        """It is over; *tell* the far side, where that can be told. Idempotent."""


class DatagramRelay:
    """Owns both sides until it is done, then has closed both.

    :ivar up, down: bytes of messages from the program to the far side and back.
    :ivar ending: how it ended, for the log, and how many messages did not go as they should.
    """

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        near: MessageEnd,
        far: Far,
        idle_seconds: float,
        done: Callable[[DatagramRelay], None],
        *,
        too_large: Callable[[int, int], None] | None = None,
    ) -> None:
        """Prepare.

        :param done: told once, when both sides are closed.
        :param too_large: told of the first message that does not fit, its bytes and the limit.
        """
        self._poll = poll
        self._clock = clock
        self._near = near
        self.far = far
        far.relay = self
        self._idle_seconds = idle_seconds
        self._done: Callable[[DatagramRelay], None] | None = done
        self._too_large = too_large
        self._pending: list[bytes] = []
        self._again = False
        self._hung_up = self._is_deaf = self._waits_for_room = False
        self._told_end = False
        self._far_ended = False
        self._closing = ""
        self._active = self._said = clock.seconds()
        self._timer: IDelayedCall | None = None
        self.up = self.down = 0
        self.ending = ""

    @property
    def counts(self) -> Counts:
        """What became of the messages so far."""
        counts = self.far.counts
        counts.dropped += self._near.dropped
        self._near.dropped = 0
        return counts

    @property
    def has_room(self) -> bool:
        """Whether the program has taken all that came."""
        return not self._near.holds

    def start(self) -> None:
        """Begin."""
        self._timer = self._clock.callLater(self._idle_seconds, self._look)
        try:
            self._poll.watch(self._near.sock.fileno(), self._ready, room=False)
            self.far.start()
        except OSError as e:
            self._finish(os.strerror(e.errno or 0), tell=True)

    def abort(self) -> None:
        """End now."""
        self._finish("aborted", tell=True)

    # -- what the far side tells

    def heard(self, session: Session, datagrams: list[bytes]) -> None:
        """These have come for *session*, in this order."""
        messages: list[bytes] = []
        for datagram in datagrams:
            came = session.receive(datagram)
            if came is None:
                continue
            kind, message = came
            if kind == DATA:
                messages.append(message)
                continue
            if messages:
                self.received(messages)
                messages = []
            if kind == HERE:
                self.is_here()
            elif kind == END:
                self.far_ended()
            elif kind == CLOSE:
                self.far_closed("closed")
                return
        if messages:
            self.received(messages)

    def received(self, messages: list[bytes]) -> None:
        """These have come, in this order."""
        if self._done is None:
            return
        if self._closing or self._far_ended or self._is_deaf:  # the end has overtaken them, or nobody takes them
            self.far.counts.dropped += len(messages)
            return
        self.is_here()
        if self._active - self._said >= self._idle_seconds / _HERE_PARTS:
            self._said = self._active
            self.far.here()
        self.down += sum(map(len, messages))
        try:
            self._near.write(messages)
        except OSError:
            self._left()
            return
        if not self._near.holds:
            if len(messages) == 1:
                self._poll.expect()  # of a single one the next may be here in a moment; more are a stream of them
        elif not self._waits_for_room:
            self._waits_for_room = True
            self._poll.tell_room(self._near.sock.fileno(), wanted=True)

    def is_here(self) -> None:
        """Somebody is still there."""
        self._active = self._clock.seconds()

    def resume(self) -> None:
        """There is room for more."""
        if self._done is not None:
            self._from_near()

    def far_ended(self) -> None:
        """The far side sends no more."""
        if not self._far_ended and self._done is not None:
            self._far_ended = True
            self._pass_end()

    def far_closed(self, ending: str) -> None:
        """It is over there; what it sent before still reaches the program."""
        if self._closing or self._done is None:
            return
        self._closing = ending
        if not self._near.holds:
            self._finish(ending, tell=False)
            return
        self._stop_timer()
        self._timer = self._clock.callLater(DRAIN_SECONDS, self._finish, ending, tell=False)

    def too_large(self, size: int, limit: int) -> None:
        """A message did not fit; the first one is told of."""
        told, self._too_large = self._too_large, None
        self.far.counts.too_large += 1
        if told is not None:
            told(size, limit)

    # -- the program's side

    def _ready(self, events: int) -> None:
        if events & HUP or events & ERR:
            self._hung_up = True
        if events & OUT and self._near.holds:
            self._flush()
        if events & ~OUT and self._done is not None:
            self._from_near()

    def _flush(self) -> None:
        try:
            self._near.flush()
        except OSError:
            self._left()
            return
        if self._near.holds:
            return
        self._waits_for_room = False
        self._poll.tell_room(self._near.sock.fileno(), wanted=False)
        if self._closing:
            self._finish(self._closing, tell=False)
        elif self._far_ended:
            self._pass_end()
        else:
            self.far.read_on()

    def _left(self) -> None:
        """The program takes no more; what it sent before it went still goes, and then it is over.

        (What lies in a datagram socket the kernel throws away when a write finds nobody there.)
        """
        self._is_deaf = True
        self._near.forget()
        if self._closing:
            self._finish("closed by left", tell=True)
        else:
            self._from_near()

    def _from_near(self) -> None:
        """Move what the program has sent, as far as its turn lasts."""
        self._again = is_empty = False
        if self._closing:
            if self._hung_up:
                self._finish(self._closing, tell=False)
            return
        try:
            for _ in range(A_TURN):
                if not self._pending:
                    if self._near.ended or is_empty:
                        break
                    self._pending = self._near.read(BATCH)
                    if not self._pending:
                        break
                    is_empty = self._near.was_emptied
                    self._said = self._clock.seconds()
                    if not self.far.alone_counts:
                        self._active = self._said
                done = self.far.send(self._pending)
                self.up += sum(map(len, self._pending[:done]))
                if done < len(self._pending):
                    self._pending = self._pending[done:]
                    return  # the far side tells when there is room
                if done == 1:
                    self._poll.expect()
                self._pending = []
            else:
                self._later()
                return
        except FramingError as e:
            self._finish(str(e), tell=True)
            return
        except OSError as e:
            if self._done is not None:
                has_left = self._is_deaf and e.errno == errno.ECONNRESET  # with something unread
                self._finish("closed by left" if has_left else _how(e), tell=True)
            return
        if self._is_deaf:
            self._finish("closed by left", tell=True)
        if self._done is None or not self._near.ended:
            return
        if self._hung_up or self._far_ended:
            self._finish("closed", tell=True)
        elif not self._told_end:
            self._told_end = True
            self.far.end()

    def _later(self) -> None:
        if not self._again:
            self._again = True
            self._poll.again(self._go_on)

    def _go_on(self) -> None:
        if self._done is not None:
            self._from_near()

    def _pass_end(self) -> None:
        if self._near.holds:
            return  # with the last of it
        if self._near.ended and not self._pending:
            self._finish("closed", tell=True)
        else:
            self._near.pass_end()

    # -- the ends

    def _look(self) -> None:
        left = self._active + self._idle_seconds - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._look)
        else:
            self._timer = None
            self._finish(f"idle for {self._idle_seconds:g} seconds", tell=True)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _finish(self, ending: str, *, tell: bool) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self.ending = ending + _troubles(self.counts)
        self._stop_timer()
        self._poll.forget(self._near.sock.fileno())
        self._near.close()
        self.far.close(tell=tell)
        done(self)


def _troubles(counts: Counts) -> str:
    """Return what has gone wrong on the way, behind how it ended."""
    names = ("lost", "repeated", "reordered", "dropped", "too_large")
    said = [f"{count} {name.replace('_', ' ')}" for name in names if (count := getattr(counts, name))]
    return f"; {', '.join(said)}" if said else ""


def _how(error: OSError) -> str:
    if error.errno == errno.ECONNREFUSED:
        return "refused by right: nobody listens there"
    return f"broken: {os.strerror(error.errno or 0)}"
