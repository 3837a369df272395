"""plumberd.pump: every byte and each end, between a socket and two descriptors that may be anything."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import socket
import struct
import sys
import tty

from twisted.internet.defer import Deferred

from plumberd.effects.kernel import F_SETPIPE_SZ, unread_bytes
from plumberd.pump import carry
from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread, read_all, read_exactly, until

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
        self._open: set[int] = set()
        self.addCleanup(self.close_all)

    def opened(self, *fds: int) -> None:
        """Close these at the end of the test, if :meth:`close` has not done so before."""
        self._open.update(fds)

    def close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)

    def close_all(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def pipes(self) -> tuple[int, int]:
        """Return the user's ends: where standard input is written and standard output is read."""
        self.stdin, stdin = os.pipe()
        self.addCleanup(os.close, self.stdin)
        stdout = self.pipe_out()
        self.opened(stdin)
        return stdin, stdout

    def pipe_out(self) -> int:
        stdout, self.stdout = os.pipe()
        self.opened(stdout)
        return stdout

    def start(self) -> Deferred[int]:
        """Run it in a thread."""
        carrying = in_thread(self._carry, self.stdout)
        self.addCleanup(self._end, carrying)
        return carrying

    def _carry(self, stdout: int) -> int:
        before = os.fstat(stdout)
        try:
            return carry(self.near, self.stdin, stdout)
        finally:  # where it broke, its standard output is the caller's to close
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(stdout), before):
                    os.close(stdout)

    async def _end(self, carrying: Deferred[int]) -> None:
        """Take away what it may still wait for."""
        self.far.close()
        self.close_all()
        if not carrying.called:
            await carrying


class Bytes(PumpTestCase):
    async def test_both_directions_at_once_are_byte_exact(self) -> None:
        stdin, stdout = self.pipes()
        carrying = self.start()

        def ask() -> None:
            write_fd(stdin, DATA)
            self.close(stdin)

        def answer() -> None:
            self.far.sendall(DATA)
            self.far.shutdown(socket.SHUT_WR)

        writing = [in_thread(ask), in_thread(answer)]
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
            self.assertEqual(await in_thread(read_fd, stdout, 4), b"say%d" % number)
        self.close(stdin)
        self.far.close()
        self.assertEqual(await carrying, 0)

    async def test_files_may_stand_for_both(self) -> None:
        folder = self.folder()
        with open(os.path.join(folder, "in"), "wb") as file:
            file.write(DATA)
        self.stdin = os.open(os.path.join(folder, "in"), os.O_RDONLY)
        self.opened(self.stdin)
        self.stdout = os.open(os.path.join(folder, "out"), os.O_WRONLY | os.O_CREAT)
        carrying = self.start()
        self.assertTrue(await in_thread(read_all, self.far) == DATA)
        await in_thread(self.far.sendall, DATA)
        self.far.close()
        self.assertEqual(await carrying, 0)
        with open(os.path.join(folder, "out"), "rb") as file:
            self.assertTrue(file.read() == DATA)

    async def test_one_socket_may_stand_for_both(self) -> None:
        # as inetd starts programs
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
        write_fd(stdin, b"request")
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
        write_fd(stdin, b"late")
        self.close(stdin)
        self.assertEqual(await in_thread(read_all, self.far), b"late")
        self.assertEqual(await carrying, 0)

    async def test_a_terminal_is_not_waited_for(self) -> None:
        terminal, self.stdin = os.openpty()
        self.opened(terminal)
        self.addCleanup(os.close, self.stdin)
        tty.setraw(self.stdin)
        stdout = self.pipe_out()
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
        _, stdout = self.pipes()
        carrying = self.start()
        self.far.sendall(b"x")
        self.assertEqual(await in_thread(read_fd, stdout, 1), b"x")
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.far.close()
        self.assertEqual((await carrying, self.near.fileno()), (2, -1))

    async def test_a_standard_output_that_nobody_reads_any_more_is_status_2(self) -> None:
        _, stdout = self.pipes()
        self.close(stdout)
        carrying = self.start()
        self.far.sendall(b"x")
        self.assertEqual(await carrying, 2)

    async def test_a_standard_input_that_cannot_be_read_is_status_2(self) -> None:
        self.pipe_out()
        self.stdin = os.open(self.folder(), os.O_RDONLY)  # a directory
        self.opened(self.stdin)
        self.assertEqual(await self.start(), 2)
        self.assertEqual(await in_thread(read_all, self.far), b"")

    async def test_what_the_far_side_sent_before_it_refused_more_is_delivered(self) -> None:
        # As a server does that answers and closes before it has read the whole request.
        self.near, self.far = self.pair()
        self.near.settimeout(None)
        stdin, stdout = self.pipes()
        fcntl.fcntl(stdin, F_SETPIPE_SZ, 1 << 20)
        write_fd(stdin, DATA[: 1 << 20])  # more than the socket takes
        self.close(stdin)
        answer = DATA[: 100 << 10]  # more than a pipe takes
        await in_thread(self.far.sendall, answer)
        carrying = self.start()
        await until(lambda: unread_bytes(self.far.fileno()))
        self.far.close()
        self.assertTrue(await in_thread(read_fd, stdout, len(answer)) == answer)
        self.assertEqual(await carrying, 2)
