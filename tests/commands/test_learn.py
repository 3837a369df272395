"""plumberd.commands.learn: audit logs in, a draft out."""

from __future__ import annotations

import io
import json
import os
import pwd
import tomllib

from plumberd.commands.learn import lines_in, uid_of
from plumberd.pure.policy.seen import LINE_BYTES, NO_RECORD
from tests.plumb_case import PlumbTestCase
from tests.support import DEADLINE_SECONDS, in_thread
from tests.tables import each
from tests.test_seen import local, out

LINE = json.dumps(out(who=local(uid=4711, user=None))).encode() + b"\n"
RULE = "allow out pong tcp:h.example:9000 for uid:4711"


class Learn(PlumbTestCase):
    def log(self, *lines: bytes) -> str:
        path = os.path.join(self.folder(), "audit.log")
        with open(path, "wb") as file:
            file.write(b"".join(lines))
        return path

    def test_a_file_becomes_a_draft(self) -> None:
        status, text, err = self.ran("learn", self.log(LINE, LINE))
        self.assertEqual((status, err, tomllib.loads(text)), (0, "", {"rules": [RULE]}))
        self.assertIn("# 2 times, last 2026-10-04T12:00:01.250Z", text)

    def test_several_files_are_one_log(self) -> None:
        _, text, _ = self.ran("learn", self.log(LINE), self.log(LINE))
        self.assertIn("# 2 times", text)

    @each(("nothing", ()), ("a dash", ("-",)))
    def test_standard_input_is_read_where_there_is(self, label: str, words: tuple[str, ...]) -> None:
        status, text, _ = self.ran("learn", *words, stdin=LINE)
        self.assertEqual((status, tomllib.loads(text)), (0, {"rules": [RULE]}))

    def test_a_file_and_standard_input_go_together(self) -> None:
        _, text, _ = self.ran("learn", self.log(LINE), "-", stdin=LINE)
        self.assertIn("# 2 times", text)

    def test_standard_input_is_read_once(self) -> None:
        self.assertEqual(
            self.ran("learn", "-", "-", stdin=LINE), (2, "", "plumb: -: standard input can be read once\n")
        )

    async def test_a_terminal_is_not_waited_for(self) -> None:
        terminal, end = os.openpty()
        try:
            child = self.plumb("learn", stdin=end)
            text, err = await in_thread(child.process.communicate, None, DEADLINE_SECONDS)
        finally:
            os.close(terminal)
            os.close(end)
        self.assertEqual((child.process.returncode, text), (2, b""))
        self.assertIn(b"wanted the audit log", err)

    def test_what_a_default_granted_is_learnt_on_request(self) -> None:
        path = self.log(json.dumps(out(would=None, who=local(uid=4711, user=None))).encode())
        self.assertEqual(tomllib.loads(self.ran("learn", path)[1]), {"rules": []})
        self.assertEqual(tomllib.loads(self.ran("learn", "--all", path)[1]), {"rules": [RULE]})

    def test_as_json(self) -> None:
        refused = json.dumps(
            out(rule={"number": 1, "source": "rules.toml:12"}, who=local(uid=4711, user=None))
        ).encode()
        _, text, _ = self.ran("learn", "--json", self.log(LINE, b"text\n", refused))
        self.assertEqual(
            json.loads(text),
            {
                "rules": [{"rule": RULE, "count": 2, "last": "2026-10-04T12:00:01.250Z"}],
                "events": 2,
                "left_out": {NO_RECORD: 1},
                "refused_by": {"rules.toml:12": 1},
            },
        )

    def test_a_file_that_cannot_be_read_is_an_error_and_no_half_draft(self) -> None:
        folder = self.folder()
        for path, why in ((folder, "Is a directory"), (f"{folder}/none", "No such file or directory")):
            self.assertEqual(self.ran("learn", self.log(LINE), path), (2, "", f"plumb: {path}: {why}\n"))


class Lines(PlumbTestCase):
    @each(
        ("short", b"a\nb\n", [2, 2]),
        ("without an end", b"a\nb", [2, 1]),
        ("at the limit", b"x" * (LINE_BYTES - 1) + b"\nb\n", [LINE_BYTES, 2]),
        ("too long", b"x" * (3 * LINE_BYTES) + b"\nb\n", [LINE_BYTES + 1, 2]),
        ("too long by its end", b"x" * LINE_BYTES + b"\nb\n", [LINE_BYTES + 1, 2]),
        ("cut where it is read in parts", b"x" * (2 * LINE_BYTES + 2) + b"\nb\n", [LINE_BYTES + 1, 2]),
        ("too long without an end", b"x" * (2 * LINE_BYTES + 2), [LINE_BYTES + 1]),
    )
    def test_of_a_line_that_is_too_long_the_rest_is_no_line(self, label: str, data: bytes, wanted: list[int]) -> None:
        self.assertEqual([len(line) for line in lines_in(io.BytesIO(data))], wanted)


class UidOf(PlumbTestCase):
    def test_a_user_of_this_machine_has_a_number(self) -> None:
        own = pwd.getpwuid(os.geteuid())
        self.assertEqual(uid_of(own.pw_name), pwd.getpwnam(own.pw_name).pw_uid)

    @each(("nobody of this machine", "no such user"), ("no name at all", "a\0b"), ("half a character", "\ud800"))
    def test_others_have_none(self, label: str, name: str) -> None:
        self.assertIsNone(uid_of(name))
