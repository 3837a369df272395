"""The life of one lookup, from the request to the hand-over.

Syntax and reserved names were the codec's business; then, in this order: who;
redirect and route; what :mod:`plumberd.wiring.dialing.approach` does; decide again, if
the configuration is another by now; hand over. Each step calls the next. One of
them may be under way at a time, and :meth:`Lookup.cancel` ends it. Callbacks,
not coroutines: a coroutine a lookup costs a quarter of all set-ups.
"""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections.abc import Callable
from typing import Any, Protocol

from plumberd.effects.audit import Outcome
from plumberd.effects.conversation import Conversation
from plumberd.effects.credentials import Sender
from plumberd.effects.relay import Relay
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.dialects import Kind, Request
from plumberd.pure.modes import COUNTED, Mode, choose_local_mode, choose_mode
from plumberd.pure.policy.route import Way, find_way, parse_target_uri
from plumberd.pure.policy.subject import Subject
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.pure.shape import Shape, SocketType
from plumberd.pure.uri import IPAddress, Uri
from plumberd.pure.who import LocalWho
from plumberd.wiring.clients.asker import Asker
from plumberd.wiring.clients.delivery import Handing, prepare
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.approach import Approach, guard
from plumberd.wiring.dialing.reach import Reached, Traveller
from plumberd.wiring.dialing.served import CARRY_MESSAGES


class Places(Protocol):
    """The queues that a lookup stands in: for being worked on, and for being sent."""

    lookups: FairQueue[int, Any]
    unread: FairQueue[int, Any]

    def finished(self, lookup: Any) -> None:
        """The lookup is over; its places are given back."""

    def taken(self, lookup: Any, *, forgotten: bool) -> None:
        """Its descriptor was taken, or will never be; *forgotten*: it lies unread in a live client's queue."""


