"""plumberd.pure.who: what the log says about who was asking."""

from __future__ import annotations

import ipaddress

from twisted.trial.unittest import SynchronousTestCase

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
        self.assertIsNone(RemoteWho("tcp", ipaddress.ip_address("192.0.2.7")).name)
