"""docs/plumb.md: it names every command, option and status, and its examples are what is printed."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pwd
import re
import shlex
import tomllib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from plumberd.commands.output import ERROR, OK, REFUSED
from plumberd.plumb import parser
from plumberd.pure.passwords import Cost, Entry, format_entry
from plumberd.pure.policy.assertion import parse_assertions
from tests.fake_broker import frame, send
from tests.plumb_case import PlumbTestCase
from tests.test_docs import quoted, read, section
from tests.test_seen import inward, local, out, remote

DOCUMENT = "plumb.md"
KEY = bytes.fromhex("0123456789abcdef" * 4)
NOW = datetime.datetime(2026, 10, 4, 12, tzinfo=datetime.UTC)
UIDS = {"alice": 1000, "bob": 1001}

ANSWERS: dict[str, dict[str, Any]] = {
    "why": {
        "ok": True,
        "refusals": [
            {
                "time": "2026-10-04T12:00:01.250Z",
                "service": "audio",
                "uri": "unix:///audio",
                "to": "unix:audio",
                "word": "denied",
                "reason": "rule 1 denies it; it would take a rule in front of that one: allow out audio unix:audio",
                "rule": "1: deny out audio any",
            },
            {
                "time": "2026-10-04T11:58:30.007Z",
                "service": "pong",
                "uri": "tcp://pong.example.com:9000/pong",
                "to": "tcp:pong.example.com:9000",
                "word": "timeout",
                "reason": "not done within 10 seconds: tcp:pong.example.com:9000 did not answer",
                "rule": "2: allow out pong tcp:pong.example.com:9000 for user:alice",
            },
        ],
    },
    "status": {
        "ok": True,
        "version": "0.3.0",
        "rundir": "/run/ipc",
        "dialects": {"native": "plumberd", "libipc-zig": "ipc"},
        "you": {"uid": 1000, "gid": 1000, "pid": 4711, "confined": False, "connections": 1},
        "limits": [
            {"name": "connect_seconds", "limit": 10.0, "used": None, "of": None},
            {"name": "lookups_per_uid", "limit": 64, "used": 3, "of": "uid 1000"},
            {"name": "unread_descriptors_per_uid", "limit": 16, "used": 16, "of": "uid 1000"},
        ],
    },
    "ss": {
        "ok": True,
        "connections": [
            {
                "id": "40961",
                "service": "pong",
                "uid": 1000,
                "pid": 4711,
                "mode": "locked",
                "age_seconds": 12.5,
                "bytes_sent": 2048,
                "bytes_received": 7,
                "rtt_ms": 0.25,
                "state": "established",
                "remote": "192.0.2.7:9000",
                "held": True,
            },
            {
                "id": "40977",
                "service": "db",
                "uid": 1000,
                "pid": 4712,
                "mode": "locked",
                "age_seconds": 5400.0,
                "bytes_sent": 3565158,
                "bytes_received": 95630131,
                "rtt_ms": 1.1,
                "state": "established",
                "remote": "192.0.2.10:5432",
                "held": True,
            },
        ],
        "more": 0,
        "after": None,
    },
    "kill": {"ok": True, "connection": ""},
    "reload": {
        "ok": True,
        "generation": 2,
        "changes": ["rules: + allow out db tcp:192.0.2.0/24:5432", "limits.relays: 500 → 600"],
        "warnings": ["rule 3 never has its turn: rule 1 matches first"],
    },
}
"""What the broker of the examples answers."""


def went(service: str | None, host: str, port: int, **members: Any) -> dict[str, Any]:
    """Return a record of a connection that went out."""
    to = f"{host}:{port}"
    return out(service=service, uri=f"tcp://{to}", to=f"tcp:{to}", address=None, **members)


LOG = (
    *(went("db", f"192.0.2.{n}", 5432, addresses=[]) for n in (10, 11, 11)),
    went("web", "www.example.com", 8080),
    went("web", "www.example.com", 8081, who=local(uid=1001, user="bob")),
    inward(who=remote(address="198.51.100.9")),
    went("cache", "127.0.0.1", 6379, addresses=[]),
    went(None, "www.example.com", 80),
    went("db", "192.0.2.12", 5432, verdict="unreachable"),
)


def fenced(kind: str) -> list[str]:
    """Return the document's blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", read(DOCUMENT), flags=re.MULTILINE | re.DOTALL)


