"""What the broker and the scheme daemons of one process share."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger

from plumberd.effects import kernel
from plumberd.effects.actas import ActAs
from plumberd.effects.audit import Audit
from plumberd.effects.credentials import Inspector
from plumberd.effects.deadline import Deadlines
from plumberd.effects.dial_unix import LocalServices
from plumberd.effects.endpoint_relay import Half, adopt
from plumberd.effects.handover import try_powers
from plumberd.effects.interfaces import own_addresses
from plumberd.effects.logins import Logins as OwnLogins
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import Poll
from plumberd.effects.resolve import Resolver
from plumberd.effects.tls_contexts import Contexts
from plumberd.effects.tls_handshake import Turns
from plumberd.effects.tls_pumps import BufferPool
from plumberd.effects.ws_relay import Lives
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.backoff import Backoff
from plumberd.pure.modes import Mode, Powers
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.policy.decide import Policy, Question, Verdict, decide
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.subject import ANYBODY, Standing, Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls import peer_key
from plumberd.pure.uri import IPAddress, Uri
from plumberd.pure.who import LocalWho
from plumberd.wiring.census import Census
from plumberd.wiring.clients.registrations import Registrations
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.ops.whois import Whois
from plumberd.wiring.traffic import Traffic

DESCRIPTORS_A_RELAY = 4

DECISIONS = 4096
"""Decisions that are remembered."""

OWN_ADDRESSES_SECONDS = 1.0
"""How old the list of the machine's own addresses may be when it counts for a decision."""

_CONFINED = Subject(Standing.CONFINED)


def _cannot_reload(done: Callable[[dict[str, Any]], None]) -> None:
    raise Refused(Refusal.NOT_POSSIBLE, "nothing here can be read again")


def _is_nowhere(address: IPAddress, port: int) -> bool:
    return False


class Carried(Protocol):
    """A connection that is being carried."""

    def abort(self) -> None:
        """End it now."""


class Cancellable(Protocol):
    """Something under way."""

    def cancel(self) -> None:
        """Give it up; nobody is told anything any more."""


class Logins(Protocol):
    """Checks who logs in."""

    def check(self, login: Login, address: IPAddress | None, done: Callable[[bool | Refused], None]) -> Cancellable:
        """Give *done*, later, whether the login is right, or why it cannot be told."""


