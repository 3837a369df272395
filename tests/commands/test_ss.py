"""plumberd.commands.ss: connections that have left the broker, all pages of them, and their end."""

from __future__ import annotations

import json
import socket
from typing import Any
from unittest import mock

from plumberd.commands.ss import show_bytes, show_seconds
from tests.fake_broker import frame, refuse, send
from tests.plumb_case import PlumbTestCase, answer_with
from tests.tables import each

ONE: dict[str, Any] = {
    "id": "4711",
    "attempt": 3,
    "service": "pong",
    "uid": 1000,
    "pid": 77,
    "mode": "locked",
    "handed_over": "2026-10-04T12:00:01.250Z",
    "age_seconds": 12.5,
    "state": "established",
    "local": "192.0.2.1:40000",
    "remote": "192.0.2.7:9",
    "bytes_sent": 2048,
    "bytes_received": 7,
    "rtt_ms": 2,
    "held": True,
}


def page(*connections: dict[str, Any], more: int = 0, after: str | None = None) -> dict[str, Any]:
    return {"ok": True, "connections": list(connections), "more": more, "after": after}


class Listing(PlumbTestCase):
    def test_for_people_they_are_a_table(self) -> None:
        rundir = self.broker(answer_with(page(ONE, {**ONE, "id": "5", "uid": 4294967294, "service": None})))
        with mock.patch("pwd.getpwuid", side_effect=lambda uid: mock.Mock(pw_name="alice") if uid == 1000 else {}[uid]):
            status, out, err = self.ran("--rundir", rundir, "ss")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(
            out.splitlines(),
            [
                "id    service  who             pid  mode    age     sent     received  rtt   state        to",
                "4711  pong     alice           77   locked  12.5 s  2.0 KiB  7 B       2 ms  established  192.0.2.7:9",
                "5     any      uid 4294967294  77   locked  12.5 s  2.0 KiB  7 B       2 ms  established  192.0.2.7:9",
            ],
        )
        self.assertEqual(self.requests, [{"op": "ss"}])

    def test_what_the_kernel_does_not_tell_is_a_dash_and_what_nobody_holds_is_told(self) -> None:
        one = {**ONE, "bytes_sent": None, "bytes_received": None, "rtt_ms": None, "held": False, "state": "fin-wait-1"}
        _, out, _ = self.ran("--rundir", self.broker(answer_with(page(one))), "ss")
        self.assertIn("-     -         -    fin-wait-1, left by its owner", out.splitlines()[1])

    def test_all_pages_are_asked_for(self) -> None:
        pages = {None: page({**ONE, "id": "1"}, more=2, after="1"), "1": page({**ONE, "id": "2"}, more=1, after="2")}
        pages["2"] = page({**ONE, "id": "3"})
        rundir = self.broker(lambda sock, request: send(sock, frame(pages[request.get("after")])))
        status, out, _ = self.ran("--rundir", rundir, "ss", "--json")
        self.assertEqual((status, [one["id"] for one in json.loads(out)]), (0, ["1", "2", "3"]))
        self.assertEqual(self.requests, [{"op": "ss"}, {"op": "ss", "after": "1"}, {"op": "ss", "after": "2"}])

    def test_a_broker_that_goes_in_circles_is_left(self) -> None:
        rundir = self.broker(answer_with(page(ONE, more=1, after="1")))
        status, out, _ = self.ran("--rundir", rundir, "ss", "--json")
        self.assertEqual((status, len(json.loads(out)), len(self.requests)), (0, 2, 2))

    def test_those_of_one_service_alone(self) -> None:
        rundir = self.broker(answer_with(page(ONE, {**ONE, "id": "2", "service": "db"})))
        _, out, _ = self.ran("--rundir", rundir, "ss", "db", "--json")
        self.assertEqual([one["id"] for one in json.loads(out)], ["2"])

    def test_as_json_they_are_what_the_broker_told(self) -> None:
        _, out, _ = self.ran("--rundir", self.broker(answer_with(page(ONE))), "ss", "--json")
        self.assertEqual(json.loads(out), [ONE])

    def test_to_have_none_is_no_failure(self) -> None:
        rundir = self.broker(answer_with(page()))
        for words, of in (((), ""), (("pong",), " of pong")):
            status, out, _ = self.ran("--rundir", rundir, "ss", *words)
            said = f"no connection{of} that was handed over lives, as far as you may know\n"
            self.assertEqual((status, out), (0, said))
        self.assertEqual(self.ran("--rundir", rundir, "ss", "--json")[1], "[]\n")

    def test_where_the_kernel_does_not_tell_it_says_so(self) -> None:
        rundir = self.broker(refuse("not-possible", "handed-over connections are not counted here: no netlink"))
        status, _, err = self.ran("--rundir", rundir, "ss")
        self.assertEqual(status, 1)
        self.assertIn("refused: not-possible: handed-over connections are not counted here: no netlink", err)


class Killing(PlumbTestCase):
    def ending(self, sock: socket.socket, request: dict[str, Any]) -> None:
        if request["connection"] == "9":
            refuse("not-possible", "it was not ended: the kernel lacks INET_DIAG_DESTROY")(sock, request)
        else:
            send(sock, frame({"ok": True, "connection": request["connection"]}))

    def test_each_that_is_ended_is_told(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(self.ending), "kill", "1", "2")
        self.assertEqual((status, out, err), (0, "1 is ended\n2 is ended\n", ""))
        self.assertEqual(self.requests, [{"op": "kill", "connection": "1"}, {"op": "kill", "connection": "2"}])

    def test_where_the_kernel_cannot_it_says_so_and_goes_on(self) -> None:
        status, out, err = self.ran("--rundir", self.broker(self.ending), "kill", "1", "9", "2")
        self.assertEqual((status, out), (1, "1 is ended\n2 is ended\n"))
        self.assertEqual(err, "plumb: 9: not-possible: it was not ended: the kernel lacks INET_DIAG_DESTROY\n")


class Showing(PlumbTestCase):
    @each((0.0, "0.0 s"), (59.9, "59.9 s"), (60.0, "1.0 min"), (5400.0, "1.5 h"), (86400.0 * 9, "9.0 d"))
    def test_a_time(self, seconds: float, wanted: str) -> None:
        self.assertEqual(show_seconds(seconds), wanted)

    @each((None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 41, "10.0 TiB"))
    def test_bytes(self, count: int | None, wanted: str) -> None:
        self.assertEqual(show_bytes(count), wanted)
