"""A machine whose service leads away from it: callers, their way on, and the rules for it.

The same behaviours for every kind of listener (with a socket of its own, behind a
proxy, published) and for every kind of target (another plumberd, any tcp server, a
Twisted endpoint). What is the same for local services is in tests/test_inbound.py.
"""

from __future__ import annotations

import ipaddress
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.internet import defer

from plumberd.effects.kernel import unread_bytes
from plumberd.pure.limits import Limits
from plumberd.pure.policy.decide import DEFAULTS
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Routes, parse_redirect, parse_route
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.dialing import served
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import echo, leading, leading_first, noting
from tests.support import in_thread, is_reset, native_lookup, read_all, read_exactly, until
from tests.tables import each
from tests.test_generations import bounce_packets, old_message
from tests.test_inbound import PLAIN, TcpdTestCase, end_of
from tests.test_inbound_transport import PROXIED

LINGER_RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER that makes a close a reset."""


class GatewayTestCase(TcpdTestCase):
    """A gateway, and where it leads to."""

    first_bytes = b""

    def run_gateway(self, target: str, *rules: str, **settings: Any) -> PlumberdService:
        """Run a gateway whose service `pong` leads to *target*."""
        routes = settings.pop("routes", None) or Routes({}, leading(pong=parse_route("pong", target)))
        return self.run_tcpd(*rules, routes=routes, **settings)

    def far(self, answer: Any = None) -> tuple[PlumberdService, int]:
        """Run a broker with the service `pong`; return it and its port for callers."""
        far = self.run_broker("allow in pong tcp:127.0.0.1", tcpd=(PLAIN,))
        self.serve(far.settings.rundir, "pong", answer)
        return far, self.tcpd_port(far)

    def allow(self, port: int, service: str = "pong") -> tuple[str, str]:
        """Return the two rules that a caller needs."""
        return f"allow in {service} any", f"allow out {service} tcp:127.0.0.1:{port}"


class Ways(GatewayTestCase):
    """What holds for every way through; subclasses say which it is."""

    def target(self, answer: Any = None) -> tuple[str, int]:
        """Run where the gateway leads to; return the route and the port."""
        _, port = self.far(answer)
        return f"tcp://127.0.0.1:{port}/pong", port

    async def through(self, service: PlumberdService) -> socket.socket:
        """Return a caller's connection that was let in."""
        return await self.ask(service, b"pong")

    passes_resets = True
    """Whether the far side's reset is one for the caller; over a UNIX socket in between it is an end."""

    async def start(self, answer: Any = None) -> tuple[PlumberdService, socket.socket]:
        target, port = self.target(answer)
        gateway = self.run_gateway(target, *self.allow(port))
        return gateway, await self.through(gateway)

    async def check_idle(self, gateway: PlumberdService) -> None:
        await self.wait_until_idle(gateway)
        assert gateway.core is not None
        await until(lambda: gateway.core is not None and not gateway.core.relay_places.active)

    async def test_bytes_go_both_ways_and_each_end_is_passed_on(self) -> None:
        gateway, sock = await self.start()
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"")
        await self.check_idle(gateway)
        mine = [o for o in self.outcomes if "PONG" not in o.reason and o.direction == "in" and o.to]
        self.assertEqual([o.verdict for o in mine], ["granted", "ended"])
        self.assertEqual((mine[1].up, mine[1].down), (5, 5))

    async def test_a_large_transfer_is_byte_exact_both_ways_with_half_closes(self) -> None:
        data = random.Random(3).randbytes(3 << 20)
        got: list[bytes] = []

        def answer(sock: socket.socket) -> None:
            got.append(read_all(sock))
            sock.sendall(data[::-1])

        gateway, sock = await self.start(answer)

        def talk() -> bytes:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return read_all(sock)

        self.assertTrue(await in_thread(talk) == data[::-1])
        self.assertTrue(got == [data])
        await self.check_idle(gateway)

    async def test_large_transfers_at_the_same_time_are_byte_exact(self) -> None:
        data = random.Random(4).randbytes(1 << 20)
        gateway, first = await self.start()
        socks = [first, *[await self.through(gateway) for _ in range(3)]]

        def send(sock: socket.socket, part: bytes) -> None:
            sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)

        def talk(sock: socket.socket, part: bytes) -> bytes:
            sending = threading.Thread(target=send, args=(sock, part))
            sending.start()
            got = read_all(sock)
            sending.join()
            return got

        talks = [in_thread(talk, sock, data[n:]) for n, sock in enumerate(socks)]
        for n, one in enumerate(talks):
            self.assertTrue(await one == data[n:])
        await self.check_idle(gateway)

    async def test_what_the_far_side_says_first_arrives(self) -> None:
        gateway, sock = await self.start(lambda sock: (sock.sendall(b"banner"), read_all(sock)))
        self.assertEqual(await in_thread(read_exactly, sock, 6), b"banner")
        sock.close()
        await self.check_idle(gateway)

    async def test_a_callers_reset_ends_the_far_connection_at_once(self) -> None:
        ended: list[bool] = []

        def answer(sock: socket.socket) -> None:
            sock.sendall(b"x")
            ended.append(is_reset(sock))

        gateway, sock = await self.start(answer)
        self.assertEqual(await in_thread(read_exactly, sock, 1), b"x")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        sock.close()
        await until(lambda: ended)
        await self.check_idle(gateway)

    async def test_a_far_side_that_closes_with_bytes_unread_ends_the_callers_connection(self) -> None:
        def answer(sock: socket.socket) -> None:
            sock.sendall(b"tail")
            while not unread_bytes(sock.fileno()):
                time.sleep(0.001)

        gateway, sock = await self.start(answer)
        self.assertEqual(await in_thread(read_exactly, sock, 4), b"tail")
        sock.sendall(b"nobody reads this")
        self.assertEqual(await in_thread(is_reset, sock), self.passes_resets)
        await self.check_idle(gateway)

    async def test_a_far_side_that_is_gone_is_one_refusal(self) -> None:
        target, port = self.target()
        gone = free_port()
        gateway = self.run_gateway(target.replace(str(port), str(gone)), *self.allow(gone))
        self.assertEqual(await self.refused(gateway), self.no)
        self.assertEqual(self.outcomes[-1].verdict, "unreachable")
        await self.check_idle(gateway)

    async def test_without_a_rule_for_the_way_on_it_is_one_refusal(self) -> None:
        asked: list[int] = []
        target, _ = self.target(lambda sock: asked.append(1))
        gateway = self.run_gateway(target, "allow in pong any")
        self.assertEqual(await self.refused(gateway), self.no)
        self.assertEqual((self.outcomes[-1].verdict, asked), ("denied", []))
        await self.check_idle(gateway)

    no = b"no denied"

    async def refused(self, gateway: PlumberdService) -> bytes:
        """Return what a caller is told that is refused."""
        return await self.refusal(gateway, b"pong")


