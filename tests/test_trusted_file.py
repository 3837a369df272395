"""plumberd.effects.trusted_file: read is what nobody else can have written, and nothing else."""

from __future__ import annotations

import os
import socket
from unittest import mock

from plumberd.effects.trusted_file import LINKS, FileError, matching, read_trusted
from tests.support import CleanTestCase
from tests.tables import each

UID = os.geteuid()
STRANGER = 12345


class TrustedFileTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.home = self.folder()
        self.path = os.path.join(self.home, "a.toml")
        self.write(self.path)

    def write(self, path: str, data: bytes = b"text") -> str:
        """Write a file that can be trusted; return its path."""
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o644)
        return path

    def mistake(self, path: str, most_bytes: int = 100, uid: int = UID) -> str:
        """Return why the file at *path* is not read."""
        with self.assertRaises(FileError) as caught:
            read_trusted(path, most_bytes, uid)
        return str(caught.exception)

    def give_away(self, path: str) -> int:
        """Make *path* somebody else's; return the uid for whom it is so."""
        if UID:
            return UID + 1  # only root can; so let another one look
        os.lchown(path, STRANGER, -1)
        return UID


class Read(TrustedFileTestCase):
    def test_its_bytes_and_its_mode(self) -> None:
        os.chmod(self.path, 0o640)
        found = read_trusted(self.path, 100, UID)
        self.assertEqual((found.data, found.mode, found.is_readable_by_others), (b"text", 0o640, False))

    def test_others_may_read_it(self) -> None:
        self.assertTrue(read_trusted(self.path, 100, UID).is_readable_by_others)

    def test_it_is_the_same_under_another_name(self) -> None:
        os.link(self.path, self.path + "2")
        one, other = read_trusted(self.path, 100, UID), read_trusted(self.path + "2", 100, UID)
        self.assertEqual(one.identity, other.identity)

    def test_as_many_bytes_as_are_accepted_and_not_one_more(self) -> None:
        self.assertEqual(read_trusted(self.path, 4, UID).data, b"text")
        self.assertEqual(self.mistake(self.path, 3), "it is longer than 3 bytes")

    def test_its_bytes_are_not_in_its_repr(self) -> None:
        self.assertNotIn("text", repr(read_trusted(self.path, 100, UID)))


class Refused(TrustedFileTestCase):
    def test_what_is_not_there(self) -> None:
        self.assertEqual(self.mistake(self.path + "x"), "No such file or directory")
        self.assertEqual(self.mistake(os.path.join(self.home, "b", "c")), "No such file or directory")

    def test_a_path_with_a_nul(self) -> None:
        self.assertEqual(self.mistake("/a\0b"), "no file has such a name")

    def test_a_directory(self) -> None:
        self.assertEqual(self.mistake(self.home), "it is a directory; wanted a file")

    def test_a_pipe_that_nobody_writes_to(self) -> None:
        os.mkfifo(self.path + "x")
        self.assertEqual(self.mistake(self.path + "x"), "it is no regular file")

    def test_a_socket(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path + "x")
            self.assertEqual(self.mistake(self.path + "x"), "it is no regular file")

    def test_a_device(self) -> None:
        self.assertEqual(self.mistake("/dev/null"), "it is no regular file")

    def test_what_may_not_be_read(self) -> None:
        with mock.patch("os.open", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.mistake(self.path), "Permission denied")

    def test_what_fails_while_it_is_read(self) -> None:
        with mock.patch("os.read", side_effect=OSError(5, "Input/output error")):
            self.assertEqual(self.mistake(self.path), "Input/output error")

    @each((0o664,), (0o646,), (0o666,))
    def test_what_others_can_write(self, mode: int) -> None:
        os.chmod(self.path, mode)
        self.assertEqual(self.mistake(self.path), f"others can write it (mode {mode:04o}): chmod go-w")

    def test_what_is_somebody_elses(self) -> None:
        uid = self.give_away(self.path)
        self.assertRegex(self.mistake(self.path, uid=uid), rf"belongs to uid \d+, neither to root nor to uid {uid}")

    @each((0o775,), (0o757,))
    def test_what_lies_in_a_folder_that_others_can_write(self, mode: int) -> None:
        os.chmod(self.home, mode)
        wanted = f"others can write its folder {self.home} (mode {mode:04o}): chmod go-w"
        self.assertEqual(self.mistake(self.path), wanted)

    def test_but_with_the_sticky_bit_they_cannot_replace_it(self) -> None:
        os.chmod(self.home, 0o1777)
        self.assertEqual(read_trusted(self.path, 100, UID).data, b"text")

    def test_what_lies_in_somebody_elses_folder(self) -> None:
        uid = self.give_away(self.home)
        self.assertIn(f"its folder {self.home} belongs to uid", self.mistake(self.path, uid=uid))


