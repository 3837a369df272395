"""Connect to where a way leads: the dial and, where the URI names a service, the handshake.

The rules have let it through already, and the addresses are those that passed.
One step is under way at a time, and :meth:`Reach.cancel` ends it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from plumberd.effects import kernel
from plumberd.effects.call import SchemeCall, TcpCall
from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.effects.dial_tcp import TcpDial, new_socket
from plumberd.effects.dial_unix import UnixDial
from plumberd.effects.endpoint_relay import Half
from plumberd.effects.messages import MessageEnd, bound_packets, message_pair
from plumberd.effects.relay import Relay
from plumberd.effects.tls_pumps import make_tls_pumps
from plumberd.effects.tls_wire import Wire
from plumberd.effects.udp import new_socket as new_udp_socket
from plumberd.effects.ws_line import Line
from plumberd.framing import Framing
from plumberd.pure.carry import carry, carry_messages, carry_tls
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Endpoint
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.shape import Shape
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.clients.delivery import relay_pair
from plumberd.wiring.clients.registrations import Offer, Registration, told_of
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.endpoint_dial import EndpointDial
from plumberd.wiring.dialing.served import CARRY_MESSAGES, check_served, scheme_daemon_address
from plumberd.wiring.dialing.tls_dial import TlsDial
from plumberd.wiring.dialing.traveller import Reached as Reached
from plumberd.wiring.dialing.traveller import Traveller as Traveller
from plumberd.wiring.dialing.udp_carry import Reached as UdpReached
from plumberd.wiring.dialing.udp_carry import UdpCarry
from plumberd.wiring.dialing.ws_dial import WsDial
from plumberd.wiring.dialing.ws_ends import carry_outbound, onward


class _Step(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


class Reach:
    """One connection being made. It owns what it has made until *done* gets it."""

    def __init__(
        self,
        core: Core,
        target: Uri | Endpoint,
        addresses: tuple[IPAddress, ...],
        traveller: Traveller,
        done: Callable[[Reached | Refused], None],
        mark: Callable[[str], None],
        rule: str = "",
        *,
        ruled: bool = False,
    ) -> None:
        """Prepare.

        :param mark: told the name of each step that is over, for the log.
        :param rule: what lets it through, for a service that is told.
        :param ruled: whether that is a rule, and no default.
        """
        self._core = core
        self._target = target
        self._addresses = addresses
        self._traveller = traveller
        self._done = done
        self._mark = mark
        self._rule = rule
        self._ruled = ruled
        self._step: _Step | None = None
        self._sock: socket.socket | None = None
        self._theirs: socket.socket | None = None
        """The client's own end, while another process is asked to carry ours."""
        self._address: IPAddress | None = None

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: nothing here carries it, or what carries it cannot be asked.
        """
        target, traveller = self._target, self._traveller
        check_served(target)
        done: Callable[[socket.socket | Refused], None]
        if isinstance(target, Endpoint):
            done, ended = self._other_connected, self._endpoint_ended
            self._go(EndpointDial(self._core, target.description, traveller.account, done, ended))
        elif target.scheme == "unix" and (registration := self._core.registrations.find(target.service)):
            self._offer(registration)
        elif target.scheme == "unix":
            assert target.service is not None
            services, who, packets = self._core.services, traveller.who, traveller.shape.packets
            done = self._other_connected
            self._go(UnixDial(self._core.reactor, services, target.service, who, done, packets=packets))
        elif daemon_address := scheme_daemon_address(self._core, target, self._addresses):
            self._sock = self._core.services.dial_scheme(target.scheme)
            self._mark("connect")
            if target.scheme in CARRY_MESSAGES:
                self._have_messages_carried(target, daemon_address)
                return
            if target.scheme == "tls":
                question = carry_tls(target, daemon_address, ruled=self._ruled)
            else:
                question = carry(Uri(target.scheme, str(daemon_address), target.port, target.service))
            self._go(SchemeCall(self._core.poll, self._sock, question, self._answered))
        elif target.scheme == "udp":
            self._carry_messages(target)
        else:
            addresses, owner, make = self._addresses, traveller.owner, self._new_socket
            poll, clock = self._core.poll, self._core.reactor
            self._go(TcpDial(poll, clock, addresses, target.port, owner, self._connected, make))

    def cancel(self) -> None:
        """Give up and close what was made; *done* will not be called."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        for sock in (self._sock, self._theirs):
            if sock is not None:
                sock.close()
        self._sock = self._theirs = None

    def _new_socket(self, family: int) -> socket.socket:
        """Make a socket as who it is for, where this process may: the host's rules for that user hold for it then."""
        return self._made_as_client(new_socket, family)

    def _new_udp_socket(self, family: int) -> socket.socket:
        return self._made_as_client(new_udp_socket, family)

    def _made_as_client(self, make: Callable[[int], socket.socket], family: int) -> socket.socket:
        who, actas = self._traveller.who, self._core.services.actas
        if who is None or self._traveller.owner is None or not actas.can_switch:
            return make(family)
        return actas.call(who, lambda: make(family))

    def _carry_messages(self, target: Uri) -> None:
        """Make the client's own pair, and carry what goes through it.

        :raises Refused: ``busy``, or where it cannot be carried at all.
        """
        traveller = self._traveller
        ours, theirs = self._message_pair(traveller.shape)
        self._sock = theirs
        framing = traveller.shape.framing_for(target)
        near = MessageEnd(ours, framing, framed=traveller.framed)

        def reached(result: UdpReached | Refused) -> None:
            self._step = None
            self._mark("connect" if target.service is None else "handshake")
            sock, self._sock = self._sock, None
            assert sock is not None
            if isinstance(result, Refused):
                sock.close()
                self._done(result)
                return
            self._done_with_messages(sock, result.address, framing, result.message_bytes)

        carry = UdpCarry(
            self._core,
            target,
            self._addresses,
            near,
            traveller.account,
            traveller.owner,
            self._new_udp_socket,
            reached,
            self._datagrams_ended,
        )
        self._go(carry)

    def _have_messages_carried(self, target: Uri, address: IPAddress) -> None:
        """Give our end of the client's pair to the scheme daemon of another process, which carries from then on.

        :raises Refused: ``busy``.
        """
        assert self._sock is not None
        framed = self._traveller.framed
        shape = self._traveller.shape if target.scheme == "udp" else self._ws_shape
        ours, theirs = self._message_pair(shape)

        def answered(result: Refused | None) -> None:
            step, self._step = self._step, None
            assert isinstance(step, SchemeCall)
            self._mark("handshake")
            asked, self._sock = self._sock, None
            assert asked is not None
            asked.close()
            self._theirs = None
            if result is None:
                self._done_with_messages(theirs, address, framing, step.message_bytes)
            else:
                theirs.close()
                self._done(result)

        framing = shape.framing_for(target)
        question = carry_messages(target, address, framing, framed=framed, ruled=self._ruled)
        call = SchemeCall(self._core.poll, self._sock, question, answered)
        call.send_along(ours)
        self._theirs = theirs
        self._go(call)

    def _done_with_messages(self, sock: socket.socket, address: IPAddress, framing: str, message_bytes: int) -> None:
        if message_bytes:
            bound_packets(sock, message_bytes + Framing(framing).header_bytes)
        self._done(Reached(sock, address, fits=True, message_bytes=message_bytes))

    def _message_pair(self, shape: Shape) -> tuple[socket.socket, socket.socket]:
        try:
            return message_pair(shape)
        except OSError as e:
            raise Refused(Refusal.BUSY, f"no descriptors for a relay: {e.strerror}") from None

    def _datagrams_ended(self, relay: DatagramRelay) -> None:
        if self._traveller.ended is not None:
            self._traveller.ended(relay.ending, relay.up, relay.down)

    def _offer(self, registration: Registration) -> None:
        """Connect to a service that listens on nothing: one end of a new pair is its own.

        :raises Refused: ``busy`` where it does not take its connections, ``not-possible`` where it
            cannot be made as the client.
        """
        registration.check_room()
        traveller = self._traveller
        who, actas = traveller.who, self._core.services.actas
        ours, theirs = socket.socketpair() if who is None else actas.call(who, socket.socketpair)
        ours.setblocking(False)
        kernel.take_descriptors(ours, wanted=False)  # until it is handed over: it may be relayed instead
        mode = Mode.RELAYED if who is None else Mode.LOCAL
        told = told_of(who or traveller.caller, traveller.rule or self._rule)
        self._mark("connect")
        self._done(Reached(ours, told=True))
        registration.offer(Offer(theirs, mode.value, told))

    def _go(self, step: _Step) -> None:
        self._step = step
        step.start()

    def _other_connected(self, result: socket.socket | Refused) -> None:
        self._step = None
        self._mark("connect")
        self._done(result if isinstance(result, Refused) else Reached(result))

    def _connected(self, result: tuple[socket.socket, IPAddress] | Refused) -> None:
        self._step = None
        self._mark("connect")
        if isinstance(result, Refused):
            self._done(result)
            return
        self._sock, self._address = result
        try:
            self._go_inside()
        except Refused as e:  # the poll has called, and nobody else hears of it
            self.cancel()
            self._done(e)

    def _go_inside(self) -> None:
        """Go on with the connection that there is.

        :raises Refused: what would be said has no place there, or cannot be carried.
        """
        assert isinstance(self._target, Uri) and self._sock is not None
        if self._target.scheme in ("ws", "wss"):
            hops, shape = self._traveller.hops, self._ws_shape
            self._go(WsDial(self._core, self._sock, self._target, hops, shape, self._upgraded, self._mark))
        elif self._target.scheme == "tls":
            hops, caller = self._traveller.hops, self._traveller.caller
            self._go(TlsDial(self._core, self._sock, self._target, hops, caller, self._secured, self._mark))
        elif self._target.service is None:
            self._finish()
        else:
            self._go(TcpCall(self._core.poll, self._sock, self._target.service, self._answered))

    def _upgraded(self, result: Line | Refused) -> None:
        """Carry the WebSocket: the other end of a pair, which fits who asked, is what was asked for."""
        self._step = None
        sock, self._sock = self._sock, None
        assert sock is not None and isinstance(self._target, Uri)
        if isinstance(result, Refused):
            sock.close()
            self._done(result)
            return
        traveller = self._traveller
        try:
            theirs = carry_outbound(self._core, result, sock, self._target, self._ws_shape, traveller, self._carried)
        except Refused as e:
            self._done(e)
            return
        self._done(Reached(theirs, self._address, fits=True))

    @property
    def _ws_shape(self) -> Shape:
        return onward(self._target, self._traveller.shape, self._traveller.caller)

    def _secured(self, result: Wire | Refused) -> None:
        """Carry what is inside TLS: the other end of a pair is what was asked for."""
        self._step = None
        sock, self._sock = self._sock, None
        assert sock is not None
        if isinstance(result, Refused):
            sock.close()
            self._done(result)
            return
        if self._traveller.carries:
            self._done(Reached(sock, self._address, result))
            return
        core = self._core
        try:
            ours, theirs = relay_pair(core, self._traveller.account)
        except Refused as e:
            sock.close()
            self._done(e)
            return
        forth, back = make_tls_pumps(result, sock, ours, core.buffers)
        relay = Relay(core.poll, core.reactor, core.pipes, sock, ours, self._carried, forth=forth, back=back)
        core.relays.add(relay)
        relay.start()
        self._done(Reached(theirs, self._address))

    def _carried(self, relay: Relay) -> None:
        self._core.end_relay(self._traveller.account, relay)
        if self._traveller.ended is not None:
            self._traveller.ended(relay.ending, relay.down, relay.up)  # up is from the client to the far side

    def _endpoint_ended(self, half: Half, up: int, down: int) -> None:
        if self._traveller.ended is not None:
            self._traveller.ended("reset" if half.reset else "closed", up, down)

    def _answered(self, result: Refused | None) -> None:
        self._step = None
        self._mark("handshake")
        if result is None:
            self._finish()
            return
        self.cancel()
        self._done(result)

    def _finish(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self._done(Reached(sock, self._address))
