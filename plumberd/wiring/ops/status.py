"""What ``status`` tells: a client about itself, an administrator everything."""

from __future__ import annotations

import os
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any, Protocol

from plumberd.pure.admission import FairQueue
from plumberd.pure.dialects import DIALECTS
from plumberd.pure.policy.decide import DEFAULTS
from plumberd.pure.tls import expiring
from plumberd.pure.who import LocalWho
from plumberd.wiring.announce import show_choices
from plumberd.wiring.core import Core

_STARTED = time.time()


class _Broker(Protocol):
    lookups: FairQueue[int, Any]
    unread: FairQueue[int, Any]

    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def conversations(self) -> int: ...
    @property
    def controls(self) -> int: ...


def version() -> str:
    """Return the installed version."""
    try:
        return package_version("plumberd")
    except PackageNotFoundError:
        return "not installed"


def about_client(core: Core, who: LocalWho, connections: int) -> dict[str, Any]:
    """What any client may know: whom it talks to, and what the broker thinks of it."""
    return {
        "version": version(),
        "rundir": core.settings.rundir,
        "dialects": {name: DIALECTS[name].socket_name for name in core.settings.dialects},
        "you": {
            "uid": who.uid,
            "gid": who.gid,
            "pid": who.pid,
            "confined": bool(who.confined),
            "connections": connections,
        },
    }


def about_everything(core: Core, broker: _Broker) -> dict[str, Any]:
    """What root and the broker's own user may know besides."""
    settings, policy = core.settings, core.settings.policy
    return {
        "pid": os.getpid(),
        "uptime_seconds": round(time.time() - _STARTED, 1),
        "group": settings.group,
        "sockets": list(broker.paths),
        "tcpd": list(settings.tcpd),
        "publish": [f"{name} on {endpoint}" for name, endpoint in settings.publish],
        "tlsd": list(settings.tlsd),
        "udpd": list(settings.udpd),
        "publish_tls": [f"{name} on {endpoint}" for name, endpoint in settings.publish_tls],
        "webipcd": [str(one) for one in settings.webipcd],
        "expiring": [str(one) for one in expiring(settings.tls, settings.peers, time.time())],
        "parts": sorted(settings.parts),
        "defaults": {d.value: "allow" if policy.defaults[d] else "deny" for d in DEFAULTS},
        "rules": [str(rule) for rule in policy.rules],
        "routes": {name: show_choices(choices) for name, choices in settings.routes.routes.items()},
        "redirects": {name: show_choices(choices) for name, choices in settings.routes.redirects.items()},
        "handover": settings.handover.value,
        "powers": {"lock": core.powers.lock, "give": core.powers.give, "act_as": core.services.actas.can_switch},
        "serving": [
            {"service": claim.service, "uid": claim.who.uid, "pid": claim.who.pid, "waiting": claim.waiting}
            for claim in core.registrations
        ],
        "now": {
            "clients": broker.conversations,
            "control_sockets": broker.controls,
            "lookups": broker.lookups.active,
            "waiting": broker.lookups.waiting,
            "unread_descriptors": broker.unread.active,
            "relays": len(core.relays),
        },
        "counts": dict(core.audit.counts),
        "datagrams": core.datagrams.told(core.relays),
    }