@dataclass
class Core:
    """Made once a process by :func:`make_core`; :meth:`close` ends it.

    :ivar reactor: Twisted's, with all of its interfaces.
    :ivar own: device and inode of every socket that this process listens on.
    :ivar descriptors: how many this process may have.
    :ivar relays: what is being carried.
    :ivar registrations: services that are handed their connections.
    :ivar is_here: whether an address and port is one that this process listens on for callers.
    :ivar tls: what this machine proves and believes, in OpenSSL's terms.
    :ivar buffers: for what is carried inside TLS.
    :ivar logins: who checks passwords, where anybody does.
    :ivar whois: the callers that are carried to local services.
    :ivar lives: looks after WebSockets.
    :ivar datagrams: what became of those that were carried.
    :ivar turns: of TLS handshakes, which cost as much as lookups.
    :ivar reload: reads the configuration again; gives, later, the answer of the op.
    :ivar generation: counts the policies that were in force; what was decided under another is decided again.
    """

    reactor: Any
    settings: Settings
    poll: Poll
    audit: Audit
    powers: Powers
    inspector: Inspector
    services: LocalServices
    resolver: Resolver
    own: set[tuple[int, int]]
    descriptors: int
    connect_deadline: Deadlines
    patience: Deadlines
    census: Census
    pipes: PipePool = field(default_factory=PipePool)
    relays: set[Carried] = field(default_factory=set)
    buffers: BufferPool = field(default_factory=BufferPool)
    logins: Logins | None = None
    whois: Whois = field(default_factory=Whois)
    lives: Lives = field(init=False)
    datagrams: Traffic = field(default_factory=Traffic)
    turns: Turns = field(init=False)
    tls: Contexts = field(init=False)
    relay_places: FairQueue[str, None] = field(init=False)
    registrations: Registrations = field(init=False)
    backoff: Backoff = field(default_factory=Backoff)
    is_here: Callable[[IPAddress, int], bool] = field(default=_is_nowhere)
    reload: Callable[[Callable[[dict[str, Any]], None]], None] = field(default=_cannot_reload)
    generation: int = field(default=0, init=False)
    _log = Logger("plumberd")
    _own_logins: OwnLogins = field(init=False)
    _policy: Policy = field(default_factory=Policy, init=False)
    _asks_who: bool = field(default=True, init=False)
    _audit_only: IDelayedCall | None = field(default=None, init=False)
    _decisions: dict[Question, Verdict] = field(default_factory=dict, init=False)
    _addresses_at: float = field(default=float("-inf"), init=False)

    def __post_init__(self) -> None:
        self.relay_places = FairQueue(1, 1, 0)
        self.registrations = Registrations(self.services, self.descriptors // 4)
        self.turns = Turns(self.poll)
        self.lives = Lives(self.reactor)
        self._own_logins = OwnLogins(self.reactor)
        self.reconfigure(self.settings)
        self._begin_audit_only()

    def refreshed_policy(self) -> Policy:
        """Return the policy in force, with the addresses that the machine has now."""
        self._look_at_addresses()
        return self._policy

    @property
    def addresses(self) -> frozenset[IPAddress]:
        """The machine's own addresses, loopback included, as they are now."""
        return self.refreshed_policy().own_addresses

    def decide(self, question: Question) -> Verdict:
        """Decide, or remember what was decided: the function is pure, and what it depends on is kept with it."""
        if question.direction is Direction.OUT and question.subject.standing is not Standing.LOCAL:
            self._look_at_addresses()
        verdict = self._decisions.get(question)
        if verdict is None:
            if len(self._decisions) >= DECISIONS:
                self._decisions.clear()
            verdict = self._decisions[question] = decide(self._policy, question)
        return verdict

    def proves(self, uri: Uri) -> bool:
        """Tell whether this machine proves who it is at *uri*."""
        peer = self.settings.peers.get(peer_key(uri.host, uri.port))
        return peer is not None and peer.proves

    def subject_of(self, who: LocalWho) -> Subject:
        """Return *who* as rules see it; all clients are one to rules that speak of none."""
        if self._asks_who:
            return who.subject
        return _CONFINED if who.confined else ANYBODY

    def reconfigure(self, settings: Settings) -> None:
        """Put *settings* in force: from now on everything is decided by them, also what is under way."""
        limits = settings.limits
        self._own_logins.change(settings.logins, limits.login_failures_per_minute)  # may fail: before all else
        self.logins = self._own_logins if self._own_logins.can_check else None
        before, self.settings = self.settings, settings
        self.connect_deadline.change(limits.connect_seconds)
        self.patience.change(limits.handshake_seconds)
        self.resolver.change(limits)
        # A relay takes two descriptors, and a pipe while bytes are under way: never more than there are.
        most = self.descriptors // DESCRIPTORS_A_RELAY
        self.relay_places.change(min(limits.relays_per_peer, most // 2), min(limits.relays, most), 0)
        self.services.trusted_uids = _trusted_uids(settings)
        self.inspector.tell_cgroup = _wants_cgroup(settings, self.powers)
        self._asks_who = settings.policy.asks_who or settings.routes.asks_who
        self.backoff.clear()
        # New ones for each generation: with the keys of its tickets, and what it believes.
        self.tls = Contexts(settings.tls, settings.peers)
        if settings.audit_only_seconds != before.audit_only_seconds:
            self._begin_audit_only()
        self._put_in_force()
        self.census.change(limits)  # who goes on now is decided again

    def _begin_audit_only(self) -> None:
        """Grant and log what would be refused, for as long as the settings say; or end that."""
        if self._audit_only is not None:
            self._audit_only.cancel()
            self._audit_only = None
        if self.settings.audit_only_seconds:
            self._audit_only = self.reactor.callLater(self.settings.audit_only_seconds, self._end_audit_only)
            self._put_in_force()

    def _end_audit_only(self) -> None:
        self._audit_only = None
        self._put_in_force()
        self._log.warn("audit-only is over: what the rules refuse is refused from now on")

    def _put_in_force(self) -> None:
        self.generation += 1
        policy = self.settings.whole_policy
        self._policy = dataclasses.replace(policy, audit_only=self._audit_only is not None)
        self._addresses_at = float("-inf")
        self._decisions.clear()

    def _look_at_addresses(self) -> None:
        """Take the machine's addresses as they are now into the policy; they are rarely others."""
        now = self.reactor.seconds()
        if now - self._addresses_at <= OWN_ADDRESSES_SECONDS:
            return
        self._addresses_at = now
        with contextlib.suppress(OSError):  # then what was known before holds
            found = own_addresses() | self.settings.policy.own_addresses
            if found != self._policy.own_addresses:
                self._policy = dataclasses.replace(self._policy, own_addresses=found)
                self._decisions.clear()

    def begin_relay(self, peer: str) -> None:
        """Count one more connection that is carried for *peer*.

        :raises Refused: ``busy`` where the limit is reached.
        """
        places = self.relay_places
        if places.enter(peer, None) is not Admission.NOW:
            reason = f"relays={places.total}: so many are carried already"
            if places.active_of(peer) >= places.per_key:
                reason = f"relays_per_peer={places.per_key}: so many are carried for {peer} already"
            raise Refused(Refusal.BUSY, reason)

    def end_relay(self, peer: str, relay: Carried) -> None:
        """Count one less."""
        self.relays.discard(relay)
        self.relay_places.leave(peer)

    def adopt(self, sock: socket.socket) -> Half:
        """Give a connected UNIX socket to the reactor; return its side of a relay."""
        half = Half(self.poll, ended=self.relays.discard)
        adopt(self.reactor, sock, half)
        self.relays.add(half)
        return half

    def know_yourself(self) -> None:
        """Find out again what this process may do: ``twistd --uid`` has given root up in between."""
        _keep_no_override()
        self.powers = try_powers()
        self.inspector = _make_inspector(self.settings, self.powers)
        self.services.actas = ActAs()
        self.services.trusted_uids = _trusted_uids(self.settings)

    async def end_relays(self) -> None:
        """Cut every connection that is carried, and wait until all are closed."""
        for relay in list(self.relays):
            relay.abort()
        while self.relays:
            await deferLater(self.reactor, 0)

    def close(self) -> None:
        """Let the reactor forget everything."""
        if self._audit_only is not None:
            self._audit_only.cancel()
        self.census.close()
        self.lives.close()
        self.connect_deadline.close()
        self.patience.close()
        self.resolver.close()
        self._own_logins.close()
        self.pipes.close()
        self.audit.close()
        self.poll.close()


def make_core(reactor: Any, settings: Settings, resolver: Resolver | None = None) -> Core:
    """Make the shared parts, and find out what this process may do."""
    descriptors = kernel.raise_descriptor_limit()
    _keep_no_override()
    powers = try_powers()
    own: set[tuple[int, int]] = set()
    poll = Poll(reactor, reactor)
    return Core(
        reactor=reactor,
        settings=settings,
        poll=poll,
        audit=Audit(reactor),
        powers=powers,
        inspector=_make_inspector(settings, powers),
        services=LocalServices(settings.rundir, ActAs(), _trusted_uids(settings), own),
        resolver=resolver or Resolver(reactor, limits=settings.limits),
        own=own,
        descriptors=descriptors,
        connect_deadline=Deadlines(reactor, settings.limits.connect_seconds),
        patience=Deadlines(reactor, settings.limits.handshake_seconds),
        census=Census(poll, reactor, settings.limits),
    )


def _keep_no_override() -> None:
    """A local service's mode bits must mean what they say for a broker that is not root."""
    if os.geteuid() != 0:
        held = kernel.effective_capabilities() & (1 << kernel.CAP_DAC_OVERRIDE | 1 << kernel.CAP_DAC_READ_SEARCH)
        if held:
            kernel.drop_capabilities(held)


def _trusted_uids(settings: Settings) -> frozenset[int]:
    return settings.service_uids | {0, os.geteuid()}


def _make_inspector(settings: Settings, powers: Powers) -> Inspector:
    return Inspector(tell_cgroup=_wants_cgroup(settings, powers))


def _wants_cgroup(settings: Settings, powers: Powers) -> bool:
    asked_for = settings.policy.asks_unit or settings.routes.asks_unit
    return asked_for or not (powers.lock and powers.give) or _wants_direct(settings)


def _wants_direct(settings: Settings) -> bool:
    return settings.handover is Mode.DIRECT or any(rule.handover is Mode.DIRECT for rule in settings.policy.rules)
