"""The command line: ``twistd -n plumberd``'s own options.

Every mistake is one line that names the option, the value and what would be
accepted, and exit status 1: SystemExit with the text, under ``twistd`` and
``twist`` alike. (A UsageError prints the whole usage, and out of makeService
an error is a traceback.) So everything is read and checked here, the
configuration file too, before anything listens. That one's mistakes come all
together, one a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.python import usage

from plumberd.effects.accounts import Accounts
from plumberd.effects.checkers import checker_help, checker_table
from plumberd.pure.modes import Mode
from plumberd.pure.names import check_service
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice, Target, parse_redirect, parse_route
from plumberd.pure.policy.rule import Rule, parse_rule
from plumberd.pure.refusals import Refused
from plumberd.wiring.announce import announcement
from plumberd.wiring.config import values
from plumberd.wiring.config.arguments import ArgumentError, group
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.mistakes import ConfigurationError, ValueMistake, unwanted
from plumberd.wiring.config.settings import CommandLine, Group, Settings, WebListener

T = TypeVar("T")

JOURNAL = "journal"
"""What ``--audit`` says where it means no file; a file of that name is ``./journal``."""


class Options(usage.Options):
    """Options of the broker and its scheme daemons."""

    synopsis = "[options]"
    longdesc = (
        "Serves the run directory: local clients ask for a service by name and are handed a "
        "connected descriptor. With --tcpd, remote callers reach local services, as the rules allow. "
        "A configuration file can say all of it, and more: --config."
    )

    def __init__(self) -> None:
        init: Callable[[], None] = super().__init__
        init()
        self._accounts = Accounts()
        self._config: str | None = None
        self._rundir: str | None = None
        self._group: Group | None = None
        self._admin_group: Group | None = None
        self._rules: list[Rule] = []
        self._defaults: dict[Direction, bool] = {}
        self._redirects: dict[str, tuple[Target, ...]] = {}
        self._routes: dict[str, tuple[Target, ...]] = {}
        self._tcpd: list[str] = []
        self._tlsd: list[str] = []
        self._webipcd: list[WebListener] = []
        self._udpd: list[str] = []
        self._publish: list[tuple[str, str]] = []
        self._dialects: tuple[str, ...] = ()
        self._handover: Mode | None = None
        self._limits: dict[str, float] = {}
        self._service_uids: set[int] = set()
        self._parts: set[str] = set()
        self._broker_uids: set[int] = set()
        self._checkers: list[str] = []
        self._audit_file: str | None = None
        self._audit_journal = False
        self._audit_only_seconds: int | None = None
        self._check = False
        self.settings: Settings | None = None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """See :meth:`twisted.python.usage.Options.parseOptions`."""
        words = sys.argv[1:] if options is None else options
        try:
            parse: Callable[[list[str]], None] = super().parseOptions
            parse(group(words))
        except (usage.UsageError, ArgumentError) as e:
            raise SystemExit(f"plumberd: {e}") from None

    def opt_config(self, value: str) -> None:
        """A configuration file in TOML, to which the options add: their rules stand in front of its own"""
        if self._config is not None:
            raise SystemExit("--config: wanted once; a file can include others")
        self._config = _taken("--config", values.path, value)

    def opt_rundir(self, value: str) -> None:
        """The run directory [default: $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc if not root, /run/ipc]"""
        self._rundir = os.path.abspath(_taken("--rundir", values.path, value))

    def opt_group(self, value: str) -> None:
        """Who may ask: the group of the run directory and its sockets [default: the broker's own]"""
        self._group = _taken("--group", values.group, value, self._accounts)

    def opt_admin_group(self, value: str) -> None:
        """Who, besides root and our own user, may reload, see everything and explain as others [default: nobody]"""
        self._admin_group = _taken("--admin-group", values.group, value, self._accounts)

    def opt_rule(self, value: str) -> None:
        """A whole rule: "allow|deny|log in|out SERVICE PEER [for WHO]... [handover=MODE]"; the first match decides"""
        self._add_rule("--rule", value)

    def opt_allow(self, value: str) -> None:
        """in|out SERVICE PEER [for WHO]... or serve SERVICE [for WHO]...: let it through"""
        self._add_rule("--allow", f"allow {value}")

    def opt_deny(self, value: str) -> None:
        """in|out SERVICE PEER [for WHO]... or serve SERVICE [for WHO]...: refuse it; the order of rules counts"""
        self._add_rule("--deny", f"deny {value}")

    def opt_default(self, value: str) -> None:
        """in|out=allow|deny: what holds where no rule matches [default: in=deny and out=allow]"""
        way, _, verdict = value.partition("=")
        if way not in ("in", "out") or verdict not in ("allow", "deny"):
            raise SystemExit(f"--default: {unwanted(value, 'in=allow, in=deny, out=allow or out=deny')}")
        self._defaults[Direction(way)] = values.verdict(verdict)

    def opt_redirect(self, value: str) -> None:
        """SERVICE TARGET: another name, a URI or an endpoint string in the service's place"""
        name, targets = _taken("--redirect", _target, value, parse_redirect)
        if name in self._redirects:
            raise SystemExit(f"--redirect: {name!r}: wanted each service once")
        self._redirects[name] = targets

    def opt_route(self, value: str) -> None:
        """SERVICE URI|ENDPOINT: where a service is whose lookup does not say it; once more for the next to try"""
        name, targets = _taken("--route", _target, value, parse_route)
        targets = self._routes.get(name, ()) + targets
        self._routes[name] = _taken(f"--route: {name}", Choice, targets).targets

    def opt_tcpd(self, value: str) -> None:
        """Listen for remote callers: PORT, HOST:PORT or a Twisted server endpoint string; loopback without a host"""
        self._tcpd.append(_taken("--tcpd", values.listener, value))

    def opt_tlsd(self, value: str) -> None:
        """Listen for remote callers inside TLS: PORT, HOST:PORT or a Twisted server endpoint string; wants [tls]"""
        self._tlsd.append(_taken("--tlsd", values.plain_listener, value))

    def opt_webipcd(self, value: str) -> None:
        """Listen for browsers: PORT, HOST:PORT or an endpoint string of tcp, tcp6, unix or systemd; tls: in front"""
        self._webipcd.append(_taken("--webipcd", values.web_listener, value))

    def opt_udpd(self, value: str) -> None:
        """Listen for callers' datagrams: PORT, HOST:PORT or udp:PORT:interface=ADDRESS; loopback without a host"""
        self._udpd.append(_taken("--udpd", values.datagram_listener, value))

    def opt_publish(self, value: str) -> None:
        """SERVICE ENDPOINT: a plain listener for one service, without handshake; the rules decide"""
        name, _, text = value.partition(" ")
        _taken("--publish", check_service, name)
        self._publish.append((name, _taken(f"--publish: {name}", values.listener, text)))

    def opt_part(self, value: str) -> None:
        """broker|tcpd: run this part alone, and others in processes of their own; may be repeated"""
        self._parts.add(_taken("--part", values.part, value))

    def opt_broker_user(self, value: str) -> None:
        """A user, besides root and our own, whose broker may ask this scheme daemon (--part tcpd)"""
        self._broker_uids.add(_taken("--broker-user", values.user, value, self._accounts))

    def opt_dialects(self, value: str) -> None:
        """Dialects to speak, separated by commas [default: all but libipc-2020]"""
        self._dialects = _taken("--dialects", values.dialects, value.split(","))

    def opt_handover(self, value: str) -> None:
        """auto|direct|locked|relayed: how TCP sockets are handed over [default: auto]"""
        self._handover = _taken("--handover", values.handover, value)

    def opt_limit(self, value: str) -> None:
        """NAME=NUMBER: change a limit, for instance connect_seconds=3"""
        name, _, number = value.partition("=")
        self._limits[name] = _taken("--limit", values.limit, name, number)

    def opt_service_user(self, value: str) -> None:
        """A user, besides root and the broker's own, whose listening sockets count as services"""
        self._service_uids.add(_taken("--service-user", values.user, value, self._accounts))

    def opt_auth(self, value: str) -> None:
        """TYPE[:ARGS]: what checks the logins of callers, a plugin of twisted.cred; once more for the next to ask"""
        kind, _, path = value.partition(":")
        # A daemon changes its folder.
        self._checkers.append(f"file:{os.path.abspath(path)}" if kind == "file" and path else value)

    def opt_help_auth(self) -> None:
        """Tell which types --auth knows, and exit"""
        print(checker_table())
        raise SystemExit(0)

    def opt_help_auth_type(self, value: str) -> None:
        """TYPE: tell what --auth wants of this one, and exit"""
        print(_taken("--help-auth-type", checker_help, value))
        raise SystemExit(0)

    def opt_audit(self, value: str) -> None:
        """FILE|journal: write each attempt there, as a line of JSON; both may be given [default: nowhere]"""
        if value == JOURNAL:
            self._audit_journal = True
        elif self._audit_file is not None:
            raise SystemExit(f"--audit: {unwanted(value, 'one file, and journal')}")
        else:
            self._audit_file = os.path.abspath(_taken("--audit", values.path, value))

    def opt_audit_only(self, value: str) -> None:
        """TIME: for so long (30s, 10m, 2h, 1d; at most 7d) grant what rules would refuse, and log it"""
        self._audit_only_seconds = _taken("--audit-only", values.audit_only, value)

    def opt_check(self) -> None:
        """Read everything, print what would run and what is doubtful, and exit"""
        self._check = True

    def parseArgs(self, *words: str) -> None:
        """See :meth:`twisted.python.usage.Options.parseArgs`."""
        if words:
            hint = "; did the shell expand the *? write any" if self._rules else ""
            raise SystemExit(f"plumberd: {' '.join(words[:5])!r} left over behind the options{hint}")

    def postOptions(self) -> None:
        """Put everything together and check it; with ``--check``, print it and exit."""
        try:
            settings = read_settings(self._command_line())
        except ConfigurationError as e:
            raise SystemExit(str(e)) from None
        self.settings = settings
        if self._check:
            print("\n".join(announcement(settings)))
            raise SystemExit(0)

    def _command_line(self) -> CommandLine:
        return CommandLine(
            config=self._config,
            folder=os.getcwd() if self._config is not None else "/",
            rundir=self._rundir,
            group=self._group,
            admin_group=self._admin_group,
            dialects=self._dialects,
            handover=self._handover,
            rules=tuple(self._rules),
            defaults=self._defaults,
            redirects=self._redirects,
            routes=self._routes,
            limits=self._limits,
            tcpd=tuple(self._tcpd),
            publish=tuple(self._publish),
            tlsd=tuple(self._tlsd),
            webipcd=tuple(self._webipcd),
            udpd=tuple(self._udpd),
            parts=frozenset(self._parts),
            broker_uids=frozenset(self._broker_uids),
            service_uids=frozenset(self._service_uids),
            checkers=tuple(self._checkers),
            audit_file=self._audit_file,
            audit_journal=self._audit_journal,
            audit_only_seconds=self._audit_only_seconds,
        )

    def _add_rule(self, option: str, text: str) -> None:
        self._rules.append(_taken(option, parse_rule, text, option))


def _target(value: str, parse: Callable[[str, str], Target]) -> tuple[str, tuple[Target, ...]]:
    name, _, text = value.partition(" ")
    if not text:
        raise unwanted(value, "two words, a service and where it goes")
    try:
        found = values.target(parse, name, text)
    except ValueError as e:
        raise ValueMistake(f"{name}: {e}") from None
    if values.has_password(found):
        raise ValueMistake(f"{name}: a password on the command line shows in ps; it is refused here")
    return name, (found,)


def _taken(option: str, parse: Callable[..., T], *words: Any) -> T:
    """Return what *parse* makes of the option's words; a mistake ends the program."""
    try:
        return parse(*words)
    except Refused as e:
        raise SystemExit(f"{option}: {e.reason}") from None
    except ValueError as e:
        raise SystemExit(f"{option}: {e}") from None
