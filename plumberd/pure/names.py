"""Names of services: which are valid, and which are reserved.

A service listens on ``<run directory>/<name>``, so a name must never leave that
directory, and must never be a name that the broker or a scheme daemon listens
on: the broker would connect to itself and hand out a connection whose peer is
the broker.
"""

from __future__ import annotations

import re

from plumberd.pure.refusals import Refusal, Refused, printable

SERVICE_CHARS = 64
"""Longest name; LibIPC's own TCP daemon reads that many bytes."""

_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")
"""Not beginning with ``.`` (hidden files, ``..``) or ``-`` (options of tools)."""

SCHEMES = ("tcp", "tls", "udp", "ws", "wss", "unix")
"""The schemes that a lookup may use. An unknown one would write into any local socket."""

EVERY_SERVICE = "any"
"""What rules call every service. One that is really called so could not be told apart in a rule."""

RESERVED = frozenset(("plumberd", "ipc", "network", "network-0-0", *SCHEMES, EVERY_SERVICE))
"""What the broker (every generation's socket) and its scheme daemons listen on, and the rules' own word."""

WANTED = "1 to 64 of A-Z a-z 0-9 _ . - and not beginning with . or -"


def is_service(name: str) -> bool:
    """Tell whether *name* is a well-formed name; it may still be reserved."""
    return _SERVICE.match(name) is not None


def is_reserved(name: str) -> bool:
    """Tell whether *name* belongs to the broker, a scheme daemon, a lock file or the grammar of rules.

    ``<name>-0-0`` is where the oldest generation's service ``<name>`` listens: it must not be
    reached under a name that the rules do not know it by.
    """
    return name in RESERVED or name.endswith((".lock", "-0-0"))


def check_service(name: str) -> str:
    """Return *name* if it is valid and free.

    :raises Refused: ``bad-request`` for a malformed name, ``denied`` for a reserved one.
    """
    if not is_service(name):
        # a whole URI in the name's place may hold a password
        hidden = "@" in name or "://" in name
        shown = "text that looks like a URI" if hidden else repr(printable(name, 80))
        raise Refused(Refusal.BAD_REQUEST, f"{shown} is no name of a service: wanted {WANTED}")
    if name == EVERY_SERVICE:
        raise Refused(Refusal.DENIED, f"{name!r} is reserved: in rules it is every service")
    if is_reserved(name):
        raise Refused(Refusal.DENIED, f"{name!r} is reserved for plumberd itself")
    return name
