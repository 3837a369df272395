"""plumberd.pure.refusals: the closed list of words, and hostile text made printable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.refusals import FAR_REASON_CHARS, Refusal, Refused, printable
from tests.tables import PROPERTY, each


class Words(SynchronousTestCase):
    def test_the_words_are_those_of_the_protocol_and_no_others(self) -> None:
        self.assertEqual(
            sorted(word.value for word in Refusal),
            [
                "bad-request",
                "busy",
                "denied",
                "not-possible",
                "timeout",
                "unauthenticated",
                "unknown-service",
                "unreachable",
            ],
        )

    def test_a_refusal_carries_its_word_and_its_reason(self) -> None:
        refused = Refused(Refusal.BUSY, "no room")
        self.assertEqual((refused.word, refused.reason, str(refused)), (Refusal.BUSY, "no room", "busy: no room"))


class Printable(SynchronousTestCase):
    @each(
        ("plain", "a word, ~ and !", "a word, ~ and !"),
        ("nothing", "", ""),
        ("escape", "\x1b[31mred", "?[31mred"),
        ("line_end", "a\r\nb", "a??b"),
        ("delete_and_c1", "\x7f\x9b", "??"),
        ("not_ascii", "é\u202e\U0001f600", "???"),
        ("bytes", b"ok\n", "ok?"),
        ("bytes_that_are_no_ascii", b"a\xff\xc3\xa9", "a???"),
        ("no_bytes", b"", ""),
    )
    def test_everything_but_printable_ascii_becomes_a_question_mark(
        self, _: str, text: bytes | str, wanted: str
    ) -> None:
        self.assertEqual(printable(text), wanted)

    @each(
        ("at_the_limit", "x" * 200, 200),
        ("one_more", "x" * 201, 200),
        ("bytes_at_the_limit", b"x" * 200, 200),
        ("many_bytes", b"x" * 5000, 200),
    )
    def test_text_is_cut_to_200_characters(self, _: str, text: bytes | str, length: int) -> None:
        self.assertEqual(printable(text), "x" * length)

    def test_the_caller_may_cut_shorter(self) -> None:
        self.assertEqual((printable("abcdef", 3), printable(b"abcdef", 3), printable("ab", 3)), ("abc", "abc", "ab"))

    @PROPERTY
    @given(st.text(max_size=300) | st.binary(max_size=900))
    def test_the_result_is_always_short_printable_ascii(self, text: str | bytes) -> None:
        shown = printable(text)
        self.assertLessEqual(len(shown), FAR_REASON_CHARS)
        self.assertTrue(shown.isascii() and (shown.isprintable() or not shown))
