"""plumberd.commands.explain: what is asked, and how the answer reads."""

from __future__ import annotations

import json
from typing import Any

from plumberd.commands.explain import request_of, routes_of
from plumberd.pure.policy.direction import Direction
from tests.commands.test_offline import write_configuration
from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase, answer_with
from tests.tables import each

IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
RULES = [
    {"step": "rule", "number": n, "text": text, "source": f"rules.toml:{n + 8}", "matches": matches, "why": why}
    for n, text, matches, why in (
        (1, "deny out audio any", "no", "another service"),
        (2, "allow out any tls:*.example.com:9000", "yes", ""),
    )
]
GRANTED: dict[str, Any] = {
    "ok": True,
    "granted": True,
    "word": "",
    "reason": "rule 2 allows it",
    "mode": "locked",
    "would": "",
    "rule": {"number": 2, "text": "allow out any tls:*.example.com:9000", "source": "rules.toml:10"},
    "steps": [
        {"step": "who", "text": "uid=1000 gid=1000 pid=77"},
        {"step": "redirect", "text": "pong to pong2"},
        {"step": "addresses", "text": "198.51.100.1"},
        *RULES,
        {"step": "service", "text": "the far side is asked for pong2: that has to pass too"},
        *RULES,
        {"step": "mode", "text": "locked"},
    ],
}
BY_DEFAULT: dict[str, Any] = {
    "ok": True,
    "granted": False,
    "word": "denied",
    "reason": "no rule matches, and the default refuses it",
    "mode": "",
    "would": "",
    "rule": {"number": None, "text": "default out=deny", "source": ""},
    "steps": [
        {"step": "who", "text": "a local client"},
        {"step": "default", "text": "default out=deny: no rule matches, and the default refuses it"},
    ],
}


class Asking(PlumbTestCase):
    @each(
        (("out", "pong"), {"service": "pong"}),
        (("out", "pong", "tcp://h.example:1/x"), {"service": "pong", "routes": "pong tcp://h.example:1/x"}),
        (("out", "any", "tcp://h.example:1"), {"uri": "tcp://h.example:1"}),
        (("out", "*", "tcp://h.example:1"), {"uri": "tcp://h.example:1"}),
        (("in", "pong", "tcp:192.0.2.7"), {"service": "pong", "peer": "tcp:192.0.2.7"}),
        (("serve", "pong"), {"service": "pong"}),
        (
            ("out", "pong", "--as", "user:alice", "--as", "confined"),
            {"service": "pong", "as": ["user:alice", "confined"]},
        ),
    )
    def test_the_broker_is_asked(self, words: tuple[str, ...], members: dict[str, Any]) -> None:
        status, _, err = self.ran("--rundir", self.broker(answer_with(GRANTED)), "explain", *words)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(self.requests, [{"op": "explain", "direction": words[0], **members}])

    @each(
        ("of this project", {"IPC_NETWORKD": "pong tcp://h:1", "IPC_NETWORK": "x"}, "pong tcp://h:1"),
        ("of other programs", {"IPC_NETWORKD": "", "IPC_NETWORK": "pong tcp://h:2"}, "pong tcp://h:2"),
    )
    def test_without_a_uri_the_variable_counts_as_it_would_for_a_lookup(
        self, label: str, environ: dict[str, str], routes: str
    ) -> None:
        rundir = self.broker(answer_with(GRANTED))
        self.ran("--rundir", rundir, "explain", "out", "pong", environ=environ)
        self.ran("--rundir", rundir, "explain", "out", "pong", "tcp://h:3", environ=environ)
        self.ran("--rundir", rundir, "explain", "serve", "pong", environ=environ)
        self.assertEqual([r.get("routes") for r in self.requests], [routes, "pong tcp://h:3", None])

    def test_no_variable_is_no_routes(self) -> None:
        self.assertIsNone(routes_of({"IPC_NETWORK": ""}))

    @each(
        ("no service", ("out", "p*"), "is no service"),
        ("any without an address", ("out", "any"), "wanted a URI behind any"),
        ("any for callers", ("in", "any", "tcp:192.0.2.7"), "wanted the name of one service"),
        ("a caller that is missing", ("in", "pong"), "wanted the caller"),
        ("a far end of who serves", ("serve", "pong", "tcp://h:1"), "no far end"),
        ("no URI", ("out", "pong", "tcp:h:1"), "wanted scheme://host"),
        ("nobody", ("out", "pong", "--as", "alice"), "(or confined)"),
        ("another pair in the URI", ("out", "pong", "tls://a;pong@h.example"), "%3B"),
    )
    def test_what_makes_no_sense_is_status_2_and_nobody_is_asked(
        self, label: str, words: tuple[str, ...], said: str
    ) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(GRANTED)), "explain", *words)
        self.assertEqual((status, out, self.requests), (2, "", []))
        self.assertIn(said, err)

    def test_who_may_not_ask_has_no_answer_and_status_2(self) -> None:
        rundir = self.broker(refuse("denied", "to explain as somebody else is for root"))
        self.assertEqual(
            self.ran("--rundir", rundir, "explain", "out", "pong", "--as", "user:alice"),
            (2, "", "plumb: nothing to explain: denied: to explain as somebody else is for root\n"),
        )

    def test_a_request_holds_what_its_direction_has_alone(self) -> None:
        self.assertEqual(
            request_of(IN, "pong", "tcp:192.0.2.7", (), "pong tcp://h:1"),
            {"op": "explain", "direction": "in", "service": "pong", "peer": "tcp:192.0.2.7"},
        )
        self.assertEqual(
            request_of(OUT, "any", "tcp://h:1", (), "pong tcp://h:1"),
            {"op": "explain", "direction": "out", "uri": "tcp://h:1"},
        )
        self.assertEqual(
            request_of(SERVE, "pong", None, ()), {"op": "explain", "direction": "serve", "service": "pong"}
        )


