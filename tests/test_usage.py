"""plumberd.wiring.ops.usage: a client sees its own use of what holds for it, an administrator that of the busiest."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.admission import FairQueue
from plumberd.pure.limits import Limits
from plumberd.pure.living import HandedOver, Living
from plumberd.pure.who import LocalWho
from plumberd.wiring.ops.usage import OF_USERS, usage
from tests.tables import each

ALICE, BOB = 1000, 1001
NAMES = [limit.name for limit in dataclasses.fields(Limits)]


def queue(per_key: int, total: int, waiting: int, **entries: int) -> FairQueue[Any, Any]:
    """Return one into which each of *entries* came so often; ``u1000`` is the number 1000, ``uid_`` an account."""
    made: FairQueue[Any, Any] = FairQueue(per_key, total, waiting)
    for name, count in entries.items():
        key: Any = int(name[1:]) if name.startswith("u1") else name.replace("_", " ")
        for item in range(count):
            made.enter(key, item)
    return made


class FakeCensus:
    """Seven sockets of alice's, one of them being made."""

    per_uid, total, why_not = 10000, 50000, ""

    def __init__(self) -> None:
        self.living = Living()
        for cookie in range(6):
            self.living.add(HandedOver(cookie, ALICE, "pong", "locked", 1, 0.0, 1))

    used = 7

    def used_of(self, uid: int) -> int:
        return 7 if uid == ALICE else 0


class UsageTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.core: Any = SimpleNamespace(
            settings=SimpleNamespace(limits=Limits(lookup_bytes=4096)),
            relay_places=queue(2500, 5000, 0, uid_1000=2, uid_1001=1, **{"192.0.2.7": 9}),
            resolver=SimpleNamespace(places=queue(4, 16, 4096, uid_1001=3)),
            census=FakeCensus(),
        )
        self.broker: Any = SimpleNamespace(
            lookups=queue(2, 512, 4096, u1000=5, u1001=1),
            unread=queue(2048, 4096, 9),
            connections_by_uid={ALICE: 8, BOB: 2, 1002: 5, 1003: 1},
            connections_per_uid=1000,
        )
        self.tcpd: Any = SimpleNamespace(callers=SimpleNamespace(handshakes=queue(256, 4096, 0, **{"192.0.2.7": 3})))

    def usage(self, uid: int = ALICE, *, admin: bool = False) -> list[dict[str, Any]]:
        return usage(self.core, self.broker, self.tcpd, LocalWho(uid, uid, (), 1), admin)

    def told(self, name: str, uid: int = ALICE, *, admin: bool = False) -> list[tuple[Any, Any, Any]]:
        """Return limit, use and whose it is, of one limit."""
        found = [row for row in self.usage(uid, admin=admin) if row["name"] == name]
        return [(row["limit"], row["used"], row["of"]) for row in found]


class Client(UsageTestCase):
    def test_it_sees_what_holds_for_each_user_and_nothing_else(self) -> None:
        self.assertEqual([row["name"] for row in self.usage()], [name for name in NAMES if name in OF_USERS])
        self.assertEqual({row["of"] for row in self.usage()}, {"uid 1000"})

    @each(
        ("lookups_per_uid", 2, 2),
        ("waiting_per_uid", 4096, 3),
        ("resolving_per_uid", 4, 0),
        ("connections_per_uid", 1000, 8),
        ("unread_descriptors_per_uid", 2048, 0),
        ("handed_over_per_uid", 10000, 7),
        ("relays_per_peer", 2500, 2),
    )
    def test_it_sees_its_own_use(self, name: str, limit: int, used: int) -> None:
        self.assertEqual(self.told(name), [(limit, used, "uid 1000")])

    def test_no_number_in_it_is_anothers(self) -> None:
        stranger = {row["used"] for row in self.usage(4711)}
        self.assertEqual(stranger, {0})

    def test_every_limit_of_local_users_is_among_them(self) -> None:
        self.assertEqual(sorted(OF_USERS), sorted(row["name"] for row in self.usage()))


class Administrator(UsageTestCase):
    def test_every_limit_is_there_in_its_order(self) -> None:
        names = [row["name"] for row in self.usage(admin=True)]
        self.assertEqual(list(dict.fromkeys(names)), NAMES)

    @each(
        ("lookups", 512, 3),
        ("resolving", 16, 3),
        ("handed_over", 50000, 7),
        ("handshakes", 4096, 3),
        ("relays", 5000, 12),
    )
    def test_what_holds_for_all_is_told_in_all(self, name: str, limit: int, used: int) -> None:
        self.assertEqual(self.told(name, admin=True), [(limit, used, None)])

    @each(
        ("lookups_per_uid", [(2, 2, "uid 1000"), (2, 1, "uid 1001")]),
        ("waiting_per_uid", [(4096, 3, "uid 1000")]),
        ("resolving_per_uid", [(4, 3, "uid 1001")]),
        ("connections_per_uid", [(1000, 8, "uid 1000"), (1000, 5, "uid 1002"), (1000, 2, "uid 1001")]),
        ("unread_descriptors_per_uid", [(2048, 0, None)]),
        ("handed_over_per_uid", [(10000, 6, "uid 1000")]),
        ("handshakes_per_address", [(256, 3, "192.0.2.7")]),
        ("relays_per_peer", [(2500, 9, "192.0.2.7"), (2500, 2, "uid 1000"), (2500, 1, "uid 1001")]),
    )
    def test_of_what_holds_for_each_the_three_that_use_most_are_told(self, name: str, rows: list[Any]) -> None:
        self.assertEqual(self.told(name, admin=True), rows)

    @each(("connect_seconds", 10.0), ("handshake_seconds", 5.0), ("lookup_bytes", 4096))
    def test_what_is_no_count_has_no_use(self, name: str, limit: float) -> None:
        self.assertEqual(self.told(name, admin=True), [(limit, None, None)])


class Uncounted(UsageTestCase):
    """Where the kernel does not tell which sockets live."""

    def setUp(self) -> None:
        super().setUp()
        self.core.census.why_not = "no sock_diag"
        self.core.census.living.clear()

    def test_there_is_no_use_of_what_is_not_counted(self) -> None:
        self.assertEqual(self.told("handed_over_per_uid"), [(10000, None, "uid 1000")])
        self.assertEqual(self.told("handed_over_per_uid", admin=True), [(10000, None, None)])
        self.assertEqual(self.told("handed_over", admin=True), [(50000, None, None)])


class Rows(UsageTestCase):
    @each((True,), (False,))
    def test_each_has_the_same_members_and_is_json(self, admin: bool) -> None:
        rows = self.usage(admin=admin)
        self.assertEqual({tuple(row) for row in rows}, {("name", "limit", "used", "of")})
        self.assertEqual(json.loads(json.dumps(rows)), rows)
