"""``plumb reload``: the broker reads its configuration again, whole or not at all."""

from __future__ import annotations

import argparse
from typing import Any

from plumberd import client
from plumberd.commands.output import OK, REFUSED, complain, plain, say, say_json


def run(args: argparse.Namespace) -> int:
    """Ask for it; tell what changed, or every mistake."""
    try:
        answer, _ = client.ask({"op": "reload"}, rundir=args.rundir)
    except client.Refused as e:
        if args.json:
            say_json(e.answer)
        for mistake in e.answer.get("mistakes") or ():
            complain(mistake_text(mistake))
        complain(f"refused: {e.word}: {e.reason}")
        return REFUSED
    if args.json:
        say_json(answer)
    else:
        say(lines_of(answer))
    return OK


def lines_of(answer: dict[str, Any]) -> list[str]:
    """Return what changed, and what is doubtful, for people."""
    changes = answer.get("changes") or []
    return [
        *changes,
        *(f"warning: {warning}" for warning in answer.get("warnings") or ()),
        f"generation {answer['generation']}: "
        + (f"{len(changes)} changes are in force" if changes else "nothing changed"),
    ]


def mistake_text(mistake: dict[str, Any]) -> str:
    """Return one mistake with its place."""
    place = mistake.get("file") or "the configuration"
    if mistake.get("line"):
        place += f":{mistake['line']}"
    return plain(": ".join(part for part in (place, mistake.get("key"), mistake.get("text")) if part))
