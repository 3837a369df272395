"""Carry bytes between Twisted transports, for endpoints that have no socket of their own to splice.

An administrator's route may be any client endpoint, and tcpd may listen on any
server endpoint. Ordinary protocol relays lose the tail of the answer on a
half-close; this one passes each end on by itself, with back-pressure both ways.
A transport that knows no half-close (TLS) is not told of its other side's end;
it is closed when the other side has gone altogether.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPullProducer,
    IPushProducer,
    IReactorSocket,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from plumberd.effects import kernel
from plumberd.effects.poll import ERR, HUP, Poll

DRAIN_STEP_SECONDS = 0.01
DRAIN_STEPS = 3000
"""A reset waits so often for the bytes before it to arrive."""

EARLY_BYTES = 65536
"""Bytes that may arrive before the other side is there; reading stops at the first."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Half(Protocol):
    """One side of a relay; the other side is another one.

    :ivar moved: bytes passed on from this side.
    """

    def __init__(
        self,
        poll: Poll,
        *,
        first: Callable[[Half, bytes], None] | None = None,
        made: Callable[[Half], None] | None = None,
        unwrapped: Callable[[Half], None] | None = None,
        ended: Callable[[Half], None],
    ) -> None:
        """*first* is given the first bytes instead of the other side: the handshake.

        *made* is called when the connection is there, *ended* once, when it is over.
        *unwrapped* is called when no wrapper (PROXY protocol) waits for a header any more.
        """
        self._made = made
        self._unwrapped = unwrapped
        self._poll = poll
        self._inner: Any = None
        self._behind_proxy = False
        self._first = first
        self._ended = ended
        self._early = b""
        self._fd = -1
        self._gone = 0
        self._draining: IDelayedCall | None = None
        self._write_ends = self._write_ended = self._abort_then = False
        self._broken = False
        self._hold: IDelayedCall | None = None
        self.spare: socket.socket | None = None
        """Another descriptor of an adopted socket, which is read when the transport has gone."""
        self.other: Half | None = None
        self.moved = 0
        self.lost = False
        self.read_ended = False
        self.reset = False

    @property
    def wire(self) -> Any:
        """The transport. Twisted's have more methods than one interface names."""
        return self.transport

    @property
    def peer(self) -> Any:
        """The peer's address; behind a proxy that says of none (PROXY UNKNOWN) ``None``, and not the proxy's own."""
        peer = self.wire.getPeer()
        return None if self._behind_proxy and peer == self._inner.getPeer() else peer

    def connectionMade(self) -> None:
        """See :class:`twisted.internet.protocol.BaseProtocol`."""
        inner, waits = _pass_through_wrappers(self, self.wire)
        self._inner, self._behind_proxy = inner, waits
        with contextlib.suppress(AttributeError, OSError):
            self.wire.setTcpNoDelay(True)
        fd = inner.fileno() if hasattr(inner, "fileno") else -1
        if isinstance(fd, int) and fd >= 0:
            # The reactor polls nothing for a side that has ended and has nothing to write.
            self._fd = fd
            self._poll.watch(fd, self._ready)
        if self._made is not None:
            self._made(self)
        if self._unwrapped is not None and not waits and not self.lost:
            self._unwrapped(self)

    def header_came(self) -> None:
        """A wrapper has read its header."""
        if self._unwrapped is not None:
            unwrapped, self._unwrapped = self._unwrapped, None
            unwrapped(self)

    def hold(self, clock: IReactorTime, seconds: float) -> None:
        """Pass nothing on from this side until the other has spoken, or for *seconds*."""
        self.wire.pauseProducing()
        self._hold = clock.callLater(seconds, self._release)

    def join(self, other: Half) -> None:
        """Relay between the two from now on; what has arrived already goes first."""
        self.other, other.other = other, self
        self._first = other._first = None
        for side, opposite in ((self, other), (other, self)):
            if not opposite.lost and not side.lost:
                opposite.wire.registerProducer(side, True)
                if side._hold is None:
                    side.wire.resumeProducing()
        for side in (self, other):
            early, side._early = side._early, b""
            if early:
                side._pass(early)
            if side.lost:
                side._pass_loss()
            elif side.read_ended:
                side._pass_end()
                side._pass_gone()

    def dataReceived(self, data: bytes) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self._first is not None:
            first, self._first = self._first, None
            self.wire.pauseProducing()
            first(self, data)
        elif self.other is None:
            self._early += data
            self.wire.pauseProducing()
            if len(self._early) > EARLY_BYTES:
                self.abort()
        else:
            self._pass(data)

    def pauseProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPushProducer`: the other side takes no more for now."""
        self.wire.pauseProducing()

    def resumeProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPushProducer`."""
        if self._hold is None and not self.lost:
            self.wire.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the transport would close here, in order, before a reset could be passed on."""

    def readConnectionLost(self) -> None:
        """See :class:`twisted.internet.interfaces.IHalfCloseableProtocol`."""
        self.read_ended = True
        if self.other is not None:
            self._pass_end()
            self._pass_gone()
        elif self._first is not None or self._unwrapped is not None:
            self.wire.loseConnection()

    def writeConnectionLost(self) -> None:
        """See :class:`twisted.internet.interfaces.IHalfCloseableProtocol`."""
        self._write_ended = True
        if self._abort_then:
            self.abort_when_arrived()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See :class:`twisted.internet.protocol.Protocol`."""
        if self.lost:
            return
        self.lost = True
        if self._hold is not None:
            self._release()
        self._poll.forget(self._fd)
        self._read_spare()
        # A hang-up behind the end of a stream is no reset; a reset there is seen by _ready.
        unclean = not isinstance(reason.value, (ConnectionDone, ConnectionAborted))
        self.reset = self._broken or (unclean and not self.read_ended)
        if self._draining is not None and self._draining.active():
            self._draining.cancel()
        if self.other is not None:
            self._pass_loss()
        self._ended(self)

    def _read_spare(self) -> None:
        """Pass on what the kernel still holds: a write that failed has ended the transport before it had read all."""
        spare, self.spare = self.spare, None
        if spare is None:
            return
        with spare, contextlib.suppress(OSError):
            while self.other is not None and not self.other.lost and not self.read_ended:
                data = spare.recv(65536, socket.MSG_DONTWAIT)
                if not data:
                    break
                self._pass(data)

    def abort(self) -> None:
        """End this side at once."""
        if not self.lost and self.wire is not None:
            self.wire.abortConnection()

    def _pass(self, data: bytes) -> None:
        assert self.other is not None
        self.moved += len(data)
        if not self.other.lost:
            self.other.wire.write(data)
        if self.other._hold is not None:
            self.other._release()

    def _release(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None and hold.active():
            hold.cancel()
        if not self.lost:
            self.wire.resumeProducing()

    def _pass_end(self) -> None:
        other = self.other
        assert other is not None
        if other.lost:
            self.wire.loseConnection()
            return
        other.wire.unregisterProducer()
        if other.read_ended:
            if not self.lost:
                self.wire.unregisterProducer()
                self.wire.loseConnection()
            other.wire.loseConnection()
        elif not _is_tls(other.wire):
            other._write_ends = True
            other.wire.loseWriteConnection()

    def _pass_loss(self) -> None:
        other = self.other
        assert other is not None
        if other.lost:
            return
        other.wire.unregisterProducer()
        if self.reset:
            other._abort_when_sent()
        else:
            other.wire.loseConnection()

    def abort_when_arrived(self, steps: int = DRAIN_STEPS) -> None:
        """Abort when the far side's kernel has everything that ours holds, or when that takes too long."""
        if self.lost:
            return
        if steps and self._fd >= 0 and kernel.unsent_bytes(self._fd):
            again = self.wire.reactor.callLater
            self._draining = again(DRAIN_STEP_SECONDS, self.abort_when_arrived, steps - 1)
        else:
            self.abort()

    def _abort_when_sent(self) -> None:
        """Abort as soon as everything written before has been sent: aborting at once would drop that."""
        if self._write_ended:
            self.abort_when_arrived()
        elif self._write_ends:
            self._abort_then = True
        else:
            _AbortWhenFlushed(self)

    def _ready(self, events: int) -> None:
        """Notice what the reactor does not look for: both sides of a UNIX socket closed, or a reset.

        It may be told before the reactor has read the last bytes, and is told once.
        """
        self._gone |= events & (HUP | ERR)
        if self.read_ended:
            self._pass_gone()

    def _pass_gone(self) -> None:
        other = self.other
        if self.lost or not self._gone:
            return
        if self._gone & ERR:
            self._broken = True
            self.wire.abortConnection()
        elif other is not None and not other.lost and not other.read_ended:
            other.wire.unregisterProducer()
            other.wire.loseConnection()


