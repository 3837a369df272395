"""A claim to a service, as it looks from the claimant: a connection to the broker on which accepted sockets come.

The claim lives as long as that connection. The broker sends the next socket when
the last was taken, and ends the claim of who does not take one in time
(``handshake_seconds``): so whoever has a claim takes at once, and holds what it
has no time for. Nothing here waits; :mod:`plumberd.serving`, :mod:`plumberd.aio`
and :mod:`plumberd.claimed` do, each in its own way.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

from plumberd.answer import Answer, Error

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 10.0
"""Before a lost claim is made again; the pause doubles each time. A broker that starts anew is soon found."""

OWN_MEMBERS = frozenset(("ok", "op", "fd", "id"))
"""What every such message has; the rest tells of the connection."""


def claim_request(service: str) -> dict[str, Any]:
    """Return the request that claims *service*."""
    return {"op": "serve", "service": service}


def pauses() -> Iterator[float]:
    """Yield, for ever, how many seconds to wait before a lost claim is made again."""
    seconds = FIRST_PAUSE_SECONDS
    while True:
        yield seconds
        seconds = min(seconds * 2, LONGEST_PAUSE_SECONDS)


class Claim:
    """Owns the connection, on which the request was sent, and a descriptor that has arrived and was not taken.

    :ivar rule: that allowed it; ``None`` until the claim is granted.
    """

    def __init__(self, sock: socket.socket) -> None:
        """*sock* does not block; it is owned here from now on."""
        self.rule: str | None = None
        self._sock = sock
        self._answer = Answer()

    def fileno(self) -> int:
        """Return the connection's descriptor, for a poll; -1 when it is closed."""
        return self._sock.fileno()

    def receive(self) -> tuple[socket.socket, dict[str, Any]] | None:
        """Read what is there: return an accepted, blocking socket, the caller's, with what is told of it.

        ``None``: something else is complete, the claim is granted for instance; read on.

        :raises BlockingIOError: nothing more is there for now.
        :raises Refused: the broker does not grant the claim, or takes it away; it is over.
        :raises Error: the broker hung up, or does not speak as it should; the claim is over.
        """
        while not self._answer.receive(self._sock):
            pass
        answer, self._answer = self._answer, Answer()
        try:
            if self.rule is None:
                told, fd = answer.take()
                if fd >= 0:
                    os.close(fd)  # nobody asked for it
                self.rule = str(told.get("rule", ""))
                return None
            sock, told = answer.take_socket("accepted a connection")
        finally:
            answer.close()
        return sock, {name: value for name, value in told.items() if name not in OWN_MEMBERS}

    def close(self) -> None:
        """Give the claim back. Idempotent."""
        self._answer.close()
        self._sock.close()


def why_lost(error: Error) -> str:
    """Return, for people, why a claim is lost or was not had."""
    return "the broker hung up" if error.errno == errno.ECONNRESET else error.strerror or str(error)


def peer_of(told: dict[str, Any]) -> dict[str, Any]:
    """Return who is at the other end of an accepted connection: ``scheme`` and what goes with it.

    Empty where the broker does not tell it as it should.
    """
    peer = told.get("peer")
    return peer if isinstance(peer, dict) else {}
