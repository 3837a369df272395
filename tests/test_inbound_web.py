"""plumberd.wiring.inbound.inbound_web: browsers, and whatever else opens a WebSocket, at a real broker."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from plumberd.framing import Decoder, Message, encode
from plumberd.pure.limits import Limits
from plumberd.pure.policy.route import Routes, parse_route
from plumberd.pure.tls import ClientCertificates, TlsSettings
from plumberd.pure.tokens import Tokens
from plumberd.wiring.config.settings import WebListener
from plumberd.wiring.inbound.inbound import REFUSAL_SECONDS
from plumberd.wiring.inbound.tcpd import wanted_by
from plumberd.wiring.service import PlumberdService
from tests.issued import root
from tests.running import RunningTestCase, leading
from tests.support import DEADLINE_SECONDS, in_thread, read_all, until
from tests.tables import each
from tests.test_inbound import end_of
from tests.test_inbound_proving import OneUser
from tests.test_inbound_tls import trusting
from tests.web_clients import LISTEN, UPGRADE, http, opened, parsed, web

TOKEN = "a-token-of-nobody-else"
TOKENS = Tokens((("phone", hashlib.sha256(TOKEN.encode()).digest()),))
ANYBODY = "allow in any ws:any"
PROVED = "allow in any ws:any for token:phone"


class WebTestCase(RunningTestCase):
    def listen(self, *rules: str, **settings: Any) -> PlumberdService:
        settings.setdefault("webipcd", LISTEN)
        settings.setdefault("web", web(tokens=TOKENS))
        return self.run_broker(*rules, **settings)

    async def messages(self, port: int, work: Callable[[ClientConnection], Any], *args: Any, **more: Any) -> Any:
        """Open a WebSocket, and let *work* talk on it, in a thread."""

        def run() -> Any:
            with opened(port, *args, **more) as connection:
                return work(connection)

        return await in_thread(run)

    async def refused(self, port: int, *args: Any, **more: Any) -> tuple[int, str]:
        """Open a WebSocket, which has to be refused; return the status and the body."""

        def run() -> tuple[int, str]:
            try:
                opened(port, *args, **more).close()
            except InvalidStatus as e:
                return e.response.status_code, e.response.body.decode()
            raise AssertionError("it was let in")

        return await in_thread(run)


def exchange(*messages: str | bytes) -> Callable[[ClientConnection], list[str | bytes]]:
    """Return what sends each message and takes one for it."""

    def work(connection: ClientConnection) -> list[str | bytes]:
        found = []
        for message in messages:
            connection.send(message)
            found.append(connection.recv(DEADLINE_SECONDS))
        return found

    return work


class Carried(WebTestCase):
    """Messages, of either subprotocol, to services of every kind."""

    @each(("ipc", [b"one", b"", b"two"]), ("ipc.text", ["one", "", b"\xff"]), (None, [b"one"]))
    async def test_a_message_is_a_message_of_the_service(self, protocol: str | None, wanted: list[str | bytes]) -> None:
        broker = self.listen(ANYBODY)
        heard: list[bytes] = []

        def service(sock: socket.socket) -> None:
            decoder = Decoder("libipc-zig")
            while data := sock.recv(65536):
                for message in decoder.feed(data):
                    heard.append(message.payload)
                    sock.sendall(encode("libipc-zig", message))

        self.serve(broker.settings.rundir, "pong", service)
        protocols = () if protocol is None else (protocol,)
        found = await self.messages(self.tcpd_port(broker), exchange(*wanted), "pong", *protocols)
        self.assertEqual(found, wanted)
        self.assertEqual(heard, [one.encode() if isinstance(one, str) else one for one in wanted])
        await self.wait_until_idle(broker)

    async def test_a_text_message_is_utf_8_for_the_service(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        self.assertEqual(await self.messages(self.tcpd_port(broker), exchange("grüße")), ["grüße".encode()])

    async def test_the_subprotocol_is_said_where_it_was_offered(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        for offered, said in ((("raw", "ipc"), "raw"), (("chat", "ipc"), "ipc"), ((), None)):
            found = await self.messages(self.tcpd_port(broker), lambda one: one.subprotocol, "pong", *offered)
            self.assertEqual(found, said)

    async def test_raw_is_bytes(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        data = os.urandom(3_000_000)

        def work(connection: ClientConnection) -> bytes:
            connection.send([data[at : at + 100_000] for at in range(0, len(data), 100_000)])
            found = b""
            while len(found) < len(data):
                part = connection.recv(DEADLINE_SECONDS)
                assert isinstance(part, bytes)
                found += part
            return found

        self.assertEqual(await self.messages(self.tcpd_port(broker), work, "pong", "raw"), data)

    @each(("libipc-2019",), ("libipc-zig",), ("raw",))
    async def test_a_service_with_packets(self, framing: str) -> None:
        broker = self.listen(ANYBODY, framings={} if framing == "libipc-2019" else {"pong": framing})
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(broker.settings.rundir, "pong"))
        listener.listen()
        heard: list[bytes] = []

        def service(sock: socket.socket) -> None:
            while data := sock.recv(3_000_000):
                heard.append(data)
                sock.sendall(data)

        self.serve_on(listener, service)
        sent = [b"one", os.urandom(100_000), b"two"]
        found = await self.messages(self.tcpd_port(broker), exchange(*sent), "pong", "ipc")
        self.assertEqual(found, sent)
        self.assertEqual(heard, [encode(framing, Message(one)) for one in sent])

    async def test_raw_to_a_service_with_packets_is_cut_as_its_stream_is(self) -> None:
        broker = self.listen(ANYBODY)
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(broker.settings.rundir, "pong"))
        listener.listen()
        self.serve_on(listener, lambda sock: sock.sendall(sock.recv(1000)))
        data = encode("libipc-2019", Message(b"one"))
        found = await self.messages(self.tcpd_port(broker), exchange(data), "pong", "raw")
        self.assertEqual(found, [data])
        await self.wait_until_idle(broker)

    async def test_what_comes_right_behind_the_request_is_carried(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        request = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode()

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(request + bytes.fromhex("8282000000006869 888200000000 03e8"))
                return read_all(sock)

        _, _, frames = parsed(await in_thread(work))
        self.assertEqual(frames, bytes.fromhex("82026869 8802 03e8"))
        await self.wait_until_idle(broker)

    async def test_a_claimed_service_is_handed_one_end_of_a_pair(self) -> None:
        broker = self.listen(ANYBODY, "allow serve pong")
        from plumberd import client

        told: list[dict[str, Any]] = []

        def serve() -> None:
            with client.serve("pong", rundir=broker.settings.rundir) as serving:
                for sock, about in serving:
                    told.append(about)
                    with sock:
                        sock.sendall(sock.recv(1000))
                    return

        serving = in_thread(serve)
        assert broker.core is not None
        core = broker.core
        await until(lambda: core.registrations.find("pong"))
        self.assertEqual(await self.messages(self.tcpd_port(broker), exchange(b"hello")), [b"hello"])
        await serving
        self.assertEqual(told[0]["peer"]["scheme"], "ws")
        await self.wait_until_idle(broker)

    async def test_a_gateway_leads_on(self) -> None:
        far = self.run_broker("allow in pong any", tcpd=("tcp:0:interface=127.0.0.1",))
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        gateway = self.listen(
            ANYBODY,
            f"allow out pong tcp:127.0.0.1:{port}",
            routes=Routes({}, leading(pong=parse_route("pong", f"tcp://127.0.0.1:{port}/pong"))),
        )
        self.assertEqual(await self.messages(self.tcpd_port(gateway), exchange(b"hello")), [b"hello"])
        await self.wait_until_idle(gateway)
        await self.wait_until_idle(far)

    async def test_the_log_tells_who_and_how_much(self) -> None:
        broker = self.listen(PROVED)
        self.serve(broker.settings.rundir, "pong")
        await self.messages(self.tcpd_port(broker), exchange(b"hello"), "pong", "ipc", f"plumb.token.{TOKEN}")
        await self.wait_until_idle(broker)
        ended = next(one for one in self.outcomes if one.verdict == "ended")
        self.assertRegex(str(ended.who), r"^ws:127\.0\.0\.1:\d+ token:phone$")
        self.assertEqual((ended.service, ended.up, ended.mode), ("pong", 9, "relayed"))
        self.assertNotIn(TOKEN, " ".join(map(str, self.outcomes)))


class Ended(WebTestCase):
    """Closes, and what becomes of them."""

    async def close_of(self, service: Callable[[socket.socket], None], *sent: bytes) -> tuple[int, list[Any]]:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong", service)

        def work(connection: ClientConnection) -> tuple[int, list[Any]]:
            for one in sent:
                connection.send(one)
            found = []
            try:
                while True:
                    found.append(connection.recv(DEADLINE_SECONDS))
            except ConnectionClosed as e:
                return e.rcvd.code if e.rcvd else 1006, found

        result: tuple[int, list[Any]] = await self.messages(self.tcpd_port(broker), work)
        await self.wait_until_idle(broker)
        return result

    async def test_the_service_s_end_is_1000_behind_all_it_has_said(self) -> None:
        data = encode("libipc-zig", Message(b"x" * 1_000_000))
        self.assertEqual(await self.close_of(lambda sock: sock.sendall(data)), (1000, [b"x" * 1_000_000]))

    async def test_its_end_in_the_middle_of_a_message_is_1011(self) -> None:
        data = encode("libipc-zig", Message(b"x" * 100))[:50]
        self.assertEqual(await self.close_of(lambda sock: sock.sendall(data)), (1011, []))

    async def test_a_message_of_the_service_that_is_too_long_is_1011(self) -> None:
        def service(sock: socket.socket) -> None:
            sock.sendall(struct.pack(">I", Limits().message_bytes + 1))
            read_all(sock)

        self.assertEqual((await self.close_of(service))[0], 1011)

    async def test_its_end_with_something_unread_is_1011(self) -> None:
        def service(sock: socket.socket) -> None:
            sock.recv(4)

        self.assertEqual((await self.close_of(service, b"hello"))[0], 1011)

    @each((1000, 1000), (3001, 3001), (4999, 4999))
    async def test_the_caller_s_close_is_the_service_s_end_of_file_and_is_answered(self, code: int, back: int) -> None:
        broker = self.listen(ANYBODY)
        heard: list[bytes] = []
        self.serve(broker.settings.rundir, "pong", lambda sock: heard.append(read_all(sock)))

        def work(connection: ClientConnection) -> int:
            connection.send(b"hello")
            connection.close(code)
            return connection.close_code or 0

        self.assertEqual(await self.messages(self.tcpd_port(broker), work), back)
        await self.wait_until_idle(broker)
        await until(lambda: heard)
        self.assertEqual(heard, [encode("libipc-zig", Message(b"hello"))])

    async def test_what_the_service_still_says_behind_that_goes_out_before_the_answer(self) -> None:
        broker = self.listen(ANYBODY)

        def service(sock: socket.socket) -> None:
            read_all(sock)
            sock.sendall(encode("libipc-zig", Message(b"goodbye")))

        self.serve(broker.settings.rundir, "pong", service)
        request = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode()

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(request + bytes.fromhex("888200000000 03e8"))
                return read_all(sock)

        _, _, frames = parsed(await in_thread(work))
        self.assertEqual(frames, b"\x82\x07goodbye\x88\x02\x03\xe8")

    async def test_a_service_that_goes_on_and_on_is_waited_for_a_second(self) -> None:
        broker = self.listen(ANYBODY)

        def service(sock: socket.socket) -> None:
            while True:
                sock.sendall(encode("libipc-zig", Message(b"x" * 1000)))
                time.sleep(0.02)

        self.serve(broker.settings.rundir, "pong", service)
        request = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode()

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(request + bytes.fromhex("888200000000 03e8"))
                return read_all(sock)

        began = time.monotonic()
        data = await in_thread(work)
        self.assertTrue(data.endswith(b"\x88\x02\x03\xe8"))
        self.assertGreater(data.count(b"x" * 1000), 5)
        self.assertLess(time.monotonic() - began, 4)
        await self.wait_until_idle(broker)

    @each(
        ("unmasked", "810161", 1002, "mask"),
        ("reserved", "f18000000000", 1002, "extension"),
        ("no text", "8182000000 00c328", 1007, "UTF-8"),
        ("too long", "82ff0000000001000000 00000000", 1009, "4194304"),
        ("a bad close", "888100000000 00", 1002, "Close"),
    )
    async def test_a_broken_rule_is_told_with_its_code_and_why(self, _: str, text: str, code: int, why: str) -> None:
        broker = self.listen(ANYBODY)
        ends: list[bytes] = []
        self.serve(broker.settings.rundir, "pong", lambda sock: ends.append(read_all(sock)))
        request = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode()

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(request + bytes.fromhex(text))
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        frames = parsed(await in_thread(work))[2]
        self.assertEqual((frames[:1], frames[2:4]), (b"\x88", code.to_bytes(2, "big")))
        self.assertEqual((frames[1], why in frames[4:].decode()), (len(frames) - 2, True), frames)
        await self.wait_until_idle(broker)
        await until(lambda: ends)

    async def test_an_end_without_a_close_ends_the_service_s_connection(self) -> None:
        broker = self.listen(ANYBODY)
        ends: list[bytes] = []
        self.serve(broker.settings.rundir, "pong", lambda sock: ends.append(read_all(sock)))
        request = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n".encode()

        def work() -> None:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(request)
                sock.recv(1000)

        await in_thread(work)
        await self.wait_until_idle(broker)
        await until(lambda: ends)
        self.assertEqual([one.reason for one in self.outcomes if one.verdict == "ended"], ["cut off by left"])

    async def test_pings_are_answered(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")

        def work(connection: ClientConnection) -> bool:
            return connection.ping(b"here?").wait(DEADLINE_SECONDS)

        self.assertTrue(await self.messages(self.tcpd_port(broker), work))

    async def test_going_down_is_1001(self) -> None:
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        opening: list[ClientConnection] = []

        def work() -> int:
            with opened(self.tcpd_port(broker)) as connection:
                opening.append(connection)
                try:
                    connection.recv(DEADLINE_SECONDS)
                except ConnectionClosed as e:
                    return e.rcvd.code if e.rcvd else 1006
            raise AssertionError("it goes on")

        code = in_thread(work)
        await until(lambda: opening)
        await broker.stopService()
        self.assertEqual(await code, 1001)


class Refusals(WebTestCase):
    """Who has proved nothing learns nothing; who has learns why."""

    @each(("denied", "other", ()), ("unknown", "nobody", ()), ("reserved", "plumberd", ()), ("malformed", ".x", ()))
    async def test_to_a_stranger_all_are_one_at_equal_time(self, _: str, name: str, protocols: tuple[str, ...]) -> None:
        broker = self.listen("deny in other any", ANYBODY)
        self.serve(broker.settings.rundir, "other")
        began = time.monotonic()
        self.assertEqual(await self.refused(self.tcpd_port(broker), name, *protocols), (403, "denied\n"))
        self.assertGreaterEqual(time.monotonic() - began, REFUSAL_SECONDS)
        await self.wait_until_idle(broker)

    @each(
        ("denied", "other", 403, "denied: "),
        ("unknown", "nobody", 404, "unknown-service: "),
        ("reserved", "plumberd", 403, "denied: "),
        ("malformed", ".x", 400, "bad-request: "),
    )
    async def test_who_has_a_token_is_told_why(self, _: str, name: str, status: int, text: str) -> None:
        broker = self.listen("deny in other any", ANYBODY)
        found = await self.refused(self.tcpd_port(broker), name, "ipc", f"plumb.token.{TOKEN}")
        self.assertEqual(found[0], status)
        self.assertTrue(found[1].startswith(text), found)

    async def test_a_place_too_few_is_503(self) -> None:
        broker = self.listen(PROVED, limits=Limits(relays=1))
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        token = f"plumb.token.{TOKEN}"

        def work() -> tuple[int, bytes]:
            with opened(port, "pong", "ipc", token):
                try:
                    opened(port, "pong", "ipc", token).close()
                except InvalidStatus as e:
                    return e.response.status_code, bytes(e.response.body)
            raise AssertionError("it was let in")

        status, body = await in_thread(work)
        self.assertEqual((status, body[:5]), (503, b"busy:"))

    async def test_who_says_nothing_is_dropped(self) -> None:
        broker = self.listen(ANYBODY, limits=Limits(handshake_seconds=0.1))

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(b"GET /pong HTTP/1.1\r\n")
                return end_of(sock)

        self.assertEqual(await in_thread(work), b"")
        self.assertEqual([one.verdict for one in self.outcomes], ["timeout"])
        await self.wait_until_idle(broker)

    async def test_too_many_of_one_address(self) -> None:
        broker = self.listen(ANYBODY, limits=Limits(handshakes_per_address=1))

        def work() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as first,
                socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as second,
            ):
                first.sendall(b"GET")
                return read_all(second)

        self.assertEqual(await in_thread(work), b"")
        self.assertIn("busy", [one.verdict for one in self.outcomes])
        await self.wait_until_idle(broker)


class Browsers(WebTestCase):
    """What a page of anybody's may not."""

    @each(("evil.example", ""), ("localhost", "Origin: https://evil.example\r\n"), ("localhost", "Origin: null\r\n"))
    async def test_another_host_or_page_is_403_before_anything(self, host: str, origin: str) -> None:
        broker = self.listen(ANYBODY, web=web(tokens=TOKENS, page=True))
        self.serve(broker.settings.rundir, "pong")
        for target in ("/pong", "/-/", "/-/plumb.js", "/-/services", "/-/services/pong", "/nothing"):
            head = f"GET {target}\r\n{UPGRADE}{origin}"
            found = await in_thread(http, self.tcpd_port(broker), head, host)
            self.assertEqual((found[0], found[2][:7]), (403, b"denied:"), target)
            self.assertNotIn("access-control-allow-origin", found[1])
        await self.wait_until_idle(broker)

    async def test_what_a_page_of_another_site_embeds_is_403_before_anything(self) -> None:
        broker = self.listen(ANYBODY, web=web(tokens=TOKENS, page=True))
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
            for target in ("/-/services", "/-/services/pong", "/-/services/nobody"):
                head = f"GET {target}\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: no-cors\r\n"
                found = await in_thread(http, port, head)
                self.assertEqual(found[0], status, (site, target))
        # A link to the page may stand anywhere.
        head = "GET /-/\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n"
        self.assertEqual((await in_thread(http, port, head))[0], 200)
        await self.wait_until_idle(broker)

    async def test_its_own_page_and_a_configured_one_may(self) -> None:
        broker = self.listen(ANYBODY, web=web(origins=("https://app.example.com",)))
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        for origin in (f"http://127.0.0.1:{port}", "https://app.example.com", None):
            found = await self.messages(port, exchange(b"hello"), origin=origin)
            self.assertEqual(found, [b"hello"])

    async def test_a_page_may_not_log_in_and_nobody_may_in_the_clear(self) -> None:
        broker = self.listen(ANYBODY)
        port = self.tcpd_port(broker)
        for origin in (None, f"http://127.0.0.1:{port}"):
            headers = {"Authorization": "Basic Y2Fyb2w6c2VjcmV0"}
            status, body = await self.refused(port, additional_headers=headers, origin=origin)
            self.assertEqual((status, body[:12]), (400, "bad-request:"))

    async def test_a_cookie_is_nobody_s_token(self) -> None:
        broker = self.listen(PROVED)
        self.serve(broker.settings.rundir, "pong")
        headers = {"Cookie": f"token={TOKEN}; plumb.token={TOKEN}"}
        self.assertEqual((await self.refused(self.tcpd_port(broker), additional_headers=headers))[0], 403)


