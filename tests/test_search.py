"""plumberd.search: over the inherited control socket, or to the first live broker; where it looks is in test_client."""

from __future__ import annotations

import os
import socket
from typing import Any
from unittest import mock

from plumberd.answer import Error, NoBroker
from plumberd.inherited import VARIABLE
from plumberd.search import PAUSES_SECONDS, Asking, Search
from tests.fake_broker import read_request
from tests.fake_control import ControlTestCase, named
from tests.support import in_thread, until
from tests.tables import each

LOOKUP = {"op": "lookup", "service": "pong"}


class TheWay(ControlTestCase):
    """One request over a control socket, where there is one and it counts."""

    def asking(self, environ: dict[str, Any], request: dict[str, Any] = LOOKUP, rundir: str | None = None) -> Asking:
        clean = {k: v for k, v in os.environ.items() if k != VARIABLE}
        with mock.patch.dict(os.environ, {**clean, **environ}, clear=True):
            return Asking(request, rundir)

    def attempt(self, asking: Asking) -> tuple[socket.socket, bytes]:
        found = asking.attempt()
        assert found is not None
        return self.owned(found[0]), found[1]

    async def test_a_lookup_has_gone_over_the_control_socket(self) -> None:
        _, data = self.attempt(self.asking({**named(self.control()), "IPC_RUNDIR": "/nonexistent"}))
        self.assertEqual(data, b"")
        await until(lambda: self.requests == [LOOKUP])

    async def test_a_caller_that_names_a_directory_asks_that_one(self) -> None:
        sock, data = self.attempt(self.asking(named(self.control()), rundir=self.broker()))
        await in_thread(sock.sendall, data)
        await until(lambda: self.requests == [LOOKUP])

    async def test_any_other_request_goes_to_a_broker(self) -> None:
        asking = self.asking({**named(self.control()), "IPC_RUNDIR": self.broker()}, {"op": "status"})
        sock, data = self.attempt(asking)
        sock.sendall(data)
        await until(lambda: self.requests == [{"op": "status"}])

    async def test_an_empty_variable_counts_as_none(self) -> None:
        _, data = self.attempt(self.asking({VARIABLE: "", "IPC_RUNDIR": self.broker()}))
        left, right = self.pair()
        left.sendall(data)
        self.assertEqual(read_request(right), LOOKUP)

    def test_a_control_socket_that_is_none_is_an_error_and_no_broker_is_asked(self) -> None:
        asking = self.asking({VARIABLE: "nine", "IPC_RUNDIR": self.broker()})
        with self.assertRaises(Error) as raised:
            asking.attempt()
        self.assertNotIsInstance(raised.exception, NoBroker)
        self.assertEqual(self.requests, [])

    def test_a_full_control_socket_is_tried_again(self) -> None:
        control, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owned(control)
        self.owned(kept)
        asking = self.asking(named(control), {**LOOKUP, "routes": "x" * 50000})
        taken = []
        while (found := asking.attempt()) is not None:
            taken.append(found[0])
        for sock in taken:
            sock.close()
        self.assertTrue(taken)
        fds = socket.recv_fds(kept, 70000, 1)[1]
        self.attempt(asking)
        for fd in fds:
            os.close(fd)
        while True:  # what is left in the queue is closed with it
            kept.setblocking(False)
            try:
                for fd in socket.recv_fds(kept, 70000, 1)[1]:
                    os.close(fd)
            except BlockingIOError:
                break


class Pauses(ControlTestCase):
    @each((0, PAUSES_SECONDS[0]), (1, PAUSES_SECONDS[0]), (2, PAUSES_SECONDS[1]), (99, PAUSES_SECONDS[-1]))
    def test_they_grow_to_the_last_and_stay(self, attempts: int, seconds: float) -> None:
        search = Search(self.full())
        for _ in range(attempts):
            self.assertIsNone(search.attempt())
        self.assertEqual(search.pause_seconds, seconds)

    def full(self) -> str:
        """Return a directory whose broker's backlog is full."""
        rundir = self.folder()
        self.unix_listener(f"{rundir}/plumberd", backlog=0)
        while True:
            sock = self.owned(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            if sock.connect_ex(f"{rundir}/plumberd"):
                return rundir
