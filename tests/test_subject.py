"""plumberd.pure.policy.subject: who asks, and what may stand behind a rule's ``for``."""

from __future__ import annotations

import dataclasses
import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.subject import (
    ANYBODY,
    KINDS,
    LOCAL_KINDS,
    PROVED_KINDS,
    UNMAPPED,
    VALUE_CHARS,
    Condition,
    ConditionError,
    Holds,
    Standing,
    Subject,
    all_hold,
    bind,
    cgroup_path,
    parse_cgroup,
    parse_condition,
)
from tests.strategies import EVERY, FEW, callers, locals_
from tests.tables import PROPERTY, each

YES, NO, UNTOLD = Holds.YES, Holds.NO, Holds.UNTOLD
USERS = {"alice": 1000, "root": 0, "nobody": UNMAPPED, "bob@example.com": 1001}
GROUPS = {"audio": 27, "nogroup": UNMAPPED}

ALICE = Subject(Standing.LOCAL, 1000, frozenset((100, 27)), "/system.slice/ci.service")
CAGED = Subject(Standing.CONFINED, 1000, frozenset((100,)), None)
NOBODY = Subject(Standing.LOCAL, UNMAPPED, frozenset((UNMAPPED,)), "/")
UNMAPPED_USER = Subject(Standing.LOCAL, UNMAPPED, frozenset((100,)))
UNMAPPED_USER_OF_AUDIO = Subject(Standing.LOCAL, UNMAPPED, frozenset((27,)))
UNMAPPED_GROUP = Subject(Standing.LOCAL, 1000, frozenset((100, UNMAPPED)))
CALLER = Subject(
    Standing.REMOTE,
    words=frozenset(("cert:a.example", "cert:x.b.example", "spiffe://d.example/w", "psk:laptop", "login:alice")),
)
STRANGER = Subject(Standing.REMOTE)


def bound(*texts: str) -> tuple[Condition, ...]:
    """Parse conditions, and ask for the numbers of their names."""
    return bind(map(parse_condition, texts), USERS.get, GROUPS.get)


