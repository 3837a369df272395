"""In which lines the strings of a TOML document's array stand; tomllib does not tell.

Only documents that tomllib has read before come here, so this has to find the
tokens of valid TOML, and no mistakes in it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

_TOKEN = re.compile(
    r'''
    (?P<string>
        """(?:[^\\]|\\.)*?"{3,5}      # up to two quotes may stand before the closing three (TOML 1.0, String)
      | \'\'\'.*?'{3,5}
      | "(?:[^"\\\n]|\\.)*"
      | '[^'\n]*'
    )
  | (?P<comment>\#[^\n]*)
  | (?P<mark>[\[\]{}=.\n])
  | (?P<bare>[A-Za-z0-9_-]+)
  | .                                 # blanks, commas, and what numbers and dates have besides
    ''',
    re.VERBOSE | re.DOTALL,
)


def string_lines(text: str, key: str) -> list[tuple[str, int]]:
    """Return the strings that stand in the array of the top-level *key* itself, each with its line, from 1.

    A string of several lines stands where it begins. There are none where the key is not there
    or no array, and where the document cannot be read.
    """
    tokens = _tokens(text)
    path: list[str] = []
    for kind, word, _ in tokens:
        if word == "[" and kind == "mark":
            return []  # a table begins: there are no more top-level keys
        if kind in ("string", "bare"):
            path.append(_decode(word) if kind == "string" else word)
        elif word == "=":
            if path == [key]:
                return [(_decode(found), line) for found, line in _array(tokens)]
            _skip_value(tokens)
            path = []
    return []


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and line of each token that matters."""
    line = 1
    for match in _TOKEN.finditer(text):
        word = match.group()
        if match.lastgroup is not None and match.lastgroup != "comment":
            yield match.lastgroup, word, line
        line += word.count("\n")


def _array(tokens: Iterator[tuple[str, str, int]]) -> Iterator[tuple[str, int]]:
    """Yield each string of the array that begins here, but none of what lies within its members."""
    depth = 0
    for kind, word, line in tokens:
        if kind == "mark":
            depth += (word in "[{") - (word in "]}")
        elif kind == "string" and depth == 1:
            yield word, line
        if depth == 0:
            return


def _skip_value(tokens: Iterator[tuple[str, str, int]]) -> None:
    """Go on to the end of the line behind a value; line ends within brackets do not count."""
    depth = 0
    for kind, word, _ in tokens:
        if kind == "mark":
            if word == "\n" and depth == 0:
                return
            depth += (word in "[{") - (word in "]}")


def _decode(word: str) -> str:
    """Return what the token of a string means."""
    if "\\" not in word and not word.startswith(('"""', "'''")):
        return word[1:-1]
    try:
        value: str = tomllib.loads(f"x = {word}")["x"]
    except tomllib.TOMLDecodeError:
        return word  # only in a document that is no TOML
    return value
