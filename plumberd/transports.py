"""Plain sockets become Twisted's connections, and the addresses that go with them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.internet.protocol import Factory
from zope.interface import implementer

from plumberd.claim import peer_of

# Twisted's errors carry no types.
_NotConnected: Callable[[int | None, str], Exception] = error.ConnectError


@implementer(IAddress)
@dataclass(frozen=True)
class ServiceAddress:
    """What a client endpoint leads to, and where one serves that listens on nothing."""

    service: str


@implementer(IAddress)
@dataclass(frozen=True)
class CallerAddress:
    """Who is at the far end of an accepted connection, as the broker tells it; Twisted's own names where it has them.

    :ivar type: ``TCP`` or ``UNIX``.
    :ivar host, port: of a TCP caller.
    :ivar uid, gid, pid: of a local client.
    :ivar identities: what the caller has proved: ``cert:example.com`` and the like.
    :ivar mode, rule: of the hand-over, and what allowed it.
    """

    type: str
    host: str | None = None
    port: int | None = None
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    identities: tuple[str, ...] = ()
    mode: str = ""
    rule: str = ""


def caller_of(told: dict[str, Any]) -> CallerAddress:
    """Return the address that a broker tells of an accepted connection."""
    peer = peer_of(told)
    return CallerAddress(
        "UNIX" if peer.get("address") is None else "TCP",
        peer.get("address"),
        peer.get("port"),
        peer.get("uid"),
        peer.get("gid"),
        peer.get("pid"),
        tuple(told.get("identities") or ()),
        str(told.get("mode", "")),
        str(told.get("rule", "")),
    )


class _Once(Factory):
    """Builds the protocol of one connection, and keeps it, or what went wrong, for its maker.

    (An exception within the reactor would leave its duplicate of the socket to the garbage collector.)
    """

    noisy = False

    def __init__(self, factory: IProtocolFactory, address: IAddress | None) -> None:
        self._factory = factory
        self._address = address
        self.built: IProtocol | None = None
        self.error: Exception | None = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """See :class:`twisted.internet.protocol.Factory`."""
        try:
            # An adopted socket may have no address, which Twisted passes on as None, whatever its interface says.
            self.built = self._factory.buildProtocol(self._address or addr)  # type: ignore[arg-type]
        except Exception as e:
            self.error = e
        return self.built


def adopt(
    reactor: Any, sock: socket.socket, factory: IProtocolFactory, address: IAddress | None = None
) -> IProtocol | None:
    """Give a connected socket to the reactor, with a protocol of *factory*'s; *sock* is closed in any case.

    :param address: that *factory* is told, instead of the socket's own.
    :returns: the protocol, or ``None`` where the factory did not want to build one.
    :raises ConnectError: the far side has reset it, or there is no descriptor left.
    :raises Exception: what the factory or its protocol raises; the connection is closed.
    """
    once = _Once(factory, address)
    with sock:
        try:
            sock.setblocking(False)
            sock.getpeername()  # here rather than in the reactor, which would leave its duplicate to the collector
            reactor.adoptStreamConnection(sock.fileno(), sock.family, once)
        except Exception as e:
            transport = getattr(once.built, "transport", None)
            if transport is not None:  # the protocol's own: connectionMade failed
                transport.abortConnection()
            elif isinstance(e, OSError):
                raise _NotConnected(e.errno, e.strerror or str(e)) from None
            raise
    if once.error is not None:
        raise once.error
    return once.built
