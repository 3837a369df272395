"""What a program tries with a descriptor that it was handed.

Each attempt says what came of it by what it wanted: *possible*, if it got that; *refused*, if a
system call failed; *silent*, if the calls went through and nothing ever came of them. Nothing
is waited for longer than :data:`NOTHING_SECONDS`; over loopback it would come at once, as the
same attempt with an unlocked socket shows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.escapes.cage import CLONE_NEWNET, Outside, is_ready, system_call

POSSIBLE, REFUSED, SILENT = "possible", "refused", "silent"

NOTHING_SECONDS = 0.15

Address = tuple[str, int]

SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER, SO_ATTACH_BPF = 26, 27, 44, 50
SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF = 51, 52
SO_MARK, SO_PEERPIDFD = 36, 77
IP_TOS, IP_OPTIONS, IP_FREEBIND, IP_TRANSPARENT = 1, 4, 15, 19
IPV6_RTHDR, IPV6_TRANSPARENT, IPV6_FREEBIND = 57, 75, 78
TCP_REPAIR, TCP_ULP, TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 19, 31, 30, 34
MSG_FASTOPEN = 0x20000000
SIOCADDRT, SIOCGIFCONF, SIOCSIFFLAGS, SIOCSIFADDR, SIOCGSKNS = 0x890B, 0x8912, 0x8914, 0x8916, 0x894C
PIDFD_GET_NET_NAMESPACE = 0xFF04

LOW_PORT = 443
PROHIBITED = {socket.AF_INET: "198.51.100.7", socket.AF_INET6: "2001:db8:bad::7"}
"""Where the machine's routes let nobody go."""
FOREIGN = {socket.AF_INET: "203.0.113.7", socket.AF_INET6: "2001:db8:ffff::7"}
"""An address that the machine does not have."""


@dataclass
class Held:
    """A descriptor, and what there is around it.

    :ivar family: AF_INET or AF_INET6: of the addresses that are tried.
    :ivar peer: who is at the other end of the TCP connection.
    :ivar forbidden: a server that no rule names.
    :ivar daemon: where the broker's tcpd listens.
    :ivar receiver: the path of the socket of a process that is in no cage, and of another user.
    """

    sock: socket.socket
    outside: Outside
    family: socket.AddressFamily
    peer: Address
    forbidden: Address
    daemon: Address
    receiver: str

    @property
    def here(self) -> str:
        """An address of the machine."""
        return self.daemon[0]

    def sockaddr(self, address: Address) -> bytes:
        """Return *address* as the kernel wants it."""
        packed = socket.inet_pton(self.family, address[0])
        if self.family == socket.AF_INET:
            return struct.pack("=H", self.family) + struct.pack(">H4s8x", address[1], packed)
        return struct.pack("=H", self.family) + struct.pack(">HI16sI", address[1], 0, packed, 0)

    def connect(self, address: Address) -> str:
        """Connect the descriptor, whatever it is."""
        raw = self.sockaddr(address)
        self.sock.setblocking(False)
        try:
            system_call("connect", self.sock.fileno(), raw, len(raw))
        except OSError as e:
            if e.errno != errno.EINPROGRESS:
                raise
            if not is_ready(self.sock, NOTHING_SECONDS, select.POLLOUT):
                return SILENT
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
        self.sock.settimeout(NOTHING_SECONDS)
        return POSSIBLE

    def disconnect(self) -> None:
        """connect(AF_UNSPEC): a TCP socket is free again."""
        system_call("connect", self.sock.fileno(), bytes(16), 16)

    def bind(self, address: Address) -> None:
        """Bind the descriptor, whatever it is."""
        raw = self.sockaddr(address)
        system_call("bind", self.sock.fileno(), raw, len(raw))

    def listen(self, address: Address) -> int:
        """Let the descriptor listen at *address*; return the port."""
        self.disconnect()
        self.bind(address)
        system_call("listen", self.sock.fileno(), 16)
        return int(self.sock.getsockname()[1])


Attempt = Callable[[Held], str]

ATTEMPTS: dict[str, Attempt] = {}
"""Every attempt by its name, which is its row in docs/security.md."""

BOTH = (socket.AF_INET, socket.AF_INET6)
FAMILIES: dict[str, tuple[int, ...]] = {}
"""With which addresses it is tried, where not with both."""

