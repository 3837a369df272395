"""plumberd.endpoints: ``ipc:SERVICE`` as Twisted knows it, for clients and for servers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, cast
from unittest import mock

from twisted.internet import defer, endpoints, error
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IFileDescriptorReceiver, IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure as TwistedFailure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from plumberd.endpoints import (
    IpcClientEndpoint,
    IpcServerEndpoint,
    LookupFailed,
    LookupRefused,
)
from plumberd.transports import ServiceAddress
from tests import lookup_contract
from tests.children import ChildTestCase
from tests.lookup_contract import HELLO, Attempt, Failure
from tests.running import RunningTestCase
from tests.support import dial, dialled, in_thread, read_all, read_exactly, real_reactor, until
from tests.tables import each

client_from_string: Callable[[Any, str], Any] = endpoints.clientFromString
server_from_string: Callable[[Any, str], Any] = endpoints.serverFromString
quote: Callable[[str], str] = endpoints.quoteStringArgument


class Talk(Protocol):
    """Says HELLO, takes as many bytes, and closes; *done* tells what it took when the connection is over."""

    def __init__(self) -> None:
        self.got = b""
        self.done: defer.Deferred[bytes] = defer.Deferred()

    @property
    def wire(self) -> Any:
        return self.transport

    def connectionMade(self) -> None:
        self.wire.write(HELLO)

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if len(self.got) >= len(HELLO):
            self.wire.loseConnection()

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        self.done.callback(self.got)


class Echo(Protocol):
    """Sends everything back."""

    alive: ClassVar[set[Protocol]] = set()
    """Those whose connection is not over."""

    def connectionMade(self) -> None:
        self.alive.add(self)

    def dataReceived(self, data: bytes) -> None:
        wire: Any = self.transport
        wire.write(data)

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        self.alive.remove(self)


def explained(failure: TwistedFailure) -> Failure | None:
    """Return what a failed endpoint says, in the contract's words."""
    found = failure.value
    if isinstance(found, error.ConnectingCancelledError):
        return None
    if isinstance(found, LookupRefused):
        return Failure("refused", f"{found.word}: {found.reason}")
    if isinstance(found, error.TimeoutError):
        return Failure("late", found.args[0])
    if isinstance(found, LookupFailed):
        return Failure("nobody" if found.osError == errno.ENOENT else "error", found.args[0])
    return Failure("bug", repr(found))


def client_string(service: str, **arguments: object) -> str:
    """Return an endpoint string."""
    given = [f"{name}={quote(str(value))}" for name, value in arguments.items() if value is not None]
    return ":".join(["ipc", quote(service), *given])


class Clients(lookup_contract.CancelContract):
    """The string, through Twisted's own plugins."""

    def begin(self, service: str, routes: str | None, rundir: str | None, timeout: float) -> Attempt:
        text = client_string(service, routes=routes, rundir=rundir, timeout=timeout)
        connecting = client_from_string(real_reactor, text).connect(Factory.forProtocol(Talk))
        result: defer.Deferred[Any] = defer.Deferred()

        def connected(protocol: Talk) -> None:
            protocol.done.chainDeferred(result)

        connecting.addCallbacks(connected, lambda failure: result.callback(explained(failure)))
        return Attempt(result, connecting.cancel)


