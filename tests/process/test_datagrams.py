"""Other people's programs over datagrams: dig, statsd's client, ntpdig, in cages and beside a forwarded port."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import statsd  # type: ignore[import-untyped]

from tests.children import needs_root
from tests.datagram_peer import call
from tests.ports import free_port
from tests.process.programs import ToolTestCase, find
from tests.process.running import DEADLINE_SECONDS, Program

USER = 12345
NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970, RFC 5905."""

NAMES = """
from twisted.internet import reactor
from twisted.names import client, common, dns, server
class Zone(common.ResolverBase):
    def _lookup(self, name, cls, kind, timeout):
        from twisted.internet.defer import succeed, fail
        from twisted.names.error import DomainError
        if name.lower() == b"pong.example.test" and kind == dns.A:
            return succeed(([dns.RRHeader(name, dns.A, ttl=60, payload=dns.Record_A("192.0.2.99"))], [], []))
        return fail(DomainError(name))
port = reactor.listenUDP(0, dns.DNSDatagramProtocol(server.DNSServerFactory(clients=[Zone()])), "127.0.0.1")
print("serving on", port.getHost().port, flush=True)
reactor.run()
"""
"""A small name server, by Twisted Names."""


class DatagramsTestCase(ToolTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.rundir = f"{self.folder()}/r"
        self.home = self.folder()
        if self.uid:
            os.chown(self.home, self.uid, self.uid)

    def near(self, *rules: str) -> Program:
        """Start the broker, whose clients are confined in a cage, and so need rules."""
        broker = self.broker(self.rundir, *(word for rule in rules for word in ("--rule", rule)))
        if self.uid:
            os.chmod(self.rundir, 0o755)
            for name in os.listdir(self.rundir):
                if not name.endswith(".lock"):
                    os.chmod(f"{self.rundir}/{name}", 0o666)
        return broker

    def name_server(self) -> int:
        """Start it; return its port."""
        return int(self.program(sys.executable, "-c", NAMES).wait_for(r"serving on (\d+)").group(1))

    def udp_server(self, answer: Callable[[bytes], bytes | None]) -> tuple[int, list[bytes]]:
        """Run a server in a thread; return its port and what comes."""
        sock = socket.socket(type=socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(DEADLINE_SECONDS)
        came: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    data, address = sock.recvfrom(2048)
                except OSError:
                    return
                if not data:
                    return
                came.append(data)
                said = answer(data)
                if said is not None:
                    sock.sendto(said, address)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = sock.getsockname()[1]

        def stop() -> None:
            with socket.socket(type=socket.SOCK_DGRAM) as knocking:
                knocking.sendto(b"", ("127.0.0.1", port))
            thread.join()

        self.addCleanup(stop)
        return port, came

    def cage(self, routes: str, *words: str) -> tuple[int, str]:
        """Run plumb sandbox; return its status and what was printed."""
        environ = {"HOME": self.home, "IPC_RUNDIR": self.rundir, "IPC_NETWORKD": routes}
        return self.said("sandbox", *words, environ=environ, cwd=self.home)

    def forwarded(self, routes: str, service: str) -> int:
        """Start plumb forward; return the port that leads to the service."""
        program = self.start("forward", f"0={service}", environ={"IPC_RUNDIR": self.rundir, "IPC_NETWORKD": routes})
        return int(program.wait_for(rf"udp 127\.0\.0\.1:(\d+) leads to {service}").group(1))


class Resolver(DatagramsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.dig = find("dig")
        find("bwrap")

    def test_dig_in_a_cage_without_network(self) -> None:
        port = self.name_server()
        self.near(f"allow out resolver udp:127.0.0.1:{port}")
        dig = ("--", self.dig, "+short", "+time=5", "@127.0.0.1", "pong.example.test")
        routes = f"resolver udp://127.0.0.1:{port}"
        status, said = self.cage(routes, "--udp", "53=resolver", *dig)
        self.assertEqual((status, said.splitlines()[-1]), (0, "192.0.2.99"))
        status, said = self.cage(routes, "--", self.dig, "+short", "+time=1", "+tries=1", *dig[4:])
        self.assertNotIn("192.0.2.99", said)

    def test_what_is_refused_is_told_with_its_reason(self) -> None:
        self.near("deny out resolver any")
        dig = ("--", self.dig, "+time=1", "+tries=1", "@127.0.0.1", "pong.example.test")
        status, said = self.cage("resolver udp://127.0.0.1:9", "--udp", "53=resolver", *dig)
        self.assertNotEqual(status, 0)
        self.assertIn("plumb: resolver: denied: ", said)

    def test_what_a_cage_s_program_leaves_ends_with_it(self) -> None:
        self.near()
        status, said = self.cage("resolver udp://127.0.0.1:9", "--udp", "53=resolver", "--", "sh", "-c", "exit 7")
        self.assertEqual(status, 7, said)  # its output has ended, so nobody holds it any more


@needs_root
class ResolverForAnotherUser(Resolver):
    """The same, as a user that has nothing."""

    uid = USER


class Forwarded(DatagramsTestCase):
    def test_dig_beside_a_forwarded_port(self) -> None:
        port = self.name_server()
        self.near()
        mine = self.forwarded(f"resolver udp://127.0.0.1:{port}", "resolver")
        dig = self.program(find("dig"), "+short", "+time=5", "-p", str(mine), "@127.0.0.1", "pong.example.test")
        self.assertEqual((dig.wait(), dig.output), (0, "192.0.2.99\n"))

    def test_statsd_s_client(self) -> None:
        port, came = self.udp_server(lambda data: None)
        self.near()
        mine = self.forwarded(f"stats udp://127.0.0.1:{port}", "stats")
        metrics = statsd.StatsClient("127.0.0.1", mine, prefix="job")
        self.addCleanup(metrics.close)
        metrics.incr("done")
        metrics.timing("took", 320)
        metrics.gauge("left", 7)
        with metrics.pipeline() as pipe:
            pipe.incr("one")
            pipe.incr("two")
        self.until(lambda: len(came) == 4, "four datagrams")
        wanted = [b"job.done:1|c", b"job.took:320.000000|ms", b"job.left:7|g", b"job.one:1|c\njob.two:1|c"]
        self.assertEqual(came, wanted)

    def test_a_service_of_our_own_on_another_machine(self) -> None:
        far = f"{self.folder()}/r"
        listening = ("--udpd", "udp:0:interface=127.0.0.1", "--allow", "in", "pong", "udp:any")
        broker = self.broker(far, *listening)
        port = broker.wait_for(r"udpd on 127\.0\.0\.1:(\d+)").group(1)
        self.pongd(far)
        self.near()
        routes = f"pong udp://127.0.0.1:{port}/pong"
        words = ("connect", "pong")
        plumb = self.plumb(*words, stdin=b"hello", env=self.environ(IPC_RUNDIR=self.rundir, IPC_NETWORKD=routes))
        self.assertEqual((plumb.returncode, plumb.stdout), (0, b"hello"), plumb.stderr)


class Daemons(DatagramsTestCase):
    """Broker and udpd as processes of their own, and a listener that comes with a reload."""

    def test_a_broker_and_a_udpd_beside_it(self) -> None:
        far = f"{self.folder()}/r"
        listening = ("--part", "udpd", "--udpd", "udp:0:interface=127.0.0.1", "--allow", "in", "pong", "udp:any")
        daemon = self.broker(far, *listening)
        port = daemon.wait_for(r"udpd on 127\.0\.0\.1:(\d+)").group(1)
        self.pongd(far)
        carrier = self.broker(self.rundir, "--part", "udpd")
        broker = self.broker(self.rundir, "--part", "broker")
        routes = f"pong udp://127.0.0.1:{port}/pong"
        env = self.environ(IPC_RUNDIR=self.rundir, IPC_NETWORKD=routes)
        plumb = self.plumb("connect", "pong", stdin=b"hello", env=env)
        self.assertEqual((plumb.returncode, plumb.stdout), (0, b"hello"), plumb.stderr)
        broker.wait_for("relayed")
        for program in (broker, carrier, daemon):
            self.assertEqual(program.stop(), 0, program.output)

    def test_a_listener_that_comes_and_goes_with_reloads_and_the_session_that_stays(self) -> None:
        far = f"{self.folder()}/r"
        file = f"{self.folder()}/plumberd.toml"

        def write(*listeners: str) -> None:
            with open(file, "w", encoding="ascii") as config:
                config.write(f"rules = ['allow in pong udp:any']\n[listen]\nudpd = {list(listeners)!r}\n")

        write()
        daemon = self.broker(far, "--config", file)
        self.pongd(far)
        port = free_port()
        write(f"127.0.0.1:{port}")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("listen.udpd: \\+")
        peer = call("127.0.0.1", port, b"pong")
        self.addCleanup(peer.sock.close)
        write()
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("listen.udpd: -")
        peer.send(b"still")
        self.assertEqual(peer.receive(), b"still")
        self.assertEqual(daemon.stop(), 0, daemon.output)
        self.assertIsNone(peer.receive())


class Time(DatagramsTestCase):
    def test_ntpdig_in_a_cage_without_network(self) -> None:
        ntpdig = find("ntpdig")
        find("bwrap")
        port, came = self.udp_server(ntp_answer)
        self.near(f"allow out time udp:127.0.0.1:{port}")
        status, said = self.cage(f"time udp://127.0.0.1:{port}", "--udp", "123=time", "--", ntpdig, "-j", "127.0.0.1")
        self.assertEqual(status, 0, said)
        self.assertIn('"stratum":2', said)
        self.assertGreaterEqual(len(came), 1)


def ntp_answer(request: bytes) -> bytes:
    """Return what a server of stratum 2 answers (RFC 5905, section 7.3)."""
    now = time.time() + NTP_EPOCH
    stamp = struct.pack(">II", int(now), int(now % 1 * 2**32))
    version = request[0] >> 3 & 7
    return (
        struct.pack(">BBbb", version << 3 | 4, 2, 6, -20)
        + bytes(8)
        + b"\x7f\0\0\1"
        + stamp
        + request[40:48]
        + stamp * 2
    )
