"""Reach a UDP server: a connected socket, and where a service is named the handshake that gives a session.

Connecting says nothing to anybody; it is the kernel's promise that only datagrams
of that one address and port come in. Without a handshake the first address that
the kernel has a way to is taken; with one several race, as for TCP, and only the
handshake's own datagrams are sent again.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from plumberd.effects.dial_tcp import ATTEMPT_DELAY_SECONDS, Owner, interleave
from plumberd.effects.poll import Poll
from plumberd.effects.udp import check_one, new_socket
from plumberd.pure.datagram_call import DatagramCall
from plumberd.pure.datagrams import NONCE_BYTES
from plumberd.pure.handshake import SaidNo
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, show_host

Connected = tuple[socket.socket, IPAddress, bytes]
"""The socket, where it is connected, and the session; empty without a handshake."""

_SELF_TRIES = 8
"""A local port is picked by the kernel, and may be the very one that is dialled."""

_ANSWER_BYTES = 512

A_TURN = 64
"""Datagrams before others have their turn: who is asked, and whoever has guessed the port, may send a flood."""


class UdpDial:
    """One connection being made.

    *done* gets the connected, non-blocking socket, which it owns, the address and the session; or the
    refusal. The losers are closed.
    """

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        addresses: Sequence[IPAddress],
        port: int,
        service: str | None,
        owner: Owner | None,
        done: Callable[[Connected | Refused], None],
        make: Callable[[int], socket.socket] = new_socket,
    ) -> None:
        self._poll = poll
        self._clock = clock
        self._left = interleave(addresses)
        self._port = port
        self._service = service
        self._owner = owner
        self._done = done
        self._make = make
        self._racing: list[_Attempt] = []
        self._timer: IDelayedCall | None = None
        self._failures: list[str] = []

    def start(self) -> None:
        """Begin, or go on with the next address; *done* may be called before this returns.

        :raises Refused: an address is not one machine's.
        """
        self._stop_timer()
        while self._left:
            address = self._left.pop(0)
            check_one(address)
            sock = self._connected(address)
            if sock is None:
                continue
            if self._service is None:
                self._done((sock, address, b""))
                return
            attempt = _Attempt(self, sock, address, DatagramCall(secrets.token_bytes(NONCE_BYTES), self._service))
            self._racing.append(attempt)
            attempt.start()
            if attempt in self._racing:
                break
        if not self._racing:
            if self._failures:
                failures, self._failures = self._failures, []
                self._done(Refused(Refusal.UNREACHABLE, "; ".join(failures)))
        elif self._left and self._timer is None:
            self._timer = self._clock.callLater(ATTEMPT_DELAY_SECONDS, self._go_on)

    def cancel(self) -> None:
        """Give up and close every socket; *done* will not be called."""
        self._stop_timer()
        self._failures = []
        racing, self._racing = self._racing, []
        for attempt in racing:
            attempt.stop(close=True)

    @property
    def poll(self) -> Poll:
        """Where the attempts' sockets are watched."""
        return self._poll

    @property
    def clock(self) -> IReactorTime:
        """When they say it again."""
        return self._clock

    def granted(self, attempt: _Attempt, session: bytes) -> None:
        """One of them has a session."""
        self._racing.remove(attempt)
        attempt.stop(close=False)
        self.cancel()
        self._done((attempt.sock, attempt.address, session))

    def refused(self, attempt: _Attempt, refused: SaidNo) -> None:
        """One of them was told no: that is the answer."""
        self.cancel()
        self._done(refused)

    def failed(self, attempt: _Attempt, error: OSError) -> None:
        """One of them cannot go on; the next address has its turn."""
        self._racing.remove(attempt)
        attempt.stop(close=True)
        self._fail(attempt.address, error.errno or errno.EIO)
        self._go_on()

    def _go_on(self) -> None:
        try:
            self.start()
        except Refused as e:
            self.cancel()
            self._done(e)

    def _connected(self, address: IPAddress) -> socket.socket | None:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        for _ in range(_SELF_TRIES):
            try:
                sock = self._make(family)
            except OSError as e:
                self._fail(address, e.errno or errno.EIO)
                return None
            try:
                if self._owner is not None:
                    os.fchown(sock.fileno(), *self._owner)
                sock.connect((str(address), self._port))
                if sock.getsockname()[:2] != (str(address), self._port):
                    return sock
            except OSError as e:
                sock.close()
                self._fail(address, e.errno or errno.EIO)
                return None
            sock.close()
        self._fail(address, errno.ECONNREFUSED)
        return None

    def _fail(self, address: IPAddress, code: int) -> None:
        self._failures.append(f"{show_host(str(address))}:{self._port}: {os.strerror(code)}")

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


class _Attempt:
    """The handshake with one address."""

    def __init__(self, dial: UdpDial, sock: socket.socket, address: IPAddress, call: DatagramCall) -> None:
        self._dial = dial
        self.sock = sock
        self.address = address
        self._call = call
        self._again = False
        self._timer: IDelayedCall | None = None
        """There is always one while it is under way."""

    def start(self) -> None:
        self._dial.poll.watch(self.sock.fileno(), self._ready)
        self._send()

    def stop(self, *, close: bool) -> None:
        """Wait no more; the socket stays watched where it is kept, for an edge comes only once."""
        self._stop_timer()
        if close:
            self._dial.poll.forget(self.sock.fileno())
            self.sock.close()
        else:
            self._dial.poll.redirect(self.sock.fileno(), _nobody)

    def _send(self) -> None:
        self._stop_timer()
        try:
            self.sock.send(self._call.send())
        except BlockingIOError:
            pass  # it is sent again anyway
        except OSError as e:
            self._dial.failed(self, e)
            return
        self._timer = self._dial.clock.callLater(self._call.pause_seconds, self._send)

    def _ready(self, events: int) -> None:
        try:
            for _ in range(A_TURN):
                datagram = self.sock.recv(_ANSWER_BYTES)
                if not self._call.receive(datagram):
                    continue
                if self._call.session:
                    self._dial.granted(self, self._call.session)  # what comes behind it is the session's
                    return
                self._send()
                if self.sock.fileno() < 0:
                    return
            if not self._again:
                self._again = True
                self._dial.poll.again(self._read_on)
        except BlockingIOError:
            return
        except SaidNo as e:
            self._dial.refused(self, e)
        except OSError as e:
            self._dial.failed(self, e)

    def _read_on(self) -> None:
        self._again = False
        if self._timer is not None:
            self._ready(0)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _nobody(events: int) -> None:
    """Between the handshake and the relay, which looks by itself."""
