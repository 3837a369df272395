"""plumberd.commands.test: a policy does what it is meant to do, or it is told where not."""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import mock

from tests.commands.test_explain import BY_DEFAULT, GRANTED
from tests.commands.test_offline import write_configuration
from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase, answer_with
from tests.tables import each

GOOD = """# The office may, nobody else.
granted out pong tcp://198.51.100.9:80
granted out pong tcp://pong.example:85 at 198.51.100.9 mode locked
granted out audio tcp://audio.example.com:9000 as user:root

refused out pong tcp://198.51.100.9:91
refused in web tcp:192.0.2.7
"""


class TestTestCase(PlumbTestCase):
    def file(self, text: str) -> str:
        path = os.path.join(self.folder(), "policy.test")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class Configuration(TestTestCase):
    def tried(self, text: str, *words: str) -> tuple[int, str, str, str, str]:
        path, config = self.file(text), write_configuration(self.folder())
        status, out, err = self.ran("test", path, "--config", config, *words)
        return status, out, err, path, config

    def test_a_policy_that_does_what_it_is_meant_to_is_status_0(self) -> None:
        self.assertEqual(self.tried(GOOD)[:3], (0, "5 assertions, 0 failed\n", ""))

    def test_what_fails_is_told_with_its_line_what_was_found_and_the_rule(self) -> None:
        text = "granted out pong tcp://198.51.100.9:91\n\nrefused out pong tcp://198.51.100.9:80\n"
        status, out, err, path, config = self.tried(text)
        self.assertEqual((status, err), (1, ""))
        reason = "no rule matches, and the default refuses it; a rule for it: allow out pong tcp:198.51.100.9:91"
        self.assertEqual(
            out.splitlines(),
            [
                f"{path}:1: granted out pong tcp://198.51.100.9:91",
                "    wanted  granted",
                "    found   refused: denied, by default out=deny",
                f"    reason  {reason}",
                f"{path}:3: refused out pong tcp://198.51.100.9:80",
                "    wanted  refused",
                f"    found   granted: locked, by rule 1 ({config}:2): allow out pong tcp:198.51.100.0/24:80-90",
                "    reason  rule 1 allows it",
                "2 assertions, 2 failed",
            ],
        )

    def test_another_mode_than_wanted_fails(self) -> None:
        status, out, *_ = self.tried("granted out pong tcp://198.51.100.9:80 mode relayed")
        self.assertEqual(status, 1)
        self.assertIn("    wanted  granted, relayed\n    found   granted: locked, by rule 1", out)

    def test_addresses_that_decide_and_are_not_given_fail_it_and_nothing_is_looked_up(self) -> None:
        status, out, *_ = self.tried("granted out pong tcp://pong.example:85")
        self.assertEqual(status, 1)
        self.assertIn("no verdict: the addresses of pong.example decide; give them: at ADDRESS", out)
        self.assertTrue(out.endswith("1 assertion, 1 failed\n"))

    def test_what_the_rules_grant_and_this_version_cannot_do_is_granted(self) -> None:
        rule = 'rules = ["allow out pong ws:pong.example.com:80 for user:root"]\n[default]\nout = "deny"\n'
        config = write_configuration(self.folder(), rule)
        line = "granted out pong ws://pong.example.com/pong as user:root"
        self.assertEqual(self.ran("test", self.file(line), "--config", config)[0], 0)
        self.assertEqual(self.ran("test", self.file(line.replace("granted", "refused")), "--config", config)[0], 1)
        self.assertEqual(self.ran("test", self.file(line + " mode relayed"), "--config", config)[0], 0)
        with mock.patch("plumberd.wiring.dialing.served.SERVED", ("tcp", "unix")):
            self.assertEqual(self.ran("test", self.file(line), "--config", config)[0], 0)
            self.assertEqual(self.ran("test", self.file(line + " mode relayed"), "--config", config)[0], 1)

    def test_a_route_that_makes_no_sense_is_a_refusal(self) -> None:
        status, out, *_ = self.tried("granted out pong tcp://user:secret@h.example:1")
        self.assertEqual(status, 1)
        self.assertIn("found   refused: bad-request", out)

    def test_as_json(self) -> None:
        status, out, _, path, config = self.tried(GOOD + "granted out pong tcp://198.51.100.9:91\n", "--json")
        self.assertEqual(status, 1)
        found = json.loads(out)
        (failure,) = found.pop("failures")
        self.assertEqual(found, {"assertions": 6, "failed": 1})
        self.assertEqual(sorted(failure), ["assertion", "file", "found", "line", "reason", "rule", "wanted"])
        self.assertEqual((failure["file"], failure["line"], failure["rule"]["number"]), (path, 8, None))

    def test_a_configuration_with_mistakes_is_status_2_and_all_are_told(self) -> None:
        config = write_configuration(self.folder(), 'handover = "thrown"\ngrup = "ipc"\n')
        status, out, err = self.ran("test", self.file(GOOD), "--config", config)
        self.assertEqual((status, out, err.count(config)), (2, "", 2))


