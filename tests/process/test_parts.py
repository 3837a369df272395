"""Broker and tcpd as processes of their own, and each replaced by LibIPC's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

from tests.process.running import DEADLINE_SECONDS, ROOT, ProcessTestCase, Program, frame
from tests.support import native_lookup, read_exactly, take_socket
from tests.test_generations import (
    CLIENTS,
    SERVICES,
    bounce_packets,
    bounce_stream,
    fits,
    old_message,
    zig_message,
)

OURS, THEIRS = "ours", "libipc"


class PartsTestCase(ProcessTestCase):
    def part(self, who: str, part: str, rundir: str, *options: str) -> Program:
        """Start one part, ours or LibIPC's."""
        if who == OURS:
            return self.broker(rundir, "--part", part, *options)
        program = self.program(sys.executable, "-m", "tests.process.libipc", part, rundir, cwd=ROOT)
        program.wait_for("ready")
        return program

    def machine(self, broker: str, tcpd: str, *broker_options: str) -> tuple[str, int, list[Program]]:
        """Run one machine; return its run directory, tcpd's port, and the programs."""
        rundir = self.folder() + "/r"
        os.mkdir(rundir, 0o755)
        os.chmod(rundir, 0o1777)
        options = ("--tcpd", "tcp:0:interface=127.0.0.1", "--allow", "in", "any", "any") if tcpd == OURS else ()
        daemon = self.part(tcpd, "tcpd", rundir, *options)
        port = int(daemon.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1))
        return rundir, port, [daemon, self.part(broker, "broker", rundir, *broker_options)]

    def serve(self, rundir: str, generation: str) -> None:
        """Run a service of *generation*, called by its name, that bounces each message."""
        suffix, kind = SERVICES[generation]
        listener = socket.socket(socket.AF_UNIX, kind)
        self.addCleanup(listener.close)
        listener.bind(f"{rundir}/{generation}{suffix}")
        listener.listen(16)
        bounce = bounce_packets if kind == socket.SOCK_SEQPACKET else bounce_stream

        def one(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):
                bounce(sock)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()

        def stop() -> None:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(DEADLINE_SECONDS)

        self.addCleanup(stop)

    def check_messages(self, client: str, generation: str, sock: socket.socket) -> None:
        """Some messages come back one by one."""
        make = zig_message if client == "libipc-zig" else old_message
        with sock:
            if sock.type == socket.SOCK_STREAM:
                sock.settimeout(DEADLINE_SECONDS)
            for payload in (b"hello", b"", b"x" * 50_000):
                sock.sendall(make(payload))
                if sock.type == socket.SOCK_SEQPACKET:
                    back = sock.recv(2_000_000)
                else:
                    back = read_exactly(sock, len(make(payload)))
                self.assertTrue(back == make(payload), (client, generation, len(payload)))

    def check_bounce(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(DEADLINE_SECONDS)
            for n in range(3):
                sock.sendall(frame(b"hello %d" % n))
                self.assertEqual(read_exactly(sock, 11), frame(b"hello %d" % n))
            sock.shutdown(socket.SHUT_WR)
            self.assertEqual(sock.recv(1), b"")


class Combinations(PartsTestCase):
    """Methods are made below: four near machines with four far ones."""

    timeout = 120.0

    def check(self, near: tuple[str, str], far: tuple[str, str]) -> None:
        """Every client that the near broker speaks to, with every service that the far daemon knows."""
        far_rundir, port, programs = self.machine(*far)
        services = [g for g, (_, kind) in SERVICES.items() if far[1] == OURS or kind == socket.SOCK_STREAM]
        for generation in services:
            self.serve(far_rundir, generation)
        near_rundir, _, more = self.machine(*near)
        clients = [c for c in CLIENTS if c != "libipc-2020"] if near[0] == OURS else ["libipc-zig"]
        checked = 0
        for client in clients:
            for generation in services:
                if not fits(client, generation):
                    continue
                text = f"{generation};{generation} tcp://127.0.0.1:{port}/{generation}".encode()
                told, sock = CLIENTS[client](near_rundir, text)
                self.assertIsNotNone(sock, (client, generation, told))
                assert sock is not None
                self.check_messages(client, generation, sock)
                checked += 1
        self.assertGreaterEqual(checked, 2)
        for program in programs + more:
            self.assertNotIn("VIOLATION", program.output)
            self.assertNotIn("Traceback", program.output)


for _near in ((OURS, OURS), (OURS, THEIRS), (THEIRS, OURS), (THEIRS, THEIRS)):
    for _far in ((OURS, OURS), (OURS, THEIRS), (THEIRS, OURS), (THEIRS, THEIRS)):

        def _test(self: Combinations, near: tuple[str, str] = _near, far: tuple[str, str] = _far) -> None:
            self.check(near, far)

        setattr(Combinations, "test_near_{}_{}_far_{}_{}".format(*_near, *_far), _test)


class Oldest(PartsTestCase):
    """The generation whose socket another has by default."""

    def test_a_client_of_2020_reaches_every_service_that_it_can_talk_to(self) -> None:
        for tcpd in (OURS, THEIRS):
            rundir, port, _ = self.machine(OURS, tcpd, "--dialects", "native,libipc-2020")
            for generation in SERVICES:
                if tcpd == OURS or SERVICES[generation][1] == socket.SOCK_STREAM:
                    self.serve(rundir, generation)
                    text = f"{generation};{generation} tcp://127.0.0.1:{port}/{generation}".encode()
                    told, sock = CLIENTS["libipc-2020"](rundir, text)
                    self.assertIsNotNone(sock, told)
                    assert sock is not None
                    self.check_messages("libipc-2020", generation, sock)


class Alone(PartsTestCase):
    def test_what_another_process_carries_is_relayed_and_says_so(self) -> None:
        rundir, port, _ = self.machine(OURS, OURS)
        self.pongd(rundir)
        answer, sock = native_lookup(rundir, "pong", f"pong tcp://127.0.0.1:{port}/pong")
        self.assertEqual(answer.get("mode"), "relayed", answer)
        assert sock is not None
        self.assertEqual(sock.family, socket.AF_UNIX)
        self.check_bounce(sock)

    def test_another_wish_is_not_possible(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--part", "broker", "--handover", "locked")
        answer, _ = native_lookup(rundir, "pong", "pong tcp://127.0.0.1:9/pong")
        self.assertEqual(answer["error"], "not-possible")

    def test_a_missing_scheme_socket_is_unreachable_with_that_reason(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--part", "broker")
        answer, _ = native_lookup(rundir, "pong", "pong tcp://127.0.0.1:9/pong")
        self.assertEqual(answer["error"], "unreachable")
        self.assertIn("there is no socket", answer["reason"])

    def test_a_stale_scheme_socket_is_unreachable_with_that_reason(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--part", "broker")
        self.broker(rundir, "--part", "tcpd").stop(signal.SIGKILL)
        answer, _ = native_lookup(rundir, "pong", "pong tcp://127.0.0.1:9/pong")
        self.assertEqual(answer["error"], "unreachable")
        self.assertIn("stale", answer["reason"])

    def test_what_does_not_fit_the_form_the_broker_dials_itself(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--part", "broker")
        listener, port = self.listener()
        answer, sock = native_lookup(rundir, "web", f"web tcp://127.0.0.1:{port}")
        self.assertEqual(answer.get("mode"), "locked" if os.geteuid() == 0 else answer.get("mode"), answer)
        assert sock is not None
        sock.close()
        listener.accept()[0].close()

    def test_only_root_and_its_own_user_may_ask_the_scheme_daemon(self) -> None:
        rundir = self.folder() + "/r"
        daemon = self.broker(rundir, "--part", "tcpd")
        os.chmod(rundir, 0o1777)
        os.chmod(f"{rundir}/tcp", 0o666)
        _, port = self.listener()
        uri = f"tcp://127.0.0.1:{port}/pong".encode()
        code = (
            "import os,socket,sys\n"
            "os.setgroups([]);os.setresgid(12345,12345,12345);os.setresuid(12345,12345,12345)\n"
            f"s=socket.socket(socket.AF_UNIX);s.connect({rundir + '/tcp'!r})\n"
            "try:\n"
            f" s.sendall({struct.pack('>I', len(uri)) + uri!r});print(s.recv(100))\n"
            "except OSError as e: print(e.__class__.__name__)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_SECONDS, check=True, text=True
        )
        self.assertIn(done.stdout.strip(), ("b''", "BrokenPipeError", "ConnectionResetError"))
        daemon.wait_for("only root, our own user")

    def test_a_confined_process_of_the_same_user_may_not_ask_it(self) -> None:
        rundir = self.folder() + "/r"
        daemon = self.broker(rundir, "--part", "tcpd")
        _, port = self.listener()
        uri = f"tcp://127.0.0.1:{port}/pong".encode()
        code = (
            "import socket\n"
            f"s=socket.socket(socket.AF_UNIX);s.connect({rundir + '/tcp'!r})\n"
            "try:\n"
            f" s.sendall({struct.pack('>I', len(uri)) + uri!r});print(s.recv(100))\n"
            "except OSError as e: print(e.__class__.__name__)\n"
        )
        done = subprocess.run(
            ["unshare", "-n", sys.executable, "-c", code],
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=True,
            text=True,
        )
        self.assertIn(done.stdout.strip(), ("b''", "BrokenPipeError", "ConnectionResetError"))
        daemon.wait_for("a confined process may not ask")

    def test_a_scheme_daemon_refuses_what_it_cannot_carry(self) -> None:
        rundir = self.folder() + "/r"
        self.broker(rundir, "--part", "tcpd")
        for uri, wanted in (
            (b"tls://127.0.0.1:9/pong", b"not-possible"),
            (b"tcp://127.0.0.1:99999/pong", b"bad-request"),
            (b"tcp://127.0.0.1:1/pong", b"unreachable"),
        ):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(DEADLINE_SECONDS)
                sock.connect(f"{rundir}/tcp")
                sock.sendall(struct.pack(">I", len(uri)) + uri)
                (length,) = struct.unpack(">I", read_exactly(sock, 4))
                self.assertIn(wanted, read_exactly(sock, length))

    def test_the_current_generation_s_client_reads_ok_and_descriptor_at_once(self) -> None:
        rundir, port, _ = self.machine(OURS, THEIRS)
        self.pongd(rundir)
        text = f"pong;pong tcp://127.0.0.1:{port}/pong".encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(DEADLINE_SECONDS)
            client.connect(f"{rundir}/ipc")
            client.sendall(struct.pack(">I", len(text)) + text)
            data, fds, _, _ = socket.recv_fds(client, 1400, 1)
        self.assertEqual((data, len(fds)), (b"ok", 1))
        sock = take_socket(fds)
        assert sock is not None
        self.check_bounce(sock)


class Published(PartsTestCase):
    def publish(self, *rules: str, endpoint: str = "tcp:0:interface=127.0.0.1") -> tuple[str, int]:
        rundir = self.folder() + "/r"
        broker = self.broker(rundir, "--publish", "pong", endpoint, *rules)
        return rundir, int(broker.wait_for(r"publishes pong on 127\.0\.0\.1:(\d+)").group(1))

    def test_a_published_service_is_reached_without_a_handshake(self) -> None:
        rundir, port = self.publish("--allow", "in", "pong", "tcp:127.0.0.1")
        self.pongd(rundir)
        self.check_bounce(socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS))

    def test_without_a_rule_it_hangs_up(self) -> None:
        rundir, port = self.publish()
        self.pongd(rundir)
        with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
            self.assertEqual(sock.recv(100), b"")

    def test_behind_a_proxy_the_header_s_address_decides_before_any_byte(self) -> None:
        endpoint = "haproxy:tcp:0:interface=127.0.0.1"
        rundir, port = self.publish("--allow", "in", "pong", "tcp:192.0.2.7", endpoint=endpoint)
        path = f"{rundir}/pong"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(DEADLINE_SECONDS)
            with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
                sock.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4000 9000\r\n")
                service, _ = listener.accept()
                with service:
                    service.sendall(b"the server speaks first")
                self.assertEqual(read_exactly(sock, 23), b"the server speaks first")
            with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
                sock.sendall(b"PROXY TCP4 192.0.2.8 127.0.0.1 4000 9000\r\n")
                self.assertEqual(sock.recv(100), b"")
