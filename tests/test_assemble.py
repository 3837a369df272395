"""plumberd.wiring.config.assemble: which of the two counts, and that nothing holds where one is wrong."""

from __future__ import annotations

import dataclasses
import os
from unittest import mock

from plumberd.pure.dialects import DEFAULT
from plumberd.pure.modes import Mode
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.rule import parse_rule
from plumberd.pure.uri import Uri
from plumberd.wiring.config.assemble import read_settings, reread
from plumberd.wiring.config.mistakes import ConfigurationError
from plumberd.wiring.config.settings import CommandLine, Group, Settings
from tests.configured import ConfiguredTestCase, cpu_seconds
from tests.tables import each

FILE = """
rundir = "/file"
group = "root"
admin_group = "root"
dialects = ["native"]
handover = "relayed"
parts = ["broker"]
service_users = ["7"]
broker_users = ["8"]
rules = ["deny in any any"]
default = { in = "allow", out = "deny" }
routes = { a = "tcp://file.example", b = "tcp://file.example" }
redirect = { c = "file", d = "file" }
listen.tcpd = ["9000"]
listen.publish = { pongd = ["7000"] }
listen.tlsd = ["9001"]
listen.udpd = ["9002"]
listen.publish_tls = { web = ["443"] }
services.pongd.framing = "raw"
tls = { psk_file = "psk", client_certificates = "optional" }
peer."A.example:1" = { psk = "laptop" }
limits = { relays = 5, lookups = 6 }
audit = { file = "/file.jsonl" }
audit_only = "10m"
"""

LINE = CommandLine(
    rundir="/line",
    group=Group("line", 1),
    admin_group=Group("admins", 2),
    dialects=("libipc-zig",),
    handover=Mode.LOCKED,
    rules=(parse_rule("allow in a any", "--allow"),),
    defaults={Direction.IN: False},
    redirects={"c": ("line",)},
    routes={"a": (Uri("tcp", "line.example", 1), Uri("tcp", "line.example", 2))},
    limits={"relays": 7},
    tcpd=("tcp:1",),
    publish=(("pongd", "tcp:2"),),
    tlsd=("tcp:3",),
    udpd=("udp:4",),
    parts=frozenset(("tcpd",)),
    broker_uids=frozenset((9,)),
    service_uids=frozenset((10,)),
    audit_file="/line.jsonl",
    audit_journal=True,
    audit_only_seconds=30,
)


