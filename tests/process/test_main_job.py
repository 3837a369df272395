"""The main job with real processes: two brokers, a service and clients, none of which knows networking."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

from plumberd import client
from tests.ports import free_port
from tests.process.running import DEADLINE_SECONDS, ProcessTestCase, Program, frame
from tests.support import read_exactly


class TwoMachines(ProcessTestCase):
    """Two run directories stand for two machines."""

    def start(self, *near_options: str) -> tuple[Program, str, str]:
        """Start everything; return the near broker, its directory, and the variable's value."""
        near, far = self.folder() + "/near", self.folder() + "/far"
        distant = self.broker(far, "--tcpd", "tcp:0:interface=127.0.0.1", "--allow", "in", "pong", "tcp:127.0.0.1")
        port = distant.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1)
        self.pongd(far)
        return self.broker(near, *near_options), near, f"pong tcp://127.0.0.1:{port}/pong"

    def check_bounce(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_SECONDS)
        sock.sendall(frame(b"hello"))
        self.assertEqual(read_exactly(sock, 9), frame(b"hello"))

    def test_the_connection_outlives_the_near_broker(self) -> None:
        broker, rundir, routes = self.start()
        with client.connect("pong", routes, rundir=rundir) as sock:
            self.check_bounce(sock)
            broker.stop(signal.SIGKILL)
            self.check_bounce(sock)

    def test_the_near_broker_keeps_nothing_of_what_it_handed_over(self) -> None:
        broker, rundir, routes = self.start()
        self.check_serves(rundir, routes)
        before = broker.descriptors()  # one of a client before may still be closing: then there are fewer afterwards
        socks = [client.connect("pong", routes, rundir=rundir) for _ in range(50)]
        self.until(lambda: broker.descriptors() <= before, "descriptors back to what they were")
        for sock in socks:
            with sock:
                self.check_bounce(sock)

    def test_six_hundred_connections_leave_both_brokers_as_they_were(self) -> None:
        broker, rundir, routes = self.start("--handover", "relayed")
        self.check_serves(rundir, routes)
        before = broker.descriptors()
        for _ in range(600):
            with client.connect("pong", routes, rundir=rundir) as sock:
                self.check_bounce(sock)

        def status() -> dict[str, dict[str, int]]:
            return client.ask({"op": "status"}, rundir=rundir)[0]

        self.until(lambda: not status()["now"]["relays"], "the last relay has ended")
        self.assertEqual(status()["counts"], {"out granted": 601, "out ended": 601})
        # A pipe for splicing may stay in the pool.
        self.until(lambda: broker.descriptors() <= before + 4, "descriptors back to what they were")

    def test_two_thousand_lookups_at_once_are_all_granted(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        broker, rundir, routes = self.start("--limit", "connect_seconds=60", "--limit", "handshake_seconds=60")
        text = f"pong;{routes}".encode()
        socks = []
        for _ in range(2000):
            sock = socket.socket(socket.AF_UNIX)
            self.addCleanup(sock.close)
            sock.settimeout(DEADLINE_SECONDS)
            sock.connect(f"{rundir}/ipc")
            sock.sendall(struct.pack(">I", len(text)) + text)
            socks.append(sock)
        granted = 0
        for sock in socks:
            data, fds, _, _ = socket.recv_fds(sock, 1400, 1)
            granted += data == b"ok" and len(fds) == 1
            for fd in fds:
                os.close(fd)
        self.assertEqual(granted, 2000)
        self.check_serves(rundir, routes)

    test_two_thousand_lookups_at_once_are_all_granted.timeout = 120.0  # type: ignore[attr-defined]

    def check_serves(self, rundir: str, routes: str) -> None:
        with client.connect("pong", routes, rundir=rundir) as sock:
            self.check_bounce(sock)

    def test_plumb_connects_standard_input_and_output(self) -> None:
        _, rundir, routes = self.start()
        done = self.plumb(
            "--rundir", rundir, "connect", "pong", stdin=frame(b"hello"), env={**os.environ, "IPC_NETWORKD": routes}
        )
        self.assertEqual((done.stdout, done.stderr, done.returncode), (frame(b"hello"), b"", 0))


class Confined(ProcessTestCase):
    """A client in a network namespace with nothing in it."""

    def caged(self, rundir: str, target: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["unshare", "-n", sys.executable, "-m", "plumberd.plumb", "--rundir", rundir, "connect", target],
            input=stdin,
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )

    def serve(self, port_of: socket.socket) -> None:
        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = port_of.accept()
                    with sock:
                        sock.sendall(sock.recv(100).upper())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()

        def stop() -> None:
            port_of.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_SECONDS)

        self.addCleanup(stop)

    def test_without_a_rule_it_gets_nothing_with_one_exactly_that(self) -> None:
        listener, port = self.listener()
        other, other_port = self.listener()
        self.serve(listener)
        self.serve(other)
        rundir = self.folder() + "/r"
        self.broker(rundir, "--allow", "out", "any", f"tcp:127.0.0.1:{port}")
        self.pongd(rundir)
        done = self.caged(rundir, f"tcp://127.0.0.1:{port}", b"through")
        self.assertEqual((done.stdout, done.stderr), (b"THROUGH", b""))
        for target in (f"tcp://127.0.0.1:{other_port}", "pong"):
            done = self.caged(rundir, target, b"through")
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"denied", done.stderr)
            self.assertIn(b"allow out" if target == "pong" else b"needs a rule", done.stderr)


