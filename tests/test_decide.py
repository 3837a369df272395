"""plumberd.pure.policy.decide: the one decision. What no policy may ever do is in tests/test_policy_properties.py."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.modes import Mode
from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, Verdict, both, decide, judge, tried
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.rule import Match, Rule, bind_rule, parse_rule
from plumberd.pure.policy.subject import ANYBODY, UNMAPPED, Standing, Subject
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.config.arguments import group
from tests.strategies import OWN
from tests.tables import each

IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
CAGED = Subject(Standing.CONFINED)
REMOTE = Subject(Standing.REMOTE)
USERS = {"alice": 1000, "bob": 1001}
GROUPS = {"audio": 27}


def rule_of(line: str) -> Rule:
    """Parse a rule, with the numbers of the users and groups of these tests."""
    return bind_rule(parse_rule(line), USERS.get, GROUPS.get)


def policy(*lines: str, out: bool = True, inward: bool = False, audit_only: bool = False) -> Policy:
    """Return the policy of these rules."""
    return Policy(tuple(map(rule_of, lines)), {IN: inward, OUT: out}, OWN, audit_only)


def address_of(text: str) -> IPAddress:
    """Return the address of a word, in brackets or not."""
    return ipaddress.ip_address(text.strip("[]"))


def ask(text: str, *known: str, service: str | None = "pong", who: Subject = ANYBODY) -> Question:
    """Ask about ``scheme://host:port``, or ``unix:name``, with the *known* addresses."""
    scheme, rest = text.split(":", 1)
    if scheme == "unix":
        return Question(OUT, service, Destination(scheme, rest, None, None), who)
    host, port = rest.removeprefix("//").rsplit(":", 1)
    own = Uri(scheme, host.strip("[]"), int(port)).address
    found = (own,) if own else tuple(map(ipaddress.ip_address, known))
    return Question(OUT, service, Destination(scheme, None if own else host, found or None, int(port)), who)


def caller(address: str, service: str = "pong", scheme: str = "tcp", proved: tuple[str, ...] = ()) -> Question:
    """Ask about a peer that comes in from *address*, and what it has *proved*."""
    to = Destination(scheme, None, (ipaddress.ip_address(address),), None)
    return Question(IN, service, to, Subject(Standing.REMOTE, words=frozenset(proved)))


def claim(service: str, who: Subject = ANYBODY) -> Question:
    """Ask whether *who* may serve a name."""
    return Question(SERVE, service, Destination("unix", service, None, None), who)


def in_front(rule: Rule, behind: Policy) -> Policy:
    """Return *behind* with *rule* in front of its own."""
    return dataclasses.replace(behind, rules=(rule, *behind.rules))


class Defaults(SynchronousTestCase):
    def test_nothing_comes_in_and_an_unconfined_client_may_dial_out(self) -> None:
        self.assertEqual(dict(DEFAULTS), {IN: False, OUT: True})
        self.assertEqual(Policy().defaults, DEFAULTS)
        self.assertIs(Policy().audit_only, False)

    @each(
        ("caller", caller("192.0.2.1"), False, "default in=deny"),
        ("dialling", ask("tcp://example.com:80"), True, "default out=allow"),
        ("dialling_a_known_address", ask("tcp://192.0.2.1:80"), True, "default out=allow"),
        ("loopback", ask("tcp://127.0.0.1:80"), True, "default out=allow"),
        ("the_machine_s_own", ask("tcp://192.0.2.7:80"), True, "default out=allow"),
        ("local_service", ask("unix:pong"), True, "default for local services"),
        ("confined", ask("tcp://example.com:80", who=CAGED), False, "default for confined clients"),
        ("confined_local", ask("unix:pong", who=CAGED), False, "default for confined clients"),
        ("gateway", ask("tcp://example.com:80", who=REMOTE), False, "default for remote callers"),
        ("gateway_local", ask("unix:pong", who=REMOTE), False, "default for remote callers"),
        ("claim", claim("pong"), False, "default serve=deny"),
        ("root_s_claim", claim("pong", Subject(uid=0)), False, "default serve=deny"),
        ("confined_claim", claim("pong", CAGED), False, "default serve=deny"),
    )
    def test_without_rules_the_defaults_decide(self, _: str, question: Question, granted: bool, rule: str) -> None:
        verdict = decide(policy(), question)
        self.assertEqual((verdict.granted, verdict.rule, verdict.number, verdict.source), (granted, rule, None, ""))

    @each(
        ("dialling", ask("tcp://example.com:80"), False),
        ("local_service", ask("unix:pong"), True),
        ("confined_local", ask("unix:pong", who=CAGED), False),
    )
    def test_out_deny_takes_dialling_away_but_not_the_local_services(
        self, _: str, question: Question, granted: bool
    ) -> None:
        self.assertEqual(decide(policy(out=False), question).granted, granted)

    @each(("confined", CAGED), ("remote", REMOTE))
    def test_out_allow_is_no_rule_for_who_could_not_dial(self, _: str, who: Subject) -> None:
        for question in (ask("tcp://example.com:80", who=who), ask("unix:pong", who=who)):
            self.assertIs(decide(policy(out=True, inward=True), question).granted, False)

    def test_in_allow_lets_everybody_in(self) -> None:
        verdict = decide(policy(inward=True), caller("192.0.2.1"))
        self.assertEqual(
            verdict,
            Verdict(
                True,
                "default in=allow",
                "no rule matches, and the default lets it through",
                addresses=(ipaddress.ip_address("192.0.2.1"),),
            ),
        )

    def test_a_route_that_does_what_the_client_could_not_needs_a_rule(self) -> None:
        for scheme in ("unix", "tls", "systemd"):
            for who in (ANYBODY, CAGED, REMOTE):
                question = Question(OUT, "pong", Destination(scheme, None, None, None, True), who)
                self.assertIs(decide(policy(), question).granted, False)
                self.assertIs(decide(policy("allow out other any", "allow out any tcp:any"), question).granted, False)
                self.assertIs(decide(policy("allow out pong any"), question).granted, True)

    def test_a_name_that_has_no_address_is_refused(self) -> None:
        question = Question(OUT, "pong", Destination("tcp", "a.example", (), 80))
        verdict = decide(policy("allow out any any"), question)
        self.assertEqual((verdict.granted, verdict.reason), (False, "tcp:a.example:80 has no address"))