class ToAPlumberd(Ways):
    """The far side's handshake names the service."""


class ToAServer(Ways):
    """Any tcp server, without a handshake."""

    def target(self, answer: Any = None) -> tuple[str, int]:
        port = self.serve_tcp(answer or echo)
        return f"tcp://127.0.0.1:{port}", port


class ToAnEndpoint(ToAServer):
    """A Twisted client endpoint string."""

    passes_resets = False

    def target(self, answer: Any = None) -> tuple[str, int]:
        _, port = super().target(answer)
        return f"tcp:host=127.0.0.1:port={port}:timeout=5", port


class BehindAProxy:
    """The caller comes through a listener that has no socket of its own."""

    endpoint = PROXIED
    first_bytes = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 9000\r\n"
    passes_resets = False


class Published:
    """The listener is for the one service: no handshake."""

    no = b""

    def run_tcpd(self: Any, *rules: str, **settings: Any) -> PlumberdService:
        service: PlumberdService = self.run_broker(*rules, publish=(("pong", self.endpoint),), **settings)
        return service

    async def through(self: Any, service: PlumberdService) -> socket.socket:
        sock: socket.socket = self.call(service)
        return sock

    async def refused(self: Any, gateway: PlumberdService) -> bytes:
        with self.call(gateway) as sock:
            return await in_thread(end_of, sock)


