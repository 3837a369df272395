"""plumberd.effects.deadline: late by an eighth at most, once, and one timer for all."""

from __future__ import annotations

import functools
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial import unittest

from plumberd.effects.deadline import Deadlines
from tests.tables import PROPERTY

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


class Lengths(DeadlinesTestCase):
    """Another length, at a reload."""

    def expire(self) -> dict[str, float]:
        """Let all expire; return when each did, for those that do so once."""
        self.advance(4 * SECONDS)
        self.assertEqual(len(self.expired), len(dict(self.expired)))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return dict(self.expired)

    def test_one_that_was_set_before_keeps_its_time(self) -> None:
        self.set("a")
        self.deadlines.change(SECONDS / 4)
        self.assertEqual(self.expire(), {"a": SECONDS})

    def test_a_shorter_one_does_not_wait_for_a_longer_one_that_was_set_before(self) -> None:
        self.set("long")
        self.deadlines.change(SECONDS / 4)
        self.set("short")
        self.assertEqual(self.expire(), {"short": SECONDS / 4, "long": SECONDS})

    def test_a_longer_one_is_not_early(self) -> None:
        self.set("short")
        self.deadlines.change(2 * SECONDS)
        self.set("long")
        self.assertEqual(self.expire(), {"short": SECONDS, "long": 2 * SECONDS})

    def test_it_tells_and_forgets_those_of_every_length(self) -> None:
        self.set("a")
        self.deadlines.change(1)
        self.set("b")
        self.deadlines.change(2)
        self.assertEqual([self.deadlines.is_set(name) for name in "abc"], [True, True, False])
        self.deadlines.cancel("a")
        self.deadlines.cancel("b")
        self.assertEqual([self.deadlines.is_set(name) for name in "ab"], [False, False])
        self.assertEqual(self.expire(), {})

    def test_setting_one_again_gives_it_the_new_length(self) -> None:
        self.set("a")
        self.deadlines.change(SECONDS / 2)
        self.set("a")
        self.assertEqual(self.expire(), {"a": SECONDS / 2})

    def test_a_length_that_comes_back_goes_on_with_its_own_line(self) -> None:
        self.set("a")
        self.deadlines.change(SECONDS / 2)
        self.set("b")
        self.deadlines.change(SECONDS)
        self.clock.advance(1)
        self.set("c")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.assertEqual(self.expire(), {"b": SECONDS / 2, "a": SECONDS, "c": SECONDS + 1})

    def test_it_may_be_changed_by_what_follows_a_deadline(self) -> None:
        def change() -> None:
            self.deadlines.change(SECONDS / 2)
            self.set("b")

        self.deadlines.set("a", change)
        self.assertEqual(self.expire(), {"b": SECONDS * 1.5})

    def test_closing_forgets_those_of_every_length(self) -> None:
        self.set("a")
        self.deadlines.change(1)
        self.set("b")
        self.deadlines.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.expire(), {})

    @PROPERTY
    @given(
        st.lists(
            st.tuples(st.sampled_from(("set", "set", "cancel", "change")), st.integers(0, 7), st.integers(0, 24)),
            max_size=40,
        )
    )
    def test_none_is_early_and_none_later_than_an_eighth_of_its_own_length(
        self, steps: list[tuple[str, int, int]]
    ) -> None:
        clock = Clock()
        deadlines = Deadlines(clock, SECONDS)
        due: dict[str, tuple[float, float]] = {}
        expired: list[str] = []

        def expire(name: str) -> None:
            at, length = due.pop(name)
            self.assertGreaterEqual(clock.seconds(), at)
            self.assertLessEqual(clock.seconds(), at + length / 8)
            expired.append(name)

        for what, number, pause in steps:
            name = str(number)
            if what == "set":
                due[name] = (clock.seconds() + deadlines.seconds, deadlines.seconds)
                deadlines.set(name, functools.partial(expire, name))
            elif what == "cancel":
                due.pop(name, None)
                deadlines.cancel(name)
            else:
                deadlines.change(2.0 ** (number - 3))
            self.assertLessEqual(len(clock.getDelayedCalls()), 1)
            until = clock.seconds() + pause / 4
            while calls := [c for c in clock.getDelayedCalls() if c.getTime() <= until]:
                clock.advance(calls[0].getTime() - clock.seconds())
            clock.advance(until - clock.seconds())
            self.assertEqual(
                {n: deadlines.is_set(n) for n in map(str, range(8))}, {str(n): str(n) in due for n in range(8)}
            )
        while left := clock.getDelayedCalls():
            clock.advance(left[0].getTime() - clock.seconds())
        self.assertEqual(due, {})


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

    def test_it_may_close_them_all_and_set_a_new_one(self) -> None:
        def begin_anew() -> None:
            self.deadlines.close()
            self.set("c")

        self.deadlines.set("a", begin_anew)
        self.set("b")
        self.clock.advance(SECONDS)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.advance(2 * SECONDS)
        self.assertEqual(self.expired, [("c", 2 * SECONDS)])

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
