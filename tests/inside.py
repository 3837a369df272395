"""What the code of a test's child process uses inside it. It imports no Twisted, so that children start quickly."""

from __future__ import annotations

import codecs
import ctypes
import os
import struct
from collections.abc import Sequence

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_BPF_RET = 0x06

NOBODY = 65534
"""Who has nothing; a uid that none of the tests' files belongs to."""


def _prctl(option: int, *args: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *(ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4])):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _make_effective() -> None:
    """Make every capability that is still permitted an effective one."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(24)
    libc.capget(head, data)
    _, permitted, inheritable, _, permitted_high, inheritable_high = struct.unpack("6I", data.raw)
    wanted = (permitted, permitted, inheritable, permitted_high, permitted_high, inheritable_high)
    if libc.capset(head, ctypes.create_string_buffer(struct.pack("6I", *wanted), 24)):
        raise OSError(ctypes.get_errno(), "capset")


def become(uid: int, gid: int | None = None, groups: Sequence[int] = (), *, keep_capabilities: bool = False) -> None:
    """Become another user for good, as login(1) would: all ids, and /proc/self one's own again."""
    codecs.lookup("ascii")  # Python's own files may lie where the other user can't read them
    gid = uid if gid is None else gid
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    if keep_capabilities:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    if keep_capabilities:
        _make_effective()
    _prctl(_PR_SET_DUMPABLE, 1)


def add_seccomp_filter() -> None:
    """Put this process under one more seccomp filter, which allows everything."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", _BPF_RET, 0, 0, _SECCOMP_RET_ALLOW), 8)
    fprog = ctypes.create_string_buffer(struct.pack("HP", 1, ctypes.addressof(program)), 16)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def ids_of_threads() -> list[str]:
    """Return the uid line of every thread of this process."""
    lines = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status", encoding="ascii") as status:
            lines += [line.strip() for line in status if line.startswith("Uid:")]
    return lines
