"""plumberd.pure.who: who was asking, as the log and as rules have it."""

from __future__ import annotations

import ipaddress

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.subject import Standing, Subject
from plumberd.pure.who import LocalWho, RemoteWho
from tests.tables import each


class Shown(SynchronousTestCase):
    @each(
        ("unconfined", LocalWho(1000, 100, (100, 27), 42), "uid=1000 gid=100 pid=42"),
        (
            "confined",
            LocalWho(0, 0, (), 1, "another network namespace"),
            "uid=0 gid=0 pid=1 confined (another network namespace)",
        ),
        ("v4", RemoteWho("tcp", ipaddress.ip_address("192.0.2.7"), 40000), "tcp:192.0.2.7:40000"),
        ("v6", RemoteWho("tls", ipaddress.ip_address("2001:db8::7"), 1), "tls:[2001:db8::7]:1"),
        ("no_address", RemoteWho("tcp", None), "tcp peer without address"),
    )
    def test_one_line_names_the_asker(self, _: str, who: LocalWho | RemoteWho, shown: str) -> None:
        self.assertEqual(str(who), shown)

    def test_a_local_client_counts_as_neither_confined_nor_of_our_cgroup_until_that_is_said(self) -> None:
        who = LocalWho(1, 1, (), 1)
        self.assertEqual((who.confined, who.same_cgroup), ("", False))

    def test_a_remote_peer_has_proved_nothing_until_that_is_said(self) -> None:
        self.assertEqual(RemoteWho("tcp", ipaddress.ip_address("192.0.2.7")).identities, frozenset())


class Judged(SynchronousTestCase):
    """Everybody as rules see him."""

    def test_a_local_client_is_its_uid_all_its_groups_and_its_cgroup(self) -> None:
        who = LocalWho(1000, 100, (27, 5), 42, cgroup="/system.slice/ci.service")
        wanted = Subject(Standing.LOCAL, 1000, frozenset((100, 27, 5)), "/system.slice/ci.service")
        self.assertEqual(who.subject, wanted)

    def test_a_confined_one_is_that_too(self) -> None:
        self.assertEqual(LocalWho(0, 0, (), 1, "chroot").subject, Subject(Standing.CONFINED, 0, frozenset((0,))))

    def test_a_caller_is_what_it_has_proved(self) -> None:
        proved = frozenset(("cert:a.example", "psk:k"))
        who = RemoteWho("tls", ipaddress.ip_address("192.0.2.7"), 1, proved)
        self.assertEqual(who.subject, Subject(Standing.REMOTE, words=proved))
        self.assertEqual(RemoteWho("tcp", None).subject, Subject(Standing.REMOTE))


class Proved(SynchronousTestCase):
    def test_a_caller_prints_with_what_it_has_proved(self) -> None:
        who = RemoteWho("tls", ipaddress.ip_address("192.0.2.7"), 5, frozenset(("psk:laptop", "login:carol")))
        self.assertEqual(str(who), "tls:192.0.2.7:5 login:carol psk:laptop")
