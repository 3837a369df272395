"""The examples: every client with every service, through real brokers."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

from plumberd import client
from plumberd.framing import Decoder, Framing, Message, encode
from tests.process.programs import find
from tests.process.running import DEADLINE_SECONDS, ROOT, ProcessTestCase, Program
from tests.tables import each

CLIENTS = ("pong.py", "pong_asyncio.py", "pong_twisted.py")
WORDS = ("hello", "", "bounce me", "ünïcode", "x" * 70000)
"""One after the other; the last does not fit into one read."""


def example(name: str) -> str:
    """Return the path of an example."""
    return os.path.join(ROOT, "examples", name)


class ExamplesTestCase(ProcessTestCase):
    """Runs the examples as their docstrings say."""

    def service(self, name: str, *args: str) -> Program:
        """Start an example service and wait until it listens."""
        program = self.program(sys.executable, example(name), *args)
        program.wait_for("listening")
        return program

    def brokers(self, service: str, *more: str) -> tuple[str, str, str]:
        """Start two; return the near one's directory, the far one's, and the URI that leads there.

        :param service: which one the far broker lets in, or ``any``.
        :param more: options of the far one.
        """
        near, far = self.folder() + "/near", self.folder() + "/far"
        options = ("--tcpd", "tcp:0:interface=127.0.0.1", "--allow", "in", service, "tcp:127.0.0.1")
        both = self.start_broker("--rundir", far, *options, *more), self.start_broker("--rundir", near)
        for broker in both:
            broker.wait_for("export IPC_NETWORKD")
        port = both[0].wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1)
        return near, far, f"tcp://127.0.0.1:{port}"

    def client(self, name: str, rundir: str, routes: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run an example client to its end."""
        return subprocess.run(
            [sys.executable, example(name), *words],
            env={**os.environ, "IPC_RUNDIR": rundir, "IPC_NETWORKD": routes},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def check_client(self, name: str, rundir: str, routes: str) -> None:
        """Let a client talk, and look at what it has printed."""
        done = self.client(name, rundir, routes, *WORDS)
        where = f"{name}, routes {routes!r}"
        self.assertEqual((done.stderr, done.returncode), ("", 0), where)
        self.assertEqual(done.stdout.splitlines(), list(WORDS), where)


class Pong(ExamplesTestCase):
    @each(("pongd.py",), ("pongd_asyncio.py",), ("pongd_twisted.py",))
    def test_every_client_is_answered_locally_and_over_two_brokers_by(self, service: str) -> None:
        near, far, uri = self.brokers("pong")
        self.service(service, far)
        for name in CLIENTS:
            self.check_client(name, far, "")
            self.check_client(name, near, f"pong {uri}/pong")

    @each(*((name,) for name in CLIENTS))
    def test_a_refusal_is_one_line_and_a_failure_in(self, name: str) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--deny", "out", "pong", "any")
        for where, said in ((rundir, "denied: "), (rundir + "/nowhere", "no broker answers")):
            done = self.client(name, where, "", "hello")
            self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr)
            self.assertIn("pong: ", done.stderr)
            self.assertIn(said, done.stderr)

    def test_the_twisted_service_takes_a_stale_socket_over_and_leaves_none(self) -> None:
        rundir = self.folder()
        path = os.path.join(rundir, "pong")
        self.service("pongd_twisted.py", rundir).end()
        self.assertTrue(stat.S_ISSOCK(os.lstat(path).st_mode))
        second = self.service("pongd_twisted.py", rundir)
        self.assertEqual(stat.S_IMODE(os.lstat(path).st_mode), 0o660)
        second.stop()
        self.assertEqual(os.listdir(rundir), [])


class Registered(ExamplesTestCase):
    """The service that listens on nothing, with a network and without."""

    def check(self, *within: str) -> None:
        near, far, uri = self.brokers("pong", "--rule", "allow serve pong")
        words = (*within, sys.executable, example("pongd_registered.py"))
        service = self.program(*words, env={**os.environ, "IPC_RUNDIR": far})
        service.wait_for("^pongd: serves pong, by rule ")
        for name in CLIENTS:
            self.check_client(name, far, "")
            self.check_client(name, near, f"pong {uri}/pong")
        self.assertEqual(len(service.lines), 1 + 2 * len(CLIENTS))
        self.assertFalse(os.path.lexists(os.path.join(far, "pong")))

    def test_every_client_is_answered_locally_and_over_two_brokers(self) -> None:
        self.check()

    def test_they_are_where_it_has_no_network(self) -> None:
        self.check(find("unshare"), "--user", "--map-current-user", "--net", "--")

    def test_a_refusal_is_one_line_and_a_failure(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir)
        service = self.program(sys.executable, example("pongd_registered.py"), env={**os.environ, "IPC_RUNDIR": rundir})
        self.assertEqual(service.wait(), 1)
        self.assertRegex(service.output, r"^pongd: denied: .*\n$")


class WhoAmI(ExamplesTestCase):
    """The service that asks who calls."""

    def said(self, rundir: str, routes: str | None = None) -> str:
        with client.connect("whoami", routes, rundir=rundir) as sock:
            sock.settimeout(DEADLINE_SECONDS)
            with sock.makefile("r") as stream:
                return stream.read()

    def test_a_caller_is_told_whence_it_came_and_a_local_program_its_uid(self) -> None:
        near, far, uri = self.brokers("whoami")
        self.service("whoami.py", far)
        wanted = "you are nobody in particular, by tcp from 127.0.0.1; 1: allow in whoami tcp:127.0.0.1 let you in\n"
        self.assertEqual(self.said(near, f"whoami {uri}/whoami"), wanted)
        self.assertEqual(self.said(far), f"you are uid {os.geteuid()} of this machine\n")


class AnyGeneration(ExamplesTestCase):
    """One service for all, and clients that speak as each generation's programs do."""

    def talk(self, sock: socket.socket, framing: Framing) -> None:
        sock.settimeout(DEADLINE_SECONDS)
        decoder = Decoder(framing)
        for text in (b"hello", b"again", *([b""] if framing.header_bytes else [])):
            sock.sendall(encode(framing, Message(text, 42)))
            got: list[Message] = []
            while not got:
                data = sock.recv(65536)
                self.assertTrue(data, "the service hung up")
                got += decoder.feed(data)
            self.assertEqual(got, [Message(text.upper(), 42 if framing.typed else 0)])

    @each(*((framing.value,) for framing in Framing))
    def test_programs_of_each_are_answered_by_the_service_itself(self, word: str) -> None:
        framing, rundir = Framing(word), self.folder()
        self.service("framing_service.py", word, rundir, "shout")
        kind = socket.SOCK_SEQPACKET if framing.packets else socket.SOCK_STREAM
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.connect(os.path.join(rundir, "shout-0-0" if word == "libipc-2019" else "shout"))
            self.talk(sock, framing)

    def test_programs_of_each_are_answered_locally_and_over_two_brokers(self) -> None:
        near, far, uri = self.brokers("any")
        for framing in Framing:
            name = framing.value
            self.service("framing_service.py", name, far, name)
            # Where the service has packets, its broker cuts the client's stream into them.
            for rundir, where in ((far, f"unix:///{name}?framing={name}"), (near, f"{uri}/{name}")):
                with client.connect(name, f"{name} {where}", rundir=rundir) as sock:
                    self.talk(sock, framing)
