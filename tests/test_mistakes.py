"""plumberd.wiring.config.mistakes: every mistake has its place and its sentence, and no secret in it."""

from __future__ import annotations

import dataclasses
from typing import Any

from cattrs import Converter
from cattrs.errors import BaseValidationError
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.config.mistakes import (
    SHOWN_CHARS,
    ConfigurationError,
    Mistake,
    Path,
    UnknownKey,
    ValueMistake,
    flatten,
    gather,
    key_names,
    key_text,
    shown,
    text,
)
from tests.tables import each


@dataclasses.dataclass(frozen=True)
class Inner:
    number: int = 0
    for_: int = 0


@dataclasses.dataclass(frozen=True)
class Outer:
    one: Inner = dataclasses.field(default_factory=Inner)
    many: list[int] = dataclasses.field(default_factory=list)
    named: dict[str, int] = dataclasses.field(default_factory=dict)


TOP = key_names(Outer)


class Lines(SynchronousTestCase):
    @each(
        ("file_and_key", Mistake("a.toml", "limits.relays", "wrong"), "a.toml: limits.relays: wrong"),
        ("a_line", Mistake("a.toml", "rules[3]", "wrong", 7), "a.toml:7: rules[3]: wrong"),
        ("no_key", Mistake("--allow", "", "wrong"), "--allow: wrong"),
        ("line_ends_and_escapes", Mistake("a\nb", "", "c\x1b[1m → d"), "a?b: c?[1m → d"),
    )
    def test_a_mistake_is_one_line(self, _: str, mistake: Mistake, wanted: str) -> None:
        self.assertEqual(str(mistake), wanted)

    def test_an_error_has_one_for_each(self) -> None:
        error = ConfigurationError([Mistake("a", "b", "c"), Mistake("d", "", "e")])
        self.assertEqual(str(error), "a: b: c\nd: e")
        self.assertEqual([mistake.file for mistake in error.mistakes], ["a", "d"])


class Keys(SynchronousTestCase):
    @each(
        ((), ""),
        (("rules", 3), "rules[3]"),
        (("listen", "publish", "pongd", 1), "listen.publish.pongd[1]"),
        (("routes", "*"), 'routes."*"'),
        (("routes", "a.b", 0, "to", 1), 'routes."a.b"[0].to[1]'),
        (("", 'a"\\'), '""."a\\"\\\\"'),
        (("tls://user:secret@h",), '"…"'),
        (("user@secret",), '"…"'),
        (("x" * 99,), "x" * SHOWN_CHARS),
    )
    def test_a_path_is_written_as_in_toml(self, path: Path, wanted: str) -> None:
        self.assertEqual(key_text(path), wanted)

    def test_a_word_that_python_keeps_has_its_own_name(self) -> None:
        self.assertEqual(key_names(Inner), ["number", "for"])


class Shown(SynchronousTestCase):
    @each(
        ("a", "'a'"),
        (5, "5"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (None, "nothing"),
        ({"a": "secret"}, "a table"),
        (["secret"], "an array"),
        ([], "an empty array"),
        ("tls://user:secret@h", "a string that may hold a secret"),
        ("user@secret:h:9000", "a string that may hold a secret"),
        ("x" * 99, repr("x" * SHOWN_CHARS + "…")),
    )
    def test_a_value_is_shown_but_no_secret_and_no_more_than_a_line(self, value: Any, wanted: str) -> None:
        self.assertEqual(shown(value), wanted)

    def test_only_a_string_is_text(self) -> None:
        self.assertEqual(text("a"), "a")
        with self.assertRaises(ValueMistake) as caught:
            text(5)
        self.assertEqual(str(caught.exception), "5: wanted a string")


class Flattened(SynchronousTestCase):
    def flat(self, value: Any) -> list[tuple[Path, str]]:
        """Return the mistakes of *value* as an Outer."""
        with self.assertRaises(BaseValidationError) as caught:
            Converter(forbid_extra_keys=True).structure(value, Outer)
        return list(flatten(caught.exception, TOP))

    def test_every_mistake_comes_with_its_path(self) -> None:
        found = self.flat({"one": {"number": "x", "for_": "y"}, "many": [1, "a", 2, "b"], "named": {"k": "z"}})
        self.assertEqual(
            [path for path, _ in found],
            [("one", "number"), ("one", "for"), ("many", 1), ("many", 3), ("named", "k")],
        )

    def test_unknown_keys_come_with_the_nearest_known_one(self) -> None:
        self.assertEqual(
            self.flat({"man": [], "zz": 1, "one": {"numbr": 1}}),
            [
                (("one", "numbr"), "no such key here; did you mean number?"),
                (("man",), "no such key here; did you mean many?"),
                (("zz",), "no such key here; wanted one of one, many, named"),
            ],
        )

    def test_a_key_of_the_top_in_a_table_is_sent_there(self) -> None:
        self.assertEqual(
            self.flat({"one": {"named": {}}}),
            [(("one", "named"), "no such key here; named stands at the top of the file, before the first [table]")],
        )

    def test_unknown_keys_that_no_class_knows_read_the_same(self) -> None:
        found = list(flatten(UnknownKey("relay", ["relays", "lookups"]), TOP, ("limits", "relay")))
        self.assertEqual(found, [(("limits", "relay"), "no such key here; did you mean relays?")])

    def test_a_refusal_gives_its_reason(self) -> None:
        found = list(flatten(Refused(Refusal.DENIED, "reserved"), TOP, ("a",)))
        self.assertEqual(found, [(("a",), "reserved")])

    def test_what_is_no_mistake_in_a_value_is_an_error_of_ours(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            list(flatten(ZeroDivisionError(), TOP))


class Gathered(SynchronousTestCase):
    def test_all_values_in_their_order(self) -> None:
        self.assertEqual(gather(enumerate("ab"), lambda at, value: f"{at}{value}"), ["0a", "1b"])

    def test_all_mistakes_each_with_its_place(self) -> None:
        def odd(_: str, value: int) -> int:
            if value % 2 == 0:
                raise ValueMistake(f"{value} is even")
            return value

        with self.assertRaises(BaseValidationError) as caught:
            gather({"a": 1, "b": 2, "c": 4}.items(), odd)
        self.assertEqual(
            list(flatten(caught.exception, TOP, ("x",))), [(("x", "b"), "2 is even"), (("x", "c"), "4 is even")]
        )
