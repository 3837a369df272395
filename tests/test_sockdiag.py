"""plumberd.effects.sockdiag: the kernel tells of every living TCP socket, in slices, and closes the one it is told."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import resource
import socket
import struct
from collections.abc import Callable

from twisted.internet.task import Clock, deferLater

from plumberd.effects import kernel, sockdiag
from plumberd.effects.poll import Poll
from plumberd.effects.sockdiag import (
    DestroyDeniedError,
    DestroyError,
    DestroyUnknownError,
    Dump,
    SocketGoneError,
    destroy,
    find_and_destroy,
    look_for,
    socket_cookie,
    try_sock_diag,
)
from plumberd.pure.inetdiag import TcpSocket, cookie_of, tcp_socket
from tests.children import ChildTestCase, needs_root
from tests.inside import NOBODY
from tests.support import real_reactor, until


class SockDiagTestCase(ChildTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.found: list[bytes] = []
        self.ended: list[OSError | None] = []

    def dump(self, found: Callable[[bytes], object] | None = None) -> Dump:
        """Start a dump, which the test's end ends."""
        dump = Dump(self.poll, real_reactor, found or self.found.append, self.ended.append)
        self.addCleanup(dump.cancel)
        dump.start()
        return dump

    async def cookies(self) -> set[int]:
        """Return those of a whole dump."""
        self.dump()
        await until(lambda: self.ended)
        self.assertEqual(self.ended, [None])
        return {cookie_of(body) for body in self.found}

    async def look(self, *socks: socket.socket) -> dict[int, TcpSocket]:
        """Return what is found of *socks*."""
        told: list[dict[int, TcpSocket] | OSError] = []
        dump = look_for(self.poll, real_reactor, [socket_cookie(sock) for sock in socks], told.append)
        self.addCleanup(dump.cancel)
        await until(lambda: told)
        (found,) = told
        assert isinstance(found, dict)
        return found

    async def look_at(self, sock: socket.socket) -> TcpSocket:
        """Return what is found of one that is there."""
        (found,) = (await self.look(sock)).values()
        return found


class Dumps(SockDiagTestCase):
    def test_here_the_kernel_tells(self) -> None:
        self.assertEqual(try_sock_diag(), "")

    async def test_it_has_both_ends_of_connections_of_both_families_and_listeners(self) -> None:
        socks = [*self.tcp_pair(), *self.tcp_pair("::1"), self.listener()[0]]
        self.assertLessEqual({socket_cookie(sock) for sock in socks}, await self.cookies())

    async def test_it_tells_each_once(self) -> None:
        await self.cookies()
        self.assertEqual(len({cookie_of(body) for body in self.found}), len(self.found))

    async def test_one_that_is_closed_is_not_in_it(self) -> None:
        left, right = self.tcp_pair()
        cookies = {socket_cookie(left), socket_cookie(right)}
        left.close()
        right.close()
        self.assertEqual(cookies & await self.cookies(), set())

    async def test_one_that_is_not_connected_is_not_in_it(self) -> None:
        sock = self.owned(socket.socket())
        self.assertNotIn(socket_cookie(sock), await self.cookies())

    async def test_one_that_is_held_elsewhere_is_in_it(self) -> None:
        left, right = self.tcp_pair()
        cookie = socket_cookie(left)
        child = self.child("import sys; print(flush=True); sys.stdin.read()", pass_fds=(left.fileno(),))
        child.line()
        left.close()
        self.assertIn(cookie, await self.cookies())

    async def test_one_whose_last_bytes_are_not_taken_is_in_it_though_nobody_holds_it(self) -> None:
        left, _ = self.tcp_pair()
        cookie = socket_cookie(left)
        left.setblocking(False)
        while True:
            try:
                left.send(b"x" * 65536)
            except BlockingIOError:
                break
        left.close()
        self.assertIn(cookie, await self.cookies())

    @needs_root
    async def test_those_of_another_network_namespace_are_not_in_it(self) -> None:
        left, _ = self.tcp_pair()
        out = await self.run_child(
            "import socket, sys\n"
            "from plumberd.effects.sockdiag import _open, _receive\n"
            "from plumberd.pure.inetdiag import Answer, LIVING, dump_request\n"
            "with _open() as sock:\n"
            "    sock.send(dump_request(2, LIVING, 1)); print(len([*Answer(1).receive(_receive(sock))]))",
            within=("unshare", "-n"),
        )
        self.assertEqual(out, "0\n")


