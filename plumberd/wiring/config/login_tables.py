"""``[auth]`` of a configuration, and ``--auth``: what callers' logins are checked against."""

from __future__ import annotations

import os
from collections.abc import Iterator

from plumberd.effects.trusted_file import FileError, read_trusted
from plumberd.pure.login import LoginSettings
from plumberd.pure.passwords import FILE_BYTES, PasswordError, Passwords, parse_file
from plumberd.wiring.config.configuration import Reading
from plumberd.wiring.config.mistakes import Mistake
from plumberd.wiring.config.settings import CommandLine

OTHERS_BITS = 0o077
"""What anybody but its owner may do with a file of passwords: nothing."""

FILE = "file:"
"""Twisted's checker of passwords in plain text, one of the few whose argument is a path."""


class LoginTables:
    """Reads them; adds to *mistakes* whatever is wrong, all of it, each with its place."""

    def __init__(self, line: CommandLine, reading: Reading, mistakes: list[Mistake], reads_keys: bool = True) -> None:
        """:param reads_keys: whether the files are looked into at all."""
        self._line = line
        self._reading = reading
        self._mistakes = mistakes
        self._reads = reads_keys

    def settings(self) -> LoginSettings:
        """Return what checks; with mistakes it is worth nothing."""
        table = self._reading.configuration.auth
        if table.password_file is None:
            return LoginSettings(checkers=tuple(self._checkers()))
        file = self._reading.absolute(table.password_file, "auth", "password_file")
        return LoginSettings(file, self._passwords(file), tuple(self._checkers()))

    def _passwords(self, file: str) -> Passwords:
        place = self._place("auth.password_file")
        data = self._read(file, place)
        if data is None:
            return Passwords()
        try:
            return parse_file(data)
        except PasswordError as e:
            for line, text in e.mistakes:
                self._mistake(place, f"{file}:{line}: {text}" if line else f"{file}: {text}")
            return Passwords()

    def _checkers(self) -> Iterator[str]:
        """Yield the checkers of the command line, then the file's; paths in them are absolute."""
        for one in self._line.checkers:
            yield self._checked(one, Mistake("--auth", "", ""))
        for number, one in enumerate(self._reading.configuration.auth.checkers):
            if one.startswith(FILE) and one != FILE:
                one = FILE + self._reading.absolute(one.removeprefix(FILE), "auth", "checkers")
            yield self._checked(one, self._place(f"auth.checkers[{number}]"))

    def _checked(self, description: str, place: Mistake) -> str:
        is_path = description.startswith(FILE) and description != FILE
        if self._reads and (not is_path or self._read(description[len(FILE) :], place) is not None):
            # late: Twisted looks for plugins, and where nobody logs in nobody needs them
            from plumberd.effects.checkers import CheckerError, make_checker

            try:
                make_checker(description)
            except CheckerError as e:
                self._mistake(place, str(e))
        return description

    def _read(self, file: str, place: Mistake) -> bytes | None:
        """Return what a file of passwords holds; ``None`` where it cannot be used."""
        if not self._reads:
            return None
        try:
            read = read_trusted(file, FILE_BYTES, os.geteuid())
        except FileError as e:
            self._mistake(place, f"{file}: {e}")
            return None
        if read.mode & OTHERS_BITS:
            text = f"others than its owner can read it (mode {read.mode:04o}), and it holds passwords: chmod 600"
            self._mistake(place, f"{file}: {text}")
            return None
        return read.data

    def _place(self, key: str) -> Mistake:
        file = self._reading.file_of("auth", key.partition(".")[2].partition("[")[0])
        assert file is not None  # what is looked at here stands in some file
        return Mistake(file.name, key, "")

    def _mistake(self, place: Mistake, text: str) -> None:
        self._mistakes.append(Mistake(place.file, place.key, text))
