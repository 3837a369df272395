"""What is said to the kernel's sock_diag and what it answers: which TCP sockets there are, and the end of one.

The layouts are those of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h
(sock_diag(7)): host byte order, except for addresses and ports. A dump comes as
datagrams of whole messages; a length that leads out of its datagram is an error,
and nothing is guessed.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from plumberd.pure.uri import IPAddress

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length with itself, type, flags, sequence, port
_REQUEST = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2: family, protocol, extensions, states, socket
_SOCKET = struct.Struct("=BBxx48s4xIIII")  # struct inet_diag_msg: family, state, socket, queues, uid, inode
_IDENT = struct.Struct(">HH16s16s")  # struct inet_diag_sockid: ports, addresses; interface and cookie follow
_COOKIE = struct.Struct("=II")  # the lower half comes first, whatever the byte order
_COOKIE_AT = 4 + 40
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with itself, type
_ERROR = struct.Struct("=i")

_NOOP, _FAILED, _DONE, _OVERRUN = 1, 2, 3, 4  # NLMSG_*
_BY_FAMILY, _DESTROY = 20, 21  # SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_WANTED, _ACKNOWLEDGE, _DUMP = 0x1, 0x4, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
_INFO = 2  # INET_DIAG_INFO
_ANY_SOCKET = bytes(40) + b"\xff" * 8  # INET_DIAG_NOCOOKIE
_TCP = 6
_VERSIONS = {2: 4, 10: 6}
"""AF_INET and AF_INET6 of Linux, and their versions of IP."""

FAMILIES = tuple(_VERSIONS)

STATES = (
    *("", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait"),
    *("closed", "close-wait", "last-ack", "listen", "closing", "new-syn-recv", "bound"),
)
"""The names of net/tcp_states.h's numbers, as ss(8) writes them."""

LIVING = frozenset(STATES[1:12]) - {"time-wait", "closed"}
"""What holds buffers, or may again: a socket in TIME-WAIT is a remnant of a few bytes, and nobody's."""

LISTENING = frozenset({"listen"})


class MalformedError(ValueError):
    """What came is no answer of sock_diag's."""


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """A part of struct tcp_info (linux/tcp.h); ``None`` where the kernel is too old to tell.

    :ivar rtt_seconds: smoothed round trip time.
    :ivar idle_seconds: since data was sent or received.
    :ivar bytes_acked: that the peer has acknowledged; SYN and FIN count as one each.
    :ivar bytes_received: likewise.
    """

    rtt_seconds: float | None = None
    idle_seconds: float | None = None
    bytes_acked: int | None = None
    bytes_received: int | None = None


@dataclass(frozen=True, slots=True)
class TcpSocket:
    """One socket of a dump.

    :ivar cookie: what SO_COOKIE tells; never another socket's, until the machine starts anew.
    :ivar state: one of :data:`STATES`.
    :ivar uid: its owner; 0 when no process holds it any more.
    :ivar inode: 0 when no process holds it any more.
    :ivar unread_bytes: in its receive queue.
    :ivar unsent_bytes: that the peer has not acknowledged.
    :ivar info: where it was asked for.
    :ivar ident: how the kernel names it (struct inet_diag_sockid).
    """

    cookie: int
    state: str
    local: tuple[IPAddress, int]
    remote: tuple[IPAddress, int]
    uid: int
    inode: int
    unread_bytes: int
    unsent_bytes: int
    info: TcpInfo | None
    family: int
    ident: bytes


def dump_request(family: int, states: frozenset[str], sequence: int, *, info: bool = False) -> bytes:
    """Return the request for all TCP sockets of one of :data:`FAMILIES` that are in one of *states*."""
    bits = sum(1 << STATES.index(state) for state in states)
    return _request(_BY_FAMILY, _DUMP, sequence, family, 1 << (_INFO - 1) if info else 0, bits, _ANY_SOCKET)


def destroy_request(found: TcpSocket, sequence: int) -> bytes:
    """Return the request to close *found* with a reset; nothing else that has its addresses by now."""
    return _request(_DESTROY, _ACKNOWLEDGE, sequence, found.family, 0, 0, found.ident)


def _request(kind: int, flags: int, sequence: int, family: int, extensions: int, states: int, ident: bytes) -> bytes:
    body = _REQUEST.pack(family, _TCP, extensions, states, ident)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _WANTED, sequence, 0) + body