class Links(TrustedFileTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.link = os.path.join(self.home, "link")
        os.symlink("a.toml", self.link)

    def test_they_are_followed_from_their_own_folder(self) -> None:
        far = os.path.join(self.folder(), "far")
        os.symlink(self.link, far)
        self.assertEqual(read_trusted(far, 100, UID).data, b"text")

    def test_but_not_to_a_folder_that_others_can_write(self) -> None:
        far = self.folder()
        self.write(os.path.join(far, "b"))
        os.symlink(os.path.join(far, "b"), self.link + "2")
        os.chmod(far, 0o777)
        self.assertIn(f"others can write its folder {far}", self.mistake(self.link + "2"))

    def test_nor_out_of_one(self) -> None:
        far = self.folder()
        os.symlink(self.path, os.path.join(far, "b"))
        os.chmod(far, 0o777)
        self.assertIn(f"others can write its folder {far}", self.mistake(os.path.join(far, "b")))

    def test_nor_where_they_are_somebody_elses(self) -> None:
        if UID:
            self.skipTest("only root can give a link away")
        self.give_away(self.link)
        wanted = f"the link {self.link} belongs to uid {STRANGER}, neither to root nor to uid 0"
        self.assertEqual(self.mistake(self.link), wanted)

    def test_nor_in_a_circle(self) -> None:
        os.symlink("circle", os.path.join(self.home, "circle"))
        wanted = f"more than {LINKS} symbolic links lead to one another"
        self.assertEqual(self.mistake(os.path.join(self.home, "circle")), wanted)

    def test_nor_where_one_takes_the_files_place_while_it_is_looked_at(self) -> None:
        with mock.patch("plumberd.effects.trusted_file._follow_links", return_value=self.link):
            self.assertEqual(self.mistake(self.path), "it was replaced by a symbolic link while it was looked at")


class Patterns(TrustedFileTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.inside = os.path.join(self.home, "rules.d")
        os.mkdir(self.inside, 0o755)
        for name in ("10-b.toml", "9-a.toml", "10-a.toml", ".10-c.toml", "10-a.toml~"):
            self.write(os.path.join(self.inside, name))

    def names(self, pattern: str) -> list[str]:
        return [os.path.relpath(path, self.home) for path in matching(self.home, pattern, UID)]

    def mistake_in(self, pattern: str) -> str:
        with self.assertRaises(FileError) as caught:
            matching(self.home, pattern, UID)
        return str(caught.exception)

    @each(
        ("rules.d/*.toml", ["rules.d/10-a.toml", "rules.d/10-b.toml", "rules.d/9-a.toml"]),
        ("rules.d/10-?.toml", ["rules.d/10-a.toml", "rules.d/10-b.toml"]),
        ("rules.d/[0-9]-*", ["rules.d/9-a.toml"]),
        ("rules.d/*.conf", []),
        ("missing.d/*.toml", []),
        ("rules.d/missing.toml", ["rules.d/missing.toml"]),
        ("a.toml", ["a.toml"]),
        ("*.toml", ["a.toml"]),
    )
    def test_what_is_meant_comes_sorted_by_name(self, pattern: str, wanted: list[str]) -> None:
        self.assertEqual(self.names(pattern), wanted)

    def test_an_absolute_pattern_is_meant_from_the_root(self) -> None:
        self.assertEqual(self.names(f"{self.inside}/9*"), ["rules.d/9-a.toml"])

    def test_a_folder_that_others_can_write_is_refused_below_a_sticky_bit_too(self) -> None:
        os.chmod(self.inside, 0o1777)
        self.assertIn(f"others can write the folder {self.inside} (mode 1777)", self.mistake_in("rules.d/*.toml"))

    def test_a_folder_that_may_not_be_read_is_not_passed_over(self) -> None:
        with mock.patch("os.listdir", side_effect=PermissionError(13, "Permission denied")):
            self.assertEqual(self.mistake_in("rules.d/*.toml"), f"{self.inside}: Permission denied")

    def test_a_file_in_the_folders_place_is_told(self) -> None:
        self.assertEqual(self.mistake_in("a.toml/*"), f"{self.path}: Not a directory")

    def test_a_wildcard_in_a_folders_name_is_refused(self) -> None:
        self.assertIn("not in that of a folder", self.mistake_in("*.d/a.toml"))

    def test_a_nul_is_refused(self) -> None:
        self.assertEqual(self.mistake_in("rules.d\0/*"), "no file has such a name")