class WithTokens(WebTestCase):
    @each(("subprotocol",), ("header",))
    async def test_a_token_lets_in_and_is_not_said_again(self, how: str) -> None:
        broker = self.listen(PROVED)
        self.serve(broker.settings.rundir, "pong")
        protocols = ("ipc", f"plumb.token.{TOKEN}") if how == "subprotocol" else ("ipc",)
        more: dict[str, Any] = (
            {} if how == "subprotocol" else {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}
        )

        def work(connection: ClientConnection) -> Any:
            assert connection.response is not None
            return connection.subprotocol, str(connection.response.headers), exchange(b"hi")(connection)

        protocol, told, found = await self.messages(self.tcpd_port(broker), work, "pong", *protocols, **more)
        self.assertEqual((protocol, found), ("ipc", [b"hi"]))
        self.assertNotIn(TOKEN, told)

    async def test_a_wrong_one_is_401_and_after_some_503_and_a_right_one_counts_as_ever(self) -> None:
        broker = self.listen(PROVED, limits=Limits(login_failures_per_minute=2))
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        for _ in range(2):
            self.assertEqual(await self.refused(port, "pong", "ipc", "plumb.token.wrong"), (401, "unauthenticated\n"))
        self.assertEqual(await self.refused(port, "pong", "ipc", "plumb.token.wrong"), (503, "busy\n"))
        self.assertEqual(await self.messages(port, exchange(b"hi"), "pong", "ipc", f"plumb.token.{TOKEN}"), [b"hi"])
        await self.wait_until_idle(broker)
        verdicts = [one.verdict for one in self.outcomes]
        self.assertEqual(verdicts, [*["unauthenticated"] * 2, "busy", "granted", "ended"])

    async def test_a_reload_knows_other_tokens(self) -> None:
        broker = self.listen(PROVED)
        self.serve(broker.settings.rundir, "pong")
        self.put_in_force(broker, PROVED, web=web())
        self.assertEqual((await self.refused(self.tcpd_port(broker), "pong", "ipc", f"plumb.token.{TOKEN}"))[0], 401)

    async def test_a_token_that_is_taken_away_lets_nobody_in_who_is_on_the_way(self) -> None:
        asked, goes_on = threading.Event(), threading.Event()

        def far(sock: socket.socket) -> None:
            sock.recv(100)
            asked.set()
            goes_on.wait(DEADLINE_SECONDS)
            sock.sendall(b"ok\n")
            read_all(sock)

        self.addCleanup(goes_on.set)
        there = self.serve_tcp(far)
        rules = (PROVED, f"allow out pong tcp:127.0.0.1:{there}")
        routes = Routes({}, leading(pong=parse_route("pong", f"tcp://127.0.0.1:{there}/pong")))
        broker = self.listen(*rules, routes=routes)
        port = self.tcpd_port(broker)
        for web_now, status in ((web(tokens=TOKENS), 101), (web(), 401)):
            asked.clear()
            goes_on.clear()
            head = f"GET /pong\r\nAuthorization: Bearer {TOKEN}\r\n{UPGRADE}".partition("\r\n")
            with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
                sock.sendall(f"{head[0]} HTTP/1.1\r\nHost: localhost\r\n{head[2]}\r\n".encode())
                self.assertTrue(await in_thread(asked.wait, DEADLINE_SECONDS))
                self.put_in_force(broker, *rules, web=web_now, routes=routes)
                goes_on.set()
                found = await in_thread(sock.recv, 12)
            self.assertEqual(found, f"HTTP/1.1 {status}".encode())
        await self.wait_until_idle(broker)

    async def test_a_head_is_refused_without_a_body(self) -> None:
        broker = self.listen(ANYBODY)
        for target, status in (("/pong", 405), ("/-/nothing", 404)):
            found = await in_thread(http, self.tcpd_port(broker), f"HEAD {target}\r\n")
            self.assertEqual((found[0], found[2]), (status, b""))


