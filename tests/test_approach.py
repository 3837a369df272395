"""plumberd.wiring.dialing.approach: alternatives in their order, and what is an answer, over a running broker."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from typing import Any

from twisted.internet import defer

from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import ALTERNATIVES, Routes
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.dialing import served
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import RunningTestCase, echo, leading_first
from tests.support import dial, in_thread, native_frame, native_lookup, read_all, until
from tests.tables import each


class ApproachTestCase(RunningTestCase):
    """Services and servers that write down who was asked."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []

    def server(self, name: str, says: bytes = b"") -> str:
        """Run a tcp server that says *says* and echoes; return its URI."""

        def answer(sock: socket.socket) -> None:
            self.asked.append(name)
            sock.sendall(says)
            echo(sock)

        return f"tcp://127.0.0.1:{self.serve_tcp(answer)}"

    def daemon(self, name: str, says: bytes) -> str:
        """Run what answers the handshake with *says* and hangs up, or says nothing; return the URI of a service."""

        def answer(sock: socket.socket) -> None:
            sock.recv(64)
            self.asked.append(name)
            if says:
                sock.sendall(says)
            else:
                read_all(sock)

        return f"tcp://127.0.0.1:{self.serve_tcp(answer)}/web"

    def nobody(self) -> str:
        """Return a URI where nobody listens."""
        return f"tcp://127.0.0.1:{free_port()}"

    def run_with(self, *targets: str, rules: tuple[str, ...] = (), **settings: Any) -> PlumberdService:
        """Start a broker whose service `web` has these alternatives."""
        return self.run_broker(*rules, routes=Routes({}, leading_first("web", *targets)), **settings)

    async def until_asked(self, count: int) -> None:
        """Wait until so many were asked."""
        await until(lambda: len(self.asked) >= count)

    async def look_up(self, service: PlumberdService) -> dict[str, Any]:
        """Look `web` up and close what comes; return the answer."""
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        if sock is not None:
            sock.close()
        return answer


