"""The broker's end of an inherited control socket, which does as the test tells it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

from plumberd.inherited import VARIABLE
from tests.fake_broker import Answering, FakeBrokerTestCase, grant_echo
from tests.support import DEADLINE_SECONDS, in_thread

MOST_BYTES = 70000


class ControlTestCase(FakeBrokerTestCase):
    """Makes control sockets; keeps what they are asked."""

    def control(self, answer: Answering | None = None) -> socket.socket:
        """Return the client's end. Without *answer* each lookup is granted an echo, one after the other."""
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.addCleanup(theirs.close)

        def serve() -> None:
            with ours:
                while True:
                    data, fds, _, _ = socket.recv_fds(ours, MOST_BYTES, 8)
                    if not data:
                        return
                    self.requests.append(json.loads(data))
                    (fd,) = fds
                    with socket.socket(fileno=fd) as sock, contextlib.suppress(OSError):
                        sock.settimeout(DEADLINE_SECONDS)
                        (answer or grant_echo)(sock, self.requests[-1])

        async def stop() -> None:
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            await in_thread(thread.join, DEADLINE_SECONDS)
            self.assertFalse(thread.is_alive(), "the fake broker still waits")

        thread = threading.Thread(target=serve, name="fake control socket", daemon=True)
        thread.start()
        self.addCleanup(stop)
        return theirs


def named(control: socket.socket) -> dict[str, Any]:
    """Return the variable that names *control*, as an environment has it."""
    return {VARIABLE: str(control.fileno())}