class Failures(RunningTestCase):
    """What a program sees of a connection that did not come about."""

    def connect(self, factory: IProtocolFactory, routes: str | None = None, **arguments: Any) -> defer.Deferred[Any]:
        endpoint = IpcClientEndpoint(real_reactor, "pong", routes, **arguments)
        return endpoint.connect(factory)

    async def test_a_refusal_is_a_connect_error_with_word_and_reason(self) -> None:
        broker = self.run_broker()
        connecting = self.connect(Factory.forProtocol(Talk), rundir=broker.settings.rundir)
        refused = await self.assertFailure(connecting, error.ConnectError)
        self.assertEqual(refused.word, "unknown-service")
        self.assertEqual(str(refused), f"The broker refused: unknown-service: {refused.reason}.")

    async def test_without_a_broker_it_is_a_connect_error_that_says_where_it_has_looked(self) -> None:
        failed = await self.assertFailure(
            self.connect(Factory.forProtocol(Talk), rundir="/nonexistent"), error.ConnectError
        )
        self.assertEqual(failed.osError, errno.ENOENT)
        self.assertIn("looked at /nonexistent/plumberd (No such file or directory)", str(failed))

    async def test_cancelled_it_names_the_service(self) -> None:
        rundir = self.folder()
        told = lookup_contract.silent(self, rundir)
        connecting = self.connect(Factory.forProtocol(Talk), rundir=rundir)
        await until(lambda: told)
        connecting.cancel()
        cancelled = await self.assertFailure(connecting, error.ConnectingCancelledError)
        self.assertEqual(cancelled.address, ServiceAddress("pong"))
        await until(lambda: told == ["asked", "ended"])

    async def check_closed_without_a_protocol(self, factory: Any, wanted: type[Exception]) -> None:
        broker = self.run_broker()
        ended: list[int] = []

        def answer(sock: socket.socket) -> None:
            with contextlib.suppress(ConnectionResetError):  # an abort is one, over TCP
                read_all(sock)
            ended.append(1)

        self.serve(broker.settings.rundir, "pong", answer)
        for given in ("", f"pong tcp://127.0.0.1:{self.serve_tcp(answer)}"):  # the two kinds of transports
            await self.assertFailure(self.connect(factory, given, rundir=broker.settings.rundir), wanted)
        await until(lambda: len(ended) == 2)

    async def test_a_factory_that_builds_nothing(self) -> None:
        class Nothing(Factory):
            def buildProtocol(self, addr: IAddress | None) -> None:
                return None

        await self.check_closed_without_a_protocol(Nothing(), error.NoProtocol)

    async def test_a_factory_that_fails(self) -> None:
        class Failing(Factory):
            def buildProtocol(self, addr: IAddress | None) -> Protocol:
                raise FileNotFoundError

        await self.check_closed_without_a_protocol(Failing(), FileNotFoundError)

    async def test_a_protocol_that_fails_as_it_begins(self) -> None:
        class Failing(Protocol):
            def connectionMade(self) -> None:
                raise FileNotFoundError

        await self.check_closed_without_a_protocol(Factory.forProtocol(Failing), FileNotFoundError)

    async def test_a_far_side_that_has_reset_already(self) -> None:
        rundir = self.folder()
        near, far = self.tcp_pair()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()

        def answer(sock: socket.socket) -> None:
            with near:
                socket.send_fds(sock, [lookup_contract.GRANTED], [near.fileno()])

        self.serve(rundir, "plumberd", answer)
        failed = await self.assertFailure(self.connect(Factory.forProtocol(Talk), rundir=rundir), error.ConnectError)
        self.assertEqual(failed.osError, errno.ENOTCONN)


