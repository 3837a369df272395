"""What many tests share: a case that leaves nothing open, short folders, and clients of every dialect."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twisted.internet import defer, reactor, task, threads
from twisted.trial import unittest

T = TypeVar("T")
DEADLINE_SECONDS = 20.0
"""Every test has it, and so has every blocking call in one."""

real_reactor: Any = reactor


def open_descriptors() -> dict[int, str]:
    """Return this process's descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


class CleanTestCase(unittest.TestCase):
    """A test that has a deadline and leaves no descriptor behind; trial itself looks for delayed calls."""

    timeout = DEADLINE_SECONDS

    def setUp(self) -> None:
        # The reactor's thread pool and waker open what they need once, and keep it.
        real_reactor.getThreadPool()
        before = open_descriptors()
        self.addCleanup(self._check_descriptors, before)

    def _check_descriptors(self, before: dict[int, str]) -> None:
        now = open_descriptors()
        # The reactor makes its signal pipes anew at every start.
        own = {now.get(reader.fileno()) for reader in real_reactor._internalReaders}
        own.add("/dev/null")  # Twisted's ports keep one in reserve for when descriptors run out
        left = {fd: what for fd, what in now.items() if before.get(fd) != what and what not in own}
        self.assertEqual(left, {}, "descriptors left open")

    def folder(self) -> str:
        """Return a new empty folder with a path short enough for UNIX sockets; removed afterwards."""
        path = tempfile.mkdtemp(prefix="pl")
        self.addCleanup(shutil.rmtree, path, ignore_errors=True)
        return path

    def owned(self, sock: socket.socket) -> socket.socket:
        """Close *sock* at the end, and give it the deadline."""
        self.addCleanup(sock.close)
        sock.settimeout(DEADLINE_SECONDS)
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return a UNIX stream pair."""
        left, right = socket.socketpair()
        return self.owned(left), self.owned(right)

    def tcp_pair(self, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Return both ends of a TCP connection over loopback."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            listener.bind((host, 0))
            listener.listen()
            left = self.owned(socket.socket(family))
            left.connect(listener.getsockname())
            right, _ = listener.accept()
        return left, self.owned(right)

    def listener(self, host: str = "127.0.0.1") -> tuple[socket.socket, int]:
        """Return a listening TCP socket and its port."""
        sock = self.owned(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        sock.bind((host, 0))
        sock.listen(128)
        return sock, sock.getsockname()[1]

    def unix_listener(self, path: str, backlog: int = 128) -> socket.socket:
        """Return a listening UNIX socket at *path*."""
        sock = self.owned(socket.socket(socket.AF_UNIX))
        sock.bind(path)
        sock.listen(backlog)
        return sock


class Readers:
    """The part of a reactor that a Poll uses, for tests that make its rounds themselves."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Use up every descriptor, under a limit that is lowered for that long."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = [os.open("/dev/null", os.O_RDONLY)]
    try:
        top = max(open_descriptors())
        while used[-1] < top:
            used.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used[-1] + 1, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in used:
            os.close(fd)


def in_thread(work: Callable[..., T], *args: Any, **kwargs: Any) -> defer.Deferred[T]:
    """Run blocking *work* in a thread, while the reactor serves it."""
    return threads.deferToThread(work, *args, **kwargs)


async def until(true: Callable[[], object]) -> None:
    """Let the reactor turn until *true* is; the test's deadline bounds it."""
    while not true():
        await task.deferLater(real_reactor, 0.001)


def read_all(sock: socket.socket) -> bytes:
    """Read to the end of the stream."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def is_reset(sock: socket.socket) -> bool:
    """Read on, and tell whether the connection ends with a reset."""
    try:
        read_all(sock)
    except ConnectionResetError:
        return True
    return False


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """Read *count* bytes, fewer only at the end of the stream."""
    data = bytearray()
    while len(data) < count and (part := sock.recv(min(count - len(data), 1 << 18))):
        data += part
    return bytes(data)


def dial(rundir: str, name: str) -> socket.socket:
    """Connect to a socket of the run directory."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_SECONDS)
    try:
        sock.connect(os.path.join(rundir, name))
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def dialled(rundir: str, name: str) -> Iterator[socket.socket]:
    """Connect, and close at the end."""
    with dial(rundir, name) as sock:
        yield sock


def take_socket(fds: list[int]) -> socket.socket | None:
    """Make a received descriptor a socket as a C program would use it: it blocks if it came so."""
    if not fds:
        return None
    (fd,) = fds
    return socket.socket(fileno=fd)


def native_frame(message: Any) -> bytes:
    """Frame a native message."""
    payload = json.dumps(message).encode()
    return struct.pack(">I", len(payload)) + payload


def native_read(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one native answer and the descriptors that came with it."""
    head, fds, _, _ = socket.recv_fds(sock, 4, 8)
    head += read_exactly(sock, 4 - len(head)) if head else b""
    if len(head) < 4:
        raise EOFError("the broker hung up")
    answer = json.loads(read_exactly(sock, struct.unpack(">I", head)[0]))
    return answer, fds


def native_ask(rundir: str, **members: Any) -> tuple[dict[str, Any], socket.socket | None]:
    """Ask once on the native socket, as a client would."""
    with dialled(rundir, "plumberd") as sock:
        sock.sendall(native_frame(members))
        answer, fds = native_read(sock)
        return answer, take_socket(fds)


def native_lookup(rundir: str, service: str, routes: str | None = None) -> tuple[dict[str, Any], socket.socket | None]:
    """Look a service up on the native socket."""
    return native_ask(rundir, op="lookup", service=service, **({"routes": routes} if routes else {}))


def zig_lookup(rundir: str, text: bytes) -> tuple[bytes, socket.socket | None]:
    """Look up as the current generation does: the answer and the descriptor in ONE recvmsg."""
    with dialled(rundir, "ipc") as sock:
        sock.sendall(struct.pack(">I", len(text)) + text)
        data, fds, _, _ = socket.recv_fds(sock, 1400, 1)
        return data, take_socket(fds)


def libipc_2023_lookup(rundir: str, text: bytes) -> tuple[bytes, socket.socket | None]:
    """Look up as the 2023 generation does: a plain recv of up to 2 MB for the answer, then the descriptor."""
    with dialled(rundir, "network") as sock:
        sock.sendall(struct.pack(">BIB", 3, len(text), 3) + text)
        data = sock.recv(2_000_000)
        if data[6:] != b"ok":
            return data, None
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        return data, take_socket(fds)