OUTBOUND_ONLY: set[str] = set()
"""What makes no sense with a socket that a daemon has accepted."""

LOCKED_ONLY: set[str] = set()
"""What makes no sense where there is no filter."""


def attempt(
    name: str, *, families: tuple[int, ...] = BOTH, outbound: bool = False, locked: bool = False
) -> Callable[[Attempt], Attempt]:
    """Put a function into :data:`ATTEMPTS`; a system call that fails in it is a refusal."""

    def add(work: Attempt) -> Attempt:
        def tried(held: Held) -> str:
            try:
                return work(held)
            except OSError:
                return REFUSED

        ATTEMPTS[name] = tried
        FAMILIES[name] = families
        if outbound:
            OUTBOUND_ONLY.add(name)
        if locked:
            LOCKED_ONLY.add(name)
        return tried

    return add


# -- another connection


@attempt("connect it to another server")
def elsewhere(held: Held) -> str:
    held.disconnect()
    outcome = held.connect(held.forbidden)
    if outcome is POSSIBLE and not held.outside.ask("has_caller", held.forbidden):
        raise AssertionError("connected, and not to the forbidden server")
    return outcome


@attempt("connect it to the same server again, and name another service", outbound=True)
def same_server(held: Held) -> str:
    held.disconnect()
    if held.connect(held.peer) is SILENT:
        return SILENT
    held.sock.send(b"secret")
    held.sock.settimeout(5)
    said = b""
    while b"secret" not in said and (more := held.sock.recv(100)):
        said += more
    return POSSIBLE if said.startswith(b"ok") else REFUSED


@attempt("listen on it as it is")
def listen(held: Held) -> str:
    system_call("listen", held.sock.fileno(), 1)
    return POSSIBLE


@attempt("listen on a port, and be connected to")
def be_connected_to(held: Held) -> str:
    port = held.listen((held.here, 0))
    return POSSIBLE if held.outside.ask("reaches", (held.here, port)) else SILENT


@attempt("connect it to itself (simultaneous open)")
def simultaneous_open(held: Held) -> str:
    held.disconnect()
    held.bind((held.here, 0))
    return held.connect((held.here, held.sock.getsockname()[1]))


@attempt("pass it to a process outside of the cage, to be connected elsewhere there")
def passed_on(held: Held) -> str:
    with socket.socket(socket.AF_UNIX) as receiver:
        receiver.settimeout(5)
        receiver.connect(held.receiver)
        order = json.dumps([held.family, held.forbidden]).encode()
        socket.send_fds(receiver, [order], [held.sock.fileno()])
        return receiver.recv(100).decode()


@attempt("let a child inherit it, and connect it elsewhere")
def inherited(held: Held) -> str:
    reading, writing = os.pipe()
    if os.fork() == 0:
        outcome = ATTEMPTS["connect it to another server"](held)
        os.write(writing, outcome.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        return file.read()


# -- the daemon's port, and others


def share(held: Held) -> None:
    """Let the descriptor's address be shared, as far as the kernel goes along."""
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with contextlib.suppress(OSError):
            held.sock.setsockopt(socket.SOL_SOCKET, option, 1)


@attempt("listen on tcpd's port beside it (SO_REUSEADDR, SO_REUSEPORT)")
def beside_the_daemon(held: Held) -> str:
    share(held)
    held.listen(held.daemon)
    return POSSIBLE


@attempt("keep a free port from others")
def keep_a_port(held: Held) -> str:
    port = held.listen((held.here, 0))
    return REFUSED if held.outside.ask("can_listen", (held.here, port)) else POSSIBLE


@attempt("keep callers from a server of its own user that shares its port (SO_REUSEPORT)")
def share_a_port(held: Held) -> str:
    port = held.outside.ask("shared_port", held.here)
    try:
        share(held)
        held.listen((held.here, port))
        return POSSIBLE if held.outside.ask("are_lost", (held.here, port)) else REFUSED
    finally:
        held.outside.ask("stop_sharing")


@attempt("bind it to a port below 1024")
def low_port(held: Held) -> str:
    held.disconnect()
    held.bind((held.here, LOW_PORT))
    return POSSIBLE


@attempt("take an abstract UNIX name of the broker's namespace")
def abstract_name(held: Held) -> str:
    name = f"\0plumberd-escape-{os.getpid()}".encode()
    raw = struct.pack("=H", socket.AF_UNIX) + name
    system_call("bind", held.sock.fileno(), raw, len(raw))
    return REFUSED if held.outside.ask("can_name", name.decode()) else POSSIBLE


# -- the filter


@attempt("take the filter off", locked=True)
def detach(held: Held) -> str:
    held.disconnect()
    held.sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    return POSSIBLE


@attempt("put another filter in its place (SO_ATTACH_FILTER, _BPF, _REUSEPORT_CBPF, _REUSEPORT_EBPF)", locked=True)
def replace(held: Held) -> str:
    instruction = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF)  # return all
    buffer = bytearray(instruction)
    address = _address_of(buffer)
    program = struct.pack("HP", 1, address)
    for option, value in (
        (SO_ATTACH_FILTER, program),
        (SO_ATTACH_BPF, struct.pack("i", held.sock.fileno())),
        (SO_ATTACH_REUSEPORT_CBPF, program),
        (SO_ATTACH_REUSEPORT_EBPF, struct.pack("i", held.sock.fileno())),
    ):
        try:
            held.sock.setsockopt(socket.SOL_SOCKET, option, value)
        except PermissionError:
            continue
        except OSError as e:
            raise AssertionError(f"option {option} was refused for another reason than the lock") from e
        return POSSIBLE
    return REFUSED


