"""Settings: everything that the options say, read and checked, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from plumberd.pure.dialects import DEFAULT
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.route import Routes


@dataclass(frozen=True)
class Settings:
    """What a broker runs with.

    :ivar rundir: the run directory.
    :ivar group, gid: the group that may ask, where one is named.
    :ivar dialects: names of the dialects that are served.
    :ivar handover: the mode wished for where no rule names one.
    :ivar tcpd: server endpoint strings to listen on for the handshake.
    :ivar service_uids: users other than root and the broker who may serve a name.
    """

    rundir: str
    group: str | None = None
    gid: int | None = None
    dialects: tuple[str, ...] = DEFAULT
    handover: Mode = Mode.AUTO
    policy: Policy = field(default_factory=Policy)
    routes: Routes = field(default_factory=Routes)
    limits: Limits = field(default_factory=Limits)
    tcpd: tuple[str, ...] = ()
    service_uids: frozenset[int] = frozenset()
