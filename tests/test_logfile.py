"""plumberd.effects.logfile: whole lines, whatever becomes of the disk, the path and the process."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
from collections import deque

from plumberd.effects.logfile import FILE_MODE, WRITE_BYTES, LogError, LogFile
from plumberd.pure.record import Line
from tests.children import ChildTestCase, needs_root
from tests.inside import NOBODY
from tests.support import CleanTestCase, in_thread
from tests.tables import each

FULL = """
import os
from collections import deque
from plumberd.effects.logfile import LogFile
from plumberd.pure.record import Line
pending = deque(Line(b"%03d" % number + b"x" * 997) for number in range(100))
log = LogFile("/mnt/log")
try:
    log.write(pending)
except OSError as e:
    print(e.strerror, 0 < len(pending) < 100)
print(open("/mnt/log", "rb").read()[-1:])
os.unlink("/mnt/ballast")
"""
"""Fills a file system of 256 KiB, and makes room again."""

COMPLETED = """
log.write(pending)
lines = open("/mnt/log", "rb").read().split(b"\\n")
print(len(pending), lines.pop(), [line[:3] for line in lines] == [b"%03d" % number for number in range(100)])
print({len(line) for line in lines})
"""
ENDED = """
with open("/mnt/log", "ab") as other:
    other.write(b" another's\\n")
