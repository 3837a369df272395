"""Checkers of logins: what is asked, in threads where it blocks."""

from __future__ import annotations

import os
import threading
from typing import Any
from unittest import mock

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from plumberd.effects.checkers import (
    PROVED,
    PROVED_SECONDS,
    Blocking,
    CheckerError,
    PasswordFile,
    Threads,
    checker_help,
    checker_table,
    checker_types,
    make_checker,
    make_checkers,
)
from plumberd.pure.login import LoginSettings
from plumberd.pure.passwords import Cost, Passwords, make_entry
from tests.logging_in import InTurn, Known, Scripted
from tests.support import CleanTestCase, real_reactor
from tests.tables import each


def login(user: str = "alice", password: str = "hunter2") -> Any:
    """Return credentials as twisted.cred has them."""
    made: Any = UsernamePassword(user.encode(), password.encode())
    return made


class File(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.known = Known(alice="hunter2", ab="c")
        self.file = PasswordFile(self.known, InTurn(), self.clock)

    def test_it_is_a_checker_of_twisted_s(self) -> None:
        self.assertTrue(verifyObject(ICredentialsChecker, self.file))
        self.assertEqual(self.file.credentialInterfaces, (IUsernamePassword,))

    def test_who_has_the_password_is_who_is_named(self) -> None:
        self.assertEqual(self.successResultOf(self.file.requestAvatarId(login())), b"alice")

    @each(("alice", "hunter3"), ("bob", "hunter2"), ("a", "bc"), ("", "abc"))
    def test_whoever_else_is_nobody(self, user: str, password: str) -> None:
        self.successResultOf(self.file.requestAvatarId(login("ab", "c")))
        self.failureResultOf(self.file.requestAvatarId(login(user, password)), UnauthorizedLogin)

    def test_a_login_that_was_right_is_not_hashed_again_for_a_while(self) -> None:
        for _ in range(3):
            self.assertEqual(self.successResultOf(self.file.requestAvatarId(login())), b"alice")
        self.assertEqual(self.known.asked, ["alice"])
        self.clock.advance(PROVED_SECONDS)
        self.successResultOf(self.file.requestAvatarId(login()))
        self.assertEqual(self.known.asked, ["alice"] * 2)

    def test_one_that_was_wrong_is(self) -> None:
        for _ in range(2):
            self.failureResultOf(self.file.requestAvatarId(login("alice", "x")), UnauthorizedLogin)
        self.assertEqual(len(self.known.asked), 2)

    def test_few_are_remembered_and_no_password_is(self) -> None:
        many = {f"u{n}": f"hunter{n}" for n in range(PROVED + 1)}
        self.file = PasswordFile(Known(**many), InTurn(), self.clock)
        for user, password in many.items():
            self.successResultOf(self.file.requestAvatarId(login(user, password)))
        self.assertEqual(len(self.file._proved), PROVED)
        self.assertNotIn("hunter", repr(vars(self.file)["_proved"]))


class InThreadsOfTheirOwn(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.threads = Threads(real_reactor, 2)
        self.addCleanup(self.threads.close)

    async def test_work_is_done_in_another_thread_and_told_in_this_one(self) -> None:
        worker = await self.threads.run(threading.current_thread)
        self.assertIsNot(worker, threading.current_thread())
        self.assertTrue(worker.daemon)

    async def test_what_goes_wrong_there_is_told(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            await self.threads.run(lambda: 1 // 0)
        self.assertEqual(await self.threads.run(lambda: 2), 2)

    async def test_no_more_work_at_once_than_there_are_threads(self) -> None:
        both, go_on, seen = threading.Barrier(3), threading.Event(), []
        self.addCleanup(go_on.set)

        def work() -> None:
            seen.append(threading.current_thread())
            both.wait(20)
            go_on.wait(20)

        first = [self.threads.run(work) for _ in range(2)]
        third = self.threads.run(lambda: len(seen))
        both.wait(20)
        self.assertEqual(len(set(seen)), 2)
        self.assertFalse(third.called)
        go_on.set()
        await defer.gatherResults(first)
        self.assertEqual(await third, 2)

    async def test_a_file_is_hashed_there(self) -> None:
        passwords = Passwords([make_entry("alice", "hunter2", bytes(16), Cost(14, 8, 1))])
        file = PasswordFile(passwords, self.threads, real_reactor)
        self.assertEqual(await file.requestAvatarId(login()), b"alice")
        with self.assertRaises(UnauthorizedLogin):
            await file.requestAvatarId(login("alice", "hunter3"))

    async def test_closed_they_tell_nobody_and_end(self) -> None:
        began, go_on = threading.Event(), threading.Event()

        def work() -> threading.Thread:
            began.set()
            go_on.wait(20)
            return threading.current_thread()

        done = self.threads.run(work)
        began.wait(20)
        worker = next(t for t in threading.enumerate() if t.name == "logins")
        self.threads.close()
        go_on.set()
        worker.join(20)
        self.assertFalse(worker.is_alive())
        self.assertFalse(done.called)


class Others(CleanTestCase):
    """Checkers of twisted.cred's plugins."""

    def test_one_that_blocks_is_asked_in_a_thread(self) -> None:
        threads = InTurn(holds=True)
        inner = Scripted(alice=b"alice", carol=RuntimeError("hunter2"))
        checker = Blocking(inner, threads)
        self.assertTrue(verifyObject(ICredentialsChecker, checker))
        answers = [checker.requestAvatarId(login(user)) for user in ("alice", "bob", "carol")]
        self.assertEqual(inner.asked, [])
        while threads.held:
            threads.work()
        self.assertEqual(self.successResultOf(answers[0]), b"alice")
        self.failureResultOf(answers[1], UnauthorizedLogin)
        self.failureResultOf(answers[2], RuntimeError)

    def test_one_that_should_block_and_does_not_has_failed(self) -> None:
        checker = Blocking(Scripted(alice=defer.Deferred()), InTurn())
        self.failureResultOf(checker.requestAvatarId(login()), RuntimeError)

    def test_all_are_made_in_their_order(self) -> None:
        path = os.path.join(self.folder(), "plain")
        with open(path, "w") as file:
            file.write("bob:hunter3\n")
        settings = LoginSettings("/etc/passwords", Known(alice="hunter2"), (f"file:{path}", "unix"))
        made = make_checkers(settings, InTurn(), Clock())
        self.assertEqual([checker.name for checker in made], ["/etc/passwords", "file", "unix"])
        self.assertIsInstance(made[1].checker, Blocking)
        self.assertEqual(self.successResultOf(made[0].ask(login())), b"alice")
        self.assertEqual(self.successResultOf(made[1].ask(login("bob", "hunter3"))), b"bob")
        self.failureResultOf(made[1].ask(login("bob", "hunter2")), UnauthorizedLogin)

    def test_those_of_the_system_know_no_user_that_it_does_not_have(self) -> None:
        (checker,) = make_checkers(LoginSettings(checkers=("unix",)), InTurn(), Clock())
        self.failureResultOf(checker.ask(login("no-such-user", "x")), UnauthorizedLogin)

    def test_without_settings_there_is_none(self) -> None:
        self.assertEqual(make_checkers(LoginSettings(), InTurn(), Clock()), ())

    def test_the_types_are_those_that_know_names_and_passwords(self) -> None:
        self.assertLessEqual({"file", "unix"}, set(checker_types()))
        self.assertEqual({"anonymous", "sshkey", "memory"} & set(checker_types()), set())

    @each(
        ("nosuch:hunter2", "no such type: wanted TYPE[:ARGS] with one of"),
        ("hunter2", "no such type"),
        ("memory:alice:hunter2", "which ps shows: write a file with plumb passwd"),
        ("anonymous", "anonymous checks no user names and passwords"),
        ("file:", "file: it does not take its arguments (ValueError)"),
    )
    def test_what_is_no_checker(self, text: str, wanted: str) -> None:
        with self.assertRaises(CheckerError) as caught:
            make_checker(text)
        self.assertIn(wanted, str(caught.exception))
        self.assertNotIn("hunter2", str(caught.exception))

    def test_people_are_told_the_types_and_how_each_is_written(self) -> None:
        table = checker_table()
        self.assertIn("  file         Location of a FilePasswordDB-formatted file.", table)
        self.assertNotIn("memory", table)
        self.assertIn("username:password", checker_help("file"))
        for name, wanted in (("nosuch", "no such type"), ("anonymous", "no user names"), ("memory", "plumb passwd")):
            with self.assertRaises(CheckerError) as caught:
                checker_help(name)
            self.assertIn(wanted, str(caught.exception))

    def test_the_words_of_a_plugin_that_fails_are_not_repeated(self) -> None:
        factory = mock.Mock(authType="ldap", credentialInterfaces=(IUsernamePassword,))
        factory.generateChecker.side_effect = ValueError("bind password hunter2 is wrong")
        with (
            mock.patch("twisted.cred.strcred.findCheckerFactories", return_value=[factory]),
            mock.patch("plumberd.effects.checkers._factories", return_value=[factory]),
            self.assertRaises(CheckerError) as caught,
        ):
            make_checker("ldap:hunter2")
        self.assertEqual(str(caught.exception), "ldap: it does not take its arguments (ValueError)")
