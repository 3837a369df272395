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
    LOCAL = "local"


WISHES = (Mode.AUTO, Mode.DIRECT, Mode.LOCKED, Mode.RELAYED)
"""What ``--handover`` and a rule's ``handover=`` may say."""


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


def choose_mode(wish: Mode, who: LocalWho, powers: Powers, *, has_socket: bool) -> Mode:
    """Return the mode of a TCP hand-over.

    :param has_socket: whether there is a TCP socket to give away at all; an
        administrator's endpoint has none.
    :raises Refused: ``not-possible`` where the wish cannot be met.
    """
    if wish is Mode.RELAYED:
        return Mode.RELAYED
    if not has_socket:
        if wish is Mode.AUTO:
            return Mode.RELAYED
        raise Refused(
            Refusal.NOT_POSSIBLE,
            f"handover={wish.value}: this route is carried by an endpoint, which can only be relayed",
        )
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


def _why_not_direct(who: LocalWho, powers: Powers) -> str | None:
    if who.confined:
        return f"the client is confined ({who.confined})"
    if who.uid != powers.uid:
        return f"the client's uid {who.uid} is not the broker's ({powers.uid})"
    if not who.same_cgroup:
        return "the client's cgroup is not the broker's"
    return None
