"""Group the words of options that take several, before usage.Options sees them.

``--allow in authd tls:example.com for user:alice`` becomes one word,
``--allow=in authd tls:example.com for user:alice``: usage.Options stops at the
first word that is no option, and knows no options of three words.
"""

from __future__ import annotations

from collections.abc import Sequence

WORDS = {
    "--allow": ("in|out", "SERVICE", "PEER"),
    "--deny": ("in|out", "SERVICE", "PEER"),
    "--redirect": ("SERVICE", "TARGET"),
    "--publish": ("SERVICE", "ENDPOINT"),
    "--route": ("SERVICE", "URI|ENDPOINT"),
}
"""Options with several words, and what they are."""

_WITH_TAIL = ("--allow", "--deny")
"""After these, `for WHO` and `handover=MODE` still belong to the option."""

_SERVE = ("serve", "SERVICE")
"""The words of a rule about who may serve a name: it has no PEER."""


class ArgumentError(ValueError):
    """An option has too few words."""


def group(words: Sequence[str]) -> list[str]:
    """Return *words* with every option of several words made one.

    :raises ArgumentError: naming the option, what was found and what is wanted.
    """
    grouped: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        wanted = WORDS.get(word)
        if wanted is None:
            grouped.append(word)
            continue
        if word in _WITH_TAIL and words[at : at + 1] == ["serve"]:
            wanted = _SERVE
        found = list(words[at : at + len(wanted)])
        if len(found) < len(wanted):
            raise ArgumentError(
                f"{word}: wanted {len(wanted)} words, {' '.join(wanted)}; found {' '.join(found) or 'none'}"
            )
        at += len(wanted)
        if word in _WITH_TAIL:
            while at < len(words):
                if words[at] == "for" and at + 1 < len(words):
                    found += words[at : at + 2]
                    at += 2
                elif words[at].startswith("handover="):
                    found.append(words[at])
                    at += 1
                else:
                    break
        if any(not w or w != "".join(w.split()) for w in found):
            raise ArgumentError(f"{word}: each word is one argument, without blanks; found {found}")
        grouped.append(f"{word}={' '.join(found)}")
    return grouped
