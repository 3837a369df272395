"""plumberd.pure.web_request: what is asked for, and what is shown with it."""

from __future__ import annotations

import base64
from http import HTTPStatus

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.plumb_handshake import Login
from plumberd.pure.web_http import HttpError, HttpRequest
from plumberd.pure.web_request import PROTOCOLS, Own, Proof, Upgrade, hops_of, parse_request, proof_of
from plumberd.pure.ws_messages import Subprotocol
from tests.tables import each

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = {
    "connection": "keep-alive, Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": KEY,
}


def asking(target: str = "/pong", method: str = "GET", **changed: str | None) -> HttpRequest:
    headers = {**UPGRADE, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return HttpRequest(method, target, tuple((name, value) for name, value in headers.items() if value is not None))


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


class Asked(SynchronousTestCase):
    @each(
        (None, Subprotocol.IPC, False),
        ("ipc", Subprotocol.IPC, True),
        ("raw", Subprotocol.RAW, True),
        ("ipc.text, raw", Subprotocol.IPC_TEXT, True),
        ("chat, raw, plumb.token.abc", Subprotocol.RAW, True),
    )
    def test_a_websocket(self, offered: str | None, protocol: Subprotocol, is_offered: bool) -> None:
        found = parse_request(asking(sec_websocket_protocol=offered))
        self.assertEqual(found, Upgrade("pong", KEY, protocol, is_offered))

    @each(
        ("no upgrade", {"upgrade": None}, 400),
        ("no connection", {"connection": "close"}, 400),
        ("another version", {"sec_websocket_version": "8"}, 426),
        ("no version", {"sec_websocket_version": None}, 426),
        ("no key", {"sec_websocket_key": None}, 400),
        ("a short key", {"sec_websocket_key": "YQ=="}, 400),
        ("no key at all", {"sec_websocket_key": "?" * 24}, 400),
        ("only others", {"sec_websocket_protocol": "chat"}, 400),
        ("a token alone", {"sec_websocket_protocol": "plumb.token.abc"}, 400),
        ("too many", {"sec_websocket_protocol": ",".join(f"p{n}" for n in range(PROTOCOLS + 1))}, 400),
        ("a query", {"target": "/pong?x=y"}, 400),
        ("no path", {"target": "http://evil/pong"}, 400),
        ("another method", {"method": "POST"}, 405),
    )
    def test_none(self, _: str, changed: dict[str, str], status: int) -> None:
        self.assertEqual(self.assertRaises(HttpError, parse_request, asking(**changed)).status, status)

    @each(("/-/", "", True), ("/-/plumb.js?v=2", "plumb.js", True), ("/-/services/pong", "services/pong", True))
    def test_what_is_our_own(self, target: str, path: str, has_body: bool) -> None:
        self.assertEqual(parse_request(asking(target)), Own(path, has_body))
        self.assertEqual(parse_request(asking(target, "HEAD")), Own(path, False))
        error = self.assertRaises(HttpError, parse_request, asking(target, "DELETE"))
        self.assertEqual(error.status, HTTPStatus.METHOD_NOT_ALLOWED)


class Shown(SynchronousTestCase):
    def proof(self, is_browser: bool = False, encrypted: bool = True, **headers: str) -> Proof:
        return proof_of(asking(**headers), is_browser=is_browser, encrypted=encrypted)

    def test_nothing(self) -> None:
        self.assertEqual(self.proof(), Proof())

    @each(({"sec_websocket_protocol": "ipc, plumb.token.ab-c_1"}, "ab-c_1"), ({"authorization": "Bearer abc"}, "abc"))
    def test_a_token(self, headers: dict[str, str], token: str) -> None:
        for is_browser in (False, True):
            self.assertEqual(self.proof(is_browser, False, **headers).token, token)

    def test_a_login(self) -> None:
        self.assertEqual(self.proof(authorization=basic("carol:a:b")).login, Login("carol", "a:b"))

    @each(
        ("a page's login", {"authorization": basic("carol:secret")}, True, True),
        ("a login in the clear", {"authorization": basic("carol:secret")}, False, False),
        ("no login", {"authorization": "Basic ???"}, False, True),
        ("no user", {"authorization": basic(":secret")}, False, True),
        ("no password", {"authorization": basic("carol")}, False, True),
        ("something else", {"authorization": "Digest secret"}, False, True),
        ("no token", {"authorization": "Bearer a secret"}, False, True),
        ("two tokens", {"sec_websocket_protocol": "plumb.token.secret, plumb.token.b"}, True, True),
        ("an empty token", {"sec_websocket_protocol": "plumb.token."}, True, True),
        ("two proofs", {"authorization": "Bearer secret", "sec_websocket_protocol": "plumb.token.b"}, False, True),
    )
    def test_what_may_not_be_shown(self, _: str, headers: dict[str, str], is_browser: bool, encrypted: bool) -> None:
        error = self.assertRaises(HttpError, self.proof, is_browser, encrypted, **headers)
        self.assertEqual(error.status, 400)
        self.assertNotIn("secret", str(error))

    def test_it_shows_nowhere(self) -> None:
        self.assertNotIn("secret", repr(self.proof(authorization=basic("carol:secret"))))
        self.assertNotIn("secret", repr(self.proof(authorization="Bearer secret")))


class Hops(SynchronousTestCase):
    @each((None, 0), ("0", 0), ("8", 8), ("9999", 9999))
    def test_how_many(self, text: str | None, wanted: int) -> None:
        self.assertEqual(hops_of(asking(plumb_hops=text)), wanted)

    @each(("",), ("-1",), ("08",), ("x",), ("99999",))
    def test_no_number(self, text: str) -> None:
        self.assertRaises(HttpError, hops_of, asking(plumb_hops=text))
