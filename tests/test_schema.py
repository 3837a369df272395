"""plumberd.wiring.config.schema: every key with its type, and no value that is merely similar."""

from __future__ import annotations

import dataclasses
import grp
import pwd
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.accounts import Accounts
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.wiring.config.mistakes import flatten, key_names, key_text
from plumberd.wiring.config.schema import CertificateFiles, Configuration, Directory, Located, key_paths, structure
from plumberd.wiring.config.settings import Group
from tests.tables import PROPERTY, each

USER, GROUP = pwd.getpwall()[-1], grp.getgrall()[-1]


def located(*rules: object) -> list[Located]:
    """Return rules as the reader of files gives them."""
    return [Located(rule, "a.toml", index, index + 1) for index, rule in enumerate(rules)]


class Accepted(SynchronousTestCase):
    def test_nothing_is_everything_as_it_is_without_a_file(self) -> None:
        self.assertEqual(structure({}, Accounts()), Configuration())

    def test_every_key(self) -> None:
        table = {
            "include": ["a.toml"],
            "rundir": "run",
            "group": GROUP.gr_name,
            "admin_group": GROUP.gr_name,
            "dialects": ["native"],
            "handover": "relayed",
            "parts": ["broker"],
            "service_users": [USER.pw_name, "7"],
            "broker_users": ["8"],
            "rules": located("allow in a any", f"deny out b any for user:{USER.pw_name}"),
            "default": {"in": "allow", "out": "deny"},
            "routes": {"a": "tcp://h.example"},
            "redirect": {"b": "c"},
            "listen": {
                "tcpd": ["9000"],
                "publish": {"pongd": ["7000", "tcp:7001"]},
                "tlsd": ["9001"],
                "udpd": ["[::1]:9002"],
                "publish_tls": {"web": ["tcp:443"]},
            },
            "tls": {
                "certificate": "a.pem",
                "private_key": "a.key",
                "certificates": [{"certificate": "b.pem", "private_key": "b.key"}],
                "trust": "ca.pem",
                "crl": ["crl.pem"],
                "psk_file": "psk",
                "client_certificates": "optional",
                "alpn": ["h2", "http/1.1"],
            },
            "peer": {
                "A.example:9001": {"psk": "laptop"},
                "b.example:443": {
                    "certificate": "c.pem",
                    "private_key": "c.key",
                    "login": "alice",
                    "password_file": "password",
                    "pin": ["sha256:" + "0F" * 32],
                    "trust": ["system", "ca.pem"],
                },
            },
            "services": {"pongd": {"framing": "raw"}},
            "web": {"hosts": ["a.example"], "proxies": ["unix"], "token_file": "tokens", "page": True},
            "auth": {"password_file": "passwords", "checkers": ["unix", "file:plain"]},
            "limits": {"relays": 5, "connect_seconds": 2, "handshake_seconds": 0.5},
            "audit": {"file": "a.jsonl", "journal": True},
            "audit_only": "10m",
        }
        self.assertEqual(set(table), set(key_names(Configuration)))
        found = structure(table, Accounts())
        group = Group(GROUP.gr_name, GROUP.gr_gid)
        self.assertEqual(
            (found.include, found.rundir, found.group, found.admin_group), (["a.toml"], "run", group, group)
        )
        self.assertEqual((found.dialects, found.handover, found.parts), (("native",), Mode.RELAYED, ["broker"]))
        self.assertEqual((found.service_users, found.broker_users), ([USER.pw_uid, 7], [8]))
        self.assertEqual([rule.source for rule in found.rules], ["a.toml:1", "a.toml:2"])
        self.assertEqual(found.rules[1].conditions[0].number, USER.pw_uid)
        self.assertEqual((found.default.in_, found.default.out), (True, False))
        self.assertEqual(list(map(str, found.routes["a"] + found.redirect["b"])), ["tcp://h.example:9000", "c"])
        self.assertEqual(found.listen.tcpd, ["tcp:9000:interface=127.0.0.1"])
        self.assertEqual(found.listen.publish, {"pongd": ["tcp:7000:interface=127.0.0.1", "tcp:7001"]})
        self.assertEqual(found.listen.udpd, [r"udp:9002:interface=\:\:1"])
        self.assertEqual(found.listen.tlsd, ["tcp:9001:interface=127.0.0.1"])
        self.assertEqual(found.listen.publish_tls, {"web": ["tcp:443"]})
        self.assertEqual((found.auth.password_file, found.auth.checkers), ("passwords", ["unix", "file:plain"]))
        self.assertEqual((found.tls.certificate, found.tls.private_key), ("a.pem", "a.key"))
        self.assertEqual(found.tls.certificates, [CertificateFiles(Directory("b.pem"), Directory("b.key"))])
        self.assertEqual((found.tls.trust, found.tls.crl, found.tls.psk_file), (("ca.pem",), ("crl.pem",), "psk"))
        self.assertEqual((found.tls.client_certificates.value, found.tls.alpn), ("optional", ("h2", "http/1.1")))
        first, second = found.peer.values()
        self.assertEqual((list(found.peer), first.psk), (["A.example:9001", "b.example:443"], "laptop"))
        self.assertEqual((second.login, second.password_file), ("alice", "password"))
        self.assertEqual((second.pin, second.trust), (("sha256:" + "0f" * 32,), ("system", "ca.pem")))
        self.assertEqual([service.framing for service in found.services.values()], ["raw"])
        self.assertEqual(found.limits, {"relays": 5, "connect_seconds": 2.0, "handshake_seconds": 0.5})
        self.assertEqual((found.audit.file, found.audit.journal, found.audit_only), ("a.jsonl", True, 600))

    def test_every_limit_is_known(self) -> None:
        limits = dataclasses.asdict(Limits())
        self.assertEqual(structure({"limits": limits}, Accounts()).limits, limits)

    def test_a_rule_whose_line_is_not_known_names_its_file(self) -> None:
        (rule,) = structure({"rules": [Located("deny in any any", "a.toml", 0)]}, Accounts()).rules
        self.assertEqual(rule.source, "a.toml")

    def test_the_keys_are_listed_as_they_are_written(self) -> None:
        paths = key_paths()
        for path in (
            "rundir",
            "default.in",
            "routes.NAME",
            "listen.publish.NAME",
            "services.NAME.framing",
            "audit.file",
        ):
            self.assertIn(path, paths)
        self.assertEqual({path.partition(".")[0] for path in paths}, set(key_names(Configuration)))


