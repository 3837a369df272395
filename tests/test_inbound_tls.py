"""plumberd.wiring.inbound.inbound_tls and the other side of it: two brokers that meet inside TLS, in one reactor."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plumberd.pure.policy.decide import Question, Verdict
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Routes, parse_route
from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.proxy_header import IDENTITIES, SIGNATURE
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import Authority, ClientCertificates, PeerSettings, TlsSettings, Trust
from plumberd.wiring.service import PlumberdService
from tests.issued import Issued, root, self_signed
from tests.running import RunningTestCase, leading
from tests.support import in_thread, native_lookup, read_all
from tests.tables import each
from tests.test_proxy_header import vectors

KEY = PreSharedKey("laptop", bytes(range(32)))
LISTEN = "tcp:0:interface=127.0.0.1"


def trusting(authority: Issued) -> Trust:
    """Return the trust in one authority alone."""
    return Trust(False, (Authority("ca.pem", authority.pem, "test authority"),))


class TlsTestCase(RunningTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ca = root()
        self.server = self.ca.issue("a.example", addresses=("127.0.0.1",))

    def far(self, *rules: str, tls: TlsSettings | None = None, **settings: Any) -> PlumberdService:
        """Start the broker that is called."""
        settings.setdefault("tlsd", (LISTEN,))
        tls = tls or TlsSettings((self.server.value,))
        return self.run_broker(*rules, tls=tls, **settings)

    def near(self, *rules: str, peer: PeerSettings | None = None, port: int = 0, **settings: Any) -> PlumberdService:
        """Start the broker that calls; it trusts the test's own authority."""
        peers = {f"127.0.0.1:{port}": peer} if peer else {}
        settings.setdefault("tls", TlsSettings(trust=trusting(self.ca)))
        return self.run_broker(*rules, peers=peers, **settings)

    async def ask(
        self, near: PlumberdService, port: int, service: str = "pong", user: str = ""
    ) -> tuple[dict[str, Any], socket.socket | None]:
        routes = f"{service} tls://{user}127.0.0.1:{port}/{service}"
        return await in_thread(native_lookup, near.settings.rundir, service, routes)

    async def exchange(self, sock: socket.socket, data: bytes) -> bytes:
        """Send *data* and the end; return all that comes back."""

        def work() -> bytes:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

        with sock:
            return await in_thread(work)

    async def granted(self, near: PlumberdService, port: int, service: str = "pong", user: str = "") -> socket.socket:
        answer, sock = await self.ask(near, port, service, user)
        assert sock is not None, answer
        self.assertEqual(answer["mode"], "relayed")
        return self.owned(sock)

    async def idle(self, *services: PlumberdService) -> None:
        for service in services:
            await self.wait_until_idle(service)


class Carried(TlsTestCase):
    async def test_bytes_and_ends_pass_both_ways_and_the_log_tells_both_halves(self) -> None:
        far, near = self.far("allow in pong tls:any"), self.near()
        self.serve(far.settings.rundir, "pong")
        sock = await self.granted(near, self.tcpd_port(far))
        data = os.urandom(3_000_000)
        back = await self.exchange(sock, data)
        self.assertEqual(hashlib.sha256(back).digest(), hashlib.sha256(data).digest())
        await self.idle(near, far)
        told = {(o.verdict, o.direction): o for o in self.outcomes}
        self.assertEqual(set(told), {("granted", "in"), ("granted", "out"), ("ended", "in"), ("ended", "out")})
        for direction in ("in", "out"):
            self.assertEqual((told["ended", direction].up, told["ended", direction].down), (len(data), len(data)))
        self.assertIn("tls", [step for step, _ in told["granted", "out"].steps])

    async def test_what_the_service_says_first_comes_behind_the_ok(self) -> None:
        far, near = self.far("allow in pong any"), self.near()
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(b"early" * 1000))
        sock = await self.granted(near, self.tcpd_port(far))
        self.assertEqual(await in_thread(read_all, sock), b"early" * 1000)
        sock.close()
        await self.idle(near, far)

    async def test_a_server_of_anybody_s_without_handshake(self) -> None:
        far = self.far("allow in web any", tlsd=(), publish_tls=(("web", LISTEN),))
        self.serve(far.settings.rundir, "web")
        near = self.near()
        routes = f"web tls://127.0.0.1:{self.tcpd_port(far)}"
        _, sock = await in_thread(native_lookup, near.settings.rundir, "web", routes)
        assert sock is not None
        self.assertEqual(await self.exchange(sock, b"hello"), b"hello")
        await self.idle(near, far)

    async def test_a_gateway_s_onward_leg_may_be_tls(self) -> None:
        far = self.far("allow in pong any")
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        gateway = self.near(
            "allow in pong any",
            f"allow out pong tls:127.0.0.1:{port}",
            tcpd=(LISTEN,),
            routes=Routes({}, leading(pong=parse_route("pong", f"tls://127.0.0.1:{port}/pong"))),
        )

        def call() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(gateway)), 10) as sock:
                sock.sendall(b"pong")
                self.assertEqual(sock.recv(2), b"ok")
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        self.assertEqual(await in_thread(call), b"hello")
        await self.idle(gateway, far)

    async def test_two_that_lead_to_each_other_end_after_eight(self) -> None:
        one = self.far("allow in pong any", tlsd=(LISTEN,))
        two = self.far(
            "allow in pong any",
            f"allow out pong tls:127.0.0.1:{self.tcpd_port(one)}",
            tls=TlsSettings((self.server.value,), trust=trusting(self.ca)),
            routes=Routes({}, leading(pong=parse_route("pong", f"tls://127.0.0.1:{self.tcpd_port(one)}/pong"))),
        )
        rules = ("allow in pong any", f"allow out pong tls:127.0.0.1:{self.tcpd_port(two)}")
        assert one.core is not None
        settings = self.near(
            *rules, routes=Routes({}, leading(pong=parse_route("pong", f"tls://127.0.0.1:{self.tcpd_port(two)}/pong")))
        ).settings
        one.core.settings = one.settings
        one.core.reconfigure(
            replace(one.settings, policy=settings.policy, routes=settings.routes, tls=two.settings.tls)
        )
        near = self.near()
        answer, sock = await self.ask(near, self.tcpd_port(one))
        self.assertIsNone(sock)
        self.assertFalse(answer["ok"])
        calls = [o for o in self.outcomes if o.direction == "in"]
        self.assertLessEqual(len(calls), 10)
        self.assertTrue(any("gateways" in o.reason for o in calls), [o.reason for o in calls])
        await self.idle(near, one, two)


