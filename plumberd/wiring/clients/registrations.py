"""Services that listen on nothing: a local program claims a name, and is handed each connection itself.

Each connection goes to the claimant over the very connection on which it made its
claim, the next one when the last was taken. A claimant that does not take what it
is handed loses its claim, and nobody else waits for it.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from plumberd.effects.conversation import Conversation
from plumberd.effects.credentials import Inspector, maker_of
from plumberd.effects.dial_unix import LocalServices
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.dialects import Send
from plumberd.pure.dialects.native import answer
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho, RemoteWho

WAITING = 128
"""Connections that wait for one claimant, as in the backlog of a listening socket."""

CLAIMS_PER_UID = 256
"""Each costs memory as long as its claimant likes."""


class Places(Protocol):
    """The queue for sending descriptors, shared with :class:`lookups <plumberd.wiring.clients.lookup.Places>`."""

    unread: FairQueue[int, Any]

    def taken(self, sender: Any, *, forgotten: bool) -> None:
        """A descriptor was taken, or will never be; *forgotten*: it lies unread in a live client's queue."""


@dataclass(frozen=True)
class Offer:
    """One connection for a claimant.

    :ivar sock: the claimant's, ready for its new owner; closed here if it is never taken.
    :ivar mode: of the hand-over.
    :ivar told: who is at the other end and why it may be, as JSON.
    """

    sock: socket.socket
    mode: str
    told: dict[str, Any] = field(default_factory=dict)


class Registration:
    """One claim, as long as its conversation lives. It owns what it is offered until that is sent."""

    def __init__(
        self, claims: Registrations, service: str, who: LocalWho, conversation: Conversation, places: Places
    ) -> None:
        self.service = service
        self.who = who
        self.uid = who.uid
        self._claims = claims
        self._conversation = conversation
        self._places = places
        self._waiting: deque[Offer] = deque()
        self._wants_room = False
        self._over = False

    def who_now(self, inspector: Inspector) -> LocalWho:
        """Return who the claimant is by now: it may have gone into a cage since it made its claim.

        :raises Refused: ``denied`` where it is another user by now.
        :raises OSError: where it can't be had for now.
        """
        if self.who.confined:
            return self.who
        maker = maker_of(self._conversation.sock)
        return inspector.who(self._conversation.sock, maker, maker)

    def check_room(self) -> None:
        """Check that one more connection may wait.

        :raises Refused: ``busy``.
        """
        if self._over:
            raise Refused(Refusal.BUSY, f"who had claimed {self.service} has just gone")
        if len(self._waiting) >= WAITING:
            raise Refused(
                Refusal.BUSY,
                f"{WAITING} connections wait for {self.service} already: uid {self.uid} does not take them",
            )
        if self._claims.waiting_of[self.uid] >= self._claims.most_waiting:
            most = self._claims.most_waiting
            raise Refused(Refusal.BUSY, f"{most} connections wait for the services of uid {self.uid} already")

    @property
    def waiting(self) -> int:
        """How many connections wait."""
        return len(self._waiting)

    def offer(self, offer: Offer) -> None:
        """Hand *offer* over, when it is its turn; who offers has asked whether there is room."""
        if self._over:
            offer.sock.close()
            return
        self._waiting.append(offer)
        self._claims.waiting_of[self.uid] += 1
        self.hand_over()

    def end(self) -> None:
        """The claimant is gone: what waits for it is closed."""
        self._over = True
        if self._wants_room:
            self._places.unread.withdraw(self.uid, self)  # else its turn has come, and `send` gives it back
        while self._waiting:
            self._next_offer().sock.close()

    def hand_over(self) -> None:
        """Hand the next one over, if the claimant has taken what it was sent before, and its user has room."""
        if self._is_ready and not self._wants_room:
            if self._places.unread.enter(self.uid, self) is Admission.NOW:
                self.send()
            else:
                self._wants_room = True

    def send(self) -> None:
        """There is room now for one more descriptor that this user has not read."""
        self._wants_room = False
        if not self._is_ready:
            self._places.taken(self, forgotten=False)
            return
        offer = self._next_offer()
        members = {"ok": True, "op": "accepted", "fd": True, "service": self.service, "mode": offer.mode, **offer.told}
        self._conversation.push(Send(answer(None, members), descriptor=True), offer.sock.detach(), self._taken)

    @property
    def _is_ready(self) -> bool:
        return bool(self._waiting) and not self._over and self._conversation.is_resting

    def _next_offer(self) -> Offer:
        _decrease(self._claims.waiting_of, self.uid)
        return self._waiting.popleft()

    def _taken(self, taken: bool) -> None:
        self._places.taken(self, forgotten=self._conversation.left_unread)


