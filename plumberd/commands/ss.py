"""``plumb ss`` and ``plumb kill``: connections that have left the broker and still live."""

from __future__ import annotations

import argparse
import pwd
from typing import Any

from plumberd import client
from plumberd.commands.output import OK, REFUSED, aligned, complain, say, say_json

_HEAD = ("id", "service", "who", "pid", "mode", "age", "sent", "received", "rtt", "state", "to")
_SECONDS = ((86400, "d"), (3600, "h"), (60, "min"))
_BYTES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def run(args: argparse.Namespace) -> int:
    """List them, all pages. To have none is no failure."""
    connections = [one for one in _all(args.rundir) if args.service in (None, one["service"])]
    if args.json:
        say_json(connections)
    elif connections:
        say(aligned([_HEAD, *map(_row, connections)]))
    else:
        of = f" of {args.service}" if args.service else ""
        say([f"no connection{of} that was handed over lives, as far as you may know"])
    return OK


def run_kill(args: argparse.Namespace) -> int:
    """End each; the status is 1 where one was not ended, and standard error tells why."""
    status = OK
    for connection in args.connections:
        try:
            client.ask({"op": "kill", "connection": connection}, rundir=args.rundir)
        except client.Refused as e:
            complain(f"{connection}: {e.word}: {e.reason}")
            status = REFUSED
        else:
            say([f"{connection} is ended"])
    return status


def show_seconds(seconds: float) -> str:
    """Return a time in its largest unit."""
    for size, unit in _SECONDS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def show_bytes(count: int | None) -> str:
    """Return a number of bytes in its largest unit; the kernel may not tell it."""
    if count is None:
        return "-"
    for size, unit in _BYTES:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _all(rundir: str | None) -> list[dict[str, Any]]:
    """Return every connection that the broker tells of, page by page."""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        request = {"op": "ss"} if after is None else {"op": "ss", "after": after}
        answer, _ = client.ask(request, rundir=rundir)
        found += answer["connections"]
        behind = answer.get("after")
        if not answer.get("more") or behind is None or behind == after:
            return found
        after = behind


def _row(one: dict[str, Any]) -> tuple[object, ...]:
    rtt = one["rtt_ms"]
    return (
        one["id"],
        one["service"] or "any",
        _user(one["uid"]),
        one["pid"],
        one["mode"],
        show_seconds(one["age_seconds"]),
        show_bytes(one["bytes_sent"]),
        show_bytes(one["bytes_received"]),
        "-" if rtt is None else f"{rtt:g} ms",
        one["state"] if one["held"] else f"{one['state']}, left by its owner",
        one["remote"],
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
