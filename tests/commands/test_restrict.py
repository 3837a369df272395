"""plumberd.commands.restrict: a program that inherits a control socket."""

from __future__ import annotations

import socket
import sys
from typing import Any

from plumberd.inherited import VARIABLE
from tests.fake_broker import grant, refuse
from tests.fake_control import ControlTestCase, named
from tests.plumb_case import PlumbTestCase, bare_environ
from tests.support import in_thread

TELL = (
    "import os, socket\n"
    f"fd = int(os.environ['{VARIABLE}'])\n"
    "sock = socket.socket(fileno=os.dup(fd))\n"
    "print(fd, sock.family.name, sock.type.name, sorted(map(int, os.listdir('/proc/self/fd')))[3:4])\n"
)


class Restricting(ControlTestCase, PlumbTestCase):
    def giving(self) -> str:
        """Start a broker that gives a control socket; return its run directory."""

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.addCleanup(ours.close)
            grant(sock, theirs, mode="control", rule="")

        return self.broker(answer)

    async def test_the_program_inherits_it_and_the_variable_names_it(self) -> None:
        words = ("restrict", "pong", "db", "--", sys.executable, "-c", TELL)
        self.assertEqual(
            await self.finished("--rundir", self.giving(), *words), (0, "3 AF_UNIX SOCK_SEQPACKET [3]\n", "")
        )
        self.assertEqual(self.requests, [{"op": "confine", "services": ["pong", "db"], "control": True}])

    async def test_the_routes_of_the_environment_go_along(self) -> None:
        environ = {"IPC_NETWORKD": "pong tcp://h/pong", "IPC_RUNDIR": self.giving()}
        await self.finished("restrict", "pong", "--", "true", environ=environ)
        self.assertEqual([request.get("routes") for request in self.requests], ["pong tcp://h/pong"])

    async def test_the_status_is_the_program_s(self) -> None:
        words = ("restrict", "pong", "--", "sh", "-c", "exit 5")
        self.assertEqual(await self.finished("--rundir", self.giving(), *words), (5, "", ""))

    async def test_one_that_was_inherited_before_is_closed(self) -> None:
        control = self.control()
        script = f"ls /proc/self/fd; echo ${VARIABLE}"
        child = self.command(
            [sys.executable, "-m", "plumberd.plumb", "restrict", "pong", "--", "sh", "-c", script],
            env=bare_environ({**named(control), "IPC_RUNDIR": self.giving()}),
            pass_fds=[control.fileno()],
        )
        status, out, err = await in_thread(child.finish)
        # Standard descriptors, the new control socket, and the listing's own.
        self.assertEqual((status, len(out.split()), err), (0, 6, ""))

    async def test_a_refusal_is_status_1_and_nothing_runs(self) -> None:
        rundir = self.broker(refuse("denied", "a confined client may look up, no more"))
        self.assertEqual(
            await self.finished("--rundir", rundir, "restrict", "pong", "--", "echo", "ran"),
            (1, "", "plumb: refused: denied: a confined client may look up, no more\n"),
        )

    async def test_a_program_that_is_not_there_is_127_and_nobody_is_asked(self) -> None:
        status, _, err = await self.finished("--rundir", self.giving(), "restrict", "pong", "--", "no-such-program")
        self.assertEqual((status, err, self.requests), (127, "plumb: no-such-program: not found\n", []))

    async def test_without_a_service_it_is_a_mistake(self) -> None:
        status, _, err = await self.finished("restrict", "--", "true")
        self.assertEqual(status, 2)
        self.assertIn("SERVICE", err)
