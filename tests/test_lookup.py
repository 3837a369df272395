"""plumberd.wiring.clients.lookup: places, routes of the administrator, and steps that go wrong."""

from __future__ import annotations

import dataclasses
import gc
import ipaddress
import os
import socket
import ssl
import struct
import subprocess
import threading
from typing import Any

from twisted.internet import defer

from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Routes, parse_route
from plumberd.pure.refusals import Refused
from plumberd.wiring.clients.lookup import Lookup
from plumberd.wiring.dialing.approach import Approach
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import RunningTestCase, echo, leading, noting
from tests.support import (
    dial,
    in_thread,
    native_ask,
    native_frame,
    native_lookup,
    native_read,
    read_all,
    read_exactly,
    until,
)
from tests.tables import each


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

    @each(
        ("local", "pong", None),
        ("handed_over", "web", "web tcp://127.0.0.1:{port}"),
        ("refused", "web", "web tcp://192.0.2.1:{port}"),
        ("unreachable", "web", "web tcp://127.0.0.1:{free}"),
    )
    async def test_what_is_over_waits_for_no_collector(self, kind: str, name: str, routes: str | None) -> None:
        service = self.run_broker("deny out any tcp:192.0.2.0/24")
        self.serve(service.settings.rundir, "pong")
        if routes is not None:
            routes = routes.format(port=self.serve_tcp(), free=free_port())
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        for _ in range(3):
            answer, sock = await in_thread(native_lookup, service.settings.rundir, name, routes)
            self.assertEqual(answer["ok"], sock is not None)
            if sock is not None:
                sock.close()
        await self.wait_until_idle(service)
        self.assertEqual(len(self.outcomes), 3, kind)
        await until(lambda: not any(isinstance(one, Lookup | Approach) for one in gc.get_objects()))

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
        port = free_port()
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
        from plumberd.pure.policy.direction import Direction

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


