"""tcpd: listens on any server endpoint for remote callers of local services.

A caller is an :class:`~plumberd.wiring.inbound.inbound.Inbound`; here is only what listens.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.python.failure import Failure

from plumberd.effects.accept import Acceptor
from plumberd.effects.dial_tcp import remote_address
from plumberd.effects.endpoint_relay import Half, HalfFactory
from plumberd.effects.rundir import identity
from plumberd.effects.tls_contexts import Inward
from plumberd.pure.plumb_handshake import ALPN
from plumberd.pure.uri import IPAddress, show_host
from plumberd.pure.who import RemoteWho
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import Core
from plumberd.wiring.inbound.inbound import Callers, Inbound
from plumberd.wiring.inbound.inbound_raw import RawInbound
from plumberd.wiring.inbound.inbound_tls import TlsInbound
from plumberd.wiring.inbound.inbound_transport import TransportInbound
from plumberd.wiring.inbound.inbound_web import WebInbound
from plumberd.wiring.inbound.listening import is_plain, raw_socket, server_from_string
from plumberd.wiring.inbound.udpd import UdpListening

WEB_ALPN = ("http/1.1",)
"""What browsers offer for WebSockets; of HTTP/2 none is spoken here."""


class ListenError(Exception):
    """An endpoint cannot be listened on; the message names its option, the endpoint and why."""


@dataclass(frozen=True)
class Wanted:
    """An endpoint to listen on.

    :ivar published: the one service of a plain listener, whose callers name none.
    :ivar tls: whether all of it is inside TLS.
    :ivar web: whether callers speak HTTP, and want WebSockets.
    :ivar datagrams: whether it is for datagrams.
    """

    description: str
    published: str | None = None
    tls: bool = False
    web: bool = False
    datagrams: bool = False

    def __str__(self) -> str:
        """As the option says it, or the key."""
        if self.published is not None:
            return f"{'listen.publish_tls.' if self.tls else '--publish '}{self.published} {self.description}"
        if self.web:
            return f"--webipcd {'tls:' if self.tls else ''}{self.description}"
        if self.datagrams:
            return f"--udpd {self.description}"
        return f"{'--tlsd' if self.tls else '--tcpd'} {self.description}"


def wanted_by(settings: Settings) -> list[Wanted]:
    """Return everything that remote callers are to reach."""
    return [
        *(Wanted(description) for description in settings.tcpd),
        *(Wanted(description, name) for name, description in settings.publish),
        *(Wanted(description, None, True) for description in settings.tlsd),
        *(Wanted(description, name, True) for name, description in settings.publish_tls),
        *(Wanted(one.description, None, one.tls, True) for one in settings.webipcd),
        *(Wanted(description, datagrams=True) for description in settings.udpd),
    ]


@dataclass
class _Listening:
    wanted: Wanted
    port: IListeningPort
    identity: tuple[int, int] | None = None
    acceptor: Acceptor | None = None
    inward: Inward | None = None

    def stop(self) -> Deferred[Any]:
        """Listen no more; who has been accepted goes on."""
        if self.acceptor is not None:
            self.acceptor.stop()
        return Deferred.fromCoroutine(_stop(self.port))


@dataclass
class _ListeningForDatagrams:
    wanted: Wanted
    udp: UdpListening

    def stop(self) -> Deferred[Any]:
        """Let nobody in any more; who is in goes on."""
        return self.udp.stop()


class Tcpd:
    """Listens for the handshake on any server endpoint, and for datagrams."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.callers = Callers(core)
        core.is_here = self._is_here
        self._listening: list[_Listening | _ListeningForDatagrams] = []
        self._retired: list[_ListeningForDatagrams] = []
        """Those with sessions that go on."""
        self._wanted: list[Wanted] = []

    @property
    def peers(self) -> set[Inbound]:
        """Who has not been let in yet."""
        return self.callers.peers

    @property
    def ports(self) -> tuple[IListeningPort, ...]:
        """The ports that are listened on."""
        return tuple(listening.port for listening in self._listening if isinstance(listening, _Listening))

    @property
    def addresses(self) -> list[str]:
        """Where it listens, for people."""
        found = []
        for listening in self._listening:
            if isinstance(listening, _ListeningForDatagrams):
                found.append(str(listening.udp))
                continue
            name = listening.wanted.published
            daemon = "webipcd" if listening.wanted.web else "tlsd" if listening.wanted.tls else "tcpd"
            inside = " inside TLS" if listening.wanted.tls else ""
            what = f"publishes {name}{inside}" if name else daemon
            if listening.wanted.web and listening.wanted.tls:
                what += inside
            found.append(f"{what} on {_show(listening.port.getHost())}")
        return found

    @property
    def datagram_ports(self) -> tuple[UdpListening, ...]:
        """Where datagrams are listened for."""
        return tuple(one.udp for one in self._listening if isinstance(one, _ListeningForDatagrams))

    def listen(self, wanted: Wanted) -> Deferred[None]:
        """Listen on one endpoint; accepting begins at once.

        The Deferred fails as the endpoint's does.
        """
        plain = is_plain(wanted.description)
        endpoint = server_from_string(self.core.reactor, wanted.description)
        published = wanted.published
        factory = HalfFactory(_refuse_protocol if plain else lambda: TransportInbound(self.callers, published).half)

        def listening(port: IListeningPort) -> None:
            one = _Listening(wanted, port)
            if wanted not in self._wanted:  # it took its time, and meanwhile nobody wants it any more
                one.stop()
                return
            self._listening.append(one)
            path = getattr(port.getHost(), "name", None)
            if path is not None:  # a UNIX socket in the run directory would look like a service
                with contextlib.suppress(OSError, ValueError):
                    one.identity = identity(path)
                    self.core.own.add(one.identity)
            if wanted.tls:
                one.inward = self._inward(wanted)
            if plain:
                take = functools.partial(self._accepted, one)
                one.acceptor = Acceptor(self.core.poll, self.core.reactor, raw_socket(port), take)
                one.acceptor.start()

        done: Deferred[None] = endpoint.listen(cast(Any, factory)).addCallback(listening)
        return done

    def listen_on(self, wanted: Sequence[Wanted], late: Callable[[Wanted, Failure], None]) -> None:
        """Listen on just these endpoints: on new ones first, and if all of them can be, no more on the others.

        :param late: told of an endpoint that fails only afterwards.
        :raises ListenError: one cannot be listened on; everything is as it was.
        """
        before, wanted_before = list(self._listening), self._wanted
        idle = [listening.wanted for listening in before]
        self._wanted = list(wanted)
        try:
            for one in wanted:
                if one in idle:
                    idle.remove(one)
                else:
                    self._begin(one, late)
        except ListenError:
            self._wanted = wanted_before
            self._stop_all([listening for listening in self._listening if listening not in before])
            raise
        self._stop_all([listening for listening in before if _take(idle, listening.wanted)])

    def reconfigure(self) -> None:
        """Take the limits that are in force now, and what TLS proves and believes; who is in TLS already stays."""
        self.callers.reconfigure()
        for listening in self._listening:
            if isinstance(listening, _Listening) and listening.wanted.tls:
                listening.inward = self._inward(listening.wanted)

    def stop(self) -> list[Deferred[Any]]:
        """Stop listening and drop who has not been let in; return what is still closing."""
        self._wanted = []
        closing = self._stop_all(list(self._listening))
        self.callers.close()
        return closing

    def _begin(self, wanted: Wanted, late: Callable[[Wanted, Failure], None]) -> None:
        if wanted.datagrams:
            self._begin_datagrams(wanted)
            return
        failures: list[Failure] = []
        if (wanted.tls or wanted.web) and not is_plain(wanted.description):
            raise ListenError(f"{wanted}: here only endpoints with a socket of their own: tcp, tcp6, unix, systemd")
        try:
            listening = self.listen(wanted).addErrback(failures.append)
        except Exception as e:  # each endpoint parser has errors of its own: a certificate that has gone, say
            raise ListenError(f"{wanted}: {e}") from None
        if failures:  # tcp and unix endpoints tell at once
            raise ListenError(f"{wanted}: {failures[0].getErrorMessage()}")
        listening.addCallback(lambda _: late(wanted, failures[0]) if failures else None)

    def _begin_datagrams(self, wanted: Wanted) -> None:
        self._retired = [one for one in self._retired if not one.udp.is_closed]
        for one in self._retired:
            if one.wanted == wanted:  # its sessions keep the port
                self._retired.remove(one)
                one.udp.revive()
                self._listening.append(one)
                return
        try:
            udp = UdpListening(self.callers, wanted.description)
        except OSError as e:
            raise ListenError(f"{wanted}: {e.strerror or e}") from None
        self._listening.append(_ListeningForDatagrams(wanted, udp))

    def _stop_all(self, which: Sequence[_Listening | _ListeningForDatagrams]) -> list[Deferred[Any]]:
        for listening in which:
            self._listening.remove(listening)
            if isinstance(listening, _ListeningForDatagrams):
                self._retired.append(listening)
        return [listening.stop().addCallback(self._forget, getattr(listening, "identity", None)) for listening in which]

    def _forget(self, _: object, own: tuple[int, int] | None) -> None:
        """The socket is gone, and the next one with its inode is another's."""
        if own is not None:
            self.core.own.discard(own)

    def _is_here(self, address: IPAddress, port: int) -> bool:
        """Tell whether callers are listened for at that address and port."""
        for listening in self._listening:
            if isinstance(listening, _ListeningForDatagrams):
                if listening.udp.is_here(address, port):
                    return True
                continue
            host: Any = listening.port.getHost()
            if getattr(host, "port", None) == port:
                here = ipaddress.ip_address(host.host)
                if here == address or (here.is_unspecified and address in self.core.addresses):
                    return True
        return False

    def _inward(self, wanted: Wanted) -> Inward:
        alpn = (ALPN.decode("ascii"),) if wanted.published is None else self.core.settings.tls.alpn
        if wanted.web:
            alpn = WEB_ALPN
        return self.core.tls.inward(alpn)

    def _accepted(self, listening: _Listening, sock: socket.socket) -> None:
        sock.setblocking(False)
        wanted = listening.wanted
        scheme = ("wss" if wanted.tls else "ws") if wanted.web else "tls" if wanted.tls else "tcp"
        who = RemoteWho(scheme, None)
        if sock.family != socket.AF_UNIX:
            try:
                address, port = remote_address(sock)
            except OSError:
                sock.close()
                return
            who = RemoteWho(scheme, address, port)
        published = wanted.published
        if wanted.web:
            WebInbound(self.callers, who, sock, listening.inward).start()
        elif listening.inward is None:
            RawInbound(self.callers, who, sock, published).start()
        else:
            TlsInbound(self.callers, who, sock, listening.inward, published).start()


def _take(idle: list[Wanted], wanted: Wanted) -> bool:
    """Take *wanted* out of *idle*, once; tell whether it was there."""
    if wanted not in idle:
        return False
    idle.remove(wanted)
    return True


def _refuse_protocol() -> Half | None:
    return None  # a plain port never accepts by itself


async def _stop(port: IListeningPort) -> None:
    stopping = port.stopListening()
    if stopping is not None:
        await stopping


def _show(host: Any) -> str:
    if hasattr(host, "port"):
        return f"{show_host(host.host)}:{host.port}"
    name = getattr(host, "name", host)
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)
