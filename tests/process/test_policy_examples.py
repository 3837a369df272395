"""docs/policy.md: every example's configuration is read, and its assertions hold; the ninth one happens in earnest."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path

from plumberd import client
from plumberd.framing import Decoder, Framing, Message, encode
from tests.process.running import ROOT, ProcessTestCase

DOCUMENT = Path(ROOT, "docs", "policy.md")
_EXAMPLE = re.compile(r"^### (\d+)\. (.+?)$(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
_PART = re.compile(r"^```toml\n(.*?)^```\n\n^```plumb-test\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Examples(ProcessTestCase):
    def examples(self) -> dict[int, list[tuple[str, str]]]:
        """Return each example's parts: a configuration and its assertions."""
        text = DOCUMENT.read_text(encoding="utf-8")
        return {int(number): _PART.findall(body) for number, _, body in _EXAMPLE.findall(text)}

    def test_there_are_ten_and_each_has_a_configuration_with_assertions(self) -> None:
        examples = self.examples()
        self.assertEqual(sorted(examples), list(range(1, 11)))
        self.assertEqual([number for number, parts in examples.items() if not parts], [])

    def test_every_assertion_holds(self) -> None:
        folder = Path(self.folder())
        for number, parts in self.examples().items():
            for at, (configuration, assertions) in enumerate(parts):
                config, lines = folder / f"{number}-{at}.toml", folder / f"{number}-{at}.test"
                config.write_text(configuration)
                config.chmod(0o600)
                lines.write_text(assertions)
                done = self.plumb("test", str(lines), "--config", str(config))
                self.assertEqual(done.returncode, 0, (done.stdout + done.stderr).decode())
                wanted = sum(1 for line in assertions.splitlines() if line.split("#")[0].strip())
                self.assertRegex(done.stdout.decode(), rf"\b{wanted} assertions?, 0 failed")

    def test_a_wrong_assertion_about_an_example_fails(self) -> None:
        folder = Path(self.folder())
        config, lines = folder / "c.toml", folder / "c.test"
        config.write_text(self.examples()[1][0][0])
        config.chmod(0o600)
        lines.write_text("granted in pong tcp:192.0.2.8\n")
        done = self.plumb("test", str(lines), "--config", str(config))
        self.assertEqual(done.returncode, 1, (done.stdout + done.stderr).decode())
        self.assertIn("1 assertion, 1 failed", done.stdout.decode())


class Authd(ProcessTestCase):
    """A local client of authd is authenticated by a distant service, by name alone."""

    def ask(self, rundir: str, credentials: bytes) -> bytes:
        sock = client.connect("authd", "", rundir=rundir)
        with sock:
            sock.sendall(encode(Framing.LIBIPC_ZIG, Message(credentials)))
            sock.shutdown(socket.SHUT_WR)
            decoder = Decoder(Framing.LIBIPC_ZIG)
            messages = [m.payload for data in iter(lambda: sock.recv(65536), b"") for m in decoder.feed(data)]
        return b"".join(messages)

    def test_it_works_and_only_as_the_rules_say(self) -> None:
        near, far = self.folder() + "/near", self.folder() + "/far"
        users = Path(self.folder(), "users")
        users.write_text("alice:correct horse\n")
        users.chmod(0o600)
        far_broker = self.start_broker(
            "--rundir", far, "--tcpd", "tcp:0:interface=127.0.0.1", "--allow", "in", "authd", "tcp:127.0.0.0/8"
        )
        far_broker.wait_for("export IPC_NETWORKD")
        port = far_broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1)
        authd = self.program(sys.executable, os.path.join(ROOT, "examples", "authd.py"), far, str(users))
        authd.wait_for("listening")
        config = Path(self.folder(), "near.toml")
        config.write_text(
            f'rules = ["allow out authd tcp:127.0.0.1:{port} for uid:{os.geteuid()}", "deny out authd any"]\n'
            f'[routes]\nauthd = "tcp://127.0.0.1:{port}/authd"\n'
        )
        config.chmod(0o600)
        self.broker(near, "--config", str(config))
        self.assertEqual(self.ask(near, b"alice:correct horse"), b"welcome alice")
        self.assertEqual(self.ask(near, b"alice:wrong"), b"no")
        self.assertEqual(self.ask(near, b"mallory:"), b"no")
        # A route of its own would lead elsewhere: the second rule is in its way.
        with self.assertRaises(client.Refused) as refused:
            client.connect("authd", f"authd tcp://127.0.0.2:{port}/authd", rundir=near)
        self.assertEqual(refused.exception.word, "denied")
        self.assertIn("rule 2", refused.exception.reason)