class ProxiedToAPlumberd(BehindAProxy, ToAPlumberd):
    pass


class ProxiedToAServer(BehindAProxy, ToAServer):
    pass


class ProxiedToAnEndpoint(BehindAProxy, ToAnEndpoint):
    pass


class PublishedToAPlumberd(Published, ToAPlumberd):
    pass


class PublishedToAServer(Published, ToAServer):
    pass


class PublishedToAnEndpoint(Published, ToAnEndpoint):
    pass


class PublishedAndProxiedToAServer(Published, BehindAProxy, ToAServer):
    pass


del Ways  # what is the same for all runs with the subclasses alone


class Packets(GatewayTestCase):
    """The far service has packets, and what the caller sends is cut there."""

    async def check(self) -> None:
        far = self.run_broker("allow in pong tcp:127.0.0.1", tcpd=(PLAIN,))
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(far.settings.rundir, "pong"))
        listener.listen(16)
        self.serve_on(listener, bounce_packets)
        port = self.tcpd_port(far)
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}/pong", *self.allow(port))
        sock = await self.ask(gateway, b"pong")
        for payload in (b"hello", b"x" * 150_000):
            message = old_message(payload)
            await in_thread(sock.sendall, message)
            self.assertTrue(await in_thread(read_exactly, sock, len(message)) == message)
        sock.close()
        await self.wait_until_idle(gateway)
        await self.wait_until_idle(far)

    async def test_through_a_socket(self) -> None:
        await self.check()

    async def test_behind_a_proxy(self) -> None:
        self.endpoint, self.first_bytes = PROXIED, BehindAProxy.first_bytes
        await self.check()

    async def test_a_gateways_own_service_with_packets_that_leads_to_another_name(self) -> None:
        gateway = self.run_gateway("unix:///other", "allow in pong any")
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(gateway.settings.rundir, "other"))
        listener.listen(16)
        self.serve_on(listener, bounce_packets)
        sock = await self.ask(gateway, b"pong")
        message = old_message(b"hello")
        sock.sendall(message)
        self.assertEqual(await in_thread(read_exactly, sock, len(message)), message)