@implementer(IPullProducer)
class _AbortWhenFlushed:
    """Aborts a side as soon as its transport has nothing left to send."""

    def __init__(self, side: Half) -> None:
        self._side = side
        self._calls = 0
        side.wire.registerProducer(self, False)
        if not side.lost:
            side.wire.startWriting()

    def resumeProducing(self) -> None:
        """See :class:`twisted.internet.interfaces.IPullProducer`; the first call comes out of registerProducer."""
        self._calls += 1
        if self._calls == 2:
            self._side.wire.unregisterProducer()
            self._side.abort_when_arrived()

    def stopProducing(self) -> None:
        """Do nothing: the side is gone."""


def adopt(reactor: IReactorSocket, sock: socket.socket, half: Half) -> None:
    """Give a connected UNIX socket to the reactor with *half* as its protocol, which owns *sock* from then on.

    :raises OSError: there are no descriptors; *sock* is closed.
    """
    sock.setblocking(False)
    kernel.take_descriptors(sock, wanted=False)  # they would be closed here, however long that takes
    half.spare = sock
    try:
        reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, cast(Any, HalfFactory(lambda: half)))
    except BaseException:
        sock.close()
        raise


class HalfFactory(Factory):
    """Makes the protocol of one connection."""

    noisy = False

    def __init__(self, make: Callable[[], Half | None]) -> None:
        self._make = make

    def buildProtocol(self, addr: IAddress | None) -> Half | None:
        """See :class:`twisted.internet.protocol.Factory`."""
        half = self._make()
        if half is not None:
            half.factory = self
        return half


