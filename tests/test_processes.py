"""plumberd.effects.processes: a process tells what it runs, and nobody answers for one that had its pid before."""

from __future__ import annotations

import os
import pwd
import sys
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.processes import USER_SECONDS, USERS, Process, UserNames, boot_seconds, process
from tests.children import ChildTestCase, needs_root
from tests.inside import NOBODY
from tests.support import CleanTestCase, in_thread
from tests.tables import each

TICK_SECONDS = 0.01
PRINT = (
    "import sys; from plumberd.effects.processes import process; print(process(int(sys.argv[1])).executable, end='')"
)


class Processes(ChildTestCase):
    def test_it_tells_what_we_run_ourselves(self) -> None:
        found = process(os.getpid())
        assert found is not None
        self.assertEqual(found.executable, os.path.realpath(sys.executable))
        self.assertTrue(found.lived_at(boot_seconds()))

    def test_a_child_had_not_begun_before_it_was_started(self) -> None:
        before = boot_seconds()
        child = self.child("print(flush=True); input()")
        child.line()
        found = process(child.pid)
        assert found is not None
        self.assertFalse(found.lived_at(before - 2 * TICK_SECONDS))
        self.assertTrue(found.lived_at(boot_seconds()))

    def test_a_process_that_has_ended_tells_nothing(self) -> None:
        child = self.child("")
        child.finish()
        self.assertIsNone(process(child.pid))

    def test_one_that_nobody_has_waited_for_runs_nothing_any_more(self) -> None:
        child = self.child("")
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        found = process(child.pid)
        assert found is not None
        self.assertIsNone(found.executable)

    @each(("zero", 0), ("negative", -1), ("beyond_all", 2**31 - 1))
    def test_what_is_no_pid_is_no_process(self, _: str, pid: int) -> None:
        self.assertIsNone(process(pid))

    def test_a_file_that_is_gone_is_still_named(self) -> None:
        path = os.path.join(self.folder(), "x) R 1 (y")  # and a name that tries to look like the fields behind it
        os.symlink("/bin/cat", path)
        with open("/bin/cat", "rb") as source, open(path + "2", "wb") as copy:
            copy.write(source.read())
        os.chmod(path + "2", 0o700)
        child = self.command([path + "2"])
        assert child.process.stdin is not None and child.process.stdout is not None
        child.process.stdin.write(b"x")
        self.assertEqual(child.process.stdout.read(1), b"x")
        os.unlink(path + "2")
        found = process(child.pid)
        assert found is not None
        self.assertEqual(found.executable, f"{path}2 (deleted)")
        self.assertLess(abs(found.began_seconds - boot_seconds()), 60)

    @needs_root
    async def test_another_user_s_process_is_there_and_shows_no_executable(self) -> None:
        become = f"from tests.inside import become; import plumberd.effects.processes; become({NOBODY}); "
        code = become + PRINT
        status, out, err = await in_thread(self.child(code, os.getpid()).finish)
        self.assertEqual((status, out, err), (0, "None", ""))


class Reused(CleanTestCase):
    """The pid is another's meanwhile."""

    def test_who_began_later_did_not_live_then(self) -> None:
        late = Process(100.0, "/bin/late")
        self.assertEqual([late.lived_at(when) for when in (99.99, 100.0, 100.5)], [False, True, True])

    def test_one_that_ends_while_it_is_looked_at_tells_nothing_of_its_successor(self) -> None:
        # The folder of a process that has ended has no files, though its pid may be another's.
        folder = os.open(self.folder(), os.O_RDONLY)
        self.addCleanup(os.close, folder)
        with mock.patch("os.open", side_effect=[os.dup(folder), ProcessLookupError()]):
            self.assertIsNone(process(os.getpid()))

    def test_no_descriptor_left_is_no_answer(self) -> None:
        with mock.patch("os.open", side_effect=OSError(24, "too many open files")):
            self.assertIsNone(process(os.getpid()))


class Users(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self.names = {1000: "alice"}
        self.users = UserNames(self.look, lambda: self.now)

    def look(self, uid: int) -> pwd.struct_passwd:
        self.asked.append(uid)
        return pwd.struct_passwd((self.names[uid], "x", uid, uid, "", "/", "/bin/sh"))

    def test_our_own_name_is_that_of_the_system(self) -> None:
        self.assertEqual(UserNames().name_of(os.getuid()), pwd.getpwuid(os.getuid()).pw_name)

    def test_a_name_is_asked_for_once_a_minute(self) -> None:
        self.assertEqual([self.users.name_of(1000) for _ in range(3)], ["alice"] * 3)
        self.assertEqual(self.asked, [1000])
        self.names[1000] = "bob"
        self.now = USER_SECONDS
        self.assertEqual(self.users.name_of(1000), "bob")

    def test_who_has_no_name_has_none_and_is_remembered_too(self) -> None:
        self.assertEqual([self.users.name_of(7) for _ in range(2)], [None, None])
        self.assertEqual(self.asked, [7])

    def test_a_number_that_is_no_uid_has_no_name(self) -> None:
        self.assertEqual([UserNames().name_of(uid) for uid in (-1, 2**32, 2**70)], [None] * 3)

    def test_it_remembers_so_many_and_no_more(self) -> None:
        for uid in range(USERS + 1):
            self.users.name_of(uid)
        self.assertLessEqual(len(self.users._known), USERS)
