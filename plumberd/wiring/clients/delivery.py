"""Make what a client is handed out of the connection that was made for it, by the mode of the hand-over."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from plumberd.effects import handover
from plumberd.effects.pumps import make_pumps, packet_pair
from plumberd.effects.relay import Relay
from plumberd.pure.modes import Mode
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress
from plumberd.wiring.core import Core


@dataclass(frozen=True)
class Handing:
    """How a connection is to be handed over.

    :ivar packets: the client wants packets.
    :ivar carried: the connection is what the client gets, for something else carries its other end already.
    :ivar framing: how messages look that a stream is cut into.
    :ivar peer: whom a TCP socket is locked to.
    :ivar account: on whose account a relay is.
    """

    mode: Mode
    packets: bool
    carried: bool
    framing: str
    peer: tuple[IPAddress, int] | None
    account: str


def prepare(
    core: Core, sock: socket.socket, handing: Handing, done: Callable[[Relay], None]
) -> tuple[Relay | None, socket.socket]:
    """Return the relay, if there is one, to be started behind the grant, and the client's socket, blocking.

    Whoever gets the client's socket owns it; *sock* is the same one, or belongs to the relay.

    :raises Refused: ``busy`` where too much is carried already; *sock* is still the caller's.
    :raises OSError: likewise, where the kernel refuses.
    """
    if handing.mode is Mode.LOCAL or handing.carried:
        handover.make_ready(sock, tcp=False)
        return None, sock
    if handing.mode in (Mode.RELAYED, Mode.FRAMED):
        return _relayed(core, sock, handing, done)
    if handing.mode is Mode.LOCKED:
        assert handing.peer is not None
        handover.lock(sock, *handing.peer)
    handover.make_ready(sock, tcp=True)
    return None, sock


def _relayed(
    core: Core, sock: socket.socket, handing: Handing, done: Callable[[Relay], None]
) -> tuple[Relay, socket.socket]:
    ours, theirs = packet_pair() if handing.packets else socket.socketpair()
    try:
        core.begin_relay(handing.account)
    except Refused:
        ours.close()
        theirs.close()
        raise
    forth, back = make_pumps(ours, sock, core.pipes, handing.framing, framed=handing.mode is Mode.FRAMED)
    relay = Relay(core.poll, core.reactor, core.pipes, ours, sock, done, forth=forth, back=back)
    core.relays.add(relay)
    return relay, theirs


def relay_pair(core: Core, account: str, *, packets: bool = False) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a pair, one of which is to be relayed on *account*, which has a place for that now.

    :raises Refused: ``busy`` where too much is carried already, or where there are no descriptors.
    """
    core.begin_relay(account)
    try:
        return packet_pair() if packets else socket.socketpair()
    except OSError as e:
        core.relay_places.leave(account)
        raise Refused(Refusal.BUSY, f"no descriptors for a relay: {e.strerror}") from None


def as_stream(core: Core, service: socket.socket, framing: str) -> socket.socket:
    """Return a UNIX stream that leads to *service*, for who can carry nothing else; it owns *service* from then on.

    :param framing: how messages look, where the service has packets.
    :raises OSError: there are no descriptors; *service* is closed.
    """
    if service.type == socket.SOCK_STREAM and service.family == socket.AF_UNIX:
        return service
    try:
        ours, theirs = socket.socketpair()
    except OSError:
        service.close()
        raise
    forth, back = make_pumps(ours, service, core.pipes, framing)
    relay = Relay(core.poll, core.reactor, core.pipes, ours, service, core.relays.discard, forth=forth, back=back)
    core.relays.add(relay)
    relay.start()
    return theirs
