"""Carry a WebSocket to and from a socket: its ends, its silence, and what each of them becomes.

=================================  ===================================================================
what happened                      what becomes of it
=================================  ===================================================================
the service has ended              Close 1000; the connection ends with the far side's Close
... in the middle of a message,    Close 1011
or with an error
the far side's Close               the service's end of file; what it still sends within a second goes
                                   out, then our Close
no Close, but the end              the service is cut off
a broken rule of the protocol      Close 1002, 1007 or 1009; the service is cut off
we are going down                  Close 1001
=================================  ===================================================================
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects import kernel
from plumberd.effects.deadline import Deadlines
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import IN, OUT, Poll
from plumberd.effects.pumps import Pump, Untranslatable
from plumberd.effects.relay import Relay
from plumberd.effects.ws_pumps import Session, Untold, WsReader, WsWriter
from plumberd.pure.refusals import printable
from plumberd.pure.ws_frames import BAD_DATA, GOING_AWAY, NO_CODE, NORMAL, PROTOCOL_ERROR, SERVICE_DIED, TOO_BIG

CLOSE_SECONDS = 5.0
"""How long the far side's Close is waited for behind ours."""

DRAIN_SECONDS = 1.0
"""How long a service may go on to send behind the far side's Close, until ours goes out."""

PING_SECONDS = 30.0
"""Silence after which the far side is asked whether it is there; after as long again it is not."""

_USUAL = IN | OUT
"""Events of a socket on which nothing has ended and nothing has failed."""

_PEERS_FAULTS = (PROTOCOL_ERROR, BAD_DATA, TOO_BIG)
"""Of these ends the far side is told why: it has broken the rules, and can mend that."""

LOST_SECONDS = 300.0
"""Where something is to be taken, and the far side's kernel has said nothing for so long, not even that there is
no room, it is lost. Who has no room is asked every two minutes at least (TCP_RTO_MAX), and may take its time."""