class Connections(RunningTestCase):
    async def connect(self, rundir: str, protocol: Any, routes: str = "") -> Any:
        text = client_string("pong", rundir=rundir, routes=routes)
        return await client_from_string(real_reactor, text).connect(Factory.forProtocol(protocol))

    async def test_the_transport_is_of_the_socket_s_own_kind(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")
        port = self.serve_tcp()
        peers = []
        for routes in ("", f"pong tcp://127.0.0.1:{port}"):
            talk = await self.connect(broker.settings.rundir, Talk, routes)
            peers.append(talk.wire.getPeer())
            self.assertTrue(fcntl.fcntl(talk.wire.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
            self.assertEqual(await talk.done, HELLO)
        self.assertEqual(peers, [UNIXAddress(f"{broker.settings.rundir}/pong"), IPv4Address("TCP", "127.0.0.1", port)])

    async def test_the_lookup_s_own_connection_is_closed_when_the_protocol_is_there(self) -> None:
        broker = self.run_broker()
        assert broker.broker is not None
        self.serve(broker.settings.rundir, "pong")
        talk = await self.connect(broker.settings.rundir, Talk)
        self.assertEqual([type(reader).__name__ for reader in real_reactor.getReaders()].count("Server"), 1)
        await talk.done

    async def test_what_the_far_side_says_first_arrives(self) -> None:
        class Listen(Talk):
            def connectionMade(self) -> None:
                pass

        broker = self.run_broker()
        port = self.serve_tcp(lambda sock: sock.sendall(b"welcome"))
        listen = await self.connect(broker.settings.rundir, Listen, f"pong tcp://127.0.0.1:{port}")
        self.assertEqual(await listen.done, b"welcome")


class Servers(RunningTestCase):
    """The string, through Twisted's own plugins, in a run directory with a broker or without one."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(lambda: defer.ensureDeferred(until(lambda: not Echo.alive)))

    async def listen(self, rundir: str, protocol: Any = Echo, service: str = "pong") -> Any:
        text = f"ipc:{service}:rundir={quote(rundir)}"
        port = await server_from_string(real_reactor, text).listen(Factory.forProtocol(protocol))
        self.addCleanup(port.stopListening)
        return port

    def echoed(self, rundir: str, service: str = "pong") -> bytes:
        with dialled(rundir, service) as sock:
            sock.sendall(HELLO)
            return read_exactly(sock, len(HELLO))

    async def test_the_broker_finds_it(self) -> None:
        broker = self.run_broker()
        await self.listen(broker.settings.rundir)
        text = client_string("pong", rundir=broker.settings.rundir)
        talk = await client_from_string(real_reactor, text).connect(Factory.forProtocol(Talk))
        self.assertEqual(await talk.done, HELLO)
        await self.wait_until_idle(broker)

    async def test_its_socket_is_for_owner_and_group_whatever_the_umask(self) -> None:
        for umask in (0o000, 0o077):
            rundir = self.folder()
            self.addCleanup(os.umask, os.umask(umask))
            port = await self.listen(rundir)
            self.assertEqual(stat.S_IMODE(os.stat(f"{rundir}/pong").st_mode), 0o660)
            self.assertEqual(port.getHost(), UNIXAddress(f"{rundir}/pong"))

    async def test_it_is_the_run_directory_of_the_environment_by_default(self) -> None:
        rundir = self.folder()
        with mock.patch.dict(os.environ, {"IPC_RUNDIR": rundir}):
            port = await server_from_string(real_reactor, "ipc:pong").listen(Factory.forProtocol(Echo))
        self.addCleanup(port.stopListening)
        self.assertEqual(await in_thread(self.echoed, rundir), HELLO)

    async def test_stopping_removes_everything_and_what_was_accepted_goes_on(self) -> None:
        rundir = self.folder()
        port = await self.listen(rundir)
        with dial(rundir, "pong") as sock:
            for _ in range(2):
                sock.sendall(HELLO)
                self.assertEqual(await in_thread(read_exactly, sock, 5), HELLO)
                await port.stopListening()  # the second time there is nothing more to do
                self.assertEqual(os.listdir(rundir), [])

    async def test_stopping_leaves_what_is_not_its_own_any_more(self) -> None:
        rundir = self.folder()
        port = await self.listen(rundir)
        os.unlink(f"{rundir}/pong")
        self.unix_listener(f"{rundir}/pong")
        await port.stopListening()
        self.assertEqual(os.listdir(rundir), ["pong"])

    async def test_a_stale_socket_is_taken_over(self) -> None:
        rundir = self.folder()
        self.unix_listener(f"{rundir}/pong").close()
        await self.listen(rundir)
        self.assertEqual(await in_thread(self.echoed, rundir), HELLO)

    async def test_a_live_one_is_refused_and_goes_on(self) -> None:
        rundir = self.folder()
        await self.listen(rundir)
        refused = await self.assertFailure(defer.ensureDeferred(self.listen(rundir)), error.CannotListenError)
        self.assertIn("somebody listens there already", str(refused))
        self.assertEqual(await in_thread(self.echoed, rundir), HELLO)

    async def test_another_program_s_live_one_is_refused_even_where_its_backlog_is_full(self) -> None:
        rundir = self.folder()
        self.unix_listener(f"{rundir}/pong", backlog=0)
        dialling = self.owned(dial(rundir, "pong"))
        refused = await self.assertFailure(defer.ensureDeferred(self.listen(rundir)), error.CannotListenError)
        self.assertIn("somebody listens there already", str(refused))
        self.assertEqual(sorted(os.listdir(rundir)), ["pong"])
        dialling.close()

    async def test_what_stands_in_the_way_is_told_and_nothing_is_left(self) -> None:
        rundir, open_to_all = self.folder(), self.folder()
        long = f"{self.folder()}/{'x' * 50}"
        os.mkdir(long)
        os.chmod(open_to_all, 0o777)
        with open(f"{rundir}/file", "w", encoding="ascii"):
            pass
        for where, service, said in (
            (rundir, "file", "is no socket"),
            (rundir + "/nowhere", "pong", "No such file or directory"),
            (open_to_all, "pong", "its sticky bit is not set"),
            (long, "x" * 64, "at most 107 bytes"),
        ):
            refused = await self.assertFailure(
                defer.ensureDeferred(self.listen(where, service=service)), error.CannotListenError
            )
            self.assertIn(said, str(refused))
        self.assertEqual([os.listdir(where) for where in (rundir, open_to_all, long)], [["file"], [], []])

    async def test_without_a_descriptor_left_nothing_is_left_behind(self) -> None:
        rundir = self.folder()
        with mock.patch("plumberd.endpoints.Poll", side_effect=OSError(errno.EMFILE, "Too many open files")):
            refused = await self.assertFailure(defer.ensureDeferred(self.listen(rundir)), error.CannotListenError)
        self.assertIn("Too many open files", str(refused))
        self.assertEqual(os.listdir(rundir), [])

    async def test_descriptors_can_be_sent_to_it_and_nobody_asks_for_credentials(self) -> None:
        fds: list[int] = []

        @implementer(IFileDescriptorReceiver)
        class Taking(Echo):
            def fileDescriptorReceived(self, descriptor: int) -> None:
                fds.append(descriptor)
                os.close(descriptor)

        rundir = self.folder()
        await self.listen(rundir, Taking)
        with dialled(rundir, "pong") as sock, open(os.devnull, "rb") as file:
            socket.send_fds(sock, [HELLO], [file.fileno()])
            self.assertEqual(await in_thread(read_exactly, sock, 5), HELLO)
            self.assertEqual(len(fds), 1)
            (wire,) = (cast(Any, protocol.transport) for protocol in Echo.alive)
            self.assertFalse(wire.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))

    async def test_a_factory_that_builds_nothing_or_fails_closes_that_connection_alone(self) -> None:
        rundir = self.folder()
        answers: Iterator[Any] = iter((None, ZeroDivisionError(), Echo()))

        class Choosy(Factory):
            def buildProtocol(self, addr: IAddress | None) -> Any:
                answer = next(answers)
                if isinstance(answer, Exception):
                    raise answer
                return answer

        port = await IpcServerEndpoint(real_reactor, "pong", rundir).listen(Choosy())
        self.addCleanup(port.stopListening)
        for _ in range(2):
            with dialled(rundir, "pong") as sock:
                self.assertEqual(await in_thread(read_all, sock), b"")
        self.assertEqual(await in_thread(self.echoed, rundir), HELLO)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_the_factory_is_told_of_start_and_stop(self) -> None:
        told: list[str] = []

        class Told(Factory):
            noisy = False

            def startFactory(self) -> None:
                told.append("start")

            def stopFactory(self) -> None:
                told.append("stop")

        rundir = self.folder()
        port: Any = await IpcServerEndpoint(real_reactor, "pong", rundir).listen(Told())
        self.assertEqual(told, ["start"])
        await self.assertFailure(
            IpcServerEndpoint(real_reactor, "pong", rundir).listen(Told()), error.CannotListenError
        )
        await port.stopListening()
        self.assertEqual(told, ["start", "stop"])


class Strings(SynchronousTestCase):
    """Parsing needs no reactor, and opens nothing."""

    @each(
        ("ipc:pong",),
        (r"ipc:pong:routes=pong tcp\://h\:1/pong:rundir=/run/ipc:timeout=2.5",),
        ("ipc:service=pong",),
        ("IPC:pong",),
    )
    def test_a_client_s(self, text: str) -> None:
        self.assertIsInstance(client_from_string(Clock(), text), IpcClientEndpoint)

    @each(("ipc:pong",), ("ipc:pong:rundir=/run/ipc",), ("ipc:service=pong",))
    def test_a_server_s(self, text: str) -> None:
        self.assertIsInstance(server_from_string(Clock(), text), IpcServerEndpoint)

    @each(
        ("ipc:pong:timeout=soon", ValueError, "timeout='soon': wanted a number of seconds above 0"),
        ("ipc:pong:timeout=0", ValueError, "timeout='0': wanted"),
        ("ipc:pong:timeout=-1", ValueError, "timeout='-1': wanted"),
        ("ipc:pong:timeout=nan", ValueError, "timeout='nan': wanted"),
        ("ipc:pong:timeout=inf", ValueError, "timeout='inf': wanted"),
        ("ipc", TypeError, "service"),
        ("ipc:pong:9000", TypeError, "positional"),
        ("ipc:pong:port=9000", TypeError, "port"),
    )
    def test_what_is_no_client_s(self, text: str, wanted: type[Exception], said: str) -> None:
        with self.assertRaises(wanted) as caught:
            client_from_string(Clock(), text)
        self.assertIn(said, str(caught.exception))

    @each(
        ("ipc:../pong", ValueError, "'../pong' is no name of a service"),
        ("ipc:plumberd", ValueError, "'plumberd' is reserved"),
        ("ipc:tcp", ValueError, "'tcp' is reserved"),
        ("ipc:", ValueError, "'' is no name of a service"),
        ("ipc", TypeError, "service"),
        ("ipc:pong:routes=x", TypeError, "routes"),
    )
    def test_what_is_no_server_s(self, text: str, wanted: type[Exception], said: str) -> None:
        with self.assertRaises(wanted) as caught:
            server_from_string(Clock(), text)
        self.assertIn(said, str(caught.exception))


class Plugin(ChildTestCase):
    async def test_it_is_loaded_before_a_reactor_is_chosen(self) -> None:
        code = "import sys, twisted.plugins.plumberd_plugin; print('twisted.internet.reactor' in sys.modules)"
        self.assertEqual(await self.run_child(code), "False\n")
