"""``plumb explain``: every step of a decision, and no connection."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from plumberd import client
from plumberd.commands.output import ERROR, OK, REFUSED, aligned, complain, plain, say, say_json
from plumberd.pure.pairs import VARIABLES
from plumberd.pure.policy.assertion import check_target, check_who, parse_service
from plumberd.pure.policy.direction import Direction

TITLE_CHARS = 9
"""Longest title of a step."""


def run(args: argparse.Namespace) -> int:
    """Explain; the status is 0 where it is granted, 1 where it is refused."""
    try:
        request = request_of(Direction(args.direction), args.service, args.target, args.who, routes_of(os.environ))
    except ValueError as e:
        complain(e)
        return ERROR
    try:
        answer = _ask(request, args)
    except client.Refused as e:
        complain(f"nothing to explain: {e.word}: {e.reason}")
        return ERROR
    if answer is None:
        return ERROR
    answer.pop("ok", None)
    if args.json:
        say_json(answer)
    else:
        say(lines_of(answer))
    return OK if answer["granted"] else REFUSED


def request_of(
    direction: Direction, service: str, target: str | None, who: Sequence[str], routes: str | None = None
) -> dict[str, Any]:
    """Return the request of the op ``explain``.

    :param target: the URI of a lookup, or the caller.
    :param routes: the lookup's pairs, where there is no URI.
    :raises ValueError: what was asked makes no sense; the message says what would.
    """
    name = parse_service(service)
    if name is None and direction is not Direction.OUT:
        raise ValueError(f"{direction.value} any: wanted the name of one service")
    check_target(direction, name, target)
    for one in who:
        check_who(one)
    request: dict[str, Any] = {"op": "explain", "direction": direction.value}
    if name is not None:
        request["service"] = name
    if direction is Direction.IN:
        request["peer"] = target
    elif name is None:
        request["uri"] = target
    elif target is not None:
        request["routes"] = f"{name} {target}"
    elif routes and direction is Direction.OUT:
        request["routes"] = routes
    if who:
        request["as"] = list(who)
    return request


def routes_of(environ: Mapping[str, str]) -> str | None:
    """Return the pairs that a lookup would send."""
    return next((environ[name] for name in VARIABLES if environ.get(name)), None)


def lines_of(answer: dict[str, Any]) -> list[str]:
    """Return an explanation for people: the steps, then the reason, then the verdict."""
    lines: list[str] = []
    rules: list[dict[str, Any]] = []
    for step in answer["steps"]:
        if step["step"] == "rule":
            rules.append(step)
            continue
        lines += _rule_lines(rules)
        rules = []
        lines.append(_line(step["step"], step["text"]))
    lines += _rule_lines(rules)
    reason = answer["reason"]
    if reason and not any(step["text"].endswith(reason) for step in answer["steps"]):
        lines.append(_line("reason", reason))
    return [*lines, _line(*verdict_of(answer))]


def verdict_of(answer: dict[str, Any]) -> tuple[str, str]:
    """Return ``granted`` or ``refused``, and the mode or the word with the rule that decided."""
    granted = answer["granted"]
    parts = [answer["mode"] if granted else answer["word"] or "denied"]
    if granted and answer["would"]:
        parts.append(f"though it would be {answer['would']}: refusals are only logged")
    rule = answer["rule"]
    if rule["number"] is not None:
        place = f" ({rule['source']})" if rule["source"] else ""
        parts.append(f"by rule {rule['number']}{place}: {rule['text']}")
    elif rule["text"]:
        parts.append(f"by {rule['text']}")
    return "granted" if granted else "refused", ", ".join(part for part in parts if part)


def _rule_lines(rules: list[dict[str, Any]]) -> list[str]:
    """Return the rules that were tried, one below the other."""
    return aligned(
        (f"{'rule':<{TITLE_CHARS}} {one['number']}", one["matches"], one["text"], one["source"], one["why"])
        for one in rules
    )


def _line(title: str, text: str) -> str:
    return plain(f"{title:<{TITLE_CHARS}} {text}")


def _ask(request: dict[str, Any], args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the broker's answer, or that of the configuration; ``None`` where it was said what is wrong with it."""
    if args.config is None:
        answer, _ = client.ask(request, rundir=args.rundir)
        return answer
    from plumberd.commands.offline import Configured, UnreadableError  # late: it brings the broker's own parts along

    try:
        return Configured(args.config).explain(request)
    except UnreadableError as e:
        for mistake in e.mistakes:
            complain(plain(mistake))
        return None
