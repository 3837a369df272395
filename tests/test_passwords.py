"""Passwords in a file: what a line has to be, whose password is right, and that nobody's time differs."""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.passwords import (
    PASSWORD_BYTES,
    Cost,
    Entry,
    PasswordError,
    Passwords,
    check_user,
    format_entry,
    is_password,
    make_entry,
    parse_file,
    with_entry,
    without_user,
)
from plumberd.pure.policy.subject import parse_condition
from tests.tables import PROPERTY, each

CHEAP = Cost(14, 8, 1)
"""The cheapest that a file may have."""

SALT = bytes(range(16))
S, H = "AAECAwQFBgcICQoLDA0ODw", "A" * 43
"""Base64 of that salt, and of 32 bytes."""

RFC_7914 = (
    "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"
    "d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"
)
"""Section 12: ``pleaseletmein``, salted with ``SodiumChloride``, N=16384, r=8, p=1."""

USERS = st.from_regex(r"(?!#)[!-9;-~]{1,255}", fullmatch=True)
COSTS = st.builds(Cost, st.integers(14, 15), st.integers(8, 10), st.integers(1, 2))
ENTRIES = st.builds(Entry, USERS, COSTS, st.binary(min_size=8, max_size=64), st.binary(min_size=16, max_size=64))


def unpadded(data: bytes) -> str:
    """Return *data* in base64 as PHC strings have it."""
    return base64.b64encode(data).decode().rstrip("=")


def line(user: str = "alice", cost: str = "ln=14,r=8,p=1", salt: str = S, digest: str = H) -> bytes:
    """Return a line of the file."""
    return f"{user}:$scrypt${cost}${salt}${digest}\n".encode()


def pretend(password: bytes, *, salt: bytes, n: int, r: int, p: int, maxmem: int, dklen: int) -> bytes:
    """Stand in the place of scrypt, and cost nothing."""
    return hashlib.sha512(repr((password, salt, n, r, p)).encode()).digest()[:dklen]


def quickly() -> Any:
    """Return the patch that makes scrypt cost nothing."""
    return mock.patch("hashlib.scrypt", side_effect=pretend)


