"""plumberd.commands.exec: a program with a connection on its descriptors 6 and 7, or 0 and 1."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from plumberd.inherited import VARIABLE
from tests.fake_broker import grant, refuse
from tests.fake_control import ControlTestCase, named
from tests.plumb_case import PlumbTestCase, bare_environ
from tests.support import in_thread, read_all, until

TELL = 'env | grep -E "^(PROTO|TCP|UNIX|PLUMB_)" | sort >&2'


def reverse(sock: socket.socket) -> None:
    sock.sendall(read_all(sock)[::-1])


class Running(PlumbTestCase):
    async def test_it_reads_from_6_and_writes_to_7(self) -> None:
        code = "import os, socket; os.write(7, b'abc'); socket.socket(fileno=7).shutdown(1); print(os.read(6, 9))"
        rundir = self.serving(reverse)
        self.assertEqual(
            await self.finished("--rundir", rundir, "exec", "pong", "--", sys.executable, "-c", code),
            (0, "b'cba'\n", ""),
        )

    async def test_with_stdio_it_has_the_connection_there_and_nothing_else_of_it(self) -> None:
        got: list[bytes] = []

        def serve(sock: socket.socket) -> None:
            sock.sendall(b"question\n")
            got.append(read_all(sock))

        words = ("exec", "--stdio", "pong", "--", "sh", "-c", 'read -r line; echo "answer to $line"; ls /proc/self/fd')
        self.assertEqual(await self.finished("--rundir", self.serving(serve), *words), (0, "", ""))
        await until(lambda: got)
        self.assertEqual(got, [b"answer to question\n0\n1\n2\n3\n"])  # 3 is the listing's own

    async def test_the_variables_tell_of_the_connection(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.port = listener.getsockname()[1]
                given = socket.create_connection(("127.0.0.1", self.port))
                self.own = given.getsockname()[1]
                self.owned(listener.accept()[0])
                grant(sock, given, mode="locked", rule="2: allow out pong tcp:127.0.0.1")

        for words, service in (("pong", "pong"), ("tcp://127.0.0.1:7", "")):
            environ = {"TCPREMOTEHOST": "stale", "UNIXREMOTEPID": "1"}
            status, _, err = await self.finished(
                "--rundir", self.broker(answer), "exec", words, "--", "sh", "-c", TELL, environ=environ
            )
            self.assertEqual(status, 0)
            self.assertEqual(
                err.splitlines(),
                [
                    "PLUMB_MODE=locked",
                    "PLUMB_RULE=2: allow out pong tcp:127.0.0.1",
                    f"PLUMB_SERVICE={service}",
                    "PROTO=TCP",
                    "TCPLOCALIP=127.0.0.1",
                    f"TCPLOCALPORT={self.own}",
                    "TCPREMOTEIP=127.0.0.1",
                    f"TCPREMOTEPORT={self.port}",
                ],
            )

    async def test_the_status_is_the_program_s(self) -> None:
        rundir = self.serving(lambda sock: None)
        self.assertEqual(
            await self.finished("--rundir", rundir, "exec", "pong", "--", "sh", "-c", "exit 9"), (9, "", "")
        )

    async def test_words_behind_the_dashes_are_the_program_s_whatever_they_look_like(self) -> None:
        rundir = self.serving(lambda sock: None)
        words = ("exec", "pong", "--", "printf", "%s.", "--stdio", "--", "-h", "--max=1")
        self.assertEqual(await self.finished("--rundir", rundir, *words), (0, "--stdio.--.-h.--max=1.", ""))

    async def test_a_refusal_is_status_1_and_nothing_runs(self) -> None:
        rundir = self.broker(refuse("denied", "no rule"))
        self.assertEqual(
            await self.finished("--rundir", rundir, "exec", "pong", "--", "echo", "ran"),
            (1, "", "plumb: refused: denied: no rule\n"),
        )

    async def test_a_program_that_is_not_there_is_127(self) -> None:
        rundir = self.serving(lambda sock: None)
        status, _, err = await self.finished("--rundir", rundir, "exec", "pong", "--", "no-such-program")
        self.assertEqual((status, err), (127, "plumb: no-such-program: not found\n"))

    async def test_no_program_is_a_mistake(self) -> None:
        for words in (("exec", "pong"), ("exec", "pong", "--")):
            status, _, err = await self.finished(*words)
            self.assertEqual(status, 2)
            self.assertIn("wanted a program behind --: -- CMD [ARG…]", err)


class Inherited(ControlTestCase, PlumbTestCase):
    async def test_an_inherited_control_socket_is_asked_and_goes_on_though_it_was_in_the_way(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            grant(sock, given)
            with ours:
                ours.sendall(request["service"].encode())

        control = self.control(answer)
        # Under number 6, where the connection is to be.
        plumb = f"{sys.executable} -m plumberd.plumb"
        again = f'printf "$(cat <&6) "; {plumb} connect second </dev/null'
        script = f"exec 6<&{control.fileno()}; export {VARIABLE}=6; exec {plumb} exec first -- sh -c '{again}'"
        child = self.command(["bash", "-c", script], pass_fds=[control.fileno()], env=bare_environ(named(control)))
        self.assertEqual(await in_thread(child.finish), (0, "first second", ""))
        self.assertEqual([request["service"] for request in self.requests], ["first", "second"])
        self.assertTrue(os.path.exists(f"/proc/self/fd/{control.fileno()}"))
