"""plumberd.pure.policy.lint: what is doubtful about rules, and no doubt that is wrong."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.decide import DEFAULTS, Policy, Question, decide
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.idle import Surroundings
from plumberd.pure.policy.lint import Doubt, lint, name_rule
from plumberd.pure.policy.rule import Match, Rule, matches, parse_rule
from plumberd.pure.policy.subject import Standing
from tests.strategies import OWN, policies
from tests.tables import PROPERTY, each
from tests.test_shadow import rule, sample_about

BARE = Surroundings((), None, (), ("tcp", "unix"), uid=1000, addresses=OWN)
"""A broker without callers."""

LISTENING = dataclasses.replace(BARE, listens=("tcp",))

ONLY_CONFINED = "only confined clients need this, the defaults let others do it anyway"
REFUSED_ANYWAY = "default out=deny refuses this anyway"
BY_ADDRESS = "a host that is denied by its name can be reached by its address"
NOT_HELD = "root and the broker's own user can do without plumberd, and are not held back"
NEEDS_PORT = "loopback and the machine's own addresses open to confined clients only with a port"
LOGS = "log lets through what is to be refused one day, and writes it down"


class LintTestCase(SynchronousTestCase):
    def lint(
        self, *lines: str, out: bool = True, inward: bool = False, around: Surroundings = BARE
    ) -> tuple[list[str], list[str]]:
        """Return warnings and notes about these rules."""
        doubts = lint([rule(line) for line in lines], {Direction.IN: inward, Direction.OUT: out}, around)
        return [str(d) for d in doubts if not d.is_note], [str(d) for d in doubts if d.is_note]


class Warnings(LintTestCase):
    @each(
        ("nothing",),
        ("closing a list", "allow in a tcp:192.0.2.1", "deny in any any"),
        ("closing a list by scheme", "allow in a tcp:192.0.2.1", "deny in any tcp:any"),
        ("a narrow one before a wide one", "deny out a tcp:192.0.2.1", "deny out any any"),
        ("two services", "deny out a any", "deny out b any"),
        ("a deny in front of an allow", "deny in a tcp:192.0.2.1", "allow in a any"),
        ("an address that a rule has to name", "allow out any tcp:any handover=locked", "allow out a tcp:169.254.1.1"),
        ("and its deny", "allow out any tcp:any handover=locked", "deny out a tcp:169.254.0.0/16"),
        ("a link-local address", "allow out a tcp:[fe80::1]"),
        ("all callers of one service", "allow in a any"),
        ("all callers who prove something", "allow in any any for psk:laptop"),
        ("a network of callers", "allow in any tcp:192.0.2.0/24"),
    )
    def test_without_any_doubt(self, _: str, *lines: str) -> None:
        around = dataclasses.replace(LISTENING, proves=("psk",))
        self.assertEqual(self.lint(*lines, around=around), ([], []))

    @each(
        ("another", ("deny out any any", "allow out a tcp:any"), "rule 2 never has its turn: rule 1 matches first"),
        ("the same", ("deny out a any", "deny out b any", "deny  out a *"), "rule 3 says the same as rule 1"),
        (
            "a deny but for addresses",
            ("allow out any any handover=locked", "deny out a unix:b", "deny out a tcp:h.example"),
            "rule 3 has its turn only for addresses that a rule has to name: else rule 1 matches first",
        ),
        (
            "a deny but for some users",
            ("allow out a unix:b for user:alice handover=locked", "deny out a unix:b for user:alice"),
            "rule 2 has its turn only for clients of whom it can't be told who they are: else rule 1 matches first",
        ),
        (
            "a deny of loopback",
            ("allow out any tcp:any handover=locked", "deny out a tcp:[::1]"),
            "rule 2 has its turn only for addresses that a rule has to name: else rule 1 matches first",
        ),
    )  # fmt: skip
    def test_a_rule_that_is_hidden(self, _: str, lines: tuple[str, ...], text: str) -> None:
        self.assertIn(text, self.lint(*lines)[0])

    def test_a_file_s_rule_is_named_with_its_place(self) -> None:
        drawn = [parse_rule("deny out any any", "a.toml:3"), parse_rule("deny out b any", "rules.d/b.toml:7")]
        (doubt,) = lint(drawn, DEFAULTS, BARE)
        self.assertEqual((doubt.number, doubt.source), (2, "rules.d/b.toml:7"))
        self.assertEqual(str(doubt), "rule 2 (rules.d/b.toml:7) never has its turn: rule 1 (a.toml:3) matches first")

    @each(("--rule", "rule 5"), ("", "rule 5"), ("a.toml:3", "rule 5 (a.toml:3)"))
    def test_the_name_of_a_rule(self, source: str, name: str) -> None:
        self.assertEqual(name_rule(5, source), name)

    @each(
        ("all of them", "allow in any any", "lets everybody reach every local service"),
        ("all of them, as a glob", "allow in ** *", "lets everybody reach every local service"),
        ("log", "log in any any", "lets everybody reach every local service"),
        ("a scheme", "allow in any tcp:any", "lets everybody who comes by tcp reach every local service"),
        ("a family", "allow in any tcp:[::]/0", "lets everybody who comes by tcp over IPv6 reach every local service"),
        ("everywhere", "allow out any any", "lets confined clients out too, to wherever no earlier rule denies it"),
    )
    def test_a_rule_that_opens_much(self, _: str, line: str, text: str) -> None:
        self.assertEqual(self.lint(line, around=LISTENING)[0][0], f"rule 1 {text}")

    def test_one_that_opens_registering(self) -> None:
        self.assertEqual(self.lint("allow serve any")[0], ["rule 1 lets everybody register for every service"])

    def test_a_wide_rule_that_is_hidden_opens_nothing(self) -> None:
        self.assertEqual(
            self.lint("deny in any any", "allow in any any", around=LISTENING)[0],
            ["rule 2 never has its turn: rule 1 matches first"],
        )

    def test_a_rule_that_matches_nothing_hides_none(self) -> None:
        self.assertEqual(
            self.lint("deny out any unix:ipc", "deny out any unix:ipc", around=LISTENING)[0],
            [f"rule {n} can match nothing: ipc is a name that plumberd keeps for itself" for n in (1, 2)],
        )

    def test_an_allow_under_a_default_that_allows(self) -> None:
        text = "rule 1 changes nothing: default in=allow lets it through anyway"
        self.assertEqual(self.lint("allow in a any", inward=True, around=LISTENING)[0], [text])
        self.assertEqual(self.lint("allow in a any", "deny in b any", inward=True, around=LISTENING)[0], [text])
        self.assertEqual(self.lint("allow in a any", around=LISTENING)[0], [])

    @each(
        ("a deny", "deny in a any"),
        ("a deny of all", "deny in any tcp:any"),
        ("a deny of a glob", "deny in * tcp:any"),
        ("addresses, which not every caller has", "allow in a tcp:192.0.2.0/24"),
    )
    def test_but_not_in_front_of(self, _: str, behind: str) -> None:
        warnings, _notes = self.lint("allow in a tcp:any", behind, inward=True, around=LISTENING)
        self.assertEqual([warning for warning in warnings if warning.startswith("rule 1")], [])

    def test_rules_that_only_log(self) -> None:
        self.assertEqual(self.lint("log out a any")[0], [f"{LOGS}: rule 1"])
        self.assertEqual(self.lint("log out a any", "deny out b any", "log in c any")[0], [f"{LOGS}: rules 1, 3"])

    def test_many_rules_are_named_up_to_ten(self) -> None:
        (warning,) = self.lint(*(f"log out s{n} any" for n in range(13)))[0]
        self.assertEqual(warning, f"{LOGS}: rules 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 3 more")

    def test_what_opens_much_comes_first_and_notes_come_last(self) -> None:
        lines = ("deny out a unix:tcp", "deny out a tcp:h.example", "deny out a tcp:h.example", "allow in any any")
        doubts = lint([rule(line) for line in lines], DEFAULTS, LISTENING)
        self.assertEqual([(d.number, d.is_note) for d in doubts], [(4, False), (1, False), (3, False), (None, True)])


class Notes(LintTestCase):
    def notes(self, *lines: str, out: bool = True, around: Surroundings = BARE) -> list[str]:
        return self.lint(*lines, out=out, around=around)[1]

    @each(
        ("a local service", "allow out a unix:b"),
        ("an address", "allow out a tcp:192.0.2.1:80"),
        ("a user's", "allow out a tcp:h.example for user:alice"),
        ("loopback with its port", "allow out a tcp:127.0.0.1:80"),
    )
    def test_what_only_confined_clients_need(self, _: str, line: str) -> None:
        self.assertEqual(self.notes(line), [f"{ONLY_CONFINED}: rule 1"])
        self.assertEqual(
            self.notes(line, around=LISTENING),
            [f"{ONLY_CONFINED}: rule 1".replace("clients", "clients and remote callers")],
        )

    @each(
        ("a mode", True, "allow out a tcp:h.example handover=locked"),
        ("an address that all have to name", True, "allow out a tcp:169.254.1.1"),
        ("one in front of a deny", True, "allow out a tcp:h.example", "deny out a tcp:any"),
        ("one in front of a deny of all", True, "allow out a tcp:h.example", "deny out any tcp:any"),
        ("one in front of a mode", True, "allow out a tcp:h.example", "allow out a tcp:any handover=locked"),
        ("one in front of a log", True, "allow out a tcp:h.example", "log out a* tcp:any"),
        ("one that no default lets out", False, "allow out a tcp:h.example"),
    )
    def test_what_others_need_too(self, _: str, out: bool, *lines: str) -> None:
        self.assertEqual([note for note in self.notes(*lines, out=out) if ONLY_CONFINED in note], [])

    def test_a_deny_of_another_service_behind_it_changes_nothing(self) -> None:
        self.assertEqual(self.notes("allow out a tcp:any", "deny out b tcp:any"), [f"{ONLY_CONFINED}: rule 1"])

    def test_local_services_are_open_whatever_the_default_is(self) -> None:
        self.assertEqual(self.notes("allow out a unix:b", out=False), [f"{ONLY_CONFINED}: rule 1"])

    def test_endpoints_that_need_a_rule(self) -> None:
        around = dataclasses.replace(BARE, special=("tls",), carries=("tcp", "tls", "unix"))
        self.assertEqual(self.notes("allow out a any", "allow out a tls:any", around=around), [])
        self.assertEqual(self.notes("allow out a tcp:any", around=around), [f"{ONLY_CONFINED}: rule 1"])

    @each(
        ("a host", "deny out a tcp:h.example"),
        ("somebody", "deny out a tcp:any for user:nobody"),
        ("behind an allow", "allow out any tcp:192.0.2.1", "deny out a tcp:h.example"),
        ("in front of another's allow", "deny out a tcp:h.example", "allow out b tcp:any"),
    )
    def test_a_deny_under_a_default_that_denies(self, _: str, *lines: str) -> None:
        at = next(n for n, line in enumerate(lines, 1) if line.startswith("deny"))
        self.assertEqual(self.notes(*lines, out=False), [f"{REFUSED_ANYWAY}: rule {at}"])

    @each(
        ("local services", "deny out a any"),
        ("a local service", "deny out a unix:b"),
        ("in front of an allow", "deny out a tcp:h.example", "allow out a tcp:any"),
        ("in front of an allow of all", "deny out a tcp:h.example", "allow out any tcp:any"),
        ("in front of a log", "deny out a tcp:h.example", "log out any tcp:any"),
        ("all, for people who read it", "deny out any tcp:any"),
    )
    def test_a_deny_that_is_needed(self, _: str, *lines: str) -> None:
        self.assertEqual(self.notes(*lines, out=False), [])

    def test_a_deny_of_callers_under_the_default(self) -> None:
        self.assertEqual(self.notes("deny in a any", around=LISTENING), ["default in=deny refuses this anyway: rule 1"])

    def test_a_deny_by_name(self) -> None:
        self.assertEqual(
            self.notes("deny out a tcp:h.example", "deny out b tcp:*.example"), [f"{BY_ADDRESS}: rules 1, 2"]
        )

    @each(
        ("an address", "deny out any tcp:192.0.2.1"),
        ("a local service", "deny out any unix:a"),
        ("where only what is allowed can be reached", "deny out any tcp:h.example", "deny out any tcp:any"),
    )
    def test_a_deny_that_no_address_passes(self, _: str, *lines: str) -> None:
        self.assertEqual(self.notes(*lines), [])

    def test_ports_of_callers(self) -> None:
        self.assertEqual(
            self.notes("allow in a tcp:192.0.2.1:80", around=LISTENING),
            ["a caller's port is its own choice, so the port here is ignored: rule 1"],
        )

    @each(("127.0.0.1",), ("127.0.0.0/8",), ("[::1]",), ("192.0.2.7",))
    def test_loopback_and_own_addresses_without_a_port(self, host: str) -> None:
        self.assertIn(f"{NEEDS_PORT}: rule 1", self.notes(f"allow out a tcp:{host}"))
        self.assertNotIn(f"{NEEDS_PORT}: rule 1", self.notes(f"allow out a tcp:{host}:80"))

    @each(("uid:0",), ("user:alice",))
    def test_a_deny_of_who_is_not_held_back(self, who: str) -> None:
        self.assertEqual(self.notes(f"deny out a any for {who}"), [f"{NOT_HELD}: rule 1"])

    def test_a_deny_of_somebody_else(self) -> None:
        self.assertEqual(self.notes("deny out a any for uid:1001"), [])

    def test_root_in_a_container(self) -> None:
        self.assertIn(
            "root of a container without a user namespace of its own is root to rules too: rule 1",
            self.notes("allow out a any for uid:0"),
        )

    def test_units_that_can_t_be_told(self) -> None:
        around = dataclasses.replace(BARE, tells_units=False)
        self.assertEqual(
            self.notes("deny out a any for unit:ci.service", around=around),
            ["this kernel does not tell whose unit a client is (Linux 6.5), so this denies it to everybody: rule 1"],
        )


class Certain(SynchronousTestCase):
    """No doubt is wrong, whatever the rules are."""

    def named(self, doubts: Sequence[Doubt], *texts: str) -> Iterator[int]:
        """Yield the position of each rule of which one of *texts* is said."""
        for doubt in doubts:
            text = str(doubt)
            if any(one in text for one in texts):
                found = re.findall(r"\d+", text if doubt.number is None else text.partition(":")[0])
                yield from (int(number) - 1 for number in found)

    def asked(self, whole: Policy, at: int, seed: int) -> Iterator[tuple[Question, bool | None]]:
        """Yield questions that the rule at *at* grants or refuses, and what it is without it."""
        less = dataclasses.replace(whole, rules=(*whole.rules[:at], *whole.rules[at + 1 :]))
        for question in sample_about(whole.rules[at], seed, 60):
            verdict = decide(whole, question)
            if verdict.number == at + 1:
                yield question, decide(less, question).granted

    @PROPERTY
    @given(policies(most=5), st.integers(0, 2**32))
    def test_what_the_default_does_anyway_it_does(self, whole: Policy, seed: int) -> None:
        doubts = lint(whole.rules, whole.defaults, Surroundings(("tcp", "tls"), addresses=OWN, special=("systemd",)))
        for at in self.named(doubts, "changes nothing"):
            self.assertEqual({granted for _, granted in self.asked(whole, at, seed)} - {True}, set())
        for at in self.named(doubts, "refuses this anyway"):
            self.assertNotIn(True, {granted for _, granted in self.asked(whole, at, seed)})
        for at in self.named(doubts, "the defaults let others do it anyway"):
            for question, granted in self.asked(whole, at, seed):
                if question.subject.standing is Standing.LOCAL:
                    self.assertIs(granted, True, (str(whole.rules[at]), question))

    @PROPERTY
    @given(policies(least=2, most=6), st.integers(0, 2**32))
    def test_what_never_has_its_turn_never_has_it(self, whole: Policy, seed: int) -> None:
        doubts = lint(whole.rules, whole.defaults, Surroundings(("tcp", "tls"), addresses=OWN))
        for doubt in doubts:
            if doubt.number is not None and ("never has its turn" in doubt.text or "says the same" in doubt.text):
                self.assertEqual(list(self.asked(whole, doubt.number - 1, seed)), [])

    @PROPERTY
    @given(policies(least=1, most=5))
    def test_every_rule_that_is_doubted_exists_and_is_doubted_once(self, whole: Policy) -> None:
        doubts = lint(whole.rules, whole.defaults, BARE)
        numbers = [doubt.number for doubt in doubts if doubt.number is not None and "lets " not in doubt.text]
        self.assertEqual(len(numbers), len(set(numbers)))
        self.assertTrue(all(1 <= number <= len(whole.rules) for number in numbers))

    @PROPERTY
    @given(policies(least=1, most=4, directions=(Direction.IN,)), st.integers(0, 2**32))
    def test_who_is_let_in_everywhere_is(self, whole: Policy, seed: int) -> None:
        doubts = lint(whole.rules, whole.defaults, LISTENING)
        for doubt in doubts:
            if doubt.number is not None and doubt.text == "lets everybody reach every local service":
                one: Rule = whole.rules[doubt.number - 1]
                for question in sample_about(one, seed, 40):
                    found = matches(one, Direction.IN, question.service, question.to, question.subject)
                    self.assertIs(found, Match.YES)


class Quick(SynchronousTestCase):
    def test_ten_thousand_rules_of_all_kinds_take_a_few_seconds_at_most(self) -> None:
        forms = (
            "allow out s{0} tcp:any",
            "deny out any tcp:h{0}.a.example:443",
            "deny out pong tcp:10.{1}.{2}.0/24 for uid:{0}",
            "allow out any tcp:[2001:db8:{1}::]/48:{0}",
            "allow in s{0} tcp:192.0.{2}.{1}",
        )
        drawn = [parse_rule(forms[n % 5].format(n + 1, n // 100, n % 100)) for n in range(10_000)]
        began = time.process_time()
        doubts = lint(drawn, DEFAULTS, LISTENING)
        self.assertLess(time.process_time() - began, 10)
        self.assertEqual([str(doubt) for doubt in doubts if not doubt.is_note], [])
        self.assertGreater(len(doubts), 0)

    def test_where_too_many_are_alike_that_is_said(self) -> None:
        drawn = [parse_rule(f"deny out *a{n}b* any") for n in range(1500)]
        doubts = lint(drawn, DEFAULTS, BARE)
        self.assertRegex(str(doubts[0]), r"^the last \d+ rules were not compared with those before them")
