"""plumberd.commands.status: what runs where, how full it is, and what a client exports."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.plumb_case import PlumbTestCase, answer_with
from tests.support import DEADLINE_SECONDS, in_thread

STATUS = {
    "ok": True,
    "version": "1.2",
    "rundir": "/run/it's here",
    "dialects": {"native": "plumberd", "libipc-zig": "ipc"},
    "you": {"uid": 1000, "gid": 1000, "pid": 77, "confined": False, "connections": 1},
}
EVERYTHING = {
    **STATUS,
    "pid": 4711,
    "uptime_seconds": 12.3,
    "tcpd": ["tcp:9000"],
    "defaults": {"in": "deny", "out": "allow"},
    "rules": ["allow in a any", "deny in any any"],
    "redirects": {"a": "b"},
    "routes": {"c": "tcp://h:9000/c"},
    "handover": "auto",
    "now": {"clients": 1, "unread_descriptors": 0},
    "counts": {"out granted": 3},
}


class Status(PlumbTestCase):
    def test_as_json_it_is_the_brokers_answer(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(EVERYTHING)), "status", "--json")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual({**json.loads(out), "ok": True}, EVERYTHING)
        self.assertEqual(self.requests, [{"op": "status"}])

    def test_for_people_a_client_sees_itself(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(STATUS)), "status")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "plumberd 1.2 serves /run/it's here",
                "speaks   native on plumberd, libipc-zig on ipc",
                "you      uid 1000, pid 77, not confined",
            ],
        )

    def test_for_people_an_administrator_sees_everything(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(answer_with(EVERYTHING)), "status")
        self.assertEqual((status, err), (0, ""))
        for line in (
            "runs     pid 4711, for 12 s",
            "tcpd     tcp:9000",
            "default  in=deny out=allow",
            "rule 1   allow in a any",
            "rule 2   deny in any any",
            "redirect a to b",
            "route    c = tcp://h:9000/c",
            "handover auto",
            "now      1 clients, 0 unread descriptors",
            "so far   3 out granted",
        ):
            self.assertIn(line, out.splitlines())

    def test_every_way_in_is_told_and_every_certificate_that_ends(self) -> None:
        answer = {
            **EVERYTHING,
            "tcpd": [],
            "tlsd": ["tcp:9001", "tcp:9002"],
            "udpd": [],
            "webipcd": ["tcp:9080"],
            "publish": ["pong on tcp:7000"],
            "publish_tls": ["web on tcp:7001"],
            "expiring": ["server.pem ends in 3 days"],
        }
        _, out, _ = self.ran("--rundir", self.broker(answer_with(answer)), "status")
        told = out.splitlines()[4:10]
        self.assertEqual(
            told,
            [
                "tlsd     tcp:9001, tcp:9002",
                "webipcd  tcp:9080",
                "publish  pong on tcp:7000",
                "publish  web on tcp:7001, inside TLS",
                "expiring server.pem ends in 3 days",
                "default  in=deny out=allow",
            ],
        )

    def test_datagrams_are_told_where_there_were_any(self) -> None:
        none = {"sessions": 0, "message_bytes": None, "sent": 0, "lost": 0}
        for told, line in (
            (none, None),
            (
                {**none, "sessions": 1, "message_bytes": 1458},
                "1 sessions, of at most 1458 bytes a message; none so far",
            ),
            ({**none, "sent": 3, "too_large": 2}, "0 sessions; 3 sent, 2 too large"),
        ):
            answer = {**EVERYTHING, "udpd": ["udp:9000"], "datagrams": told}
            _, out, _ = self.ran("--rundir", self.broker(answer_with(answer)), "status")
            self.assertIn("udpd     udp:9000", out.splitlines())
            found = [text for text in out.splitlines() if text.startswith("datagrams")]
            self.assertEqual(found, [f"datagrams {line}"] if line else [])

    def test_claims_are_told_with_their_claimants(self) -> None:
        serving = [{"service": "pong", "uid": 1000, "pid": 77, "waiting": 3}]
        _, out, _ = self.ran("--rundir", self.broker(answer_with({**EVERYTHING, "serving": serving})), "status")
        self.assertIn("claim    pong by uid 1000, pid 77; 3 wait", out.splitlines())

    def test_where_nothing_listens_and_nothing_has_been_it_says_so(self) -> None:
        answer = {**EVERYTHING, "tcpd": [], "counts": {}}
        _, out, _ = self.ran("--rundir", self.broker(answer_with(answer)), "status")
        self.assertIn("remote   no callers (--tcpd, --tlsd, --udpd, --webipcd)", out.splitlines())
        self.assertIn("so far   nothing", out.splitlines())


LIMITS: list[dict[str, Any]] = [
    {"name": "lookups_per_uid", "limit": 64, "used": 3, "of": "uid 1000"},
    {"name": "lookups", "limit": 5000000, "used": 5000000, "of": None},
    {"name": "connect_seconds", "limit": 10.0, "used": None, "of": None},
]


class Limits(PlumbTestCase):
    def test_for_people_they_are_a_table_of_what_is_used(self) -> None:
        rundir = self.broker(answer_with({**STATUS, "limits": LIMITS}))
        status, out, err = self.ran("--rundir", rundir, "status", "--limits")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "limit            used     of       full  by",
                "lookups_per_uid  3        64       5%    uid 1000",
                "lookups          5000000  5000000  100%",
                "connect_seconds  -        10",
            ],
        )

    def test_as_json_they_are_what_the_broker_told(self) -> None:
        rundir = self.broker(answer_with({**STATUS, "limits": LIMITS}))
        _, out, _ = self.ran("--rundir", rundir, "status", "--limits", "--json")
        self.assertEqual(json.loads(out), LIMITS)

    def test_a_broker_that_tells_of_none_is_no_error(self) -> None:
        status, out, _ = self.ran("--rundir", self.broker(answer_with(STATUS)), "status", "--limits")
        self.assertEqual((status, out), (0, "this broker tells of no limits\n"))

    def test_without_the_option_people_see_none_and_programs_all(self) -> None:
        rundir = self.broker(answer_with({**STATUS, "limits": LIMITS}))
        _, out, _ = self.ran("--rundir", rundir, "status")
        self.assertNotIn("lookups_per_uid", out)
        _, out, _ = self.ran("--rundir", rundir, "status", "--json")
        self.assertEqual(json.loads(out)["limits"], LIMITS)


class Env(PlumbTestCase):
    async def test_it_prints_what_a_shell_takes(self) -> None:
        rundir = self.broker(answer_with(STATUS))
        status, out, err = self.ran("env", environ={"IPC_RUNDIR": rundir})
        self.assertEqual((status, err), (0, ""))
        shell = await in_thread(
            subprocess.run,
            ["/bin/sh", "-c", out + 'printf "%s\\n" "$IPC_RUNDIR" "$RUNDIR"; env | grep -c RUNDIR'],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env={},
        )
        self.assertEqual(shell.stdout.splitlines(), ["/run/it's here", "/run/it's here", "2"])

    def test_as_json(self) -> None:
        rundir = self.broker(answer_with(STATUS))
        _, out, _ = self.ran("env", "--json", environ={"IPC_RUNDIR": rundir})
        self.assertEqual(json.loads(out), {"IPC_RUNDIR": "/run/it's here", "RUNDIR": "/run/it's here"})

    def test_a_directory_of_the_users_is_not_asked(self) -> None:
        status, out, err = self.ran("--rundir", "/some where", "env")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out, "export IPC_RUNDIR='/some where'\nexport RUNDIR='/some where'\n")

    def test_without_a_broker_it_says_so_and_tells_where_one_would_be(self) -> None:
        folder = self.folder()
        status, out, err = self.ran("env", environ={"IPC_RUNDIR": folder})
        self.assertEqual((status, out.splitlines()[0]), (0, f"export IPC_RUNDIR={folder}"))
        self.assertIn("no broker answers", err)
        self.assertIn("telling where one would be", err)
