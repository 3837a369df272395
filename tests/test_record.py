"""plumberd.pure.record: every member in every line, in order, as the document says, and never a password."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.decide import Verdict
from plumberd.pure.policy.peer import Destination
from plumberd.pure.record import (
    DROPPED_MEMBERS,
    INFO,
    LISTED,
    MEMBERS,
    NOTICE,
    REFUSED,
    RULE_MEMBERS,
    STEPS,
    TEXT_CHARS,
    WARNING,
    WHO_MEMBERS,
    Outcome,
    dropped,
    line,
    record,
    refusal,
    timestamp,
)
from plumberd.pure.uri import UriError, mask, parse_uri
from plumberd.pure.who import LocalWho, RemoteWho
from tests.strategies import uris
from tests.tables import PROPERTY, each

ROOT = Path(__file__).resolve().parent.parent
WHEN = 1786710896.789
ADDRESSES = (ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1"))
ALICE = LocalWho(1000, 100, (100, 27), 4711, "", False, "/system.slice/ci.service")
CALLER = RemoteWho("tls", ipaddress.ip_address("198.51.100.7"), 50123, frozenset(("login:bob", "cert:example.com")))
PONG = parse_uri("tls://user:s3cret@pong.example.com:9000/pong")
RULED = Verdict(
    True, "3: allow out pong any", "rule 3 (rules.toml:12) allows it", None, ADDRESSES[:1], 3, "rules.toml:12"
)
GRANTED = Outcome(
    "granted",
    "out",
    "pong",
    Destination("tls", "pong.example.com", ADDRESSES, 9000),
    ALICE,
    mode="locked",
    seconds=0.0123456,
    decided=RULED,
    uri=PONG,
    address=ADDRESSES[0],
    addresses=ADDRESSES,
    steps=(("who", 0.0001), ("resolve", 0.01), ("connect", 0.002)),
    ident=7,
    generation=2,
)
EVERYTHING = {
    "time": "2026-08-14T12:34:56.789Z",
    "id": 7,
    "direction": "out",
    "service": "pong",
    "uri": "tls://user:***@pong.example.com:9000/pong",
    "to": "tls:pong.example.com:9000",
    "who": {
        "kind": "local",
        "uid": 1000,
        "gid": 100,
        "pid": 4711,
        "user": "alice",
        "exe": "/usr/bin/client",
        "cgroup": "/system.slice/ci.service",
        "confined": None,
        "scheme": None,
        "address": None,
        "port": None,
        "identities": [],
        "via": None,
        "text": None,
    },
    "verdict": "granted",
    "would": None,
    "reason": "rule 3 (rules.toml:12) allows it",
    "rule": {"number": 3, "text": "allow out pong any", "source": "rules.toml:12"},
    "mode": "locked",
    "addresses": ["192.0.2.1", "2001:db8::1"],
    "address": "192.0.2.1",
    "ms": 12.345,
    "steps": {"who": 0.1, "resolve": 10.0, "connect": 2.0},
    "up": None,
    "down": None,
    "generation": 2,
}


def written(outcome: Outcome) -> dict[str, Any]:
    """Return the line as a reader has it."""
    members = json.loads(line(outcome, WHEN).data)
    assert isinstance(members, dict)
    return members


class Members(SynchronousTestCase):
    def test_everything_that_is_known_stands_in_it(self) -> None:
        self.assertEqual(record(GRANTED, WHEN, "alice", "/usr/bin/client"), EVERYTHING)

    @each(
        ("everything", GRANTED),
        ("nothing", Outcome("denied")),
        ("a_remote_caller", Outcome("ended", "in", "pong", "", CALLER, up=3, down=4)),
        ("somebody_in_words", Outcome("granted", "out", "pong", PONG, "a broker")),
        ("a_uid_alone", Outcome("busy", "out", uid=1000)),
    )
    def test_every_member_is_in_every_line_in_one_order(self, _: str, outcome: Outcome) -> None:
        members = written(outcome)
        self.assertEqual(tuple(members), MEMBERS)
        self.assertEqual(tuple(members["who"]), WHO_MEMBERS)
        self.assertEqual(tuple(members["rule"]), RULE_MEMBERS)

    def test_what_is_not_known_is_null_and_no_empty_text(self) -> None:
        members = record(Outcome("denied"), WHEN)
        known = {name: value for name, value in members.items() if value is not None}
        self.assertEqual(set(known), {"time", "who", "verdict", "rule", "addresses", "ms", "steps", "generation"})
        self.assertEqual(set(members["rule"].values()), {None})
        who = members["who"]
        self.assertEqual((who.pop("kind"), who.pop("identities"), set(who.values())), ("other", [], {None}))
        self.assertEqual((members["addresses"], members["steps"], members["generation"]), ([], {}, 0))

    def test_a_remote_caller_has_its_address_and_what_it_has_proved(self) -> None:
        who = record(Outcome("granted", "in", "pong", "", CALLER), WHEN)["who"]
        known = {name: value for name, value in who.items() if value is not None}
        self.assertEqual(
            known,
            {
                "kind": "remote",
                "scheme": "tls",
                "address": "198.51.100.7",
                "port": 50123,
                "identities": ["cert:example.com", "login:bob"],
            },
        )

    def test_the_gateway_that_says_who_it_is_stands_beside_it(self) -> None:
        told = RemoteWho("tls", None, 0, frozenset({"login:bob"}), "psk:edge")
        who = record(Outcome("granted", "in", "pong", "", told), WHEN)["who"]
        self.assertEqual((who["identities"], who["via"]), (["login:bob"], "psk:edge"))

    def test_a_caller_without_an_address_has_none(self) -> None:
        who = record(Outcome("granted", "in", "pong", "", RemoteWho("tcp", None)), WHEN)["who"]
        self.assertEqual((who["address"], who["port"]), (None, None))

    def test_a_confined_client_is_told_why(self) -> None:
        who = record(Outcome("denied", "out", who=LocalWho(1, 1, (), 9, "another namespace")), WHEN)["who"]
        self.assertEqual((who["confined"], who["cgroup"]), ("another namespace", None))

    def test_a_local_client_may_be_known_by_its_uid_alone(self) -> None:
        who = record(Outcome("busy", "out", uid=1000), WHEN, "alice")["who"]
        self.assertEqual((who["kind"], who["uid"], who["user"], who["pid"]), ("local", 1000, "alice", None))

    def test_somebody_in_words_stays_that(self) -> None:
        who = record(Outcome("granted", who="a broker"), WHEN)["who"]
        self.assertEqual((who["kind"], who["text"]), ("other", "a broker"))

    @each(
        ("a_uri", parse_uri("tls://pong.example.com/pong"), "tls:pong.example.com:9001"),
        ("a_local_service", parse_uri("unix:///pong"), "unix:pong"),
        ("an_ipv6_address", parse_uri("tcp://[2001:db8::1]:9"), "tcp:[2001:db8::1]:9"),
        ("a_destination", Destination("tcp", None, ADDRESSES[:1], 9), "tcp:192.0.2.1:9"),
        ("words", "the far side", "the far side"),
        ("nothing", "", None),
    )
    def test_where_it_goes_stands_as_the_peer_of_a_rule(self, _: str, to: object, wanted: str | None) -> None:
        for direction in ("out", "in"):
            self.assertEqual(record(Outcome("granted", direction, "pong", to, CALLER), WHEN)["to"], wanted)

    def test_a_uri_may_be_told_alone_or_as_where_it_goes(self) -> None:
        for outcome in (Outcome("granted", uri=PONG), Outcome("granted", to=PONG)):
            members = record(outcome, WHEN)
            self.assertEqual((members["uri"], members["to"]), (EVERYTHING["uri"], EVERYTHING["to"]))

    def test_the_addresses_of_a_destination_are_those_of_the_outcome(self) -> None:
        members = record(Outcome("denied", to=Destination("tcp", "h", ADDRESSES, 9)), WHEN)
        self.assertEqual(members["addresses"], ["192.0.2.1", "2001:db8::1"])

    def test_a_list_has_an_end(self) -> None:
        many = tuple(ipaddress.ip_address(number) for number in range(LISTED + 1))
        words = frozenset(f"cert:{number}.example" for number in range(LISTED + 1))
        members = record(Outcome("denied", who=RemoteWho("tls", None, 0, words), addresses=many), WHEN)
        self.assertEqual((len(members["addresses"]), len(members["who"]["identities"])), (LISTED, LISTED))

    def test_bytes_stand_at_the_end_of_a_relay_alone_and_may_be_none(self) -> None:
        ended, granted = (record(Outcome(word, "in"), WHEN) for word in ("ended", "granted"))
        self.assertEqual((ended["up"], ended["down"], granted["up"], granted["down"]), (0, 0, None, None))

    def test_a_step_that_was_taken_twice_has_the_time_of_both(self) -> None:
        steps = record(Outcome("granted", steps=(("connect", 0.001), ("who", 0.0), ("connect", 0.002))), WHEN)["steps"]
        self.assertEqual(steps, {"connect": 3.0, "who": 0.0})

    def test_a_clock_that_was_set_back_makes_no_time_negative(self) -> None:
        members = record(Outcome("granted", seconds=-3.0, steps=(("who", -1.0),)), WHEN)
        self.assertEqual((members["ms"], members["steps"]), (0.0, {"who": 0.0}))

    def test_the_steps_are_those_that_are_measured(self) -> None:
        marked = set()
        for path in (ROOT / "plumberd" / "wiring").rglob("*.py"):
            marked.update(re.findall(r"\bself\._mark\(\"(\w+)\"\)", path.read_text(encoding="utf-8")))
        self.assertEqual(marked, set(STEPS))


class Rules(SynchronousTestCase):
    def test_a_default_has_no_number_and_no_source(self) -> None:
        outcome = Outcome("denied", decided=Verdict(False, "default out=deny", "no rule matches"))
        members = record(outcome, WHEN)
        self.assertEqual(members["rule"], {"number": None, "text": "default out=deny", "source": None})
        self.assertEqual(members["reason"], "no rule matches")

    def test_the_decision_counts_before_the_text(self) -> None:
        self.assertEqual(record(Outcome("denied", rule="old", decided=RULED), WHEN)["rule"]["number"], 3)

    def test_without_a_decision_the_text_is_all_there_is(self) -> None:
        rule = record(Outcome("denied", rule="1: deny out any any"), WHEN)["rule"]
        self.assertEqual(rule, {"number": None, "text": "1: deny out any any", "source": None})

    def test_what_would_have_been_refused_says_so(self) -> None:
        would = Verdict(True, "1: log out any any", "rule 1", number=1, would="denied")
        self.assertEqual(record(Outcome("granted", decided=would), WHEN)["would"], "denied")

    def test_the_outcome_s_own_reason_comes_first(self) -> None:
        self.assertEqual(record(Outcome("timeout", reason="too slow", decided=RULED), WHEN)["reason"], "too slow")


class Encoding(SynchronousTestCase):
    @each(
        ("a_newline", "a\nb"),
        ("an_escape", "\x1b[31m\x07\x9b"),
        ("a_path_that_is_no_utf_8", "/bin/\udcff"),
        ("right_to_left", "\u202ereason"),
        ("a_nul", "a\0b"),
    )
    def test_hostile_text_is_one_printable_line_that_everybody_reads(self, _: str, text: str) -> None:
        for outcome in (Outcome("denied", reason=text), Outcome("denied", service=text), Outcome("denied", who=text)):
            data = line(outcome, WHEN).data
            self.assertTrue(all(32 <= byte <= 126 for byte in data), data)
            members = json.loads(data)
            self.assertEqual(tuple(members), MEMBERS)
            self.assertTrue(json.dumps(members, ensure_ascii=False).encode("utf-8"))  # no half of a character

    def test_long_text_is_cut(self) -> None:
        members = record(Outcome("denied", reason="x" * 100_000), WHEN, "u" * 100_000, "/" * 100_000)
        self.assertEqual(len(members["reason"]), TEXT_CHARS)

    @each(
        ("granted", Outcome("granted"), INFO),
        ("ended", Outcome("ended"), INFO),
        ("gone", Outcome("gone"), INFO),
        ("would_be_refused", Outcome("granted", decided=Verdict(True, "", "", would="denied")), NOTICE),
        *((word, Outcome(word), NOTICE) for word in sorted(REFUSED)),
    )
    def test_its_priority_tells_refusals_apart(self, _: str, outcome: Outcome, priority: int) -> None:
        found = line(outcome, WHEN)
        self.assertEqual((found.priority, found.verdict), (priority, outcome.verdict))

    def test_dropped_lines_are_a_line(self) -> None:
        found = dropped(12, WHEN - 1, WHEN)
        members = json.loads(found.data)
        self.assertEqual(tuple(members), DROPPED_MEMBERS)
        self.assertEqual(
            members, {"time": "2026-08-14T12:34:56.789Z", "dropped": 12, "since": "2026-08-14T12:34:55.789Z"}
        )
        self.assertEqual(found.priority, WARNING)

    @each(
        ("whole", 0.0, "1970-01-01T00:00:00.000Z"),
        ("never_a_second_more", 1.9999, "1970-01-01T00:00:01.999Z"),
        ("now", WHEN, "2026-08-14T12:34:56.789Z"),
    )
    def test_time_is_utc_with_milliseconds(self, _: str, when: float, wanted: str) -> None:
        self.assertEqual(timestamp(when), wanted)


class Refusals(SynchronousTestCase):
    def test_a_refused_client_is_told_what_and_why(self) -> None:
        denied = Verdict(False, "2: deny out pong any", "rule 2 denies it", number=2)
        outcome = Outcome("denied", "out", "pong", PONG, ALICE, reason="rule 2 denies it", decided=denied)
        self.assertEqual(
            refusal(outcome, WHEN),
            {
                "time": "2026-08-14T12:34:56.789Z",
                "service": "pong",
                "uri": "tls://user:***@pong.example.com:9000/pong",
                "to": "tls:pong.example.com:9000",
                "word": "denied",
                "reason": "rule 2 denies it",
                "rule": "2: deny out pong any",
            },
        )


class Text(SynchronousTestCase):
    """The line for people."""

    def test_the_decision_s_rule_and_what_it_would_be(self) -> None:
        would = Verdict(True, "1: log out any any", "", number=1, would="denied")
        self.assertEqual(
            str(Outcome("granted", "out", "pong", decided=would)),
            "granted out pong would=denied rule=[1: log out any any]",
        )

    def test_a_uri_before_a_destination_but_for_local_services(self) -> None:
        self.assertIn(" tls://user:***@pong.example.com:9000/pong ", str(GRANTED))
        local = Outcome("granted", "out", "pong", Destination("unix", "pong", None, None), uri=parse_uri("pong"))
        self.assertEqual(str(local), "granted out pong unix:pong")


class Secrets(SynchronousTestCase):
    """A password that comes in comes out nowhere."""

    def everything(self, outcome: Outcome) -> str:
        told = refusal(outcome, WHEN)
        return " ".join((line(outcome, WHEN).data.decode(), json.dumps(told), str(outcome)))

    @PROPERTY
    @given(uris(), st.sampled_from(("{}", "wanted {}, found nothing", "'{}': x", "({})", "a {} {}")))
    def test_neither_of_a_uri_nor_of_one_in_text(self, uri: Any, words: str) -> None:
        secret = "S3CRET.passw0rd"  # not masked by chance: no host and no service is like it
        if uri.scheme == "unix":
            return
        host = f"[{uri.host}]" if ":" in uri.host else uri.host
        texts = [f"{uri.scheme}://someone:{secret}@{host}:{uri.port}/x"]
        if ":" not in uri.host:
            texts.append(f"{uri.scheme}://someone@{secret}:{host}:{uri.port}/x")
        for text in texts:
            parsed = parse_uri(text)
            self.assertEqual(parsed.password, secret)
            for outcome in (Outcome("denied", "out", "s", parsed, ALICE), Outcome("denied", uri=parsed)):
                self.assertNotIn(secret, self.everything(outcome))
                self.assertIn("***", record(outcome, WHEN)["uri"])
            said = words.replace("{}", text)
            hidden = Outcome("denied", service=said, to=said, who=said, rule=said, reason=said)
            decided = Outcome("denied", decided=Verdict(False, said, said, source=said))
            for outcome in (hidden, decided):
                self.assertNotIn(secret, line(outcome, WHEN).data.decode())
                self.assertNotIn(secret, json.dumps(refusal(outcome, WHEN)))

    def test_what_is_masked_already_stays_readable(self) -> None:
        for text in (f"{PONG} did not answer", "at http://example.com/a", "mail me@example.com", mask("tls://a:b@c:x")):
            self.assertEqual(record(Outcome("denied", reason=text), WHEN)["reason"], text)

    def test_a_uri_that_is_none_is_masked_by_its_error_and_stays_so(self) -> None:
        with self.assertRaises(UriError) as raised:
            parse_uri("tls://user:s3cret@example.com:99999/pong")
        members = record(Outcome("bad-request", reason=str(raised.exception)), WHEN)
        self.assertNotIn("s3cret", json.dumps(members))
        self.assertEqual(members["reason"], str(raised.exception))


class Documented(SynchronousTestCase):
    """docs/audit.md: its tables are the members, its examples are lines."""

    def setUp(self) -> None:
        self.text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")

    def section(self, heading: str) -> str:
        """Return what stands below a heading, up to the next."""
        _, found, rest = self.text.partition(f"\n## {heading}\n")
        self.assertTrue(found, heading)
        return rest.partition("\n## ")[0]

    def rows(self, heading: str) -> list[list[str]]:
        """Return the cells of a section's table, its head left out."""
        lines = [row for row in self.section(heading).splitlines() if row.startswith("| `")]
        return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in lines]

    def examples(self) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.text.splitlines() if row.startswith("    {")]

    @each(
        ("The members", MEMBERS, ""),
        ("Who", WHO_MEMBERS, "who."),
        ("Rule", RULE_MEMBERS, "rule."),
        ("Lines that are missing", DROPPED_MEMBERS, ""),
    )
    def test_the_table_is_the_members_in_their_order(self, heading: str, names: tuple[str, ...], prefix: str) -> None:
        rows = self.rows(heading)
        self.assertEqual([row[0] for row in rows], [f"`{prefix}{name}`" for name in names])
        for row in rows:
            self.assertEqual(len(row), 4, row)
            self.assertTrue(all(row), row)

    def test_every_step_has_its_meaning(self) -> None:
        self.assertEqual([row[0] for row in self.rows("Steps")], [f"`{name}`" for name in STEPS])

    def test_every_example_has_exactly_the_members_of_a_fresh_line(self) -> None:
        examples = self.examples()
        outcomes = [example for example in examples if "dropped" not in example]
        self.assertEqual(len(examples) - len(outcomes), 1)
        for example in outcomes:
            self.assertEqual(tuple(example), tuple(written(GRANTED)))
            self.assertEqual(tuple(example["who"]), WHO_MEMBERS)
            self.assertEqual(tuple(example["rule"]), RULE_MEMBERS)
            self.assertLessEqual(set(example["steps"]), set(STEPS))

    def test_there_is_an_example_of_each_kind(self) -> None:
        outcomes = [example for example in self.examples() if "dropped" not in example]
        kinds = {(example["direction"], example["verdict"], example["would"]) for example in outcomes}
        for wanted in (
            ("out", "granted", None),
            ("out", "granted", "denied"),
            ("out", "denied", None),
            ("in", "granted", None),
            ("in", "ended", None),
        ):
            self.assertIn(wanted, kinds)

    def test_the_types_are_those_of_the_lines(self) -> None:
        words = {str: "text", int: "integer", float: "number", list: "list", dict: "object"}
        tables = [("The members", "", None), ("Who", "who.", "who"), ("Rule", "rule.", "rule")]
        for example in (*self.examples(), written(GRANTED)):
            if "dropped" in example:
                continue
            for heading, prefix, nested in tables:
                members = example if nested is None else example[nested]
                for name, kind, *_ in self.rows(heading):
                    value = members[name.strip("`").removeprefix(prefix)]
                    allowed = kind.split(" or ")
                    self.assertIn("null" if value is None else words[type(value)], allowed, name)

    def test_no_example_holds_a_password(self) -> None:
        for example in self.examples():
            for user in re.findall(r"://([^/]*)@", json.dumps(example)):
                self.assertEqual(user.partition(":")[2], "***")
