"""plumberd.effects.dial_tcp: one connection out of several addresses, and no socket besides."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from typing import Any

from twisted.internet.task import Clock
from twisted.trial import unittest

from plumberd.effects import dial_tcp
from plumberd.effects.dial_tcp import (
    ATTEMPT_DELAY_SECONDS,
    Owner,
    TcpDial,
    interleave,
    new_socket,
    remote_address,
)
from plumberd.effects.poll import Poll
from plumberd.pure.address import Zone
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress
from tests.children import needs_root
from tests.ports import free_port
from tests.support import CleanTestCase, in_thread, no_descriptors, open_descriptors, read_exactly, real_reactor, until

V4 = ipaddress.ip_address("127.0.0.1")
OTHER_V4 = ipaddress.ip_address("127.0.0.2")
THIRD_V4 = ipaddress.ip_address("127.0.0.3")
V6 = ipaddress.ip_address("::1")


class Interleaved(unittest.SynchronousTestCase):
    """RFC 8305, section 4; one method a row."""

    def check(self, given: str, wanted: str) -> None:
        def addresses(text: str) -> list[IPAddress]:
            return [ipaddress.ip_address(word) for word in text.split()]

        self.assertEqual(interleave(addresses(given)), addresses(wanted))

    def test_one(self) -> None:
        self.check("192.0.2.1", "192.0.2.1")

    def test_the_families_take_turns_and_the_first_ones_begins(self) -> None:
        self.check("2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2", "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2")

    def test_an_ipv4_address_in_front_stays_in_front(self) -> None:
        self.check("192.0.2.1 2001:db8::1 192.0.2.2", "192.0.2.1 2001:db8::1 192.0.2.2")

    def test_what_is_left_of_the_longer_family_comes_last(self) -> None:
        self.check("192.0.2.1 192.0.2.2 192.0.2.3 2001:db8::1", "192.0.2.1 2001:db8::1 192.0.2.2 192.0.2.3")

    def test_a_single_family_keeps_its_order(self) -> None:
        self.check("192.0.2.3 192.0.2.1 192.0.2.2", "192.0.2.3 192.0.2.1 192.0.2.2")


class MeetsItself(socket.socket):
    """A socket that the kernel gives, when it connects to 127.0.0.1, the very port that it connects to."""

    def connect_ex(self, address: Any) -> int:
        if address[0] == str(V4) and self.getsockname()[1] == 0:
            self.bind(address)
        return super().connect_ex(address)


class DialTestCase(CleanTestCase):
    """Dials over loopback, where 127.0.0.1 to 127.0.0.3 are three hosts. The clock is the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.clock = Clock()
        self.results: list[tuple[socket.socket, IPAddress] | Refused] = []

    def start(self, port: int, *addresses: IPAddress, owner: Owner | None = None) -> TcpDial:
        dial = TcpDial(self.poll, self.clock, addresses, port, owner, self.note)
        self.addCleanup(dial.cancel)
        dial.start()
        return dial

    def note(self, result: tuple[socket.socket, IPAddress] | Refused) -> None:
        if not isinstance(result, Refused):
            self.addCleanup(result[0].close)
        self.results.append(result)

    async def connected(self) -> tuple[socket.socket, IPAddress]:
        """Wait for the result, which is a connection."""
        await until(lambda: self.results)
        (result,) = self.results
        assert not isinstance(result, Refused), result
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.poll.watches(result[0].fileno()))
        return result

    async def refused(self) -> Refused:
        """Wait for the result, which is a refusal."""
        await until(lambda: self.results)
        (result,) = self.results
        assert isinstance(result, Refused), result
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return result

    def server(self, *addresses: IPAddress, backlog: int = 8) -> tuple[int, list[socket.socket]]:
        """Listen on the same port of every address; return the port and the listeners."""
        while True:
            listeners: list[socket.socket] = []
            port = 0
            for address in addresses:
                sock = self.owned(socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6))
                try:
                    sock.bind((str(address), port))
                except OSError:
                    sock.close()
                    break
                sock.listen(backlog)
                port = sock.getsockname()[1]
                listeners.append(sock)
            if len(listeners) == len(addresses):
                return port, listeners
            for sock in listeners:
                sock.close()

    def fill(self, listener: socket.socket) -> None:
        """Fill a backlog of 0, which holds one: from then on nobody gets an answer."""
        self.owned(socket.socket(listener.family)).connect(listener.getsockname())

    def sockets(self) -> int:
        return sum(what.startswith("socket:") for what in open_descriptors().values())


