"""A file that grows by whole lines, and may be rotated from outside while it does.

Before it writes it looks whether its path still leads to its file; if not, it
opens the path anew. Half a line, as a full disk leaves it, is completed where
nothing has come behind it, else ended and written again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections import deque

from plumberd.pure.record import Line

FILE_MODE = 0o640
"""Of a file that is made here: who may read it is told who connects to what."""

WRITE_BYTES = 1 << 16
"""Lines of so many bytes go into one write."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
# O_NONBLOCK: a FIFO that nobody reads is an error, and not a start that never ends.

_KEEPS_FILE = (errno.ENOSPC, errno.EDQUOT)
"""After these the same file will do, when there is room again."""

_SENTENCES = {
    errno.EISDIR: "it is a directory; wanted a file",
    errno.ELOOP: "it is a symbolic link, which is not followed; wanted the file itself",
    errno.ENOENT: "its folder does not exist",
    errno.ENOTDIR: "what stands in front of its name is no folder",
    errno.ENXIO: "nobody reads it, or it is a socket; wanted a file",
    errno.EROFS: "its file system is read-only",
}


class LogError(OSError):
    """A log can't be opened. The text is a sentence that names it, says what was found and what was wanted."""


class LogFile:
    """The file at *path*; it owns the descriptor until :meth:`close`. All of it may block."""

    def __init__(self, path: str) -> None:
        """Open it, or make it with :data:`FILE_MODE`.

        :raises LogError: where it can't be, or where everybody may write it.
        """
        self.name = path
        self._fd = -1
        self._own: tuple[int, int] | None = None
        self._torn = False
        """Whether the file ends in half a line that has to be ended."""
        self._done = 0
        """How much of the next line is in the file already, right at its end."""
        self._end = 0
        """Where the file ended then."""
        self._regular = False
        self._open()

    def write(self, pending: deque[Line]) -> None:
        """Write what is *pending*, and take from its left what is written.

        :raises OSError: where the rest, which stays, could not be written.
        """
        self._follow()
        while pending:
            data = self._next(pending)
            try:
                count = os.write(self._fd, data)
            except OSError as e:
                if e.errno not in _KEEPS_FILE:
                    self.reopen()
                raise
            self._wrote(pending, count)

    def reopen(self) -> None:
        """Open the path anew at the next write."""
        self._own = None

    def close(self) -> None:
        """Close it. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._torn or self._done:
                with contextlib.suppress(OSError):
                    os.write(fd, b"\n")
            os.close(fd)
        self._own, self._torn, self._done = None, False, 0

    def _next(self, pending: deque[Line]) -> bytes:
        """Return some lines in one piece, or what is missing of them."""
        if self._done and self._regular and (length := os.fstat(self._fd).st_size) != self._end:
            # another process has written behind the half, or emptied the file
            self._torn, self._done = _ends_in_half_a_line(self._fd, length), 0
        first = (b"\n" if self._torn else b"") + pending[0].data[self._done :] + b"\n"
        lines, length = [first], len(first)
        for line in itertools.islice(pending, 1, None):
            length += len(line.data) + 1
            if length > WRITE_BYTES:
                break
            lines.append(line.data + b"\n")
        return b"".join(lines)

    def _wrote(self, pending: deque[Line], count: int) -> None:
        if self._torn and count:
            self._torn = False
            count -= 1
        count += self._done
        while pending and count > len(pending[0].data):
            count -= len(pending.popleft().data) + 1
        self._done = count
        if count and self._regular:
            self._end = os.lseek(self._fd, 0, os.SEEK_CUR)

    def _follow(self) -> None:
        """See to it that the file is the one that its path leads to."""
        with contextlib.suppress(OSError):
            found = os.stat(self.name, follow_symlinks=False)
            if self._own == (found.st_dev, found.st_ino):
                return
        self.close()
        self._open()

    def _open(self) -> None:
        try:
            fd = self._open_or_make()
        except OSError as e:
            raise LogError(f"{self.name} can't be written: {_sentence(e)}") from None
        except ValueError:
            raise LogError(f"{self.name!r} can't be written: a name has no NUL in it") from None
        try:
            found = os.fstat(fd)
            if found.st_mode & stat.S_IWOTH and not stat.S_ISCHR(found.st_mode):
                raise LogError(
                    f"{self.name} can be written by everybody (mode {stat.S_IMODE(found.st_mode):04o}); "
                    f"wanted {FILE_MODE:04o}"
                )
            os.set_blocking(fd, True)
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        self._own = found.st_dev, found.st_ino
        self._regular = stat.S_ISREG(found.st_mode)
        self._torn = self._regular and _ends_in_half_a_line(fd, found.st_size)

    def _open_or_make(self) -> int:
        for _ in range(2):  # it may be made, or go, between the two
            with contextlib.suppress(FileNotFoundError):
                return os.open(self.name, _FLAGS)
            with contextlib.suppress(FileExistsError):
                fd = os.open(self.name, _FLAGS | os.O_CREAT | os.O_EXCL, FILE_MODE)
                os.fchmod(fd, FILE_MODE)  # whatever the umask
                return fd
        raise OSError(errno.EAGAIN, "it comes and goes")


def _ends_in_half_a_line(fd: int, length: int) -> bool:
    """Tell whether whoever wrote before was stopped within a line; a file that can't be read is taken for whole."""
    if not length:
        return False
    with contextlib.suppress(OSError):
        reading = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(reading, 1, length - 1) != b"\n"
        finally:
            os.close(reading)
    return False


def _sentence(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"uid {os.geteuid()} has no permission"
    return _SENTENCES.get(error.errno or 0) or error.strerror or str(error)