class Slices(SockDiagTestCase):
    def many(self, pairs: int) -> set[int]:
        """Make so many connections; return their cookies."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 2 * pairs + 200:
            self.skipTest("wants more descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        return {socket_cookie(sock) for _ in range(pairs) for sock in self.tcp_pair()}

    async def test_others_have_their_turn_while_many_are_told(self) -> None:
        cookies = self.many(1500)
        rounds = 0
        self.dump()
        while not self.ended:
            before = len(self.found)
            await deferLater(real_reactor, 0)
            rounds += len(self.found) > before
            self.assertLess(len(self.found) - before, 1500)
        self.assertGreaterEqual(rounds, 2)
        self.assertLessEqual(cookies, {cookie_of(body) for body in self.found})

    async def test_enough_is_enough(self) -> None:
        cookies = self.many(600)

        def take(body: bytes) -> bool:
            self.found.append(body)
            return len(self.found) == 3

        self.dump(take)
        await until(lambda: self.ended)
        self.assertEqual((self.ended, len(self.found)), ([None], 3))
        self.assertEqual(len(cookies), 1200)


class Ends(SockDiagTestCase):
    async def test_cancelled_it_tells_nothing_more(self) -> None:
        self.tcp_pair()
        self.dump().cancel()
        await self.cookies_of_another()
        self.assertEqual((self.found, self.ended), ([], []))

    async def cookies_of_another(self) -> None:
        """Let another dump, which began later, come to its end."""
        ended: list[OSError | None] = []
        dump = Dump(self.poll, real_reactor, lambda body: False, ended.append)
        self.addCleanup(dump.cancel)
        dump.start()
        await until(lambda: ended)

    async def test_it_may_be_cancelled_by_who_is_told(self) -> None:
        self.tcp_pair()

        def take(body: bytes) -> None:
            self.found.append(body)
            dump.cancel()

        dump = self.dump(take)
        await until(lambda: self.found)
        await self.cookies_of_another()
        self.assertEqual((len(self.found), self.ended), (1, []))

    async def test_an_error_of_the_kernels_ends_it(self) -> None:
        refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.ENOENT)
        self.patch(sockdiag, "_receive", lambda sock: refusal)
        self.dump()
        await until(lambda: self.ended)
        (error,) = self.ended
        assert error is not None
        self.assertEqual(error.errno, errno.ENOENT)

    async def test_what_is_malformed_ends_it(self) -> None:
        self.patch(sockdiag, "_receive", lambda sock: b"\xff" * 20)
        self.dump()
        await until(lambda: self.ended)
        (error,) = self.ended
        assert error is not None
        self.assertEqual(error.errno, errno.EBADMSG)

    async def test_a_datagram_that_is_cut_off_is_an_error(self) -> None:
        self.listener()
        self.patch(sockdiag, "DATAGRAM_BYTES", 64)
        self.dump()
        await until(lambda: self.ended)
        (error,) = self.ended
        assert error is not None
        self.assertEqual(error.errno, errno.EMSGSIZE)

    def test_one_without_end_ends_at_its_deadline(self) -> None:
        clock = Clock()
        dump = Dump(self.poll, clock, self.found.append, self.ended.append)
        self.addCleanup(dump.cancel)
        dump.start()
        clock.advance(sockdiag.DUMP_SECONDS)
        (error,) = self.ended
        assert error is not None
        self.assertEqual(error.errno, errno.ETIMEDOUT)
        self.assertEqual(clock.getDelayedCalls(), [])

    @needs_root
    async def test_what_another_process_sends_is_not_read(self) -> None:
        opened: list[socket.socket] = []
        make = sockdiag._open

        def keep() -> socket.socket:
            opened.append(make())
            return opened[-1]

        self.patch(sockdiag, "_open", keep)
        left, _ = self.tcp_pair()
        self.dump()
        with make() as other:
            other.sendto(b"\xff" * 20, (opened[0].getsockname()[0], 0))
        await until(lambda: self.ended)
        self.assertEqual(self.ended, [None])
        self.assertIn(socket_cookie(left), {cookie_of(body) for body in self.found})

    def test_without_netlink_the_start_fails_and_the_trial_says_why(self) -> None:
        def refuse() -> socket.socket:
            raise OSError(errno.EAFNOSUPPORT, "")

        self.patch(sockdiag, "_open", refuse)
        with self.assertRaises(OSError):
            self.dump()
        self.assertEqual(try_sock_diag(), os.strerror(errno.EAFNOSUPPORT))
        self.assertEqual(self.ended, [])


class Looks(SockDiagTestCase):
    def unread(self, *wanted: tuple[socket.socket, int]) -> bool:
        """Tell whether in each so many bytes lie unread."""
        return all(kernel.unread_bytes(sock.fileno()) == count for sock, count in wanted)

    async def test_each_is_told_with_its_addresses_and_what_went_through(self) -> None:
        for host in ("127.0.0.1", "::1"):
            left, right = self.tcp_pair(host)
            left.sendall(b"x" * 1000)
            right.sendall(b"y" * 10)
            await until(functools.partial(self.unread, (left, 10), (right, 1000)))
            found = await self.look_at(left)
            self.assertEqual((str(found.local[0]), found.local[1]), left.getsockname()[:2])
            self.assertEqual((str(found.remote[0]), found.remote[1]), left.getpeername()[:2])
            self.assertEqual((found.state, found.unread_bytes), ("established", 10))
            self.assertEqual(found.inode, os.fstat(left.fileno()).st_ino)
            assert found.info is not None
            self.assertEqual(found.info.bytes_received, 10)
            self.assertIn(found.info.bytes_acked, (1000, 1001))
            assert found.info.rtt_seconds is not None and found.info.idle_seconds is not None
            self.assertTrue(0 < found.info.rtt_seconds < 20 and 0 <= found.info.idle_seconds < 20)

    @needs_root
    async def test_its_uid_is_its_owners(self) -> None:
        left, _ = self.tcp_pair()
        os.fchown(left.fileno(), NOBODY, NOBODY)
        self.assertEqual((await self.look_at(left)).uid, NOBODY)

    async def test_those_that_are_gone_are_left_out(self) -> None:
        left, right = self.tcp_pair()
        left.shutdown(socket.SHUT_RDWR)
        right.shutdown(socket.SHUT_RDWR)
        other, _ = self.tcp_pair()
        self.assertEqual(set(await self.look(left, other)), {socket_cookie(other)})

    async def test_none_is_found_where_none_is_looked_for(self) -> None:
        self.assertEqual(await self.look(), {})

    async def test_an_error_is_told(self) -> None:
        self.patch(sockdiag, "_receive", lambda sock: b"\xff" * 20)
        told: list[dict[int, TcpSocket] | OSError] = []
        look_for(self.poll, real_reactor, [1], told.append)
        await until(lambda: told)
        self.assertIsInstance(told[0], OSError)


class Destroys(SockDiagTestCase):
    @needs_root
    async def test_both_ends_of_the_one_that_is_meant_see_an_error_and_no_other_does(self) -> None:
        for host in ("127.0.0.1", "::1"):
            left, right = self.tcp_pair(host)
            other, _ = self.tcp_pair(host)
            destroy(await self.look_at(left))
            for sock in (left, right):
                with self.assertRaises(ConnectionError):
                    sock.recv(1)
            self.assertEqual((await self.look_at(other)).state, "established")

    @needs_root
    async def test_by_its_cookie_too(self) -> None:
        left, right = self.tcp_pair()
        told: list[Exception | None] = []
        find_and_destroy(self.poll, real_reactor, socket_cookie(left), told.append)
        await until(lambda: told)
        self.assertEqual(told, [None])
        with self.assertRaises(ConnectionError):
            right.recv(1)

    async def test_one_that_is_gone_is_told_so(self) -> None:
        left, right = self.tcp_pair()
        cookie, found = socket_cookie(left), await self.look_at(left)
        right.close()  # first, so that it is the other end that stays behind in TIME-WAIT
        left.close()
        with self.assertRaises(SocketGoneError):
            destroy(found)
        told: list[Exception | None] = []
        find_and_destroy(self.poll, real_reactor, cookie, told.append)
        await until(lambda: told)
        self.assertIsInstance(told[0], SocketGoneError)

    async def test_another_one_with_the_same_addresses_is_not_meant(self) -> None:
        left, right = self.tcp_pair()
        found = await self.look_at(left)
        raw = bytearray(found.ident)
        raw[-8] ^= 1
        with self.assertRaises(SocketGoneError):
            destroy(dataclasses.replace(found, ident=bytes(raw)))
        self.assertEqual((await self.look_at(right)).state, "established")

    @needs_root
    async def test_without_the_capability_it_is_denied(self) -> None:
        left, _ = self.tcp_pair()
        found = await self.look_at(left)
        out = await self.run_child(
            "import sys\n"
            "from tests.inside import become\n"
            "from plumberd.effects import sockdiag\n"
            "from plumberd.pure.inetdiag import tcp_socket\n"
            "become(65534)\n"
            "try:\n"
            "    sockdiag.destroy(tcp_socket(bytes.fromhex(sys.argv[1])))\n"
            "except sockdiag.DestroyDeniedError as e:\n"
            "    print(e)",
            (struct.pack("=BBBB", found.family, 1, 0, 0) + found.ident + bytes(20)).hex(),
        )
        self.assertIn("CAP_NET_ADMIN", out)
        self.assertEqual((await self.look_at(left)).state, "established")

    async def test_every_refusal_of_the_kernels_is_an_error_of_its_kind(self) -> None:
        found = await self.look_at(self.tcp_pair()[0])
        kinds = {
            errno.ENOENT: SocketGoneError,
            errno.EPERM: DestroyDeniedError,
            errno.EOPNOTSUPP: DestroyUnknownError,
            errno.EINVAL: DestroyUnknownError,
            errno.ENOMEM: DestroyError,
        }
        for number, kind in kinds.items():
            refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -number)
            self.patch(sockdiag, "_open", FakeNetlink)
            self.patch(sockdiag, "_receive", lambda sock, refusal=refusal: refusal)
            with self.assertRaises(kind) as caught:
                destroy(found)
            self.assertIs(type(caught.exception), kind)
            self.assertTrue(str(caught.exception))


class FakeNetlink:
    """A netlink socket to which nothing matters."""

    def __enter__(self) -> FakeNetlink:
        return self

    def __exit__(self, *args: object) -> None:
        return None

    def send(self, data: bytes) -> int:
        return len(data)


class Cookies(SockDiagTestCase):
    def test_it_is_the_sockets_own_whoever_holds_it(self) -> None:
        left, right = self.tcp_pair()
        again = self.owned(left.dup())
        self.assertEqual(socket_cookie(left), socket_cookie(again))
        self.assertNotEqual(socket_cookie(left), socket_cookie(right))

    async def test_a_body_tells_it_as_all_of_it_does(self) -> None:
        self.listener()
        await self.cookies()
        self.assertEqual([tcp_socket(body).cookie for body in self.found], [cookie_of(body) for body in self.found])
