"""plumberd.pump: every byte and each end, between a socket and two descriptors that may be anything."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import tty

from twisted.internet.defer import Deferred

from plumberd.effects.kernel import unread_bytes
from plumberd.pump import carry
from tests.support import CleanTestCase, in_thread, read_all, read_exactly, until

F_SETPIPE_SZ = 1031
DATA = random.Random(1).randbytes(5 << 20)


def wait_for(fd: int, event: int) -> None:
    """Wait until *fd* is ready; a deadline ends that, for a thread that waits can't be ended."""
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(DEADLINE_SECONDS * 1000):
        raise TimeoutError


def read_fd(fd: int, count: int = sys.maxsize) -> bytes:
    """Read *count* bytes of a descriptor, fewer only at its end."""
    data = bytearray()
    while len(data) < count:
        wait_for(fd, select.POLLIN)
        part = os.read(fd, min(65536, count - len(data)))
        if not part:
            break
        data += part
    return bytes(data)


def write_fd(fd: int, data: bytes) -> None:
    """Write all."""
    os.set_blocking(fd, False)
    view = memoryview(data)
    while view:
        wait_for(fd, select.POLLOUT)
        view = view[os.write(fd, view) :]


class PumpTestCase(CleanTestCase):
    """A pump between a far side, standard input and standard output."""

    def setUp(self) -> None:
        super().setUp()
        self.near, self.far = self.tcp_pair()
        self.near.settimeout(None)
        self.open: set[int] = set()

    def opened(self, *fds: int) -> None:
        """Close these at the end, unless :meth:`close` has done so."""
        self.open.update(fds)

    def close(self, fd: int) -> None:
        self.open.remove(fd)
        os.close(fd)

    def pipes(self) -> tuple[int, int]:
        """Return the user's ends: where standard input is written and standard output is read."""
        self.stdin, stdin = os.pipe()
        stdout, self.stdout = os.pipe()
        self.opened(self.stdin, stdin, stdout)
        return stdin, stdout

    def start(self) -> Deferred[int]:
        """Run it in a thread; its standard output is its own to close."""
        carrying = in_thread(carry, self.near, self.stdin, self.stdout)
        self.addCleanup(self.end, carrying)
        return carrying

    async def end(self, carrying: Deferred[int]) -> None:
        """Take everything away from it, and wait for it."""
        self.far.close()
        for fd in self.open - {self.stdin}:
            os.close(fd)
        self.open &= {self.stdin}
        if not carrying.called:
            await carrying
        for fd in self.open:
            os.close(fd)
        with contextlib.suppress(OSError):  # where it was broken, it is still open
            os.close(self.stdout)


class Bytes(PumpTestCase):
    async def test_both_directions_at_once_are_byte_exact(self) -> None:
        stdin, stdout = self.pipes()
        carrying = self.start()

        def answer() -> None:
            self.far.sendall(DATA)
            self.far.shutdown(socket.SHUT_WR)

        writing = [in_thread(write_fd, stdin, DATA), in_thread(answer)]
        reading = [in_thread(read_all, self.far), in_thread(read_fd, stdout)]
        for got in reading:
            self.assertTrue(await got == DATA)
        for wrote in writing:
            await wrote
        self.assertEqual(await carrying, 0)

    async def test_a_message_is_passed_on_at_once(self) -> None:
        stdin, stdout = self.pipes()
        carrying = self.start()
        for number in range(3):
            os.write(stdin, b"ask%d" % number)
            self.assertEqual(await in_thread(read_exactly, self.far, 4), b"ask%d" % number)
            self.far.sendall(b"say%d" % number)
            self.assertEqual(await in_thread(os.read, stdout, 100), b"say%d" % number)
        self.close(stdin)
        self.far.close()
        self.assertEqual(await carrying, 0)

    async def test_files_may_stand_for_both(self) -> None:
        folder = self.folder()
        with open(os.path.join(folder, "in"), "wb") as file:
            file.write(DATA)
        self.stdin = os.open(os.path.join(folder, "in"), os.O_RDONLY)
        self.addCleanup(os.close, self.stdin)
        self.stdout = os.open(os.path.join(folder, "out"), os.O_WRONLY | os.O_CREAT)
        carrying = self.start()
        self.assertTrue(await in_thread(read_all, self.far) == DATA)
        await in_thread(self.far.sendall, DATA)
        self.far.close()
        self.assertEqual(await carrying, 0)
        with open(os.path.join(folder, "out"), "rb") as file:
            self.assertTrue(file.read() == DATA)

    async def test_sockets_may_stand_for_both(self) -> None:
        # inetd, and programs that are started with one socket for both
        user, both = self.pair()
        both.settimeout(None)
        self.stdin, self.stdout = both.fileno(), os.dup(both.fileno())
        carrying = self.start()
        user.sendall(b"ask")
        self.assertEqual(await in_thread(read_exactly, self.far, 3), b"ask")
        self.far.sendall(b"say")
        self.assertEqual(await in_thread(read_exactly, user, 3), b"say")
        user.close()
        self.far.close()
        self.assertEqual(await carrying, 0)


