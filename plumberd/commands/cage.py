"""What a cage has of the system outside, and what becomes of a program's environment in it.

Whatever is not named here is not there: a socket in a file system that can only
be read can be connected to all the same, so a directory of the host's that is
shown shows the services behind its sockets as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from plumberd.inherited import VARIABLE

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix/store", "/gnu/store")
"""Programs, libraries and their configuration: shown, and read-only."""

PRIVATE = ("/tmp", "/run", "/var")  # noqa: S108 - the cage's own
"""Empty at the beginning, and the cage's own."""

_HIDDEN = (*PRIVATE, "/home", "/root", "/proc", "/sys", "/dev")
_NOWHERE = ("/run", "/proc", "/sys", "/dev")
"""Nothing below these is shown unless it is asked for: sockets and devices lie there."""

KEPT = re.compile(r"PATH|LANG|LANGUAGE|LC_\w+|TZ|TERM|COLORTERM|NO_COLOR|USER|LOGNAME|SHELL|HOME")
"""The variables that go into the cage; all others may hold secrets, or name what is not there."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class CageError(ValueError):
    """What was asked for makes no sense; the message says why."""


@dataclass(frozen=True)
class Shown:
    """A path that is seen in the cage where it lies outside."""

    path: str
    writable: bool


def environment(environ: Mapping[str, str], settings: Sequence[str]) -> dict[str, str]:
    """Return the environment of a program in a cage.

    :param settings: ``NAME=VALUE``, or ``NAME`` for the value of *environ*, where it has one.
    :raises CageError: for another form, and for the variable that names the control socket.
    """
    found = {name: value for name, value in environ.items() if KEPT.fullmatch(name)}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not _NAME.fullmatch(name):
            raise CageError(f"--setenv {setting}: wanted NAME or NAME=VALUE")
        if name == VARIABLE:
            raise CageError(f"--setenv {setting}: --services sets it")
        if equals:
            found[name] = value
        elif name in environ:
            found[name] = environ[name]
    return found


def home_of(environ: Mapping[str, str]) -> str:
    """Return the home directory in the cage, which is empty: the same path as outside, or /tmp."""
    home = os.path.normpath(environ.get("HOME") or "/")
    if not home.startswith("/") or any(_is_in(home, place) or _is_in(place, home) for place in (*SYSTEM, *_NOWHERE)):
        return "/tmp"  # noqa: S108 - the cage's own
    return home


def shown(cwd: str, home: str, read: Sequence[str], write: Sequence[str]) -> tuple[Shown, ...]:
    """Return what is shown besides the system, the outer directories first.

    The working directory is, unless it is the home directory, one that is private in a cage, or
    above such: there lies what nobody has meant.

    :raises CageError: for a path that is not there, and for the whole file system.
    """
    found: dict[str, Shown] = {}
    if not any(_is_in(place, cwd) for place in (*_HIDDEN, home)) and not any(_is_in(cwd, p) for p in _NOWHERE):
        found[cwd] = Shown(cwd, False)
    for option, paths in (("--read", read), ("--write", write)):
        for path in paths:
            where = "/" + os.path.abspath(path).lstrip("/")  # two in front would mean the same here
            if where == "/":
                raise CageError(f"{option} {path}: that is the whole system; name what is needed of it")
            if not os.path.exists(where):
                raise CageError(f"{option} {path}: there is no such file or directory")
            found[where] = Shown(where, option == "--write")
    return tuple(found[path] for path in sorted(found))


def bubblewrap_words(cwd: str, home: str, files: Sequence[Shown]) -> Iterator[str]:
    """Yield bubblewrap's arguments in front of the command."""
    # Of root there would be all capabilities: in a namespace of its own, or where there can be none, for real.
    yield from ("--unshare-all", "--cap-drop", "ALL", "--die-with-parent")
    yield "--new-session"  # else TIOCSTI could type into the terminal outside
    for path in SYSTEM:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            yield from ("--ro-bind", path, path)
    for path in PRIVATE:
        yield from ("--tmpfs", path)
    yield from ("--dir", "/var/tmp", "--symlink", "../run", "/var/run")  # noqa: S108 - the cage's own
    if home not in PRIVATE:
        yield from ("--tmpfs", home)
    yield from ("--proc", "/proc", "--dev", "/dev")
    for one in files:
        yield from ("--bind" if one.writable else "--ro-bind", one.path, one.path)
    if any(_is_in(cwd, place) for place in ("/proc", "/sys", "/dev")):
        cwd = home
    if cwd != "/" and not any(_is_in(cwd, place) for place in (*SYSTEM, *(one.path for one in files))):
        yield from ("--dir", cwd)
    yield from ("--remount-ro", "/", "--chdir", cwd)


def _is_in(path: str, place: str) -> bool:
    """Tell whether *path* is *place*, or below it."""
    return path == place or path.startswith(place.rstrip("/") + "/")
