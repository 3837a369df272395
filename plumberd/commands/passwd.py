"""``plumb passwd``: the file of users' passwords, against which the logins of callers are checked."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import os
import secrets
import stat
import sys
import warnings
from collections.abc import Callable

from plumberd.commands.output import ERROR, OK, complain, say
from plumberd.pure.passwords import (
    FILE_BYTES,
    PASSWORD_BYTES,
    SALT_BYTES,
    PasswordError,
    check_user,
    make_entry,
    parse_file,
    with_entry,
    without_user,
)

MODE = 0o600


class NotChanged(Exception):
    """The file is left as it was; the argument says why."""


def run(args: argparse.Namespace) -> int:
    """Set the password of a user, or take the user out. A password never stands on a command line."""
    user = args.user
    try:
        check_user(user)
        if args.delete:
            change(args.file, lambda data: without_user(data, user), may_be_new=False)
        else:
            entry = make_entry(user, _from_stdin() if args.stdin else _from_terminal(user), _salt())
            change(args.file, lambda data: with_entry(data, entry))
    except (OSError, NotChanged, PasswordError) as e:
        complain(f"{args.file}: {(e.strerror or e) if isinstance(e, OSError) else e}")
        return ERROR
    what = "is taken out of" if args.delete else "has a password in"
    say([f"{user} {what} {args.file}; plumb reload puts it in force"])
    return OK


def change(path: str, new: Callable[[bytes], bytes], *, may_be_new: bool = True) -> None:
    """Put what *new* makes of the file at *path* in its place: at once and whole, with mode 0600.

    The file stays its owner's. Others that change it at the same time wait for their turn.

    :param may_be_new: whether a file that is not there is an empty one.
    :raises NotChanged: it is no file of passwords, or could not stay its owner's.
    :raises PasswordError: its lines have mistakes, or what *new* raises.
    :raises OSError: it cannot be read or written.
    """
    path = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(path)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX)
        data, owner = _read(path, may_be_new=may_be_new)
        parse_file(data)
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
        try:
            _write(temporary, new(data), owner)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _read(path: str, *, may_be_new: bool) -> tuple[bytes, tuple[int, int] | None]:
    """Return what the file holds, and its uid and gid; of one that is not there, nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if not may_be_new:
            raise
        return b"", None
    with os.fdopen(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise NotChanged("it is no regular file")
        data = file.read(FILE_BYTES + 1) or b""
    if len(data) > FILE_BYTES:
        raise NotChanged(f"it is longer than {FILE_BYTES} bytes")
    return data, (status.st_uid, status.st_gid)


def _write(path: str, data: bytes, owner: tuple[int, int] | None) -> None:
    if len(data) > FILE_BYTES:
        raise NotChanged(f"it would be longer than {FILE_BYTES} bytes")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, MODE)  # whatever the umask is
        if owner is not None and owner != (os.fstat(fd).st_uid, os.fstat(fd).st_gid):
            try:
                os.fchown(fd, *owner)
            except PermissionError:
                raise NotChanged(f"it belongs to uid {owner[0]}, gid {owner[1]}, and would become yours") from None
        file.write(data)
        file.flush()
        os.fsync(fd)


def _salt() -> bytes:
    return secrets.token_bytes(SALT_BYTES)


def _from_stdin() -> str:
    """Return the one line of standard input.

    :raises NotChanged: it is more, or no text.
    """
    data = sys.stdin.buffer.read(PASSWORD_BYTES + 3)
    line = data.removesuffix(b"\n").removesuffix(b"\r")
    if b"\n" in line:
        raise NotChanged("wanted one line on standard input, with the password")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise NotChanged("wanted the password in UTF-8") from None


def _from_terminal(user: str) -> str:
    """Ask twice, and show nothing of it.

    :raises NotChanged: there is no terminal, or the two differ.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            first = getpass.getpass(f"password of {user}: ")
            again = getpass.getpass("again: ")
        except (getpass.GetPassWarning, EOFError):
            raise NotChanged("there is no terminal to ask on without echo; --stdin takes the password") from None
    if first != again:
        raise NotChanged("the two differ")
    return first
