"""Files that decide who may do what: read only where nobody else could have written them.

Symbolic links are followed, since /etc is full of them; but each link has to be
as trustworthy as the file, and the file itself is opened with O_NOFOLLOW at the
end of the way, so that nothing can be put in its place between the looking and
the reading. What is judged then is what was opened.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from dataclasses import dataclass, field

LINKS = 16
"""Most symbolic links on the way to a file; the kernel follows 40."""


class FileError(Exception):
    """The file cannot be read, or not be trusted; the message says why and what to do."""


@dataclass(frozen=True)
class TrustedFile:
    """What a file held.

    :ivar mode: its permission bits.
    :ivar identity: device and inode, by which it is recognised under another name.
    """

    data: bytes = field(repr=False)
    mode: int
    identity: tuple[int, int]

    @property
    def is_readable_by_others(self) -> bool:
        """Whether more than its owner and its group can read it."""
        return bool(self.mode & stat.S_IROTH)


def read_trusted(path: str, most_bytes: int, uid: int) -> TrustedFile:
    """Read the file at *path*, which has to be root's or *uid*'s, like its folder, and writable by nobody else.

    :param most_bytes: a longer one is refused.
    :raises FileError: for anything that is no such file.
    """
    try:
        fd = _open(_follow_links(path, uid))
        try:
            status = os.fstat(fd)
            _check_type(status)
            _check(status, uid, "it")
            data = _read(fd, most_bytes)
        finally:
            os.close(fd)
    except OSError as e:
        raise FileError(e.strerror or str(e)) from None
    except ValueError:  # a NUL in the path
        raise FileError("no file has such a name") from None
    return TrustedFile(data, stat.S_IMODE(status.st_mode), (status.st_dev, status.st_ino))


def matching(folder: str, pattern: str, uid: int) -> list[str]:
    """Return the paths that *pattern* means in *folder*, sorted by name.

    ``*``, ``?`` and ``[...]`` may stand in the file's name; as in a shell they do not mean a dot in front. Then
    nobody but root and *uid* may put files there, not even below a sticky bit. Without a wildcard it is the one
    path, whether it is there or not. A folder that is not there holds nothing.

    :raises FileError: where the folder cannot be trusted, or what lies in it can't be told.
    """
    path = os.path.join(folder, pattern)
    inside, name = os.path.split(path)
    if not _has_wildcard(pattern):
        return [path]
    if _has_wildcard(os.path.dirname(pattern)):
        raise FileError("wildcards stand in the name of a file, not in that of a folder")
    try:
        names = os.listdir(inside)  # glob.glob would pass over a folder that it may not read
        _check(os.stat(inside), uid, f"the folder {inside}")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise FileError(f"{inside}: {e.strerror}") from None
    except ValueError:
        raise FileError("no file has such a name") from None
    return sorted(os.path.join(inside, n) for n in names if not n.startswith(".") and fnmatch.fnmatchcase(n, name))


def _has_wildcard(text: str) -> bool:
    return any(c in text for c in "*?[")


def _follow_links(path: str, uid: int) -> str:
    """Return where the links at the end of *path* lead; each of them, and its folder, can be trusted.

    :raises OSError: where there is nothing.
    """
    for _ in range(LINKS):
        folder = os.path.dirname(path) or "."
        # In a folder with the sticky bit others can't take away what is not theirs.
        _check(os.stat(folder), uid, f"its folder {folder}", sticky_will_do=True)
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            _check_type(status)  # before it is opened: opening a device may do something
            return path
        if status.st_uid not in (0, uid):
            raise FileError(f"the link {path} belongs to uid {status.st_uid}, neither to root nor to uid {uid}")
        path = os.path.join(folder, os.readlink(path))
    raise FileError(f"more than {LINKS} symbolic links lead to one another")


def _open(path: str) -> int:
    try:
        # Without O_NONBLOCK a pipe would keep us waiting for somebody who writes to it.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise FileError("it was replaced by a symbolic link while it was looked at") from None
        raise


def _check_type(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise FileError("it is a directory; wanted a file")
    if not stat.S_ISREG(status.st_mode):
        raise FileError("it is no regular file")


def _check(status: os.stat_result, uid: int, what: str, *, sticky_will_do: bool = False) -> None:
    if status.st_uid not in (0, uid):
        raise FileError(f"{what} belongs to uid {status.st_uid}, neither to root nor to uid {uid}")
    if status.st_mode & 0o022 and not (sticky_will_do and status.st_mode & stat.S_ISVTX):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise FileError(f"others can write {what} (mode {mode}): chmod go-w")


def _read(fd: int, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = most_bytes + 1
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    if left <= 0:
        raise FileError(f"it is longer than {most_bytes} bytes")
    return b"".join(parts)
