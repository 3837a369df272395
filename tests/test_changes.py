"""plumberd.wiring.config.changes: what a reload changes is told, each once, and what has not changed is not."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.limits import Limits
from plumberd.pure.login import LoginSettings
from plumberd.pure.modes import Mode
from plumberd.pure.passwords import Cost, Entry, Passwords
from plumberd.pure.policy.decide import DEFAULTS, Policy
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice, Endpoint, Routes, parse_route
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.policy.subject import parse_condition
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import (
    Authority,
    Certificate,
    ClientCertificates,
    PeerSettings,
    RevocationList,
    TlsSettings,
    Trust,
)
from plumberd.pure.tokens import Tokens
from plumberd.pure.web_safety import WebSettings, parse_place
from plumberd.wiring.config.changes import AT_START, Changes, changes
from plumberd.wiring.config.settings import CommandLine, Settings, WebListener
from tests.tables import PROPERTY, each

OLD = Settings("/r")
OWN = Certificate("/a.pem", "/a.key", b"", b"s3cret", "a.example", ends=86400 * 100)
KEY = PreSharedKey("laptop", b"s3cret")


def policy(*rules: str, **defaults: bool) -> Policy:
    """Return a policy of these rules."""
    return Policy(
        tuple(parse_rule(rule) for rule in rules), {**DEFAULTS, **{Direction(d): v for d, v in defaults.items()}}
    )


def routes(**texts: str) -> Routes:
    """Return routes to these URIs."""
    return Routes(routes={name: (Choice((parse_route(name, text),)),) for name, text in texts.items()})


def lines(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what is told of the difference of two settings."""
    return list(changes(dataclasses.replace(OLD, **old), dataclasses.replace(OLD, **new)).lines)


ONE, OTHER = Entry("alice", Cost(), bytes(16), b"s3cret of alice."), Entry("bob", Cost(), bytes(16), bytes(16))


