"""Clients that hold on to something of the broker's: a control socket, a claim to a service."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from tests.support import DEADLINE_SECONDS, dial, native_frame, native_read, read_all, take_socket

Answered = tuple[dict[str, Any], socket.socket | None]
"""An answer, and the socket that came with it."""


class Control:
    """One end of a control socket, as a child inherits it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_SECONDS)

    def send(self, payload: bytes, *fds: int) -> None:
        """Send one packet with any descriptors."""
        socket.send_fds(self.sock, [payload], fds)

    def begin(self, **members: Any) -> socket.socket:
        """Ask; return the end on which the answer will come."""
        return self.begin_with(json.dumps(members).encode())

    def begin_with(self, payload: bytes) -> socket.socket:
        """Send any packet with one end of a fresh pair; return the other end."""
        ours, theirs = socket.socketpair()
        ours.settimeout(DEADLINE_SECONDS)
        with theirs:
            self.send(payload, theirs.fileno())
        return ours

    def ask(self, **members: Any) -> Answered:
        """Ask, and take the answer, which nothing follows."""
        with self.begin(**members) as sock:
            return last_answer(sock)

    def lookup(self, service: str, **members: Any) -> Answered:
        """Look a service up."""
        return self.ask(op="lookup", service=service, **members)


def last_answer(sock: socket.socket) -> Answered:
    """Read the answer behind which the connection ends."""
    answer, fds = native_read(sock)
    left = read_all(sock)
    if left:
        raise AssertionError(f"bytes behind the answer: {left!r}")
    return answer, take_socket(fds)


def answered(sock: socket.socket, **members: Any) -> Answered:
    """Ask on a connection that stays open."""
    sock.sendall(native_frame(members))
    answer, fds = native_read(sock)
    return answer, take_socket(fds)


def control_of(rundir: str, *services: str, routes: str | None = None) -> Control:
    """Ask the broker for a control socket."""
    members = {"routes": routes} if routes is not None else {}
    with dial(rundir, "plumberd") as sock:
        answer, control = answered(sock, op="confine", services=list(services), control=True, **members)
    if control is None:
        raise AssertionError(f"no control socket: {answer}")
    return Control(control)


class Claim:
    """A connection that claims services, and takes what it is handed."""

    def __init__(self, rundir: str) -> None:
        self.sock = dial(rundir, "plumberd")
        self._early: list[tuple[dict[str, Any], list[int]]] = []

    def serve(self, service: str) -> dict[str, Any]:
        """Claim *service*; return the answer. Connections of services claimed before may come first."""
        self.sock.sendall(native_frame({"op": "serve", "service": service}))
        while True:
            answer, fds = native_read(self.sock)
            if not fds:
                return answer
            self._early.append((answer, fds))

    def take(self) -> tuple[dict[str, Any], socket.socket]:
        """Take the next connection: what is told of it, and its socket."""
        told, fds = self._early.pop(0) if self._early else native_read(self.sock)
        sock = take_socket(fds)
        if sock is None:
            raise AssertionError(f"no descriptor came with {told}")
        if os.get_inheritable(sock.fileno()):
            sock.set_inheritable(False)
        sock.settimeout(DEADLINE_SECONDS)
        return told, sock

    def close(self) -> None:
        """Give every claim up."""
        for _, fds in self._early:
            for fd in fds:
                os.close(fd)
        self._early.clear()
        self.sock.close()
