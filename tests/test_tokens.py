"""Bearer tokens, and their file."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.tokens import (
    TOKEN_BYTES,
    TOKENS,
    TokenError,
    check_name,
    format_line,
    is_token,
    new_token,
    parse_tokens,
)
from tests.tables import PROPERTY, each

DIGEST = hashlib.sha256(b"secret").hexdigest()
NAMES = st.from_regex(r"(?!#)[!-9;-~]{1,64}", fullmatch=True)


class File(SynchronousTestCase):
    @each(
        ("", []),
        (f"phone:sha256:{DIGEST}", ["phone"]),
        (f"# mine\n\nphone:sha256:{DIGEST}\r\nlaptop:sha256:{DIGEST}\n", ["phone", "laptop"]),
    )
    def test_what_is_read(self, text: str, names: list[str]) -> None:
        self.assertEqual([name for name, _ in parse_tokens(text.encode()).digests], names)

    @each(
        ("phone", (1, "wanted NAME:sha256:")),
        ("phone:secret", (1, "wanted NAME:sha256:")),
        (f"phone:sha512:{DIGEST}", (1, "wanted NAME:sha256:")),
        (f"phone:sha256:{DIGEST[1:]}", (1, "wanted NAME:sha256:")),
        (f"phone:sha256:{DIGEST.upper()}", (1, "wanted NAME:sha256:")),
        (f"\na phone:sha256:{DIGEST}", (2, "no name of a token")),
        (f":sha256:{DIGEST}", (1, "no name of a token")),
        (f"a:sha256:{DIGEST}\na:sha256:{DIGEST}", (2, "a stands in line 1 already")),
    )
    def test_what_is_a_mistake(self, text: str, wanted: tuple[int, str]) -> None:
        error = self.assertRaises(TokenError, parse_tokens, text.encode())
        ((number, told),) = error.mistakes
        self.assertEqual(number, wanted[0])
        self.assertIn(wanted[1], told)
        self.assertNotIn("secret", told)

    def test_all_mistakes_are_told_and_there_are_not_more_than_can_be_compared(self) -> None:
        self.assertEqual(len(self.assertRaises(TokenError, parse_tokens, b"a\nb\n").mistakes), 2)
        lines = "\n".join(f"t{n}:sha256:{DIGEST}" for n in range(TOKENS + 1))
        self.assertIn(str(TOKENS), str(self.assertRaises(TokenError, parse_tokens, lines.encode())))

    @given(NAMES, st.binary(min_size=TOKEN_BYTES, max_size=TOKEN_BYTES))
    @PROPERTY
    def test_a_line_is_read_back_and_its_token_is_that_one_s_alone(self, name: str, random: bytes) -> None:
        token = new_token(random)
        self.assertTrue(is_token(token))
        tokens = parse_tokens(format_line(name, token).encode())
        self.assertEqual((len(tokens), tokens.name_of(token), tokens.name_of(token + "x")), (1, name, None))
        self.assertEqual(str(parse_condition(f"token:{name}")), f"token:{name}")

    def test_no_digest_shows(self) -> None:
        self.assertNotIn(DIGEST, repr(parse_tokens(f"phone:sha256:{DIGEST}".encode())))


class Tokens(SynchronousTestCase):
    def test_a_new_one_wants_all_its_bytes(self) -> None:
        self.assertRaises(ValueError, new_token, b"short")
        self.assertEqual(len(new_token(bytes(TOKEN_BYTES))), 43)

    @each(
        ("a", True), ("A-._~+/=", True), ("", False), ("a b", False), ("a,b", False), ("x" * 257, False), ("ä", False)
    )
    def test_what_may_be_one(self, text: str, may: bool) -> None:
        self.assertEqual(is_token(text), may)

    def test_a_token_in_the_place_of_a_name_is_not_repeated(self) -> None:
        self.assertNotIn("a b", str(self.assertRaises(TokenError, check_name, "a b")))
