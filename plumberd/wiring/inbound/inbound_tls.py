"""A remote caller inside TLS: it proves who it is, then names a service, unless that is published."""

from __future__ import annotations

import functools
import socket

from plumberd.effects.relay import Relay
from plumberd.effects.tls_contexts import Inward
from plumberd.effects.tls_pumps import make_tls_pumps
from plumberd.effects.tls_wire import Wire
from plumberd.pure.forwarded import parse_caller
from plumberd.pure.plumb_handshake import ALPN, GRANTED, MOST_HOPS, Called, Request, refusal
from plumberd.pure.policy.route import Way
from plumberd.pure.policy.subject import Holds
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.delivery import as_stream
from plumberd.wiring.dialing.approach import guard
from plumberd.wiring.inbound.inbound import Callers
from plumberd.wiring.inbound.inbound_proving import ProvingInbound, proved_by


class TlsInbound(ProvingInbound):
    """A caller on a socket of its own, inside TLS."""

    def __init__(
        self, callers: Callers, who: RemoteWho, sock: socket.socket, inward: Inward, published: str | None = None
    ) -> None:
        super().__init__(callers, who, sock, published)
        self._inward = inward
        self._called = Called()
        self._unsaid: bytes | None = None
        self._is_ending = False
        self._said_of_caller: str | None = None
        self._gateway: RemoteWho | None = None
        self._service_sock: socket.socket | None = None

    def start(self) -> None:
        """Wait for the TLS handshake."""
        if self.begin():
            self.expect_tls(self._inward)
        else:
            self._sock.close()

    # -- what Inbound asks for

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        try:
            self._service_sock = as_stream(self.core, service, self.framing)
        except OSError:
            self._sock.close()
            self.core.relay_places.leave(self._account)
            self.ended("no descriptors for a relay")
            return
        if self.published is None:
            self._unsaid = GRANTED
        self.core.relays.add(self)
        self.watch()
        self._say()

    def tell(self, word: Refusal) -> None:
        """See :meth:`Inbound.tell`."""
        if self._wire is None:
            self.drop()
            return
        if self.published is None:
            # To who has proved nothing every refusal is the same.
            self._unsaid = refusal(word if self.who.identities else Refusal.DENIED)
        self.callers.lingering.set(self, self.drop)
        self.watch()
        self._say()

    def abort(self) -> None:
        """End what is about to be a relay: plumberd stops."""
        service, self._service_sock = self._service_sock, None
        if service is not None:
            service.close()
            self.core.end_relay(self._account, self)
            self.ended("aborted")
        self.close()

    # -- the steps

    def _secured(self, wire: Wire) -> None:
        self.who = RemoteWho(self.who.scheme, self.who.address, self.who.port, proved_by(wire))
        if self.published is not None:
            self.named(self.published.encode())
        elif wire.alpn != ALPN.decode("ascii"):
            self.note(Refusal.BAD_REQUEST.value, "a TLS client that is no plumberd (ALPN plumb/1)")
            self.drop()
        else:
            self.watch()
            self._ready(0)

    def _ready(self, events: int) -> None:
        if self._unsaid is not None or self._is_ending:
            self._say()
        elif not self.is_named and self._checking is None:
            self._read()

    def _read(self) -> None:
        wire = self._wire
        assert wire is not None
        request: Request | None = None
        try:
            while request is None:
                data = wire.recv(self._called.wanted_bytes)
                if not data:
                    raise ConnectionResetError
                request = self._called.receive(data)
        except BlockingIOError:
            return
        except Refused as e:
            self.refuse_now(e)
            return
        except OSError:
            self.note("gone", "hung up without naming a service")
            self.drop()
            return
        self.core.poll.forget(self._sock.fileno())
        wire.give_back(self._called.rest)
        self._asked(request)

    def _asked(self, request: Request) -> None:
        self.hops = request.hops
        self._said_of_caller = request.caller
        guard(self.refuse_now, self._prove, request)

    def _prove(self, request: Request) -> None:
        if request.hops > MOST_HOPS:
            raise Refused(Refusal.NOT_POSSIBLE, f"a chain of more than {MOST_HOPS} gateways")
        if request.login is None:
            self._proved_all(request.service)
        else:
            self.check_login(request.login, functools.partial(self._proved_all, request.service))

    def _proved_all(self, service: str) -> None:
        """From here on it is who it has proved to be; for a trusted gateway, who that says has called it."""
        said = self._said_of_caller
        if said is not None and self._is_trusted(self.who):
            self._gateway = self.who
            self.who = parse_caller(said, self.who)
        self.named(service.encode())

    def _is_trusted(self, gateway: RemoteWho) -> bool:
        subject = gateway.subject
        return any(one.holds(subject) is Holds.YES for one in self.core.settings.gateways)

    def _judge(self) -> Way:
        # Again after a reload, which may have ended the trust in what all of this rests on.
        if self._gateway is not None and not self._is_trusted(self._gateway):
            raise Refused(Refusal.DENIED, f"the gateway {self.who.via} is not trusted any more")
        return super()._judge()

    def _say(self) -> None:
        """Say ok or no, and go on: to the relay, or to the end."""
        wire, service = self._wire, self._service_sock
        assert wire is not None
        try:
            if self._unsaid is not None:
                wire.send(self._unsaid)
                self._unsaid = None
            if service is None:
                self._is_ending = not wire.close_notify()
        except BlockingIOError:
            return
        except OSError:
            if service is None:
                self.drop()
            else:
                self.abort()
            return
        if service is not None:
            self._relay(wire, service)

    def _relay(self, wire: Wire, service: socket.socket) -> None:
        self._service_sock = None
        core = self.core
        core.relays.discard(self)
        forth, back = make_tls_pumps(wire, self._sock, service, core.buffers)
        relay = Relay(core.poll, core.reactor, core.pipes, self._sock, service, self.carried, forth=forth, back=back)
        core.relays.add(relay)
        relay.start()
