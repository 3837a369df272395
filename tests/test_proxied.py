"""plumberd.wiring.inbound.proxied: a local service is told by the PROXY protocol who has called it."""

from __future__ import annotations

import ipaddress
import socket

from plumberd.pure.policy.route import Routes, parse_redirect
from plumberd.pure.proxy_header import SIGNATURE, header
from plumberd.pure.refusals import Refused
from plumberd.pure.who import RemoteWho
from plumberd.wiring.inbound.proxied import end_of, introduce
from plumberd.wiring.service import PlumberdService
from tests.running import leading
from tests.support import in_thread, native_lookup, read_all
from tests.test_inbound import TcpdTestCase

LOCALHOST = ipaddress.ip_address("127.0.0.1")


class Told(TcpdTestCase):
    """The service sends everything back, so that the caller sees the header that it read."""

    def started(self, **settings: object) -> PlumberdService:
        service = self.run_tcpd("allow in pong any", "allow in ping any", proxied=frozenset({"pong"}), **settings)
        for name in ("pong", "ping"):
            self.serve(service.settings.rundir, name)
        return service

    async def heard(self, sock: socket.socket) -> bytes:
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        return await in_thread(read_all, sock)

    async def test_addresses_and_the_name_stand_before_the_bytes(self) -> None:
        service = self.started()
        sock = await self.ask(service, b"pong")
        caller, here = ((LOCALHOST, int(name[1])) for name in (sock.getsockname(), sock.getpeername()))
        self.assertEqual(await self.heard(sock), header(caller, here, service="pong") + b"hello")
        await self.wait_until_idle(service)

    async def test_other_services_get_no_header(self) -> None:
        service = self.started()
        self.assertEqual(await self.heard(await self.ask(service, b"ping")), b"hello")
        await self.wait_until_idle(service)

    async def test_the_service_that_it_leads_to_decides(self) -> None:
        for asked, leads, told in (("ping", "pong", True), ("pong", "ping", False)):
            routes = Routes({}, leading(**{asked: parse_redirect(asked, leads)}))
            service = self.started(routes=routes)
            got = await self.heard(await self.ask(service, asked.encode()))
            self.assertEqual(got.startswith(SIGNATURE), told)
            self.assertTrue(got.endswith(b"hello"))
            await self.wait_until_idle(service)

    async def test_a_published_service(self) -> None:
        service = self.run_broker(
            "allow in pong any", proxied=frozenset({"pong"}), publish=(("pong", "tcp:0:interface=127.0.0.1"),)
        )
        self.serve(service.settings.rundir, "pong")
        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(service))))
        caller, here = ((LOCALHOST, int(name[1])) for name in (sock.getsockname(), sock.getpeername()))
        self.assertEqual(await self.heard(sock), header(caller, here, service="pong") + b"hello")
        await self.wait_until_idle(service)

    async def test_a_local_client_sends_none(self) -> None:
        service = self.started()
        answer, sock = await in_thread(native_lookup, service.settings.rundir, "pong")
        assert sock is not None, answer
        self.assertEqual(await self.heard(self.owned(sock)), b"hello")
        await self.wait_until_idle(service)


class Introduced(TcpdTestCase):
    def test_a_service_that_takes_nothing_is_not_reached(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            try:
                while True:
                    ours.send(bytes(65536))
            except BlockingIOError:
                pass
            with self.assertRaisesRegex(Refused, "PROXY header"):
                introduce(ours, "pong", RemoteWho("tcp", None), None, "")

    def test_one_that_has_gone_neither(self) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            theirs.close()
            with self.assertRaisesRegex(Refused, "PROXY header"):
                introduce(ours, "pong", RemoteWho("tcp", None), None, "")

    def test_a_mapped_address_is_the_one_that_it_stands_for(self) -> None:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)), listener.accept()[0] as sock:
                self.assertEqual(end_of(sock), (LOCALHOST, port))
        self.assertIsNone(end_of(socket.socketpair()[0]))
