"""plumberd.wiring.dialing.ws_dial: out to a far webipcd, or to any WebSocket server, over ws and wss alike."""

from __future__ import annotations

import gc
import hashlib
import os
import queue
import socket
import ssl
import struct
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from plumberd.effects import dial_tcp
from plumberd.framing import Decoder, Message, encode
from plumberd.pure.address import Zone
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Routes, parse_route
from plumberd.pure.tls import PeerSettings, TlsSettings
from plumberd.pure.tokens import Tokens
from plumberd.wiring.config.settings import WebListener
from plumberd.wiring.service import PlumberdService
from tests.issued import root
from tests.running import RunningTestCase, leading
from tests.support import (
    DEADLINE_SECONDS,
    dialled,
    in_thread,
    native_ask,
    native_frame,
    read_all,
    read_exactly,
    until,
    zig_lookup,
)
from tests.tables import each
from tests.test_generations import libipc_2019_lookup
from tests.test_inbound_tls import trusting
from tests.web_clients import LISTEN, web

TOKEN = "a-token-of-nobody-else"
TOKENS = Tokens((("laptop", hashlib.sha256(TOKEN.encode()).digest()),))


class OutTestCase(RunningTestCase):
    scheme = "ws"

    def setUp(self) -> None:
        super().setUp()
        self.ca = root()
        self.server = self.ca.issue("localhost", addresses=("127.0.0.1",))

    @property
    def secure(self) -> bool:
        return self.scheme == "wss"

    def far(self, *rules: str, **settings: Any) -> PlumberdService:
        """Run a broker with webipcd."""
        settings.setdefault("web", web(tokens=TOKENS))
        listen = (WebListener(LISTEN[0].description, self.secure),)
        return self.run_broker(*rules, webipcd=listen, tls=TlsSettings((self.server.value,)), **settings)

    def near(self, *rules: str, port: int = 0, peer: PeerSettings | None = None, **settings: Any) -> PlumberdService:
        """Run a broker that calls."""
        peers = {f"127.0.0.1:{port}": peer} if peer else {}
        return self.run_broker(*rules, tls=TlsSettings(trust=trusting(self.ca)), peers=peers, **settings)

    def uri(self, port: int, tail: str = "/pong", user: str = "") -> str:
        return f"{self.scheme}://{user}127.0.0.1:{port}{tail}"

    async def ask(self, near: PlumberdService, uri: str, **more: Any) -> tuple[dict[str, Any], socket.socket | None]:
        return await in_thread(native_ask, near.settings.rundir, op="lookup", uri=uri, **more)

    async def granted(self, near: PlumberdService, uri: str, **more: Any) -> socket.socket:
        answer, sock = await self.ask(near, uri, **more)
        assert sock is not None, answer
        self.assertIn(answer["mode"], ("relayed", "framed"))
        return self.owned(sock)

    def websocket_server(self, answer: Callable[[ServerConnection], Any], **more: Any) -> int:
        """Run a WebSocket server of a library; return its port."""
        context = None
        if self.secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:
                file.write(self.server.key_pem + self.server.chain)
                file.flush()
                context.load_cert_chain(file.name)
        threads: list[threading.Thread] = []

        def handle(connection: ServerConnection) -> None:
            threads.append(threading.current_thread())
            answer(connection)

        server: Server = serve(handle, "127.0.0.1", 0, ssl=context, compression=None, max_size=None, **more)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        async def stop() -> None:
            await in_thread(server.shutdown)
            for one in (thread, *threads):
                await in_thread(one.join)
            gc.collect()  # its selector is closed by nobody

        self.addCleanup(stop)
        return int(server.socket.getsockname()[1])

    async def idle(self, *services: PlumberdService) -> None:
        for service in services:
            await self.wait_until_idle(service)


