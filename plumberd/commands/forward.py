"""``plumb forward``: UDP ports of this network namespace that lead to services, for programs that know nothing else.

Whoever sends to such a port has a lookup of its own, and its datagrams are the
messages. What does not fit, or comes too fast, is lost, as with UDP everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plumberd import client
from plumberd.commands.output import ERROR, complain

IDLE_SECONDS = 30.0
"""A sender that nothing has come from, and gone to, for so long has to be connected anew."""

MOST_SENDERS = 256
"""So many are connected at a time; for one more the one that was silent longest is given up."""

_LIVE = 2
"""So many times as many may live, those included that were given up, and whose lookup or connection is not over yet."""

WAITING = 64
"""Datagrams of one sender that wait for its connection."""

DATAGRAM_BYTES = 65536

Source = tuple[object, ...]
Connect = Callable[[str], socket.socket]
"""Returns a connected SOCK_SEQPACKET for a service or a URI, the caller's."""


class ForwardError(ValueError):
    """What was asked for makes no sense, or a port cannot be had; the message says why.

    :ivar code: the kernel's, where it has refused.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Forwarding:
    """A port, and where it leads."""

    host: str
    port: int
    target: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"udp {host}:{self.port} leads to {self.target}"


def parse_forwarding(text: str) -> Forwarding:
    """Parse ``[ADDRESS:]PORT=SERVICE|URI``; without an address it is 127.0.0.1, and port 0 is any that is free.

    :raises ForwardError: it is something else.
    """
    place, equals, target = text.partition("=")
    host, _, number = place.rpartition(":")
    host = host or "127.0.0.1"
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if not (equals and target and address and number.isascii() and number.isdecimal()):
        raise ForwardError(f"{text}: wanted [ADDRESS:]PORT=SERVICE|URI, such as 53=resolver")
    if len(number.lstrip("0")) > 5 or int(number) > 65535:
        raise ForwardError(f"{text}: wanted a port from 0 to 65535, such as 53=resolver")
    return Forwarding(str(address), int(number), target)


def bind(forwarding: Forwarding) -> socket.socket:
    """Return a socket that is bound to a forwarding's port; the caller owns it.

    :raises ForwardError: it cannot be.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in forwarding.host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((forwarding.host, forwarding.port))
    except OSError as e:
        sock.close()
        raise ForwardError(f"udp port {forwarding.port}: {e.strerror}", e.errno or 0) from None
    sock.setblocking(False)
    return sock


def run(args: argparse.Namespace) -> int:
    """Bind the ports, and carry what comes until somebody ends this."""
    with contextlib.ExitStack() as owned:
        try:
            forwardings = [parse_forwarding(word) for word in args.forwardings]
            ports = [owned.enter_context(bind(one)) for one in forwardings]
        except ForwardError as e:
            complain(e)
            return ERROR
        for one, sock in zip(forwardings, ports, strict=True):
            print(Forwarding(one.host, sock.getsockname()[1], one.target), flush=True)
        Forwarder(connect_to(args.rundir)).serve(
            [(sock, one.target) for one, sock in zip(forwardings, ports, strict=True)]
        )
    return ERROR


def connect_to(rundir: str | None) -> Connect:
    """Return what looks a service or a URI up, as the other commands do."""

    def connect(target: str) -> socket.socket:
        is_uri = "://" in target
        service, uri = (None, target) if is_uri else (target, None)
        return client.connect(service, uri=uri, type="seqpacket", rundir=rundir)

    return connect


