"""Where the run directory is: one place decides it for the broker and for every client."""

from __future__ import annotations

from collections.abc import Mapping

SYSTEM = "/run/ipc"


def broker_rundir(environ: Mapping[str, str], uid: int) -> str:
    """Return the directory that a broker serves where ``--rundir`` says nothing."""
    for variable in ("IPC_RUNDIR", "RUNDIR"):
        if environ.get(variable):
            return environ[variable]
    if uid != 0 and environ.get("XDG_RUNTIME_DIR"):
        return environ["XDG_RUNTIME_DIR"] + "/ipc"
    return SYSTEM


def client_rundirs(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the directories in which a client looks; the first with a live broker counts."""
    found = [environ[v] for v in ("IPC_RUNDIR", "RUNDIR") if environ.get(v)]
    if environ.get("XDG_RUNTIME_DIR"):
        found.append(environ["XDG_RUNTIME_DIR"] + "/ipc")
    return tuple(dict.fromkeys([*found, SYSTEM]))
