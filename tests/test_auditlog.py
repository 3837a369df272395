"""plumberd.effects.auditlog: nobody waits for it, and what it loses it counts."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from collections import deque
from typing import Any

from twisted.logger import Logger, LogLevel, formatEvent

from plumberd.effects.auditlog import LINES, AuditLog, Target, open_audit_log
from plumberd.effects.journal import JOURNAL_SOCKET, fields
from plumberd.effects.logfile import FILE_MODE, LogError, LogFile
from plumberd.effects.processes import Process, boot_seconds
from plumberd.pure.record import DROPPED_MEMBERS, LISTED, MEMBERS, TEXT_CHARS, Line, Outcome
from plumberd.pure.uri import parse_uri
from plumberd.pure.who import LocalWho, RemoteWho
from tests.children import ChildTestCase
from tests.running import RunningTestCase
from tests.support import DEADLINE_SECONDS, in_thread, native_ask, native_lookup, until

SOON = 0.01
"""Between tries."""


class Fake:
    """A target that the test opens and shuts."""

    name = "the fake"

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.error: OSError | None = None
        self.tries = 0
        self.reopened = 0
        self.is_closed = False
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def write(self, pending: deque[Line]) -> None:
        self.entered.set()
        self.open.wait(DEADLINE_SECONDS)
        self.tries += 1
        if self.error is not None:
            raise self.error
        while pending:
            self.written.append(json.loads(pending.popleft().data))

    def reopen(self) -> None:
        self.reopened += 1

    def close(self) -> None:
        self.is_closed = True


class AuditLogTestCase(ChildTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[dict[str, Any]] = []
        self.path = os.path.join(self.folder(), "audit.json")

    def log(self, *targets: Target, **named: Any) -> AuditLog:
        observer: Any = self.events.append
        named = {"retry_seconds": SOON, **named}
        log = AuditLog(*targets, log=Logger("test", observer=observer), **named)
        self.addCleanup(log.close, DEADLINE_SECONDS)
        return log

    def said(self, level: LogLevel = LogLevel.error) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is level]

    def lines(self, path: str | None = None) -> list[dict[str, Any]]:
        with open(path or self.path, encoding="ascii") as file:
            return [json.loads(line) for line in file]


def outcomes(*numbers: int) -> list[tuple[float, Outcome]]:
    """Return a batch whose services are numbers."""
    return [(time.time(), Outcome("granted", "out", str(number))) for number in numbers]


def services(lines: list[dict[str, Any]]) -> list[Any]:
    """Return the services of lines, and in the place of those that are missing how many they are."""
    return [line["dropped"] if "dropped" in line else line["service"] for line in lines]


class Writing(AuditLogTestCase):
    async def test_every_outcome_becomes_a_line_with_every_member(self) -> None:
        log = self.log(LogFile(self.path))
        log.write(outcomes(1, 2))
        log.write(outcomes(3))
        await until(lambda: len(self.lines()) == 3)
        self.assertEqual(services(self.lines()), ["1", "2", "3"])
        self.assertEqual({tuple(line) for line in self.lines()}, {MEMBERS})
        self.assertEqual(self.events, [])

    def test_what_waits_is_written_before_it_closes(self) -> None:
        log = self.log(LogFile(self.path))
        log.write(outcomes(*range(500)))
        log.close()
        self.assertEqual(services(self.lines()), [str(number) for number in range(500)])

    def test_what_comes_after_the_end_is_no_error(self) -> None:
        log = self.log(LogFile(self.path))
        log.close()
        log.write(outcomes(1))
        self.assertEqual(self.lines(), [])

    def test_no_thread_begins_before_there_is_something_to_write(self) -> None:
        log = self.log(Fake())
        self.assertIsNone(log._thread)
        log.write(outcomes(1))
        assert log._thread is not None
        self.assertTrue(log._thread.daemon)  # the process may end all the same

    async def test_one_that_cannot_be_written_down_is_lost_alone_and_counted(self) -> None:
        class Hostile:
            def __str__(self) -> str:
                raise RuntimeError("no words")

        fake = Fake()
        log = self.log(fake)
        log.write([*outcomes(1), (time.time(), Outcome("granted", who=Hostile())), *outcomes(2)])
        await until(lambda: len(fake.written) == 3)
        self.assertEqual(services(fake.written), ["1", 1, "2"])
        self.assertEqual(self.said(LogLevel.critical), ["an outcome could not be written down"])

    def test_it_writes_to_all_of_its_targets(self) -> None:
        one, two = Fake(), Fake()
        log = self.log(one, two)
        log.write(outcomes(1))
        log.close()
        self.assertEqual((services(one.written), services(two.written)), (["1"], ["1"]))
        self.assertEqual((one.is_closed, two.is_closed), (True, True))


class Who(AuditLogTestCase):
    """Executables and names of users, which are looked up in the thread."""

    def who(self, outcome: Outcome, **named: Any) -> dict[str, Any]:
        fake = Fake()
        log = self.log(fake, **named)
        log.write([(time.time(), outcome)])
        log.close(DEADLINE_SECONDS)
        (line,) = fake.written
        found = line["who"]
        assert isinstance(found, dict)
        return found

    def test_a_live_process_tells_what_it_runs(self) -> None:
        child = self.child("print(flush=True); input()")
        child.line()
        who = self.who(Outcome("granted", "out", who=LocalWho(0, 0, (), child.pid)))
        self.assertEqual((who["exe"], who["user"]), (os.readlink(f"/proc/{child.pid}/exe"), "root"))

    def test_one_that_has_ended_tells_nothing(self) -> None:
        child = self.child("")
        child.finish()
        self.assertIsNone(self.who(Outcome("granted", "out", who=LocalWho(0, 0, (), child.pid)))["exe"])

    def test_who_began_after_the_attempt_does_not_lend_its_executable(self) -> None:
        child = self.child("print(flush=True); input()")
        child.line()
        long_ago = Outcome("ended", "out", who=LocalWho(0, 0, (), child.pid), seconds=3600.0)
        self.assertIsNone(self.who(long_ago)["exe"])

    def test_a_pid_that_was_given_again_within_the_attempt_is_another_s(self) -> None:
        for began, executable in ((-2.0, "/bin/x"), (-0.5, None)):
            process = Process(boot_seconds() + began, "/bin/x")
            outcome = Outcome("granted", "out", who=LocalWho(0, 0, (), 7), seconds=1.0)
            self.assertEqual(self.who(outcome, look=lambda _, found=process: found)["exe"], executable)

    def test_a_busy_process_is_looked_at_once_a_batch(self) -> None:
        asked: list[int] = []
        fake = Fake()
        fake.open.clear()
        log = self.log(fake, look=asked.append)
        log.write([(time.time(), Outcome("granted", who=LocalWho(0, 0, (), pid))) for pid in (7, 8, 7, 7)])
        fake.open.set()
        log.close(DEADLINE_SECONDS)
        self.assertEqual(asked, [7, 8])

    def test_callers_are_no_processes(self) -> None:
        asked: list[int] = []
        for outcome in (Outcome("granted", "in", who=RemoteWho("tcp", None)), Outcome("granted", who="a broker")):
            self.assertIsNone(self.who(outcome, look=asked.append)["exe"])
        self.assertEqual(asked, [])

    def test_a_uid_alone_has_a_name_too(self) -> None:
        self.assertEqual(self.who(Outcome("busy", "out", uid=0))["user"], "root")


class Failing(AuditLogTestCase):
    """A target that can't be written."""

    async def test_it_is_said_once_and_once_more_when_it_is_over_and_nothing_is_lost(self) -> None:
        fake = Fake()
        fake.error = OSError(errno.ENOSPC, "No space left on device")
        log = self.log(fake)
        for number in range(3):
            log.write(outcomes(number))
        await until(lambda: fake.tries > 5)
        self.assertEqual(
            self.said(),
            ["the audit log is not written, and connections go on without it: the fake: No space left on device"],
        )
        fake.error = None
        await until(lambda: len(fake.written) == 3)
        await until(lambda: self.said(LogLevel.info))
        self.assertEqual(services(fake.written), ["0", "1", "2"])
        self.assertEqual(
            self.said(LogLevel.info), ["the audit log is written again: the fake; 0 lines were lost since the start"]
        )
        self.assertEqual((len(self.said()), log.dropped), (1, 0))

    async def test_what_there_is_no_room_for_is_counted_in_a_line_in_its_place(self) -> None:
        fake = Fake()
        fake.error = OSError(errno.EIO, "Input/output error")
        log = self.log(fake, most=4)
        for number in range(10):
            log.write(outcomes(number))
            await until(lambda: not log._waiting)
        fake.error = None
        await until(lambda: len(fake.written) == 5)
        log.write(outcomes(10))
        await until(lambda: len(fake.written) == 6)
        self.assertEqual(services(fake.written), ["0", "1", "2", "3", 6, "10"])
        self.assertEqual(tuple(fake.written[4]), DROPPED_MEMBERS)
        self.assertEqual(log.dropped, 6)

    async def test_a_full_device_stops_nobody(self) -> None:
        log = self.log(LogFile("/dev/full"))
        for number in range(3):
            log.write(outcomes(number))
        await until(self.said)
        log.close(DEADLINE_SECONDS)
        self.assertEqual(
            self.said(),
            [
                "the audit log is not written, and connections go on without it: /dev/full: No space left on device",
                "3 lines of the audit log are lost",
            ],
        )

    async def test_a_folder_that_vanished_stops_nobody_and_may_come_back(self) -> None:
        folder = os.path.join(self.folder(), "log")
        os.mkdir(folder)
        path = os.path.join(folder, "audit.json")
        log = self.log(LogFile(path))
        os.rename(folder, folder + "2")
        log.write(outcomes(1))
        await until(self.said)
        os.mkdir(folder)
        await until(lambda: self.said(LogLevel.info))
        self.assertEqual(services(self.lines(path)), ["1"])
        self.assertEqual(
            self.said(),
            [
                "the audit log is not written, and connections go on without it: "
                f"{path} can't be written: its folder does not exist"
            ],
        )

    async def test_one_target_does_not_wait_for_the_other(self) -> None:
        full, good = Fake(), Fake()
        full.error = OSError(errno.ENOSPC, "No space left on device")
        log = self.log(full, good)
        log.write(outcomes(1, 2))
        await until(lambda: len(good.written) == 2)
        self.assertEqual(full.written, [])

    async def test_opening_anew_tries_at_once(self) -> None:
        fake = Fake()
        fake.error = OSError(errno.ENOSPC, "No space left on device")
        log = self.log(fake, retry_seconds=DEADLINE_SECONDS * 2)
        log.write(outcomes(1))
        await until(self.said)
        log.write(outcomes(2))
        await until(lambda: not log._waiting)
        fake.error = None
        log.reopen()
        await until(lambda: len(fake.written) == 2)
        self.assertEqual((fake.reopened, fake.tries), (1, 2))

    async def test_the_end_tries_once_more(self) -> None:
        fake = Fake()
        fake.error = OSError(errno.ENOSPC, "No space left on device")
        log = self.log(fake, retry_seconds=DEADLINE_SECONDS * 2)
        log.write(outcomes(1))
        await until(self.said)
        fake.error = None
        log.close(DEADLINE_SECONDS)
        self.assertEqual(services(fake.written), ["1"])


