"""Connect a raw TCP socket, trying several addresses as RFC 8305 asks.

The socket is ours and not a Twisted transport's, because a connected transport
cannot be given away.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects.poll import Poll
from plumberd.pure.address import Zone, zone
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, show_host

ATTEMPT_DELAY_SECONDS = 0.25
"""Connection Attempt Delay, RFC 8305 section 5."""

Owner = tuple[int, int]
"""uid and gid that a socket is given to before it connects: routing rules that speak of a user see these."""


def new_socket(family: int) -> socket.socket:
    """Make a TCP socket that does not block.

    Packet filters that speak of a user see for ever who this was called as, whomever the
    socket is given to (``meta skuid``, xt_owner: the credentials of its file).

    :raises OSError: there are no descriptors, or the kernel does not know *family*.
    """
    return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Order addresses as RFC 8305 section 4 asks: families in turn, beginning with the first one's."""
    first = [a for a in addresses if a.version == addresses[0].version]
    other = [a for a in addresses if a.version != addresses[0].version]
    mixed: list[IPAddress] = []
    for at in range(max(len(first), len(other))):
        mixed += first[at : at + 1] + other[at : at + 1]
    return mixed


class TcpDial:
    """One connection being made; several sockets may race for it.

    *done* gets the connected, non-blocking socket and the address, and owns the socket; or
    the refusal. The losers are closed.
    """

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        addresses: Sequence[IPAddress],
        port: int,
        owner: Owner | None,
        done: Callable[[tuple[socket.socket, IPAddress] | Refused], None],
        make: Callable[[int], socket.socket] = new_socket,
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._left = addresses if len(addresses) == 1 else interleave(addresses)
        self._port = port
        self._owner = owner
        self._done = done
        self._make = make
        self._next = 0
        self._racing: dict[socket.socket, IPAddress] = {}
        self._timer: IDelayedCall | None = None
        self._failures: list[str] = []

    def start(self) -> None:
        """Begin, or go on with the next address; *done* may be called before this returns."""
        self._stop_timer()
        while self._next < len(self._left):
            address = self._left[self._next]
            self._next += 1
            if self._begin(address):
                break
        else:
            if not self._racing:
                self._done(Refused(Refusal.UNREACHABLE, "; ".join(self._failures)))
            return
        # One that had connected to itself has gone on from within, and its timer runs.
        if self._next < len(self._left) and self._racing and self._timer is None:
            self._timer = self._clock.callLater(ATTEMPT_DELAY_SECONDS, self.start)

    def cancel(self) -> None:
        """Give up and close every socket; *done* will not be called."""
        self._stop_timer()
        for sock in self._racing:
            self._poll.forget(sock.fileno())
            sock.close()
        self._racing.clear()

    def _begin(self, address: IPAddress) -> bool:
        """Start connecting to *address*; tell whether that is under way or done."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            sock = self._make(family)
        except OSError as e:
            if e.errno == errno.EAFNOSUPPORT:  # a kernel without IPv6: the other family's turn
                self._fail(address, e.errno)
                return False
            self.cancel()
            self._done(Refused(Refusal.BUSY, f"no descriptor for a connection: {e.strerror}"))
            return True
        try:
            if self._owner is not None:
                os.fchown(sock.fileno(), *self._owner)
            where = (str(address), self._port)
            code = sock.connect_ex(where)
            if code == errno.EINPROGRESS and zone(address) is Zone.LOOPBACK:
                # Over loopback the answer came back within the call; asking again spares
                # the way through epoll.
                code = sock.connect_ex(where)
                if code == errno.EALREADY:
                    code = errno.EINPROGRESS
        except OSError as e:
            code = e.errno or errno.EIO
        if code == 0:
            self._racing[sock] = address
            self._won(sock)
            return True
        if code != errno.EINPROGRESS:
            sock.close()
            self._fail(address, code)
            return False
        self._racing[sock] = address
        self._poll.watch(sock.fileno(), lambda events: self._ready(sock, events))
        return True

    def _ready(self, sock: socket.socket, events: int) -> None:
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            try:
                sock.getpeername()
            except OSError:
                return  # an early edge: not connected yet
            self._poll.forget(sock.fileno())
            self._won(sock)
            return
        self._poll.forget(sock.fileno())
        address = self._racing.pop(sock)
        sock.close()
        self._fail(address, code)
        self.start()

    def _won(self, sock: socket.socket) -> None:
        address = self._racing.pop(sock)
        if _is_self_connected(sock, address, self._port):
            sock.close()
            self._fail(address, errno.ECONNREFUSED)
            self.start()
            return
        self.cancel()
        self._done((sock, address))

    def _fail(self, address: IPAddress, code: int) -> None:
        self._failures.append(f"{show_host(str(address))}:{self._port}: {os.strerror(code)}")

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _is_self_connected(sock: socket.socket, address: IPAddress, port: int) -> bool:
    """Tell whether TCP's simultaneous open has connected the socket to itself (no listener, same port)."""
    host, own_port = sock.getsockname()[:2]
    return bool(own_port == port and zone(address) is Zone.LOOPBACK and host == str(address))


def remote_address(sock: socket.socket) -> tuple[IPAddress, int]:
    """Return the peer's address, unwrapped from an IPv4-mapped one, and port.

    :raises OSError: where the peer is gone.
    """
    host, port = sock.getpeername()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped, port
    return address, port
