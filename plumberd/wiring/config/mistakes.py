"""Mistakes in a configuration: all of them at once, each with its place.

cattrs says which member of which table or array it was that failed, as notes on
the exceptions of a group. Here these become keys as people write them, and a
sentence each. No sentence repeats what may be a secret.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)

from plumberd.pure.refusals import Refused

T = TypeVar("T")
Path = tuple[str | int, ...]
"""Where a value is: keys of tables and positions in arrays."""

SHOWN_CHARS = 60
"""As much of a wrong value is shown."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    :ivar file: the file as it was named, or the option.
    :ivar key: as it is written in TOML: ``listen.publish.pongd[1]``; empty where it is none's.
    :ivar text: what was found, and what would be accepted.
    :ivar line: in that file, where it is known.
    """

    file: str
    key: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        """One line."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        whole = f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"
        return "".join(c if c.isprintable() else "?" for c in whole)


class ConfigurationError(Exception):
    """The configuration has mistakes, and nothing of it holds.

    :ivar mistakes: all of them.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class ValueMistake(ValueError):
    """A value that makes no sense: what was found, and what would be accepted."""


class UnknownKey(ValueMistake):
    """A key that its table does not have.

    :ivar known: those that it has.
    """

    def __init__(self, key: str, known: Sequence[str]) -> None:
        super().__init__(key)
        self.key = key
        self.known = known

    def text(self, top: Sequence[str]) -> str:
        """Return what to say of it; *top* are the keys at the top of a file."""
        near = difflib.get_close_matches(self.key, self.known, 1)
        if near:
            return f"no such key here; did you mean {near[0]}?"
        if self.key in top and self.known is not top:
            return f"no such key here; {self.key} stands at the top of the file, before the first [table]"
        return f"no such key here; wanted one of {', '.join(self.known)}"


def unwanted(value: object, wanted: str) -> ValueMistake:
    """Return the mistake of whoever wrote *value* in the place of what is *wanted*."""
    return ValueMistake(f"{shown(value)}: wanted {wanted}")


def text(value: object) -> str:
    """Return *value*, which has to be a string.

    :raises ValueMistake: otherwise.
    """
    if not isinstance(value, str):
        raise unwanted(value, "a string")
    return value


def shown(value: object) -> str:
    """Return *value* for people, or only what it is where it may be a secret."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        if "@" in value or "://" in value:
            return "a string that may hold a secret"
        return repr(value if len(value) <= SHOWN_CHARS else value[:SHOWN_CHARS] + "…")
    return str(value)[:SHOWN_CHARS]


def key_text(path: Path) -> str:
    """Print a path as TOML's key: ``listen.publish.pongd[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + _key(part)
    return text


def gather(items: Iterable[tuple[str | int, Any]], parse: Callable[[Any, Any], T]) -> list[T]:
    """Return ``parse(key, value)`` of all *items*.

    :raises IterableValidationError: with the errors of all that failed, as cattrs does it.
    """
    done: list[T] = []
    errors: list[Exception] = []
    for key, value in items:
        try:
            done.append(parse(key, value))
        except Exception as e:
            e.add_note(IterableValidationNote("", key, object))
            errors.append(e)
    if errors:
        raise IterableValidationError("", errors, object)
    return done


def flatten(error: Exception, top: Sequence[str], path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield path and text of every mistake in what cattrs raised.

    :param top: the keys at the top of a file.
    :raises Exception: the error itself, where it is no mistake in a value but in this program.
    """
    if isinstance(error, BaseValidationError):
        for one in error.exceptions:
            yield from flatten(one, top, (*path, *_noted(one)))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield (*path, key), UnknownKey(key, key_names(error.cl) if path else top).text(top)
    elif isinstance(error, UnknownKey):
        yield path, error.text(top)
    elif isinstance(error, Refused):
        yield path, error.reason
    elif isinstance(error, ValueError):
        yield path, str(error)
    else:
        raise error


def key_names(schema: Any) -> list[str]:
    """Return the keys of a table; a word that Python keeps for itself has a ``_`` behind it there."""
    return [field.name.removesuffix("_") for field in dataclasses.fields(schema)]


def _noted(error: Exception) -> Path:
    """Return the key or position that cattrs has noted on an error."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (note.name.removesuffix("_"),)
        if isinstance(note, IterableValidationNote):
            return (note.index,)
    return ()


def _key(part: str) -> str:
    """Print one key; one that looks like a URI may be a value that lost its key."""
    if _BARE_KEY.match(part):
        return part[:SHOWN_CHARS]
    if "@" in part or "://" in part:
        return '"…"'
    return '"' + part[:SHOWN_CHARS].replace("\\", "\\\\").replace('"', '\\"') + '"'