class DecidedAgain(RunningTestCase):
    """A lookup that is under way when other rules or routes come into force: never the old place."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.addCleanup(self.go_on.set)

    def daemon(self, name: str) -> str:
        """Run what says ok to a handshake when it is told to, and then its name; return the URI of a service."""

        def answer(sock: socket.socket) -> None:
            sock.recv(64)
            self.asked.append(name)
            self.go_on.wait(20)
            sock.sendall(b"ok" + name.encode())
            read_all(sock)

        uri = f"tcp://127.0.0.1:{self.serve_tcp(answer)}/web"
        self.addCleanup(self.go_on.set)  # before its threads are waited for
        return uri

    def run_with(self, target: str, *rules: str, **settings: Any) -> PlumberdService:
        return self.run_broker(*rules, routes=self.leading_to(target), **settings)

    def leading_to(self, target: str) -> Routes:
        return Routes({}, leading(web=parse_route("web", target)))

    def look_up(self, service: PlumberdService, name: str = "web") -> defer.Deferred[Any]:
        """Begin a lookup; what comes is the answer and the first bytes on the connection."""

        def one() -> tuple[dict[str, Any], bytes]:
            answer, sock = native_lookup(service.settings.rundir, name)
            if sock is None:
                return answer, b""
            with sock:
                sock.settimeout(20)
                return answer, sock.recv(16)

        return in_thread(one)

    # -- in the handshake

    async def in_the_handshake(self) -> tuple[PlumberdService, defer.Deferred[Any]]:
        service = self.run_with(self.daemon("old"))
        looking_up = self.look_up(service)
        await until(lambda: self.asked)
        return service, looking_up

    async def test_what_is_denied_by_now_is_refused(self) -> None:
        service, looking_up = await self.in_the_handshake()
        self.put_in_force(service, "deny out web any")
        self.go_on.set()
        answer, _ = await looking_up
        self.assertEqual(answer["error"], "denied")
        self.assertIn("rule 1 denies it", answer["reason"])
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["denied"])

    async def test_what_has_another_route_by_now_is_connected_there(self) -> None:
        service, looking_up = await self.in_the_handshake()
        self.put_in_force(service, routes=self.leading_to(self.daemon("new")))
        self.go_on.set()
        self.assertEqual((await looking_up)[1], b"new")
        await self.wait_until_idle(service)
        (granted,) = self.outcomes
        assert service.core is not None
        self.assertEqual((granted.verdict, granted.generation), ("granted", service.core.generation))

    async def test_what_leads_to_a_local_service_by_now_has_that(self) -> None:
        service, looking_up = await self.in_the_handshake()
        self.serve(service.settings.rundir, "web", lambda sock: sock.sendall(b"local"))
        self.put_in_force(service, routes=Routes())
        self.go_on.set()
        answer, first = await looking_up
        self.assertEqual((answer["mode"], first), ("local", b"local"))

    async def test_what_has_another_mode_by_now_has_that(self) -> None:
        service, looking_up = await self.in_the_handshake()
        self.put_in_force(service, "allow out web any handover=relayed")
        self.go_on.set()
        answer, first = await looking_up
        self.assertEqual((answer["mode"], first), ("relayed", b"old"))
        self.assertEqual(answer["rule"], "1: allow out web any handover=relayed")
        await self.wait_until_idle(service)

    async def test_the_end_of_trying_rules_out_is_another_policy_too(self) -> None:
        service = self.run_with(self.daemon("old"), "deny out web tcp:127.0.0.1", audit_only_seconds=3600)
        looking_up = self.look_up(service)
        await until(lambda: self.asked)
        assert service.core is not None
        service.core.reconfigure(dataclasses.replace(service.core.settings, audit_only_seconds=0))
        self.go_on.set()
        self.assertEqual((await looking_up)[0]["error"], "denied")

    async def test_the_deadline_stays_what_it_was(self) -> None:
        service = self.run_with(self.daemon("old"), limits=Limits(connect_seconds=0.5))
        looking_up = self.look_up(service)
        await until(lambda: self.asked)
        for _ in range(3):
            self.put_in_force(service, limits=Limits(connect_seconds=20.0))
        answer, _ = await looking_up
        self.assertEqual(answer["error"], "timeout")
        await self.wait_until_idle(service)

    # -- before

    async def while_resolving(self, *rules: str) -> tuple[PlumberdService, defer.Deferred[Any], int]:
        port = self.serve_tcp(noting(self.asked, "old", b"old"))
        service = self.run_with(f"tcp://web.example:{port}", *rules)
        resolving: list[str] = []

        def look_up(name: str) -> tuple[ipaddress.IPv4Address, ...]:
            resolving.append(name)
            self.go_on.wait(20)
            return (ipaddress.IPv4Address("127.0.0.1"),)

        self.resolve_with(service, look_up)
        looking_up = self.look_up(service)
        await until(lambda: resolving)
        return service, looking_up, port

    async def test_a_name_that_was_being_resolved_is_judged_by_the_new_rules(self) -> None:
        service, looking_up, _ = await self.while_resolving()
        self.put_in_force(service, "deny out any tcp:127.0.0.0/8")
        self.go_on.set()
        self.assertEqual(((await looking_up)[0]["error"], self.asked), ("denied", []))
        await self.wait_until_idle(service)

    async def test_a_name_that_was_being_resolved_may_lead_elsewhere_by_now(self) -> None:
        service, looking_up, _ = await self.while_resolving()
        self.serve(service.settings.rundir, "web", lambda sock: sock.sendall(b"local"))
        self.put_in_force(service, routes=Routes())
        self.go_on.set()
        self.assertEqual((await looking_up)[1], b"local")

    async def test_who_waits_for_a_place_is_decided_by_what_is_in_force_then(self) -> None:
        service = self.run_with(self.daemon("old"), limits=Limits(connect_seconds=20.0, lookups_per_uid=1))
        assert service.broker is not None
        lookups = service.broker.lookups
        all_ = [self.look_up(service) for _ in range(5)]
        await until(lambda: lookups.waiting == 4 and self.asked)
        self.put_in_force(service, "deny out web any", limits=Limits(connect_seconds=20.0, lookups_per_uid=5))
        for _ in range(4):
            await until(lambda: len(self.outcomes) == 4)
        self.go_on.set()
        self.assertEqual([(await one)[0]["error"] for one in all_], ["denied"] * 5)
        self.assertEqual(self.asked, ["old"])
        await self.wait_until_idle(service)

    async def test_who_waits_for_the_count_is_decided_again(self) -> None:
        port = self.serve_tcp(noting(self.asked, "old", b"old"))
        service = self.run_with(f"tcp://127.0.0.1:{port}")
        core = service.core
        assert core is not None
        waiting: list[Any] = []

        def admit(owner: object, uid: int, resume: Any) -> bool:
            waiting.append(resume)
            return False

        self.patch(core.census, "admit", admit)
        looking_up = self.look_up(service)
        await until(lambda: waiting)
        self.put_in_force(service, "deny out web any")
        waiting[0](None)
        self.assertEqual((await looking_up)[0]["error"], "denied")
        await self.wait_until_idle(service)

    # -- while it waits until its user has room for one more unread descriptor

    def fill_room(self, service: PlumberdService) -> socket.socket:
        """Ask for a connection and leave it unread; return the client's socket."""
        self.serve(service.settings.rundir, "filler", lambda sock: read_all(sock))
        sock = self.owned(dial(service.settings.rundir, "plumberd"))
        sock.sendall(native_frame({"op": "lookup", "service": "filler"}))
        return sock

    async def waiting_for_room(self, target: str, count: int = 1, **settings: Any) -> tuple[Any, ...]:
        limits = Limits(connect_seconds=20.0, handshake_seconds=20.0, unread_descriptors_per_uid=1)
        service = self.run_with(target, limits=limits, **settings)
        assert service.broker is not None
        unread = service.broker.unread
        filler = self.fill_room(service)
        await until(lambda: unread.active == 1)
        self.go_on.set()
        all_ = [self.look_up(service) for _ in range(count)]
        await until(lambda: unread.waiting == count)
        return service, filler, all_

    async def test_who_has_room_only_now_is_refused_what_is_denied_by_now(self) -> None:
        service, filler, (looking_up,) = await self.waiting_for_room(self.daemon("old"))
        self.put_in_force(service, "deny out web any")
        await in_thread(take_and_close, filler)
        self.assertEqual((await looking_up)[0]["error"], "denied")
        await self.wait_until_idle(service)

    async def test_who_has_room_only_now_is_connected_to_the_new_place(self) -> None:
        service, filler, (looking_up,) = await self.waiting_for_room(self.daemon("old"))
        self.put_in_force(service, routes=self.leading_to(self.daemon("new")))
        await in_thread(take_and_close, filler)
        self.assertEqual((await looking_up)[1], b"new")
        await self.wait_until_idle(service)

    async def test_more_room_is_used_at_once_and_what_it_is_used_for_is_decided_again(self) -> None:
        service, _filler, (looking_up,) = await self.waiting_for_room(self.daemon("old"))
        limits = dataclasses.replace(service.settings.limits, unread_descriptors_per_uid=2)
        self.put_in_force(service, limits=limits, routes=self.leading_to(self.daemon("new")))
        self.assertEqual((await looking_up)[1], b"new")

    async def test_hundreds_that_wait_for_room_are_all_decided_again(self) -> None:
        count = 400
        service, filler, all_ = await self.waiting_for_room("unix:///pong", count=0)
        self.serve(service.settings.rundir, "pong", lambda sock: sock.sendall(b"old"))
        assert service.broker is not None
        unread = service.broker.unread
        socks = []
        for _ in range(count):
            sock = self.owned(dial(service.settings.rundir, "plumberd"))
            sock.sendall(native_frame({"op": "lookup", "service": "web"}))
            socks.append(sock)
        # 64 are worked on at once; let all of them
        self.put_in_force(service, limits=dataclasses.replace(service.settings.limits, lookups_per_uid=512))
        await until(lambda: unread.waiting == count)
        self.put_in_force(service, "deny out web any", limits=service.core.settings.limits)
        await in_thread(take_and_close, filler)
        answers = [(await in_thread(native_read, sock))[0].get("error") for sock in socks]
        self.assertEqual(answers, ["denied"] * count)
        for sock in socks:
            sock.close()
        await self.wait_until_idle(service)

    async def test_an_endpoint_s_old_relay_is_not_the_new_one_s_end(self) -> None:
        old, new = (self.serve_tcp(lambda sock: (sock.sendall(b"hello"), read_all(sock))) for _ in range(2))
        service, filler, (looking_up,) = await self.waiting_for_room(f"tcp:host=127.0.0.1:port={old}:timeout=5")
        self.put_in_force(service, routes=self.leading_to(f"tcp:host=127.0.0.1:port={new}:timeout=5"))
        await in_thread(take_and_close, filler)
        answer, first = await looking_up
        self.assertEqual((answer["mode"], first), ("relayed", b"hello"))
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes if o.service == "web"], ["granted", "ended"])

    async def test_a_local_service_by_its_bare_name_keeps_its_framing(self) -> None:
        service, filler, _ = await self.waiting_for_room("unix:///pong", count=0)
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(service.settings.rundir, "raw"))
        listener.listen(16)
        self.serve_on(listener, lambda sock: sock.sendall(sock.recv(100).upper()))
        assert service.broker is not None
        unread = service.broker.unread

        def ask() -> bytes:
            uri = "unix:///raw?framing=raw"
            answer, sock = native_ask(service.settings.rundir, op="lookup", uri=uri)
            assert answer["ok"], answer
            assert sock is not None
            with sock:
                sock.settimeout(20)
                sock.sendall(b"no frame at all")
                return sock.recv(100)

        asking = in_thread(ask)
        await until(lambda: unread.waiting == 1)
        self.put_in_force(service)
        await in_thread(take_and_close, filler)
        self.assertEqual(await asking, b"NO FRAME AT ALL")
        await self.wait_until_idle(service)


