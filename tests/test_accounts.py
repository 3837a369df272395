"""plumberd.effects.accounts: each name is asked for once, and nobody is found for what is no name."""

from __future__ import annotations

import grp
import pwd
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.accounts import Accounts
from tests.tables import each

USER, GROUP = pwd.getpwall()[-1], grp.getgrall()[-1]


class Names(SynchronousTestCase):
    def test_a_user_has_a_uid(self) -> None:
        self.assertEqual(Accounts().uid_of(USER.pw_name), USER.pw_uid)

    def test_a_group_has_a_gid(self) -> None:
        self.assertEqual(Accounts().gid_of(GROUP.gr_name), GROUP.gr_gid)

    @each(("no-such-name",), ("",), ("a\0b",), ("\ud800",), ("0",))
    def test_what_names_nobody_has_no_number(self, name: str) -> None:
        accounts = Accounts()
        self.assertEqual((accounts.uid_of(name), accounts.gid_of(name)), (None, None))

    def test_a_name_is_asked_for_once(self) -> None:
        accounts = Accounts()
        with mock.patch("pwd.getpwnam", side_effect=KeyError) as users, mock.patch("grp.getgrnam") as groups:
            groups.return_value.gr_gid = 7
            found = [(accounts.uid_of("a"), accounts.gid_of("a")) for _ in range(3)]
        self.assertEqual(found, [(None, 7)] * 3)
        self.assertEqual((users.call_count, groups.call_count), (1, 1))

    def test_another_asks_anew(self) -> None:
        with mock.patch("pwd.getpwnam", side_effect=KeyError):
            self.assertIsNone(Accounts().uid_of(USER.pw_name))
        self.assertEqual(Accounts().uid_of(USER.pw_name), USER.pw_uid)


class Words(SynchronousTestCase):
    def test_a_name(self) -> None:
        self.assertEqual(Accounts().uid_of_word(USER.pw_name), USER.pw_uid)

    @each(("0", 0), ("4321", 4321), ("4294967294", 2**32 - 2))
    def test_a_number_nobody_needs_to_have(self, word: str, uid: int) -> None:
        self.assertEqual(Accounts().uid_of_word(word), uid)

    @each(("4294967295",), ("99999999999",), ("-1",), ("1.5",), ("٣",), ("",), ("9" * 5000,))
    def test_what_is_neither_a_name_nor_a_uid(self, word: str) -> None:
        self.assertIsNone(Accounts().uid_of_word(word))
