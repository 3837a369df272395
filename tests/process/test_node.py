"""Programs of Node's: the package ws, and wscat."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from typing import Any

from tests.process.programs import PACKAGES, find, find_package
from tests.process.running import ProcessTestCase, Program


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
