"""What all commands print with.

What a broker answers holds text of others: a far side's words, a client's names
in a log. So whatever is printed goes through :func:`plain`, and no terminal obeys it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

OK, REFUSED, ERROR = 0, 1, 2
"""Exit statuses: granted or done; refused or failed; something is wrong here."""

WIDEST = 60
"""A longer cell does not push the column behind it any further."""


def plain(text: object) -> str:
    """Return one line of printable text; everything else in it becomes ``?``."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def aligned(rows: Iterable[Sequence[object]], indent: str = "") -> list[str]:
    """Return *rows* as lines with their cells in columns, two blanks apart."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths: dict[int, int] = {}
    for row in cells:
        for at, cell in enumerate(row):
            widths[at] = max(widths.get(at, 0), len(cell) if len(cell) <= WIDEST else 0)
    return [indent + "  ".join(f"{cell:<{widths[at]}}" for at, cell in enumerate(row)).rstrip() for row in cells]


def quoted(text: str) -> str:
    """Return *text* as a string of TOML."""
    return json.dumps(text, ensure_ascii=False)


def say(lines: Iterable[str]) -> None:
    """Print *lines* for people."""
    for line in lines:
        print(plain(line))


def complain(text: object) -> None:
    """Print a line on standard error."""
    print(f"plumb: {plain(text)}", file=sys.stderr)


def say_json(value: Any) -> None:
    """Print *value* for programs."""
    print(json.dumps(value, indent=2))
