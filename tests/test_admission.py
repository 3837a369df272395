"""plumberd.pure.admission: never too many at once, nobody waits for nothing, and keys take turns."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.admission import Admission, FairQueue
from tests.tables import PROPERTY

Entry = tuple[str, int]
"""A key and a number of its own; what stands in the queue."""

NOW, WAITS, FULL = Admission.NOW, Admission.WAITS, Admission.FULL


def steps_of(*names: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Return a strategy for up to 60 steps, each with a choice."""
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 9)), max_size=60)


operations = steps_of("enter", "enter", "leave", "withdraw")
with_changes = steps_of("enter", "enter", "leave", "withdraw", "change")
sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 4))


class Model:
    """What a queue should hold, told by its answers, and checked after each step."""

    def __init__(self, case: Properties, per_key: int, total: int, waiting_per_key: int) -> None:
        self.case = case
        self.queue: FairQueue[str, Entry] = FairQueue(per_key, total, waiting_per_key)
        self.inside: list[Entry] = []
        self.waiting: list[Entry] = []
        self.number = 0
        self.bounds = [per_key, total, waiting_per_key]
        """The greatest limits that there were."""

    def step(self, operation: str, choice: int) -> Entry | None:
        """Do one thing, and return the entry that was let out of the queue, if one was."""
        admitted = None
        if operation == "enter":
            self.enter("abcd"[choice % 4])
        elif operation == "leave" and self.inside:
            admitted = self.leave(choice % len(self.inside))
        elif operation == "withdraw" and self.waiting:
            entry = self.waiting.pop(choice % len(self.waiting))
            self.case.assertTrue(self.queue.withdraw(entry[0], entry))
            self.case.assertFalse(self.queue.withdraw(entry[0], entry))
        elif operation == "change":
            self.change(choice % 3 + 1, choice % 5 + 1, choice % 4)
        self.check()
        return admitted

    def enter(self, key: str) -> None:
        """Let one more of *key* ask for a place."""
        self.number += 1
        entry = (key, self.number)
        ahead = self.of(self.waiting, key)
        admission = self.queue.enter(key, entry)
        if admission is NOW:
            self.case.assertEqual(ahead, [], "overtook its own key")
            self.case.assertTrue(self.has_room(key), "let in without room")
            self.inside.append(entry)
        elif admission is WAITS:
            self.case.assertLess(len(ahead), self.queue.waiting_per_key, "waits without room to wait")
            self.waiting.append(entry)
        else:
            self.case.assertGreaterEqual(len(ahead), self.queue.waiting_per_key, "refused though it could have waited")

    def leave(self, choice: int) -> Entry | None:
        """Let one of those who are in leave."""
        gone = self.inside.pop(choice)
        admitted = self.queue.leave(gone[0])
        if admitted is not None:
            self.case.assertEqual(admitted, self.of(self.waiting, admitted[0])[0], "not the first of its key")
            self.waiting.remove(admitted)
            self.inside.append(admitted)
        return admitted

    def change(self, per_key: int, total: int, waiting_per_key: int) -> None:
        """Take other limits: those whom smaller ones would not let in stay, and are remembered."""
        self.bounds = [max(new, old) for new, old in zip((per_key, total, waiting_per_key), self.bounds, strict=True)]
        for entry in self.queue.change(per_key, total, waiting_per_key):
            self.case.assertEqual(entry, self.of(self.waiting, entry[0])[0], "not the first of its key")
            self.waiting.remove(entry)
            self.case.assertTrue(self.has_room(entry[0]), "let in without room")
            self.inside.append(entry)

    def of(self, entries: list[Entry], key: str) -> list[Entry]:
        """Return those of *key*, in their order."""
        return [entry for entry in entries if entry[0] == key]

    def has_room(self, key: str) -> bool:
        """Tell whether one more of *key* could be in."""
        return len(self.inside) < self.queue.total and len(self.of(self.inside, key)) < self.queue.per_key

    def check(self) -> None:
        """Assert what always holds."""
        inside, waiting = (Counter(key for key, _ in entries) for entries in (self.inside, self.waiting))
        self.case.assertEqual((self.queue.active, self.queue.waiting), (inside.total(), waiting.total()))
        self.case.assertEqual({key: self.queue.active_of(key) for key in "abcd"}, {key: inside[key] for key in "abcd"})
        self.case.assertEqual(
            {key: self.queue.waiting_of(key) for key in "abcd"}, {key: waiting[key] for key in "abcd"}
        )
        per_key, total, waiting_per_key = self.bounds
        self.case.assertLessEqual(inside.total(), total)
        self.case.assertLessEqual(max(inside.values(), default=0), per_key)
        self.case.assertLessEqual(max(waiting.values(), default=0), waiting_per_key)
        for key in waiting:
            self.case.assertFalse(self.has_room(key), f"{key} waits though there is room")


