"""plumberd.commands.passwd: a password, never on the command line, in a file that is always whole."""

from __future__ import annotations

import getpass
import os
import stat
import subprocess
import sys
import warnings
from typing import Any
from unittest import mock

from plumberd.commands import passwd
from plumberd.pure.passwords import FILE_BYTES, PASSWORD_BYTES, Cost, Entry, format_entry, parse_file
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine
from tests.children import needs_root
from tests.configured import ConfiguredTestCase
from tests.plumb_case import PlumbTestCase
from tests.support import in_thread
from tests.tables import each
from tests.test_passwords import quickly

OTHERS = b"# the team\n" + b"".join(
    format_entry(Entry(user, Cost(), bytes(16), bytes(32))).encode() + b"\n" for user in ("bob", "carol")
)


class PasswdTestCase(PlumbTestCase, ConfiguredTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.path("passwords")
        scrypt = quickly()
        scrypt.start()
        self.addCleanup(scrypt.stop)

    def data(self) -> bytes:
        """Return what the file holds."""
        with open(self.file, "rb") as file:
            return file.read()

    def done(self, *words: str, stdin: bytes = b"hunter2\n") -> str:
        """Return what is printed where all is well."""
        status, out, err = self.ran("passwd", self.file, *words, stdin=stdin)
        self.assertEqual((status, err), (0, ""))
        return out.replace(self.home + "/", "")

    def mistake(self, *words: str, stdin: bytes = b"hunter2\n") -> str:
        """Return the one line that is complained; nothing has changed then."""
        before = self.data() if os.path.exists(self.file) else None
        status, out, err = self.ran("passwd", self.file, *words, stdin=stdin)
        self.assertEqual((status, out), (2, ""))
        self.assertEqual(self.data() if os.path.exists(self.file) else None, before)
        self.assertEqual([name for name in os.listdir(self.home) if name.startswith(".passwords")], [])
        (line,) = err.splitlines()
        self.assertNotIn("hunter2", line)
        return line.replace(self.home + "/", "")


class Set(PasswdTestCase):
    def test_a_new_file_is_its_owner_s_alone_whatever_the_umask(self) -> None:
        for mask in (0, 0o777):
            os.umask(mask)
            out = self.done("alice", "--stdin")
            self.assertEqual(stat.S_IMODE(os.stat(self.file).st_mode), 0o600)
        self.assertEqual(out, "alice has a password in passwords; plumb reload puts it in force\n")

    @each((b"hunter2",), (b"hunter2\n",), (b"hunter2\r\n",))
    def test_the_line_of_standard_input_is_the_password(self, line: bytes) -> None:
        self.done("alice", "--stdin", stdin=line)
        self.assertTrue(parse_file(self.data()).verify("alice", "hunter2"))
        self.assertFalse(parse_file(self.data()).verify("alice", "hunter2\n"))
        self.assertNotIn(b"hunter2", self.data())

    def test_what_was_there_stays_but_for_the_user_s_own_line(self) -> None:
        self.write(OTHERS, "passwords", 0o600)
        self.done("bob", "--stdin")
        lines, before = self.data().splitlines(), OTHERS.splitlines()
        self.assertEqual((lines[0], lines[2], len(lines)), (before[0], before[2], 3))
        self.assertTrue(parse_file(self.data()).verify("bob", "hunter2"))

    def test_two_with_the_same_password_have_different_lines(self) -> None:
        self.done("alice", "--stdin")
        self.done("alicf", "--stdin")
        one, other = self.data().splitlines()
        self.assertNotEqual(one.partition(b":")[2], other.partition(b":")[2])

    def test_a_file_that_others_could_read_is_closed_to_them(self) -> None:
        self.write(OTHERS, "passwords", 0o644)
        self.done("alice", "--stdin")
        self.assertEqual(stat.S_IMODE(os.stat(self.file).st_mode), 0o600)

    def test_a_configuration_reads_it(self) -> None:
        self.done("alice", "--stdin")
        settings = read_settings(CommandLine(self.write("auth.password_file = 'passwords'")))
        self.assertTrue(settings.logins.passwords.verify("alice", "hunter2"))

    def test_who_reads_meanwhile_has_the_old_file_whole(self) -> None:
        self.write(OTHERS, "passwords", 0o600)
        with open(self.file, "rb") as reading:
            self.done("alice", "--stdin")
            self.assertEqual(reading.read(), OTHERS)

    def test_a_link_to_it_stays_one(self) -> None:
        self.write(OTHERS, "real/passwords", 0o600)
        os.symlink("real/passwords", self.file)
        self.done("alice", "--stdin")
        self.assertEqual(os.readlink(self.file), "real/passwords")
        self.assertEqual(len(parse_file(self.data())), 3)

    @needs_root
    def test_it_stays_its_owner_s(self) -> None:
        os.chown(self.write(OTHERS, "passwords", 0o600), 4711, 4712)
        self.done("alice", "--stdin")
        status = os.stat(self.file)
        self.assertEqual((status.st_uid, status.st_gid), (4711, 4712))

    @needs_root
    def test_where_it_cannot_it_is_left_as_it_was(self) -> None:
        os.chown(self.write(OTHERS, "passwords", 0o600), 4711, 4712)
        with mock.patch("os.fchown", side_effect=PermissionError(1, "no")):
            self.assertIn("it belongs to uid 4711, gid 4712, and would become yours", self.mistake("bob", "--stdin"))

    async def test_many_at_once_lose_none(self) -> None:
        words = [sys.executable, "-m", "plumberd.plumb", "passwd", self.file]
        children = [self.command([*words, f"u{n}", "--stdin"]) for n in range(4)]
        for child in children:
            self.assertEqual((await in_thread(child.finish, b"hunter2\n"))[0], 0)
        self.assertEqual(len(parse_file(self.data())), 4)


class NotSet(PasswdTestCase):
    @each(
        ("no_password", ("alice", "--stdin"), b"\n", "a password of 1 to 1024 bytes"),
        ("nothing", ("alice", "--stdin"), b"", "a password of 1 to 1024 bytes"),
        ("too_long", ("alice", "--stdin"), b"x" * (PASSWORD_BYTES + 1), "a password of 1 to 1024 bytes"),
        ("far_too_long", ("alice", "--stdin"), b"x" * 100_000, "a password of 1 to 1024 bytes"),
        ("two_lines", ("alice", "--stdin"), b"hunter2\nhunter2\n", "wanted one line"),
        ("a_tab", ("alice", "--stdin"), b"hunt\ter2\n", "without control characters"),
        ("no_utf8", ("alice", "--stdin"), b"\xff\n", "UTF-8"),
        ("no_name", ("", "--stdin"), b"x\n", "a name of 1 to 255"),
        ("a_colon_in_the_name", ("al:hunter2", "--stdin"), b"x\n", "a name of 1 to 255"),
    )
    def test_a_mistake_is(self, _: str, words: tuple[str, ...], stdin: bytes, wanted: str) -> None:
        self.write(OTHERS, "passwords", 0o600)
        self.assertIn(wanted, self.mistake(*words, stdin=stdin))

    def test_a_file_with_mistakes_is_left_to_who_made_them(self) -> None:
        self.write(OTHERS + b"dave:hunter2\n", "passwords", 0o600)
        self.assertIn("line 4: dave: wanted $scrypt$", self.mistake("alice", "--stdin"))

    def test_one_that_is_too_long(self) -> None:
        self.write(b"#" * (FILE_BYTES + 1), "passwords", 0o600)
        self.assertIn("longer than", self.mistake("alice", "--stdin"))
        self.write(b"#" * (FILE_BYTES - 8) + b"\n", "passwords", 0o600)
        self.assertIn("would be longer than", self.mistake("alice", "--stdin"))

    def test_a_pipe_is_not_waited_for(self) -> None:
        os.mkfifo(self.file, 0o600)
        status, _, err = self.ran("passwd", self.file, "alice", "--stdin", stdin=b"x\n")
        self.assertEqual(status, 2)
        self.assertIn("it is no regular file", err)

    def test_a_folder_that_is_not_there(self) -> None:
        self.file = self.path("nowhere/passwords")
        self.assertEqual(self.mistake("alice", "--stdin"), "plumb: nowhere/passwords: No such file or directory")

    def test_a_password_cannot_stand_on_the_command_line(self) -> None:
        status, _, err = self.ran("passwd", self.file, "alice", "hunter2")
        self.assertEqual(status, 2)
        self.assertIn("unrecognized arguments", err)
        self.assertFalse(os.path.exists(self.file))


class Asked(PasswdTestCase):
    """Without --stdin the terminal is asked."""

    def answering(self, *answers: Any) -> Any:
        return mock.patch.object(getpass, "getpass", side_effect=answers)

    def test_twice_the_same_is_the_password(self) -> None:
        with self.answering("hunter2", "hunter2") as asked:
            self.done("alice")
        self.assertEqual([call.args[0] for call in asked.call_args_list], ["password of alice: ", "again: "])
        self.assertTrue(parse_file(self.data()).verify("alice", "hunter2"))

    def test_two_that_differ_are_none(self) -> None:
        with self.answering("hunter2", "hunter3"):
            self.assertIn("the two differ", self.mistake("alice"))

    def test_where_it_would_be_shown_it_is_not_asked_for(self) -> None:
        def show(prompt: str) -> str:
            warnings.warn("can not control echo", getpass.GetPassWarning, stacklevel=2)
            return "hunter2"

        with mock.patch.object(getpass, "getpass", side_effect=show):
            self.assertIn("--stdin takes the password", self.mistake("alice"))

    async def test_without_a_terminal_it_fails_at_once(self) -> None:
        words = [sys.executable, "-m", "plumberd.plumb", "passwd", self.file, "alice"]
        child = self.command(words, stdin=subprocess.DEVNULL)
        status, _, err = await in_thread(child.finish)
        self.assertEqual(status, 2)
        self.assertIn("there is no terminal to ask on", err)


class Deleted(PasswdTestCase):
    def test_a_user_is_taken_out_and_nothing_is_asked(self) -> None:
        self.write(OTHERS, "passwords", 0o600)
        with mock.patch.object(getpass, "getpass", side_effect=AssertionError):
            out = self.done("bob", "--delete")
        self.assertEqual(out, "bob is taken out of passwords; plumb reload puts it in force\n")
        self.assertEqual(self.data(), b"".join(OTHERS.splitlines(keepends=True)[::2]))

    def test_the_last_one_leaves_a_file_that_is_still_read(self) -> None:
        self.done("alice", "--stdin")
        self.done("alice", "--delete")
        self.assertEqual((self.data(), len(parse_file(b""))), (b"", 0))

    def test_one_that_is_not_there_is_a_mistake(self) -> None:
        self.write(OTHERS, "passwords", 0o600)
        self.assertIn("no user of that file is called alice", self.mistake("alice", "--delete"))

    def test_so_is_a_file_that_is_not_there(self) -> None:
        self.assertIn("No such file", self.mistake("alice", "--delete"))

    def test_what_fails_in_the_middle_leaves_nothing_behind(self) -> None:
        self.write(OTHERS, "passwords", 0o600)
        with mock.patch("os.rename", side_effect=OSError(28, "No space left on device")):
            self.assertIn("No space left on device", self.mistake("bob", "--delete"))
        self.assertEqual(passwd.MODE, 0o600)
