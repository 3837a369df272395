"""Hand-over modes: which one a connection gets, and which are not possible.

A TCP socket is more than a connection (see :mod:`plumberd.pure.lockfilter`), so
a hand-over has a mode, and a mode that is not possible is an error, never
silently a weaker one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho


class Mode(enum.Enum):
    """How a descriptor is handed over; ``auto`` is a wish, never a result."""

    AUTO = "auto"
    LOCKED = "locked"
    DIRECT = "direct"
    RELAYED = "relayed"
    FRAMED = "framed"
    LOCAL = "local"


COUNTED = (Mode.LOCKED, Mode.DIRECT)
"""The modes in which a TCP socket leaves the broker's process."""

WISHES = (Mode.AUTO, Mode.DIRECT, Mode.LOCKED, Mode.RELAYED, Mode.FRAMED)
"""What a rule's ``handover=`` may say."""

GENERAL_WISHES = (Mode.AUTO, Mode.DIRECT, Mode.LOCKED, Mode.RELAYED)
"""What ``--handover`` may say; ``framed`` is for single services that push."""


@dataclass(frozen=True)
class Powers:
    """What a trial at start showed that the kernel lets this process do.

    :ivar lock: attach and lock a socket filter.
    :ivar give: give a socket to another uid (CAP_CHOWN).
    :ivar uid: the broker's own effective uid.
    """

    lock: bool
    give: bool
    uid: int

    def can_lock_for(self, who: LocalWho) -> bool:
        """Whether a socket can be made *who*'s own and locked."""
        return self.lock and (self.give or who.uid == self.uid)


def choose_mode(
    wish: Mode, who: LocalWho, powers: Powers, *, carrier: str = "", packets: bool = False, messages: bool = False
) -> Mode:
    """Return the mode of a TCP hand-over.

    :param carrier: what else carries the bytes, so that there is no TCP socket to give
        away: an administrator's endpoint, another process's scheme daemon.
    :param packets: whether the client wants packets, which a TCP socket has not.
    :param messages: whether that carrier carries whole messages, and so can write them as such.
    :raises Refused: ``not-possible`` where the wish cannot be met.
    """
    if wish is Mode.RELAYED:
        return Mode.RELAYED
    if packets:
        if wish is Mode.AUTO:
            return Mode.RELAYED
        raise Refused(Refusal.NOT_POSSIBLE, f"handover={wish.value}: this client wants packets, which are relayed")
    if wish is Mode.FRAMED and (messages or not carrier):
        return Mode.FRAMED
    if carrier:
        if wish is Mode.AUTO:
            return Mode.RELAYED
        raise Refused(Refusal.NOT_POSSIBLE, f"handover={wish.value}: {carrier} carries it, so it can only be relayed")
    if wish in (Mode.AUTO, Mode.LOCKED):
        if powers.can_lock_for(who):
            return Mode.LOCKED
        if wish is Mode.LOCKED:
            lacking = "lock sockets" if not powers.lock else f"give sockets to uid {who.uid} (CAP_CHOWN)"
            raise Refused(Refusal.NOT_POSSIBLE, f"handover=locked: this broker cannot {lacking}")
    why_not = _why_not_direct(who, powers)
    if why_not is None:
        return Mode.DIRECT
    if wish is Mode.DIRECT:
        raise Refused(Refusal.NOT_POSSIBLE, f"handover=direct: {why_not}")
    return Mode.RELAYED


def choose_local_mode(wish: Mode, *, same_kind: bool, packets: bool) -> Mode:
    """Return the mode of a local service's connection, which can't be turned into another.

    :param same_kind: whether service and client both have streams, or both packets.
    :raises Refused: ``not-possible``.
    """
    if wish is Mode.FRAMED:
        if packets:
            raise Refused(Refusal.NOT_POSSIBLE, "handover=framed: this client has packets already")
        return Mode.FRAMED
    return Mode.LOCAL if same_kind and wish is not Mode.RELAYED else Mode.RELAYED


def _why_not_direct(who: LocalWho, powers: Powers) -> str | None:
    if who.confined:
        return f"the client is confined ({who.confined})"
    if who.restricted:
        return "the connection that asks is restricted"
    if who.uid != powers.uid:
        return f"the client's uid {who.uid} is not the broker's ({powers.uid})"
    if not who.same_cgroup:
        return "the client's cgroup is not the broker's"
    return None
