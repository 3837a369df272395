"""Logins: who is asked in which order, what is counted, and that a no always takes as long."""

from __future__ import annotations

import ipaddress
from typing import Any
from unittest import mock

from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.checkers import CheckerError
from plumberd.effects.logins import (
    CHECKER_SECONDS,
    FLOOR_SECONDS,
    WAITING_PER_ADDRESS,
    Check,
    Logins,
)
from plumberd.pure.attempts import DELAYS_SECONDS, FREE_FAILURES
from plumberd.pure.host import IPAddress
from plumberd.pure.login import LoginSettings
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.refusals import Refusal, Refused
from tests.logging_in import InTurn, Known, Scripted
from tests.tables import each

HERE = ipaddress.ip_address("192.0.2.1")
RIGHT, WRONG, NOBODY = Login("alice", "hunter2"), Login("alice", "hunter3"), Login("nobody", "hunter2")


class LoginsTestCase(SynchronousTestCase):
    """Checks logins on a clock of its own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.threads = InTurn()
        self.known = Known(alice="hunter2", bob="hunter4")
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def logins(self, *others: Any, failures: int = 10, passwords: Known | None = None) -> Logins:
        """Return what asks the password file and, behind it, *others*."""
        settings = LoginSettings("/etc/passwords", passwords or self.known, tuple(f"other:{n}" for n in others))
        made = {f"other:{n}": n for n in others}
        with mock.patch("plumberd.effects.checkers.make_checker", side_effect=lambda text: made[text]):
            found = Logins(self.clock, settings, failures, self.threads)
        self.addCleanup(found.close)
        return found

    def begin(
        self, logins: Logins, login: Login, address: IPAddress | None = HERE
    ) -> tuple[Check, list[tuple[float, Any]]]:
        """Begin a check; return it, and where its answer and the time of that will be."""
        told: list[tuple[float, Any]] = []
        began = self.clock.seconds()
        check = logins.check(login, address, lambda result: told.append((self.clock.seconds() - began, result)))
        self.assertEqual(told, [])
        self.clock.advance(0)
        return check, told

    def checked(self, logins: Logins, login: Login, address: IPAddress | None = HERE) -> tuple[float, Any]:
        """Check to the end; return the seconds it took and the answer."""
        _, told = self.begin(logins, login, address)
        for _ in range(400):
            if told:
                break
            self.clock.advance(0.0625)
        ((seconds, result),) = told
        return seconds, result.word if isinstance(result, Refused) else result

    def fail_often(self, logins: Logins, times: int, user: str = "alice", address: IPAddress | None = HERE) -> None:
        """Fail so often."""
        for _ in range(times):
            self.assertIs(self.checked(logins, Login(user, "wrong"), address)[1], False)


class Asked(LoginsTestCase):
    def test_a_right_one_is_told_at_once(self) -> None:
        self.assertEqual(self.checked(self.logins(), RIGHT), (0, True))

    @each(("a_wrong_password", WRONG), ("no_such_user", NOBODY), ("no_password", Login("alice", "")))
    def test_a_no_is_told_after_the_floor(self, _: str, login: Login) -> None:
        self.assertEqual(self.checked(self.logins(), login), (FLOOR_SECONDS, False))

    def test_a_no_whose_looking_took_longer_is_told_a_whole_number_of_floors_after_its_beginning(self) -> None:
        self.threads.holds = True
        _, told = self.begin(self.logins(), NOBODY)
        self.clock.advance(FLOOR_SECONDS * 1.1)
        self.threads.work()
        self.clock.advance(FLOOR_SECONDS * 0.8)
        self.assertEqual(told, [])
        self.clock.advance(FLOOR_SECONDS * 0.1)
        self.assertEqual(told, [(FLOOR_SECONDS * 2, False)])

    def test_others_are_asked_in_their_order_until_one_says_yes(self) -> None:
        first, second, third = Scripted(), Scripted(carol=b"carol"), Scripted()
        logins = self.logins(first, second, third)
        self.assertEqual(self.checked(logins, Login("carol", "x")), (0, True))
        self.assertEqual((first.asked, second.asked, third.asked), ([(b"carol", b"x")], [(b"carol", b"x")], []))
        self.assertEqual(self.known.asked, ["carol"])

    def test_whichever_says_no_it_takes_as_long(self) -> None:
        logins = self.logins(Scripted(), Scripted())
        seconds = {self.checked(logins, login) for login in (WRONG, NOBODY, Login("carol", "x"))}
        self.assertEqual(seconds, {(FLOOR_SECONDS, False)})

    def test_an_answer_may_come_later(self) -> None:
        answer: defer.Deferred[bytes] = defer.Deferred()
        _, told = self.begin(self.logins(Scripted(carol=answer)), Login("carol", "x"))
        self.clock.advance(1)
        self.assertEqual(told, [])
        answer.callback(b"carol")
        self.assertEqual(told, [(1, True)])

    @each(("CAROL",), (b"CAROL",), (b"",), (None,), ((),), ("cn=carol,dc=example",))
    def test_who_is_proved_under_another_name_has_not_proved_this_one(self, avatar: Any) -> None:
        self.assertEqual(self.checked(self.logins(Scripted(carol=avatar)), Login("carol", "x"))[1], False)

    def test_a_name_that_is_no_ascii_is_proved_in_bytes_and_in_text(self) -> None:
        other = Scripted(zoë="zoë".encode(), älice="älice")
        for user in ("zoë", "älice"):
            self.assertEqual(self.checked(self.logins(other), Login(user, "x"))[1], True)

    def test_without_any_checker_it_is_a_no(self) -> None:
        logins = Logins(self.clock, threads=self.threads)
        self.addCleanup(logins.close)
        self.assertFalse(logins.can_check)
        self.assertEqual(self.checked(logins, RIGHT), (FLOOR_SECONDS, False))
        self.assertTrue(self.logins().can_check)


class Failing(LoginsTestCase):
    def test_a_checker_that_fails_leaves_the_others_their_yes(self) -> None:
        logins = self.logins(Scripted(carol=RuntimeError("hunter2")), Scripted(carol=b"carol"))
        self.assertEqual(self.checked(logins, Login("carol", "x")), (0, True))

    def test_where_none_says_yes_then_it_cannot_be_told(self) -> None:
        logins = self.logins(Scripted(carol=RuntimeError("hunter2")), Scripted())
        self.assertEqual(self.checked(logins, Login("carol", "x")), (FLOOR_SECONDS, Refusal.NOT_POSSIBLE))

    def test_the_log_tells_what_failed_and_none_of_its_words(self) -> None:
        self.checked(self.logins(Scripted(carol=RuntimeError("hunter2"))), Login("carol", "hunter2"))
        (event,) = [event for event in self.events if "error" in event]
        self.assertEqual((event["name"], event["error"]), ("other", "RuntimeError"))
        self.assertNotIn("hunter2", repr(self.events))

    def test_one_that_never_answers_has_failed(self) -> None:
        logins = self.logins(Scripted(carol=defer.Deferred()))
        seconds, result = self.checked(logins, Login("carol", "x"))
        self.assertEqual(result, Refusal.NOT_POSSIBLE)
        self.assertGreaterEqual(seconds, CHECKER_SECONDS)
        self.assertEqual(self.checked(logins, RIGHT), (0, True))

    def test_it_counts_as_a_failure(self) -> None:
        logins = self.logins(Scripted(carol=RuntimeError()), failures=2)
        for _ in range(2):
            self.assertEqual(self.checked(logins, Login("carol", "x"))[1], Refusal.NOT_POSSIBLE)
        self.assertEqual(self.checked(logins, RIGHT)[1], Refusal.BUSY)

    def test_what_is_no_checker_changes_nothing(self) -> None:
        logins = self.logins()
        with self.assertRaises(CheckerError):
            logins.change(LoginSettings(checkers=("nosuch:x",)), 1)
        self.assertEqual(self.checked(logins, RIGHT), (0, True))


class Counted(LoginsTestCase):
    def test_after_so_many_failures_an_address_is_busy_without_a_look(self) -> None:
        logins = self.logins(failures=3)
        self.fail_often(logins, 3)
        before = len(self.known.asked)
        self.assertEqual(self.checked(logins, RIGHT), (0, Refusal.BUSY))
        self.assertEqual(len(self.known.asked), before)

    def test_the_reason_names_the_limit_and_the_address(self) -> None:
        logins = self.logins(failures=1)
        self.fail_often(logins, 1)
        _, told = self.begin(logins, RIGHT)
        reason = told[0][1].reason
        self.assertIn("login_failures_per_minute=1", reason)
        self.assertIn("192.0.2.1", reason)

    def test_it_is_heard_again_a_minute_later(self) -> None:
        logins = self.logins(failures=1)
        self.fail_often(logins, 1)
        self.clock.advance(60)
        self.assertEqual(self.checked(logins, RIGHT)[1], True)

    @each(
        ("another_address", "192.0.2.1", "192.0.2.2", True),
        ("the_same_network_of_ipv6", "2001:db8::1", "2001:db8::ffff:1", Refusal.BUSY),
        ("another_network_of_ipv6", "2001:db8::1", "2001:db8:0:1::1", True),
    )
    def test_it_holds_for(self, _: str, one: str, other: str, wanted: object) -> None:
        logins = self.logins(failures=1)
        self.fail_often(logins, 1, address=ipaddress.ip_address(one))
        self.assertEqual(self.checked(logins, Login("bob", "hunter4"), ipaddress.ip_address(other))[1], wanted)

    def test_all_without_an_address_are_one(self) -> None:
        logins = self.logins(failures=1)
        self.fail_often(logins, 1, address=None)
        self.assertEqual(self.checked(logins, RIGHT, None)[1], Refusal.BUSY)

    def test_right_ones_are_not_counted(self) -> None:
        logins = self.logins(failures=1)
        results = {self.checked(logins, RIGHT)[1] for _ in range(20)}
        self.assertEqual(results, {True})

    def test_of_many_at_once_no_more_are_looked_at_than_may_fail(self) -> None:
        logins = self.logins(failures=3)
        told = [self.begin(logins, WRONG)[1] for _ in range(20)]
        self.clock.advance(FLOOR_SECONDS)
        words = [result.word if isinstance(result, Refused) else result for ((_, result),) in told]
        self.assertEqual(words, [False] * 3 + [Refusal.BUSY] * 17)
        self.assertEqual(len(self.known.asked), 3)

    def test_who_hangs_up_has_failed_all_the_same(self) -> None:
        self.threads.holds = True
        logins = self.logins(failures=1)
        check, told = self.begin(logins, WRONG)
        check.cancel()
        self.threads.work()
        self.assertEqual((told, logins.under_way), ([], 0))
        self.assertEqual(self.checked(logins, RIGHT)[1], Refusal.BUSY)

    def test_a_smaller_limit_holds_at_once(self) -> None:
        logins = self.logins(failures=10)
        self.fail_often(logins, 2)
        logins.change(LoginSettings("/etc/passwords", self.known), 2)
        self.assertEqual(self.checked(logins, RIGHT)[1], Refusal.BUSY)


class SlowedDown(LoginsTestCase):
    def far(self, number: int) -> IPAddress:
        return ipaddress.ip_address(f"198.51.100.{number}")

    def test_failures_in_a_user_s_name_slow_him_down_and_lock_nobody_out(self) -> None:
        logins = self.logins()
        seconds = []
        for n in range(FREE_FAILURES + 6):
            seconds.append(self.checked(logins, RIGHT)[0])
            self.fail_often(logins, 1, address=self.far(n))
        self.assertEqual(seconds, [0] * (FREE_FAILURES + 1) + [*DELAYS_SECONDS, DELAYS_SECONDS[-1]])

    def test_wrong_ones_are_slowed_down_as_right_ones_are(self) -> None:
        logins = self.logins()
        for n in range(FREE_FAILURES + 1):
            self.fail_often(logins, 1, address=self.far(n))
        self.assertEqual(self.checked(logins, WRONG), (DELAYS_SECONDS[0] + FLOOR_SECONDS, False))

    def test_so_is_a_user_that_does_not_exist(self) -> None:
        logins = self.logins()
        for n in range(FREE_FAILURES + 1):
            self.fail_often(logins, 1, "nobody", self.far(n))
        self.assertEqual(self.checked(logins, NOBODY), (DELAYS_SECONDS[0] + FLOOR_SECONDS, False))

    def test_other_users_are_not(self) -> None:
        logins = self.logins()
        for n in range(FREE_FAILURES + 9):
            self.fail_often(logins, 1, address=self.far(n))
        self.assertEqual(self.checked(logins, Login("bob", "hunter4")), (0, True))

    def test_who_hangs_up_meanwhile_is_forgotten(self) -> None:
        logins = self.logins()
        for n in range(FREE_FAILURES + 1):
            self.fail_often(logins, 1, address=self.far(n))
        check, told = self.begin(logins, RIGHT)
        check.cancel()
        check.cancel()
        self.assertEqual((logins.under_way, self.clock.getDelayedCalls(), told), (0, [], []))


class InTurnOnly(LoginsTestCase):
    """Two at once, one of each address."""

    def setUp(self) -> None:
        super().setUp()
        self.threads.holds = True

    def test_one_of_an_address_is_looked_at_at_a_time(self) -> None:
        logins = self.logins()
        told = [self.begin(logins, RIGHT)[1] for _ in range(3)]
        self.assertEqual(len(self.threads.held), 1)
        self.threads.work()
        self.threads.holds = False
        self.assertEqual([len(one) for one in told], [1, 1, 1])  # the others were remembered

    def test_two_addresses_are_and_a_third_waits(self) -> None:
        logins = self.logins()
        three = (RIGHT, Login("bob", "hunter4"), WRONG)
        told = [self.begin(logins, one, ipaddress.ip_address(f"192.0.2.{n}"))[1] for n, one in enumerate(three)]
        self.assertEqual((len(self.threads.held), self.known.asked), (2, []))
        self.threads.work()
        self.assertEqual((len(self.threads.held), [len(one) for one in told]), (2, [1, 0, 0]))
        self.threads.work()
        self.threads.work()
        self.clock.advance(FLOOR_SECONDS)
        self.assertEqual([one[0][1] for one in told], [True, True, False])

    def test_too_many_of_one_address_are_busy(self) -> None:
        logins = self.logins()
        told = [self.begin(logins, RIGHT)[1] for _ in range(WAITING_PER_ADDRESS + 2)]
        self.assertEqual([len(one) for one in told], [0] * (WAITING_PER_ADDRESS + 1) + [1])
        refused = told[-1][0][1]
        self.assertEqual((refused.word, "wait already" in refused.reason), (Refusal.BUSY, True))

    def test_too_many_in_all_are_busy(self) -> None:
        logins = self.logins()
        with mock.patch("plumberd.effects.logins.WAITING", 2):
            told = [self.begin(logins, RIGHT, ipaddress.ip_address(f"192.0.2.{n}"))[1] for n in range(3)]
        self.assertEqual([len(one) for one in told], [0, 0, 1])
        self.assertIs(told[2][0][1].word, Refusal.BUSY)

    def test_one_that_is_cancelled_while_it_waits_has_no_turn(self) -> None:
        logins = self.logins()
        first, second, third = (self.begin(logins, login) for login in (RIGHT, WRONG, RIGHT))
        second[0].cancel()
        self.assertEqual(logins.under_way, 2)
        self.threads.work()
        self.assertEqual((self.known.asked, second[1], third[1]), (["alice"], [], [(0, True)]))

    def test_one_that_is_cancelled_while_it_is_looked_at_gives_its_place_back_behind_that(self) -> None:
        logins = self.logins()
        first, second = self.begin(logins, RIGHT), self.begin(logins, Login("bob", "hunter4"))
        first[0].cancel()
        self.assertEqual(len(self.threads.held), 1)
        self.threads.work()
        self.assertEqual(len(self.threads.held), 1)
        self.threads.work()
        self.assertEqual((first[1], second[1], logins.under_way), ([], [(0, True)], 0))

    def test_one_that_is_cancelled_before_its_no_is_told_hears_nothing(self) -> None:
        logins = self.logins()
        check, told = self.begin(logins, WRONG)
        self.threads.work()
        check.cancel()
        self.clock.advance(FLOOR_SECONDS)
        self.assertEqual((told, logins.under_way, self.clock.getDelayedCalls()), ([], 0, []))

    def test_hundreds_that_are_ready_at_once_come_one_after_the_other(self) -> None:
        logins = self.logins(failures=1)
        with mock.patch("plumberd.effects.logins.WAITING_PER_ADDRESS", 2000):
            logins._places.change(1, 2, 2000)
        told = [self.begin(logins, WRONG)[1] for _ in range(1500)]
        self.threads.work()
        self.clock.advance(FLOOR_SECONDS)
        self.assertEqual([len(one) for one in told], [1] * 1500)


class Changed(LoginsTestCase):
    def test_others_count_from_now_on(self) -> None:
        logins = self.logins()
        self.assertEqual(self.checked(logins, RIGHT)[1], True)
        logins.change(LoginSettings("/etc/passwords", Known(alice="other")), 10)
        self.assertEqual(self.checked(logins, RIGHT)[1], False)
        self.assertEqual(self.checked(logins, Login("alice", "other"))[1], True)

    def test_a_yes_by_what_is_not_in_force_any_more_is_asked_again(self) -> None:
        self.threads.holds = True
        logins = self.logins()
        _, told = self.begin(logins, RIGHT)
        logins.change(LoginSettings("/etc/passwords", Known(bob="hunter4")), 10)
        self.threads.work()
        self.assertEqual(told, [])
        self.threads.work()
        self.clock.advance(FLOOR_SECONDS)
        self.assertEqual(told, [(FLOOR_SECONDS, False)])


class Closed(LoginsTestCase):
    def test_nobody_is_told_anything_and_no_time_runs(self) -> None:
        self.threads.holds = True
        logins = self.logins(Scripted(carol=defer.Deferred()))
        told = [self.begin(logins, WRONG)[1]]
        self.threads.work()  # waits for the floor
        told.append(self.begin(logins, RIGHT, ipaddress.ip_address("192.0.2.2"))[1])  # is held
        told.append(self.begin(logins, RIGHT, ipaddress.ip_address("192.0.2.2"))[1])  # waits
        logins.close()
        logins.close()
        while self.threads.held:
            self.threads.work()
        self.clock.advance(CHECKER_SECONDS)
        self.assertEqual((told, self.clock.getDelayedCalls(), logins.under_way), ([[], [], []], [], 0))
        self.assertTrue(self.threads.closed)

    def test_a_checker_that_has_not_answered_is_let_go(self) -> None:
        answer: defer.Deferred[bytes] = defer.Deferred()
        logins = self.logins(Scripted(carol=answer))
        self.begin(logins, Login("carol", "x"))
        logins.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTrue(answer.called)
