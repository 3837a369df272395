"""Speak the caller's side of the tcp handshake on a raw socket, reading exactly its own bytes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from plumberd.effects.poll import Poll
from plumberd.pure.handshake import Caller, call
from plumberd.pure.refusals import Refusal, Refused


class TcpCall:
    """One handshake; the socket stays its caller's, who closes it."""

    def __init__(
        self, poll: Poll, sock: socket.socket, service: str, done: Callable[[Refused | None], None]
    ) -> None:
        """*done* is told ``None`` when the far side has said ok."""
        self._poll = poll
        self._sock = sock
        self._service = service
        self._done = done
        self._caller = Caller()

    def start(self) -> None:
        """Send the name and wait for the answer."""
        data = call(self._service)
        try:
            sent = self._sock.send(data)
        except OSError as e:
            self._done(_lost(e))
            return
        if sent < len(data):
            self._done(Refused(Refusal.UNREACHABLE, "the far side did not even take the name"))
            return
        self._poll.watch(self._sock.fileno(), self._ready)

    def cancel(self) -> None:
        """Stop; *done* will not be called."""
        self._poll.forget(self._sock.fileno())

    def _ready(self, events: int) -> None:
        result: Refused | None = None
        try:
            while not self._caller.receive(self._sock.recv(self._caller.wanted_bytes)):
                pass
        except BlockingIOError:
            return
        except Refused as e:
            result = e
        except OSError as e:
            result = _lost(e)
        self.cancel()
        self._done(result)


def _lost(error: OSError) -> Refused:
    text = os.strerror(error.errno) if error.errno else "error"
    return Refused(Refusal.UNREACHABLE, f"the far side was lost during the handshake: {text}")