class Advice(SynchronousTestCase):
    """A refusal names the rule that would let just this through."""

    @each(
        ("a_name", ask("tls://a.example:443"), "allow out pong tls:a.example:443"),
        ("no_service", ask("tls://a.example:443", service=None), "allow out any tls:a.example:443"),
        ("an_address", ask("tcp://[2001:db8::1]:80"), "allow out pong tcp:[2001:db8::1]:80"),
        ("a_name_with_addresses", ask("tcp://a.example:80", "198.51.100.1"), "allow out pong tcp:a.example:80"),
        ("a_local_service", ask("unix:audio", who=CAGED), "allow out pong unix:audio"),
        ("a_caller", caller("192.0.2.1"), "allow in pong tcp:192.0.2.1"),
        ("a_caller_s_zone", caller("fe80::1%eth0"), "allow in pong tcp:[fe80::1]"),
        ("a_caller_without_address", Question(IN, "pong", Destination("tcp", None, None, None)), "allow in pong any"),
        (
            "where_this_machine_proves_itself",
            Question(OUT, "pong", Destination("wss", "a.example", None, 443, True)),
            "allow out pong wss:a.example:443",
        ),
        (
            "an_endpoint",
            Question(OUT, "pong", Destination("tls", None, None, None, True)),
            "allow out pong any",
        ),
        (
            "an_endpoint_no_service",
            Question(OUT, None, Destination("unix", None, None, None, True)),
            "allow out any any",
        ),
        (
            "a_confined_client_s_endpoint",
            Question(OUT, "pong", Destination("tls", "a.example", None, 1, True), CAGED),
            "allow out pong tls:a.example:1",
        ),
        (
            "an_endpoint_of_another_kind",
            Question(OUT, "pong", Destination("ssl", "a.example", None, 1, True), CAGED),
            "allow out pong any",
        ),
        (
            "an_endpoint_that_tells_nothing",
            Question(OUT, "pong", Destination("tls", None, None, None, True), CAGED),
            "allow out pong any",
        ),
        ("a_claim", claim("pong"), "allow serve pong"),
        (
            "a_caller_that_proves_something",
            caller("192.0.2.1", scheme="wss", proved=("token:phone", "cert:a.example")),
            "allow in pong wss:any for cert:a.example",
        ),
    )
    def test_it_is_told_at_the_reason_s_end(self, _: str, question: Question, proposed: str) -> None:
        for lines in ((), (f"deny {question.direction.value} any any",) if question.direction is not SERVE else ()):
            found = policy(*lines, out=False)
            verdict = decide(found, question)
            self.assertIs(verdict.granted, False)
            self.assertTrue(lines or verdict.reason.endswith(proposed), verdict.reason)
            self.assertIs(decide(in_front(parse_rule(proposed), found), question).granted, True)

    @each(
        ("confined", CAGED, "a confined client needs a rule for what leads further: allow out pong tcp:a.example:80"),
        ("remote", REMOTE, "a remote caller needs a rule for what leads further: allow out pong tcp:a.example:80"),
        (
            "local",
            ANYBODY,
            "no rule matches, and the default refuses it; a rule for it: allow out pong tcp:a.example:80",
        ),
    )
    def test_the_reason_says_who_needs_it(self, _: str, who: Subject, reason: str) -> None:
        self.assertEqual(decide(policy(out=False), ask("tcp://a.example:80", who=who)).reason, reason)

    @each(("multicast", "224.0.0.1"), ("broadcast", "255.255.255.255"), ("unspecified", "::"))
    def test_for_datagrams_to_many_machines_no_rule_is_proposed(self, _: str, address: str) -> None:
        question = ask("udp://a.example:53", address)
        reason = decide(policy(), question).reason
        self.assertNotIn("allow", reason)
        self.assertIn("single machines", reason)
        self.assertIn("allow out pong tcp:", decide(policy(), ask("tcp://a.example:53", address)).reason)

    def test_what_is_denied_would_take_one_in_front(self) -> None:
        self.assertEqual(
            decide(policy("allow in any any", "deny out any any"), ask("tcp://a.example:80")).reason,
            "rule 2 denies it; it would take a rule in front of that one: allow out pong tcp:a.example:80",
        )