class Both(ConfiguredTestCase):
    """The command line and the file, each with everything."""

    def setUp(self) -> None:
        super().setUp()
        self.write(f"laptop:{'0f' * 16}\ncaller:{'0f' * 16}\n", "psk", 0o600)
        self.file = self.settings(FILE)
        line = dataclasses.replace(LINE, config=self.path("plumberd.toml"))
        self.both = self.settings(FILE, line)

    def test_without_the_command_line_it_is_the_file_that_counts(self) -> None:
        file = self.file
        self.assertEqual(
            (file.rundir, file.group, file.gid, file.admin_group, file.admin_gid), ("/file", "root", 0, "root", 0)
        )
        self.assertEqual((file.dialects, file.handover, file.parts), (("native",), Mode.RELAYED, {"broker"}))
        self.assertEqual((file.audit_file, file.audit_journal, file.audit_only_seconds), ("/file.jsonl", False, 600))
        self.assertEqual(file.policy.defaults, {Direction.IN: True, Direction.OUT: False, **self.serve(file)})
        self.assertEqual(file.framings, {"pongd": "raw"})
        self.assertEqual(file.publish_tls, (("web", "tcp:443:interface=127.0.0.1"),))
        self.assertEqual((file.tls.psk_file, file.tls.client_certificates.value), (self.path("psk"), "optional"))
        self.assertEqual({name: str(peer) for name, peer in file.peers.items()}, {"a.example:1": "psk laptop"})

    def test_of_a_single_value_the_command_lines_counts(self) -> None:
        both = self.both
        self.assertEqual(
            (both.rundir, both.group, both.gid, both.admin_group, both.admin_gid), ("/line", "line", 1, "admins", 2)
        )
        self.assertEqual((both.dialects, both.handover, both.parts), (("libipc-zig",), Mode.LOCKED, {"tcpd"}))
        self.assertEqual((both.audit_file, both.audit_journal, both.audit_only_seconds), ("/line.jsonl", True, 30))

    def test_of_a_tables_members_too_and_the_others_stay(self) -> None:
        both = self.both
        self.assertEqual(both.policy.defaults, {Direction.IN: False, Direction.OUT: False, **self.serve(both)})
        self.assertEqual((both.limits.relays, both.limits.lookups), (7, 6))
        self.assertEqual(
            {name: " / ".join(map(str, choices)) for name, choices in both.routes.routes.items()},
            {"a": "tcp://line.example:1 or tcp://line.example:2", "b": "tcp://file.example:9000"},
        )
        self.assertEqual({n: str(c[0]) for n, c in both.routes.redirects.items()}, {"c": "line", "d": "file"})

    def test_lists_are_put_together_with_the_command_lines_in_front(self) -> None:
        both = self.both
        self.assertEqual([str(rule) for rule in both.policy.rules], ["allow in a any", "deny in any any"])
        self.assertEqual(both.tcpd, ("tcp:1", "tcp:9000:interface=127.0.0.1"))
        self.assertEqual(both.tlsd, ("tcp:3", "tcp:9001:interface=127.0.0.1"))
        self.assertEqual(both.udpd, ("udp:4", "udp:9002:interface=127.0.0.1"))
        self.assertEqual(both.publish, (("pongd", "tcp:2"), ("pongd", "tcp:7000:interface=127.0.0.1")))
        self.assertEqual((both.service_uids, both.broker_uids), ({7, 10}, {8, 9}))

    def serve(self, settings: Settings) -> dict[Direction, bool]:
        """Return the default that nobody can set."""
        return {d: v for d, v in settings.policy.defaults.items() if d not in (Direction.IN, Direction.OUT)}


class Neither(ConfiguredTestCase):
    def test_without_both_all_is_as_by_default(self) -> None:
        with mock.patch.dict(os.environ, {"IPC_RUNDIR": "/run/x"}):
            settings = read_settings(CommandLine())
        self.assertEqual(settings, Settings("/run/x", policy=settings.policy))
        self.assertEqual((settings.dialects, settings.policy.rules), (DEFAULT, ()))
        self.assertIn("127.0.0.1", {str(address) for address in settings.policy.own_addresses})

    def test_an_empty_file_says_nothing(self) -> None:
        self.assertEqual(dataclasses.replace(self.settings(""), config=None), read_settings(CommandLine()))


class Wrong(ConfiguredTestCase):
    """What can be seen only when both are there."""

    def mistakes_of(self, line: CommandLine) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            read_settings(line)
        return self.bare(map(str, caught.exception.mistakes))

    def test_a_loop_through_both(self) -> None:
        path = self.write("redirect.b = 'a'")
        wanted = ["--redirect: a loop of redirects: a → b → a"]
        self.assertEqual(self.mistakes_of(CommandLine(path, redirects={"a": ("b",)})), wanted)

    def test_a_loop_within_the_file_names_that(self) -> None:
        found = self.mistakes("redirect.a = 'b'\nredirect.b = [{to = 'a', for = 'uid:7'}]")
        self.assertEqual(found, ["plumberd.toml: redirect: a loop of redirects: a → b → a"])

    def test_the_command_lines_redirect_can_break_the_files_loop(self) -> None:
        path = self.write("redirect.a = 'b'\nredirect.b = 'a'")
        settings = read_settings(CommandLine(path, redirects={"b": ("c",)}))
        self.assertEqual({n: str(c[0]) for n, c in settings.routes.redirects.items()}, {"b": "c", "a": "b"})

    def test_a_directory_with_too_long_a_path(self) -> None:
        (found,) = self.mistakes(f"rundir = '/{'r' * 95}'")
        self.assertTrue(found.startswith("plumberd.toml: rundir: /rrr"), found)
        (found,) = self.mistakes_of(CommandLine(rundir="/" + "r" * 95))
        self.assertTrue(found.startswith("--rundir: /rrr"), found)

    def test_a_user_in_a_rule_who_does_not_exist_any_more(self) -> None:
        rule = parse_rule("allow out a any for user:no-such-user", "--allow")
        wanted = ["--allow: user:no-such-user: wanted the name of a user that exists"]
        self.assertEqual(self.mistakes_of(CommandLine(rules=(rule,))), wanted)

    def test_addresses_that_cannot_be_told(self) -> None:
        refuse = OSError(12, "Cannot allocate memory")
        with mock.patch("plumberd.wiring.config.assemble.own_addresses", side_effect=refuse):
            found = self.mistakes_of(CommandLine())
        self.assertEqual(found, ["plumberd: cannot tell the machine's own addresses: Cannot allocate memory"])


