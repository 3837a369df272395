"""docs/configuration.md: every key is in it, with its option, its type and its default, and its examples are read."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from typing import get_args, get_origin, get_type_hints
from unittest import mock

from plumberd.pure.certificates import LEAST_CURVE_BITS, LEAST_RSA_BITS
from plumberd.pure.limits import Limits
from plumberd.pure.names import check_service
from plumberd.pure.psk import IDENTITY_CHARS, LEAST_KEY_BYTES, MOST_KEY_BYTES
from plumberd.pure.tls import ALPN_NAMES, EXPIRY_NOTICE_SECONDS
from plumberd.wiring.config.changes import AT_START, changes
from plumberd.wiring.config.configuration import ALL_BYTES, FILE_BYTES, FILES
from plumberd.wiring.config.options import Options
from plumberd.wiring.config.schema import Configuration, key_paths
from plumberd.wiring.config.settings import Settings
from tests.configured import ConfiguredTestCase
from tests.issued import root
from tests.test_docs import read, rows, section

ALONE = ("config", "check", "help", "help-auth", "help-auth-type", "version")
"""Options that no key stands for."""

FILE = "configuration.md"


def block(heading: str) -> str:
    """Return what is written in the indented lines below a heading."""
    lines = section(FILE, heading).splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


class Keys(ConfiguredTestCase):
    def setUp(self) -> None:
        super().setUp()
        _, *self.rows = (row for row in rows(section(FILE, "Keys")))
        self.options = {row[0].strip("`"): re.findall(r"`--([a-z-]+)", row[1]) for row in self.rows}

    def test_every_key_has_its_row_and_nothing_else_has(self) -> None:
        self.assertEqual(sorted(self.options), sorted(key_paths()))

    def test_every_row_tells_type_unit_default_and_consequence(self) -> None:
        for row in self.rows:
            self.assertEqual(len(row), 6, row)
            self.assertTrue(all(row), row)
            self.assertGreater(len(row[5]), 15, row)

    def test_what_the_command_line_can_say_a_key_can_say(self) -> None:
        known = {option.rstrip("=") for option in Options().longOpt}
        said = {option for options in self.options.values() for option in options}
        self.assertEqual(said | set(ALONE), known)
        self.assertEqual(said & set(ALONE), set())
        without = {key for key, options in self.options.items() if not options}
        # Certificates and keys are the machine's own, and belong into files.
        tls = {key for key in self.options if key.startswith(("tls.", "peer.", "web."))}
        self.assertEqual(
            without,
            {
                "include",
                "services.NAME.framing",
                "services.NAME.proxy",
                "listen.publish_tls.NAME",
                "auth.password_file",
            }
            | tls,
        )

    def test_help_tells_every_option(self) -> None:
        usage = str(Options())
        self.assertEqual([o for o in Options().longOpt if f"--{o.rstrip('=')}" not in usage], [])

    def test_the_type_is_the_one_that_is_accepted(self) -> None:
        found = {row[0].strip("`"): row[2] for row in self.rows}
        hints = get_type_hints(Configuration)
        for key, type_ in found.items():
            hint = hints.get(key)
            if hint is not None and (get_origin(hint) is list or key == "dialects"):
                self.assertEqual(type_, "array of strings", key)
            elif hint is not None and get_args(hint):
                self.assertEqual(type_, "string", key)
        self.assertEqual((found["audit.journal"], found["limits.NAME"]), ("true or false", "number"))

    def test_a_default_that_is_written_out_is_what_holds_without_it(self) -> None:
        written = {row[0].strip("`"): row[4].strip("`") for row in self.rows if re.fullmatch(r"`[^`]+`", row[4])}
        plain = self.settings("")
        checked = 0
        for key, default in written.items():
            if "NAME" not in key:
                self.assertEqual(self.settings(f"{key} = {default}"), plain, key)
                checked += 1
        self.assertGreater(checked, 9)

    def test_what_takes_a_new_start_is_marked(self) -> None:
        marked = [row[0].strip("`") for row in self.rows if row[5].endswith("*Start*")]
        self.assertEqual(sorted(marked), sorted(AT_START))

    def test_the_units_of_limits_are_told_by_their_names(self) -> None:
        for limit in dataclasses.fields(Limits):
            seconds = limit.name.endswith("_seconds")
            self.assertEqual(limit.type, "float" if seconds else "int")
            unit = re.search(r"_(seconds|bytes|ms|minutes)\b", limit.name)
            self.assertIn(unit and unit[1], ("seconds", "bytes", None))

    def test_how_much_is_read_is_told(self) -> None:
        self.assertIn(f"at most {FILE_BYTES // 2**20} MiB long", section(FILE, "The file"))
        self.assertIn(f"At most {FILES} files, {ALL_BYTES // 2**20} MiB in all", section(FILE, "Keys"))


class Examples(ConfiguredTestCase):
    def read(self, text: str) -> Settings:
        """Read a configuration on a machine that has every user and group."""
        with mock.patch("grp.getgrnam") as getgrnam, mock.patch("pwd.getpwnam") as getpwnam:
            getgrnam.return_value.gr_gid = getpwnam.return_value.pw_uid = 7
            return self.settings(text)

    def test_the_whole_one_is_read(self) -> None:
        settings = self.read(block("An example"))
        self.assertEqual(len(settings.policy.rules), 6)
        self.assertEqual((settings.rundir, settings.group, settings.gid), ("/run/ipc", "ipc", 7))
        self.assertEqual(settings.framings, {"pongd": "libipc-2023"})
        self.assertEqual([len(choices) for choices in settings.routes.redirects.values()], [2])
        self.assertEqual(len(settings.routes.routes["db-main"][0].targets), 2)
        self.assertEqual(len(settings.tcpd) + len(settings.publish), 3)

    def test_it_shows_most_keys(self) -> None:
        shown = set(tomllib.loads(block("An example")))
        every = {key.partition(".")[0] for key in key_paths()}
        self.assertLessEqual(
            every - shown, {"dialects", "handover", "parts", "broker_users", "audit_only", "tls", "peer", "auth", "web"}
        )

    def test_every_route_is_read(self) -> None:
        lines = [line for line in block("Routes and redirects").splitlines() if line]
        self.assertEqual(len(lines), 3)
        for line in lines:
            table = "redirect" if line.startswith("authd") else "routes"
            self.assertEqual(len(getattr(self.read(f"[{table}]\n{line}").routes, table.replace("ct", "cts"))), 1, line)
        (quoted,) = re.findall(r"`(\"[a-z.]+\" = \"[^`]+\")`", section(FILE, "Routes and redirects"))
        (name,) = self.read(f"[routes]\n{quoted}").routes.routes
        self.assertEqual(check_service(name), "db.main")

    def test_certificates_and_keys_are_read(self) -> None:
        own = root().issue("example.com")
        text = block("Certificates and keys").replace("/etc/plumberd/", "")
        self.write(own.chain, "example.com.pem")
        for name, data in (("example.com.key", own.key_pem), ("psk", b"laptop:" + b"0f" * 32), ("db.password", b"x")):
            self.write(data, name, 0o600)
        settings = self.read(text)
        self.assertEqual([one.name for one in settings.tls.certificates], ["example.com"])
        self.assertEqual(len(settings.tlsd), 1)
        auth, db = settings.peers["auth.example.com:9001"], settings.peers["db.example.com:443"]
        self.assertEqual((auth.psk and auth.psk.identity, db.login, len(db.pins)), ("laptop", "alice", 1))

    def test_the_numbers_of_keys_are_told(self) -> None:
        text = section(FILE, "Certificates and keys")
        for number in (LEAST_KEY_BYTES, MOST_KEY_BYTES, IDENTITY_CHARS, EXPIRY_NOTICE_SECONDS // 86400):
            self.assertRegex(text, rf"\b{number}\b")
        keys = section(FILE, "Keys")
        for number in (LEAST_RSA_BITS, LEAST_CURVE_BITS, ALPN_NAMES):
            self.assertRegex(keys, rf"\b{number}\b")

    def test_the_lines_of_a_reload_are_what_is_told(self) -> None:
        old = self.read("routes.web = 'tls:web.example.com:443'")
        new = self.read(
            "rules = ['allow out pong tcp:pong.example.com:9000']\n"
            "routes.web = 'tcp://web.example.com:80'\nlimits.relays = 500"
        )
        shown = [line for line in block("Reloading").splitlines() if line]
        self.assertEqual(sorted(changes(old, new).lines), sorted(shown))

    def test_it_is_linked_from_the_options(self) -> None:
        self.assertIn("](configuration.md)", read("options.md"))
