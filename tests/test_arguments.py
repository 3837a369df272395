"""plumberd.wiring.config.arguments: options of several words, made one before usage.Options sees them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.wiring.config.arguments import WORDS, ArgumentError, group
from tests.tables import PROPERTY, each

plain = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8)


class Grouped(SynchronousTestCase):
    @each(
        ("nothing", "", []),
        ("allow", "--allow in authd tls:example.com", ["--allow=in authd tls:example.com"]),
        ("deny", "--deny in * *", ["--deny=in * *"]),
        ("redirect", "--redirect authd nextversion-authd", ["--redirect=authd nextversion-authd"]),
        ("route", "--route web tls:example.com:443", ["--route=web tls:example.com:443"]),
        ("publish", "--publish pongd tcp:7000", ["--publish=pongd tcp:7000"]),
        (
            "the_documents_first_line",
            "--allow in authd tls:example.com --deny in * * --allow out pong tls:pong.example.com:9000",
            ["--allow=in authd tls:example.com", "--deny=in * *", "--allow=out pong tls:pong.example.com:9000"],
        ),
        (
            "other_options_between",
            "--rundir /r --deny in * * --check --route a b --tcpd 9000",
            ["--rundir", "/r", "--deny=in * *", "--check", "--route=a b", "--tcpd", "9000"],
        ),
        (
            "who_and_how",
            "--allow out a any for user:alice for group:staff handover=locked --check",
            ["--allow=out a any for user:alice for group:staff handover=locked", "--check"],
        ),
        (
            "how_before_who",
            "--allow out a any handover=direct for uid:5",
            ["--allow=out a any handover=direct for uid:5"],
        ),
        ("who_is_denied", "--deny in a any for user:alice", ["--deny=in a any for user:alice"]),
        ("who_may_serve", "--allow serve a for user:x --check", ["--allow=serve a for user:x", "--check"]),
        ("who_may_serve_has_no_peer", "--deny serve * any", ["--deny=serve *", "any"]),
        ("a_service_called_serve", "--deny in serve any", ["--deny=in serve any"]),
        ("values_that_begin_with_a_dash", "--deny out -x --y", ["--deny=out -x --y"]),
        ("words_left_over_stay_words", "--deny in * bin etc home", ["--deny=in * bin", "etc", "home"]),
        ("for_without_who_stays_a_word", "--allow out a any for", ["--allow=out a any", "for"]),
        ("no_tail_behind_a_redirect", "--redirect a b for c", ["--redirect=a b", "for", "c"]),
        ("already_one_word", "--rundir=/r --default out=deny", ["--rundir=/r", "--default", "out=deny"]),
    )
    def test_an_option_and_its_words_become_one(self, _: str, line: str, wanted: list[str]) -> None:
        self.assertEqual(group(line.split()), wanted)

    def test_what_is_written_as_one_word_stays_as_it_is(self) -> None:
        words = ["--allow=in authd any", "--rule", "deny in any any"]
        self.assertEqual(group(words), words)

    @PROPERTY
    @given(st.lists(plain.filter(lambda word: word not in WORDS), max_size=6))
    def test_all_other_words_pass_untouched(self, words: list[str]) -> None:
        self.assertEqual(group(words), words)

    @PROPERTY
    @given(st.lists(st.sampled_from(sorted(WORDS)) | plain, max_size=12))
    def test_no_word_is_lost_or_made_up(self, words: list[str]) -> None:
        try:
            grouped = group(words)
        except ArgumentError:
            return
        parts = [part for word in grouped for part in self.parts(word)]
        self.assertEqual(parts, [part for word in words for part in self.parts(word)])

    def parts(self, word: str) -> list[str]:
        """Take an option that was made one word apart again."""
        option, equals, rest = word.partition("=")
        return [option, *rest.split(" ")] if option in WORDS and equals else [word]


class TooFew(SynchronousTestCase):
    @each(
        ("--allow", "--allow: wanted 3 words, in|out SERVICE PEER; found none"),
        ("--deny in pong", "--deny: wanted 3 words, in|out SERVICE PEER; found in pong"),
        ("--allow serve", "--allow: wanted 2 words, serve SERVICE; found serve"),
        ("--redirect authd", "--redirect: wanted 2 words, SERVICE TARGET; found authd"),
        ("--check --route", "--route: wanted 2 words, SERVICE URI|ENDPOINT; found none"),
    )
    def test_an_option_with_too_few_words_names_them(self, line: str, message: str) -> None:
        with self.assertRaises(ArgumentError) as caught:
            group(line.split())
        self.assertEqual(str(caught.exception), message)

    @each(
        ("blank", ["--allow", "in", "pong", "tcp:a b"]),
        ("a_rule_within", ["--allow", "in", "pong any deny", "any"]),
        ("empty", ["--deny", "in", "", "any"]),
        ("line_end", ["--route", "pong", "tls:h\n"]),
        ("who", ["--allow", "in", "pong", "any", "for", "user:a b"]),
        ("another_blank", ["--redirect", "a\u00a0b", "c"]),
    )
    def test_a_word_that_is_no_single_word_is_refused(self, _: str, words: list[str]) -> None:
        with self.assertRaises(ArgumentError) as caught:
            group(words)
        self.assertIn(f"{words[0]}: each word is one argument, without blanks", str(caught.exception))
