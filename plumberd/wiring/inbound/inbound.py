"""One remote caller, from its first byte to the relay.

peer → its handshake names a service → who → rules → redirect → connect to the
local service → ``ok`` → relay. Where the service's redirect or route leads away
from here, this machine is a gateway: the way there passes the `out` rules, with
the caller as who asks. To a peer that has proved nothing, every refusal is the
same, at the same time. The caller of a published service names none.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from plumberd.effects.audit import Outcome
from plumberd.effects.deadline import Deadlines
from plumberd.effects.messages import Room
from plumberd.effects.relay import Relay
from plumberd.pure.address import account_of_address
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.attempts import Attempts
from plumberd.pure.handshake import called
from plumberd.pure.modes import Mode
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Question, Verdict
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Way, find_way
from plumberd.pure.proxy_header import End
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.shape import Shape
from plumberd.pure.uri import IPAddress
from plumberd.pure.who import RemoteWho
from plumberd.wiring.clients.registrations import Offer, Registration, told_of
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.approach import Approach, guard
from plumberd.wiring.dialing.reach import Reached, Traveller
from plumberd.wiring.dialing.served import check_leads_away
from plumberd.wiring.inbound.proxied import introduce
from plumberd.wiring.inbound.web_pages import Listening

REFUSAL_SECONDS = 0.05
"""Every refusal goes out that long after the name came in: time tells a stranger nothing either."""

SERVICE_FRAMING = "libipc-2019"
"""A service with packets speaks the older generations' messages, which cut the stream."""

MESSAGE_FRAMING = "libipc-zig"
"""How messages look on a stream, here or onward, where a scheme carries messages and nobody says it."""

MESSAGES_BYTES = 32 << 20
"""So many bytes of datagrams wait at most, for all services that do not read them."""

_NO_PAIRS = Pairs()

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
        self.holding = Deadlines(core.reactor, HOLD_SECONDS)
        self.peers: set[Inbound] = set()
        limits = core.settings.limits
        self.handshakes: FairQueue[str, None] = FairQueue(limits.handshakes_per_address, limits.handshakes, 0)
        self.token_failures = Attempts(limits.login_failures_per_minute)
        self.messages = Room(MESSAGES_BYTES)
        self.listening = Listening(core)

    def reconfigure(self) -> None:
        """Take the limits that are in force now; nobody waits here."""
        limits = self.core.settings.limits
        self.handshakes.change(limits.handshakes_per_address, limits.handshakes, 0)
        self.token_failures.per_address = limits.login_failures_per_minute

    def close(self) -> None:
        """Drop all of them."""
        for peer in list(self.peers):
            peer.drop()
        self.refusals.close()
        self.lingering.close()
        self.holding.close()