class RulesForTheWayOn(GatewayTestCase):
    """A caller needs `allow in`, and for what leads further `allow out`, with itself as who asks."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[int] = []
        self.port = self.serve_tcp(noting(self.asked, 1))

    async def outcome(self, *rules: str, route: str = "tcp://127.0.0.1:PORT", **settings: Any) -> str:
        """Return the verdict about a caller, whose refusal is one like any other."""
        rules = tuple(rule.replace("PORT", str(self.port)) for rule in rules)
        gateway = self.run_gateway(route.replace("PORT", str(self.port)), *rules, **settings)
        said = await self.first_words(gateway)
        verdict = self.outcomes[0].verdict
        self.assertEqual(said, b"ok" if verdict == "granted" else b"no denied")
        if verdict != "granted":
            self.assertEqual(self.asked, [])
        return verdict

    async def first_words(self, gateway: PlumberdService) -> bytes:
        """Return ok, or all that a refused caller is told."""

        def talk() -> bytes:
            with self.call(gateway) as sock:
                sock.sendall(b"pong")
                return read_exactly(sock, 2) if sock.recv(1, socket.MSG_PEEK) == b"o" else read_all(sock)

        return await in_thread(talk)

    @each(
        ("nothing", ()),
        ("in_alone", ("allow in pong any",)),
        ("out_alone", ("allow out pong tcp:127.0.0.1:PORT",)),
        ("out_for_everything", ("allow in pong any", "allow out any any")),
        ("out_for_the_scheme", ("allow in pong any", "allow out pong tcp:any")),
        ("out_without_the_port", ("allow in pong any", "allow out pong tcp:127.0.0.1")),
        ("out_for_more_than_loopback", ("allow in pong any", "allow out pong tcp:126.0.0.0/7:PORT")),
        ("out_for_another_port", ("allow in pong any", "allow out pong tcp:127.0.0.1:1")),
        ("out_for_another_service", ("allow in pong any", "allow out ping tcp:127.0.0.1:PORT")),
        ("out_for_a_local_user", ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT for uid:0")),
        ("out_for_a_local_group", ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT for group:root")),
        ("out_for_a_proof", ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT for cert:a.example")),
        ("denied_first", ("allow in pong any", "deny out any any", "allow out pong tcp:127.0.0.1:PORT")),
        ("denied_in", ("deny in pong any", "allow in pong any", "allow out pong tcp:127.0.0.1:PORT")),
        ("only_logged_in", ("log in pong any",)),
    )
    async def test_is_denied(self, _: str, rules: tuple[str, ...]) -> None:
        self.assertEqual(await self.outcome(*rules), "denied")

    @each(
        ("both", ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT")),
        ("a_range_of_ports", ("allow in pong tcp:127.0.0.1", "allow out pong tcp:127.0.0.1:1-65535")),
        ("loopback_as_a_network", ("allow in pong any", "allow out any tcp:127.0.0.0/8:PORT")),
        ("any_service", ("allow in any any", "allow out any tcp:127.0.0.1:PORT")),
        ("denied_to_a_user", ("allow in pong any", "deny out any any for uid:0", "allow out pong tcp:127.0.0.1:PORT")),
        ("only_logged", ("log in pong any", "log out pong tcp:127.0.0.1:PORT")),
    )  # fmt: skip
    async def test_is_granted(self, _: str, rules: tuple[str, ...]) -> None:
        self.assertEqual(await self.outcome(*rules), "granted")

    async def test_the_default_for_clients_is_none_for_callers(self) -> None:
        defaults = {**DEFAULTS, Direction.IN: True, Direction.OUT: True}
        self.assertEqual(await self.outcome(defaults=defaults), "denied")
        self.assertIn("needs a rule that names it and its port", self.outcomes[0].reason)

    async def test_what_is_not_loopback_needs_a_rule_too(self) -> None:
        self.assertEqual(await self.outcome("allow in pong any", route="tcp://192.0.2.1:9"), "denied")
        self.assertIn("a remote caller needs a rule for what leads further", self.outcomes[0].reason)

    async def test_trying_rules_out_opens_no_loopback(self) -> None:
        self.assertEqual(await self.outcome("allow in pong any", audit_only_seconds=60), "denied")

    async def test_another_service_that_the_far_side_is_asked_for_has_to_pass_too(self) -> None:
        rules = ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT")
        self.assertEqual(await self.outcome(*rules, route="tcp://127.0.0.1:PORT/secret"), "denied")

    async def test_the_route_for_every_name_is_not_for_callers(self) -> None:
        routes = Routes({}, {"*": leading(x=parse_route("*", f"tcp://127.0.0.1:{self.port}"))["x"]})
        rules = ("allow in any any", "allow out any tcp:127.0.0.1:PORT")
        self.assertEqual(await self.outcome(*rules, routes=routes), "unknown-service")

    async def test_a_redirect_leads_on_as_a_route_does(self) -> None:
        redirect = leading(pong="next", next=parse_redirect("next", f"tcp://127.0.0.1:{self.port}"))
        rules = ("allow in pong any", "allow out pong tcp:127.0.0.1:PORT")
        self.assertEqual(await self.outcome(*rules, routes=Routes(redirect)), "granted")

    async def test_the_rules_see_the_name_that_was_asked_for_and_not_the_redirect_s(self) -> None:
        redirect = leading(pong="next", next=parse_redirect("next", f"tcp://127.0.0.1:{self.port}"))
        rules = ("allow in pong any", "allow out next tcp:127.0.0.1:PORT")
        self.assertEqual(await self.outcome(*rules, routes=Routes(redirect)), "denied")

    async def test_an_endpoint_that_only_this_machine_could_open_needs_a_rule(self) -> None:
        path = os.path.join(self.folder(), "secret")
        secret = self.unix_listener(path)
        self.assertEqual(await self.outcome("allow in any any", route=f"unix:{path}"), "denied")
        secret.setblocking(False)
        with self.assertRaises(BlockingIOError):
            secret.accept()

    async def test_a_name_is_judged_with_its_addresses(self) -> None:
        gateway = self.run_gateway(
            f"tcp://far.example:{self.port}", "allow in pong any", "allow out pong tcp:far.example"
        )
        self.resolve_with(gateway, lambda name: (ipaddress.ip_address("127.0.0.1"),))
        self.assertEqual(await self.first_words(gateway), b"no denied")
        self.assertEqual((self.outcomes[0].verdict, self.asked), ("denied", []))

    async def test_a_scheme_that_nothing_carries_is_refused_like_everything(self) -> None:
        self.patch(served, "SERVED", ("tcp", "unix"))
        rules = ("allow in pong any", "allow out pong tls:127.0.0.1:PORT")
        self.assertEqual(await self.outcome(*rules, route="tls://127.0.0.1:PORT"), "not-possible")

    async def test_the_outcome_tells_where_it_leads_and_which_rule_decided(self) -> None:
        self.assertEqual(await self.outcome(*self.allow(self.port)), "granted")
        granted = self.outcomes[0]
        self.assertEqual(
            (granted.direction, granted.service, str(granted.to)), ("in", "pong", f"tcp://127.0.0.1:{self.port}")
        )
        assert granted.decided is not None
        self.assertEqual((granted.decided.number, str(granted.address)), (1, "127.0.0.1"))

    async def test_the_outcome_of_a_refused_way_on_has_the_rule_for_that(self) -> None:
        await self.outcome("allow in pong any", "deny out pong any")
        assert self.outcomes[0].decided is not None
        self.assertEqual(self.outcomes[0].decided.number, 2)


class Alternatives(GatewayTestCase):
    """For callers too the next has its turn where one cannot be reached."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []

    def server(self, name: str, says: bytes) -> int:
        return self.serve_tcp(noting(self.asked, name, says))

    async def test_the_next_is_taken(self) -> None:
        gone = free_port()
        port = self.server("b", b"b")
        routes = Routes({}, leading_first("pong", f"tcp://127.0.0.1:{gone}", f"tcp://127.0.0.1:{port}"))
        gateway = self.run_tcpd("allow in pong any", "allow out pong tcp:127.0.0.1:1-65535", routes=routes)
        sock = await self.ask(gateway, b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 1), b"b")

    async def test_a_local_service_comes_first_where_it_is_there(self) -> None:
        port = self.server("far", b"f")
        routes = Routes({}, leading_first("pong", "unix:///pong", f"tcp://127.0.0.1:{port}"))
        gateway = self.run_tcpd(*self.allow(port), routes=routes)
        sock = await self.ask(gateway, b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 1), b"f")
        self.serve(gateway.settings.rundir, "pong", lambda sock: sock.sendall(b"l"))
        assert gateway.core is not None
        gateway.core.backoff.clear()
        sock = await self.ask(gateway, b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 1), b"l")

    async def test_who_was_refused_is_not_let_in_when_the_first_one_s_time_is_over(self) -> None:
        denied, allowed = self.server("a", b"a"), self.server("b", b"b")
        routes = Routes({}, leading_first("pong", f"tcp://127.0.0.1:{denied}", f"tcp://127.0.0.1:{allowed}"))
        gateway = self.run_tcpd(*self.allow(allowed), routes=routes, limits=Limits(connect_seconds=0.2))
        sock = self.call(gateway)
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(read_exactly, sock, 9), b"no denied")
        await self.wait_until_idle(gateway)
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual(([o.verdict for o in self.outcomes], self.asked), (["denied"], []))

    async def test_where_all_hang_the_caller_is_refused_in_time(self) -> None:
        port = self.server("a", b"")
        routes = Routes({}, leading_first("pong", f"tcp://127.0.0.1:{port}/pong", f"tcp://127.0.0.1:{port}/pong"))
        gateway = self.run_tcpd(*self.allow(port), routes=routes, limits=Limits(connect_seconds=0.3))
        self.assertEqual(await self.refusal(gateway, b"pong"), b"no denied")
        self.assertEqual(self.outcomes[-1].verdict, "timeout")
        await self.wait_until_idle(gateway)


