"""What hostile callers send before and behind the upgrade: an HTTP answer, frames, or the end; and nothing is left."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from plumberd.pure.ws_frames import CLOSE, FrameDecoder, parse_close
from plumberd.wiring.service import PlumberdService
from tests.support import DEADLINE_SECONDS, in_thread, read_all
from tests.tables import PROPERTY, each
from tests.test_inbound_web import ANYBODY, TOKEN, TOKENS, WebTestCase
from tests.web_clients import UPGRADE, parsed, web

FUZZ = settings(PROPERTY, max_examples=150)

METHODS = st.sampled_from(("GET", "HEAD", "POST", "OPTIONS", "get", "CONNECT", "G\0T", ""))
OWN = ("/-/", "/-/plumb.js", "/-/services", "/-/services/pong", "/-/services/%00")
TARGETS = st.sampled_from(("/pong", "/", "//pong", "/../pong", "*", *OWN)) | st.text(
    st.characters(codec="latin-1"), max_size=20
)
VERSIONS = st.sampled_from(("HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "", "ICY"))
HEADERS = st.sampled_from(
    (
        "Host: localhost",
        "Host: evil.example",
        "Connection: Upgrade",
        "Connection: upgrade, close",
        "Upgrade: websocket",
        "Upgrade: h2c",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Version: 99999999999999999999",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Key: x",
        "Sec-WebSocket-Protocol: ipc, raw",
        "Sec-WebSocket-Protocol: ,,,",
        "Sec-WebSocket-Protocol: plumb.token.",
        f"Sec-WebSocket-Protocol: plumb.token.{TOKEN}",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Origin: null",
        "Origin: http://localhost",
        "Authorization: Basic !!!",
        "Authorization: Bearer \xff",
        "Content-Length: 5",
        "Content-Length: -1",
        "Transfer-Encoding: chunked",
        "X-Forwarded-For: 127.0.0.1",
        'Forwarded: for="[::1"',
        "Plumb-Hops: 99999",
        "Plumb-Hops: -1",
        " folded",
        "no colon",
        "Cookie: " + "x" * 20_000,
    )
)


@st.composite
def requests(draw: Callable[..., str]) -> bytes:
    """Return something like a request."""
    first = " ".join((draw(METHODS), draw(TARGETS), draw(VERSIONS)))
    lines = draw(st.lists(HEADERS, max_size=9))
    end = draw(st.sampled_from(("\r\n\r\n", "\n\n", "\r\n", "", "\r\n\r\nmore")))
    return "\r\n".join((first, *lines)).encode("latin-1", "replace") + end.encode()


@st.composite
def frames(draw: Callable[..., Any]) -> bytes:
    """Return something like a frame."""
    first: int = draw(st.integers(0, 255))
    second: int = draw(st.integers(0, 255))
    length: int = draw(st.sampled_from((0, 1, 5, 125, 126, 200, 65536, 1 << 30, 1 << 63)))
    head = bytes((first, second))
    if second & 0x7F == 126:
        head += (length % 65536).to_bytes(2, "big")
    elif second & 0x7F == 127:
        head += (length % (1 << 64)).to_bytes(8, "big")
    payload: bytes = draw(st.binary(max_size=300))
    return head + payload


class Hostile(WebTestCase):
    timeout = 120.0

    def broker(self) -> PlumberdService:
        broker = self.listen(ANYBODY, web=web(tokens=TOKENS, page=True, proxies=()))
        self.serve(broker.settings.rundir, "pong")
        return broker

    def answer_to(self, port: int, *parts: bytes) -> bytes:
        """Send all of it and the end; return what comes until the end, or until the connection breaks."""
        with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
            found = b""
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    sock.sendall(part)
                sock.shutdown(socket.SHUT_WR)
                found = read_all(sock)
            return found

    @each(("bytes", st.binary(max_size=400)), ("requests", requests()))
    async def test_before_the_upgrade(self, _: str, strategy: st.SearchStrategy[bytes]) -> None:
        broker = self.broker()
        port = self.tcpd_port(broker)

        @given(strategy)
        @FUZZ
        def check(data: bytes) -> None:
            found = self.answer_to(port, data)
            if found:
                status, headers, _ = parsed(found)
                self.assertIn(status, (101, 200, 400, 401, 403, 404, 405, 426, 431, 503, 505))
                self.assertNotIn(TOKEN, str(headers))

        await in_thread(check)
        await self.wait_until_idle(broker)

    @each(("bytes", st.binary(max_size=300)), ("frames", st.lists(frames(), max_size=4).map(b"".join)))
    async def test_behind_the_upgrade(self, _: str, strategy: st.SearchStrategy[bytes]) -> None:
        broker = self.broker()
        port = self.tcpd_port(broker)

        @given(strategy, st.sampled_from(("ipc", "raw", "ipc.text")))
        @FUZZ
        def check(data: bytes, protocol: str) -> None:
            head = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
            found = self.answer_to(port, head.encode(), data)
            if not found:
                return
            status, _, rest = parsed(found)
            self.assertEqual(status, 101)
            decoder = FrameDecoder(masked=False, limit_bytes=1 << 20)
            said = decoder.feed(rest)
            while decoder.is_full:
                said += decoder.feed(b"")
            self.assertIsNone(decoder.error)
            closes = [payload for kind, payload in said if kind == CLOSE]
            self.assertLessEqual(len(closes), 1)
            for payload in closes:
                parse_close(payload)  # what may not be sent is an error

        await in_thread(check)
        await self.wait_until_idle(broker)
