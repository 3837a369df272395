"""Programs of Node's: the package ws as a client and as a server, and wscat as both."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import threading
from typing import Any

from tests.ports import free_port
from tests.process.programs import PACKAGES, find, find_package
from tests.process.running import DEADLINE_SECONDS, ProcessTestCase, Program
from tests.support import native_ask, read_exactly


class NodeTestCase(ProcessTestCase):
    def setUp(self) -> None:
        find_package("ws")
        self.rundir = self.folder() + "/r"

    def node(self, script: str, *words: str) -> Program:
        """Start a script of ours."""
        return self.program(find("node"), os.path.join(PACKAGES, script), *words)

    def wscat(self, *words: str, **options: Any) -> Program:
        """Start wscat."""
        return self.program(find("node"), os.path.join(find_package("wscat"), "bin", "wscat"), *words, **options)

    def told(self, program: Program) -> list[Any]:
        """Return what a script has told so far."""
        return [json.loads(line) for line in program.lines]

    def wait_for(self, program: Program, what: object) -> None:
        """Wait until a script tells *what*."""
        self.until(lambda: what in self.told(program), f"{what} of\n{program.output}")


class Inbound(NodeTestCase):
    """Node calls webipcd."""

    def setUp(self) -> None:
        super().setUp()
        folder = self.folder()
        self.token = secrets.token_urlsafe(32)
        self.write(f"{folder}/tokens", f"node:sha256:{hashlib.sha256(self.token.encode()).hexdigest()}\n")
        self.write(
            f"{folder}/plumberd.toml",
            'rules = ["allow in pong ws:any for token:node", "allow in open ws:any"]\n'
            '[listen]\nwebipcd = ["tcp:0:interface=127.0.0.1"]\n[web]\ntoken_file = "tokens"\n',
        )
        daemon = self.broker(self.rundir, "--config", f"{folder}/plumberd.toml")
        self.port = int(daemon.wait_for(r"webipcd on 127\.0\.0\.1:(\d+)").group(1))
        for name in ("pong", "open"):
            self.pongd(self.rundir, name)

    def write(self, path: str, text: str) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o600)

    def url(self, name: str) -> str:
        return f"ws://127.0.0.1:{self.port}/{name}"

    def test_ws_sends_text_bytes_fragments_and_large_messages_and_is_answered(self) -> None:
        client = self.node("client.mjs", self.url("pong"), "ipc", self.token)
        self.assertEqual(client.wait(), 0, client.output)
        self.assertEqual(
            self.told(client),
            [
                {"protocol": "ipc", "extensions": ""},
                {"text": "grüße"},
                {"bytes": [0, 255]},
                {"fragments": "in pieces"},
                {"large": True},
                {"pong": "are you there?"},
                {"closed": 1000, "reason": ""},
            ],
        )

    def test_ws_is_told_by_http_that_it_has_proved_too_little(self) -> None:
        for token in ((), (secrets.token_urlsafe(32),)):
            client = self.node("client.mjs", self.url("pong"), "ipc", *token)
            client.wait()
            self.assertIn(self.told(client)[0]["status"], (401, 403))

    def test_ws_with_an_unknown_subprotocol_is_told_400(self) -> None:
        client = self.node("client.mjs", self.url("open"), "soap", self.token)
        client.wait()
        self.assertEqual(self.told(client)[0]["status"], 400)

    def test_wscat_is_answered(self) -> None:
        words = ("-s", "ipc", "-H", f"Authorization: Bearer {self.token}", "-w", "-1", "-x", "hello", "-x", "wörld")
        client = self.wscat("-c", self.url("pong"), *words, stdin=self.held())
        client.wait_for("^wörld$")
        self.assertEqual(client.lines, ["hello", "wörld"])

    def test_wscat_says_which_status_refused_it(self) -> None:
        client = self.wscat("-c", self.url("pong"), "-x", "hello", stdin=self.held())
        client.wait_for("error: Unexpected server response: 403")

    def held(self) -> int:
        """Return a standard input that stays open until the test's end."""
        read_end, write_end = os.pipe()
        for fd in (read_end, write_end):
            self.addCleanup(os.close, fd)
        return read_end