class Lookup:
    """One lookup. It owns whatever descriptor it has made until the conversation takes it."""

    def __init__(
        self,
        core: Core,
        places: Places,
        conversation: Conversation,
        request: Request,
        sender: Sender | None,
        asker: Asker,
    ) -> None:
        self._core = core
        self._places = places
        self.conversation = conversation
        self._request = request
        self._sender = sender
        self._asker = asker
        self.uid = asker.uid
        packets = conversation.dialect.kind is Kind.PACKET
        self._type = request.type or (SocketType.SEQPACKET if packets else SocketType.STREAM)
        self._began = self._marked = core.reactor.seconds()
        self._steps: list[tuple[str, float]] = []
        self._ident = core.audit.new_ident()
        self._who: LocalWho | None = None
        self._approach: Approach | None = None
        self._sock: socket.socket | None = None
        self._address: IPAddress | None = None
        self._relay: Relay | None = None
        self._fits = False
        self._message_bytes = 0
        self._mode = Mode.AUTO
        self._generation = 0
        self._granted = False
        self._over = False
        self._account = f"uid {self.uid}"
        self.admitted = False

    def enter(self) -> None:
        """Ask for a place, and begin when there is one."""
        self._core.connect_deadline.set(self, self._too_slow)
        admission = self._places.lookups.enter(self.uid, self)
        if admission is Admission.NOW:
            self.start()
        elif admission is Admission.FULL:
            most = self._core.settings.limits.waiting_per_uid
            self._refuse(
                Refused(Refusal.BUSY, f"waiting_per_uid={most}: so many lookups of uid {self.uid} wait already")
            )

    def start(self) -> None:
        """Go through the steps; refusals end it wherever they come from."""
        self.admitted = True
        if not self._over:
            self._mark("queue")
            guard(self._refuse, self._decide)

    def cancel(self) -> None:
        """The client is gone: stop what is under way and close what was made."""
        if not self._over:
            self._note("gone", "the client hung up before it had its answer")
            self._end()

    # -- the steps, in their order

    def _decide(self) -> None:
        self._generation = self._core.generation
        self._approach = None
        self._who = who = self._asker.who(self._core.inspector, self.conversation.sock, self._sender)
        self._mark("who")
        subject = self._core.subject_of(who)
        way = self._way(subject)
        powers = self._core.powers
        owner = (who.uid, who.gid) if powers.give and who.uid != powers.uid else None
        self._approach = approach = Approach(
            self._core,
            self._request.service,
            way,
            subject,
            Traveller(self._account, who, owner, self._shape(), ended=self._ended_of(self._generation)),
            self._reached,
            about_to=self._about_to,
            mark=self._mark,
        )
        self._mark("route")
        approach.start()

    def _about_to(self, approach: Approach, go_on: Callable[[], None]) -> None:
        """Choose the mode before anything is dialled, where that does not depend on what is found there.

        A socket that will leave this process is counted, and may have to wait.
        """
        assert self._who is not None
        self._mode, census = Mode.AUTO, self._core.census
        census.withdraw(self)  # what another alternative asked for
        messages = approach.uri is not None and approach.uri.scheme in CARRY_MESSAGES
        if self._type is SocketType.DGRAM and not messages:
            raise Refused(
                Refusal.NOT_POSSIBLE,
                f"type=dgram: {approach.to} is a connection that ends, which a datagram socket cannot tell; "
                "ask for seqpacket",
            )
        if approach.uri is None or approach.uri.scheme != "unix":
            self._mode = choose_mode(
                self._wish(),
                self._who,
                self._core.powers,
                carrier=approach.carrier,
                packets=self._type.packets,
                messages=messages,
            )
            framed = self._mode is Mode.FRAMED
            if framed is not approach.traveller.framed:  # a copy costs as much as a system call
                approach.traveller = dataclasses.replace(approach.traveller, framed=framed)
        if self._mode not in COUNTED or census.admit(self, self._who.uid, functools.partial(self._counted, go_on)):
            go_on()

    def _counted(self, go_on: Callable[[], None], refused: Refused | None) -> None:
        if refused is not None:
            self._refuse(refused)
        else:
            guard(self._refuse, go_on)

    def _reached(self, result: Reached | Refused) -> None:
        if isinstance(result, Refused):
            self._refuse(result)
            return
        self._sock, self._address = result.sock, result.address
        self._fits, self._message_bytes = result.fits, result.message_bytes
        guard(self._refuse, self._deliver)

    def _ended_of(self, generation: int) -> Callable[[str, int, int], None]:
        """Return what is told the end of what something else carries; under another policy it was not ours."""

        def ended(ending: str, up: int, down: int) -> None:
            if self._granted and generation == self._generation:
                self._note("ended", ending, up, down)

        return ended

    # -- the hand-over

    def _deliver(self) -> None:
        """Wait until this user has room for one more unread descriptor, then send."""
        if self._is_outdated():
            return
        approach, sock = self._approach, self._sock
        assert approach is not None and sock is not None
        if approach.uri is not None and approach.uri.scheme == "unix":
            packets = self._type.packets
            same_kind = (sock.type == socket.SOCK_SEQPACKET) == packets
            self._mode = choose_local_mode(self._wish(), same_kind=same_kind, packets=packets)
        if self._places.unread.enter(self.uid, self) is Admission.NOW:
            self._send()

    def _is_outdated(self) -> bool:
        """Begin again where the configuration has changed since it was decided; the deadline stays."""
        if self._generation == self._core.generation:
            return False
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        self._decide()
        return True

    def send(self) -> None:
        """There is room now: make the descriptor ready and hand it over."""
        if self._over:
            self._places.taken(self, forgotten=False)
        else:
            guard(self._refuse, self._send_late)

    def _send_late(self) -> None:
        if self._generation != self._core.generation:
            self._places.taken(self, forgotten=False)  # somebody else's turn, while this is decided again
            self._is_outdated()
        else:
            self._send()

    def _send(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        try:
            sock = self._prepare(sock)
        except BaseException:
            sock.close()
            self._places.taken(self, forgotten=False)
            raise
        self._mark("handover")
        if self._mode in COUNTED and self._who is not None:
            who, service, mode = self._who, self._request.service or "", self._mode.value
            self._core.census.add(self, sock, who.uid, service, mode, who.pid, self._ident)
        self._granted = True
        self._note("granted", "")
        self._core.connect_deadline.cancel(self)
        self._over = True
        self._places.finished(self)
        verdict = self._approach.verdict if self._approach else None
        rule = verdict.rule if verdict else ""
        self.conversation.grant(self._request, sock.detach(), self._mode.value, rule, self._taken, self._message_bytes)
        if self._relay is not None:
            self._relay.start()

    def _prepare(self, sock: socket.socket) -> socket.socket:
        """Return what the client gets for *sock*; from then on that owns *sock*."""
        approach = self._approach
        assert approach is not None
        uri = approach.uri
        self._relay, theirs = prepare(
            self._core,
            sock,
            Handing(
                self._mode,
                packets=self._type.packets,
                carried=self._fits or (bool(approach.carrier) and not self._type.packets),
                framing=self._framing(uri),
                peer=(self._address, uri.port) if uri and self._address else None,
                account=self._account,
            ),
            self._relay_done,
        )
        return theirs

    def _framing(self, uri: Uri | None) -> str:
        """Return how messages look that a stream is cut into: as the URI says, the configuration, or the client."""
        told = uri.option("framing") if uri else None
        return told or self._message_framing(bare=self._type.packets and self.conversation.dialect.bare)

    def _shape(self) -> Shape:
        """Return what the client's end is like, for what carries messages."""
        return Shape(self._type, self._message_framing(bare=self.conversation.dialect.bare))

    def _message_framing(self, *, bare: bool) -> str:
        configured = self._core.settings.framings.get(self._request.service or "")
        return configured or ("raw" if bare else self.conversation.dialect.framing)

    def _taken(self, taken: bool) -> None:
        self._places.taken(self, forgotten=self.conversation.left_unread)

    def _relay_done(self, relay: Relay) -> None:
        self._core.end_relay(self._account, relay)
        self._note("ended", relay.ending, relay.up, relay.down)

    # -- small parts of the steps

    def _way(self, subject: Subject) -> Way:
        request, routes = self._request, self._core.settings.routes
        pairs = self._asker.pairs_for(request)
        if request.uri is None and request.service is not None:
            return find_way(request.service, pairs, routes, subject)
        uri = parse_target_uri(request.uri or "")
        if uri.scheme == "unix" and uri.service is not None:
            # a local service by its bare name: a lookup of that name, redirects and all
            self._request = dataclasses.replace(request, service=uri.service)
            way = find_way(uri.service, pairs, routes, subject)
            if uri.options and isinstance(way.target, Uri) and way.local_service is not None:
                return dataclasses.replace(way, targets=(dataclasses.replace(way.target, options=uri.options),))
            return way
        return Way((uri,))

    def _wish(self) -> Mode:
        verdict = self._approach.verdict if self._approach else None
        return (verdict.handover if verdict else None) or self._core.settings.handover

    def _mark(self, step: str) -> None:
        now = self._core.reactor.seconds()
        self._steps.append((step, now - self._marked))
        self._marked = now

    # -- the ends

    def _too_slow(self) -> None:
        limits = self._core.settings.limits
        where = f"waiting for its turn: lookups_per_uid={limits.lookups_per_uid}, lookups={limits.lookups}"
        word = Refusal.BUSY
        if self._sock is not None:
            most = self._places.unread.per_key
            where = f"its user has {most} descriptors unread (unread_descriptors_per_uid={most})"
        elif self._core.census.is_waiting(self):
            where = f"handed_over_per_uid={limits.handed_over_per_uid}, handed_over={limits.handed_over}: so many live"
        elif self.admitted:
            word = Refusal.TIMEOUT
            approach = self._approach
            where = f"{(approach.to if approach else None) or 'the far side'} did not answer"
        seconds = self._core.connect_deadline.seconds
        self._refuse(Refused(word, f"not done within connect_seconds={seconds:g}: {where}"))

    def _refuse(self, refused: Refused) -> None:
        if self._over:
            return
        self._note(refused.word.value, refused.reason)
        self._end()
        self.conversation.refuse(self._request.ident, refused.word, refused.reason[:REASON_BYTES])

    def _end(self) -> None:
        self._over = True
        self._core.census.withdraw(self)
        self._core.connect_deadline.cancel(self)
        if self._approach is not None:
            self._approach.cancel()
        self._places.unread.withdraw(self.uid, self)
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        self._places.finished(self)

    def _note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        approach = self._approach
        self._core.audit.note(
            Outcome(
                verdict,
                "out",
                self._request.service or "",
                (approach.uri if approach and self._mode is not Mode.LOCAL else None)
                or (approach and approach.to)
                or "",
                self._who or "",
                "",
                self._mode.value if verdict in ("granted", "ended") else "",
                self._core.reactor.seconds() - self._began,
                reason,
                up,
                down,
                decided=approach.verdict if approach else None,
                address=self._address,
                addresses=approach.addresses if approach else (),
                steps=tuple(self._steps),
                ident=self._ident,
                generation=self._generation,
                uid=self.uid,
            )
        )
