"""Ports on which nobody listens, for programs that cannot choose one, or have to have the same one again."""

from __future__ import annotations

import random
import socket

_LOWEST = 10_000
_told: set[int] = set()


def free_port() -> int:
    """Return a port that is free, and stays so: it is none of those that the kernel gives to who asks for any.

    None is returned twice.
    """
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
        first, last = map(int, file.read().split())
    given = range(first, last + 1)
    while True:
        port = random.randrange(_LOWEST, 1 << 16)
        if port in given or port in _told:
            continue
        _told.add(port)
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as other:
            try:
                for sock in (probe, other):
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
