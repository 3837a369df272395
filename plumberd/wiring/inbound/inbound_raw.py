"""A remote caller on a socket of its own: spliced in the kernel, or handed to who has claimed the service."""

from __future__ import annotations

import os
import socket

from plumberd.effects.poll import ERR, HUP
from plumberd.effects.pumps import make_pumps
from plumberd.effects.relay import Relay
from plumberd.pure.handshake import GRANTED, NAME_READ_BYTES, refusal
from plumberd.pure.modes import COUNTED, Mode, choose_local_mode, choose_mode
from plumberd.pure.proxy_header import End
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.delivery import Handing, prepare
from plumberd.wiring.clients.registrations import Offer, Registration, told_of
from plumberd.wiring.dialing.approach import guard
from plumberd.wiring.inbound.inbound import HOLD_SECONDS, Callers, Inbound
from plumberd.wiring.inbound.proxied import end_of


class RawInbound(Inbound):
    """A caller on a socket of its own: spliced in the kernel."""

    def __init__(self, callers: Callers, who: RemoteWho, sock: socket.socket, published: str | None = None) -> None:
        super().__init__(callers, who, published)
        self._sock = sock
        self._discarded = 0
        self._registration: Registration | None = None

    def start(self) -> None:
        """Wait for the name."""
        if not self.begin():
            self._sock.close()
            return
        self.core.poll.watch(self._sock.fileno(), self._ready)
        if self.published is not None:
            self.named(self.published.encode())

    def here(self) -> End | None:
        """See :meth:`Inbound.here`."""
        return end_of(self._sock)

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        forth, back = make_pumps(self._sock, service, self.core.pipes, self.framing)
        relay = Relay(
            self.core.poll,
            self.core.reactor,
            self.core.pipes,
            self._sock,
            service,
            self.carried,
            forth=forth,
            back=back,
        )
        self.core.relays.add(relay)
        if self.published is not None:
            relay.start()
            return
        try:
            self._sock.send(GRANTED)
        except OSError:
            relay.abort()
            return
        relay.start(HOLD_SECONDS)

    def offer(self, registration: Registration) -> bool:
        """See :meth:`Inbound.offer`."""
        registration.check_room()
        core, who = self.core, registration.who_now(self.core.inspector)
        wish = core.settings.handover
        if self._sock.family == socket.AF_UNIX:
            self.mode = choose_local_mode(wish, same_kind=True, packets=False)
        else:
            self.mode = choose_mode(wish, who, core.powers)
        if self.mode is Mode.RELAYED:
            self.offer_relayed(registration)
            return True
        self._registration = registration
        if self.mode not in COUNTED or core.census.admit(self, who.uid, self._counted):
            self._grant()
        return True

    def _counted(self, refused: Refused | None) -> None:
        if refused is not None:
            self.refuse(refused)
        elif self._generation != self.core.generation:
            self.core.census.withdraw(self)
            guard(self.refuse, self._decide, self._service.encode())
        else:
            guard(self.refuse, self._grant)

    def _grant(self) -> None:
        """Say ok; hand over when the caller has spoken, or has had time to take the ok alone."""
        self.core.connect_deadline.cancel(self)
        if self.published is not None:
            self._hand_over()
            return
        try:
            self._sock.send(GRANTED)
        except OSError:
            self._gone()
            return
        self.callers.holding.set(self, lambda: guard(self._failed, self._hand_over))

    def _hand_over(self) -> None:
        """Give the accepted socket itself to who has claimed the service."""
        self.callers.holding.cancel(self)
        registration, sock = self._registration, self._sock
        assert registration is not None
        core = self.core
        if self._generation != core.generation:
            service = self._judge().local_service
            if core.registrations.find(service) is not registration:
                raise Refused(Refusal.DENIED, f"it leads to {service or 'another place'} by now")
        registration.check_room()
        who = registration.who
        core.poll.forget(sock.fileno())
        if self.mode is Mode.LOCKED and core.powers.give and who.uid != core.powers.uid:
            os.fchown(sock.fileno(), who.uid, who.gid)  # its new owner can listen on nothing that is ours
        peer = None if self.who.address is None else (self.who.address, self.who.port)
        handing = Handing(self.mode, packets=False, carried=False, framing="", peer=peer, account="")
        prepare(core, sock, handing, self.carried)  # none of these modes has a relay
        if self.mode in COUNTED:
            core.census.add(self, sock, who.uid, registration.service, self.mode.value, who.pid, self.ident)
        self.note("granted", "")
        self.leave()
        registration.offer(Offer(sock, self.mode.value, told_of(self.who, self.rule)))

    def _failed(self, refused: Refused) -> None:
        """It has been told ok already: all that is left is to hang up."""
        self.note(refused.word.value, refused.reason)
        self.drop()

    def _gone(self) -> None:
        """The caller has hung up before it was let in."""
        if self._refused is None:
            self.note("gone", "hung up before it was let in")
        self.drop()

    def tell(self, word: Refusal) -> None:
        """See :meth:`Inbound.tell`."""
        try:
            if self.published is None:
                self._sock.send(refusal(word))
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop()
            return
        # Closing with bytes unread would reset the connection, and the refusal with it.
        self.callers.lingering.set(self, self.drop)
        self._discard()

    def close(self) -> None:
        """See :meth:`Inbound.close`."""
        if self._sock.fileno() >= 0:
            self.core.poll.forget(self._sock.fileno())
            self._sock.close()

    def _ready(self, events: int) -> None:
        if not self.is_named:
            try:
                data = self._sock.recv(NAME_READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.note("gone", "hung up without naming a service")
                self.drop()
                return
            self.named(data)
        elif events & ERR or events & HUP:
            self._gone()
        elif self.callers.holding.is_set(self):
            guard(self._failed, self._hand_over)
        elif self.callers.lingering.is_set(self):
            self._discard()

    def _discard(self) -> None:
        try:
            while data := self._sock.recv(65536):
                self._discarded += len(data)
                if self._discarded > 1 << 20:
                    break
        except BlockingIOError:
            return
        except OSError:
            pass
        self.drop()
