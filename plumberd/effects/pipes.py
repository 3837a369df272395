"""Pipes for splice(2), kept in a pool.

A pipe is taken only while bytes are under way in it, so that ten thousand idle
relays need none. As a normal user 64 pipes of 1 MiB can be had, and every
further one holds 8 KiB (fs.pipe-user-pages-soft), hence the modest size.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass

from plumberd.effects import kernel

PIPE_BYTES = 256 * 1024
KEPT = 32


@dataclass(eq=False)
class Pipe:
    """Both ends of a pipe and how many bytes are in it; whoever holds it owns it."""

    read: int
    write: int
    held: int = 0

    def close(self) -> None:
        """Close both ends."""
        os.close(self.read)
        os.close(self.write)


class PipePool:
    """Lends pipes; keeps up to :data:`KEPT` empty ones."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    def take(self) -> Pipe:
        """Return an empty pipe.

        :raises OSError: where there are no descriptors.
        """
        if self._free:
            return self._free.pop()
        pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe.write, kernel.F_SETPIPE_SZ, PIPE_BYTES)
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take a pipe back; one that still holds bytes is closed."""
        if pipe.held or len(self._free) >= KEPT:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close the free ones."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()