class First(SynchronousTestCase):
    @each(
        ("allow_first", ("allow out pong any", "deny out pong any"), True),
        ("deny_first", ("deny out pong any", "allow out pong any"), False),
        ("log_first", ("log out pong any", "deny out pong any"), True),
        ("another_service_first", ("deny out audio any", "allow out pong any"), True),
        ("a_glob_of_others_first", ("deny out a* any", "allow out p* any"), True),
        ("a_glob_first", ("deny out p* any", "allow out pong any"), False),
        ("another_scheme_first", ("deny out any tls:any", "allow out any tcp:any"), True),
        ("another_port_first", ("deny out any tcp:example.com:81", "allow out any tcp:example.com"), True),
        ("another_range_first", ("deny out any tcp:any:81-90", "allow out any tcp:any:1-80"), True),
        ("names_below_first", ("deny out any tcp:*.example.com", "allow out any tcp:example.com"), True),
        ("the_names_above_first", ("deny out any tcp:*.com", "allow out any tcp:example.com"), False),
        ("somebody_else_first", ("deny out any any for user:bob", "allow out any any for user:alice"), True),
        ("the_other_direction_first", ("deny in any any", "deny serve any", "allow out any any"), True),
    )
    def test_the_first_rule_that_matches_decides(self, _: str, lines: tuple[str, ...], granted: bool) -> None:
        for out in (True, False):
            question = ask("tcp://example.com:80", who=Subject(uid=1000))
            self.assertIs(decide(policy(*lines, out=out), question).granted, granted)

    def test_the_verdict_names_the_rule_its_words_its_place_and_its_mode(self) -> None:
        first = parse_rule("deny out audio *", "plumberd.toml:6")
        second = parse_rule("allow  out pong * handover=relayed", "plumberd.toml:7")
        verdict = decide(Policy((first, second)), ask("tcp://example.com:80"))
        self.assertEqual(
            verdict,
            Verdict(
                True,
                "2: allow out pong * handover=relayed",
                "rule 2 allows it",
                Mode.RELAYED,
                number=2,
                source="plumberd.toml:7",
            ),
        )

    def test_a_lookup_that_names_no_service_matches_rules_for_any_alone(self) -> None:
        question = ask("tcp://example.com:80", service=None)
        for line, granted in (
            ("allow out pong any", False),
            ("allow out ** any", False),
            ("allow out any tcp:any", True),
            ("allow out * tcp:any", True),
        ):
            self.assertIs(decide(policy(line, out=False), question).granted, granted, line)

    def test_all_conditions_of_a_rule_have_to_hold(self) -> None:
        found = policy("allow out any any for user:alice for group:audio for unit:ci.service", out=False)
        alice = Subject(Standing.CONFINED, 1000, frozenset((27,)), "/system.slice/ci.service")
        for who, granted in (
            (alice, True),
            (dataclasses.replace(alice, uid=1001), False),
            (dataclasses.replace(alice, gids=frozenset()), False),
            (dataclasses.replace(alice, cgroup="/user.slice/ci.service"), False),
            (dataclasses.replace(alice, cgroup=None), False),
            (dataclasses.replace(alice, uid=UNMAPPED), False),
        ):
            self.assertIs(decide(found, ask("tcp://example.com:80", who=who)).granted, granted, str(who))

    def test_who_cannot_be_told_is_denied_what_another_is_denied(self) -> None:
        found = policy("deny out any any for user:alice", "deny out any any for unit:ci.service", "allow out any any")
        for who, granted in (
            (Subject(uid=1001, cgroup="/"), True),
            (Subject(uid=UNMAPPED, cgroup="/"), False),
            (Subject(uid=1001, cgroup=None), False),
        ):
            self.assertIs(decide(found, ask("tcp://example.com:80", who=who)).granted, granted, str(who))


class DocumentedCommandLines(SynchronousTestCase):
    def rules_of(self, words: Sequence[str]) -> Policy:
        """Return the policy of a command line's words."""
        lines = [word.removeprefix("--").replace("=", " ", 1) for word in group(words)]
        return policy(*lines)

    def test_the_three_rules_of_the_first_do_what_they_say(self) -> None:
        found = self.rules_of(
            [
                *("--allow", "in", "authd", "tls:example.com"),
                *("--deny", "in", "*", "*"),
                *("--allow", "out", "pong", "tls:pong.example.com:9000"),
            ]
        )
        for question, granted, number in (
            (caller("192.0.2.1", "authd", "tls", ("cert:example.com",)), True, 1),
            (caller("192.0.2.1", "authd", "tls", ("cert:evil.example",)), False, 2),
            (caller("192.0.2.1", "authd", "tls", ("psk:example.com",)), False, 2),
            (caller("192.0.2.1", "authd", "tls"), False, 2),
            (caller("192.0.2.1", "authd"), False, 2),
            (caller("192.0.2.1", "pong", "tls", ("cert:example.com",)), False, 2),
            (ask("tls://pong.example.com:9000", who=CAGED), True, 3),
            (ask("tls://pong.example.com:9001", who=CAGED), False, None),
            (ask("tls://pong.example.com:9000", service="audio", who=CAGED), False, None),
            (ask("tls://elsewhere.example:9000"), True, None),
        ):
            verdict = decide(found, question)
            self.assertEqual((verdict.granted, verdict.number), (granted, number), str(question))

    def test_rules_see_the_service_of_the_second_before_it_is_redirected(self) -> None:
        question = ask("unix:nextversion-authd", service="authd", who=CAGED)
        self.assertIs(decide(policy("allow out authd unix:nextversion-authd"), question).granted, True)
        self.assertIs(decide(policy("allow out nextversion-authd any"), question).granted, False)

    def test_the_route_of_the_third_is_open_by_default_and_closed_by_one_rule(self) -> None:
        question = ask("tls://example.com:9000", service="authd")
        self.assertIs(decide(policy(), question).granted, True)
        self.assertIs(decide(policy("deny out authd tls:example.com"), question).granted, False)


