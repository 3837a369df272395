"""plumberd.pure.toml_lines: each string of an array is found in its line, however the document is laid out."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.toml_lines import string_lines
from tests.tables import PROPERTY, each

printable = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8)


def basic(value: str) -> str:
    """Write *value* as a basic string, whatever it holds."""
    return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value) + '"'


def plainly(value: str) -> str:
    """Write *value* as a literal string where it can be, else as a basic one."""
    return basic(value) if "'" in value else f"'{value}'"


def long_basic(value: str) -> str:
    """Write *value* as a basic string of several lines, whose last line is joined to the one before."""
    return '"""\n' + basic(value)[1:-1] + '\\\n   """'


def long_literal(value: str) -> str:
    """Write *value* as a literal string of several lines where it can be."""
    return basic(value) if "''" in value else f"'''\n{value}'''"


strings = st.tuples(printable, st.sampled_from((basic, plainly, long_basic, long_literal))).map(
    lambda drawn: drawn[1](drawn[0])
)
gaps = st.lists(st.sampled_from((" ", "\t", "\n", "\r\n", "# a 'comment\" ] = [\n", "\n\n")), max_size=3).map("".join)
others = st.sampled_from(
    ("1.5", "1979-05-27T07:32:00Z", "true", "['x', 'y']", "{ k = 'v', l = [\"w\"] }", "0x1f", "inf")
)
values = st.one_of(strings, others, st.lists(st.one_of(strings, others), max_size=3).map(lambda v: f"[{', '.join(v)}]"))
keys = st.sampled_from(("a", "b.rules", '"rules.".x', "'c d'", "rules-2", '"ru\\u006ces "'))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[tuple[str, int]]]:
    """A document, and what is to be found in it."""
    text = ""
    for key in draw(st.lists(keys, unique=True, max_size=3)):
        text += f"{draw(gaps)}{key} = {draw(values)} # rules = ['no']\n"
    text += draw(gaps) + draw(st.sampled_from(("rules", '"rules"', "'rules'", '"\\u0072ules"'))) + "\t=[ "
    found = []
    for _ in range(draw(st.integers(0, 4))):
        text += draw(gaps)
        if draw(st.booleans()):
            written = draw(strings)
            found.append((tomllib.loads(f"x = {written}")["x"], text.count("\n") + 1))
            text += written
        else:
            text += draw(others)
        text += draw(gaps) + ","
    return text + draw(gaps) + "]\n" + draw(st.sampled_from(("", "z = ''", "[t]\nrules = ['t']"))), found


class Lines(SynchronousTestCase):
    @each(
        ("one_line", "rules = ['a', \"b\"]", [("a", 1), ("b", 1)]),
        ("several_lines", "\nrules = [\n'a',\n\n\"b\",\n]", [("a", 3), ("b", 5)]),
        ("windows_line_ends", "rules = [\r\n'a',\r\n'b']", [("a", 2), ("b", 3)]),
        (
            "long_strings_stand_where_they_begin",
            'rules = ["""\na\nb""",\n\'\'\'c\'\'\',\n"d"]',
            [("a\nb", 1), ("c", 4), ("d", 5)],
        ),
        (
            "quotes_before_the_closing_ones",
            'rules = ["""a""""", \'\'\'b\'\'\'\', "c"]',
            [('a""', 1), ("b'", 1), ("c", 1)],
        ),
        ("escapes", 'rules = ["a\\"]", "\\\\", "\\u00e9"]', [('a"]', 1), ("\\", 1), ("é", 1)]),
        ("empty_strings", "rules = [\"\", '', \"\"\"\"\"\", '''''']", [("", 1)] * 4),
        ("comments", "rules = [ # 'no'\n 'a', # \"no\"\n]", [("a", 2)]),
        ("a_quoted_key", "'x' = 1\n\"rules\" = ['a']", [("a", 2)]),
        ("an_escaped_key", "\"r\\u0075les\" = ['a']", [("a", 1)]),
        ("what_is_within_members", "rules = [['no'], {x = 'no', y = ['no']}, 'a']", [("a", 1)]),
        ("behind_other_keys", "a = ['x',\n'y']\nb = '''\nrules = ['no']\n'''\nrules = ['a']", [("a", 6)]),
        ("no_such_key", "rule = ['a']", []),
        ("a_key_of_a_table", "[rules]\nrules = ['a']", []),
        ("a_dotted_key", "rules.x = ['a']", []),
        ("no_array", "rules = 'a'\nx = ['b']", []),
        ("an_empty_array", "rules = []\nx = ['b']", []),
        ("nothing", "", []),
        ("no_toml", 'rules = ["a', []),
    )
    def test_each_string_of_the_array_has_its_line(self, _: str, text: str, wanted: list[tuple[str, int]]) -> None:
        self.assertEqual(string_lines(text, "rules"), wanted)

    @PROPERTY
    @given(documents())
    def test_whatever_the_layout(self, drawn: tuple[str, list[tuple[str, int]]]) -> None:
        text, wanted = drawn
        self.assertEqual(
            [value for value in tomllib.loads(text)["rules"] if isinstance(value, str)], [value for value, _ in wanted]
        )
        self.assertEqual(string_lines(text, "rules"), wanted)

    @PROPERTY
    @given(st.text(st.sampled_from("rules=[]{}\"'\\\n#, a"), max_size=60))
    def test_what_is_no_toml_is_read_without_an_error(self, text: str) -> None:
        self.assertTrue(all(line <= text.count("\n") + 1 for _, line in string_lines("rules = [" + text, "rules")))
