"""plumberd.effects.journal: what systemd's journal reads, on a socket that stands in for its own."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from plumberd.effects.journal import JOURNAL_SOCKET, Journal, entry, fields
from plumberd.effects.logfile import LogError
from plumberd.pure.record import NOTICE, WARNING, Line
from tests.support import CleanTestCase, in_thread
from tests.tables import PROPERTY, each

LINE = Line(b'{"verdict":"denied"}', "denied", "out", "pong", NOTICE)
FIELDS = {
    b"MESSAGE": b'{"verdict":"denied"}',
    b"PRIORITY": b"5",
    b"SYSLOG_IDENTIFIER": b"plumberd",
    b"PLUMBERD_VERDICT": b"denied",
    b"PLUMBERD_SERVICE": b"pong",
    b"PLUMBERD_DIRECTION": b"out",
}
SEALED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def parse(data: bytes) -> list[tuple[bytes, bytes]]:
    """Read an entry as the journal does."""
    found = []
    while data:
        first, _, rest = data.partition(b"\n")
        name, equals, value = first.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, end, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            if end != b"\n":
                raise ValueError("a value does not end where its length says")
        found.append((name, value))
        data = rest
    return found


class JournalTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder(), "socket")
        self.reader = self.listen()

    def listen(self) -> socket.socket:
        reader = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        reader.bind(self.path)
        return reader

    def journal(self) -> Journal:
        found = Journal(self.path)
        self.addCleanup(found.close)
        return found

    def received(self) -> tuple[bytes, int | None]:
        """Return what came in a datagram, or in the memfd that came instead, and that one's seals."""
        data, fds, _, _ = socket.recv_fds(self.reader, 1 << 20, 4)
        if not fds:
            return data, None
        (fd,) = fds
        try:
            self.assertEqual(data, b"")
            return os.pread(fd, os.fstat(fd).st_size, 0), fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        finally:
            os.close(fd)


class Entries(JournalTestCase):
    def test_a_line_is_one_datagram_with_its_fields(self) -> None:
        pending = deque((LINE, Line(b"{}", "dropped", priority=WARNING)))
        self.journal().write(pending)
        self.assertEqual(dict(parse(self.received()[0])), FIELDS)
        self.assertEqual(
            dict(parse(self.received()[0])),
            {
                b"MESSAGE": b"{}",
                b"PRIORITY": b"4",
                b"SYSLOG_IDENTIFIER": b"plumberd",
                b"PLUMBERD_VERDICT": b"dropped",
            },
        )
        self.assertEqual(len(pending), 0)

    def test_the_fields_are_lines(self) -> None:
        self.assertEqual(entry([(b"A", b"1"), (b"B", b"x=y")]), b"A=1\nB=x=y\n")

    def test_a_value_with_a_line_break_has_its_length_in_front(self) -> None:
        self.assertEqual(entry([(b"A", b"1\n2")]), b"A\n\3\0\0\0\0\0\0\x001\n2\n")

    def test_a_hostile_service_adds_no_field(self) -> None:
        found = parse(entry(fields(Line(b"{}", "denied", "in", "x\nPRIORITY=0\nMESSAGE=y\udcff"))))
        self.assertEqual(
            found[-2:], [(b"PLUMBERD_SERVICE", b"x\nPRIORITY=0\nMESSAGE=y\\udcff"), (b"PLUMBERD_DIRECTION", b"in")]
        )
        self.assertEqual(len({name for name, _ in found}), len(found))

    @PROPERTY
    @given(st.lists(st.tuples(st.from_regex(rb"[A-Z][A-Z_]{0,9}", fullmatch=True), st.binary(max_size=40))))
    def test_whatever_the_values_are_the_journal_reads_them(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.assertEqual(parse(entry(pairs)), pairs)


class LongEntries(JournalTestCase):
    @each(("short", 1000, False), ("too_long_for_a_datagram", 1 << 19, True))
    def test_what_is_too_long_comes_as_a_sealed_memfd(self, _: str, length: int, is_sealed: bool) -> None:
        self.journal().write(deque((Line(b"x" * length, "granted", "out"),)))
        data, seals = self.received()
        self.assertEqual(dict(parse(data))[b"MESSAGE"], b"x" * length)
        self.assertEqual(seals is not None, is_sealed)
        if seals is not None:
            self.assertEqual(seals & SEALED, SEALED)


class Absence(JournalTestCase):
    def refused(self, path: str) -> str:
        with self.assertRaises(LogError) as raised:
            Journal(path)
        return str(raised.exception)

    def test_where_there_is_none_the_start_says_so(self) -> None:
        self.assertIn("No such file or directory; does systemd-journald run?", self.refused(self.path + "2"))

    def test_a_file_in_its_place_is_refused(self) -> None:
        path = self.path + "2"
        os.close(os.open(path, os.O_CREAT))
        self.assertIn("is no socket", self.refused(path))

    def test_its_own_path_needs_no_saying(self) -> None:
        self.patch(os, "stat", lambda path: os.lstat(self.path))
        found = Journal()
        self.addCleanup(found.close)
        self.assertEqual(found.name, "the journal")
        self.assertEqual(JOURNAL_SOCKET, "/run/systemd/journal/socket")

    def test_while_it_restarts_lines_stay_and_the_next_one_gets_them(self) -> None:
        log = self.journal()
        self.reader.close()
        pending = deque((LINE,))
        with self.assertRaises(ConnectionRefusedError):
            log.write(pending)
        os.unlink(self.path)
        with self.assertRaises(FileNotFoundError):
            log.write(pending)
        self.assertEqual(len(pending), 1)
        self.reader = self.listen()
        log.write(pending)
        self.assertEqual(dict(parse(self.received()[0])), FIELDS)

    async def test_one_that_does_not_read_is_given_up_after_a_while(self) -> None:
        log = Journal(self.path, send_seconds=0.001)
        self.addCleanup(log.close)
        pending = deque((LINE,) * 10_000)
        with self.assertRaises(BlockingIOError):
            await in_thread(log.write, pending)
        self.assertGreater(len(pending), 0)
        sent = 10_000 - len(pending)
        self.reader.settimeout(0)
        count = 0
        with self.assertRaises(BlockingIOError):
            while self.received():
                count += 1
        self.assertEqual(count, sent)

    def test_closing_twice_closes_once(self) -> None:
        log = self.journal()
        log.close()
        log.close()
        with self.assertRaises(OSError):
            log.write(deque((LINE,)))
