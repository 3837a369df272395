"""Failed logins: an address is stopped for a while, a user is slowed down, and little is remembered."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import account_of_address
from plumberd.pure.attempts import (
    DELAYS_SECONDS,
    FREE_FAILURES,
    REMEMBERED,
    WINDOW_SECONDS,
    Attempts,
)
from tests.tables import PROPERTY, each


class Addresses(SynchronousTestCase):
    def test_one_that_has_not_failed_is_heard(self) -> None:
        self.assertEqual(Attempts(3).wait_seconds("192.0.2.1", 0), 0)

    def test_one_that_has_failed_too_often_is_heard_when_its_first_failure_is_a_minute_old(self) -> None:
        attempts = Attempts(3)
        for now in (0.0, 10.0):
            attempts.failed("192.0.2.1", "alice", now)
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 10), 0)
        attempts.failed("192.0.2.1", "alice", 20)
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 20), 40)
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 59.5), 0.5)
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 60), 0)
        attempts.failed("192.0.2.1", "alice", 60)
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 60), 10)

    def test_another_is_heard_meanwhile(self) -> None:
        attempts = Attempts(1)
        attempts.failed("192.0.2.1", "alice", 0)
        self.assertEqual((attempts.wait_seconds("192.0.2.1", 0), attempts.wait_seconds("192.0.2.2", 0)), (60, 0))

    def test_a_limit_that_is_changed_holds_at_once(self) -> None:
        attempts = Attempts(3)
        for now in (0.0, 1.0, 2.0):
            attempts.failed("192.0.2.1", "alice", now)
        attempts.per_address = 1
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 2), 60)
        attempts.per_address = 4
        self.assertEqual(attempts.wait_seconds("192.0.2.1", 2), 0)

    @each(
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::7", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::7", "2001:db8:1:3::/64"),
    )
    def test_on_whose_account_it_is(self, address: str, wanted: str) -> None:
        self.assertEqual(account_of_address(ipaddress.ip_address(address)), wanted)

    def test_all_without_an_address_are_one(self) -> None:
        self.assertEqual(account_of_address(None), "no address")


class Users(SynchronousTestCase):
    def test_each_failure_beyond_a_few_makes_it_slower_and_never_stops_it(self) -> None:
        attempts = Attempts(1000)
        delays = []
        for n in range(FREE_FAILURES + 20):
            delays.append(attempts.delay_seconds("alice", n / 100))
            attempts.failed(f"192.0.2.{n}", "alice", n / 100)
        expected = [0.0] * (FREE_FAILURES + 1) + [*DELAYS_SECONDS, *[DELAYS_SECONDS[-1]] * 20]
        self.assertEqual(delays, expected[: len(delays)])

    def test_it_is_as_quick_as_ever_when_the_failures_are_a_minute_old(self) -> None:
        attempts = Attempts(1000)
        for n in range(20):
            attempts.failed("192.0.2.1", "alice", float(n))
        self.assertEqual(attempts.delay_seconds("alice", 19 + WINDOW_SECONDS), 0)

    def test_another_user_is_not_slowed_down(self) -> None:
        attempts = Attempts(1000)
        for _ in range(20):
            attempts.failed("192.0.2.1", "alice", 0)
        self.assertEqual(attempts.delay_seconds("Alice", 0), 0)


class Memory(SynchronousTestCase):
    def test_it_is_bounded_and_the_last_failures_are_those_that_are_known(self) -> None:
        attempts = Attempts(1)
        for n in range(REMEMBERED + 100):
            attempts.failed(str(n), "u" * n, 0)
        self.assertEqual(attempts.remembered, 2 * REMEMBERED)
        self.assertEqual(attempts.wait_seconds("99", 1), 0)
        self.assertEqual(attempts.wait_seconds("100", 1), 59)

    def test_who_goes_on_failing_is_not_forgotten(self) -> None:
        attempts = Attempts(2)
        for n in range(REMEMBERED):
            attempts.failed(str(n), "alice", 0)
        attempts.failed("0", "alice", 1)
        attempts.failed("new", "alice", 1)
        self.assertEqual(attempts.wait_seconds("0", 1), 59)

    def test_what_is_old_is_forgotten_when_it_is_asked_for(self) -> None:
        attempts = Attempts(2)
        attempts.failed("a", "alice", 0)
        attempts.wait_seconds("a", 60)
        attempts.delay_seconds("alice", 60)
        self.assertEqual(attempts.remembered, 0)

    @PROPERTY
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60), st.integers(1, 5))
    def test_never_more_failures_a_minute_than_the_limit_are_heard(
        self, tries: list[tuple[str, float]], most: int
    ) -> None:
        attempts, now, heard = Attempts(most), 0.0, []
        for address, pause in tries:
            now += pause
            if attempts.wait_seconds(address, now) == 0:
                attempts.failed(address, "alice", now)
                heard.append((address, now))
        for address, at in heard:
            same = [other for name, other in heard if name == address and at <= other < at + WINDOW_SECONDS]
            self.assertLessEqual(len(same), most)