class Mistaken(SynchronousTestCase):
    def mistakes(self, table: dict[str, Any]) -> list[str]:
        """Return each mistake of a table, behind its key."""
        try:
            structure(table, Accounts())
        except Exception as e:
            return [f"{key_text(path)}: {text}" for path, text in flatten(e, key_names(Configuration))]
        raise AssertionError("there is no mistake")

    @each(
        ("rundir", 5, "5: wanted a string"),
        ("rundir", "", "'': wanted a path"),
        ("group", ["a"], "an array: wanted a string"),
        ("dialects", "native", "'native': wanted an array, between [ and ]"),
        ("handover", True, "true: wanted a string"),
        ("parts", {"broker": 1}, "a table: wanted an array, between [ and ]"),
        ("rules", "deny in any any", "'deny in any any': wanted an array, between [ and ]"),
        ("default", "deny", "'deny': wanted a table"),
        ("listen", ["9000"], "an array: wanted a table"),
        ("services", "a", "'a': wanted a table"),
        ("limits", 5, "5: wanted a table"),
        ("audit", "a.jsonl", "'a.jsonl': wanted a table"),
        ("audit_only", 600, "600: wanted a string"),
        ("routes", [], "an empty array: wanted a table of names and where they lead"),
    )
    def test_a_value_of_another_type(self, key: str, value: object, wanted: str) -> None:
        self.assertEqual(self.mistakes({key: value}), [f"{key}: {wanted}"])

    @each(
        ("a_string_is_no_number", {"relays": "5"}, "relays: '5': wanted a whole number"),
        ("true_is_no_number", {"relays": True}, "relays: true: wanted a whole number"),
        ("true_are_no_seconds", {"connect_seconds": True}, "connect_seconds: true: wanted a number of seconds"),
        ("a_fraction_is_no_count", {"relays": 5.0}, "relays: relays='5.0': wanted a whole number"),
        ("zero", {"relays": 0}, "relays: relays=0: wanted 1 up to 1000000000"),
        ("no_number", {"connect_seconds": float("nan")}, "connect_seconds: connect_seconds=nan: wanted more than 0"),
        ("no_limit", {"relay": 5}, "relay: no such key here; did you mean relays?"),
    )
    def test_a_limit(self, _: str, limits: dict[str, object], wanted: str) -> None:
        (found,) = self.mistakes({"limits": limits})
        self.assertTrue(found.startswith(f"limits.{wanted}"), found)

    @each(
        ("trust_in_nobody", {"trust": []}, "trust: an empty array: wanted a string, or an array of strings"),
        ("a_table_for_files", {"crl": {}}, "crl: a table: wanted a string, or an array of strings"),
        ("no_path", {"trust": ["ca.pem", ""]}, "trust[1]: '': wanted a path"),
        ("another_word", {"client_certificates": "yes"}, "client_certificates: 'yes': wanted none, optional, required"),
        ("one_protocol", {"alpn": "h2"}, "alpn: 'h2': wanted an array, between [ and ], of at most 16"),
        ("many_protocols", {"alpn": ["h2"] * 17}, "alpn: an array: wanted an array, between [ and ], of at most 16"),
        ("no_protocol", {"alpn": ["h 2"]}, "alpn[0]: wanted the name of a protocol"),
        ("another_key", {"certificates": [{"key": "a.key"}]}, "certificates[0].key: no such key here"),
        ("a_misspelt_one", {"privatekey": "a.key"}, "privatekey: no such key here; did you mean private_key?"),
    )
    def test_what_is_said_of_tls(self, _: str, tls: dict[str, object], wanted: str) -> None:
        (found,) = self.mistakes({"tls": tls})
        self.assertTrue(found.startswith(f"tls.{wanted}"), found)

    @each(
        ("no_port", "a.example", {}, '"a.example": wanted HOST:PORT'),
        ("a_pattern", "*.example:443", {}, '"*.example:443": the host is neither'),
        ("a_uri", "tls://u:s3cret@a.example:443", {}, '"…": wanted HOST:PORT'),
        ("no_identity", "a:1", {"psk": "two words"}, '"a:1".psk: no name of a key'),
        ("a_key_for_an_identity", "a:1", {"psk": "laptop:s3cret"}, '"a:1".psk: no name of a key'),
        ("a_password", "a:1", {"login": "alice:s3cret"}, '"a:1".login: wanted the name of a user'),
        ("no_pin", "a:1", {"pin": "md5:s3cret"}, '"a:1".pin: wanted sha256: and 64'),
        ("password", "a:1", {"password": "s3cret"}, '"a:1".password: no such key here; did you mean password_file?'),
    )
    def test_what_is_said_of_a_peer(self, _: str, name: str, peer: dict[str, object], wanted: str) -> None:
        (found,) = self.mistakes({"peer": {name: peer}})
        self.assertTrue(found.startswith(f"peer.{wanted}"), found)
        self.assertNotIn("s3cret", found)

    @each((1,), (0,), ("true",), ("yes",), (None,))
    def test_only_true_and_false_are_truths(self, value: object) -> None:
        (found,) = self.mistakes({"audit": {"journal": value}})
        self.assertTrue(found.endswith(": wanted true or false"), found)

    def test_every_mistake_of_all_keys_comes_at_once(self) -> None:
        found = self.mistakes(
            {
                "rule": [],
                "rules": located("deny in any", 5, "deny in any any", "allow out a any for user:no-such-user"),
                "default": {"in": "maybe", "rules": []},
                "routes": {"a": ["tcp://h.example:0"]},
                "listen": {"tcpd": ["9000", "99999"], "publish": {"ipc": ["7000"], "pongd": ["x"]}},
                "services": {"pongd": {"framings": "raw"}},
            }
        )
        keys = [line.partition(": ")[0] for line in found]
        self.assertEqual(
            keys,
            [
                *("rules[0]", "rules[1]", "rules[3]", "default.in", "default.rules", "routes.a[0]", "listen.tcpd[1]"),
                *("listen.publish.ipc", "listen.publish.pongd[0]", "services.pongd.framings", "rule"),
            ],
        )
        self.assertIn(
            "default.rules: no such key here; rules stands at the top of the file, before the first [table]", found
        )

    @PROPERTY
    @given(
        st.dictionaries(
            st.sampled_from(key_names(Configuration)),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=6,
            ),
            max_size=4,
        )
    )
    def test_whatever_stands_there_is_taken_or_is_a_mistake_with_its_key(self, table: dict[str, Any]) -> None:
        if isinstance(table.get("rules"), list):
            table["rules"] = located(*table["rules"])
        try:
            found = structure(table, Accounts())
        except Exception as e:
            paths = [path for path, _ in flatten(e, key_names(Configuration))]
            self.assertTrue(paths)
            self.assertTrue(all(path[0] in table for path in paths), paths)
        else:
            self.assertIsInstance(found, Configuration)