class Registrations:
    """Every claim of this process.

    :ivar waiting_of: how many connections wait for each user, whichever claim of theirs they are for.
    """

    def __init__(self, services: LocalServices, most_waiting: int) -> None:
        """*most_waiting*: connections that may wait for all claims of one user; each is a descriptor here."""
        self.most_waiting = most_waiting
        self.waiting_of: Counter[int] = Counter()
        self._services = services
        self._of: dict[str, Registration] = {}
        self._on: dict[Conversation, deque[Registration]] = {}
        self._count_of: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._of.values())

    def find(self, service: str | None) -> Registration | None:
        """Return who has claimed *service*."""
        return self._of.get(service) if service is not None and self._of else None

    def has_claims(self, conversation: Conversation) -> bool:
        """Tell whether a service was claimed on *conversation*."""
        return conversation in self._on

    def claim(self, service: str, who: LocalWho, conversation: Conversation, places: Places) -> Registration:
        """Let *conversation* have the service's connections from now on. That rules allow it was asked before.

        :raises Refused: ``denied`` where somebody has it already, or listens on its socket; ``busy`` where
            the same user has too many.
        """
        other = self._of.get(service)
        if other is not None:
            raise Refused(Refusal.DENIED, f"{service} is claimed already, by uid {other.who.uid} pid {other.who.pid}")
        if self._count_of[who.uid] >= CLAIMS_PER_UID:
            raise Refused(Refusal.BUSY, f"uid {who.uid} has claimed {CLAIMS_PER_UID} services already")
        self._check_socket(service)
        registration = Registration(self, service, who, conversation, places)
        self._of[service] = registration
        self._count_of[who.uid] += 1
        self._on.setdefault(conversation, deque()).append(registration)
        conversation.serve(lambda: self._next(conversation))
        return registration

    def judge(self, may_serve: Callable[[str, LocalWho], bool]) -> None:
        """End the claims that rules do not allow any more, each with its conversation."""
        for conversation, claims in list(self._on.items()):
            if not all(may_serve(claim.service, claim.who) for claim in claims):
                conversation.close()

    def _next(self, conversation: Conversation) -> None:
        """Hand the next one over; the services that one claimant has take turns."""
        claims = self._on.get(conversation, deque())
        for _ in range(len(claims)):
            if not conversation.is_resting:
                return
            claims.rotate(-1)
            claims[-1].hand_over()

    def gone(self, conversation: Conversation) -> Sequence[Registration]:
        """The connection of a claimant is over, and so are its claims: return them."""
        claims = self._on.pop(conversation, ())
        for registration in claims:
            del self._of[registration.service]
            _decrease(self._count_of, registration.uid)
            registration.end()
        return claims

    def _check_socket(self, service: str) -> None:
        try:
            self._services.dial(service, None).close()
        except BlockingIOError:
            pass  # its backlog is full: it is alive
        except Refused as e:
            if e.word is Refusal.UNKNOWN_SERVICE:
                return
            raise Refused(Refusal.DENIED, f"{service} cannot be claimed: {e.reason}") from None
        raise Refused(Refusal.DENIED, f"{service} cannot be claimed: somebody listens on its socket")


def _decrease(counter: Counter[int], uid: int) -> None:
    counter[uid] -= 1
    if not counter[uid]:
        del counter[uid]


def told_of(who: LocalWho | RemoteWho | None, rule: str) -> dict[str, Any]:
    """Return what a service is told of who is at the other end of a connection, and why it may be."""
    identities: list[str] = []
    if isinstance(who, RemoteWho):
        address = None if who.address is None else str(who.address)
        peer: dict[str, Any] = {"scheme": who.scheme, "address": address, "port": who.port}
        identities = sorted(who.identities)
        if who.via:
            peer["via"] = who.via.split(" ")
    else:
        peer = {"scheme": "unix"}
        if who is not None:
            peer.update(uid=who.uid, gid=who.gid, pid=who.pid)
    return {"peer": peer, "identities": identities, "rule": rule}
