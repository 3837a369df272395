"""The machine's own addresses, which confined clients need a rule for."""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket

from plumberd.pure.uri import IPAddress


class _SockAddr(ctypes.Structure):
    _fields_ = (("family", ctypes.c_ushort), ("data", ctypes.c_ubyte * 26))


class _IfAddrs(ctypes.Structure):
    pass


_IfAddrs._fields_ = (  # getifaddrs(3); only what stands in front of the address matters
    ("next", ctypes.POINTER(_IfAddrs)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.POINTER(_SockAddr)),
)


def own_addresses() -> frozenset[IPAddress]:
    """Return every address of every interface, loopback included; empty where they can't be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = ctypes.POINTER(_IfAddrs)()
    if libc.getifaddrs(ctypes.byref(head)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    found: set[IPAddress] = set()
    try:
        entry = head
        while entry:
            address = entry.contents.address
            if address:
                data = bytes(address.contents.data)
                if address.contents.family == socket.AF_INET:
                    found.add(ipaddress.IPv4Address(data[2:6]))
                elif address.contents.family == socket.AF_INET6:
                    found.add(ipaddress.IPv6Address(data[6:22]))
            entry = entry.contents.next
    finally:
        libc.freeifaddrs(head)
    return frozenset(found)
