"""plumberd.pure.policy.route: redirects, routes, and where they lead."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.names import is_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import (
    ALTERNATIVES,
    CHAIN,
    Choice,
    Endpoint,
    RouteError,
    Routes,
    Step,
    Target,
    Way,
    check_loops,
    destination,
    find_way,
    parse_redirect,
    parse_route,
    parse_target_uri,
)
from plumberd.pure.policy.subject import ANYBODY, UNMAPPED, Condition, Standing, Subject
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import Uri, parse_uri
from tests.tables import PROPERTY, each

NOTHING = Routes()
WEB = Endpoint("tls:example.com:443")
BETA = Condition("group", "beta", 50)
ALICE = Condition("user", "alice", 1000)
CI = Condition("unit", "ci.service")
GATEWAY = Condition("cert", "g.example")
LOCALS = {
    "nobody": ANYBODY,
    "alice": Subject(uid=1000, gids=frozenset((100,)), cgroup="/user.slice"),
    "alice_of_beta": Subject(uid=1000, gids=frozenset((50,)), cgroup="/user.slice"),
    "ci": Subject(Standing.CONFINED, 1001, frozenset((100,)), "/system.slice/ci.service"),
    "ci_untold": Subject(Standing.CONFINED, 1001, frozenset((100,)), None),
    "unmapped": Subject(uid=UNMAPPED, gids=frozenset((UNMAPPED,)), cgroup="/"),
}
CALLER = Subject(Standing.REMOTE, words=frozenset(("cert:g.example",)))


def to(*targets: Target, whom: Condition | None = None) -> Choice:
    """Return one choice."""
    return Choice(targets, () if whom is None else (whom,))


def always(names: Mapping[str, Target]) -> dict[str, tuple[Choice, ...]]:
    """Return a table in which each name leads to one place, whoever asks."""
    return {name: (to(target),) for name, target in names.items()}


def leading(redirects: Mapping[str, Target] | None = None, routes: Mapping[str, Target] | None = None) -> Routes:
    """Return redirects and routes that are for everybody."""
    return Routes(always(redirects or {}), always(routes or {}))


def local(name: str) -> Uri:
    return Uri("unix", "", 0, name)


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
        ("route", b"", leading({}, {"pong": Uri("tls", "r", 1, "x")}), "tls://r:1/x"),
        ("route_for_all", b"", leading({}, {"*": "tls://g/{service}"}), "tls://g:9001/pong"),
        ("route_for_all_without_a_place", b"", leading({}, {"*": Uri("tls", "g", 1)}), "tls://g:1"),
        ("its_own_route_first", b"", leading({}, {"*": Uri("tls", "g", 1), "pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("pair_before_route", b"pong tcp://a:1", leading({}, {"pong": Uri("tls", "r", 1)}), "tcp://a:1"),
        ("redirect_before_pair", b"pong tcp://a:1", leading({"pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("redirect_to_a_name", b"", leading({"pong": "next"}), "unix:///next"),
        ("redirect_twice", b"", leading({"pong": "next", "next": "last"}), "unix:///last"),
        ("redirect_then_pair", b"next tcp://a:1;pong tcp://b:1", leading({"pong": "next"}), "tcp://a:1"),
        ("redirect_then_route", b"", leading({"pong": "next"}, {"next": Uri("tls", "r", 1)}), "tls://r:1"),
        (
            "redirect_then_route_for_all",
            b"",
            leading({"pong": "next"}, {"*": "tls://{service}/x"}),
            "tls://next:9001/x",
        ),
        ("redirect_of_another", b"", leading({"audio": "next"}), "unix:///pong"),
        (
            "redirect_to_its_own_local_one",
            b"pong tcp://a:1",
            leading({"pong": Uri("unix", "", 0, "pong")}),
            "unix:///pong",
        ),
    )
    def test_the_first_that_says_something_decides(self, _: str, pairs: bytes, routes: Routes, wanted: str) -> None:
        self.assertEqual(find_way("pong", Pairs(pairs), routes).target, parse_uri(wanted))

    def test_the_documents_third_line_leads_where_it_says(self) -> None:
        way = find_way("authd", Pairs(b"authd tls://user@passwd:example.com:9000/authd"), NOTHING)
        self.assertEqual(way.target, Uri("tls", "example.com", 9000, "authd", "user", "passwd"))

    def test_an_endpoint_is_a_way(self) -> None:
        self.assertEqual(find_way("web", Pairs(), leading({}, {"web": WEB})).target, WEB)
        self.assertEqual(find_way("web", Pairs(b"web tcp://a:1"), leading({"web": WEB})).target, WEB)
        self.assertEqual(
            find_way("web", Pairs(), leading({}, {"*": "tls:{service}.example:443"})).target,
            Endpoint("tls:web.example:443", chosen=True),
        )

    @each(
        ("local", b"", NOTHING, ("route: the local service pong",)),
        (
            "redirects_and_a_pair",
            b"last tls://u:hunter2@h/x",
            leading({"pong": "next", "next": "last"}),
            ("redirect: pong to next", "redirect: next to last", "route: the lookup's own: tls://u:***@h:9001/x"),
        ),
        (
            "route_for_all",
            b"",
            leading({}, {"*": "tls://u:hunter2@h/{service}"}),
            ("route: * = tls://u:***@h:9001/pong",),
        ),
        ("route", b"", leading({}, {"pong": Uri("tls", "r", 1)}), ("route: pong = tls://r:1",)),
        (
            "redirect_and_route",
            b"",
            leading({"pong": "next"}, {"next": WEB}),
            ("redirect: pong to next", "route: next = tls endpoint"),
        ),
        ("redirect_to_a_uri", b"", leading({"pong": Uri("tls", "r", 1)}), ("redirect: pong to tls://r:1",)),
        (
            "alternatives",
            b"",
            Routes({}, {"pong": (to(Uri("tls", "a", 1), WEB),)}),
            ("route: pong = tls://a:1 or tls endpoint",),
        ),
        (
            "for_somebody",
            b"",
            Routes({"pong": (to("next", whom=ALICE),)}, {"next": (to(local("x"), whom=BETA),)}),
            ("redirect: pong to next for user:alice", "route: next = unix:///x for group:beta"),
        ),
        (
            "ends_here_for_somebody",
            b"",
            Routes({"pong": (to("pong", whom=ALICE), to("next"))}),
            ("route: the local service pong",),
        ),
    )
    def test_the_steps_tell_how_it_came_there_without_secrets(
        self, _: str, pairs: bytes, routes: Routes, steps: tuple[str, ...]
    ) -> None:
        way = find_way("pong", Pairs(pairs), routes, LOCALS["alice_of_beta"])
        self.assertEqual(way.steps, tuple(Step(*step.split(": ", 1)) for step in steps))

    def test_eight_redirects_are_followed_and_a_ninth_is_not(self) -> None:
        self.assertEqual(find_way("s0", Pairs(), leading(chain(CHAIN))).target, local("s8"))
        with self.assertRaises(Refused) as caught:
            find_way("s0", Pairs(), leading(chain(CHAIN + 1)))
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
        ("credentials_over_udp", b"pong udp://u:p@h/x", Refusal.BAD_REQUEST),
        ("credentials_over_ws", b"pong ws://u:p@h/x", Refusal.BAD_REQUEST),
        ("a_user_alone_over_ws", b"pong ws://u@h/x", Refusal.BAD_REQUEST),
        ("credentials_for_no_service", b"pong tls://u:p@h", Refusal.BAD_REQUEST),
        ("a_password_without_a_user", b"pong tls://:p@h/x", Refusal.BAD_REQUEST),
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
            find_way(name, Pairs(), leading({}, {"*": parse_route("*", template)}))
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
            way = find_way(name, Pairs(value), leading({}, {"*": parse_route("*", template)}))
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
        ("too_long_for_a_name", "pong", "x" * 65, "wanted a URI, or a Twisted client endpoint string"),
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
        ("behind_a_way_in", {"x": "a", "a": "b", "b": "a"}, "a loop of redirects: a → b → a"),
    )
    def test_a_loop_names_its_members(self, _: str, redirects: dict[str, Target], message: str) -> None:
        with self.assertRaises(RouteError) as caught:
            check_loops(always(redirects))
        self.assertEqual(str(caught.exception), message)

    @each(
        ("of_one_condition", {"a": (to("b", whom=ALICE),), "b": (to("a", whom=ALICE),)}),
        ("of_two_conditions_that_nobody_meets_today", {"a": (to("b", whom=ALICE),), "b": (to("a", whom=BETA),)}),
        ("by_a_second_choice", {"a": (to(WEB, whom=BETA), to("b")), "b": (to("a", whom=ALICE), to("c"))}),
        ("by_the_last_choice", {"a": (to("x", whom=ALICE), to("b")), "b": (to("a"),)}),
    )
    def test_a_loop_through_conditions_is_one(self, _: str, redirects: dict[str, tuple[Choice, ...]]) -> None:
        with self.assertRaises(RouteError) as caught:
            check_loops(redirects)
        self.assertEqual(str(caught.exception), "a loop of redirects: a → b → a")

    @each(
        ("none", {}),
        ("an_own_name_that_ends_redirecting", {"a": (to("a", whom=ALICE), to("b"))}),
        ("two_own_names", {"a": (to("a", whom=ALICE), to("b")), "b": (to("b", whom=BETA), to("c"))}),
        ("the_own_local_service", {"a": (to(local("a")),)}),
        ("two_ways_to_one_name", {"a": (to("b", whom=ALICE), to("c")), "b": (to("d"),), "c": (to("d"),)}),
        ("an_own_name_that_is_for_some", {"a": (to("a", whom=ALICE),)}),
        ("targets_that_are_no_names", {"a": (to(WEB, Uri("tls", "a", 1)),)}),
    )
    def test_what_ends_is_none(self, _: str, redirects: dict[str, tuple[Choice, ...]]) -> None:
        check_loops(redirects)
        for name in redirects:
            for subject in LOCALS.values():
                self.assertTrue(find_way(name, Pairs(), Routes(redirects), subject).targets)

    def test_a_chain_of_nine_is_too_long_and_one_of_eight_is_not(self) -> None:
        check_loops(always(chain(CHAIN)))
        with self.assertRaises(RouteError) as caught:
            check_loops(always(chain(CHAIN + 1)))
        self.assertIn("a chain of 9 redirects, at most 8: s0 → s1", str(caught.exception))

    def test_a_chain_is_found_wherever_the_table_begins(self) -> None:
        for length, refused in ((CHAIN, False), (CHAIN + 1, True)):
            names = list(always(chain(length)).items())
            for turned in (names[::-1], names[4:] + names[:4], names[1::2] + names[::2]):
                try:
                    check_loops(dict(turned))
                except RouteError as e:
                    self.assertTrue(refused)
                    self.assertIn("a chain of 9 redirects, at most 8: s", str(e))
                else:
                    self.assertFalse(refused)

    def test_a_chain_through_conditions_counts_whole(self) -> None:
        redirects = {f"s{n}": (to(f"s{n + 1}", whom=ALICE), to(local("x"))) for n in range(CHAIN + 1)}
        with self.assertRaises(RouteError):
            check_loops(redirects)

    @PROPERTY
    @given(st.dictionaries(*[st.sampled_from([f"s{n}" for n in range(12)])] * 2, max_size=12))
    def test_what_is_checked_is_what_lookups_meet(self, redirects: dict[str, str]) -> None:
        """Redirects pass the check if and only if every lookup finds a way through them."""
        to_others = {name: target for name, target in redirects.items() if target != name}
        refused = False
        for start in to_others:
            try:
                find_way(start, Pairs(), leading(to_others))
            except Refused:
                refused = True
        if refused:
            with self.assertRaises(RouteError):
                check_loops(always(to_others))
        else:
            check_loops(always(to_others))

    @PROPERTY
    @given(
        st.dictionaries(
            st.sampled_from([f"s{n}" for n in range(10)]),
            st.lists(
                st.tuples(st.sampled_from([f"s{n}" for n in range(14)]), st.sampled_from((None, ALICE, BETA, CI))),
                min_size=1,
                max_size=3,
            ),
            max_size=8,
        )
    )
    def test_redirects_that_pass_the_check_lead_everybody_somewhere(
        self, drawn: dict[str, list[tuple[str, Condition | None]]]
    ) -> None:
        redirects = {name: tuple(to(target, whom=whom) for target, whom in choices) for name, choices in drawn.items()}
        try:
            check_loops(redirects)
        except RouteError:
            return
        for name in redirects:
            for subject in (*LOCALS.values(), CALLER):
                self.assertIsNotNone(find_way(name, Pairs(), Routes(redirects), subject).local_service)


class Choices(SynchronousTestCase):
    """Where a name leads may depend on who asks."""

    AUTHD = Routes({"authd": (to("authd-next", whom=BETA), to("authd-old"))})

    @each(
        ("nobody", "authd-old"),
        ("alice", "authd-old"),
        ("alice_of_beta", "authd-next"),
        ("ci", "authd-old"),
        ("unmapped", "authd-old"),
    )
    def test_the_first_choice_whose_conditions_hold_counts(self, who: str, wanted: str) -> None:
        self.assertEqual(find_way("authd", Pairs(), self.AUTHD, LOCALS[who]).target, local(wanted))

    @each(
        ("alice", "tls://a:1"),
        ("alice_of_beta", "tls://both:1"),
        ("ci", "tls://ci:1"),
        ("ci_untold", "unix:///web"),
        ("unmapped", "unix:///web"),
        ("nobody", "unix:///web"),
    )
    def test_where_no_choice_is_for_him_there_is_none(self, who: str, wanted: str) -> None:
        routes = Routes(
            {},
            {
                "web": (
                    Choice((Uri("tls", "both", 1),), (ALICE, BETA)),
                    to(Uri("tls", "a", 1), whom=ALICE),
                    to(Uri("tls", "ci", 1), whom=CI),
                )
            },
        )
        self.assertEqual(find_way("web", Pairs(), routes, LOCALS[who]).target, parse_uri(wanted))

    def test_a_route_that_is_not_for_him_leaves_the_route_for_all(self) -> None:
        routes = Routes({}, {"web": (to(WEB, whom=ALICE),), "*": (to("tls://g/{service}"),)})
        self.assertEqual(find_way("web", Pairs(), routes, LOCALS["alice"]).target, WEB)
        self.assertEqual(find_way("web", Pairs(), routes, LOCALS["ci"]).target, Uri("tls", "g", 9001, "web"))

    def test_the_route_for_all_may_be_for_some(self) -> None:
        routes = Routes({}, {"*": (to("tls://b/{service}", whom=BETA), to("tls://g/{service}", whom=ALICE))})
        for who, wanted in (
            ("alice_of_beta", "tls://b/web"),
            ("alice", "tls://g/web"),
            ("ci", "unix:///web"),
        ):
            self.assertEqual(find_way("web", Pairs(), routes, LOCALS[who]).target, parse_uri(wanted))

    def test_a_redirect_to_the_own_name_ends_the_redirecting_for_him(self) -> None:
        routes = Routes({"authd": (to("authd", whom=ALICE), to("authd-next"))}, always({"authd": Uri("tls", "r", 1)}))
        self.assertEqual(find_way("authd", Pairs(), routes, LOCALS["alice"]).target, Uri("tls", "r", 1))
        self.assertEqual(find_way("authd", Pairs(), routes, LOCALS["ci"]).target, local("authd-next"))
        own = Pairs(b"authd tcp://a:1")
        self.assertEqual(find_way("authd", own, routes, LOCALS["alice"]).target, Uri("tcp", "a", 1))

    def test_a_pair_stands_behind_a_redirect_and_in_front_of_a_route_whoever_asks(self) -> None:
        routes = Routes({"web": (to(WEB, whom=BETA),)}, {"web": (to(Uri("tls", "r", 1), whom=ALICE),)})
        pairs = Pairs(b"web tcp://a:1")
        self.assertEqual(find_way("web", pairs, routes, LOCALS["alice_of_beta"]).target, WEB)
        self.assertEqual(find_way("web", pairs, routes, LOCALS["alice"]).target, Uri("tcp", "a", 1))

    def test_a_caller_s_proof_chooses_too_and_his_words_about_local_users_do_not(self) -> None:
        routes = Routes({"web": (to("for-alice", whom=ALICE), to("for-g", whom=GATEWAY), to("for-all"))})
        for words, wanted in (
            (("cert:g.example",), "for-g"),
            (("psk:g.example",), "for-all"),
            (("user:alice", "login:alice"), "for-all"),
            ((), "for-all"),
        ):
            subject = Subject(Standing.REMOTE, words=frozenset(words))
            self.assertEqual(find_way("web", Pairs(), routes, subject, for_caller=True).target, local(wanted))

    def test_nobody_in_particular_gets_what_is_for_everybody(self) -> None:
        self.assertEqual(find_way("authd", Pairs(), self.AUTHD).target, local("authd-old"))

    @each(
        ("nothing", NOTHING, False, False),
        ("for_everybody", leading({"a": "b"}, {"*": WEB}), False, False),
        ("a_redirect", AUTHD, True, False),
        ("a_route", Routes({}, {"a": (to(WEB, whom=ALICE),)}), True, False),
        ("a_second_choice", Routes({}, {"a": (to(WEB), to(WEB, whom=CI))}), True, True),
        ("a_redirect_by_unit", Routes({"a": (to("b", whom=CI),)}), True, True),
        ("the_route_for_all", Routes({}, {"*": (to(WEB, whom=CI),)}), True, True),
        ("a_second_condition", Routes({}, {"*": (Choice((WEB,), (ALICE, CI)),)}), True, True),
    )
    def test_the_tables_know_whether_they_speak_of_some_clients_and_of_cgroups(
        self, _: str, routes: Routes, who: bool, unit: bool
    ) -> None:
        self.assertEqual((routes.asks_who, routes.asks_unit), (who, unit))


class Alternatives(SynchronousTestCase):
    def test_all_of_them_are_the_way_in_their_order(self) -> None:
        targets = (Uri("tls", "a", 1), WEB, local("pong2"))
        for routes in (Routes({"pong": (to(*targets),)}), Routes({}, {"pong": (to(*targets),)})):
            way = find_way("pong", Pairs(), routes)
            self.assertEqual((way.targets, way.target), (targets, targets[0]))

    def test_the_service_s_place_is_filled_in_each(self) -> None:
        routes = Routes({}, {"*": (to("tls://a/{service}", "tls:{service}.example:443", Uri("tls", "g", 1)),)})
        self.assertEqual(
            find_way("pong", Pairs(), routes).targets,
            (Uri("tls", "a", 9001, "pong"), Endpoint("tls:pong.example:443", True), Uri("tls", "g", 1)),
        )

    def test_one_in_which_the_name_has_no_place_refuses_them_all(self) -> None:
        routes = Routes({}, {"*": (to("tls://a/{service}", "tls://{service}.a"),)})
        with self.assertRaises(Refused) as caught:
            find_way("a..b", Pairs(), routes)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)

    def test_sixteen_are_accepted_and_seventeen_are_not(self) -> None:
        targets = [Uri("tls", f"h{n}", 1) for n in range(ALTERNATIVES + 1)]
        self.assertEqual(len(Choice(tuple(targets[:-1])).targets), 16)
        with self.assertRaises(RouteError) as caught:
            Choice(tuple(targets))
        self.assertEqual(str(caught.exception), "17 alternatives, at most 16 are accepted")

    def test_there_is_one_at_least(self) -> None:
        with self.assertRaises(RouteError) as caught:
            Choice(())
        self.assertEqual(str(caught.exception), "wanted at least one target")

    def test_another_name_has_no_alternative(self) -> None:
        for targets in (("next", WEB), (WEB, "next"), ("next", "last")):
            with self.assertRaises(RouteError) as caught:
                Choice(targets)
            self.assertIn("another name stands alone", str(caught.exception))

    @each(
        ("first", (local("a"), WEB), "a"),
        ("second", (WEB, local("a")), None),
        ("far", (Uri("tls", "h", 1, "a"),), None),
        ("a_socket_that_is_no_service_s", (Endpoint("unix:/run/x.sock"),), None),
    )
    def test_the_local_service_is_that_of_the_first(
        self, _: str, targets: tuple[Uri | Endpoint, ...], wanted: str | None
    ) -> None:
        self.assertEqual(Way(targets).local_service, wanted)


class ForCallers(SynchronousTestCase):
    """A remote caller is led elsewhere only by what names the service."""

    @each(
        ("nothing", NOTHING, "unix:///pong"),
        ("route_for_all", leading({}, {"*": "tls://g/{service}"}), "unix:///pong"),
        ("route_for_all_without_a_place", leading({}, {"*": Uri("tls", "g", 1)}), "unix:///pong"),
        ("its_own_route", leading({}, {"*": Uri("tls", "g", 1), "pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("redirect", leading({"pong": Uri("tls", "r", 1)}), "tls://r:1"),
        ("redirect_to_a_name", leading({"pong": "next"}, {"*": Uri("tls", "g", 1)}), "unix:///next"),
        ("redirect_to_a_routed_name", leading({"pong": "next"}, {"next": Uri("tls", "r", 1)}), "tls://r:1"),
        ("for_its_proof", Routes({}, {"pong": (to(Uri("tls", "r", 1), whom=GATEWAY),)}), "tls://r:1"),
        ("for_a_local_user", Routes({}, {"pong": (to(Uri("tls", "r", 1), whom=ALICE),)}), "unix:///pong"),
    )
    def test_the_route_for_all_is_not_for_them(self, _: str, routes: Routes, wanted: str) -> None:
        self.assertEqual(find_way("pong", Pairs(), routes, CALLER, for_caller=True).target, parse_uri(wanted))

    def test_a_chain_ends_for_them_after_eight_too(self) -> None:
        self.assertEqual(find_way("s0", Pairs(), leading(chain(CHAIN)), CALLER, for_caller=True).target, local("s8"))
        with self.assertRaises(Refused):
            find_way("s0", Pairs(), leading(chain(CHAIN + 1)), CALLER, for_caller=True)


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
        ("tls:a.example:443:trustRoots=/x=y=z", Destination("tls", "a.example", None, 443)),
        ("tls:a.example:https", Destination("tls", "a.example", None, None)),
        ("tls:192.0.2.7:https", Destination("tls", None, (ipaddress.ip_address("192.0.2.7"),), None)),
        ("tls:a.example", Destination("tls", "a.example", None, None)),
    )
    def test_rules_see_of_an_endpoint_its_first_word_and_host_and_port_where_they_are_told(
        self, text: str, wanted: Destination
    ) -> None:
        self.assertEqual(Endpoint(text).destination(), wanted)

    @each(
        ("tls:a b:443", Destination("tls", None, None, None, True)),
        ("tls:127.1:443", Destination("tls", None, None, None, True)),
        ("tls:port=443", Destination("tls", None, None, None, True)),
        ("unix:/run/x.sock", Destination("unix", None, None, None, True)),
        ("unix:path=/run/x.sock", Destination("unix", None, None, None, True)),
        ("systemd:domain=INET", Destination("systemd", None, None, None, True)),
        ("SSL:a.example:443", Destination("ssl", "a.example", None, 443, True)),
        ("tls:a.example:443:certificate=/c.pem", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:30", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:30::/c.pem", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:endpoint=unix\\:/x", Destination("tls", "a.example", None, 443, True)),
        ("tls:a.example:443:privateKey=/k.pem", Destination("tls", "a.example", None, 443, True)),
    )
    def test_an_endpoint_that_does_what_a_client_could_not_is_told_apart(self, text: str, wanted: Destination) -> None:
        self.assertEqual(Endpoint(text).destination(), wanted)

    def test_an_endpoint_that_a_client_s_word_is_a_part_of_needs_a_rule(self) -> None:
        way = find_way("web", Pairs(), leading({}, {"*": "tls:{service}.example:443"}))
        assert isinstance(way.target, Endpoint)
        self.assertEqual(way.target.destination(), Destination("tls", "web.example", None, 443, True))
        self.assertFalse(Endpoint("tls:web.example:443").destination().special)

    def test_an_endpoint_shows_nothing_but_its_first_word(self) -> None:
        endpoint = Endpoint("tls:h:443:password=hunter2")
        self.assertEqual(str(endpoint), "tls endpoint")
        self.assertNotIn("hunter2", repr(endpoint))

    @each(
        ("tls://h/pong", Uri("tls", "h", 9001, "pong")),
        ("pong", Uri("unix", "", 0, "pong")),
        ("tls://u:p@h/x", Uri("tls", "h", 9001, "x", "u", "p")),
    )
    def test_a_client_s_uri_is_read(self, text: str, wanted: Uri) -> None:
        self.assertEqual(parse_target_uri(text), wanted)
        self.assertTrue(wanted.service is None or is_service(wanted.service))

    def test_a_client_s_uri_is_remembered_where_it_cannot_hold_a_password(self) -> None:
        for text, kept in (("tls://h/pong", True), ("tls://u:hunter2@h/pong", False)):
            self.assertEqual(parse_target_uri(text) is parse_target_uri(text), kept)
