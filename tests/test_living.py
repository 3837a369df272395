"""plumberd.pure.living: each is counted once, for its user, and a look at who lives takes the others out."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.living import Check, HandedOver, Living
from tests.tables import PROPERTY

BYTES_EACH = 400
"""What one may cost, on a 64-bit machine: the entry, its numbers, and its places in the dicts."""


def entry(cookie: int, uid: int = 1000, service: str = "pong") -> HandedOver:
    """Return one with its own numbers."""
    return HandedOver(cookie, uid, service, "locked", cookie + 100_000, cookie + 0.5, cookie + 200_000)


class Counts(SynchronousTestCase):
    def setUp(self) -> None:
        self.living = Living()
        for cookie, uid in ((1, 1000), (2, 1000), (3, 1001)):
            self.living.add(entry(cookie, uid))

    def test_each_counts_for_its_user_and_for_all(self) -> None:
        self.assertEqual((len(self.living), self.living.count_of(1000), self.living.count_of(7)), (3, 2, 0))
        self.assertEqual([e.cookie for e in self.living.of(1000)], [1, 2])
        self.assertEqual(list(self.living.of(7)), [])
        self.assertEqual(sorted(e.cookie for e in self.living), [1, 2, 3])

    def test_one_that_is_told_twice_counts_once(self) -> None:
        self.living.add(entry(1, 1000))
        self.assertEqual((len(self.living), self.living.count_of(1000)), (3, 2))

    def test_what_is_remembered_is_what_was_told(self) -> None:
        self.assertEqual(self.living.find(3), entry(3, 1001))
        self.assertIsNone(self.living.find(4))

    def test_the_busiest_are_told_first(self) -> None:
        self.assertEqual(self.living.most(1), [(1000, 2)])
        self.assertEqual(self.living.most(9), [(1000, 2), (1001, 1)])

    def test_one_is_forgotten_and_once_only(self) -> None:
        self.living.remove(1000, 2)
        self.living.remove(1000, 2)
        self.living.remove(7, 2)
        self.assertEqual((len(self.living), self.living.count_of(1000)), (2, 1))

    def test_of_a_user_without_any_nothing_is_kept(self) -> None:
        self.living.remove(1001, 3)
        self.assertEqual(self.living.most(9), [(1000, 2)])

    def test_all_are_forgotten(self) -> None:
        self.living.clear()
        self.assertEqual((len(self.living), list(self.living), self.living.most(9)), (0, [], []))


class Checks(SynchronousTestCase):
    def test_who_was_not_seen_is_taken_out(self) -> None:
        living = Living()
        for cookie in (1, 2, 3):
            living.add(entry(cookie))
        check = Check(living)
        self.assertEqual([check.saw(cookie) for cookie in (99, 2, 2)], [False] * 3)
        self.assertEqual((check.end(), [e.cookie for e in living]), (2, [2]))
        self.assertEqual((check.seen, check.seen_of(1000), check.seen_of(7)), (1, 1, 0))

    def test_when_all_were_seen_nobody_need_look_on(self) -> None:
        living = Living()
        for cookie in (1, 2):
            living.add(entry(cookie))
        check = Check(living)
        self.assertEqual([check.saw(1), check.saw(2)], [False, True])
        self.assertEqual(check.end(), 0)

    def test_what_was_added_in_the_meantime_is_not_judged(self) -> None:
        living = Living()
        living.add(entry(1))
        check = Check(living)
        living.add(entry(2))
        check.end()
        self.assertEqual([e.cookie for e in living], [2])

    @PROPERTY
    @given(
        st.dictionaries(st.integers(1, 30), st.integers(0, 3)),
        st.sets(st.integers(1, 40)),
        st.sets(st.integers(1, 30)),
        st.dictionaries(st.integers(31, 40), st.integers(0, 3)),
    )
    def test_what_is_left_are_those_that_were_seen_or_are_new(
        self, before: dict[int, int], seen: set[int], removed: set[int], added: dict[int, int]
    ) -> None:
        living = Living()
        for cookie, uid in before.items():
            living.add(entry(cookie, uid))
        check = Check(living)
        for cookie in seen:
            check.saw(cookie)
        for cookie in removed:
            living.remove(before.get(cookie, 9), cookie)
        for cookie, uid in added.items():
            living.add(entry(cookie, uid))
        check.end()
        wanted = {**{c: u for c, u in before.items() if c in seen and c not in removed}, **added}
        self.assertEqual({e.cookie: e.uid for e in living}, wanted)
        self.assertEqual(len(living), len(wanted))
        for uid in range(4):
            self.assertEqual(living.count_of(uid), sum(u == uid for u in wanted.values()))
            self.assertEqual(check.seen_of(uid), sum(u == uid and c in seen for c, u in before.items()))


class Memory(SynchronousTestCase):
    def test_twenty_thousand_cost_few_bytes_each_and_nothing_once_their_sockets_are_gone(self) -> None:
        count = 20_000
        living = Living()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            living.add(entry(10_000_000 + number, 1000 + number % 3))
        full, _ = tracemalloc.get_traced_memory()
        Check(living).end()
        after, _ = tracemalloc.get_traced_memory()
        self.assertEqual(len(living), 0)
        self.assertLess((full - before) / count, BYTES_EACH)
        self.assertLess(after - before, (full - before) / 20)  # but for what Python itself keeps in reserve
        self.assertGreater(full - before, 50 * count)
