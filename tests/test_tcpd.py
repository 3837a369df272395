"""plumberd.wiring.inbound.tcpd: what it listens on, and what holds for plain listeners."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

from twisted.internet import defer

from plumberd.pure.policy.route import Routes, parse_redirect
from plumberd.wiring.inbound import tcpd
from plumberd.wiring.inbound.listening import server_from_string
from plumberd.wiring.inbound.tcpd import Wanted
from tests.running import RunningTestCase, leading
from tests.support import in_thread, read_all
from tests.test_inbound import PLAIN, TcpdTestCase


class Plain(TcpdTestCase):
    async def test_without_a_rule_nobody_comes_in(self) -> None:
        service = self.run_tcpd()
        self.serve(service.settings.rundir, "pong")
        self.assertEqual(await self.refusal(service, b"pong"), b"no denied")

    async def test_a_refused_caller_that_has_sent_more_still_reads_its_refusal(self) -> None:
        service = self.run_tcpd()
        sock = self.call(service)

        def one() -> bytes:
            sock.sendall(b"pong" + b"x" * 100_000)
            return read_all(sock)

        self.assertEqual(await in_thread(one), b"no denied")

    async def test_the_socket_of_the_broker_is_no_service_under_another_name(self) -> None:
        service = self.run_tcpd("allow in any any")
        os.link(f"{service.settings.rundir}/ipc", f"{service.settings.rundir}/alias")
        self.assertEqual(await self.refusal(service, b"alias"), b"no denied")
        self.assertIn("broker itself", self.outcomes[0].reason)

    async def test_a_redirect_that_leaves_the_machine_needs_a_rule_of_its_own_for_callers(self) -> None:
        routes = Routes(leading(pong=parse_redirect("pong", "tcp://127.0.0.1:1/pong")))
        service = self.run_tcpd("allow in any any", routes=routes)
        self.assertEqual(await self.refusal(service, b"pong"), b"no denied")
        self.assertEqual(self.outcomes[0].verdict, "denied")
        self.assertIn("needs a rule that names it and its port", self.outcomes[0].reason)

    async def test_a_unix_listener_has_no_address_and_only_any_matches(self) -> None:
        path = os.path.join(self.folder(), "tcpd")
        service = self.run_broker("allow in a tcp:127.0.0.1", "allow in b any", tcpd=(f"unix:{path}",))
        for name, wanted in ((b"a", b"no denied"), (b"b", b"ok")):
            self.serve(service.settings.rundir, name.decode(), lambda sock: None)
            sock = self.owned(socket.socket(socket.AF_UNIX))
            sock.connect(path)
            sock.sendall(name)
            self.assertEqual(await in_thread(read_all, sock), wanted)

    async def test_ipv6_callers_are_judged_by_their_address(self) -> None:
        service = self.run_broker("allow in pong tcp:[::1]", tcpd=("tcp6:0:interface=\\:\\:1",))
        self.serve(service.settings.rundir, "pong", lambda sock: None)
        sock = self.owned(socket.create_connection(("::1", self.tcpd_port(service))))
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(read_all, sock), b"ok")


class Late(RunningTestCase):
    """An endpoint that takes its time to listen, as some of Twisted's plugins do."""

    def setUp(self) -> None:
        super().setUp()
        self.listening: list[defer.Deferred[Any]] = []
        make = server_from_string

        def make_late(reactor: Any, description: str) -> Any:
            endpoint = make(reactor, description)

            def listen(factory: Any) -> defer.Deferred[Any]:
                waits: defer.Deferred[Any] = defer.Deferred()
                self.listening.append(waits)
                return waits.addCallback(lambda _: endpoint.listen(factory))

            return SimpleNamespace(listen=listen)

        self.patch(tcpd, "server_from_string", make_late)

    async def test_it_listens_when_it_is_there(self) -> None:
        service = self.run_broker(tcpd=(PLAIN,))
        assert service.tcpd is not None
        self.assertEqual(service.tcpd.ports, ())
        self.listening[0].callback(None)
        self.assertEqual(len(service.tcpd.ports), 1)

    async def test_where_nobody_wants_it_any_more_it_does_not(self) -> None:
        service = self.run_broker(tcpd=(PLAIN,))
        assert service.tcpd is not None
        service.tcpd.listen_on([], lambda wanted, failure: None)
        self.listening[0].callback(None)
        await in_thread(lambda: None)  # it closes a turn later
        self.assertEqual(service.tcpd.ports, ())

    async def test_where_plumberd_has_stopped_it_does_not(self) -> None:
        service = self.run_broker(tcpd=(PLAIN,))
        stopped = service.tcpd
        assert stopped is not None
        await service.stopService()
        self.listening[0].callback(None)
        await in_thread(lambda: None)
        self.assertEqual(stopped.ports, ())

    async def test_one_that_fails_late_is_told(self) -> None:
        told: list[str] = []
        service = self.run_broker()
        assert service.tcpd is not None
        service.tcpd.listen_on([Wanted(PLAIN)], lambda wanted, failure: told.append(f"{wanted}: {failure.value}"))
        self.listening[0].errback(OSError("late"))
        self.assertEqual(told, [f"--tcpd {PLAIN}: late"])