log.write(pending)
lines = open("/mnt/log", "rb").read().split(b"\\n")
whole = [line[:3] for line in lines if len(line) == 1000]
print(len(pending), lines.pop(), whole == [b"%03d" % number for number in range(100)])
print([line[-10:] for line in lines if len(line) != 1000])
"""


def lines(*texts: str) -> deque[Line]:
    return deque(Line(text.encode()) for text in texts)


class LogFileTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder(), "audit.json")

    def open(self, path: str | None = None) -> LogFile:
        log = LogFile(path or self.path)
        self.addCleanup(log.close)
        return log

    def write(self, log: LogFile, *texts: str) -> None:
        pending = lines(*texts)
        log.write(pending)
        self.assertEqual(len(pending), 0)

    def text(self, path: str | None = None) -> str:
        with open(path or self.path, encoding="ascii") as file:
            return file.read()


class Writing(LogFileTestCase):
    def test_each_line_ends(self) -> None:
        self.write(self.open(), "one", "two")
        self.assertEqual(self.text(), "one\ntwo\n")

    def test_what_is_there_already_stays(self) -> None:
        for text in ("one", "two"):
            log = self.open()
            self.write(log, text)
            log.close()
        self.assertEqual(self.text(), "one\ntwo\n")

    def test_many_go_in_few_writes_and_a_long_one_in_one(self) -> None:
        log = self.open()
        sizes: list[int] = []
        real = os.write

        def write(fd: int, data: bytes) -> int:
            sizes.append(len(data))
            return real(fd, data)

        self.patch(os, "write", write)
        self.write(log, *("x" * 1023,) * 256, "y" * 2 * WRITE_BYTES)
        self.assertEqual(sizes, [WRITE_BYTES] * 4 + [2 * WRITE_BYTES + 1])

    def test_two_processes_write_whole_lines_into_one_file(self) -> None:
        one, two = self.open(), self.open()
        for number in range(50):
            self.write(one, f"1 {number}", "x" * 100)
            self.write(two, f"2 {number}", "x" * 100)
        self.assertEqual({len(line) for line in self.text().splitlines()} - {100}, {3, 4})

    def test_closing_twice_closes_once(self) -> None:
        log = self.open()
        log.close()
        log.close()
        self.assertEqual(self.text(), "")


class Opening(LogFileTestCase):
    def test_a_new_file_has_its_mode_whatever_the_umask(self) -> None:
        for umask in (0o000, 0o077):
            old = os.umask(umask)
            self.addCleanup(os.umask, old)
            path = f"{self.path}{umask}"
            log = self.open(path)
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), FILE_MODE)
            log.close()

    def test_a_file_that_is_there_keeps_its_mode(self) -> None:
        os.close(os.open(self.path, os.O_CREAT, 0o644))
        os.chmod(self.path, 0o664)
        self.open()
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o664)

    def test_no_program_that_is_started_gets_it(self) -> None:
        log = self.open()
        self.assertFalse(os.get_inheritable(log._fd))

    def refused(self, path: str) -> str:
        with self.assertRaises(LogError) as raised:
            LogFile(path)
        self.assertIsInstance(raised.exception, OSError)
        return str(raised.exception)

    def test_a_directory_is_refused(self) -> None:
        folder = self.folder()
        self.assertEqual(self.refused(folder), f"{folder} can't be written: it is a directory; wanted a file")

    def test_a_symbolic_link_is_refused_and_what_it_leads_to_is_not_made(self) -> None:
        os.symlink(self.path + "2", self.path)
        self.assertIn("it is a symbolic link, which is not followed", self.refused(self.path))
        self.assertFalse(os.path.exists(self.path + "2"))

    def test_a_folder_that_is_not_there_is_not_made(self) -> None:
        self.assertIn("its folder does not exist", self.refused(os.path.join(self.path, "x", "y")))

    def test_a_file_in_the_folder_s_place_is_refused(self) -> None:
        self.open()
        self.assertIn("is no folder", self.refused(os.path.join(self.path, "x")))

    def test_a_file_that_everybody_can_write_is_refused(self) -> None:
        os.close(os.open(self.path, os.O_CREAT))
        os.chmod(self.path, 0o666)
        self.assertIn("can be written by everybody (mode 0666); wanted 0640", self.refused(self.path))

    def test_a_fifo_that_nobody_reads_is_refused_at_once(self) -> None:
        os.mkfifo(self.path)
        self.assertIn("nobody reads it", self.refused(self.path))

    def test_a_socket_is_refused(self) -> None:
        self.owned(socket.socket(socket.AF_UNIX)).bind(self.path)
        self.assertIn("it is a socket", self.refused(self.path))

    @each(("a_nul", "/tmp/a\0b"), ("a_name_that_is_too_long", "/tmp/" + "x" * 300))
    def test_a_name_that_is_none_is_refused(self, _: str, path: str) -> None:
        self.assertIn("can't be written: ", self.refused(path))


class Rotating(LogFileTestCase):
    def test_a_renamed_file_is_left_and_a_new_one_made(self) -> None:
        log = self.open()
        self.write(log, "one")
        os.rename(self.path, self.path + ".1")
        self.write(log, "two")
        self.assertEqual((self.text(self.path + ".1"), self.text()), ("one\n", "two\n"))
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), FILE_MODE)

    def test_a_file_in_its_place_is_taken(self) -> None:
        log = self.open()
        self.write(log, "one")
        os.rename(self.path, self.path + ".1")
        os.close(os.open(self.path, os.O_CREAT, 0o600))
        self.write(log, "two")
        self.assertEqual((self.text(self.path + ".1"), self.text()), ("one\n", "two\n"))

    def test_a_deleted_file_is_made_anew(self) -> None:
        log = self.open()
        os.unlink(self.path)
        self.write(log, "one")
        self.assertEqual(self.text(), "one\n")

    def test_a_file_that_was_emptied_is_written_from_its_beginning(self) -> None:
        log = self.open()
        self.write(log, "one")
        os.truncate(self.path, 0)
        self.write(log, "two")
        self.assertEqual(self.text(), "two\n")

    def test_where_the_new_one_cannot_be_made_the_lines_stay(self) -> None:
        folder = self.folder()
        path = os.path.join(folder, "sub", "audit.json")
        os.mkdir(os.path.dirname(path))
        log = self.open(path)
        os.rename(os.path.dirname(path), os.path.join(folder, "away"))
        pending = lines("one")
        for _ in range(2):
            with self.assertRaises(LogError):
                log.write(pending)
        self.assertEqual(len(pending), 1)
        os.mkdir(os.path.dirname(path))
        log.write(pending)
        self.assertEqual(self.text(path), "one\n")

    def test_it_is_not_led_away_by_a_link_in_its_place(self) -> None:
        log = self.open()
        os.rename(self.path, self.path + ".1")
        os.symlink(self.path + ".1", self.path)
        with self.assertRaises(LogError):
            log.write(lines("one"))
        self.assertEqual(self.text(self.path + ".1"), "")

    def test_opening_anew_takes_another_descriptor(self) -> None:
        log = self.open()
        self.write(log, "one")
        opened: list[str] = []
        real = os.open

        def open_one(path: str, flags: int, *mode: int) -> int:
            opened.append(path)
            return real(path, flags, *mode)

        self.patch(os, "open", open_one)
        self.write(log, "two")
        self.assertEqual(opened, [])
        log.reopen()
        self.write(log, "three")
        self.assertIn(self.path, opened)
        self.assertEqual(self.text(), "one\ntwo\nthree\n")


class HalfLines(LogFileTestCase):
    def limited(self, log: LogFile, limit: int, pending: deque[Line]) -> None:
        """Write as far as a file may grow that must not have more than *limit* bytes."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with self.assertRaises(OSError) as raised:
                log.write(pending)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.assertEqual(raised.exception.errno, errno.EFBIG)

    def test_what_another_left_is_ended_first(self) -> None:
        with open(self.path, "w") as file:
            file.write('{"time":')
        self.write(self.open(), "one")
        self.assertEqual(self.text(), '{"time":\none\n')

    def test_one_that_its_limit_stopped_is_ended_and_written_again(self) -> None:
        # Another error than a full disk opens the file anew: then nobody knows what has come behind the half.
        log = self.open()
        pending = lines("one", "two", "three")
        self.limited(log, 6, pending)
        self.assertEqual((self.text(), len(pending)), ("one\ntw", 2))
        self.write(log, *(line.data.decode() for line in pending))
        self.assertEqual(self.text(), "one\ntw\ntwo\nthree\n")

    def test_the_old_file_does_not_keep_one_when_it_is_rotated(self) -> None:
        log = self.open()
        pending = lines("one", "two")
        self.limited(log, 6, pending)
        os.rename(self.path, self.path + ".1")
        log.write(pending)
        self.assertEqual((self.text(self.path + ".1"), self.text()), ("one\ntw\n", "two\n"))

    def test_nor_when_it_is_closed(self) -> None:
        log = self.open()
        self.limited(log, 6, lines("one", "two"))
        log.close()
        self.assertEqual(self.text(), "one\ntw\n")


