"""plumberd.wiring.lookup: places, routes of the administrator, and steps that go wrong."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
from typing import Any

from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Routes, parse_route
from plumberd.pure.refusals import Refused
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase, leading
from tests.support import dial, in_thread, native_ask, native_lookup, read_all, read_exactly, until


class Places(RunningTestCase):
    async def test_a_client_that_hangs_up_while_it_waits_leaves_no_place_taken(self) -> None:
        service = self.run_broker(limits=Limits(connect_seconds=5.0, lookups_per_uid=2))
        assert service.broker is not None
        lookups = service.broker.lookups
        port = self.serve_tcp(lambda sock: read_all(sock))
        text = f"x;x tcp://127.0.0.1:{port}/x".encode()
        for _ in range(3):
            socks = []
            for _ in range(10):
                sock = dial(service.settings.rundir, "ipc")
                sock.sendall(struct.pack(">I", len(text)) + text)
                socks.append(sock)
            await until(lambda: lookups.active == 2 and lookups.waiting == 8)
            for sock in socks:
                sock.close()
            await self.wait_until_idle(service)
        self.serve(service.settings.rundir, "pong")
        answer, got = await in_thread(native_lookup, service.settings.rundir, "pong")
        self.assertTrue(answer["ok"], answer)
        assert got is not None
        got.close()

    async def test_a_place_given_to_a_client_that_has_gone_is_given_back(self) -> None:
        """The place is given in one turn and used in the next; the client may go in between."""
        service = self.run_broker(limits=Limits(connect_seconds=5.0, lookups_per_uid=1))
        assert service.broker is not None
        broker = service.broker
        port = self.serve_tcp(lambda sock: read_all(sock))
        text = f"x;x tcp://127.0.0.1:{port}/x".encode()
        socks = []
        for _ in range(20):
            sock = dial(service.settings.rundir, "ipc")
            sock.sendall(struct.pack(">I", len(text)) + text)
            socks.append(sock)
        await until(lambda: broker.lookups.waiting == 19)
        threading.Thread(target=_close_all, args=(socks,)).start()
        await self.wait_until_idle(service)
        self.assertEqual(broker.lookups.active, 0)

    async def test_what_fails_in_one_lookup_is_that_lookup_s_refusal_alone(self) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        core = service.core
        assert core is not None
        decide = core.decide

        def fail(*args: Any) -> Any:
            raise RuntimeError("on purpose")

        self.patch(core, "decide", fail)
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "pong")
        self.assertEqual(answer["error"], "unreachable")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.patch(core, "decide", decide)
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "pong")
        self.assertTrue(answer["ok"], answer)
        assert sock is not None
        sock.close()
        await self.wait_until_idle(service)

    async def test_relays_have_a_limit_that_is_named(self) -> None:
        service = self.run_broker(handover=Mode.RELAYED, limits=Limits(relays_per_peer=1))
        port = self.serve_tcp()
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "x", f"x tcp://127.0.0.1:{port}")
        assert sock is not None
        self.owned(sock)
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "x", f"x tcp://127.0.0.1:{port}")
        self.assertEqual(answer["error"], "busy")
        self.assertIn("relays_per_peer=1", answer["reason"])
        sock.close()
        await self.wait_until_idle(service)


class EndpointRoutes(RunningTestCase):
    """Administrator's routes that are Twisted client endpoint strings."""

    def run_with_route(self, endpoint: str, *rules: str, name: str = "web", **settings: Any) -> PlumberdService:
        return self.run_broker(*rules, routes=Routes({}, leading(**{name: parse_route(name, endpoint)})), **settings)

    async def test_a_plain_tcp_string_is_as_good_as_a_uri(self) -> None:
        port = self.serve_tcp()
        service = self.run_with_route(f"tcp:127.0.0.1:{port}")
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertEqual(answer["mode"], "locked")
        assert sock is not None
        sock.close()

    async def test_an_endpoint_is_relayed_with_half_closes(self) -> None:
        port = self.serve_tcp(lambda sock: sock.sendall(read_all(sock)[::-1]))
        service = self.run_with_route(f"tcp:host=127.0.0.1:port={port}:timeout=5")
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertEqual(answer["mode"], "relayed")
        assert sock is not None
        self.owned(sock)
        sock.sendall(b"abc" * 50_000)
        sock.shutdown(socket.SHUT_WR)
        self.assertTrue(await in_thread(read_all, sock) == b"cba" * 50_000)
        sock.close()
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["granted", "ended"])

    async def test_tls_to_a_server_of_the_system_s_own(self) -> None:
        folder = self.folder()
        certificate = os.path.join(folder, "cert.pem")
        await in_thread(_make_certificate, certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

        def answer(sock: socket.socket) -> None:
            with context.wrap_socket(sock, server_side=True) as tls:
                tls.sendall(tls.recv(100).upper())

        port = self.serve_tcp(answer)
        service = self.run_with_route(f"tls:localhost:{port}:trustRoots={folder}")
        answer_, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertTrue(answer_["ok"], answer_)
        assert sock is not None
        self.owned(sock)
        sock.sendall(b"through")
        got = await in_thread(read_exactly, sock, 7)
        self.assertEqual(got, b"THROUGH", self.outcomes)
        sock.close()
        await self.wait_until_idle(service)

    async def test_an_endpoint_that_fails_is_unreachable(self) -> None:
        listener, port = self.listener()
        listener.close()
        service = self.run_with_route(f"tcp:127.0.0.1:{port}:timeout=3")
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertEqual(answer["error"], "unreachable")
        await self.wait_until_idle(service)
        assert service.core is not None
        self.assertEqual(service.core.relay_places.active, 0)

    async def test_an_endpoint_cannot_be_locked(self) -> None:
        service = self.run_with_route("tcp:127.0.0.1:9:timeout=3", "allow out web any handover=locked")
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertEqual(answer["error"], "not-possible")

    async def test_a_unix_endpoint_is_opened_as_the_broker_and_needs_a_rule(self) -> None:
        path = os.path.join(self.folder(), "secret")
        self.unix_listener(path)
        service = self.run_with_route(f"unix:{path}")
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertEqual(answer["error"], "denied")
        allowed = self.run_with_route(f"unix:{path}", "allow out web any")
        answer, sock = await in_thread(native_lookup, allowed.settings.rundir, "web")
        self.assertTrue(answer["ok"], answer)
        assert sock is not None
        sock.close()

    async def test_a_name_that_makes_no_host_is_refused_and_costs_nothing(self) -> None:
        service = self.run_with_route("tls:{service}.example:443", name="*")
        assert service.core is not None
        for name in ("a..b", "a_.b", "-".join(["x" * 20] * 3)):
            answer, _ = await in_thread(native_lookup, service.settings.rundir, name)
            self.assertFalse(answer["ok"])
        await self.wait_until_idle(service)
        self.assertEqual(service.core.relay_places.active, 0)
        self.flushLoggedErrors()


class Local(RunningTestCase):
    async def test_a_local_service_by_its_bare_name_follows_redirects(self) -> None:
        service = self.run_broker(routes=Routes(leading(old="new")))
        self.serve(service.settings.rundir, "new", lambda sock: sock.sendall(b"new"))
        for uri in ("unix:///old", "unix://old", "old"):
            answer, sock = await in_thread(native_ask, service.settings.rundir, op="lookup", uri=uri)
            self.assertTrue(answer["ok"], answer)
            assert sock is not None
            self.assertEqual(await in_thread(read_all, self.owned(sock)), b"new")

    async def test_default_out_deny_leaves_local_services_open_and_closes_dialling(self) -> None:
        from plumberd.pure.policy.rule import Direction

        service = self.run_broker(defaults={Direction.IN: False, Direction.OUT: False})
        self.serve(service.settings.rundir, "pong")
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "pong")
        self.assertTrue(answer["ok"])
        assert sock is not None
        sock.close()
        answer, _ = await in_thread(native_ask, service.settings.rundir, op="lookup", uri="tcp://127.0.0.1:9")
        self.assertEqual(answer["error"], "denied")
        self.assertIn("allow out any tcp:127.0.0.1:9", answer["reason"])

    async def test_a_socket_swapped_for_a_link_never_leads_elsewhere(self) -> None:
        service = self.run_broker("allow in any any")
        rundir = service.settings.rundir
        core = service.core
        assert core is not None
        outside = os.path.join(self.folder(), "secret")
        secret = self.unix_listener(outside, 4096)
        self.unix_listener(os.path.join(rundir, "swap"), 4096)
        os.symlink(outside, os.path.join(rundir, "link"))
        stop = threading.Event()

        def swap() -> None:
            a, b, c = (os.path.join(rundir, n) for n in ("swap", "link", "tmp"))
            while not stop.is_set():
                for source, target in ((a, c), (b, a), (c, b)):
                    os.rename(source, target)

        def attack() -> int:
            granted = 0
            for _ in range(3000):
                try:
                    core.services.dial("swap", None).close()
                    granted += 1
                except (Refused, BlockingIOError):
                    continue
            return granted

        swapping = threading.Thread(target=swap)
        swapping.start()
        try:
            await in_thread(attack)
        finally:
            stop.set()
            await in_thread(swapping.join)
        secret.setblocking(False)
        with self.assertRaises(BlockingIOError):
            secret.accept()


def _close_all(socks: list[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def _make_certificate(path: str) -> None:
    """Write a key and a self-signed certificate for localhost."""
    key = path + ".key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", path],
        check=True, capture_output=True, timeout=20,
    )  # fmt: skip
    with open(key, encoding="ascii") as source, open(path, "a", encoding="ascii") as target:
        target.write(source.read())
    os.unlink(key)
