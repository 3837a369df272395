"""plumberd.commands.reload: what changed, or every mistake."""

from __future__ import annotations

import json
from typing import Any

from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase, answer_with

CHANGED: dict[str, Any] = {
    "ok": True,
    "generation": 2,
    "changes": ["rules: + allow out pong any", "limits.relays: 500 → 600"],
    "warnings": ["rule 3 never has its turn: rule 1 matches first"],
}
MISTAKEN: dict[str, Any] = {
    "ok": False,
    "error": "bad-request",
    "reason": "2 mistakes; the configuration in force stays",
    "mistakes": [
        {"file": "rules.toml", "key": "rules[1]", "text": "'allw': wanted allow, deny or log", "line": 7},
        {"file": "rules.toml", "key": "", "text": "no\x1b permission"},
    ],
}


class Reload(PlumbTestCase):
    def test_what_changed_is_told(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(CHANGED)), "reload")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "rules: + allow out pong any",
                "limits.relays: 500 → 600",
                "warning: rule 3 never has its turn: rule 1 matches first",
                "generation 2: 2 changes are in force",
            ],
        )
        self.assertEqual(self.requests, [{"op": "reload"}])

    def test_that_nothing_changed_is_told(self) -> None:
        answer = {"ok": True, "generation": 3, "changes": [], "warnings": []}
        status, out, _ = self.ran("--rundir", self.broker(answer_with(answer)), "reload")
        self.assertEqual((status, out), (0, "generation 3: nothing changed\n"))

    def test_every_mistake_is_told_and_it_fails(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(MISTAKEN)), "reload")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(
            err.splitlines(),
            [
                "plumb: rules.toml:7: rules[1]: 'allw': wanted allow, deny or log",
                "plumb: rules.toml: no? permission",
                "plumb: refused: bad-request: 2 mistakes; the configuration in force stays",
            ],
        )

    def test_who_may_not_is_told_so(self) -> None:
        rundir = self.broker(refuse("denied", "reload is for root"))
        self.assertEqual(
            self.ran("--rundir", rundir, "reload"), (1, "", "plumb: refused: denied: reload is for root\n")
        )

    def test_as_json_it_is_the_brokers_answer_good_or_bad(self) -> None:
        _, out, _ = self.ran("--rundir", self.broker(answer_with(CHANGED)), "reload", "--json")
        self.assertEqual(json.loads(out), CHANGED)
        status, out, _ = self.ran("--rundir", self.broker(answer_with(MISTAKEN)), "reload", "--json")
        self.assertEqual((status, json.loads(out)), (1, MISTAKEN))
