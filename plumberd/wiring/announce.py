"""What a start prints, and ``--check``: where, for whom, the rules, all else that is in force, and what is doubtful."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from plumberd.pure.dialects import DIALECTS
from plumberd.pure.limits import Limits
from plumberd.pure.login import LoginSettings
from plumberd.pure.modes import Powers
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.lint import name_rule
from plumberd.pure.policy.route import Choice, Table
from plumberd.pure.web_safety import LOOPBACK, show_all
from plumberd.wiring.config.doubts import doubts
from plumberd.wiring.config.settings import Settings

AT_START = 20
"""So many rules, redirects and routes stand in the log of a start; ``--check`` prints all."""

_LINE = re.compile(r":[0-9]+\Z")


def announcement(
    settings: Settings,
    powers: Powers | None = None,
    *,
    has_pidfds: bool = True,
    addresses: Sequence[str] | None = None,
) -> list[str]:
    """Return the lines that describe *settings*; doubts begin with ``warning:``, or with ``note:``.

    :param addresses: what tcpd says of where it really listens, once it does. That is a start or a
        reload, which goes into a log: of long lists it holds the beginning.
    """
    starts = addresses is not None
    lines = [*_configuration(settings, cut=starts), *_places(settings), *_who(settings)]
    lines += _listeners(settings) if addresses is None else addresses
    if not _listeners(settings):
        lines.append("no remote callers (--tcpd, --tlsd, --udpd, --webipcd)")
    rules = [f"{name_rule(n, rule.source)}: {rule}" for n, rule in enumerate(settings.policy.rules, 1)]
    lines += _cut(rules, cut=starts)
    lines.append(_defaults(settings))
    lines += _cut(_ways("redirect {} to {}", settings.routes.redirects), cut=starts)
    lines += _cut(_ways("route {} = {}", settings.routes.routes), cut=starts)
    lines += [f"messages of {name} are {framing}" for name, framing in settings.framings.items()]
    lines += _logins(settings.logins)
    lines += _web(settings)
    lines.append(_handover(settings, powers))
    lines += _limits(settings.limits)
    lines.append(_audit(settings))
    until = _until(settings) if starts and settings.generation == 1 else None
    lines += doubts(settings, powers, has_pidfds=has_pidfds, until=until)
    lines.append("clients set, and name their services in the second:")
    lines.append(f"  export IPC_RUNDIR={settings.rundir} RUNDIR={settings.rundir}")
    lines.append('  export IPC_NETWORKD="pong tcp://HOST:9000/pong"')
    return lines


def show_choices(choices: tuple[Choice, ...]) -> str:
    """Print where a name leads, and for whom; what an endpoint string holds may be a secret."""
    return ", else ".join(map(str, choices))


def _configuration(settings: Settings, *, cut: bool) -> Iterator[str]:
    """Yield which file is in force, and which others rules came from."""
    if settings.config is None:
        return
    again = f", generation {settings.generation}" if settings.generation > 1 else ""
    yield f"configuration {settings.config}{again}"
    sources = (rule.source for rule in settings.policy.rules if rule.source and not rule.source.startswith("--"))
    files = Counter(_LINE.sub("", source) for source in sources)
    files.pop(settings.config, None)
    yield from _cut([f"  includes {name}, with rules: {count}" for name, count in files.items()], cut=cut)


def _places(settings: Settings) -> Iterator[str]:
    """Yield where it is, and for whom."""
    group = f"group {settings.group}" if settings.group else f"uid {os.geteuid()} and its group {os.getegid()}"
    yield f"run directory {settings.rundir}, for {group}"
    for name in settings.dialects if settings.runs_broker else ():
        yield f"  {name:<12} {settings.rundir}/{DIALECTS[name].socket_name}"
    for scheme in settings.served_schemes:
        yield f"  {scheme:<12} {settings.rundir}/{scheme}, for brokers"


def _who(settings: Settings) -> Iterator[str]:
    """Yield who may do more than others, as root and the broker's own user may."""
    if settings.admin_group is not None:
        yield f"administrators are of group {settings.admin_group} too"
    for what, uids in (("services", settings.service_uids), ("brokers", settings.broker_uids)):
        if uids:
            yield f"{what} may be of {', '.join(f'uid {uid}' for uid in sorted(uids))} too"


def _listeners(settings: Settings) -> list[str]:
    return [
        *(f"tcpd on {description}" for description in settings.tcpd),
        *(f"publishes {name} on {description}" for name, description in settings.publish),
        *(f"tlsd on {description}" for description in settings.tlsd),
        *(f"udpd on {description}" for description in settings.udpd),
        *(f"publishes {name} inside TLS on {description}" for name, description in settings.publish_tls),
        *(f"webipcd on {one}" for one in settings.webipcd),
    ]


def _defaults(settings: Settings) -> str:
    inward, out = (_word(settings.policy.defaults[way]) for way in (Direction.IN, Direction.OUT))
    return f"default in={inward} out={out}; confined clients need a rule, local services need none"


def _ways(form: str, table: Table) -> list[str]:
    return [form.format(name, show_choices(choices)) for name, choices in table.items()]


def _cut(lines: list[str], *, cut: bool) -> list[str]:
    if not cut or len(lines) <= AT_START:
        return lines
    return [*lines[:AT_START], f"… and {len(lines) - AT_START} more (--check prints all)"]


def _logins(logins: LoginSettings) -> Iterator[str]:
    """Yield who checks logins, without what may be secret."""
    if logins.can_check:
        yield f"logins are checked by {', then by '.join(logins.names)}"


def _web(settings: Settings) -> Iterator[str]:
    """Yield whom browsers may ask, and from where."""
    web = settings.web
    if settings.webipcd:
        yield f"browsers may ask for {show_all(web.hosts or LOOPBACK)}; pages of others: {show_all(web.origins)}"
        if web.proxies:
            yield f"reverse proxies are {show_all(web.proxies)}"
        if web.token_file is not None:
            yield f"tokens are those of {web.token_file} ({len(web.tokens)})"


def _handover(settings: Settings, powers: Powers | None) -> str:
    if powers is None:
        return f"hand-over {settings.handover.value}"
    if powers.lock:
        whose = "for every user" if powers.give else "for this user"
        return f"hand-over {settings.handover.value}: sockets can be locked {whose}"
    return f"hand-over {settings.handover.value}: this broker cannot lock sockets (CAP_NET_ADMIN)"


def _limits(limits: Limits) -> Iterator[str]:
    """Yield the limits that are not what they are by default."""
    for one in dataclasses.fields(limits):
        value = getattr(limits, one.name)
        if value != one.default:
            yield f"limit {one.name}={value} (default {one.default})"


def _audit(settings: Settings) -> str:
    where = ["this program's log"]
    if settings.audit_file is not None:
        where.append(settings.audit_file)
    if settings.audit_journal:
        where.append("the journal")
    return f"outcomes go to {' and '.join(where)}"


def _until(settings: Settings) -> str:
    """Return when what is only logged ends, of a start at this moment."""
    end = datetime.datetime.fromtimestamp(time.time() + settings.audit_only_seconds, datetime.UTC)
    return f"{end:%Y-%m-%d %H:%M:%S} UTC"


def _word(allowed: bool) -> str:
    return "allow" if allowed else "deny"
