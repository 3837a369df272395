"""``plumb why``: one's own last refusals, and what to do about each."""

from __future__ import annotations

import argparse
from typing import Any

from plumberd import client
from plumberd.commands.output import OK, say, say_json
from plumberd.pure.handshake import FAR_SIDE_REFUSED
from plumberd.pure.refusals import Refusal

ADVICE = {
    Refusal.DENIED: "ask whoever runs this broker for a rule; plumb explain tells each step",
    Refusal.UNAUTHENTICATED: "the far side wants a proof: ask whoever runs it",
    Refusal.UNKNOWN_SERVICE: "start the service, or give its name an address, in $IPC_NETWORKD or by a route",
    Refusal.UNREACHABLE: "look whether the far side runs, and under that address",
    Refusal.TIMEOUT: "try again; if it stays so, look whether the far side runs",
    Refusal.BAD_REQUEST: "mend the request: the reason says what is wrong with it",
    Refusal.BUSY: "try again later; whoever runs this broker can raise the limit (plumb status --limits)",
    Refusal.NOT_POSSIBLE: "this broker can't do it, whoever asks",
}
"""What to do about each word of a refusal."""

_PROOF = "it answers, and does not prove who it is: tls.trust, or trust or pin of its [peer], say whom to believe"
BY_REASON = (
    (Refusal.UNREACHABLE, "the scheme daemon for", "start the process that carries this scheme, of this run directory"),
    (Refusal.UNREACHABLE, "what it speaks is", "something else listens there: look whether scheme and port are right"),
    (Refusal.UNREACHABLE, "its certificate", _PROOF),
    (Refusal.UNREACHABLE, "authority", _PROOF),
    (Refusal.NOT_POSSIBLE, "; ask for ", "ask in the way that the reason names"),
)
"""What to do where the reason holds such words; the first is taken."""

ADVICE_FAR = "here it is let through: ask whoever runs the far side for a rule, or show it who you are"


def run(args: argparse.Namespace) -> int:
    """Tell the refusals, the newest first. To have none is no failure."""
    request = {"op": "why"}
    if args.service is not None:
        request["service"] = args.service
    answer, _ = client.ask(request, rundir=args.rundir)
    refusals = answer["refusals"]
    if args.json:
        say_json(refusals)
    else:
        say(lines_of(refusals, args.service))
    return OK


def lines_of(refusals: list[dict[str, Any]], service: str | None = None) -> list[str]:
    """Return the refusals for people."""
    if not refusals:
        return [f"nothing of yours was refused{f' for {service}' if service else ''}, as far as this broker remembers"]
    lines = []
    for one in refusals:
        where = one.get("uri") or one.get("to")
        lines.append(f"{one['time']}  {one['service'] or 'any'}{f' to {where}' if where else ''}: {one['word']}")
        if one.get("rule"):
            lines.append(f"    rule    {one['rule']}")
        if one.get("reason"):
            lines.append(f"    reason  {one['reason']}")
        lines.append(f"    advice  {advice_of(one['word'], one.get('reason', ''))}")
    return lines


def advice_of(word: str, reason: str = "") -> str:
    """Return what to do about a refusal with this word and reason: what the far side refuses is not this broker's."""
    if word == Refusal.DENIED.value and reason.startswith(FAR_SIDE_REFUSED):
        return ADVICE_FAR
    for refusal, words, advice in BY_REASON:
        if word == refusal.value and words in reason:
            return advice
    return next((advice for refusal, advice in ADVICE.items() if refusal.value == word), "look into docs/protocol.md")
