"""plumberd.effects.deadline: late by an eighth at most, once, and one timer for all."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.trial import unittest

from plumberd.effects.deadline import Deadlines

SECONDS = 8.0
LATE = SECONDS / 8


class DeadlinesTestCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.deadlines = Deadlines(self.clock, SECONDS)
        self.expired: list[tuple[str, float]] = []

    def note(self, name: str) -> Callable[[], None]:
        return lambda: self.expired.append((name, self.clock.seconds()))

    def set(self, name: str) -> None:
        self.deadlines.set(name, self.note(name))

    def advance(self, seconds: float) -> None:
        """Let time pass in small steps, as it does."""
        for _ in range(round(seconds / 0.125)):
            self.clock.advance(0.125)


class Times(DeadlinesTestCase):
    def test_it_expires_when_its_time_is_over_and_not_before(self) -> None:
        self.set("a")
        self.clock.advance(SECONDS - 0.001)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.001)
        self.assertEqual(self.expired, [("a", SECONDS)])

    def test_it_expires_once(self) -> None:
        self.set("a")
        self.advance(5 * SECONDS)
        self.assertEqual(len(self.expired), 1)

    def test_a_later_one_is_never_early_and_an_eighth_late_at_most(self) -> None:
        due = {}
        for number in range(40):
            due[str(number)] = self.clock.seconds() + SECONDS
            self.set(str(number))
            self.clock.advance(0.3)
        self.advance(2 * SECONDS)
        self.assertEqual([name for name, _ in self.expired], list(due))
        for name, at in self.expired:
            self.assertGreaterEqual(at, due[name])
            self.assertLessEqual(at, due[name] + LATE + 0.125)  # and one step of this clock

    def test_all_of_them_share_one_timer(self) -> None:
        for number in range(100):
            self.set(str(number))
            self.clock.advance(0.01)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_when_all_have_expired_no_delayed_call_is_left(self) -> None:
        self.set("a")
        self.clock.advance(1)
        self.set("b")
        self.advance(2 * SECONDS)
        self.assertEqual((len(self.expired), self.clock.getDelayedCalls()), (2, []))

    def test_a_new_one_after_the_last_has_expired_works_as_the_first_did(self) -> None:
        self.set("a")
        self.clock.advance(SECONDS)
        self.set("a")
        self.clock.advance(SECONDS)
        self.assertEqual(self.expired, [("a", SECONDS), ("a", 2 * SECONDS)])


class Changes(DeadlinesTestCase):
    def test_setting_it_again_begins_anew(self) -> None:
        self.set("a")
        self.clock.advance(SECONDS - 1)
        self.set("a")
        self.clock.advance(SECONDS - 1)
        self.assertEqual(self.expired, [])
        self.advance(1 + LATE)
        self.assertEqual(len(self.expired), 1)

    def test_setting_it_again_does_not_hold_up_the_others(self) -> None:
        self.set("a")
        self.set("b")
        self.clock.advance(SECONDS / 2)
        self.set("a")
        self.clock.advance(SECONDS / 2)
        self.assertEqual(self.expired, [("b", SECONDS)])

    def test_a_cancelled_one_does_not_expire(self) -> None:
        self.set("a")
        self.set("b")
        self.deadlines.cancel("a")
        self.advance(2 * SECONDS)
        self.assertEqual([name for name, _ in self.expired], ["b"])

    def test_cancelling_what_is_not_set_does_nothing(self) -> None:
        self.deadlines.cancel("a")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_tells_who_has_one(self) -> None:
        self.set("a")
        self.assertTrue(self.deadlines.is_set("a"))
        self.assertFalse(self.deadlines.is_set("b"))
        self.deadlines.cancel("a")
        self.assertFalse(self.deadlines.is_set("a"))

    def test_one_that_has_expired_is_not_set(self) -> None:
        self.deadlines.set("a", lambda: self.expired.append((str(self.deadlines.is_set("a")), 0)))
        self.clock.advance(SECONDS)
        self.assertEqual(self.expired, [("False", 0)])


class WhatFollows(DeadlinesTestCase):
    def test_it_may_set_a_new_one_while_others_wait(self) -> None:
        self.deadlines.set("a", lambda: self.set("a"))
        self.clock.advance(1)
        self.set("b")
        self.clock.advance(SECONDS - 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.advance(2 * SECONDS)
        self.assertEqual([name for name, _ in self.expired], ["b", "a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_it_may_cancel_another_that_is_due_as_well(self) -> None:
        self.deadlines.set("a", lambda: self.deadlines.cancel("b"))
        self.set("b")
        self.set("c")
        self.advance(2 * SECONDS)
        self.assertEqual([name for name, _ in self.expired], ["c"])

    def test_it_may_close_them_all(self) -> None:
        self.deadlines.set("a", self.deadlines.close)
        self.set("b")
        self.advance(2 * SECONDS)
        self.assertEqual((self.expired, self.clock.getDelayedCalls()), ([], []))

    def test_one_that_fails_is_logged_and_the_others_expire(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        self.deadlines.set("a", fail)
        self.set("b")
        self.clock.advance(1)
        self.set("c")
        self.advance(2 * SECONDS)
        self.assertEqual([name for name, _ in self.expired], ["b", "c"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Ends(DeadlinesTestCase):
    def test_closing_leaves_no_delayed_call_and_nothing_expires(self) -> None:
        self.set("a")
        self.clock.advance(1)
        self.set("b")
        self.deadlines.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.advance(2 * SECONDS)
        self.assertEqual(self.expired, [])

    def test_closing_twice_is_closing(self) -> None:
        self.set("a")
        self.deadlines.close()
        self.deadlines.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
