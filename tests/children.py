"""Child processes of tests: as another user, in a namespace of their own, under seccomp filters.

Their code is Python, given as text; :mod:`tests.inside` has what it needs to take on another user.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread

SOURCES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""The folder that holds plumberd/ and tests/."""

Marked = TypeVar("Marked")


def needs_root(case: Marked) -> Marked:
    """Skip a test or a class of tests where root's capabilities are missing."""
    if os.geteuid() != 0:
        case.skip = "wants root"  # type: ignore[attr-defined]
    return case


class Child:
    """One child process; the test ends it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid

    def finish(self, stdin: bytes = b"") -> tuple[int, str, str]:
        """Give it *stdin* and its end; wait; return its status, standard output and standard error. Blocks."""
        out, err = self.process.communicate(stdin, timeout=DEADLINE_SECONDS)
        return self.process.returncode, out.decode(), err.decode()

    def line(self) -> str:
        """Return the next line that it prints. Blocks; the test's end ends that."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def end(self) -> None:
        """Kill it, and those that it has started, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class ChildTestCase(CleanTestCase):
    """A test that starts child processes and leaves none."""

    def child(
        self,
        code: str,
        *args: object,
        within: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> Child:
        """Start Python on *code* with *args* in sys.argv[1:].

        :param within: a command that runs it, such as ``unshare -n``.
        """
        return self.command([*within, sys.executable, "-c", code, *map(str, args)], pass_fds=pass_fds, env=env)

    def command(self, words: Sequence[str], **options: Any) -> Child:
        """Start any command, in the sources' folder and with pipes."""
        # Unlike plumberd's own, a child of a test must find the sources wherever it is started.
        environ = dict(os.environ if options.get("env") is None else options["env"])
        environ["PYTHONPATH"] = SOURCES
        environ.pop("COVERAGE_PROCESS_CONFIG", None)  # another user could not write down what was measured
        options["env"] = environ
        pipes = {name: options.pop(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
        child = Child(subprocess.Popen(words, start_new_session=True, bufsize=0, **pipes, **options))
        self.addCleanup(child.end)
        return child

    async def run_child(self, code: str, *args: object, within: Sequence[str] = ()) -> str:
        """Run a child to its end, which has to be a good one; return what it printed."""
        status, out, err = await in_thread(self.child(code, *args, within=within).finish)
        self.assertEqual((status, err), (0, ""))
        return out