def examples() -> Iterator[tuple[str, str]]:
    """Yield each command of the document's examples, and what it prints."""
    for block in fenced("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (found,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found.choices)


def long_options(command: argparse.ArgumentParser) -> set[str]:
    return {option for action in command._actions for option in action.option_strings if option.startswith("--")}


class Listed(PlumbTestCase):
    def test_every_command_has_its_section_and_there_is_no_other(self) -> None:
        headings = re.findall(r"^## plumb (\S+)$", read(DOCUMENT), flags=re.MULTILINE)
        self.assertEqual(sorted(headings), sorted(subcommands()))

    def test_every_option_stands_in_the_synopsis_and_in_the_table_of_its_command(self) -> None:
        for name, command in subcommands().items():
            text = section(DOCUMENT, f"plumb {name}")
            # Behind a lone -- stand another program's words.
            synopsis = "\n".join(re.findall(rf"^    plumb {name}\b(.*?)(?: -- .*)?$", text, flags=re.MULTILINE))
            options = long_options(command) - {"--help"}
            self.assertEqual(set(re.findall(r"--[a-z-]+", synopsis)), options, name)
            told = {option.split()[0] for option in re.findall(r"^\| `(--[^`]+)` \|", text, flags=re.MULTILINE)}
            self.assertEqual(told, options, name)

    def test_every_option_has_the_name_of_its_value_and_so_have_words(self) -> None:
        for name, command in subcommands().items():
            text = section(DOCUMENT, f"plumb {name}")
            for action in command._actions:
                shown = action.metavar if isinstance(action.metavar, str) else ""
                if action.option_strings and shown:
                    self.assertIn(f"`{action.option_strings[-1]} {shown}`", text)
                elif shown:
                    for word in shown.split("|"):
                        self.assertRegex(text.split("\n\n")[1], rf"\b{re.escape(word)}\b", name)

    def test_the_general_options_stand_in_front(self) -> None:
        for option in long_options(parser()):
            self.assertIn(option, {words.split()[0] for words in quoted(read(DOCUMENT))})

    def test_every_exit_status_stands_there(self) -> None:
        rows = re.findall(r"^\| (\d+) \|", read(DOCUMENT), flags=re.MULTILINE)
        self.assertEqual([int(row) for row in rows], [OK, REFUSED, ERROR, 130])


class Examples(PlumbTestCase):
    def setUp(self) -> None:
        super().setUp()
        folder = self.folder()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        (configuration,), (assertions,) = fenced("toml"), fenced("plumb-test")
        log = "".join(json.dumps(record) + "\n" for record in LOG)
        bob = format_entry(Entry("bob", Cost(), bytes(16), bytes(32))) + "\n"
        files = (
            ("plumberd.toml", configuration),
            ("policy.test", assertions),
            ("audit.jsonl", log),
            ("passwords", bob),
        )
        for name, text in files:
            with open(name, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(name, 0o644)
        self.rundir = self.broker(lambda sock, request: send(sock, frame(ANSWERS[request["op"]])))

    def printed(self, command: str) -> str:
        """Return what a command of the document prints, on a machine that has two users."""

        def account(name: str) -> Any:
            if name not in UIDS:
                raise KeyError(name)
            return pwd.struct_passwd((name, "x", UIDS[name], UIDS[name], "", "/", "/bin/sh"))

        with (
            mock.patch("pwd.getpwnam", side_effect=account),
            mock.patch("pwd.getpwuid", side_effect=KeyError),
            mock.patch("secrets.token_bytes", return_value=KEY),
            mock.patch("plumberd.commands.ca.now", return_value=NOW),
        ):
            _, printed, err = self.ran(*shlex.split(command)[1:], environ={"IPC_RUNDIR": self.rundir})
        self.assertEqual(err, "")
        return printed.replace(os.getcwd(), "/home/alice")

    def test_each_prints_what_stands_there(self) -> None:
        shown = list(examples())
        self.assertGreater(len(shown), 8)
        for command, wanted in shown:
            self.assertEqual(self.printed(command).rstrip("\n"), wanted.rstrip("\n"), command)

    def test_every_command_that_prints_has_one(self) -> None:
        self.assertEqual(
            {word for command, _ in examples() for word in command.split() if word in subcommands()},
            set(subcommands()) - {"connect", "exec", "fdpass", "forward", "restrict", "sandbox", "serve"},
        )

    def test_every_command_that_runs_a_program_shows_a_line_that_is_understood(self) -> None:
        found = set()
        for line in re.findall(r"^    (plumb .* -- .*)$", read(DOCUMENT), flags=re.MULTILINE):
            if not re.search(r"CMD|…", line):
                args = parser().parse_args(shlex.split(line, comments=True)[1:])
                self.assertTrue(args.command)
                found.add(line.split()[1])
        self.assertEqual(found, {"exec", "restrict", "sandbox", "serve"})

    def test_the_file_of_assertions_is_one(self) -> None:
        self.assertEqual(len(parse_assertions(fenced("plumb-test")[0])), 7)

    def test_the_draft_is_a_file_that_can_be_included(self) -> None:
        (draft,) = [printed for command, printed in examples() if " learn " in command]
        self.assertEqual(list(tomllib.loads(draft)), ["rules"])