class Properties(SynchronousTestCase):
    @PROPERTY
    @given(sizes, operations)
    def test_the_limits_hold_nobody_waits_for_nothing_and_a_key_is_first_come_first_served(
        self, size: tuple[int, int, int], steps: list[tuple[str, int]]
    ) -> None:
        model = Model(self, *size)
        for operation, choice in steps:
            model.step(operation, choice)

    @PROPERTY
    @given(sizes, with_changes)
    def test_so_it_is_when_they_change(self, size: tuple[int, int, int], steps: list[tuple[str, int]]) -> None:
        model = Model(self, *size)
        for operation, choice in steps:
            model.step(operation, choice)
        while model.inside:
            model.step("leave", 0)
        self.assertEqual((model.waiting, model.queue.active, model.queue.waiting), ([], 0, 0))

    @PROPERTY
    @given(sizes, operations)
    def test_everybody_who_waits_is_let_in_as_the_others_leave(
        self, size: tuple[int, int, int], steps: list[tuple[str, int]]
    ) -> None:
        model = Model(self, *size)
        for operation, choice in steps:
            model.step(operation, choice)
        while model.inside:
            model.step("leave", 0)
        self.assertEqual((model.waiting, model.queue.active, model.queue.waiting), ([], 0, 0))

    @PROPERTY
    @given(st.integers(1, 3), operations)
    def test_no_key_gets_a_second_place_before_another_that_waits_got_one(
        self, total: int, steps: list[tuple[str, int]]
    ) -> None:
        model = Model(self, total, total, 9)
        passed_over: dict[str, set[str]] = {}
        for operation, choice in steps:
            admitted = model.step(operation, choice)
            waiting = {key for key, _ in model.waiting}
            passed_over = {key: over for key, over in passed_over.items() if key in waiting}
            if admitted is not None:
                passed_over.pop(admitted[0], None)
                for key in waiting - {admitted[0]}:
                    over = passed_over.setdefault(key, set())
                    self.assertNotIn(admitted[0], over, f"{key} was passed over twice")
                    over.add(admitted[0])


class Turns(SynchronousTestCase):
    def filled(self, queue: FairQueue[str, str], *entries: str) -> list[Admission]:
        """Let *entries* ask, whose first letter is their key."""
        return [queue.enter(entry[0], entry) for entry in entries]

    def test_those_who_wait_take_turns_by_key_and_come_in_order_within_it(self) -> None:
        queue: FairQueue[str, str] = FairQueue(1, 1, 9)
        self.assertEqual(self.filled(queue, "a0", "a1", "a2", "a3", "b1", "b2", "c1"), [NOW] + [WAITS] * 6)
        served = ["a0"]
        while (entry := queue.leave(served[-1][0])) is not None:
            served.append(entry)
        self.assertEqual(served, ["a0", "a1", "b1", "c1", "a2", "b2", "a3"])
        self.assertEqual((queue.active, queue.waiting), (0, 0))

    def test_a_busy_key_delays_itself_alone(self) -> None:
        queue: FairQueue[str, str] = FairQueue(2, 10, 9)
        self.assertEqual(self.filled(queue, "a1", "a2", "a3", "a4", "b1"), [NOW, NOW, WAITS, WAITS, NOW])
        self.assertIsNone(queue.leave("b"))
        self.assertEqual(queue.leave("a"), "a3")

    def test_a_key_at_its_limit_is_passed_over_and_keeps_its_turn(self) -> None:
        queue: FairQueue[str, str] = FairQueue(1, 2, 9)
        self.assertEqual(self.filled(queue, "a1", "a2", "c1", "b1"), [NOW, WAITS, NOW, WAITS])
        self.assertEqual(queue.leave("c"), "b1")
        self.assertEqual(queue.leave("a"), "a2")

    def test_who_comes_later_does_not_overtake_its_own_key(self) -> None:
        queue: FairQueue[str, str] = FairQueue(1, 1, 9)
        self.assertEqual(self.filled(queue, "a1", "a2"), [NOW, WAITS])
        self.assertEqual(queue.leave("a"), "a2")
        self.assertEqual(self.filled(queue, "a3"), [WAITS])