class Inbound(ABC):
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
        self._has_place = False
        self._service = ""
        self.mode = Mode.RELAYED
        self._verdict: Verdict | None = None
        self._approach: Approach | None = None
        self._generation = 0
        self.ident = self.core.audit.new_ident()
        self._steps: list[tuple[str, float]] = []
        self._marked = self._began
        self._address: IPAddress | None = None
        self._over = False
        self._refused: Refusal | None = None
        self._token = ""
        self.is_named = False
        self.hops = 0
        """How many gateways it has come through, as the last one says."""

    def begin(self) -> bool:
        """Count this caller and give it its deadline; tell whether it may go on."""
        self._key = account_of_address(self.who.address)
        if self.callers.handshakes.enter(self._key, None) is not Admission.NOW:
            places = self.callers.handshakes
            reason = f"handshakes={places.total}: so many are under way"
            if places.active_of(self._key) >= places.per_key:
                reason = f"handshakes_per_address={places.per_key}: so many are under way from {self._key}"
            self.note("busy", reason)
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
        self._mark("name")
        guard(self.refuse, self._decide, first_read)

    def drop(self) -> None:
        """End now: the peer is gone, or plumberd stops. Idempotent."""
        self.leave()
        self.close()

    def note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        """Log an outcome."""
        approach = self._approach
        leads_on = approach is not None and (approach.uri is None or approach.uri.scheme != "unix")
        refused_there = leads_on and verdict == Refusal.DENIED.value
        self.core.audit.note(
            Outcome(
                verdict,
                "in",
                self._service,
                (approach.uri or approach.to or "") if approach and leads_on else "",
                self.who,
                "",
                self.mode.value if verdict in ("granted", "ended") else "",
                self.core.reactor.seconds() - self._began,
                reason,
                up,
                down,
                decided=approach.verdict if approach and refused_there else self._verdict,
                address=self._address,
                addresses=approach.addresses if approach and leads_on else (),
                steps=tuple(self._steps),
                ident=self.ident,
                generation=self._generation,
            )
        )

    def ended(self, reason: str, up: int = 0, down: int = 0) -> None:
        """Log the end of what was carried, and forget who it was."""
        self.core.whois.leave(self._token)
        self.note("ended", reason, up, down)

    def offer_relayed(self, registration: Registration) -> None:
        """Carry the bytes, to one end of a pair whose other end is the claimant's."""
        self.take_place()
        ours, theirs = socket.socketpair()
        self.let_in()
        registration.offer(Offer(theirs, self.mode.value, told_of(self.who, self.rule)))
        self.carry(ours)

    def carried(self, relay: Relay) -> None:
        """Give the relay's place back, and log its end."""
        self.core.end_relay(self._account, relay)
        self.ended(relay.ending, relay.up, relay.down)

    # -- what a subclass provides

    def offer(self, registration: Registration) -> bool:
        """Hand the connection itself to who has claimed the service; ``False`` where there is none to give away.

        :raises Refused: it does not take its connections, or the mode is not possible.
        """
        return False

    @abstractmethod
    def carry(self, service: socket.socket) -> None:
        """Say ok and relay; owns *service* from then on."""

    @abstractmethod
    def tell(self, word: Refusal) -> None:
        """Refuse and hang up in order."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection as it is. Idempotent."""

    @property
    def shape(self) -> Shape:
        """What its own end is like, for a way onward that carries messages: a stream of them."""
        return Shape(framing=self.core.settings.framings.get(self._service, MESSAGE_FRAMING))

    def here(self) -> End | None:
        """Return where the caller came in, where that has an address."""
        return None

    def tls_version(self) -> str:
        """Return of which version the TLS is that it came in, or ``""``."""
        return ""

    # -- the steps

    def _decide(self, first_read: bytes) -> None:
        self._approach = None
        self._service = name = called(first_read)
        self._account = account_of_address(self.who.address)
        way = self._judge()
        registration = self.core.registrations.find(way.local_service)
        if registration is not None and self.offer(registration):
            return
        traveller = Traveller(self._account, shape=self.shape, caller=self.who, rule=self.rule, hops=self.hops + 1)
        self._approach = approach = Approach(
            self.core,
            name,
            way,
            self.who.subject,
            traveller,
            lambda result: self._reached(result, first_read),
            about_to=self._about_to,
            mark=self._mark,
        )
        approach.start()

    def _judge(self) -> Way:
        """Ask the rules in force about the service that was named; return where its name leads.

        :raises Refused: what they refuse.
        """
        self._generation = self.core.generation
        name, address, subject = self._service, self.who.address, self.who.subject
        to = Destination(self.who.scheme, None, None if address is None else (address,), None)
        self._verdict = verdict = self.core.decide(Question(Direction.IN, name, to, subject))
        if not verdict.granted:
            raise Refused(Refusal.DENIED, verdict.reason)
        return find_way(name, _NO_PAIRS, self.core.settings.routes, subject, for_caller=True)

    def _about_to(self, approach: Approach, go_on: Callable[[], None]) -> None:
        """Refuse what would come back here at once, and whom there is no room to carry.

        That room is asked for before the dial: loops through other machines end there, and would go round
        for ever if each caller that is refused had dialled already.
        """
        assert approach.to is not None and approach.verdict is not None
        check_leads_away(self.core, self._service, approach.to, approach.verdict.addresses)
        self.take_place()
        go_on()

    def take_place(self) -> None:
        """Take a place among the relays; it is given back, or :meth:`let_in` makes it the relay's.

        :raises Refused: ``busy``.
        """
        if not self._has_place:
            self.core.begin_relay(self._account)
            self._has_place = True

    def let_in(self) -> None:
        """It is granted: all that is held while a caller is being let in goes back, but for the relay's place."""
        self._has_place = False
        self.note("granted", "")
        self.leave()

    def _reached(self, result: Reached | Refused, first_read: bytes) -> None:
        if isinstance(result, Refused):
            self.refuse(result)
            return
        if self._generation != self.core.generation:
            result.sock.close()
            guard(self.refuse, self._decide, first_read)
            return
        if not self._introduced(result):
            return
        self._address = result.address
        self._token = self.core.whois.enter(result.sock, self._service, told_of(self.who, self.rule))
        self.let_in()
        self.carry(result.sock)

    def _introduced(self, result: Reached) -> bool:
        """Tell the service who it is, where that reads it; tell whether it may go on."""
        uri = self._approach.uri if self._approach else None
        if result.told or uri is None or uri.scheme != "unix" or uri.service not in self.core.settings.proxied:
            return True
        try:
            introduce(result.sock, self._service, self.who, self.here(), self.tls_version())
        except Refused as e:
            result.sock.close()
            self.refuse(e)
            return False
        return True

    def _mark(self, step: str) -> None:
        now = self.core.reactor.seconds()
        self._steps.append((step, now - self._marked))
        self._marked = now

    @property
    def rule(self) -> str:
        """What let it in."""
        return self._verdict.rule if self._verdict else ""

    @property
    def framing(self) -> str:
        """How the messages of a service with packets look that this caller reaches."""
        return self.core.settings.framings.get(self._service, SERVICE_FRAMING)

    def refuse(self, refused: Refused) -> None:
        self.note(refused.word.value, refused.reason)
        self.core.connect_deadline.cancel(self)
        self.core.census.withdraw(self)
        if self._approach is not None:
            self._approach.cancel()
        self._give_place_back()
        self._refused = refused.word
        if not self.callers.refusals.is_set(self):
            self.tell(refused.word)

    def _refusal_is_due(self) -> None:
        if self._refused is not None:
            self.tell(self._refused)

    def _too_slow(self) -> None:
        self.note("timeout", f"no name within {self.core.patience.seconds:g} seconds")
        self.drop()

    def _dial_too_slow(self) -> None:
        if self._refused is not None:
            return
        word, limits = Refusal.TIMEOUT, self.core.settings.limits
        where = f"{(self._approach.to if self._approach else None) or 'the local service'} did not answer"
        if self.core.census.is_waiting(self):
            word = Refusal.BUSY
            where = f"handed_over_per_uid={limits.handed_over_per_uid}, handed_over={limits.handed_over}: so many live"
        seconds = self.core.connect_deadline.seconds
        self.refuse(Refused(word, f"not done within connect_seconds={seconds:g}: {where}"))

    def leave(self) -> None:
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
            self.callers.holding,
        ):
            deadlines.cancel(self)
        self.core.census.withdraw(self)
        if self._approach is not None:
            self._approach.cancel()
        self._give_place_back()
        self.callers.handshakes.leave(self._key)

    def _give_place_back(self) -> None:
        if self._has_place:
            self._has_place = False
            self.core.relay_places.leave(self._account)
