"""The life of one lookup, from the request to the hand-over.

Syntax and reserved names were the codec's business; then, in this order: who;
redirect and route; rules on names; resolve; rules on addresses; is the scheme
served; connect; handshake; hand over. Each step calls the next. One of them may
be under way at a time, and :meth:`Lookup.cancel` ends it. Callbacks, not
coroutines: a coroutine a lookup costs a quarter of all set-ups.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger

from plumberd.effects.audit import Outcome
from plumberd.effects.call import SchemeCall, TcpCall
from plumberd.effects.conversation import Conversation
from plumberd.effects.credentials import Sender
from plumberd.effects.dial_tcp import TcpDial
from plumberd.effects.dial_unix import UnixDial
from plumberd.effects.endpoint_relay import Half
from plumberd.effects.relay import Relay
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.dialects import Kind, Request
from plumberd.pure.modes import Mode, choose_local_mode, choose_mode
from plumberd.pure.policy.decide import Question, Verdict, both
from plumberd.pure.policy.route import Endpoint, Way, destination, find_way, parse_target_uri
from plumberd.pure.policy.rule import Destination, Direction
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.pure.who import LocalWho
from plumberd.wiring.core import Core
from plumberd.wiring.delivery import Handing, prepare
from plumberd.wiring.endpoint_dial import EndpointDial

SERVED = ("tcp", "unix")
"""The schemes that something here carries; others are ``not-possible``."""


class Places(Protocol):
    """The queues that a lookup stands in: for being worked on, and for being sent."""

    lookups: FairQueue[int, Any]
    unread: FairQueue[int, Any]

    def finished(self, lookup: Any) -> None:
        """The lookup is over; its places are given back."""

    def taken(self, lookup: Any, *, forgotten: bool) -> None:
        """Its descriptor was taken, or will never be; *forgotten*: it lies unread in a live client's queue."""


class _Step(Protocol):
    def cancel(self) -> None: ...


