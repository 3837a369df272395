"""What a process runs, and what its user is called. It may block: never on the path of a connection.

A pid is a number that another process may have by now. So whoever asks says
when its process was known to live, and one that began later is another one.
What it runs may change as well, by execve(2): the answer holds for now.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Callable
from dataclasses import dataclass

_STAT_BYTES = 4096
_START_TIME = 19
"""starttime in /proc/PID/stat, counted from the field behind the name (proc_pid_stat(5), field 22)."""

USER_SECONDS = 60.0
"""How long the name of a user is remembered."""

USERS = 1024
"""How many names are."""


@dataclass(frozen=True, slots=True)
class Process:
    """One that lives, or did when it was looked at.

    :ivar began_seconds: since boot (CLOCK_BOOTTIME), rounded down to a tick of the kernel, 10 ms.
    :ivar executable: the path, with `` (deleted)`` behind it where the file is gone; ``None``
        where this process may not know it.
    """

    began_seconds: float
    executable: str | None

    def lived_at(self, seconds: float) -> bool:
        """Tell whether it had begun by then; *seconds* since boot.

        Of one tick it is believed: nobody gets through all pids in 10 ms.
        """
        return self.began_seconds <= seconds


def process(pid: int) -> Process | None:
    """Look at the process *pid* now; ``None`` where there is none.

    Another user's executable can't be seen without CAP_SYS_PTRACE, nor anything where
    /proc hides other users' processes.
    """
    if pid <= 0:
        return None  # the kernel's word for one that is not in our pid namespace
    # This directory stays that process's own: once that has ended it has no files, whoever has the pid then.
    try:
        folder = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        began = _began_ticks(_read("stat", folder)) / os.sysconf("SC_CLK_TCK")
        executable = None
        with contextlib.suppress(OSError):
            executable = os.readlink("exe", dir_fd=folder)
        return Process(began, executable)
    except (OSError, ValueError, IndexError):
        return None
    finally:
        os.close(folder)


def boot_seconds() -> float:
    """Return the time that processes' beginnings are told in."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class UserNames:
    """The names of users, remembered for :data:`USER_SECONDS`: a directory service may be slow."""

    def __init__(
        self,
        look: Callable[[int], pwd.struct_passwd] = pwd.getpwuid,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._clock = clock
        self._known: dict[int, tuple[float, str | None]] = {}

    def name_of(self, uid: int) -> str | None:
        """Return the name of *uid*, or ``None`` where it has none. Blocks."""
        now = self._clock()
        known = self._known.get(uid)
        if known is not None and now - known[0] < USER_SECONDS:
            return known[1]
        if len(self._known) >= USERS:
            self._known.clear()
        name = None
        with contextlib.suppress(KeyError, OSError, OverflowError):
            name = self._look(uid).pw_name
        self._known[uid] = now, name
        return name


def _began_ticks(stat: bytes) -> int:
    # The name stands in parentheses and may hold any character, parentheses and blanks too.
    return int(stat[stat.rindex(b")") + 2 :].split()[_START_TIME])


def _read(name: str, folder: int) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, _STAT_BYTES)
    finally:
        os.close(fd)