class Read(SynchronousTestCase):
    @each(
        ("user:alice", Condition("user", "alice")),
        ("user:_apt", Condition("user", "_apt")),
        ("user:www-data", Condition("user", "www-data")),
        ("user:alice@example.com", Condition("user", "alice@example.com")),
        ("user:DOMAIN\\alice", Condition("user", "DOMAIN\\alice")),
        ("user:host$", Condition("user", "host$")),
        ("group:audio", Condition("group", "audio")),
        ("uid:0", Condition("uid", "0")),
        ("uid:4294967294", Condition("uid", "4294967294")),
        ("unit:ci.service", Condition("unit", "ci.service")),
        ("unit:ci@1.service", Condition("unit", "ci@1.service")),
        ("unit:a\\x2db.service", Condition("unit", "a\\x2db.service")),
        ("unit:a-b.slice", Condition("unit", "a-b.slice")),
        ("unit:a--b.service", Condition("unit", "a--b.service")),
        ("unit:/x/a--b.slice", Condition("unit", "/x/a--b.slice")),
        ("unit:/", Condition("unit", "/")),
        ("unit:/a/b:c.service", Condition("unit", "/a/b:c.service")),
        ("unit:/user.slice/user-1000.slice", Condition("unit", "/user.slice/user-1000.slice")),
        ("cert:example.com", Condition("cert", "example.com")),
        ("cert:EXAMPLE.com.", Condition("cert", "example.com")),
        ("cert:bücher.example", Condition("cert", "xn--bcher-kva.example")),
        ("cert:*.Example.com", Condition("cert", "*.example.com")),
        ("spiffe://d.example", Condition("spiffe", "//d.example")),
        ("spiffe://d.example/a/B.c", Condition("spiffe", "//d.example/a/B.c")),
        ("psk:laptop", Condition("psk", "laptop")),
        ("psk:a:b@c", Condition("psk", "a:b@c")),
        ("login:alice@example.com", Condition("login", "alice@example.com")),
        ("psk:" + "x" * VALUE_CHARS, Condition("psk", "x" * VALUE_CHARS)),
    )
    def test_a_condition_is_read(self, text: str, wanted: Condition) -> None:
        self.assertEqual(parse_condition(text), wanted)

    @each(
        ("", "wanted for KIND:VALUE, with one of user, group, uid, unit, cert, spiffe, psk, login"),
        ("alice", "wanted for KIND:VALUE"),
        ("user", "wanted for KIND:VALUE"),
        ("user:", "wanted for KIND:VALUE"),
        ("User:alice", "wanted for KIND:VALUE"),
        ("gid:27", "wanted for KIND:VALUE"),
        ("exe:/bin/sh", "wanted for KIND:VALUE"),
        ("user:1000", "'1000' is no name of a user; a number is written uid:N"),
        ("group:27", "'27' is no name of a group"),
        ("user:al ice", "is no name of a user"),
        ("user:a:b", "is no name of a user"),
        ("user:*", "is no name of a user"),
        ("user:ünal", "is no name of a user"),
        ("uid:", "wanted for KIND:VALUE"),
        ("uid:-1", "wanted a number from 0 to 4294967294"),
        ("uid:01", "wanted a number from 0 to 4294967294"),
        ("uid:4294967295", "wanted a number from 0 to 4294967294"),
        ("uid:99999999999", "wanted a number from 0 to 4294967294"),
        ("uid:1_0", "wanted a number"),
        ("uid:\u0661", "wanted a number"),
        ("uid:alice", "wanted a number"),
        ("uid:65534", "no rule can speak of it"),
        ("unit:ci", "wanted a system unit such as ci.service, or a whole cgroup path: /a/b"),
        ("unit:.service", "wanted a system unit"),
        ("unit:ci.timer", "wanted a system unit"),
        ("unit:ci.service/x", "wanted a system unit"),
        ("unit:*.service", "wanted a system unit"),
        ("unit:a/b", "wanted a system unit"),
        ("unit:/a/", "wanted a system unit"),
        ("unit://a", "wanted a system unit"),
        ("unit:/a//b", "wanted a system unit"),
        ("unit:/a b", "wanted a system unit"),
        ("unit:/ä", "wanted a system unit"),
        ("unit:-.slice", "a slice's name is made of names with one dash between; the root is unit:/"),
        ("unit:a--b.slice", "a slice's name"),
        ("unit:-a.slice", "a slice's name"),
        ("unit:a-.slice", "a slice's name"),
        ("cert:a..b", "cert:a..b: the host is neither a name nor an address"),
        ("cert:192.0.2.1", "wanted a DNS name, or *.NAME"),
        ("cert:[::1]", "wanted a DNS name, or *.NAME"),
        ("cert:[fe80::a]", "wanted a DNS name, or *.NAME"),
        ("cert:*.192.0.2.1", "wanted a DNS name, or *.NAME"),
        ("cert:*", "neither a name nor an address"),
        ("cert:*.", "the host is missing"),
        ("cert:a.*.example", "neither a name nor an address"),
        ("cert:*.*.example", "neither a name nor an address"),
        ("cert:any", "no host is called any"),
        ("spiffe:d.example", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe:/d.example", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://D.example/a", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example/", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example//a", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example/..", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example/./a", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://../a", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example/a%2Fb", "wanted spiffe://DOMAIN/PATH"),
        ("spiffe://d.example/*", "wanted spiffe://DOMAIN/PATH"),
        ("psk:a b", "wanted printable ASCII characters without blanks"),
        ("login:ünal", "wanted printable ASCII characters without blanks"),
        ("psk:" + "x" * (VALUE_CHARS + 1), "psk: a value of 257 characters, at most 256 are accepted"),
    )
    def test_anything_else_is_refused_with_what_would_be_accepted(self, text: str, reason: str) -> None:
        with self.assertRaises(ConditionError) as caught:
            parse_condition(text)
        self.assertIn(reason, str(caught.exception))

    def test_a_path_that_is_none_is_refused_without_trying_every_cut(self) -> None:
        began = time.process_time()
        with self.assertRaises(ConditionError):
            parse_condition("unit:" + "/" * 36 + "é")
        self.assertLess(time.process_time() - began, 2)  # trying them all takes half a minute

    @PROPERTY
    @given(EVERY.local | EVERY.proved)
    def test_printing_and_reading_are_inverse(self, condition: Condition) -> None:
        read = parse_condition(str(condition))
        self.assertEqual(read, condition)
        self.assertEqual(str(read), str(condition))

    @PROPERTY
    @given(st.builds("{}:{}".format, st.sampled_from(KINDS), st.text(max_size=20)) | st.text(max_size=20))
    def test_whatever_is_written_is_a_condition_or_a_mistake(self, text: str) -> None:
        try:
            read = parse_condition(text)
        except ConditionError:
            return
        self.assertEqual(parse_condition(str(read)), read)
        self.assertTrue(str(read).isascii())
        self.assertEqual(str(read), "".join(str(read).split()))

    def test_a_condition_speaks_of_local_clients_or_of_who_proves_something(self) -> None:
        kinds = {str(c).partition(":")[0]: c.is_local for c in map(parse_condition, ("user:a", "psk:a", "cert:a"))}
        self.assertEqual(kinds, {"user": True, "psk": False, "cert": False})
        self.assertEqual((*LOCAL_KINDS, *PROVED_KINDS), KINDS)


class Bound(SynchronousTestCase):
    def test_names_get_their_numbers_and_all_else_stays(self) -> None:
        texts = ("user:alice", "group:audio", "uid:7", "unit:ci.service", "psk:alice")
        self.assertEqual([c.number for c in bound(*texts)], [1000, 27, 7, None, None])
        self.assertEqual(list(map(str, bound(*texts))), list(texts))

    def test_a_user_is_not_looked_for_among_groups(self) -> None:
        for text in ("user:audio", "group:alice"):
            with self.assertRaises(ConditionError) as caught:
                bound(text)
            kind = text.partition(":")[0]
            self.assertEqual(str(caught.exception), f"{text}: wanted the name of a {kind} that exists")

    @each(("user:nobody",), ("group:nogroup",))
    def test_what_the_kernel_shows_for_everybody_it_cannot_name_is_nobody_s_name(self, text: str) -> None:
        with self.assertRaises(ConditionError) as caught:
            bound(text)
        self.assertIn("no rule can speak of it", str(caught.exception))

    def test_root_has_a_number_too(self) -> None:
        (condition,) = bound("user:root")
        self.assertIs(condition.holds(Subject(uid=0)), YES)
        self.assertIs(condition.holds(Subject(uid=1)), NO)


class Holding(SynchronousTestCase):
    @each(
        ("user:alice", ALICE, YES),
        ("user:alice", CAGED, YES),
        ("user:root", ALICE, NO),
        ("uid:1000", ALICE, YES),
        ("uid:0", ALICE, NO),
        ("group:audio", ALICE, YES),
        ("group:audio", CAGED, NO),
        ("unit:ci.service", ALICE, YES),
        ("unit:/system.slice/ci.service", ALICE, YES),
        ("unit:/system.slice/ci.service/sub", ALICE, NO),
        ("unit:/system.slice", ALICE, NO),
        ("unit:ci.scope", ALICE, NO),
        # who only has the same words somewhere else
        ("psk:laptop", ALICE, NO),
        ("login:alice", ALICE, NO),
        ("cert:a.example", ALICE, NO),
        # what can't be told
        ("unit:ci.service", CAGED, UNTOLD),
        ("user:alice", NOBODY, UNTOLD),
        ("uid:0", NOBODY, UNTOLD),
        ("group:audio", NOBODY, UNTOLD),
        ("group:audio", UNMAPPED_GROUP, UNTOLD),
        ("group:audio", UNMAPPED_USER_OF_AUDIO, UNTOLD),
        ("group:audio", UNMAPPED_USER, UNTOLD),
        ("user:alice", UNMAPPED_GROUP, YES),
        # callers
        ("cert:a.example", CALLER, YES),
        ("cert:b.example", CALLER, NO),
        ("cert:x.b.example", CALLER, YES),
        ("cert:*.b.example", CALLER, YES),
        ("cert:*.x.b.example", CALLER, NO),
        ("cert:*.a.example", CALLER, NO),
        ("cert:*.example", CALLER, YES),
        ("spiffe://d.example/w", CALLER, YES),
        ("spiffe://d.example", CALLER, NO),
        ("spiffe://d.example/w/x", CALLER, NO),
        ("psk:laptop", CALLER, YES),
        ("psk:LAPTOP", CALLER, NO),
        ("psk:alice", CALLER, NO),
        ("login:alice", CALLER, YES),
        ("login:laptop", CALLER, NO),
        ("user:alice", CALLER, NO),
        ("uid:0", CALLER, NO),
        ("group:audio", CALLER, NO),
        ("unit:ci.service", CALLER, NO),
        ("cert:a.example", STRANGER, NO),
        ("user:alice", STRANGER, NO),
        # nobody in particular
        ("user:alice", ANYBODY, NO),
        ("unit:ci.service", ANYBODY, UNTOLD),
    )
    def test_a_condition_holds_does_not_or_cannot_be_told(self, text: str, subject: Subject, wanted: Holds) -> None:
        (condition,) = bound(text)
        self.assertIs(condition.holds(subject), wanted)

    def test_a_caller_that_proves_a_name_is_not_the_local_user_of_that_name(self) -> None:
        for word in ("user:alice", "uid:1000", "group:audio", "unit:ci.service"):
            (condition,) = bound(word)
            self.assertIs(condition.holds(Subject(Standing.REMOTE, words=frozenset((word,)))), NO)
            whole = dataclasses.replace(ALICE, standing=Standing.REMOTE)
            self.assertIs(condition.holds(whole), NO)

    def test_the_names_that_a_certificate_proves_are_told_in_their_order(self) -> None:
        self.assertEqual(CALLER.proved_names, ("a.example", "x.b.example"))
        self.assertEqual(STRANGER.proved_names, ())

    def test_a_pre_shared_key_called_as_a_host_is_not_that_host(self) -> None:
        subject = Subject(Standing.REMOTE, words=frozenset(("psk:example.com", "login:example.com")))
        self.assertIs(parse_condition("cert:example.com").holds(subject), NO)
        self.assertIs(parse_condition("cert:*.com").holds(subject), NO)
        self.assertEqual(subject.proved_names, ())

    def test_a_name_whose_number_nobody_asked_for_cannot_be_told(self) -> None:
        for text in ("user:alice", "group:audio"):
            self.assertIs(parse_condition(text).holds(ALICE), UNTOLD)

    def test_somebody_who_is_described_by_words_is_whom_the_words_say(self) -> None:
        described = Subject(words=frozenset(("user:alice",)))
        self.assertIs(parse_condition("user:alice").holds(described), YES)
        self.assertIs(parse_condition("user:root").holds(described), NO)

    @each(
        ("none", (), True, True),
        ("one", ("user:alice",), True, True),
        ("all", ("user:alice", "group:audio", "unit:ci.service"), True, True),
        ("not_all", ("user:alice", "user:root"), False, False),
        ("the_last_does_not", ("user:alice", "group:audio", "unit:other.service"), False, False),
        ("a_proof_that_a_local_client_has_not", ("user:alice", "psk:laptop"), False, False),
    )
    def test_several_have_to_hold_all(self, _: str, texts: tuple[str, ...], opens: bool, closes: bool) -> None:
        self.assertEqual(all_hold(bound(*texts), ALICE, opens=True), opens)
        self.assertEqual(all_hold(bound(*texts), ALICE, opens=False), closes)

    @each(
        ("untold", ("unit:ci.service",), False, True),
        ("true_and_untold", ("user:alice", "unit:ci.service"), False, True),
        ("untold_and_false", ("unit:ci.service", "user:root"), False, False),
    )
    def test_what_cannot_be_told_opens_nothing_and_closes(
        self, _: str, texts: tuple[str, ...], opens: bool, closes: bool
    ) -> None:
        self.assertEqual(all_hold(bound(*texts), CAGED, opens=True), opens)
        self.assertEqual(all_hold(bound(*texts), CAGED, opens=False), closes)

    @PROPERTY
    @given(st.lists(FEW.local | FEW.proved, max_size=3), locals_ | callers)
    def test_what_opens_for_somebody_also_closes_for_him(self, conditions: list[Condition], subject: Subject) -> None:
        opens, closes = (all_hold(conditions, subject, opens=opens) for opens in (True, False))
        self.assertLessEqual(opens, closes)
        self.assertEqual(opens, all(condition.holds(subject) is YES for condition in conditions))


class CgroupPaths(SynchronousTestCase):
    @each(
        ("ci.service", "/system.slice/ci.service"),
        ("a-b.service", "/system.slice/a-b.service"),
        ("x.scope", "/system.slice/x.scope"),
        ("x.socket", "/system.slice/x.socket"),
        ("srv.mount", "/system.slice/srv.mount"),
        ("init.scope", "/init.scope"),
        ("ci@1.service", "/system.slice/system-ci.slice/ci@1.service"),
        ("a-b@c-d.service", "/system.slice/system-a\\x2db.slice/a-b@c-d.service"),
        ("a\\x2db@1.service", "/system.slice/system-a\\x5cx2db.slice/a\\x2db@1.service"),
        ("system.slice", "/system.slice"),
        ("a-b.slice", "/a.slice/a-b.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("user-1000.slice", "/user.slice/user-1000.slice"),
        ("/a/b.service", "/a/b.service"),
        ("/", "/"),
    )
    def test_a_unit_of_the_system_is_one_whole_path(self, unit: str, path: str) -> None:
        self.assertEqual(cgroup_path(unit), path)
        self.assertEqual(parse_condition(f"unit:{unit}").value, unit)

    def test_a_unit_of_that_name_under_somebody_s_own_slice_is_another(self) -> None:
        own = Subject(uid=1000, cgroup="/user.slice/user-1000.slice/user@1000.service/app.slice/ci.service")
        self.assertIs(parse_condition("unit:ci.service").holds(own), NO)

    @each(
        ("version_2", b"0::/system.slice/ci.service\n", "/system.slice/ci.service"),
        ("root", b"0::/\n", "/"),
        ("no_line_end", b"0::/a", "/a"),
        (
            "version_1",
            b"12:pids:/a/pids\n3:cpu,cpuacct:/\n1:name=systemd:/system.slice/ci.service\n",
            "/system.slice/ci.service",
        ),
        ("hybrid", b"2:pids:/x\n1:name=systemd:/system.slice/ci.service\n0::/y\n", "/system.slice/ci.service"),
        ("hybrid_in_another_order", b"0::/y\n1:name=systemd:/system.slice/ci.service\n", "/system.slice/ci.service"),
        ("a_colon_in_a_name", b"0::/a:b/c::d\n", "/a:b/c::d"),
        ("a_blank_in_a_name", b"0::/a b\n", "/a b"),
        ("not_utf_8", b"0::/\xff\n", "/\udcff"),
        ("version_1_without_systemd", b"12:pids:/a\n3:cpu,cpuacct:/b\n", None),
        ("another_named_hierarchy", b"12:name=elogind:/a\n", None),
        ("a_number_that_is_not_version_2_s", b"5::/a\n", None),
        ("controllers_that_version_2_has_not", b"0:cpu:/a\n", None),
        ("nothing", b"", None),
        ("a_line_that_is_none", b"x\n0:\n::\n", None),
        ("outside_of_the_namespace", b"0::/../system.slice/ci.service\n", None),
        ("outside_and_hybrid", b"1:name=systemd:/../ci.service\n0::/system.slice/ci.service\n", None),
        ("deleted", b"0::/system.slice/ci.service (deleted)\n", None),
        ("deleted_and_hybrid", b"0::/system.slice/ci.service\n1:name=systemd:/x (deleted)\n", None),
    )
    def test_the_path_is_that_which_systemd_names(self, _: str, text: bytes, path: str | None) -> None:
        self.assertEqual(parse_cgroup(text), path)

    @each(*((name.encode("unicode_escape").decode(), name) for name in "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
    def test_whoever_names_a_cgroup_of_his_own_cannot_write_a_line(self, _: str, end: str) -> None:
        """A user may make groups below his own, and call them as he likes; only a line feed is refused."""
        for forged in ("1:name=systemd:/system.slice/ci.service", "0::/system.slice/ci.service"):
            own = f"/user.slice/x{end}{forged}"
            self.assertEqual(parse_cgroup(f"0::{own}\n".encode()), own)
            self.assertEqual(parse_cgroup(f"1:name=systemd:{own}\n0::/z\n".encode()), own)

    @PROPERTY
    @given(st.text(st.characters(exclude_characters="\n\x00", exclude_categories=["Cs"])))
    def test_no_name_makes_another_path(self, name: str) -> None:
        found = parse_cgroup(f"0::/user.slice/x{name}\n".encode())
        self.assertIn(found, (f"/user.slice/x{name}", None))
        if found is None:
            self.assertTrue(name.endswith(" (deleted)"))