class Outbound(NodeTestCase):
    """A local client's lookup leads to Node's server."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.node("server.mjs")
        self.port = int(json.loads(self.server.wait_for(r'\{"port":\d+\}')[0])["port"])
        self.broker(self.rundir)

    def look_up(self, options: str, **members: Any) -> socket.socket:
        """Ask for the server; return the connection."""
        answer, sock = native_ask(self.rundir, op="lookup", uri=f"ws://127.0.0.1:{self.port}{options}", **members)
        assert sock is not None, answer
        self.addCleanup(sock.close)
        sock.settimeout(DEADLINE_SECONDS)
        return sock

    def test_a_packet_is_a_message(self) -> None:
        sock = self.look_up("?path=/chat&protocol=chat", type="seqpacket")
        for message in (b"one", b"\0\xff", os.urandom(60_000)):
            sock.send(message)
            self.assertEqual(sock.recv(1 << 20), message)
        self.wait_for(self.server, {"path": "/chat", "protocol": "chat", "origin": None})
        self.wait_for(self.server, {"binary": "one"})

    def test_text_goes_as_text_if_that_is_asked_for(self) -> None:
        sock = self.look_up("?path=/&text=yes", type="seqpacket")
        sock.send("grüße".encode())
        self.assertEqual(sock.recv(100), "grüße".encode())
        self.wait_for(self.server, {"text": "grüße"})

    def test_a_stream_has_the_bytes_of_all_messages(self) -> None:
        sock = self.look_up("?path=/")
        data = os.urandom(1 << 20)
        sending = threading.Thread(target=sock.sendall, args=(data,))
        sending.start()
        self.assertEqual(read_exactly(sock, len(data)), data)
        sending.join()

    def test_the_server_s_end_is_the_end_and_so_is_its_death(self) -> None:
        for word in (b"end", b"die"):
            sock = self.look_up("?path=/", type="seqpacket")
            sock.send(word)
            self.assertEqual(sock.recv(100), b"")

    def test_the_client_s_end_is_a_close_in_order(self) -> None:
        sock = self.look_up("?path=/")
        sock.sendall(b"bye")
        self.assertEqual(read_exactly(sock, 3), b"bye")
        sock.close()
        self.wait_for(self.server, {"closed": 1000})

    def test_a_ping_is_answered(self) -> None:
        self.look_up("?path=/").sendall(b"ping")
        self.wait_for(self.server, {"pong": "?"})

    def test_a_refusal_is_the_client_s_refusal(self) -> None:
        answer, sock = native_ask(self.rundir, op="lookup", uri=f"ws://127.0.0.1:{self.port}?path=/refuse")
        self.assertIsNone(sock)
        self.assertEqual((answer["ok"], answer["error"]), (False, "denied"))

    def test_plumb_connect_talks_to_it(self) -> None:
        done = self.plumb("--rundir", self.rundir, "connect", f"ws://127.0.0.1:{self.port}?path=/", stdin=b"hello")
        self.assertEqual((done.returncode, done.stdout), (0, b"hello"))

    def test_wscat_s_server_is_talked_to(self) -> None:
        port = free_port()
        read_end, write_end = os.pipe()
        self.addCleanup(os.close, write_end)
        server = self.wscat("-l", str(port), stdin=read_end)
        os.close(read_end)
        self.until(lambda: answers(port), "wscat listens")
        answer, sock = native_ask(
            self.rundir, op="lookup", uri=f"ws://127.0.0.1:{port}?path=/&text=yes", type="seqpacket"
        )
        assert sock is not None, answer
        self.addCleanup(sock.close)
        sock.settimeout(DEADLINE_SECONDS)
        sock.send(b"to wscat")
        server.wait_for("to wscat$")
        os.write(write_end, b"from wscat\n")
        self.assertEqual(sock.recv(100), b"from wscat")
        server.stop(signal.SIGTERM)


def answers(port: int) -> bool:
    """Tell whether somebody listens; no WebSocket is begun."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
