"""Services that listen on nothing: a local program claims a name, and is handed each connection itself.

Each connection goes to the claimant over the very connection on which it made its
claim, the next one when the last was taken. A claimant that does not take what it
is handed loses its claim, and nobody else waits for it.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from plumberd.effects.conversation import Conversation
from plumberd.effects.dial_unix import LocalServices
from plumberd.pure.dialects import Send
from plumberd.pure.dialects.native import answer
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho

WAITING = 128
"""Connections that wait for one claimant, as in the backlog of a listening socket."""


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

    def __init__(self, service: str, who: LocalWho, conversation: Conversation) -> None:
        self.service = service
        self.who = who
        self._conversation = conversation
        self._waiting: deque[Offer] = deque()
        self._over = False

    @property
    def has_room(self) -> bool:
        """Whether one more connection may wait."""
        return not self._over and len(self._waiting) < WAITING

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
        self.hand_over()

    def end(self) -> None:
        """The claimant is gone: what waits for it is closed."""
        self._over = True
        while self._waiting:
            self._waiting.popleft().sock.close()

    def hand_over(self) -> None:
        """Hand the next one over, if the claimant has taken what it was sent before."""
        if self._waiting and not self._over and self._conversation.is_resting:
            offer = self._waiting.popleft()
            members = {
                "ok": True,
                "op": "accepted",
                "fd": True,
                "service": self.service,
                "mode": offer.mode,
                **offer.told,
            }
            self._conversation.push(Send(answer(None, members), descriptor=True), offer.sock.detach())


class Registrations:
    """Every claim of this process."""

    def __init__(self, services: LocalServices) -> None:
        self._services = services
        self._of: dict[str, Registration] = {}
        self._on: dict[Conversation, deque[Registration]] = {}

    def __iter__(self) -> Iterator[Registration]:
        return iter(self._of.values())

    def find(self, service: str | None) -> Registration | None:
        """Return who has claimed *service*."""
        return self._of.get(service) if service is not None and self._of else None

    def claim(self, service: str, who: LocalWho, conversation: Conversation) -> None:
        """Let *conversation* have the service's connections from now on. That rules allow it was asked before.

        :raises Refused: ``denied`` where somebody has it already, or listens on its socket.
        """
        other = self._of.get(service)
        if other is not None:
            raise Refused(Refusal.DENIED, f"{service} is claimed already, by uid {other.who.uid} pid {other.who.pid}")
        self._check_socket(service)
        registration = Registration(service, who, conversation)
        self._of[service] = registration
        self._on.setdefault(conversation, deque()).append(registration)
        conversation.serve(lambda: self._next(conversation))

    def judge(self, may_serve: Callable[[str, LocalWho], bool]) -> None:
        """End the claims that rules do not allow any more, each with its conversation."""
        for conversation, claims in list(self._on.items()):
            if not all(may_serve(claim.service, claim.who) for claim in claims):
                conversation.close()

    def _next(self, conversation: Conversation) -> None:
        """Hand the next one over; the services that one claimant has take turns."""
        claims = self._on.get(conversation, deque())
        for _ in range(len(claims)):
            claims.rotate(-1)
            claims[-1].hand_over()

    def gone(self, conversation: Conversation) -> None:
        """The connection of a claimant is over, and so are its claims."""
        for registration in self._on.pop(conversation, ()):
            del self._of[registration.service]
            registration.end()

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


def local_pair(
    make: Callable[[], tuple[socket.socket, socket.socket]], who: LocalWho | None
) -> tuple[socket.socket, Offer]:
    """Return a local client's end of a new connection, non-blocking, and the offer of the other.

    :param make: makes a pair of stream sockets, as the client, so that the service sees whose it is.
    """
    ours, theirs = make()
    ours.setblocking(False)
    peer: dict[str, Any] = {"scheme": "unix"}
    if who is not None:
        peer.update(uid=who.uid, gid=who.gid, pid=who.pid)
    return ours, Offer(theirs, "local", {"peer": peer, "identities": []})
