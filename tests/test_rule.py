"""plumberd.pure.policy.rule: the grammar of a line, and what the line speaks of."""

from __future__ import annotations

import dataclasses
import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import unwrap
from plumberd.pure.modes import WISHES, Mode
from plumberd.pure.policy.decide import Question
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination, Peer
from plumberd.pure.policy.rule import (
    RULE_CHARS,
    Action,
    Match,
    Rule,
    RuleError,
    bind_rule,
    explain_match,
    matches,
    parse_rule,
)
from plumberd.pure.policy.subject import ANYBODY, UNMAPPED, Condition, Standing, Subject
from plumberd.pure.uri import IPAddress
from tests.strategies import EVERY, FEW, questions, rules
from tests.tables import PROPERTY, each

ALLOW, DENY, LOG = Action.ALLOW, Action.DENY, Action.LOG
IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
GROUPS: dict[str, int] = {}
V4 = ipaddress.ip_address("192.0.2.7")
V6 = ipaddress.ip_address("2001:db8::7")
WEB = Peer("tls", "a.example", ports=(443, 443))


def who(*texts: str) -> tuple[Condition, ...]:
    """Return conditions, of ``kind:value``."""
    return tuple(Condition(kind, value) for kind, value in (text.split(":", 1) for text in texts))


def network(scheme: str, text: str, port: int | None = None) -> Peer:
    """Return the peer that is a network."""
    return Peer(scheme, network=ipaddress.ip_network(text), ports=None if port is None else (port, port))


