"""The configuration file: read with what it includes, put together, and decoded.

Nothing here stops at the first mistake. What could be read is decoded, what is
wrong is left out, and all mistakes come along, so that who has made ten of them
is told ten.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from plumberd.effects.accounts import Accounts
from plumberd.effects.trusted_file import FileError, matching, read_trusted
from plumberd.pure.policy.route import Choice
from plumberd.pure.toml_lines import string_lines
from plumberd.wiring.config.mistakes import Mistake, Path, flatten, key_names, key_text
from plumberd.wiring.config.schema import Configuration, Located, structure
from plumberd.wiring.config.values import has_password

FILE_BYTES = 4 * 1024 * 1024
"""Longest file; ten thousand rules have less than one MiB."""

ALL_BYTES = 16 * 1024 * 1024
"""Longest configuration, with everything that it includes."""

FILES = 256
"""Most files that one includes."""

DEPTH = 3
"""How deep the tables of files are put together: ``listen.publish.NAME``."""

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)\Z")


@dataclass(frozen=True)
class File:
    """One file that was read.

    :ivar name: the path as people gave it; an included file's is that of the file that includes it, and its own.
    :ivar folder: the absolute one, from which relative paths in it are meant.
    :ivar is_private: whether only its owner and group can read it.
    """

    name: str
    folder: str
    is_private: bool


@dataclass(frozen=True)
class Reading:
    """What the files say together.

    :ivar mistakes: if there are any, nothing of it may be used but to find more of them.
    :ivar files: which file set each key, and each member of a table.
    """

    configuration: Configuration = field(default_factory=Configuration)
    mistakes: tuple[Mistake, ...] = ()
    files: Mapping[Path, File] = field(default_factory=dict)

    def file_of(self, *path: str) -> File | None:
        """Return the file that set a key, or what it is a part of."""
        return _file_of(self.files, path)

    def absolute(self, value: str, *path: str) -> str:
        """Return *value*, a path that a key says, as an absolute one: it is meant from the file's own folder."""
        file = self.file_of(*path)
        return os.path.normpath(os.path.join(file.folder if file else "/", value))


def read_configuration(path: str, folder: str, accounts: Accounts) -> Reading:
    """Read the file at *path*, which is meant from *folder*, and all that it includes. Mistakes come with it."""
    reader = _Reader(path, folder)
    reader.read()
    return reader.decode(accounts)


