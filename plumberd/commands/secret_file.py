"""Append a line to a file of secrets that nobody else can read."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable


class NotAppended(Exception):
    """The file is left as it was; the argument says why."""


def append_line(path: str, line: str, most_bytes: int, check: Callable[[bytes], None]) -> None:
    """Write *line* behind those of the file at *path*, which is made with mode 0600 if it is not there.

    :param check: is given what stands there; raises NotAppended where nothing may be appended to that.
    :raises NotAppended: others can read it, it is too long, or *check* says no.
    :raises OSError: it cannot be opened or written.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two that append at once would each find nothing of that name
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotAppended("it is no regular file")
        if status.st_mode & 0o037:
            raise NotAppended(f"others can read it (mode {stat.S_IMODE(status.st_mode):04o}): chmod 0600")
        data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            raise NotAppended(f"it is longer than {most_bytes} bytes")
        check(data)
        written = line.encode("ascii") + b"\n"
        file.write(written if not data or data.endswith(b"\n") else b"\n" + written)