def _address_of(buffer: bytearray) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@attempt("unlock the filter", locked=True)
def unlock(held: Held) -> str:
    held.sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 0)
    return POSSIBLE


# -- bytes that go elsewhere, though no connection stands


@attempt("send a SYN to another server, whose answer never comes")
def syn(held: Held) -> str:
    held.disconnect()
    held.connect(held.forbidden)
    return POSSIBLE if held.outside.ask("has_seen", held.forbidden, "") else REFUSED


def _fast_open(held: Held, sysctl: int) -> str:
    held.outside.ask("set_fast_open", sysctl)
    held.disconnect()
    marker = _marker()
    held.sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    held.sock.setblocking(False)
    try:
        held.sock.sendto(marker, MSG_FASTOPEN, held.forbidden)
    except OSError:
        held.sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        held.connect(held.forbidden)
        held.sock.send(marker)
    return POSSIBLE if held.outside.ask("has_seen", held.forbidden, marker.hex()) else SILENT


def _marker() -> bytes:
    return b"marker-" + os.urandom(8).hex().encode()


@attempt("send data in a SYN (Fast Open) to another server")
def fast_open(held: Held) -> str:
    return _fast_open(held, 1)


@attempt("the same, where net.ipv4.tcp_fastopen is 0")
def no_fast_open(held: Held) -> str:
    return _fast_open(held, 0)


def _send_marker(held: Held) -> str:
    marker = _marker()
    held.sock.send(marker)
    return POSSIBLE if held.outside.ask("has_seen", held.forbidden, marker.hex()) else SILENT


@attempt("send its data by way of another host (IPv4 source route)", families=(socket.AF_INET,))
def source_route(held: Held) -> str:
    hop = socket.inet_aton(held.forbidden[0])
    held.sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, bytes((0x83, 7, 4)) + hop + b"\0")
    held.sock.setsockopt(socket.IPPROTO_IP, IP_TOS, 0x10)  # so that its route is looked for again
    return _send_marker(held)