def echo_messages(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


class _Contract(OutTestCase):
    """What holds for either scheme: carried, refused, too late, given up; and nothing is left of it."""

    async def test_bytes_to_a_service_behind_a_far_webipcd(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        self.serve(far.settings.rundir, "pong")
        sock = await self.granted(near, self.uri(self.tcpd_port(far)))
        data = os.urandom(3_000_000)

        def work() -> bytes:
            def write() -> None:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)

            writer = threading.Thread(target=write)
            writer.start()
            found = read_all(sock)
            writer.join()
            return found

        found = await in_thread(work)
        self.assertEqual(hashlib.sha256(found).digest(), hashlib.sha256(data).digest())
        sock.close()
        await self.idle(near, far)
        self.assertEqual(
            sorted((o.verdict, o.direction) for o in self.outcomes),
            [("ended", "in"), ("ended", "out"), ("granted", "in"), ("granted", "out")],
        )

    @each(("libipc-zig",), ("libipc-2019",))
    async def test_each_generation_s_client_talks_messages(self, generation: str) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        heard: list[bytes] = []

        def service(sock: socket.socket) -> None:
            decoder = Decoder("libipc-zig")
            while data := sock.recv(65536):
                for message in decoder.feed(data):
                    heard.append(message.payload)
                    sock.sendall(encode("libipc-zig", message))

        self.serve(far.settings.rundir, "pong", service)
        look_up = zig_lookup if generation == "libipc-zig" else libipc_2019_lookup
        text = f"pong;pong {self.uri(self.tcpd_port(far))}".encode()
        _, sock = await in_thread(look_up, near.settings.rundir, text)
        assert sock is not None
        wanted = encode(generation, Message(b"hello"))
        with sock:
            sock.settimeout(DEADLINE_SECONDS)
            sock.sendall(wanted)
            self.assertEqual(await in_thread(read_exactly, sock, len(wanted)), wanted)
        self.assertEqual(heard, [b"hello"])
        await self.idle(near, far)

    async def test_a_native_client_s_packets_are_messages(self) -> None:
        far, near = self.far(f"allow in pong {self.scheme}:any"), self.near()
        self.serve(far.settings.rundir, "pong")
        sock = await self.granted(near, self.uri(self.tcpd_port(far)), type="seqpacket")
        for payload in (b"one", bytes(100_000), b"three"):
            sock.sendall(payload)
            self.assertEqual(await in_thread(sock.recv, 1 << 20), payload)
        sock.close()
        await self.idle(near, far)

    async def test_framed_is_one_message_a_write(self) -> None:
        far = self.far(f"allow in pong {self.scheme}:any")
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(encode("libipc-zig", Message(b"x" * 10)) * 3))
        port = self.tcpd_port(far)
        near = self.near(f"allow out any {self.scheme}:127.0.0.1:{port} handover=framed")
        sock = await self.granted(near, self.uri(port, "/pong?framing=libipc-zig"))
        found = []
        while data := await in_thread(sock.recv, 1000):
            found.append(data)
        self.assertEqual(found, [encode("libipc-zig", Message(b"x" * 10))] * 3)
        sock.close()
        await self.idle(near, far)

    async def test_any_server_s_messages_are_packets(self) -> None:
        near, port = self.near(), self.websocket_server(echo_messages)
        sock = await self.granted(near, self.uri(port, ""), type="seqpacket")
        for payload in (b"one", b"two" * 1000):
            sock.sendall(payload)
            self.assertEqual(await in_thread(sock.recv, 1 << 20), payload)
        sock.close()
        await self.idle(near)

    async def test_path_and_protocol_and_text_are_what_is_said(self) -> None:
        told: list[Any] = []

        def answer(connection: ServerConnection) -> None:
            assert connection.request is not None
            message = connection.recv()
            told.append((connection.request.path, connection.subprotocol, message))
            connection.send(b"bytes")
            connection.send("grüße")

        port = self.websocket_server(answer, subprotocols=["chat"])
        near = self.near()
        tail = "?path=%2Fchat%3Froom%3D1&protocol=chat&text=yes"
        sock = await self.granted(near, self.uri(port, tail), type="seqpacket")
        sock.sendall(b"hi")
        found = [await in_thread(sock.recv, 1000) for _ in range(3)]
        self.assertEqual((told, found), ([("/chat?room=1", "chat", "hi")], [b"bytes", "grüße".encode(), b""]))
        sock.close()
        await self.idle(near)

    async def test_the_client_s_end_is_a_close_and_the_server_s_is_its_end(self) -> None:
        codes: list[int] = []

        def answer(connection: ServerConnection) -> None:
            try:
                connection.recv()
            except ConnectionClosed as e:
                codes.append(e.rcvd.code if e.rcvd else 1006)

        port, near = self.websocket_server(answer), self.near()
        sock = await self.granted(near, self.uri(port, ""))
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"")
        await until(lambda: codes)
        self.assertEqual(codes, [1000])
        sock.close()
        await self.idle(near)

    @each(("denied", "other", "denied"), ("unknown", "nobody", "denied"))
    async def test_a_far_no_is_told(self, _: str, name: str, word: str) -> None:
        far, near = self.far("deny in other any", f"allow in any {self.scheme}:any"), self.near()
        answer, sock = await self.ask(near, self.uri(self.tcpd_port(far), f"/{name}"))
        self.assertEqual((answer.get("error"), sock), (word, None))
        self.assertIn("the far side refused: denied", answer["reason"])
        await self.idle(near, far)

    @each(
        (
            "a refusal of its own",
            b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\ngone",
            "unknown-service",
            "404 gone",
        ),
        ("a login", b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "unauthenticated", "401"),
        ("somewhere else", b"HTTP/1.1 301 There\r\nLocation: /x\r\n\r\n", "unreachable", "301"),
        ("hostile", b"HTTP/1.1 403 No\r\n\r\n\x1b[31m" + b"x" * 1000, "denied", "403"),
        ("no HTTP", b"SSH-2.0-x\r\n\r\n", "unreachable", "no HTTP"),
        ("nothing", b"", "unreachable", "hung up"),
        (
            "another key",
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "unreachable",
            "no WebSocket",
        ),
    )
    async def test_what_opens_no_websocket_is_told(self, _: str, said: bytes, word: str, text: str) -> None:
        if self.secure:
            return  # what comes before TLS is test_tls_dial's
        near = self.near()
        port = self.serve_tcp(lambda sock: (sock.recv(4096), sock.sendall(said)))
        answer, sock = await self.ask(near, self.uri(port, ""))
        self.assertEqual((answer.get("error"), sock), (word, None))
        self.assertIn(text, answer["reason"])
        self.assertTrue(answer["reason"].isprintable())
        self.assertLess(len(answer["reason"]), 400)
        await self.idle(near)

    async def test_a_refusal_whose_reason_does_not_come_is_told_without_it(self) -> None:
        if self.secure:
            return  # what comes inside TLS is the same
        near, ended = self.near(), queue.SimpleQueue[bytes]()
        said = b"HTTP/1.1 403 No\r\nContent-Length: 500\r\n\r\ndenied: so"

        def refuse(sock: socket.socket) -> None:
            sock.recv(4096)
            sock.sendall(said)
            ended.put(read_all(sock))

        port = self.serve_tcp(refuse)
        answer, sock = await self.ask(near, self.uri(port, ""))
        self.assertEqual((answer.get("error"), sock), ("denied", None))
        self.assertEqual(answer["reason"], "the far side refused: denied: so")
        self.assertEqual(await in_thread(ended.get, True, DEADLINE_SECONDS), b"")
        await self.idle(near)

    async def test_a_far_side_that_says_nothing_is_given_up_in_time(self) -> None:
        near = self.near(limits=Limits(connect_seconds=0.2))
        ended: list[bytes] = []
        port = self.serve_tcp(lambda sock: ended.append(read_all(sock)))
        answer, _ = await self.ask(near, self.uri(port))
        self.assertEqual(answer["error"], "timeout")
        await until(lambda: ended)
        await self.idle(near)

    async def test_a_client_that_goes_cancels(self) -> None:
        near = self.near()
        asked: list[str] = []

        def answer(sock: socket.socket) -> None:
            asked.append("begun")
            read_all(sock)
            asked.append("ended")

        port = self.serve_tcp(answer)
        with dialled(near.settings.rundir, "plumberd") as sock:
            sock.sendall(native_frame({"op": "lookup", "uri": self.uri(port)}))
            await until(lambda: asked)
        await until(lambda: "ended" in asked)
        await self.idle(near)

    async def test_a_datagram_socket_cannot_tell_its_end(self) -> None:
        near, port = self.near(), self.websocket_server(echo_messages)
        answer, _ = await self.ask(near, self.uri(port, ""), type="dgram")
        self.assertEqual(answer["error"], "not-possible")
        await self.idle(near)

    async def test_another_process_carries(self) -> None:
        folder = os.path.join(self.folder(), "r")
        far = self.far(f"allow in pong {self.scheme}:any")
        self.serve(far.settings.rundir, "pong")
        near = self.near(rundir=folder, parts=frozenset(("broker",)))
        daemon = self.near(rundir=folder, parts=frozenset(("webipcd",)))
        sock = await self.granted(near, self.uri(self.tcpd_port(far)))
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"hello")
        sock.close()
        _, zig = await in_thread(zig_lookup, folder, f"pong;pong {self.uri(self.tcpd_port(far))}".encode())
        assert zig is not None
        with zig:
            zig.sendall(struct.pack(">I", 3) + b"abc")
            self.assertEqual(await in_thread(read_exactly, zig, 7), struct.pack(">I", 3) + b"abc")
        packets = await self.granted(near, self.uri(self.tcpd_port(far)), type="seqpacket")
        for payload in (b"one", b"two" * 1000):
            packets.sendall(payload)
            self.assertEqual(await in_thread(packets.recv, 1 << 20), payload)
        packets.close()
        answer, _ = await self.ask(near, self.uri(self.tcpd_port(far)), type="dgram")
        self.assertEqual(answer["error"], "not-possible")
        answer, _ = await self.ask(near, self.uri(self.tcpd_port(far), "/nobody"))
        self.assertEqual(answer["error"], "denied")
        await self.idle(near, daemon, far)
        ended = [o for o in self.outcomes if (o.verdict, str(o.who)) == ("ended", "a broker")]
        self.assertEqual(len(ended), 3)

    async def test_a_gateway_leads_messages_on_as_messages(self) -> None:
        far = self.far(f"allow in pong {self.scheme}:any")
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(far.settings.rundir, "pong"))
        listener.listen()
        self.serve_on(listener, lambda sock: sock.sendall(sock.recv(1000)))
        port = self.tcpd_port(far)
        from tests.web_clients import opened

        gateway = self.near(
            "allow in pong any",
            f"allow out pong {self.scheme}:127.0.0.1:{port}",
            webipcd=LISTEN,
            routes=Routes({}, leading(pong=parse_route("pong", self.uri(port)))),
        )

        def work() -> Any:
            with opened(self.tcpd_port(gateway), "pong", "ipc") as connection:
                connection.send(b"hello")
                return connection.recv(DEADLINE_SECONDS)

        self.assertEqual(await in_thread(work), b"hello")
        await self.idle(gateway, far)

    async def test_two_that_lead_to_each_other_end(self) -> None:
        one = self.far("allow in pong any")
        port = self.tcpd_port(one)
        two = self.far(
            "allow in pong any",
            f"allow out pong {self.scheme}:127.0.0.1:{port}",
            routes=Routes({}, leading(pong=parse_route("pong", self.uri(port)))),
        )
        assert one.core is not None
        self.put_in_force(
            one,
            "allow in pong any",
            f"allow out pong {self.scheme}:127.0.0.1:{self.tcpd_port(two)}",
            routes=Routes({}, leading(pong=parse_route("pong", self.uri(self.tcpd_port(two))))),
            tls=TlsSettings((self.server.value,), trust=trusting(self.ca)),
        )
        self.put_in_force(
            two,
            "allow in pong any",
            f"allow out pong {self.scheme}:127.0.0.1:{port}",
            tls=TlsSettings((self.server.value,), trust=trusting(self.ca)),
        )
        near = self.near()
        answer, sock = await self.ask(near, self.uri(port))
        self.assertFalse(answer["ok"])
        self.assertIsNone(sock)
        self.assertLessEqual(len([o for o in self.outcomes if o.direction == "in"]), 10)
        self.assertTrue(any("gateways" in o.reason for o in self.outcomes), [o.reason for o in self.outcomes])
        await self.idle(near, one, two)

    async def test_the_relay_s_own_framed_mode_needs_messages(self) -> None:
        near, port = self.near(handover=Mode.RELAYED), self.websocket_server(echo_messages)
        sock = await self.granted(near, self.uri(port, ""))
        sock.sendall(b"bytes")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"bytes")
        sock.close()
        await self.idle(near)