def logins(*entries: Entry, file: str | None = "/passwords", checkers: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return settings with these users and checkers."""
    return {"logins": LoginSettings(file, Passwords(entries), checkers)}


class Told(SynchronousTestCase):
    @each(
        ("a_password_file", {}, logins(ONE), ["auth.password_file: none → /passwords (1 user)"]),
        (
            "a_user",
            logins(ONE),
            logins(ONE, OTHER),
            ["auth.password_file: /passwords (1 user) → /passwords (2 users)"],
        ),
        (
            "a_password",
            logins(ONE),
            logins(dataclasses.replace(ONE, salt=b"s3cret salt")),
            ["auth.password_file: /passwords (1 user), with other contents or other arguments"],
        ),
        ("no_password_file", logins(ONE), {}, ["auth.password_file: /passwords (1 user) → none"]),
        (
            "checkers",
            logins(file=None, checkers=("ldap:s3cret",)),
            logins(file=None, checkers=("ldap:s3cret too", "unix")),
            ["auth.checkers: ldap → ldap, unix"],
        ),
        (
            "arguments",
            logins(file=None, checkers=("ldap:s3cret",)),
            logins(file=None, checkers=("ldap:s3cret too",)),
            ["auth.checkers: ldap, with other contents or other arguments"],
        ),
        ("handover", {}, {"handover": Mode.LOCKED}, ["handover: auto → locked"]),
        ("a_limit", {}, {"limits": Limits(relays=5)}, ["limits.relays: 10000 → 5"]),
        ("seconds", {}, {"limits": Limits(connect_seconds=2.5)}, ["limits.connect_seconds: 10 → 2.5"]),
        ("a_default", {}, {"policy": policy(out=False)}, ["default.out: allow → deny"]),
        ("administrators", {}, {"admin_group": "a", "admin_gid": 5}, ["admin_group: none → a (gid 5)"]),
        (
            "a_groups_number",
            {"admin_group": "a", "admin_gid": 5},
            {"admin_group": "a", "admin_gid": 6},
            ["admin_group: a (gid 5) → a (gid 6)"],
        ),
        (
            "audit",
            {"audit_file": "/a"},
            {"audit_journal": True},
            ["audit.file: /a → none", "audit.journal: false → true"],
        ),
        ("audit_only", {"audit_only_seconds": 600}, {}, ["audit_only: 10m → none"]),
        ("a_framing", {"framings": {"a": "raw"}}, {"framings": {}}, ["services.a.framing: raw → none"]),
        ("a_name_with_dots", {}, {"framings": {"a.b": "raw"}}, ['services."a.b".framing: none → raw']),
        (
            "listeners",
            {"tcpd": ("tcp:1", "tcp:2")},
            {"tcpd": ("tcp:2", "tcp:3")},
            ["listen.tcpd: - tcp:1", "listen.tcpd: + tcp:3"],
        ),
        ("published", {}, {"publish": (("a", "tcp:1"),)}, ["listen.publish.a: + tcp:1"]),
        ("listeners_for_datagrams", {}, {"udpd": ("udp:1",)}, ["listen.udpd: + udp:1"]),
        ("listeners_inside_tls", {}, {"tlsd": ("tcp:1",)}, ["listen.tlsd: + tcp:1"]),
        ("published_inside_tls", {}, {"publish_tls": (("a", "tcp:1"),)}, ["listen.publish_tls.a: + tcp:1"]),
        (
            "a_certificate_that_was_renewed",
            {"tls": TlsSettings((OWN,))},
            {"tls": TlsSettings((dataclasses.replace(OWN, ends=86400 * 400),))},
            ['tls.certificates."/a.pem": a.example, until 1970-04-11 → a.example, until 1971-02-05'],
        ),
        (
            "a_new_key_in_the_same_file",
            {"tls": TlsSettings((OWN,))},
            {"tls": TlsSettings((dataclasses.replace(OWN, key=b"s3cret too"),))},
            ['tls.certificates."/a.pem": a.example, until 1970-04-11, with other contents'],
        ),
        (
            "a_first_certificate",
            {},
            {"tls": TlsSettings((OWN,))},
            ['tls.certificates."/a.pem": none → a.example, until 1970-04-11'],
        ),
        (
            "keys",
            {"tls": TlsSettings(psk_file="/psk", psks=(KEY,))},
            {"tls": TlsSettings(psk_file="/psk", psks=(KEY, PreSharedKey("b", b"s3cret")))},
            ["tls.psk_file: /psk, 1 for callers → /psk, 2 for callers"],
        ),
        (
            "trust",
            {},
            {"tls": TlsSettings(trust=Trust(True, (Authority("/ca.pem", b""), Authority("/ca.pem", b""))))},
            ["tls.trust: system → system, /ca.pem"],
        ),
        (
            "everything_else_of_tls",
            {},
            {
                "tls": TlsSettings(
                    crls=(RevocationList("/crl.pem", b""),),
                    client_certificates=ClientCertificates.REQUIRED,
                    alpn=("h2", "http/1.1"),
                )
            },
            ["tls.crl: none → /crl.pem", "tls.client_certificates: none → required", "tls.alpn: none → h2,http/1.1"],
        ),
        (
            "a_peer",
            {"peers": {"a:1": PeerSettings(psk=KEY)}},
            {"peers": {"b:1": PeerSettings(None, OWN, "alice", "/pw", "s3cret", ("sha256:0f",), Trust())}},
            [
                'peer."a:1": psk laptop → none',
                'peer."b:1": none → certificate /a.pem; login alice; pin sha256:0f; trust system',
            ],
        ),
        (
            "a_peer_s_password",
            {"peers": {"a:1": PeerSettings(login="alice", password="s3cret")}},
            {"peers": {"a:1": PeerSettings(login="alice", password="s3cret too")}},
            ['peer."a:1": login alice, with other contents or another secret'],
        ),
        (
            "users",
            {"service_uids": frozenset((5,))},
            {"broker_uids": frozenset((6,))},
            ["service_users: - uid 5", "broker_users: + uid 6"],
        ),
        (
            "a_route",
            {"routes": routes(a="tcp://a")},
            {"routes": routes(a="tcp://b")},
            ["routes.a: tcp://a:9000 → tcp://b:9000"],
        ),
        ("a_route_that_goes", {"routes": routes(a="tcp://a")}, {}, ["routes.a: tcp://a:9000 → none"]),
        (
            "the_route_of_all_others",
            {},
            {"routes": Routes(routes={"*": (Choice(("tcp://{service}",)),)})},
            ['routes."*": none → tcp://{service}'],
        ),
        (
            "a_redirect_for_some",
            {},
            {"routes": Routes({"a": (Choice(("b",), (parse_condition("uid:7"),)), Choice(("c",)))})},
            ["redirect.a: none → b for uid:7; else c"],
        ),
    )
    def test_a_change_is_a_line(self, _: str, old: dict[str, Any], new: dict[str, Any], wanted: list[str]) -> None:
        self.assertEqual(lines(old, new), wanted)

    @each(
        (
            "a_password",
            parse_route("a", "tls://user:secret@h.example/a"),
            parse_route("a", "tls://user:hidden@h.example/a"),
            "routes.a: tls://user:***@h.example:9001/a, with another secret or another endpoint string",
        ),
        (
            "an_endpoint",
            Endpoint("tls:secret.example:443"),
            Endpoint("tls:hidden.example:443"),
            "routes.a: tls endpoint, with another secret or another endpoint string",
        ),
    )
    def test_what_is_not_shown_is_told_without_it(self, _: str, old: Any, new: Any, wanted: str) -> None:
        both = [{"routes": Routes(routes={"a": (Choice((target,)),)})} for target in (old, new)]
        self.assertEqual(lines(*both), [wanted])

    @each(
        ({"rundir": "/s"}, "rundir", "rundir: /r → /s (takes a new start)"),
        ({"group": "a", "gid": 5}, "group", "group: none → a (gid 5) (takes a new start)"),
        ({"dialects": ("native",)}, "dialects", "dialects: "),
        ({"parts": frozenset(("tcpd",))}, "parts", "parts: all → tcpd (takes a new start)"),
    )
    def test_what_takes_a_new_start_is_told_so(self, new: dict[str, Any], key: str, line: str) -> None:
        found = changes(OLD, dataclasses.replace(OLD, **new))
        self.assertEqual(found.needs_restart, (key,))
        self.assertTrue(found.lines[0].startswith(line) and found.lines[0].endswith("(takes a new start)"))

    def test_those_are_all_that_do(self) -> None:
        new = Settings(
            rundir="/s",
            group="a",
            gid=1,
            admin_group="b",
            admin_gid=2,
            dialects=("native",),
            handover=Mode.RELAYED,
            policy=policy("deny in any any", **{"in": True, "out": False}),
            routes=routes(a="tcp://a"),
            framings={"a": "raw"},
            limits=Limits(relays=5),
            tcpd=("tcp:1",),
            publish=(("a", "tcp:1"),),
            tlsd=("tcp:2",),
            publish_tls=(("a", "tcp:2"),),
            tls=TlsSettings(alpn=("h2",)),
            peers={"a:1": PeerSettings()},
            parts=frozenset(("broker",)),
            broker_uids=frozenset((1,)),
            service_uids=frozenset((2,)),
            audit_file="/a",
            audit_journal=True,
            audit_only_seconds=30,
        )
        found = changes(OLD, new)
        self.assertEqual(found.needs_restart, AT_START)
        self.assertEqual(len(found.lines), 23)


class Rules(SynchronousTestCase):
    @each(
        ("one_comes", ["deny in a any"], ["allow out b any", "deny in a any"], ["rules: + allow out b any"]),
        ("one_goes", ["deny in a any", "deny in b any"], ["deny in b any"], ["rules: - deny in a any"]),
        (
            "one_is_another",
            ["deny in a any"],
            ["deny in b any"],
            ["rules: - deny in a any", "rules: + deny in b any"],
        ),
        ("once_less", ["deny in a any"] * 3, ["deny in a any"] * 2, ["rules: - deny in a any"]),
        ("another_spelling", ["deny in * *"], ["deny  in any any"], []),
        (
            "another_order",
            ["deny in a any", "deny in b any", "deny in c any"],
            ["deny in a any", "deny in c any", "deny in b any"],
            ["rules: another order, from rule 2 on"],
        ),
        (
            "another_order_behind_a_new_one",
            ["deny in a any", "deny in b any"],
            ["deny in c any", "deny in b any", "deny in a any"],
            ["rules: + deny in c any", "rules: another order, from rule 2 on"],
        ),
    )
    def test_what_is_told_of_them(self, _: str, old: list[str], new: list[str], wanted: list[str]) -> None:
        self.assertEqual(lines({"policy": policy(*old)}, {"policy": policy(*new)}), wanted)

    few = st.lists(st.sampled_from([f"deny in {name} any" for name in "abcd"]), max_size=5)

    @PROPERTY
    @given(few, few)
    def test_something_is_told_where_they_differ_and_nothing_where_they_do_not(
        self, old: list[str], new: list[str]
    ) -> None:
        self.assertEqual(bool(lines({"policy": policy(*old)}, {"policy": policy(*new)})), old != new)


class Nothing(SynchronousTestCase):
    def test_the_same_settings_have_no_difference(self) -> None:
        self.assertEqual(changes(OLD, OLD), Changes((), ()))

    def test_nor_does_another_generation(self) -> None:
        new = dataclasses.replace(OLD, generation=2, config="b.toml", source=CommandLine())
        self.assertEqual(changes(OLD, new), Changes((), ()))


class Web(SynchronousTestCase):
    @each(
        ("a_listener", {}, {"webipcd": (WebListener("tcp:1", True),)}, ["listen.webipcd: + tls:tcp:1"]),
        ("a_host", {}, {"web": WebSettings((parse_place("h.example"),))}, ["web.hosts: + h.example"]),
        ("the_page", {}, {"web": WebSettings(page=True)}, ["web.page: false → true"]),
        (
            "a_file",
            {},
            {"web": WebSettings(token_file="/t", tokens=Tokens((("a", b"x"),)))},
            ["web.token_file: none → /t (1)"],
        ),
        (
            "what_stands_in_it",
            {"web": WebSettings(token_file="/t", tokens=Tokens((("a", b"x"),)))},
            {"web": WebSettings(token_file="/t", tokens=Tokens((("a", b"y"),)))},
            ["web.token_file: /t (1), with other tokens"],
        ),
    )
    def test_what_is_told(self, _: str, old: dict[str, Any], new: dict[str, Any], wanted: list[str]) -> None:
        self.assertEqual(lines(old, new), wanted)
