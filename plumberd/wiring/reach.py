"""Connect to where a way leads: the dial and, where the URI names a service, the handshake.

The rules have let it through already, and the addresses are those that passed.
One step is under way at a time, and :meth:`Reach.cancel` ends it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from plumberd.effects.call import SchemeCall, TcpCall
from plumberd.effects.dial_tcp import Owner, TcpDial
from plumberd.effects.dial_unix import UnixDial
from plumberd.effects.endpoint_relay import Half
from plumberd.pure.modes import Mode
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Endpoint
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.pure.who import LocalWho, RemoteWho
from plumberd.wiring.core import Core
from plumberd.wiring.endpoint_dial import EndpointDial
from plumberd.wiring.registrations import Offer, Registration, told_of

SERVED = ("tcp", "unix")
"""The schemes that something here carries; others are ``not-possible``."""


@dataclass(frozen=True)
class Traveller:
    """For whom a connection is made.

    :ivar account: on whose account what is carried for it is.
    :ivar who: the local client, as whom local services are connected to; ``None`` is the broker itself.
    :ivar owner: whom a TCP socket is given to before it connects.
    :ivar packets: whether packets are wanted, rather than a stream.
    :ivar ended: told when the relay of an endpoint, which began with its connection, is over.
    :ivar caller: the remote caller, where it is one.
    :ivar rule: what has let that in.
    """

    account: str
    who: LocalWho | None = None
    owner: Owner | None = None
    packets: bool = False
    ended: Callable[[Half, int, int], None] | None = None
    caller: RemoteWho | None = None
    rule: str = ""


@dataclass(frozen=True)
class Reached:
    """A connection, whose socket belongs to who got it.

    :ivar address: that a TCP socket is connected to.
    """

    sock: socket.socket
    address: IPAddress | None = None


class _Step(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


def carrier_of(core: Core, target: Uri | Endpoint, addresses: tuple[IPAddress, ...]) -> str:
    """Return, for people, what else carries the bytes to *target*, so that there is no socket to give away."""
    if isinstance(target, Endpoint):
        return "an administrator's endpoint"
    return "the scheme daemon's process" if _for_scheme_daemon(core, target, addresses) else ""


def check_served(target: Uri | Endpoint) -> None:
    """Check that something here carries *target*'s scheme.

    :raises Refused: ``not-possible``.
    """
    if isinstance(target, Uri) and target.scheme not in SERVED:
        raise Refused(Refusal.NOT_POSSIBLE, f"nothing here carries {target.scheme}; served are {', '.join(SERVED)}")


def check_leads_away(core: Core, service: str, to: Destination, addresses: tuple[IPAddress, ...]) -> None:
    """Check that a caller's way does not come back to this process: it would be the next caller, and so on.

    Only a loop through other machines, or one by a name that an endpoint resolves by itself, is not
    seen here; it ends at the limits.

    :raises Refused: ``not-possible``.
    """
    for address in addresses:
        if to.port is not None and core.is_here(address, to.port):
            raise Refused(
                Refusal.NOT_POSSIBLE,
                f"{service} leads to {to}, where this very process listens; a redirect to another name stays inside",
            )


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
    ) -> None:
        """Prepare.

        :param mark: told the name of each step that is over, for the log.
        :param rule: what lets it through, for a service that is told.
        """
        self._core = core
        self._target = target
        self._addresses = addresses
        self._traveller = traveller
        self._done = done
        self._mark = mark
        self._rule = rule
        self._step: _Step | None = None
        self._sock: socket.socket | None = None
        self._address: IPAddress | None = None

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: nothing here carries it, or what carries it cannot be asked.
        """
        target, traveller = self._target, self._traveller
        check_served(target)
        done: Callable[[socket.socket | Refused], None]
        if isinstance(target, Endpoint):
            done, ended = self._other_connected, traveller.ended or _unheard
            self._go(EndpointDial(self._core, target.description, traveller.account, done, ended))
        elif target.scheme == "unix" and (registration := self._core.registrations.find(target.service)):
            self._offer(registration)
        elif target.scheme == "unix":
            assert target.service is not None
            services, who, packets = self._core.services, traveller.who, traveller.packets
            done = self._other_connected
            self._go(UnixDial(self._core.reactor, services, target.service, who, done, packets=packets))
        elif daemon_address := _for_scheme_daemon(self._core, target, self._addresses):
            self._sock = self._core.services.dial_scheme(target.scheme)
            self._mark("connect")
            uri = Uri(target.scheme, str(daemon_address), target.port, target.service)
            self._go(SchemeCall(self._core.poll, self._sock, uri, self._answered))
        else:
            addresses, owner = self._addresses, traveller.owner
            poll, clock = self._core.poll, self._core.reactor
            self._go(TcpDial(poll, clock, addresses, target.port, owner, self._connected))

    def cancel(self) -> None:
        """Give up and close what was made; *done* will not be called."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

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
        mode = Mode.RELAYED if who is None else Mode.LOCAL
        told = told_of(who or traveller.caller, traveller.rule or self._rule)
        registration.offer(Offer(theirs, mode.value, told))
        self._mark("connect")
        self._done(Reached(ours))

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
        assert isinstance(self._target, Uri)
        if self._target.service is None:
            self._finish()
        else:
            self._go(TcpCall(self._core.poll, self._sock, self._target.service, self._answered))

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


def _unheard(half: Half, up: int, down: int) -> None:
    """Nobody wants to know: what is carried behind it tells its own end."""


def _for_scheme_daemon(core: Core, uri: Uri, addresses: tuple[IPAddress, ...]) -> IPAddress | None:
    """Return the address to tell another process's scheme daemon; what does not fit its one form we dial ourselves."""
    if not core.settings.asks_scheme_daemon or uri.scheme != "tcp" or uri.service is None:
        return None
    return next((address for address in addresses if address.version == 4), None)
