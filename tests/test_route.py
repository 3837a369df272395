"""plumberd.pure.policy.route: redirects, routes, and where they lead."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.names import is_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.route import (
    CHAIN,
    Endpoint,
    RouteError,
    Routes,
    Target,
    Way,
    check_loops,
    destination,
    find_way,
    parse_redirect,
    parse_route,
    parse_target_uri,
)
from plumberd.pure.policy.rule import Destination
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import Uri, parse_uri
from tests.tables import PROPERTY, each

NOTHING = Routes()
WEB = Endpoint("tls:example.com:443")


def chain(length: int) -> dict[str, Target]:
    """Return *length* redirects, each to the next name."""
    return {f"s{n}": f"s{n + 1}" for n in range(length)}


class Found(SynchronousTestCase):
    @each(
        ("local", b"", NOTHING, "unix:///pong"),
        ("pair", b"pong tls://a.example/pong", NOTHING, "tls://a.example:9001/pong"),
        ("pair_of_another", b"audio tls://a.example/pong", NOTHING, "unix:///pong"),
        ("pair_to_a_local_one", b"pong unix:///pong2", NOTHING, "unix:///pong2"),
        ("pair_by_name", b"pong pong2", NOTHING, "unix:///pong2"),
        ("route", b"", Routes({}, {"pong": Uri("tls", "r", 1, "x")}), "tls://r:1/x"),
        ("route_for_all", b"", Routes({}, {"*": "tls://g/{service}"}), "tls://g:9001/pong"),
        ("route_for_all_without_a_place", b"", Routes({}, {"*": Uri("tls", "g", 1)}), "tls://g:1"),
        ("its_own_route_first", b"", Routes({}, {"*": Uri("tls", "g", 1), "pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("pair_before_route", b"pong tcp://a:1", Routes({}, {"pong": Uri("tls", "r", 1)}), "tcp://a:1"),
        ("redirect_before_pair", b"pong tcp://a:1", Routes({"pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("redirect_to_a_name", b"", Routes({"pong": "next"}), "unix:///next"),
        ("redirect_twice", b"", Routes({"pong": "next", "next": "last"}), "unix:///last"),
        ("redirect_then_pair", b"next tcp://a:1;pong tcp://b:1", Routes({"pong": "next"}), "tcp://a:1"),
        ("redirect_then_route", b"", Routes({"pong": "next"}, {"next": Uri("tls", "r", 1)}), "tls://r:1"),
        ("redirect_then_route_for_all", b"", Routes({"pong": "next"}, {"*": "tls://{service}/x"}), "tls://next:9001/x"),
        ("redirect_of_another", b"", Routes({"audio": "next"}), "unix:///pong"),
        (
            "redirect_to_its_own_local_one",
            b"pong tcp://a:1",
            Routes({"pong": Uri("unix", "", 0, "pong")}),
            "unix:///pong",
        ),
    )
    def test_the_first_that_says_something_decides(self, _: str, pairs: bytes, routes: Routes, wanted: str) -> None:
        self.assertEqual(find_way("pong", Pairs(pairs), routes).target, parse_uri(wanted))

    def test_the_documents_third_line_leads_where_it_says(self) -> None:
        way = find_way("authd", Pairs(b"authd tls://user@passwd:example.com:9000/authd"), NOTHING)
        self.assertEqual(way.target, Uri("tls", "example.com", 9000, "authd", "user", "passwd"))

    def test_an_endpoint_is_a_way(self) -> None:
        self.assertEqual(find_way("web", Pairs(), Routes({}, {"web": WEB})).target, WEB)
        self.assertEqual(find_way("web", Pairs(b"web tcp://a:1"), Routes({"web": WEB})).target, WEB)
        self.assertEqual(
            find_way("web", Pairs(), Routes({}, {"*": "tls:{service}.example:443"})).target,
            Endpoint("tls:web.example:443"),
        )

    def test_the_steps_tell_how_it_came_there_without_secrets(self) -> None:
        way = find_way("pong", Pairs(b"last tls://u:hunter2@h/x"), Routes({"pong": "next", "next": "last"}))
        self.assertEqual(
            way.steps,
            ("redirect pong to next", "redirect next to last", "the lookup's own route tls://u:***@h:9001/x"),
        )
        self.assertEqual(
            find_way("pong", Pairs(), Routes({}, {"*": "tls://u:hunter2@{service}"})).steps,
            ("route * = tls://u:***@pong:9001",),
        )
        self.assertEqual(find_way("web", Pairs(), Routes({"web": WEB})).steps, ("redirect web to tls endpoint",))
        self.assertEqual(find_way("pong", Pairs(), NOTHING).steps, ("local service pong",))

    def test_eight_redirects_are_followed_and_a_ninth_is_not(self) -> None:
        self.assertEqual(find_way("s0", Pairs(), Routes(chain(CHAIN))).target, Uri("unix", "", 0, "s8"))
        with self.assertRaises(Refused) as caught:
            find_way("s0", Pairs(), Routes(chain(CHAIN + 1)))
        self.assertEqual(
            (caught.exception.word, caught.exception.reason),
            (Refusal.BAD_REQUEST, "more than 8 redirects, beginning with s0"),
        )

    @each(
        ("no_uri", b"pong not/a/uri", Refusal.BAD_REQUEST),
        ("unknown_scheme", b"pong ssl://h", Refusal.BAD_REQUEST),
        ("two_words", b"pong tcp://h:1 x", Refusal.BAD_REQUEST),
        ("port", b"pong tcp://h:99999", Refusal.BAD_REQUEST),
        ("not_utf_8", b"pong tcp://\xff", Refusal.BAD_REQUEST),
        ("endpoint", b"pong tls:example.com:443", Refusal.BAD_REQUEST),
        ("file", b"pong ssl:h:1:privateKey=/etc/shadow", Refusal.BAD_REQUEST),
        ("credentials_over_plain_tcp", b"pong tcp://u:p@h", Refusal.BAD_REQUEST),
        ("reserved_far_service", b"pong tls://h/plumberd", Refusal.DENIED),
        ("reserved_local_service", b"pong unix:///ipc", Refusal.DENIED),
        ("reserved_by_name", b"pong tcp", Refusal.DENIED),
        ("lock", b"pong unix://x.lock", Refusal.DENIED),
    )
    def test_a_pair_that_leads_nowhere_is_refused(self, _: str, pairs: bytes, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            find_way("pong", Pairs(pairs), NOTHING)
        self.assertEqual(caught.exception.word, word)

    def test_a_bad_pair_of_another_service_is_not_our_business(self) -> None:
        self.assertEqual(find_way("pong", Pairs(b"audio ://;x tcp://h:0"), NOTHING).target, Uri("unix", "", 0, "pong"))

    @each(
        ("a..b", "tls://{service}.a/x"),
        ("a-", "tls://{service}.a/x"),
        ("_.", "tls://{service}.a/x"),
        ("1.2", "tls://{service}/x"),
        ("1.2", "tcp:{service}:80"),
    )
    def test_a_name_that_does_not_fit_into_the_route_for_all_is_a_bad_request(self, name: str, template: str) -> None:
        with self.assertRaises(Refused) as caught:
            find_way(name, Pairs(), Routes({}, {"*": parse_route("*", template)}))
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertIn(repr(name), caught.exception.reason)

    @PROPERTY
    @given(
        st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
        st.lists(st.binary(max_size=12) | st.sampled_from((b"pong", b" ", b";", b"tls://h")), max_size=5),
        st.sampled_from(
            ("tls://{service}", "tls://{service}.a:1/x", "tls://g/{service}", "tls:{service}:1", "tcp:{service}:1")
        ),
        st.booleans(),
    )
    def test_whatever_a_client_asks_for_there_is_a_way_or_a_refusal(
        self, name: str, pairs: list[bytes], template: str, own: bool
    ) -> None:
        value = (name.encode() + b" " if own else b"") + b"".join(pairs)
        try:
            way = find_way(name, Pairs(value), Routes({}, {"*": parse_route("*", template)}))
        except Refused:
            return
        self.assertIsInstance(way, Way)
        if isinstance(way.target, Endpoint):
            self.assertEqual(way.target.description, f"tls:{name}:1")


class Configured(SynchronousTestCase):
    @each(
        ("name", "pong2", Uri("unix", "", 0, "pong2")),
        ("uri", "tls://h/pong", Uri("tls", "h", 9001, "pong")),
        ("local", "unix:///pong2", Uri("unix", "", 0, "pong2")),
        ("plain_endpoint_is_the_plain_uri", "tcp:h:80", Uri("tcp", "h", 80)),
        ("plain_endpoint_of_ipv6", "tcp:\\:\\:1:80", Uri("tcp", "::1", 80)),
        ("tls_endpoint", "tls:example.com:443", Endpoint("tls:example.com:443")),
        ("endpoint_with_options", "tcp:h:80:timeout=5", Endpoint("tcp:h:80:timeout=5")),
        ("endpoint_with_a_third_word", "tcp:h:80:5", Endpoint("tcp:h:80:5")),
        ("endpoint_without_port", "tcp:h", Endpoint("tcp:h")),
        ("named_endpoint", "tcp:host=h:port=80", Endpoint("tcp:host=h:port=80")),
        ("unix_endpoint", "unix:/run/x.sock", Endpoint("unix:/run/x.sock")),
    )
    def test_a_route_is_a_uri_or_an_endpoint(self, _: str, text: str, target: Target) -> None:
        self.assertEqual(parse_route("pong", text), target)

    @each(
        ("name", "nextversion-authd", "nextversion-authd"),
        ("uri", "tls://h/pong", Uri("tls", "h", 9001, "pong")),
        ("local", "unix:///pong2", Uri("unix", "", 0, "pong2")),
        ("endpoint", "tls:example.com:443", WEB),
    )
    def test_a_redirect_may_be_a_name_that_is_looked_up_again(self, _: str, text: str, target: Target) -> None:
        self.assertEqual(parse_redirect("authd", text), target)

    @each(
        ("uri", "tls://gateway.example.com/{service}"),
        ("host", "tls://{service}.example.com/x"),
        ("endpoint", "tls:{service}.example.com:443"),
        ("name", "{service}"),
    )
    def test_the_route_for_all_keeps_the_service_s_place(self, _: str, text: str) -> None:
        self.assertEqual(parse_route("*", text), text)

    @each(
        ("no_name", "", "tls://h", "is no name of a service"),
        ("path", "../x", "tls://h", "is no name of a service"),
        ("the_broker", "plumberd", "tls://h", "reserved"),
        ("scheme", "tcp", "tls://h", "reserved"),
        ("nothing", "pong", "", "wanted a URI, or a Twisted client endpoint string"),
        ("no_endpoint", "pong", "a/b", "wanted a URI, or a Twisted client endpoint string"),
        ("blank_scheme", "pong", " :x", "wanted a URI, or a Twisted client endpoint string"),
        ("bad_uri", "pong", "tls://h:0", "the port"),
        ("bad_plain_endpoint", "pong", "tcp:h:99999", "the port"),
        ("unknown_scheme", "pong", "http://h", "scheme 'http' is not known"),
        ("reserved_far", "pong", "tls://h/tcp", "reserved"),
        ("reserved_local", "pong", "unix:///ipc", "reserved"),
        ("reserved_name", "pong", "network", "reserved"),
        ("credentials", "pong", "tcp://u:hunter2@h", "not sent over plain tcp"),
        ("two_passwords", "pong", "tls://u:hunter2@p:h:1", "two passwords"),
    )
    def test_what_makes_no_sense_is_refused_by_routes_and_redirects_alike(
        self, _: str, name: str, text: str, reason: str
    ) -> None:
        for parse in (parse_route, parse_redirect):
            with self.assertRaises(RouteError) as caught:
                parse(name, text)
            self.assertIn(reason, str(caught.exception))
            self.assertNotIn("hunter2", str(caught.exception))

    def test_a_route_for_every_service_holds_no_password(self) -> None:
        with self.assertRaises(RouteError) as caught:
            parse_route("*", "tls://u:hunter2@h/{service}")
        self.assertEqual(str(caught.exception), "a route for every service cannot hold a password")

    def test_the_service_s_place_stands_in_the_route_for_all_only(self) -> None:
        with self.assertRaises(RouteError) as caught:
            parse_route("pong", "tls://h/{service}")
        self.assertEqual(str(caught.exception), "{service} stands only in the route *")
        with self.assertRaises(RouteError):
            parse_redirect("*", "tls://h")
        with self.assertRaises(RouteError):
            parse_route("*", "tls://h:0/{service}")


class Loops(SynchronousTestCase):
    @each(
        ("itself", {"a": "a"}, "a loop of redirects: a → a"),
        ("two", {"a": "b", "b": "a"}, "a loop of redirects: a → b → a"),
        ("three", {"a": "b", "b": "c", "c": "a"}, "a loop of redirects: a → b → c → a"),
        ("behind_a_way_in", {"x": "a", "a": "b", "b": "a"}, "a loop of redirects: x → a → b → a"),
    )
    def test_a_loop_names_its_members(self, _: str, redirects: dict[str, Target], message: str) -> None:
        with self.assertRaises(RouteError) as caught:
            check_loops(redirects)
        self.assertEqual(str(caught.exception), message)

    def test_a_chain_of_nine_is_too_long_and_one_of_eight_is_not(self) -> None:
        check_loops(chain(CHAIN))
        with self.assertRaises(RouteError) as caught:
            check_loops(chain(CHAIN + 1))
        self.assertIn("a chain of 9 redirects, at most 8: s0 → s1", str(caught.exception))

    @PROPERTY
    @given(st.dictionaries(*[st.sampled_from([f"s{n}" for n in range(12)])] * 2, max_size=12))
    def test_what_is_checked_is_what_lookups_meet(self, redirects: dict[str, Target]) -> None:
        """Redirects pass the check if and only if every lookup finds a way through them."""
        refused = False
        for start in redirects:
            try:
                find_way(start, Pairs(), Routes(redirects))
            except Refused:
                refused = True
        if refused:
            with self.assertRaises(RouteError):
                check_loops(redirects)
        else:
            check_loops(redirects)


class Destinations(SynchronousTestCase):
    @each(
        ("tls://user:p@a.example:1/x", Destination("tls", "a.example", None, 1)),
        ("tcp://192.0.2.7:80", Destination("tcp", None, (ipaddress.ip_address("192.0.2.7"),), 80)),
        ("tcp://[2001:db8::7]", Destination("tcp", None, (ipaddress.ip_address("2001:db8::7"),), 9000)),
        ("tcp://[::ffff:192.0.2.7]", Destination("tcp", None, (ipaddress.ip_address("192.0.2.7"),), 9000)),
        ("wss://a.example", Destination("wss", "a.example", None, 443)),
        ("unix:///pong", Destination("unix", "pong", None, None)),
    )
    def test_rules_see_of_a_uri_its_scheme_host_and_port(self, text: str, wanted: Destination) -> None:
        self.assertEqual(destination(parse_uri(text)), wanted)

    @each(
        ("tls:Example.com:443", Destination("tls", "example.com", None, 443)),
        ("tcp:host=a.example:port=80:timeout=3", Destination("tcp", "a.example", None, 80)),
        ("tcp:host=a.example:80", Destination("tcp", "a.example", None, 80)),
        ("tcp:a.example:port=80", Destination("tcp", "a.example", None, 80)),
        ("tcp:port=80:host=192.0.2.7", Destination("tcp", None, (ipaddress.ip_address("192.0.2.7"),), 80)),
        ("tls:\\:\\:1:443", Destination("tls", None, (ipaddress.ip_address("::1"),), 443)),
        ("tls:host=2001\\:db8\\:\\:7:port=1", Destination("tls", None, (ipaddress.ip_address("2001:db8::7"),), 1)),
        ("tls:\\:\\:ffff\\:192.0.2.7:443", Destination("tls", None, (ipaddress.ip_address("192.0.2.7"),), 443)),
        ("TLS:a.example:443", Destination("tls", "a.example", None, 443)),
        ("tls:a.example:https", Destination("tls", None, None, None)),
        ("tls:a.example", Destination("tls", None, None, None)),
    )
    def test_rules_see_of_an_endpoint_its_first_word_and_host_and_port_where_they_are_told(
        self, text: str, wanted: Destination
    ) -> None:
        self.assertEqual(Endpoint(text).destination(), wanted)

    @each(
        ("unix:/run/x.sock", Destination("unix", None, None, None, True)),
        ("unix:path=/run/x.sock", Destination("unix", None, None, None, True)),
        ("systemd:domain=INET", Destination("systemd", None, None, None, True)),
        ("SSL:a.example:443", Destination("ssl", "a.example", None, 443, True)),
        ("tls:a.example:443:certificate=/c.pem", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:30::/c.pem", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:endpoint=unix\\:/x", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:privateKey=/k.pem", Destination("tls", "a.example", None, 443, True)),
    )
    def test_an_endpoint_that_does_what_a_client_could_not_is_told_apart(self, text: str, wanted: Destination) -> None:
        self.assertEqual(Endpoint(text).destination(), wanted)

    def test_an_endpoint_shows_nothing_but_its_first_word(self) -> None:
        endpoint = Endpoint("tls:h:443:password=hunter2")
        self.assertEqual(str(endpoint), "tls endpoint")
        self.assertNotIn("hunter2", repr(endpoint))

    @each(
        ("tls://h/pong", Uri("tls", "h", 9001, "pong")),
        ("pong", Uri("unix", "", 0, "pong")),
        ("tls://u:p@h", Uri("tls", "h", 9001, None, "u", "p")),
    )
    def test_a_client_s_uri_is_read(self, text: str, wanted: Uri) -> None:
        self.assertEqual(parse_target_uri(text), wanted)
        self.assertTrue(wanted.service is None or is_service(wanted.service))