class Loops(GatewayTestCase):
    """What leads back here is refused at once; what comes back over others ends."""

    def run_loop(self, published: bool, lead: Callable[[int], str], *rules: str) -> tuple[PlumberdService, int]:
        """Run a gateway whose service leads to what *lead* makes of its own port."""
        if published:
            gateway = self.run_broker(publish=(("pong", self.endpoint),))
        else:
            gateway = self.run_broker(tcpd=(self.endpoint,))
        port = self.tcpd_port(gateway)
        self.put_in_force(
            gateway,
            *(rules or (*self.allow(port), f"allow out pong tcp:[::1]:{port}")),
            routes=Routes({}, leading(pong=parse_route("pong", lead(port)))),
        )
        return gateway, port

    @each(
        ("the_same_service", False, lambda port: f"tcp://127.0.0.1:{port}/pong"),
        ("no_service", False, lambda port: f"tcp://127.0.0.1:{port}"),
        ("an_endpoint", False, lambda port: f"tcp:host=127.0.0.1:port={port}:timeout=3"),
        ("published", True, lambda port: f"tcp://127.0.0.1:{port}"),
        ("published_with_a_service", True, lambda port: f"tcp://127.0.0.1:{port}/pong"),
        ("published_to_an_endpoint", True, lambda port: f"tcp:host=127.0.0.1:port={port}:timeout=3"),
        ("mapped", False, lambda port: f"tcp://[::ffff:127.0.0.1]:{port}/pong"),
    )
    async def test_a_listener_that_leads_to_itself_is_refused_at_once(
        self, _: str, published: bool, lead: Callable[[int], str]
    ) -> None:
        gateway, _port = self.run_loop(published, lead)
        with self.call(gateway) as sock:
            if not published:
                sock.sendall(b"pong")
            self.assertEqual(await in_thread(end_of, sock), b"" if published else b"no denied")
        self.assertEqual([o.verdict for o in self.outcomes], ["not-possible"])
        self.assertIn("this very process listens", self.outcomes[0].reason)
        await self.wait_until_idle(gateway)

    async def test_so_is_one_by_a_name(self) -> None:
        gateway, _ = self.run_loop(False, lambda port: f"tcp://me.example:{port}/pong")
        self.resolve_with(gateway, lambda name: (ipaddress.ip_address("127.0.0.1"),))
        self.assertEqual(await self.refusal(gateway, b"pong"), b"no denied")
        self.assertEqual([o.verdict for o in self.outcomes], ["not-possible"])

    async def test_so_is_one_behind_a_proxy(self) -> None:
        self.endpoint, self.first_bytes = PROXIED, BehindAProxy.first_bytes
        gateway, _ = self.run_loop(False, lambda port: f"tcp://127.0.0.1:{port}/pong")
        self.assertEqual(await self.refusal(gateway, b"pong"), b"no denied")
        self.assertEqual([o.verdict for o in self.outcomes], ["not-possible"])

    async def test_a_local_client_may_call_its_own_machine(self) -> None:
        gateway, port = self.run_loop(False, lambda port: "unix:///pong", "allow in pong any")
        self.serve(gateway.settings.rundir, "pong")
        answer, sock = await in_thread(
            native_lookup, gateway.settings.rundir, "far", f"far tcp://127.0.0.1:{port}/pong"
        )
        self.assertTrue(answer["ok"], answer)
        assert sock is not None
        sock.close()

    def two(self, published: bool, limits: Limits) -> list[PlumberdService]:
        """Run two gateways that lead to each other."""
        listen: dict[str, Any] = {"publish": (("pong", PLAIN),)} if published else {"tcpd": (PLAIN,)}
        both = [self.run_broker(limits=limits, **listen) for _ in range(2)]
        tail = "" if published else "/pong"
        for one, other in (both, both[::-1]):
            port = self.tcpd_port(other)
            routes = Routes({}, leading(pong=parse_route("pong", f"tcp://127.0.0.1:{port}{tail}")))
            self.put_in_force(one, *self.allow(port), routes=routes)
        return both

    async def test_two_gateways_that_lead_to_each_other_end_at_their_limit_for_handshakes(self) -> None:
        both = self.two(False, Limits(handshakes_per_address=8))
        self.assertEqual(await self.refusal(both[0], b"pong"), b"no denied")
        for one in both:
            await self.wait_until_idle(one)
        verdicts = [o.verdict for o in self.outcomes]
        self.assertEqual(verdicts.count("busy"), 1)
        self.assertEqual(verdicts.count("unreachable") + verdicts.count("denied"), 16)

    async def test_and_at_their_deadlines(self) -> None:
        both = self.two(False, Limits(connect_seconds=0.3))
        silent = self.serve_tcp(lambda sock: read_all(sock))
        routes = Routes({}, leading(pong=parse_route("pong", f"tcp://127.0.0.1:{silent}/pong")))
        self.put_in_force(both[1], *self.allow(silent), routes=routes)
        began = time.monotonic()
        self.assertEqual(await self.refusal(both[0], b"pong"), b"no denied")
        self.assertLess(time.monotonic() - began, 3)
        for one in both:
            await self.wait_until_idle(one)

    async def test_published_ones_end_at_their_limit_for_relays(self) -> None:
        both = self.two(True, Limits(relays_per_peer=8))
        with self.call(both[0]) as sock:
            self.assertEqual(await in_thread(end_of, sock), b"")
        for one in both:
            await self.wait_until_idle(one)
            assert one.core is not None
            self.assertEqual(one.core.relay_places.active, 0)
        self.assertIn("busy", [o.verdict for o in self.outcomes])

    async def test_the_brokers_serve_others_meanwhile(self) -> None:
        both = self.two(False, Limits(handshakes_per_address=64))
        rundir = both[0].settings.rundir
        self.serve(rundir, "ping", lambda sock: sock.sendall(b"here"))
        self.put_in_force(both[0], *self.allow(self.tcpd_port(both[1])), "allow in ping any")
        loops = [self.refusal(both[0], b"pong") for _ in range(3)]
        looping = [defer.Deferred.fromCoroutine(loop) for loop in loops]
        for loop_ended in looping:
            self.assertIn(await loop_ended, (b"no denied", b""))
        for one in both:
            await self.wait_until_idle(one)
        sock = await self.ask(both[0], b"ping")
        self.assertEqual(await in_thread(read_all, sock), b"here")


