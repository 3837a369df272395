"""The socket filter that locks a TCP connection to its peer.

A TCP socket is more than a connection: its owner can connect it elsewhere or
listen on it, in the namespace it was made in. This filter (classic BPF, run by
the kernel for every arriving segment) accepts only segments of the agreed peer,
and none with SYN set: reconnecting (to the same peer too), listening and
simultaneous open then time out. ICMP errors reach the socket past the filter.

For TCP the filter's packet begins at the TCP header; the IP header is reached
at SKF_NET_OFF (linux/filter.h).
"""

from __future__ import annotations

import ipaddress
import struct

from plumberd.pure.uri import IPAddress

_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
_LD_W_ABS, _LD_H_ABS, _LD_B_ABS = 0x20, 0x28, 0x30
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06

_SKF_NET_OFF = 0xFFF00000  # -0x100000
_IPV4_SOURCE = 12  # RFC 791, 3.1
_IPV6_SOURCE = 8  # RFC 8200, 3
_TCP_SOURCE_PORT = 0  # RFC 9293, 3.1
_TCP_FLAGS = 13
_SYN = 0x02
_ALL = 0xFFFFFFFF

INSTRUCTION_BYTES = _INSTRUCTION.size


def lock_program(address: IPAddress, port: int) -> bytes:
    """Return the filter for a connection to *address* and *port*, as an array of ``struct sock_filter``."""
    tests: list[tuple[int, int, int]] = []  # load instruction, offset, value that it must equal
    if isinstance(address, ipaddress.IPv4Address):
        tests.append((_LD_W_ABS, _SKF_NET_OFF + _IPV4_SOURCE, int(address)))
    else:
        for at, word in enumerate(struct.unpack(">4I", address.packed)):
            tests.append((_LD_W_ABS, _SKF_NET_OFF + _IPV6_SOURCE + 4 * at, word))
    tests.append((_LD_H_ABS, _TCP_SOURCE_PORT, port))
    program: list[tuple[int, int, int, int]] = []
    length = 2 * len(tests) + 4
    drop = length - 1
    for load, offset, value in tests:
        program.append((load, 0, 0, offset))
        program.append((_JEQ, 0, drop - len(program) - 1, value))
    program.append((_LD_B_ABS, 0, 0, _TCP_FLAGS))
    program.append((_JSET, drop - len(program) - 1, 0, _SYN))
    program.append((_RET, 0, 0, _ALL))
    program.append((_RET, 0, 0, 0))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
