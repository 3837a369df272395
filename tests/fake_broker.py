"""A broker that says what the test tells it to: for the client's side alone."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from tests.children import ChildTestCase
from tests.support import DEADLINE_SECONDS, in_thread, read_exactly

Answering = Callable[[socket.socket, dict[str, Any]], None]
"""Is given the connection and the request, and answers."""


class FakeBrokerTestCase(ChildTestCase):
    """Starts fake brokers; keeps what they are asked."""

    def setUp(self) -> None:
        super().setUp()
        self.requests: list[dict[str, Any]] = []

    def broker(self, answer: Answering | None = None, rundir: str | None = None) -> str:
        """Start one in *rundir*, which is made; return that. Without *answer* it grants an echo."""
        rundir = rundir or os.path.join(self.folder(), "r")
        os.makedirs(rundir, mode=0o700, exist_ok=True)
        listener = self.unix_listener(os.path.join(rundir, "plumberd"))
        listener.settimeout(None)
        ending = threading.Event()

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                if ending.is_set():
                    sock.close()
                    return
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(DEADLINE_SECONDS)
                    request = read_request(sock)
                    self.requests.append(request)
                    (answer or grant_echo)(sock, request)

        async def stop() -> None:
            ending.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            await in_thread(thread.join, DEADLINE_SECONDS)
            self.assertFalse(thread.is_alive(), "the fake broker still waits")

        thread = threading.Thread(target=serve, name="fake broker", daemon=True)
        thread.start()
        self.addCleanup(stop)
        return rundir


def read_request(sock: socket.socket) -> dict[str, Any]:
    (length,) = struct.unpack(">I", read_exactly(sock, 4))
    request = json.loads(read_exactly(sock, length))
    assert isinstance(request, dict)
    return request


def frame(answer: Any) -> bytes:
    payload = json.dumps(answer).encode()
    return struct.pack(">I", len(payload)) + payload


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    """Send *data*, with descriptors attached to its first byte."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sent = sock.sendmsg([data], [rights] if fds else [])
    if sent < len(data):  # else the client may have gone with it already
        sock.sendall(data[sent:])


def grant(sock: socket.socket, given: socket.socket, **members: Any) -> None:
    """Grant *given*, which is closed here."""
    with given:
        send(sock, frame({"ok": True, "fd": True, "mode": "local", "rule": "a rule", **members}), given.fileno())


def grant_echo(sock: socket.socket, request: dict[str, Any]) -> None:
    """Grant one end of a pair, and echo on the other until its end."""
    given, ours = socket.socketpair()
    grant(sock, given)
    with ours:
        ours.settimeout(DEADLINE_SECONDS)
        while data := ours.recv(65536):
            ours.sendall(data)


def refuse(word: str, reason: str) -> Answering:
    """Return an answering that refuses."""

    def answer(sock: socket.socket, request: dict[str, Any]) -> None:
        send(sock, frame({"ok": False, "error": word, "reason": reason}))

    return answer