class Reloaded(WebTestCase):
    async def test_a_listener_comes_and_goes_and_who_is_carried_stays(self) -> None:
        path = os.path.join(self.folder(), "web")
        broker = self.listen(ANYBODY)
        self.serve(broker.settings.rundir, "pong")
        tcpd, port = broker.tcpd, self.tcpd_port(broker)
        assert tcpd is not None

        def late(wanted: object, failure: object) -> None:
            raise AssertionError(wanted)

        with await in_thread(opened, port, "pong") as connection:
            tcpd.listen_on(wanted_by(replace(broker.settings, webipcd=(WebListener(f"unix:{path}"),))), late)
            await until(lambda: len(tcpd.ports) == 1)
            self.assertEqual(tcpd.addresses, [f"webipcd on {path}"])
            await in_thread(connection.send, b"still")
            self.assertEqual(await in_thread(connection.recv, DEADLINE_SECONDS), b"still")
            await in_thread(connection.close)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS)
        await self.wait_until_idle(broker)


class InsideTls(WebTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ca = root()
        self.server = self.ca.issue("a.example", addresses=("127.0.0.1",))

    def secure(self, *rules: str, tls: TlsSettings | None = None, **settings: Any) -> PlumberdService:
        listen = (WebListener(LISTEN[0].description, True),)
        return self.listen(*rules, webipcd=listen, tls=tls or TlsSettings((self.server.value,)), **settings)

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        context.set_alpn_protocols(["http/1.1"])
        return context

    async def test_messages_and_large_ones(self) -> None:
        broker = self.secure("allow in pong wss:any")
        self.serve(broker.settings.rundir, "pong")
        sent = [b"hello", os.urandom(2_000_000), b"", os.urandom(70_000)]
        found = await self.messages(self.tcpd_port(broker), exchange(*sent), "pong", "ipc", context=self.context())
        self.assertEqual(found, sent)
        await self.wait_until_idle(broker)
        self.assertRegex(str(self.outcomes[-1].who), r"^wss:127")

    async def test_a_certificate_is_a_name(self) -> None:
        asking = TlsSettings((self.server.value,), trusting(self.ca), client_certificates=ClientCertificates.OPTIONAL)
        broker = self.secure("allow in pong wss:b.example", tls=asking)
        self.serve(broker.settings.rundir, "pong")
        own, context = self.ca.issue("b.example"), self.context()
        path = os.path.join(self.folder(), "own.pem")
        with open(path, "wb") as file:
            file.write(own.key_pem + own.chain)
        context.load_cert_chain(path)
        found = await self.messages(self.tcpd_port(broker), exchange(b"hello"), context=context)
        self.assertEqual(found, [b"hello"])
        self.assertEqual((await self.refused(self.tcpd_port(broker), context=self.context()))[0], 403)
        status, _ = await self.refused(self.tcpd_port(broker), "nobody", context=context)
        self.assertEqual(status, 403)  # a rule says so, and this one may know it

    async def test_a_login_is_taken(self) -> None:
        broker = self.secure("allow in pong wss:any for login:carol")
        assert broker.core is not None
        broker.core.logins = OneUser()
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        right = {"Authorization": "Basic Y2Fyb2w6c2VjcmV0"}
        wrong = {"Authorization": "Basic Y2Fyb2w6d3Jvbmc="}
        found = await self.messages(port, exchange(b"hi"), context=self.context(), additional_headers=right)
        self.assertEqual(found, [b"hi"])
        status, _ = await self.refused(port, context=self.context(), additional_headers=wrong)
        self.assertEqual(status, 401)

    async def test_the_service_s_end_and_the_caller_s(self) -> None:
        broker = self.secure("allow in pong wss:any")
        self.serve(broker.settings.rundir, "pong", lambda sock: sock.sendall(encode("libipc-zig", Message(b"bye"))))

        def work(connection: ClientConnection) -> Any:
            found = connection.recv(DEADLINE_SECONDS)
            try:
                connection.recv(DEADLINE_SECONDS)
            except ConnectionClosed as e:
                return found, e.rcvd.code if e.rcvd else 1006
            return None

        found = await self.messages(self.tcpd_port(broker), work, context=self.context())
        self.assertEqual(found, (b"bye", 1000))
        await self.wait_until_idle(broker)

    async def test_no_tls_and_no_request_within_it(self) -> None:
        broker = self.secure("allow in pong wss:any")

        def plain() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock:
                sock.sendall(b"GET /pong HTTP/1.1\r\nHost: localhost\r\n\r\n")
                try:
                    return read_all(sock)
                except ConnectionResetError:
                    return b""

        self.assertNotIn(b"HTTP", await in_thread(plain))

        def empty() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", self.tcpd_port(broker)), DEADLINE_SECONDS) as sock,
                self.context().wrap_socket(sock, server_hostname="127.0.0.1") as inside,
            ):
                inside.sendall(b"nonsense\r\n\r\n")
                return inside.recv(1000)

        self.assertIn(b"400", await in_thread(empty))
        await self.wait_until_idle(broker)