class Hanging(AuditLogTestCase):
    """A target that comes to no end: the thread is in it."""

    async def test_nobody_waits_and_what_is_lost_is_said_and_counted_in_its_place(self) -> None:
        fake = Fake()
        fake.open.clear()
        self.addCleanup(fake.open.set)
        log = self.log(fake, most=4)
        log.write(outcomes(0))
        await in_thread(fake.entered.wait, DEADLINE_SECONDS)
        for number in range(1, 10):
            log.write(outcomes(number))
        self.assertEqual(
            self.said(),
            ["the audit log is 4 lines behind (the fake does not take them); from now on lines are lost"],
        )
        self.assertEqual(log.dropped, 5)
        fake.open.set()
        await until(lambda: self.said(LogLevel.info))
        self.assertEqual(services(fake.written), ["0", "1", "2", "3", "4", 5])
        self.assertEqual(self.said(LogLevel.info), ["the audit log has caught up; 5 lines were lost since the start"])

    async def test_a_fifo_that_nobody_drains_holds_up_neither_outcomes_nor_the_end(self) -> None:
        os.mkfifo(self.path)
        reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        log = self.log(LogFile(self.path), most=1000)
        while not self.said():
            log.write(outcomes(*range(100)))
            await until(lambda: True)
        began = time.monotonic()
        log.close(0.05)
        self.assertLess(time.monotonic() - began, DEADLINE_SECONDS / 4)
        self.assertIn("the audit log hangs: ", self.said()[-1])
        thread = log._thread
        assert thread is not None

        def drain() -> bytes:
            os.set_blocking(reader, True)
            found = b""
            while part := os.read(reader, 65536):
                found += part
            os.close(reader)
            return found

        found = [json.loads(line) for line in (await in_thread(drain)).splitlines()]
        await in_thread(thread.join, DEADLINE_SECONDS)
        self.assertEqual(sum(line.get("dropped", 0) for line in found), log.dropped)
        self.assertGreater(log.dropped, 0)

    async def test_a_new_log_does_not_wait_for_the_old_one(self) -> None:
        fake = Fake()
        fake.open.clear()
        log = self.log(fake)
        log.write(outcomes(1))
        log.close(0)
        self.assertFalse(fake.is_closed)
        fake.open.set()
        await until(lambda: fake.is_closed)
        self.assertEqual((services(fake.written), self.said()), (["1"], []))