class InTheirOrder(ApproachTestCase):
    async def test_the_first_that_works_is_the_only_one_that_is_asked(self) -> None:
        service = self.run_with(self.server("a", b"a"), self.server("b", b"b"))
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertTrue(answer["ok"], answer)
        assert sock is not None
        self.assertEqual(await in_thread(self.owned(sock).recv, 1), b"a")
        self.assertEqual(self.asked, ["a"])

    async def test_one_that_refuses_connections_makes_room_for_the_next(self) -> None:
        service = self.run_with(self.nobody(), self.server("b", b"b"))
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "web")
        self.assertTrue(answer["ok"], answer)
        assert sock is not None
        self.assertEqual(await in_thread(self.owned(sock).recv, 1), b"b")
        self.assertEqual([o.verdict for o in self.outcomes], ["granted"])

    async def test_one_that_hangs_up_in_the_handshake_makes_room_for_the_next(self) -> None:
        hangs_up = f"tcp://127.0.0.1:{self.serve_tcp(lambda sock: sock.recv(64))}/web"
        service = self.run_with(hangs_up, self.server("b"))
        self.assertTrue((await self.look_up(service))["ok"])

    async def test_one_that_answers_nonsense_makes_room_for_the_next(self) -> None:
        service = self.run_with(self.daemon("a", b"HTTP/1.1 400 Bad Request"), self.server("b"))
        self.assertTrue((await self.look_up(service))["ok"])

    async def test_one_that_hangs_has_its_share_of_the_time(self) -> None:
        service = self.run_with(self.daemon("a", b""), self.server("b"), limits=Limits(connect_seconds=3.0))
        assert service.core is not None
        began = service.core.reactor.seconds()
        self.assertTrue((await self.look_up(service))["ok"])
        self.assertTrue(1.5 <= service.core.reactor.seconds() - began < 2.95)
        await until(lambda: self.asked == ["a", "b"])
        await self.wait_until_idle(service)

    async def test_where_all_hang_the_deadline_holds(self) -> None:
        service = self.run_with(*[self.daemon(n, b"") for n in "abc"], limits=Limits(connect_seconds=0.6))
        answer = await self.look_up(service)
        self.assertEqual(answer["error"], "timeout")
        await self.until_asked(3)
        self.assertEqual(self.asked, ["a", "b", "c"])
        await self.wait_until_idle(service)

    async def test_a_name_without_an_address_makes_room_for_the_next(self) -> None:
        service = self.run_with("tcp://gone.example:80", self.server("b"))
        self.resolve_with(service, lambda name: Refused(Refusal.UNREACHABLE, f"{name} has no address"))
        self.assertTrue((await self.look_up(service))["ok"])

    async def test_a_name_server_that_hangs_does_not_take_the_time_of_the_next(self) -> None:
        service = self.run_with("tcp://slow.example:80", self.server("b"), limits=Limits(connect_seconds=1.0))
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        self.resolve_with(service, lambda name: (go_on.wait(20), Refused(Refusal.UNREACHABLE, "late"))[1])
        self.assertTrue((await self.look_up(service))["ok"])
        go_on.set()
        await until(lambda: service.core is not None and not service.core.resolver.places.active)
        self.assertEqual([o.verdict for o in self.outcomes], ["granted"])

    async def test_an_endpoint_that_cannot_be_reached_makes_room_for_the_next(self) -> None:
        port = int(self.nobody().rpartition(":")[2])
        service = self.run_with(f"tcp:host=127.0.0.1:port={port}:timeout=3", self.server("b"))
        self.assertTrue((await self.look_up(service))["ok"])
        await self.wait_until_idle(service)
        assert service.core is not None
        self.assertEqual(service.core.relay_places.active, 0)

    async def test_behind_a_server_an_endpoint_has_its_turn(self) -> None:
        port = int(self.server("b").rpartition(":")[2])
        service = self.run_with(self.nobody(), f"tcp:host=127.0.0.1:port={port}:timeout=3")
        self.assertEqual((await self.look_up(service))["mode"], "relayed")
        await self.wait_until_idle(service)

    async def test_as_many_as_there_may_be_are_tried(self) -> None:
        service = self.run_with(*[self.nobody() for _ in range(ALTERNATIVES - 1)], self.server("last"))
        self.assertTrue((await self.look_up(service))["ok"])
        await until(lambda: self.asked == ["last"])

    async def test_where_all_fail_one_refusal_has_all_reasons(self) -> None:
        gone, hangs_up = self.nobody(), self.daemon("b", b"?")
        service = self.run_with(gone, hangs_up, "unix:///web")
        answer = await self.look_up(service)
        self.assertEqual(answer["error"], "unknown-service")
        for part in (f"{gone.removeprefix('tcp://')}: Connection refused", "'?'", "no local service is called web"):
            self.assertIn(part, answer["reason"])
        self.assertEqual([o.verdict for o in self.outcomes], ["unknown-service"])
        await self.wait_until_idle(service)

    async def test_a_client_that_hangs_up_meanwhile_ends_it(self) -> None:
        service = self.run_with(self.nobody(), self.daemon("b", b""), self.server("c"))
        with dial(service.settings.rundir, "plumberd") as sock:
            sock.sendall(native_frame({"op": "lookup", "service": "web"}))
            await until(lambda: self.asked)
        await self.wait_until_idle(service)
        self.assertEqual(([o.verdict for o in self.outcomes], self.asked), (["gone"], ["b"]))


