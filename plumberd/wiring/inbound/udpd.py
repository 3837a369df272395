"""udpd: one UDP socket on which remote callers prove their address, name a service and have their sessions.

All that a stranger's datagram can make it do is to answer with one that is not
longer. A flood has its turns, as everything here.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import struct
from typing import Any

from twisted.internet.defer import Deferred, succeed

from plumberd.effects import kernel
from plumberd.effects.poll import ERR, OUT
from plumberd.effects.udp import DATAGRAM_BYTES, GONE, SOFT, Sender, hear_errors, prepare, read_error, send_buffer
from plumberd.pure import datagrams
from plumberd.pure.address import account_of_address, unmapped
from plumberd.pure.datagram_door import KEY_BYTES, Door, Ended, Opening
from plumberd.pure.proxy_header import End
from plumberd.pure.uri import IPAddress, show_host
from plumberd.pure.who import RemoteWho
from plumberd.wiring.inbound.inbound import Callers
from plumberd.wiring.inbound.inbound_udp import SessionFar, Source, UdpInbound
from plumberd.wiring.inbound.listening import parse_datagram_description

RECEIVE_BUFFER_BYTES = 4 << 20
"""For all callers together, as far as the kernel lets us."""

SEND_BUFFER_BYTES = 4 << 20
"""Likewise. What waits for a neighbour that does not answer stays in it for seconds: 200 KiB for each."""

_DATA_PARTS = 0.75
"""Of the send buffer: beyond that no data goes into it, so that handshakes find room. OUT comes at a half."""

OPENINGS = 8
"""So many who are let in end the turn: each looks a service up, which takes a hundred times as long."""

_TOLD = 256
"""Addresses that are told of in the log within a second as having too many handshakes."""

A_TURN = 128
"""Datagrams before others have their turn: about a millisecond."""

_IP_PKTINFO, _IPV6_RECVPKTINFO, _IPV6_PKTINFO = 8, 49, 50
_PKTINFO = struct.Struct("I4s4s")  # struct in_pktinfo, ip(7): interface, where it came in, where it was sent to
_PKTINFO6 = struct.Struct("16sI")  # struct in6_pktinfo, ipv6(7)
_ANCILLARY_BYTES = 128


class UdpListening:
    """Owns the socket, and every session until its relay is over. It stands beside the ports of other daemons."""

    def __init__(self, callers: Callers, description: str) -> None:
        """Listen.

        :raises OSError: it cannot be.
        """
        self._callers = callers
        self._core = callers.core
        self._sessions: dict[bytes, UdpInbound] = {}
        self._openings: dict[tuple[tuple[object, ...], bytes], UdpInbound] = {}
        self._ended = Ended()
        self._told: set[str] = set()
        self._told_at = 0
        self._waiting: dict[SessionFar, None] = {}
        self._again = self._has_errors = False
        self._stopping = False
        host, port = parse_datagram_description(description)
        address = ipaddress.ip_address(host)
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._sock = sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            prepare(sock, RECEIVE_BUFFER_BYTES)
            hear_errors(sock)
            self._data_bytes = int(_DATA_PARTS * send_buffer(sock, SEND_BUFFER_BYTES))
            self._has_several = address.is_unspecified
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                if self._has_several:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            elif self._has_several:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.bind((host, port))
        except BaseException:
            sock.close()
            raise
        self._address, self._port = address, int(sock.getsockname()[1])
        self._door = Door(secrets.token_bytes(KEY_BYTES), self._core.reactor.seconds())
        self._core.poll.watch(sock.fileno(), self._ready, room=False)

    def __str__(self) -> str:
        return f"udpd on {show_host(str(self._address))}:{self._port}"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def sessions(self) -> int:
        """How many there are."""
        return len(self._sessions)

    @property
    def openings(self) -> int:
        """Who is being let in, and who was."""
        return len(self._openings)

    def is_here(self, address: IPAddress, port: int) -> bool:
        """Tell whether that is where it listens."""
        here = self._address
        if port != self._port or here.version != address.version:
            return False
        return here == address or (here.is_unspecified and address in self._core.addresses)

    def stop(self) -> Deferred[Any]:
        """Let nobody in any more; the sessions that there are go on, and with the last the socket is closed."""
        self._stopping = True
        self._close_if_done()
        return succeed(None)

    def revive(self) -> None:
        """Let callers in again: it is wanted once more, and was not closed yet."""
        self._stopping = False

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed."""
        return self._sock.fileno() < 0

    # -- what its callers ask for

    def sender_to(self, source: Source) -> Sender:
        """See :meth:`plumberd.wiring.inbound.inbound_udp.Shared.sender_to`."""
        return Sender(self._sock, source.address, source.control)

    def reply(self, source: Source, datagram: bytes) -> None:
        """Send one, if there is room; else it is lost."""
        for _ in range(2):
            try:
                self._sock.sendmsg([datagram], source.control, 0, source.address)
                return
            except OSError as e:
                if e.errno not in SOFT:  # an earlier datagram's: it is told once
                    return

    def has_room(self) -> bool:
        """See :meth:`plumberd.wiring.inbound.inbound_udp.Shared.has_room`."""
        return kernel.unsent_bytes(self._sock.fileno()) < self._data_bytes

    def wait(self, far: SessionFar) -> None:
        """Tell *far* when there is room again."""
        self._waiting[far] = None
        self._core.poll.tell_room(self._sock.fileno(), wanted=True)

    def may_tell(self, account: str) -> bool:
        """See :meth:`plumberd.wiring.inbound.inbound_udp.Shared.may_tell`."""
        second = int(self._core.reactor.seconds())
        if second != self._told_at:
            self._told_at = second
            self._told.clear()
        if account in self._told or len(self._told) >= _TOLD:
            return False
        self._told.add(account)
        return True

    def enter(self, session: bytes, caller: UdpInbound) -> None:
        """Give what comes for *session* to *caller*."""
        self._sessions[session] = caller

    def forget(self, caller: UdpInbound) -> None:
        """Nothing is for *caller* any more. Idempotent."""
        key = (caller.source.address, caller.nonce)
        if self._openings.pop(key, None) is not None and caller.last_words:
            account = account_of_address(caller.who.address)
            self._ended.add(key, caller.last_words, account, self._core.reactor.seconds())
        self._sessions.pop(caller.session, None)
        self._close_if_done()

    def where(self) -> End | None:
        """Return where it listens."""
        return None if self._has_several else (self._address, self._port)

    # -- what comes

    def _ready(self, events: int) -> None:
        if events & OUT and self._waiting:
            waiting, self._waiting = self._waiting, {}
            self._core.poll.tell_room(self._sock.fileno(), wanted=False)
            for far in waiting:
                far.resume()
        self._has_errors = self._has_errors or bool(events & ERR)
        if events & ~OUT and not self.is_closed:
            self._read()

    def _read_again(self) -> None:
        self._again = False
        if not self.is_closed:
            self._read()

    def _read(self) -> None:
        touched: dict[UdpInbound, None] = {}
        is_empty = self._read_several(touched) if self._has_several else self._read_one(touched)
        for caller in touched:
            caller.give()
        if self._has_errors and not self.is_closed:
            self._has_errors = self._read_errors()
        if (self._has_errors or not is_empty) and not self._again and not self.is_closed:
            self._again = True
            self._core.poll.again(self._read_again)

    def _read_one(self, touched: dict[UdpInbound, None]) -> bool:
        """Take a turn's datagrams; tell whether that were all."""
        receive, sessions, openings = self._sock.recvfrom, self._sessions, 0
        for _ in range(A_TURN):
            try:
                datagram, address = receive(DATAGRAM_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                continue  # an answer that could not be delivered
            caller = sessions.get(datagrams.session_of(datagram))
            if caller is not None and caller.source.address == address and datagrams.is_of_session(datagram):
                caller.take(datagram)
                touched[caller] = None
            else:
                openings += self._take(datagram, Source(address))
                if openings >= OPENINGS or self.is_closed:
                    break
        return False

    def _read_several(self, touched: dict[UdpInbound, None]) -> bool:
        """The same on a socket of all addresses, which has to be told which one was asked."""
        openings = 0
        for _ in range(A_TURN):
            try:
                datagram, ancillary, _, address = self._sock.recvmsg(DATAGRAM_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                continue
            caller = self._sessions.get(datagrams.session_of(datagram))
            if caller is not None and caller.source.address == address and datagrams.is_of_session(datagram):
                caller.take(datagram)
                touched[caller] = None
                continue
            control = _answering_control(ancillary)
            if control is not None:
                openings += self._take(datagram, Source(address, control))
                if openings >= OPENINGS or self.is_closed:
                    break
        return False

    def _read_errors(self) -> bool:
        """Take a turn's of what ICMP has told; tell whether there may be more.

        A session is believed to have lost its caller only where that was one of its own datagrams, to its own
        caller: who is not on the way does not know the session.
        """
        for _ in range(A_TURN):
            told = read_error(self._sock)
            if told is None:
                return False
            caller = self._sessions.get(datagrams.session_of(told.datagram)) if told.code in GONE else None
            if caller is not None and caller.source.address[:2] == told.address[:2]:
                caller.is_gone(told)
                if self.is_closed:
                    return False
        return True

    def _take(self, datagram: bytes, source: Source) -> bool:
        """Take what is of no session from there; tell whether it was an opening."""
        if datagrams.is_of_session(datagram):
            answer = datagrams.close_unknown(datagram)
            if answer is not None:
                self.reply(source, answer)
            return False
        now = self._core.reactor.seconds()
        if self._door.wants_key(now):
            self._door.change_key(secrets.token_bytes(KEY_BYTES), now)
        found = self._door.receive(datagram, repr(source.address).encode(), now)
        if isinstance(found, Opening):
            self._open(found, source, now)
            return True
        if found is not None and not self._stopping:
            self.reply(source, found)
        return False

    def _open(self, opening: Opening, source: Source, now: float) -> None:
        key = (source.address, opening.nonce)
        caller = self._openings.get(key)
        if caller is not None:
            caller.say_again()
            return
        answers = self._ended.answers(key, now)
        if answers:
            for answer in answers:
                self.reply(source, answer)
            return
        if self._stopping:
            return
        host, port = str(source.address[0]), source.address[1]
        assert isinstance(port, int)
        who = RemoteWho("udp", unmapped(ipaddress.ip_address(host.partition("%")[0])), port)
        caller = self._openings[key] = UdpInbound(self._callers, who, self, source, opening.nonce)
        caller.open(opening.service)

    def _close_if_done(self) -> None:
        if self._stopping and not self._openings and not self.is_closed:
            self._core.poll.forget(self._sock.fileno())
            self._sock.close()


def _answering_control(ancillary: list[tuple[int, int, bytes]]) -> tuple[tuple[int, int, bytes], ...] | None:
    """Return what makes the answer leave from where the datagram was sent to; ``None`` where that is no machine's own.

    What was sent to a broadcast or a multicast address is not answered.
    """
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, local, sent_to = _PKTINFO.unpack_from(data)
            return ((level, kind, _PKTINFO.pack(0, local, bytes(4))),) if local == sent_to else None
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
            if ipaddress.IPv6Address(data[:16]).is_multicast:
                return None
            return ((level, kind, data[: _PKTINFO6.size]),)
    return ()