class Rotation(AuditLogTestCase):
    async def test_a_renamed_file_is_left_and_the_next_line_is_in_a_new_one(self) -> None:
        log = self.log(LogFile(self.path))
        log.write(outcomes(1))
        await until(lambda: len(self.lines()) == 1)
        os.rename(self.path, self.path + ".1")
        log.write(outcomes(2))
        await until(lambda: os.path.exists(self.path) and len(self.lines()) == 1)
        self.assertEqual((services(self.lines(self.path + ".1")), services(self.lines())), (["1"], ["2"]))


class Opening(AuditLogTestCase):
    def test_file_and_journal_get_the_same_line(self) -> None:
        journal = os.path.join(self.folder(), "socket")
        reader = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        reader.bind(journal)
        log = open_audit_log(self.path, journal)
        self.assertEqual(log.names, (self.path, f"the journal at {journal}"))
        log.write(outcomes(1))
        log.close(DEADLINE_SECONDS)
        entry = reader.recv(65536)
        with open(self.path, "rb") as file:
            self.assertEqual(entry.split(b"\n")[0], b"MESSAGE=" + file.read().rstrip(b"\n"))
        self.assertIn(b"\nPLUMBERD_VERDICT=granted\nPLUMBERD_SERVICE=1\nPLUMBERD_DIRECTION=out\n", entry)

    def test_where_one_of_them_cannot_be_opened_nothing_is(self) -> None:
        with self.assertRaises(LogError) as raised:
            open_audit_log(self.path, self.path + ".socket")
        self.assertIn(f"{self.path}.socket: No such file or directory", str(raised.exception))
        with self.assertRaises(LogError):
            open_audit_log(os.path.dirname(self.path), None)