class LocalFirst(ApproachTestCase):
    async def test_a_local_service_that_is_there_is_taken(self) -> None:
        service = self.run_with("unix:///web", self.server("far"))
        self.serve(service.settings.rundir, "web")
        self.assertEqual((await self.look_up(service))["mode"], "local")

    async def test_one_that_is_not_makes_room_for_the_remote_one(self) -> None:
        service = self.run_with("unix:///web", self.server("far"))
        self.assertEqual((await self.look_up(service))["mode"], "locked")

    async def test_one_on_whose_socket_nobody_listens_does_too(self) -> None:
        service = self.run_with("unix:///web", self.server("far"))
        self.unix_listener(os.path.join(service.settings.rundir, "web")).close()
        self.assertEqual((await self.look_up(service))["mode"], "locked")

    async def test_one_that_nobody_is_trusted_to_serve_is_an_answer(self) -> None:
        service = self.run_with("unix:///web", self.server("far"))
        self.serve(service.settings.rundir, "web")
        assert service.core is not None
        service.core.services.trusted_uids = frozenset()
        self.assertEqual((await self.look_up(service))["error"], "denied")
        self.assertEqual(self.asked, [])

    async def test_a_remote_one_that_is_gone_makes_room_for_the_local_one(self) -> None:
        service = self.run_with(self.nobody(), "unix:///web")
        self.serve(service.settings.rundir, "web")
        self.assertEqual((await self.look_up(service))["mode"], "local")

    async def test_what_leads_to_a_local_service_is_judged_as_it(self) -> None:
        service = self.run_with(self.nobody(), "unix:///secret", rules=("deny out any unix:secret",))
        self.serve(service.settings.rundir, "secret")
        self.assertEqual((await self.look_up(service))["error"], "denied")


class Answers(ApproachTestCase):
    """What is no failure of the way: nobody else is asked for another answer."""

    @each(*((word.value, word.value) for word in Refusal), ("none", "we are closed"))
    async def test_a_far_side_that_says_no(self, _: str, says: str) -> None:
        service = self.run_with(self.daemon("a", b"no " + says.encode()), self.server("b"))
        answer = await self.look_up(service)
        self.assertEqual(answer["error"], says if says in {word.value for word in Refusal} else "denied")
        self.assertIn(f"the far side refused: {says}", answer["reason"])
        self.assertEqual(self.asked, ["a"])
        await self.wait_until_idle(service)

    async def test_one_that_a_rule_denies_by_its_name(self) -> None:
        service = self.run_with("tcp://a.example:80", self.server("b"), rules=("deny out web tcp:a.example",))
        answer = await self.look_up(service)
        self.assertEqual((answer["error"], self.asked), ("denied", []))
        self.assertIn("rule 1 denies it", answer["reason"])

    async def test_one_that_a_rule_denies_by_its_address(self) -> None:
        service = self.run_with("tcp://a.example:80", self.server("b"), rules=("deny out web tcp:192.0.2.0/24",))
        self.resolve_with(service, lambda name: (ipaddress.ip_address("192.0.2.7"),))
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("denied", []))

    async def test_one_behind_another_that_failed_is_judged_like_the_first(self) -> None:
        service = self.run_with(self.nobody(), self.server("b"), self.server("c"))
        forbidden = service.settings.routes.routes["web"][0].targets[1]
        self.put_in_force(service, f"deny out web tcp:127.0.0.1:{getattr(forbidden, 'port', 0)}")
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("denied", []))
        await self.wait_until_idle(service)

    async def test_a_scheme_that_nothing_carries(self) -> None:
        self.patch(served, "SERVED", ("tcp", "unix"))
        service = self.run_with("tls://127.0.0.1:1", self.server("b"))
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("not-possible", []))

    async def test_a_mode_that_is_not_possible(self) -> None:
        port = int(self.server("a").rpartition(":")[2])
        rules = ("allow out web any handover=locked",)
        service = self.run_with(f"tcp:host=127.0.0.1:port={port}", self.server("b"), rules=rules)
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("not-possible", []))

    async def test_a_limit(self) -> None:
        limits = Limits(relays=1)
        service = self.run_with(
            "tcp:host=127.0.0.1:port=1:timeout=3", self.server("b"), limits=limits, handover=Mode.RELAYED
        )
        assert service.core is not None
        service.core.begin_relay("somebody")
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("busy", []))

    async def test_too_many_names_of_one_user(self) -> None:
        service = self.run_with("tcp://a.example:80", self.server("b"))
        self.resolve_with(service, lambda name: Refused(Refusal.BUSY, "so many names"))
        self.assertEqual(((await self.look_up(service))["error"], self.asked), ("busy", []))


