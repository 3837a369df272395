"""plumberd.commands.serve: one process a connection; with real brokers it is in tests/process/test_serving.py."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
from typing import Any

from plumberd.commands.become import UCSPI
from plumberd.commands.serve import Children, Signals, variables_of
from plumberd.inherited import VARIABLE
from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase
from tests.support import in_thread, read_all, until
from tests.tables import each

TOLD: dict[str, Any] = {
    "service": "pong",
    "mode": "relayed",
    "peer": {"scheme": "tcp", "address": "192.0.2.7", "port": 1234},
    "identities": [],
    "rule": "2: allow in pong any",
}
OURS = {"PLUMB_SERVICE": "pong", "PLUMB_MODE": "relayed", "PLUMB_RULE": "2: allow in pong any", "PLUMB_IDENTITIES": ""}


class Variables(PlumbTestCase):
    def check(self, told: dict[str, Any], wanted: dict[str, str], sock: socket.socket | None = None) -> None:
        found = variables_of(sock or self.pair()[0], told)
        self.assertEqual(found, wanted)
        self.assertEqual(found.keys() - {*UCSPI}, set())

    def test_of_a_relayed_caller_its_own_address_is_told(self) -> None:
        self.check(TOLD, {**OURS, "PROTO": "TCP", "TCPREMOTEIP": "192.0.2.7", "TCPREMOTEPORT": "1234"})

    def test_of_one_whose_socket_is_handed_over_the_address_here_too(self) -> None:
        _, right = self.tcp_pair()
        host, port = right.getsockname()
        remote = {"TCPREMOTEIP": "192.0.2.7", "TCPREMOTEPORT": "1234"}
        local = {"TCPLOCALIP": host, "TCPLOCALPORT": str(port)}
        self.check(TOLD, {**OURS, "PROTO": "TCP", **remote, **local}, right)

    def test_a_local_client_is_told_by_its_ids(self) -> None:
        peer = {"scheme": "unix", "uid": 0, "gid": 5, "pid": 77}
        ids = {"UNIXREMOTEEUID": "0", "UNIXREMOTEEGID": "5", "UNIXREMOTEPID": "77"}
        self.check({**TOLD, "peer": peer, "mode": "local"}, {**OURS, "PLUMB_MODE": "local", "PROTO": "UNIX", **ids})

    def test_a_caller_without_an_address_has_none(self) -> None:
        self.check({**TOLD, "peer": {"scheme": "tcp", "address": None, "port": 0}}, {**OURS, "PROTO": "UNIX"})

    def test_what_a_caller_has_proved_is_told(self) -> None:
        identities = ["cert:example.com", "spiffe:example.com/x"]
        found = variables_of(self.pair()[0], {**TOLD, "identities": identities})
        self.assertEqual(found["PLUMB_IDENTITIES"], "cert:example.com spiffe:example.com/x")

    @each(({},), ({"peer": 1, "identities": "x"},))
    def test_a_broker_that_tells_nothing_costs_nothing(self, told: dict[str, Any]) -> None:
        self.check(told, {**dict.fromkeys(OURS, ""), "PROTO": "UNIX"})


class Processes(PlumbTestCase):
    def children(self, *words: str, environ: dict[str, str] | None = None) -> Children:
        children = Children(words, {"PATH": os.environ["PATH"], **(environ or {})})
        self.addCleanup(children.end)
        return children

    def connection(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of one, the second blocking, as it is handed over."""
        left, right = self.pair()
        right.setblocking(True)
        return left, right

    async def ended(self, children: Children) -> None:
        def is_over() -> bool:
            children.reap()
            return not children

        await until(is_over)

    async def test_each_has_its_connection_on_0_and_1_and_no_other_descriptor(self) -> None:
        children = self.children("sh", "-c", "cat; ls /proc/self/fd; echo $PLUMB_SERVICE $STALE$TCPLOCALHOST")
        left, right = self.connection()
        os.set_inheritable(left.fileno(), True)  # and yet it is not inherited
        children.start(right, TOLD)
        self.assertEqual((right.fileno(), len(children)), (-1, 1))
        left.sendall(b"hello ")
        left.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, left), b"hello 0\n1\n2\n3\npong\n")  # 3 is the listing's own
        await self.ended(children)

    async def test_they_inherit_the_control_socket_where_there_is_one(self) -> None:
        control, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.owned(kept)
        with control:
            children = self.children("sh", "-c", f"printf x >&${VARIABLE}", environ={VARIABLE: str(control.fileno())})
            children.start(self.connection()[1], {})
            self.assertEqual(await in_thread(kept.recv, 9), b"x")
            await self.ended(children)

    async def test_a_variable_that_names_none_is_told_and_taken_out(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            children = self.children("sh", "-c", f"echo none: ${VARIABLE}", environ={VARIABLE: "5000"})
        self.assertIn("no such descriptor", said.getvalue())
        left, right = self.connection()
        children.start(right, {})
        self.assertEqual(await in_thread(read_all, left), b"none:\n")
        await self.ended(children)

    async def test_one_that_cannot_be_started_costs_its_connection_alone(self) -> None:
        left, right = self.pair()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            children = self.children("/nonexistent/program")
            children.start(right, TOLD)
        self.assertIn("/nonexistent/program: ", said.getvalue())
        self.assertEqual((await in_thread(read_all, left), len(children)), (b"", 0))

    async def test_they_are_asked_to_end(self) -> None:
        children = self.children("sh", "-c", "echo up; exec sleep 600")
        left, right = self.connection()
        children.start(right, TOLD)
        self.assertEqual(await in_thread(left.recv, 9), b"up\n")
        children.end()
        self.assertEqual(await in_thread(read_all, left), b"")
        await self.ended(children)


class Waking(PlumbTestCase):
    def test_a_signal_wakes_and_says_that_it_is_enough_and_all_is_as_before_then(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = [signal.getsignal(number) for number in numbers]
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        with Signals() as signals:
            for stops, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
                os.kill(os.getpid(), number)
                signals.wait(None)
                self.assertEqual(signals.stops, stops)
            os.kill(os.getpid(), signal.SIGCHLD)
            signals.wait(None)
            self.assertEqual(signals.stops, 2)
        self.assertEqual([signal.getsignal(number) for number in numbers], before)
        self.assertEqual(signal.set_wakeup_fd(wakeup), wakeup)

    def test_a_descriptor_wakes_too(self) -> None:
        left, right = self.pair()
        left.sendall(b"x")
        with Signals() as signals:
            signals.wait(right.fileno())
            self.assertEqual(signals.stops, 0)


class Command(PlumbTestCase):
    async def test_a_refusal_is_status_1(self) -> None:
        rundir = self.broker(refuse("denied", "it would take a rule: allow serve pong"))
        self.assertEqual(
            await self.finished("--rundir", rundir, "serve", "pong", "--", "cat"),
            (1, "", "plumb: refused: denied: it would take a rule: allow serve pong\n"),
        )
        self.assertEqual(self.requests, [{"op": "serve", "service": "pong"}])

    async def test_a_program_that_is_not_there_is_127_and_nothing_is_claimed(self) -> None:
        status, _, err = await self.finished("--rundir", self.broker(), "serve", "pong", "--", "no-such-program")
        self.assertEqual((status, err, self.requests), (127, "plumb: no-such-program: not found\n", []))

    async def test_how_many_at_once_has_to_be_a_number(self) -> None:
        for text in ("0", "-1", "x", "1e3", "100001"):
            status, _, err = await self.finished("serve", "pong", f"--max={text}", "--", "cat")
            self.assertEqual(status, 2)
            self.assertIn(f"wanted a number from 1 to 100000, found '{text}'", err)