class BehindProxies(WebTestCase):
    async def test_the_proxy_says_for_whom(self) -> None:
        broker = self.listen(
            "deny in pong wss:192.0.2.9", "allow in pong wss:192.0.2.0/24", web=web(proxies=("127.0.0.1",))
        )
        self.serve(broker.settings.rundir, "pong")
        port = self.tcpd_port(broker)
        headers = {"X-Forwarded-For": "203.0.113.1, 192.0.2.7", "X-Forwarded-Proto": "https"}
        self.assertEqual(await self.messages(port, exchange(b"hi"), additional_headers=headers), [b"hi"])
        for more in (
            {"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"},
            {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "http"},
        ):
            self.assertEqual((await self.refused(port, additional_headers=more))[0], 403)
        self.assertEqual((await self.refused(port))[0], 400)
        await self.wait_until_idle(broker)
        self.assertIn("wss:192.0.2.7:0 via proxy 127.0.0.1", {str(one.who) for one in self.outcomes})

    async def test_nobody_else_does(self) -> None:
        broker = self.listen("allow in pong ws:192.0.2.7", "allow in pong wss:any")
        self.serve(broker.settings.rundir, "pong")
        headers = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        self.assertEqual((await self.refused(self.tcpd_port(broker), additional_headers=headers))[0], 403)

    async def test_over_a_unix_socket(self) -> None:
        path = os.path.join(self.folder(), "web")
        broker = self.listen(
            "allow in pong ws:192.0.2.7", webipcd=(WebListener(f"unix:{path}"),), web=web(proxies=("unix",))
        )
        self.serve(broker.settings.rundir, "pong")
        head = f"GET /pong HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.7\r\n{UPGRADE}\r\n"

        def work() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE_SECONDS)
                sock.connect(path)
                sock.sendall(head.encode() + bytes.fromhex("888200000000 03e8"))
                return read_all(sock)

        status, _, frames = parsed(await in_thread(work))
        self.assertEqual((status, frames), (101, b"\x88\x02\x03\xe8"))
        await self.wait_until_idle(broker)
