"""The run directory and the sockets in it: made, taken over, checked, removed.

Whoever can write the directory can put his own socket in another's place, so
its owner and mode are checked, and nothing in it is opened through a symlink.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from dataclasses import dataclass, field

from plumberd.effects import kernel

DIRECTORY_MODE = 0o1770
"""Sticky: with 0770 a member of the group could rename a socket away and answer in its place."""

SOCKET_MODE = 0o660
BACKLOG = 4096
PATH_BYTES = 107
"""Longest path of a UNIX socket (unix(7))."""


class RunDirError(Exception):
    """The directory or a socket in it cannot be used; the message says what to do."""


def open_rundir(path: str, gid: int | None) -> None:
    """Make the run directory, or check the one that is there and leave it as it is.

    :param gid: the group of a new directory, or ``None`` for the broker's own.
    :raises RunDirError: where it cannot be made or trusted.
    """
    check_path(path, "x" * 16)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _check_directory(path)
        return
    except OSError as e:
        raise RunDirError(f"cannot make the run directory {path}: {e.strerror}") from None
    try:
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, DIRECTORY_MODE)
    except OSError as e:
        os.rmdir(path)
        raise RunDirError(f"cannot give {path} to group {gid}: {e.strerror}") from None


def check_path(rundir: str, name: str) -> str:
    """Return the path of *name* in *rundir*.

    :raises RunDirError: where it is too long for a UNIX socket.
    """
    path = os.path.join(rundir, name)
    if len(os.fsencode(path)) > PATH_BYTES:
        raise RunDirError(f"{path}: a UNIX socket's path holds at most {PATH_BYTES} bytes; choose a shorter directory")
    return path


def untrusted_because(path: str, uid: int) -> str | None:
    """Return why the directory at *path* cannot be trusted by *uid*, or ``None``.

    :raises OSError: where there is none.
    """
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        return "it is no directory (symbolic links are not followed)"
    if status.st_uid not in (0, uid):
        return f"it belongs to uid {status.st_uid}, neither to root nor to uid {uid}"
    if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        return f"others can write it and its sticky bit is not set (mode {mode}); chmod +t it"
    return None


def _check_directory(path: str) -> None:
    try:
        why = untrusted_because(path, os.geteuid())
    except OSError as e:
        raise RunDirError(f"run directory {path}: {e.strerror}") from None
    if why:
        raise RunDirError(f"run directory {path}: {why}")


@dataclass
class BoundSocket:
    """A listening UNIX socket in the run directory.

    It owns the socket, the lock file's descriptor and the path; :meth:`close` gives all
    three up, once.

    :ivar identity: device and inode of the path, by which it is recognised.
    """

    path: str
    sock: socket.socket
    identity: tuple[int, int]
    _lock: int = field(repr=False)

    def close(self) -> None:
        """Stop listening and remove the path if it is still ours."""
        if self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        with contextlib.suppress(OSError):
            if identity(self.path) == self.identity:
                os.unlink(self.path)
        self.sock.close()
        _give_lock_back(self.path, lock)


def identity(path: str) -> tuple[int, int]:
    """Return device and inode of *path* itself.

    :raises OSError: where there is nothing.
    """
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def bind_socket(rundir: str, name: str, gid: int | None, kind: int = socket.SOCK_STREAM) -> BoundSocket:
    """Listen on ``<rundir>/<name>``, taking over a stale socket but never a live one.

    The lock file comes first, so that two starters cannot unlink each other's live
    socket; then the path is probed. At no moment is the new socket open to more than
    its owner and group.

    :param kind: SOCK_STREAM or SOCK_SEQPACKET.
    :raises RunDirError: where another one listens there, or the path cannot be had.
    """
    path = check_path(rundir, name)
    lock = _take_lock(path)
    try:
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            umask = os.umask(0o777 & ~SOCKET_MODE)
            try:
                sock.bind(path)
            finally:
                os.umask(umask)
            if gid is not None:
                os.chown(path, -1, gid)
            _prepare(sock)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return BoundSocket(path, sock, identity(path), lock)
        except BaseException:
            if sock.getsockname():  # it is bound, so what lies there is ours
                with contextlib.suppress(OSError):
                    os.unlink(path)
            sock.close()
            raise
    except OSError as e:
        _give_lock_back(path, lock)
        raise RunDirError(f"cannot listen on {path}: {e.strerror}") from None
    except BaseException:
        _give_lock_back(path, lock)
        raise


def _prepare(sock: socket.socket) -> None:
    """Ask for each message's sender, and for no descriptors; accepted sockets inherit both."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    kernel.take_descriptors(sock, wanted=False)  # before Linux 6.16 they arrive, and are closed


def _take_lock(path: str) -> int:
    while True:
        try:
            lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise RunDirError(f"cannot open the lock file {path}.lock: {e.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise RunDirError(f"{path}: another broker holds its lock file and is running") from None
        try:
            found = identity(path + ".lock")
        except OSError:
            found = None
        mine = os.fstat(lock)
        if found == (mine.st_dev, mine.st_ino):
            return lock
        os.close(lock)  # it was unlinked by one that was just stopping: once more, on the new one


def _give_lock_back(path: str, lock: int) -> None:
    """Remove the lock file, if it is still the one that *lock* holds, and close *lock*."""
    with contextlib.suppress(OSError):
        mine = os.fstat(lock)
        if identity(path + ".lock") == (mine.st_dev, mine.st_ino):
            os.unlink(path + ".lock")
    os.close(lock)


def _remove_stale(path: str) -> None:
    """Unlink the socket at *path* if nobody listens on it.

    :raises RunDirError: where somebody does, or where it is no socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise RunDirError(f"{path} exists and is no socket; it is left alone")
    except FileNotFoundError:
        return
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            os.unlink(path)
            return
        if code in (0, errno.EAGAIN):
            raise RunDirError(f"{path}: somebody listens there already")
        if code != errno.EPROTOTYPE:
            raise RunDirError(f"{path}: cannot tell whether somebody listens there: {os.strerror(code)}")
    raise RunDirError(f"{path}: a socket of an unknown type")
