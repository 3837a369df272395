"""plumberd.commands.output: columns, and text that no terminal obeys."""

from __future__ import annotations

import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from plumberd.commands.output import WIDEST, aligned, complain, plain, say, say_json
from tests.tables import each


class Plain(SynchronousTestCase):
    @each(
        ("letters", "Bücher, a-z", "Bücher, a-z"),
        ("an escape sequence", "\x1b[2Jgone", "?[2Jgone"),
        ("line breaks", "a\nb\r\x85c\u2028d", "a?b??c?d"),
        ("a text that runs backwards", "a\u202eb", "a?b"),
        ("half a character", "a\udcffb", "a?b"),
        ("no text", 7, "7"),
    )
    def test_what_a_terminal_could_obey_becomes_a_question_mark(self, label: str, text: object, wanted: str) -> None:
        self.assertEqual(plain(text), wanted)


class Aligned(SynchronousTestCase):
    def test_cells_stand_in_columns_and_no_line_ends_in_blanks(self) -> None:
        self.assertEqual(aligned([("a", "bb", ""), ("ccc", "", "d")], "  "), ["  a    bb", "  ccc      d"])

    def test_a_very_long_cell_pushes_only_its_own_line(self) -> None:
        long = "x" * (WIDEST + 1)
        self.assertEqual(aligned([(long, 1), ("a", 2)]), [f"{long}  1", "a  2"])

    def test_nothing_is_nothing(self) -> None:
        self.assertEqual(aligned([]), [])


class Printing(SynchronousTestCase):
    def test_each_goes_where_it_belongs(self) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            say(["one\x1b", "two"])
            say_json({"a": "\x1bü"})
            complain("three\n")
        self.assertEqual(out.getvalue(), 'one?\ntwo\n{\n  "a": "\\u001b\\u00fc"\n}\n')
        self.assertEqual(err.getvalue(), "plumb: three?\n")
