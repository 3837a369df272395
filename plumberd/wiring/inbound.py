"""One remote caller, from its first byte to the relay.

peer → its handshake names a service → who → redirect → rules → connect to the
local service → ``ok`` → relay. To a peer that has proved nothing, every refusal
is the same, at the same time. The caller of a published service names none.
"""

from __future__ import annotations

import ipaddress
import socket

from plumberd.effects.audit import Outcome
from plumberd.effects.deadline import Deadlines
from plumberd.effects.dial_unix import UnixDial
from plumberd.effects.poll import ERR, HUP
from plumberd.effects.pumps import make_pumps
from plumberd.effects.relay import Relay
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.handshake import GRANTED, NAME_READ_BYTES, called, refusal
from plumberd.pure.policy.decide import Question, Verdict
from plumberd.pure.policy.rule import Destination, Direction
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import Uri
from plumberd.pure.who import RemoteWho
from plumberd.wiring.core import Core

REFUSAL_SECONDS = 0.05
"""Every refusal goes out that long after the name came in: time tells a stranger nothing either."""

SERVICE_FRAMING = "libipc-2019"
"""A service with packets speaks the older generations' messages, which cut the stream."""

HOLD_SECONDS = 0.05
"""How long a service's own first bytes are held: LibIPC's caller takes ``ok`` with one read."""

LINGER_SECONDS = 1.0
"""How long a refused peer may take to read its refusal."""