class Read(SynchronousTestCase):
    @each(
        # the documented command lines
        ("allow in authd tls:example.com", Rule(ALLOW, IN, "authd", Peer("tls", "example.com"))),
        ("deny in * *", Rule(DENY, IN, None)),
        (
            "allow out pong tls:pong.example.com:9000",
            Rule(ALLOW, OUT, "pong", Peer("tls", "pong.example.com", ports=(9000, 9000))),
        ),
        # services
        ("deny in any any", Rule(DENY, IN, None)),
        ("allow out a any", Rule(ALLOW, OUT, "a")),
        ("allow out " + "x" * 64 + " any", Rule(ALLOW, OUT, "x" * 64)),
        ("allow out pong* any", Rule(ALLOW, OUT, "pong*")),
        ("allow out *-test any", Rule(ALLOW, OUT, "*-test")),
        ("allow out p?ng any", Rule(ALLOW, OUT, "p?ng")),
        ("allow out ?* any", Rule(ALLOW, OUT, "?*")),
        ("allow out ** any", Rule(ALLOW, OUT, "**")),
        ("allow out .* any", Rule(ALLOW, OUT, ".*")),
        ("allow out " + "x" * 63 + "* any", Rule(ALLOW, OUT, "x" * 63 + "*")),
        # peers, of which tests/test_peer.py has all
        ("allow out a tls:a.example:443", Rule(ALLOW, OUT, "a", WEB)),
        ("allow out a tls://a.example:443", Rule(ALLOW, OUT, "a", WEB)),
        ("allow out a tls:*.a.example", Rule(ALLOW, OUT, "a", Peer("tls", suffix="a.example"))),
        ("deny out a tcp:10.0.0.0/8", Rule(DENY, OUT, "a", network("tcp", "10.0.0.0/8"))),
        ("deny in a tcp:[2001:db8::]/32:443", Rule(DENY, IN, "a", network("tcp", "2001:db8::/32", 443))),
        ("allow out pong unix:pong", Rule(ALLOW, OUT, "pong", Peer("unix", "pong"))),
        # log
        ("log out a any", Rule(LOG, OUT, "a")),
        ("log in a tcp:any", Rule(LOG, IN, "a", Peer("tcp"))),
        ("log out a any handover=relayed", Rule(LOG, OUT, "a", handover=Mode.RELAYED)),
        # who
        ("allow out a any for user:alice", Rule(ALLOW, OUT, "a", conditions=who("user:alice"))),
        (
            "allow out a any for group:audio for unit:ci.service for uid:1000",
            Rule(ALLOW, OUT, "a", conditions=who("group:audio", "unit:ci.service", "uid:1000")),
        ),
        ("deny out a any for user:me@home", Rule(DENY, OUT, "a", conditions=who("user:me@home"))),
        ("allow in a any for cert:*.b.example", Rule(ALLOW, IN, "a", conditions=who("cert:*.b.example"))),
        (
            "allow in a tls:any for spiffe://d.example/w for psk:k for login:l",
            Rule(ALLOW, IN, "a", Peer("tls"), who("spiffe://d.example/w", "psk:k", "login:l")),
        ),
        ("allow out a any for cert:gateway.example", Rule(ALLOW, OUT, "a", conditions=who("cert:gateway.example"))),
        # serve
        ("allow serve pong", Rule(ALLOW, SERVE, "pong")),
        ("deny serve any", Rule(DENY, SERVE, None)),
        ("deny serve *", Rule(DENY, SERVE, None)),
        ("allow serve ci-* for user:ci", Rule(ALLOW, SERVE, "ci-*", conditions=who("user:ci"))),
        # the mode
        *((f"allow out a any handover={m.value}", Rule(ALLOW, OUT, "a", handover=m)) for m in WISHES),
        (
            "allow out a any for uid:1 handover=locked",
            Rule(ALLOW, OUT, "a", conditions=who("uid:1"), handover=Mode.LOCKED),
        ),
        (
            "allow out a any handover=locked for uid:1 for uid:2",
            Rule(ALLOW, OUT, "a", conditions=who("uid:1", "uid:2"), handover=Mode.LOCKED),
        ),
        ("  allow   out  a  any  ", Rule(ALLOW, OUT, "a")),
    )
    def test_a_rule_is_read(self, text: str, rule: Rule) -> None:
        self.assertEqual(parse_rule(text), rule)

    @each(
        ("as_written", "deny in * tcp://192.0.2.7:any", "deny in * tcp://192.0.2.7:any", "deny in any tcp:192.0.2.7"),
        ("blanks", "  deny  in   *  * ", "deny in * *", "deny in any any"),
        ("tail", "allow out a * handover=auto for uid:1", None, "allow out a any for uid:1 handover=auto"),
        ("mapped", "deny out a tcp:[::ffff:192.0.2.0]/120", None, "deny out a tcp:192.0.2.0/24"),
        ("serve", "allow serve * for user:ci", None, "allow serve any for user:ci"),
        ("a_blank_that_is_no_space", "deny out\u00a0any\u2003any", "deny out any any", "deny out any any"),
    )
    def test_a_rule_prints_back_as_it_was_written_and_has_one_normal_form(
        self, _: str, text: str, shown: str | None, normal: str
    ) -> None:
        rule = parse_rule(text, "rules.toml:12")
        self.assertEqual((str(rule), rule.source, rule.normal), (shown or text, "rules.toml:12", normal))

    def test_a_rule_that_was_made_prints_its_normal_form(self) -> None:
        self.assertEqual(str(Rule(DENY, OUT, None)), "deny out any any")

    def test_two_rules_that_say_the_same_are_equal(self) -> None:
        one = parse_rule("deny  in * tcp://192.0.2.7", "--rule")
        other = parse_rule("deny in any tcp:192.0.2.7/32", "rules.toml:1")
        self.assertEqual(one, other)
        self.assertEqual(hash(one), hash(other))
        self.assertNotEqual(one, parse_rule("deny in any tcp:192.0.2.7:1"))

    @each(
        ("", "wanted allow|deny|log in|out SERVICE PEER [for WHO]... [handover=MODE]"),
        ("allow", "wanted allow|deny|log in|out SERVICE PEER"),
        ("allow in pong", "wanted allow|deny|log in|out SERVICE PEER"),
        ("allow serve", "wanted allow|deny|log in|out SERVICE PEER"),
        ("permit in pong any", "'permit': wanted allow, deny or log"),
        ("ALLOW in pong any", "'ALLOW': wanted allow, deny or log"),
        ("allow inward pong any", "'inward': wanted in, out or serve"),
        ("allow IN pong any", "'IN': wanted in, out or serve"),
        # services
        ("allow in po/ng any", "'po/ng' is no service: wanted a name, a glob of * and ?, or any"),
        ("allow in -pong any", "'-pong' is no service"),
        ("allow in .pong any", "'.pong' is no service"),
        ("allow in " + "x" * 65 + " any", "is no service"),
        ("allow in " + "x" * 64 + "* any", "is no service"),
        ("allow in [ab]* any", "is no service"),
        ("allow in {a,b} any", "is no service"),
        ("allow in pöng* any", "is no service"),
        ("allow serve /pong*", "is no service"),
        # peers, of which tests/test_peer.py has all
        ("allow out pong example.com", "'example.com' is no peer: wanted any, SCHEME:any or SCHEME:HOST[:PORT]"),
        ("allow out pong tcp:10.0.0.0/0x8", "the length of a network is a number"),
        ("allow out pong tcp:10.0.0.1/8", "wanted 10.0.0.0/8"),
        ("allow in pong unix:pong", "a remote peer has no local name"),
        ("allow in pong tcp:example.com", "a tcp peer proves no name, so this would never match"),
        # log
        ("log serve pong", "a claim to a service is allowed or denied, and never just logged"),
        # who
        ("allow out a any for", "for: the WHO is missing behind it"),
        ("allow out a any for user", "wanted for KIND:VALUE"),
        ("allow out a any for user:alice for", "for: the WHO is missing behind it"),
        ("allow out a any user:alice", "'user:alice' left over behind the rule"),
        ("allow out a any for for uid:1", "wanted for KIND:VALUE"),
        ("allow out a any FOR uid:1", "left over behind the rule"),
        ("allow out a any for uid:65534", "no rule can speak of it"),
        ("allow in a any for user:alice", "callers are not local; they prove cert:, spiffe:, psk: or login:"),
        ("deny in a any for uid:0", "callers are not local"),
        ("allow in a any for group:audio", "callers are not local"),
        ("allow in a any for unit:ci.service", "callers are not local"),
        ("allow serve a for cert:a.example", "who serves is local: user:, group:, uid: or unit:"),
        ("deny serve a for psk:k", "who serves is local"),
        # words left over
        ("deny in pong any bin etc home", "'bin' left over behind the rule; did the shell expand the *? write any"),
        ("allow serve pong any", "'any' left over behind the rule"),
        ("allow out a any handover", "left over"),
        ("allow out a any me@home", "left over"),
        ("allow out a any mode=locked", "left over"),
        ("allow out a any handover=", "wanted handover=auto|direct|locked|relayed|framed"),
        ("allow out a any handover=local", "wanted handover=auto|direct|locked|relayed|framed"),
        ("allow out a any handover=LOCKED", "wanted handover="),
        ("allow out a any handover=auto handover=auto", "handover= stands twice"),
        ("deny out a any handover=locked", "only an `allow out` rule hands anything over"),
        ("allow in a any handover=locked", "only an `allow out` rule hands anything over"),
        ("log in a any handover=locked", "only an `allow out` rule hands anything over"),
        ("allow serve a handover=locked", "only an `allow out` rule hands anything over"),
        # characters
        ("allow out a any\n", "a control character"),
        ("allow\tout a any", "a control character"),
        ("allow out a tcp:a\x00b", "a control character"),
        ("allow out a\x7f any", "a control character"),
        ("allow out a tcp:a%00b", "percent-encoded control"),
    )
    def test_anything_else_is_refused_with_what_is_wrong_and_what_is_wanted(self, text: str, reason: str) -> None:
        with self.assertRaises(RuleError) as caught:
            parse_rule(text)
        self.assertIn(reason, str(caught.exception))

    @each(
        ("allow out pong tls:user:hunter2@example.com",),
        ("allow out pong tls://user@hunter2:example.com:9000",),
        ("allow out user:hunter2@x tls:example.com",),
        ("allow out tls://user:hunter2@h",),
        ("allow serve tls://user:hunter2@h",),
    )
    def test_a_password_that_got_into_a_rule_is_refused_and_not_shown(self, text: str) -> None:
        with self.assertRaises(RuleError) as caught:
            parse_rule(text)
        self.assertIn("no user and no password", str(caught.exception))
        self.assertNotIn("hunter2", str(caught.exception))

    def test_the_longest_rule_is_read_and_one_character_more_is_not(self) -> None:
        text = "allow out a any".ljust(RULE_CHARS)
        self.assertEqual(parse_rule(text), Rule(ALLOW, OUT, "a"))
        with self.assertRaises(RuleError) as caught:
            parse_rule(text + " ")
        self.assertEqual(str(caught.exception), "a rule of 1025 characters: at most 1024 are accepted")

    def test_only_a_glob_is_one(self) -> None:
        for word, is_glob in (("any", False), ("*", False), ("pong", False), ("p*", True), ("?", True)):
            self.assertEqual(parse_rule(f"deny out {word} any").is_glob, is_glob)

    def test_allow_and_log_open_and_deny_does_not(self) -> None:
        self.assertEqual([action for action in Action if action.opens], [ALLOW, LOG])