class OverWs(_Contract):
    scheme = "ws"

    @each(
        ("a_type", "", "dgram", "not-possible"),
        ("a_user_without_a_password", "alice@", "stream", "bad-request"),
    )
    async def test_what_cannot_be_asked_is_refused_where_connecting_takes_its_time(
        self, what: str, user: str, kind: str, word: str
    ) -> None:
        self.patch(dial_tcp, "zone", lambda address: Zone.ORDINARY)  # nothing is connected at once
        near, port = self.near(), self.websocket_server(echo_messages)
        uri = self.uri(port, "", user).replace("ws:", "wss:" if user else "ws:")
        answer, _ = await self.ask(near, uri, type=kind)
        self.assertEqual(answer["error"], word, what)
        self.assertEqual(self.flushLoggedErrors(), [])
        await self.idle(near)

    async def test_that_nothing_of_this_machine_s_is_proved_here_is_told_where_it_is_missed(self) -> None:
        far = self.far("allow in pong any for token:laptop")
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        near = self.near(port=port, peer=PeerSettings(token_file="/etc/token", token=TOKEN))
        answer, _ = await self.ask(near, self.uri(port))
        self.assertEqual(answer["error"], "denied")
        self.assertTrue(answer["reason"].endswith("is not sent over ws, only over wss"), answer["reason"])
        answer, _ = await self.ask(self.near(), self.uri(port))
        self.assertEqual(answer["reason"], "the far side refused: denied")
        await self.idle(near, far)


