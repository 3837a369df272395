"""Twisted endpoint strings for services: ``ipc:SERVICE``, for clients and for servers.

    clientFromString(reactor, "ipc:pong").connect(factory)     # ask the broker for pong
    serverFromString(reactor, "ipc:pong").listen(factory)      # be pong
    serverFromString(reactor, "ipc:pong:registered=yes")       # be pong, and listen on nothing

The client's whole string is ``ipc:SERVICE[:routes=…][:rundir=…][:timeout=SECONDS]``,
and what is left out is as in :func:`plumberd.client.connect`. The server's is
``ipc:SERVICE[:rundir=…]``; its run directory is by default the one that a broker
of the same user and environment would serve. With ``registered=yes`` it claims the
service from a running broker instead, as :mod:`plumberd.claimed` tells. A colon
within a value is written ``\\:`` (:func:`twisted.internet.endpoints.quoteStringArgument`
does it).

twisted/plugins/plumberd_plugin.py tells Twisted of :class:`IpcParser`. No reactor
is imported here: the plugin is loaded before one is chosen.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, execute, succeed
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReadWriteDescriptor,
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.plugin import IPlugin
from twisted.python.failure import Failure
from zope.interface import implementer

from plumberd import client
from plumberd.claimed import ClaimedServerEndpoint
from plumberd.effects import kernel
from plumberd.effects.accept import Acceptor
from plumberd.effects.poll import Poll
from plumberd.effects.rundir import BoundSocket, RunDirError, bind_socket, check_path
from plumberd.pure.names import check_service
from plumberd.pure.places import broker_rundir
from plumberd.pure.refusals import Refused
from plumberd.transports import ServiceAddress, adopt

# Twisted's errors carry no types.
_TimedOut: Callable[..., Exception] = error.TimeoutError
_Cancelled: Callable[[IAddress], Exception] = error.ConnectingCancelledError
_CannotListen: Callable[[None, str, Exception], Exception] = error.CannotListenError


class LookupFailed(error.ConnectError):
    """No broker answers, it may not be asked, or it does not answer as it should; the text says what to do.

    :ivar osError: the errno.
    """

    MESSAGE = "The lookup failed"

    def __init__(self, number: int | None, text: str) -> None:
        make: Callable[..., None] = super().__init__
        make(number, text)


class LookupRefused(LookupFailed):
    """The broker refused.

    :ivar word: one of the closed list in docs/protocol.md: ``denied``, ``unreachable``, …
    :ivar reason: a sentence for a person.
    """

    MESSAGE = "The broker refused"

    def __init__(self, word: str, reason: str) -> None:
        super().__init__(None, f"{word}: {reason}")
        self.word = word
        self.reason = reason


@implementer(IStreamClientEndpoint)
class IpcClientEndpoint:
    """Asks the broker for a service, and speaks a protocol on the connection that it hands over.

    As with other endpoints that have no connector of Twisted's, the factory is not told of the
    start and the stop of anything: it only builds the protocol.
    """

    def __init__(
        self,
        reactor: Any,
        service: str,
        routes: str | None = None,
        rundir: str | None = None,
        timeout_seconds: float = client.TIMEOUT_SECONDS,
    ) -> None:
        """*routes* and *rundir* are those of :func:`plumberd.client.connect`; the time is for the whole lookup."""
        self._reactor = reactor
        self._service = service
        self._routes = routes
        self._rundir = rundir
        self._timeout_seconds = timeout_seconds

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - Twisted's name
        """Return a Deferred of the connected protocol.

        It fails with :class:`LookupRefused`, :class:`LookupFailed`, Twisted's TimeoutError, or
        ConnectError where the far side has reset it already; with NoProtocol where the factory
        builds none, and with what the factory or its protocol raises. Cancelled, it fails with
        ConnectingCancelledError. Whatever had been received is closed then.
        """
        looking: Deferred[Any] = Deferred.fromCoroutine(self._look_up())
        looking.addTimeout(self._timeout_seconds, self._reactor, self._timed_out)
        looking.addErrback(self._explain)
        looking.addCallback(self._speak, protocolFactory)
        return looking

    async def _look_up(self) -> socket.socket:
        way = client.Asking(client.lookup_request(self._service, self._routes, None), self._rundir)
        while (found := way.attempt()) is None:
            await deferLater(self._reactor, way.pause_seconds)
        broker, data = found
        asking = _Asking(self._reactor, broker, data)
        asking.start()
        return await asking.answered

    def _timed_out(self, result: object, seconds: float) -> None:
        raise _TimedOut(string=f"the broker did not answer within {seconds:g} seconds")

    def _explain(self, failure: Failure) -> Failure:
        found = failure.value
        if isinstance(found, client.Refused):
            raise LookupRefused(found.word, found.reason)
        if isinstance(found, OSError):
            raise LookupFailed(found.errno, found.strerror or str(found))
        if isinstance(found, CancelledError):
            raise _Cancelled(ServiceAddress(self._service))
        return failure

    def _speak(self, sock: socket.socket, factory: IProtocolFactory) -> IProtocol:
        protocol = adopt(self._reactor, sock, factory)
        if protocol is None:
            raise error.NoProtocol()
        return protocol


@implementer(IReadWriteDescriptor)
class _Asking:
    """Sends what there is to send, reads the answer, and owns the descriptor until :attr:`answered` fires.

    That is when this connection has been closed: with the blocking socket, which is its
    receiver's from then on, or with a :class:`plumberd.client.Error`. Twisted's own transport
    would give up at the first write that fails; a broker that has no place for us says so, and
    hangs up before it reads.
    """

    def __init__(self, reactor: Any, broker: socket.socket, data: bytes) -> None:
        """*broker* belongs to this object from now on, and is non-blocking."""
        self.answered: Deferred[socket.socket] = Deferred(lambda _: self._close())
        self._reactor = reactor
        self._broker = broker
        self._data = memoryview(data)
        self._answer = client.Answer()

    def start(self) -> None:
        """Begin."""
        self._reactor.addReader(self)
        if self._data:
            self._reactor.addWriter(self)

    def fileno(self) -> int:
        """See :class:`twisted.internet.interfaces.IFileDescriptor`."""
        return self._broker.fileno()

    def logPrefix(self) -> str:
        """See :class:`twisted.internet.interfaces.ILoggingContext`."""
        return "ipc"

    def doWrite(self) -> None:
        """See :class:`twisted.internet.interfaces.IWriteDescriptor`."""
        try:
            self._data = self._data[self._broker.send(self._data, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self._data = self._data[:0]  # it may have said why
        if not self._data:
            self._reactor.removeWriter(self)

    def doRead(self) -> None:
        """See :class:`twisted.internet.interfaces.IReadDescriptor`."""
        try:
            while not self._answer.receive(self._broker):
                pass
            sock, _ = self._answer.take_socket()
        except BlockingIOError:
            return
        except client.Error as e:
            self._close()
            self.answered.errback(e)
        else:
            self._close()
            self.answered.callback(sock)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See :class:`twisted.internet.interfaces.IFileDescriptor`: it cannot be watched, or the reactor stops."""
        self._close()
        if not self.answered.called:
            self.answered.errback(client.Error(errno.ECONNRESET, "the broker hung up without an answer"))

    def _close(self) -> None:
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        self._broker.close()
        self._answer.close()


