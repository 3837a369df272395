"""plumberd.wiring.announce: where, for whom, and all that is in force."""

from __future__ import annotations

import os
import time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.limits import Limits
from plumberd.pure.login import LoginSettings
from plumberd.pure.modes import Powers
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice, Routes, Target, parse_redirect, parse_route
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.tokens import Tokens
from plumberd.pure.web_safety import WebSettings, parse_origin, parse_place
from plumberd.wiring.announce import AT_START, announcement, show_choices
from plumberd.wiring.config.settings import Settings, WebListener
from tests.tables import each


def settings(
    rules: tuple[str, ...] = (),
    defaults: dict[Direction, bool] | None = None,
    redirects: dict[str, Target] | None = None,
    routes: dict[str, Target] | None = None,
    **others: Any,
) -> Settings:
    """Return settings whose redirects and routes are for everybody."""
    policy = Policy(tuple(parse_rule(r) for r in rules), {**DEFAULTS, **(defaults or {})})
    tables = [{name: (Choice((target,)),) for name, target in (table or {}).items()} for table in (redirects, routes)]
    return Settings("/nowhere/ipc", policy=policy, routes=Routes(*tables), **others)


class Told(SynchronousTestCase):
    def told(self, line: str, made: Settings, powers: Powers | None = None) -> None:
        self.assertIn(line, announcement(made, powers))

    def test_the_run_directory_and_the_group(self) -> None:
        self.told("run directory /nowhere/ipc, for group ipc", settings(group="ipc", gid=5))

    def test_without_a_group_whose_it_is(self) -> None:
        self.told(f"run directory /nowhere/ipc, for uid {os.geteuid()} and its group {os.getegid()}", settings())

    def test_the_configuration_and_its_generation(self) -> None:
        self.told("configuration /etc/plumberd.toml", settings(config="/etc/plumberd.toml"))
        self.told("configuration plumberd.toml, generation 3", settings(config="plumberd.toml", generation=3))

    def test_the_files_that_rules_are_included_from(self) -> None:
        sources = ("p.toml:3", "p.toml:4", "rules.d/a.toml:1", "rules.d/b.toml:7", "rules.d/a.toml:2", "--rule")
        policy = Policy(tuple(parse_rule(f"deny out s{n} any", source) for n, source in enumerate(sources)))
        lines = announcement(Settings("/nowhere/ipc", policy=policy, config="p.toml"))
        self.assertEqual(
            lines[:3],
            [
                "configuration p.toml",
                "  includes rules.d/a.toml, with rules: 2",
                "  includes rules.d/b.toml, with rules: 1",
            ],
        )

    def test_every_dialect_with_its_socket(self) -> None:
        lines = announcement(settings(dialects=("native", "libipc-zig")))
        self.assertIn("  native       /nowhere/ipc/plumberd", lines)
        self.assertIn("  libipc-zig   /nowhere/ipc/ipc", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/network" in line], [])

    def test_who_may_do_more_than_others(self) -> None:
        made = settings(admin_group="wheel", service_uids=frozenset((5, 10)), broker_uids=frozenset((7,)))
        self.told("administrators are of group wheel too", made)
        self.told("services may be of uid 5, uid 10 too", made)
        self.told("brokers may be of uid 7 too", made)

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
        self.assertNotIn("no remote callers (--tcpd, --tlsd, --udpd, --webipcd)", announcement(made))

    def test_a_scheme_daemon_alone_tells_its_own_socket_and_no_dialects(self) -> None:
        lines = announcement(settings(parts=frozenset(("tcpd",))))
        self.assertIn("  tcp          /nowhere/ipc/tcp, for brokers", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/ipc" in line], [])

    def test_a_broker_alone_tells_its_dialects_and_no_scheme_daemons_socket(self) -> None:
        lines = announcement(settings(parts=frozenset(("broker",))))
        self.assertIn("  libipc-zig   /nowhere/ipc/ipc", lines)
        self.assertEqual([line for line in lines if "/nowhere/ipc/tcp" in line], [])

    def test_that_nobody_comes_in(self) -> None:
        self.told("no remote callers (--tcpd, --tlsd, --udpd, --webipcd)", settings())

    def test_what_checks_logins_without_its_arguments(self) -> None:
        made = settings(logins=LoginSettings("/passwords", checkers=("file:/plain", "ldap:s3cret")))
        self.told("logins are checked by /passwords, then by file, then by ldap", made)
        self.assertNotIn("s3cret", repr(announcement(made)))
        self.assertNotIn("logins", repr(announcement(settings())))

    def test_the_rules_in_their_order_as_they_were_written(self) -> None:
        lines = announcement(settings(("allow in a tcp://192.0.2.1", "deny in * *")))
        at = lines.index("rule 1: allow in a tcp://192.0.2.1")
        self.assertEqual(lines[at + 1], "rule 2: deny in * *")

    def test_where_a_rule_was_written(self) -> None:
        rules = (parse_rule("deny in any any", "--deny"), parse_rule("deny out any any", "rules.d/a.toml:12"))
        lines = announcement(Settings("/nowhere/ipc", policy=Policy(rules)))
        self.assertIn("rule 1: deny in any any", lines)
        self.assertIn("rule 2 (rules.d/a.toml:12): deny out any any", lines)

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

    def test_for_whom_they_are_and_their_alternatives(self) -> None:
        next_one = Choice(("authd-next",), (parse_condition("group:beta"), parse_condition("unit:ci.service")))
        two = Choice((parse_route("web", "tcp://a.example"), parse_route("web", "tls:b.example:443")))
        routes = Routes({"authd": (next_one, Choice(("authd-old",)))}, {"web": (two,)})
        made = Settings("/nowhere/ipc", routes=routes)
        self.told("redirect authd to authd-next for group:beta for unit:ci.service, else authd-old", made)
        self.told("route web = tcp://a.example:9000 or tls endpoint", made)
        self.assertEqual(show_choices(routes.routes["web"]), "tcp://a.example:9000 or tls endpoint")

    def test_a_password_is_not_told(self) -> None:
        made = settings(routes={"a": parse_route("a", "tls://user:secret@h.example/a")})
        self.told("route a = tls://user:***@h.example:9001/a", made)

    def test_of_an_endpoint_string_only_its_kind_is_told(self) -> None:
        made = settings(routes={"a": parse_route("a", "tls:h.example:443:privateKey=secret")})
        self.told("route a = tls endpoint", made)
        self.assertEqual([line for line in announcement(made) if "secret" in line], [])

    def test_how_messages_look(self) -> None:
        self.told("messages of pongd are libipc-2023", settings(framings={"pongd": "libipc-2023"}))

    def test_the_limits_that_were_changed_and_no_others(self) -> None:
        lines = announcement(settings(limits=Limits(relays=5, connect_seconds=2.5)))
        self.assertEqual(
            [line for line in lines if line.startswith("limit ")],
            ["limit connect_seconds=2.5 (default 10.0)", "limit relays=5 (default 10000)"],
        )

    @each(
        ("no file", {}, "outcomes go to this program's log"),
        ("a file", {"audit_file": "/var/log/a"}, "outcomes go to this program's log and /var/log/a"),
        (
            "both",
            {"audit_file": "/var/log/a", "audit_journal": True},
            "outcomes go to this program's log and /var/log/a and the journal",
        ),
    )
    def test_where_outcomes_are_written(self, _: str, said: dict[str, Any], line: str) -> None:
        self.told(line, settings(**said))

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

    def test_doubts_stand_behind_what_they_are_about(self) -> None:
        lines = announcement(settings(("log out a any",), tcpd=("tcp:9000",)))
        (warning, _) = [line for line in lines if line.startswith("warning: ")]
        self.assertEqual(warning, "warning: tcpd listens, and no rule lets anyone in: --allow in SERVICE PEER")
        self.assertGreater(lines.index(warning), lines.index("rule 1: log out a any"))


class AtStart(SynchronousTestCase):
    """What goes into a log is cut."""

    def made(self, count: int) -> Settings:
        names = [f"s{n}" for n in range(count)]
        return settings(
            tuple(f"deny out {name} any" for name in names),
            redirects={name: name + "-next" for name in names},
            routes={name: parse_route(name, f"tcp://{name}.example") for name in names},
        )

    def lines(self, count: int, *begins: str, at_start: bool) -> list[list[str]]:
        told = announcement(self.made(count), addresses=() if at_start else None)
        return [[line for line in told if line.startswith(begin)] for begin in begins]

    def test_many_rules_redirects_and_routes_are_not_all_told(self) -> None:
        *told, more = self.lines(10_000, "rule ", "redirect ", "route ", "…", at_start=True)
        self.assertEqual([len(lines) for lines in told], [AT_START] * 3)
        self.assertEqual(more, ["… and 9980 more (--check prints all)"] * 3)

    def test_as_many_as_fit_are(self) -> None:
        told = self.lines(AT_START, "rule ", "redirect ", "route ", "…", at_start=True)
        self.assertEqual([len(lines) for lines in told], [AT_START] * 3 + [0])

    def test_checking_tells_all(self) -> None:
        told = self.lines(1000, "rule ", "redirect ", "route ", "…", at_start=False)
        self.assertEqual([len(lines) for lines in told], [1000] * 3 + [0])

    def test_when_refusals_are_no_longer_only_logged(self) -> None:
        self.patch(time, "time", lambda: 1_800_000_000.0)
        made = settings(audit_only_seconds=600)
        (at_start,) = [line for line in announcement(made, addresses=()) if "AUDIT ONLY" in line]
        self.assertIn("until 2027-01-15 08:10:00 UTC", at_start)
        (checked,) = [line for line in announcement(made) if "AUDIT ONLY" in line]
        self.assertIn("for 10m", checked)

    def test_after_a_reload_that_is_not_known(self) -> None:
        (line,) = [
            line
            for line in announcement(settings(audit_only_seconds=600, generation=2), addresses=())
            if "AUDIT ONLY" in line
        ]
        self.assertIn("for 10m", line)


class Web(SynchronousTestCase):
    def test_where_browsers_may_come_in_and_whom_they_may_ask_for(self) -> None:
        made = settings(webipcd=(WebListener("tcp:9080"), WebListener("tcp:9443", True)))
        for line in (
            "webipcd on tcp:9080",
            "webipcd on tls:tcp:9443",
            "browsers may ask for localhost, 127.0.0.1, [::1]; pages of others: none",
        ):
            self.assertIn(line, announcement(made))

    def test_hosts_pages_proxies_and_tokens(self) -> None:
        web = WebSettings(
            (parse_place("h.example"),),
            (parse_origin("https://app.example"),),
            ("unix",),
            "/tokens",
            Tokens((("phone", b"digest"),)),
        )
        told = announcement(settings(webipcd=(WebListener("unix:/web"),), web=web))
        for line in (
            "browsers may ask for h.example; pages of others: https://app.example",
            "reverse proxies are unix",
            "tokens are those of /tokens (1)",
        ):
            self.assertIn(line, told)
        self.assertNotIn("digest", " ".join(told))