class Broker(TestTestCase):
    @each(
        ("granted", GRANTED, "granted out pong", 0),
        ("granted in its mode", GRANTED, "granted out pong mode locked", 0),
        ("granted in another", GRANTED, "granted out pong mode direct", 1),
        ("not refused", GRANTED, "refused out pong", 1),
        ("refused", BY_DEFAULT, "refused out pong", 0),
        ("not granted", BY_DEFAULT, "granted out pong", 1),
        ("unreachable", {**BY_DEFAULT, "word": "unreachable"}, "refused out pong", 1),
    )
    def test_without_a_configuration_the_broker_is_asked(
        self, label: str, answer: dict[str, Any], text: str, wanted: int
    ) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(answer)), "test", self.file(text))
        self.assertEqual((status, err), (wanted, ""))
        self.assertEqual(self.requests, [{"op": "explain", "direction": "out", "service": "pong"}])

    def test_each_assertion_is_asked_as_it_stands_and_the_variable_says_nothing(self) -> None:
        text = "granted out any tcp://h.example:1 as user:alice as confined\ngranted in pong tcp:192.0.2.7\n"
        rundir = self.broker(answer_with(GRANTED))
        self.ran("--rundir", rundir, "test", self.file(text), environ={"IPC_NETWORKD": "pong tcp://h:1"})
        self.assertEqual(
            self.requests,
            [
                {"op": "explain", "direction": "out", "uri": "tcp://h.example:1", "as": ["user:alice", "confined"]},
                {"op": "explain", "direction": "in", "service": "pong", "peer": "tcp:192.0.2.7"},
            ],
        )

    def test_a_broker_resolves_by_itself_so_addresses_fail_it(self) -> None:
        path = self.file("granted out pong tcp://h.example:1 at 192.0.2.7")
        status, out, _ = self.ran("--rundir", self.broker(answer_with(GRANTED)), "test", path)
        self.assertEqual((status, self.requests), (1, []))
        self.assertIn("at is for --config", out)

    def test_who_may_not_ask_as_somebody_else_has_no_verdict(self) -> None:
        rundir = self.broker(refuse("denied", "for root"))
        status, out, _ = self.ran("--rundir", rundir, "test", self.file("refused out pong as user:alice"))
        self.assertEqual(status, 1)
        self.assertIn("no verdict: denied: for root", out)

    def test_no_broker_is_status_2(self) -> None:
        status, out, err = self.ran("--rundir", self.folder(), "test", self.file("granted out pong"))
        self.assertEqual((status, out), (2, ""))
        self.assertIn("no broker answers", err)


class Files(TestTestCase):
    def test_every_mistake_is_told_with_its_line_and_nobody_is_asked(self) -> None:
        path = self.file("granted out pong\nallow out pong\n# x\ngranted up pong\n")
        status, out, err = self.ran("--rundir", self.broker(answer_with(GRANTED)), "test", path)
        self.assertEqual((status, out, self.requests), (2, "", []))
        self.assertEqual(
            err.splitlines(),
            [f"plumb: {path}:2: 'allow': wanted granted or refused", f"plumb: {path}:4: 'up': wanted in, out or serve"],
        )

    def test_a_file_without_an_assertion_is_an_error(self) -> None:
        path = self.file("# nothing yet\n")
        self.assertEqual(self.ran("test", path), (2, "", f"plumb: {path}: no assertion in it\n"))

    def test_a_file_that_cannot_be_read_is_an_error(self) -> None:
        folder = self.folder()
        self.assertEqual(self.ran("test", folder), (2, "", f"plumb: {folder}: Is a directory\n"))
        path = os.path.join(folder, "x")
        with open(path, "wb") as file:
            file.write(b"granted out pong\xff")
        self.assertEqual(self.ran("test", path), (2, "", f"plumb: {path}: no UTF-8\n"))
