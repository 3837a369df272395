"""plumberd.pure.policy.globs: one glob within another."""

from __future__ import annotations

import fnmatch
import itertools
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.globs import ends, is_glob, is_within_glob
from tests.tables import PROPERTY, each

patterns = st.text(st.sampled_from("ab*?"), min_size=1, max_size=6)
WORDS = ["".join(letters) for length in range(7) for letters in itertools.product("ab", repeat=length)]


class Within(SynchronousTestCase):
    @each(
        ("a", "a"),
        ("a", "?"),
        ("a", "*"),
        ("ab", "a*"),
        ("ab", "*b"),
        ("ab", "a*b"),
        ("a?", "a*"),
        ("a?", "a?"),
        ("a*", "a*"),
        ("a*b", "a*"),
        ("*a*", "*"),
        ("a**", "a*"),
        ("*?", "?*"),
        ("?*", "*?"),
        ("?*?", "*??"),
        ("a*b*c", "a*c"),
        ("abcabc", "*abc"),
        ("**", "*"),
    )
    def test_it_is(self, inner: str, outer: str) -> None:
        self.assertTrue(is_within_glob(inner, outer))

    @each(
        ("a", "b"),
        ("a", "a?"),
        ("*", "?"),
        ("*", "?*"),
        ("*", "a"),
        ("?", "a"),
        ("a*", "a?"),
        ("a*", "ab*"),
        ("a*c", "a*b*c"),
        ("A", "a"),
        ("ab", "a"),
        ("a", ""),
    )
    def test_it_is_not(self, inner: str, outer: str) -> None:
        self.assertFalse(is_within_glob(inner, outer))

    @PROPERTY
    @given(patterns, patterns)
    def test_where_it_is_every_word_of_the_one_is_the_other_s(self, inner: str, outer: str) -> None:
        if is_within_glob(inner, outer):
            one, other = (re.compile(fnmatch.translate(pattern)) for pattern in (inner, outer))
            self.assertEqual([word for word in WORDS if one.match(word) and not other.match(word)], [])

    @PROPERTY
    @given(st.text(st.sampled_from("ab"), min_size=1, max_size=6), patterns)
    def test_a_name_is_within_what_matches_it_and_within_nothing_else(self, name: str, outer: str) -> None:
        self.assertEqual(is_within_glob(name, outer), re.match(fnmatch.translate(outer), name) is not None)


class Parts(SynchronousTestCase):
    @each(("a", ("a", "a")), ("a*", ("a", "")), ("*a", ("", "a")), ("a?b*c", ("a", "c")), ("*", ("", "")))
    def test_the_ends(self, service: str, found: tuple[str, str]) -> None:
        self.assertEqual(ends(service), found)

    @each(("a.b-c", False), ("a*", True), ("?", True))
    def test_what_is_one(self, service: str, found: bool) -> None:
        self.assertIs(is_glob(service), found)
