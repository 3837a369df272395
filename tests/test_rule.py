"""plumberd.pure.policy.rule: the grammar of a line, and what the line speaks of."""

from __future__ import annotations

import dataclasses
import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.address import unwrap
from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import Question
from plumberd.pure.policy.rule import (
    RULE_CHARS,
    Destination,
    Direction,
    Match,
    Peer,
    Rule,
    RuleError,
    matches,
    parse_rule,
)
from tests.strategies import EVERY, questions, rules
from tests.tables import PROPERTY, each

IN, OUT = Direction.IN, Direction.OUT
V4 = ipaddress.ip_address("192.0.2.7")
V6 = ipaddress.ip_address("2001:db8::7")


def bare(rule: Rule) -> Rule:
    """Return *rule* without the words in which it was written."""
    return dataclasses.replace(rule, text="", source="")


class Read(SynchronousTestCase):
    @each(
        ("allow in authd tls:example.com", Rule(True, IN, "authd", Peer("tls", "example.com"))),
        ("deny in * *", Rule(False, IN, None, Peer())),
        ("deny in any any", Rule(False, IN, None, Peer())),
        ("allow out pong tls:pong.example.com:9", Rule(True, OUT, "pong", Peer("tls", "pong.example.com", None, 9))),
        ("allow out pong unix:pong", Rule(True, OUT, "pong", Peer("unix", "pong"))),
        ("deny out any unix:any", Rule(False, OUT, None, Peer("unix"))),
        ("deny out any unix:*", Rule(False, OUT, None, Peer("unix"))),
        ("allow out any tcp:any", Rule(True, OUT, None, Peer("tcp"))),
        ("allow out any tcp://*", Rule(True, OUT, None, Peer("tcp"))),
        ("allow out any tcp://example.com:1", Rule(True, OUT, None, Peer("tcp", "example.com", None, 1))),
        ("allow out any unix://pong", Rule(True, OUT, None, Peer("unix", "pong"))),
        ("allow out any tcp:example.com:any", Rule(True, OUT, None, Peer("tcp", "example.com"))),
        ("allow out any tcp:EXAMPLE.com.", Rule(True, OUT, None, Peer("tcp", "example.com"))),
        ("allow out any tcp:bücher.example", Rule(True, OUT, None, Peer("tcp", "xn--bcher-kva.example"))),
        ("allow out any tcp:192.0.2.7", Rule(True, OUT, None, Peer("tcp", None, V4))),
        ("allow out any tcp:192.0.2.7:65535", Rule(True, OUT, None, Peer("tcp", None, V4, 65535))),
        ("allow out any tcp:[2001:db8::7]", Rule(True, OUT, None, Peer("tcp", None, V6))),
        ("allow out any tcp:[2001:DB8:0::7]:1", Rule(True, OUT, None, Peer("tcp", None, V6, 1))),
        ("allow out any tcp:[2001:db8::7]:*", Rule(True, OUT, None, Peer("tcp", None, V6))),
        ("allow out any tcp:[::ffff:192.0.2.7]:1", Rule(True, OUT, None, Peer("tcp", None, V4, 1))),
        ("allow in pong tcp:192.0.2.7", Rule(True, IN, "pong", Peer("tcp", None, V4))),
        ("allow in pong wss:example.com", Rule(True, IN, "pong", Peer("wss", "example.com"))),
        ("allow in pong udp:any", Rule(True, IN, "pong", Peer("udp"))),
        ("allow out a any handover=locked", Rule(True, OUT, "a", Peer(), Mode.LOCKED)),
        ("allow out a any handover=direct", Rule(True, OUT, "a", Peer(), Mode.DIRECT)),
        ("allow out a any handover=relayed", Rule(True, OUT, "a", Peer(), Mode.RELAYED)),
        ("allow out a any handover=auto", Rule(True, OUT, "a", Peer(), Mode.AUTO)),
        ("  allow   out  a  any  ", Rule(True, OUT, "a", Peer())),
        ("allow out " + "x" * 64 + " any", Rule(True, OUT, "x" * 64, Peer())),
    )
    def test_a_rule_is_read(self, text: str, rule: Rule) -> None:
        self.assertEqual(bare(parse_rule(text)), rule)

    def test_a_rule_keeps_its_words_and_where_they_stood(self) -> None:
        rule = parse_rule("deny in * tcp:192.0.2.7", "--rule")
        self.assertEqual((rule.text, rule.source), ("deny in * tcp:192.0.2.7", "--rule"))
        self.assertEqual(str(rule), "deny in any tcp:192.0.2.7")

    @each(
        ("", "wanted allow|deny in|out SERVICE PEER"),
        ("allow", "wanted allow|deny in|out SERVICE PEER"),
        ("allow in pong", "wanted allow|deny in|out SERVICE PEER"),
        ("permit in pong any", "'permit': wanted allow or deny"),
        ("ALLOW in pong any", "'ALLOW': wanted allow or deny"),
        ("allow inward pong any", "'inward': wanted in or out"),
        ("allow in po/ng any", "'po/ng' is no service: wanted a name, any or *"),
        ("allow in -pong any", "'-pong' is no service"),
        ("allow in " + "x" * 65 + " any", "is no service"),
        # peers
        ("allow out pong example.com", "'example.com' is no peer: wanted any, SCHEME:any or SCHEME:HOST[:PORT]"),
        ("allow out pong ssl:example.com", "schemes are tcp, tls, udp, ws, wss, unix"),
        ("allow out pong tcp", "is no peer"),
        ("allow out pong tcp:", "the host is missing"),
        ("allow out pong tcp:a..b", "neither a name nor an address"),
        ("allow out pong tcp:a:0", "the port: wanted a number"),
        ("allow out pong tcp:a:65536", "the port: wanted a number"),
        ("allow out pong tcp:a:080", "the port: wanted a number"),
        ("allow out pong tcp:a:", "the port: wanted a number"),
        ("allow out pong tcp:a:http", "the port: wanted a number"),
        ("allow out pong tcp:127.1", "four decimal numbers"),
        ("allow out pong tcp:0x7f000001", "four decimal numbers"),
        ("allow out pong tcp:2001:db8::7", "an IPv6 address stands in brackets"),
        ("allow out pong tcp:[2001:db8::7", "wants both brackets"),
        ("allow out pong tcp:[2001:db8::7]443", "only :PORT may stand behind"),
        ("allow out pong tcp:[fe80::1%eth0]", "zone ids"),
        ("allow out pong tcp://example.com:1/pong", "the port: wanted a number"),
        ("allow out pong tcp:any:25", "any host is tcp:any, without a port"),
        ("allow out pong tcp:ANY", "any host is tcp:any, without a port"),
        ("allow out pong tcp:*:25", "neither a name nor an address"),
        ("allow out pong unix:", "the name of a local service"),
        ("allow out pong unix:/run/pong", "the name of a local service"),
        ("allow in pong unix:pong", "a remote peer has no local name"),
        ("allow in pong unix:any", "a remote peer has no local name"),
        # names that nobody proves
        ("allow in pong tcp:example.com", "a tcp peer proves no name, so this would never match"),
        ("deny in pong tcp:example.com:80", "wanted tcp:ADDRESS, or tls:example.com"),
        ("deny in pong udp:example.com", "a udp peer proves no name"),
        ("deny in pong ws:example.com", "a ws peer proves no name"),
        # words left over
        ("deny in pong any bin etc home", "'bin' left over behind the peer; did the shell expand the *? write any"),
        ("allow out a any handover", "left over"),
        ("allow out a any me@home", "left over"),
        ("allow out a any mode=locked", "left over"),
        ("allow out a any handover=", "wanted handover=auto|direct|locked|relayed"),
        ("allow out a any handover=local", "wanted handover=auto|direct|locked|relayed"),
        ("allow out a any handover=LOCKED", "wanted handover="),
        ("allow out a any handover=auto handover=auto", "handover= stands twice"),
        ("deny out a any handover=locked", "only an `allow out` rule hands anything over"),
        ("allow in a any handover=locked", "only an `allow out` rule hands anything over"),
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
    )
    def test_a_password_that_got_into_a_rule_is_refused_and_not_shown(self, text: str) -> None:
        with self.assertRaises(RuleError) as caught:
            parse_rule(text)
        self.assertIn("no user and no password", str(caught.exception))
        self.assertNotIn("hunter2", str(caught.exception))

    def test_the_longest_rule_is_read_and_one_character_more_is_not(self) -> None:
        text = "allow out a any".ljust(RULE_CHARS)
        self.assertEqual(bare(parse_rule(text)), Rule(True, OUT, "a", Peer()))
        with self.assertRaises(RuleError) as caught:
            parse_rule(text + " ")
        self.assertEqual(str(caught.exception), "a rule of 1025 characters: at most 1024 are accepted")