class OneAddress(DialTestCase):
    async def check(self, address: IPAddress) -> None:
        port, (listener,) = self.server(address)
        self.start(port, address)
        sock, reached = await self.connected()
        self.assertEqual((reached, sock.getpeername()[:2]), (address, (str(address), port)))
        self.assertFalse(os.get_blocking(sock.fileno()))
        self.assertFalse(sock.get_inheritable())
        far = self.owned(listener.accept()[0])
        sock.sendall(b"ping")
        self.assertEqual(await in_thread(read_exactly, far, 4), b"ping")

    async def test_ipv4(self) -> None:
        await self.check(V4)

    async def test_ipv6(self) -> None:
        await self.check(V6)

    async def test_nobody_listens(self) -> None:
        port = free_port()
        self.start(port, V4)
        refusal = await self.refused()
        self.assertEqual(refusal.word, Refusal.UNREACHABLE)
        self.assertEqual(refusal.reason, f"127.0.0.1:{port}: Connection refused")

    async def test_nobody_listens_on_ipv6(self) -> None:
        port = free_port()
        self.start(port, V6)
        self.assertEqual((await self.refused()).reason, f"[::1]:{port}: Connection refused")

    async def test_an_answer_that_comes_later_is_told_by_the_reactor(self) -> None:
        # Not over loopback, as it looks to the dial: it does not ask twice.
        self.patch(dial_tcp, "zone", lambda _: Zone.ORDINARY)
        port, _ = self.server(V4)
        self.start(port, V4)
        self.assertEqual(self.results, [])
        await self.connected()

    async def test_a_refusal_that_comes_later_is_told_by_the_reactor(self) -> None:
        self.patch(dial_tcp, "zone", lambda _: Zone.ORDINARY)
        self.start(free_port(), V4)
        self.assertEqual(self.results, [])
        self.assertEqual((await self.refused()).word, Refusal.UNREACHABLE)

    async def test_an_address_that_cannot_be_connected_to(self) -> None:
        self.start(9, ipaddress.ip_address("255.255.255.255"))
        refusal = await self.refused()
        self.assertEqual(refusal.word, Refusal.UNREACHABLE)
        self.assertIn("255.255.255.255:9: ", refusal.reason)

    async def test_without_descriptors_it_is_busy(self) -> None:
        port, _ = self.server(V4)
        with no_descriptors():
            self.start(port, V4)
        self.assertEqual((await self.refused()).word, Refusal.BUSY)

    async def test_a_socket_that_has_met_itself_is_no_connection(self) -> None:
        port = free_port()
        self.patch(socket, "socket", MeetsItself)
        self.start(port, V4)
        self.assertEqual((await self.refused()).reason, f"127.0.0.1:{port}: Connection refused")