class WsRelay(Relay):
    """A relay whose left side is a WebSocket."""

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        pipes: PipePool,
        left: socket.socket,
        right: socket.socket,
        done: Callable[[Relay], None],
        *,
        reader: WsReader,
        writer: WsWriter,
        session: Session,
        lives: Lives,
    ) -> None:
        """See :class:`Relay`. *lives* look after its silence and its ends."""
        super().__init__(poll, clock, pipes, left, right, done, forth=reader, back=writer)
        self._reader = reader
        self._writer = writer
        self._session = session
        self._lives = lives

    def start(self, hold_seconds: float = 0) -> None:
        """See :meth:`Relay.start`."""
        self._lives.add(self)
        super().start(hold_seconds)

    def look(self) -> None:
        """See whether the far side is still there; called every :data:`PING_SECONDS`."""
        session = self._session
        if session.alive:
            session.alive = session.asked = False
        elif self._is_lost():
            self._fault = self._fault or "silent"
            self.close_now()
        elif not session.asked:
            with contextlib.suppress(OSError):  # the poll tells of it as well
                session.asked = self._writer.ping()  # without room it is asked the next time
        elif not self._has_unsent(self._left):  # else TCP goes on asking
            self._fault = self._fault or "silent"
            self.close_now()

    def _is_lost(self) -> bool:
        left = self._left
        if left.family == socket.AF_UNIX or not self._has_unsent(left):
            return False
        return kernel.unheard_seconds(left) > LOST_SECONDS

    def close_now(self) -> None:
        """Wait for nobody any more."""
        self._reader.over = self._writer.over = True
        self._reader.deaf = True
        self._reader.drop()
        self._wake()
        if not self._closing:
            self._close(self._fault or "closed", reset=False)

    def stop_service(self) -> None:
        """Let the service send no more: our Close is due."""
        self._writer.over = True
        self._wake()

    def fail(self, code: int, text: str) -> None:
        """Say why it is over, cut the service off, and wait for the far side's Close."""
        if self._session.said is None:
            self._fault = self._fault or text
            self._session.code = code
            if code in _PEERS_FAULTS:
                self._session.reason = text
        self._reader.deaf = self._writer.over = True
        self._reader.drop()
        with contextlib.suppress(OSError):
            self._right.shutdown(socket.SHUT_RDWR)
        self._wake()

    def _wake(self) -> None:
        """Look at both directions again, soon."""
        if not self._again and not self._closing:
            self._again = True
            self._poll.again(self._go_on)

    def _left_ready(self, events: int) -> None:
        """See :meth:`Relay._edge`: where nothing waits, what comes goes straight on, at half the price."""
        reader = self._reader
        if events != _USUAL or not self._is_quiet or reader.ended:
            super()._left_ready(events)
            return
        reader.told(events)
        if self._fill(reader) and self._empty(reader):
            self._poll.expect()
        if not self._closing and (reader.ended or reader.holds or reader.goes_on):
            self._run(forth=True, back=False)

    def _right_ready(self, events: int) -> None:
        """See :meth:`_left_ready`."""
        writer = self._writer
        if events != _USUAL or not self._is_quiet or writer.ended:
            super()._right_ready(events)
            return
        if self._fill(writer):
            if self._empty(writer):
                self._poll.expect()
            # A UNIX socket's short read need not be all that there is.
            if self._closing or (not writer.holds and not self._fill(writer) and not writer.ended):
                return
        elif not writer.ended:
            return
        self._run(forth=False, back=True)

    @property
    def _is_quiet(self) -> bool:
        """Whether nothing waits, on either side, for anything but what comes."""
        return not (self._closing or self._held or self._hung_up or self._reader.holds or self._writer.holds)

    def _untranslatable(self, error: Untranslatable) -> None:
        if isinstance(error, Untold):
            self.fail(error.code, str(error))
        else:
            super()._untranslatable(error)

    def _pass_end(self, pump: Pump) -> None:
        session = self._session
        if pump is self._writer:
            if self._fault and session.code == NORMAL:
                session.code = SERVICE_DIED
            elif session.heard is not None and session.code == NORMAL and session.heard.code != NO_CODE:
                session.code = session.heard.code  # the same back, as it is usual (RFC 6455, 5.5.1)
        try:
            pump.finished = pump.pass_end()
        except OSError as e:
            pump.finished = True
            self._broken(pump.sink, e.strerror or "reset")
            return
        if pump is self._writer:
            self._lives.wait_for_close(self)
            if session.reason and pump.finished:
                # It has broken the rules, and nothing of it is understood any more: this ends it (RFC 6455, 7.1.7).
                with contextlib.suppress(OSError):
                    self._writer.end_line()
        elif not self._writer.finished:
            self._lives.wait_for_service(self)

    def _broken(self, sock: socket.socket, how: str = "reset") -> None:
        if sock is self._left or self._closing:
            super()._broken(sock, how)
            return
        # The service is gone: the far side is told, with what it sent before.
        self._fault = self._fault or f"{how} by right"
        self._reader.deaf = True
        self._reader.drop()
        self._wake()

    def _check_hung_up(self) -> None:
        """The service has closed both ways: what still comes for it goes nowhere."""
        if self._left in self._hung_up:
            super()._check_hung_up()
        elif self._writer.finished:
            self._hung_up.clear()
            if not self._reader.finished and not self._reader.deaf:
                self._reader.deaf = True
                self._reader.drop()
                self._wake()

    def _close(self, ending: str, *, reset: bool) -> None:
        if self._closing:
            return
        self._lives.discard(self)
        session = self._session
        if session.said is None and not self._writer.finished:
            session.code = GOING_AWAY if ending == "aborted" else SERVICE_DIED
            with contextlib.suppress(OSError):
                self._writer.pass_end()
        heard = session.heard
        if ending == "closed" and heard is not None and heard.code not in (NORMAL, GOING_AWAY, NO_CODE):
            ending = f"closed with {heard.code} {printable(heard.reason.encode())}".rstrip()
        is_orderly = session.said is not None or heard is not None
        super()._close(ending, reset=reset and not is_orderly)


class Lives:
    """Looks after all WebSockets: one timer for their silence, and two lines of deadlines for their ends."""

    def __init__(self, clock: IReactorTime, ping_seconds: float = PING_SECONDS) -> None:
        self._clock = clock
        self._ping_seconds = ping_seconds
        self._relays: set[WsRelay] = set()
        self._closes = Deadlines(clock, CLOSE_SECONDS)
        self._drains = Deadlines(clock, DRAIN_SECONDS)
        self._timer: IDelayedCall | None = None

    def add(self, relay: WsRelay) -> None:
        """Look after one more."""
        self._relays.add(relay)
        if self._timer is None:
            self._timer = self._clock.callLater(self._ping_seconds, self._look)

    def discard(self, relay: WsRelay) -> None:
        """It is over."""
        self._relays.discard(relay)
        self._closes.cancel(relay)
        self._drains.cancel(relay)

    def wait_for_close(self, relay: WsRelay) -> None:
        """End *relay* where the far side's Close does not come in time."""
        self._drains.cancel(relay)
        if relay in self._relays and not self._closes.is_set(relay):
            self._closes.set(relay, relay.close_now)

    def wait_for_service(self, relay: WsRelay) -> None:
        """End *relay* where the service goes on behind the far side's Close."""
        if relay in self._relays and not self._drains.is_set(relay):
            self._drains.set(relay, relay.stop_service)

    def close(self) -> None:
        """Look after nothing any more."""
        self._relays.clear()
        self._closes.close()
        self._drains.close()
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _look(self) -> None:
        self._timer = None
        for relay in list(self._relays):
            relay.look()
        if self._relays and self._timer is None:
            self._timer = self._clock.callLater(self._ping_seconds, self._look)
