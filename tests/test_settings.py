"""plumberd.wiring.settings: without an option it is useful, and what was checked does not change."""

from __future__ import annotations

import dataclasses

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects import DIALECTS
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import DEFAULTS
from plumberd.pure.policy.rule import Direction
from plumberd.wiring.settings import Settings


class Defaults(SynchronousTestCase):
    def setUp(self) -> None:
        self.settings = Settings("/run/ipc")

    def test_every_dialect_is_served(self) -> None:
        self.assertEqual(self.settings.dialects, tuple(DIALECTS))

    def test_nothing_comes_in(self) -> None:
        self.assertEqual((self.settings.tcpd, self.settings.policy.defaults[Direction.IN]), ((), False))

    def test_there_is_no_rule_redirect_or_route(self) -> None:
        self.assertEqual(
            (self.settings.policy.rules, dict(self.settings.routes.redirects), dict(self.settings.routes.routes)),
            ((), {}, {}),
        )

    def test_the_mode_of_a_hand_over_is_found_out(self) -> None:
        self.assertIs(self.settings.handover, Mode.AUTO)

    def test_only_root_and_the_broker_may_serve_a_name(self) -> None:
        self.assertEqual(self.settings.service_uids, frozenset())

    def test_the_limits_are_the_documented_ones(self) -> None:
        self.assertEqual(self.settings.limits, Limits())

    def test_two_settings_share_no_defaults_that_one_could_change(self) -> None:
        self.assertIsNot(self.settings.policy.defaults, Settings("/x").policy.defaults)
        self.assertIsNot(self.settings.policy.defaults, DEFAULTS)


class Frozen(SynchronousTestCase):
    def test_nothing_can_be_changed_afterwards(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Settings("/run/ipc").rundir = "/elsewhere"  # type: ignore[misc]
