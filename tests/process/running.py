"""Real brokers, clients and services as processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial import unittest

DEADLINE_SECONDS = 30.0
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=")
"""``twistd -n``, by the interpreter that runs the tests."""

TWIST = (sys.executable, "-c", "from twisted.application.twist._twist import Twist; Twist.main()")
PONGD = os.path.join(ROOT, "examples", "pongd.py")


class Program:
    """A child process whose output goes to a file, which is read as it grows.

    (A pipe that nobody reads would stop the process as soon as it is full.)
    """

    def __init__(self, argv: Sequence[str], **options: Any) -> None:
        self._file = tempfile.TemporaryFile()
        options.setdefault("stdin", subprocess.DEVNULL)
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            argv, stdout=self._file, stderr=subprocess.STDOUT, **options
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """The whole lines that it has printed so far."""
        return self.output.split("\n")[:-1]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until a line matches; fail at the deadline, or when the process ends without it."""
        ends = time.monotonic() + DEADLINE_SECONDS
        while True:
            ended = self.process.poll() is not None
            for line in self.lines:
                if found := re.search(pattern, line):
                    return found
            if ended or time.monotonic() > ends:
                raise AssertionError(f"{pattern!r} was not printed:\n{self.output}")
            time.sleep(0.01)

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(DEADLINE_SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait()

    def end(self) -> None:
        """End it, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._file.close()

    def descriptors(self) -> int:
        """Count its open descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class ProcessTestCase(unittest.TestCase):
    """Starts processes and ends every one of them, by pid."""

    timeout = 60.0

    def folder(self) -> str:
        """Return a new empty folder that other users may enter; removed afterwards."""
        path = tempfile.mkdtemp(prefix="pl")
        os.chmod(path, 0o755)
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path

    def program(self, *argv: str, **options: Any) -> Program:
        """Start a process."""
        program = Program(argv, **options)
        self.addCleanup(program.end)
        return program

    def broker(self, rundir: str, *options: str, **kwargs: Any) -> Program:
        """Start a broker and wait until it serves."""
        program = self.start_broker("--rundir", rundir, *options, **kwargs)
        program.wait_for("export IPC_NETWORKD")
        return program

    def start_broker(self, *options: str, **kwargs: Any) -> Program:
        """Start a broker, which may fail."""
        kwargs.setdefault("cwd", self.folder())
        return self.program(*TWISTD, "plumberd", *options, **kwargs)

    def pongd(self, rundir: str, name: str = "pong") -> Program:
        """Start the example service."""
        program = self.program(sys.executable, PONGD, rundir, name)
        program.wait_for("listening")
        return program

    def plumb(self, *args: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run ``plumb`` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "plumberd.plumb", *args],
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            **options,
        )

    def listener(self) -> tuple[socket.socket, int]:
        """Return a listening TCP socket and its port."""
        sock = socket.socket()
        self.addCleanup(sock.close)
        sock.bind(("127.0.0.1", 0))
        sock.listen(4096)
        sock.settimeout(DEADLINE_SECONDS)
        return sock, sock.getsockname()[1]

    def wait_for_socket(self, path: str) -> None:
        """Wait until somebody listens at *path*: a name that is there already may not listen yet."""

        def answers() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(path) == 0

        self.until(answers, f"somebody listens at {path}")

    def until(self, true: Callable[[], object], what: str) -> None:
        """Look again and again until *true* is, within the deadline."""
        ends = time.monotonic() + DEADLINE_SECONDS
        while not true():
            if time.monotonic() > ends:
                self.fail(f"not within {DEADLINE_SECONDS} s: {what}")
            time.sleep(0.01)


def frame(payload: bytes) -> bytes:
    """Frame a message as the example service wants it."""
    return len(payload).to_bytes(4, "big") + payload
