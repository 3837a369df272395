"""plumberd.wiring.schema: every key with its type, and no value that is merely similar."""

from __future__ import annotations

import dataclasses
import grp
import pwd
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.accounts import Accounts
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.wiring.mistakes import flatten, key_names, key_text
from plumberd.wiring.schema import Configuration, Located, key_paths, structure
from plumberd.wiring.settings import Group
from tests.tables import PROPERTY, each

USER, GROUP = pwd.getpwall()[-1], grp.getgrall()[-1]


def located(*rules: object) -> list[Located]:
    """Return rules as the reader of files gives them."""
    return [Located(rule, "a.toml", index, index + 1) for index, rule in enumerate(rules)]


class Accepted(SynchronousTestCase):
    def test_nothing_is_everything_as_it_is_without_a_file(self) -> None:
        self.assertEqual(structure({}, Accounts()), Configuration())

    def test_every_key(self) -> None:
        table = {
            "include": ["a.toml"],
            "rundir": "run",
            "group": GROUP.gr_name,
            "admin_group": GROUP.gr_name,
            "dialects": ["native"],
            "handover": "relayed",
            "parts": ["broker"],
            "service_users": [USER.pw_name, "7"],
            "broker_users": ["8"],
            "rules": located("allow in a any", f"deny out b any for user:{USER.pw_name}"),
            "default": {"in": "allow", "out": "deny"},
            "routes": {"a": "tcp://h.example"},
            "redirect": {"b": "c"},
            "listen": {"tcpd": ["9000"], "publish": {"pongd": ["7000", "tcp:7001"]}},
            "services": {"pongd": {"framing": "raw"}},
            "limits": {"relays": 5, "connect_seconds": 2, "handshake_seconds": 0.5},
            "audit": {"file": "a.jsonl", "journal": True},
            "audit_only": "10m",
        }
        self.assertEqual(set(table), set(key_names(Configuration)))
        found = structure(table, Accounts())
        group = Group(GROUP.gr_name, GROUP.gr_gid)
        self.assertEqual(
            (found.include, found.rundir, found.group, found.admin_group), (["a.toml"], "run", group, group)
        )
        self.assertEqual((found.dialects, found.handover, found.parts), (("native",), Mode.RELAYED, ["broker"]))
        self.assertEqual((found.service_users, found.broker_users), ([USER.pw_uid, 7], [8]))
        self.assertEqual([rule.source for rule in found.rules], ["a.toml:1", "a.toml:2"])
        self.assertEqual(found.rules[1].conditions[0].number, USER.pw_uid)
        self.assertEqual((found.default.in_, found.default.out), (True, False))
        self.assertEqual(list(map(str, found.routes["a"] + found.redirect["b"])), ["tcp://h.example:9000", "c"])
        self.assertEqual(found.listen.tcpd, ["tcp:9000:interface=127.0.0.1"])
        self.assertEqual(found.listen.publish, {"pongd": ["tcp:7000:interface=127.0.0.1", "tcp:7001"]})
        self.assertEqual([service.framing for service in found.services.values()], ["raw"])
        self.assertEqual(found.limits, {"relays": 5, "connect_seconds": 2.0, "handshake_seconds": 0.5})
        self.assertEqual((found.audit.file, found.audit.journal, found.audit_only), ("a.jsonl", True, 600))

    def test_every_limit_is_known(self) -> None:
        limits = dataclasses.asdict(Limits())
        self.assertEqual(structure({"limits": limits}, Accounts()).limits, limits)

    def test_a_rule_whose_line_is_not_known_names_its_file(self) -> None:
        (rule,) = structure({"rules": [Located("deny in any any", "a.toml", 0)]}, Accounts()).rules
        self.assertEqual(rule.source, "a.toml")

    def test_the_keys_are_listed_as_they_are_written(self) -> None:
        paths = key_paths()
        for path in (
            "rundir",
            "default.in",
            "routes.NAME",
            "listen.publish.NAME",
            "services.NAME.framing",
            "audit.file",
        ):
            self.assertIn(path, paths)
        self.assertEqual({path.partition(".")[0] for path in paths}, set(key_names(Configuration)))


