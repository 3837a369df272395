"""plumberd.pump_messages: a line is a message, and a message a line."""

from __future__ import annotations

import os
import random
import socket
import tty

from plumberd.pump_messages import MESSAGE_BYTES, carry_lines
from tests.support import CleanTestCase, in_thread
from tests.tables import each


class LinesTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (self.near, self.far):
            sock.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)
        self.owned(self.far)
        self.source, self.typing = os.pipe()
        self.shown, self.sink = os.pipe()
        self._open = {self.source, self.typing, self.shown, self.sink}
        self.addCleanup(self._close_all)

    def _close_all(self) -> None:
        for fd in self._open:
            os.close(fd)

    def close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)


class Lines(LinesTestCase):
    async def test_each_is_a_message_without_its_end_and_the_last_needs_none(self) -> None:
        os.write(self.typing, b"one\r\ntwo\n\nthr")
        os.write(self.typing, b"ee")
        self.close(self.typing)
        done = in_thread(carry_lines, self.near, self.source, self.sink)
        found = [await in_thread(self.far.recv, 100) for _ in range(4)]
        self.assertEqual(found, [b"one", b"two", b"three", b""])
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual(await done, 0)

    async def test_each_message_is_a_line(self) -> None:
        done = in_thread(carry_lines, self.near, self.source, self.sink)
        for message in (b"one", b"\x1b[31mtwo", b"three\nfour"):
            self.far.send(message)
        self.far.close()
        self.assertEqual(await done, 0)
        self.assertEqual(os.read(self.shown, 1000), b"one\n\x1b[31mtwo\nthree\nfour\n")

    @each((MESSAGE_BYTES + 1,), (4 << 20,))
    async def test_a_message_longer_than_a_line_may_be_is_shown_whole(self, length: int) -> None:
        message = random.Random(length).randbytes(length).replace(b"\n", b"-")
        done = in_thread(carry_lines, self.near, self.source, self.sink)
        await in_thread(self.far.send, message)
        await in_thread(self.far.send, b"next")
        with os.fdopen(os.dup(self.shown), "rb") as shown:
            self.assertTrue(await in_thread(shown.readline) == message + b"\n")
            self.assertEqual(await in_thread(shown.readline), b"next\n")
        self.far.close()
        self.assertEqual(await done, 0)

    @each((1,), (MESSAGE_BYTES + 10,))
    async def test_a_line_longer_than_a_message_is_several(self, length: int) -> None:
        done = in_thread(carry_lines, self.near, self.source, self.sink)

        def write() -> None:
            os.set_blocking(self.typing, True)
            data = b"x" * length + b"\n"
            while data:
                data = data[os.write(self.typing, data) :]

        writing = in_thread(write)
        count = 0
        while count < length:
            count += len(await in_thread(self.far.recv, 4 << 20))
        self.assertEqual(count, length)
        await writing
        self.far.close()
        self.assertEqual(await done, 0)

    async def test_a_terminal_obeys_no_message(self) -> None:
        master, slave = os.openpty()
        self._open |= {master, slave}
        tty.setraw(slave)
        done = in_thread(carry_lines, self.near, self.source, slave)
        self.far.send("\x1b[31mgrüße\x07".encode())
        self.far.close()
        self.assertEqual(await done, 0)
        self.assertEqual(os.read(master, 1000), "?[31mgrüße?\n".encode())

    async def test_where_nobody_takes_what_is_shown_is_status_2(self) -> None:
        self.close(self.shown)
        self.far.send(b"one")
        self.assertEqual(await in_thread(carry_lines, self.near, self.source, self.sink), 2)
