"""What the broker and the scheme daemons of one process share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from plumberd.effects import kernel
from plumberd.effects.actas import ActAs
from plumberd.effects.audit import Audit
from plumberd.effects.credentials import Inspector
from plumberd.effects.deadline import Deadlines
from plumberd.effects.dial_unix import LocalServices
from plumberd.effects.endpoint_relay import Half
from plumberd.effects.handover import try_powers
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import Poll
from plumberd.effects.relay import Relay
from plumberd.effects.resolve import Resolver
from plumberd.pure.modes import Mode, Powers
from plumberd.wiring.settings import Settings


@dataclass
class Core:
    """Made once a process by :func:`make_core`; :meth:`close` ends it.

    :ivar reactor: Twisted's, with all of its interfaces.
    :ivar own: device and inode of every socket that this process listens on.
    :ivar descriptors: how many this process may have.
    :ivar relays: what is being carried.
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
    pipes: PipePool = field(default_factory=PipePool)
    relays: set[Relay | Half] = field(default_factory=set)

    def relay_is_free(self) -> bool:
        """Tell whether one more connection may be carried."""
        return len(self.relays) < self.settings.limits.relays

    def close(self) -> None:
        """End every relay and let the reactor forget everything."""
        for relay in list(self.relays):
            relay.abort()
        self.connect_deadline.close()
        self.patience.close()
        self.resolver.close()
        self.pipes.close()
        self.audit.flush()
        self.poll.close()


def make_core(reactor: Any, settings: Settings, resolver: Resolver | None = None) -> Core:
    """Make the shared parts, and find out what this process may do."""
    descriptors = kernel.raise_descriptor_limit()
    if os.geteuid() != 0:
        # A local service's mode bits must mean what they say for who is not root.
        held = kernel.effective_capabilities() & (1 << kernel.CAP_DAC_OVERRIDE | 1 << kernel.CAP_DAC_READ_SEARCH)
        if held:
            kernel.drop_capabilities(held)
    powers = try_powers()
    own: set[tuple[int, int]] = set()
    trusted = settings.service_uids | {0, os.geteuid()}
    poll = Poll(reactor, reactor)
    return Core(
        reactor=reactor,
        settings=settings,
        poll=poll,
        audit=Audit(reactor),
        powers=powers,
        inspector=Inspector(tell_cgroup=not (powers.lock and powers.give) or _wants_direct(settings)),
        services=LocalServices(settings.rundir, ActAs(), trusted, own),
        resolver=resolver or Resolver(reactor),
        own=own,
        descriptors=descriptors,
        connect_deadline=Deadlines(reactor, settings.limits.connect_seconds),
        patience=Deadlines(reactor, settings.limits.handshake_seconds),
    )


def _wants_direct(settings: Settings) -> bool:
    return settings.handover is Mode.DIRECT or any(rule.handover is Mode.DIRECT for rule in settings.policy.rules)
