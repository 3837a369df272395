"""What is doubtful about settings as a whole: of the rules, of listeners, redirects and routes, and of where it runs.

Nothing of it keeps anything from starting. Each doubt is a line: ``warning:``, or
``note:`` where it may well be meant so.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator

from plumberd.pure.modes import Mode, Powers
from plumberd.pure.names import is_reserved
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.foregone import Outward, lets_in
from plumberd.pure.policy.idle import Surroundings
from plumberd.pure.policy.lint import lint, name_rules
from plumberd.pure.policy.route import EVERY, Endpoint, Target, destination
from plumberd.pure.tls import ClientCertificates
from plumberd.pure.uri import Uri
from plumberd.pure.web_safety import UNIX, Network
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.config.values import show_time
from plumberd.wiring.dialing.served import SERVED

WARNING, NOTE = "warning: ", "note: "
"""How their lines begin."""

MOST = 50
"""So many are told; of the others the number."""

TARGETS = 10_000
"""So many targets of redirects and routes are looked at."""

_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")

_COLON = re.compile(r"(?<!\\):")


def doubts(
    settings: Settings, powers: Powers | None = None, *, has_pidfds: bool = True, until: str | None = None
) -> list[str]:
    """Return a line for each doubt, the gravest first. Ten thousand rules take a second or two.

    :param powers: what this process may do, where that was tried.
    :param has_pidfds: whether the kernel tells which process a client is.
    :param until: when `--audit-only` ends, where that is known.
    """
    found = [f"{WARNING}{text}" for text in _doubts(settings, powers, has_pidfds, until)]
    rules = lint(settings.policy.rules, settings.policy.defaults, surroundings(settings, has_pidfds=has_pidfds))
    found += [f"{NOTE if doubt.is_note else WARNING}{doubt}" for doubt in rules]
    if len(found) > MOST:
        return [*found[:MOST], f"{WARNING}and {len(found) - MOST} more doubts"]
    return found


def surroundings(settings: Settings, *, has_pidfds: bool = True) -> Surroundings:
    """Return what is around the rules of *settings*."""
    endpoints = [target for _, _, target in _targets(settings) if isinstance(target, Endpoint)]
    published = frozenset(name for name, _ in (*settings.publish, *settings.publish_tls))
    return Surroundings(
        listens=_listens(settings),
        services=published
        if published and not (settings.tcpd or settings.tlsd or settings.udpd or settings.webipcd)
        else None,
        proves=_proves(settings),
        carries=frozenset((*SERVED, *(endpoint.scheme for endpoint in endpoints))),
        special=frozenset(endpoint.scheme for endpoint in endpoints if endpoint.special),
        tells_units=has_pidfds,
        uid=os.geteuid(),
        addresses=settings.policy.own_addresses,
    )


def _listens(settings: Settings) -> tuple[str, ...]:
    """Return the schemes that callers come in by."""
    by_tcp, by_tls = settings.tcpd or settings.publish, settings.tlsd or settings.publish_tls
    found = (("tcp", by_tcp), ("tls", by_tls), ("udp", settings.udpd))
    return (*(scheme for scheme, listeners in found if listeners), *_web_schemes(settings))


def _web_schemes(settings: Settings) -> tuple[str, ...]:
    """Return ws and wss, as callers may come; a reverse proxy may say that its own are inside TLS."""
    if settings.webipcd and settings.web.proxies:
        return ("ws", "wss")
    return tuple(dict.fromkeys("wss" if one.tls else "ws" for one in settings.webipcd))


def _proves(settings: Settings) -> tuple[str, ...]:
    """Return the kinds of identity that callers can prove."""
    by_tls = settings.tlsd or settings.publish_tls or any(one.tls for one in settings.webipcd)
    kinds: list[str] = ["token"] if settings.webipcd and settings.web.token_file is not None else []
    if not by_tls:
        return tuple(kinds)
    if settings.tls.client_certificates is not ClientCertificates.NONE:
        kinds += ["cert", "spiffe"]
    if settings.tls.psks:
        kinds.append("psk")
    if settings.logins.can_check:
        kinds.append("login")
    return tuple(kinds)


def _doubts(settings: Settings, powers: Powers | None, has_pidfds: bool, until: str | None) -> Iterator[str]:
    """Yield what is not about single rules."""
    if settings.audit_only_seconds:
        when = f"until {until}" if until else f"for {show_time(settings.audit_only_seconds)}"
        yield (
            f"AUDIT ONLY, {when}: what rules and defaults refuse is LET THROUGH and logged, but for addresses "
            "that a rule has to name"
        )
    yield from _directory_doubts(settings.rundir)
    if not has_pidfds:
        yield "this kernel has no pidfds of peers (Linux 6.5): every client counts as confined and needs a rule"
    if powers is not None and not powers.lock:
        yield from _locking_doubts(settings)
    yield from _listener_doubts(settings)
    yield from _way_doubts(settings)


def _directory_doubts(rundir: str) -> Iterator[str]:
    try:
        owner = os.lstat(rundir).st_uid
    except OSError:
        return  # it will be made, and be ours
    if os.geteuid() not in (0, owner):
        yield (
            f"{rundir} belongs to uid {owner} and this broker is uid {os.geteuid()}: clients of other users will not "
            f"trust it; chown the directory to uid {os.geteuid()}"
        )


def _locking_doubts(settings: Settings) -> Iterator[str]:
    """Yield who asks for what this broker cannot do."""
    if settings.handover is Mode.LOCKED:
        yield "--handover locked, and this broker cannot lock sockets: every tcp lookup will be not-possible"
    rules = settings.policy.rules
    asking = [at for at, rule in enumerate(rules) if rule.handover is Mode.LOCKED]
    if asking:
        yield f"this broker cannot lock sockets, so handover=locked is not-possible: {name_rules(asking, rules)}"


def _listener_doubts(settings: Settings) -> Iterator[str]:
    policy, proves = settings.policy, _proves(settings)
    listeners = (("tcpd", settings.tcpd, "tcp"), ("tlsd", settings.tlsd, "tls"), ("udpd", settings.udpd, "udp"))
    for daemon, endpoints, scheme in listeners:
        if endpoints and not lets_in(policy, (scheme,), proves=proves if scheme == "tls" else ()):
            yield f"{daemon} listens, and no rule lets anyone in: --allow in SERVICE PEER"
    if settings.webipcd:
        if not lets_in(policy, _web_schemes(settings), proves=proves):
            yield "webipcd listens, and no rule lets anyone in: --allow in SERVICE ws:any"
        if not settings.web.hosts and any(_is_open(one.description) for one in settings.webipcd):
            yield "webipcd listens for other machines, and web.hosts names no host: they get 403"
        yield from _proxy_doubts(settings)
    for scheme, published in (("tcp", settings.publish), ("tls", settings.publish_tls)):
        for name in dict.fromkeys(name for name, _ in published):
            if not lets_in(policy, (scheme,), name, proves=proves if scheme == "tls" else ()):
                yield f"{name} is published, and no rule lets anyone in: --allow in {name} PEER"
    if not _listens(settings) and any(rule.direction is Direction.IN for rule in policy.rules):
        yield "there are rules for callers, and nothing listens for them: --tcpd, --tlsd, --udpd, --webipcd"
    if policy.defaults[Direction.IN]:
        yield "default in=allow lets everybody reach every local service that no rule denies"


def _proxy_doubts(settings: Settings) -> Iterator[str]:
    """Yield where any local user may pass for a reverse proxy, and so for any caller at all."""
    proxies, descriptions = settings.web.proxies, [one.description for one in settings.webipcd]
    listens_by_tcp = any(not one.startswith("unix:") for one in descriptions)
    if listens_by_tcp and any(not isinstance(one, str) and _holds_loopback(one) for one in proxies):
        yield (
            "web.proxies holds loopback: every local user can pass for the proxy, and for any caller; "
            'let it connect to a UNIX socket: proxies = ["unix"]'
        )
    if UNIX in proxies:
        for one in filter(_is_for_all, descriptions):
            yield (
                f"webipcd listens on {one}, and every local user can pass for the proxy, and for any caller: "
                "end it with :mode=660"
            )


def _holds_loopback(network: Network) -> bool:
    """Tell whether an address of this machine alone is in *network*."""
    if isinstance(network, ipaddress.IPv4Network):
        return network.overlaps(_LOOPBACK)
    return ipaddress.IPv6Address("::1") in network


def _is_for_all(description: str) -> bool:
    """Tell whether everybody may connect to a UNIX endpoint; without a mode Twisted makes it 0666."""
    kind, *words = _COLON.split(description)
    mode = next((word.removeprefix("mode=") for word in words if word.startswith("mode=")), "666")
    return kind == "unix" and mode[-1:] in "2367"


def _is_open(description: str) -> bool:
    """Tell whether an endpoint is for more than this machine."""
    kind, _, rest = description.partition(":")
    return kind in ("tcp", "tcp6") and not any(
        f"interface={one}" in rest.replace("\\", "") for one in ("127.", "localhost", "::1")
    )


# -- redirects and routes


def _way_doubts(settings: Settings) -> Iterator[str]:
    """Yield which redirects and routes are never taken, and which lead to where nobody may go."""
    redirects, routes = settings.routes.redirects, settings.routes.routes
    for kind, table in (("redirect", redirects), ("route", routes)):
        for name, choices in table.items():
            if any(not choice.conditions for choice in choices[:-1]):
                yield f"the {kind} of {name} has one for everybody, and others behind it, which are never taken"
    for name in routes:
        if any(not choice.conditions and choice.targets != (name,) for choice in redirects.get(name, ())):
            yield f"the route of {name} is never taken: its redirect comes first"
    outward = Outward(settings.policy)
    for looked_at, (kind, name, target) in enumerate(_targets(settings)):
        if looked_at == TARGETS:
            yield f"more than {TARGETS} redirects and routes: whether the rules let anybody follow the rest is not told"
            return
        if isinstance(target, Endpoint) and _is_own_socket(target, settings.rundir):
            yield f"the {kind} of {name} leads to a socket of plumberd itself"
        by = None if target == name or name == EVERY else _refused_by(settings, outward, name, target)
        if by is not None:
            yield f"the {kind} of {name} leads to {target}, and {by} lets nobody go there"


def _targets(settings: Settings) -> Iterator[tuple[str, str, Target]]:
    """Yield every target, with ``redirect`` or ``route`` and the name that leads there."""
    for kind, table in (("redirect", settings.routes.redirects), ("route", settings.routes.routes)):
        for name, choices in table.items():
            for choice in choices:
                for target in choice.targets:
                    yield kind, name, target


def _refused_by(settings: Settings, outward: Outward, name: str, target: Target) -> str | None:
    """Return what refuses this way to everybody; callers need no rule to be led to another local service."""
    callers = _listens(settings)
    if isinstance(target, str):
        return None if callers else outward.closing(name)
    to = target.destination() if isinstance(target, Endpoint) else destination(target)
    if to.scheme == "unix" and not to.special and callers:
        return None
    far = target.service if isinstance(target, Uri) else None
    found = (outward.refusing(service, to) for service in dict.fromkeys((name, far)) if service is not None)
    return next((by for by in found if by is not None), None)


def _is_own_socket(endpoint: Endpoint, rundir: str) -> bool:
    """Tell whether it is a UNIX socket that plumberd listens on, or would."""
    if endpoint.scheme != "unix":
        return False
    words = _COLON.split(endpoint.description)[1:]
    path = next((word.removeprefix("path=") for word in words if "=" not in word or word.startswith("path=")), "")
    folder, name = os.path.split(os.path.abspath(path.replace("\\", "")))
    return folder == os.path.abspath(rundir) and is_reserved(name)
