"""plumberd.commands.secret_file: a line more, or the file as it was."""

from __future__ import annotations

import os
import stat

from plumberd.commands.secret_file import NotAppended, append_line
from tests.configured import ConfiguredTestCase
from tests.tables import each


class Append(ConfiguredTestCase):
    def append(self, path: str, most_bytes: int = 100) -> None:
        append_line(path, "new", most_bytes, self.seen.append)

    def setUp(self) -> None:
        super().setUp()
        self.seen: list[bytes] = []

    @each((b"", b"new\n"), (b"old\n", b"old\nnew\n"), (b"old", b"old\nnew\n"))
    def test_it_stands_behind_the_others(self, before: bytes, after: bytes) -> None:
        path = self.write(before, "file", 0o600)
        self.append(path)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), after)
        self.assertEqual(self.seen, [before])

    def test_a_new_file_is_its_owner_s_alone(self) -> None:
        os.umask(0)
        self.append(self.path("file"))
        self.assertEqual(stat.S_IMODE(os.stat(self.path("file")).st_mode), 0o600)

    def test_what_is_left_as_it_was(self) -> None:
        long = self.write(b"x" * 101, "long", 0o600)
        self.assertRaises(NotAppended, self.append, long)
        self.assertRaises(NotAppended, self.append, self.write(b"", "open", 0o640 | 0o004))
        os.symlink(long, self.path("link"))
        self.assertRaises(OSError, self.append, self.path("link"))
        os.mkfifo(self.path("pipe"), 0o600)
        self.assertRaises((NotAppended, OSError), self.append, self.path("pipe"))
        self.assertEqual(os.stat(long).st_size, 101)
