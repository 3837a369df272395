"""Answers that hold lists of any length, cut so that they fit into one message of the native protocol.

What is cut is told: a list that looks whole and is not would be a lie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from plumberd.pure.dialects.native import MESSAGE_BYTES

ANSWER_BYTES = MESSAGE_BYTES - 4096
"""The longest answer without its ``id``, which takes up to 12 bytes a character."""

_size = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def shortened(members: dict[str, Any], names: Sequence[str], most_bytes: int = ANSWER_BYTES) -> dict[str, Any]:
    """Return *members* with the ends of some lists and tables cut off; ``left_out`` tells how many of each.

    :param names: those that may be cut: the longest one first, and no more than it takes.
    """
    left = _bytes(members) - most_bytes
    if left <= 0:
        return members
    left += _bytes({"left_out": dict.fromkeys(names, 10**9)})
    sizes = {name: _sizes(members[name]) for name in names if name in members}
    whole = {name: sum(of_each) for name, of_each in sizes.items()}
    while left > 0 and any(whole.values()):
        name = max(whole, key=lambda key: whole[key])
        size = sizes[name].pop()
        whole[name] -= size
        left -= size
    cut = {name: _first(members[name], len(sizes[name])) for name in sizes}
    left_out = {name: len(members[name]) - len(cut[name]) for name in sizes if len(cut[name]) < len(members[name])}
    return {**members, **cut, "left_out": left_out}


def fitted(explanation: dict[str, Any], most_bytes: int = ANSWER_BYTES) -> dict[str, Any]:
    """Return *explanation* without the first of the rules in it that do not match, where it is too long.

    Where that is not enough, only its first step is left, and what decided.
    """
    left = _bytes(explanation) - most_bytes
    if left <= 0:
        return explanation
    left += 100  # what is said in their place
    steps: list[dict[str, Any]] = []
    left_out = 0
    for step in explanation["steps"]:
        if left > 0 and step.get("matches") == "no":
            left -= _bytes(step) + 1
            left_out += 1
        else:
            steps.append(step)
    if left > 0:
        return {**explanation, "steps": steps[:1]}
    told = {"step": "rules", "text": f"{left_out} more were tried, and do not match"}
    return {**explanation, "steps": [*steps[:1], told, *steps[1:]]}


def _sizes(listed: list[Any] | dict[str, Any]) -> list[int]:
    """Return what each member takes, the comma behind it included."""
    if isinstance(listed, dict):
        return [_bytes({key: value}) - 1 for key, value in listed.items()]
    return [_bytes(value) + 1 for value in listed]


def _first(listed: list[Any] | dict[str, Any], count: int) -> list[Any] | dict[str, Any]:
    if isinstance(listed, dict):
        return dict(list(listed.items())[:count])
    return listed[:count]


def _bytes(value: Any) -> int:
    return len(_size(value))
