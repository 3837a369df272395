"""plumberd.effects.audit: one event an outcome, soon, and in batches where there are many; and whom it refused what."""

from __future__ import annotations

import itertools
import time
from datetime import datetime
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial import unittest

from plumberd.effects.audit import APART, BATCH_SECONDS, REFUSALS, REFUSED_USERS, Audit, Outcome
from plumberd.pure.policy.decide import Verdict
from plumberd.pure.record import REFUSED
from plumberd.pure.uri import parse_uri
from plumberd.pure.who import LocalWho, RemoteWho
from tests.tables import each


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


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.batches: list[list[Outcome]] = []
        self.times: list[float] = []
        self.closed: list[float] = []
        self.reopened = 0

    def reopen(self) -> None:
        self.reopened += 1

    def write(self, batch: list[tuple[float, Outcome]]) -> None:
        self.batches.append([outcome for _, outcome in batch])
        self.times += [when for when, _ in batch]

    def close(self, wait_seconds: float = -1) -> None:
        self.closed.append(wait_seconds)


class Sinks(AuditTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.sink = Sink()
        self.audit.set_sink(self.sink)

    def test_it_gets_what_is_logged_in_batches_with_the_time_of_each(self) -> None:
        before = time.time()
        outcomes = self.note(APART + 1)
        self.assertEqual(self.sink.batches, [])
        self.clock.advance(BATCH_SECONDS)
        self.assertEqual(self.sink.batches, [outcomes])
        self.assertTrue(all(before <= when <= time.time() for when in self.sink.times))
        self.assertEqual(len(self.events), 1)

    def test_it_is_not_asked_where_there_is_nothing(self) -> None:
        self.audit.flush()
        self.assertEqual(self.sink.batches, [])

    def test_it_may_be_given_at_the_start(self) -> None:
        observer: Any = self.events.append
        audit = Audit(self.clock, Logger("test", observer=observer), self.sink)
        audit.note(Outcome("granted"))
        audit.flush()
        self.assertEqual(self.sink.batches, [[Outcome("granted")]])

    def test_another_takes_over_and_the_old_one_ends_with_what_was_its_own(self) -> None:
        another = Sink()
        (first,) = self.note(1)
        self.audit.set_sink(another)
        (second,) = self.note(1)
        self.audit.flush()
        self.assertEqual((self.sink.batches, self.sink.closed), ([[first]], [0]))
        self.assertEqual((another.batches, another.closed), ([[second]], []))

    def test_it_may_be_told_to_look_again_where_it_writes_to(self) -> None:
        self.audit.reopen()
        self.assertEqual(self.sink.reopened, 1)
        self.audit.set_sink(None)
        self.audit.reopen()
        self.assertEqual(self.sink.reopened, 1)

    def test_the_same_one_stays_open(self) -> None:
        self.audit.set_sink(self.sink)
        self.assertEqual(self.sink.closed, [])

    def test_without_one_outcomes_are_logged_all_the_same(self) -> None:
        self.audit.set_sink(None)
        self.note(1)
        self.audit.flush()
        self.assertEqual((len(self.events), self.sink.batches, self.sink.closed), (1, [], [0]))

    def test_the_end_writes_what_is_kept_and_gives_it_its_time(self) -> None:
        outcomes = self.note(2)
        self.audit.close()
        self.audit.close()
        self.assertEqual((self.sink.batches, self.sink.closed), ([outcomes], [-1]))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Idents(AuditTestCase):
    def test_each_is_another(self) -> None:
        self.assertEqual(len({self.audit.new_ident() for _ in range(1000)}), 1000)

    def test_two_processes_begin_far_from_each_other_and_every_reader_of_json_keeps_them(self) -> None:
        found = sorted(Audit(self.clock).new_ident() for _ in range(20))
        self.assertTrue(all(0 < ident < 2**53 for ident in found))
        self.assertTrue(all(after - before >= 1 << 20 for before, after in itertools.pairwise(found)))


class Refusals(AuditTestCase):
    """What a refused client may ask for later."""

    def refuse(self, service: str = "pong", uid: int = 1000, word: str = "denied", **members: Any) -> Outcome:
        members = {"direction": "out", "who": LocalWho(uid, uid, (), 7), **members}
        outcome = Outcome(word, service=service, **members)
        self.audit.note(outcome)
        return outcome

    def services(self, uid: int = 1000, service: str | None = None) -> list[str]:
        return [found["service"] for found in self.audit.refusals_of(uid, service)]

    def test_the_newest_comes_first(self) -> None:
        for service in ("a", "b", "c"):
            self.refuse(service)
        self.assertEqual(self.services(), ["c", "b", "a"])

    def test_it_says_what_was_asked_for_and_why_it_was_refused(self) -> None:
        decided = Verdict(False, "2: deny out pong any", "rule 2 denies it", number=2)
        self.refuse(to=parse_uri("tcp://example.com/pong"), reason="rule 2 denies it", decided=decided)
        (found,) = self.audit.refusals_of(1000)
        self.assertLess(abs(datetime.fromisoformat(found.pop("time")).timestamp() - time.time()), 60)
        self.assertEqual(
            found,
            {
                "service": "pong",
                "uri": "tcp://example.com:9000/pong",
                "to": "tcp:example.com:9000",
                "word": "denied",
                "reason": "rule 2 denies it",
                "rule": "2: deny out pong any",
            },
        )

    @each(*((word,) for word in sorted(REFUSED)))
    def test_every_refusal_counts(self, word: str) -> None:
        self.refuse(word=word)
        self.assertEqual([found["word"] for found in self.audit.refusals_of(1000)], [word])

    @each(
        ("granted", "granted", {}),
        ("ended", "ended", {}),
        ("gone", "gone", {}),
        ("a_caller", "denied", {"direction": "in", "who": RemoteWho("tcp", None)}),
        ("a_caller_whom_a_gateway_knows", "denied", {"direction": "in"}),
        ("no_attempt_yet", "denied", {"direction": ""}),
        ("nobody_known", "denied", {"who": "somebody"}),
    )
    def test_nothing_else_does(self, _: str, word: str, members: dict[str, Any]) -> None:
        self.refuse(word=word, **members)
        self.assertEqual(self.audit.refusals_of(1000), [])

    def test_everybody_sees_one_s_own(self) -> None:
        self.refuse("a", 1000)
        self.refuse("b", 1001)
        self.assertEqual((self.services(1000), self.services(1001), self.services(1002)), (["a"], ["b"], []))

    def test_a_uid_alone_is_enough(self) -> None:
        self.audit.note(Outcome("busy", "out", "a", uid=1000))
        self.assertEqual(self.services(), ["a"])

    def test_one_service_may_be_asked_for(self) -> None:
        for service in ("a", "b", "a"):
            self.refuse(service)
        self.assertEqual(self.services(service="a"), ["a", "a"])
        self.assertEqual(self.services(service="c"), [])

    def test_only_the_last_ones_are_remembered(self) -> None:
        for number in range(REFUSALS + 2):
            self.refuse(str(number))
        self.assertEqual(self.services(), [str(number) for number in range(REFUSALS + 1, 1, -1)])

    def test_who_was_refused_last_is_forgotten_last(self) -> None:
        for uid in range(REFUSED_USERS):
            self.refuse("a", uid)
        self.refuse("b", 0)
        self.refuse("a", REFUSED_USERS)
        self.assertEqual((self.services(0), self.services(1), self.services(2)), (["b", "a"], [], ["a"]))

    def test_they_outlive_the_flush(self) -> None:
        self.refuse()
        self.audit.flush()
        self.assertEqual(self.services(), ["pong"])

    def test_no_password_is_told_or_remembered(self) -> None:
        uri = parse_uri("tls://user:s3cret@example.com/pong")
        ways: list[dict[str, Any]] = [{"to": uri}, {"uri": uri}, {"to": uri, "uri": uri}]
        for members in ways:
            outcome = self.refuse(**members)
            self.assertEqual(uri.password, "s3cret")  # the connection's own is left alone
            self.assertIs(outcome.uri, members.get("uri"))
        self.assertNotIn("s3cret", str(self.audit.refusals_of(1000)))
        self.assertEqual(self.audit.refusals_of(1000)[0]["uri"], "tls://user:***@example.com:9001/pong")
        for _, kept in self.audit._refusals[1000]:
            self.assertNotIn("s3cret", [getattr(value, "password", None) for value in (kept.uri, kept.to)])
