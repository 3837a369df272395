"""Descriptors of every kind, sent to a broker's sockets by hundreds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator

from tests.escapes import cage
from tests.escapes.cage import until
from tests.process.running import Program as Process

CLOSED, REFUSED = "closed", "refused"

MANY = 253
"""As many as fit into one message (SCM_MAX_FD)."""

NATIVE = "plumberd"
SOCKETS = {
    NATIVE: socket.SOCK_STREAM,
    "ipc": socket.SOCK_STREAM,
    "network": socket.SOCK_STREAM,
    "network-0-0": socket.SOCK_SEQPACKET,
}
"""A broker's sockets, and their types."""

CONTROL = "a control socket"

REQUEST = json.dumps({"op": "lookup", "service": "here"}).encode()


@contextlib.contextmanager
def kinds(folder: str, rundir: str) -> Iterator[tuple[dict[str, Callable[[], int]], Callable[[], None]]]:
    """Yield what makes a descriptor, by its kind, and what ends all waiting for those that linger.

    Whoever makes one owns it.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(os.path.join(folder, "named"))
        named.listen(512)

        def connected() -> socket.socket:
            return socket.create_connection(listener.getsockname())

        def lingering() -> int:
            """A socket whose last close waits for an hour: its peer reads nothing."""
            sock = connected()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            return sock.detach()

        def end_lingering() -> None:
            """Hang up on whoever has connected; with bytes unread that is a reset, and there is nothing to wait for."""
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()

        def pair_end(kind: int = socket.SOCK_STREAM) -> int:
            ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
            stack.callback(ours.close)
            return theirs.detach()

        def full_pair_end() -> int:
            """One end of a pair in whose queue a lingering socket lies."""
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            fd = lingering()
            socket.send_fds(ours, [b"x"], [fd])
            os.close(fd)
            return theirs.detach()

        makers: dict[str, Callable[[], int]] = {
            "a file": lambda: os.open(os.path.join(folder, "file"), os.O_RDWR | os.O_CREAT),
            "a folder": lambda: os.open(folder, os.O_RDONLY | os.O_DIRECTORY),
            "a path (O_PATH)": lambda: os.open(folder, os.O_PATH),
            "a pipe": lambda: _one_of(os.pipe()),
            "a device": lambda: os.open("/dev/null", os.O_RDWR),
            "memory": lambda: os.memfd_create("sent"),
            "an event": lambda: os.eventfd(0),
            "a process (pidfd)": lambda: os.pidfd_open(os.getpid()),
            "a namespace": lambda: os.open("/proc/self/ns/net", os.O_RDONLY),
            "a TCP socket": lambda: socket.socket().detach(),
            "a UDP socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
            "a TCP connection": lambda: connected().detach(),
            "a listening socket": lambda: os.dup(listener.fileno()),
            "a TCP connection that lingers": lingering,
            "a UNIX connection to somebody": lambda: _connected_to(os.path.join(folder, "named")),
            "a connection to the broker itself": lambda: _connected_to(os.path.join(rundir, NATIVE)),
            "one end of a pair of packets": lambda: pair_end(socket.SOCK_SEQPACKET),
            "one end of a pair that holds a TCP connection that lingers": full_pair_end,
        }
        yield makers, end_lingering


def _one_of(pair: tuple[int, int]) -> int:
    os.close(pair[1])
    return pair[0]


def _connected_to(path: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock.detach()


class Sending:
    """Sends to one broker, and looks after what it keeps."""

    def __init__(self, folder: str, rundir: str, broker: Process) -> None:
        self._folder = folder
        self._rundir = rundir
        self._broker = broker

    def outcomes(self) -> dict[str, dict[str, str]]:
        """Return what became of each kind, by socket; each time the broker is back at what it had before."""
        told: dict[str, dict[str, str]] = {}
        with kinds(self._folder, self._rundir) as (makers, end_lingering):
            before = self._broker.descriptors()  # nobody is there, though one may still be closing
            for kind, make in makers.items():
                told[kind] = {}
                for name, type_ in SOCKETS.items():
                    with socket.socket(socket.AF_UNIX, type_) as sock:
                        sock.connect(os.path.join(self._rundir, name))
                        told[kind][name] = self._send(sock, make, end_lingering, MANY)
                        self._serves()
                    self._check(before, f"{kind} sent to {name}")
                told[kind][CONTROL] = self._to_control(make, end_lingering)
                end_lingering()
                self._check(before, f"{kind} sent to a control socket")
        return told

    def _check(self, before: int, what: str) -> None:
        until(lambda: self._broker.descriptors() <= before, f"{what}: the broker's descriptors are as before")

    def _to_control(self, make: Callable[[], int], end_lingering: Callable[[], None]) -> str:
        answer = cage.ask(self._rundir, op="confine", services=["here"], control=True)
        with answer.granted() as control:
            control.settimeout(cage.DEADLINE_SECONDS)
            socket.send_fds(control, [REQUEST], [control.fileno()])
            said = {self._send(control, make, end_lingering, count) for count in (1, 2, MANY)}
            self._serves()
        return "/".join(sorted(said))

    def _send(self, sock: socket.socket, make: Callable[[], int], end_lingering: Callable[[], None], count: int) -> str:
        fds = [make()]
        fds += [os.dup(fds[0]) for _ in range(count - 1)]
        os.kill(self._broker.pid, signal.SIGSTOP)  # so that the last copies are the broker's
        try:
            socket.send_fds(sock, [REQUEST], fds)
            outcome = CLOSED
        except PermissionError:
            end_lingering()  # it would be the sender who waits
            outcome = REFUSED
        finally:
            for fd in fds:
                os.close(fd)
            os.kill(self._broker.pid, signal.SIGCONT)
        return outcome

    def _serves(self) -> None:
        """Check that another client is served at once."""
        cage.look_up(self._rundir, "here").granted().close()