class Forwarder:
    """Gives each sender a connection of its own, and a thread that waits for it."""

    def __init__(self, connect: Connect, *, idle_seconds: float = IDLE_SECONDS, most: int = MOST_SENDERS) -> None:
        self._connect = connect
        self._idle_seconds = idle_seconds
        self._most = most
        self._senders: OrderedDict[tuple[int, Source], _Sender] = OrderedDict()
        self._live: set[_Sender] = set()
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        self._told = ""

    def serve(self, ports: Sequence[tuple[socket.socket, str]], until: int | None = None) -> None:
        """Carry what comes to *ports*, each with where it leads; end where the descriptor *until* can be read."""
        poll = select.poll()
        by_number = {sock.fileno(): (sock, target) for sock, target in ports}
        for fd in (*by_number, *(() if until is None else (until,))):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == until:
                    self._end_all()
                    return
                self._read(*by_number[fd])

    def _read(self, port: socket.socket, target: str) -> None:
        for _ in range(64):
            try:
                data, source = port.recvfrom(DATAGRAM_BYTES)
            except OSError:
                return
            key = (port.fileno(), source)
            with self._lock:
                sender = self._senders.get(key)
                if sender is None:
                    sender = self._begin(key, _Sender(self, port, source, target))
                else:
                    self._senders.move_to_end(key)
            if sender is not None:
                sender.send(data)

    def _begin(self, key: tuple[int, Source], sender: _Sender) -> _Sender | None:
        """Start a new sender's thread; ``None`` where there are too many, of which some may still be ending."""
        if len(self._live) >= _LIVE * self._most:
            return None
        if len(self._senders) >= self._most:
            _, oldest = self._senders.popitem(last=False)
            oldest.end()
        try:
            sender.thread.start()
        except RuntimeError as e:
            self._complain_once(f"no thread for another sender: {e}")
            return None
        self._senders[key] = sender
        self._live.add(sender)
        return sender

    def _end_all(self) -> None:
        with self._lock:
            senders = [*self._live]
        for sender in senders:
            sender.end()
        for sender in senders:
            sender.thread.join()

    def connect(self, target: str) -> socket.socket | None:
        """Look *target* up; where that fails, say why, each reason once in a row."""
        try:
            return self._connect(target)
        except (client.Error, OSError) as e:
            why = f"{target}: {e.strerror or e}" if not isinstance(e, client.Refused) else f"{target}: {e}"
            self._complain_once(why)
            return None

    def _complain_once(self, why: str) -> None:
        with self._telling:  # two senders' threads may fail at once, for the same reason
            if why != self._told:
                self._told = why
                complain(why)

    @property
    def idle_seconds(self) -> float:
        """How long a sender may be silent."""
        return self._idle_seconds

    def forget(self, sender: _Sender) -> None:
        """It is over; the next datagram from there begins anew."""
        key = (sender.port.fileno(), sender.source)
        with self._lock:
            if self._senders.get(key) is sender:
                del self._senders[key]

    def over(self, sender: _Sender) -> None:
        """Its thread ends; there is room for another one."""
        self.forget(sender)
        with self._lock:
            self._live.discard(sender)


class _Sender:
    """One sender's connection, made and read by a thread of its own."""

    def __init__(self, forwarder: Forwarder, port: socket.socket, source: Source, target: str) -> None:
        self._forwarder = forwarder
        self.port = port
        self.source = source
        self._target = target
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._sock: socket.socket | None = None
        self._ended = False
        self._active = time.monotonic()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def send(self, data: bytes) -> None:
        """Pass a datagram on; what there is no room for is lost, and so is an empty one, which would be the end."""
        with self._lock:
            self._active = time.monotonic()
            if self._sock is not None:
                self._put(self._sock, data)
            elif len(self._waiting) < WAITING:
                self._waiting.append(data)

    def end(self) -> None:
        """Let the thread end."""
        with self._lock:
            self._ended = True
            if self._sock is not None:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._connect_and_carry()
        finally:
            self._forwarder.over(self)

    def _connect_and_carry(self) -> None:
        sock = self._forwarder.connect(self._target)
        if sock is None:
            return
        with sock:
            self._carry(sock)
            self._forwarder.forget(self)  # first: the next datagram is not for a connection that ends
            with self._lock:
                self._sock = None

    def _carry(self, sock: socket.socket) -> None:
        with self._lock:
            if self._ended:
                return
            for data in self._waiting:
                self._put(sock, data)
            self._waiting.clear()
            self._sock = sock
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        while (left := self._active + self._forwarder.idle_seconds - time.monotonic()) > 0:
            try:
                ready = poll.poll(left * 1000)
                data = sock.recv(DATAGRAM_BYTES) if ready else b""
            except OSError:
                return
            if ready and not data:
                return
            if data:
                self._active = time.monotonic()
                with contextlib.suppress(OSError):
                    self.port.sendto(data, self.source)

    @staticmethod
    def _put(sock: socket.socket, data: bytes) -> None:
        if data:
            with contextlib.suppress(OSError):
                sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
