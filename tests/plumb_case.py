"""The command ``plumb`` for tests: as a process of its own, or within the test; its broker does as it is told."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
from typing import Any
from unittest import mock

from plumberd import plumb
from tests.children import Child
from tests.fake_broker import FakeBrokerTestCase, frame, grant, send
from tests.support import DEADLINE_SECONDS, in_thread


def bare_environ(environ: dict[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what names a broker, and with *environ*."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("IPC_")}
    for name in ("RUNDIR", "XDG_RUNTIME_DIR", "PLUMB_FD", "PYTHONUNBUFFERED"):
        env.pop(name, None)
    return {**env, **(environ or {})}


class PlumbTestCase(FakeBrokerTestCase):
    """Runs the command."""

    def plumb(self, *words: str, environ: dict[str, str] | None = None, **options: Any) -> Child:
        """Start the command as a process of its own."""
        return self.command([sys.executable, "-m", "plumberd.plumb", *words], env=bare_environ(environ), **options)

    async def finished(
        self, *words: str, stdin: bytes = b"", environ: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Run it to its end; return its status and what it printed."""
        return await in_thread(self.plumb(*words, environ=environ).finish, stdin)

    def ran(self, *words: str, stdin: bytes = b"", environ: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Run it within this process, which it blocks; return its status and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin))
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "stdin", given),
            mock.patch.dict(os.environ, bare_environ(environ), clear=True),
        ):
            try:
                status = plumb.main(words)
            except SystemExit as e:
                status = int(e.code or 0)
        return status, out.getvalue(), err.getvalue()

    def serving(self, serve: Any) -> str:
        """Start a broker that grants a connection to *serve*; return its run directory."""

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            grant(sock, given)
            with ours:
                ours.settimeout(DEADLINE_SECONDS)
                serve(ours)

        return self.broker(answer)


def answer_with(answer: dict[str, Any]) -> Any:
    """Return an answering with *answer*, whatever is asked."""
    return lambda sock, request: send(sock, frame(answer))