class Properties(SynchronousTestCase):
    @PROPERTY
    @given(rules(words=EVERY))
    def test_printing_and_reading_are_inverse(self, rule: Rule) -> None:
        self.assertEqual(bare(parse_rule(str(rule))), rule)

    @PROPERTY
    @given(rules(words=EVERY))
    def test_the_printed_form_is_the_normal_one(self, rule: Rule) -> None:
        self.assertEqual(str(parse_rule(str(rule))), str(rule))

    @PROPERTY
    @given(rules(words=EVERY))
    def test_the_stars_and_slashes_of_a_rule_mean_the_same_rule(self, rule: Rule) -> None:
        words = str(rule).split()
        words[2] = "*" if words[2] == "any" else words[2]
        words[3] = words[3].replace(":", "://", 1).replace("any", "*") if words[3] != "any" else "*"
        if rule.peer.name is None:
            self.assertEqual(bare(parse_rule(" ".join(words))), rule)

    @PROPERTY
    @given(
        st.one_of(
            st.text(max_size=40),
            st.lists(
                st.sampled_from(
                    ("allow", "deny", "in", "out", "any", "*", "pong", "tcp:", "tls:[::1]:1", "unix:a", "handover=auto")
                ),
                max_size=7,
            ).map(" ".join),
            st.text(max_size=20).map(lambda peer: f"deny out any tcp:{peer}"),
        )
    )
    def test_arbitrary_text_is_a_rule_that_can_be_printed_or_a_rule_error(self, text: str) -> None:
        try:
            rule = parse_rule(text)
        except RuleError:
            return
        self.assertEqual(bare(parse_rule(str(rule))), bare(rule))