class Reading(PlumbTestCase):
    def explained(self, answer: dict[str, Any], *words: str) -> tuple[int, list[str]]:
        status, out, err = self.ran("--rundir", self.broker(answer_with(answer)), "explain", "out", "pong", *words)
        self.assertEqual(err, "")
        return status, out.splitlines()

    def test_every_step_is_a_line_and_rules_stand_in_columns(self) -> None:
        rules = [
            "rule      1  no   deny out audio any                    rules.toml:9   another service",
            "rule      2  yes  allow out any tls:*.example.com:9000  rules.toml:10",
        ]
        status, lines = self.explained(GRANTED)
        self.assertEqual(status, 0)
        self.assertEqual(
            lines,
            [
                "who       uid=1000 gid=1000 pid=77",
                "redirect  pong to pong2",
                "addresses 198.51.100.1",
                *rules,
                "service   the far side is asked for pong2: that has to pass too",
                *rules,
                "mode      locked",
                "reason    rule 2 allows it",
                "granted   locked, by rule 2 (rules.toml:10): allow out any tls:*.example.com:9000",
            ],
        )

    def test_a_default_is_told_once(self) -> None:
        status, lines = self.explained(BY_DEFAULT)
        self.assertEqual(status, 1)
        self.assertEqual(
            lines,
            [
                "who       a local client",
                "default   default out=deny: no rule matches, and the default refuses it",
                "refused   denied, by default out=deny",
            ],
        )

    def test_what_is_granted_only_because_refusals_are_logged_says_so(self) -> None:
        status, lines = self.explained({**GRANTED, "would": "denied"})
        self.assertEqual(status, 0)
        self.assertTrue(
            lines[-1].startswith("granted   locked, though it would be denied: refusals are only logged, by rule 2")
        )

    def test_a_rule_that_was_written_nowhere_has_no_place(self) -> None:
        _, lines = self.explained(
            {**GRANTED, "mode": "", "rule": {"number": 2, "text": "allow out any any", "source": ""}}
        )
        self.assertEqual(lines[-1], "granted   by rule 2: allow out any any")

    def test_a_refusal_before_any_rule_has_its_word(self) -> None:
        answer = {**BY_DEFAULT, "word": "bad-request", "rule": {"number": None, "text": "", "source": ""}}
        self.assertEqual(self.explained(answer)[1][-1], "refused   bad-request")

    def test_what_others_have_chosen_does_nothing_to_a_terminal(self) -> None:
        answer = {**BY_DEFAULT, "reason": "\x1b[2J", "steps": [{"step": "who", "text": "\x1b]0;x\a"}]}
        self.assertNotIn("\x1b", "".join(self.explained(answer)[1]))

    def test_as_json_it_is_the_answer_with_the_same_status(self) -> None:
        for answer, wanted in ((GRANTED, 0), (BY_DEFAULT, 1)):
            status, lines = self.explained(answer, "--json")
            self.assertEqual((status, {"ok": True, **json.loads("\n".join(lines))}), (wanted, answer))


class Offline(PlumbTestCase):
    def test_a_configuration_is_asked_and_no_broker(self) -> None:
        path = write_configuration(self.folder())
        status, out, err = self.ran("explain", "out", "pong", "tcp://198.51.100.9:80", "--config", path)
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines()[-1], f"granted   locked, by rule 1 ({path}:2): allow out pong tcp:198.51.100.0/24:80-90"
        )
        status, out, err = self.ran("explain", "out", "pong", "tcp://198.51.100.9:91", "--config", path)
        self.assertEqual((status, err, out.splitlines()[-1]), (1, "", "refused   denied, by default out=deny"))

    def test_every_mistake_in_it_is_told_with_status_2(self) -> None:
        path = write_configuration(self.folder(), 'rules = ["allow out pong"]\ngrup = "ipc"\n')
        status, out, err = self.ran("explain", "out", "pong", "--config", path)
        self.assertEqual((status, out, err.count("\n")), (2, "", 2))
        self.assertEqual(err.count(path), 2)
