"""plumberd.commands.become: what other programs find: descriptors, variables, signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from typing import Any

from plumberd.commands.become import (
    CANNOT_RUN,
    NOT_FOUND,
    UCSPI,
    become,
    connection_variables,
    drop_inherited,
    is_there,
    keep_free,
    pass_on,
    without_connection,
)
from plumberd.inherited import VARIABLE
from tests.plumb_case import PlumbTestCase
from tests.support import in_thread
from tests.tables import each

CODE = """
import os, sys
from plumberd.commands.become import become
sys.exit(become(sys.argv[1:], {**os.environ, "SAID": "so"}))
"""


class Becoming(PlumbTestCase):
    async def check(self, words: tuple[str, ...], wanted: tuple[int, str, str]) -> None:
        self.assertEqual(await in_thread(self.child(CODE, *words).finish), wanted)

    async def test_the_status_is_the_program_s(self) -> None:
        await self.check(("sh", "-c", 'echo "$SAID"; exit 7'), (7, "so\n", ""))

    async def test_a_signal_ends_it_as_any_program(self) -> None:
        await self.check(("sh", "-c", "kill -KILL $$"), (-signal.SIGKILL, "", ""))

    async def test_what_python_ignores_is_as_usual_again(self) -> None:
        await self.check(("sh", "-c", "kill -PIPE $$; echo alive"), (-signal.SIGPIPE, "", ""))
        await self.check(("sh", "-c", "kill -XFSZ $$; echo alive"), (-signal.SIGXFSZ, "", ""))

    async def test_a_program_that_is_not_there_is_127(self) -> None:
        await self.check(("no-such-program",), (NOT_FOUND, "", "plumb: no-such-program: not found\n"))

    async def test_one_that_does_not_run_is_126(self) -> None:
        await self.check(("/dev/null",), (CANNOT_RUN, "", "plumb: /dev/null: Permission denied\n"))

    def test_where_it_fails_python_ignores_again_what_it_did(self) -> None:
        before = signal.getsignal(signal.SIGPIPE)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(become(["/nonexistent/program"], {}), NOT_FOUND)
            self.assertEqual(become(["a\0b"], {}), CANNOT_RUN)
        self.assertEqual(said.getvalue().splitlines()[0], "plumb: /nonexistent/program: not found")
        self.assertEqual(signal.getsignal(signal.SIGPIPE), before)

    def test_whether_one_is_there_is_told_before(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertTrue(is_there("sh"))
            self.assertFalse(is_there("no-such-program"))
        self.assertEqual(said.getvalue(), "plumb: no-such-program: not found\n")


class Variables(PlumbTestCase):
    def test_those_of_another_connection_are_taken_out(self) -> None:
        environ = {**dict.fromkeys(UCSPI, "x"), "PATH": "/bin", "PROTOCOL": "y"}
        self.assertEqual(without_connection(environ), {"PATH": "/bin", "PROTOCOL": "y"})

    @each(("127.0.0.1",), ("::1",))
    def test_a_tcp_socket_has_both_addresses(self, host: str) -> None:
        left, right = self.tcp_pair(host)
        (here, port), (there, far) = right.getsockname()[:2], right.getpeername()[:2]
        self.assertEqual(
            connection_variables(right),
            {
                "PROTO": "TCP",
                "TCPLOCALIP": here,
                "TCPLOCALPORT": str(port),
                "TCPREMOTEIP": there,
                "TCPREMOTEPORT": str(far),
            },
        )

    def test_of_one_whose_far_side_has_gone_what_is_known_is_told(self) -> None:
        sock = self.owned(socket.socket())
        sock.bind(("127.0.0.1", 0))
        self.assertEqual(
            connection_variables(sock),
            {"PROTO": "TCP", "TCPLOCALIP": "127.0.0.1", "TCPLOCALPORT": str(sock.getsockname()[1])},
        )

    def test_a_unix_socket_has_none(self) -> None:
        self.assertEqual(connection_variables(self.pair()[0]), {"PROTO": "UNIX"})

    def test_every_variable_that_is_set_is_one_that_is_taken_out(self) -> None:
        self.assertEqual({*connection_variables(self.tcp_pair()[0])} - {*UCSPI}, set())


class Descriptors(PlumbTestCase):
    def control_pair(self) -> tuple[socket.socket, socket.socket]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return self.owned(left), self.owned(right)

    def test_a_control_socket_that_is_passed_on_is_inherited_under_a_number_from_3_on(self) -> None:
        control, kept = self.control_pair()
        fd = pass_on(control)
        self.addCleanup(os.close, fd)
        self.assertEqual((fd >= 3, os.get_inheritable(fd), control.fileno()), (True, True, -1))
        os.write(fd, b"x")
        self.assertEqual(kept.recv(9), b"x")

    def test_one_that_is_in_the_way_is_moved_and_named_anew(self) -> None:
        control, kept = self.control_pair()
        number = control.fileno()
        environ = {VARIABLE: str(number)}
        keep_free((number, number + 1), environ)
        moved = int(environ[VARIABLE])
        self.addCleanup(os.close, moved)
        self.assertGreater(moved, number + 1)
        os.write(moved, b"x")
        self.assertEqual(kept.recv(9), b"x")

    @each(({},), ({VARIABLE: ""},), ({VARIABLE: "5000"},))
    def test_one_that_is_not_in_the_way_stays(self, environ: dict[str, Any]) -> None:
        before = dict(environ)
        keep_free((6, 7), environ)
        self.assertEqual(environ, before)

    def test_an_inherited_one_that_is_replaced_is_closed(self) -> None:
        control, kept = self.control_pair()
        drop_inherited({VARIABLE: str(control.detach())})
        self.assertEqual(kept.recv(1), b"")

    def test_what_is_no_control_socket_is_left_alone(self) -> None:
        left, right = self.pair()
        for value in (str(left.fileno()), "", "x", "5000"):
            drop_inherited({VARIABLE: value})
        left.sendall(b"x")
        self.assertEqual(right.recv(1), b"x")