class Resting(ApproachTestCase):
    async def test_what_failed_is_last_the_next_time(self) -> None:
        service = self.run_with(self.daemon("a", b"?"), self.server("b"))
        for count, asked in ((2, ["a", "b"]), (3, ["a", "b", "b"])):
            self.assertTrue((await self.look_up(service))["ok"])
            await self.until_asked(count)
            self.assertEqual(self.asked, asked)

    async def test_and_is_still_tried_where_the_others_fail_too(self) -> None:
        service = self.run_with(self.daemon("a", b"?"), self.daemon("b", b"?"))
        for asked in (["a", "b"], ["a", "b", "a", "b"]):
            self.assertEqual((await self.look_up(service))["error"], "unreachable")
            self.assertEqual(self.asked, asked)

    async def test_what_works_again_is_first_again(self) -> None:
        port = free_port()
        service = self.run_with(f"tcp://127.0.0.1:{port}", self.nobody())
        core = service.core
        assert core is not None
        first = service.settings.routes.routes["web"][0].targets[0]
        self.assertEqual((await self.look_up(service))["error"], "unreachable")
        self.assertTrue(core.backoff.rests(first, core.reactor.seconds()))
        listener = self.owned(socket.create_server(("127.0.0.1", port)))
        self.serve_on(listener, echo)
        self.assertTrue((await self.look_up(service))["ok"])
        self.assertFalse(core.backoff.rests(first, core.reactor.seconds()))

    async def test_a_route_without_alternatives_is_not_remembered(self) -> None:
        service = self.run_with(self.nobody())
        core = service.core
        assert core is not None
        self.assertEqual((await self.look_up(service))["error"], "unreachable")
        (only,) = service.settings.routes.routes["web"][0].targets
        self.assertFalse(core.backoff.rests(only, core.reactor.seconds()))

    async def test_what_a_client_names_itself_makes_nothing_rest(self) -> None:
        gone = self.nobody()
        service = self.run_with(gone, self.server("b"))
        core = service.core
        assert core is not None
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "x", f"x {gone}")
        self.assertEqual(answer["error"], "unreachable")
        first = service.settings.routes.routes["web"][0].targets[0]
        self.assertFalse(core.backoff.rests(first, core.reactor.seconds()))

    async def test_a_reload_forgets_it(self) -> None:
        service = self.run_with(self.daemon("a", b"?"), self.server("b"))
        await self.look_up(service)
        await until(lambda: self.asked == ["a", "b"])
        self.put_in_force(service)
        await self.look_up(service)
        await until(lambda: len(self.asked) == 4)
        self.assertEqual(self.asked[2], "a")


class Waiting(ApproachTestCase):
    """What waits before the dialling, and is not wanted any more when it may go on."""

    async def test_one_whose_share_is_over_does_not_go_on_beside_the_next(self) -> None:
        service = self.run_with(self.server("a"), "tcp://b.example:80", limits=Limits(connect_seconds=1.0))
        core = service.core
        assert core is not None
        waiting: list[Any] = []
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def admit(owner: object, uid: int, resume: Any) -> bool:
            waiting.append(resume)
            return False

        resolving: list[str] = []
        self.patch(core.census, "admit", admit)

        def look_up(name: str) -> Refused:
            resolving.append(name)
            go_on.wait(20)
            return Refused(Refusal.UNREACHABLE, "gone")

        self.resolve_with(service, look_up)
        looking_up = defer.Deferred.fromCoroutine(self.look_up(service))
        await until(lambda: resolving)
        waiting[0](None)  # the count has come, for the first one
        go_on.set()
        answer = await looking_up
        self.assertEqual((answer["error"], self.asked), ("unreachable", []))
        self.assertIn("gone", answer["reason"])
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["unreachable"])
