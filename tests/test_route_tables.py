"""plumberd.wiring.config.route_tables: one target, alternatives, and choices for whom."""

from __future__ import annotations

import grp
import pwd
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.accounts import Accounts
from plumberd.pure.policy.route import parse_redirect, parse_route
from plumberd.wiring.config.mistakes import flatten, key_text
from plumberd.wiring.config.route_tables import parse_table
from tests.tables import each

USER, GROUP = pwd.getpwall()[-1], grp.getgrall()[-1]
WANTED = "wanted a string, an array of strings alone, or an array of tables alone, each with to and for"


class Accepted(SynchronousTestCase):
    @each(
        ("a_string", "tcp://h.example/a", ["tcp://h.example:9000/a"]),
        ("an_endpoint", "tls:h.example:443", ["tls endpoint"]),
        ("alternatives", ["tcp://h.example", "tcp://i.example"], ["tcp://h.example:9000 or tcp://i.example:9000"]),
        (
            "choices",
            [{"to": "tcp://h.example", "for": "uid:7"}, {"to": ["tcp://i.example", "tcp:j.example:1"]}],
            ["tcp://h.example:9000 for uid:7", "tcp://i.example:9000 or tcp://j.example:1"],
        ),
        (
            "several_conditions",
            [{"for": ["uid:7", "unit:a.service"], "to": "tcp://h.example"}],
            ["tcp://h.example:9000 for uid:7 for unit:a.service"],
        ),
    )
    def test_an_entry_says_where_and_for_whom(self, _: str, entry: object, wanted: list[str]) -> None:
        found = parse_table({"pong": entry}, parse_route, Accounts())
        self.assertEqual([str(choice) for choice in found["pong"]], wanted)

    def test_users_and_groups_have_their_numbers(self) -> None:
        entry = [{"to": "b", "for": [f"user:{USER.pw_name}", f"group:{GROUP.gr_name}"]}, {"to": "c"}]
        first, _ = parse_table({"a": entry}, parse_redirect, Accounts())["a"]
        self.assertEqual([condition.number for condition in first.conditions], [USER.pw_uid, GROUP.gr_gid])

    def test_the_route_of_all_others_has_a_place_for_the_name(self) -> None:
        found = parse_table({"*": ["tcp://{service}.example", "tcp://h.example/{service}"]}, parse_route, Accounts())
        self.assertEqual(found["*"][0].targets, ("tcp://{service}.example", "tcp://h.example/{service}"))


class Mistaken(SynchronousTestCase):
    def mistakes(self, table: Any, parse: Any = parse_route) -> list[str]:
        """Return each mistake of a table, behind its key."""
        try:
            parse_table(table, parse, Accounts())
        except Exception as e:
            return [f"{key_text(path)}: {text}" for path, text in flatten(e, ())]
        raise AssertionError("there is no mistake")

    def test_what_is_no_table(self) -> None:
        self.assertEqual(
            self.mistakes("tcp://h"), [": a string that may hold a secret: wanted a table of names and where they lead"]
        )

    @each(
        ("a_number", 5, f"a: 5: {WANTED}"),
        ("a_table", {"to": "tcp://h.example"}, f"a: a table: {WANTED}"),
        ("nothing_in_it", [], f"a: an empty array: {WANTED}"),
        ("a_mixture", ["tcp://h.example", {"to": "tcp://h.example"}], f"a: an array: {WANTED}"),
        ("too_many", ["tcp://h.example"] * 17, "a: 17 alternatives, at most 16 are accepted"),
    )
    def test_an_entry_of_another_kind(self, _: str, entry: object, wanted: str) -> None:
        self.assertEqual(self.mistakes({"a": entry}), [wanted])

    def test_all_of_one_choice_at_once(self) -> None:
        entry = [{"for": "nobody", "fro": 1}, {"to": ["tcp://h.example:0", 5], "for": ["uid:7", "group:no-such-group"]}]
        found = self.mistakes({"a": entry})
        self.assertEqual(
            [line.partition(": ")[0] for line in found],
            ["a[0].to", "a[0].for", "a[0].fro", "a[1].to[0]", "a[1].to[1]", "a[1].for[1]"],
        )
        self.assertIn("a[0].to: nothing: wanted a string, or an array of strings", found)
        self.assertIn("a[0].fro: no such key here; did you mean for?", found)
        self.assertIn("a[1].for[1]: group:no-such-group: wanted the name of a group that exists", found)

    def test_all_entries_at_once(self) -> None:
        found = self.mistakes({"ipc": "a", "a": "b", "-x": "c", "d": ["e", "f"], "g": "h"}, parse_redirect)
        self.assertEqual([line.partition(": ")[0] for line in found], ["ipc", "-x", "d"])
        self.assertEqual(found[2], "d: alternatives are URIs or endpoint strings; another name stands alone")

    @each(
        ("in_a_uri", {"a": "tls://user:secret@h.example:99999/a"}),
        ("in_the_names_place", {"tls://user:secret@h.example": "a"}),
        ("in_an_alternative", {"a": ["tls://user:secret@h.example/a", "tls:user:secret@h.example:443"]}),
        ("in_a_choice", {"a": [{"tls://user:secret@h.example": 1, "to": "tls://user:secret"}]}),
        ("of_every_service", {"*": "tls://user:secret@h.example/{service}"}),
    )
    def test_no_secret_is_repeated(self, _: str, table: object) -> None:
        found = self.mistakes(table)
        self.assertTrue(found)
        self.assertNotIn("secret", "\n".join(found))
