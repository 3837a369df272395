"""The command line: ``twistd -n plumberd``'s own options.

Every mistake is one line that names the option, the value and what would be
accepted, and exit status 1: SystemExit with the text, under ``twistd`` and
``twist`` alike. (A UsageError prints the whole usage, and out of makeService
an error is a traceback.) So everything is read and checked here, before
anything listens.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet import endpoints
from twisted.internet.task import Clock
from twisted.python import usage

from plumberd.effects.interfaces import own_addresses
from plumberd.effects.rundir import RunDirError, check_path
from plumberd.pure.dialects import DEFAULT, DIALECTS
from plumberd.pure.limits import LimitError, Limits
from plumberd.pure.modes import GENERAL_WISHES, Mode
from plumberd.pure.names import check_service
from plumberd.pure.places import broker_rundir
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.route import (
    PLACEHOLDER,
    Endpoint,
    RouteError,
    Routes,
    Target,
    check_loops,
    parse_redirect,
    parse_route,
)
from plumberd.pure.policy.rule import Direction, Rule, RuleError, parse_rule
from plumberd.pure.refusals import Refused
from plumberd.pure.uri import Uri
from plumberd.wiring.announce import announcement
from plumberd.wiring.arguments import ArgumentError, group
from plumberd.wiring.listening import EndpointError, full_description
from plumberd.wiring.settings import PARTS, Settings

_NO_UID = 2**32 - 1
_client_from_string: Callable[[Any, str], object] = endpoints.clientFromString


class Options(usage.Options):
    """Options of the broker and its scheme daemons."""

    synopsis = "[options]"
    longdesc = (
        "Serves the run directory: local clients ask for a service by name and are handed a "
        "connected descriptor. With --tcpd, remote callers reach local services, as the rules allow."
    )

    def __init__(self) -> None:
        init: Callable[[], None] = super().__init__
        init()
        self._rundir: str | None = None
        self._group: str | None = None
        self._rules: list[Rule] = []
        self._defaults = dict(DEFAULTS)
        self._redirects: dict[str, Target] = {}
        self._routes: dict[str, Target] = {}
        self._tcpd: list[str] = []
        self._dialects: tuple[str, ...] = DEFAULT
        self._handover = Mode.AUTO
        self._limits = Limits()
        self._service_uids: set[int] = set()
        self._publish: list[tuple[str, str]] = []
        self._parts: set[str] = set()
        self._broker_uids: set[int] = set()
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

    def opt_rundir(self, value: str) -> None:
        """The run directory [default: $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc if not root, /run/ipc]"""
        self._rundir = os.path.abspath(value) if value else _fail("--rundir", value, "a directory")

    def opt_group(self, value: str) -> None:
        """Who may ask: the group of the run directory and its sockets [default: the broker's own]"""
        try:
            grp.getgrnam(value)
        except KeyError:
            _fail("--group", value, "the name of a group that exists")
        self._group = value

    def opt_rule(self, value: str) -> None:
        """A whole rule in one word: "allow|deny in|out SERVICE PEER [handover=MODE]"; the first that matches decides"""
        self._add_rule("--rule", value)

    def opt_allow(self, value: str) -> None:
        """in|out SERVICE PEER: let it through; PEER is any, SCHEME:any, SCHEME:HOST[:PORT] or unix:NAME"""
        self._add_rule("--allow", f"allow {value}")

    def opt_deny(self, value: str) -> None:
        """in|out SERVICE PEER: refuse it; the order of rules counts"""
        self._add_rule("--deny", f"deny {value}")

    def opt_default(self, value: str) -> None:
        """in|out=allow|deny: what holds where no rule matches [default: in=deny and out=allow]"""
        way, _, verdict = value.partition("=")
        if way not in ("in", "out") or verdict not in ("allow", "deny"):
            _fail("--default", value, "in=allow, in=deny, out=allow or out=deny")
        self._defaults[Direction(way)] = verdict == "allow"

    def opt_redirect(self, value: str) -> None:
        """SERVICE TARGET: another name, a URI or an endpoint string in the service's place"""
        self._add_target("--redirect", value, self._redirects, parse_redirect)

    def opt_route(self, value: str) -> None:
        """SERVICE URI|ENDPOINT: the address of a service whose lookup brings none; SERVICE may be *"""
        self._add_target("--route", value, self._routes, parse_route)

    def opt_tcpd(self, value: str) -> None:
        """Listen for remote callers: PORT, HOST:PORT or a Twisted server endpoint string; loopback without a host"""
        try:
            self._tcpd.append(full_description(value))
        except EndpointError as e:
            raise SystemExit(f"--tcpd: {e}") from None

    def opt_publish(self, value: str) -> None:
        """SERVICE ENDPOINT: a plain listener for one service, without handshake; the rules decide"""
        name, _, text = value.partition(" ")
        try:
            self._publish.append((check_service(name), full_description(text)))
        except Refused as e:
            raise SystemExit(f"--publish: {e.reason}") from None
        except EndpointError as e:
            raise SystemExit(f"--publish: {name}: {e}") from None

    def opt_part(self, value: str) -> None:
        """broker|tcpd: run this part alone, and others in processes of their own; may be repeated"""
        if value not in PARTS:
            _fail("--part", value, " or ".join(PARTS))
        self._parts.add(value)

    def opt_broker_user(self, value: str) -> None:
        """A user, besides root and our own, whose broker may ask this scheme daemon (--part tcpd)"""
        self._broker_uids.add(_uid("--broker-user", value))

    def opt_dialects(self, value: str) -> None:
        """Dialects to speak, separated by commas [default: all but libipc-2020]"""
        names = tuple(dict.fromkeys(value.split(",")))
        if any(name not in DIALECTS for name in names):
            _fail("--dialects", value, f"some of {','.join(DIALECTS)}")
        if len({DIALECTS[name].socket_name for name in names}) < len(names):
            _fail("--dialects", value, "libipc-2020 or libipc-2023: both have the same socket")
        self._dialects = names

    def opt_handover(self, value: str) -> None:
        """auto|direct|locked|relayed: how TCP sockets are handed over [default: auto]"""
        modes = [m for m in GENERAL_WISHES if m.value == value]
        if not modes:
            _fail("--handover", value, "|".join(m.value for m in GENERAL_WISHES))
        self._handover = modes[0]

    def opt_limit(self, value: str) -> None:
        """NAME=NUMBER: change a limit, for instance connect_seconds=3"""
        name, _, number = value.partition("=")
        try:
            self._limits = self._limits.with_value(name, number)
        except LimitError as e:
            raise SystemExit(f"--limit: {e}") from None

    def opt_service_user(self, value: str) -> None:
        """A user, besides root and the broker's own, whose listening sockets count as services"""
        self._service_uids.add(_uid("--service-user", value))

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
        rundir = self._rundir or os.path.abspath(broker_rundir(os.environ, os.geteuid()))
        try:
            check_path(rundir, "network-0-0")
            check_loops(self._redirects)
        except RunDirError as e:
            raise SystemExit(f"--rundir: {e}") from None
        except RouteError as e:
            raise SystemExit(f"--redirect: {e}") from None
        try:
            addresses = own_addresses()
        except OSError as e:
            raise SystemExit(f"plumberd: cannot tell the machine's own addresses: {e.strerror}") from None
        settings = Settings(
            rundir=rundir,
            group=self._group,
            gid=None if self._group is None else grp.getgrnam(self._group).gr_gid,
            dialects=self._dialects,
            handover=self._handover,
            policy=Policy(tuple(self._rules), self._defaults, addresses),
            routes=Routes(self._redirects, self._routes),
            limits=self._limits,
            tcpd=tuple(self._tcpd),
            publish=tuple(self._publish),
            parts=frozenset(self._parts),
            broker_uids=frozenset(self._broker_uids),
            service_uids=frozenset(self._service_uids),
        )
        self.settings = settings
        if self._check:
            print("\n".join(announcement(settings)))
            raise SystemExit(0)

    def _add_rule(self, option: str, text: str) -> None:
        try:
            rule = parse_rule(text, option)
        except RuleError as e:
            raise SystemExit(f"{option}: {e}") from None
        self._rules.append(replace(rule, text=text))

    def _add_target(self, option: str, value: str, table: dict[str, Target], parse: Any) -> None:
        name, _, text = value.partition(" ")
        if not text:
            _fail(option, value, "two words, a service and where it goes")
        try:
            target = parse(name, text)
            leads_to = parse(name, text.replace(PLACEHOLDER, "x")) if PLACEHOLDER in text else target
            if isinstance(leads_to, Endpoint):
                _client_from_string(Clock(), leads_to.description)
        except RouteError as e:
            raise SystemExit(f"{option}: {name}: {e}") from None
        except Exception as e:  # each endpoint parser has errors of its own
            raise SystemExit(f"{option}: {name}: no client endpoint: {str(e) or type(e).__name__}") from None
        if isinstance(leads_to, Uri) and leads_to.password is not None:
            raise SystemExit(f"{option}: {name}: a password on the command line shows in ps; it is refused here")
        if name in table:
            _fail(option, name, "each service once")
        table[name] = target


def _uid(option: str, value: str) -> int:
    try:
        if value.isdecimal() and int(value) < _NO_UID:
            return int(value)
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        return int(_fail(option, value, "the name of a user that exists, or a uid"))


def _fail(option: str, value: str, wanted: str) -> Any:
    raise SystemExit(f"{option}: {value!r}: wanted {wanted}")