class SeveralAddresses(DialTestCase):
    async def test_where_the_first_refuses_the_second_is_tried_at_once(self) -> None:
        port, (unused, _) = self.server(V4, OTHER_V4)
        unused.close()
        self.start(port, V4, OTHER_V4)
        self.assertEqual((await self.connected())[1], OTHER_V4)
        self.assertEqual(self.clock.seconds(), 0)

    async def test_where_the_first_refuses_late_the_second_is_tried_at_once_too(self) -> None:
        self.patch(dial_tcp, "zone", lambda _: Zone.ORDINARY)
        port, (unused, _) = self.server(V4, OTHER_V4)
        unused.close()
        self.start(port, V4, OTHER_V4)
        self.assertEqual((await self.connected())[1], OTHER_V4)

    async def test_the_other_family_comes_second(self) -> None:
        port, _ = self.server(OTHER_V4, V6)
        self.start(port, V4, OTHER_V4, V6)
        self.assertEqual((await self.connected())[1], V6)

    async def test_where_all_refuse_the_reason_names_all(self) -> None:
        port = free_port()
        self.start(port, V4, V6)
        self.assertEqual(
            (await self.refused()).reason, f"127.0.0.1:{port}: Connection refused; [::1]:{port}: Connection refused"
        )

    async def test_where_the_first_hangs_the_second_is_tried_after_its_delay(self) -> None:
        port, (hanging, _) = self.server(V4, OTHER_V4, backlog=0)
        self.fill(hanging)
        self.start(port, V4, OTHER_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS - 0.001)
        self.assertEqual(self.results, [])
        self.clock.advance(0.001)
        self.assertEqual((await self.connected())[1], OTHER_V4)

    async def test_the_third_is_tried_after_a_delay_of_its_own(self) -> None:
        port, (first, second, _) = self.server(V4, OTHER_V4, THIRD_V4, backlog=0)
        self.fill(first)
        self.fill(second)
        self.start(port, V4, OTHER_V4, THIRD_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS)
        self.clock.advance(ATTEMPT_DELAY_SECONDS - 0.001)
        self.assertEqual(self.results, [])
        self.clock.advance(0.001)
        self.assertEqual((await self.connected())[1], THIRD_V4)

    async def test_the_first_may_still_win(self) -> None:
        port, (slow, other) = self.server(V4, OTHER_V4, backlog=0)
        self.fill(slow)
        self.fill(other)
        self.start(port, V4, OTHER_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS)
        self.owned(slow.accept()[0])  # there is room: the next attempt of the kernel's gets through
        self.assertEqual((await self.connected())[1], V4)

    async def test_the_losers_are_closed(self) -> None:
        before = self.sockets()
        port, (hanging, _) = self.server(V4, OTHER_V4, backlog=0)
        self.fill(hanging)
        self.start(port, V4, OTHER_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS)
        await self.connected()
        self.assertEqual(self.sockets() - before, 4)  # two listeners, the filler, and the winner

    async def test_where_the_second_refuses_the_hanging_first_is_waited_for(self) -> None:
        port, (hanging, unused) = self.server(V4, OTHER_V4, backlog=0)
        self.fill(hanging)
        unused.close()
        self.start(port, V4, OTHER_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS)
        self.assertEqual((self.results, self.clock.getDelayedCalls()), ([], []))
        self.owned(hanging.accept()[0])
        self.assertEqual((await self.connected())[1], V4)

    async def test_a_family_that_this_kernel_does_not_have_is_passed_over(self) -> None:
        class WithoutIPv6(socket.socket):
            def __init__(self, family: int = -1, *args: Any, **kwargs: Any) -> None:
                if family == socket.AF_INET6:
                    raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
                super().__init__(family, *args, **kwargs)

        port, _ = self.server(V4)
        self.patch(socket, "socket", WithoutIPv6)
        self.start(port, V6, V4)
        self.assertEqual((await self.connected())[1], V4)

    async def test_after_one_that_has_met_itself_the_next_is_tried(self) -> None:
        port, (unused, *_) = self.server(V4, OTHER_V4, THIRD_V4, backlog=0)
        unused.close()
        self.patch(socket, "socket", MeetsItself)
        self.start(port, V4, OTHER_V4, THIRD_V4)
        self.assertEqual((await self.connected())[1], OTHER_V4)

    async def test_after_one_that_has_met_itself_a_hanging_next_leaves_one_timer(self) -> None:
        port, (unused, hanging, _) = self.server(V4, OTHER_V4, THIRD_V4, backlog=0)
        unused.close()
        self.fill(hanging)
        self.patch(socket, "socket", MeetsItself)
        dial = self.start(port, V4, OTHER_V4, THIRD_V4)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        dial.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Cancelled(DialTestCase):
    async def test_every_socket_is_closed_and_nothing_is_told(self) -> None:
        port, (first, second, _) = self.server(V4, OTHER_V4, THIRD_V4, backlog=0)
        self.fill(first)
        self.fill(second)
        before = self.sockets()
        dial = self.start(port, V4, OTHER_V4, THIRD_V4)
        self.clock.advance(ATTEMPT_DELAY_SECONDS)
        self.assertEqual(self.sockets() - before, 2)
        dial.cancel()
        self.assertEqual((self.sockets() - before, self.clock.getDelayedCalls()), (0, []))
        self.clock.advance(10)
        self.assertEqual(self.results, [])

    async def test_cancelling_twice_is_cancelling(self) -> None:
        port, (hanging,) = self.server(V4, backlog=0)
        self.fill(hanging)
        dial = self.start(port, V4)
        dial.cancel()
        dial.cancel()
        self.assertEqual(self.results, [])

    async def test_after_the_end_it_leaves_the_connection_alone(self) -> None:
        port, (listener,) = self.server(V4)
        dial = self.start(port, V4)
        sock, _ = await self.connected()
        dial.cancel()
        sock.sendall(b"x")
        self.assertEqual(await in_thread(read_exactly, self.owned(listener.accept()[0]), 1), b"x")


