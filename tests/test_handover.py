"""plumberd.effects.handover: what a handed-over TCP socket can still do, and what it can't."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct

from plumberd.effects.dial_tcp import remote_address
from plumberd.effects.handover import lock, make_ready, try_powers
from plumberd.effects.kernel import FilterProgram, take_descriptors
from plumberd.pure.lockfilter import INSTRUCTION_BYTES, lock_program
from plumberd.pure.modes import Powers
from tests.children import ChildTestCase, needs_root
from tests.inside import NOBODY
from tests.support import CleanTestCase, in_thread, read_all, read_exactly

NOTHING_SECONDS = 0.3
"""How long nothing has to happen; over loopback it would happen at once."""

SO_DETACH_FILTER, SO_LOCK_FILTER = 27, 44


def disconnect(sock: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python has no words for: the socket is free to connect again."""
    libc = ctypes.CDLL(None, use_errno=True)
    nowhere = struct.pack("H14x", socket.AF_UNSPEC)
    if libc.connect(sock.fileno(), nowhere, len(nowhere)):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


def is_connected_in_time(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Connect without blocking, and tell whether that succeeds."""
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if not poll.poll(NOTHING_SECONDS * 1000):
            return False
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return code == 0


def has_caller(listener: socket.socket) -> bool:
    """Tell whether somebody waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


class PowersByTrial(ChildTestCase):
    PRINT = "from tests.inside import NOBODY, become; from plumberd.effects import kernel, handover;"

    @needs_root
    def test_root_can_lock_and_give(self) -> None:
        self.assertEqual(try_powers(), Powers(lock=True, give=True, uid=0))

    def test_trying_leaves_no_descriptor(self) -> None:
        for _ in range(3):
            try_powers()

    @needs_root
    async def test_nobody_can_do_neither(self) -> None:
        out = await self.run_child(self.PRINT + "become(NOBODY); print(handover.try_powers())")
        self.assertEqual(out, f"{Powers(lock=False, give=False, uid=NOBODY)}\n")

    @needs_root
    async def test_root_without_cap_net_admin_can_only_give(self) -> None:
        out = await self.run_child(self.PRINT + "kernel.drop_capabilities(1 << 12); print(handover.try_powers())")
        self.assertEqual(out, f"{Powers(lock=False, give=True, uid=0)}\n")

    @needs_root
    async def test_root_without_cap_chown_can_only_lock(self) -> None:
        out = await self.run_child(self.PRINT + "kernel.drop_capabilities(1); print(handover.try_powers())")
        self.assertEqual(out, f"{Powers(lock=True, give=False, uid=0)}\n")


class LockTestCase(CleanTestCase):
    """A connection that was handed over, locked."""

    host = "127.0.0.1"

    def connected(self, locked: bool = True) -> tuple[socket.socket, socket.socket, socket.socket]:
        """Return the client's socket, the server's, and the listener that goes on listening."""
        listener, port = self.listener(self.host)
        client = self.owned(socket.socket(listener.family))
        client.connect((self.host, port))
        server, _ = listener.accept()
        if locked:
            lock(client, *remote_address(client))
        return client, self.owned(server), listener


@needs_root
class Locked(LockTestCase):
    async def test_bytes_go_both_ways_and_so_do_the_ends(self) -> None:
        client, server, _ = self.connected()
        data = os.urandom(1 << 20)
        sending = in_thread(client.sendall, data)
        self.assertEqual(await in_thread(read_exactly, server, len(data)), data)
        await sending
        client.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, server), b"")
        sending = in_thread(server.sendall, data)
        self.assertEqual(await in_thread(read_exactly, client, len(data)), data)
        await sending
        server.close()
        self.assertEqual(await in_thread(read_all, client), b"")

    async def test_what_arrived_before_the_lock_can_be_read(self) -> None:
        client, server, _ = self.connected(locked=False)
        server.sendall(b"early")
        lock(client, *remote_address(client))
        server.sendall(b" late")
        self.assertEqual(await in_thread(read_exactly, client, 10), b"early late")

    async def test_the_peers_reset_gets_through(self) -> None:
        client, server, _ = self.connected()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with self.assertRaises(ConnectionResetError):
            await in_thread(client.recv, 1)

    def test_it_cannot_be_connected_elsewhere(self) -> None:
        client, _server, _ = self.connected()
        elsewhere, _ = self.listener(self.host)
        disconnect(client)
        self.assertFalse(is_connected_in_time(client, elsewhere.getsockname()[:2]))
        self.assertFalse(has_caller(elsewhere))

    def test_it_cannot_be_connected_to_the_same_server_again(self) -> None:
        client, _server, listener = self.connected()
        disconnect(client)
        self.assertFalse(is_connected_in_time(client, listener.getsockname()[:2]))
        self.assertFalse(has_caller(listener))

    def test_it_cannot_accept_anybody(self) -> None:
        client, _server, _ = self.connected()
        disconnect(client)
        client.listen()
        stranger = self.owned(socket.socket(client.family))
        self.assertFalse(is_connected_in_time(stranger, (self.host, client.getsockname()[1])))
        self.assertFalse(has_caller(client))

    def test_it_cannot_meet_itself_in_a_simultaneous_open(self) -> None:
        client, _server, _ = self.connected()
        disconnect(client)
        client.bind((self.host, 0))
        self.assertFalse(is_connected_in_time(client, client.getsockname()[:2]))

    def test_the_lock_cannot_be_taken_off(self) -> None:
        client, _server, _ = self.connected()
        with self.assertRaises(PermissionError):
            client.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def test_the_lock_cannot_be_unlocked(self) -> None:
        client, _server, _ = self.connected()
        with self.assertRaises(PermissionError):
            client.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 0)

    def test_the_lock_cannot_be_replaced(self) -> None:
        client, server, _ = self.connected()
        with self.assertRaises(PermissionError):
            FilterProgram(lock_program(remote_address(server)[0], 1), INSTRUCTION_BYTES).lock_on(client)