class Lookup:
    """One lookup. It owns whatever descriptor it has made until the conversation takes it."""

    _log = Logger("plumberd.lookup")

    def __init__(
        self,
        core: Core,
        places: Places,
        conversation: Conversation,
        request: Request,
        sender: Sender | None,
        maker: Sender,
    ) -> None:
        self._core = core
        self._places = places
        self.conversation = conversation
        self._request = request
        self._sender = sender
        self._maker = maker
        self.uid = maker[1]
        self._packets = conversation.dialect.kind is Kind.PACKET
        self._began = core.reactor.seconds()
        self._step: _Step | None = None
        self._sock: socket.socket | None = None
        self._who: LocalWho | None = None
        self._to: Destination | None = None
        self._uri: Uri | None = None
        self._relay: Relay | None = None
        self._address: IPAddress | None = None
        self._verdict: Verdict | None = None
        self._mode = Mode.AUTO
        self._carried_elsewhere = False
        """Whether the descriptor is a stream whose other end something else carries: an endpoint, a scheme daemon."""
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
            limits = self._core.settings.limits
            self._refuse(
                Refused(
                    Refusal.BUSY, f"waiting_per_uid: {limits.waiting_per_uid} lookups of uid {self.uid} wait already"
                )
            )

    def start(self) -> None:
        """Go through the steps; refusals end it wherever they come from."""
        self.admitted = True
        if not self._over:
            self._guard(self._decide_names)

    def _guard(self, work: Callable[..., None], *args: Any) -> None:
        """Run a step; whatever goes wrong in it becomes this lookup's refusal, and nobody else's."""
        try:
            work(*args)
        except Refused as e:
            self._refuse(e)
        except OSError as e:
            self._refuse(Refused(Refusal.BUSY, f"the broker could not do it: {os.strerror(e.errno or 0)}"))
        except Exception:
            self._log.failure("a lookup failed")
            self._refuse(Refused(Refusal.UNREACHABLE, "the broker failed; its log says how"))

    def cancel(self) -> None:
        """The client is gone: stop what is under way and close what was made."""
        if not self._over:
            self._note("gone", "the client hung up before it had its answer")
            self._end()

    # -- the steps, in their order

    def _decide_names(self) -> None:
        self._who = self._core.inspector.who(self.conversation.sock, self._maker, self._sender)
        way = self._way()
        if isinstance(way.target, Endpoint):
            self._to = way.target.destination()
            self._verdict = self._judge(None)
            if not self._verdict.granted:
                raise _denied(self._verdict)
            self._mode = self._choose_mode("an administrator's endpoint")
            self._carried_elsewhere = True
            self._dial_endpoint(way.target)
            return
        self._uri = uri = way.target
        self._to = to = destination(uri)
        if uri.scheme == "unix":
            self._verdict = self._judge(uri.service)
            if not self._verdict.granted:
                raise _denied(self._verdict)
            self._dial_unix(uri)
            return
        verdict = self._judge(uri.service)
        if verdict.granted is False:
            raise _denied(verdict)
        if to.addresses is None:
            self._step = self._core.resolver.resolve(uri.host, self.uid, self._resolved)
        else:
            self._dial_tcp(uri, verdict)

    def _resolved(self, answer: tuple[IPAddress, ...] | Refused) -> None:
        self._step = None
        assert self._to is not None and self._uri is not None
        if isinstance(answer, Refused):
            self._refuse(answer)
            return
        self._to = dataclasses.replace(self._to, addresses=answer)
        self._guard(self._decide_addresses, self._uri)

    def _decide_addresses(self, uri: Uri) -> None:
        verdict = self._judge(uri.service)
        if not verdict.granted:
            raise _denied(verdict)
        self._dial_tcp(uri, verdict)

    def _dial_tcp(self, uri: Uri, verdict: Verdict) -> None:
        self._verdict = verdict
        if verdict.granted is None:
            raise Refused(Refusal.DENIED, "the rules could not decide")  # unreachable by design: fail closed
        if uri.scheme not in SERVED:
            raise Refused(Refusal.NOT_POSSIBLE, f"nothing here carries {uri.scheme}; served are {', '.join(SERVED)}")
        if self._core.settings.asks_scheme_daemon and uri.service is not None:
            ipv4 = [a for a in verdict.addresses if a.version == 4]
            if ipv4:  # what does not fit the form that every scheme daemon knows we dial ourselves
                self._ask_scheme_daemon(uri, ipv4[0])
                return
        self._mode = self._choose_mode()
        who = self._who
        assert who is not None
        owner = None
        if self._core.powers.give and who.uid != self._core.powers.uid:
            owner = (who.uid, who.gid)
        dial = TcpDial(self._core.poll, self._core.reactor, verdict.addresses, uri.port, owner, self._connected)
        self._step = dial
        dial.start()

    def _ask_scheme_daemon(self, uri: Uri, address: IPAddress) -> None:
        self._mode = self._choose_mode("the scheme daemon's process")
        self._carried_elsewhere = True
        self._sock = self._core.services.dial_scheme(uri.scheme)
        call = SchemeCall(
            self._core.poll, self._sock, Uri(uri.scheme, str(address), uri.port, uri.service), self._answered
        )
        self._step = call
        call.start()

    def _dial_unix(self, uri: Uri) -> None:
        assert uri.service is not None
        dial = UnixDial(
            self._core.reactor,
            self._core.services,
            uri.service,
            self._who,
            self._local_connected,
            packets=self._packets,
        )
        self._step = dial
        dial.start()

    def _dial_endpoint(self, target: Endpoint) -> None:
        done, ended = self._endpoint_connected, self._endpoint_ended
        dial = EndpointDial(self._core, target.description, self._account, done, ended)
        self._step = dial
        dial.start()

    def _local_connected(self, result: socket.socket | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
        else:
            self._sock = result
            self._guard(self._deliver_local, result.type == socket.SOCK_SEQPACKET)

    def _deliver_local(self, packets: bool) -> None:
        self._mode = choose_local_mode(self._wish(), same_kind=packets == self._packets, packets=self._packets)
        self._deliver()

    def _connected(self, result: tuple[socket.socket, IPAddress] | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
            return
        self._sock, self._address = result
        self._guard(self._call, self._sock)

    def _call(self, sock: socket.socket) -> None:
        assert self._uri is not None
        if self._uri.service is None:
            self._deliver()
            return
        call = TcpCall(self._core.poll, sock, self._uri.service, self._answered)
        self._step = call
        call.start()

    def _answered(self, result: Refused | None) -> None:
        self._step = None
        if result is not None:
            self._refuse(result)
        else:
            self._guard(self._deliver)

    def _endpoint_connected(self, result: socket.socket | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
        else:
            self._sock = result
            self._guard(self._deliver)

    def _endpoint_ended(self, half: Half, up: int, down: int) -> None:
        self._note("ended", "reset" if half.reset else "closed", up, down)

    # -- the hand-over

    def _deliver(self) -> None:
        """Wait until this user has room for one more unread descriptor, then send."""
        if self._places.unread.enter(self.uid, self) is Admission.NOW:
            self._send()

    def send(self) -> None:
        """There is room now: make the descriptor ready and hand it over."""
        self._guard(self._send)

    def _send(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        try:
            sock = self._prepare(sock)
        except BaseException:
            sock.close()
            self._places.taken(self, forgotten=False)
            raise
        self._note("granted", "")
        self._core.connect_deadline.cancel(self)
        self._over = True
        self._places.finished(self)
        rule = self._verdict.rule if self._verdict else ""
        self.conversation.grant(self._request, sock.detach(), self._mode.value, rule, self._taken)
        if self._relay is not None:
            self._relay.start()

    def _prepare(self, sock: socket.socket) -> socket.socket:
        """Return what the client gets for *sock*; from then on that owns *sock*."""
        uri = self._uri
        self._relay, theirs = prepare(
            self._core,
            sock,
            Handing(
                self._mode,
                packets=self._packets,
                carried=self._carried_elsewhere,
                framing=(uri.option("framing") if uri else None) or self.conversation.dialect.framing,
                peer=(self._address, uri.port) if uri and self._address else None,
                account=self._account,
            ),
            self._relay_done,
        )
        return theirs

    def _taken(self, taken: bool) -> None:
        self._places.taken(self, forgotten=self.conversation.left_unread)

    def _relay_done(self, relay: Relay) -> None:
        self._core.end_relay(self._account, relay)
        self._note("ended", relay.ending, relay.up, relay.down)

    # -- small parts of the steps

    def _way(self) -> Way:
        request, routes = self._request, self._core.settings.routes
        if request.service is not None:
            return find_way(request.service, request.pairs, routes)
        uri = parse_target_uri(request.uri or "")
        if uri.scheme == "unix" and uri.service is not None:
            # a local service by its bare name: a lookup of that name, redirects and all
            self._request = dataclasses.replace(request, service=uri.service)
            way = find_way(uri.service, request.pairs, routes)
            if uri.options and isinstance(way.target, Uri) and way.target.scheme == "unix":
                return dataclasses.replace(way, target=dataclasses.replace(way.target, options=uri.options))
            return way
        return Way(uri, ())

    def _judge(self, far_service: str | None) -> Verdict:
        """Ask the rules: for the service that was asked for, and for the one that the URI names."""
        assert self._who is not None and self._to is not None
        policy = self._core.policy_for(self._who)
        question = Question(Direction.OUT, self._request.service, self._to, bool(self._who.confined))
        decide = self._core.decide
        verdict = decide(policy, question)
        if verdict.granted is False or far_service is None or far_service == self._request.service:
            return verdict
        return both(verdict, decide(policy, dataclasses.replace(question, service=far_service)))

    def _wish(self) -> Mode:
        assert self._verdict is not None
        return self._verdict.handover or self._core.settings.handover

    def _choose_mode(self, carrier: str = "") -> Mode:
        assert self._who is not None
        return choose_mode(self._wish(), self._who, self._core.powers, carrier=carrier, packets=self._packets)

    # -- the ends

    def _too_slow(self) -> None:
        seconds = self._core.settings.limits.connect_seconds
        where = f"waiting for its turn: lookups_per_uid={self._core.settings.limits.lookups_per_uid}"
        word = Refusal.BUSY
        if self._sock is not None and self._step is None:
            where = f"its user has {self._places.unread.per_key} descriptors unread (unread_descriptors_per_uid)"
        elif self.admitted:
            word = Refusal.TIMEOUT
            where = f"{self._to or 'the far side'} did not answer"
        self._refuse(Refused(word, f"not done within {seconds:g} seconds: {where}"))

    def _refuse(self, refused: Refused) -> None:
        if self._over:
            return
        self._note(refused.word.value, refused.reason)
        self._end()
        self.conversation.refuse(self._request.ident, refused.word, refused.reason[:REASON_BYTES])

    def _end(self) -> None:
        self._over = True
        self._core.connect_deadline.cancel(self)
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        self._places.unread.withdraw(self.uid, self)
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        self._places.finished(self)

    def _note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        self._core.audit.note(
            Outcome(
                verdict,
                "out",
                self._request.service or "",
                (self._uri if self._mode is not Mode.LOCAL else None) or self._to or "",
                self._who or f"uid={self.uid}",
                self._verdict.rule if self._verdict else "",
                self._mode.value if verdict in ("granted", "ended") else "",
                self._core.reactor.seconds() - self._began,
                reason,
                up,
                down,
            )
        )


def _denied(verdict: Verdict) -> Refused:
    return Refused(Refusal.DENIED, verdict.reason)
