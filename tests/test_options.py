"""plumberd.wiring.config.options: every mistake is one line that names the option, the value and what is accepted."""

from __future__ import annotations

import contextlib
import grp
import io
import os
import pwd
import shlex
import shutil
import sys
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd import plumb
from plumberd.pure.dialects import DEFAULT, DIALECTS
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice
from plumberd.wiring.config.assemble import reread
from plumberd.wiring.config.options import Options
from plumberd.wiring.config.settings import Settings
from tests.tables import each

VARIABLES = ("IPC_RUNDIR", "RUNDIR", "XDG_RUNTIME_DIR")
ALL_DIALECTS = f"some of {','.join(DIALECTS)}"
GROUP, USER = grp.getgrall()[-1], pwd.getpwall()[-1]


class OptionsTestCase(SynchronousTestCase):
    def parse(self, line: str, **environ: str) -> Settings:
        """Parse a shell's line; return what it comes to."""
        clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        with mock.patch.dict(os.environ, {**clean, **environ}, clear=True):
            options = Options()
            options.parseOptions(shlex.split(line))
        assert options.settings is not None
        return options.settings

    def mistake(self, line: str) -> str:
        """Return the one line that *line* ends with."""
        with self.assertRaises(SystemExit) as raised:
            self.parse(line)
        message = raised.exception.code
        assert isinstance(message, str)
        self.assertNotIn("\n", message)
        return message

    def rules(self, line: str) -> list[str]:
        return [str(rule) for rule in self.parse(line).policy.rules]


class Nothing(OptionsTestCase):
    def test_no_option_is_useful(self) -> None:
        settings = self.parse("")
        self.assertEqual((settings.dialects, settings.tcpd, settings.group), (DEFAULT, (), None))
        self.assertEqual((settings.policy.rules, settings.limits, settings.handover), ((), Limits(), Mode.AUTO))
        self.assertEqual(settings.policy.defaults, {Direction.IN: False, Direction.OUT: True})

    def test_without_words_those_of_the_program_are_taken(self) -> None:
        options = Options()
        with mock.patch.object(sys, "argv", ["twistd", "--rundir", "/r"]):
            options.parseOptions()
        assert options.settings is not None
        self.assertEqual(options.settings.rundir, "/r")

    def test_the_machines_own_addresses_are_known_to_the_policy(self) -> None:
        self.assertIn("127.0.0.1", {str(a) for a in self.parse("").policy.own_addresses})


