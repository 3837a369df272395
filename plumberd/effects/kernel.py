"""Numbers and system calls of Linux that Python's socket and os modules do not name."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import socket
import struct
import termios

SO_PEERPIDFD = 77  # Linux 6.5
SO_COOKIE = 57  # Linux 4.12
SO_PEERGROUPS = 59  # Linux 4.13
SO_NETNS_COOKIE = 71  # Linux 5.14
SO_PASSRIGHTS = 83  # Linux 6.16
SO_ATTACH_FILTER = 26
SO_LOCK_FILTER = 44
F_SETPIPE_SZ = 1031
SPLICE_F_MOVE = 1
SPLICE_F_NONBLOCK = 2

_LAST_ACK_AT = 56
"""Where tcpi_last_ack_recv stands, in milliseconds (struct tcp_info, linux/tcp.h)."""

_FORCES = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}
"""SO_SNDBUFFORCE and SO_RCVBUFFORCE, socket(7): the same beyond the system's limit, with CAP_NET_ADMIN."""

_UNCHANGED = 2**32 - 1
"""-1: setresuid(2) would leave the id as it is, and the work would be done as root."""

PYTHON_GETSOCKOPT_BYTES = 1024
"""socket.getsockopt takes no longer buffer: 256 groups."""

_libc = ctypes.CDLL(None, use_errno=True)

_SYSCALLS = {"x86_64": (116, 119, 117)}
"""setgroups, setresgid, setresuid; the other 64-bit architectures share one table."""
_GENERIC_SYSCALLS = (159, 149, 147)
_GENERIC = ("aarch64", "riscv64", "loongarch64")

_INT = struct.Struct("i")


def set_buffer(sock: socket.socket, option: int, count: int) -> None:
    """Set SO_SNDBUF or SO_RCVBUF, as *option* says, to *count* bytes, as far as the kernel lets us."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _FORCES[option], count)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, option, count)


def unsent_bytes(fd: int) -> int:
    """Return what the peer has not taken yet (SIOCOUTQ); 0 also where it hung up.

    For a UNIX socket the number counts kernel memory, so only 0 has a meaning.
    """
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.TIOCOUTQ, buffer)
    return int(_INT.unpack(buffer)[0])


def is_untaken(fd: int) -> bool:
    """Tell whether the peer of a UNIX socket has not taken all yet; for who waits for EPOLLOUT's edge.

    The kernel fires that edge between two subtractions (sock_wfree), when SIOCOUTQ still
    shows 1; no message, which costs hundreds of bytes of memory, ever shows that little. Taken for
    untaken, it would be waited for for ever.
    """
    return unsent_bytes(fd) > 1


def unread_bytes(fd: int) -> int:
    """Return what lies in the receive queue (SIOCINQ)."""
    buffer = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, buffer)
    return int(_INT.unpack(buffer)[0])


def unheard_seconds(sock: socket.socket) -> float:
    """Return since when nothing was acknowledged on a TCP connection, not even that there is no room (TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK_AT + _INT.size)
    return float(_INT.unpack_from(info, _LAST_ACK_AT)[0]) / 1000


def take_descriptors(sock: socket.socket, *, wanted: bool) -> None:
    """Let a UNIX socket be sent descriptors, as every new one can be, or not: the kernel refuses the sender.

    What lies in its queue already stays. Before Linux 6.16 nothing can be refused, and nothing is done.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, wanted)


def peer_groups(sock: socket.socket) -> tuple[int, ...]:
    """Return all supplementary groups of the peer of a UNIX socket.

    :raises OSError: where the kernel does not tell.
    """
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, PYTHON_GETSOCKOPT_BYTES)
    except OSError:
        length = ctypes.c_uint32(65536 * 4)  # NGROUPS_MAX
        buffer = ctypes.create_string_buffer(length.value)
        if _libc.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number)) from None
        raw = buffer.raw[: length.value]
    return struct.unpack(f"{len(raw) // 4}I", raw)


class FilterProgram:
    """A classic BPF program, laid out as the kernel wants it."""

    def __init__(self, program: bytes, instruction_bytes: int) -> None:
        self._buffer = ctypes.create_string_buffer(program, len(program))
        length = len(program) // instruction_bytes
        self._fprog = struct.pack("HP", length, ctypes.addressof(self._buffer))  # struct sock_fprog

    def lock_on(self, sock: socket.socket) -> None:
        """Attach it, and lock it there for ever.

        :raises OSError: where the kernel does not let this process.
        """
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, self._fprog)
        sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def can_switch_ids() -> bool:
    """Tell whether this architecture's numbers of the raw system calls are known."""
    return platform.machine() in _SYSCALLS or platform.machine() in _GENERIC


class ThreadIds:
    """Sets this thread's effective ids by the raw system calls; os.seteuid switches every thread."""

    def __init__(self) -> None:
        self._setgroups, self._setresgid, self._setresuid = _SYSCALLS.get(platform.machine(), _GENERIC_SYSCALLS)
        self._keep = ctypes.c_long(-1)

    def set(self, uid: int, gid: int, groups: tuple[int, ...], *, uid_first: bool) -> None:
        """Set effective uid, gid and the groups; *uid_first* on the way back.

        :raises OSError: at the first that fails.
        """
        if _UNCHANGED in (uid, gid):
            raise OSError(errno.EINVAL, "no uid or gid")
        if uid_first:
            self._call(self._setresuid, self._keep, ctypes.c_long(uid), self._keep)
        array = (ctypes.c_uint32 * len(groups))(*groups)
        self._call(self._setgroups, ctypes.c_long(len(groups)), array)
        self._call(self._setresgid, self._keep, ctypes.c_long(gid), self._keep)
        if not uid_first:
            self._call(self._setresuid, self._keep, ctypes.c_long(uid), self._keep)

    def _call(self, number: int, *args: object) -> None:
        if _libc.syscall(ctypes.c_long(number), *args):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def effective_capabilities() -> int:
    """Return this process's effective capabilities as a bit set (capabilities(7))."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_SETGID = 6
CAP_SETUID = 7


def drop_capabilities(mask: int) -> None:
    """Take the capabilities in *mask* (below number 32) from this process's effective and permitted sets.

    :raises OSError: where the kernel refuses.
    """
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    head = ctypes.create_string_buffer(header, len(header))
    data = ctypes.create_string_buffer(24)
    if _libc.capget(head, data):
        raise OSError(ctypes.get_errno(), "capget")
    effective, permitted, inheritable, *high = struct.unpack("6I", data.raw)
    packed = struct.pack("6I", effective & ~mask, permitted & ~mask, inheritable & ~mask, *high)
    if _libc.capset(head, ctypes.create_string_buffer(packed, 24)):
        raise OSError(ctypes.get_errno(), "capset")


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors to the hard one; return it.

    Descriptors that clients have not read yet count against it as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard
