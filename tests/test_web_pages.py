"""plumberd.wiring.inbound.web_pages: what is there under ``/-/``, and for whom."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from twisted.internet.task import Clock

from plumberd.pure.policy.route import Routes, parse_route
from plumberd.wiring.inbound.inbound import REFUSAL_SECONDS
from plumberd.wiring.inbound.web_pages import LISTENING_SECONDS, Listening
from plumberd.wiring.service import PlumberdService
from tests.running import leading
from tests.support import DEADLINE_SECONDS, in_thread
from tests.tables import each
from tests.test_inbound_web import TOKEN, TOKENS, WebTestCase
from tests.web_clients import http, web

BEARER = f"Authorization: Bearer {TOKEN}\r\n"
RULES = ("allow in open ws:any", "allow in closed ws:any for token:phone", "allow in away ws:any")


class PagesTestCase(WebTestCase):
    async def get(self, broker: PlumberdService, target: str, more: str = "", method: str = "GET") -> Any:
        return await in_thread(http, self.tcpd_port(broker), f"{method} {target}\r\n{more}")

    async def json(self, broker: PlumberdService, target: str, more: str = "") -> Any:
        status, headers, body = await self.get(broker, target, more)
        self.assertEqual((status, headers["content-type"]), (200, "application/json"))
        return json.loads(body)


class Files(PagesTestCase):
    async def test_the_library_is_always_there(self) -> None:
        broker = self.listen()
        status, headers, body = await self.get(broker, "/-/plumb.js")
        self.assertEqual((status, headers["content-type"]), (200, "text/javascript; charset=utf-8"))
        self.assertEqual(headers["x-content-type-options"], "nosniff")
        self.assertIn("cache-control", headers)
        self.assertIn(b"export", body)
        self.assertEqual((await self.get(broker, "/-/plumb.js", method="HEAD"))[2], b"")
        await self.wait_until_idle(broker)
        self.assertEqual(self.outcomes, [])

    async def test_the_page_is_there_where_it_is_on(self) -> None:
        broker = self.listen(web=web(page=True))
        for target, kind in (("", "text/html"), ("page.js", "text/javascript"), ("page.css", "text/css")):
            status, headers, _ = await self.get(broker, f"/-/{target}")
            self.assertEqual((status, headers["content-type"].partition(";")[0]), (200, kind))
            policy = headers["content-security-policy"]
            self.assertIn("default-src 'none'", policy)
            self.assertEqual(headers["cross-origin-resource-policy"], "same-origin")
            self.assertNotIn("unsafe", policy)
        off = self.listen()
        for target in ("", "page.js", "page.css", "services", "nothing", "../setup.cfg", "%2e%2e/x", "plumb.js/x"):
            status, _, body = await self.get(off, f"/-/{target}")
            self.assertEqual((status, body[:16]), (404, b"unknown-service:"), target)


class Services(PagesTestCase):
    def paged(self, **settings: Any) -> PlumberdService:
        routes = Routes({}, leading(away=parse_route("away", "tcp://192.0.2.1/away")))
        broker = self.listen(*RULES, web=web(page=True, tokens=TOKENS), routes=routes, **settings)
        for name in ("open", "closed", "hidden"):
            self.serve(broker.settings.rundir, name)
        return broker

    async def test_each_sees_what_it_may_have(self) -> None:
        broker = self.paged()
        for more, names in (("", ["away", "open"]), (BEARER, ["away", "closed", "open"])):
            found = await self.json(broker, "/-/services", more)
            self.assertEqual(found, {"ok": True, "services": [{"service": name} for name in names]})

    async def test_the_run_directory_is_read_once_a_second(self) -> None:
        broker = self.listen("allow in any ws:any")
        core, clock = broker.core, Clock()
        assert core is not None
        listening = Listening(core)
        self.patch(core, "reactor", clock)
        self.assertEqual(listening.names(), frozenset())
        self.serve(broker.settings.rundir, "late")
        self.assertEqual(listening.names(), frozenset())
        clock.advance(LISTENING_SECONDS)
        self.assertEqual(listening.names(), {"late"})

    @each(
        ("open", "", True, None),
        ("closed", "", False, "denied"),
        ("nobody", "", False, "denied"),
        ("closed", BEARER, True, None),
        ("hidden", BEARER, False, "denied"),
        (".x", BEARER, False, "bad-request"),
        ("open", "Authorization: Bearer wrong\r\n", False, "unauthenticated"),
        ("away", "", True, None),
    )
    async def test_one_is_told_of(self, name: str, more: str, ok: bool, word: str | None) -> None:
        broker = self.paged()
        found = await self.json(broker, f"/-/services/{name}", more)
        self.assertEqual((found["ok"], found.get("error")), (ok, word))
        self.assertEqual("reason" in found, not ok)
        await self.wait_until_idle(broker)

    async def test_who_has_proved_nothing_learns_no_difference(self) -> None:
        broker = self.paged()
        closed, nobody = [await self.json(broker, f"/-/services/{name}") for name in ("closed", "nobody")]
        self.assertEqual(closed["reason"], nobody["reason"])

    @each(("/-/services",), ("/-/services/open",), ("/-/services/nobody",))
    async def test_it_takes_the_same_time_whatever_the_answer(self, target: str) -> None:
        broker = self.paged()
        began = time.monotonic()
        _, headers, _ = await self.get(broker, target)
        self.assertGreaterEqual(time.monotonic() - began, REFUSAL_SECONDS)
        self.assertEqual(headers["cross-origin-resource-policy"], "same-origin")
        await self.wait_until_idle(broker)

    async def test_who_hangs_up_before_it_leaves_nothing(self) -> None:
        broker = self.paged()

        def work() -> None:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(b"GET /-/services/open HTTP/1.1\r\nHost: localhost\r\n\r\n")

        await in_thread(work)
        await self.wait_until_idle(broker)

    async def test_a_head_is_the_same_without_its_body(self) -> None:
        broker = self.paged()
        for target in ("/-/services", "/-/services/open", "/-/services/closed"):
            status, headers, body = await self.get(broker, target, method="HEAD")
            self.assertEqual((status, body), (200, b""))
            self.assertGreater(int(headers["content-length"]), 10)

    async def test_without_a_service_there_is_none_to_reach(self) -> None:
        broker = self.listen("allow in any ws:any")
        found = await self.json(broker, "/-/services/nobody", BEARER)
        self.assertEqual(found["error"], "unknown-service")
