"""UDP sockets: nothing is fragmented, the path's limit is known, and datagrams of one size go out in one call.

Python has no sendmmsg; UDP_SEGMENT (udp(7)) takes several datagrams of one size
as one piece, and costs a tenth of as many calls. bench/udp_calls.py has the figures.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from plumberd.effects import kernel
from plumberd.pure.address import Zone, zone
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress

_IP_MTU_DISCOVER, _IP_MTU, _IP_PMTUDISC_DO = 10, 14, 2  # ip(7)
_IPV6_MTU_DISCOVER, _IPV6_MTU = 23, 24  # ipv6(7)
_UDP_SEGMENT = 103  # udp(7), Linux 4.18
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_EXTENDED_ERROR = struct.Struct("IBBBxII")  # struct sock_extended_err, ip(7)
_QUOTED_BYTES = 64
_ERROR_ANCILLARY_BYTES = 256

RECEIVE_BUFFER_BYTES = 1 << 20
"""Of a connected socket, as far as the kernel lets us: what comes while others have their turn."""

SEGMENTS = 64
"""Most datagrams in one call (UDP_MAX_SEGMENTS of older kernels)."""

DATAGRAM_BYTES = 65507
"""Longest datagram over IPv4; over IPv6 the interfaces' own limits are below it."""

_HEADERS_BYTES = {socket.AF_INET: 28, socket.AF_INET6: 48}
_SIZE = struct.Struct("H")
_NO_SEGMENTS = (errno.EINVAL, errno.EIO, errno.ENOPROTOOPT, errno.EOPNOTSUPP)
"""What a kernel or an interface says that cannot cut."""


def new_socket(family: int) -> socket.socket:
    """Make a UDP socket that does not block and whose datagrams are never fragmented.

    :raises OSError: there are no descriptors, or the kernel does not know *family*.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        prepare(sock, RECEIVE_BUFFER_BYTES)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket, receive_buffer_bytes: int) -> None:
    """Let *sock* never fragment, and give it room for what comes at once."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IP_PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    kernel.set_buffer(sock, socket.SO_RCVBUF, receive_buffer_bytes)


def send_buffer(sock: socket.socket, wanted_bytes: int) -> int:
    """Let so much wait in *sock* to be sent, as far as the kernel lets us; return how much it is, in its counting."""
    kernel.set_buffer(sock, socket.SO_SNDBUF, wanted_bytes)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


GONE = (errno.ECONNREFUSED, errno.EHOSTUNREACH)
"""What ICMP says of a datagram that nobody takes: no such port, no such machine."""

SOFT = (*GONE, errno.ENETUNREACH, errno.EPROTO, errno.ENOPROTOOPT, errno.EACCES, errno.EOPNOTSUPP, errno.ENOBUFS)
"""What a call may raise because of an earlier datagram, to wherever, once; it has nothing to do with its own.

And ENOBUFS, of an interface whose queue is full: it costs this one. The kernel tells it to who hears errors alone.
"""


@dataclass(frozen=True)
class IcmpError:
    """What came back of a datagram.

    :ivar code: the kernel's.
    :ivar address: where the datagram was sent to.
    :ivar datagram: the beginning of it, as far as it was quoted.
    """

    code: int
    address: tuple[object, ...]
    datagram: bytes


