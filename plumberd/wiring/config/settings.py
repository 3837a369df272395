"""Settings: everything that the command line and the configuration say, read and checked, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from plumberd.pure.dialects import DEFAULT
from plumberd.pure.limits import Limits
from plumberd.pure.login import LoginSettings
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Routes, Target
from plumberd.pure.policy.rule import Rule
from plumberd.pure.policy.subject import Condition
from plumberd.pure.tls import PeerSettings, TlsSettings
from plumberd.pure.web_safety import WebSettings

PARTS = ("broker", "tcpd", "tlsd", "udpd", "webipcd")
"""What ``--part`` may say."""

SCHEMES_OF = {"tcpd": ("tcp",), "tlsd": ("tls",), "udpd": ("udp",), "webipcd": ("ws", "wss")}
"""The schemes that each part carries."""


@dataclass(frozen=True)
class WebListener:
    """An endpoint of webipcd.

    :ivar description: a whole server endpoint string.
    :ivar tls: whether all of it is inside TLS.
    """

    description: str
    tls: bool = False

    def __str__(self) -> str:
        return f"tls:{self.description}" if self.tls else self.description


@dataclass(frozen=True)
class Group:
    """A group of this machine."""

    name: str
    gid: int


@dataclass(frozen=True)
class CommandLine:
    """What the options say, each checked for itself. With it the configuration can be read again.

    ``None`` and what is empty was not said. The tables hold what was said of each member alone.

    :ivar config: the configuration's path as it was given; relative to *folder*.
    :ivar folder: where the program was started, for whoever changes its folder later.
    :ivar rules: their users and groups have no numbers yet.
    :ivar redirects, routes: for each service its alternatives.
    :ivar checkers: of twisted.cred; the paths in them are absolute.
    :ivar limits: names and values; they make sense.
    """

    config: str | None = None
    folder: str = "/"
    rundir: str | None = None
    group: Group | None = None
    admin_group: Group | None = None
    dialects: tuple[str, ...] = ()
    handover: Mode | None = None
    rules: tuple[Rule, ...] = ()
    defaults: Mapping[Direction, bool] = field(default_factory=dict)
    redirects: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    routes: Mapping[str, tuple[Target, ...]] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    tcpd: tuple[str, ...] = ()
    publish: tuple[tuple[str, str], ...] = ()
    tlsd: tuple[str, ...] = ()
    webipcd: tuple[WebListener, ...] = ()
    udpd: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset()
    broker_uids: frozenset[int] = frozenset()
    service_uids: frozenset[int] = frozenset()
    checkers: tuple[str, ...] = field(default=(), repr=False)
    audit_file: str | None = None
    audit_journal: bool = False
    audit_only_seconds: int | None = None


@dataclass(frozen=True)
class Settings:
    """What a broker runs with.

    :ivar rundir: the run directory.
    :ivar group, gid: the group that may ask, where one is named.
    :ivar admin_group, admin_gid: the group that may reload, see everything and explain as others.
    :ivar dialects: names of the dialects that are served.
    :ivar handover: the mode wished for where no rule names one.
    :ivar framings: services with how their messages look, where that was said.
    :ivar proxied: services that are told of their callers by the PROXY protocol.
    :ivar gateways: what a gateway has to prove, so that what it says of its own callers counts.
    :ivar tcpd: server endpoint strings to listen on for the handshake.
    :ivar publish: services with the server endpoint strings of their plain listeners.
    :ivar tlsd: the same for the handshake inside TLS.
    :ivar udpd: where callers' datagrams are taken, each as ``udp:PORT:interface=ADDRESS``.
    :ivar publish_tls: services with the endpoint strings of their plain listeners inside TLS.
    :ivar webipcd: endpoints to listen on for browsers, and whatever else opens WebSockets.
    :ivar web: what those may ask.
    :ivar tls: what this machine proves and believes.
    :ivar peers: what it proves to single destinations, by ``host:port``.
    :ivar parts: the parts that run alone in this process; empty where all run together.
    :ivar broker_uids: users, besides root and our own, whose brokers may ask this scheme daemon.
    :ivar service_uids: users other than root and the broker who may serve a name.
    :ivar logins: what the logins of callers are checked against.
    :ivar audit_file: where each attempt is written, as an absolute path.
    :ivar audit_journal: whether each attempt goes to the journal as well.
    :ivar audit_only_seconds: for how long, from the start on, refusals are logged and granted; 0 is not at all.
    :ivar config: the configuration's path as it was given.
    :ivar generation: 1 at the start, one more after each reload.
    :ivar source: what to read the next generation from.
    """

    rundir: str
    group: str | None = None
    gid: int | None = None
    admin_group: str | None = None
    admin_gid: int | None = None
    dialects: tuple[str, ...] = DEFAULT
    handover: Mode = Mode.AUTO
    policy: Policy = field(default_factory=Policy)
    routes: Routes = field(default_factory=Routes)
    framings: Mapping[str, str] = field(default_factory=dict)
    proxied: frozenset[str] = frozenset()
    gateways: tuple[Condition, ...] = ()
    limits: Limits = field(default_factory=Limits)
    tcpd: tuple[str, ...] = ()
    publish: tuple[tuple[str, str], ...] = ()
    tlsd: tuple[str, ...] = ()
    udpd: tuple[str, ...] = ()
    publish_tls: tuple[tuple[str, str], ...] = ()
    webipcd: tuple[WebListener, ...] = ()
    web: WebSettings = field(default_factory=WebSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    peers: Mapping[str, PeerSettings] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    broker_uids: frozenset[int] = frozenset()
    service_uids: frozenset[int] = frozenset()
    logins: LoginSettings = field(default_factory=LoginSettings)
    audit_file: str | None = None
    audit_journal: bool = False
    audit_only_seconds: int = 0
    config: str | None = None
    generation: int = 1
    source: CommandLine | None = field(default=None, compare=False, repr=False)

    @property
    def whole_policy(self) -> Policy:
        """The policy, which knows where this machine proves something."""
        proves = frozenset(key for key, peer in self.peers.items() if peer.proves)
        return replace(self.policy, proves=proves)

    @property
    def runs_broker(self) -> bool:
        """Whether the broker is in this process."""
        return not self.parts or "broker" in self.parts

    @property
    def served_schemes(self) -> tuple[str, ...]:
        """The schemes whose daemon this process is, on ``<run directory>/<scheme>``."""
        return tuple(scheme for part, schemes in SCHEMES_OF.items() if part in self.parts for scheme in schemes)

    def asks_scheme_daemon(self, scheme: str) -> bool:
        """Whether *scheme* is carried by another process, on ``<run directory>/<scheme>``."""
        if "broker" not in self.parts:  # by far the most common, and asked for each connection
            return False
        part = next((part for part, schemes in SCHEMES_OF.items() if scheme in schemes), None)
        return part is not None and part not in self.parts