class Ends(PumpTestCase):
    async def test_the_end_of_standard_input_is_a_half_close(self) -> None:
        stdin, stdout = self.pipes()
        carrying = self.start()
        await in_thread(write_fd, stdin, b"request")
        self.close(stdin)
        self.assertEqual(await in_thread(read_all, self.far), b"request")
        self.far.sendall(b"answer")
        self.far.close()
        self.assertEqual(await in_thread(read_fd, stdout), b"answer")
        self.assertEqual(await carrying, 0)

    async def test_the_end_of_the_far_side_closes_standard_output_and_the_rest_goes_on(self) -> None:
        stdin, stdout = self.pipes()
        carrying = self.start()
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_fd, stdout), b"")
        await in_thread(write_fd, stdin, b"late")
        self.close(stdin)
        self.assertEqual(await in_thread(read_all, self.far), b"late")
        self.assertEqual(await carrying, 0)

    async def test_a_terminal_is_not_waited_for(self) -> None:
        terminal, self.stdin = os.openpty()
        self.addCleanup(os.close, terminal)
        self.addCleanup(os.close, self.stdin)
        tty.setraw(self.stdin)
        stdout, self.stdout = os.pipe()
        self.addCleanup(os.close, stdout)
        carrying = self.start()
        os.write(terminal, b"typed")
        self.assertEqual(await in_thread(read_exactly, self.far, 5), b"typed")
        self.far.sendall(b"bye")
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_fd, stdout), b"bye")
        self.assertEqual(await carrying, 0)

    async def test_the_connection_is_closed_at_the_end(self) -> None:
        stdin, _ = self.pipes()
        carrying = self.start()
        self.close(stdin)
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual((await carrying, self.near.fileno()), (0, -1))


class Broken(PumpTestCase):
    async def test_a_reset_is_status_2(self) -> None:
        stdin, stdout = self.pipes()
        self.addCleanup(os.close, stdin)
        carrying = self.start()
        self.far.sendall(b"x")
        self.assertEqual(await in_thread(os.read, stdout, 1), b"x")
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.far.close()
        self.assertEqual((await carrying, self.near.fileno()), (2, -1))
        os.close(self.stdout)

    async def test_a_standard_output_that_nobody_reads_any_more_is_status_2(self) -> None:
        stdin, stdout = os.pipe()
        self.stdin = stdin
        self.addCleanup(os.close, stdin)
        self.addCleanup(os.close, stdout)
        reader, self.stdout = os.pipe()
        os.close(reader)
        carrying = self.start()
        self.far.sendall(b"x")
        self.assertEqual(await carrying, 2)
        os.close(self.stdout)

    async def test_a_standard_input_that_cannot_be_read_is_status_2(self) -> None:
        _, stdout = self.pipes_only_out()
        self.stdin = os.open(self.folder(), os.O_RDONLY)  # a directory
        self.addCleanup(os.close, self.stdin)
        self.assertEqual(await self.start(), 2)
        self.assertEqual(await in_thread(read_all, self.far), b"")
        os.close(self.stdout)
        self.assertEqual(read_fd(stdout), b"")

    async def test_what_the_far_side_sent_before_it_refused_more_is_delivered(self) -> None:
        # As a server does that answers and closes before it has read the whole request.
        self.near, self.far = self.pair()
        self.near.settimeout(None)
        stdin, stdout = self.pipes()
        fcntl.fcntl(stdin, F_SETPIPE_SZ, 1 << 20)
        write_fd(stdin, DATA[: 1 << 20])  # more than the socket takes
        self.close(stdin)
        answer = DATA[: 100 << 10]
        await in_thread(self.far.sendall, answer)
        carrying = self.start()
        await until(lambda: unread_bytes(self.far.fileno()))
        self.far.close()
        self.assertTrue(await in_thread(read_fd, stdout, len(answer)) == answer)
        self.assertEqual(await carrying, 2)
        os.close(self.stdout)

    def pipes_only_out(self) -> tuple[int, int]:
        stdout, self.stdout = os.pipe()
        self.addCleanup(os.close, stdout)
        return -1, stdout
