"""``plumb serve``: one process a connection, as inetd does it, for a service that listens on nothing."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from plumberd import client
from plumberd.claim import peer_of
from plumberd.commands.become import NOT_FOUND, connection_variables, is_there, without_connection
from plumberd.commands.output import OK, complain
from plumberd.inherited import VARIABLE, borrow

HELD = 128
"""Connections that wait while as many processes run as may; more are closed."""


def run(args: argparse.Namespace) -> int:
    """Serve until a signal says that it is enough, and wait for the processes then."""
    if not is_there(args.command[0]):
        return NOT_FOUND
    serving = client.serve(args.service, rundir=args.rundir, waiting=HELD, log=complain)
    with serving, Signals() as signals:
        complain(f"serves {args.service}: {serving.rule}")
        children = Children(args.command, os.environ)
        heard = 0
        while not heard or children:
            signals.wait(serving.fileno() if not heard and len(children) < args.max else None)
            children.reap()
            if (stops := signals.stops) > heard:  # read once: another one may come at any moment
                serving.close()
                if stops > 1:
                    children.end()
                elif children:
                    complain(f"takes no more connections, and waits for {len(children)} processes; again ends them")
                heard = stops
            while not heard and len(children) < args.max and (accepted := serving.take(0)) is not None:
                children.start(*accepted)
    return OK


def variables_of(sock: socket.socket, told: dict[str, Any]) -> dict[str, str]:
    """Return what a process is told of its connection: UCSPI's variables, and this project's own.

    What is relayed is a UNIX socket here; the variables tell of the caller behind it.
    """
    peer = peer_of(told)
    variables = connection_variables(sock)
    if peer.get("address") is not None:
        variables.update(PROTO="TCP", TCPREMOTEIP=str(peer["address"]), TCPREMOTEPORT=str(peer.get("port") or 0))
    for name, member in (("UNIXREMOTEEUID", "uid"), ("UNIXREMOTEEGID", "gid"), ("UNIXREMOTEPID", "pid")):
        if peer.get(member) is not None:
            variables[name] = str(peer[member])
    identities = told.get("identities")
    variables["PLUMB_IDENTITIES"] = " ".join(map(str, identities)) if isinstance(identities, list) else ""
    for name, member in (("PLUMB_SERVICE", "service"), ("PLUMB_MODE", "mode"), ("PLUMB_RULE", "rule")):
        variables[name] = str(told.get(member, ""))
    return variables


class Signals:
    """What wakes the waiting: a child that has ended, or somebody who says that it is enough.

    :ivar stops: how often that was said.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        self._reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in (self._reader, writer):
            self._undo.callback(os.close, fd)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
        for number, heard in ((signal.SIGTERM, self._stop), (signal.SIGINT, self._stop), (signal.SIGCHLD, self._ended)):
            self._undo.callback(signal.signal, number, signal.signal(number, heard))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def wait(self, fd: int | None) -> None:
        """Wait for a signal, or until *fd* is readable."""
        poll = select.poll()
        for one in (self._reader, fd):
            if one is not None:
                poll.register(one, select.POLLIN)
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1

    def _ended(self, number: int, frame: FrameType | None) -> None:
        """Hear it: that it wakes is all."""


class Children:
    """The running processes, one a connection."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        self._words = [*words]
        self._environ = without_connection(environ)
        self._running: list[subprocess.Popen[bytes]] = []
        self._control: tuple[int, ...] = ()
        if value := environ.get(VARIABLE):
            try:
                self._control = (borrow(value).detach(),)
            except client.Error as e:
                complain(f"{e.strerror}; it is not passed on")
                del self._environ[VARIABLE]

    def __len__(self) -> int:
        return len(self._running)

    def start(self, sock: socket.socket, told: dict[str, Any]) -> None:
        """Start a process on *sock*, which is closed here."""
        with sock:
            try:
                child = subprocess.Popen(  # noqa: S603 - it is what was asked for
                    self._words,
                    stdin=sock.fileno(),
                    stdout=sock.fileno(),
                    env={**self._environ, **variables_of(sock, told)},
                    pass_fds=self._control,
                )
            except (OSError, ValueError) as e:
                complain(f"{self._words[0]}: {e}; a connection is closed")
                return
        self._running.append(child)

    def reap(self) -> None:
        """Forget those that have ended."""
        self._running = [child for child in self._running if child.poll() is None]

    def end(self) -> None:
        """Ask those that run to end."""
        for child in self._running:
            child.terminate()
