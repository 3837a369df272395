"""Carry bytes between two raw sockets, exactly.

Each direction is a pump (:mod:`plumberd.effects.pumps`): spliced in the kernel,
or cut and joined where one side has packets. What holds:

- Every byte that one side sent before it closed reaches the other.
- The end of one direction is passed on as the end of that direction alone.
- A slow reader slows the sender; at most what one pump holds waits in between.
- One that closes with bytes unread, or dies, becomes a reset for a TCP peer,
  after the bytes that it sent before have arrived there.
- A TCP peer's reset closes the other side at once, half-closed or not.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects import kernel
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import ERR, HUP, Poll
from plumberd.effects.pumps import Broken, Pump, SplicePump, Untranslatable

A_TURN = 16
"""Rounds of one pump before others have their turn."""

UNIX_BUFFER_BYTES = 1 << 20
"""SO_SNDBUF of the UNIX side: worth 10 to 40 % with eight streams."""

DRAIN_SECONDS = 30.0
"""How long a reset waits for the bytes before it to arrive."""

_DRAIN_FIRST_SECONDS = 0.005
_DRAIN_MOST_SECONDS = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)


class Relay:
    """Owns both sockets until it is done, then has closed both.

    :ivar up, down: bytes moved from *left* to *right* and back.
    :ivar ending: how it ended, a word for the log: ``closed``, ``reset by left`` and the like.
    """

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        pipes: PipePool,
        left: socket.socket,
        right: socket.socket,
        done: Callable[[Relay], None],
        *,
        forth: Pump | None = None,
        back: Pump | None = None,
    ) -> None:
        """Prepare; :meth:`start` begins.

        :param forth, back: the pumps from left to right and back; spliced where none is given.
        :param done: told once, when both sockets are closed.
        """
        for sock in (left, right):
            if sock.family == socket.AF_UNIX:
                # What cannot be carried on would be closed here, and might take as long as its sender likes.
                kernel.take_descriptors(sock, wanted=False)
        self._poll = poll
        self._clock = clock
        self._left = left
        self._right = right
        self._forth = forth or SplicePump(left, right, pipes)
        self._back = back or SplicePump(right, left, pipes)
        self._held = False
        self._done: Callable[[Relay], None] | None = done
        self._again = False
        self._timer: IDelayedCall | None = None
        self._patience = DRAIN_SECONDS
        self._drained_by = 0.0
        self._draining: list[socket.socket] = []
        self._step_seconds = _DRAIN_FIRST_SECONDS
        self._closing = False
        self._hung_up: list[socket.socket] = []
        self._fault = ""
        self.ending = ""

    @property
    def up(self) -> int:
        """Bytes from left to right."""
        return self._forth.moved

    @property
    def down(self) -> int:
        """Bytes from right to left."""
        return self._back.moved

    def start(self, hold_seconds: float = 0) -> None:
        """Begin. For *hold_seconds*, or until left has spoken, nothing goes from right to left:

        a peer that takes the handshake's answer with one read must not find more behind it.
        """
        try:
            self._make_ready()
        except OSError:  # no memory to watch them, say: both sides learn that it is over
            self.abort()
            return
        if hold_seconds:
            self._held = True
            self._timer = self._clock.callLater(hold_seconds, self._release)
        self._run(forth=True, back=True)

    def _make_ready(self) -> None:
        for sock in (self._left, self._right):
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                if sock.type == socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for sock, ready in ((self._left, self._left_ready), (self._right, self._right_ready)):
            if self._poll.watches(sock.fileno()):
                self._poll.redirect(sock.fileno(), ready)
            else:
                self._poll.watch(sock.fileno(), ready)

    def abort(self) -> None:
        """End now: a TCP side sees a reset. For shutting down."""
        self._patience = 0
        if self._draining:  # a reset that waits for who does not read
            self._stop_timer()
            self._drained_by = self._clock.seconds()
            self._drain(self._draining)
        else:
            self._close("aborted", reset=True)

    def _left_ready(self, events: int) -> None:
        self._edge(self._left, events)

    def _right_ready(self, events: int) -> None:
        self._edge(self._right, events)

    def _edge(self, sock: socket.socket, events: int) -> None:
        if self._closing:
            return
        if events & ERR and sock.family != socket.AF_UNIX:
            self._broken(sock)
        if events & HUP and sock.family == socket.AF_UNIX:
            self._hung_up.append(sock)
        self._run(
            forth=self._forth.wants(sock, events),
            back=self._back.wants(sock, events),
        )

    def _run(self, *, forth: bool, back: bool) -> None:
        more = False
        if forth:
            more = self._step(self._forth)
            if self._held and self._forth.moved:
                self._release()
        if back and not self._held and not self._closing:
            more = self._step(self._back) or more
        if self._closing:
            return
        if self._forth.finished and self._back.finished:
            self._close(self._fault or "closed", reset=bool(self._fault))
        elif self._hung_up:
            self._check_hung_up()
        if more and not self._again and not self._closing:
            self._again = True
            self._poll.again(self._go_on)

    def _go_on(self) -> None:
        self._again = False
        if not self._closing:
            self._run(forth=True, back=True)

    def _release(self) -> None:
        self._stop_timer()
        if self._held:
            self._held = False
            self._run(forth=False, back=True)

    def _step(self, pump: Pump) -> bool:
        """Move what can be moved; tell whether there is more."""
        for _ in range(A_TURN):
            if pump.finished:
                return False
            filled = not pump.ended and self._fill(pump)
            emptied = self._empty(pump)
            if pump.ended and not pump.holds:
                self._pass_end(pump)
                return False
            if not filled and not emptied:
                return False
            if pump.is_heavy:
                return True
        return True

    def _fill(self, pump: Pump) -> bool:
        try:
            count = pump.fill()
        except Untranslatable as e:
            self._untranslatable(e)
            return False
        except OSError as e:
            if e.errno in _EXHAUSTED:
                self._give_up(f"no descriptors for a pipe: {e.strerror}")
                return False
            # Of streams the kernel gives what is queued before it tells the error, and of packets the pump sees to it:
            # this is the end.
            self._broken(pump.source, _how(e))
            count = 0
        if count == 0:
            pump.ended = True
        return count > 0

    def _empty(self, pump: Pump) -> bool:
        try:
            return pump.empty()
        except Untranslatable as e:
            self._untranslatable(e)
        except OSError as e:
            self._broken(pump.sink, _how(e))
        return False

    def _untranslatable(self, error: Untranslatable) -> None:
        """What came cannot be carried."""
        self._give_up(str(error))

    def _give_up(self, fault: str) -> None:
        """End both directions where they are."""
        self._fault = self._fault or fault
        self._patience = 0
        self._forth.finished = self._back.finished = True

    def _pass_end(self, pump: Pump) -> None:
        try:
            # After a fault what comes is a reset, not an orderly end.
            pump.finished = bool(self._fault) or pump.pass_end()
        except OSError as e:
            pump.finished = True
            self._broken(pump.sink, _how(e))

    def _broken(self, sock: socket.socket, how: str = "reset") -> None:
        """*sock* takes nothing any more; what it sent before is still delivered.

        A TCP side was reset, or ended as it must not. A UNIX side closed with bytes unread, or refuses them.
        """
        self._fault = self._fault or f"{how} by {self._side(sock)}"
        into, other = (self._back, self._right) if sock is self._left else (self._forth, self._left)
        into.finished = True
        into.drop()
        if sock.family != socket.AF_UNIX:
            # The other side learns at once, even while it has not read all: its writes fail.
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_RD)
            if self._held:
                self._release()
            if self._timer is None and not self._closing:  # letting go of what was held may have ended it
                self._timer = self._clock.callLater(DRAIN_SECONDS, self.abort)

    def _check_hung_up(self) -> None:
        """A UNIX side that has closed both ways: when its own bytes are through, what comes for it is undeliverable."""
        for sock in self._hung_up:
            from_it, to_it = (self._forth, self._back) if sock is self._left else (self._back, self._forth)
            if from_it.finished:
                undelivered = bool(self._fault) or to_it.has_more()
                self._close(self._fault or f"closed by {self._side(sock)}", reset=undelivered)
                return

    def _side(self, sock: socket.socket) -> str:
        return "left" if sock is self._left else "right"

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _close(self, ending: str, *, reset: bool) -> None:
        """End, once. A reset waits until a TCP side has what was sent to it before."""
        if self._closing:
            return
        self._closing = True
        self.ending = ending
        self._stop_timer()
        for sock in (self._left, self._right):
            self._poll.forget(sock.fileno())
        for pump in (self._forth, self._back):
            pump.drop()
        if not reset:
            self._forth.settle()
            self._back.settle()
            self._left.close()
            self._right.close()
            self._finish()
            return
        waiting = []
        for sock in (self._left, self._right):
            if sock.family == socket.AF_UNIX:
                sock.close()
            else:
                waiting.append(sock)
        self._drained_by = self._clock.seconds() + self._patience
        self._drain(waiting)

    def _drain(self, waiting: list[socket.socket]) -> None:
        self._timer = None
        still = []
        for sock in waiting:
            if self._clock.seconds() < self._drained_by and self._has_unsent(sock):
                still.append(sock)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                sock.close()
        if still:
            # Soon at first, then more and more seldom: thousands may be waiting at once.
            self._step_seconds = min(self._step_seconds * 2, _DRAIN_MOST_SECONDS)
            self._timer = self._clock.callLater(self._step_seconds, self._drain, still)
        self._draining = still
        if not still:
            self._finish()

    def _has_unsent(self, sock: socket.socket) -> bool:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return False
        try:
            sock.getpeername()
            return kernel.unsent_bytes(sock.fileno()) > 0
        except OSError:
            return False

    def _finish(self) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(self)


def _how(error: OSError) -> str:
    """Return the word for how a side has broken off."""
    return error.how if isinstance(error, Broken) else "reset"
