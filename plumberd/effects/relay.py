"""Carry bytes between two raw sockets, in the kernel, exactly.

Each direction is a pump: splice(2) from the source into a pipe and out of it
into the sink. What holds:

- Every byte that one side sent before it closed reaches the other.
- The end of one direction is passed on as the end of that direction alone.
- A slow reader slows the sender; at most one pipe of bytes waits in between.
- One that closes with bytes unread, or dies, becomes a reset for a TCP peer,
  after the bytes that it sent before have arrived there.
- A TCP peer's reset closes the other side at once, half-closed or not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects import kernel
from plumberd.effects.pipes import Pipe, PipePool
from plumberd.effects.poll import ERR, HUP, OUT, Poll

A_TURN = 16
"""Rounds of one pump before others have their turn."""

UNIX_BUFFER_BYTES = 1 << 20
"""SO_SNDBUF of the UNIX side: worth 10 to 40 % with eight streams."""

DRAIN_SECONDS = 30.0
"""How long a reset waits for the bytes before it to arrive."""

_DRAIN_STEP_SECONDS = 0.01
_SPLICE = kernel.SPLICE_F_MOVE | kernel.SPLICE_F_NONBLOCK
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, socket(7)


class _Pump:
    """One direction."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | None = None
        self.moved = 0
        self.ended = False
        """The source has ended."""
        self.finished = False
        """... and all of it, and the end, has reached the sink."""


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
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._pipes = pipes
        self._left = left
        self._right = right
        self._forth = _Pump(left, right)
        self._back = _Pump(right, left)
        self._held = False
        self._done: Callable[[Relay], None] | None = done
        self._again = False
        self._timer: IDelayedCall | None = None
        self._patience = DRAIN_SECONDS
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
        for sock in (self._left, self._right):
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hold_seconds:
            self._held = True
            self._timer = self._clock.callLater(hold_seconds, self._release)
        for sock, ready in ((self._left, self._left_ready), (self._right, self._right_ready)):
            if self._poll.watches(sock.fileno()):
                self._poll.redirect(sock.fileno(), ready)
            else:
                self._poll.watch(sock.fileno(), ready)
        self._run(forth=True, back=True)

    def abort(self) -> None:
        """End now: a TCP side sees a reset. For shutting down."""
        self._patience = 0
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
            forth=_wants(self._forth, sock, events),
            back=_wants(self._back, sock, events),
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

    def _step(self, pump: _Pump) -> bool:
        """Move what can be moved; tell whether there is more."""
        for _ in range(A_TURN):
            if pump.finished:
                return False
            filled = not pump.ended and self._fill(pump)
            emptied = self._empty(pump)
            if pump.pipe is None and pump.ended:
                self._pass_end(pump)
                return False
            if not filled and not emptied:
                return False
        return True

    def _fill(self, pump: _Pump) -> bool:
        if pump.pipe is None:
            try:
                pump.pipe = self._pipes.take()
            except OSError:
                self._fault = "no descriptors for a pipe"
                self._patience = 0
                self._forth.finished = self._back.finished = True
                return False
        try:
            count = os.splice(pump.source.fileno(), pump.pipe.write, 1 << 20, flags=_SPLICE)
        except BlockingIOError:
            count = -1  # nothing there, or the pipe is full
        except OSError:
            # The kernel gives what is queued before it tells the error, so this is the end.
            self._broken(pump.source)
            count = 0
        if count > 0:
            pump.pipe.held += count
            return True
        if count == 0:
            pump.ended = True
        if not pump.pipe.held:
            self._pipes.give_back(pump.pipe)
            pump.pipe = None
        return False

    def _empty(self, pump: _Pump) -> bool:
        pipe = pump.pipe
        if pipe is None:
            return False
        moved = False
        while pipe.held:
            try:
                count = os.splice(pipe.read, pump.sink.fileno(), pipe.held, flags=_SPLICE)
            except BlockingIOError:
                return moved
            except OSError:
                self._broken(pump.sink)
                return False
            pipe.held -= count
            pump.moved += count
            moved = True
        self._pipes.give_back(pipe)
        pump.pipe = None
        return moved

    def _pass_end(self, pump: _Pump) -> None:
        pump.finished = True
        if self._fault:
            return  # what comes is a reset, not an orderly end
        try:
            pump.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._broken(pump.sink)

    def _broken(self, sock: socket.socket) -> None:
        """*sock* takes nothing any more; what it sent before is still delivered.

        A TCP side was reset. A UNIX side closed with bytes unread, or refuses them.
        """
        self._fault = self._fault or f"reset by {self._side(sock)}"
        into, other = (self._back, self._right) if sock is self._left else (self._forth, self._left)
        into.finished = True
        if into.pipe is not None:
            self._pipes.give_back(into.pipe)
            into.pipe = None
        if sock.family != socket.AF_UNIX:
            # The other side learns at once, even while it has not read all: its writes fail.
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_RD)
            if self._timer is None:
                self._timer = self._clock.callLater(DRAIN_SECONDS, self.abort)

    def _check_hung_up(self) -> None:
        """A UNIX side that has closed both ways: when its own bytes are through, what comes for it is undeliverable."""
        for sock in self._hung_up:
            from_it, to_it = (self._forth, self._back) if sock is self._left else (self._back, self._forth)
            if from_it.finished:
                undelivered = to_it.pipe is not None or kernel.unread_bytes(to_it.source.fileno()) > 0
                self._close(
                    self._fault or f"closed by {self._side(sock)}", reset=undelivered or bool(self._fault)
                )
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
            if pump.pipe is not None:
                self._pipes.give_back(pump.pipe)
                pump.pipe = None
        if not reset:
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
        self._drain(waiting)

    def _drain(self, waiting: list[socket.socket]) -> None:
        self._timer = None
        still = []
        for sock in waiting:
            if self._patience > 0 and self._has_unsent(sock):
                still.append(sock)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                sock.close()
        if still:
            self._patience -= _DRAIN_STEP_SECONDS
            self._timer = self._clock.callLater(_DRAIN_STEP_SECONDS, self._drain, still)
        else:
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



def _wants(pump: _Pump, sock: socket.socket, events: int) -> bool:
    """Tell whether *events* of *sock* are any of *pump*'s business."""
    if sock is pump.source:
        return bool(events & ~OUT)
    return bool(events & OUT) and pump.pipe is not None
