"""webipcd with programs that nobody here wrote: nginx in front of it, as docs/web.md has it, curl, and plumb's own."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
from typing import Any

from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from tests.ports import free_port
from tests.process.programs import find
from tests.process.running import DEADLINE_SECONDS, Program
from tests.process.test_tls_interop import InteropTestCase
from tests.test_docs import section
from tests.web_clients import opened


def location() -> str:
    """Return the block for nginx that docs/web.md shows."""
    (found,) = re.findall(
        r"^    location / \{\n(?:    .*\n)+?    \}\n", section("web.md", "Behind a reverse proxy"), re.M
    )
    return str(found)


class WebProgramsTestCase(InteropTestCase):
    def web(self, *lines: str, rules: tuple[str, ...]) -> tuple[Program, int]:
        """Start a broker with webipcd and the example's service; return it and the port."""
        broker = self.webipcd("tcp:0:interface=127.0.0.1", *lines, rules=rules)
        return broker, int(broker.wait_for(r"webipcd on 127\.0\.0\.1:(\d+)").group(1))

    def webipcd(self, listen: str, *lines: str, rules: tuple[str, ...]) -> Program:
        """Start a broker with webipcd on *listen*, and the example's service."""
        rundir = self.folder() + "/far"
        rows = ", ".join(f"'{rule}'" for rule in rules)
        text = f"rules = [{rows}]\n[listen]\nwebipcd = ['{listen}']\n[web]\n" + "\n".join(lines)
        broker = self.broker(rundir, "--config", self.file("far.toml", text.encode()))
        self.pongd(rundir)
        return broker

    def behind(self, port: int, *rules: str, more: str = ";") -> Program:
        """Start a broker on a UNIX socket, and nginx on *port* in front of it; return the broker."""
        path = self.path("socket")
        broker = self.webipcd(f"unix:{path}:mode=660", "proxies = ['unix']", rules=rules)
        broker.wait_for(f"webipcd on {re.escape(path)}")
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o660)
        shown = location().replace("/run/webipcd/socket", path)
        self.assertIn(path, shown)
        text = (
            f"daemon off;\nmaster_process off;\npid {self.dir}/nginx.pid;\nerror_log stderr;\nuser root;\nevents {{}}\n"
            f"http {{ access_log off; client_body_temp_path {self.dir}/a; proxy_temp_path {self.dir}/b;\n"
            f"fastcgi_temp_path {self.dir}/c; uwsgi_temp_path {self.dir}/d; scgi_temp_path {self.dir}/e;\n"
            f"server {{ listen 127.0.0.1:{port} {more}\n{shown} }} }}\n"
        )
        config = self.file("nginx.conf", text.encode())
        self.listens(self.program(find("nginx"), "-p", str(self.dir), "-e", "stderr", "-c", config), port)
        return broker


class BehindNginx(WebProgramsTestCase):
    def test_messages_pass_and_rules_see_the_caller_and_that_it_is_encrypted(self) -> None:
        port = free_port()
        own = f"ssl; ssl_certificate {self.path('server.pem')}; ssl_certificate_key {self.path('server.key')};"
        broker = self.behind(port, "allow in pong wss:127.0.0.1", more=own)
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        with opened(port, "pong", "ipc", context=context) as connection:
            for message in (b"hello", b"x" * 300_000):
                connection.send(message)
                self.assertEqual(connection.recv(DEADLINE_SECONDS), message)
        broker.wait_for(r"granted in pong .*who=\[wss:127\.0\.0\.1:0 via proxy unix")

    def test_what_the_caller_says_of_itself_is_not_heard(self) -> None:
        port = free_port()
        self.behind(port, "allow in pong wss:any", "allow in pong ws:192.0.2.7")
        lies: list[dict[str, str]] = [
            {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"},
            {"Forwarded": "for=192.0.2.7;proto=https"},
        ]
        for headers in lies:
            with self.assertRaises(InvalidStatus) as caught:
                opened(port, "pong", additional_headers=headers).close()
            self.assertEqual(caught.exception.response.status_code, 403)

    def test_its_own_pages_are_let_in_on_any_port_and_no_others(self) -> None:
        port = free_port()
        self.behind(port, "allow in pong ws:any")
        with opened(port, "pong", origin=Origin(f"http://127.0.0.1:{port}")) as connection:
            connection.send(b"hello")
            self.assertEqual(connection.recv(DEADLINE_SECONDS), b"hello")
        with self.assertRaises(InvalidStatus) as caught:
            opened(port, "pong", origin=Origin(f"http://127.0.0.1:{port + 1}")).close()
        self.assertEqual(caught.exception.response.status_code, 403)

    def test_a_second_proxy_that_is_not_declared_says_nothing(self) -> None:
        _, far = self.web(rules=("allow in pong ws:192.0.2.7",))
        with self.assertRaises(InvalidStatus) as caught:
            opened(far, "pong", additional_headers={"X-Forwarded-For": "192.0.2.7"}).close()
        self.assertEqual(caught.exception.response.status_code, 403)


class WithTools(WebProgramsTestCase):
    def curl(self, port: int, path: str, *words: str) -> Any:
        argv = (find("curl"), "-sS", "--max-time", "20", *words, f"http://localhost:{port}{path}")
        return subprocess.run(argv, capture_output=True, timeout=DEADLINE_SECONDS, check=True).stdout

    def test_a_token_of_plumb_s_lets_in_and_curl_is_told_why_not(self) -> None:
        file = self.path("tokens")
        made = subprocess.run(
            (sys.executable, "-m", "plumberd.plumb", "token", "new", "phone", "--append", file, "--json"),
            capture_output=True,
            check=True,
        )
        token = json.loads(made.stdout)["token"]
        _, port = self.web(f"token_file = '{file}'", rules=("allow in pong ws:any for token:phone",))
        with opened(port, "pong", "ipc", f"plumb.token.{token}") as connection:
            connection.send("hello")
            self.assertEqual(connection.recv(DEADLINE_SECONDS), b"hello")
        bearer = ("-H", f"Authorization: Bearer {token}")
        self.assertEqual(json.loads(self.curl(port, "/-/services/pong", *bearer)), {"service": "pong", "ok": True})
        self.assertEqual(json.loads(self.curl(port, "/-/services/pong"))["error"], "denied")
        self.assertEqual(self.curl(port, "/pong", "-o", "/dev/null", "-w", "%{http_code}"), b"400")

    def test_plumb_connect_talks_in_lines(self) -> None:
        _, port = self.web(rules=("allow in pong ws:any",))
        near = tempfile.mkdtemp(prefix="pl", dir=self.folder())
        self.broker(near + "/near")
        done = subprocess.run(
            (
                sys.executable,
                "-m",
                "plumberd.plumb",
                "--rundir",
                near + "/near",
                "connect",
                "--messages",
                f"ws://127.0.0.1:{port}/pong",
            ),
            input=b"hello\ngr\xc3\xbc\xc3\x9fe\n",
            capture_output=True,
            timeout=DEADLINE_SECONDS,
        )
        self.assertEqual((done.stdout, done.stderr, done.returncode), ("hello\ngrüße\n".encode(), b"", 0))
