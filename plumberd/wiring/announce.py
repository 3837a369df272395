"""What a start prints, and ``--check``: where, for whom, the defaults, and what is pointless."""

from __future__ import annotations

import os
from collections.abc import Sequence

from plumberd.pure.dialects import DIALECTS
from plumberd.pure.modes import Powers
from plumberd.pure.policy.route import Endpoint, Target
from plumberd.pure.policy.rule import Direction, Rule
from plumberd.wiring.settings import Settings


def announcement(
    settings: Settings,
    powers: Powers | None = None,
    *,
    has_pidfds: bool = True,
    addresses: Sequence[str] | None = None,
) -> list[str]:
    """Return the lines that describe *settings*; doubts begin with ``warning:``.

    :param addresses: what tcpd says of where it really listens, once it does.
    """
    policy = settings.policy
    group = f"group {settings.group}" if settings.group else f"uid {os.geteuid()} and its group {os.getegid()}"
    lines = [f"run directory {settings.rundir}, for {group}"]
    for name in settings.dialects if settings.runs_broker else ():
        lines.append(f"  {name:<12} {settings.rundir}/{DIALECTS[name].socket_name}")
    if settings.serves_tcp_socket:
        lines.append(f"  {'tcp':<12} {settings.rundir}/tcp, for brokers")
    lines += _listeners(settings) if addresses is None else addresses
    if not _listeners(settings):
        lines.append("no remote callers (--tcpd)")
    for number, rule in enumerate(policy.rules, 1):
        lines.append(f"rule {number}: {rule}")
    lines.append(
        f"default in={_word(policy.defaults[Direction.IN])} out={_word(policy.defaults[Direction.OUT])}"
        "; confined clients need a rule, local services need none"
    )
    for name, target in settings.routes.redirects.items():
        lines.append(f"redirect {name} to {_show(target)}")
    for name, target in settings.routes.routes.items():
        lines.append(f"route {name} = {_show(target)}")
    lines.append(_handover(settings, powers))
    lines += [f"warning: {doubt}" for doubt in _doubts(settings, powers, has_pidfds)]
    lines.append("clients set, and name their services in the second:")
    lines.append(f"  export IPC_RUNDIR={settings.rundir} RUNDIR={settings.rundir}")
    lines.append('  export IPC_NETWORKD="pong tcp://HOST:9000/pong"')
    return lines


def _listeners(settings: Settings) -> list[str]:
    published = [f"publishes {name} on {description}" for name, description in settings.publish]
    return [*(f"tcpd on {description}" for description in settings.tcpd), *published]


def _handover(settings: Settings, powers: Powers | None) -> str:
    if powers is None:
        return f"hand-over {settings.handover.value}"
    if powers.lock:
        whose = "for every user" if powers.give else "for this user"
        return f"hand-over {settings.handover.value}: sockets can be locked {whose}"
    return f"hand-over {settings.handover.value}: this broker cannot lock sockets (CAP_NET_ADMIN)"


def _doubts(settings: Settings, powers: Powers | None, has_pidfds: bool) -> list[str]:
    policy = settings.policy
    doubts = []
    lets_in = policy.defaults[Direction.IN] or any(r.allow and r.direction is Direction.IN for r in policy.rules)
    listeners = _listeners(settings)
    if listeners and not lets_in:
        who = "tcpd listens" if settings.tcpd else "services are published"
        doubts.append(f"{who}, and no rule lets anyone in: --allow in SERVICE PEER")
    if not listeners and any(r.direction is Direction.IN for r in policy.rules):
        doubts.append("there are rules for callers, and nothing listens for them: --tcpd PORT")
    for number, rule in enumerate(policy.rules, 1):
        if rule.direction is Direction.IN and rule.peer.scheme not in (None, "tcp"):
            doubts.append(f"rule {number} can match nobody: nothing here listens for {rule.peer.scheme}")
        if rule.direction is Direction.IN and rule.allow and rule.service is None and rule.peer.scheme is None:
            doubts.append(f"rule {number} lets everybody reach every local service")
        shadow = next((n for n, r in enumerate(policy.rules[: number - 1], 1) if _shadows(r, rule)), None)
        if shadow is not None:
            doubts.append(f"rule {number} never has its turn: rule {shadow} matches first")
    doubts += _directory_doubts(settings.rundir)
    if policy.defaults[Direction.IN]:
        doubts.append("default in=allow lets everybody reach every local service that no rule denies")
    if powers is not None and settings.handover.value == "locked" and not powers.lock:
        doubts.append("--handover locked, and this broker cannot lock sockets: every tcp lookup will be not-possible")
    if not has_pidfds:
        doubts.append(
            "this kernel has no pidfds of peers (Linux 6.5): every client counts as confined and needs a rule"
        )
    return doubts


def _directory_doubts(rundir: str) -> list[str]:
    try:
        owner = os.lstat(rundir).st_uid
    except OSError:
        return []  # it will be made, and be ours
    if os.geteuid() in (0, owner):
        return []
    return [
        f"{rundir} belongs to uid {owner} and this broker is uid {os.geteuid()}: clients of other users will not "
        f"trust it; chown the directory to uid {os.geteuid()}"
    ]


def _shadows(rule: Rule, later: Rule) -> bool:
    """Tell whether *rule* matches whatever *later* matches.

    An `allow` of any peer leaves the addresses alone that need a rule which names them.
    """
    return (
        rule.direction is later.direction
        and rule.service in (None, later.service)
        and rule.peer.scheme is None
        and not (rule.allow and rule.direction is Direction.OUT and later.peer.address is not None)
    )


def _show(target: Target) -> str:
    return f"the endpoint {target.scheme}:…" if isinstance(target, Endpoint) else str(target)


def _word(allowed: bool) -> str:
    return "allow" if allowed else "deny"
