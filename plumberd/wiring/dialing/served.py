"""What something here carries, and what carries it; told before anything is connected.

A new scheme's name goes into :data:`SERVED`; how it is connected to is :mod:`plumberd.wiring.dialing.reach`.
"""

from __future__ import annotations

from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import Endpoint
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.core import Core

SERVED = ("tcp", "tls", "udp", "ws", "wss", "unix")
"""The schemes that something here carries; others are ``not-possible``."""

CARRY_MESSAGES = ("udp", "ws", "wss")
"""Those of them that carry messages: what they reach fits the shape that is asked for."""


def carrier_of(core: Core | None, target: Uri | Endpoint, addresses: tuple[IPAddress, ...]) -> str:
    """Return, for people, what else carries the bytes to *target*, so that there is no socket to give away.

    Without a *core*, where nothing runs, there is no other process.
    """
    if isinstance(target, Endpoint):
        return "an administrator's endpoint"
    if target.scheme in ("tls", *CARRY_MESSAGES) and not (core and core.settings.asks_scheme_daemon(target.scheme)):
        return target.scheme
    return "the scheme daemon's process" if core and scheme_daemon_address(core, target, addresses) else ""


def check_served(target: Uri | Endpoint) -> None:
    """Check that something here carries *target*'s scheme.

    :raises Refused: ``not-possible``.
    """
    if isinstance(target, Uri) and target.scheme not in SERVED:
        raise Refused(Refusal.NOT_POSSIBLE, f"nothing here carries {target.scheme}; served are {', '.join(SERVED)}")


def check_leads_away(core: Core, service: str, to: Destination, addresses: tuple[IPAddress, ...]) -> None:
    """Check that a caller's way does not come back to this process: it would be the next caller, and so on.

    Only a loop through other machines, or one by a name that an endpoint resolves by itself, is not
    seen here; it ends at the limits.

    :raises Refused: ``not-possible``.
    """
    for address in addresses:
        if to.port is not None and core.is_here(address, to.port):
            raise Refused(
                Refusal.NOT_POSSIBLE,
                f"{service} leads to {to}, where this very process listens; a redirect to another name stays inside",
            )


def scheme_daemon_address(core: Core, uri: Uri, addresses: tuple[IPAddress, ...]) -> IPAddress | None:
    """Return the address to tell another process's scheme daemon; what does not fit its one form we dial ourselves."""
    if not core.settings.asks_scheme_daemon(uri.scheme):
        return None
    if uri.scheme != "tcp":
        return next(iter(addresses), None)
    if uri.service is None:
        return None
    return next((address for address in addresses if address.version == 4), None)