class Limits(SynchronousTestCase):
    def test_at_the_limit_one_waits_and_beyond_the_queue_one_is_refused(self) -> None:
        queue: FairQueue[str, int] = FairQueue(2, 10, 1)
        self.assertEqual([queue.enter("a", n) for n in range(4)], [NOW, NOW, WAITS, FULL])
        self.assertEqual((queue.active, queue.active_of("a"), queue.active_of("b"), queue.waiting), (2, 2, 0, 1))

    def test_the_total_holds_for_all_keys_together(self) -> None:
        queue: FairQueue[str, int] = FairQueue(2, 3, 9)
        self.assertEqual([queue.enter(key, 0) for key in "aabbc"], [NOW, NOW, NOW, WAITS, WAITS])

    def test_without_room_to_wait_one_is_refused_and_nothing_is_kept_of_it(self) -> None:
        queue: FairQueue[str, int] = FairQueue(1, 1, 0)
        self.assertEqual([queue.enter("a", 1), queue.enter("a", 2), queue.enter("b", 3)], [NOW, FULL, FULL])
        self.assertEqual(queue.waiting, 0)
        self.assertIsNone(queue.leave("a"))
        self.assertEqual(queue.enter("a", 4), NOW)

    def test_what_was_withdrawn_is_not_let_in(self) -> None:
        queue: FairQueue[str, int] = FairQueue(1, 1, 9)
        self.assertEqual([queue.enter("a", n) for n in (1, 2, 3)], [NOW, WAITS, WAITS])
        self.assertEqual([queue.withdraw("a", 2), queue.withdraw("a", 2), queue.withdraw("b", 3)], [True, False, False])
        self.assertEqual(queue.leave("a"), 3)
        self.assertFalse(queue.withdraw("a", 3))
        self.assertIsNone(queue.leave("a"))

    def test_a_place_that_nobody_has_cannot_be_given_back(self) -> None:
        queue: FairQueue[str, int] = FairQueue(1, 1, 9)
        with self.assertRaises(KeyError):
            queue.leave("a")
        self.assertEqual(queue.active, 0)


class Changes(SynchronousTestCase):
    """Other limits, at a reload."""

    def queue(self) -> FairQueue[str, str]:
        """Return a queue with two of a and one of b in, and two of a, one of b and one of c waiting."""
        queue: FairQueue[str, str] = FairQueue(2, 3, 9)
        for entry in ("a1", "a2", "b1", "a3", "a4", "b2", "c1"):
            queue.enter(entry[0], entry)
        return queue

    def test_what_fits_into_greater_limits_is_let_in_by_turns(self) -> None:
        self.assertEqual(self.queue().change(9, 6, 9), ["a3", "b2", "c1"])
        self.assertEqual(self.queue().change(9, 9, 9), ["a3", "b2", "c1", "a4"])
        self.assertEqual(self.queue().change(2, 9, 9), ["b2", "c1"])

    def test_what_was_let_in_counts_and_leaves_like_any_other(self) -> None:
        queue = self.queue()
        queue.change(2, 5, 9)
        self.assertEqual((queue.active, queue.active_of("b"), queue.waiting), (5, 2, 2))
        self.assertIsNone(queue.leave("b"))
        self.assertEqual(queue.leave("a"), "a3")

    def test_who_is_in_stays_when_the_limits_are_smaller_and_who_waits_goes_on_waiting(self) -> None:
        queue = self.queue()
        self.assertEqual(queue.change(1, 1, 1), [])
        self.assertEqual((queue.active, queue.waiting), (3, 4))
        self.assertEqual([queue.leave("a"), queue.leave("b"), queue.leave("a")], [None, None, "a3"])

    def test_smaller_limits_hold_for_who_comes_then(self) -> None:
        queue: FairQueue[str, str] = FairQueue(9, 9, 9)
        queue.enter("a", "a1")
        queue.change(1, 9, 0)
        self.assertEqual([queue.enter("a", "a2"), queue.enter("b", "b1")], [FULL, NOW])


class Use(SynchronousTestCase):
    def test_it_tells_the_busiest_keys_and_how_many_of_them_are_in_and_wait(self) -> None:
        queue: FairQueue[str, str] = FairQueue(3, 9, 9)
        for entry in ("a1", "b1", "b2", "c1", "c2", "c3", "c4", "c5"):
            queue.enter(entry[0], entry)
        self.assertEqual(queue.most_active(2), [("c", 3), ("b", 2)])
        self.assertEqual(queue.most_active(9), [("c", 3), ("b", 2), ("a", 1)])
        self.assertEqual(queue.most_waiting(3), [("c", 2)])
        self.assertEqual([queue.waiting_of(key) for key in "abcd"], [0, 0, 2, 0])

    def test_in_an_empty_one_nobody_is(self) -> None:
        queue: FairQueue[str, str] = FairQueue(3, 9, 9)
        self.assertEqual((queue.most_active(3), queue.most_waiting(3)), ([], []))
