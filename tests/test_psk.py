"""Pre-shared keys, and their file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.psk import PreSharedKey, PskError, check_identity, format_key, parse_keys
from tests.tables import PROPERTY, each

HEX = b"00112233445566778899aabbccddeeff"
KEY = bytes.fromhex(HEX.decode())
IDENTITIES = st.from_regex(r"(?!#)[!-9;-~]{1,128}", fullmatch=True)


class File(SynchronousTestCase):
    @each(
        (b"laptop:" + HEX, [("laptop", KEY)]),
        (b"laptop:" + HEX + b"\n", [("laptop", KEY)]),
        (b"laptop:" + HEX.upper() + b"\r\n\r\n", [("laptop", KEY)]),
        (b"\n\na:" + HEX + b"\nb:" + HEX * 2 + b"\n", [("a", KEY), ("b", KEY * 2)]),
        (b"a:sixteen letters.", [("a", b"sixteen letters.")]),
        (b"a:with:colon:in:the:key", [("a", b"with:colon:in:the:key")]),
        (b"a:two words of a key", [("a", b"two words of a key")]),
        (b"a:" + b"ab" * 512, [("a", b"\xab" * 512)]),
        (b"a:" + b"x" * 512, [("a", b"x" * 512)]),
        (b"i" * 128 + b":" + HEX, [("i" * 128, KEY)]),
        ("a:schlüssel aus text".encode(), [("a", "schlüssel aus text".encode())]),
    )
    def test_what_is_a_key(self, data: bytes, wanted: list[tuple[str, bytes]]) -> None:
        self.assertEqual([(one.identity, one.key) for one in parse_keys(data)], wanted)

    @each(
        (b"", (0, "no key")),
        (b"\n\r\n", (0, "no key")),
        (b"laptop", (1, "wanted identity:key")),
        (b"\nlaptop " + HEX, (2, "wanted identity:key")),
        (b"# old one\nlaptop:" + HEX, (1, "no comments")),
        (b"#laptop:" + HEX, (1, "no comments")),
        (b":" + HEX, (1, "no name of a key")),
        (b"two words:" + HEX, (1, "no name of a key")),
        (b" laptop:" + HEX, (1, "no name of a key")),
        (b"i" * 129 + b":" + HEX, (1, "no name of a key")),
        (b"\xef\xbb\xbflaptop:" + HEX, (1, "no name of a key")),
        (b"laptop:" + HEX[:-1], (1, "an odd number of hexadecimal digits")),
        (b"laptop:" + HEX[:-2], (1, "a key of 15 bytes")),
        (b"laptop:fifteen letters", (1, "a key of 15 bytes")),
        (b"laptop:", (1, "a key of 0 bytes")),
        (b"laptop:" + b"ab" * 513, (1, "a key of 513 bytes")),
        (b"laptop: " + HEX, (1, "a blank before or behind the key")),
        (b"laptop:" + HEX + b"\t", (1, "a blank before or behind the key")),
        (b"laptop:sixteen\0letters..", (1, "a NUL")),
        (b"a:" + HEX + b"\nb:" + HEX + b"\na:" + HEX, (3, "a stands in line 1 already")),
    )
    def test_what_is_none(self, data: bytes, wanted: tuple[int, str]) -> None:
        with self.assertRaises(PskError) as caught:
            parse_keys(data)
        ((line, text),) = caught.exception.mistakes
        self.assertEqual(line, wanted[0])
        self.assertTrue(text.startswith(wanted[1]) or wanted[1] in text, text)

    def test_every_mistake_is_told_with_its_line(self) -> None:
        with self.assertRaises(PskError) as caught:
            parse_keys(b"a\nb:" + HEX + b"\nc:short\nb:" + HEX)
        self.assertEqual([line for line, _ in caught.exception.mistakes], [1, 3, 4])

    def test_no_mistake_repeats_a_key(self) -> None:
        for data in (b"laptop:s3cret", b"s3cret s3cret:laptop", b"s3cret" * 30, b"l:s3cret s3cret s3cret "):
            with self.assertRaises(PskError) as caught:
                parse_keys(data)
            self.assertNotIn("s3cret", str(caught.exception))

    @PROPERTY
    @given(st.dictionaries(IDENTITIES, st.binary(min_size=16, max_size=64), min_size=1))
    def test_what_is_written_is_read_back(self, keys: dict[str, bytes]) -> None:
        written = [PreSharedKey(identity, key) for identity, key in keys.items()]
        data = "".join(f"{format_key(one)}\n" for one in written).encode()
        self.assertEqual(list(parse_keys(data)), written)

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_nothing_else_is_ever_raised(self, data: bytes) -> None:
        try:
            found = parse_keys(data)
        except PskError as e:
            self.assertTrue(e.mistakes)
        else:
            self.assertTrue(found)


class Identity(SynchronousTestCase):
    @PROPERTY
    @given(IDENTITIES)
    def test_every_one_can_stand_in_a_rule(self, identity: str) -> None:
        self.assertEqual(parse_condition(f"psk:{check_identity(identity)}").value, identity)

    @each(("",), ("two words",), ("a:b",), ("#a",), ("ä",), ("a\n",), ("i" * 129,))
    def test_what_is_none(self, text: str) -> None:
        with self.assertRaises(PskError) as caught:
            check_identity(text)
        self.assertEqual([line for line, _ in caught.exception.mistakes], [0])

    def test_a_key_shows_in_no_repr(self) -> None:
        self.assertEqual(repr(PreSharedKey("laptop", b"s3cret" * 4)), "PreSharedKey(identity='laptop')")