class File(SynchronousTestCase):
    @each(
        ("nothing", b"", 0),
        ("one_user", line(), 1),
        ("no_line_end", line().strip(), 1),
        ("line_ends_of_elsewhere", line().replace(b"\n", b"\r\n"), 1),
        ("blank_lines_and_comments", b"\n# the team\n" + line() + b"\n#bob:x\n" + line("bob"), 2),
        ("the_longest_name", line("u" * 255), 1),
        ("the_shortest_salt_and_hash", line(salt=unpadded(bytes(8)), digest=unpadded(bytes(16))), 1),
        ("the_longest_salt_and_hash", line(salt=unpadded(bytes(64)), digest=unpadded(bytes(64))), 1),
        ("the_dearest", line(cost="ln=17,r=8,p=2"), 1),
        ("the_cheapest_in_another_way", line(cost="ln=13,r=16,p=1"), 1),
        ("four_costs", b"".join(line(f"u{n}", f"ln={n},r=8,p=1") for n in (14, 15, 16, 17)), 4),
    )
    def test_what_is_a_file(self, _: str, data: bytes, count: int) -> None:
        self.assertEqual(len(parse_file(data)), count)

    @each(
        ("a_bare_name", b"alice\n", (1, "wanted user:$scrypt$")),
        ("a_plain_password", b"\nalice:hunter2", (2, "alice: wanted $scrypt$")),
        ("an_empty_one", b"alice:", (1, "alice: wanted $scrypt$")),
        ("bcrypt", b"alice:$2b$12$hunter2", (1, "hashed with 2b; wanted scrypt")),
        ("argon2", b"alice:$argon2id$v=19$m=1,t=1,p=1$hunter2", (1, "hashed with argon2id; wanted scrypt")),
        ("no_name", line(""), (1, "a name of 1 to 255")),
        ("a_name_too_long", line("u" * 256), (1, "a name of 1 to 255")),
        ("a_blank_in_the_name", line("al ice"), (1, "a name of 1 to 255")),
        ("a_blank_in_front", b" " + line(), (1, "a name of 1 to 255")),
        ("no_ascii", "älice:x".encode(), (1, "not ASCII")),
        ("a_mark_in_front", b"\xef\xbb\xbf" + line(), (1, "not ASCII")),
        ("a_blank_behind", line().strip() + b" \n", (1, "in base64 without =")),
        ("padding", line(digest=H + "="), (1, "in base64 without =")),
        ("an_impossible_length", line(digest="A" * 45), (1, "the hash is no base64")),
        ("a_short_salt", line(salt=unpadded(bytes(7))), (1, "a salt of 7 bytes: 8 to 64")),
        ("a_long_salt", line(salt=unpadded(bytes(65))), (1, "a salt of 65 bytes")),
        ("a_short_hash", line(digest=unpadded(bytes(15))), (1, "a hash of 15 bytes: 16 to 64")),
        ("a_long_hash", line(digest=unpadded(bytes(65))), (1, "a hash of 65 bytes")),
        ("too_cheap", line(cost="ln=13,r=8,p=1"), (1, "ln=13,r=8,p=1 is too cheap")),
        ("too_much_memory", line(cost="ln=18,r=8,p=1"), (1, "is too dear")),
        ("absurd_memory", line(cost="ln=99,r=9999,p=9999"), (1, "is too dear")),
        ("too_much_work", line(cost="ln=17,r=8,p=3"), (1, "is too dear")),
        ("a_cost_of_nothing", line(cost="ln=0,r=8,p=1"), (1, "wanted $scrypt$")),
        ("another_order", line(cost="r=8,ln=14,p=1"), (1, "wanted $scrypt$")),
        ("the_same_user_twice", line() + b"\n" + line(), (3, "alice stands in line 1 already")),
        (
            "costs_that_are_too_many",
            b"".join(line(f"u{n}", f"ln=16,r={n},p=1") for n in (8, 9, 10, 11)),
            (4, "beside ln=16,r=10,p=1, ln=16,r=8,p=1, ln=16,r=9,p=1: a login computes 304 MiB then, at most 256"),
        ),
    )
    def test_what_is_none(self, _: str, data: bytes, wanted: tuple[int, str]) -> None:
        with self.assertRaises(PasswordError) as caught:
            parse_file(data)
        ((number, text),) = caught.exception.mistakes
        self.assertEqual(number, wanted[0])
        self.assertIn(wanted[1], text)
        self.assertNotIn("hunter2", str(caught.exception))

    def test_all_mistakes_are_told(self) -> None:
        with self.assertRaises(PasswordError) as caught:
            parse_file(b"alice\n" + line("bob") + b"carol:x\n")
        self.assertEqual([number for number, _ in caught.exception.mistakes], [1, 3])
        self.assertIn("line 3: carol: wanted", str(caught.exception))

    @PROPERTY
    @given(st.lists(ENTRIES, max_size=3, unique_by=lambda entry: entry.user))
    def test_what_is_printed_is_read_back(self, entries: list[Entry]) -> None:
        data = b"".join(format_entry(entry).encode() + b"\n" for entry in entries)
        self.assertEqual(parse_file(data), Passwords(entries))

    @PROPERTY
    @given(st.binary())
    def test_anything_is_a_file_or_a_mistake(self, data: bytes) -> None:
        try:
            self.assertGreaterEqual(len(parse_file(data)), 0)
        except PasswordError as e:
            self.assertTrue(e.mistakes)

    @PROPERTY
    @given(USERS)
    def test_every_user_can_stand_in_a_rule(self, user: str) -> None:
        self.assertEqual(parse_condition(f"login:{check_user(user)}").value, user)


