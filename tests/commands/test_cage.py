"""plumberd.commands.cage: what a cage shows and hides; that it holds is in tests/process/test_cages.py."""

from __future__ import annotations

import itertools
import os
from typing import Any

from plumberd.commands.cage import (
    PRIVATE,
    SYSTEM,
    CageError,
    Shown,
    bubblewrap_words,
    environment,
    home_of,
    shown,
)
from plumberd.inherited import VARIABLE
from tests.support import CleanTestCase
from tests.tables import each

ENVIRON = {
    "PATH": "/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "TERM": "xterm",
    "HOME": "/home/alice",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "IPC_NETWORKD": "pong tls://alice:secret@h/pong",
    "SSH_AUTH_SOCK": "/tmp/ssh/agent",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    VARIABLE: "9",
}


class Environment(CleanTestCase):
    def test_few_variables_go_into_the_cage(self) -> None:
        self.assertEqual(
            environment(ENVIRON, []),
            {"PATH": "/bin", "LANG": "C.UTF-8", "LC_ALL": "C", "TERM": "xterm", "HOME": "/home/alice"},
        )

    @each(
        ("A=b", {"A": "b"}),
        ("A=", {"A": ""}),
        ("A=b=c d", {"A": "b=c d"}),
        ("SSH_AUTH_SOCK", {"SSH_AUTH_SOCK": "/tmp/ssh/agent"}),
        ("NOT_SET_HERE", {}),
        ("PATH=/opt", {"PATH": "/opt"}),
    )
    def test_others_go_by_name(self, setting: str, wanted: dict[str, str]) -> None:
        self.assertEqual(environment(ENVIRON, [setting]), {**environment(ENVIRON, []), **wanted})

    @each(("",), ("=b",), ("1A=b",), ("A B=c",), ("A-B",), (f"{VARIABLE}=3",), (VARIABLE,))
    def test_what_is_no_setting_is_refused(self, setting: str) -> None:
        with self.assertRaises(CageError) as raised:
            environment(ENVIRON, [setting])
        self.assertIn(f"--setenv {setting}: ", str(raised.exception))


class Home(CleanTestCase):
    @each(
        ("/home/alice", "/home/alice"),
        ("/root", "/root"),
        ("/home/alice/", "/home/alice"),
        ("/var/lib/jenkins", "/var/lib/jenkins"),
        ("/srv/../home/alice", "/home/alice"),
    )
    def test_it_has_the_same_path(self, outside: str, inside: str) -> None:
        self.assertEqual(home_of({"HOME": outside}), inside)

    @each(
        ("",), ("/",), ("relative",), ("/usr/games",), ("/usr",), ("/etc/x",), ("/run/user/1",), ("/proc",), ("/nix",)
    )
    def test_where_that_would_hide_the_system_or_be_nowhere_it_is_tmp(self, outside: str) -> None:
        self.assertEqual(home_of({"HOME": outside}), "/tmp")

    def test_without_one_it_is_tmp(self) -> None:
        self.assertEqual(home_of({}), "/tmp")