def hear_errors(sock: socket.socket) -> None:
    """Let :func:`read_error` return what ICMP tells, with the datagram that it is about.

    They have to be read: they take the room of what is received.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def read_error(sock: socket.socket) -> IcmpError | None:
    """Return the next one; ``None`` where there is no more."""
    try:
        quoted, ancillary, _, address = sock.recvmsg(_QUOTED_BYTES, _ERROR_ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
            return IcmpError(_EXTENDED_ERROR.unpack_from(data)[0], address, quoted)
    return IcmpError(0, address, quoted)


def limit_of(sock: socket.socket) -> int:
    """Return the longest payload that the path of a connected socket takes, as far as is known by now."""
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU) if sock.family == socket.AF_INET6 else (socket.IPPROTO_IP, _IP_MTU)
    try:
        mtu = sock.getsockopt(level, option)
    except OSError:
        mtu = 1280 if sock.family == socket.AF_INET6 else 576  # what every path takes (RFC 8200, RFC 791)
    return min(mtu - _HEADERS_BYTES[socket.AddressFamily(sock.family)], DATAGRAM_BYTES)


def limit_to(address: tuple[object, ...]) -> int:
    """Return the same for who sends to many places through one socket: by a connection that sends nothing.

    :param address: as a socket tells it: with the interface, where it means nothing without.
    :raises OSError: there is no way there, or there are no descriptors.
    """
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        return limit_of(sock)


_OF_MANY = {Zone.MULTICAST: "a multicast or broadcast address", Zone.UNSPECIFIED: "an unspecified address"}


def check_one(address: IPAddress) -> None:
    """Check that *address*, and what it may stand for, is one machine's: datagrams go to nobody else.

    An interface's own broadcast address the kernel refuses, for no socket of ours has SO_BROADCAST.

    :raises Refused: ``not-possible``.
    """
    what = _OF_MANY.get(zone(address))
    if what:
        raise Refused(Refusal.NOT_POSSIBLE, f"{address} is {what}; datagrams go to single machines alone")


class Sender:
    """Sends datagrams through one socket, to where it is connected or to one address, several in a call.

    It owns nothing.

    :ivar blocked: whether the last sending has ended for lack of room.
    """

    def __init__(
        self,
        sock: socket.socket,
        to: tuple[object, ...] | None = None,
        control: tuple[tuple[int, int, bytes], ...] = (),
    ) -> None:
        """*control*: what goes with each call, as for sendmsg."""
        self._sock = sock
        self._to = to
        self._control = control
        self._can_cut = True
        self.blocked = False

    def send(self, datagrams: list[bytes]) -> int:
        """Send them in order; return how many went: fewer where there is no room for now.

        :raises OSError: of the next one: EMSGSIZE where it is too long for the path.
        """
        done, count, self.blocked = 0, len(datagrams), False
        try:
            while done < count:
                run = self._run(datagrams, done) if self._can_cut and count - done > 1 else 1
                if run == 1:
                    self._one(datagrams[done])
                elif not self._several(datagrams, done, run):
                    continue
                done += run
        except BlockingIOError:
            self.blocked = True
            return done
        except OSError:
            if done:
                return done  # it is told with the next call, when it is the first
            raise
        return done

    def _run(self, datagrams: list[bytes], at: int) -> int:
        """Return how many from *at* on can be cut out of one piece: as long as the first, but for a shorter last."""
        size = len(datagrams[at])
        if not size:
            return 1
        most = min(SEGMENTS, DATAGRAM_BYTES // size, len(datagrams) - at)
        run = 1
        while run < most:
            length = len(datagrams[at + run])
            if length > size or not length:
                break
            run += 1
            if length < size:
                break
        return run

    def _one(self, datagram: bytes) -> None:
        if self._to is None:
            self._sock.send(datagram)
        elif self._control:
            self._sock.sendmsg([datagram], self._control, 0, self._to)
        else:
            self._sock.sendto(datagram, self._to)

    def _several(self, datagrams: list[bytes], at: int, run: int) -> bool:
        control = [*self._control, (socket.IPPROTO_UDP, _UDP_SEGMENT, _SIZE.pack(len(datagrams[at])))]
        pieces = datagrams[at : at + run]
        try:
            if self._to is None:
                self._sock.sendmsg(pieces, control)
            else:
                self._sock.sendmsg(pieces, control, 0, self._to)
        except BlockingIOError:
            raise
        except OSError as e:
            if e.errno not in (*_NO_SEGMENTS, errno.EMSGSIZE):
                raise
            self._can_cut = False  # one by one from now on: then it is known which one it was
            return False
        return True