class Properties(SynchronousTestCase):
    @PROPERTY
    @given(rules(words=EVERY))
    def test_printing_and_reading_are_inverse(self, rule: Rule) -> None:
        read = parse_rule(rule.normal)
        self.assertEqual(read, rule)
        self.assertEqual((str(read), read.normal), (rule.normal, rule.normal))

    @PROPERTY
    @given(rules(words=EVERY), st.lists(st.sampled_from((" ", "  ", "   ")), min_size=20, max_size=20))
    def test_a_rule_is_its_text_with_single_blanks(self, rule: Rule, blanks: list[str]) -> None:
        words = rule.normal.split()
        words[2] = "*" if words[2] == "any" else words[2]
        if rule.direction is not SERVE:
            words[3] = words[3].replace(":", "://", 1) if words[3] != "any" else "*"
        text = "".join(word + blank for word, blank in zip(words, blanks, strict=False))
        read = parse_rule(text)
        self.assertEqual(str(read), " ".join(words))
        self.assertEqual(read, rule)
        self.assertEqual(parse_rule(str(read)), rule)

    @PROPERTY
    @given(
        st.one_of(
            st.text(max_size=40),
            st.lists(
                st.sampled_from(
                    (
                        *("allow", "deny", "log", "in", "out", "serve", "any", "*", "pong", "p*", "for", "uid:1"),
                        *("tcp:", "tls:[::1]:1", "unix:a", "psk:k", "unit:a.slice", "handover=auto"),
                    )
                ),
                max_size=9,
            ).map(" ".join),
            st.text(max_size=20).map(lambda peer: f"deny out any tcp:{peer}"),
            st.text(max_size=20).map(lambda value: f"deny out any any for unit:{value}"),
            st.text(max_size=20).map(lambda service: f"deny serve {service}"),
        )
    )
    def test_whatever_is_written_is_a_rule_or_a_mistake(self, text: str) -> None:
        try:
            rule = parse_rule(text)
        except RuleError:
            return
        self.assertEqual(parse_rule(rule.normal), rule)
        self.assertEqual(str(rule), " ".join(text.split()))


