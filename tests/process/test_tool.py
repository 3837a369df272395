"""The users' tool with a real broker: what it explains is what happens, and what it learns is what was seen."""

from __future__ import annotations

import json
import os
import pwd
import tomllib

from tests.process.running import ProcessTestCase, frame

CONFIGURATION = """include = ["rules.d/*.toml"]
rules = [
    "deny out audio any",
    "allow in pong tcp:192.0.2.7",
    "log out pong unix:pong",
    "deny out pong any",
]
"""


class ToolTestCase(ProcessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.home = self.folder()
        self.rundir = f"{self.home}/r"
        self.config = f"{self.home}/plumberd.toml"
        self.log = f"{self.home}/audit.jsonl"
        os.mkdir(f"{self.home}/rules.d")
        self.write(CONFIGURATION)

    def write(self, text: str, path: str = "") -> None:
        with open(path or self.config, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path or self.config, 0o644)

    def said(self, *words: str, stdin: bytes = b"") -> tuple[int, str]:
        """Run plumb; return its status, and all that it printed."""
        done = self.plumb("--rundir", self.rundir, *words, stdin=stdin)
        return done.returncode, (done.stdout + done.stderr).decode()


class Broker(ToolTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.running = self.broker(self.rundir, "--config", self.config, "--audit", self.log)

    def test_what_is_explained_is_what_happens_and_why_tells_it_again(self) -> None:
        decided = f"by rule 1 ({self.config}:3): deny out audio any"
        status, said = self.said("explain", "out", "audio")
        self.assertEqual((status, said.splitlines()[-1]), (1, f"refused   denied, {decided}"))
        status, refused = self.said("connect", "audio")
        self.assertEqual(status, 1)
        reason = refused.strip().removeprefix("plumb: refused: denied: ")
        self.assertIn(f"reason    {reason}", said)
        status, said = self.said("why", "audio")
        self.assertEqual(status, 0)
        self.assertIn(f"    reason  {reason}", said.splitlines())
        self.assertEqual(said.count("advice"), 1)
        self.assertIn("nothing of yours", self.said("why", "pong")[1])

    def test_a_broker_and_its_configuration_explain_the_same(self) -> None:
        for words in (
            ("out", "audio", "--as", "user:root"),
            ("out", "any", "tcp://192.0.2.7:80", "--as", "confined"),
            ("in", "pong", "tcp:192.0.2.7"),
            ("in", "pong", "tcp:192.0.2.8"),
            ("serve", "pong", "--as", "uid:1"),
        ):
            live = self.said("explain", *words, "--json")
            offline = self.said("explain", *words, "--json", "--config", self.config)
            self.assertEqual(live, offline, words)

    def test_a_reload_tells_what_changed_or_every_mistake(self) -> None:
        status, said = self.said("reload")
        self.assertEqual((status, said.splitlines()[-1]), (0, "generation 2: nothing changed"))
        self.write(CONFIGURATION.replace("192.0.2.7", "192.0.2.9"))
        status, said = self.said("reload")
        self.assertEqual(status, 0)
        self.assertIn("rules: - allow in pong tcp:192.0.2.7\nrules: + allow in pong tcp:192.0.2.9\n", said)
        self.write(CONFIGURATION.replace('"log', '"lag') + 'grup = "ipc"\n')
        status, said = self.said("reload")
        self.assertEqual(status, 1)
        lines = said.splitlines()
        self.assertEqual(len(lines), 3)
        self.assertTrue(all(self.config in line for line in lines[:2]), said)
        self.assertIn("the configuration in force stays", lines[2])
        self.assertEqual(self.said("explain", "in", "pong", "tcp:192.0.2.9")[0], 0)

    def test_the_use_of_every_limit_is_told(self) -> None:
        status, said = self.said("status", "--limits", "--json")
        self.assertEqual(status, 0)
        self.assertIn("lookups_per_uid", {one["name"] for one in json.loads(said)})
        self.assertIn("lookups_per_uid", self.said("status", "--limits")[1])


class Learning(ToolTestCase):
    def test_a_draft_of_what_was_seen_takes_the_place_of_the_rule_that_only_logged(self) -> None:
        broker = self.broker(self.rundir, "--config", self.config, "--audit", self.log)
        self.pongd(self.rundir)
        status, _ = self.said("connect", "pong", stdin=frame(b"hello"))
        self.assertEqual(status, 0)
        self.assertEqual(broker.stop(), 0)
        status, draft = self.said("learn", self.log)
        self.assertEqual(status, 0)
        user = pwd.getpwuid(os.geteuid()).pw_name
        self.assertEqual(tomllib.loads(draft), {"rules": [f"allow out pong unix:pong for user:{user}"]})
        self.assertIn(f"#   1  {self.config}:5", draft)

        self.write(draft, f"{self.home}/rules.d/learnt.toml")
        self.write(CONFIGURATION.replace('    "log out pong unix:pong",\n    "deny out pong any",\n', ""))
        policy = f"{self.home}/policy.test"
        self.write(f"granted out pong as user:{user} as confined\nrefused out pong as uid:4711 as confined\n", policy)
        self.assertEqual(self.said("test", policy, "--config", self.config), (0, "2 assertions, 0 failed\n"))
