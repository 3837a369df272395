"""plumberd.effects.actas: as the client for one call, in one thread, and back.

That it ends the process where it cannot come back is reasoned and not tested: with the saved
uid still root's, the kernel has no way to refuse.
"""

from __future__ import annotations

import os
import socket
import stat
import threading

from plumberd.effects.actas import ActAs
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from tests.children import ChildTestCase, needs_root
from tests.inside import ids_of_threads
from tests.support import CleanTestCase

CLIENT = LocalWho(12345, 23456, (7, 8), pid=1)


def own(groups: tuple[int, ...] | None = None) -> LocalWho:
    """Return this process's own ids, as a client would have them."""
    return LocalWho(os.geteuid(), os.getegid(), tuple(os.getgroups()) if groups is None else groups, os.getpid())


def ids() -> tuple[int, int, tuple[int, ...]]:
    """Return the ids with which this thread is judged."""
    return os.geteuid(), os.getegid(), tuple(os.getgroups())


class IsSelf(CleanTestCase):
    def test_with_the_same_ids_it_is(self) -> None:
        self.assertTrue(ActAs().is_self(own()))

    def test_the_order_of_groups_does_not_count(self) -> None:
        acting = ActAs()
        acting._groups = (1, 2)
        self.assertTrue(acting.is_self(own(groups=(2, 1))))

    def test_with_one_group_more_it_is_not(self) -> None:
        self.assertFalse(ActAs().is_self(own(groups=(*os.getgroups(), 54321))))

    def test_with_another_gid_it_is_not(self) -> None:
        self.assertFalse(ActAs().is_self(LocalWho(os.geteuid(), os.getegid() + 1, tuple(os.getgroups()), 1)))

    def test_with_another_uid_it_is_not(self) -> None:
        self.assertFalse(ActAs().is_self(LocalWho(os.geteuid() + 1, os.getegid(), tuple(os.getgroups()), 1)))


class AsItself(CleanTestCase):
    def test_the_work_is_done_and_its_result_returned(self) -> None:
        self.assertEqual(ActAs().call(own(), ids), ids())

    def test_no_power_is_needed(self) -> None:
        acting = ActAs()
        acting.can_switch = False
        self.assertEqual(acting.call(own(), lambda: "done"), "done")


@needs_root
class AsAnother(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.before = (os.getresuid(), os.getresgid(), os.getgroups())
        self.acting = ActAs()

    def assert_back(self) -> None:
        self.assertEqual((os.getresuid(), os.getresgid(), os.getgroups()), self.before)
        self.assertEqual(set(ids_of_threads()), {"Uid:\t0\t0\t0\t0"})

    def test_the_work_is_done_with_uid_gid_and_groups_of_the_client(self) -> None:
        self.assertEqual(self.acting.call(CLIENT, ids), (12345, 23456, (7, 8)))
        self.assert_back()

    def test_no_group_of_the_brokers_is_left_to_a_client_that_has_none(self) -> None:
        self.assertEqual(self.acting.call(LocalWho(12345, 23456, (), 1), ids), (12345, 23456, ()))
        self.assert_back()

    def test_equal_uids_are_not_enough_to_skip_it(self) -> None:
        self.assertEqual(self.acting.call(LocalWho(0, 23456, (7,), 1), ids), (0, 23456, (7,)))
        self.assert_back()

    def test_the_kernel_judges_the_work_by_those_ids(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0)
        with self.assertRaises(PermissionError):
            self.acting.call(CLIENT, lambda: os.listdir(folder))
        self.assert_back()
        self.assertEqual(os.listdir(folder), [])

    def test_what_is_made_belongs_to_the_client(self) -> None:
        sock = self.owned(self.acting.call(CLIENT, lambda: socket.socket(socket.AF_UNIX)))
        status = os.fstat(sock.fileno())
        self.assertEqual((status.st_uid, status.st_gid, stat.S_ISSOCK(status.st_mode)), (12345, 23456, True))

    def test_no_other_thread_changes(self) -> None:
        asked, answered = threading.Event(), threading.Event()
        there: list[object] = []

        def other() -> None:
            asked.wait(5)
            there.append(ids())
            answered.set()

        thread = threading.Thread(target=other)
        thread.start()

        def work() -> tuple[object, bool]:
            asked.set()
            return ids(), answered.wait(5)

        try:
            here = self.acting.call(CLIENT, work)
        finally:
            asked.set()
            thread.join()
        self.assertEqual(here, ((12345, 23456, (7, 8)), True))
        self.assertEqual(there, [(0, 0, tuple(self.before[2]))])
        self.assert_back()

    def test_the_works_exception_passes_and_the_ids_are_back(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            self.acting.call(CLIENT, fail)
        self.assert_back()

    def test_ids_that_cannot_be_had_are_an_error_without_the_work_being_done(self) -> None:
        done: list[int] = []
        with self.assertRaises(OSError):
            self.acting.call(LocalWho(12345, 23456, tuple(range(65537)), 1), lambda: done.append(1))
        self.assertEqual(done, [])
        self.assert_back()

    def test_a_uid_that_is_none_is_an_error_without_the_work_being_done(self) -> None:
        done: list[int] = []
        # -1 would be "leave it as it is": the work would be done as root
        with self.assertRaises(OSError):
            self.acting.call(LocalWho(2**32 - 1, 23456, (), 1), lambda: done.append(os.geteuid()))
        self.assertEqual(done, [])
        self.assert_back()

    def test_a_gid_that_is_none_is_an_error_without_the_work_being_done(self) -> None:
        done: list[int] = []
        with self.assertRaises(OSError):
            self.acting.call(LocalWho(12345, 2**32 - 1, (), 1), lambda: done.append(os.getegid()))
        self.assertEqual(done, [])
        self.assert_back()


class WithoutThePower(ChildTestCase):
    REFUSED = """
import sys
from tests.inside import NOBODY, become
from plumberd.effects import kernel
from plumberd.effects.actas import ActAs
from plumberd.pure.refusals import Refused
from plumberd.pure.who import LocalWho
{}
done = []
try:
    ActAs().call(LocalWho(12345, 23456, (7, 8), 1), lambda: done.append(1))
except Refused as e:
    print(e.word.value, e.reason, done, sep="\\n")
"""

    async def check(self, drop: str, uid: int) -> None:
        out = await self.run_child(self.REFUSED.format(drop))
        word, reason, done = out.splitlines()
        self.assertEqual((word, done), ("not-possible", "[]"))
        self.assertIn(f"this broker (uid {uid}) cannot act as uid 12345, gid 23456 with 2 groups", reason)
        self.assertIn("CAP_SETUID and CAP_SETGID", reason)

    @needs_root
    async def test_a_broker_that_is_not_root_refuses(self) -> None:
        await self.check("become(NOBODY)", 65534)

    @needs_root
    async def test_root_without_cap_setuid_refuses(self) -> None:
        await self.check("kernel.drop_capabilities(1 << kernel.CAP_SETUID)", 0)

    @needs_root
    async def test_root_without_cap_setgid_refuses(self) -> None:
        await self.check("kernel.drop_capabilities(1 << kernel.CAP_SETGID)", 0)

    def test_a_broker_on_an_unknown_architecture_refuses(self) -> None:
        acting = ActAs()
        acting.can_switch = False
        with self.assertRaises(Refused) as raised:
            acting.call(LocalWho(os.geteuid() + 1, 0, (), 1), lambda: None)
        self.assertIs(raised.exception.word, Refusal.NOT_POSSIBLE)