class Matching(SynchronousTestCase):
    @each(
        ("allow in pong any", IN, "pong", Destination("tcp", None, (V4,), 4000), Match.YES),
        ("allow in pong any", OUT, "pong", Destination("tcp", None, (V4,), 4000), Match.NO),
        ("allow out pong any", OUT, "pongd", Destination("tcp", "a", None, 1), Match.NO),
        ("allow out pong any", OUT, None, Destination("tcp", "a", None, 1), Match.NO),
        ("allow out any any", OUT, None, Destination("tcp", "a", None, 1), Match.YES),
        ("allow out any any", OUT, "x", Destination("unix", "x", None, None), Match.YES),
        # scheme
        ("allow out any tcp:any", OUT, "x", Destination("tcp", "a", None, 1), Match.YES),
        ("allow out any tcp:any", OUT, "x", Destination("tls", "a", None, 1), Match.NO),
        ("allow out any tcp:any", OUT, "x", Destination("unix", "a", None, None), Match.NO),
        # name and port
        ("deny out any tcp:a", OUT, "x", Destination("tcp", "a", None, 1), Match.YES),
        ("deny out any tcp:a", OUT, "x", Destination("tcp", "b.a", None, 1), Match.NO),
        ("deny out any tcp:a", OUT, "x", Destination("tcp", None, (V4,), 1), Match.NO),
        ("deny out any tcp:a:1", OUT, "x", Destination("tcp", "a", None, 1), Match.YES),
        ("deny out any tcp:a:1", OUT, "x", Destination("tcp", "a", None, 2), Match.NO),
        ("allow out any tcp:a:1", OUT, "x", Destination("tcp", "a", (V4,), 1), Match.YES),
        # address
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", "a", None, 1), Match.MAYBE),
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", "a", (V4,), 1), Match.YES),
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", None, (V4,), 1), Match.YES),
        ("deny out any tcp:192.0.2.7", OUT, "x", Destination("tcp", "a", (V6,), 1), Match.NO),
        ("deny out any tcp:192.0.2.7:2", OUT, "x", Destination("tcp", "a", None, 1), Match.NO),
        ("deny out any tcp:[2001:db8::7]:1", OUT, "x", Destination("tcp", "a", (V6,), 1), Match.YES),
        # local services
        ("deny out any unix:a", OUT, "x", Destination("unix", "a", None, None), Match.YES),
        ("deny out any unix:a", OUT, "x", Destination("unix", "b", None, None), Match.NO),
        ("deny out any unix:any", OUT, "x", Destination("unix", "b", None, None), Match.YES),
        # a peer that came in: its source port says nothing, its name is what it proved
        ("allow in any tcp:192.0.2.7:9000", IN, "x", Destination("tcp", None, (V4,), 51234), Match.YES),
        ("deny in any tcp:192.0.2.7:9000", IN, "x", Destination("tcp", None, (V4,), 51234), Match.YES),
        ("allow in any tcp:192.0.2.7", IN, "x", Destination("tcp", None, None, 0), Match.MAYBE),
        ("allow in any tls:a.example", IN, "x", Destination("tls", "a.example", (V4,), 51234), Match.YES),
        ("allow in any tls:a.example", IN, "x", Destination("tls", None, (V4,), 51234), Match.NO),
    )
    def test_whether_a_rule_speaks_of_a_connection(
        self, text: str, direction: Direction, service: str | None, to: Destination, wanted: Match
    ) -> None:
        self.assertEqual(matches(parse_rule(text), direction, service, to), wanted)

    @each(
        ("compatible", "::192.0.2.7"),
        ("6to4", "2002:c000:207::1"),
        ("nat64", "64:ff9b::192.0.2.7"),
        ("isatap", "2001:db8::5efe:192.0.2.7"),
        ("mapped", "::ffff:192.0.2.7"),
    )
    def test_a_deny_closes_every_spelling_and_an_allow_opens_the_very_one(self, _: str, text: str) -> None:
        to = Destination("tcp", None, (ipaddress.ip_address(text),), 1)
        self.assertEqual(matches(parse_rule("deny out any tcp:192.0.2.7"), OUT, "x", to), Match.YES)
        self.assertEqual(matches(parse_rule("deny out any tcp:192.0.2.8"), OUT, "x", to), Match.NO)
        self.assertEqual(matches(parse_rule("allow out any tcp:192.0.2.7"), OUT, "x", to), Match.NO)

    @PROPERTY
    @given(rules(allow=False), questions())
    def test_only_a_rule_by_address_ever_waits_for_addresses(self, rule: Rule, question: Question) -> None:
        to = dataclasses.replace(question.to, addresses=None)
        found = matches(rule, rule.direction, rule.service, to)
        if found is Match.MAYBE:
            self.assertIsNotNone(rule.peer.address)
        for address in (V4, V6):
            known = matches(rule, rule.direction, rule.service, dataclasses.replace(to, addresses=(address,)))
            if found is Match.MAYBE:
                self.assertEqual(known is Match.YES, rule.peer.address in list(unwrap(address)))
            else:
                self.assertEqual(known, found)


class Shown(SynchronousTestCase):
    @each(
        (Destination("tcp", "a.example", (V4,), 80), "tcp:a.example:80"),
        (Destination("tcp", None, (V4, V6), 80), "tcp:192.0.2.7:80"),
        (Destination("tcp", None, (V6,), 80), "tcp:[2001:db8::7]:80"),
        (Destination("unix", "pong", None, None), "unix:pong"),
        (Destination("tls", None, None, None), "tls:?"),
    )
    def test_a_destination_reads_as_the_peer_of_a_rule(self, to: Destination, shown: str) -> None:
        self.assertEqual((str(to), to.as_peer(OUT)), (shown, shown))

    def test_a_caller_reads_as_a_peer_without_its_source_port(self) -> None:
        self.assertEqual(Destination("tcp", None, (V4,), 51234).as_peer(IN), "tcp:192.0.2.7")
