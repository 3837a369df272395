"""A remote caller on a socket of its own that can prove who it is: by its TLS handshake, or by a login."""

from __future__ import annotations

import socket
from abc import abstractmethod
from collections.abc import Callable

from plumberd.effects import openssl
from plumberd.effects.tls_contexts import Inward, fault_of
from plumberd.effects.tls_handshake import TlsHandshake
from plumberd.effects.tls_wire import Wire
from plumberd.pure.certificates import identities
from plumberd.pure.identities import keyed, logged_in
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.proxy_header import End
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.registrations import Registration
from plumberd.wiring.core import Cancellable
from plumberd.wiring.dialing.approach import guard
from plumberd.wiring.inbound.inbound import Callers, Inbound
from plumberd.wiring.inbound.proxied import end_of


class ProvingInbound(Inbound):
    """What callers have in common whose bytes are not simply spliced; it owns the socket until it is carried."""

    def __init__(self, callers: Callers, who: RemoteWho, sock: socket.socket, published: str | None) -> None:
        super().__init__(callers, who, published)
        self._sock = sock
        self._wire: Wire | None = None
        self._step: TlsHandshake | None = None
        self._checking: Cancellable | None = None
        """The login, while its password is compared."""

    def expect_tls(self, inward: Inward) -> None:
        """Wait for the TLS handshake."""
        connection = openssl.connect(inward.context, self._sock, server=True)
        self._step = TlsHandshake(
            self.core.poll,
            self._sock,
            connection,
            self._shaken,
            server=True,
            fault_of=fault_of,
            turns=self.core.turns,
        )
        self._step.start()

    def check_login(self, login: Login, proved_all: Callable[[], None]) -> None:
        """Check a name and its password; with them proved, *proved_all* is called.

        :raises Refused: nobody here checks passwords.
        """
        if self.core.logins is None:
            raise Refused(Refusal.UNAUTHENTICATED, "it logs in, and nobody here checks passwords")

        def checked(result: bool | Refused) -> None:
            self._checking = None
            guard(self.refuse_now, logged, result)

        def logged(result: bool | Refused) -> None:
            self._mark("login")
            if isinstance(result, Refused):
                raise result
            if not result:
                raise Refused(Refusal.UNAUTHENTICATED, f"the login of {login.user!r} is wrong")
            self.add_proved(logged_in(login.user))
            proved_all()

        self._checking = self.core.logins.check(login, self.who.address, checked)

    def add_proved(self, proved: frozenset[str]) -> None:
        """It has proved this as well."""
        who = self.who
        self.who = RemoteWho(who.scheme, who.address, who.port, who.identities | proved, who.via)

    def refuse_now(self, refused: Refused) -> None:
        """Refuse it before its name has counted."""
        self.is_named = True
        self.refuse(refused)

    def watch(self) -> None:
        """Hear of the socket's edges, whoever has heard of them before."""
        if self.core.poll.watches(self._sock.fileno()):
            self.core.poll.redirect(self._sock.fileno(), self._ready)
        else:
            self.core.poll.watch(self._sock.fileno(), self._ready)

    # -- what a subclass provides

    @abstractmethod
    def _secured(self, wire: Wire) -> None:
        """Go on inside TLS; :attr:`_wire` is *wire* already."""

    @abstractmethod
    def _ready(self, events: int) -> None:
        """Hear of events of the socket."""

    # -- what Inbound asks for

    def offer(self, registration: Registration) -> bool:
        """See :meth:`Inbound.offer`: the claimant gets one end of a pair, and is told who has proved what."""
        registration.check_room()
        self.offer_relayed(registration)
        return True

    def here(self) -> End | None:
        """See :meth:`Inbound.here`."""
        return end_of(self._sock)

    def tls_version(self) -> str:
        """See :meth:`Inbound.tls_version`."""
        return self._wire.version if self._wire is not None else ""

    def close(self) -> None:
        """See :meth:`Inbound.close`."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        checking, self._checking = self._checking, None
        if checking is not None:
            checking.cancel()
        if self._sock.fileno() >= 0:
            self.core.poll.forget(self._sock.fileno())
            self._sock.close()

    def _shaken(self, result: Wire | Refused) -> None:
        self._step = None
        self._mark("tls")
        if isinstance(result, Refused):
            self.note(result.word.value, result.reason)
            self.drop()
            return
        self._wire = result
        self._secured(result)


def proved_by(wire: Wire) -> frozenset[str]:
    """Return what the handshake has proved, as conditions of rules are written."""
    if wire.psk_identity is not None:
        return keyed(wire.psk_identity)
    chain = wire.peer_chain  # verified, or the handshake had failed
    return identities(chain[0]) if chain else frozenset()
