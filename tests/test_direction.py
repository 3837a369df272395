"""plumberd.pure.policy.direction: the words of rules."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.direction import Direction


class Written(SynchronousTestCase):
    def test_the_directions_are_called_as_rules_call_them(self) -> None:
        self.assertEqual([direction.value for direction in Direction], ["in", "out", "serve"])
        self.assertEqual([Direction(word) for word in ("in", "out", "serve")], list(Direction))

    def test_no_other_word_is_one(self) -> None:
        for word in ("", "IN", "both", "listen", "serve "):
            with self.assertRaises(ValueError):
                Direction(word)
