"""Programs of a test as forked children, in cages and out of them, and what they need to ask a broker.

It imports no Twisted, and who uses it has one thread: its children are forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.inside import become

DEADLINE_SECONDS = 20.0
"""Every child has it, and so has every blocking call in one."""

CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000

CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW = 10, 12, 13

_libc = ctypes.CDLL(None, use_errno=True)


def system_call(name: str, *args: Any) -> int:
    """Call a function of the C library that Python has no words for.

    :raises OSError: where it fails.
    """
    result = int(getattr(_libc, name)(*args))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def enter_cage() -> None:
    """Go into a network namespace with nothing in it."""
    system_call("unshare", CLONE_NEWNET)


def drop_capabilities(keep: Iterable[int] = ()) -> None:
    """Give up every capability but *keep*."""
    mask = sum(1 << number for number in keep)
    head = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(struct.pack("6I", mask, mask, 0, 0, 0, 0), 24)
    system_call("capset", head, data)


def map_ids(pid: int | str, uids: str, gids: str) -> None:
    """Say who is who in the user namespace of a process."""
    for name, text in (("setgroups", "deny"), ("uid_map", uids), ("gid_map", gids)):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(text)


@dataclass(frozen=True)
class Program:
    """Who a child is, and where it lives.

    :ivar uid: its user, and group; ``None`` stays root.
    :ivar caged: whether it lives in a network namespace of its own.
    :ivar capabilities: what it keeps of root's, ``None`` all; another user has none.
    :ivar is_root_of_its_own: whether it is root, with every capability, in a user namespace of its own.
    """

    uid: int | None = None
    caged: bool = True
    capabilities: tuple[int, ...] | None = ()
    is_root_of_its_own: bool = False

    def become(self) -> None:
        """Turn this process into it."""
        if self.is_root_of_its_own:
            assert self.uid is not None
            become(self.uid)
            system_call("unshare", CLONE_NEWUSER | CLONE_NEWNET)
            map_ids("self", f"0 {self.uid} 1", f"0 {self.uid} 1")
            return
        if self.caged:
            enter_cage()
        if self.uid is not None:
            become(self.uid)
        elif self.capabilities is not None:
            drop_capabilities(self.capabilities)


class Outside:
    """A child's way to ask who has forked it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rw")

    def ask(self, what: str, *args: Any) -> Any:
        """Have *what* done outside, and return what came of it."""
        self._say("ask", [what, *args])
        line = self._file.readline()
        if not line:
            raise EOFError("nobody is there any more")
        return json.loads(line)

    def tell(self, result: Any) -> None:
        """Say what came of it all."""
        self._say("result", result)

    def _say(self, kind: str, what: Any) -> None:
        self._file.write(json.dumps([kind, what]) + "\n")
        self._file.flush()


class ChildError(AssertionError):
    """A child ended without a result; its traceback stands on standard error."""


def fork(program: Program, work: Callable[[Outside], Any], answers: dict[str, Callable[..., Any]]) -> Any:
    """Run *work* in a child that is *program*; return its result, which is JSON.

    :param answers: what it may ask for.
    :raises ChildError: it failed.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(theirs, program, work)
    theirs.close()
    try:
        return _serve(ours, answers)
    finally:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _child(sock: socket.socket, program: Program, work: Callable[[Outside], Any]) -> None:
    status = 1
    try:
        signal.alarm(int(DEADLINE_SECONDS))
        outside = Outside(sock)
        program.become()
        outside.tell(work(outside))
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _serve(sock: socket.socket, answers: dict[str, Callable[..., Any]]) -> Any:
    sock.settimeout(DEADLINE_SECONDS)
    with sock.makefile("rw") as file:
        for line in file:
            kind, what = json.loads(line)
            if kind == "result":
                return what
            file.write(json.dumps(answers[what[0]](*what[1:])) + "\n")
            file.flush()
    raise ChildError("a child ended without a result")


# -- a broker's client


@dataclass
class Answer:
    """What a broker answered, and the descriptor that came with it."""

    members: dict[str, Any]
    sock: socket.socket | None

    def granted(self) -> socket.socket:
        """Return the descriptor, which the caller owns."""
        if self.sock is None:
            raise AssertionError(f"not granted: {self.members}")
        return self.sock

    @property
    def word(self) -> str:
        """The mode, or the refusal."""
        return str(self.members.get("mode") or self.members.get("error") or "ok")


def dial(path: str) -> socket.socket:
    """Connect to a broker's socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_SECONDS)
    sock.connect(path)
    return sock


def framed(members: dict[str, Any]) -> bytes:
    """Frame a request of the native dialect."""
    payload = json.dumps(members).encode()
    return struct.pack(">I", len(payload)) + payload


def take(sock: socket.socket) -> Answer:
    """Read one native message and the descriptor that came with it."""
    head, fds, _, _ = socket.recv_fds(sock, 4, 4)
    if not head:
        raise EOFError("the broker hung up")
    while len(head) < 4:
        head += sock.recv(4 - len(head))
    (length,) = struct.unpack(">I", head)
    data = b""
    while len(data) < length:
        data += sock.recv(length - len(data))
    granted = socket.socket(fileno=fds[0]) if fds else None
    if granted is not None:
        granted.settimeout(DEADLINE_SECONDS)
    return Answer(json.loads(data), granted)


def ask_on(sock: socket.socket, **members: Any) -> Answer:
    """Ask on a connection to the native socket."""
    sock.sendall(framed(members))
    return take(sock)


def ask(rundir: str, **members: Any) -> Answer:
    """Ask once."""
    with dial(f"{rundir}/plumberd") as sock:
        return ask_on(sock, **members)


def look_up(rundir: str, service: str, routes: str = "") -> Answer:
    """Look a service up."""
    return ask(rundir, op="lookup", service=service, **({"routes": routes} if routes else {}))


def ask_control(control: socket.socket, **members: Any) -> Answer:
    """Ask on an inherited control socket."""
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_SECONDS)
    with ours:
        with theirs:
            socket.send_fds(control, [json.dumps(members).encode()], [theirs.fileno()])
        return take(ours)


def is_ready(sock: socket.socket | int, seconds: float = 0, events: int = select.POLLIN) -> bool:
    """Tell whether *sock* becomes ready within *seconds*."""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(seconds * 1000))


def until(true: Callable[[], object], what: str) -> None:
    """Look again and again until *true* is, within the deadline."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while not true():
        if time.monotonic() > ends:
            raise AssertionError(f"not within {DEADLINE_SECONDS} s: {what}")
        time.sleep(0.005)
