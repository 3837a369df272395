"""Who is at the other end of a UNIX socket, and is it confined?

A connection's peer credentials and namespace cookie are its maker's: a caged
child that inherited the connection looks like its parent. So the sender of the
message counts as well, and what can't be told counts as confined.

/proc is asked by pid; a pidfd of the connection's maker that is still alive
afterwards proves that the answers were about that process (Linux 6.5).
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct

from plumberd.effects import kernel
from plumberd.pure.policy.subject import parse_cgroup
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho

_UCRED = struct.Struct("iII")
_COOKIE_BYTES = 8
_PROC_BYTES = 4096
_ANCESTORS = 64
"""How far up the walk to a pid namespace's process 1 goes."""

UNTOLD = "it can't be told where it runs"
"""Why a client counts as confined whose process this one may not look into."""

_ANOTHER_NAMESPACE = "another network namespace"

Sender = tuple[int, int, int]
"""pid, uid, gid, as the kernel attached them to a message."""


def sender_of(cmsg_data: bytes) -> Sender:
    """Decode SCM_CREDENTIALS."""
    pid, uid, gid = _UCRED.unpack(cmsg_data[: _UCRED.size])
    return pid, uid, gid


def maker_of(sock: socket.socket) -> Sender:
    """Return pid, uid and gid of who connected (or, at a client, of who listened).

    :raises OSError: where there is no peer any more.
    """
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


class Inspector:
    """Tells who a client is, measured against the broker's own process."""

    def __init__(self, *, tell_cgroup: bool = True) -> None:
        """*tell_cgroup*: read each client's cgroup as well; ``direct`` and rules ``for unit:`` ask for it."""
        self.tell_cgroup = tell_cgroup
        self._net = _net_of("self")
        self._cgroup = _read("/proc/self/cgroup")
        try:
            self._root_filters = _filters(_read("/proc/1/status"))
        except (OSError, ValueError):
            self._root_filters = 0  # hidepid, or a kernel that does not tell: whoever has one is confined
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                self._cookie: bytes | None = probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, _COOKIE_BYTES)
            except OSError:
                self._cookie = None
        left, right = socket.socketpair()
        with left, right:
            try:
                os.close(_peer_pidfd(left))
                self.has_pidfds = True
            except OSError:
                self.has_pidfds = False

    def who(self, sock: socket.socket, maker: Sender, sender: Sender | None) -> LocalWho:
        """Return who sent the message that was read from *sock*.

        :param maker: the connection's peer credentials.
        :param sender: the message's, or ``None`` where they could not be had or where
            its parts came from several processes.
        :raises Refused: ``denied`` where the sender is another user than the maker.
        :raises OSError: where the peer's groups can't be had.
        """
        pid, uid, gid = maker
        groups = kernel.peer_groups(sock)
        if sender is not None and sender[0] != pid and sender[1:] != maker[1:]:
            raise _not_the_maker(maker)
        if sender is None or sender[0] != pid:
            by = pid if sender is None else sender[0]
            return LocalWho(uid, gid, groups, by, "not sent by the process that connected")
        confined, cgroup = self._look(sock, maker, sender)
        same = not confined and cgroup == self._cgroup
        return LocalWho(uid, gid, groups, pid, confined, same, parse_cgroup(cgroup) if cgroup else None)

    def _look(self, sock: socket.socket, maker: Sender, sender: Sender) -> tuple[str, bytes]:
        """Return why the process is confined, or nothing, and its cgroups, or nothing where they can't be told."""
        pid = maker[0]
        try:
            status = _read(f"/proc/{pid}/status")
            ids = tuple(int(_field(status, name).split()[1]) for name in (b"Uid:", b"Gid:"))
        except (OSError, ValueError):
            status, ids = b"", sender[1:]
        # A message carries the real ids, the connection the effective ones: set-uid programs have both.
        if ids != maker[1:]:
            raise _not_the_maker(maker)
        caged = ""
        try:
            cookie = sock.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, _COOKIE_BYTES)
            if cookie != self._cookie:
                caged = _ANOTHER_NAMESPACE
                if not self.tell_cgroup:
                    return caged, b""
            pidfd = _peer_pidfd(sock)
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # that says something of us, and nothing of the client
            return caged or "this kernel has no pidfds of peers", b""
        try:
            confined = caged or self._why_confined(pid, status)
            cgroup = _read(f"/proc/{pid}/cgroup") if self.tell_cgroup else b""
            _check_alive(pidfd)
        except (OSError, ValueError):
            return caged or UNTOLD, b""
        finally:
            os.close(pidfd)
        return confined, cgroup

    def _why_confined(self, pid: int, status: bytes) -> str:
        if _net_of(str(pid)) != self._net:
            return _ANOTHER_NAMESPACE
        filters = _filters(status)
        if filters and filters > self._filters_of_process_1(status):
            return "more seccomp filters than its system's first process"
        return ""

    def _filters_of_process_1(self, status: bytes) -> int:
        """Return the seccomp filters of process 1 of the pid namespace that *status* lives in.

        :raises ValueError: where that process can't be found.
        """
        depth = len(_field(status, b"NSpid:").split())
        if depth == 1:
            return self._root_filters
        for _ in range(_ANCESTORS):
            ids = _field(status, b"NSpid:").split()
            if len(ids) < depth:
                break
            if len(ids) == depth and ids[-1] == b"1":
                return _filters(status)
            status = _read(f"/proc/{int(_field(status, b'PPid:'))}/status")
        raise ValueError("process 1 of the pid namespace is out of sight")


def _not_the_maker(maker: Sender) -> Refused:
    return Refused(
        Refusal.DENIED,
        f"uid {maker[1]}, gid {maker[2]} made this connection, and who asks is somebody else by now: "
        "make a connection of your own",
    )


def _peer_pidfd(sock: socket.socket) -> int:
    """Return a pidfd of the connection's maker; the caller closes it."""
    return sock.getsockopt(socket.SOL_SOCKET, kernel.SO_PEERPIDFD)


def _check_alive(pidfd: int) -> None:
    """Raise ProcessLookupError where the process is gone, so that its pid may be another's."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return  # alive, and another user's


def _net_of(pid: str) -> tuple[int, int]:
    status = os.stat(f"/proc/{pid}/ns/net")
    return status.st_dev, status.st_ino


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PROC_BYTES)
    finally:
        os.close(fd)


def _field(status: bytes, name: bytes) -> bytes:
    at = status.find(b"\n" + name)
    if at < 0:
        raise ValueError(f"no {name.decode()} in a process's status")
    end = status.index(b"\n", at + 1)
    return status[at + 1 + len(name) : end]


def _filters(status: bytes) -> int:
    if b"\nSeccomp_filters:\t0\n" in status:  # the most common by far
        return 0
    return int(_field(status, b"Seccomp_filters:"))
