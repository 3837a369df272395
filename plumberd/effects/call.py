"""Speak the asking side of a handshake on a raw socket, reading exactly its own bytes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from plumberd.effects.poll import Poll
from plumberd.pure.carry import CarryAnswer
from plumberd.pure.handshake import Caller, call
from plumberd.pure.refusals import Refusal, Refused


class _Answer(Protocol):
    """Reads an answer, and never more than that; see :class:`plumberd.pure.handshake.Caller`."""

    @property
    def wanted_bytes(self) -> int: ...
    def receive(self, data: bytes) -> bool: ...


class _Call:
    """One question and its answer; the socket stays its caller's, who closes it."""

    def __init__(
        self, poll: Poll, sock: socket.socket, question: bytes, answer: _Answer, done: Callable[[Refused | None], None]
    ) -> None:
        """*done* is told ``None`` when the far side has said ok."""
        self._poll = poll
        self._sock = sock
        self._question = question
        self._caller = answer
        self._done = done

    def start(self) -> None:
        """Send the question and wait for the answer."""
        data = self._question
        try:
            sent = self._send(data)
        except OSError as e:
            self._done(_lost(e))
            return
        if sent < len(data):
            self._done(Refused(Refusal.UNREACHABLE, "the far side did not even take the question"))
            return
        self._poll.watch(self._sock.fileno(), self._ready)

    def _send(self, data: bytes) -> int:
        return self._sock.send(data)

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


class TcpCall(_Call):
    """The caller's side of the tcp handshake."""

    def __init__(self, poll: Poll, sock: socket.socket, service: str, done: Callable[[Refused | None], None]) -> None:
        super().__init__(poll, sock, call(service), Caller(), done)


class SchemeCall(_Call):
    """Ask a scheme daemon's socket to carry a connection; from the ok on the socket is the client's."""

    def __init__(
        self, poll: Poll, sock: socket.socket, question: bytes, done: Callable[[Refused | None], None]
    ) -> None:
        """*question*: of :mod:`plumberd.pure.carry`."""
        self._answer = CarryAnswer()
        super().__init__(poll, sock, question, self._answer, done)
        self._end: socket.socket | None = None

    @property
    def message_bytes(self) -> int:
        """The longest message that goes through, where the scheme daemon has told; else 0."""
        return self._answer.message_bytes

    def send_along(self, end: socket.socket) -> None:
        """Let *end* go with the question: it is closed here then, and carried from there on."""
        self._end = end

    def cancel(self) -> None:
        """See :meth:`_Call.cancel`."""
        if self._end is not None:
            self._end.close()
        super().cancel()

    def _send(self, data: bytes) -> int:
        if self._end is None:
            return super()._send(data)
        with self._end as end:
            return socket.send_fds(self._sock, [data], [end.fileno()])


def _lost(error: OSError) -> Refused:
    text = os.strerror(error.errno) if error.errno else "error"
    return Refused(Refusal.UNREACHABLE, f"the far side was lost during the handshake: {text}")
