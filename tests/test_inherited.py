"""plumberd.inherited: lookups over a control socket, by threads and processes that share it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import threading
from typing import Any
from unittest import mock

from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory

from plumberd import aio, client, inherited
from plumberd.answer import Error, NoBroker
from plumberd.inherited import VARIABLE
from tests.children import SOURCES
from tests.fake_broker import grant, refuse
from tests.fake_control import ControlTestCase, named
from tests.running import RunningTestCase
from tests.support import DEADLINE_SECONDS, in_thread, read_exactly, real_reactor
from tests.tables import each
from tests.test_aio import begun
from tests.test_endpoints import Talk


class Asked(ControlTestCase):
    async def connected(self, control: socket.socket, *args: Any, **kwargs: Any) -> socket.socket:
        with mock.patch.dict(os.environ, named(control)):
            return self.owned(await in_thread(client.connect, *args, **kwargs))

    async def test_a_lookup_is_one_packet_and_is_answered_on_its_own_connection(self) -> None:
        sock = await self.connected(self.control(), "pong", "pong tcp://h/pong")
        sock.sendall(b"ping")
        self.assertEqual(await in_thread(read_exactly, sock, 4), b"ping")
        self.assertEqual(self.requests, [{"op": "lookup", "service": "pong", "routes": "pong tcp://h/pong"}])

    async def test_a_refusal_is_one(self) -> None:
        control = self.control(refuse("denied", "restricted"))
        with mock.patch.dict(os.environ, named(control)), self.assertRaises(client.Refused) as raised:
            await in_thread(client.connect, "other")
        self.assertEqual(str(raised.exception), "denied: restricted")

    async def test_a_broker_that_hangs_up_has_not_answered(self) -> None:
        control = self.control(lambda *_: None)
        with mock.patch.dict(os.environ, named(control)), self.assertRaises(Error) as raised:
            await in_thread(client.connect, "pong")
        self.assertEqual(raised.exception.strerror, "the broker hung up without an answer")

    async def test_a_broker_that_says_nothing_is_late(self) -> None:
        control, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with control, kept, mock.patch.dict(os.environ, named(control)), self.assertRaises(Error) as raised:
            await in_thread(client.connect, "pong", timeout=0.1)
        self.assertEqual(raised.exception.errno, errno.ETIMEDOUT)

    async def test_it_stays_open_and_whether_it_blocks_stays_as_it_is(self) -> None:
        control = self.control()
        before = fcntl.fcntl(control.fileno(), fcntl.F_GETFL), fcntl.fcntl(control.fileno(), fcntl.F_GETFD)
        for _ in range(2):
            (await self.connected(control, "pong")).close()
        self.assertEqual(
            (fcntl.fcntl(control.fileno(), fcntl.F_GETFL), fcntl.fcntl(control.fileno(), fcntl.F_GETFD)), before
        )

    async def test_threads_share_it_and_each_has_its_own_answer(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            grant(sock, given)
            with ours:
                ours.sendall(request["service"].encode())

        control = self.control(answer)
        got: list[str] = []
        wrong: list[str] = []

        def ask(number: int) -> None:
            for turn in range(10):
                name = f"s{number}.{turn}"
                with client.connect(name) as sock:
                    sock.settimeout(DEADLINE_SECONDS)
                    said = read_exactly(sock, len(name)).decode()
                (got if said == name else wrong).append(name)

        with mock.patch.dict(os.environ, named(control)):
            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await in_thread(thread.join, DEADLINE_SECONDS)
        self.assertEqual((len(got), wrong), (80, []))

    async def test_processes_share_it(self) -> None:
        control = self.control()
        code = (
            "import os, sys\n"
            "from plumberd import client\n"
            "for _ in range(2):\n"
            "    child = os.fork()\n"
            "for _ in range(5):\n"
            "    with client.connect('pong') as sock:\n"
            "        word = str(os.getpid()).encode()\n"
            "        sock.sendall(word)\n"
            "        assert sock.recv(99) == word\n"
            "os.write(1, b'done\\n')\n"
            "os._exit(0)\n"
        )
        done = await in_thread(
            subprocess.run,
            [sys.executable, "-c", code],
            pass_fds=[control.fileno()],
            env={**os.environ, **named(control), "PYTHONPATH": SOURCES},
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        self.assertEqual((done.stdout.splitlines(), done.stderr), ([b"done"] * 4, b""))
        self.assertEqual(len(self.requests), 20)


class NoControlSocket(ControlTestCase):
    """What the variable may name that is no control socket."""

    def check(self, value: str, number: int, text: str, kind: type[Error] = Error) -> None:
        with self.assertRaises(Error) as raised:
            inherited.ask(value, b"{}")
        self.assertIs(type(raised.exception), kind)
        self.assertEqual(raised.exception.errno, number)
        self.assertIn(f"{VARIABLE}={value}: ", str(raised.exception.strerror))
        self.assertIn(text, str(raised.exception.strerror))

    @each(("x",), ("-1",), (" 3",), ("3 ",), ("٣",), ("1e3",), ("99999999999999999999",))
    def test_no_number(self, value: str) -> None:
        self.check(value, errno.EBADF, "wanted the number of a descriptor")

    def test_a_descriptor_that_is_closed(self) -> None:
        fd = os.open("/dev/null", os.O_RDONLY)
        os.close(fd)
        self.check(str(fd), errno.EBADF, "there is no such descriptor; who started this program has closed it")

    def test_one_that_is_a_file(self) -> None:
        with open("/dev/null", "rb") as file:
            self.check(str(file.fileno()), errno.ENOTSOCK, "no control socket")
            self.assertEqual(file.read(), b"")  # it is still open

    @each(
        (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM), (socket.AF_INET, socket.SOCK_STREAM)
    )
    def test_one_that_is_another_socket(self, family: int, kind: int) -> None:
        sock = self.owned(socket.socket(family, kind))
        self.check(str(sock.fileno()), errno.ENOTSOCK, "no control socket")
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE), kind)  # it is still open

    def test_one_whose_broker_is_gone(self) -> None:
        control, kept = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept.close()
        with control:
            self.check(str(control.fileno()), errno.EPIPE, "is gone; start this program anew", NoBroker)

    def test_one_that_is_not_connected(self) -> None:
        sock = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.check(str(sock.fileno()), errno.EPIPE, "is gone", NoBroker)


class WithABroker(RunningTestCase):
    """Every library asks over it, a real broker answers, and it is restricted for ever."""

    async def control(self, *rules: str) -> tuple[str, dict[str, Any]]:
        """Return a run directory, and the variable of a control socket for ``pong``."""
        broker = self.run_broker(*rules)
        self.serve(broker.settings.rundir, "pong")
        self.serve(broker.settings.rundir, "other")
        control = await in_thread(client.control_socket, ["pong"], rundir=broker.settings.rundir)
        self.addCleanup(control.close)
        self.assertFalse(os.get_inheritable(control.fileno()))
        return broker.settings.rundir, {**named(control), "IPC_RUNDIR": "/nonexistent"}

    async def test_the_blocking_client(self) -> None:
        _, environ = await self.control()
        with mock.patch.dict(os.environ, environ):
            sock, answer = await in_thread(client.lookup, "pong")
            with sock:
                self.assertEqual(answer["mode"], "local")
            with self.assertRaises(client.Refused) as raised:
                await in_thread(client.connect, "other")
        self.assertIn("restricted, for ever, to looking up pong", raised.exception.reason)

    async def test_asyncio(self) -> None:
        _, environ = await self.control()

        async def work() -> bytes:
            reader, writer = await aio.open_connection("pong")
            writer.write(b"hello")
            try:
                return await reader.readexactly(5)
            finally:
                writer.close()
                await writer.wait_closed()

        with mock.patch.dict(os.environ, environ):
            self.assertEqual(await begun(work).result, b"hello")

    async def test_twisted(self) -> None:
        _, environ = await self.control()
        with mock.patch.dict(os.environ, environ):
            endpoint: Any = clientFromString(real_reactor, "ipc:pong")  # type: ignore[no-untyped-call]
            talk = await endpoint.connect(Factory.forProtocol(Talk))
            self.assertEqual(await talk.done, b"hello")

    async def test_the_routes_are_those_of_whoever_made_it(self) -> None:
        port = self.serve_tcp(lambda sock: sock.sendall(b"there"))
        broker = self.run_broker()
        routes = f"web tcp://127.0.0.1:{port}"
        with mock.patch.dict(os.environ, {"IPC_NETWORKD": routes}):
            control = await in_thread(client.control_socket, ["web"], rundir=broker.settings.rundir)
        with control, mock.patch.dict(os.environ, named(control)):
            sock = self.owned(await in_thread(client.connect, "web", "web tcp://192.0.2.1:1"))
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"there")

    async def test_when_the_broker_stops_it_says_so(self) -> None:
        broker = self.run_broker()
        control = await in_thread(client.control_socket, ["pong"], rundir=broker.settings.rundir)
        with control, mock.patch.dict(os.environ, named(control)):
            await broker.stopService()
            with self.assertRaises(client.NoBroker) as raised:
                await in_thread(client.connect, "pong")
        self.assertIn("is gone; start this program anew", str(raised.exception.strerror))