class LockedIPv6(Locked):
    host = "::1"


@needs_root
class LockedMapped(LockTestCase):
    """A socket that a listener for both families has accepted over IPv4: its packets are IPv4."""

    def accepted(self) -> tuple[socket.socket, socket.socket, int]:
        """Return the accepted socket, the caller's, and a port on which somebody else listens."""
        listener = self.owned(socket.socket(socket.AF_INET6))
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        caller = self.owned(socket.socket())
        caller.connect(("127.0.0.1", listener.getsockname()[1]))
        sock = self.owned(listener.accept()[0])
        lock(sock, *remote_address(sock))
        return sock, caller, self.listener()[1]

    async def test_bytes_go_both_ways(self) -> None:
        sock, caller, _ = self.accepted()
        for one, other in ((sock, caller), (caller, sock)):
            one.sendall(b"hello")
            self.assertEqual(await in_thread(read_exactly, other, 5), b"hello")

    def test_it_cannot_be_connected_elsewhere(self) -> None:
        sock, _, port = self.accepted()
        disconnect(sock)
        self.assertFalse(is_connected_in_time(sock, ("::ffff:127.0.0.1", port)))


class NotLocked(LockTestCase):
    """The same without a lock, so that the refusals above are the lock's work and not the test's."""

    def test_it_can_be_connected_elsewhere(self) -> None:
        client, _server, _ = self.connected(locked=False)
        elsewhere, _ = self.listener(self.host)
        disconnect(client)
        self.assertTrue(is_connected_in_time(client, elsewhere.getsockname()[:2]))

    def test_it_can_be_connected_to_the_same_server_again(self) -> None:
        client, _server, listener = self.connected(locked=False)
        disconnect(client)
        self.assertTrue(is_connected_in_time(client, listener.getsockname()[:2]))

    def test_it_can_accept_others(self) -> None:
        client, _server, _ = self.connected(locked=False)
        disconnect(client)
        client.listen()
        stranger = self.owned(socket.socket(client.family))
        self.assertTrue(is_connected_in_time(stranger, (self.host, client.getsockname()[1])))

    def test_it_can_meet_itself_in_a_simultaneous_open(self) -> None:
        client, _server, _ = self.connected(locked=False)
        disconnect(client)
        client.bind((self.host, 0))
        self.assertTrue(is_connected_in_time(client, client.getsockname()[:2]))


class Ready(CleanTestCase):
    def test_a_tcp_socket_blocks_is_quick_and_is_kept_alive(self) -> None:
        client, _ = self.tcp_pair()
        client.setblocking(False)
        make_ready(client, tcp=True)
        self.assertTrue(os.get_blocking(client.fileno()))
        self.assertEqual(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)

    def test_a_unix_socket_blocks_and_takes_descriptors(self) -> None:
        left, right = self.pair()
        left.setblocking(False)
        take_descriptors(left, wanted=False)
        make_ready(left, tcp=False)
        self.assertTrue(os.get_blocking(left.fileno()))
        socket.send_fds(right, [b"x"], [right.fileno()])
        _, fds, _, _ = socket.recv_fds(left, 1, 1)
        self.assertEqual(len(fds), 1)
        os.close(fds[0])
