"""Start, refusal to start, stop, and what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import stat

from tests.process.running import TWIST, TWISTD, ProcessTestCase, Program


class Starting(ProcessTestCase):
    def test_it_says_where_for_whom_and_what_holds(self) -> None:
        rundir = self.folder() + "/r"
        broker = self.broker(rundir, "--tcpd", "tcp:0:interface=127.0.0.1", "--deny", "in", "*", "*")
        for said in (
            f"run directory {rundir}, for uid {os.geteuid()}",
            f"{rundir}/plumberd",
            f"{rundir}/network",
            f"{rundir}/ipc",
            "rule 1: deny in * *",
            "default in=deny out=allow",
            "warning: tcpd listens, and no rule lets anyone in",
        ):
            self.assertIn(said, broker.output)
        port = int(broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1))
        socket.create_connection(("127.0.0.1", port), 5).close()

    def test_directory_and_sockets_have_their_modes_whatever_the_umask(self) -> None:
        for umask in (0o000, 0o077):
            rundir = self.folder() + "/r"
            self.broker(rundir, umask=umask)
            self.assertEqual(stat.S_IMODE(os.stat(rundir).st_mode), 0o1770)
            for name in ("plumberd", "network", "ipc"):
                self.assertEqual(stat.S_IMODE(os.stat(f"{rundir}/{name}").st_mode), 0o660)

    def test_twist_runs_it_too(self) -> None:
        rundir = self.folder() + "/r"
        twist = self.program(*TWIST, "plumberd", "--rundir", rundir)
        twist.wait_for("export IPC_NETWORKD")
        self.assertEqual(self.plumb("--rundir", rundir, "status").returncode, 0)
        self.assertEqual(twist.stop(), 0)
        self.assertEqual(os.listdir(rundir), [])


class NotStarting(ProcessTestCase):
    def check_refused(self, program: Program, *said: str) -> None:
        self.assertEqual(program.wait(), 1)
        self.assertEqual(len(program.lines), 1, program.output)
        for words in said:
            self.assertIn(words, program.output)

    def test_a_mistake_in_the_options_is_one_line_and_nothing_listens(self) -> None:
        rundir = self.folder() + "/r"
        for argv in (("--allow", "in", "pong", "carrier-pigeon:any"), ("--tcpd", "70000")):
            self.check_refused(self.start_broker("--rundir", rundir, *argv), argv[0], argv[-1], "wanted")
            self.check_refused(self.program(*TWIST, "plumberd", "--rundir", rundir, *argv), argv[0], "wanted")
        self.assertFalse(os.path.exists(rundir))

    def test_a_second_broker_on_the_same_directory_is_refused_and_the_first_goes_on(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir)
        second = self.start_broker("--rundir", rundir)
        self.assertEqual(second.wait(), 1)
        self.assertIn("another broker holds its lock file", second.lines[-1])
        self.assertEqual(self.plumb("--rundir", rundir, "status").returncode, 0)

    def test_a_port_that_is_taken_is_told_and_nothing_is_left(self) -> None:
        rundir = self.folder() + "/r"
        _, port = self.listener()
        broker = self.start_broker("--rundir", rundir, "--tcpd", str(port))
        self.assertEqual(broker.wait(), 1)
        self.assertIn(f"--tcpd tcp:{port}:interface=127.0.0.1", broker.lines[-1])
        self.assertNotIn("Traceback", broker.output)
        self.assertEqual(os.listdir(rundir), [])

    def test_a_directory_that_others_can_write_is_refused(self) -> None:
        rundir = self.folder()
        os.chmod(rundir, 0o777)
        broker = self.start_broker("--rundir", rundir)
        self.assertEqual(broker.wait(), 1)
        self.assertIn("sticky bit", broker.lines[-1])


class Stopping(ProcessTestCase):
    def test_a_clean_stop_removes_what_it_made_and_ends_with_0(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            rundir = self.folder() + "/r"
            broker = self.broker(rundir)
            status = broker.stop(number)
            if number == signal.SIGTERM:
                self.assertEqual(status, 0)
            self.assertEqual(os.listdir(rundir), [])
            self.assertIn("plumberd has stopped", broker.output)
            self.assertNotIn("Traceback", broker.output)

    def test_after_a_kill_the_next_one_takes_the_stale_sockets_over(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir).stop(signal.SIGKILL)
        self.assertIn("plumberd", os.listdir(rundir))
        self.broker(rundir)
        self.assertEqual(self.plumb("--rundir", rundir, "status").returncode, 0)


class GivingRootUp(ProcessTestCase):
    def test_after_twistd_s_own_uid_option_it_knows_what_it_may_do(self) -> None:
        rundir = self.folder() + "/r"
        broker = self.program(
            *TWISTD,
            *("--uid", "65534", "--gid", "65534", "plumberd", "--rundir", rundir),
            *("--allow", "out", "pong", "unix:pong"),
            cwd=self.folder(),
        )
        broker.wait_for("export IPC_NETWORKD")
        self.assertIn("cannot lock sockets", broker.output)
        os.chmod(rundir, 0o1777)
        self.pongd(rundir)
        for _ in range(2):
            done = self.plumb("--rundir", rundir, "connect", "pong", stdin=b"x")
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"not-possible", done.stderr)
        self.assertIsNone(broker.process.poll())
