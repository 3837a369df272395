"""plumberd.wiring.config.settings: without an option it is useful, and what was checked does not change."""

from __future__ import annotations

import dataclasses

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects import DIALECTS
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.names import SCHEMES
from plumberd.pure.policy.decide import DEFAULTS
from plumberd.pure.policy.direction import Direction
from plumberd.wiring.config.settings import CommandLine, Settings


class Defaults(SynchronousTestCase):
    def setUp(self) -> None:
        self.settings = Settings("/run/ipc")

    def test_every_dialect_with_a_socket_of_its_own_is_served(self) -> None:
        self.assertEqual(set(self.settings.dialects), set(DIALECTS) - {"libipc-2020"})
        names = [DIALECTS[name].socket_name for name in self.settings.dialects]
        self.assertEqual(len(set(names)), len(names))

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

    def test_nothing_is_written_down_and_no_refusal_is_granted(self) -> None:
        self.assertEqual((self.settings.audit_file, self.settings.audit_journal), (None, False))
        self.assertEqual(self.settings.audit_only_seconds, 0)

    def test_no_group_administers(self) -> None:
        self.assertEqual((self.settings.admin_group, self.settings.admin_gid), (None, None))

    def test_it_is_the_first_generation(self) -> None:
        self.assertEqual(self.settings.generation, 1)

    def test_the_limits_are_the_documented_ones(self) -> None:
        self.assertEqual(self.settings.limits, Limits())

    def test_two_settings_share_no_defaults_that_one_could_change(self) -> None:
        self.assertIsNot(self.settings.policy.defaults, Settings("/x").policy.defaults)
        self.assertIsNot(self.settings.policy.defaults, DEFAULTS)


class Parts(SynchronousTestCase):
    """Which part does what; one method a choice."""

    def check(self, parts: tuple[str, ...], broker: bool, served: tuple[str, ...], asked: tuple[str, ...]) -> None:
        made = Settings("/run/ipc", parts=frozenset(parts))
        asks = tuple(scheme for scheme in SCHEMES if made.asks_scheme_daemon(scheme))
        self.assertEqual((made.runs_broker, made.served_schemes, asks), (broker, served, asked))

    def test_without_a_choice_all_run_together_and_nobody_asks(self) -> None:
        self.check((), True, (), ())

    def test_the_broker_alone_asks_the_scheme_daemons(self) -> None:
        self.check(("broker",), True, (), ("tcp", "tls", "udp", "ws", "wss"))

    def test_a_scheme_daemon_alone_serves_its_socket(self) -> None:
        self.check(("tcpd",), False, ("tcp",), ())
        self.check(("tlsd",), False, ("tls",), ())
        self.check(("udpd",), False, ("udp",), ())
        self.check(("webipcd",), False, ("ws", "wss"), ())

    def test_what_is_in_one_process_with_the_broker_need_not_be_asked(self) -> None:
        self.check(("broker", "tcpd"), True, ("tcp",), ("tls", "udp", "ws", "wss"))
        self.check(("broker", "tcpd", "tlsd"), True, ("tcp", "tls"), ("udp", "ws", "wss"))
        self.check(("broker", "udpd"), True, ("udp",), ("tcp", "tls", "ws", "wss"))
        self.check(("broker", "tcpd", "tlsd", "webipcd"), True, ("tcp", "tls", "ws", "wss"), ("udp",))


class Said(SynchronousTestCase):
    def test_an_empty_command_line_says_nothing(self) -> None:
        said = {name: value for name, value in dataclasses.asdict(CommandLine()).items() if value}
        self.assertEqual(said, {"folder": "/"})

    def test_what_settings_come_from_makes_them_no_others(self) -> None:
        self.assertEqual(Settings("/r", source=CommandLine("a.toml")), Settings("/r"))


class Frozen(SynchronousTestCase):
    def test_nothing_can_be_changed_afterwards(self) -> None:
        with self.assertRaises(dataclasses.FrozenInstanceError):
            Settings("/run/ipc").rundir = "/elsewhere"  # type: ignore[misc]
