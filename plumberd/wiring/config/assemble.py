"""One :class:`Settings` out of the command line and the configuration file, at the start and at each reload.

The command line's rules stand in front of the file's. Of a value that can be only
one, and of each member of a table, the command line's counts; lists are put
together, but for those that say what this process is (dialects, parts).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from plumberd.effects.accounts import Accounts
from plumberd.effects.interfaces import own_addresses
from plumberd.effects.rundir import RunDirError, check_path
from plumberd.pure.dialects import DEFAULT
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.places import broker_rundir
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice, RouteError, Routes, Table, Target, check_loops
from plumberd.pure.policy.rule import Rule, RuleError, bind_rule
from plumberd.pure.uri import IPAddress
from plumberd.wiring.config.configuration import Reading, read_configuration
from plumberd.wiring.config.login_tables import LoginTables
from plumberd.wiring.config.mistakes import ConfigurationError, Mistake
from plumberd.wiring.config.schema import Tls
from plumberd.wiring.config.settings import CommandLine, Settings
from plumberd.wiring.config.tls_tables import TlsTables
from plumberd.wiring.config.web_table import WebTable

LONGEST_SOCKET = "network-0-0"
"""Of the names that the broker listens on."""


def read_settings(
    line: CommandLine, generation: int = 1, accounts: Accounts | None = None, *, reads_keys: bool = True
) -> Settings:
    """Read the configuration that *line* names, if any, and put both together.

    :param accounts: what knows the numbers of names; the default is this machine.
    :param reads_keys: whether the files of TLS are read as well; who only asks a configuration need not be
        allowed to.
    :raises ConfigurationError: with all mistakes; nothing holds then.
    """
    accounts = accounts or Accounts()
    reading = Reading()
    if line.config is not None:
        reading = read_configuration(line.config, line.folder, accounts)
    mistakes = list(reading.mistakes)
    settings = _Assembly(line, reading, accounts, mistakes).settings(generation)
    settings = _with_tls(settings, reading, mistakes, reads_keys)
    settings = dataclasses.replace(settings, web=WebTable(reading, mistakes, reads_keys).settings())
    logins = LoginTables(line, reading, mistakes, reads_keys).settings()
    settings = dataclasses.replace(settings, logins=logins)
    if mistakes:
        raise ConfigurationError(mistakes)
    return settings


def reread(source: CommandLine | None, generation: int) -> Settings:
    """Read the next generation with the same command line: ``reread(settings.source, settings.generation + 1)``.

    :raises ConfigurationError: with all mistakes; what holds stays in force.
    """
    if source is None:
        raise ConfigurationError([Mistake("plumberd", "", "these settings were made by hand, and can't be read again")])
    return read_settings(source, generation)


def _with_tls(settings: Settings, reading: Reading, mistakes: list[Mistake], reads_keys: bool) -> Settings:
    """Return *settings* with what is said of TLS."""
    file = reading.configuration
    web = tuple(one.description for one in settings.webipcd if one.tls)
    if not (settings.tlsd or settings.publish_tls or web or file.peer or file.tls != Tls()):
        return settings
    tables = TlsTables(reading, mistakes, reads_keys)
    tls, peers = tables.settings()
    listening: tuple[tuple[Sequence[object], str, str], ...] = (
        (settings.tlsd, "--tlsd", "tlsd"),
        (settings.publish_tls, "", "publish_tls"),
        (web, "--webipcd tls:", "webipcd"),
    )
    for listeners, option, key in listening:
        if listeners and not tls.can_listen and not mistakes:
            text = "wants something that a listener can prove: tls.certificate and tls.private_key, or tls.psk_file"
            from_file = reading.file_of("listen", key)
            mistakes.append(Mistake(from_file.name, f"listen.{key}", text) if from_file else Mistake(option, "", text))
    return dataclasses.replace(settings, tls=tls, peers=peers)


class _Assembly:
    """Puts the two together; adds to *mistakes* what can be seen only then."""

    def __init__(self, line: CommandLine, reading: Reading, accounts: Accounts, mistakes: list[Mistake]) -> None:
        self._line = line
        self._reading = reading
        self._file = reading.configuration
        self._accounts = accounts
        self._mistakes = mistakes

    def settings(self, generation: int) -> Settings:
        """Return the settings; if there are mistakes they are worth nothing."""
        line, file = self._line, self._file
        group = line.group or file.group
        admin_group = line.admin_group or file.admin_group
        limits: dict[str, Any] = {**file.limits, **line.limits}
        return Settings(
            rundir=self._rundir(),
            group=group.name if group else None,
            gid=group.gid if group else None,
            admin_group=admin_group.name if admin_group else None,
            admin_gid=admin_group.gid if admin_group else None,
            dialects=line.dialects or file.dialects or DEFAULT,
            handover=line.handover or file.handover or Mode.AUTO,
            policy=Policy(self._rules(), self._defaults(), self._own_addresses()),
            routes=self._routes(),
            proxied=frozenset(name for name, one in file.services.items() if one.proxy is not None),
            gateways=file.tls.gateways,
            framings={name: one.framing for name, one in file.services.items() if one.framing is not None},
            limits=dataclasses.replace(Limits(), **limits),
            tcpd=(*line.tcpd, *file.listen.tcpd),
            publish=(*line.publish, *((name, one) for name, all_ in file.listen.publish.items() for one in all_)),
            tlsd=(*line.tlsd, *file.listen.tlsd),
            udpd=(*line.udpd, *file.listen.udpd),
            publish_tls=tuple((name, one) for name, all_ in file.listen.publish_tls.items() for one in all_),
            webipcd=(*line.webipcd, *file.listen.webipcd),
            parts=line.parts or frozenset(file.parts),
            broker_uids=line.broker_uids.union(file.broker_users),
            service_uids=line.service_uids.union(file.service_users),
            audit_file=self._audit_file(),
            audit_journal=line.audit_journal or file.audit.journal,
            audit_only_seconds=line.audit_only_seconds or file.audit_only or 0,
            config=line.config,
            generation=generation,
            source=line,
        )

    def _rundir(self) -> str:
        rundir, said = self._line.rundir, "--rundir"
        if rundir is None and self._file.rundir is not None:
            rundir = self._reading.absolute(self._file.rundir, "rundir")
            said = ""
        if rundir is None:
            rundir = os.path.abspath(broker_rundir(os.environ, os.geteuid()))
        try:
            check_path(rundir, LONGEST_SOCKET)
        except RunDirError as e:
            self._mistake(said, "rundir", str(e))
        return rundir

    def _rules(self) -> tuple[Rule, ...]:
        bound = []
        for rule in self._line.rules:
            try:
                bound.append(bind_rule(rule, self._accounts.uid_of, self._accounts.gid_of))
            except RuleError as e:
                self._mistakes.append(Mistake(rule.source, "", str(e)))
        return (*bound, *self._file.rules)

    def _defaults(self) -> dict[Direction, bool]:
        written = {Direction.IN: self._file.default.in_, Direction.OUT: self._file.default.out}
        return {**DEFAULTS, **{d: said for d, said in written.items() if said is not None}, **self._line.defaults}

    def _routes(self) -> Routes:
        redirects = _table(self._line.redirects, self._file.redirect)
        try:
            check_loops(redirects)
        except RouteError as e:
            self._mistake("--redirect" if self._line.redirects else "", "redirect", str(e))
        return Routes(redirects, _table(self._line.routes, self._file.routes))

    def _audit_file(self) -> str | None:
        file = self._file.audit.file
        if self._line.audit_file is not None or file is None:
            return self._line.audit_file
        return self._reading.absolute(file, "audit", "file")

    def _own_addresses(self) -> frozenset[IPAddress]:
        try:
            return own_addresses()
        except OSError as e:
            self._mistakes.append(Mistake("plumberd", "", f"cannot tell the machine's own addresses: {e.strerror}"))
            return frozenset()

    def _mistake(self, option: str, key: str, text: str) -> None:
        """Note a mistake of the option, or of the key where no option said it."""
        file = self._reading.file_of(key)
        if option or file is None:
            self._mistakes.append(Mistake(option or f"--{key}", "", text))
        else:
            self._mistakes.append(Mistake(file.name, key, text))


def _table(line: Mapping[str, tuple[Target, ...]], file: Mapping[str, tuple[Choice, ...]]) -> Table:
    """Return the choices of both; where both speak of a service, the command line's alone."""
    said: dict[str, tuple[Choice, ...]] = {name: (Choice(targets),) for name, targets in line.items()}
    return {**said, **{name: choices for name, choices in file.items() if name not in said}}