@implementer(IStreamServerEndpoint)
class IpcServerEndpoint:
    """Listens as a local service: on ``<run directory>/<service>``, mode 0660."""

    def __init__(self, reactor: Any, service: str, rundir: str | None = None) -> None:
        """Prepare.

        :param rundir: where; by default as the broker's own, see :func:`plumberd.pure.places.broker_rundir`.
        :raises ValueError: for a name that no service may have.
        """
        try:
            self._service = check_service(service)
        except Refused as e:
            raise ValueError(e.reason) from None
        self._reactor = reactor
        self._rundir = rundir

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803 - Twisted's name
        """Return a Deferred of the port; it fails with CannotListenError."""
        rundir = self._rundir or broker_rundir(os.environ, os.geteuid())
        port = ServicePort(self._reactor, rundir, self._service, protocolFactory)
        return execute(port.startListening).addCallback(lambda _: port)


@implementer(IListeningPort)
class ServicePort:
    """The socket of a local service. A stale one is taken over, a live one is left alone.

    It owns the socket, its lock file and its path from :meth:`startListening` to
    :meth:`stopListening` or the reactor's end; each connection is its Twisted transport's.
    Twisted's own UNIX port would open the socket to everybody for a moment, and at the end
    remove whatever lies at the path.
    """

    def __init__(self, reactor: Any, rundir: str, service: str, factory: IProtocolFactory) -> None:
        self._reactor = reactor
        self._rundir = rundir
        self._service = service
        self._path = os.path.join(rundir, service)
        self._factory = factory
        self._open: contextlib.ExitStack | None = None

    def startListening(self) -> None:
        """Listen, and accept from now on.

        :raises CannotListenError: where another one listens there, or the path cannot be had.
        """
        with contextlib.ExitStack() as undo:
            try:
                bound = self._bind()
                undo.callback(bound.close)
                poll = Poll(self._reactor, self._reactor)
            except (OSError, RunDirError) as e:
                raise _CannotListen(None, self._path, e) from None
            undo.callback(poll.close)
            self._factory.doStart()
            undo.callback(self._factory.doStop)
            acceptor = Acceptor(poll, self._reactor, bound.sock, self._accepted)
            acceptor.start()
            undo.callback(acceptor.stop)
            trigger = self._reactor.addSystemEventTrigger("during", "shutdown", self._close)
            undo.callback(self._remove_trigger, trigger)
            self._open = undo.pop_all()

    def stopListening(self) -> Deferred[None]:
        """Stop listening and remove the path, if it is still ours. What was accepted goes on. Idempotent."""
        self._close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Return the path."""
        return UNIXAddress(self._path)

    def _bind(self) -> BoundSocket:
        client.check_directory(self._rundir)
        _refuse_if_served(check_path(self._rundir, self._service))
        bound = bind_socket(self._rundir, self._service, None)
        # The broker's own sockets ask for each message's sender and refuse descriptors; a service's do neither.
        bound.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        with contextlib.suppress(OSError):  # before Linux 6.16 there is nothing to undo
            bound.sock.setsockopt(socket.SOL_SOCKET, kernel.SO_PASSRIGHTS, 1)
        return bound

    def _accepted(self, sock: socket.socket) -> None:
        adopt(self._reactor, sock, self._factory)

    def _close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def _remove_trigger(self, trigger: Any) -> None:
        with contextlib.suppress(ValueError):  # it has been fired
            self._reactor.removeSystemEventTrigger(trigger)


def _refuse_if_served(path: str) -> None:
    """Look before the lock is tried, whose holder could be anybody.

    :raises OSError: where somebody listens.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) in (0, errno.EAGAIN):
            raise OSError(errno.EADDRINUSE, "somebody listens there already")


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor, IStreamServerEndpointStringParser)
class IpcParser:
    """Parses both kinds of strings for :mod:`twisted.internet.endpoints`."""

    prefix = "ipc"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamClientEndpoint:
        """Return an :class:`IpcClientEndpoint`.

        :raises ValueError: for a timeout that is none.
        :raises TypeError: for a word too few or too many.
        """
        return _client(reactor, *args, **kwargs)

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        """Return an :class:`IpcServerEndpoint`, or with ``registered=yes`` a ClaimedServerEndpoint.

        :raises ValueError: for a name that no service may have, or for another word than yes or no.
        :raises TypeError: for a word too few or too many.
        """
        return _server(reactor, *args, **kwargs)


def _client(
    reactor: Any, service: str, *, routes: str | None = None, rundir: str | None = None, timeout: str | None = None
) -> IpcClientEndpoint:
    seconds = client.TIMEOUT_SECONDS if timeout is None else _seconds(timeout)
    return IpcClientEndpoint(reactor, service, routes, rundir, seconds)


def _server(reactor: Any, service: str, *, rundir: str | None = None, registered: str = "no") -> IStreamServerEndpoint:
    if registered not in ("yes", "no"):
        raise ValueError(f"registered={registered!r}: wanted yes or no")
    return (ClaimedServerEndpoint if registered == "yes" else IpcServerEndpoint)(reactor, service, rundir)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"timeout={text!r}: wanted a number of seconds above 0")
    return value