class Forwarded(TlsTestCase):
    """What a gateway tells of its caller counts where the gateway is trusted, and nowhere else."""

    EDGE = PreSharedKey("edge", bytes(range(1, 33)))

    def inner(self, *rules: str, gateways: tuple[str, ...] = ("psk:edge",)) -> PlumberdService:
        """Start the machine behind the gateway."""
        trusted = tuple(map(parse_condition, gateways))
        far = self.far(*rules, tls=TlsSettings((self.server.value,), psks=(self.EDGE, KEY)), gateways=trusted)
        self.serve(far.settings.rundir, "pong")
        return far

    def edge(self, port: int, forward: bool = True) -> PlumberdService:
        """Start the gateway, which takes callers inside TLS, with a key."""
        own = TlsSettings((self.server.value,), trusting(self.ca), psks=(KEY,))
        routes = Routes({}, leading(pong=parse_route("pong", f"tls://127.0.0.1:{port}/pong")))
        peer = PeerSettings(psk=self.EDGE, forward=forward)
        rules = ("allow in pong any", f"allow out pong tls:127.0.0.1:{port}")
        return self.near(*rules, peer=peer, port=port, tls=own, tlsd=(LISTEN,), routes=routes)

    def caller(self, port: int) -> PlumberdService:
        return self.near("allow out pong any", peer=PeerSettings(psk=KEY), port=port)

    async def test_the_caller_counts_and_the_gateway_stands_in_the_log(self) -> None:
        far = self.inner("allow in pong any for psk:laptop")
        edge = self.edge(self.tcpd_port(far))
        near = self.caller(self.tcpd_port(edge))
        sock = await self.granted(near, self.tcpd_port(edge))
        self.assertEqual(await self.exchange(sock, b"hello"), b"hello")
        await self.idle(near, edge, far)
        whos = {str(o.who) for o in self.outcomes if o.direction == "in" and "via" in str(o.who)}
        self.assertEqual(len(whos), 1, whos)
        self.assertRegex(whos.pop(), r"^tls:127\.0\.0\.1:[0-9]+ psk:laptop via psk:edge$")

    async def test_a_deny_for_the_caller_holds_behind_the_gateway(self) -> None:
        far = self.inner("deny in pong any for psk:laptop", "allow in pong any")
        edge = self.edge(self.tcpd_port(far))
        near = self.caller(self.tcpd_port(edge))
        answer, _ = await self.ask(near, self.tcpd_port(edge))
        self.assertEqual(answer["error"], "denied")
        await self.idle(near, edge, far)

    async def test_the_gateway_s_own_key_opens_nothing_for_its_callers(self) -> None:
        far = self.inner("allow in pong any for psk:edge")
        edge = self.edge(self.tcpd_port(far))
        near = self.caller(self.tcpd_port(edge))
        answer, _ = await self.ask(near, self.tcpd_port(edge))
        self.assertEqual(answer["error"], "denied")
        await self.idle(near, edge, far)

    @each(("it does not tell", ("psk:edge",), False), ("it is not trusted", ("psk:other", "cert:edge"), True))
    async def test_else_the_gateway_is_who_calls(self, _: str, gateways: tuple[str, ...], forward: bool) -> None:
        far = self.inner("deny in pong any for psk:laptop", "allow in pong any for psk:edge", gateways=gateways)
        edge = self.edge(self.tcpd_port(far), forward)
        near = self.caller(self.tcpd_port(edge))
        sock = await self.granted(near, self.tcpd_port(edge))
        self.assertEqual(await self.exchange(sock, b"hello"), b"hello")
        await self.idle(near, edge, far)
        self.assertFalse([o for o in self.outcomes if "via" in str(o.who)])

    async def test_a_caller_without_keys_cannot_make_itself_one_of_the_gateway_s(self) -> None:
        far = self.inner("allow in pong any for psk:laptop")
        context = ssl.create_default_context(cadata=self.ca.pem.decode())
        context.set_alpn_protocols(["plumb/1"])

        def call() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", self.tcpd_port(far)), 10) as sock,
                context.wrap_socket(sock, server_hostname="a.example") as tls,
            ):
                tls.sendall(b"pong\ncaller: 192.0.2.7 1 psk:laptop\n\n")
                return tls.recv(512)

        self.assertEqual(await in_thread(call), b"no denied\n")
        await self.idle(far)

    async def test_trust_that_a_reload_took_away_meanwhile(self) -> None:
        far = self.inner("allow in pong any for psk:laptop")
        core = far.core
        assert core is not None
        edge = self.edge(self.tcpd_port(far))
        near = self.caller(self.tcpd_port(edge))
        decide = core.decide
        asked: list[Verdict] = []

        def decided(question: Question) -> Verdict:
            verdict = decide(question)
            if question.direction is Direction.IN and not asked:
                asked.append(verdict)
                core.reconfigure(replace(core.settings, gateways=()))
            return verdict

        self.patch(core, "decide", decided)
        answer, _ = await self.ask(near, self.tcpd_port(edge))
        self.assertEqual(answer["error"], "denied")
        self.assertTrue(asked and asked[0].granted)
        self.assertTrue(any("not trusted any more" in o.reason for o in self.outcomes), self.outcomes)
        await self.idle(near, edge, far)


