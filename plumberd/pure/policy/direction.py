"""Which way a connection goes."""

from __future__ import annotations

import enum


class Direction(enum.Enum):
    """Which way a connection goes, seen from this machine; or that somebody wants to serve a name here."""

    IN = "in"
    OUT = "out"
    SERVE = "serve"
