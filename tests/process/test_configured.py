"""Real brokers with a configuration: what it says holds, and with a mistake in it nothing does."""

from __future__ import annotations

import os

from tests.process.running import TWIST, ProcessTestCase, Program


class Configured(ProcessTestCase):
    def setUp(self) -> None:
        self.home = self.folder()
        self.path = os.path.join(self.home, "plumberd.toml")
        self.rundir = os.path.join(self.home, "run")

    def write(self, text: str) -> None:
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(self.path, 0o644)

    def check_refused(self, program: Program, *mistakes: str) -> None:
        self.assertEqual(program.wait(), 1)
        self.assertEqual(len(program.lines), len(mistakes), program.output)
        for line, mistake in zip(program.lines, mistakes, strict=True):
            self.assertTrue(line.startswith(f"{self.path}{mistake}"), line)
        self.assertFalse(os.path.exists(self.rundir))

    def test_what_it_says_holds_behind_what_the_options_say(self) -> None:
        self.write("rundir = 'run'\nrules = ['deny out pong any']\ndefault.out = 'deny'")
        broker = self.start_broker("--config", self.path, "--allow", "out", "ping", "any")
        broker.wait_for("export IPC_NETWORKD")
        for said in (
            f"run directory {self.rundir}",
            "rule 1: allow out ping any",
            "plumberd.toml:2): deny out pong any",
            "default in=deny out=deny",
        ):
            self.assertIn(said, broker.output)
        self.assertEqual(self.plumb("--rundir", self.rundir, "status").returncode, 0)
        refused = self.plumb("--rundir", self.rundir, "connect", "pong")
        self.assertEqual(refused.returncode, 1)
        self.assertIn(b"rule 2", refused.stderr)

    def test_a_relative_one_is_read_from_where_it_was_started(self) -> None:
        self.write("rundir = 'run'")
        broker = self.start_broker("--config", "plumberd.toml", cwd=self.home)
        broker.wait_for(f"run directory {self.rundir}")
        self.assertEqual(broker.stop(), 0)

    def test_all_mistakes_are_told_one_a_line_and_nothing_listens(self) -> None:
        self.write(f"rundir = '{self.rundir}'\nrules = [\n'deny in any',\n5,\n]\nlimit = 1\n[default]\nin = 'no'\n")
        mistakes = (
            ":3: rules[0]: ",
            ": rules[1]: 5",
            ": default.in: 'no'",
            ": limit: no such key here; did you mean limits?",
        )
        self.check_refused(self.start_broker("--config", self.path), *mistakes)
        self.check_refused(self.program(*TWIST, "plumberd", "--config", self.path), *mistakes)
        self.check_refused(self.start_broker("--config", self.path, "--check"), *mistakes)

    def test_one_that_others_can_write_is_refused(self) -> None:
        self.write(f"rundir = '{self.rundir}'")
        os.chmod(self.path, 0o666)
        self.check_refused(self.start_broker("--config", self.path), ": others can write it (mode 0666): chmod go-w")
