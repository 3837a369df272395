"""plumberd.pure.limits: the defaults, and changing one."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.limits import LimitError, Limits
from tests.tables import PROPERTY, each

NAMES = tuple(limit.name for limit in dataclasses.fields(Limits))


class Defaults(SynchronousTestCase):
    @each(
        ("connect_seconds", 10),
        ("handshake_seconds", 5),
        ("lookups_per_uid", 64),
        ("relays", 10000),
        ("lookup_bytes", 65536),
    )
    def test_the_documented_default_holds(self, name: str, value: int) -> None:
        self.assertEqual(getattr(Limits(), name), value)

    @each(*((name,) for name in NAMES))
    def test_every_default_would_be_accepted_as_a_value(self, name: str) -> None:
        default = getattr(Limits(), name)
        self.assertEqual(Limits().with_value(name, str(default)), Limits())

    @each(*((name,) for name in NAMES))
    def test_every_limit_is_described(self, name: str) -> None:
        self.assertIn(f":ivar {name}:", Limits.__doc__ or "")


class Values(SynchronousTestCase):
    @each(
        ("connect_seconds", "3", 3.0),
        ("connect_seconds", "0.25", 0.25),
        ("connect_seconds", "3600", 3600.0),
        ("relays", "1", 1),
        ("relays", "1000000000", 1000000000),
        ("lookup_bytes", "4096", 4096),
    )
    def test_a_limit_is_changed_and_no_other(self, name: str, text: str, value: float) -> None:
        changed = Limits().with_value(name, text)
        self.assertEqual(getattr(changed, name), value)
        self.assertEqual(dataclasses.replace(changed, **{name: getattr(Limits(), name)}), Limits())

    @each(
        ("connect_seconds", "0", "more than 0 up to 3600 seconds"),
        ("connect_seconds", "-1", "more than 0 up to 3600 seconds"),
        ("connect_seconds", "3600.5", "more than 0 up to 3600 seconds"),
        ("connect_seconds", "nan", "more than 0 up to 3600 seconds"),
        ("connect_seconds", "inf", "more than 0 up to 3600 seconds"),
        ("connect_seconds", "soon", "a number of seconds"),
        ("connect_seconds", "", "a number of seconds"),
        ("relays", "0", "1 up to 1000000000"),
        ("relays", "-5", "1 up to 1000000000"),
        ("relays", "1000000001", "1 up to 1000000000"),
        ("relays", "1.5", "a whole number"),
        ("relays", "", "a whole number"),
        ("relays", "many", "a whole number"),
        ("lookup_bytes", "9" * 5000, "a whole number"),
    )
    def test_a_value_without_sense_is_refused_with_what_is_wanted(self, name: str, text: str, wanted: str) -> None:
        with self.assertRaises(LimitError) as caught:
            Limits().with_value(name, text)
        self.assertIn(f"wanted {wanted}", str(caught.exception))
        self.assertIn(f"{name}=", str(caught.exception))

    @each(("",), ("relay",), ("RELAYS",), ("with_value",), ("__class__",))
    def test_a_limit_that_does_not_exist_is_refused_with_those_that_do(self, name: str) -> None:
        with self.assertRaises(LimitError) as caught:
            Limits().with_value(name, "1")
        for known in NAMES:
            self.assertIn(known, str(caught.exception))

    @PROPERTY
    @given(st.sampled_from(NAMES), st.text(max_size=12) | st.floats().map(str) | st.integers().map(str))
    def test_no_text_ever_makes_a_limit_of_nothing(self, name: str, text: str) -> None:
        try:
            changed = Limits().with_value(name, text)
        except LimitError:
            return
        self.assertGreater(getattr(changed, name), 0)
        self.assertLessEqual(getattr(changed, name), 10**9)
