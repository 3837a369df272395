"""A remote caller whose messages come in datagrams, on the socket that all of them share."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from typing import Protocol

from plumberd.effects.datagram_relay import DatagramRelay, Far
from plumberd.effects.messages import MessageEnd
from plumberd.effects.udp import IcmpError, Sender, limit_to
from plumberd.pure import datagrams
from plumberd.pure.datagrams import HEADER_BYTES, SESSION_BYTES, Session
from plumberd.pure.proxy_header import End
from plumberd.pure.refusals import Refusal
from plumberd.pure.shape import Shape, SocketType
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.registrations import Registration
from plumberd.wiring.dialing.served import CARRY_MESSAGES
from plumberd.wiring.dialing.udp_carry import tell_too_large
from plumberd.wiring.inbound.inbound import MESSAGE_FRAMING, SERVICE_FRAMING, Callers, Inbound

QUEUE_BYTES = 65536
"""How much waits for a service that does not read, of each caller: one message of any length, or many short ones.

A tenth of what the kernel holds besides."""

_LEAST_BYTES = 512
"""What every path takes."""


class Shared(Protocol):
    """The socket that datagrams come in by."""

    def sender_to(self, source: Source) -> Sender:
        """Return what sends to a caller, from the address that it has sent to."""

    def reply(self, source: Source, datagram: bytes) -> None:
        """Send one, if there is room; else it is lost."""

    def has_room(self) -> bool:
        """Tell whether data may be sent: handshakes always find some."""

    def wait(self, far: SessionFar) -> None:
        """Tell *far* when there is room again."""

    def may_tell(self, account: str) -> bool:
        """Tell whether the log may say that *account* has too many handshakes: once a second."""

    def enter(self, session: bytes, caller: UdpInbound) -> None:
        """Give what comes for *session* to *caller*."""

    def forget(self, caller: UdpInbound) -> None:
        """Nothing is for *caller* any more. Idempotent."""

    def where(self) -> End | None:
        """Return where it listens."""


class Source:
    """Where a datagram has come from, and where to.

    :ivar address: as the socket tells it, and takes it.
    :ivar control: what makes an answer leave from the address that was asked, on a socket that has several.
    """

    __slots__ = ("address", "control")

    def __init__(self, address: tuple[object, ...], control: tuple[tuple[int, int, bytes], ...] = ()) -> None:
        self.address = address
        self.control = control


class UdpInbound(Inbound):
    """A caller that has brought its cookie back, and from then on its session."""

    def __init__(self, callers: Callers, who: RemoteWho, shared: Shared, source: Source, nonce: bytes) -> None:
        super().__init__(callers, who, None)
        self.source = source
        self.nonce = nonce
        self.session: bytes = b""
        self.last_words: tuple[bytes, ...] = ()
        """What the same open is answered once more when it is over."""
        self._shared = shared
        self._far: SessionFar | None = None

    def open(self, service: str) -> None:
        """Go through the steps for *service*, whose name nobody has checked."""
        if not self.begin():
            self._shared.forget(self)
            return
        self.named(service.encode("latin-1"))

    def note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        """See :meth:`Inbound.note`: whom there is no room for may ask as fast as it can, and fill no disk."""
        if self.is_named or self._shared.may_tell(self._key):
            super().note(verdict, reason, up, down)

    def say_again(self) -> None:
        """The caller has asked again: it has missed the answer, if there was one."""
        if self.session:
            self._shared.reply(self.source, datagrams.ok(self.nonce, self.session))

    def take(self, datagram: bytes) -> None:
        """Keep a datagram of its session, until :meth:`give`."""
        assert self._far is not None
        self._far.take(datagram)

    def is_gone(self, told: IcmpError) -> None:
        """Its machine, or its socket, does not exist any more; what was sent there has come back."""
        if self._far is not None and self._far.relay is not None:
            how = "nobody listens there" if told.code == errno.ECONNREFUSED else os.strerror(told.code)
            self._far.relay.far_closed(f"the caller is gone: {how}")

    def give(self) -> None:
        """Pass on what was taken."""
        if self._far is not None:
            self._far.give()

    # -- what Inbound asks for

    @property
    def shape(self) -> Shape:
        """See :attr:`Inbound.shape`: messages by themselves."""
        return Shape(SocketType.SEQPACKET)

    def here(self) -> End | None:
        """See :meth:`Inbound.here`."""
        return self._shared.where()

    def offer(self, registration: Registration) -> bool:
        """See :meth:`Inbound.offer`: the claimant gets one end of a pair."""
        registration.check_room()
        self.offer_relayed(registration)
        return True

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        core = self.core
        self.session = secrets.token_bytes(SESSION_BYTES)
        session = Session(self.session)
        self.last_words = (datagrams.ok(self.nonce, self.session), session.close())
        near = MessageEnd(service, self._service_framing(service), queue_bytes=QUEUE_BYTES, room=self.callers.messages)
        self._far = far = SessionFar(self._shared, self, session)
        relay = DatagramRelay(
            core.poll,
            core.reactor,
            near,
            far,
            core.settings.limits.datagram_idle_seconds,
            self._relay_ended,
            too_large=self._too_large,
        )
        core.relays.add(relay)
        self._shared.enter(self.session, self)
        self._shared.reply(self.source, datagrams.ok(self.nonce, self.session))
        relay.start()

    def tell(self, word: Refusal) -> None:
        """See :meth:`Inbound.tell`: nobody here has proved more than an address."""
        answer = datagrams.no(self.nonce, Refusal.DENIED)
        self.last_words = (answer,)
        self._shared.reply(self.source, answer)
        self.drop()

    def close(self) -> None:
        """See :meth:`Inbound.close`."""
        if not self.session:
            self._shared.forget(self)

    def _service_framing(self, service: socket.socket) -> str:
        uri = self._approach.uri if self._approach else None
        if uri is not None and uri.scheme in CARRY_MESSAGES:
            return self.shape.framing
        default = SERVICE_FRAMING if service.type == socket.SOCK_SEQPACKET else MESSAGE_FRAMING
        told = uri.option("framing") if uri is not None else None
        return told or self.core.settings.framings.get(self._service, default)

    def _too_large(self, size: int, limit: int) -> None:
        tell_too_large(str(self.who), size, limit)

    def _relay_ended(self, relay: DatagramRelay) -> None:
        self.core.datagrams.ended(relay)
        self.core.end_relay(self._account, relay)
        self.ended(relay.ending, relay.down, relay.up)  # up is from the caller to the service


class SessionFar(Far):
    """A relay's far side on the socket that all callers share."""

    alone_counts = True

    def __init__(self, shared: Shared, caller: UdpInbound, session: Session) -> None:
        super().__init__()
        self._shared = shared
        self._caller = caller
        self._session = session
        self._sender = shared.sender_to(caller.source)
        self._taken: list[bytes] = []
        self._is_closed = False
        self.counts = session.counts
        self._limit = 0
        self._was_told = self._ask_limit()

    @property
    def limit_bytes(self) -> int:
        """See :attr:`Far.limit_bytes`."""
        return self._limit

    def start(self) -> None:
        """See :meth:`Far.start`: whoever reads the socket begins by itself."""

    def take(self, datagram: bytes) -> None:
        """Keep a datagram until :meth:`give`."""
        self._taken.append(datagram)

    def give(self) -> None:
        """Pass on what was taken, together."""
        relay = self.relay
        assert relay is not None
        taken, self._taken = self._taken, []
        relay.heard(self._session, taken)

    def send(self, messages: list[bytes]) -> int:
        """See :meth:`Far.send`."""
        relay, session = self.relay, self._session
        assert relay is not None
        done, has_failed = 0, False
        while done < len(messages):
            if not self._shared.has_room():
                self._shared.wait(self)
                break
            left = messages[done:] if done else messages
            fitting = next((at for at, one in enumerate(left) if len(one) > self._limit), len(left))
            if not fitting:
                if not self._was_told and self._ask_limit():
                    continue
                relay.too_large(len(left[0]), self._limit)
                done += 1
                continue
            outgoing = [session.data(message) for message in left[:fitting]]
            try:
                sent = self._sender.send(outgoing)
            except OSError as e:
                session.unsent(fitting)
                if e.errno != errno.EMSGSIZE:
                    # An earlier datagram's, of whomever, and once; or there is no way: this one is lost.
                    self.counts.dropped += has_failed
                    done += has_failed
                    has_failed = not has_failed
                    continue
                self._ask_limit()  # the path has become narrower
                relay.too_large(len(left[0]), min(self._limit, len(left[0])))
                done += 1
                continue
            has_failed = False
            session.unsent(fitting - sent)
            done += sent
            if self._sender.blocked:
                self._shared.wait(self)
                break
        return done

    def resume(self) -> None:
        """There is room again."""
        if self.relay is not None and not self._is_closed:
            self.relay.resume()

    def end(self) -> None:
        """See :meth:`Far.end`."""
        self._shared.reply(self._caller.source, self._session.end())

    def close(self, *, tell: bool) -> None:
        """See :meth:`Far.close`."""
        if not self._is_closed:
            self._is_closed = True
            if tell:
                self._shared.reply(self._caller.source, self._session.close())
            self._shared.forget(self._caller)

    def _ask_limit(self) -> bool:
        """Ask how long messages may be; tell whether it was told. Else it is asked again for one that is longer."""
        try:
            limit, self._was_told = limit_to(self._caller.source.address), True
        except OSError:  # no descriptors, say
            limit, self._was_told = _LEAST_BYTES, False
        self._limit = limit - HEADER_BYTES
        return self._was_told
