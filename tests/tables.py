"""Tables as tests: one method for each row, since trial stops at the first subTest that fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

PROPERTY = settings(
    max_examples=200,
    deadline=None,  # on a busy machine a deadline is a random failure
    database=None,  # a test writes no files
    suppress_health_check=[HealthCheck.differing_executors],  # a contract is inherited; nothing is replayed
)
"""For every property."""


class _Table:
    """Stands in a class body for one test, and puts one for each row in its own place."""

    def __init__(self, test: Callable[..., Any], rows: tuple[tuple[Any, ...], ...]) -> None:
        self._test = test
        self._rows = rows

    def __set_name__(self, owner: type, name: str) -> None:
        delattr(owner, name)
        for number, row in enumerate(self._rows, 1):
            label = re.sub(r"\W+", "_", str(row[0]), flags=re.ASCII).strip("_")[:40]
            setattr(owner, f"{name}_{number:02}_{label}", self._bound(row))

    def _bound(self, row: tuple[Any, ...]) -> Callable[[Any], Any]:
        return lambda case: self._test(case, *row)  # trial collects plain functions only


def each(*rows: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Any]:
    """Make one test of each row, which holds the arguments behind ``self``."""
    if len(set(map(repr, rows))) != len(rows) or not rows:
        raise ValueError("a table without rows, or with the same row twice")
    return lambda test: _Table(test, rows)
