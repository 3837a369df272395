"""plumberd.pure.identities: what a certificate, a key and a login prove, and what nobody could prove."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.identities import MOST_NAMES, certified, keyed, logged_in
from plumberd.pure.policy.subject import parse_condition
from tests.tables import PROPERTY, each


class Certified(SynchronousTestCase):
    @each(
        ("names", ("a.example", "B.Example"), (), {"cert:a.example", "cert:b.example"}),
        ("a_wildcard", ("*.example.com",), (), set()),
        ("what_a_rule_would_read_otherwise", ("a.example.", "%61.example", "[::1]"), (), set()),
        ("a_spiffe_id", (), ("spiffe://example.org/web",), {"spiffe://example.org/web"}),
        ("both", ("a.example",), ("spiffe://example.org/web",), {"cert:a.example", "spiffe://example.org/web"}),
        ("two_spiffe_ids", ("a.example",), ("spiffe://a.example/x", "spiffe://b.example/x"), {"cert:a.example"}),
        ("a_spiffe_id_and_another_uri", (), ("spiffe://a.example/x", "https://a.example"), set()),
        ("another_uri", (), ("https://a.example",), set()),
        ("addresses", ("192.0.2.1", "::1", "0x7f000001"), (), set()),
        ("a_word_of_another_kind", ("login:root", "psk:x", "any", "*", "a b", "a\x00b", ""), (), set()),
        ("a_wildcard_within", ("a.*.example", "*a.example", "*.*.example"), (), set()),
        ("climbing", (), ("spiffe://example.org/../web",), set()),
    )
    def test_what_it_proves(self, _: str, names: tuple[str, ...], uris: tuple[str, ...], wanted: set[str]) -> None:
        self.assertEqual(certified(names, uris), wanted)

    def test_of_very_many_names_the_first_count(self) -> None:
        self.assertEqual(len(certified([f"h{n}.example" for n in range(1000)], ())), MOST_NAMES)

    @PROPERTY
    @given(st.lists(st.text(max_size=30), max_size=5), st.lists(st.text(max_size=30), max_size=3))
    def test_it_proves_nothing_but_names_and_one_spiffe_id(self, names: list[str], uris: list[str]) -> None:
        for word in certified(names, uris):
            self.assertIn(parse_condition(word).kind, ("cert", "spiffe"))


class KeysAndLogins(SynchronousTestCase):
    def test_each_is_of_its_own_kind(self) -> None:
        self.assertEqual(keyed("cert:a.example"), {"psk:cert:a.example"})
        self.assertEqual(parse_condition("psk:cert:a.example").kind, "psk")
        self.assertEqual(logged_in("carol"), {"login:carol"})

    @each(("blank", "a b"), ("empty", ""), ("control", "a\n"), ("not_ascii", "ü"))
    def test_one_that_no_rule_could_say_counts_for_nothing(self, _: str, name: str) -> None:
        self.assertEqual(keyed(name) | logged_in(name), frozenset())
