"""Settings: everything that the options say, read and checked, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from plumberd.pure.dialects import DEFAULT
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.route import Routes

PARTS = ("broker", "tcpd")
"""What ``--part`` may say."""


@dataclass(frozen=True)
class Settings:
    """What a broker runs with.

    :ivar rundir: the run directory.
    :ivar group, gid: the group that may ask, where one is named.
    :ivar dialects: names of the dialects that are served.
    :ivar handover: the mode wished for where no rule names one.
    :ivar tcpd: server endpoint strings to listen on for the handshake.
    :ivar publish: services with the server endpoint strings of their plain listeners.
    :ivar parts: the parts that run alone in this process; empty where all run together.
    :ivar broker_uids: users, besides root and our own, whose brokers may ask this scheme daemon.
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
    publish: tuple[tuple[str, str], ...] = ()
    parts: frozenset[str] = frozenset()
    broker_uids: frozenset[int] = frozenset()
    service_uids: frozenset[int] = frozenset()

    @property
    def runs_broker(self) -> bool:
        """Whether the broker is in this process."""
        return not self.parts or "broker" in self.parts

    @property
    def serves_tcp_socket(self) -> bool:
        """Whether this process is the scheme daemon on ``<run directory>/tcp``."""
        return "tcpd" in self.parts

    @property
    def asks_scheme_daemon(self) -> bool:
        """Whether tcp is carried by another process, on ``<run directory>/tcp``."""
        return "broker" in self.parts and "tcpd" not in self.parts
