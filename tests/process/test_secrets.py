"""A whole run with every kind of secret, right and wrong ones; then everything that was written is looked through."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
from pathlib import Path

from tests.process.running import ProcessTestCase, Program, frame
from tests.web_clients import UPGRADE

KEY = "a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90"
TOKENS = ("3kJ9tQm0-right-token-of-the-phone", "3kJ9tQm0-wrong-token-of-the-phone")
PASSWORDS = ("Tr0ub4dor-carol", "wr0ng-guess-carol", "m4chine-word", "r0ute-word-dave")


class Secrets(ProcessTestCase):
    timeout = 120.0

    def setUp(self) -> None:
        self.dir = Path(self.folder())
        self.written: list[tuple[str, bytes]] = []

    def file(self, name: str, text: str) -> str:
        path = self.dir / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def run_plumb(self, *args: str, stdin: bytes = b"", **options: object) -> int:
        """Run a command, and keep what it printed."""
        done = self.plumb(*args, stdin=stdin, **options)
        self.written += [(f"plumb {' '.join(args)}", done.stdout), (f"plumb {args} 2>", done.stderr)]
        return done.returncode

    def keep(self, name: str, program: Program) -> None:
        self.written.append((name, program.output.encode()))
        self.written.append((f"{name}'s command line", Path(f"/proc/{program.pid}/cmdline").read_bytes()))

    def upgraded(self, port: int, token: str) -> bytes:
        """Open a WebSocket with *token*, and go; return the beginning of the answer, which does not repeat it."""
        head = f"GET /pong HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}Authorization: Bearer {token}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(head.encode())
            answer = sock.recv(4096)
        self.written.append(("the answer to a token", answer))
        return answer[:12]

    def test_none_shows_anywhere(self) -> None:
        near, far = str(self.dir / "near"), str(self.dir / "far")
        password_file, psk = str(self.dir / "passwords"), self.file("psk", f"laptop:{KEY}\n")
        word = self.file("word", PASSWORDS[2] + "\n")
        for user, password in (("carol", PASSWORDS[0]), ("machine", PASSWORDS[2]), ("dave", PASSWORDS[3])):
            self.assertEqual(
                self.run_plumb("passwd", "--stdin", password_file, user, stdin=password.encode() + b"\n"), 0
            )
        hashes = Path(password_file).read_text().split("$")
        audit = [str(self.dir / f"audit-{side}") for side in ("near", "far")]
        digest = hashlib.sha256(TOKENS[0].encode()).hexdigest()
        tokens, token = self.file("tokens", f"phone:sha256:{digest}\n"), self.file("token", TOKENS[0] + "\n")
        far_config = self.file(
            "far.toml",
            f'rundir = "{far}"\nrules = ["allow in pong tls:any for psk:laptop", "allow in pong any for login:carol",'
            f' "allow in pong any for login:machine", "allow in pong any for login:dave",'
            f' "allow in pong any for token:phone"]\n'
            f'[listen]\ntlsd = ["tcp:0:interface=127.0.0.1"]\nwebipcd = ["tcp:0:interface=127.0.0.1"]\n'
            f'[web]\ntoken_file = "{tokens}"\n[tls]\npsk_file = "{psk}"\n'
            f'[auth]\npassword_file = "{password_file}"\n',
        )
        far_broker = self.start_broker("--config", far_config, "--audit", audit[1])
        port = far_broker.wait_for(r"tlsd on 127\.0\.0\.1:(\d+)").group(1)
        web = far_broker.wait_for(r"webipcd on 127\.0\.0\.1:(\d+)").group(1)
        far_broker.wait_for("export IPC_NETWORKD")
        self.pongd(far)
        for given, status in ((TOKENS[0], b"101"), (TOKENS[1], b"401"), (TOKENS[1] + "\x00", b"400")):
            self.assertIn(status, self.upgraded(int(web), given))
        peer = (
            f'[peer."127.0.0.1:{port}"]\npsk = "laptop"\nlogin = "machine"\npassword_file = "{word}"\n'
            f'[peer."127.0.0.1:{web}"]\ntoken_file = "{token}"\n'
        )
        route = f"tls://dave:{PASSWORDS[3]}@127.0.0.1:{port}/pong"
        text = (
            f'rundir = "{near}"\nrules = ["allow out any tls:127.0.0.1"]\n[routes]\nother = "{route}"\n'
            f'[tls]\npsk_file = "{psk}"\n{peer}'
        )
        near_config = self.file("near.toml", text)
        near_broker = self.start_broker("--config", near_config, "--audit", audit[0])
        near_broker.wait_for("export IPC_NETWORKD")
        where = ("--rundir", near)

        def ask(service: str, routes: str) -> int:
            return self.run_plumb(
                *where, "connect", service, stdin=frame(b"hello"), env={**os.environ, "IPC_NETWORKD": routes}
            )

        self.assertEqual(ask("pong", f"pong tls://127.0.0.1:{port}/pong"), 0)
        self.assertEqual(ask("pong", f"pong tls://carol:{PASSWORDS[0]}@127.0.0.1:{port}/pong"), 0)
        self.assertEqual(ask("pong", f"pong tls://carol:{PASSWORDS[1]}@127.0.0.1:{port}/pong"), 1)
        self.assertEqual(ask("pong", f"pong tls://carol@{PASSWORDS[1]}:127.0.0.1:{port}/pong/x"), 1)  # malformed
        self.assertEqual(ask("pong", f"pong tcp://carol:{PASSWORDS[1]}@127.0.0.1:{port}/pong"), 1)
        self.assertEqual(ask("other", ""), 0)
        for command in (("status",), ("status", "--json"), ("why",), ("explain", "out", "other"), ("ss",), ("reload",)):
            self.run_plumb(*where, *command)
        self.run_plumb("explain", "out", "other", "--config", near_config)
        # mistakes beside the secrets, a reload of which tells them
        self.file("near.toml", text.replace("psk = ", "pks = ").replace('other = "tls', 'other = "tlx'))
        self.assertEqual(self.run_plumb(*where, "reload"), 1)
        self.file("psk", f"laptop:{KEY}zz\n")
        near_broker.process.send_signal(signal.SIGHUP)
        near_broker.wait_for("not reloaded: .*psk")
        for name, program in (("near", near_broker), ("far", far_broker)):
            self.keep(name, program)
            self.assertEqual(program.stop(), 0)
            self.written.append((f"{name} at the end", program.output.encode()))
        for path in audit:
            self.written.append((path, Path(path).read_bytes()))
            self.assertGreater(Path(path).read_bytes().count(b"\n"), 3)
        self.assertGreater(sum(len(data) for _, data in self.written), 5000)
        told = b"\n".join(data for _, data in self.written)
        for expected in (b"psk:laptop", b"login:carol", b"dave:***@", b"token:phone"):
            self.assertIn(expected, told)
        secrets = [
            *PASSWORDS,
            *TOKENS,
            digest,
            KEY,
            KEY.upper(),
            bytes.fromhex(KEY).hex(" "),
            *(h for h in hashes if len(h) > 30),
        ]
        for name, data in self.written:
            for secret in secrets:
                self.assertNotIn(secret.encode(), data, f"a secret stands in what {name} wrote")
            self.assertNotIn(bytes.fromhex(KEY), data)