class WithoutAddresses(SynchronousTestCase):
    @each(
        ("plain_deny", ("deny out any tcp:example.com",), False),
        ("plain_deny_behind_what_does_not_match", ("allow out x any", "deny out any tcp:any"), False),
        ("deny_by_address", ("deny out any tcp:192.0.2.1",), None),
        ("deny_by_network", ("deny out any tcp:192.0.2.0/24",), None),
        ("allow_by_address", ("allow out any tcp:192.0.2.1",), None),
        ("deny_behind_an_allow_by_address", ("allow out any tcp:192.0.2.1", "deny out any any"), None),
        ("deny_behind_one_of_another_port", ("allow out any tcp:192.0.2.1:81", "deny out any any"), False),
        ("deny_behind_one_for_others", ("allow out any tcp:192.0.2.1 for uid:1", "deny out any any"), False),
        ("deny_behind_a_deny_by_address", ("deny out any tcp:192.0.2.1", "deny out any any"), None),
        ("allow_by_name_in_front", ("allow out any tcp:example.com", "deny out any tcp:192.0.2.1"), True),
        ("allow_by_suffix_in_front", ("allow out any tcp:*.com", "deny out any tcp:192.0.2.1"), True),
        ("nothing_matches", ("deny out any tls:any",), True),
    )
    def test_it_is_refused_only_where_no_address_could_change_that(
        self, _: str, lines: tuple[str, ...], granted: bool | None
    ) -> None:
        self.assertIs(decide(policy(*lines), ask("tcp://example.com:80")).granted, granted)

    def test_a_default_that_refuses_needs_no_addresses(self) -> None:
        self.assertIs(decide(policy(out=False), ask("tcp://example.com:80")).granted, False)
        self.assertIs(decide(policy(), ask("tcp://example.com:80", who=CAGED)).granted, False)

    def test_a_caller_without_address_is_not_let_in_by_a_rule_by_address(self) -> None:
        question = Question(IN, "pong", Destination("tcp", None, None, None), REMOTE)
        for action in ("allow", "deny"):
            for peer in ("192.0.2.1", "0.0.0.0/0", "[::]/0"):
                found = policy(f"{action} in any tcp:{peer}", "allow in any any", inward=True)
                self.assertFalse(decide(found, question).granted)


DANGERS = ("169.254.169.254", "169.254.3.4", "fd00:ec2::254", "100.100.100.200", "224.0.0.1", "0.0.0.0", "fe80::1")
NEARS = ("127.0.0.1", "::1", "192.0.2.7", "64:ff9b::7f00:1", "64:ff9b::192.0.2.7")


def host_of(text: str) -> str:
    """Return an address as it stands in a rule."""
    return f"[{text}]" if ":" in text else text


