"""Make a TCP socket ready for its new owner: blocking, quick, kept alive and, in locked mode, locked.

Every handed-over descriptor is used by blocking code, and O_NONBLOCK lives in
the open file description that both processes share.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket

from plumberd.effects import kernel
from plumberd.pure.lockfilter import INSTRUCTION_BYTES, lock_program
from plumberd.pure.modes import Powers
from plumberd.pure.uri import IPAddress

NOBODY = 65534
"""Whom the trial gives a socket to; any uid but the broker's own does."""

_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
_SO_DETACH_FILTER = 27


@functools.lru_cache(maxsize=4096)
def _program(number: int, version: int, port: int) -> kernel.FilterProgram:
    address = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
    return kernel.FilterProgram(lock_program(address, port), INSTRUCTION_BYTES)


def lock(sock: socket.socket, address: IPAddress, port: int) -> None:
    """Lock a connected TCP socket to its peer, for ever.

    :raises OSError: where the kernel does not let this process.
    """
    _program(int(address), address.version, port).lock_on(sock)


def make_ready(sock: socket.socket, *, tcp: bool) -> None:
    """Clear O_NONBLOCK; set TCP_NODELAY and keepalive where it is a TCP socket; let another one take descriptors."""
    if tcp:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    else:
        kernel.take_descriptors(sock, wanted=True)
    sock.setblocking(True)


def try_powers() -> Powers:
    """Find out by trying what the kernel lets this process do with a socket."""
    uid = os.geteuid()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            os.fchown(sock.fileno(), NOBODY if uid != NOBODY else NOBODY - 1, -1)
            give = True
        except OSError:
            give = False
        try:
            lock(sock, _LOOPBACK, 1)
            can_lock = _is_locked(sock)
        except OSError:
            can_lock = False
    return Powers(can_lock, give, uid)


def _is_locked(sock: socket.socket) -> bool:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError:
        return True
    return False
