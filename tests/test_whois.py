"""The op `whois` and what a service does with it: who is at the other end of a connection from outside."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

from plumberd import client
from plumberd.effects import dial_unix
from plumberd.effects.credentials import maker_of
from plumberd.pure.login import LoginSettings
from plumberd.pure.policy.route import Routes
from plumberd.pure.policy.subject import UNMAPPED
from plumberd.pure.refusals import Refusal, Refused
from plumberd.whois import TOKEN_BEGINS, check_maker, token_of
from plumberd.wiring.ops import whois as wiring_whois
from plumberd.wiring.ops.whois import Whois
from plumberd.wiring.service import PlumberdService
from tests.children import needs_root
from tests.clients import NO_NETWORK, Client, ClientTestCase, user, word
from tests.logging_in import Known
from tests.running import leading
from tests.support import CleanTestCase, in_thread, read_all, until
from tests.tables import each
from tests.test_inbound import TcpdTestCase
from tests.test_inbound_tls import TlsTestCase

TOLD = {"peer": {"scheme": "tls", "address": "192.0.2.7", "port": 7}, "identities": ["login:alice"], "rule": "1: x"}
NOON = 1795608000.25  # 2026-11-25, 12:00 UTC


class Registry(CleanTestCase):
    """Callers that are carried, without carrying any."""

    def setUp(self) -> None:
        super().setUp()
        self.whois = Whois(lambda: NOON)

    def connection(self, name: bytes = b"\0plumberd-" + b"7" * 32) -> socket.socket:
        """Return our end of a connection to a service of ours."""
        listener = self.unix_listener(os.path.join(self.folder(), "s"))
        sock = self.owned(socket.socket(socket.AF_UNIX))
        sock.bind(name)
        sock.connect(listener.getsockname())
        return sock

    def assert_refused(self, word: Refusal, token: object, uid: int = 0) -> None:
        with self.assertRaises(Refused) as caught:
            self.whois.tell(token, uid)
        self.assertIs(caught.exception.word, word)

    def test_who_it_is_is_told_by_the_token(self) -> None:
        token = self.whois.enter(self.connection(), "authd", TOLD)
        self.assertEqual(token, "plumberd-" + "7" * 32)
        self.assertEqual(
            self.whois.tell(token, os.geteuid()),
            {"service": "authd", **TOLD, "since": "2026-11-25T12:00:00.250Z", "connected_by": os.geteuid()},
        )

    def test_when_it_is_over_nobody_is_there(self) -> None:
        token = self.whois.enter(self.connection(), "authd", TOLD)
        self.whois.leave(token)
        self.whois.leave(token)
        self.assertEqual(len(self.whois), 0)
        self.assert_refused(Refusal.UNKNOWN_SERVICE, token)

    @each(("unnamed", b""), ("of_somebody_s", b"\0other"), ("by_the_kernel", b"\x0000001"))
    def test_a_connection_without_such_a_name_is_not_kept(self, _: str, name: bytes) -> None:
        sock = self.connection(name) if name else self.pair()[0]
        self.assertEqual((self.whois.enter(sock, "authd", TOLD), len(self.whois)), ("", 0))

    def test_nor_is_one_that_leads_away(self) -> None:
        self.assertEqual((self.whois.enter(self.tcp_pair()[0], "authd", TOLD), len(self.whois)), ("", 0))

    @each(("nothing", None), ("an_empty_one", ""), ("a_number", 7))
    def test_what_is_no_token_is_a_bad_request(self, _: str, token: object) -> None:
        self.assert_refused(Refusal.BAD_REQUEST, token)

    @each(
        ("root", 0, 4711, True),
        ("the_broker_s_own_user", 4321, 4711, True),
        ("the_service_s_user", 4711, 4711, True),
        ("another_user", 4712, 4711, False),
        ("whom_the_kernel_cannot_name", UNMAPPED, UNMAPPED, False),
    )
    def test_it_is_told_to(self, _: str, uid: int, listens: int, told: bool) -> None:
        self.patch(wiring_whois, "maker_of", lambda sock: (1, listens, 1))
        token = self.whois.enter(self.connection(), "authd", TOLD)
        self.patch(wiring_whois, "os", mock.Mock(geteuid=lambda: 4321))
        if told:
            self.assertEqual(self.whois.tell(token, uid)["service"], "authd")
        else:
            self.assert_refused(Refusal.DENIED, token, uid)


class Asked(TcpdTestCase):
    """A service that asks about each connection that it accepts."""

    def asks(self, service: PlumberdService, name: str = "pong", kind: int = socket.SOCK_STREAM) -> queue.Queue[Any]:
        """Run a service that asks, says one word, and reads to the end; what it was told goes into the queue."""
        told: queue.Queue[Any] = queue.Queue()
        rundir = service.settings.rundir

        def answer(sock: socket.socket) -> None:
            try:
                told.put(client.whois(sock, rundir=rundir))
            except client.Error as e:
                told.put(e)
            sock.sendall(b"hello")
            while sock.recv(65536):
                continue

        listener = self.owned(socket.socket(socket.AF_UNIX, kind))
        listener.bind(os.path.join(rundir, name))
        listener.listen(16)
        self.serve_on(listener, answer)
        return told

    async def told_of(self, told: queue.Queue[Any]) -> Any:
        return await in_thread(told.get, timeout=20)

    async def forgotten(self, service: PlumberdService) -> None:
        await self.wait_until_idle(service)
        assert service.core is not None
        self.assertEqual(len(service.core.whois), 0)

    async def test_it_is_told_who_has_called_as_long_as_it_lasts(self) -> None:
        service = self.run_tcpd("allow in pong tcp:127.0.0.1")
        told = self.asks(service)
        sock = await self.ask(service, b"pong")
        found = await self.told_of(told)
        self.assertEqual(found["service"], "pong")
        self.assertEqual((found["identities"], found["rule"]), ([], "1: allow in pong tcp:127.0.0.1"))
        host, port = sock.getsockname()
        self.assertEqual(found["peer"], {"scheme": "tcp", "address": host, "port": port})
        self.assertEqual(found["connected_by"], os.geteuid())
        self.assertRegex(found["since"], r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")
        assert service.core is not None
        self.assertEqual(len(service.core.whois), 1)
        sock.close()
        await self.forgotten(service)

    async def test_a_redirected_caller_is_told_with_the_name_that_it_said(self) -> None:
        service = self.run_tcpd("allow in pong any", routes=Routes(leading(pong="next")))
        told = self.asks(service, "next")
        sock = await self.ask(service, b"pong")
        self.assertEqual((await self.told_of(told))["service"], "pong")
        sock.close()
        await self.forgotten(service)

    async def test_a_service_with_packets_asks_too(self) -> None:
        service = self.run_tcpd("allow in pong any")
        told = self.asks(service, kind=socket.SOCK_SEQPACKET)
        sock = await self.ask(service, b"pong")
        self.assertEqual((await self.told_of(told))["service"], "pong")
        sock.close()
        await self.forgotten(service)

    async def test_behind_a_proxy_it_is_told_the_caller(self) -> None:
        self.endpoint = "haproxy:tcp:0:interface=127.0.0.1"
        service = self.run_tcpd("allow in pong any")
        told = self.asks(service)
        self.first_bytes = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 9000\r\n"
        sock = await self.ask(service, b"pong")
        self.assertEqual((await self.told_of(told))["peer"], {"scheme": "tcp", "address": "192.0.2.7", "port": 40000})
        sock.close()
        await self.forgotten(service)

    async def test_of_a_local_client_there_is_nothing_to_ask(self) -> None:
        service = self.run_tcpd()
        told = self.asks(service)
        with await in_thread(client.connect, "pong", rundir=service.settings.rundir):
            found = await self.told_of(told)
        self.assertIn("a program on this machine has connected: SO_PEERCRED tells who it is", str(found))
        await self.forgotten(service)

    async def test_a_name_that_no_caller_has_is_told_so(self) -> None:
        service = self.run_tcpd()
        told = self.asks(service)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(b"\0plumberd-mine")
            sock.connect(os.path.join(service.settings.rundir, "pong"))
            self.assertEqual((await self.told_of(told)).word, "unknown-service")
        await self.wait_until_idle(service)

    async def test_each_connection_has_another_name_and_no_other_dial_has_one(self) -> None:
        service = self.run_tcpd()
        listener = self.unix_listener(os.path.join(service.settings.rundir, "pong"))
        assert service.core is not None
        names = []
        for _ in range(3):
            ours = self.owned(service.core.services.dial("pong", None))
            names.append(self.owned(listener.accept()[0]).getpeername())
            self.assertEqual(dial_unix.token_of(ours).encode(), names[-1][1:])
        self.assertEqual(len(set(names)), 3)
        for name in names:
            self.assertTrue(re.fullmatch(rb"\0plumberd-[0-9a-f]{32}", name), name)
        self.assertEqual(dial_unix.TOKEN_BEGINS, TOKEN_BEGINS)


class Proved(TlsTestCase):
    """What was proved inside TLS is told."""

    async def test_a_login_is(self) -> None:
        logins = LoginSettings("/passwords", Known(alice="hunter2"))
        far, near = self.far("allow in pong any for login:alice", logins=logins), self.near()
        rundir = far.settings.rundir
        self.serve(rundir, "pong", lambda sock: sock.sendall(json.dumps(client.whois(sock, rundir=rundir)).encode()))
        with await self.granted(near, self.tcpd_port(far), user="alice:hunter2@") as sock:
            found = json.loads(await in_thread(read_all, sock))
        self.assertEqual((found["peer"]["scheme"], found["identities"]), ("tls", ["login:alice"]))
        self.assertEqual(found["rule"], "1: allow in pong any for login:alice")
        answer, _ = await self.ask(near, self.tcpd_port(far), user="alice:hunter3@")
        self.assertEqual(answer["error"], "denied")
        await until(lambda: any(outcome.verdict == "unauthenticated" for outcome in self.outcomes))
        self.assertNotIn("hunter", repr(list(map(str, self.outcomes))))
        await self.idle(near, far)
        assert far.core is not None
        self.assertEqual(len(far.core.whois), 0)


@needs_root
class OtherUsers(ClientTestCase):
    """Tokens stand in /proc/net/unix for everybody, and are worth nothing there."""

    @contextlib.contextmanager
    def carried(self, uid: int) -> Iterator[tuple[PlumberdService, socket.socket]]:
        """Carry a caller to a service of *uid*'s; yield the broker and the service's listener."""
        service = self.open_to_all(
            self.run_broker("allow in pong any", tcpd=("tcp:0:interface=127.0.0.1",), service_uids=frozenset((uid,)))
        )
        listener = self.owned(socket.socket(socket.AF_UNIX))
        path = os.path.join(service.settings.rundir, "pong")
        listener.bind(path)
        os.chmod(path, 0o666)
        os.seteuid(uid)  # whose socket it is is told by who makes it listen
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        with socket.create_connection(("127.0.0.1", self.tcpd_port(service))) as sock:
            sock.settimeout(20)
            sock.sendall(b"pong")
            yield service, listener

    async def accepted(self, listener: socket.socket) -> tuple[socket.socket, str]:
        sock = self.owned((await in_thread(listener.accept))[0])
        return sock, token_of(sock)

    async def test_the_service_s_user_and_root_are_told_and_nobody_else_is(self) -> None:
        with self.carried(5003) as (service, listener):
            _, token = await self.accepted(listener)
            self.assertIn("@" + token, read("/proc/net/unix"))
            words = {}
            clients = {"service": Client(user(5003)), "root": Client(), "other": Client(user(5004))}
            clients["caged"] = Client(user(5003), within=NO_NETWORK)
            clients["heir"] = Client(user(5003), forks=True)
            for name, one in clients.items():
                words[name] = word(await self.answer(service, one, op="whois", token=token))
        self.assertEqual(words, {"service": "ok", "root": "ok", "other": "denied", "caged": "denied", "heir": "denied"})
        await self.wait_until_idle(service)

    async def test_who_takes_another_s_name_in_another_namespace_is_not_believed(self) -> None:
        code = (
            "import socket, sys; from tests.inside import become; become(5004, 5004, [])\n"
            "sock = socket.socket(socket.AF_UNIX); sock.bind(b'\\0' + sys.argv[2].encode())\n"
            "sock.connect(sys.argv[1]); sys.stdin.read()"
        )
        with self.carried(5003) as (service, listener):
            _, token = await self.accepted(listener)
            path = os.path.join(service.settings.rundir, "pong")
            child = self.child(code, path, token, within=NO_NETWORK)
            false, taken = await self.accepted(listener)
            self.assertEqual((taken, maker_of(false)[1]), (token, 5004))
            with self.assertRaises(client.Error) as caught:
                await in_thread(client.whois, false, rundir=service.settings.rundir)
            self.assertIn("uid 5004 has connected under the name of somebody else's connection", str(caught.exception))
            child.end()
        await self.wait_until_idle(service)


class Believed(CleanTestCase):
    """The library's part, without a broker."""

    def test_the_connection_s_maker_has_to_be_who_carries_callers(self) -> None:
        sock, _ = self.pair()
        check_maker(sock, {"connected_by": os.geteuid()})
        for answer in ({"connected_by": os.geteuid() + 1}, {}, {"connected_by": None}):
            with self.assertRaises(client.Error) as caught:
                check_maker(sock, answer)
            self.assertIn("believe nothing", str(caught.exception))

    def test_a_socket_that_was_handed_over_has_no_token(self) -> None:
        with self.assertRaises(client.Error) as caught:
            token_of(self.tcp_pair()[0])
        self.assertIn("it was handed over", str(caught.exception))

    def test_one_that_is_not_connected_has_none(self) -> None:
        with self.assertRaises(client.Error) as caught:
            token_of(self.owned(socket.socket(socket.AF_UNIX)))
        self.assertIn("cannot be told", str(caught.exception))

    def test_one_of_a_named_client_has_none(self) -> None:
        folder = self.folder()
        listener = self.unix_listener(os.path.join(folder, "s"))
        near = self.owned(socket.socket(socket.AF_UNIX))
        near.bind(os.path.join(folder, "c"))
        near.connect(os.path.join(folder, "s"))
        with self.assertRaises(client.Error) as caught:
            token_of(self.owned(listener.accept()[0]))
        self.assertIn("a program on this machine", str(caught.exception))


def read(path: str) -> str:
    """Return the text of a file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