class FullDisk(ChildTestCase):
    """A file system of its own, in a mount namespace of its own."""

    async def run_full(self, then: str) -> list[str]:
        script = 'mount -t tmpfs -o size=256k none /mnt; head -c 200000 /dev/zero >/mnt/ballast; exec "$@"'
        return (await self.run_child(FULL + then, within=("unshare", "-m", "sh", "-c", script, "-"))).splitlines()

    @needs_root
    async def test_half_a_line_is_completed_when_there_is_room_again(self) -> None:
        out = await self.run_full(COMPLETED)
        self.assertEqual(out, ["No space left on device True", "b'x'", "0 b'' True", "{1000}"])

    @needs_root
    async def test_half_a_line_is_ended_where_another_has_written_behind_it(self) -> None:
        out = await self.run_full(ENDED)
        self.assertEqual(out, ["No space left on device True", "b'x'", "0 b'' True", '[b" another\'s"]'])

    def test_every_write_to_a_full_device_fails_and_loses_nothing(self) -> None:
        log = LogFile("/dev/full")
        self.addCleanup(log.close)
        pending = lines("one", "two")
        for _ in range(2):
            with self.assertRaises(OSError) as raised:
                log.write(pending)
            self.assertEqual(raised.exception.errno, errno.ENOSPC)
        self.assertEqual(len(pending), 2)


class Fifos(LogFileTestCase):
    def test_one_that_is_read_is_written(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.write(self.open(), "one")
        self.assertEqual(os.read(reader, 100), b"one\n")

    def test_one_whose_reader_has_gone_waits_for_the_next(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        log = self.open()
        os.close(reader)
        pending = lines("one")
        with self.assertRaises(BrokenPipeError):
            log.write(pending)
        with self.assertRaises(LogError):
            log.write(pending)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        log.write(pending)
        self.assertEqual((os.read(reader, 100), len(pending)), (b"one\n", 0))


class AnotherUser(ChildTestCase):
    @needs_root
    async def test_who_has_no_permission_is_told_so(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0o711)
        path = os.path.join(folder, "audit.json")
        code = (
            "import sys\nfrom plumberd.effects.logfile import LogError, LogFile\n"
            f"from tests.inside import become\nbecome({NOBODY})\n"
            "try:\n    LogFile(sys.argv[1])\nexcept LogError as e:\n    print(e, end='')\n"
        )
        status, out, err = await in_thread(self.child(code, path).finish)
        self.assertEqual((status, out, err), (0, f"{path} can't be written: uid {NOBODY} has no permission", ""))