class Callers:
    """What all callers that have not been let in yet share: their number, and their deadlines."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.refusals = Deadlines(core.reactor, REFUSAL_SECONDS)
        self.lingering = Deadlines(core.reactor, LINGER_SECONDS)
        self.peers: set[Inbound] = set()
        limits = core.settings.limits
        self.handshakes: FairQueue[str, None] = FairQueue(limits.handshakes_per_address, limits.handshakes, 0)

    def close(self) -> None:
        """Drop all of them."""
        for peer in list(self.peers):
            peer.drop()
        self.refusals.close()
        self.lingering.close()


class Inbound:
    """One remote caller, from its first byte to the relay. Subclasses know how its bytes are carried."""

    def __init__(self, callers: Callers, who: RemoteWho, published: str | None) -> None:
        self.callers = callers
        self.published = published
        self.core = callers.core
        self.who = who
        self._began = self.core.reactor.seconds()
        self._key = ""
        self._account = ""
        """Whose relay it is; behind a proxy not the one whose handshake it was."""
        self._service = ""
        self._verdict: Verdict | None = None
        self._dial: UnixDial | None = None
        self._over = False
        self._refused: Refusal | None = None
        self.is_named = False

    def begin(self) -> bool:
        """Count this caller and give it its deadline; tell whether it may go on."""
        self._key = _account(self.who)
        if self.callers.handshakes.enter(self._key, None) is not Admission.NOW:
            limits = self.core.settings.limits
            self.note(
                "busy",
                f"handshakes_per_address={limits.handshakes_per_address}, handshakes={limits.handshakes}: "
                f"so many are under way from {self._key}, or in all",
            )
            self._over = True
            return False
        self.callers.peers.add(self)
        self.core.patience.set(self, self._too_slow)
        return True

    def named(self, first_read: bytes) -> None:
        """Go through the steps with what the first read brought."""
        self.is_named = True
        self.callers.refusals.set(self, self._refusal_is_due)
        self.core.patience.cancel(self)
        self.core.connect_deadline.set(self, self._dial_too_slow)
        try:
            local = self._decide(first_read)
        except Refused as e:
            self._refuse(e)
            return
        self._dial = UnixDial(self.core.reactor, self.core.services, local, None, self._dialled)
        self._dial.start()

    def drop(self) -> None:
        """End now: the peer is gone, or plumberd stops. Idempotent."""
        self._leave()
        self.close()

    def note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        """Log an outcome."""
        self.core.audit.note(
            Outcome(
                verdict,
                "in",
                self._service,
                "",
                self.who,
                self._verdict.rule if self._verdict else "",
                "relayed" if verdict in ("granted", "ended") else "",
                self.core.reactor.seconds() - self._began,
                reason,
                up,
                down,
            )
        )

    # -- what a subclass provides

    def carry(self, service: socket.socket) -> None:
        """Say ok and relay; owns *service* from then on."""
        raise NotImplementedError

    def tell(self, data: bytes) -> None:
        """Send a refusal and hang up in order."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the connection as it is. Idempotent."""
        raise NotImplementedError

    # -- the steps

    def _decide(self, first_read: bytes) -> str:
        name = called(first_read)
        self._service = name
        address = self.who.address
        to = Destination("tcp", None, None if address is None else (address,), None)
        self._verdict = verdict = self.core.decide(self.core.settings.policy, Question(Direction.IN, name, to))
        if not verdict.granted:
            raise Refused(Refusal.DENIED, verdict.reason)
        return self._redirected(name)

    def _redirected(self, name: str) -> str:
        redirects = self.core.settings.routes.redirects
        for _ in range(len(redirects) + 1):
            target = redirects.get(name)
            if target is None:
                return name
            if isinstance(target, Uri) and target.scheme == "unix" and target.service:
                return target.service
            if not isinstance(target, str):
                raise Refused(Refusal.NOT_POSSIBLE, f"{name} is redirected to {target}, which is not on this machine")
            name = target
        raise Refused(Refusal.NOT_POSSIBLE, f"a loop of redirects at {name}")

    def _dialled(self, result: socket.socket | Refused) -> None:
        self._dial = None
        if isinstance(result, Refused):
            self._refuse(result)
            return
        self._account = _account(self.who)
        try:
            self.core.begin_relay(self._account)
        except Refused as e:
            result.close()
            self._refuse(e)
            return
        self.note("granted", "")
        self._leave()
        self.carry(result)

    def _refuse(self, refused: Refused) -> None:
        self.note(refused.word.value, refused.reason)
        self.core.connect_deadline.cancel(self)
        self._refused = refused.word
        if not self.callers.refusals.is_set(self):
            self.tell(refusal(refused.word))

    def _refusal_is_due(self) -> None:
        if self._refused is not None:
            self.tell(refusal(self._refused))

    def _too_slow(self) -> None:
        self.note("timeout", f"no name within {self.core.patience.seconds:g} seconds")
        self.drop()

    def _dial_too_slow(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
            self._refuse(Refused(Refusal.TIMEOUT, "the local service did not take the connection in time"))

    def _leave(self) -> None:
        """Give everything back that is held while a caller is being let in."""
        if self._over:
            return
        self._over = True
        self.callers.peers.discard(self)
        for deadlines in (
            self.core.patience,
            self.core.connect_deadline,
            self.callers.refusals,
            self.callers.lingering,
        ):
            deadlines.cancel(self)
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        self.callers.handshakes.leave(self._key)


class RawInbound(Inbound):
    """A caller on a socket of its own: spliced in the kernel."""

    def __init__(self, callers: Callers, who: RemoteWho, sock: socket.socket, published: str | None = None) -> None:
        super().__init__(callers, who, published)
        self._sock = sock
        self._discarded = 0

    def start(self) -> None:
        """Wait for the name."""
        if not self.begin():
            self._sock.close()
            return
        self.core.poll.watch(self._sock.fileno(), self._ready)
        if self.published is not None:
            self.named(self.published.encode())

    def carry(self, service: socket.socket) -> None:
        """See :meth:`Inbound.carry`."""
        forth, back = make_pumps(self._sock, service, self.core.pipes, SERVICE_FRAMING)
        relay = Relay(
            self.core.poll,
            self.core.reactor,
            self.core.pipes,
            self._sock,
            service,
            self._carried,
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

    def tell(self, data: bytes) -> None:
        """See :meth:`Inbound.tell`."""
        try:
            if self.published is None:
                self._sock.send(data)
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
            self.drop()
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

    def _carried(self, relay: Relay) -> None:
        self.core.end_relay(self._account, relay)
        self.note("ended", relay.ending, relay.up, relay.down)


def _account(who: RemoteWho) -> str:
    """Return whose account a caller is on: its address; an IPv6 /64 is one."""
    if who.address is None:
        return "no address"
    if who.address.version == 6:
        return str(ipaddress.ip_network((who.address, 64), strict=False))
    return str(who.address)