class AddressesThatNeedARule(SynchronousTestCase):
    @each(*((text,) for text in DANGERS))
    def test_a_dangerous_one_is_refused_without_a_rule_by_address(self, text: str) -> None:
        whole = "[::]/0" if ":" in text else "0.0.0.0/0"
        for question in (ask("tcp://a.example:80", text), ask(f"tcp://{host_of(text)}:80")):
            for peer in ("any", "tcp:any", "tcp:a.example", "tcp:a.example:80", "tcp:*.example", f"tcp:{whole}:80"):
                for action in ("allow", "log"):
                    verdict = decide(policy(f"{action} out any {peer}"), question)
                    self.assertIs(verdict.granted, False, peer)
                    self.assertIn("it needs a rule that names it", verdict.reason)

    @each(*((text,) for text in DANGERS))
    def test_a_rule_by_address_opens_it(self, text: str) -> None:
        host = host_of(text)
        for question in (ask("tcp://a.example:80", text), ask(f"tcp://{host}:80")):
            self.assertIs(decide(policy(f"allow out any tcp:{host}"), question).granted, True)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:80"), question).granted, True)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:80-90"), question).granted, True)
            self.assertIs(decide(policy(f"allow out any tcp:{host}:81"), question).granted, False)

    @each(("confined", CAGED), ("remote", REMOTE))
    def test_who_could_not_dial_needs_a_rule_that_names_the_port_too(self, _: str, who: Subject) -> None:
        for text in (*DANGERS, *NEARS):
            host = host_of(text)
            for question in (ask("tcp://a.example:80", text, who=who), ask(f"tcp://{host}:80", who=who)):
                for line in ("allow out any any", "allow out any tcp:a.example:80", f"allow out any tcp:{host}"):
                    verdict = decide(policy(line), question)
                    self.assertIs(verdict.granted, False, line)
                    self.assertIn("it needs a rule that names it and its port", verdict.reason)
                self.assertIs(decide(policy(f"allow out any tcp:{host}:80"), question).granted, True)

    @each(*((text,) for text in NEARS))
    def test_loopback_and_the_machine_s_own_are_ordinary_to_an_unconfined_client(self, text: str) -> None:
        question = ask("tcp://a.example:80", text)
        self.assertIs(decide(policy(), question).granted, True)
        self.assertIs(decide(policy("allow out any tcp:a.example", out=False), question).granted, True)
        self.assertIs(decide(policy(out=False), question).granted, False)

    @each(
        ("all_of_loopback", "127.0.0.0/8", "127.0.0.1", True),
        ("some_of_loopback", "127.0.0.0/30", "127.0.0.1", True),
        ("loopback_and_more", "126.0.0.0/7", "127.0.0.1", False),
        ("loopback_of_six", "[::1]/128", "::1", True),
        ("loopback_of_six_and_more", "[::]/127", "::1", False),
        ("link_local", "169.254.0.0/16", "169.254.3.4", True),
        ("some_link_local", "169.254.3.0/24", "169.254.3.4", True),
        ("link_local_and_more", "169.254.0.0/15", "169.254.3.4", False),
        ("link_local_of_six", "[fe80::]/10", "fe80::1", True),
        ("link_local_of_six_and_more", "[fe80::]/9", "fe80::1", False),
        ("metadata_among_link_local", "169.254.0.0/16", "169.254.169.254", False),
        ("metadata_nearly_alone", "169.254.169.254/31", "169.254.169.254", False),
        ("metadata_alone", "169.254.169.254/32", "169.254.169.254", True),
        ("metadata_among_ordinary", "100.64.0.0/10", "100.100.100.200", False),
        ("metadata_of_six", "[fd00:ec2::]/64", "fd00:ec2::254", False),
        ("multicast", "224.0.0.0/4", "224.0.0.1", True),
        ("multicast_and_more", "224.0.0.0/3", "224.0.0.1", False),
        ("broadcast_among_more", "240.0.0.0/4", "255.255.255.255", False),
        ("broadcast_alone", "255.255.255.255", "255.255.255.255", True),
        ("this_network", "0.0.0.0/8", "0.0.0.0", True),
        ("this_network_and_more", "0.0.0.0/7", "0.0.0.0", False),
        ("the_machine_s_own_among_more", "192.0.2.0/24", "192.0.2.7", False),
        ("the_machine_s_own_alone", "192.0.2.7/32", "192.0.2.7", True),
        ("carried_by_another", "[64:ff9b::]/96", "64:ff9b::7f00:1", False),
        ("carried_by_another_and_alone", "[64:ff9b::7f00:1]", "64:ff9b::7f00:1", True),
        ("an_ordinary_one", "0.0.0.0/0", "198.51.100.1", True),
    )
    def test_a_network_names_what_it_holds_only_where_it_lies_within_the_zone(
        self, _: str, network: str, text: str, granted: bool
    ) -> None:
        question = ask("tcp://a.example:80", text, who=CAGED)
        self.assertIs(decide(policy(f"allow out any tcp:{network}:80"), question).granted, granted)
        self.assertIs(decide(policy(f"deny out any tcp:{network}:80", "allow out any any"), question).granted, False)

    def test_the_same_holds_for_unconfined_clients_without_a_port(self) -> None:
        question = ask("tcp://a.example:80", "169.254.3.4")
        self.assertIs(decide(policy("allow out any tcp:169.254.0.0/16"), question).granted, True)
        self.assertIs(decide(policy("allow out any tcp:169.254.0.0/15"), question).granted, False)
        metadata = ask("tcp://a.example:80", "169.254.169.254")
        self.assertIs(decide(policy("allow out any tcp:169.254.0.0/16"), metadata).granted, False)

    @each(
        ("127.0.0.1", "127.0.0.1 is a loopback address: it needs a rule that names it and its port"),
        ("192.0.2.7", "192.0.2.7 is this machine's own address: it needs a rule that names it and its port"),
        ("169.254.169.254", "169.254.169.254 is a metadata address: it needs a rule that names it and its port"),
        ("0.0.0.0", "0.0.0.0 is an unspecified address: it needs a rule that names it and its port"),
        ("169.254.3.4", "169.254.3.4 is a link-local address: it needs a rule that names it and its port"),
    )
    def test_the_reason_says_what_kind_of_address_it_is_and_which_rule_names_it(self, text: str, reason: str) -> None:
        for question in (ask(f"tcp://{text}:80", who=CAGED), ask("tcp://a.example:80", text, who=CAGED)):
            self.assertEqual(decide(policy(), question).reason, f"{reason}: allow out pong tcp:{text}:80")

    def test_an_ordinary_address_needs_no_rule_by_address_even_from_a_confined_client(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.1", who=CAGED)
        self.assertIs(decide(policy("allow out any tcp:a.example"), question).granted, True)

    def test_a_rule_that_does_not_open_it_leaves_it_to_a_later_one_that_does(self) -> None:
        question = ask("tcp://a.example:80", "169.254.3.4")
        self.assertEqual(decide(policy("allow out any any", "allow out any tcp:169.254.3.4"), question).number, 2)
        found = policy("allow out any any", "deny out any any", "allow out any tcp:169.254.3.4")
        self.assertIs(decide(found, question).granted, False)

    def test_a_deny_closes_a_dangerous_address_as_any_other(self) -> None:
        question = ask("tcp://a.example:80", "169.254.3.4")
        verdict = decide(policy("deny out any tcp:a.example", "allow out any tcp:169.254.3.4"), question)
        self.assertEqual((verdict.granted, verdict.number), (False, 1))

    @each(("metadata", "169.254.169.254"), ("loopback", "127.0.0.1"))
    def test_where_a_peer_comes_from_needs_no_such_rule(self, _: str, text: str) -> None:
        self.assertIs(decide(policy("allow in pong any"), caller(text)).granted, True)

    def test_a_deny_by_address_closes_its_other_spellings_too(self) -> None:
        for peer in ("203.0.113.9", "203.0.113.0/24"):
            found = policy(f"deny out any tcp:{peer}")
            for text in ("::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2002:cb00:7109::1", "::203.0.113.9"):
                self.assertIs(decide(found, ask("tcp://a.example:80", text)).granted, False, text)
            self.assertIs(decide(found, ask("tcp://a.example:80", "64:ff9b::203.0.114.8")).granted, True)

    def test_a_link_local_address_is_named_without_its_zone_id(self) -> None:
        question = ask("tcp://a.example:80", "fe80::1%eth0", who=CAGED)
        verdict = decide(policy(), question)
        self.assertTrue(verdict.reason.endswith("allow out pong tcp:[fe80::1]:80"), verdict.reason)
        self.assertIs(decide(policy("allow out pong tcp:[fe80::1]:80"), question).granted, True)


class SeveralAddresses(SynchronousTestCase):
    def test_those_that_pass_pass_in_their_order(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.3", "169.254.169.254", "192.0.2.1", "192.0.2.2")
        verdict = decide(policy("deny out any tcp:192.0.2.1"), question)
        self.assertIs(verdict.granted, True)
        self.assertEqual(verdict.addresses, (ipaddress.ip_address("192.0.2.3"), ipaddress.ip_address("192.0.2.2")))

    def test_where_none_passes_the_first_refusal_is_told(self) -> None:
        question = ask("tcp://a.example:80", "192.0.2.1", "169.254.169.254")
        verdict = decide(policy("deny out any tcp:192.0.2.1"), question)
        self.assertEqual(
            (verdict.granted, verdict.rule, verdict.addresses), (False, "1: deny out any tcp:192.0.2.1", ())
        )

    def test_one_connection_has_one_mode(self) -> None:
        found = policy(
            "allow out any tcp:192.0.2.1 handover=locked",
            "allow out any tcp:192.0.2.3 handover=locked",
            "allow out any any handover=relayed",
        )
        verdict = decide(found, ask("tcp://a.example:80", "192.0.2.1", "192.0.2.2", "192.0.2.3"))
        self.assertEqual(verdict.handover, Mode.LOCKED)
        self.assertEqual(verdict.addresses, (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.3")))

    def test_what_really_passes_comes_before_what_would_be_denied(self) -> None:
        found = policy("log out any tcp:192.0.2.1", "allow out any tcp:192.0.2.2")
        verdict = decide(found, ask("tcp://a.example:80", "192.0.2.1", "192.0.2.2"))
        self.assertEqual((verdict.number, verdict.would), (2, ""))
        self.assertEqual(verdict.addresses, (ipaddress.ip_address("192.0.2.2"),))


class OnlyLogged(SynchronousTestCase):
    """What lets through what would be refused."""

    def test_a_log_rule_grants_and_says_that_it_would_be_denied(self) -> None:
        verdict = decide(policy("log out any tcp:any handover=relayed"), ask("tcp://a.example:80"))
        self.assertEqual(
            (verdict.granted, verdict.would, verdict.reason, verdict.handover),
            (True, "denied", "rule 1 lets it through, and logs that it would be denied", Mode.RELAYED),
        )

    @each(
        ("caller", caller("192.0.2.1")),
        ("dialling", ask("tcp://a.example:80")),
        ("an_address", ask("tcp://198.51.100.1:80", who=CAGED)),
        ("confined_local", ask("unix:pong", who=CAGED)),
        ("remote", ask("tcp://a.example:80", "198.51.100.1", who=REMOTE)),
    )
    def test_audit_only_grants_what_would_be_refused_and_says_so(self, _: str, question: Question) -> None:
        for lines in ((), ("deny in any any", "deny out any any")):
            refused = decide(policy(*lines, out=False), question)
            verdict = decide(policy(*lines, out=False, audit_only=True), question)
            known = question.to.addresses or ()
            self.assertEqual(verdict, dataclasses.replace(refused, granted=True, would="denied", addresses=known))

    @each(
        ("metadata", ask("tcp://a.example:80", "169.254.169.254")),
        ("confined_loopback", ask("tcp://a.example:80", "127.0.0.1", who=CAGED)),
        ("confined_own", ask("tcp://192.0.2.7:80", who=CAGED)),
        ("remote_loopback", ask("tcp://127.0.0.1:80", who=REMOTE)),
        ("claim", claim("pong")),
        ("claim_by_root", claim("pong", Subject(uid=0))),
        ("endpoint", Question(OUT, "pong", Destination("tls", None, None, None, True))),
        ("confined_endpoint", Question(OUT, "pong", Destination("unix", None, None, None, True), CAGED)),
    )
    def test_audit_only_opens_no_claim_and_nothing_that_needs_a_rule_which_names_it(
        self, _: str, question: Question
    ) -> None:
        for lines in ((), ("deny out any any", "deny serve any"), ("allow out any tcp:any",)):
            verdict = decide(policy(*lines, audit_only=True), question)
            self.assertEqual((verdict.granted, verdict.would), (False, ""))

    def test_audit_only_changes_nothing_that_is_granted(self) -> None:
        question = ask("tcp://a.example:80")
        self.assertEqual(decide(policy(audit_only=True), question), decide(policy(), question))

    def test_audit_only_waits_for_addresses_as_ever(self) -> None:
        found = policy("deny out any tcp:192.0.2.1", audit_only=True)
        self.assertIsNone(decide(found, ask("tcp://a.example:80")).granted)


class Claims(SynchronousTestCase):
    """Who may serve a name here."""

    @each(
        ("by_name", "allow serve pong", True),
        ("another_name", "allow serve ping", False),
        ("a_glob", "allow serve p*", True),
        ("any", "allow serve any", True),
        ("for_him", "allow serve pong for user:alice", True),
        ("for_another", "allow serve pong for user:bob", False),
        ("for_him_in_a_unit", "allow serve pong for user:alice for unit:ci.service", False),
        ("rules_of_other_directions", "allow out any any", False),
        ("denied", "deny serve pong", False),
    )
    def test_a_claim_takes_a_rule(self, _: str, line: str, granted: bool) -> None:
        for standing in (Standing.LOCAL, Standing.CONFINED):
            question = claim("pong", Subject(standing, 1000))
            self.assertIs(decide(policy(line, inward=True), question).granted, granted)

    def test_the_rule_that_helps_is_told(self) -> None:
        self.assertEqual(decide(policy(), claim("pong")).reason, "to serve a name takes a rule: allow serve pong")


class Gateway(SynchronousTestCase):
    """A caller whose service leads away from here needs rules of both directions."""

    def from_outside(self, *words: str) -> Question:
        who = Subject(Standing.REMOTE, words=frozenset(words))
        return ask("tls://b.example:443", "198.51.100.1", who=who)

    @each(
        ("none", (), False),
        ("in_alone", ("allow in any any",), False),
        ("out_for_anybody", ("allow out pong tls:b.example:443",), True),
        ("out_for_who_proves_it", ("allow out pong any for cert:a.example",), True),
        ("out_for_another", ("allow out pong any for cert:b.example",), False),
        ("out_for_a_local_user", ("allow out pong any for user:alice",), False),
        ("out_of_another_service", ("allow out ping any",), False),
        ("denied_first", ("deny out any tls:any", "allow out pong any"), False),
    )
    def test_it_is_carried_on_by_an_out_rule_alone(self, _: str, lines: tuple[str, ...], granted: bool) -> None:
        for out in (True, False):
            found = policy(*lines, out=out, inward=True)
            self.assertIs(decide(found, self.from_outside("cert:a.example")).granted, granted)

    def test_a_rule_for_a_local_user_is_not_for_who_only_says_so(self) -> None:
        found = policy("allow out any any for user:alice", "allow out any any for uid:0")
        self.assertIs(decide(found, self.from_outside("user:alice", "uid:0", "login:alice")).granted, False)


class Twice(SynchronousTestCase):
    """A connection that has to pass for two services."""

    YES = Verdict(True, "1", "yes")
    NO = Verdict(False, "2", "no")
    LATER = Verdict(None, "", "later")

    @each(
        ("yes_yes", YES, YES, True),
        ("yes_no", YES, NO, False),
        ("no_yes", NO, YES, False),
        ("later_no", LATER, NO, False),
        ("no_later", NO, LATER, False),
        ("later_yes", LATER, YES, None),
        ("yes_later", YES, LATER, None),
    )
    def test_it_is_granted_only_where_both_are(
        self, _: str, first: Verdict, second: Verdict, granted: bool | None
    ) -> None:
        self.assertIs(both(first, second).granted, granted)

    def test_only_addresses_that_pass_both_are_left(self) -> None:
        one, two, three = (ipaddress.ip_address(f"192.0.2.{n}") for n in (1, 2, 3))
        first = dataclasses.replace(self.YES, addresses=(one, two))
        self.assertEqual(both(first, dataclasses.replace(self.YES, addresses=(two, three))).addresses, (two,))
        neither = both(first, dataclasses.replace(self.YES, addresses=(three,)))
        self.assertEqual((neither.granted, neither.addresses), (False, ()))

    @each(
        (None, None, None),
        (Mode.DIRECT, None, Mode.DIRECT),
        (Mode.DIRECT, Mode.LOCKED, Mode.LOCKED),
        (Mode.AUTO, Mode.DIRECT, Mode.AUTO),
        (Mode.FRAMED, Mode.RELAYED, Mode.FRAMED),
    )
    def test_the_strictest_wish_holds(self, one: Mode | None, other: Mode | None, wanted: Mode | None) -> None:
        first, second = (dataclasses.replace(self.YES, handover=wish) for wish in (one, other))
        self.assertIs(both(first, second).handover, wanted)
        self.assertIs(both(second, first).handover, wanted)

    def test_it_would_be_denied_where_either_would(self) -> None:
        would = dataclasses.replace(self.YES, rule="3", would="denied")
        for first, second in ((would, self.YES), (self.YES, would), (would, would)):
            self.assertEqual((both(first, second).granted, both(first, second).would), (True, "denied"))
            self.assertEqual(both(first, second).rule, "3")

    def test_of_two_rules_that_let_it_through_the_first_is_named(self) -> None:
        other = dataclasses.replace(self.YES, rule="3")
        for would in ("", "denied"):
            first, second = (dataclasses.replace(one, would=would) for one in (self.YES, other))
            self.assertEqual((both(first, second).rule, both(second, first).rule), ("1", "3"))

    @each(
        ("one_name", None, ("pong",)),
        ("the_same_name", "pong", ("pong",)),
        ("another_name", "audio", ("pong", "audio")),
    )
    def test_the_service_that_the_uri_names_is_asked_about_too(
        self, _: str, far: str | None, wanted: tuple[str, ...]
    ) -> None:
        asked = []

        def decide_one(question: Question) -> Verdict:
            asked.append(question.service)
            return self.YES

        self.assertEqual(judge(decide_one, ask("tls://a.example:1"), far), self.YES)
        self.assertEqual(tuple(asked), wanted)

    @each(
        ("both", ("allow out pong any", "allow out audio any"), True),
        ("the_first", ("allow out pong any",), False),
        ("the_second", ("allow out audio any",), False),
    )
    def test_a_confined_client_needs_rules_for_both(self, _: str, lines: tuple[str, ...], granted: bool) -> None:
        found = policy(*lines)
        question = ask("tls://a.example:1", "198.51.100.1", who=CAGED)
        self.assertIs(judge(lambda one: decide(found, one), question, "audio").granted, granted)


class TriedInTurn(SynchronousTestCase):
    def test_every_rule_up_to_the_one_that_decides_is_told_with_the_reason(self) -> None:
        found = policy(
            "allow in any any",
            "deny out audio any",
            "deny out any tls:any",
            "deny out any tcp:any:81",
            "deny out any tcp:*.example.com",
            "deny out any tcp:192.0.2.9",
            "deny out any any for user:bob",
            "allow out any any",
            "deny out any any",
        )
        told = tried(found, ask("tcp://a.example:80", "198.51.100.1", who=Subject(uid=1000)))
        self.assertEqual([one.number for one in told], list(range(1, 9)))
        self.assertEqual([str(one.rule) for one in told], [str(rule) for rule in found.rules[:8]])
        self.assertEqual(
            [(one.match, one.why) for one in told],
            [
                (Match.NO, "it speaks of in"),
                (Match.NO, "another service"),
                (Match.NO, "another scheme"),
                (Match.NO, "another port"),
                (Match.NO, "another host"),
                (Match.NO, "another address"),
                (Match.NO, "somebody else"),
                (Match.YES, ""),
            ],
        )

    def test_where_none_matches_all_are_told(self) -> None:
        (told,) = tried(policy("allow out pong any"), ask("tcp://a.example:80", service=None))
        self.assertEqual((told.match, told.why), (Match.NO, "the lookup names no service"))

    def test_a_rule_that_does_not_name_the_address_is_told_so(self) -> None:
        first, second = tried(
            policy("allow out any any", "allow out any tcp:127.0.0.1:80"), ask("tcp://127.0.0.1:80", who=CAGED)
        )
        self.assertEqual((first.match, first.why), (Match.NO, "it does not name a loopback address"))
        self.assertIs(second.match, Match.YES)

    def test_one_that_speaks_of_something_else_or_denies_needs_not_name_it(self) -> None:
        first, second = tried(
            policy("allow out audio any", "deny out any any", "allow out any any"),
            ask("tcp://127.0.0.1:80", who=CAGED),
        )
        self.assertEqual((first.match, first.why), (Match.NO, "another service"))
        self.assertIs(second.match, Match.YES)

    def test_without_addresses_it_ends_where_they_would_decide(self) -> None:
        told = tried(policy("deny out any tcp:192.0.2.1", "deny out any any"), ask("tcp://a.example:80"))
        self.assertEqual([(one.match, one.why) for one in told], [(Match.MAYBE, "the addresses decide")])


class AsksFor(SynchronousTestCase):
    @each(
        ("nothing", (), False, False),
        ("nobody", ("allow out any any",), False, False),
        ("somebody", ("allow out any any", "deny out any any for user:alice"), True, False),
        ("a_proof", ("allow in any any for psk:k",), True, False),
        ("a_unit", ("allow out any any for unit:ci.service",), True, True),
        ("both", ("allow serve a for user:alice for unit:/x",), True, True),
    )
    def test_a_policy_knows_whether_it_speaks_of_some_clients_and_of_cgroups(
        self, _: str, lines: tuple[str, ...], who: bool, unit: bool
    ) -> None:
        self.assertEqual((policy(*lines).asks_who, policy(*lines).asks_unit), (who, unit))


class Proving(SynchronousTestCase):
    """Where this machine proves who it is, no client goes on its own word."""

    proving = dataclasses.replace(
        policy(), proves=frozenset(("a.example:9001", "192.0.2.9:9001", "[2001:db8::9]:9001"))
    )

    @each(
        ("by_name", ask("tls://a.example:9001"), False),
        ("by_name_with_addresses", ask("tls://a.example:9001", "198.51.100.1"), False),
        ("by_address", ask("tls://192.0.2.9:9001"), False),
        ("ipv6", ask("tls://[2001:db8::9]:9001", "2001:db8::9"), False),
        ("another_port", ask("tls://a.example:443"), True),
        ("another_host", ask("tls://b.example:9001"), True),
        ("another_scheme_proves_nothing", ask("tcp://a.example:9001"), True),
    )
    def test_it_needs_a_rule(self, _: str, question: Question, granted: bool) -> None:
        self.assertIs(decide(self.proving, question).granted, granted)
        trying_out = dataclasses.replace(self.proving, audit_only=True)
        self.assertIs(decide(trying_out, question).granted, granted)
        allowing = in_front(parse_rule("allow out pong tls:any"), self.proving)
        self.assertIs(decide(allowing, question).granted, True)