class Right(SynchronousTestCase):
    def test_the_hash_is_scrypt_as_its_rfc_has_it(self) -> None:
        data = line(salt=unpadded(b"SodiumChloride"), digest=unpadded(bytes.fromhex(RFC_7914)))
        known = parse_file(data)
        self.assertTrue(known.verify("alice", "pleaseletmein"))
        self.assertFalse(known.verify("alice", "pleaseletmeim"))

    def test_what_is_made_is_right(self) -> None:
        made = make_entry("alice", "hunter2", SALT)
        self.assertEqual(made.cost, Cost(15, 8, 1))
        self.assertTrue(format_entry(made).startswith(f"alice:$scrypt$ln=15,r=8,p=1${S}$"))
        self.assertTrue(Passwords([made]).verify("alice", "hunter2"))

    @each(
        ("the_right_one", "alice", "hunter2", True),
        ("a_wrong_one", "alice", "hunter3", False),
        ("none", "alice", "", False),
        ("another_user_s", "bob", "hunter2", False),
        ("nobody_s", "carol", "hunter2", False),
        ("no_user_s", "", "hunter2", False),
        ("another_spelling_of_the_user", "Alice", "hunter2", False),
        ("too_long_a_one", "alice", "hunter2" * PASSWORD_BYTES, False),
        ("half_a_letter", "alice", "\ud800", False),
        ("one_letter_in_two_parts", "carla", "e\u0301t\u00e9", True),
    )
    def test_it_is_told_who_has_proved_to_be_a_user(self, _: str, user: str, password: str, right: bool) -> None:
        with quickly():
            known = Passwords(
                [
                    make_entry("alice", "hunter2", SALT, CHEAP),
                    make_entry("bob", "other", SALT),
                    make_entry("carla", "\u00e9t\u00e9", SALT, CHEAP),
                ]
            )
            self.assertIs(known.verify(user, password), right)

    def test_the_stand_in_for_nobody_is_nobody_even_to_who_knows_it(self) -> None:
        with mock.patch("hashlib.scrypt", return_value=bytes(32)):
            known = Passwords([Entry("alice", CHEAP, SALT, b"x" * 32)])
            self.assertFalse(known.verify("bob", "whatever"))

    def test_whoever_is_asked_for_the_same_is_computed(self) -> None:
        with quickly() as scrypt:
            known = Passwords([make_entry("alice", "a", SALT, CHEAP), make_entry("bob", "b", SALT)])
            costs = []
            for user, password in (("alice", "a"), ("alice", "x"), ("bob", "b"), ("carol", "x"), ("alice", "")):
                scrypt.reset_mock()
                known.verify(user, password)
                costs.append([(call.kwargs["n"], call.kwargs["r"]) for call in scrypt.call_args_list])
        self.assertEqual(costs, [[(1 << 14, 8), (1 << 15, 8)]] * 5)

    @each(("a" * 1024, True), ("a" * 1025, False), ("ü" * 512, True), ("two words", True), ("a\nb", False), ("", False))
    def test_what_can_be_a_password(self, text: str, can: bool) -> None:
        self.assertIs(is_password(text), can)

    @each(("alice", "a\tb", "a password of 1 to 1024"), ("al:ice", "a", "a name of 1 to 255"), ("#a", "a", "a name"))
    def test_of_what_can_be_none_nothing_is_made(self, user: str, password: str, wanted: str) -> None:
        with self.assertRaises(PasswordError) as caught:
            make_entry(user, password, SALT, CHEAP)
        self.assertIn(wanted, str(caught.exception))


class Changed(SynchronousTestCase):
    NEW = Entry("bob", CHEAP, SALT, bytes(32))

    @each(
        ("an_empty_file", b"", b"BOB"),
        ("a_new_user", b"# team\n" + line("al"), b"# team\n" + line("al") + b"BOB"),
        ("without_a_line_end", line("al").strip(), line("al") + b"BOB"),
        ("a_known_user", line("al") + line("bob", digest="B" * 43) + line("cy"), line("al") + b"BOB" + line("cy")),
        ("one_who_stands_twice", line("bob") + line("bob"), b"BOBBOB"),
        ("one_who_begins_alike", line("bobby"), line("bobby") + b"BOB"),
    )
    def test_a_user_s_line_takes_the_place_of_the_old_one(self, _: str, data: bytes, wanted: bytes) -> None:
        self.assertEqual(with_entry(data, self.NEW), wanted.replace(b"BOB", line("bob")))

    def test_a_user_is_taken_out_and_nothing_else(self) -> None:
        data = b"# team\n" + line("bob") + b"\n" + line("bobby")
        self.assertEqual(without_user(data, "bob"), b"# team\n\n" + line("bobby"))

    def test_who_is_not_there_cannot_be_taken_out(self) -> None:
        with self.assertRaises(PasswordError) as caught:
            without_user(line("bobby"), "bob")
        self.assertIn("no user of that file is called bob", str(caught.exception))


class Printed(SynchronousTestCase):
    def test_no_hash_and_no_salt_shows(self) -> None:
        with quickly():
            entry = make_entry("alice", "hunter2", SALT)
        shown = repr([entry, Passwords([entry]), Passwords([entry, Entry("b", CHEAP, SALT, SALT)])])
        self.assertIn("<1 user>, <2 users>", shown)
        for secret in ("hunter2", repr(SALT), repr(entry.digest)):
            self.assertNotIn(secret, shown)

    def test_the_same_users_are_equal_and_others_are_not(self) -> None:
        one, other = parse_file(line()), parse_file(line(digest="B" * 42 + "A"))
        self.assertEqual((one, hash(one)), (parse_file(line()), hash(parse_file(b"# same\n" + line()))))
        self.assertNotEqual(one, other)
