"""tcpd: listens on any server endpoint for remote callers of local services.

A caller is an :class:`~plumberd.wiring.inbound.Inbound`; here is only what listens.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort

from plumberd.effects.accept import Acceptor
from plumberd.effects.dial_tcp import remote_address
from plumberd.effects.endpoint_relay import Half, HalfFactory
from plumberd.effects.rundir import identity
from plumberd.pure.uri import IPAddress, show_host
from plumberd.pure.who import RemoteWho
from plumberd.wiring.core import Core
from plumberd.wiring.inbound import Callers, Inbound, RawInbound
from plumberd.wiring.inbound_transport import TransportInbound
from plumberd.wiring.listening import is_plain, raw_socket, server_from_string


class Tcpd:
    """Listens for the handshake on any server endpoint."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._callers = Callers(core)
        self._callers.is_here = self._is_here
        self._listening: list[tuple[IListeningPort, str | None]] = []
        self._acceptors: list[Acceptor] = []

    @property
    def peers(self) -> set[Inbound]:
        """Who has not been let in yet."""
        return self._callers.peers

    @property
    def ports(self) -> tuple[IListeningPort, ...]:
        """The ports that are listened on."""
        return tuple(port for port, _ in self._listening)

    @property
    def addresses(self) -> list[str]:
        """Where it listens, for people."""
        return [
            f"{f'publishes {name}' if name else 'tcpd'} on {_show(port.getHost())}" for port, name in self._listening
        ]

    def listen(self, description: str, published: str | None = None) -> Deferred[None]:
        """Listen on one endpoint; accepting begins at once.

        :param published: the one service of a plain listener, whose callers name none.

        The Deferred fails as the endpoint's does.
        """
        plain = is_plain(description)
        endpoint = server_from_string(self.core.reactor, description)
        factory = HalfFactory(_refuse_protocol if plain else lambda: TransportInbound(self._callers, published).half)

        def listening(port: IListeningPort) -> None:
            self._listening.append((port, published))
            path = getattr(port.getHost(), "name", None)
            if path is not None:  # a UNIX socket in the run directory would look like a service
                with contextlib.suppress(OSError, ValueError):
                    self.core.own.add(identity(path))
            if plain:
                take = functools.partial(self._accepted, published)
                acceptor = Acceptor(self.core.poll, self.core.reactor, raw_socket(port), take)
                self._acceptors.append(acceptor)
                acceptor.start()

        done: Deferred[None] = endpoint.listen(cast(Any, factory)).addCallback(listening)
        return done

    def stop(self) -> list[Deferred[Any]]:
        """Stop listening and drop who has not been let in; return what is still closing."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
        closing = [Deferred.fromCoroutine(_stop(port)) for port, _ in self._listening]
        self._listening.clear()
        self._callers.close()
        return closing

    def _is_here(self, address: IPAddress, port: int) -> bool:
        """Tell whether the handshake is listened for at that address and port."""
        for listening, published in self._listening:
            host: Any = listening.getHost()
            if published is None and getattr(host, "port", None) == port:
                here = ipaddress.ip_address(host.host)
                if here == address or (here.is_unspecified and address in self.core.addresses):
                    return True
        return False

    def _accepted(self, published: str | None, sock: socket.socket) -> None:
        sock.setblocking(False)
        who = RemoteWho("tcp", None)
        if sock.family != socket.AF_UNIX:
            try:
                address, port = remote_address(sock)
            except OSError:
                sock.close()
                return
            who = RemoteWho("tcp", address, port)
        RawInbound(self._callers, who, sock, published).start()


def _refuse_protocol() -> Half | None:
    return None  # a plain port never accepts by itself


async def _stop(port: IListeningPort) -> None:
    stopping = port.stopListening()
    if stopping is not None:
        await stopping


def _show(host: Any) -> str:
    if hasattr(host, "port"):
        return f"{show_host(host.host)}:{host.port}"
    return str(getattr(host, "name", host))
