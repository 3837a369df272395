"""Globs of services compared: does one match whatever another matches?

A glob has two wildcards: ``*`` is any characters, also none, and ``?`` is one.
"""

from __future__ import annotations

import re

_WILD = re.compile(r"[*?]")
_STARRED = re.compile(r"[*?]*\*[*?]*")


def is_glob(service: str) -> bool:
    """Tell whether it is a pattern, and not the name of one service."""
    return _WILD.search(service) is not None


def is_within_glob(inner: str, outer: str) -> bool:
    """Tell whether *outer* matches whatever *inner* does. Both may be names.

    Certain where it says yes; of globs that match the same in ways that are hard to see it says no.
    It is *outer* matched against the text of *inner*, in which a ``*`` is a character that only a
    ``*`` stands for, and a ``?`` one that a ``?`` does as well.
    """
    text, pattern = _squeezed(inner), _squeezed(outer)
    at = read = 0
    star = retry = -1
    while at < len(text):
        if read < len(pattern) and pattern[read] == "*":
            star, retry = read, at
            read += 1
        elif read < len(pattern) and (pattern[read] == text[at] or (pattern[read] == "?" and text[at] != "*")):
            at, read = at + 1, read + 1
        elif star >= 0:
            retry += 1
            at, read = retry, star + 1
        else:
            return False
    return pattern[read:] in ("", "*")


def ends(service: str) -> tuple[str, str]:
    """Return what stands in front of the first wildcard, and behind the last; of a name twice the whole."""
    parts = _WILD.split(service)
    return parts[0], parts[-1]


def _squeezed(pattern: str) -> str:
    """Return a glob in one form: of neighbouring wildcards there is one star at most, and it stands last."""
    return _STARRED.sub(lambda found: "?" * found[0].count("?") + "*", pattern)