class Mistaken(SynchronousTestCase):
    def mistakes(self, table: dict[str, Any]) -> list[str]:
        """Return each mistake of a table, behind its key."""
        try:
            structure(table, Accounts())
        except Exception as e:
            return [f"{key_text(path)}: {text}" for path, text in flatten(e, key_names(Configuration))]
        raise AssertionError("there is no mistake")

    @each(
        ("rundir", 5, "5: wanted a string"),
        ("rundir", "", "'': wanted a path"),
        ("group", ["a"], "an array: wanted a string"),
        ("dialects", "native", "'native': wanted an array, between [ and ]"),
        ("handover", True, "true: wanted a string"),
        ("parts", {"broker": 1}, "a table: wanted an array, between [ and ]"),
        ("rules", "deny in any any", "'deny in any any': wanted an array, between [ and ]"),
        ("default", "deny", "'deny': wanted a table"),
        ("listen", ["9000"], "an array: wanted a table"),
        ("services", "a", "'a': wanted a table"),
        ("limits", 5, "5: wanted a table"),
        ("audit", "a.jsonl", "'a.jsonl': wanted a table"),
        ("audit_only", 600, "600: wanted a string"),
        ("routes", [], "an empty array: wanted a table of names and where they lead"),
    )
    def test_a_value_of_another_type(self, key: str, value: object, wanted: str) -> None:
        self.assertEqual(self.mistakes({key: value}), [f"{key}: {wanted}"])

    @each(
        ("a_string_is_no_number", {"relays": "5"}, "relays: '5': wanted a whole number"),
        ("true_is_no_number", {"relays": True}, "relays: true: wanted a whole number"),
        ("true_are_no_seconds", {"connect_seconds": True}, "connect_seconds: true: wanted a number of seconds"),
        ("a_fraction_is_no_count", {"relays": 5.0}, "relays: relays='5.0': wanted a whole number"),
        ("zero", {"relays": 0}, "relays: relays=0: wanted 1 up to 1000000000"),
        ("no_number", {"connect_seconds": float("nan")}, "connect_seconds: connect_seconds=nan: wanted more than 0"),
        ("no_limit", {"relay": 5}, "relay: no such key here; did you mean relays?"),
    )
    def test_a_limit(self, _: str, limits: dict[str, object], wanted: str) -> None:
        (found,) = self.mistakes({"limits": limits})
        self.assertTrue(found.startswith(f"limits.{wanted}"), found)

    @each((1,), (0,), ("true",), ("yes",), (None,))
    def test_only_true_and_false_are_truths(self, value: object) -> None:
        (found,) = self.mistakes({"audit": {"journal": value}})
        self.assertTrue(found.endswith(": wanted true or false"), found)

    def test_every_mistake_of_all_keys_comes_at_once(self) -> None:
        found = self.mistakes(
            {
                "rule": [],
                "rules": located("deny in any", 5, "deny in any any", "allow out a any for user:no-such-user"),
                "default": {"in": "maybe", "rules": []},
                "routes": {"a": ["tcp://h.example:0"]},
                "listen": {"tcpd": ["9000", "99999"], "publish": {"ipc": ["7000"], "pongd": ["x"]}},
                "services": {"pongd": {"framings": "raw"}},
            }
        )
        keys = [line.partition(": ")[0] for line in found]
        self.assertEqual(
            keys,
            [
                *("rules[0]", "rules[1]", "rules[3]", "default.in", "default.rules", "routes.a[0]", "listen.tcpd[1]"),
                *("listen.publish.ipc", "listen.publish.pongd[0]", "services.pongd.framings", "rule"),
            ],
        )
        self.assertIn(
            "default.rules: no such key here; rules stands at the top of the file, before the first [table]", found
        )

    @PROPERTY
    @given(
        st.dictionaries(
            st.sampled_from(key_names(Configuration)),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=6,
            ),
            max_size=4,
        )
    )
    def test_whatever_stands_there_is_taken_or_is_a_mistake_with_its_key(self, table: dict[str, Any]) -> None:
        if isinstance(table.get("rules"), list):
            table["rules"] = located(*table["rules"])
        try:
            found = structure(table, Accounts())
        except Exception as e:
            paths = [path for path, _ in flatten(e, key_names(Configuration))]
            self.assertTrue(paths)
            self.assertTrue(all(path[0] in table for path in paths), paths)
        else:
            self.assertIsInstance(found, Configuration)
