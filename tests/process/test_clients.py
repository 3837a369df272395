"""Clients in other languages: each conforms, works with real brokers, and the conformance test finds what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from unittest import SkipTest

from tests.process.running import DEADLINE_SECONDS, ROOT, ProcessTestCase, frame
from tests.tables import each

CLIENTS = os.path.join(ROOT, "examples", "clients")
SOURCE = os.path.join(CLIENTS, "plumb_connect.c")
SCRIPT = os.path.join(CLIENTS, "plumb_connect.sh")
PLUMB = (sys.executable, "-m", "plumberd.plumb", "connect")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
MOST_LINES = 99
SHORT_SECONDS = "0.5"
"""A wrong client may wait for ever."""

ALL_CASES_SECONDS = 180.0
"""An interpreter is started for each case, and coverage may be measured in it."""


class ClientTestCase(ProcessTestCase):
    """Compiles the client in C, and runs clients to their end."""

    def compiled(self, source: str, *flags: str) -> str:
        """Compile *source*; return the program's path."""
        compiler = shutil.which("cc")
        if compiler is None:
            if os.environ.get("CI") == "true":
                self.fail("cc is missing")
            raise SkipTest("cc is not installed")
        program = os.path.join(self.folder(), "plumb_connect")
        done = subprocess.run(
            [compiler, *flags, "-o", program, "-x", "c", "-"],
            input=source,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        return program

    def source(self) -> str:
        """Return the client in C."""
        with open(SOURCE, encoding="utf-8") as file:
            return file.read()

    def conformance(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the conformance test, by an interpreter that sees no installed package."""
        return subprocess.run(
            [sys.executable, "-I", "-S", "-c", "import sys; sys.path[:0] = [sys.argv.pop(1)]; " + MAIN, ROOT, *words],
            capture_output=True,
            text=True,
            timeout=ALL_CASES_SECONDS,
            check=False,
        )

    def run_client(self, rundir: str, routes: str, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """Run a client to its end; return its status and what it has written."""
        path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", "")))
        done = subprocess.run(
            argv,
            input=stdin,
            env={**os.environ, "IPC_RUNDIR": rundir, "IPC_NETWORKD": routes, "PATH": path},
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr.decode()


MAIN = "from tests.conformance.__main__ import main; sys.exit(main())"


class Conformance(ClientTestCase):
    """Of the clients of this project, and the test of the test."""

    def check_conforms(self, *client: str) -> None:
        done = self.conformance(*client)
        failed = [line for line in done.stdout.splitlines() if not line.startswith("ok ")][:-1]
        self.assertEqual((failed, done.stderr, done.returncode), ([], "", 0))

    def test_the_client_in_c_conforms(self) -> None:
        self.check_conforms(self.compiled(self.source(), *FLAGS))

    def test_the_users_tool_conforms(self) -> None:
        self.check_conforms(*PLUMB)

    test_the_users_tool_conforms.timeout = ALL_CASES_SECONDS  # type: ignore[attr-defined]

    def test_every_case_has_a_name_of_its_own_and_they_are_listed(self) -> None:
        names = self.conformance("--list").stdout.splitlines()
        self.assertGreater(len(names), 100)
        self.assertEqual(len(set(names)), len(names))

    def test_without_a_client_it_says_what_is_wanted(self) -> None:
        done = self.conformance()
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (2, "", 1))
        self.assertIn("--help", done.stderr)

    def test_the_contract_is_printed(self) -> None:
        done = self.conformance("--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("CLIENT [ARG…] SERVICE", done.stdout)

    def test_no_case_at_all_is_no_success(self) -> None:
        self.assertEqual(self.conformance("--only", "no such case", "true").returncode, 1)

    @each(
        ("does nothing and says that all is well", "true"),
        ("does nothing and says that it failed", "false"),
        ("copies its input without asking anybody", "sh", "-c", "cat"),
        ("is not there", "/nonexistent/client"),
    )
    def test_found_is_a_client_that(self, _: str, *client: str) -> None:
        done = self.conformance("--seconds", SHORT_SECONDS, "--only", "asks one lookup", *client)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        self.assertIn("FAIL asks one lookup", done.stdout)

    @each(
        (
            "looks for the word alone",
            'member("\\"ok\\""), *error = member("\\"error\\""), *reason = member("\\"reason\\"")',
            'strstr(m.text + HEAD, "\\"ok\\":true") ? "true" : "false", *error = "", *reason = ""',
            "is not fooled by a grant within another object",
        ),
        (
            "takes strings without their escapes",
            "p += *p == '\\\\' && p[1]",
            "continue",
            "is not fooled by a grant in the reason",
        ),
        ("reads once", "have < (ssize_t)size;", "have == 0;", "comes byte by byte"),
        (
            "reads with a plain recv",
            "recvmsg(broker, &to, MSG_CMSG_CLOEXEC)",
            "recv(broker, io.iov_base, io.iov_len, 0)",
            "comes whole",
        ),
        ("trusts the length", "> HEAD + MOST)", "> 4294967295u)", "one byte too much"),
        ("takes two descriptors", "= CMSG_LEN(sizeof fd)}", "= CMSG_SPACE(sizeof fd)}", "keeps one descriptor at most"),
        ("needs no descriptor", " || fd < 0)", ")", "no grant without a descriptor"),
        ("reads up to a NUL byte", "blanks(p + 1) != m.text + size", "*blanks(p + 1)", "a NUL byte behind it"),
        ("does not look behind the object", "|| blanks(p + 1) != m.text + size", "", "something behind it"),
        ("does not escape", 'strchr("\\"\\\\", c)', 'strchr("", c)', "an attempt at JSON in the routes"),
        ("drops control characters", "c < ' ' ? \"\\\\u%04x\"", "c < ' ' ? \"\"", "tabs and ends of lines"),
        (
            "cuts what is too long",
            'if (size > MOST) FAIL(2, "the request is longer than a message may be");',
            "size -= size > MOST;",
            "does not cut routes",
        ),
        ("knows one variable", 'if (!routes || !*routes) routes = getenv("IPC_NETWORK");', "", "IPC_NETWORK's value"),
        (
            "takes the variables in another order",
            'getenv("IPC_RUNDIR"), getenv("RUNDIR")',
            'getenv("RUNDIR"), getenv("IPC_RUNDIR")',
            "IPC_RUNDIR's broker first",
        ),
        (
            "gives up at the first directory",
            "at.sun_path);\n        getsockopt",
            "at.sun_path);\n        if (errno == ECONNREFUSED) exit(2);\n        getsockopt",
            "a socket is stale",
        ),
        ("trusts any directory", "is.st_mode & 022", "is.st_mode & 0", "in no directory"),
        ("trusts no sticky directory", " && !(is.st_mode & S_ISVTX)", "", "that is sticky"),
        ("keeps the broker", "return close(broker), fd;", "return fd;", "closes the connection to the broker"),
        (
            "asks twice",
            "return close(broker), fd;",
            "return send(broker, m.text, 1, 0), close(broker), fd;",
            "asks one lookup",
        ),
        ("forgets the end of its input", "shutdown(fd, SHUT_WR)", "0", "neither side has anything to say"),
        ("forgets the end of its output", "close(1)", "0", "the end of the service's bytes on"),
        (
            "ends with the first end",
            "on[0].fd >= 0 || on[1].fd >= 0",
            "on[0].fd >= 0 && on[1].fd >= 0",
            "the end of standard input on",
        ),
        (
            "waits until all is written",
            "len[i] = (size_t)n, on[i] = (struct pollfd){i ? 1 : fd, POLLOUT, 0};",
            "n = write(i ? 1 : fd, buf[i], (size_t)n);",
            "does not read yet",
        ),
        ("dies of SIGPIPE", "MSG_DONTWAIT | MSG_NOSIGNAL", "MSG_DONTWAIT", "the service is gone"),
        ("drops last words", "&& (in || i)) FAIL", ") FAIL", "delivers what the service said"),
        (
            "calls a reset a success",
            'FAIL(2, "copying: %s", strerror(errno))',
            "exit(0)",
            "the connection is reset",
        ),
        ("does not say why", 'FAIL(1, "refused', 'if (0) FAIL(1, "refused', "the refusal denied"),
    )
    def test_found_is_a_client_in_c_that(self, _: str, *words: str) -> None:
        *changes, case = words
        source = self.source()
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            self.assertEqual(source.count(old), 1, old)
            source = source.replace(old, new)
        done = self.conformance("--seconds", SHORT_SECONDS, "--only", case, self.compiled(source, "-w"))
        self.assertEqual((done.returncode, done.stderr), (1, ""), done.stdout)
        self.assertIn("FAIL ", done.stdout)


class RealBrokers(ClientTestCase):
    """The same clients with brokers that are no scripts."""

    def brokers(self) -> tuple[str, str, str]:
        """Start two, and a service at the far one; return their directories and the near one's routes."""
        near, far = self.folder() + "/near", self.folder() + "/far"
        distant = self.broker(far, "--tcpd", "tcp:0:interface=127.0.0.1", "--allow", "in", "pong", "tcp:127.0.0.1")
        port = distant.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1)
        self.pongd(far)
        self.broker(near)
        return near, far, f"pong tcp://127.0.0.1:{port}/pong"

    def test_the_client_in_c_is_less_than_a_hundred_lines(self) -> None:
        self.assertLessEqual(len(self.source().splitlines()), MOST_LINES)
        self.assertLessEqual(max(map(len, self.source().splitlines())), 120)

    def test_the_client_in_c_reaches_a_service_locally_and_over_two_brokers(self) -> None:
        client = self.compiled(self.source(), *FLAGS)
        near, far, routes = self.brokers()
        messages = b"".join(map(frame, (b"hello", b"", os.urandom(300_000), b"bye")))
        self.assertEqual(self.run_client(far, "", client, "pong", stdin=messages), (0, messages, ""))
        self.assertEqual(self.run_client(near, routes, client, "pong", stdin=messages), (0, messages, ""))
        self.assertEqual(self.run_client(near, "", client, "pong", routes, stdin=messages), (0, messages, ""))

    def test_the_client_in_c_shows_the_refusal_of_a_real_broker(self) -> None:
        client, rundir = self.compiled(self.source(), *FLAGS), self.folder() + "/r"
        self.broker(rundir, "--deny", "out", "pong", "any")
        status, out, said = self.run_client(rundir, "", client, "pong")
        self.assertEqual((status, out, said.count("\n")), (1, b"", 1))
        self.assertRegex(said, '^plumb_connect: refused: "denied": ".*rule.*"$')
        status, _, said = self.run_client(rundir, "", client, "a\nb")
        self.assertEqual((status, "bad-request" in said, said.count("\n")), (1, True, 1))

    def test_the_client_in_shell_reaches_a_service_locally_and_over_two_brokers(self) -> None:
        near, far, routes = self.brokers()
        for message in ("hello", "", "ünïcode", "%s \\0 $(true)\n", "x" * 70000):
            answer = (0, message.encode(), "")
            self.assertEqual(self.run_client(far, "", SCRIPT, "pong", message), answer)
            self.assertEqual(self.run_client(near, routes, SCRIPT, "pong", message), answer)

    def test_the_client_in_shell_passes_a_refusal_on(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--deny", "out", "pong", "any")
        status, out, said = self.run_client(rundir, "", SCRIPT, "pong", "hello")
        self.assertEqual((status, out, said.count("\n")), (1, b"", 1))
        self.assertIn("denied", said)

    def test_the_client_in_shell_is_one_for_every_posix_shell(self) -> None:
        shell = shutil.which("dash") or "sh"
        _, far, _ = self.brokers()
        self.assertEqual(self.run_client(far, "", shell, SCRIPT, "pong", "hello"), (0, b"hello", ""))