class Bound(SynchronousTestCase):
    def test_users_and_groups_get_their_numbers_and_nothing_else_changes(self) -> None:
        rule = parse_rule("allow out a any for user:alice for group:audio for unit:x.service", "f:1")
        found = bind_rule(rule, {"alice": 1000}.get, {"audio": 27}.get)
        self.assertEqual([condition.number for condition in found.conditions], [1000, 27, None])
        self.assertEqual((found, str(found), found.source), (rule, str(rule), "f:1"))

    @each(
        ("user:bob", "user:bob: wanted the name of a user that exists"),
        ("group:alice", "group:alice: wanted the name of a group that exists"),
        ("user:nobody", "no rule can speak of it"),
    )
    def test_whom_this_machine_does_not_have_is_a_mistake(self, text: str, reason: str) -> None:
        rule = parse_rule(f"deny out a any for {text}")
        with self.assertRaises(RuleError) as caught:
            bind_rule(rule, {"alice": 1000, "nobody": UNMAPPED}.get, GROUPS.get)
        self.assertIn(reason, str(caught.exception))


def to_local(name: str) -> Destination:
    return Destination("unix", name, None, None)


A_1 = Destination("tcp", "a.example", None, 1)
A_1_V4 = Destination("tcp", "a.example", (V4,), 1)
CALLER = Destination("tcp", None, (V4,), 51234)
TLS_CALLER = Destination("tls", None, (V4,), 51234)
UNKNOWN = Destination("tls", None, None, None)
"""An endpoint string that does not tell its host and port."""


