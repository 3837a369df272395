"""plumberd.pump_messages: a line is a message, and a message a line."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import tty

from twisted.internet.defer import Deferred

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
        self.complaints: list[str] = []
        self._writing: Deferred[None] | None = None
        self.addCleanup(lambda: self._writing)
        self.addCleanup(self._close_all)

    def _close_all(self) -> None:
        for fd in self._open:
            os.close(fd)

    def carried(self, longest: int | None = None, sink: int | None = None) -> Deferred[int]:
        """Carry; return what tells the exit status."""
        into = self.sink if sink is None else sink
        return in_thread(carry_lines, self.near, self.source, into, self.complaints.append, longest)

    def write(self, data: bytes) -> None:
        """Have *data* come, and then the end, as far as it is read."""

        typing = os.fdopen(os.dup(self.typing), "wb", buffering=0)
        self.close(self.typing)

        def work() -> None:
            with contextlib.suppress(BrokenPipeError), typing:
                left = memoryview(data)
                while left:
                    left = left[typing.write(left) :]

        self._writing = in_thread(work)

    def close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)


class Lines(LinesTestCase):
    async def test_each_is_a_message_without_its_end_and_the_last_needs_none(self) -> None:
        os.write(self.typing, b"one\r\ntwo\n\nthr")
        os.write(self.typing, b"ee")
        self.close(self.typing)
        done = self.carried()
        found = [await in_thread(self.far.recv, 100) for _ in range(4)]
        self.assertEqual(found, [b"one", b"two", b"three", b""])
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual(await done, 0)

    async def test_each_message_is_a_line(self) -> None:
        done = self.carried()
        for message in (b"one", b"\x1b[31mtwo", b"three\nfour"):
            self.far.send(message)
        self.far.close()
        self.assertEqual(await done, 0)
        self.assertEqual(os.read(self.shown, 1000), b"one\n\x1b[31mtwo\nthree\nfour\n")

    @each((MESSAGE_BYTES + 1,), (4 << 20,))
    async def test_a_message_longer_than_a_line_may_be_is_shown_whole(self, length: int) -> None:
        message = random.Random(length).randbytes(length).replace(b"\n", b"-")
        done = self.carried()
        await in_thread(self.far.send, message)
        await in_thread(self.far.send, b"next")
        with os.fdopen(os.dup(self.shown), "rb") as shown:
            self.assertTrue(await in_thread(shown.readline) == message + b"\n")
            self.assertEqual(await in_thread(shown.readline), b"next\n")
        self.far.close()
        self.assertEqual(await done, 0)

    @each((0, b"\n"), (0, b"\r\n"), (0, b""), (-1, b"\n"))
    async def test_a_line_as_long_as_a_message_may_be_is_one(self, more: int, end: bytes) -> None:
        line = b"x" * (MESSAGE_BYTES + more)
        self.write(line + end + (b"next\n" if end else b""))
        done = self.carried()
        found = [await in_thread(self.far.recv, 4 << 20) for _ in range(3)]
        self.assertTrue(found == ([line, b"next", b""] if end else [line, b"", b""]))
        self.far.close()
        self.assertEqual((await done, self.complaints), (0, []))

    @each(
        ("by_one_byte", b"x" * (MESSAGE_BYTES + 1) + b"\nfour\n", "line 3 has 2097153 bytes"),
        ("the_last_one", b"x" * (MESSAGE_BYTES + 1), "line 3 has 2097153 bytes"),
        ("by_a_carriage_return_that_is_not_at_its_end", b"x" * MESSAGE_BYTES + b"\rx\n", "line 3 has 2097154 bytes"),
        ("and_has_no_end", b"x" * (8 << 20), r"line 3 has 2\d{6} bytes or more"),
    )
    async def test_a_line_that_is_too_long_is_an_error_and_what_came_before_is_sent(
        self, _: str, line: bytes, said: str
    ) -> None:
        self.write(b"one\n\n" + line)
        done = self.carried()
        self.assertEqual([await in_thread(self.far.recv, 4 << 20) for _ in range(2)], [b"one", b""])
        self.far.send(b"answer")
        self.far.close()
        self.assertEqual(await done, 2)
        self.assertRegex(" ".join(self.complaints), f"^{said}: a message has at most 2097152 here$")
        self.assertEqual(os.read(self.shown, 100), b"answer\n")

    async def test_the_way_may_take_less(self) -> None:
        self.write(b"x" * 1458 + b"\n" + b"x" * 1459 + b"\n")
        done = self.carried(1458)
        self.assertEqual([len(await in_thread(self.far.recv, 10000)) for _ in range(2)], [1458, 0])
        self.far.close()
        self.assertEqual(await done, 2)
        self.assertEqual(self.complaints, ["line 2 has 1459 bytes: a message has at most 1458 here"])

    async def test_a_socket_s_buffer_may_take_less(self) -> None:
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.write(b"x" * 16352 + b"\n" + b"x" * 16353 + b"\n")
        done = self.carried()
        self.assertEqual([len(await in_thread(self.far.recv, 20000)) for _ in range(2)], [16352, 0])
        self.far.close()
        self.assertEqual(await done, 2)
        self.assertEqual(self.complaints, ["line 2 has 16353 bytes: a message has at most 16352 here"])

    async def test_a_far_side_that_wants_its_answers_taken_before_it_goes_on_is_not_waited_for(self) -> None:
        lines = b"".join(b"%d %s\n" % (number, bytes(50_000).replace(b"\0", b"x")) for number in range(400))
        self.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 60_000)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 60_000)

        def echo() -> None:
            while message := self.far.recv(1 << 20):
                self.far.sendall(message)
            self.far.close()

        self.write(lines)
        echoing = in_thread(echo)
        done = self.carried()
        with os.fdopen(os.dup(self.shown), "rb") as shown:
            self.assertTrue(await in_thread(shown.read, len(lines)) == lines)
        await echoing
        self.assertEqual(await done, 0)

    async def test_what_came_before_a_reset_is_shown(self) -> None:
        self.near.send(b"never read")
        self.far.send(b"one")
        self.far.send(b"two")
        self.far.close()
        self.assertEqual(await self.carried(), 2)
        self.assertEqual(os.read(self.shown, 100), b"one\ntwo\n")

    async def test_what_came_before_the_far_side_took_no_more_is_shown(self) -> None:
        self.far.send(b"one")
        self.far.shutdown(socket.SHUT_RD)
        self.write(b"late\n")
        done = self.carried()
        with os.fdopen(os.dup(self.shown), "rb") as shown:
            self.assertEqual(await in_thread(shown.readline), b"one\n")
            self.far.send(b"two")
            self.assertEqual(await in_thread(shown.readline), b"two\n")
        self.far.close()
        self.assertEqual(await done, 2)

    async def test_a_terminal_obeys_no_message(self) -> None:
        master, slave = os.openpty()
        self._open |= {master, slave}
        tty.setraw(slave)
        done = self.carried(sink=slave)
        self.far.send("\x1b[31mgrüße\x07".encode())
        self.far.close()
        self.assertEqual(await done, 0)
        self.assertEqual(os.read(master, 1000), "?[31mgrüße?\n".encode())

    async def test_where_nobody_takes_what_is_shown_is_status_2(self) -> None:
        self.close(self.shown)
        self.far.send(b"one")
        self.assertEqual(await self.carried(), 2)
