"""plumberd.pure.backlog: the oldest stay, and what is lost is counted where it would have stood."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.backlog import Backlog
from tests.tables import PROPERTY


def backlog(most: int) -> Backlog[str]:
    """Return one of texts, whose marks look like ``3 from 7``."""
    return Backlog(most, lambda count, since: f"{count} from {since:g}")


class Room(SynchronousTestCase):
    def test_what_is_put_in_comes_out_in_order(self) -> None:
        queue = backlog(5)
        self.assertEqual(queue.put(["a", "b"], 0), 0)
        self.assertEqual(queue.put(["c"], 0), 0)
        self.assertEqual((queue.take(2), queue.take(2), queue.take(2)), (["a", "b"], ["c"], []))

    def test_it_holds_exactly_as_many_as_its_limit(self) -> None:
        queue = backlog(2)
        self.assertEqual(queue.put(["a", "b"], 0), 0)
        self.assertEqual(queue.put(["c"], 0), 1)
        self.assertEqual(len(queue), 2)


class Marks(SynchronousTestCase):
    def test_one_mark_stands_where_the_lost_ones_would_have_stood(self) -> None:
        queue = backlog(2)
        queue.put(["a", "b", "c"], 7)
        queue.put(["d", "e"], 8)
        self.assertEqual(queue.take(1), ["a"])
        queue.put(["f"], 9)
        self.assertEqual(queue.take(9), ["b", "3 from 7"])

    def test_whoever_takes_all_takes_the_mark_next(self) -> None:
        queue = backlog(2)
        queue.put(["a", "b", "c"], 7)
        self.assertEqual((queue.take(2), queue.take(2), queue.take(2)), (["a", "b"], ["1 from 7"], []))

    def test_a_second_loss_has_a_mark_and_a_time_of_its_own(self) -> None:
        queue = backlog(1)
        queue.put(["a", "b"], 1)
        first = queue.take(1)
        self.assertEqual(queue.put(["c"], 2), 1)
        self.assertEqual([*first, *queue.take(1), *queue.take(1), *queue.take(1)], ["a", "1 from 1", "1 from 2"])

    def test_what_was_taken_from_the_left_makes_room_for_a_mark(self) -> None:
        queue = backlog(1)
        queue.put(["a", "b"], 1)
        queue.items.popleft()
        queue.settle()
        self.assertEqual(list(queue.items), ["1 from 1"])

    @PROPERTY
    @given(
        st.integers(1, 5),
        st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=30),
    )
    def test_whatever_is_put_in_comes_out_or_is_counted(self, most: int, steps: list[tuple[bool, int]]) -> None:
        queue: Backlog[int] = Backlog(most, lambda count, since: -count)
        came, count = 0, 0
        out: list[int] = []
        for is_put, number in steps:
            if is_put:
                queue.put(range(came, came + number), 0)
                came += number
            else:
                out += queue.take(number)
            self.assertLessEqual(len(queue), most)
        while taken := queue.take(1):
            out += taken
        for item in out:
            if item < 0:
                count -= item
            else:
                self.assertEqual(item, count)
                count += 1
        self.assertEqual(count, came)
        self.assertEqual(queue.dropped, -sum(item for item in out if item < 0))
