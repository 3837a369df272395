"""One run of a client: the scripted broker that it asks, the service that it reaches, and its own ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import termios
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from tests.conformance.streams import Deadline, Mismatch, Stream, carry, shown, within

MESSAGE_BYTES = 65536
SERVICE = "conformance"
ROUTES = "other tcp://192.0.2.1/other; conformance tcp://192.0.2.2:9000/conformance"
VARIABLES = ("IPC_RUNDIR", "RUNDIR", "XDG_RUNTIME_DIR", "IPC_NETWORKD", "IPC_NETWORK", "PLUMB_FD")
"""What a client may look at; of each none but a test's own value is there."""

SECRET = b"not for the broker\n"
MOST_LINES = 3
_LENGTH = struct.Struct(">I")


class Stage:
    """Starts brokers, services and one client within one deadline; :meth:`close` leaves nothing of them."""

    def __init__(self, argv: Sequence[str], seconds: float) -> None:
        self.deadline = Deadline(seconds)
        self.clients: list[Client] = []
        self._argv = argv
        self._stack = contextlib.ExitStack()
        self.folder = tempfile.mkdtemp(prefix="cf")
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def close(self) -> None:
        """End and remove everything."""
        self._stack.close()

    def broker(self, name: str = "r", mode: int = 0o1770) -> Broker:
        """Start a broker in a run directory of its own."""
        rundir = os.path.join(self.folder, name)
        os.makedirs(rundir)
        os.chmod(rundir, mode)
        return self._stack.enter_context(contextlib.closing(Broker(rundir, self.deadline)))

    def client(self, broker: Broker | None, service: str = SERVICE, **environment: str) -> Client:
        """Start the client; without more words its environment names *broker* and :data:`ROUTES`."""
        if broker is not None:
            environment = {"IPC_RUNDIR": broker.rundir, "IPC_NETWORKD": ROUTES, **environment}
        client = Client([*self._argv, service], environment, self.deadline)
        self._stack.callback(client.close)
        self.clients.append(client)
        return client

    def service(self) -> tuple[Stream, socket.socket]:
        """Return a service's end of a socket pair, and the end that is handed over."""
        ours, theirs = socket.socketpair()
        return self._owned(ours), self._stack.enter_context(theirs)

    def tcp_service(self) -> tuple[Stream, socket.socket]:
        """Return a service's end of a TCP connection, and the end that is handed over."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            theirs = self._stack.enter_context(socket.create_connection(listener.getsockname()))
            ours, _ = listener.accept()
        return self._owned(ours), theirs

    def _owned(self, sock: socket.socket) -> Stream:
        return self._stack.enter_context(contextlib.closing(Stream(sock)))


class Broker:
    """A listening socket where a broker's native socket is, and nothing behind it but the script."""

    def __init__(self, rundir: str, deadline: Deadline) -> None:
        self.rundir = rundir
        self.deadline = deadline
        self._listener = socket.socket(socket.AF_UNIX)
        self._lookups: list[Lookup] = []
        self._listener.bind(os.path.join(rundir, "plumberd"))
        self._listener.listen()

    def accept(self, client: Client) -> Lookup:
        """Return the client's connection.

        :raises Mismatch: where none comes.
        """
        lookup = self.accept_or_end(client)
        if lookup is None:
            raise Mismatch("a connection to the broker", client.state())
        return lookup

    def accept_or_end(self, client: Client) -> Lookup | None:
        """Return the client's connection, or ``None`` where it ends without one.

        :raises Mismatch: where it does neither.
        """
        listening = self._listener.fileno()
        ready, _, _ = select.select([listening, client.pidfd], [], [], self.deadline.left())
        if not ready:
            raise Mismatch(f"a connection to the broker {within(self.deadline)}", "none")
        if listening not in ready:
            return None
        sock, _ = self._listener.accept()
        lookup = Lookup(sock, self.deadline)
        self._lookups.append(lookup)
        return lookup

    def check_left_alone(self, what: str = "no other connection to the broker") -> None:
        """Check that nobody has connected since.

        :raises Mismatch: where somebody has.
        """
        if select.select([self._listener], [], [], 0)[0]:
            raise Mismatch(what, "one")

    def die(self) -> None:
        """Stop listening and leave the socket's file where it is, as a killed broker does."""
        self._listener.close()

    def close(self) -> None:
        """Stop listening and end every lookup."""
        self.die()
        for lookup in self._lookups:
            lookup.close()