class _Reader:
    """Puts the tables of several files together into one."""

    def __init__(self, path: str, folder: str) -> None:
        self._name = path
        self._path = os.path.join(folder, path)
        self._uid = os.geteuid()
        self._table: dict[str, Any] = {}
        self._mistakes: list[Mistake] = []
        self._files: dict[Path, File] = {}
        self._seen: set[tuple[int, int]] = set()
        self._left_bytes = ALL_BYTES

    def read(self) -> None:
        """Read all files."""
        self._add(self._name, self._path)
        for name, path in self._included():
            if self._left_bytes < 0:
                self._mistakes.append(Mistake(self._name, "include", f"more than {ALL_BYTES} bytes in all"))
                return
            self._add(name, path, included=True)

    def decode(self, accounts: Accounts) -> Reading:
        """Return what they say together."""
        try:
            found = structure(self._table, accounts)
        except Exception as e:
            found_wrong = list(flatten(e, key_names(Configuration)))
            self._mistakes += [self._mistake(path, text) for path, text in found_wrong]
            for path, _ in found_wrong:
                self._leave_out(path)
            found = structure(self._table, accounts)
        self._mistakes += self._bare_secrets("routes", found.routes)
        self._mistakes += self._bare_secrets("redirect", found.redirect)
        return Reading(found, tuple(self._mistakes), self._files)

    def _included(self) -> list[tuple[str, str]]:
        """Return name and path of each file that the first one includes, in their order."""
        patterns = self._table.get("include")
        if not isinstance(patterns, list):
            return []  # that it is no array is told when it is decoded
        found: list[tuple[str, str]] = []
        folder = os.path.dirname(self._path)
        too_many = Mistake(self._name, "include", f"more than {FILES} files are not accepted")
        for number, pattern in enumerate(patterns):
            if number >= FILES:
                self._mistakes.append(too_many)
                return []
            if not isinstance(pattern, str):
                continue
            try:
                paths = matching(folder, pattern, self._uid)
            except FileError as e:
                self._mistakes.append(Mistake(self._name, f"include[{number}]", str(e)))
                continue
            if len(found) + len(paths) > FILES:
                self._mistakes.append(too_many)
                return []
            shown = os.path.join(os.path.dirname(self._name), os.path.dirname(pattern))
            found += [(os.path.join(shown, os.path.basename(path)), path) for path in paths]
        return found

    def _add(self, name: str, path: str, *, included: bool = False) -> None:
        """Read one file, and add what it says."""
        try:
            read = read_trusted(path, FILE_BYTES, self._uid)
            if read.identity in self._seen:
                return  # two patterns mean it, or one means the first file itself
            self._seen.add(read.identity)
            self._left_bytes -= len(read.data)
            if self._left_bytes < 0:
                return
            text, table = _parse(read.data)
        except FileError as e:
            self._mistakes.append(Mistake(name, "", str(e)))
            return
        except _NoToml as e:
            self._mistakes.append(Mistake(name, "", str(e), e.line))
            return
        if included and table.pop("include", None) is not None:
            self._mistakes.append(Mistake(name, "include", "an included file cannot include others"))
        if isinstance(table.get("rules"), list):
            table["rules"] = _located(table["rules"], text, name)
        self._merge(self._table, table, File(name, os.path.dirname(path), not read.is_readable_by_others), ())

    def _merge(self, into: dict[str, Any], table: dict[str, Any], file: File, above: Path) -> None:
        for key, value in table.items():
            path = (*above, key)
            here = into.get(key)
            if here is None:
                into[key] = value
                self._note(path, value, file)
            elif isinstance(here, dict) and isinstance(value, dict) and len(path) < DEPTH:
                self._merge(here, value, file, path)
            elif path == ("rules",) and isinstance(here, list) and isinstance(value, list):
                here += value
            else:
                text = f"{self._files[path].name} has it already, and one file alone may set it"
                self._mistakes.append(Mistake(file.name, key_text(path), text))

    def _note(self, path: Path, value: object, file: File) -> None:
        self._files[path] = file
        if isinstance(value, dict) and len(path) < DEPTH:
            for key, member in value.items():
                self._note((*path, key), member, file)

    def _mistake(self, path: Path, text: str) -> Mistake:
        if len(path) > 1 and path[0] == "rules":
            rule = self._table["rules"][path[1]]
            return Mistake(rule.file, key_text(("rules", rule.index)), text, rule.line)
        file = _file_of(self._files, path)
        return Mistake(file.name if file else self._name, key_text(path), text)

    def _leave_out(self, path: Path) -> None:
        """Take what is wrong away, as little as possible, so that the rest can be decoded."""
        table = self._table.get(str(path[0]))
        if len(path) > 1 and isinstance(table, dict):
            table.pop(path[1], None)
        else:
            self._table.pop(str(path[0]), None)

    def _bare_secrets(self, key: str, table: Mapping[str, tuple[Choice, ...]]) -> Iterator[Mistake]:
        for name, choices in table.items():
            file = self._files[(key, name)]
            if not file.is_private and any(has_password(target) for choice in choices for target in choice.targets):
                text = "a secret in a readable file: chmod o-r, or write it where not everybody can read it"
                yield Mistake(file.name, key_text((key, name)), text)


def _file_of(files: Mapping[Path, File], path: Path) -> File | None:
    return next((files[path[:n]] for n in range(len(path), 0, -1) if path[:n] in files), None)


class _NoToml(Exception):
    """The file is no TOML. ``line`` says where, if that is known."""

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


def _parse(data: bytes) -> tuple[str, dict[str, Any]]:
    try:
        text = data.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise _NoToml(f"byte {data[e.start]:#04x} is not UTF-8, which TOML is written in", line) from None
    except RecursionError:
        raise _NoToml("no TOML of ours: arrays or tables within each other, too many") from None
    except ValueError as e:  # tomllib.TOMLDecodeError is one, and so is a number of 5000 digits
        place = _PLACE.search(str(e))
        why = _PLACE.sub("", str(e)) + (f" (column {place[2]})" if place and place[2] else "")
        line = int(place[1]) if place and place[1] else data.rstrip().count(b"\n") + 1
        raise _NoToml(f"no TOML: {why}", line if place else None) from None


def _located(rules: list[Any], text: str, name: str) -> list[Located]:
    """Return the members of ``rules``, each with its line; those that are no strings have none."""
    lines = string_lines(text, "rules")
    at = 0
    found = []
    for index, value in enumerate(rules):
        line = None
        if at < len(lines) and lines[at][0] == value:
            line = lines[at][1]
            at += 1
        found.append(Located(value, name, index, line))
    return found