class Files(CleanTestCase):
    def test_the_working_directory_is_shown_to_be_read(self) -> None:
        self.assertEqual(shown("/home/a/p", "/home/a", [], []), (Shown("/home/a/p", False),))
        self.assertEqual(shown("/var/lib/ci/p", "/root", [], []), (Shown("/var/lib/ci/p", False),))
        self.assertEqual(shown("/tmp/p", "/root", [], []), (Shown("/tmp/p", False),))

    @each(
        ("/",),
        ("/home",),
        ("/home/a",),
        ("/tmp",),
        ("/run",),
        ("/run/ipc",),
        ("/var",),
        ("/root",),
        ("/proc/1",),
        ("/dev",),
        ("/sys/x",),
    )
    def test_one_in_which_lies_what_nobody_has_meant_is_not(self, cwd: str) -> None:
        self.assertEqual(shown(cwd, "/home/a", [], []), ())

    def test_a_parent_of_the_home_directory_is_not(self) -> None:
        self.assertEqual(shown("/data", "/data/homes/a", [], []), ())
        self.assertEqual(shown("/data-2", "/data", [], []), (Shown("/data-2", False),))

    def test_what_is_asked_for_is_shown_outer_directories_first(self) -> None:
        folder = self.folder()
        for name in ("b", "b/c", "a"):
            os.mkdir(f"{folder}/{name}")
        found = shown("/", "/root", [f"{folder}/b/c", f"{folder}/a"], [f"{folder}/b"])
        self.assertEqual(
            found, (Shown(f"{folder}/a", False), Shown(f"{folder}/b", True), Shown(f"{folder}/b/c", False))
        )

    def test_a_path_may_be_relative_and_writing_counts_more(self) -> None:
        folder = os.path.realpath(self.folder())
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        self.assertEqual(shown(folder, "/root", [], ["."]), (Shown(folder, True),))
        self.assertEqual(shown(folder, "/root", ["."], ["."]), (Shown(folder, True),))

    def test_the_home_directory_can_be_asked_for(self) -> None:
        folder = self.folder()
        self.assertEqual(shown(folder, folder, [folder], []), (Shown(folder, False),))

    @each(("/",), ("//",), ("/usr/..",), ("/nonexistent",))
    def test_the_whole_system_and_what_is_not_there_are_refused(self, path: str) -> None:
        for read, write in (([path], []), ([], [path])):
            with self.assertRaises(CageError) as raised:
                shown("/", "/root", read, write)
            self.assertIn(f"{'--read' if read else '--write'} {path}: ", str(raised.exception))


class Words(CleanTestCase):
    def words(self, cwd: str = "/home/a/p", home: str = "/home/a", files: Any = None) -> list[str]:
        return [*bubblewrap_words(cwd, home, shown(cwd, home, [], []) if files is None else files)]

    def triples(self, words: list[str]) -> list[tuple[str, str, str]]:
        return [*zip(words, words[1:], words[2:], strict=False)]

    def test_nothing_is_shared_and_nothing_can_be_gained(self) -> None:
        words = self.words()
        for word in ("--unshare-all", "--die-with-parent", "--new-session"):
            self.assertIn(word, words)
        self.assertIn(("--cap-drop", "ALL"), [*itertools.pairwise(words)])

    def test_of_the_system_what_there_is_is_read_only(self) -> None:
        triples = self.triples(self.words())
        for path in SYSTEM:
            if os.path.islink(path):
                self.assertIn(("--symlink", os.readlink(path), path), triples)
            else:
                self.assertEqual(("--ro-bind", path, path) in triples, os.path.isdir(path), path)
        self.assertNotIn("--bind", self.words())

    def test_what_is_private_comes_before_what_is_shown_in_it(self) -> None:
        words = self.words()
        for place in (*PRIVATE, "/home/a"):
            self.assertEqual(words[words.index(place) - 1], "--tmpfs")
            self.assertLess(words.index(place), words.index("/home/a/p"))

    def test_the_root_is_closed_last(self) -> None:
        self.assertEqual(self.words()[-4:], ["--remount-ro", "/", "--chdir", "/home/a/p"])

    def test_a_directory_that_is_not_shown_is_there_and_empty(self) -> None:
        self.assertIn(("--dir", "/home/a", "--remount-ro"), self.triples(self.words("/home/a")))
        self.assertIn(("--dir", "/home", "--remount-ro"), self.triples(self.words("/home")))

    @each(("/usr/lib", "/usr/lib"), ("/", "/"), ("/proc/1", "/home/a"), ("/sys", "/home/a"))
    def test_where_a_program_begins_in_other_places(self, cwd: str, wanted: str) -> None:
        words = self.words(cwd)
        self.assertEqual(words[-1], wanted)
        self.assertNotIn(("--dir", cwd), [*itertools.pairwise(words)])

    def test_what_may_be_written_is_bound_so(self) -> None:
        words = self.words(files=(Shown("/home/a/p", True), Shown("/home/a/q", False)))
        self.assertIn(("--bind", "/home/a/p", "/home/a/p"), self.triples(words))
        self.assertIn(("--ro-bind", "/home/a/q", "/home/a/q"), self.triples(words))
