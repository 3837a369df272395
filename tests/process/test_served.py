"""plumb serve with a real broker: a process for each connection, signals, limits, and brokers that come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading

from plumberd import client
from tests.process.programs import ToolTestCase
from tests.process.running import DEADLINE_SECONDS, Program, frame

TELL = 'env | grep -E "^(PROTO|TCP|UNIX|PLUMB_)" | sort; ls /proc/self/fd'
RULES = ("--rule", "allow serve pong", "--rule", "allow in pong tcp:127.0.0.1", "--tcpd", "tcp:0:interface=127.0.0.1")


class ServeTestCase(ToolTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.rundir = f"{self.folder()}/r"

    def run_broker(self) -> Program:
        return self.broker(self.rundir, *RULES)

    def serve(self, *words: str) -> Program:
        """Serve pong, and wait until it does."""
        program = self.start("--rundir", self.rundir, "serve", "pong", *words)
        program.wait_for("^plumb: serves pong: 1: allow serve pong$")
        return program

    def call(self) -> socket.socket:
        """Call as a local client."""
        sock = client.connect("pong", rundir=self.rundir, timeout=DEADLINE_SECONDS)
        self.addCleanup(sock.close)
        sock.settimeout(DEADLINE_SECONDS)
        return sock

    def call_in(self, broker: Program) -> socket.socket:
        """Call from outside."""
        port = int(broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1))
        sock = socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS)
        self.addCleanup(sock.close)
        sock.sendall(b"pong")
        self.assertEqual(sock.recv(2), b"ok")
        return sock

    def heard(self, sock: socket.socket) -> list[str]:
        """Read to the end; return the lines."""
        with sock.makefile("rb") as file:
            return file.read().decode().splitlines()

    def children(self, program: Program) -> list[int]:
        """Return the processes that it has started and not reaped."""
        with open(f"/proc/{program.pid}/task/{program.pid}/children", encoding="ascii") as file:
            found = file.read().split()
        for thread in os.listdir(f"/proc/{program.pid}/task"):
            if thread != str(program.pid):
                with open(f"/proc/{program.pid}/task/{thread}/children", encoding="ascii") as file:
                    found += file.read().split()
        return [*map(int, found)]


class Serving(ServeTestCase):
    def test_a_process_has_its_connection_and_what_is_told_of_it_and_nothing_else(self) -> None:
        broker = self.run_broker()
        self.serve("--", "sh", "-c", TELL)
        ours = ["0", "1", "2", "3"]  # 3 is the listing's own
        told = self.heard(self.call())
        self.assertEqual(
            told,
            [
                "PLUMB_IDENTITIES=",
                "PLUMB_MODE=local",
                "PLUMB_RULE=default for local services",
                "PLUMB_SERVICE=pong",
                "PROTO=UNIX",
                f"UNIXREMOTEEGID={os.getegid()}",
                f"UNIXREMOTEEUID={os.geteuid()}",
                f"UNIXREMOTEPID={os.getpid()}",
                *ours,
            ],
        )
        far = self.call_in(broker)
        host, port = far.getsockname()
        told = self.heard(far)
        self.assertIn(told[1], ("PLUMB_MODE=locked", "PLUMB_MODE=direct", "PLUMB_MODE=relayed"))
        for line in (f"TCPREMOTEIP={host}", f"TCPREMOTEPORT={port}", "PROTO=TCP", "PLUMB_SERVICE=pong"):
            self.assertIn(line, told)
        self.assertEqual(told[-4:], ours)

    def test_bytes_and_their_ends_pass_both_ways(self) -> None:
        broker = self.run_broker()
        self.serve("--", "cat")
        data = os.urandom(300_000)
        for sock in (self.call(), self.call_in(broker)):

            def send(sock: socket.socket = sock) -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send, daemon=True)
            sending.start()
            with sock.makefile("rb") as file:
                self.assertTrue(file.read() == data)
            sending.join(DEADLINE_SECONDS)

    def test_processes_are_reaped_and_leave_no_descriptor(self) -> None:
        self.run_broker()
        program = self.serve("--", "true")
        before = program.descriptors()
        for _ in range(30):
            self.assertEqual(self.heard(self.call()), [])
        self.until(lambda: not self.children(program), "all are reaped")
        self.until(lambda: program.descriptors() <= before, "no descriptor is left")

    def test_no_more_run_at_once_than_may_and_the_others_have_their_turn(self) -> None:
        self.run_broker()
        program = self.serve("--max", "2", "--", "sh", "-c", "echo up; read -r line")
        calls = [self.call() for _ in range(5)]
        for sock in calls[:2]:
            self.assertEqual(sock.recv(9), b"up\n")
        self.until(lambda: program.descriptors() > 3, "the others are held")
        self.assertEqual(len(self.children(program)), 2)
        calls[3].setblocking(False)
        self.assertRaises(BlockingIOError, calls[3].recv, 9)
        calls[3].settimeout(DEADLINE_SECONDS)
        for sock, following in zip(calls, calls[2:], strict=False):
            sock.sendall(b"\n")
            self.assertEqual(following.recv(9), b"up\n")
            self.assertLessEqual(len(self.children(program)), 2)

    def test_beyond_those_that_are_held_connections_are_closed_and_that_is_told(self) -> None:
        self.run_broker()
        program = self.serve("--max", "1", "--", "sh", "-c", "echo up; read -r line")
        self.assertEqual(self.call().recv(9), b"up\n")
        calls = [self.call() for _ in range(129)]
        self.assertEqual(calls[-1].recv(9), b"")
        program.wait_for("^plumb: a connection to pong is closed: 128 wait already$")


class Stopping(ServeTestCase):
    def check(self, number: int) -> None:
        self.run_broker()
        program = self.serve("--", "cat")
        sock = self.call()
        sock.sendall(b"x")
        self.assertEqual(sock.recv(9), b"x")
        program.process.send_signal(number)
        program.wait_for("^plumb: takes no more connections, and waits for 1 processes; again ends them$")
        self.until(self.is_refused, "the claim is given up, which comes behind what is said of it")
        sock.sendall(b"y")  # and yet it goes on
        self.assertEqual(sock.recv(9), b"y")
        sock.close()
        self.assertEqual(program.wait(), 0)

    def is_refused(self) -> bool:
        """Call, and tell whether there is no such service."""
        try:
            client.connect("pong", rundir=self.rundir).close()
        except client.Refused:
            return True
        return False

    def test_on_sigterm_it_takes_no_more_and_waits_for_those_that_run(self) -> None:
        self.check(signal.SIGTERM)

    def test_on_sigint_too(self) -> None:
        self.check(signal.SIGINT)

    def test_a_second_one_ends_them(self) -> None:
        self.run_broker()
        program = self.serve("--", "cat")
        sock = self.call()
        sock.sendall(b"x")
        self.assertEqual(sock.recv(9), b"x")
        program.process.send_signal(signal.SIGTERM)
        program.wait_for("takes no more")
        self.assertEqual(program.stop(), 0)
        self.assertEqual(sock.recv(9), b"")

    def test_two_that_are_heard_together_end_them_too(self) -> None:
        self.run_broker()
        program = self.serve("--", "cat")
        sock = self.call()
        sock.sendall(b"x")
        self.assertEqual(sock.recv(9), b"x")
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            program.process.send_signal(number)
        self.assertEqual(program.process.wait(DEADLINE_SECONDS), 0)
        self.assertEqual(sock.recv(9), b"")

    def test_with_nothing_to_wait_for_it_ends_at_once(self) -> None:
        self.run_broker()
        program = self.serve("--", "cat")
        self.assertEqual(program.stop(), 0)
        self.assertEqual(len(program.lines), 1)


class Again(ServeTestCase):
    def test_a_broker_that_starts_anew_is_found_and_running_connections_go_on(self) -> None:
        broker = self.run_broker()
        program = self.serve("--", "cat")
        sock = self.call()
        sock.sendall(b"x")
        self.assertEqual(sock.recv(9), b"x")
        broker.process.kill()
        broker.wait()
        program.wait_for("^plumb: the claim to pong is lost, and will be made again: the broker hung up$")
        sock.sendall(b"y")
        self.assertEqual(sock.recv(9), b"y")
        self.run_broker()
        program.wait_for("^plumb: pong is claimed again: 1: allow serve pong$")
        again = self.call()
        again.sendall(b"z")
        self.assertEqual(again.recv(9), b"z")

    def test_while_there_is_none_it_ends_as_it_should(self) -> None:
        broker = self.run_broker()
        program = self.serve("--", "cat")
        self.assertEqual(broker.stop(), 0)
        program.wait_for("is lost")
        self.assertEqual(program.stop(), 0)


class Together(ServeTestCase):
    def test_a_service_asks_for_its_own_connections_over_a_control_socket(self) -> None:
        self.run_broker()
        self.pongd(self.rundir, "deeper")
        plumb = (sys.executable, "-m", "plumberd.plumb")
        words = ("restrict", "deeper", "--", *plumb, "serve", "pong", "--", *plumb, "connect", "deeper")
        program = self.start("--rundir", self.rundir, *words, environ={"IPC_RUNDIR": self.rundir})
        program.wait_for("serves pong")
        sock = self.call()
        sock.sendall(frame(b"hello"))
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as file:
            self.assertEqual(file.read(), frame(b"hello"))

    def test_plumb_connects_to_what_plumb_serves(self) -> None:
        self.run_broker()
        self.serve("--", "tr", "a-z", "A-Z")
        done = self.plumb("--rundir", self.rundir, "connect", "pong", stdin=b"hello")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"HELLO", b""))

    def test_handed_over_connections_are_listed_and_ended(self) -> None:
        broker = self.run_broker()
        self.serve("--", "cat")
        far = self.call_in(broker)
        far.sendall(b"hello")
        self.assertEqual(far.recv(9), b"hello")
        status, said = self.said("--rundir", self.rundir, "ss", "pong")
        self.assertEqual(status, 0, said)
        if "locked" not in said:
            return  # what is relayed has not left the broker
        row = said.splitlines()[1].split()
        self.assertEqual((row[1], row[4], row[-1]), ("pong", "locked", ":".join(map(str, far.getsockname()))))
        status, said = self.said("--rundir", self.rundir, "kill", row[0])
        if status:  # a kernel without it
            self.assertIn("it was not ended: ", said)
            return
        self.assertEqual(said, f"{row[0]} is ended\n")
        with contextlib.suppress(ConnectionResetError):
            self.assertEqual(far.recv(9), b"")
