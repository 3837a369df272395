"""Accept raw connections on a listening socket, and survive running out of descriptors."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from plumberd.effects.poll import Poll

A_ROUND = 64
"""Connections accepted before others have their turn."""

PAUSE_SECONDS = 0.5
"""How long accepting rests when there are no descriptors left."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts on *sock*, which it does not own, and gives each connection, blocking, to *take*, which owns it."""

    _log = Logger()

    def __init__(
        self, poll: Poll, clock: IReactorTime, sock: socket.socket, take: Callable[[socket.socket], None]
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._sock = sock
        self._take = take
        self._timer: IDelayedCall | None = None
        self._told = False

    def start(self) -> None:
        """Begin accepting."""
        self._timer = None
        self._poll.watch(self._sock.fileno(), self._ready, level=True)

    def stop(self) -> None:
        """Stop accepting; what was accepted goes on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock.fileno() >= 0:
            self._poll.forget(self._sock.fileno())

    def _ready(self, events: int) -> None:
        for _ in range(A_ROUND):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                self._told = False
                return
            except ConnectionAbortedError:
                continue
            except OSError as e:
                if e.errno not in _EXHAUSTED:
                    self._log.error("accepting failed: {error}", error=e.strerror)
                elif not self._told:
                    self._told = True
                    self._log.error("no descriptors left: accepting pauses ({error})", error=e.strerror)
                self._poll.forget(self._sock.fileno())
                self._timer = self._clock.callLater(PAUSE_SECONDS, self.start)
                return
            try:
                self._take(sock)
            except Exception:
                # One that fails must not end the accepting of all others.
                self._log.failure("an accepted connection could not be served; it is closed")
                sock.close()
