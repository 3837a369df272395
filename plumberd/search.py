"""Where a client's request goes: over the control socket that it has inherited, or to the first live broker.

A connection to a UNIX socket is made at once or not at all, and a packet is sent
at once or not at all, so nothing here waits: who asks tries again after a pause.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from typing import Any

from plumberd import inherited
from plumberd.answer import LENGTH_BYTES, Error, NoBroker, encode_request
from plumberd.pure.places import client_rundirs

SOCKET_NAME = "plumberd"
PAUSES_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05)
"""A full backlog (EAGAIN) has no event to wait for; the last pause repeats."""
_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)


class Asking:
    """One request on its way, one attempt at a time: a lookup goes over ``$PLUMB_FD`` where that is set."""

    def __init__(self, request: dict[str, Any], rundir: str | None = None) -> None:
        """Prepare.

        :param rundir: names a broker, which is asked itself then, and no inherited control socket.
        :raises Error: the request is longer than a message may be.
        """
        self._data = encode_request(request)
        is_lookup = rundir is None and request["op"] == "lookup"
        self._control = os.environ.get(inherited.VARIABLE) if is_lookup else None
        self._search = Search(rundir)
        self._attempts = 0

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next attempt."""
        return _pause_seconds(self._attempts)

    def attempt(self) -> tuple[socket.socket, bytes] | None:
        """Return a non-blocking connection, the caller's, and what is to be sent on it; or ``None``: try again.

        Nothing is to be sent where the request has gone over the control socket; the answer comes on
        the connection in either case.

        :raises NoBroker: telling where was looked and what was found.
        :raises Error: as :meth:`Search.attempt` and :func:`plumberd.inherited.ask`.
        """
        self._attempts += 1
        if not self._control:
            broker = self._search.attempt()
            return None if broker is None else (broker, self._data)
        try:
            return inherited.ask(self._control, self._data[LENGTH_BYTES:]), b""
        except BlockingIOError:
            return None


class Search:
    """Looks for the first live broker, one attempt at a time.

    A connection to a UNIX socket is made at once or not at all, so nothing here waits.
    """

    def __init__(self, rundir: str | None = None) -> None:
        """*rundir*: as for :func:`connect`."""
        self._directories = [rundir] if rundir else list(client_rundirs(os.environ))
        self._looked: list[str] = []
        self._attempts = 0

    @property
    def pause_seconds(self) -> float:
        """How long to wait before the next attempt."""
        return _pause_seconds(self._attempts)

    def attempt(self) -> socket.socket | None:
        """Return a non-blocking connection, the caller's; or ``None`` to try again after a pause.

        :raises NoBroker: telling where was looked and what was found.
        :raises Error: there is one, and it may not be asked (which group to join), or its
            directory is not safe.
        """
        self._attempts += 1
        while self._directories:
            directory = self._directories[0]
            path = os.path.join(directory, SOCKET_NAME)
            try:
                check_directory(directory)
                return _checked(_dial(path), directory, path)
            except Error:
                raise
            except BlockingIOError:
                return None  # its backlog is full: it is alive
            except PermissionError:
                why = f"{path}: you may not ask this broker; {_who_may(directory, path)}"
                raise Error(errno.EACCES, why) from None
            except OSError as e:
                self._looked.append(f"{path} ({os.strerror(e.errno) if e.errno else e})")
            del self._directories[0]
        raise NoBroker(errno.ENOENT, "no broker answers; looked at " + ", ".join(self._looked))


def _checked(broker: socket.socket, directory: str, path: str) -> socket.socket:
    """Return *broker* if who listens there can be trusted; in a sticky directory a neighbour may have put it up.

    :raises Error: it is neither root, nor ourselves, nor the owner of the directory.
    """
    try:
        _, uid, _ = _CREDENTIALS.unpack(broker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        owner = os.lstat(directory).st_uid
        if uid not in (0, os.geteuid(), owner):
            why = f"{path} is served by uid {uid}, neither root nor you nor the owner of {directory} (uid {owner})"
            raise Error(errno.EPERM, why)
    except BaseException:
        broker.close()
        raise
    return broker


def check_directory(directory: str) -> None:
    """Refuse a directory in which anybody could have put his own socket.

    :raises Error: saying what is wrong with it.
    :raises OSError: there is none.
    """
    mode = os.lstat(directory).st_mode
    if stat.S_ISLNK(mode):
        raise Error(errno.EPERM, f"{directory} is a symbolic link; name the directory itself")
    if mode & 0o022 and not mode & stat.S_ISVTX:
        why = f"{directory}: others can write it and its sticky bit is not set; its sockets can't be trusted"
        raise Error(errno.EPERM, why)


def _pause_seconds(attempts: int) -> float:
    return PAUSES_SECONDS[min(max(attempts, 1), len(PAUSES_SECONDS)) - 1]


def _dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _who_may(directory: str, path: str) -> str:
    import grp  # late: most programs never get here

    for place in (path, directory):
        try:
            gid = os.stat(place).st_gid
        except OSError:
            continue
        try:
            return f"join the group {grp.getgrgid(gid).gr_name}"
        except KeyError:
            return f"join the group with gid {gid}"
    return "its directory is closed to you"
