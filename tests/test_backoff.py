"""plumberd.pure.backoff: what failed waits its turn behind the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.backoff import FIRST_SECONDS, KEPT, MOST_SECONDS, Backoff
from tests.tables import PROPERTY, each

HOUR_SECONDS = 3600.0


def failing(*times: float, target: str = "a") -> Backoff:
    """Return a back-off to which *target* failed at these times."""
    backoff = Backoff()
    for now in times:
        backoff.failed(target, now)
    return backoff


class Resting(SynchronousTestCase):
    @each(
        ("at_once", (100.0,), 100.0, True),
        ("just_before_a_second_is_over", (100.0,), 100.999, True),
        ("after_a_second", (100.0,), 101.0, False),
        ("twice_as_long_the_second_time", (100.0, 101.0), 102.999, True),
        ("and_not_longer", (100.0, 101.0), 103.0, False),
        ("four_times_the_third_time", (100.0, 101.0, 103.0), 106.999, True),
        ("several_under_way_at_once_failed_once", (100.0, 100.1, 100.9), 101.0, False),
        ("long_ago_still_counts", (100.0, 100.0 + HOUR_SECONDS), 101.5 + HOUR_SECONDS, True),
    )
    def test_what_failed_rests_twice_as_long_each_time(
        self, _: str, times: tuple[float, ...], now: float, rests: bool
    ) -> None:
        self.assertEqual(failing(*times).rests("a", now), rests)

    def test_it_rests_a_minute_at_most(self) -> None:
        times = [n * HOUR_SECONDS for n in range(1, 20)]
        backoff = failing(*times)
        self.assertTrue(backoff.rests("a", times[-1] + MOST_SECONDS - 0.001))
        self.assertFalse(backoff.rests("a", times[-1] + MOST_SECONDS))

    def test_what_nobody_tried_does_not_rest(self) -> None:
        self.assertFalse(Backoff().rests("a", 0.0))
        self.assertFalse(failing(100.0).rests("b", 100.0))

    def test_what_worked_begins_anew(self) -> None:
        backoff = failing(100.0, 101.0, 103.0)
        backoff.worked("a")
        self.assertFalse(backoff.rests("a", 103.0))
        backoff.failed("a", 200.0)
        self.assertFalse(backoff.rests("a", 200.0 + FIRST_SECONDS))

    def test_what_never_failed_may_work(self) -> None:
        backoff = failing(100.0)
        backoff.worked("b")
        Backoff().worked("b")
        self.assertTrue(backoff.rests("a", 100.0))

    def test_clearing_forgets_everything(self) -> None:
        backoff = failing(100.0, 101.0)
        backoff.clear()
        self.assertFalse(backoff.rests("a", 101.0))


class Order(SynchronousTestCase):
    def test_what_rests_comes_last_and_all_else_keeps_its_place(self) -> None:
        backoff = failing(100.0, target="a")
        backoff.failed("c", 100.0)
        self.assertEqual(backoff.order(("a", "b", "c", "d"), 100.5), ("b", "d", "a", "c"))
        self.assertEqual(backoff.order(("a", "b", "c", "d"), 101.0), ("a", "b", "c", "d"))

    @each(("none", ()), ("one", ("a",)))
    def test_a_choice_of_one_is_none(self, _: str, targets: tuple[str, ...]) -> None:
        self.assertEqual(failing(100.0).order(targets, 100.0), targets)

    @PROPERTY
    @given(
        st.lists(st.sampled_from("abcdef"), unique=True),
        st.lists(st.tuples(st.sampled_from("abcdefg"), st.floats(0, 100)), max_size=12),
        st.floats(0, 200),
    )
    def test_none_is_left_out(self, targets: list[str], failures: list[tuple[str, float]], now: float) -> None:
        backoff = Backoff()
        for target, when in failures:
            backoff.failed(target, when)
        ordered = backoff.order(targets, now)
        self.assertCountEqual(ordered, targets)
        resting = [backoff.rests(target, now) for target in ordered]
        self.assertEqual(resting, sorted(resting))


class Memory(SynchronousTestCase):
    def test_the_one_that_failed_longest_ago_is_forgotten_first(self) -> None:
        backoff = Backoff()
        for n in range(KEPT):
            backoff.failed(n, 100.0)
        backoff.failed(0, 100.5)  # it failed again, and so is not the oldest
        backoff.failed("one more", 100.5)
        self.assertTrue(backoff.rests(0, 100.5))
        self.assertFalse(backoff.rests(1, 100.5))
        self.assertTrue(all(backoff.rests(n, 100.5) for n in (*range(2, KEPT), "one more")))
