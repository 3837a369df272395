"""Carry the messages of one program's end over UDP: the dial, the handshake where a service is named, the relay."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from twisted.logger import Logger

from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.effects.dial_tcp import Owner
from plumberd.effects.dial_udp import Connected, UdpDial
from plumberd.effects.messages import MessageEnd
from plumberd.effects.udp_far import UdpFar
from plumberd.pure.datagrams import Session
from plumberd.pure.refusals import Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.core import Core

_log = Logger("plumberd.datagrams")


@dataclass(frozen=True)
class Reached:
    """It is carried from now on.

    :ivar message_bytes: the longest message that the path takes, as far as is known.
    """

    address: IPAddress
    message_bytes: int


class UdpCarry:
    """Owns *near* until its relay does; closes it where there will be none."""

    def __init__(
        self,
        core: Core,
        uri: Uri,
        addresses: tuple[IPAddress, ...],
        near: MessageEnd,
        account: str,
        owner: Owner | None,
        make: Callable[[int], socket.socket],
        done: Callable[[Reached | Refused], None],
        ended: Callable[[DatagramRelay], None],
    ) -> None:
        """Prepare.

        :param account: on whose account the relay is, from the start on.
        :param make: makes a UDP socket, of the family that it is given.
        :param ended: told when the relay is over.
        """
        self._core = core
        self._uri = uri
        self._addresses = addresses
        self._near = near
        self._account = account
        self._done: Callable[[Reached | Refused], None] | None = done
        self._ended = ended
        self._has_place = self._is_relay = False
        self._dial = UdpDial(core.poll, core.reactor, addresses, uri.port, uri.service, owner, self._connected, make)

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: too much is carried already, or an address is not one machine's.
        """
        try:
            self._core.begin_relay(self._account)
            self._has_place = True
            self._dial.start()
        except Refused:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Give up, unless it is a relay by now; *done* will not be called."""
        self._done = None
        self._dial.cancel()
        if self._has_place:
            self._has_place = False
            self._core.relay_places.leave(self._account)
        if not self._is_relay:
            self._near.close()

    def _connected(self, result: Connected | Refused) -> None:
        done = self._done
        assert done is not None
        if isinstance(result, Refused):
            self.cancel()
            done(result)
            return
        sock, address, ident = result
        self._is_relay, self._has_place = True, False  # the place is the relay's
        core = self._core
        far = UdpFar(core.poll, sock, Session(ident) if ident else None)
        limits = core.settings.limits
        relay = DatagramRelay(
            core.poll,
            core.reactor,
            self._near,
            far,
            limits.datagram_idle_seconds,
            self._relay_ended,
            too_large=self._too_large,
        )
        core.relays.add(relay)
        relay.start()
        done(Reached(address, far.limit_bytes))

    def _relay_ended(self, relay: DatagramRelay) -> None:
        self._core.datagrams.ended(relay)
        self._core.end_relay(self._account, relay)
        self._ended(relay)

    def _too_large(self, size: int, limit: int) -> None:
        tell_too_large(str(self._uri), size, limit)


def tell_too_large(where: str, size: int, limit: int) -> None:
    """Log that a message was not sent: the first of a connection alone, the others are counted."""
    _log.warn(
        "a message of {size} bytes to {where} is not sent: at most {limit} fit into a datagram of this path",
        size=size,
        where=where,
        limit=limit,
    )