class Answer:
    """The answer to the request with the number *sequence*, datagram by datagram.

    :ivar over: whether its end has come.
    """

    def __init__(self, sequence: int) -> None:
        self.over = False
        self._sequence = sequence

    def receive(self, datagram: bytes) -> Iterator[bytes]:
        """Yield what tells of one socket, each to be given to :func:`cookie_of` or :func:`tcp_socket`.

        :raises MalformedError: the datagram does not hold whole messages.
        :raises OSError: with the kernel's own number: it refuses, fails, or has lost a part.
        """
        at, end = 0, len(datagram)
        while at < end and not self.over:
            if end - at < _HEADER.size:
                raise MalformedError("a datagram that ends within a header")
            length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, at)
            if not _HEADER.size <= length <= end - at:
                raise MalformedError(f"a message of {length} bytes where {end - at} are left")
            body = datagram[at + _HEADER.size : at + length]
            at += (length + 3) & ~3
            if sequence != self._sequence:
                continue
            if kind == _BY_FAMILY:
                if len(body) < _SOCKET.size:
                    raise MalformedError(f"a socket of {len(body)} bytes")
                yield body
            elif kind == _OVERRUN:
                raise OSError(errno.ENOBUFS, "a part of the answer is lost")
            elif kind in (_FAILED, _DONE):
                self.over = True
                _raise_error(body, is_needed=kind == _FAILED)


def _raise_error(body: bytes, *, is_needed: bool) -> None:
    """Raise what the kernel tells as a negative number; the end of a dump that went wrong tells one too."""
    if len(body) < _ERROR.size:
        if is_needed:
            raise MalformedError("an error without a number")
        return
    (number,) = _ERROR.unpack_from(body)
    if number < 0:
        raise OSError(-number, "the kernel refuses")


def cookie_of(body: bytes) -> int:
    """Return the cookie alone of what :meth:`Answer.receive` gave; quicker than all of it."""
    low, high = _COOKIE.unpack_from(body, _COOKIE_AT)
    cookie: int = low | high << 32
    return cookie


def tcp_socket(body: bytes) -> TcpSocket:
    """Return all of what :meth:`Answer.receive` gave.

    :raises MalformedError: it is not about a TCP socket, or its attributes are cut off.
    """
    if len(body) < _SOCKET.size:
        raise MalformedError(f"a socket of {len(body)} bytes")
    family, state, ident, unread, unsent, uid, inode = _SOCKET.unpack_from(body)
    if family not in _VERSIONS:
        raise MalformedError(f"a socket of the family {family}")
    sport, dport, source, destination = _IDENT.unpack_from(ident)
    version = _VERSIONS[family]
    return TcpSocket(
        cookie=cookie_of(body),
        state=STATES[state] if state < len(STATES) else f"state-{state}",
        local=(_address(source, version), sport),
        remote=(_address(destination, version), dport),
        uid=uid,
        inode=inode,
        unread_bytes=unread,
        unsent_bytes=unsent,
        info=_info(body),
        family=family,
        ident=ident,
    )


def _address(raw: bytes, version: int) -> IPAddress:
    return ipaddress.IPv4Address(raw[:4]) if version == 4 else ipaddress.IPv6Address(raw)


def _info(body: bytes) -> TcpInfo | None:
    at, end = _SOCKET.size, len(body)
    while end - at >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if not _ATTRIBUTE.size <= length <= end - at:
            raise MalformedError(f"an attribute of {length} bytes where {end - at} are left")
        if kind == _INFO:
            return _tcp_info(body[at + _ATTRIBUTE.size : at + length])
        at += (length + 3) & ~3
    return None


def _tcp_info(raw: bytes) -> TcpInfo:
    """Read as much of struct tcp_info as there is: each kernel appends to it."""

    def number(form: str, at: int) -> int | None:
        return int(struct.unpack_from(form, raw, at)[0]) if len(raw) >= at + struct.calcsize(form) else None

    sent, received, rtt = number("=I", 44), number("=I", 52), number("=I", 68)  # milliseconds twice, microseconds
    idle = None if sent is None or received is None else min(sent, received) / 1000
    return TcpInfo(None if rtt is None else rtt / 1e6, idle, number("=Q", 120), number("=Q", 128))
