"""plumberd.wiring.announce: where, for whom, the defaults in force, and what is pointless."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.modes import Mode, Powers
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.route import Routes, Target, parse_redirect, parse_route
from plumberd.pure.policy.rule import Direction, parse_rule
from plumberd.wiring.announce import announcement
from plumberd.wiring.settings import Settings
from tests.tables import each


def settings(
    rules: tuple[str, ...] = (),
    defaults: dict[Direction, bool] | None = None,
    redirects: dict[str, Target] | None = None,
    routes: dict[str, Target] | None = None,
    **others: Any,
) -> Settings:
    policy = Policy(tuple(parse_rule(r) for r in rules), {**DEFAULTS, **(defaults or {})})
    return Settings("/nowhere/ipc", policy=policy, routes=Routes(redirects or {}, routes or {}), **others)


def warnings(*rules: str, powers: Powers | None = None, has_pidfds: bool = True, **others: Any) -> list[str]:
    lines = announcement(settings(rules, **others), powers, has_pidfds=has_pidfds)
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


class Told(SynchronousTestCase):
    def told(self, line: str, made: Settings, powers: Powers | None = None) -> None:
        self.assertIn(line, announcement(made, powers))

    def test_the_run_directory_and_the_group(self) -> None:
        self.told("run directory /nowhere/ipc, for group ipc", settings(group="ipc", gid=5))

    def test_without_a_group_whose_it_is(self) -> None:
        self.told(f"run directory /nowhere/ipc, for uid {os.geteuid()} and its group {os.getegid()}", settings())

    def test_every_dialect_with_its_socket(self) -> None:
        lines = announcement(settings(dialects=("native", "libipc-zig")))
        self.assertIn("  native       /nowhere/ipc/plumberd", lines)
        self.assertIn("  libipc-zig   /nowhere/ipc/ipc", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/network" in line], [])

    def test_where_tcpd_will_listen(self) -> None:
        self.told("tcpd on tcp:9000", settings(tcpd=("tcp:9000",)))

    def test_where_tcpd_really_listens_once_it_does(self) -> None:
        lines = announcement(
            settings(tcpd=("tcp:0",)), addresses=["tcpd on 127.0.0.1:4567", "publishes pong on 127.0.0.1:7000"]
        )
        self.assertIn("tcpd on 127.0.0.1:4567", lines)
        self.assertIn("publishes pong on 127.0.0.1:7000", lines)
        self.assertNotIn("tcpd on tcp:0", lines)

    def test_what_will_be_published(self) -> None:
        made = settings(publish=(("pong", "tcp:7000"),))
        self.told("publishes pong on tcp:7000", made)
        self.assertNotIn("no remote callers (--tcpd)", announcement(made))

    def test_a_scheme_daemon_alone_tells_its_own_socket_and_no_dialects(self) -> None:
        lines = announcement(settings(parts=frozenset(("tcpd",))))
        self.assertIn("  tcp          /nowhere/ipc/tcp, for brokers", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/ipc" in line], [])

    def test_a_broker_alone_tells_its_dialects_and_no_scheme_daemons_socket(self) -> None:
        lines = announcement(settings(parts=frozenset(("broker",))))
        self.assertIn("  libipc-zig   /nowhere/ipc/ipc", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/tcp" in line], [])

    def test_that_nobody_comes_in(self) -> None:
        self.told("no remote callers (--tcpd)", settings())

    def test_the_rules_in_their_order_and_normal_form(self) -> None:
        lines = announcement(settings(("allow in a tcp://192.0.2.1", "deny in * *")))
        at = lines.index("rule 1: allow in a tcp:192.0.2.1")
        self.assertEqual(lines[at + 1], "rule 2: deny in any any")

    def test_the_defaults_in_force(self) -> None:
        self.told(
            "default in=deny out=allow; confined clients need a rule, local services need none",
            settings(),
        )

    def test_changed_defaults(self) -> None:
        self.told(
            "default in=allow out=deny; confined clients need a rule, local services need none",
            settings(defaults={Direction.IN: True, Direction.OUT: False}),
        )

    def test_redirects_and_routes(self) -> None:
        made = settings(
            redirects={"a": parse_redirect("a", "b"), "c": parse_redirect("c", "tcp://h.example")},
            routes={"*": parse_route("*", "tcp://gw.example/{service}")},
        )
        self.told("redirect a to b", made)
        self.told("redirect c to tcp://h.example:9000", made)
        self.told("route * = tcp://gw.example/{service}", made)

    def test_a_password_is_not_told(self) -> None:
        made = settings(routes={"a": parse_route("a", "tls://user:secret@h.example/a")})
        self.told("route a = tls://user:***@h.example:9001/a", made)

    def test_of_an_endpoint_string_only_its_kind_is_told(self) -> None:
        made = settings(routes={"a": parse_route("a", "tls:h.example:443:privateKey=secret")})
        self.told("route a = the endpoint tls:…", made)

    def test_what_clients_export(self) -> None:
        self.told("  export IPC_RUNDIR=/nowhere/ipc RUNDIR=/nowhere/ipc", settings())
        self.told('  export IPC_NETWORKD="pong tcp://HOST:9000/pong"', settings())

    @each(
        (None, "hand-over auto"),
        (Powers(True, True, 0), "hand-over auto: sockets can be locked for every user"),
        (Powers(True, False, 5), "hand-over auto: sockets can be locked for this user"),
        (Powers(False, False, 5), "hand-over auto: this broker cannot lock sockets (CAP_NET_ADMIN)"),
    )
    def test_how_sockets_are_handed_over(self, powers: Powers | None, line: str) -> None:
        self.told(line, settings(), powers)


class Doubts(SynchronousTestCase):
    @each(
        ("without anything", ()),
        ("rules for the way out", ("allow out pong tls:pong.example.com:9000", "deny out any any")),
        ("a narrow rule behind a wide one of another service", ("deny out a any", "allow out b any")),
        ("a wide rule behind a narrow one", ("allow out a tcp:h.example", "deny out a any")),
        ("the same in the other direction", ("deny out any tcp:any", "deny out any any")),
        (
            "an allow that names an address behind an allow of any peer",
            ("allow out any any", "allow out a tcp:127.0.0.1:5"),
        ),
        (
            "a deny that names an address behind an allow of any peer",
            ("allow out any any", "deny out a tcp:169.254.1.1"),
        ),
    )
    def test_there_is_none(self, _: str, rules: tuple[str, ...]) -> None:
        self.assertEqual(warnings(*rules), [])

    @each(
        ("a deny of any peer", ("deny out any any", "allow out a tcp:h.example"), 2, 1),
        ("a deny of any peer before an address", ("deny out any any", "allow out a tcp:127.0.0.1:5"), 2, 1),
        ("an allow of any peer before a name", ("allow out any any", "deny out a tcp:h.example"), 2, 1),
        ("one of the same service", ("deny out b any", "deny out a any", "allow out a tcp:h.example"), 3, 2),
    )
    def test_a_rule_that_never_has_its_turn(self, _: str, rules: tuple[str, ...], late: int, early: int) -> None:
        self.assertEqual(warnings(*rules), [f"rule {late} never has its turn: rule {early} matches first"])

    def test_an_allow_of_callers_in_front_of_another_that_names_an_address(self) -> None:
        self.assertIn(
            "rule 2 never has its turn: rule 1 matches first",
            warnings("allow in a any", "deny in a tcp:192.0.2.1", tcpd=("tcp:9000",)),
        )

    def test_a_listener_without_a_rule_that_lets_anyone_in(self) -> None:
        self.assertEqual(
            warnings("deny in a any", tcpd=("tcp:9000",)),
            ["tcpd listens, and no rule lets anyone in: --allow in SERVICE PEER"],
        )

    def test_a_published_service_without_a_rule_that_lets_anyone_in(self) -> None:
        self.assertEqual(
            warnings(publish=(("pong", "tcp:7000"),)),
            ["services are published, and no rule lets anyone in: --allow in SERVICE PEER"],
        )

    def test_a_published_service_with_a_rule_is_none(self) -> None:
        self.assertEqual(warnings("allow in pong tcp:any", publish=(("pong", "tcp:7000"),)), [])

    def test_a_listener_with_a_rule_is_none(self) -> None:
        self.assertEqual(warnings("allow in a tcp:any", tcpd=("tcp:9000",)), [])

    def test_rules_for_callers_without_a_listener(self) -> None:
        self.assertEqual(
            warnings("allow in a tcp:any"), ["there are rules for callers, and nothing listens for them: --tcpd PORT"]
        )

    def test_a_rule_for_a_scheme_that_is_not_listened_for(self) -> None:
        self.assertIn(
            "rule 1 can match nobody: nothing here listens for tls",
            warnings("allow in authd tls:example.com", tcpd=("tcp:9000",)),
        )

    def test_a_rule_that_opens_everything(self) -> None:
        self.assertEqual(
            warnings("allow in any any", tcpd=("tcp:9000",)), ["rule 1 lets everybody reach every local service"]
        )

    def test_a_default_that_opens_everything(self) -> None:
        self.assertEqual(
            warnings(defaults={Direction.IN: True}, tcpd=("tcp:9000",)),
            ["default in=allow lets everybody reach every local service that no rule denies"],
        )

    def test_locking_that_is_asked_for_and_not_possible(self) -> None:
        self.assertEqual(
            warnings(handover=Mode.LOCKED, powers=Powers(False, True, 0)),
            ["--handover locked, and this broker cannot lock sockets: every tcp lookup will be not-possible"],
        )

    def test_locking_that_is_asked_for_and_possible_is_none(self) -> None:
        self.assertEqual(warnings(handover=Mode.LOCKED, powers=Powers(True, True, 0)), [])

    def test_a_run_directory_of_somebody_elses(self) -> None:
        with mock.patch.object(os, "lstat", return_value=mock.Mock(st_uid=0)), mock.patch.object(os, "geteuid") as mine:
            mine.return_value = 1000
            (line,) = warnings()
            self.assertIn("/nowhere/ipc belongs to uid 0 and this broker is uid 1000", line)
            mine.return_value = 0
            self.assertEqual(warnings(), [])

    def test_a_kernel_on_which_everybody_counts_as_confined(self) -> None:
        (line,) = warnings(has_pidfds=False)
        self.assertIn("every client counts as confined", line)