class ByTheProxyProtocol(TlsTestCase):
    async def test_a_service_reads_what_was_proved_before_the_caller_s_bytes(self) -> None:
        far = self.far(
            "allow in pong any for psk:laptop",
            tls=TlsSettings((self.server.value,), psks=(KEY,)),
            proxied=frozenset({"pong"}),
        )
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        near = self.near("allow out pong any", peer=PeerSettings(psk=KEY), port=port)
        got = await self.exchange(await self.granted(near, port), b"hello")
        self.assertTrue(got.startswith(SIGNATURE) and got.endswith(b"hello"), got)
        told = vectors(got.removesuffix(b"hello"))
        self.assertEqual(told[IDENTITIES], b"psk:laptop")
        self.assertEqual(told[0x02], b"pong")
        self.assertEqual(told[0x20], b"\x01\0\0\0\x01\x21\0\x07TLSv1.3")
        await self.idle(near, far)


class NotBelieved(TlsTestCase):
    """Whom the near side calls has to be who it is meant to be."""

    @each(
        ("unknown_authority", lambda ca: root("another").issue("a.example", addresses=("127.0.0.1",))),
        ("another_name", lambda ca: ca.issue("b.example")),
        ("self_signed", lambda ca: self_signed("a.example")),
    )
    async def test_a_certificate_that_is_wrong(self, _: str, make: Callable[[Issued], Issued]) -> None:
        far, near = self.far("allow in pong any", tls=TlsSettings((make(self.ca).value,))), self.near()
        answer, sock = await self.ask(near, self.tcpd_port(far))
        self.assertIsNone(sock)
        self.assertIn("TLS", answer["reason"])
        await self.idle(near, far)

    async def test_a_server_that_is_no_plumberd(self) -> None:
        far = self.far("allow in web any", tlsd=(), publish_tls=(("web", LISTEN),))
        self.serve(far.settings.rundir, "web", read_all)
        answer, _ = await self.ask(self.near(), self.tcpd_port(far))
        self.assertEqual(answer["error"], "unreachable")
        self.assertIn("no plumberd", answer["reason"])
        await self.idle(far)