class Matches(SynchronousTestCase):
    @each(
        # direction
        ("allow in any any", OUT, "x", A_1, Match.NO),
        ("allow out any any", IN, "x", CALLER, Match.NO),
        ("allow serve any", OUT, "x", to_local("x"), Match.NO),
        ("allow out any any", SERVE, "x", to_local("x"), Match.NO),
        ("allow serve x", SERVE, "x", to_local("x"), Match.YES),
        ("allow serve x", SERVE, "y", to_local("y"), Match.NO),
        # service
        ("allow out pong any", OUT, "pong", A_1, Match.YES),
        ("allow out pong any", OUT, "pongd", A_1, Match.NO),
        ("allow out pong any", OUT, "PONG", A_1, Match.NO),
        ("allow out pong any", OUT, None, A_1, Match.NO),
        ("allow out any any", OUT, None, A_1, Match.YES),
        ("allow out * any", OUT, None, A_1, Match.YES),
        ("allow out any any", OUT, "x", to_local("x"), Match.YES),
        ("allow out pong* any", OUT, "pong", A_1, Match.YES),
        ("allow out pong* any", OUT, "pongd", A_1, Match.YES),
        ("allow out pong* any", OUT, "a-pong", A_1, Match.NO),
        ("allow out pong* any", OUT, "Pongd", A_1, Match.NO),
        ("allow out *.d any", OUT, "a.d", A_1, Match.YES),
        ("allow out *.d any", OUT, "axd", A_1, Match.NO),
        ("allow out p?ng any", OUT, "pong", A_1, Match.YES),
        ("allow out p?ng any", OUT, "png", A_1, Match.NO),
        ("allow out ?* any", OUT, "x", A_1, Match.YES),
        ("allow out ?* any", OUT, None, A_1, Match.NO),
        ("deny out ** any", OUT, None, A_1, Match.NO),
        # scheme
        ("allow out any tcp:any", OUT, "x", A_1, Match.YES),
        ("allow out any tcp:any", OUT, "x", dataclasses.replace(A_1, scheme="tls"), Match.NO),
        ("allow out any tcp:any", OUT, "x", to_local("a"), Match.NO),
        # name, wildcard and port
        ("deny out any tcp:a.example", OUT, "x", A_1, Match.YES),
        ("deny out any tcp:a.example", OUT, "x", dataclasses.replace(A_1, name="b.a.example"), Match.NO),
        ("deny out any tcp:a.example", OUT, "x", Destination("tcp", None, (V4,), 1), Match.NO),
        ("deny out any tcp:*.example", OUT, "x", A_1, Match.YES),
        ("deny out any tcp:*.a.example", OUT, "x", A_1, Match.NO),
        ("deny out any tcp:*.example", OUT, "x", Destination("tcp", None, (V4,), 1), Match.NO),
        ("deny out any tcp:a.example:1", OUT, "x", A_1, Match.YES),
        ("deny out any tcp:a.example:2", OUT, "x", A_1, Match.NO),
        ("deny out any tcp:any:1-9", OUT, "x", A_1, Match.YES),
        ("deny out any tcp:any:2-9", OUT, "x", A_1, Match.NO),
        ("allow out any tcp:a.example:1", OUT, "x", A_1_V4, Match.YES),
        # address and network
        ("deny out any tcp:192.0.2.7", OUT, "x", A_1, Match.MAYBE),
        ("allow out any tcp:192.0.2.0/24", OUT, "x", A_1, Match.MAYBE),
        ("deny out any tcp:192.0.2.7", OUT, "x", A_1_V4, Match.YES),
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", None, (V4,), 1), Match.YES),
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", "a.example", (V6,), 1), Match.NO),
        ("deny out any tcp:192.0.2.7:2", OUT, "x", A_1, Match.NO),
        ("deny out any tls:192.0.2.7", OUT, "x", A_1, Match.NO),
        ("deny out any tcp:192.0.2.0/29", OUT, "x", A_1_V4, Match.YES),
        ("deny out any tcp:192.0.2.0/30", OUT, "x", A_1_V4, Match.NO),
        ("deny out any tcp:0.0.0.0/0", OUT, "x", A_1_V4, Match.YES),
        ("deny out any tcp:[::]/0", OUT, "x", A_1_V4, Match.NO),
        ("deny out any tcp:[2001:db8::]/32:1", OUT, "x", Destination("tcp", None, (V6,), 1), Match.YES),
        ("deny out any tcp:[::ffff:192.0.2.0]/120", OUT, "x", A_1_V4, Match.YES),
        # local services
        ("deny out any unix:a", OUT, "x", to_local("a"), Match.YES),
        ("deny out any unix:a", OUT, "x", to_local("b"), Match.NO),
        ("deny out any unix:any", OUT, "x", to_local("b"), Match.YES),
        ("deny out any tcp:a", OUT, "x", to_local("a"), Match.NO),
        # an endpoint that does not tell its port: nothing that speaks of one is opened
        ("allow out any tls:any:443", OUT, "x", UNKNOWN, Match.NO),
        ("log out any tls:any:443", OUT, "x", UNKNOWN, Match.NO),
        ("deny out any tls:any:443", OUT, "x", UNKNOWN, Match.YES),
        ("allow out any tls:any", OUT, "x", UNKNOWN, Match.YES),
        ("allow out any tls:a.example", OUT, "x", UNKNOWN, Match.NO),
        # a peer that came in: its source port says nothing
        ("allow in any tcp:192.0.2.7:9000", IN, "x", CALLER, Match.YES),
        ("deny in any tcp:192.0.2.7:9000", IN, "x", CALLER, Match.YES),
        ("allow in any tcp:192.0.2.0/24", IN, "x", CALLER, Match.YES),
        ("allow in any tcp:192.0.2.7", IN, "x", Destination("tcp", None, None, 0), Match.MAYBE),
        ("allow in any tls:192.0.2.7", IN, "x", TLS_CALLER, Match.YES),
        ("allow in any tls:any", IN, "x", CALLER, Match.NO),
    )
    def test_whether_a_rule_speaks_of_a_connection(
        self, text: str, direction: Direction, service: str | None, to: Destination, wanted: Match
    ) -> None:
        rule = parse_rule(text)
        self.assertIs(matches(rule, direction, service, to, ANYBODY), wanted)
        match, why = explain_match(rule, direction, service, to, ANYBODY)
        self.assertIs(match, wanted)
        self.assertEqual(bool(why), wanted is not Match.YES)

    @each(
        ("allow in any tls:a.example", ("cert:a.example",), True),
        ("allow in any tls:a.example", ("cert:b.example", "cert:a.example"), True),
        ("allow in any tls:a.example", ("cert:b.example",), False),
        ("allow in any tls:a.example", ("psk:a.example", "login:a.example"), False),
        ("allow in any tls:a.example", (), False),
        ("allow in any tls:*.example", ("cert:a.example",), True),
        ("allow in any tls:*.a.example", ("cert:a.example",), False),
        ("deny in any tls:a.example", ("cert:a.example",), True),
        ("allow in any any for psk:k", ("psk:k",), True),
        ("allow in any any for psk:k", ("psk:l",), False),
        ("allow in any tls:a.example for psk:k", ("psk:k", "cert:a.example"), True),
        ("allow in any tls:a.example for psk:k", ("cert:a.example",), False),
        ("allow in any tls:192.0.2.0/24 for cert:*.example", ("cert:a.example",), True),
        ("allow in any tls:192.0.2.0/32 for cert:*.example", ("cert:a.example",), False),
    )
    def test_a_caller_is_called_what_it_has_proved(self, text: str, words: tuple[str, ...], found: bool) -> None:
        subject = Subject(Standing.REMOTE, words=frozenset(words))
        self.assertIs(matches(parse_rule(text), IN, "x", TLS_CALLER, subject), Match.YES if found else Match.NO)

    @each(
        ("allow", 1000, True),
        ("deny", 1000, True),
        ("log", 1000, True),
        ("allow", 1001, False),
        ("deny", 1001, False),
        ("allow", UNMAPPED, False),
        ("log", UNMAPPED, False),
        ("deny", UNMAPPED, True),
    )
    def test_who_cannot_be_told_is_denied_and_not_allowed(self, action: str, uid: int, found: bool) -> None:
        rule = bind_rule(parse_rule(f"{action} out any any for user:alice"), {"alice": 1000}.get, GROUPS.get)
        wanted = (Match.YES, "") if found else (Match.NO, "somebody else")
        self.assertEqual(explain_match(rule, OUT, "x", A_1, Subject(uid=uid)), wanted)

    def test_a_lookup_that_names_no_service_is_told_so(self) -> None:
        for service, why in ((None, "the lookup names no service"), ("x", "another service")):
            self.assertEqual(explain_match(parse_rule("deny out p* any"), OUT, service, A_1, ANYBODY), (Match.NO, why))

    def test_where_nothing_fits_the_far_end_is_told_first(self) -> None:
        rule = parse_rule("deny out any tcp:any:80 for uid:1")
        self.assertEqual(explain_match(rule, OUT, "x", A_1, Subject(uid=2)), (Match.NO, "another port"))

    def test_somebody_else_waits_for_no_addresses(self) -> None:
        rule = parse_rule("deny out any tcp:192.0.2.7 for uid:1")
        self.assertIs(matches(rule, OUT, "x", A_1, Subject(uid=2)), Match.NO)
        self.assertIs(matches(rule, OUT, "x", A_1, Subject(uid=1)), Match.MAYBE)

    @each(
        ("compatible", "::192.0.2.7"),
        ("6to4", "2002:c000:207::1"),
        ("nat64", "64:ff9b::192.0.2.7"),
        ("nat64_local", "64:ff9b:1::192.0.2.7"),
        ("isatap", "2001:db8::5efe:192.0.2.7"),
        ("teredo_server", "2001:0:c000:207::1"),
        ("translated", "::ffff:0:192.0.2.7"),
        ("mapped", "::ffff:192.0.2.7"),
    )
    def test_a_deny_closes_every_spelling_and_an_allow_opens_the_very_one(self, _: str, text: str) -> None:
        to = Destination("tcp", None, (ipaddress.ip_address(text),), 1)
        for peer in ("192.0.2.7", "192.0.2.0/24"):
            self.assertIs(matches(parse_rule(f"deny out any tcp:{peer}"), OUT, "x", to, ANYBODY), Match.YES)
            for action in ("allow", "log"):
                self.assertIs(matches(parse_rule(f"{action} out any tcp:{peer}"), OUT, "x", to, ANYBODY), Match.NO)
        self.assertIs(matches(parse_rule("deny out any tcp:192.0.2.8"), OUT, "x", to, ANYBODY), Match.NO)

    def test_a_glob_is_tried_quickly_however_many_stars_it_has(self) -> None:
        rule = parse_rule("deny out " + "a*" * 31 + "b any")
        self.assertIs(matches(rule, OUT, "a" * 64, A_1, ANYBODY), Match.NO)

    @PROPERTY
    @given(rules(), questions(), FEW.addresses)
    def test_only_a_rule_by_address_ever_waits_for_addresses(
        self, rule: Rule, question: Question, address: IPAddress
    ) -> None:
        to = dataclasses.replace(question.to, addresses=None)
        found = matches(rule, rule.direction, question.service, to, question.subject)
        known = matches(
            rule, rule.direction, question.service, dataclasses.replace(to, addresses=(address,)), question.subject
        )
        if found is Match.MAYBE:
            network = rule.peer.network
            assert network is not None
            spellings = [address] if rule.action.opens else list(unwrap(address))
            self.assertEqual(known is Match.YES, any(one in network for one in spellings))
        else:
            self.assertIs(known, found)

    @PROPERTY
    @given(rules(), questions())
    def test_a_deny_matches_whatever_the_same_allow_would(self, rule: Rule, question: Question) -> None:
        deny = dataclasses.replace(rule, action=DENY, handover=None)
        for action in (ALLOW, LOG):
            opening = dataclasses.replace(rule, action=action)
            asked = (question.direction, question.service, question.to, question.subject)
            if matches(opening, *asked) is not Match.NO:
                self.assertIsNot(matches(deny, *asked), Match.NO)
