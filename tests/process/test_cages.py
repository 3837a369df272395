"""plumb sandbox with real cages: what is in reach of them, how they end, and kernels that forbid them."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys

from tests.children import needs_root
from tests.process.programs import PYTHON, ToolTestCase, find
from tests.process.running import DEADLINE_SECONDS, frame

USER = 12345
TRIES = """
import os, socket
def tries(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(9)
        try:
            sock.connect(address)
        except OSError as e:
            return type(e).__name__
    return "connected"
"""
"""What a caged program begins with that looks for a way out."""

TALKS = r"""
from plumberd import client
with client.connect("pong") as sock:
    sock.sendall(b"\0\0\0\5hello")
    print(sock.recv(9))
with client.connect("web") as sock:
    print(sock.recv(9))
try:
    client.connect("db")
except client.Refused as e:
    print(e.reason)
"""


class CageTestCase(ToolTestCase):
    """A home and a working directory of the caged program's own."""

    def setUp(self) -> None:
        super().setUp()
        self.python = PYTHON if self.uid else sys.executable
        self.home = self.folder()
        self.work = f"{self.home}/work"
        os.mkdir(self.work)
        if os.geteuid() == 0:
            for path in (self.home, self.work):
                os.chown(path, self.uid, self.uid)

    def cage(self, *words: str, environ: dict[str, str] | None = None, **options: object) -> tuple[int, str]:
        """Run plumb sandbox in the working directory; return its status and what was printed."""
        return self.said("sandbox", *words, environ={"HOME": self.home, **(environ or {})}, cwd=self.work, **options)

    def code(self, text: str) -> list[str]:
        """Return words that run Python in a cage, which has to be shown there."""
        places = [self.sources(), *([] if self.uid else sorted({sys.prefix, sys.base_prefix}))]
        shown = [word for place in places for word in ("--read", place)]
        return [*shown, "--setenv", "PYTHONPATH", "--", self.python, "-u", "-c", text]

    def check_ends_with_its_starter(self, **environ: str) -> None:
        """Kill who started a cage, and see that nobody is left in it."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
        words = self.words("sandbox", "--", "sh", "-c", "echo is up; exec sleep 600")
        env = self.environ(HOME=self.home, **environ)
        try:
            starter = self.program(sys.executable, "-c", code, *words, env=env, cwd=self.work, stdin=writer)
        finally:
            os.close(writer)
        starter.wait_for("is up")
        starter.stop(signal.SIGKILL)
        # The pipe ends when nobody has it any more, the caged program neither.
        self.assertTrue(select.select([reader], [], [], DEADLINE_SECONDS)[0], "it is still there")
        self.assertEqual(os.read(reader, 1), b"")


class AsThisUser(CageTestCase):
    """With bubblewrap, as who runs the tests: root, most of the time."""

    def setUp(self) -> None:
        super().setUp()
        find("bwrap")

    def test_there_is_no_network_but_a_loopback_of_its_own(self) -> None:
        _, port = self.listener()
        text = f"{TRIES}print([tries(socket.AF_INET, (host, {port})) for host in ('127.0.0.1', '192.0.2.1')])"
        self.assertEqual(self.cage(*self.code(text)), (0, "['ConnectionRefusedError', 'OSError']\n"))
        self.assertEqual(self.cage("--", "sh", "-c", "grep -c : /proc/net/dev"), (0, "1\n"))

    def test_no_unix_socket_of_the_host_is_in_reach(self) -> None:
        names = [f"{self.home}/socket", f"\0plumberd test {os.getpid()} {self.uid}"]
        for name in names:
            listener = socket.socket(socket.AF_UNIX)
            self.addCleanup(listener.close)
            listener.bind(name)
            listener.listen()
        text = f"{TRIES}print([tries(socket.AF_UNIX, name) for name in {names!r}], os.listdir('/run'))"
        wanted = ["FileNotFoundError", "ConnectionRefusedError"]
        self.assertEqual(self.cage(*self.code(text)), (0, f"{wanted} []\n"))

    def test_of_the_files_there_are_the_system_and_what_was_asked_for(self) -> None:
        other = self.folder()
        for path in (f"{self.home}/secret", f"{self.work}/file", f"{other}/file"):
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{path}\n")
            os.chmod(path, 0o644)
        script = (
            f"cat file {other}/file; ls -A {self.home} /run /var/tmp; "
            "for path in file new /usr/new /etc/new /new; do (: >>$path) 2>/dev/null || echo no; done; "
            "for path in /tmp/new ~/new /run/new /dev/shm/new /var/tmp/new; do (: >>$path) && echo yes; done"
        )
        status, said = self.cage("--read", other, "--", "sh", "-c", script)
        self.assertEqual(status, 0, said)
        lines = said.splitlines()
        self.assertEqual(lines[:2], [f"{self.work}/file", f"{other}/file"])
        self.assertNotIn("secret", lines)
        self.assertEqual((lines.count("no"), lines.count("yes")), (5, 5), said)
        self.assertFalse(os.path.exists(f"{self.home}/new"))

    def test_what_may_be_written_is_written(self) -> None:
        status, said = self.cage("--write", ".", "--", "sh", "-c", "echo here >new; pwd; ls")
        self.assertEqual((status, said), (0, f"{self.work}\nnew\n"))
        with open(f"{self.work}/new", encoding="ascii") as file:
            self.assertEqual((file.read(), os.fstat(file.fileno()).st_uid), ("here\n", self.uid or os.geteuid()))

    def test_the_home_directory_is_empty_and_that_is_told(self) -> None:
        with open(f"{self.home}/secret", "w", encoding="ascii"):
            pass
        words = ("sandbox", "--", "sh", "-c", "pwd; ls -A")
        status, said = self.said(*words, environ={"HOME": self.home}, cwd=self.home)
        told = f"plumb: {self.home} is empty in the cage; --read and --write name what is needed of it\n"
        self.assertEqual((status, said), (0, f"{told}{self.home}\n"))

    def test_the_environment_is_small(self) -> None:
        environ = {"SECRET": "x", "LANG": "C.UTF-8", "WANTED": "w"}
        status, said = self.cage("--setenv", "WANTED", "--setenv", "A=b c", "--", "env", environ=environ)
        self.assertEqual(status, 0)
        found = dict(line.split("=", 1) for line in said.splitlines())
        given = {"HOME": self.home, "PWD": self.work, "LANG": "C.UTF-8", "WANTED": "w", "A": "b c"}
        self.assertEqual({name: found.get(name) for name in given}, given)
        self.assertEqual(found.keys() & {"SECRET", "PYTHONPATH", "PLUMB_FD"}, set())

    def test_processes_are_its_own_and_it_has_no_capability(self) -> None:
        script = (
            "ls -d /proc/[0-9]* | wc -l; grep -c '^Cap...:.0*$' /proc/self/status; "
            "grep NoNewPrivs /proc/self/status; id -u"
        )
        status, said = self.cage("--", "sh", "-c", script)
        processes, none, privileges, uid = said.splitlines()
        self.assertEqual((status, none, privileges.split()[1]), (0, "5", "1"))
        self.assertEqual(int(uid), self.uid or os.geteuid())
        self.assertLess(int(processes), 6)

    def test_only_the_standard_descriptors_go_in(self) -> None:
        with open("/etc/passwd", "rb") as file, socket.socket() as sock:
            fds = [file.fileno(), sock.fileno()]
            status, said = self.cage("--", "sh", "-c", "ls /proc/self/fd", pass_fds=fds)
        self.assertEqual((status, said), (0, "0\n1\n2\n3\n"))  # 3 is the listing's own

    def test_its_status_is_the_program_s_and_for_a_signal_128_and_its_number(self) -> None:
        for script, wanted in (("exit 7", 7), ("kill -TERM $$", 128 + 15), ("kill -KILL $$", 128 + 9)):
            self.assertEqual(self.cage("--", "sh", "-c", script), (wanted, ""), script)

    def test_the_terminal_outside_is_not_its_own(self) -> None:
        setsid = find("setsid")
        controller, terminal = os.openpty()
        for fd in (controller, terminal):
            self.addCleanup(os.close, fd)
        script = "(: </dev/tty) 2>/dev/null && echo its own || echo not its own"
        for words, said in (
            (("sh", "-c", script), "its own\n"),
            (self.words("sandbox", "--", "sh", "-c", script), "not its own\n"),
        ):
            program = self.program(
                setsid, "--ctty", "--wait", *words, env=self.environ(HOME=self.home), cwd=self.work, stdin=terminal
            )
            self.assertEqual((program.wait(), program.output), (0, said))

    def test_it_ends_with_who_started_it(self) -> None:
        self.check_ends_with_its_starter()

    def test_named_services_are_in_reach_and_no_others_by_the_routes_of_outside(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir)
        self.pongd(rundir)
        os.chmod(rundir, 0o1771)
        for name in ("plumberd", "pong"):
            os.chmod(f"{rundir}/{name}", 0o666)
        listener, port = self.listener()
        environ = {"HOME": self.home, "IPC_RUNDIR": rundir, "IPC_NETWORKD": f"web tcp://127.0.0.1:{port}"}
        words = ("sandbox", "--services", "pong,web", *self.code(TALKS))
        program = self.start(*words, environ=environ, cwd=self.work)
        program.wait_for("hello")
        with listener.accept()[0] as sock:
            sock.sendall(b"welcome")
        self.assertEqual(program.wait(), 0, program.output)
        refused = "this connection is restricted, for ever, to looking up pong, web"
        self.assertEqual(program.output.splitlines(), [repr(frame(b"hello")), repr(b"welcome"), refused])


@needs_root
class AsAnotherUser(AsThisUser):
    """The same, as a user that has nothing."""

    uid = USER


class WithoutBubblewrap(CageTestCase):
    """What is left where it is not installed."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder()
        for name in ("unshare", "sh", "sleep", "true", "id", "grep"):
            os.symlink(os.path.realpath(find(name)), f"{self.path}/{name}")
        self.where = {"PATH": self.path}

    def test_there_is_no_network_and_that_it_is_all_is_told(self) -> None:
        _, port = self.listener()
        text = f"{TRIES}print(tries(socket.AF_INET, ('127.0.0.1', {port})))"
        words = ("--setenv", "PYTHONPATH", "--", self.python, "-c", text)
        told = "plumb: bubblewrap is not installed: no network, but files, UNIX sockets and processes are in reach\n"
        self.assertEqual(self.cage(*words, environ=self.where), (0, f"{told}OSError\n"))

    def test_it_gains_nothing_and_is_the_same_user(self) -> None:
        status, said = self.cage("--", "sh", "-c", "grep NoNewPrivs /proc/self/status; id -u", environ=self.where)
        privileges, uid = said.splitlines()[1:]
        self.assertEqual((status, privileges.split()[1], int(uid)), (0, "1", self.uid or os.geteuid()))

    def test_its_end_is_the_program_s(self) -> None:
        for script, wanted in (("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM)):
            self.assertEqual(self.cage("--", "sh", "-c", script, environ=self.where)[0], wanted)

    def test_it_ends_with_who_started_it(self) -> None:
        self.check_ends_with_its_starter(**self.where)


@needs_root
class WithoutBubblewrapAsAnotherUser(WithoutBubblewrap):
    """The same, as a user that has nothing."""

    uid = USER


@needs_root
class Forbidden(CageTestCase):
    """A kernel that lets nobody have namespaces: a user namespace in which there may be no other."""

    def forbidden(self, **environ: str) -> tuple[int, str]:
        """Try to cage a program there, without a capability."""
        limit = "/proc/sys/user/max_user_namespaces"
        script = f'echo 0 >{limit} && exec {find("setpriv")} --bounding-set=-all --inh-caps=-all -- "$@"'
        unshare = [find("unshare"), "--user", "--map-root-user", "--", shutil.which("sh") or "sh", "-c", script, "sh"]
        words = self.words("sandbox", "--", "echo", "ran")
        program = self.program(*unshare, *words, env=self.environ(HOME=self.home, **environ), cwd=self.work)
        return program.wait(), program.output

    def check(self, **environ: str) -> None:
        status, said = self.forbidden(**environ)
        self.assertEqual(status, 2, said)
        self.assertRegex(said, r"plumb: the cage cannot be made: .*\(user\.max_user_namespaces is 0\)\n$")
        self.assertNotIn("ran", said.splitlines())

    def test_it_is_told_with_bubblewrap(self) -> None:
        find("bwrap")
        self.check()

    def test_it_is_told_without(self) -> None:
        path = self.folder()
        for name in ("unshare", "true", "echo"):
            os.symlink(os.path.realpath(find(name)), f"{path}/{name}")
        self.check(PATH=path)
