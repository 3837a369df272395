"""A remote caller behind any Twisted endpoint without a socket of its own: relayed between transports."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from plumberd.effects.endpoint_relay import Half
from plumberd.pure.handshake import GRANTED, refusal
from plumberd.pure.proxy_header import End
from plumberd.pure.refusals import Refusal
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.delivery import as_stream
from plumberd.wiring.inbound.inbound import HOLD_SECONDS, Callers, Inbound


class TransportInbound(Inbound):
    """A caller behind any other Twisted endpoint: its transport tells its address (PROXY protocol)."""

    def __init__(self, callers: Callers, published: str | None = None) -> None:
        super().__init__(callers, RemoteWho("tcp", None), published)
        self._local: Half | None = None
        self._relaying = False
        first = self._first if published is None else None
        self.half = Half(self.core.poll, first=first, made=self._made, unwrapped=self._unwrapped, ended=self._ended)

    def here(self) -> End | None:
        """See :meth:`Inbound.here`."""
        found = _transport_peer(self.half.wire.getHost())
        return None if found.address is None else (found.address, found.port)

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        self._relaying = True
        self.core.relays.add(self.half)
        if self.published is None:
            self.half.wire.write(GRANTED)
        try:
            self._local = local = self.core.adopt(as_stream(self.core, service, self.framing))
        except OSError:
            self.half.abort()
            return
        if self.published is None:
            local.hold(self.core.reactor, HOLD_SECONDS)
        self.half.join(local)

    def tell(self, word: Refusal) -> None:
        """See :meth:`Inbound.tell`."""
        if self.published is None:
            self.half.wire.write(refusal(word))
        self.callers.lingering.set(self, self.drop)
        self.half.wire.loseConnection()

    def close(self) -> None:
        """See :meth:`Inbound.close`."""
        self.half.abort()

    def _made(self, half: Half) -> None:
        self.who = _transport_peer(half.wire.getPeer())
        if not self.begin():
            half.abort()

    def _unwrapped(self, half: Half) -> None:
        """Every wrapper has had its header; now the address is the peer's, and a published service can be dialled."""
        if self.published is not None and not self.is_named and not self._over:
            self.who = _transport_peer(half.peer)
            self.named(self.published.encode())

    def _first(self, half: Half, data: bytes) -> None:
        # Again: a PROXY header came in front of these bytes, and its address is the peer's.
        self.who = _transport_peer(half.peer)
        self.named(data)

    def _ended(self, half: Half) -> None:
        if not self.is_named and not self._over:
            self.note("gone", "hung up without naming a service")
        self.leave()
        if self._relaying:
            self.core.end_relay(self._account, half)
            self.ended("reset" if half.reset else "closed", half.moved, self._local.moved if self._local else 0)


def _transport_peer(peer: Any) -> RemoteWho:
    host, port = getattr(peer, "host", None), getattr(peer, "port", 0)
    try:
        address = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return RemoteWho("tcp", None)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return RemoteWho("tcp", address, port)
