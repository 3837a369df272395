"""plumberd.commands.why: one's own last refusals, and what to do about them."""

from __future__ import annotations

import json
from typing import Any

from plumberd.commands.why import ADVICE, advice_of
from plumberd.pure.handshake import said_no
from plumberd.pure.refusals import Refusal
from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase, answer_with

REFUSALS: list[dict[str, Any]] = [
    {
        "time": "2026-10-04T12:00:01.250Z",
        "service": "pong",
        "uri": "tcp://h.example:1/pong",
        "to": "tcp:h.example:1",
        "word": "denied",
        "reason": "rule 3 denies it; it would take a rule in front of that one: allow out pong tcp:h.example:1",
        "rule": "3: deny out any any",
    },
    {
        "time": "2026-10-04T11:00:00.000Z",
        "service": None,
        "uri": None,
        "to": "tcp:192.0.2.1:1",
        "word": "timeout",
        "reason": "\x1b[2J",
        "rule": None,
    },
]


class Why(PlumbTestCase):
    def test_for_people_each_is_told_with_what_to_do(self) -> None:
        rundir = self.broker(answer_with({"ok": True, "refusals": REFUSALS}))
        status, out, err = self.ran("--rundir", rundir, "why")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "2026-10-04T12:00:01.250Z  pong to tcp://h.example:1/pong: denied",
                "    rule    3: deny out any any",
                "    reason  rule 3 denies it; it would take a rule in front of that one: "
                "allow out pong tcp:h.example:1",
                "    advice  ask whoever runs this broker for a rule; plumb explain tells each step",
                "2026-10-04T11:00:00.000Z  any to tcp:192.0.2.1:1: timeout",
                "    reason  ?[2J",
                "    advice  try again; if it stays so, look whether the far side runs",
            ],
        )
        self.assertEqual(self.requests, [{"op": "why"}])

    def test_one_service_alone_is_asked_for(self) -> None:
        rundir = self.broker(answer_with({"ok": True, "refusals": []}))
        status, out, _ = self.ran("--rundir", rundir, "why", "pong")
        self.assertEqual(self.requests, [{"op": "why", "service": "pong"}])
        self.assertEqual((status, out), (0, "nothing of yours was refused for pong, as far as this broker remembers\n"))

    def test_as_json_it_is_what_the_broker_told(self) -> None:
        rundir = self.broker(answer_with({"ok": True, "refusals": REFUSALS}))
        _, out, _ = self.ran("--rundir", rundir, "why", "--json")
        self.assertEqual(json.loads(out), REFUSALS)

    def test_who_may_not_ask_is_told_so(self) -> None:
        rundir = self.broker(refuse("denied", "a confined client may look up, no more"))
        self.assertEqual(
            self.ran("--rundir", rundir, "why"),
            (1, "", "plumb: refused: denied: a confined client may look up, no more\n"),
        )

    def test_every_word_of_a_refusal_has_its_advice(self) -> None:
        self.assertEqual(list(ADVICE), list(Refusal))
        self.assertEqual(len(set(ADVICE.values())), len(Refusal))

    def test_a_word_of_a_later_broker_leads_to_the_documents(self) -> None:
        self.assertIn("docs/protocol.md", advice_of("tired"))

    def test_a_reason_may_have_its_own(self) -> None:
        for word, reason, advice in (
            (
                "unreachable",
                "the scheme daemon for udp: there is no socket, it does not run (/r/udp)",
                "start the process",
            ),
            ("unreachable", "what it speaks is not TLS", "something else listens there"),
            ("unreachable", "its certificate has expired", "tls.trust"),
            ("unreachable", "unknown authority: it shows its own certificate alone", "tls.trust"),
            ("not-possible", "type=dgram: a WebSocket is a connection that ends; ask for seqpacket", "ask in the way"),
        ):
            self.assertIn(advice, advice_of(word, reason))
            self.assertEqual(advice_of("busy", reason), advice_of("busy"))

    def test_what_the_far_side_denies_is_not_asked_of_this_broker(self) -> None:
        for said in ("denied", "", "a word of a later one"):
            self.assertIn("whoever runs the far side", advice_of("denied", said_no(said).reason))
        self.assertIn("this broker", advice_of("denied", "rule 2 denies it"))