class Hostile(TlsTestCase):
    """Callers that do not do what they should."""

    def raw(self, far: PlumberdService) -> socket.socket:
        return self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(far)), 10))

    def secured(self, far: PlumberdService, alpn: str | None = "plumb/1") -> ssl.SSLSocket:
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.ca.pem)
            file.flush()
            context = ssl.create_default_context(cafile=file.name)
        if alpn:
            context.set_alpn_protocols([alpn])
        sock = context.wrap_socket(self.raw(far), server_hostname="a.example")
        self.addCleanup(sock.close)
        return sock

    async def test_garbage_and_plain_text_are_hung_up_on(self) -> None:
        far = self.far("allow in pong any")
        for data in (b"pong", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 100, os.urandom(1000)):
            sock = self.raw(far)
            sock.sendall(data)
            await in_thread(_read_to_any_end, sock)
        await self.idle(far)

    async def test_a_tls_client_that_is_no_plumberd_is_hung_up_on(self) -> None:
        far = self.far("allow in pong any")
        sock = await in_thread(self.secured, far, None)
        self.assertEqual(await in_thread(_read_to_any_end, sock), b"")
        await self.idle(far)

    async def test_every_refusal_of_who_has_proved_nothing_is_the_same(self) -> None:
        far = self.far("allow in audio any")
        for request in (b"pong\n\n", b"audio\n\n", b"tls\n\n", b"../x\n\n", b"pong\nhops: 9\n\n", b"x" * 5000):
            sock = await in_thread(self.secured, far)
            await in_thread(sock.sendall, request)
            self.assertEqual(await in_thread(_read_to_any_end, sock), b"no denied\n", request[:20])
        await self.idle(far)

    async def test_one_that_says_nothing_is_given_up(self) -> None:
        from plumberd.pure.limits import Limits

        far = self.far("allow in pong any", limits=Limits(handshake_seconds=1.0))
        sockets = [self.raw(far), await in_thread(self.secured, far)]
        for sock in sockets:
            self.assertEqual(await in_thread(_read_to_any_end, sock), b"")
        await self.idle(far)
        self.assertEqual([o.verdict for o in self.outcomes], ["timeout", "timeout"])

    async def test_a_request_byte_by_byte_with_what_follows_is_understood(self) -> None:
        far = self.far("allow in pong any")
        self.serve(far.settings.rundir, "pong")
        sock = await in_thread(self.secured, far)

        def talk() -> bytes:
            for byte in b"pong\n\nhello":
                sock.sendall(bytes((byte,)))
            got = b""
            while len(got) < len(b"ok\nhello"):
                got += sock.recv(100)
            return got

        self.assertEqual(await in_thread(talk), b"ok\nhello")
        sock.close()
        await self.idle(far)


def _read_to_any_end(sock: socket.socket) -> bytes:
    try:
        return read_all(sock)
    except OSError:
        return b""


class Parts(TlsTestCase):
    """With tlsd in a process of its own, the broker asks it, and the name has to be proved to tlsd."""

    async def test_a_broker_without_keys_reaches_through_a_tlsd_that_has_them(self) -> None:
        far = self.far(
            "allow in pong tls:b.example",
            tls=TlsSettings((self.server.value,), trusting(self.ca), client_certificates=ClientCertificates.OPTIONAL),
        )
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        broker = self.run_broker("allow out pong tls:127.0.0.1", parts=frozenset(("broker",)))
        self.run_broker(
            rundir=broker.settings.rundir,
            parts=frozenset(("tlsd",)),
            tls=TlsSettings(trust=trusting(self.ca)),
            peers={f"127.0.0.1:{port}": PeerSettings(certificate=self.ca.issue("b.example").value)},
        )
        sock = await self.granted(broker, port)
        self.assertEqual(await self.exchange(sock, b"hello" * 10000), b"hello" * 10000)
        # What no rule of the broker's let through proves nothing there.
        unruled = self.run_broker(parts=frozenset(("broker",)), rundir=os.path.join(self.folder(), "r"))
        os.link(os.path.join(broker.settings.rundir, "tls"), os.path.join(unruled.settings.rundir, "tls"))
        answer, _ = await self.ask(unruled, port)
        self.assertEqual(answer["error"], "denied")
        self.assertIn("no rule of the broker's", answer["reason"])
        await self.idle(broker, far)

    async def test_the_name_is_proved_to_the_scheme_daemon(self) -> None:
        far = self.far("allow in pong any", tls=TlsSettings((self.ca.issue("b.example").value,)))
        broker = self.run_broker(parts=frozenset(("broker",)))
        self.run_broker(
            rundir=broker.settings.rundir, parts=frozenset(("tlsd",)), tls=TlsSettings(trust=trusting(self.ca))
        )
        answer, _ = await self.ask(broker, self.tcpd_port(far))
        self.assertIn("b.example", answer["reason"])
        await self.idle(broker, far)