class DecidedAgain(GatewayTestCase):
    """A caller that is on its way when other rules come into force."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.say_ok = threading.Event()
        self.addCleanup(self.say_ok.set)

    def slow_daemon(self) -> int:
        """Run what says ok to a handshake when it is told to; then its name."""

        def answer(sock: socket.socket) -> None:
            sock.recv(64)
            self.asked.append("old")
            self.say_ok.wait(20)
            sock.sendall(b"okold")
            read_all(sock)

        port = self.serve_tcp(answer)
        self.addCleanup(self.say_ok.set)  # before its threads are waited for
        return port

    async def call_meanwhile(self, gateway: PlumberdService) -> socket.socket:
        """Return a caller's socket whose way on waits for the far side."""
        sock = self.call(gateway)
        sock.sendall(b"pong")
        await until(lambda: self.asked)
        return sock

    async def test_is_refused_where_the_way_on_is_denied_now(self) -> None:
        port = self.slow_daemon()
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}/pong", *self.allow(port))
        sock = await self.call_meanwhile(gateway)
        self.put_in_force(gateway, "allow in pong any", "deny out any any")
        self.say_ok.set()
        self.assertEqual(await in_thread(read_all, sock), b"no denied")
        sock.close()
        self.assertEqual([o.verdict for o in self.outcomes], ["denied"])
        assert self.outcomes[0].decided is not None
        self.assertEqual(self.outcomes[0].decided.number, 2)
        await self.wait_until_idle(gateway)

    async def test_is_refused_where_it_may_not_come_in_any_more(self) -> None:
        port = self.slow_daemon()
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}/pong", *self.allow(port))
        sock = await self.call_meanwhile(gateway)
        self.put_in_force(gateway, "deny in pong any", *self.allow(port))
        self.say_ok.set()
        self.assertEqual(await in_thread(read_all, sock), b"no denied")
        sock.close()
        decided = self.outcomes[0].decided
        assert decided is not None
        self.assertEqual((self.outcomes[0].verdict, decided.number), ("denied", 1))
        await self.wait_until_idle(gateway)

    async def test_is_connected_to_the_new_place_where_the_route_is_another_now(self) -> None:
        port = self.slow_daemon()
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}/pong", *self.allow(port))
        sock = await self.call_meanwhile(gateway)
        self.serve(gateway.settings.rundir, "pong", lambda sock: sock.sendall(b"new"))
        self.put_in_force(gateway, "allow in pong any", routes=Routes())
        self.say_ok.set()
        self.assertEqual(await in_thread(read_all, sock), b"oknew")
        await self.wait_until_idle(gateway)
        self.assertEqual([o.verdict for o in self.outcomes], ["granted", "ended"])

    async def test_is_let_in_where_nothing_has_changed_for_it(self) -> None:
        port = self.slow_daemon()
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}/pong", *self.allow(port))
        sock = await self.call_meanwhile(gateway)
        self.put_in_force(gateway, "deny in other any", *self.allow(port))
        self.say_ok.set()
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"okold")
        self.assertEqual(self.asked, ["old", "old"])  # it was asked anew: the first connection was another policy's

    async def test_a_name_that_was_being_resolved_is_judged_by_the_new_rules(self) -> None:
        port = self.serve_tcp(lambda sock: self.asked.append("old"))
        gateway = self.run_gateway(f"tcp://far.example:{port}", *self.allow(port))
        resolving: list[str] = []

        def look_up(name: str) -> tuple[ipaddress.IPv4Address, ...]:
            resolving.append(name)
            self.say_ok.wait(20)
            return (ipaddress.IPv4Address("127.0.0.1"),)

        self.resolve_with(gateway, look_up)
        sock = self.call(gateway)
        sock.sendall(b"pong")
        await until(lambda: resolving)
        self.put_in_force(gateway, "allow in pong any", "deny out any any")
        self.say_ok.set()
        self.assertEqual(await in_thread(read_all, sock), b"no denied")
        sock.close()
        self.assertEqual(self.asked, [])

    async def test_one_that_is_let_in_stays(self) -> None:
        port = self.serve_tcp()
        gateway = self.run_gateway(f"tcp://127.0.0.1:{port}", *self.allow(port))
        sock = await self.ask(gateway, b"pong")
        self.put_in_force(gateway, "deny in any any", "deny out any any", routes=Routes())
        sock.sendall(b"still")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"still")


