"""plumberd.effects.audit: one event an outcome, soon, and in batches where there are many."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial import unittest

from plumberd.effects.audit import APART, BATCH_SECONDS, Audit, Outcome


class AsText(unittest.SynchronousTestCase):
    """The text of an outcome, as it stands in the log."""

    def test_granted(self) -> None:
        outcome = Outcome(
            "granted", "out", "pong", "tcp://h:9000/pong", "uid=1 pid=3", "1: allow out any any", "locked", 0.0123
        )
        self.assertEqual(
            str(outcome),
            "granted out pong tcp://h:9000/pong mode=locked rule=[1: allow out any any] who=[uid=1 pid=3] 12.3 ms",
        )

    def test_refused_with_a_reason(self) -> None:
        self.assertEqual(str(Outcome("denied", "in", "pong", reason="no rule")), "denied in pong: no rule")

    def test_a_lookup_that_named_no_service(self) -> None:
        self.assertEqual(str(Outcome("granted", "out", "", "tcp://h:1")), "granted out - tcp://h:1")

    def test_what_was_no_attempt_yet(self) -> None:
        self.assertEqual(str(Outcome("bad-request", who="uid=7")), "bad-request who=uid=7")

    def test_the_end_of_a_relay_with_its_bytes(self) -> None:
        self.assertEqual(str(Outcome("ended", "in", "pong", up=3, down=0)), "ended in pong up=3 down=0")


class AuditTestCase(unittest.SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[dict[str, Any]] = []
        observer: Any = self.events.append
        self.audit = Audit(self.clock, Logger("test", observer=observer))

    def note(self, count: int) -> list[Outcome]:
        outcomes = [Outcome("granted", "out", f"s{n}") for n in range(count)]
        for outcome in outcomes:
            self.audit.note(outcome)
        return outcomes


class Events(AuditTestCase):
    def test_an_outcome_is_logged_soon_and_once(self) -> None:
        (outcome,) = self.note(1)
        self.assertEqual(self.events, [])
        self.clock.advance(BATCH_SECONDS)
        self.clock.advance(10)
        self.assertEqual([e["outcome"] for e in self.events], [outcome])

    def test_its_text_is_the_event(self) -> None:
        (outcome,) = self.note(1)
        self.audit.flush()
        self.assertEqual(formatEvent(self.events[0]), str(outcome))

    def test_up_to_the_limit_each_is_an_event_of_its_own(self) -> None:
        outcomes = self.note(APART)
        self.clock.advance(BATCH_SECONDS)
        self.assertEqual([e["outcome"] for e in self.events], outcomes)

    def test_beyond_it_they_share_one_with_a_line_each(self) -> None:
        outcomes = self.note(APART + 1)
        self.clock.advance(BATCH_SECONDS)
        self.assertEqual(len(self.events), 1)
        first, *lines = formatEvent(self.events[0]).split("\n")
        self.assertEqual(first, f"{APART + 1} outcomes")
        self.assertEqual([line.split(" ", 1)[1] for line in lines], [str(o) for o in outcomes])

    def test_the_next_batch_is_logged_too(self) -> None:
        for _ in range(2):
            self.note(1)
            self.clock.advance(BATCH_SECONDS)
        self.assertEqual(len(self.events), 2)


class Flushing(AuditTestCase):
    def test_it_logs_at_once_and_leaves_no_delayed_call(self) -> None:
        outcomes = self.note(3)
        self.audit.flush()
        self.assertEqual([e["outcome"] for e in self.events], outcomes)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_outcomes_it_logs_nothing(self) -> None:
        self.audit.flush()
        self.assertEqual(self.events, [])


class Counts(AuditTestCase):
    def test_they_are_kept_by_direction_and_verdict(self) -> None:
        for outcome in (Outcome("granted", "out"), Outcome("granted", "out"), Outcome("denied", "in"), Outcome("busy")):
            self.audit.note(outcome)
        self.assertEqual(self.audit.counts, {"out granted": 2, "in denied": 1, "busy": 1})

    def test_they_outlive_the_flush(self) -> None:
        self.note(1)
        self.audit.flush()
        self.assertEqual(self.audit.counts, {"out granted": 1})
