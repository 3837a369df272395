"""plumberd.effects.last_byte: every byte passes once, ends are seen, and a close is a reset until the byte is taken."""

from __future__ import annotations

import socket

from hypothesis import given
from hypothesis import strategies as st

from plumberd.effects.last_byte import LastByte
from plumberd.effects.openssl import Buffer
from tests.support import CleanTestCase
from tests.tables import PROPERTY


class LastByteTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.outer, self.inner = self.pair()
        self.inner.setblocking(False)
        self.last = LastByte(self.inner)

    def read(self, size: int = 100) -> bytes:
        """Read once; ``b""`` at the end."""
        buffer = Buffer(size)
        count = self.last.read_into(buffer)
        data = bytes(buffer.view[buffer.start : buffer.end])
        self.assertEqual(count, len(data))
        return data


class Bytes(LastByteTestCase):
    def test_one_byte_passes_and_stays(self) -> None:
        self.outer.send(b"x")
        self.assertEqual(self.read(), b"x")
        self.assertEqual(self.inner.recv(10, socket.MSG_PEEK), b"x")

    def test_each_byte_passes_once(self) -> None:
        for data in (b"one", b"t", b"wo", b"three"):
            self.outer.send(data)
            self.assertEqual(self.read(), data)
            with self.assertRaises(BlockingIOError):
                self.read()

    def test_what_came_in_several_writes_passes_together(self) -> None:
        for data in (b"one", b"two", b"three"):
            self.outer.send(data)
        self.assertEqual(self.read(), b"onetwothree")

    def test_more_than_fits_passes_in_several_reads(self) -> None:
        self.outer.send(b"abcdefghij")
        got = b""
        while len(got) < 10:
            got += self.read(4)
        self.assertEqual(got, b"abcdefghij")

    def test_descriptors_that_come_along_end_nothing(self) -> None:
        self.outer.send(b"x")
        self.read()
        for data in (b"y", b"z", b"1", b"2"):
            socket.send_fds(self.outer, [data], [0])
        got = b""
        while len(got) < 4:
            got += self.read()
        self.assertEqual(got, b"yz12")
        socket.send_fds(self.outer, [b"3"], [0])
        self.assertEqual(self.read(), b"3")
        self.outer.send(b"4")
        self.assertEqual(self.read(), b"4")

    def test_nothing_is_no_end(self) -> None:
        for _ in range(2):
            with self.assertRaises(BlockingIOError):
                self.read()

    @PROPERTY
    @given(st.lists(st.one_of(st.binary(min_size=1, max_size=50), st.none()), max_size=20), st.integers(2, 40))
    def test_whatever_is_written_and_read_when_passes_whole(self, steps: list[bytes | None], size: int) -> None:
        outer, inner = socket.socketpair()
        with outer, inner:
            inner.setblocking(False)
            last, got, sent = LastByte(inner), b"", b""
            for step in [*steps, None]:
                if step is not None:
                    outer.send(step)
                    sent += step
                    continue
                while len(got) < len(sent):
                    buffer = Buffer(size)
                    self.assertGreater(last.read_into(buffer), 0)
                    got += bytes(buffer.view[buffer.start : buffer.end])
            self.assertEqual(got, sent)
            outer.shutdown(socket.SHUT_WR)
            self.assertEqual(last.read_into(Buffer(size)), 0)


class Ends(LastByteTestCase):
    def test_an_end_is_seen_behind_a_byte_that_stays(self) -> None:
        self.outer.send(b"x")
        self.read()
        self.outer.shutdown(socket.SHUT_WR)
        self.assertEqual((self.read(), self.read()), (b"", b""))

    def test_an_end_is_seen_where_nothing_ever_came(self) -> None:
        self.outer.shutdown(socket.SHUT_WR)
        self.assertEqual(self.read(), b"")

    def test_bytes_before_an_end_pass_first(self) -> None:
        self.outer.send(b"x")
        self.read()
        self.outer.send(b"yz")
        self.outer.close()
        self.assertEqual((self.read(), self.read()), (b"yz", b""))


class Closes(LastByteTestCase):
    def test_a_close_is_a_reset_behind_everything_that_was_sent(self) -> None:
        self.outer.send(b"question")
        self.read()
        self.inner.send(b"half an ans")
        self.inner.close()
        self.assertEqual(self.outer.recv(100), b"half an ans")
        with self.assertRaises(ConnectionResetError):
            self.outer.recv(100)

    def test_it_is_orderly_when_the_byte_was_taken(self) -> None:
        self.outer.send(b"question")
        self.read()
        self.inner.send(b"answer")
        self.last.take()
        self.last.take()
        self.inner.close()
        self.assertEqual((self.outer.recv(100), self.outer.recv(100)), (b"answer", b""))

    def test_taking_it_takes_nothing_else(self) -> None:
        self.outer.send(b"x")
        self.read()
        self.outer.send(b"y")
        self.last.take()
        self.assertEqual(self.read(), b"y")

    def test_who_never_sent_anything_gets_an_end(self) -> None:
        with self.assertRaises(BlockingIOError):
            self.read()
        self.inner.close()
        self.assertEqual(self.outer.recv(100), b"")