class RunDirectory(OptionsTestCase):
    @each(
        ("nothing", "", {}, 0, "/run/ipc"),
        ("the older variable", "", {"RUNDIR": "/b"}, 0, "/b"),
        ("both variables", "", {"IPC_RUNDIR": "/a", "RUNDIR": "/b"}, 0, "/a"),
        ("an empty variable", "", {"IPC_RUNDIR": "", "RUNDIR": "/b"}, 0, "/b"),
        ("a user's own", "", {"XDG_RUNTIME_DIR": "/run/user/5"}, 5, "/run/user/5/ipc"),
        ("root has none", "", {"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/ipc"),
        ("the option counts most", "--rundir /o", {"IPC_RUNDIR": "/a"}, 0, "/o"),
        ("the last option counts", "--rundir /o --rundir=/p", {}, 0, "/p"),
    )
    def test_it_is_found(self, _: str, line: str, environ: dict[str, str], uid: int, wanted: str) -> None:
        with mock.patch.object(os, "geteuid", return_value=uid):
            self.assertEqual(self.parse(line, **environ).rundir, wanted)

    def test_a_relative_one_is_meant_from_here(self) -> None:
        self.assertEqual(self.parse("--rundir x/../r").rundir, os.path.join(os.getcwd(), "r"))

    def test_a_relative_one_of_the_environment_too(self) -> None:
        self.assertEqual(self.parse("", IPC_RUNDIR="r").rundir, os.path.join(os.getcwd(), "r"))

    def test_one_that_is_too_long_for_the_longest_socket_is_refused(self) -> None:
        self.assertIn("at most 107 bytes", self.mistake("--rundir /" + "r" * 95))
        self.assertEqual(self.parse("--rundir /" + "r" * 94).rundir, "/" + "r" * 94)


class Rules(OptionsTestCase):
    def test_the_order_of_all_three_options_among_each_other_is_kept(self) -> None:
        self.assertEqual(
            self.rules('--deny in a any --rule "allow out b any" --allow in c tcp:192.0.2.1 --deny out d any'),
            ["deny in a any", "allow out b any", "allow in c tcp:192.0.2.1", "deny out d any"],
        )

    def test_the_star_is_any(self) -> None:
        (rule,) = self.parse("--deny in '*' '*'").policy.rules
        self.assertEqual((rule.text, rule.normal), ("deny in * *", "deny in any any"))

    def test_who_asks_and_how_it_is_handed_over_stand_behind_the_three_words(self) -> None:
        line = f"--allow out pong any for user:{USER.pw_name} for group:{GROUP.gr_name} handover=relayed --rundir /r"
        (rule,) = self.parse(line).policy.rules
        self.assertEqual([condition.number for condition in rule.conditions], [USER.pw_uid, GROUP.gr_gid])
        self.assertIs(rule.handover, Mode.RELAYED)

    def test_who_may_serve_a_name_has_no_peer(self) -> None:
        line = f"--allow serve pong for user:{USER.pw_name} --deny serve '*' --allow in pong any"
        self.assertEqual(
            self.rules(line), [f"allow serve pong for user:{USER.pw_name}", "deny serve *", "allow in pong any"]
        )

    def test_a_hand_over_belongs_to_its_rule(self) -> None:
        (rule,) = self.parse("--allow out web tcp:h.example:80 handover=relayed").policy.rules
        self.assertIs(rule.handover, Mode.RELAYED)

    def test_a_rule_knows_the_option_that_it_came_from(self) -> None:
        sources = [r.source for r in self.parse('--allow in a any --deny in a any --rule "deny in a any"').policy.rules]
        self.assertEqual(sources, ["--allow", "--deny", "--rule"])

    def test_options_behind_a_rule_are_options(self) -> None:
        settings = self.parse("--allow in a any --rundir /r --deny in b any --tcpd 9000")
        self.assertEqual((len(settings.policy.rules), settings.rundir, len(settings.tcpd)), (2, "/r", 1))

    @each(
        ("--allow in authd", ("--allow", "wanted 3 words", "in authd")),
        ("--deny", ("--deny", "wanted 3 words", "found none")),
        ("--allow sideways a any", ("--allow", "'sideways'", "in, out or serve")),
        ("--allow serve", ("--allow", "wanted 2 words", "found serve")),
        ("--allow serve a for cert:h.example", ("--allow", "cert:h.example", "who serves is local")),
        ("--allow out a any for user:no-such-user", ("--allow: user:no-such-user", "a user that exists")),
        ("--allow out a any for alice", ("--allow", "'alice'", "KIND:VALUE")),
        ("--allow in -a any", ("--allow", "'-a'", "is no service")),
        ("--deny in .hidden any", ("--deny", "'.hidden'", "is no service")),
        ("--allow out a -any", ("--allow", "'-any'", "is no peer")),
        ("--allow out a gopher:h.example", ("--allow", "'gopher:h.example'", "schemes are tcp")),
        ("--allow out a tcp:h.example:99999999", ("--allow", "tcp:h.example:99999999", "1 to 65535")),
        ("--allow in a tcp:h.example", ("--allow", "tcp:h.example", "proves no name")),
        ("--allow in a unix:b", ("--allow", "unix:b")),
        ("--allow out a any handover=strong", ("--allow", "handover=strong", "auto|direct|locked|relayed")),
        ("--deny out a any handover=locked", ("--deny", "handover=locked")),
        ("--rule 'permit in a any'", ("--rule", "'permit'", "allow, deny or log")),
        ("--rule 'allow in a'", ("--rule", "allow|deny|log in|out SERVICE PEER")),
        ("--rule ''", ("--rule", "allow|deny|log in|out SERVICE PEER")),
        ("--rule 'deny in a any b'", ("--rule", "'b'", "write any")),
    )
    def test_a_mistake_in_one(self, line: str, words: tuple[str, ...]) -> None:
        message = self.mistake(line)
        for word in words:
            self.assertIn(word, message)


class LeftOver(OptionsTestCase):
    def test_behind_a_rule_the_shell_may_have_expanded_a_star(self) -> None:
        message = self.mistake("--deny in bin any etc home lib")
        self.assertIn("'etc home lib' left over", message)
        self.assertIn("did the shell expand the *? write any", message)

    def test_without_a_rule_it_has_not(self) -> None:
        message = self.mistake("etc home")
        self.assertIn("'etc home' left over", message)
        self.assertNotIn("shell", message)

    def test_an_option_behind_them_is_left_over_as_well(self) -> None:
        self.assertIn("'x --check' left over", self.mistake("--rundir /r x --check"))


class Defaults(OptionsTestCase):
    def test_each_direction_has_its_own(self) -> None:
        settings = self.parse("--default in=allow --default out=deny")
        self.assertEqual(settings.policy.defaults, {Direction.IN: True, Direction.OUT: False})

    def test_one_settings_default_is_not_anothers(self) -> None:
        self.parse("--default out=deny")
        self.assertTrue(self.parse("").policy.defaults[Direction.OUT])


class Targets(OptionsTestCase):
    def redirects(self, line: str) -> dict[str, str]:
        return {name: " / ".join(map(str, choices)) for name, choices in self.parse(line).routes.redirects.items()}

    def routes(self, line: str) -> dict[str, str]:
        return {name: " / ".join(map(str, choices)) for name, choices in self.parse(line).routes.routes.items()}

    def test_a_redirect_to_a_name(self) -> None:
        self.assertEqual(self.redirects("--redirect authd nextversion-authd"), {"authd": "nextversion-authd"})

    def test_a_route_and_the_route_of_all_others(self) -> None:
        self.assertEqual(
            self.routes("--route a tcp://h.example/b --route '*' 'tls://gw.example/{service}'"),
            {"a": "tcp://h.example:9000/b", "*": "tls://gw.example/{service}"},
        )

    def test_a_route_that_stands_twice_has_an_alternative(self) -> None:
        self.assertEqual(
            self.routes("--route a tcp://h.example --route b tcp://b.example --route a tcp:i.example:80"),
            {"a": "tcp://h.example:9000 or tcp://i.example:80", "b": "tcp://b.example:9000"},
        )

    def test_an_endpoint_string(self) -> None:
        self.assertEqual(self.routes("--route web tls:example.com:443"), {"web": "tls endpoint"})

    def test_a_chain_that_ends(self) -> None:
        redirects = self.parse("--redirect a b --redirect b c --redirect c unix:///d").routes.redirects
        self.assertEqual(list(redirects), ["a", "b", "c"])

    @each(
        ("--redirect a", ("--redirect", "wanted 2 words", "found a")),
        ("--redirect a a", ("--redirect", "a loop of redirects: a → a")),
        ("--redirect a b --redirect b c --redirect c b", ("--redirect", "a loop of redirects", "b → c → b")),
        (
            " ".join(f"--redirect s{n} s{n + 1}" for n in range(9)),
            ("--redirect", "a chain of 9 redirects, at most 8"),
        ),
        ("--redirect a ipc", ("--redirect", "a: 'ipc' is reserved")),
        ("--redirect ipc a", ("--redirect", "'ipc' is reserved")),
        ("--redirect -a b", ("--redirect", "'-a' is no name of a service")),
        ("--redirect a b --redirect a c", ("--redirect", "'a': wanted each service once")),
        ("--redirect a tcp://h.example:99999999", ("--redirect", "1 to 65535")),
        ("--redirect '*' b", ("--redirect", "'*' is no name of a service")),
        ("--redirect=a", ("--redirect", "'a'", "two words")),
        ("--route a", ("--route", "wanted 2 words")),
        ("--route a gopher://h.example", ("--route", "gopher", "known are tcp")),
        ("--route a tcp:h.example:99999999", ("--route", "1 to 65535")),
        ("--route a h.example:80", ("--route", "Twisted client endpoint string")),
        ("--route a nonsense:h.example:80", ("--route", "a: no client endpoint", "nonsense")),
        ("--route '*' 'nonsense:{service}:80'", ("--route", "*: no client endpoint", "nonsense")),
        ("--route a 'tcp://h.example/{service}'", ("--route", "stands only in the route *")),
        (" ".join(f"--route a tcp://h{n}" for n in range(17)), ("--route: a: 17 alternatives, at most 16",)),
        ("--route a tls:h.example:secret@x", ("--route", "a: no client endpoint", "ValueError")),
        ("--route a tls://user:secret@h.example/a", ("--route", "a: a password on the command line shows in ps")),
        (
            "--route '*' 'tls://user:secret@h.example/{service}'",
            ("--route", "*: a route for every service cannot hold a password"),
        ),
        ("--redirect a tls://user@secret:h.example:9000/a", ("--redirect", "a password on the command line")),
        ("--route a tcp://user@h.example", ("--route", "not sent over plain tcp")),
    )
    def test_a_mistake_in_one(self, line: str, words: tuple[str, ...]) -> None:
        message = self.mistake(line)
        for word in words:
            self.assertIn(word, message)
        self.assertNotIn("secret", message)


class Listeners(OptionsTestCase):
    @each(
        ("--tcpd 9000", ("tcp:9000:interface=127.0.0.1",)),
        ("--tcpd=0.0.0.0:9000", ("tcp:9000:interface=0.0.0.0",)),
        ("--tcpd [::1]:9000", (r"tcp6:9000:interface=\:\:1",)),
        ("--tcpd tcp:9000", ("tcp:9000",)),
        ("--tcpd 9000 --tcpd haproxy:tcp:9001", ("tcp:9000:interface=127.0.0.1", "haproxy:tcp:9001")),
    )
    def test_short_forms_and_endpoint_strings(self, line: str, wanted: tuple[str, ...]) -> None:
        self.assertEqual(self.parse(line).tcpd, wanted)

    @each(("99999999",), ("tcp:99999999",), ("127.0.0.1:99999999",), ("haproxy:tcp:99999999",), ("0",), ("65536",))
    def test_a_port_that_is_none(self, value: str) -> None:
        message = self.mistake(f"--tcpd {value}")
        self.assertTrue(message.startswith(f"--tcpd: '{value}': port "), message)
        self.assertIn("is not within 1 to 65535; wanted PORT, HOST:PORT or a Twisted server endpoint", message)

    def test_what_is_no_endpoint(self) -> None:
        self.assertIn("--tcpd: 'nonsense:1'", self.mistake("--tcpd nonsense:1"))

    @each(
        ("99999999", "port 99999999 is not within 1 to 65535"),
        ("haproxy:tcp:9001", "'haproxy:…': wanted PORT, HOST:PORT, or an endpoint of tcp, tcp6, unix or systemd"),
        ("ssl:9001:privateKey=/dev/null", "--tlsd: "),
    )
    def test_what_tls_cannot_be_read_from(self, value: str, wanted: str) -> None:
        message = self.mistake(f"--tlsd {value}")
        self.assertTrue(message.startswith("--tlsd: "), message)
        self.assertIn(wanted, message)

    @each(
        ("9002", "udp:9002:interface=127.0.0.1"),
        ("192.0.2.1:9002", "udp:9002:interface=192.0.2.1"),
        ("udp:9002:interface=192.0.2.1", "udp:9002:interface=192.0.2.1"),
    )
    def test_where_datagrams_are_taken(self, value: str, wanted: str) -> None:
        self.assertEqual(self.parse(f"--udpd {value} --udpd 1").udpd, (wanted, "udp:1:interface=127.0.0.1"))

    @each(("tcp:9002:interface=127.0.0.1",), ("99999",), ("224.0.0.1:9002",))
    def test_where_datagrams_cannot_be_taken(self, value: str) -> None:
        self.assertTrue(self.mistake(f"--udpd {value}").startswith("--udpd: "))

    def test_tls_wants_something_to_prove(self) -> None:
        self.assertEqual(
            self.mistake("--tlsd 9001"),
            "--tlsd: wants something that a listener can prove: tls.certificate and tls.private_key, or tls.psk_file",
        )


class Others(OptionsTestCase):
    def test_a_group_by_its_name(self) -> None:
        settings = self.parse(f"--group {GROUP.gr_name}")
        self.assertEqual((settings.group, settings.gid), (GROUP.gr_name, GROUP.gr_gid))

    def test_a_group_of_administrators(self) -> None:
        settings = self.parse(f"--admin-group {GROUP.gr_name}")
        self.assertEqual((settings.admin_group, settings.admin_gid), (GROUP.gr_name, GROUP.gr_gid))

    @each(
        ("nowhere", "", None, False),
        ("a file", "--audit a.jsonl", "a.jsonl", False),
        ("the journal", "--audit journal", None, True),
        ("both", "--audit journal --audit ./journal", "journal", True),
    )
    def test_where_attempts_are_written(self, _: str, line: str, file: str | None, journal: bool) -> None:
        settings = self.parse(line)
        self.assertEqual(settings.audit_file, file and os.path.join(os.getcwd(), file))
        self.assertIs(settings.audit_journal, journal)

    def test_a_time_for_which_refusals_are_granted(self) -> None:
        self.assertEqual(self.parse("--audit-only 2h").audit_only_seconds, 7200)
        self.assertEqual(self.parse("").audit_only_seconds, 0)

    def test_dialects_in_the_given_order_each_once(self) -> None:
        self.assertEqual(self.parse("--dialects libipc-zig,native,libipc-zig").dialects, ("libipc-zig", "native"))

    @each(("auto",), ("direct",), ("locked",), ("relayed",))
    def test_every_wish_for_a_hand_over(self, word: str) -> None:
        self.assertEqual(self.parse(f"--handover {word}").handover.value, word)

    def test_limits(self) -> None:
        limits = self.parse("--limit connect_seconds=2.5 --limit relays=7").limits
        self.assertEqual((limits.connect_seconds, limits.relays, limits.lookups), (2.5, 7, Limits().lookups))

    def test_users_of_services_by_name_and_uid(self) -> None:
        settings = self.parse(f"--service-user {USER.pw_name} --service-user 4321")
        self.assertEqual(settings.service_uids, {USER.pw_uid, 4321})

    def test_published_services_in_their_order(self) -> None:
        settings = self.parse("--publish pong 7000 --publish ping tcp:7001")
        self.assertEqual(settings.publish, (("pong", "tcp:7000:interface=127.0.0.1"), ("ping", "tcp:7001")))

    def test_parts(self) -> None:
        self.assertEqual(self.parse("--part broker --part tcpd").parts, {"broker", "tcpd"})

    def test_users_of_brokers_by_name_and_uid(self) -> None:
        settings = self.parse(f"--broker-user {USER.pw_name} --broker-user 4321")
        self.assertEqual(settings.broker_uids, {USER.pw_uid, 4321})

    @each(
        ("--rundir ''", ("--rundir", "''", "a path")),
        ("--admin-group no-such-group", ("--admin-group", "'no-such-group'", "a group that exists")),
        ("--audit ''", ("--audit", "''", "a path")),
        ("--audit a --audit b", ("--audit", "'b'", "one file, and journal")),
        ("--audit-only 8d", ("--audit-only", "'8d'", "at most 7d")),
        ("--audit-only 0s", ("--audit-only", "'0s'", "30s, 10m, 2h or 1d")),
        ("--audit-only 10", ("--audit-only", "'10'", "30s, 10m, 2h or 1d")),
        ("--config ''", ("--config", "''", "a path")),
        ("--config a --config b", ("--config", "wanted once", "can include others")),
        ("--config /nowhere/plumberd.toml", ("/nowhere/plumberd.toml: No such file or directory",)),
        ("--rundir", ("plumberd: ", "rundir", "argument")),
        ("--nonsense", ("plumberd: ", "--nonsense")),
        ("--check=yes", ("plumberd: ", "--check")),
        ("--group no-such-group", ("--group", "'no-such-group'", "a group that exists")),
        ("--default out", ("--default", "'out'", "out=allow or out=deny")),
        ("--default serve=allow", ("--default", "'serve=allow'", "in=allow, in=deny")),
        ("--default in=maybe", ("--default", "'in=maybe'", "in=allow, in=deny")),
        ("--dialects ''", ("--dialects", "''", ALL_DIALECTS)),
        ("--dialects native,libipc-1999", ("--dialects", "libipc-1999", ALL_DIALECTS)),
        ("--dialects libipc-2020,libipc-2023", ("--dialects", "libipc-2020 or libipc-2023", "the same socket")),
        ("--publish pong", ("--publish", "wanted 2 words", "found pong")),
        ("--publish ipc 7000", ("--publish", "'ipc' is reserved")),
        ("--publish -x 7000", ("--publish", "'-x' is no name of a service")),
        ("--publish pong 99999999", ("--publish", "pong: ", "'99999999'", "is not within 1 to 65535")),
        ("--part webipc", ("--part", "'webipc'", "broker or tcpd")),
        ("--broker-user no-such-user", ("--broker-user", "'no-such-user'", "a user that exists")),
        ("--broker-user 4294967295", ("--broker-user", "'4294967295'", "a user that exists")),
        ("--handover framed", ("--handover", "'framed'", "auto|direct|locked|relayed")),
        ("--handover local", ("--handover", "'local'", "auto|direct|locked|relayed")),
        ("--handover ''", ("--handover", "''", "auto|direct|locked|relayed")),
        ("--limit nonsense=1", ("--limit", "'nonsense' is no limit", "connect_seconds")),
        ("--limit relays", ("--limit", "relays=''", "a whole number")),
        ("--limit relays=0", ("--limit", "relays=0", "1 up to")),
        ("--limit relays=-1", ("--limit", "relays=-1", "1 up to")),
        ("--limit connect_seconds=nan", ("--limit", "connect_seconds=nan", "3600 seconds")),
        ("--limit connect_seconds=soon", ("--limit", "connect_seconds='soon'", "a number of seconds")),
        ("--service-user no-such-user", ("--service-user", "'no-such-user'", "a user that exists")),
        ("--service-user -1", ("--service-user", "'-1'", "a user that exists")),
        ("--service-user 4294967295", ("--service-user", "'4294967295'", "a user that exists")),
    )
    def test_a_mistake_in_one(self, line: str, words: tuple[str, ...]) -> None:
        message = self.mistake(line)
        for word in words:
            self.assertIn(word, message)


class WithConfiguration(OptionsTestCase):
    """What the file says, and what the options add to it."""

    def write(self, text: str) -> str:
        """Write a configuration into this test's folder; return its path."""
        path = self.mktemp()
        os.makedirs(path)
        os.chmod(path, 0o755)
        with open(os.path.join(path, "plumberd.toml"), "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(os.path.join(path, "plumberd.toml"), 0o644)
        return os.path.join(path, "plumberd.toml")

    def test_the_rules_of_the_options_stand_before_the_files(self) -> None:
        path = self.write("rules = ['deny in any any']")
        rules = self.parse(f"--allow in a any --config {path} --allow in b any").policy.rules
        self.assertEqual([str(rule) for rule in rules], ["allow in a any", "allow in b any", "deny in any any"])
        self.assertEqual([rule.source for rule in rules], ["--allow", "--allow", f"{path}:1"])

    def test_all_mistakes_of_the_file_are_told_one_a_line(self) -> None:
        path = self.write("rules = [\n'allow in a',\n]\nrundirs = '/r'\n[limits]\nrelays = '5'\n")
        with self.assertRaises(SystemExit) as raised:
            self.parse(f"--config {path}")
        lines = str(raised.exception.code).splitlines()
        self.assertEqual(
            [line.removeprefix(path)[:20] for line in lines],
            [":2: rules[0]: 'allow", ": limits.relays: '5'", ": rundirs: no such k"],
        )

    def test_the_settings_can_be_read_again_from_what_they_come_from(self) -> None:
        path = self.write("rundir = '/a'")
        settings = self.parse(f"--config {path} --limit relays=7")
        with open(path, "w", encoding="utf-8") as file:
            file.write("rundir = '/b'")
        again = reread(settings.source, 2)
        self.assertEqual((again.rundir, again.limits.relays, again.generation), ("/b", 7, 2))
        self.assertEqual((settings.config, again.config), (path, path))


class WhoChecksLogins(OptionsTestCase):
    def printed(self, line: str) -> str:
        """Return what is printed by a line that ends well."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as raised:
            self.parse(line)
        self.assertEqual(raised.exception.code, 0)
        return out.getvalue()

    def test_they_are_asked_in_the_order_of_the_options(self) -> None:
        os.makedirs("plain.d", mode=0o700)
        with open("plain.d/users", "w", encoding="utf-8") as file:
            file.write("alice:hunter2\n")
        os.chmod("plain.d/users", 0o600)
        self.addCleanup(shutil.rmtree, "plain.d")
        logins = self.parse("--auth unix --auth file:plain.d/users").logins
        self.assertEqual(logins.checkers, ("unix", f"file:{os.path.abspath('plain.d/users')}"))

    @each(
        ("memory:alice:hunter2", "which ps shows"),
        ("nosuch:hunter2", "wanted TYPE[:ARGS] with one of file, unix"),
        ("anonymous", "checks no user names and passwords"),
        ("file:/nowhere/users", "/nowhere/users: No such file or directory"),
        ("file:", "file: it does not take its arguments"),
    )
    def test_a_mistake_in_one(self, value: str, wanted: str) -> None:
        mistake = self.mistake(f"--auth {value}")
        self.assertTrue(mistake.startswith("--auth: "), mistake)
        self.assertIn(wanted, mistake)
        self.assertNotIn("hunter2", mistake)

    def test_the_types_are_told(self) -> None:
        self.assertIn("--auth TYPE[:ARGS]", self.printed("--help-auth"))

    def test_more_of_one_is_told(self) -> None:
        self.assertIn("Location of a FilePasswordDB-formatted file.", self.printed("--help-auth-type file"))
        self.assertIn("--help-auth-type: no such type", self.mistake("--help-auth-type nosuch"))


class Checking(OptionsTestCase):
    def check(self, line: str) -> list[str]:
        """Return what ``--check`` prints, when it ends well."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as raised:
            self.parse(line + " --check")
        self.assertEqual(raised.exception.code, 0)
        return out.getvalue().splitlines()

    def test_it_prints_what_would_run_and_ends_well(self) -> None:
        lines = self.check("--rundir /r --tcpd 9000 --allow in a tcp:any")
        self.assertIn("tcpd on tcp:9000:interface=127.0.0.1", lines)
        self.assertIn("rule 1: allow in a tcp:any", lines)
        self.assertIn("  export IPC_RUNDIR=/r RUNDIR=/r", lines)

    def test_it_prints_what_is_doubtful(self) -> None:
        self.assertIn(
            "warning: tcpd listens, and no rule lets anyone in: --allow in SERVICE PEER", self.check("--tcpd 9000")
        )

    def test_it_opens_and_makes_nothing(self) -> None:
        folder = self.mktemp()
        self.check(f"--rundir {os.path.join('/tmp', folder.replace('/', '-')[:50])}")
        self.assertFalse(os.path.exists(os.path.join("/tmp", folder.replace("/", "-")[:50])))

    def test_with_a_mistake_it_ends_with_that(self) -> None:
        self.assertIn("--tcpd", self.mistake("--tcpd 0 --check"))


class DocumentedLines(OptionsTestCase):
    """The three command lines that the design promises to work as they stand."""

    def test_the_first(self) -> None:
        self.assertEqual(
            self.rules("--allow in authd tls:example.com --deny in '*' '*' --allow out pong tls:pong.example.com:9000"),
            ["allow in authd tls:example.com", "deny in * *", "allow out pong tls:pong.example.com:9000"],
        )

    def test_the_second(self) -> None:
        redirects = self.parse("--redirect authd nextversion-authd").routes.redirects
        self.assertEqual(redirects, {"authd": (Choice(("nextversion-authd",)),)})

    def test_the_third(self) -> None:
        # IPC_NETWORKD="authd tls://user@passwd:example.com:9000/authd" plumb connect authd
        args = plumb.parser().parse_args(["connect", "authd"])
        self.assertEqual((args.target, args.rundir), ("authd", None))

    def test_its_pair_is_understood(self) -> None:
        from plumberd.pure.pairs import Pairs
        from plumberd.pure.policy.route import Routes, find_way

        way = find_way("authd", Pairs(b"authd tls://user@passwd:example.com:9000/authd"), Routes())
        self.assertEqual(str(way.target), "tls://user:***@example.com:9000/authd")