class Lookup:
    """The broker's end of a client's connection to it."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self.sock = sock
        self._deadline = deadline
        sock.settimeout(deadline.left())

    def request(self) -> dict[str, Any]:
        """Read the request, and nothing that is behind it.

        :raises Mismatch: where it is no single well-formed message.
        """
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size, "a length of 4 bytes"))
        if length > MESSAGE_BYTES:
            raise Mismatch(f"a request of at most {MESSAGE_BYTES} bytes", f"{length} announced")
        payload = self._exactly(length, f"a request of {length} bytes, as announced")
        try:
            message = json.loads(payload.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        except ValueError as e:
            raise Mismatch("a request in JSON", f"{shown(payload)} ({e})") from None
        if not isinstance(message, dict):
            raise Mismatch("a JSON object", payload)
        return message

    def _exactly(self, count: int, wanted: str) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.sock.recv(count - len(data))
            except OSError as e:
                raise Mismatch(wanted, f"{shown(data)} ({e})") from None
            if not part:
                raise Mismatch(wanted, f"{shown(data)} and the end")
            data += part
        return data

    def send(self, data: bytes, *fds: int) -> None:
        """Send *data* in one piece, the descriptors on its first byte, and wait until the client has taken it.

        A client that is gone has taken everything.
        """
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), contextlib.closing(select.epoll()) as edges:
            edges.register(self.sock, select.EPOLLOUT | select.EPOLLET)
            sent = self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            self.sock.sendall(data[sent:])
            while unread := _untaken_bytes(self.sock):
                # The kernel fires the edge when the client reads.
                if not edges.poll(self._deadline.left()):
                    raise Mismatch(f"a client that reads {within(self._deadline)}", f"{unread} bytes not taken")

    def check_ended(self) -> None:
        """Check that the client closes, and has sent nothing behind its request.

        :raises Mismatch: where it does not, or has.
        """
        self.sock.settimeout(self._deadline.left())
        try:
            behind = self.sock.recv(4096)
        except TimeoutError:
            raise Mismatch(f"the lookup's connection closed {within(self._deadline)}", "it is open") from None
        except ConnectionResetError:
            return  # it did not take all of the answer
        if behind:
            raise Mismatch("one request, and nothing behind it", behind)

    def close(self) -> None:
        """Hang up. Idempotent."""
        self.sock.close()


class Client:
    """The program under test: its standard input and output are pipes, standard error is a file."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], deadline: Deadline) -> None:
        self._deadline = deadline
        self._errors = os.memfd_create("standard error")
        inner_in, outer_in = os.pipe()
        outer_out, inner_out = os.pipe()
        self.stdin = Stream(outer_in, reading=False)
        self.stdout = Stream(outer_out)
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=inner_in,
                stdout=inner_out,
                stderr=self._errors,
                env={**{k: v for k, v in os.environ.items() if k not in VARIABLES}, **environment},
                start_new_session=True,  # whatever it starts can be ended with it
            )
        except BaseException:
            self.stdin.close()
            self.stdout.close()
            os.close(self._errors)
            raise
        finally:
            os.close(inner_in)
            os.close(inner_out)
        self.pidfd = os.pidfd_open(self.process.pid)

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return os.pread(self._errors, os.fstat(self._errors).st_size, 0).decode("utf-8", "replace")

    def state(self) -> str:
        """Return in words what has become of it."""
        status = self._status(os.WNOHANG)
        state = "a client that runs" if status is None else f"a client that ended with status {status}"
        return f"{state} and said {shown(self.errors[-200:])}" if self.errors else state

    def finish(self) -> int:
        """Wait for the end of its output and for its own; return the exit status.

        :raises Mismatch: at the deadline.
        """
        streams = (self.stdin, self.stdout)
        carry(streams, lambda: self.stdout.ended, "the end of the client's output", self._deadline)
        select.select([self.pidfd], [], [], self._deadline.left())
        status = self._status(os.WNOHANG)
        if status is None:
            raise Mismatch(f"the client's end {within(self._deadline)}", "it runs")
        return status

    def _status(self, flags: int) -> int | None:
        """Return the exit status, negative for a signal. The zombie stays, and so its group's number is not reused."""
        result = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | flags)
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def check_succeeds(self) -> None:
        """Check that it ends with status 0.

        :raises Mismatch: where it does not.
        """
        if self.finish() != 0:
            raise Mismatch("status 0", self.state())

    def check_fails(self, *words: str) -> None:
        """Check that it ends by itself with another status than 0, no output, and *words* among its few lines.

        :raises Mismatch: where it does not.
        """
        status = self.finish()
        if not 0 < status < 126:
            raise Mismatch("a status from 1 to 125", self.state())
        if self.stdout.inbox:
            raise Mismatch("nothing on standard output", self.stdout.inbox)
        lines = self.errors.splitlines()
        if not 1 <= len(lines) <= MOST_LINES:
            raise Mismatch(f"1 to {MOST_LINES} lines on standard error", f"{len(lines)}: {shown(self.errors[-200:])}")
        said = self.errors.replace("\\", "")  # quotes may be shown as JSON has them
        for word in words:
            if word not in said:
                raise Mismatch(f"{word!r} on standard error", self.errors)

    def stop_and_continue(self) -> None:
        """Stop the process in the middle of what it does, which interrupts the system call that it is in."""
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        os.kill(self.process.pid, signal.SIGCONT)

    def blocks(self, fd: int) -> bool:
        """Tell whether its descriptor *fd*, which it shares with other programs, is in blocking mode."""
        try:
            with open(f"/proc/{self.process.pid}/fdinfo/{fd}", encoding="ascii") as file:
                flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
        except FileNotFoundError:
            return True  # it has closed it
        return not flags & os.O_NONBLOCK

    def close(self) -> None:
        """Kill it, and whatever it has started, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.pidfd)
        self.stdin.close()
        self.stdout.close()
        os.close(self._errors)


def frame(payload: bytes) -> bytes:
    """Put the length in front."""
    return _LENGTH.pack(len(payload)) + payload


def message(**members: Any) -> bytes:
    """Return an answer as a broker writes it."""
    return frame(json.dumps(members, separators=(",", ":")).encode())


def _untaken_bytes(sock: socket.socket) -> int:
    """Return the kernel memory (SIOCOUTQ) of what has not been read.

    The kernel fires its edge with 1 left, and takes that away a moment later, without another edge.
    """
    count = int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])
    return count if count > 1 else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member that is there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
