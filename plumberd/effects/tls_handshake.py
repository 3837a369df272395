"""Drive one TLS handshake over the poll, either side of it."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable

from OpenSSL import SSL

from plumberd.effects.poll import Poll
from plumberd.effects.tls_ending import TlsFault
from plumberd.effects.tls_wire import Wire
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls_faults import explain, word_of

STEPS_A_ROUND = 8
"""Steps of handshakes before the reactor's other descriptors and timers have their turn: some 3 ms."""

FaultOf = Callable[[SSL.Connection], str | None]
"""Tells why the far side was not believed, in a sentence; see :func:`plumberd.effects.tls_contexts.fault_of`."""


class Turns:
    """Bounds how much of one round of the reactor handshakes may use: one step costs as much as a whole lookup.

    All handshakes of one poll share it.
    """

    def __init__(self, poll: Poll, most: int = STEPS_A_ROUND) -> None:
        self._poll = poll
        self._most = most
        self._used = 0
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def waiting(self) -> int:
        """How many steps wait for their turn."""
        return len(self._waiting)

    def take(self, step: Callable[[], None]) -> None:
        """Call *step* now, or in its turn."""
        if self._used >= self._most or self._waiting:
            self._waiting.append(step)
            return
        self._count()
        step()

    def _count(self) -> None:
        self._used += 1
        if self._used == 1:
            self._poll.again(self._next_round)

    def _next_round(self) -> None:
        self._used = 0
        while self._waiting and self._used < self._most:
            step = self._waiting.popleft()
            self._count()
            step()


class TlsHandshake:
    """One handshake on a connected, non-blocking socket, which stays its caller's, who closes it.

    *done* gets the wire, and the socket is watched by nobody then; or the refusal. It may be called before
    :meth:`start` returns. Nothing here has a deadline: that is the caller's, who cancels.
    """

    def __init__(
        self,
        poll: Poll,
        sock: socket.socket,
        connection: SSL.Connection,
        done: Callable[[Wire | Refused], None],
        *,
        server: bool,
        fault_of: FaultOf | None = None,
        turns: Turns | None = None,
        speaks_at_once: bool = False,
    ) -> None:
        """Prepare; :meth:`start` begins.

        :param connection: on *sock*, and not begun, of :func:`plumberd.effects.openssl.connect`.
        :param fault_of: knows better than OpenSSL why a certificate was not believed.
        :param turns: shared by all handshakes of *poll*.
        :param speaks_at_once: *done* writes at once.
        """
        self._poll = poll
        self._sock = sock
        self._done: Callable[[Wire | Refused], None] | None = done
        self._fault_of = fault_of
        self._turns = turns
        self._in_turn = False
        self._wire = Wire(connection, sock, server=server, speaks_at_once=speaks_at_once)

    def start(self) -> None:
        """Begin."""
        try:
            self._poll.watch(self._sock.fileno(), self._ready)
        except OSError as e:  # no memory to watch it, say
            self._end(Refused(Refusal.BUSY, f"the handshake cannot be watched: {e.strerror}"))
            return
        if not self._wire.server:  # a server waits for the first edge
            self._ready(0)

    def cancel(self) -> None:
        """Give up; *done* will not be called."""
        self._done = None
        self._poll.forget(self._sock.fileno())

    def _ready(self, events: int) -> None:
        if self._turns is None:
            self._step()
        elif not self._in_turn:
            self._in_turn = True
            self._turns.take(self._step)

    def _step(self) -> None:
        self._in_turn = False
        if self._done is None:
            return  # cancelled while it waited for its turn
        try:
            if self._wire.handshake() is not None:
                return  # an edge comes for reading and for writing alike
        except OSError as e:
            self._end(refused(self._wire, e, self._fault_of))
            return
        self._end(self._wire)

    def _end(self, outcome: Wire | Refused) -> None:
        done = self._done
        self.cancel()
        if done is not None:
            done(outcome)


def refused(wire: Wire, fault: OSError, fault_of: FaultOf | None = None) -> Refused:
    """Return the refusal that *fault* of *wire* is, with a sentence in which ``it`` is the far side.

    For the first read behind a handshake too: in TLS 1.3 a server that does not believe its client says so then.
    """
    if not isinstance(fault, TlsFault):
        text = os.strerror(fault.errno) if fault.errno else "error"
        return Refused(Refusal.UNREACHABLE, f"TLS: it was lost during the handshake: {text}")
    alert, named = fault.alert, wire.psk_named
    word = word_of(fault.reason, alert=alert, inbound=wire.server, psk_named=named)
    shown = wire.connection if alert is None else None
    sentence = fault_of(shown) if fault_of is not None and shown is not None else None
    if sentence is None:
        sentence = explain(fault.reason, str(fault), alert=alert, verify_error=wire.verify_error, psk_named=named)
    return Refused(word, f"TLS: {sentence}")
