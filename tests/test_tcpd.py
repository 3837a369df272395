"""plumberd.wiring.tcpd: what it listens on, and what holds for plain listeners."""

from __future__ import annotations

import os
import socket

from plumberd.pure.policy.route import Routes, parse_redirect
from tests.running import leading
from tests.support import in_thread, read_all
from tests.test_inbound import TcpdTestCase


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
