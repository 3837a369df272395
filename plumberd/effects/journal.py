"""Writes lines into systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

One datagram is one entry: ``NAME=value`` a line, and where a value has line
breaks, its name alone, its length as 64 bits, little-endian, and the value. What
is too long for a datagram goes as a sealed memfd in an empty one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Iterable

from plumberd.effects.logfile import LogError
from plumberd.pure.record import Line

JOURNAL_SOCKET = "/run/systemd/journal/socket"

IDENTIFIER = b"plumberd"

SEND_SECONDS = 1.0
"""How long a datagram may wait for a journal that does not read."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_TOO_LONG = (errno.EMSGSIZE, errno.ENOBUFS)


class Journal:
    """The journal behind the socket at *path*; it owns a socket of its own until :meth:`close`. Sending may block."""

    def __init__(self, path: str = JOURNAL_SOCKET, send_seconds: float = SEND_SECONDS) -> None:
        """See whether there is a journal.

        :raises LogError: where there is none.
        """
        self.name = "the journal" if path == JOURNAL_SOCKET else f"the journal at {path}"
        self._path = path
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError as e:
            raise LogError(f"{self.name} can't be written: {path}: {e.strerror}; does systemd-journald run?") from None
        if not is_socket:
            raise LogError(f"{self.name} can't be written: {path} is no socket")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # Not settimeout: for a socket without a peer poll(2) tells nothing, and Python would spin.
        wait = struct.pack("ll", int(send_seconds), int(send_seconds % 1 * 1e6))  # struct timeval
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)

    def write(self, pending: deque[Line]) -> None:
        """Send what is *pending*, and take from its left what is sent.

        :raises OSError: where the rest, which stays, could not be sent.
        """
        while pending:
            self._send(entry(fields(pending[0])))
            pending.popleft()

    def reopen(self) -> None:
        """Nothing has to be: each datagram looks the path up."""

    def close(self) -> None:
        """Close it. Idempotent."""
        self._sock.close()

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendto(data, self._path)
        except OSError as e:
            if e.errno not in _TOO_LONG:
                raise
            self._send_sealed(data)

    def _send_sealed(self, data: bytes) -> None:
        fd = os.memfd_create("plumberd-audit", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            at = 0
            while at < len(data):
                at += os.write(fd, data[at:])
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            self._sock.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(fd)


def fields(line: Line) -> list[tuple[bytes, bytes]]:
    """Return the journal's fields of *line*; those of ours that are empty are left out."""
    own = (
        (b"PLUMBERD_VERDICT", line.verdict),
        (b"PLUMBERD_SERVICE", line.service),
        (b"PLUMBERD_DIRECTION", line.direction),
    )
    return [
        (b"MESSAGE", line.data),
        (b"PRIORITY", b"%d" % line.priority),
        (b"SYSLOG_IDENTIFIER", IDENTIFIER),
        *((name, value.encode("utf-8", "backslashreplace")) for name, value in own if value),
    ]


def entry(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return an entry of the fields *pairs* as the journal reads it."""
    parts = []
    for name, value in pairs:
        if b"\n" in value:
            parts.append(name + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name + b"=" + value + b"\n")
    return b"".join(parts)
