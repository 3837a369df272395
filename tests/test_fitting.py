"""plumberd.pure.fitting: answers with lists of any length fit into one message, and say what they leave out."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.native import IDENT_CHARS, MESSAGE_BYTES, answer
from plumberd.pure.fitting import ANSWER_BYTES, fitted, shortened
from tests.tables import PROPERTY


def size(members: dict[str, Any]) -> int:
    """Return how many bytes *members* take as an answer, without its length."""
    return len(answer(None, members)) - 4


class Shortened(SynchronousTestCase):
    def test_what_fits_is_left_alone(self) -> None:
        members = {"ok": True, "rules": ["a"] * 100}
        self.assertIs(shortened(members, ("rules",)), members)

    def test_what_is_cut_is_told(self) -> None:
        rules = [f"rule {n}" for n in range(1000)]
        members = {"ok": True, "rules": rules, "few": ["a"]}
        found = shortened(members, ("rules", "few"), 2000)
        self.assertEqual(found["rules"], rules[: len(found["rules"])])
        self.assertEqual(found["left_out"], {"rules": 1000 - len(found["rules"])})
        self.assertEqual(found["few"], ["a"])
        self.assertTrue(1800 < size(found) <= 2000, size(found))

    def test_the_longest_is_cut_first(self) -> None:
        members = {"a": ["x" * 50] * 100, "b": ["y" * 50] * 10}
        self.assertEqual(shortened(members, ("a", "b"), 3000)["b"], members["b"])

    def test_tables_are_cut_like_lists(self) -> None:
        members = {"routes": {f"service{n}": "tcp://192.0.2.1" for n in range(100)}}
        found = shortened(members, ("routes",), 1000)
        self.assertEqual(list(found["routes"]), list(members["routes"])[: len(found["routes"])])
        self.assertEqual(found["left_out"]["routes"], 100 - len(found["routes"]))

    def test_what_is_not_named_stays(self) -> None:
        members = {"a": ["x" * 50] * 10, "b": ["y" * 50] * 100}
        self.assertEqual(shortened(members, ("a", "absent"), 100), {**members, "a": [], "left_out": {"a": 10}})

    @PROPERTY
    @given(
        st.lists(st.text(max_size=30), max_size=60),
        st.dictionaries(st.text(max_size=20), st.text(max_size=30), max_size=40),
        st.integers(300, 3000),
    )
    def test_it_fits_whatever_is_in_it(self, listed: list[str], table: dict[str, str], most: int) -> None:
        found = shortened({"ok": True, "listed": listed, "table": table}, ("listed", "table"), most)
        self.assertLessEqual(size(found), most)
        left_out = found.get("left_out", {})
        self.assertEqual(len(found["listed"]) + left_out.get("listed", 0), len(listed))
        self.assertEqual(len(found["table"]) + left_out.get("table", 0), len(table))

    def test_with_the_longest_id_it_is_a_whole_message(self) -> None:
        found = shortened({"ok": True, "rules": ["\U0001f600" * 100] * 1000}, ("rules",))
        self.assertLessEqual(len(answer("\U0001f600" * IDENT_CHARS, found)) - 4, MESSAGE_BYTES)
        self.assertGreater(size(found), ANSWER_BYTES - 2000)


def explanation(rules: int, *behind: dict[str, Any]) -> dict[str, Any]:
    """Return one with so many rules that do not match."""
    tried = [{"step": "rule", "text": f"deny out x{n} any", "matches": "no"} for n in range(rules)]
    return {"ok": True, "granted": True, "steps": [{"step": "who", "text": "uid=0"}, *tried, *behind]}


DECIDED = {"step": "rule", "text": "allow out x any", "matches": "yes"}


class Fitted(SynchronousTestCase):
    def test_what_fits_is_left_alone(self) -> None:
        whole = explanation(10, DECIDED)
        self.assertIs(fitted(whole), whole)

    def test_the_first_that_do_not_match_are_left_out_and_counted(self) -> None:
        found = fitted(explanation(1000, DECIDED), 5000)
        who, told, *rest, last = found["steps"]
        self.assertEqual((who["step"], last), ("who", DECIDED))
        self.assertEqual(told, {"step": "rules", "text": f"{1000 - len(rest)} more were tried, and do not match"})
        self.assertEqual(rest[-1]["text"], "deny out x999 any")
        self.assertTrue(4700 < size(found) <= 5000, size(found))

    def test_where_that_is_not_enough_only_who_asks_is_left(self) -> None:
        found = fitted(explanation(5, *[{"step": "address", "text": "x" * 1000}] * 10), 5000)
        self.assertEqual([step["step"] for step in found["steps"]], ["who"])

    def test_ten_thousand_are_cut_with_one_look_at_each(self) -> None:
        looks: list[Any] = []
        encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
        from plumberd.pure import fitting

        def look(value: Any) -> str:
            looks.append(value)
            return encode(value)

        self.patch(fitting, "_size", look)
        found = fitted(explanation(10_000, DECIDED))
        self.assertLessEqual(size(found), ANSWER_BYTES)
        self.assertLess(len(looks), 10_100)