class Faults(ProcessTestCase):
    def test_running_out_of_descriptors_pauses_accepting_and_it_comes_back(self) -> None:
        rundir = self.folder() + "/r"

        def few() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

        broker = self.broker(rundir, "--tcpd", "tcp:0:interface=127.0.0.1", preexec_fn=few)
        port = int(broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1))
        self.pongd(rundir)
        held = []
        for _ in range(60):
            sock = socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS)
            self.addCleanup(sock.close)
            held.append(sock)
        broker.wait_for("no descriptors left")
        for sock in held:
            sock.close()

        def serves() -> bool:
            return self.plumb("--rundir", rundir, "connect", "pong", stdin=frame(b"x")).stdout == frame(b"x")

        self.until(serves, "it serves again")
        self.assertEqual(broker.output.count("no descriptors left"), 1)
        self.assertNotIn("Traceback", broker.output)


class RealPrograms(ProcessTestCase):
    """Servers that nobody here wrote, reached by a lookup without a service."""

    def need(self, name: str) -> str:
        found = shutil.which(name)
        if found is None:
            if os.environ.get("CI") == "true":
                self.fail(f"{name} is missing")
            raise self.skipped(name)
        return found

    def skipped(self, name: str) -> Exception:
        from unittest import SkipTest

        return SkipTest(f"{name} is not installed")

    def check_each_mode(self, talk: Callable[[str], None]) -> None:
        for mode in ("locked", "direct", "relayed"):
            rundir = self.folder() + "/r"
            self.broker(rundir, "--handover", mode)
            talk(rundir)

    def test_redis_answers_in_every_mode(self) -> None:
        port = free_port()
        redis = self.program(
            self.need("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", cwd=self.folder()
        )
        redis.wait_for("Ready to accept connections")

        def talk(rundir: str) -> None:
            done = self.plumb("--rundir", rundir, "connect", f"tcp://127.0.0.1:{port}", stdin=b"PING\r\nQUIT\r\n")
            self.assertEqual((done.stdout, done.stderr), (b"+PONG\r\n+OK\r\n", b""))

        self.check_each_mode(talk)

    def test_socat_s_half_close_is_kept_in_every_mode(self) -> None:
        port = free_port()
        self.program(self.need("socat"), f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", "EXEC:'sort -r'")
        self.until(lambda: _listens(port), "socat listens")

        def talk(rundir: str) -> None:
            done = self.plumb("--rundir", rundir, "connect", f"tcp://127.0.0.1:{port}", stdin=b"a\nb\nc\n")
            self.assertEqual(done.stdout, b"c\nb\na\n")

        self.check_each_mode(talk)

    def test_libipc_s_tcp_daemon_as_haproxy_would_front_it(self) -> None:
        """tcpd behind a real HAProxy that speaks the PROXY protocol: the rules see the client's address."""
        haproxy = self.need("haproxy")
        far = self.folder() + "/far"
        broker = self.broker(
            far, "--tcpd", "haproxy:tcp:0:interface=127.0.0.1", "--allow", "in", "pong", "tcp:127.0.0.5"
        )
        inner = broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1)
        self.pongd(far)
        port = free_port()
        config = os.path.join(self.folder(), "haproxy.cfg")
        with open(config, "w", encoding="ascii") as file:
            file.write(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n"
                f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n"
                f"backend b\n server s 127.0.0.1:{inner} send-proxy-v2\n"
            )
        self.program(haproxy, "-db", "-f", config)
        self.until(lambda: _listens(port), "HAProxy listens")
        for source, wanted in (("127.0.0.5", b"ok"), ("127.0.0.6", b"no denied")):
            with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS, source_address=(source, 0)) as sock:
                sock.sendall(b"pong")
                self.assertEqual(read_exactly(sock, len(wanted)), wanted)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