@attempt("send its data by way of another host (IPv6 routing header)", families=(socket.AF_INET6,))
def routing_header(held: Held) -> str:
    hops = socket.inet_pton(socket.AF_INET6, held.here) + socket.inet_pton(socket.AF_INET6, held.forbidden[0])
    # RFC 8754: next header, length in 8 bytes, type 4, segments left, last entry, flags, tag; the last hop first.
    held.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RTHDR, struct.pack("BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + hops)
    return _send_marker(held)


@attempt("sendto() with another server's address")
def send_to(held: Held) -> str:
    marker, raw = _marker(), held.sockaddr(held.forbidden)
    system_call("sendto", held.sock.fileno(), marker, len(marker), 0, raw, len(raw))
    return POSSIBLE if held.outside.ask("has_seen", held.forbidden, marker.hex()) else SILENT


def _send_from_abroad(held: Held, level: int, option: int) -> str:
    held.disconnect()
    held.sock.setsockopt(level, option, 1)
    held.bind((FOREIGN[held.family], 0))
    held.connect(held.forbidden)
    return POSSIBLE if held.outside.ask("has_seen", held.forbidden, "") else SILENT


@attempt("send a SYN from an address that the machine does not have (IP_FREEBIND)", families=(socket.AF_INET,))
def foreign_source(held: Held) -> str:
    return _send_from_abroad(held, socket.IPPROTO_IP, IP_FREEBIND)


@attempt("send a SYN from an address that the machine does not have (IPV6_FREEBIND)", families=(socket.AF_INET6,))
def foreign_source_v6(held: Held) -> str:
    return _send_from_abroad(held, socket.IPPROTO_IPV6, IPV6_FREEBIND)


@attempt("bind it to another interface (SO_BINDTODEVICE)")
def bind_to_device(held: Held) -> str:
    held.sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    return POSSIBLE


# -- what wants a capability


@attempt("be transparent (IP_TRANSPARENT)")
def transparent(held: Held) -> str:
    if held.family == socket.AF_INET:
        held.sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    else:
        held.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    return POSSIBLE


@attempt("mark its packets for other rules and routes (SO_MARK)")
def mark(held: Held) -> str:
    held.sock.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
    return POSSIBLE


@attempt("write its TCP state by hand (TCP_REPAIR)")
def repair(held: Held) -> str:
    held.sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    return POSSIBLE


@attempt("make it an MPTCP subflow (TCP_ULP)")
def upper_layer(held: Held) -> str:
    held.sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"mptcp")
    return POSSIBLE


@attempt("configure interfaces, addresses and routes (SIOCSIFADDR, SIOCSIFFLAGS, SIOCADDRT)")
def configure(held: Held) -> str:
    lo = b"lo".ljust(16, b"\0")
    for request, argument in ((SIOCSIFADDR, lo + bytes(24)), (SIOCSIFFLAGS, lo + bytes(24)), (SIOCADDRT, bytes(120))):
        try:
            fcntl.ioctl(held.sock, request, argument)
        except OSError as e:
            if e.errno in (errno.EPERM, errno.ENOTTY):
                continue
        return POSSIBLE
    return REFUSED


@attempt("have the namespace that it belongs to (SIOCGSKNS)")
def namespace(held: Held) -> str:
    fcntl.ioctl(held.sock, SIOCGSKNS)
    return POSSIBLE


@attempt("have the broker's namespace by way of its process (SO_PEERPIDFD)")
def makers_namespace(held: Held) -> str:
    pidfd = held.sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    with contextlib.suppress(OSError):
        fcntl.ioctl(pidfd, PIDFD_GET_NET_NAMESPACE)
        return POSSIBLE
    system_call("setns", pidfd, CLONE_NEWNET)
    return POSSIBLE


# -- what it learns


@attempt("list the interfaces of the broker's namespace (SIOCGIFCONF)")
def list_interfaces(held: Held) -> str:
    buffer = bytearray(40 * 32)
    fcntl.ioctl(held.sock, SIOCGIFCONF, bytearray(struct.pack("iP", len(buffer), _address_of(buffer))))
    return POSSIBLE if b"lo" in buffer else REFUSED


@attempt("find out which ports are taken (bind)")
def taken_ports(held: Held) -> str:
    held.disconnect()
    try:
        held.bind(held.daemon)
    except OSError as e:
        return POSSIBLE if e.errno == errno.EADDRINUSE else REFUSED
    return REFUSED


@attempt("find out which networks are reachable (connect's errors)")
def reachable_networks(held: Held) -> str:
    held.disconnect()
    try:
        held.connect((PROHIBITED[held.family], 80))
    except OSError as e:
        return POSSIBLE if e.errno == errno.EACCES else REFUSED
    return SILENT


# -- descriptors over it


@attempt("pass descriptors over it to the service", outbound=True)
def descriptors(held: Held) -> str:
    socket.send_fds(held.sock, [b"\0\0\0\3fds"], [held.sock.fileno()])
    held.sock.settimeout(5)
    said = b""
    while len(said) < 8 + 5:  # the service's greeting, and its answer
        said += held.sock.recv(100)
    return POSSIBLE if said[-1:] == b"1" else SILENT