class OverWss(_Contract):
    scheme = "wss"

    async def test_another_process_proves_what_a_rule_of_the_broker_s_allows_alone(self) -> None:
        folder = os.path.join(self.folder(), "r")
        far = self.far("allow in pong any for token:laptop")
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        peer = PeerSettings(token_file="/etc/token", token=TOKEN)
        rule = f"allow out pong wss:127.0.0.1:{port}"
        near = self.near(rule, rundir=folder, parts=frozenset(("broker",)), port=port)
        daemon = self.near(rundir=folder, parts=frozenset(("webipcd",)), port=port, peer=peer)
        answer, sock = await in_thread(native_ask, folder, op="lookup", service="pong", routes=f"pong {self.uri(port)}")
        assert sock is not None, answer
        sock.close()
        answer, _ = await self.ask(near, self.uri(port))
        self.assertEqual(answer["error"], "denied")
        self.assertIn("no rule of the broker's allows it", answer["reason"])
        await self.idle(near, daemon, far)

    async def test_a_far_side_that_proves_nothing_is_not_believed(self) -> None:
        far = self.far("allow in pong any")
        near = self.run_broker()
        answer, _ = await self.ask(near, self.uri(self.tcpd_port(far)))
        self.assertEqual(answer["error"], "unreachable")
        await self.idle(near, far)

    async def test_a_token_of_the_machine_s_is_shown_there_by_a_rule(self) -> None:
        far = self.far("allow in pong any for token:laptop")
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        peer = PeerSettings(token_file="/etc/token", token=TOKEN)
        near = self.near(f"allow out any wss:127.0.0.1:{port}", port=port, peer=peer)
        sock = await self.granted(near, self.uri(port))
        sock.close()
        without = self.near(port=port, peer=peer)
        answer, _ = await self.ask(without, self.uri(port))
        self.assertIn("could not do by itself", answer["reason"])
        wrong = PeerSettings(token_file="/etc/token", token="wrong")
        other = self.near(f"allow out any wss:127.0.0.1:{port}", port=port, peer=wrong)
        answer, _ = await self.ask(other, self.uri(port))
        self.assertEqual(answer["error"], "unauthenticated")
        self.assertNotIn(TOKEN, repr(near.settings) + " ".join(map(str, self.outcomes)))
        await self.idle(near, without, other, far)

    async def test_who_has_proved_something_is_told_why(self) -> None:
        far = self.far("allow in any any for token:laptop")
        port = self.tcpd_port(far)
        peer = PeerSettings(token_file="/etc/token", token=TOKEN)
        near = self.near(f"allow out any wss:127.0.0.1:{port}", port=port, peer=peer)
        answer, _ = await self.ask(near, self.uri(port, "/nobody"))
        self.assertEqual(answer["error"], "unknown-service")
        self.assertIn("no local service is called nobody", answer["reason"])
        await self.idle(near, far)

    async def test_a_lookup_s_own_login_is_basic(self) -> None:
        told: list[str | None] = []

        def answer(connection: ServerConnection) -> None:
            assert connection.request is not None
            told.append(connection.request.headers.get("Authorization"))

        near, port = self.near(), self.websocket_server(answer)
        sock = await self.granted(near, self.uri(port, "", "carol:secret@"))
        await in_thread(read_all, sock)
        self.assertEqual(told, ["Basic Y2Fyb2w6c2VjcmV0"])
        sock.close()
        await self.idle(near)


del _Contract


class InTheClear(OutTestCase):
    async def test_no_credentials_go_over_ws(self) -> None:
        near = self.near()
        answer, _ = await self.ask(near, "ws://carol:secret@127.0.0.1:1/pong")
        self.assertEqual(answer["error"], "bad-request")
        self.assertNotIn("secret", answer["reason"])