class Again(ConfiguredTestCase):
    """A reload: the same command line, and what the file says now."""

    def test_what_the_file_says_now_is_the_next_generation(self) -> None:
        first = self.settings("limits.relays = 5", CommandLine(self.path("plumberd.toml"), limits={"lookups": 6}))
        self.write("limits.relays = 7")
        second = reread(first.source, first.generation + 1)
        self.assertEqual((first.generation, second.generation), (1, 2))
        self.assertEqual((second.limits.relays, second.limits.lookups), (7, 6))
        self.assertEqual(reread(second.source, 1), dataclasses.replace(second, generation=1))

    def test_users_and_groups_are_asked_for_anew(self) -> None:
        rule = parse_rule("allow out a any for user:alice", "--allow")
        with mock.patch("pwd.getpwnam") as getpwnam:
            getpwnam.return_value.pw_uid = 7
            first = read_settings(CommandLine(rules=(rule,)))
            getpwnam.return_value.pw_uid = 8
            second = reread(first.source, 2)
        numbers = [settings.policy.rules[0].conditions[0].number for settings in (first, second)]
        self.assertEqual(numbers, [7, 8])

    @each(("a_mistake", "limits.relays = 0"), ("no_toml", "limits.relays = "))
    def test_with_a_mistake_it_is_an_error_and_the_old_ones_are_as_they_were(self, _: str, text: str) -> None:
        first = self.settings("limits.relays = 5")
        self.write(text)
        with self.assertRaises(ConfigurationError):
            reread(first.source, 2)
        self.assertEqual((first.limits.relays, first.generation), (5, 1))

    def test_a_file_that_is_gone_is_an_error(self) -> None:
        first = self.settings("")
        os.unlink(self.path("plumberd.toml"))
        with self.assertRaises(ConfigurationError) as caught:
            reread(first.source, 2)
        self.assertEqual(self.bare([str(caught.exception)]), ["plumberd.toml: No such file or directory"])

    def test_the_programs_folder_may_be_another_by_then(self) -> None:
        self.write("limits.relays = 5")
        settings = read_settings(CommandLine("plumberd.toml", self.home))
        self.assertEqual((settings.limits.relays, settings.config), (5, "plumberd.toml"))

    def test_settings_that_were_read_from_nowhere_cannot_be_read_again(self) -> None:
        with self.assertRaises(ConfigurationError):
            reread(Settings("/r").source, 2)


class Large(ConfiguredTestCase):
    def test_ten_thousand_rules_are_read_in_a_few_seconds(self) -> None:
        rules = "".join(f"'allow out pong{n} tcp:h{n}.example:9000 for uid:{n}',\n" for n in range(10000))
        started = cpu_seconds()
        settings = self.settings(f"rules = [\n{rules}]")
        self.assertEqual(len(settings.policy.rules), 10000)
        self.assertEqual(self.bare([settings.policy.rules[-1].source]), ["plumberd.toml:10001"])
        self.assertLess(cpu_seconds(started), 6)  # a second on a quiet machine; coverage makes it several times that

    def test_ten_thousand_wrong_ones_are_ten_thousand_mistakes(self) -> None:
        found = self.mistakes("rules = [\n" + "'allow out',\n" * 10000 + "]")
        self.assertEqual(len(found), 10000)
        self.assertTrue(found[-1].startswith("plumberd.toml:10001: rules[9999]: "), found[-1])
