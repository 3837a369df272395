"""Speak the asking side of the handshake inside TLS; what comes behind the answer is given back to the wire."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from plumberd.effects.poll import Poll
from plumberd.effects.tls_wire import Wire
from plumberd.pure.plumb_handshake import Caller
from plumberd.pure.refusals import Refusal, Refused


class PlumbCall:
    """One question and its answer; the wire and its socket stay their caller's."""

    def __init__(
        self, poll: Poll, sock: socket.socket, wire: Wire, question: bytes, done: Callable[[Refused | None], None]
    ) -> None:
        """*done* is told ``None`` when the far side has said ok."""
        self._poll = poll
        self._sock = sock
        self._wire = wire
        self._question: bytes | None = question
        self._caller = Caller()
        self._done = done

    def start(self) -> None:
        """Send the question and wait for the answer; *done* may be called before this returns."""
        try:
            self._poll.watch(self._sock.fileno(), self._ready)
        except OSError as e:
            self._done(Refused(Refusal.BUSY, f"the far side cannot be watched: {e.strerror}"))
            return
        self._ready(0)

    def cancel(self) -> None:
        """Stop; *done* will not be called."""
        self._poll.forget(self._sock.fileno())

    def _ready(self, events: int) -> None:
        result: Refused | None = None
        try:
            if self._question is not None:
                self._wire.send(self._question)
                self._question = None
            while not self._caller.receive(self._wire.recv(self._caller.wanted_bytes)):
                pass
            self._wire.give_back(self._caller.rest)
        except BlockingIOError:
            return
        except Refused as e:
            result = e
        except OSError as e:
            text = os.strerror(e.errno) if e.errno else str(e) or "error"
            result = Refused(Refusal.UNREACHABLE, f"the far side was lost during the handshake: {text}")
        self.cancel()
        self._done(result)
