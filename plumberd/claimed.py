"""Twisted's server endpoint for a service that listens on nothing: ``ipc:SERVICE:registered=yes``.

A broker whose rules allow it (``allow serve SERVICE``) hands each connection over
as soon as it is accepted, and the reactor adopts it: a TCP socket, or a UNIX one
where the caller is local or the bytes are relayed. The factory is told a
:class:`plumberd.transports.CallerAddress`. Where the broker goes away, the claim
is made again, until the port stops listening.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from plumberd import client
from plumberd.claim import Claim, claim_request, pauses, why_lost
from plumberd.pure.names import check_service
from plumberd.pure.refusals import Refused
from plumberd.transports import ServiceAddress, adopt, caller_of

# Twisted's errors carry no types.
_CannotListen: Callable[[None, str, Exception], Exception] = error.CannotListenError

Accepted = Callable[[socket.socket, dict[str, Any]], None]


@implementer(IStreamServerEndpoint)
class ClaimedServerEndpoint:
    """Claims a service from the broker."""

    def __init__(
        self,
        reactor: Any,
        service: str,
        rundir: str | None = None,
        timeout_seconds: float = client.TIMEOUT_SECONDS,
    ) -> None:
        """Prepare.

        :param rundir: where the broker is; by default as for :func:`plumberd.client.connect`.
        :param timeout_seconds: for each claim.
        :raises ValueError: for a name that no service may have.
        """
        try:
            self._service = check_service(service)
        except Refused as e:
            raise ValueError(e.reason) from None
        self._reactor = reactor
        self._rundir = rundir
        self._timeout_seconds = timeout_seconds

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:  # noqa: N803 - Twisted's name
        """Return a Deferred of the port, which fires when the claim is granted.

        It fails with CannotListenError, whose ``socketError`` is the :class:`plumberd.client.Error`
        that tells why. Cancelled, it fails with CancelledError, and the claim is given back.
        """
        port = ClaimedPort(self._reactor, self._service, self._rundir, self._timeout_seconds, protocolFactory)
        return Deferred.fromCoroutine(port.begin()).addCallback(lambda _: port)


@implementer(IListeningPort)
class ClaimedPort:
    """Owns its claim from :meth:`begin` to :meth:`stopListening` or the reactor's end.

    Each connection is its Twisted transport's, and goes on after that.
    """

    _log = Logger("plumberd.claimed")

    def __init__(
        self, reactor: Any, service: str, rundir: str | None, timeout_seconds: float, factory: IProtocolFactory
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._rundir = rundir
        self._timeout_seconds = timeout_seconds
        self._factory = factory
        self._reader: _ClaimReader | None = None
        self._trying: Deferred[None] | None = None
        self._undo = contextlib.ExitStack()

    async def begin(self) -> None:
        """Claim the service, and take its connections from now on.

        :raises CannotListenError: the claim is not granted.
        """
        try:
            await self._claim()
        except client.Error as e:
            raise _CannotListen(None, self._service, e) from None
        self._factory.doStart()
        self._undo.callback(self._factory.doStop)
        trigger = self._reactor.addSystemEventTrigger("during", "shutdown", self._close)
        self._undo.callback(self._remove_trigger, trigger)

    def startListening(self) -> None:
        """Do nothing: :meth:`begin` has begun."""

    def stopListening(self) -> Deferred[None]:
        """Give the claim back. What was accepted goes on. Idempotent."""
        self._close()
        return succeed(None)

    def getHost(self) -> IAddress:
        """Return the service: there is no other address."""
        return ServiceAddress(self._service)

    async def _claim(self) -> None:
        """Make one claim, and read what comes on it.

        :raises Error: it is not granted, or not in time.
        """
        search = client.Search(self._rundir)
        ends = self._reactor.seconds() + self._timeout_seconds
        while (sock := search.attempt()) is None:
            if self._reactor.seconds() > ends:
                raise client.timed_out(self._timeout_seconds)
            await deferLater(self._reactor, search.pause_seconds)
        reader = _ClaimReader(self._reactor, Claim(sock), self._accepted, self._lost)
        # A fresh connection's queue has room for it; a broker that has hung up may have said why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.send(client.encode_request(claim_request(self._service)))
        reader.granted.addTimeout(max(ends - self._reactor.seconds(), 0), self._reactor, self._timed_out)
        await reader.granted
        self._reader = reader

    def _timed_out(self, result: object, seconds: float) -> None:
        raise client.timed_out(self._timeout_seconds)

    def _accepted(self, sock: socket.socket, told: dict[str, Any]) -> None:
        try:
            adopt(self._reactor, sock, self._factory, caller_of(told))
        except error.ConnectError:
            pass  # the far side has gone already
        except Exception:
            self._log.failure("a connection to {service} could not be served", service=self._service)

    def _lost(self, why: client.Error) -> None:
        self._reader = None
        self._log.warn(
            "the claim to {service} is lost, and will be made again: {why}", service=self._service, why=why_lost(why)
        )
        self._trying = Deferred.fromCoroutine(self._claim_again())
        self._trying.addErrback(self._given_up)

    async def _claim_again(self) -> None:
        """Try until the claim is had, however long it takes."""
        told = ""
        for seconds in pauses():
            await deferLater(self._reactor, seconds)
            try:
                await self._claim()
            except client.Error as e:
                if (why := why_lost(e)) != told:
                    told = why
                    self._log.warn("{service} cannot be claimed for now: {why}", service=self._service, why=why)
            else:
                self._log.info("{service} is claimed again", service=self._service)
                return

    def _given_up(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self._log.failure("{service} is not claimed again", failure, service=self._service)

    def _close(self) -> None:
        trying, self._trying = self._trying, None
        if trying is not None:
            trying.cancel()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
        self._undo.close()

    def _remove_trigger(self, trigger: Any) -> None:
        with contextlib.suppress(ValueError):  # it has been fired
            self._reactor.removeSystemEventTrigger(trigger)


@implementer(IReadDescriptor)
class _ClaimReader:
    """Reads what comes on a claim, and owns it.

    :ivar granted: fires when the claim is granted, or fails with a :class:`plumberd.client.Error`;
        cancelled, the claim is given back. After that *accepted* and, once, *lost* are called.
    """

    def __init__(self, reactor: Any, claim: Claim, accepted: Accepted, lost: Callable[[client.Error], None]) -> None:
        self._reactor = reactor
        self._claim = claim
        self._accepted = accepted
        self._lost = lost
        self.granted: Deferred[None] = Deferred(lambda _: self.close())
        self._is_granted = False
        reactor.addReader(self)

    def logPrefix(self) -> str:
        """See :class:`twisted.internet.interfaces.ILoggingContext`."""
        return "claim"

    def fileno(self) -> int:
        """See :class:`twisted.internet.interfaces.IFileDescriptor`."""
        return self._claim.fileno()

    def doRead(self) -> None:
        """See :class:`twisted.internet.interfaces.IReadDescriptor`."""
        try:
            accepted = self._claim.receive()
        except BlockingIOError:
            return
        except client.Error as e:
            self.close()
            if self._is_granted:
                self._lost(e)
            else:
                self.granted.errback(e)
            return
        if accepted is not None:
            self._accepted(*accepted)
        elif not self._is_granted:
            self._is_granted = True
            self.granted.callback(None)

    def connectionLost(self, reason: Failure) -> None:
        """See :class:`twisted.internet.interfaces.IFileDescriptor`: the reactor gives it up."""
        self._claim.close()

    def close(self) -> None:
        """Read no more, and give the claim back. Idempotent."""
        if self._claim.fileno() >= 0:
            self._reactor.removeReader(self)
            self._claim.close()