class AskedAround(GatewayTestCase):
    """A caller learns nothing from a refusal, whatever is behind it."""

    async def test_every_refusal_of_a_gateway_is_the_same_and_takes_equally_long(self) -> None:
        self.patch(served, "SERVED", ("tcp", "unix"))
        gone = free_port()
        targets = {
            "loop": "tcp://127.0.0.1:OWN/loop",
            "gone": f"tcp://127.0.0.1:{gone}",
            "forbidden": "tcp://192.0.2.1:9",
            "unserved": f"tls://127.0.0.1:{gone}",
            "nameless": "tcp://gone.example:9",
            "chain": "unix:///absent",
        }
        gateway = self.run_tcpd()
        own = str(self.tcpd_port(gateway))
        routes = {name: parse_route(name, text.replace("OWN", own)) for name, text in targets.items()}
        self.put_in_force(
            gateway,
            "allow in any any",
            "deny out forbidden any",
            "allow out any tcp:127.0.0.0/8:1-65535",
            "allow out any tls:127.0.0.0/8:1-65535",
            "allow out nameless any",
            routes=Routes({}, leading(**routes)),
        )
        self.resolve_with(gateway, lambda name: Refused(Refusal.UNREACHABLE, "no address"))
        for name in (*targets, "denied-at-all"):
            began = time.monotonic()
            self.assertEqual(await self.refusal(gateway, name.encode()), b"no denied", name)
            self.assertGreater(time.monotonic() - began, 0.045, name)
        verdicts = ["not-possible", "unreachable", "denied", "not-possible", "unreachable", "unknown-service"]
        self.assertEqual([o.verdict for o in self.outcomes], [*verdicts, "unknown-service"])
        await self.wait_until_idle(gateway)
