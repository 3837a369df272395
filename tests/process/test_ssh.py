"""OpenSSH's own client and server, with keys that are thrown away: over plumb connect, fdpass and serve."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import threading

from tests.children import needs_root
from tests.process.programs import ToolTestCase, find
from tests.process.running import DEADLINE_SECONDS

PRIVILEGE_SEPARATION = "/run/sshd"
"""Debian's sshd wants it; its own unit makes it at a start."""


@needs_root
class SshTestCase(ToolTestCase):
    """Has keys, and starts a server for each connection."""

    def setUp(self) -> None:
        super().setUp()
        self.sshd, keygen = find("sshd"), find("ssh-keygen")
        find("ssh")
        os.makedirs(PRIVILEGE_SEPARATION, mode=0o755, exist_ok=True)
        self.keys = self.folder()
        for name in ("host", "user"):
            words = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", f"{self.keys}/{name}"]
            subprocess.run(words, check=True, timeout=DEADLINE_SECONDS)
        shutil.copy(f"{self.keys}/user.pub", f"{self.keys}/authorized")
        with open(f"{self.keys}/host.pub", encoding="ascii") as file:
            host_key = file.read()
        for name, text in (
            ("config", self.configuration()),
            ("known", f"* {host_key}"),
        ):
            with open(f"{self.keys}/{name}", "w", encoding="ascii") as file:
                file.write(text)
        self.rundir = f"{self.folder()}/r"

    def configuration(self) -> str:
        """Return the server's configuration."""
        return (
            f"HostKey {self.keys}/host\n"
            f"AuthorizedKeysFile {self.keys}/authorized\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin yes\nPermitUserEnvironment no\nLogLevel ERROR\nPidFile none\n"
        )

    def server_words(self) -> list[str]:
        """Return the words of a server of one connection, which is its standard input and output."""
        return [self.sshd, "-i", "-f", f"{self.keys}/config"]

    def listen(self) -> int:
        """Start a server for each connection to a port of loopback; return that."""
        listener, port = self.listener()
        running: list[subprocess.Popen[bytes]] = []

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    sock.setblocking(True)
                    fd, words = sock.fileno(), self.server_words()
                    running.append(subprocess.Popen(words, stdin=fd, stdout=fd, stderr=subprocess.DEVNULL))

        def stop() -> None:
            listener.shutdown(2)
            thread.join(DEADLINE_SECONDS)
            for server in running:
                server.kill()
                server.wait()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(stop)
        return port

    def ssh(self, command: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Run *command* at the far side, which is reached by *options* alone."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        words = [find("ssh"), "-F", "none", "-T", "-i", f"{self.keys}/user", "-l", user]
        for option in ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=yes", *options):
            words += ["-o", option]
        words += ["-o", f"UserKnownHostsFile={self.keys}/known", "-o", "GlobalKnownHostsFile=none"]
        return subprocess.run(
            [*words, "far.example", command],
            input=b"hello",
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            env=self.environ(IPC_RUNDIR=self.rundir, SHELL="/bin/sh"),
            check=False,
        )

    def check(self, *options: str) -> None:
        done = self.ssh("tr a-z A-Z; exit 7", *options)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (7, b"HELLO", b""))

    def proxy(self, *words: str) -> str:
        """Return the option that names plumb as the way."""
        return f"ProxyCommand={shlex.join([sys.executable, '-m', 'plumberd.plumb', *words])}"


class Ssh(SshTestCase):
    def test_it_takes_the_descriptor_of_a_tcp_connection(self) -> None:
        self.broker(self.rundir)
        uri = f"tcp://127.0.0.1:{self.listen()}"
        self.check("ProxyUseFdpass=yes", self.proxy("fdpass", uri))

    def test_it_takes_one_that_is_relayed(self) -> None:
        self.broker(self.rundir, "--handover", "relayed")
        uri = f"tcp://127.0.0.1:{self.listen()}"
        self.check("ProxyUseFdpass=yes", self.proxy("fdpass", uri))

    def test_it_reaches_a_server_that_listens_on_nothing(self) -> None:
        self.broker(self.rundir, "--rule", "allow serve ssh")
        server = self.start("--rundir", self.rundir, "serve", "ssh", "--", *self.server_words())
        server.wait_for("serves ssh")
        self.check("ProxyUseFdpass=yes", self.proxy("fdpass", "ssh"))
        self.check(self.proxy("connect", "ssh"))

    def test_a_refusal_is_told_and_it_fails(self) -> None:
        self.broker(self.rundir, "--deny", "out", "ssh", "any")
        done = self.ssh("true", "ProxyUseFdpass=yes", self.proxy("fdpass", "ssh"))
        self.assertEqual((done.returncode, done.stdout), (255, b""))
        self.assertIn(b"plumb: refused: denied: rule 1 denies it", done.stderr)