def _pass_through_wrappers(half: Half, transport: Any) -> tuple[Any, bool]:
    """Make every wrapper between *half* and the wire pass half-closes on.

    Returns the wire, and whether a wrapper waits for a PROXY header.

    Twisted's wrappers (haproxy's too) are protocols that do not provide
    IHalfCloseableProtocol, so the wire would close altogether at the peer's half-close.
    """
    waits = False
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, HAProxyProtocolWrapper):
            waits = True
            _tell_of_header(half, transport)
        wrapper: Any = transport
        if not _is_tls(wrapper):
            wrapper.readConnectionLost = half.readConnectionLost
            wrapper.writeConnectionLost = half.writeConnectionLost
            alsoProvides(wrapper, IHalfCloseableProtocol)
        transport = wrapper.transport
    return transport, waits


def _tell_of_header(half: Half, wrapper: Any) -> None:
    """Call *half* when the wrapper's peer is no longer its transport's: a header need not bring bytes with it."""
    read = wrapper.dataReceived

    def data_received(data: bytes) -> None:
        try:
            read(data)
        except Exception:  # a header that its parser does not expect
            wrapper.abortConnection()
            return
        if wrapper.getPeer() != wrapper.transport.getPeer():
            wrapper.dataReceived = read
            half.header_came()

    wrapper.dataReceived = data_received


def _is_tls(transport: Any) -> bool:
    return bool(ISSLTransport.providedBy(transport))
