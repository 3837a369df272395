"""plumberd.wiring.config.doubts: what is doubtful about settings, in lines."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.modes import Mode, Powers
from plumberd.pure.policy.decide import Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice, Routes, parse_redirect, parse_route
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import ClientCertificates, TlsSettings
from plumberd.pure.web_safety import WebSettings, parse_place, parse_proxy
from plumberd.wiring.config.doubts import MOST, NOTE, TARGETS, WARNING, doubts, surroundings
from plumberd.wiring.config.settings import Settings, WebListener
from plumberd.wiring.dialing.served import SERVED
from tests.tables import each
from tests.test_announce import settings

UNABLE = Powers(False, True, 0)


def warnings(*rules: str, powers: Powers | None = None, has_pidfds: bool = True, **others: Any) -> list[str]:
    """Return the warnings about such settings, without their beginning."""
    lines = doubts(settings(rules, **others), powers, has_pidfds=has_pidfds)
    return [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]


class Rules(SynchronousTestCase):
    @each(
        ("without anything", ()),
        ("rules for the way out", ("allow out pong tcp:pong.example.com:9000", "deny out any any")),
        ("a narrow rule behind a wide one of another service", ("deny out a any", "allow out b any")),
        ("a wide rule behind a narrow one", ("allow out a tcp:h.example", "deny out a any")),
        ("the same in the other direction", ("deny out any tcp:any", "deny out any any")),
        ("an allow that names an address", ("allow out any tcp:any", "allow out a tcp:127.0.0.1:5")),
        ("a deny that names an address", ("allow out any tcp:any", "deny out a tcp:169.254.1.1")),
    )
    def test_there_is_no_warning(self, _: str, rules: tuple[str, ...]) -> None:
        self.assertEqual(warnings(*rules), [])

    def test_one_that_never_has_its_turn(self) -> None:
        self.assertEqual(
            warnings("deny out any any", "allow out a tcp:h.example"),
            ["rule 2 never has its turn: rule 1 matches first"],
        )

    def test_one_for_a_scheme_that_is_not_listened_for(self) -> None:
        self.assertIn(
            "rule 1 can match nobody: nothing here listens for tls",
            warnings("allow in authd tls:example.com", tcpd=("tcp:9000",)),
        )

    def test_one_for_a_service_that_no_caller_can_ask_for(self) -> None:
        published = (("pong", "tcp:7000"),)
        rules = ("allow in pong any", "allow in audio any")
        text = "rule 2 can match nobody: a service that is not published cannot be asked for without --tcpd"
        self.assertEqual(warnings(*rules, publish=published), [text])
        self.assertEqual(warnings(*rules, publish=published, tcpd=("tcp:9000",)), [])

    def test_one_for_what_nothing_carries(self) -> None:
        text = "rule 1 opens and closes nothing: no connection is made by udp here"
        with mock.patch("plumberd.wiring.config.doubts.SERVED", ("tcp", "tls")):
            self.assertEqual(warnings("deny out a udp:any"), [text])
        routes = {"web": parse_route("web", "tls:a.example:443")}
        self.assertEqual(warnings("deny out a tls:any", routes=routes), [])

    def test_one_that_nobody_can_prove_anything_to(self) -> None:
        self.assertIn(
            "rule 1 can match nobody: callers cannot prove cert: here "
            '(tls.client_certificates is "none", or nothing listens inside TLS)',
            warnings("allow in a any for cert:b.example", tcpd=("tcp:9000",)),
        )

    def test_one_for_units_that_can_t_be_told(self) -> None:
        self.assertIn(
            "rule 1 can match nobody: this kernel does not tell whose unit a client is (Linux 6.5)",
            warnings("allow out a any for unit:a.service", has_pidfds=False),
        )

    def test_one_that_opens_everything(self) -> None:
        self.assertEqual(
            warnings("allow in any any", tcpd=("tcp:9000",)), ["rule 1 lets everybody reach every local service"]
        )

    def test_notes_are_told_as_such(self) -> None:
        (line,) = doubts(settings(("allow out a unix:b",)))
        self.assertEqual(line, f"{NOTE}only confined clients need this, the defaults let others do it anyway: rule 1")

    def test_the_machine_s_own_addresses_are_known(self) -> None:
        own = frozenset((ipaddress.ip_address("192.0.2.7"),))
        made = Settings("/nowhere/ipc", policy=Policy((parse_rule("allow out a tcp:192.0.2.7"),), own_addresses=own))
        self.assertTrue(any("machine's own addresses" in line for line in doubts(made)))

    def test_of_many_doubts_the_first_are_told_and_the_number_of_the_others(self) -> None:
        lines = doubts(settings(("deny out any any", *(f"allow out s{n} any" for n in range(1000)))))
        self.assertEqual(len(lines), MOST + 1)
        self.assertEqual(lines[-1], f"{WARNING}and {1000 - MOST} more doubts")


class Listeners(SynchronousTestCase):
    def test_one_without_a_rule_that_lets_anyone_in(self) -> None:
        text = "tcpd listens, and no rule lets anyone in: --allow in SERVICE PEER"
        self.assertEqual(warnings("deny in a any", tcpd=("tcp:9000",)), [text])
        self.assertIn(text, warnings("allow in a tls:any", tcpd=("tcp:9000",)))
        self.assertIn(text, warnings("deny in any any", "allow in a any", tcpd=("tcp:9000",)))

    def test_a_published_service_without_a_rule_that_lets_anyone_in(self) -> None:
        text = "pong is published, and no rule lets anyone in: --allow in pong PEER"
        published = (("pong", "tcp:7000"), ("pong", "tcp:7001"), ("audio", "tcp:7002"))
        self.assertEqual(warnings("allow in a* any", publish=published), [text])
        self.assertEqual(
            warnings("allow in audio any", "allow in x any", publish=published, tcpd=("tcp:9000",)), [text]
        )

    def test_one_with_a_rule_is_none(self) -> None:
        self.assertEqual(warnings("allow in pong tcp:any", publish=(("pong", "tcp:7000"),)), [])
        self.assertEqual(warnings("allow in a tcp:any", tcpd=("tcp:9000",)), [])

    def test_rules_for_callers_without_a_listener(self) -> None:
        self.assertEqual(
            warnings("allow in a tcp:any"),
            ["there are rules for callers, and nothing listens for them: --tcpd, --tlsd, --udpd, --webipcd"],
        )

    def test_a_default_that_opens_everything(self) -> None:
        self.assertEqual(
            warnings(defaults={Direction.IN: True}, tcpd=("tcp:9000",)),
            ["default in=allow lets everybody reach every local service that no rule denies"],
        )


class Ways(SynchronousTestCase):
    """Redirects and routes."""

    def told(self, *rules: str, redirect: Any = None, route: Any = None, **others: Any) -> list[str]:
        """Return the warnings about a redirect of ``a`` and a route of ``web``; each is choices, or a text."""
        tables = []
        for name, parse, one in (("a", parse_redirect, redirect), ("web", parse_route, route)):
            choices = (Choice((parse(name, one),)),) if isinstance(one, str) else one
            tables.append({name: choices} if choices else {})
        made = dataclasses.replace(settings(rules, **others), routes=Routes(*tables))
        return [line.removeprefix(WARNING) for line in doubts(made) if line.startswith(WARNING)]

    def test_a_redirect_of_a_service_that_is_closed(self) -> None:
        text = "the redirect of a leads to b, and rule 1 lets nobody go there"
        self.assertEqual(self.told("deny out a any", redirect="b"), [text])
        self.assertEqual(self.told("deny out b any", redirect="b"), [])
        for callers in ({"tcpd": ("tcp:9000",)}, {"udpd": ("udp:9000",)}):
            self.assertEqual(self.told("allow in a any", "deny out a any", redirect="b", **callers), [])

    def test_udpd_listens_for_nobody(self) -> None:
        text = "udpd listens, and no rule lets anyone in: --allow in SERVICE PEER"
        self.assertIn(text, self.told("allow in a tcp:any", udpd=("udp:9000",)))
        self.assertEqual(self.told("allow in a udp:any", udpd=("udp:9000",)), [])

    def test_a_route_to_where_nobody_may_go(self) -> None:
        text = "the route of web leads to tcp://h.example:80/x, and rule 2 lets nobody go there"
        rules = ("deny out b any", "deny out any tcp:*.example")
        self.assertEqual(self.told(*rules, route="tcp://h.example:80/x"), [text])
        self.assertEqual(self.told("allow out web tcp:any", *rules, route="tcp://h.example:80"), [])

    def test_a_route_to_a_service_that_is_closed(self) -> None:
        self.assertEqual(
            self.told("deny out x any", route="tcp://h.example:80/x"),
            ["the route of web leads to tcp://h.example:80/x, and rule 1 lets nobody go there"],
        )

    def test_a_route_that_the_default_closes(self) -> None:
        self.assertEqual(
            self.told(route="tcp://h.example:80", defaults={Direction.OUT: False}),
            ["the route of web leads to tcp://h.example:80, and default out=deny lets nobody go there"],
        )

    def test_an_endpoint_that_needs_a_rule(self) -> None:
        text = (
            "the route of web leads to tls endpoint, and the default for endpoints "
            "(it needs a rule: allow out web any) lets nobody go there"
        )
        route = "tls:h.example:443:certificate=x.pem"
        self.assertEqual(self.told(route=route), [text])
        self.assertEqual(self.told("allow out web any", route=route), [])

    def test_a_local_service_is_open_to_callers_without_a_rule_for_the_way_out(self) -> None:
        rules = ("allow in a any", "deny out any unix:any")
        self.assertEqual(self.told(*rules, redirect="unix:///b", tcpd=("tcp:9000",)), [])
        self.assertEqual(
            self.told(*rules[1:], redirect="unix:///b"),
            ["the redirect of a leads to unix:///b, and rule 1 lets nobody go there"],
        )

    def test_a_redirect_to_itself_leads_nowhere_new(self) -> None:
        beta = (parse_condition("group:beta"),)
        self.assertEqual(self.told("deny out any unix:b", redirect=(Choice(("a",), beta), Choice(("b",)))), [])

    def test_choices_behind_the_one_for_everybody(self) -> None:
        beta = Choice(("c",), (parse_condition("group:beta"),))
        text = "the redirect of a has one for everybody, and others behind it, which are never taken"
        self.assertEqual(self.told(redirect=(Choice(("b",)), beta)), [text])
        self.assertEqual(self.told(redirect=(beta, Choice(("b",)))), [])

    def test_a_route_behind_a_redirect(self) -> None:
        text = "the route of web is never taken: its redirect comes first"
        beta = (parse_condition("group:beta"),)
        routes = {"web": (Choice((parse_route("web", "tcp://h.example"),)),)}
        for choices, told in (
            ((Choice(("b",)),), [text]),
            ((Choice(("b",), beta),), []),
            ((Choice(("web",), beta), Choice(("b",))), [text]),
        ):
            made = Settings("/nowhere/ipc", routes=Routes({"web": choices}, routes))
            self.assertEqual([line.removeprefix(WARNING) for line in doubts(made)], told)

    @each(("unix:/nowhere/ipc/plumberd",), ("unix:path=/nowhere/../nowhere/ipc/tcp:timeout=3",))
    def test_a_socket_of_plumberd_s_own(self, route: str) -> None:
        self.assertEqual(
            self.told("allow out web any", route=route), ["the route of web leads to a socket of plumberd itself"]
        )

    @each(("unix:/nowhere/ipc/pong",), ("unix:/elsewhere/plumberd",), ("tcp:plumberd:80:timeout=3",))
    def test_one_of_somebody_else_s(self, route: str) -> None:
        self.assertEqual(self.told("allow out web any", route=route), [])

    def test_only_so_many_are_looked_at(self) -> None:
        routes = {f"s{n}": (Choice((parse_route("s", "tcp://h.example"),)),) for n in range(TARGETS + 1)}
        (line,) = doubts(Settings("/nowhere/ipc", routes=Routes({}, routes)))
        self.assertIn(f"more than {TARGETS} redirects and routes", line)


class Broker(SynchronousTestCase):
    """Where it runs, and what it may do."""

    def test_locking_that_is_asked_for_and_not_possible(self) -> None:
        self.assertEqual(
            warnings(handover=Mode.LOCKED, powers=UNABLE),
            ["--handover locked, and this broker cannot lock sockets: every tcp lookup will be not-possible"],
        )
        self.assertEqual(
            warnings("allow out a tcp:any handover=locked", powers=UNABLE),
            ["this broker cannot lock sockets, so handover=locked is not-possible: rule 1"],
        )

    def test_locking_that_is_asked_for_and_possible_is_none(self) -> None:
        able = Powers(True, True, 0)
        self.assertEqual(warnings("allow out a tcp:any handover=locked", handover=Mode.LOCKED, powers=able), [])

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

    def test_refusals_that_are_only_logged_come_first_and_loud(self) -> None:
        first, *_ = warnings("log out a any", tcpd=("tcp:9000",), audit_only_seconds=600)
        self.assertEqual(
            first,
            "AUDIT ONLY, for 10m: what rules and defaults refuse is LET THROUGH and logged, but for addresses "
            "that a rule has to name",
        )


class Around(SynchronousTestCase):
    """What the rules are told of the rest."""

    def test_without_listeners_nobody_calls(self) -> None:
        found = surroundings(settings())
        self.assertEqual((found.listens, found.services), ((), None))

    def test_published_services_are_all_that_callers_can_ask_for(self) -> None:
        published = (("pong", "tcp:7000"), ("pong", "tcp:7001"))
        self.assertEqual(surroundings(settings(publish=published)).services, {"pong"})
        self.assertIsNone(surroundings(settings(publish=published, tcpd=("tcp:9000",))).services)

    def test_what_is_carried_is_what_is_served_and_what_endpoints_do(self) -> None:
        made = settings(routes={"a": parse_route("a", "tls:h.example:443"), "b": parse_route("b", "systemd:x:y")})
        self.assertEqual(surroundings(made).carries, {*SERVED, "systemd"})
        self.assertEqual(surroundings(made).special, {"systemd"})

    def test_who_the_broker_is(self) -> None:
        self.assertEqual(surroundings(settings()).uid, os.geteuid())


class InsideTls(SynchronousTestCase):
    """Callers inside TLS can prove what the listener asks for, and no more."""

    def told(self, *rules: str, **more: Any) -> list[str]:
        more.setdefault("tlsd", ("tcp:9001:interface=127.0.0.1",))
        return warnings(*rules, **more)

    def test_a_rule_for_a_name_matches_where_certificates_are_asked_for(self) -> None:
        asked = TlsSettings(client_certificates=ClientCertificates.OPTIONAL)
        self.assertEqual(self.told("allow in a tls:b.example", tls=asked), [])
        self.assertEqual(self.told("allow in a any for spiffe://b.example/x", tls=asked), [])

    def test_a_listener_that_lets_nobody_in_is_doubted(self) -> None:
        self.assertIn(
            "tlsd listens, and no rule lets anyone in: --allow in SERVICE PEER", self.told("allow in a tcp:any")
        )
        published = self.told("allow in b any", tlsd=(), publish_tls=(("a", "tcp:9001"),))
        self.assertIn("a is published, and no rule lets anyone in: --allow in a PEER", published)

    def test_what_nobody_can_prove_matches_nobody(self) -> None:
        self.assertTrue(self.told("allow in a any for psk:laptop"))
        self.assertTrue(self.told("allow in a any for login:carol"))
        key = PreSharedKey("laptop", b"x" * 32)
        self.assertEqual(self.told("allow in a any for psk:laptop", tls=TlsSettings(psks=(key,))), [])


class Web(SynchronousTestCase):
    LISTEN = (WebListener("tcp:9080:interface=127.0.0.1"),)

    def test_nobody_is_let_in(self) -> None:
        text = "webipcd listens, and no rule lets anyone in: --allow in SERVICE ws:any"
        self.assertEqual(warnings("deny in a any", webipcd=self.LISTEN), [text])
        self.assertIn(text, warnings("allow in a wss:any", webipcd=self.LISTEN))
        self.assertIn(text, warnings("allow in a ws:any for token:phone", webipcd=self.LISTEN))
        self.assertEqual(warnings("allow in a ws:any", webipcd=self.LISTEN), [])

    def test_a_token_is_proved_where_there_is_a_file_of_them(self) -> None:
        made = WebSettings(token_file="/tokens")
        self.assertEqual(warnings("allow in a ws:any for token:phone", webipcd=self.LISTEN, web=made), [])

    def test_a_proxy_may_say_that_it_is_encrypted(self) -> None:
        made = WebSettings(proxies=("unix",))
        self.assertEqual(warnings("allow in a wss:any", webipcd=self.LISTEN, web=made), [])

    @each(
        ("loopback", "127.0.0.1", "tcp:9080:interface=127.0.0.1", True),
        ("a network that holds it", "0.0.0.0/0", "tcp:9080:interface=192.0.2.1", True),
        ("loopback of IPv6", "::1", "tcp6:9080:interface=\\:\\:1", True),
        ("another machine's", "192.0.2.7", "tcp:9080:interface=127.0.0.1", False),
        ("loopback, by a UNIX socket", "127.0.0.1", "unix:/run/web", False),
        ("a UNIX socket for all", "unix", "unix:/run/web", True),
        ("a UNIX socket for all, said so", "unix", "unix:/run/web:mode=666", True),
        ("a UNIX socket that all may write to", "unix", "unix:/run/web:mode=0622:backlog=9", True),
        ("a UNIX socket for some", "unix", "unix:/run/web:mode=660", False),
        ("a UNIX proxy that nobody listens for", "unix", "tcp:9080:interface=127.0.0.1", False),
    )
    def test_every_local_user_may_be_the_proxy(self, _: str, proxy: str, description: str, told: bool) -> None:
        made = WebSettings((parse_place("h.example"),), proxies=(parse_proxy(proxy),))
        found = warnings("allow in a ws:any", webipcd=(WebListener(description),), web=made)
        self.assertEqual([text for text in found if "pass for the proxy" not in text], [])
        self.assertEqual(bool(found), told, found)

    def test_others_get_403_where_no_host_is_named(self) -> None:
        text = "webipcd listens for other machines, and web.hosts names no host: they get 403"
        for description in ("tcp:9080", "tcp:9080:interface=192.0.2.1", "tcp6:9080"):
            listen = (WebListener(description),)
            self.assertEqual(warnings("allow in a ws:any", webipcd=listen), [text])
            made = WebSettings((parse_place("h.example"),))
            self.assertEqual(warnings("allow in a ws:any", webipcd=listen, web=made), [])