def take_and_close(sock: socket.socket) -> None:
    """Take the answer that was left unread, and hang up."""
    for fd in native_read(sock)[1]:
        os.close(fd)
    sock.close()


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


class Types(RunningTestCase):
    """What type of socket a client gets."""

    async def look_up(self, running: PlumberdService, **members: Any) -> tuple[dict[str, Any], socket.socket | None]:
        answer, got = await in_thread(native_ask, running.settings.rundir, op="lookup", **members)
        return answer, None if got is None else self.owned(got)

    async def check_packets(self, sock: socket.socket, *messages: bytes) -> None:
        """What is sent comes back, each message by itself."""
        for message in messages:
            sock.send(message)
            self.assertEqual(await in_thread(sock.recv, 65536), message)

    async def test_a_stream_is_what_it_is_without(self) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        answer, got = await self.look_up(service, service="pong", type="stream")
        assert got is not None, answer
        self.assertEqual((answer["mode"], got.type), ("local", socket.SOCK_STREAM))

    async def test_packets_in_front_of_a_tcp_server_are_relayed_and_one_read_is_one(self) -> None:
        service = self.run_broker()
        answer, got = await self.look_up(service, uri=f"tcp://127.0.0.1:{self.serve_tcp()}", type="seqpacket")
        assert got is not None, answer
        self.assertEqual((answer["mode"], got.type), ("relayed", socket.SOCK_SEQPACKET))
        await self.check_packets(got, b"one", b"another")
        got.close()
        await self.wait_until_idle(service)

    async def test_packets_of_a_stream_are_cut_as_the_uri_says(self) -> None:
        service = self.run_broker()
        port = self.serve_tcp(lambda sock: sock.sendall(b"\0\0\0\1a\0\0\0\2bc") or read_all(sock))
        uri = f"tcp://127.0.0.1:{port}?framing=libipc-zig"
        _, got = await self.look_up(service, uri=uri, type="seqpacket")
        assert got is not None
        self.assertEqual(await in_thread(got.recv, 100), b"\0\0\0\1a")
        self.assertEqual(await in_thread(got.recv, 100), b"\0\0\0\2bc")

    async def test_a_local_service_with_packets_is_connected_to_itself(self) -> None:
        service = self.run_broker()
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(service.settings.rundir, "pong"))
        listener.listen()
        self.serve_on(listener, echo)
        answer, got = await self.look_up(service, service="pong", type="seqpacket")
        assert got is not None, answer
        self.assertEqual((answer["mode"], got.type), ("local", socket.SOCK_SEQPACKET))
        await self.check_packets(got, b"one", b"another")

    async def test_a_local_service_with_a_stream_is_translated(self) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        answer, got = await self.look_up(service, service="pong", type="seqpacket")
        assert got is not None, answer
        self.assertEqual((answer["mode"], got.type), ("relayed", socket.SOCK_SEQPACKET))
        await self.check_packets(got, b"one", b"another")
        got.close()
        await self.wait_until_idle(service)

    async def test_datagrams_do_not_tell_the_end_of_what_has_one(self) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        for way in ({"service": "pong"}, {"uri": f"tcp://127.0.0.1:{self.serve_tcp()}"}):
            answer, got = await self.look_up(service, **way, type="dgram")
            self.assertIsNone(got)
            self.assertEqual(answer["error"], "not-possible")
            self.assertIn("type=dgram", answer["reason"])
            self.assertIn("ask for seqpacket", answer["reason"])

    async def test_packets_are_not_handed_over_locked(self) -> None:
        service = self.run_broker("allow out any any handover=locked")
        answer, _ = await self.look_up(service, uri=f"tcp://127.0.0.1:{self.serve_tcp()}", type="seqpacket")
        self.assertEqual(answer["error"], "not-possible")
        self.assertIn("wants packets", answer["reason"])