class Owners(DialTestCase):
    """The socket belongs to the client before it connects, so that the host's per-user rules hold."""

    @needs_root
    async def test_it_belongs_to_the_owner_that_is_named(self) -> None:
        port, _ = self.server(V4)
        self.start(port, V4, owner=(12345, 23456))
        sock, _address = await self.connected()
        status = os.fstat(sock.fileno())
        self.assertEqual((status.st_uid, status.st_gid), (12345, 23456))

    @needs_root
    async def test_it_does_so_while_it_connects(self) -> None:
        port, (hanging,) = self.server(V4, backlog=0)
        self.fill(hanging)
        before = set(open_descriptors().items())
        self.start(port, V4, owner=(12345, 23456))
        ((fd, _),) = {item for item in open_descriptors().items() if item[1].startswith("socket:")} - before
        self.assertEqual(os.fstat(fd).st_uid, 12345)

    async def test_without_one_it_belongs_to_the_broker(self) -> None:
        port, _ = self.server(V4)
        self.start(port, V4)
        sock, _address = await self.connected()
        self.assertEqual(os.fstat(sock.fileno()).st_uid, os.geteuid())

    async def test_it_is_made_by_who_makes_it(self) -> None:
        made: list[socket.socket] = []

        def make(family: int) -> socket.socket:
            made.append(new_socket(family))
            return made[-1]

        port, _ = self.server(V4)
        dial = TcpDial(self.poll, self.clock, (V4,), port, None, self.note, make)
        dial.start()
        self.assertEqual(await self.connected(), (made[0], V4))

    async def test_where_it_cannot_be_given_there_is_no_connection(self) -> None:
        def refuse(*args: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        port, (listener,) = self.server(V4)
        self.patch(os, "fchown", refuse)
        self.start(port, V4, owner=(12345, 23456))
        self.assertIn("Operation not permitted", (await self.refused()).reason)
        listener.setblocking(False)
        with self.assertRaises(BlockingIOError):
            listener.accept()


class RemoteAddress(CleanTestCase):
    def test_ipv4(self) -> None:
        left, right = self.tcp_pair()
        self.assertEqual(remote_address(left), (V4, right.getsockname()[1]))

    def test_ipv6(self) -> None:
        left, right = self.tcp_pair("::1")
        self.assertEqual(remote_address(left), (V6, right.getsockname()[1]))

    def test_an_ipv4_peer_of_an_ipv6_listener_is_an_ipv4_peer(self) -> None:
        listener = self.owned(socket.socket(socket.AF_INET6))
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen()
        client = self.owned(socket.socket())
        client.connect(("127.0.0.1", listener.getsockname()[1]))
        accepted = self.owned(listener.accept()[0])
        self.assertEqual(remote_address(accepted), (V4, client.getsockname()[1]))

    def test_a_peer_that_is_gone_is_an_error(self) -> None:
        left, right = self.tcp_pair()
        right.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        right.close()
        with self.assertRaises(ConnectionResetError):
            left.recv(1)
        with self.assertRaises(OSError):
            remote_address(left)