class Secrets(AuditLogTestCase):
    def test_no_password_gets_into_the_file(self) -> None:
        uri = parse_uri("tls://user:s3cret@example.com/pong")
        log = self.log(LogFile(self.path))
        texts = ("tls://user:s3cret@example.com:99999/pong", "tls://user@s3cret:example.com:9/x failed")
        batch = [Outcome("granted", "out", "pong", uri, uri=uri), *(Outcome("denied", reason=text) for text in texts)]
        log.write([(time.time(), outcome) for outcome in batch])
        log.close(DEADLINE_SECONDS)
        with open(self.path, encoding="ascii") as file:
            text = file.read()
        self.assertEqual((text.count("\n"), text.count("s3cret")), (3, 0))
        self.assertIn("tls://user:***@example.com:9001/pong", text)


class Broker(RunningTestCase):
    """What a whole broker writes of real connections."""

    def setUp(self) -> None:
        super().setUp()
        self.path = os.path.join(self.folder(), "audit.json")

    def lines(self) -> list[dict[str, Any]]:
        with open(self.path, encoding="ascii") as file:
            return [json.loads(line) for line in file]

    async def test_a_local_client_is_told_with_its_executable_and_each_step(self) -> None:
        service = self.run_broker(audit_file=self.path)
        self.serve(service.settings.rundir, "pong")
        _, sock = await in_thread(native_lookup, service.settings.rundir, "pong")
        assert sock is not None
        sock.close()
        await until(self.lines)
        (line,) = self.lines()
        self.assertEqual(tuple(line), MEMBERS)
        who = line["who"]
        self.assertEqual((who["kind"], who["uid"], who["pid"]), ("local", os.getuid(), os.getpid()))
        self.assertEqual(who["exe"], os.readlink("/proc/self/exe"))
        self.assertEqual(
            (line["direction"], line["service"], line["to"], line["verdict"], line["mode"], line["generation"]),
            ("out", "pong", "unix:pong", "granted", "local", 1),
        )
        self.assertEqual(line["rule"]["text"], "default for local services")
        self.assertLessEqual({"who", "route", "connect", "handover"}, set(line["steps"]))
        self.assertLessEqual(sum(line["steps"].values()), line["ms"] + 0.1)

    async def test_a_relay_has_a_second_line_with_its_bytes_and_the_same_id(self) -> None:
        service = self.run_broker("allow out any any handover=relayed", audit_file=self.path)
        port = self.serve_tcp()
        _, sock = await in_thread(native_ask, service.settings.rundir, op="lookup", uri=f"tcp://127.0.0.1:{port}")
        assert sock is not None

        def talk() -> bytes:
            with sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                found = b""
                while part := sock.recv(100):
                    found += part
                return found

        self.assertEqual(await in_thread(talk), b"hello")
        await until(lambda: len(self.lines()) == 2)
        granted, ended = self.lines()
        self.assertEqual((granted["verdict"], ended["verdict"]), ("granted", "ended"))
        self.assertEqual((granted["up"], ended["up"], ended["down"], ended["reason"]), (None, 5, 5, "closed"))
        self.assertEqual(granted["id"], ended["id"])
        self.assertEqual((granted["address"], granted["rule"]["number"]), ("127.0.0.1", 1))

    async def test_a_full_disk_refuses_nobody(self) -> None:
        service = self.run_broker(audit_file="/dev/full")
        self.serve(service.settings.rundir, "pong")
        for _ in range(3):
            answer, sock = await in_thread(native_lookup, service.settings.rundir, "pong")
            assert sock is not None
            sock.close()
            self.assertTrue(answer["ok"])
        self.assertEqual([outcome.verdict for outcome in self.outcomes], ["granted"] * 3)


class Documented(AuditLogTestCase):
    """docs/audit.md says what the writer does."""

    def setUp(self) -> None:
        super().setUp()
        path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs", "audit.md")
        with open(path, encoding="utf-8") as file:
            self.text = file.read()

    def test_its_limits_are_those_of_the_code(self) -> None:
        for said in (
            f"when {LINES} wait",
            f"Up to {LINES} lines are kept",
            f"mode {FILE_MODE:04o}",
            f"at most {LISTED}",
            f"{TEXT_CHARS} characters at most",
            JOURNAL_SOCKET,
        ):
            self.assertIn(said, self.text)

    async def test_what_the_log_says_stands_in_it(self) -> None:
        log = self.log(LogFile("/dev/full"))
        log.write(outcomes(1))
        await until(self.said)
        self.assertIn(f"`{self.said()[0].partition(':')[0]}`", self.text)

    def test_every_field_of_the_journal_has_its_row(self) -> None:
        names = [name.decode() for name, _ in fields(Line(b"{}", "granted", "out", "pong")) if name != b"MESSAGE"]
        self.assertEqual(re.findall(r"^\| `([A-Z_]+)` \|", self.text, re.MULTILINE), names)
        self.assertIn("`MESSAGE`", self.text)
