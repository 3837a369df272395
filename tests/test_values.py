"""plumberd.wiring.config.values: what an option and a key may say, valid, invalid and at the limit."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.accounts import Accounts
from plumberd.pure.dialects import DEFAULT, DIALECTS
from plumberd.pure.modes import GENERAL_WISHES
from plumberd.pure.policy.route import Endpoint, parse_redirect, parse_route
from plumberd.pure.tls import ClientCertificates
from plumberd.pure.uri import FRAMINGS
from plumberd.wiring.config import values
from plumberd.wiring.config.settings import PARTS, Group
from tests.tables import PROPERTY, each

USER, GROUP = pwd.getpwall()[-1], grp.getgrall()[-1]


class Accepted(SynchronousTestCase):
    def test_every_word_of_the_closed_lists(self) -> None:
        self.assertEqual([values.part(word) for word in PARTS], list(PARTS))
        self.assertEqual([values.handover(mode.value) for mode in GENERAL_WISHES], list(GENERAL_WISHES))
        self.assertEqual([values.framing(word) for word in FRAMINGS], list(FRAMINGS))
        self.assertEqual([values.verdict(word) for word in ("allow", "deny")], [True, False])

    def test_dialects_each_once_in_their_order(self) -> None:
        self.assertEqual(values.dialects(DEFAULT), DEFAULT)
        self.assertEqual(values.dialects(["libipc-zig", "native", "libipc-zig"]), ("libipc-zig", "native"))

    def test_names_of_this_machine(self) -> None:
        self.assertEqual(values.user(USER.pw_name, Accounts()), USER.pw_uid)
        self.assertEqual(values.user("4321", Accounts()), 4321)
        self.assertEqual(values.group(GROUP.gr_name, Accounts()), Group(GROUP.gr_name, GROUP.gr_gid))

    @each(("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("7d", 604800), ("604800s", 604800), ("1s", 1))
    def test_times(self, word: str, seconds: int) -> None:
        self.assertEqual(values.audit_only(word), seconds)

    @PROPERTY
    @given(st.integers(1, values.AUDIT_ONLY_SECONDS))
    def test_a_time_that_is_printed_reads_the_same(self, seconds: int) -> None:
        self.assertEqual(values.audit_only(values.show_time(seconds)), seconds)

    def test_limits(self) -> None:
        self.assertEqual((values.limit("relays", "7"), values.limit("connect_seconds", "0.5")), (7, 0.5))

    def test_short_and_whole_listeners(self) -> None:
        self.assertEqual(values.listener("9000"), "tcp:9000:interface=127.0.0.1")
        self.assertEqual(values.listener("unix:/a@b"), "unix:/a@b")

    def test_listeners_with_a_socket_of_their_own(self) -> None:
        for text in ("tcp:9001", "tcp6:9001", "unix:/a"):
            self.assertEqual(values.plain_listener(text), text)
        self.assertEqual(values.plain_listener("9001"), "tcp:9001:interface=127.0.0.1")

    def test_what_is_asked_of_callers(self) -> None:
        self.assertEqual([values.client_certificates(one.value) for one in ClientCertificates], [*ClientCertificates])

    def test_a_destination_is_found_where_it_was_written(self) -> None:
        self.assertEqual(values.peer_name("Auth.Example.COM:9001"), "Auth.Example.COM:9001")

    def test_targets(self) -> None:
        self.assertEqual(values.target(parse_redirect, "a", "b"), "b")
        self.assertEqual(values.target(parse_route, "*", "tls:{service}.x:443"), "tls:{service}.x:443")
        self.assertEqual(values.target(parse_route, "a", "tls:h.example:443"), Endpoint("tls:h.example:443"))

    def test_a_target_with_a_password_is_told_from_one_without(self) -> None:
        texts = ("tls://user:secret@h.example/a", "tls://user@h.example/a", "tls:h.example:443")
        found = [values.has_password(values.target(parse_route, "a", text)) for text in texts]
        self.assertEqual(found, [True, False, False])


class Mistaken(SynchronousTestCase):
    @each(
        ("path", values.path, "", "'': wanted a path"),
        ("nul", values.path, "a\0", "'a\\x00': wanted a path"),
        (
            "plain_listener",
            values.plain_listener,
            "haproxy:tcp:9001",
            "'haproxy:…': wanted PORT, HOST:PORT, or an endpoint of tcp, tcp6, unix or systemd",
        ),
        ("client_certificates", values.client_certificates, "", "'': wanted none, optional, required"),
        ("peer_name", values.peer_name, "a.example", "wanted HOST:PORT (IPv6 in brackets)"),
        ("part", values.part, "webipc", f"'webipc': wanted {' or '.join(PARTS)}"),
        ("verdict", values.verdict, "Allow", "'Allow': wanted allow or deny"),
        ("handover", values.handover, "framed", "'framed': wanted auto|direct|locked|relayed"),
        ("framing", values.framing, "zig", f"'zig': wanted one of {', '.join(FRAMINGS)}"),
        ("dialect", values.dialects, ["native", "x"], f"'x': wanted some of {','.join(DIALECTS)}"),
        ("no_dialect", values.dialects, [], f"'': wanted some of {','.join(DIALECTS)}"),
        (
            "two_with_one_socket",
            values.dialects,
            ["libipc-2020", "libipc-2023"],
            "'libipc-2020,libipc-2023': wanted libipc-2020 or libipc-2023: both have the same socket",
        ),
        (
            "user",
            lambda word: values.user(word, Accounts()),
            "no-one",
            "'no-one': wanted the name of a user that exists, or a uid",
        ),
        (
            "group",
            lambda word: values.group(word, Accounts()),
            "no-one",
            "'no-one': wanted the name of a group that exists",
        ),
    )
    def test_a_wrong_value_says_what_is_wanted(
        self, _: str, parse: Callable[[Any], object], value: Any, wanted: str
    ) -> None:
        with self.assertRaises(ValueError) as caught:
            parse(value)
        self.assertEqual(str(caught.exception), wanted)

    @each(
        ("8d",),
        ("604801s",),
        ("0s",),
        ("10",),
        ("s",),
        ("1w",),
        ("-1h",),
        ("1.5h",),
        ("1 h",),
        ("",),
        ("9" * 99 + "s",),
    )
    def test_what_is_no_time(self, word: str) -> None:
        with self.assertRaises(ValueError) as caught:
            values.audit_only(word)
        self.assertIn("wanted a time such as 30s, 10m, 2h or 1d, at most 7d", str(caught.exception))

    @each(
        ("no_such_endpoint", "nonsense:h.example:80", "no client endpoint: Unknown endpoint type: 'nonsense'"),
        ("a_secret_in_one", "tls:user:secret@h.example:443", "no client endpoint: "),
        ("a_secret_in_the_ports_place", "tls:h.example:secret@x", "no client endpoint: ValueError"),
    )
    def test_a_target_that_makes_no_endpoint(self, _: str, text: str, wanted: str) -> None:
        with self.assertRaises(ValueError) as caught:
            values.target(parse_route, "a", text)
        self.assertTrue(str(caught.exception).startswith(wanted), str(caught.exception))
        self.assertNotIn("secret", str(caught.exception))

    def test_a_uri_in_a_listeners_place_is_not_repeated(self) -> None:
        with self.assertRaises(ValueError) as caught:
            values.listener("tls://user:secret@h.example:9000")
        self.assertEqual(
            str(caught.exception),
            "a string that may hold a secret: wanted PORT, HOST:PORT or a Twisted server endpoint string",
        )
