"""plumberd.effects.kernel: the numbers and raw calls do what they are named after."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import threading

from plumberd.effects import kernel
from tests.children import ChildTestCase, needs_root
from tests.support import CleanTestCase, in_thread, until


class Queues(ChildTestCase):
    async def test_unsent_is_zero_when_the_tcp_peer_has_taken_all(self) -> None:
        left, right = self.tcp_pair()
        left.sendall(b"x" * 1000)
        await until(lambda: kernel.unsent_bytes(left.fileno()) == 0)
        self.assertEqual(kernel.unread_bytes(right.fileno()), 1000)

    def test_unsent_is_not_zero_while_a_unix_peer_has_not_read_all(self) -> None:
        left, right = self.pair()
        left.sendall(b"two")
        self.assertGreater(kernel.unsent_bytes(left.fileno()), 0)
        right.recv(2)
        self.assertGreater(kernel.unsent_bytes(left.fileno()), 0)
        right.recv(1)
        self.assertEqual(kernel.unsent_bytes(left.fileno()), 0)

    def test_unsent_is_zero_where_the_unix_peer_hung_up_without_reading(self) -> None:
        left, right = self.pair()
        left.sendall(b"x")
        right.close()
        self.assertEqual(kernel.unsent_bytes(left.fileno()), 0)

    async def test_an_acknowledgement_of_a_tcp_peer_s_kernel_is_heard(self) -> None:
        near, far = self.tcp_pair()
        near.send(b"x")
        far.recv(1)
        await until(lambda: kernel.unsent_bytes(near.fileno()) == 0)
        self.assertLess(kernel.unheard_seconds(near), 20.0)
        self.assertGreaterEqual(kernel.unheard_seconds(near), 0.0)

    def test_unread_counts_what_lies_in_the_receive_queue(self) -> None:
        left, right = self.pair()
        left.sendall(b"12345")
        self.assertEqual(kernel.unread_bytes(right.fileno()), 5)
        right.recv(2)
        self.assertEqual(kernel.unread_bytes(right.fileno()), 3)


class Descriptors(CleanTestCase):
    def send(self, to: socket.socket, through: socket.socket) -> None:
        socket.send_fds(through, [b"x"], [to.fileno()])

    def test_a_socket_takes_none_where_none_are_wanted(self) -> None:
        left, right = self.pair()
        kernel.take_descriptors(right, wanted=False)
        self.assertRaises(PermissionError, self.send, left, left)
        left.sendall(b"bytes")
        self.assertEqual(right.recv(5), b"bytes")

    def test_it_takes_them_where_they_are_wanted_again(self) -> None:
        left, right = self.pair()
        kernel.take_descriptors(right, wanted=False)
        kernel.take_descriptors(right, wanted=True)
        self.send(left, left)
        _, fds, _, _ = socket.recv_fds(right, 1, 1)
        self.assertEqual(len(fds), 1)
        os.close(fds[0])

    def test_what_is_no_unix_socket_is_left_alone(self) -> None:
        left, right = self.tcp_pair()
        kernel.take_descriptors(left, wanted=False)
        right.sendall(b"x")
        self.assertEqual(left.recv(1), b"x")


class Groups(ChildTestCase):
    def test_of_a_peer_in_this_process_they_are_its_own(self) -> None:
        left, _ = self.pair()
        self.assertEqual(sorted(kernel.peer_groups(left)), sorted(os.getgroups()))

    def test_a_socket_without_a_unix_peer_has_none_to_tell(self) -> None:
        left, _ = self.tcp_pair()
        with self.assertRaises(OSError):
            kernel.peer_groups(left)

    async def check(self, count: int) -> None:
        path = os.path.join(self.folder(), "s")
        listener = self.unix_listener(path)
        wanted = tuple(range(100_000, 100_000 + count))
        child = self.child(
            "import os, socket, sys; count = int(sys.argv[2]);"
            "os.setgroups(list(range(100_000, 100_000 + count)));"
            "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); sys.stdin.read()",
            path,
            count,
        )
        sock, _ = await in_thread(listener.accept)
        self.assertEqual(kernel.peer_groups(self.owned(sock)), wanted)
        self.assertEqual((await in_thread(child.finish))[0], 0)

    @needs_root
    async def test_none_is_an_empty_tuple(self) -> None:
        await self.check(0)

    @needs_root
    async def test_256_fit_into_pythons_own_call(self) -> None:
        await self.check(256)

    @needs_root
    async def test_257_are_all_told_too(self) -> None:
        await self.check(257)

    @needs_root
    async def test_5000_are_all_told_too(self) -> None:
        await self.check(5000)


@needs_root
class Filters(ChildTestCase):
    ACCEPT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)
    ACCEPT_NONE = struct.pack("=HBBI", 0x06, 0, 0, 0)

    async def test_the_filter_is_in_force(self) -> None:
        left, right = self.tcp_pair()
        kernel.FilterProgram(self.ACCEPT_NONE, 8).lock_on(left)
        right.sendall(b"x")
        left.settimeout(0.3)
        with self.assertRaises(TimeoutError):
            await in_thread(left.recv, 1)

    async def test_one_program_may_lock_many_sockets(self) -> None:
        program = kernel.FilterProgram(self.ACCEPT_NONE, 8)
        for left, right in (self.tcp_pair(), self.tcp_pair()):
            program.lock_on(left)
            right.sendall(b"x")
            left.settimeout(0.3)
            with self.assertRaises(TimeoutError):
                await in_thread(left.recv, 1)

    def test_it_can_be_neither_replaced_nor_removed(self) -> None:
        left, _ = self.tcp_pair()
        kernel.FilterProgram(self.ACCEPT_ALL, 8).lock_on(left)
        with self.assertRaises(PermissionError):
            kernel.FilterProgram(self.ACCEPT_ALL, 8).lock_on(left)
        with self.assertRaises(PermissionError):
            left.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER

    def test_what_is_no_program_is_refused(self) -> None:
        left, _ = self.tcp_pair()
        with self.assertRaises(OSError) as raised:
            kernel.FilterProgram(struct.pack("=HBBI", 0xFFFF, 0, 0, 0), 8).lock_on(left)
        self.assertEqual(raised.exception.errno, errno.EINVAL)


@needs_root
class Ids(ChildTestCase):
    def test_they_are_this_threads_alone_and_come_back(self) -> None:
        ids, own = kernel.ThreadIds(), (os.geteuid(), os.getegid(), tuple(os.getgroups()))
        asked, tell, answers = threading.Event(), threading.Event(), []

        def other() -> None:
            tell.wait(5)
            answers.append((os.geteuid(), os.getegid(), tuple(os.getgroups())))
            asked.set()

        thread = threading.Thread(target=other)
        thread.start()
        ids.set(12345, 23456, (7, 8), uid_first=False)
        try:
            here = (os.geteuid(), os.getegid(), tuple(os.getgroups()))
            tell.set()
            there_in_time = asked.wait(5)
        finally:
            ids.set(*own, uid_first=True)
        thread.join()
        self.assertEqual(here, (12345, 23456, (7, 8)))
        self.assertTrue(there_in_time)
        self.assertEqual(answers, [own])
        self.assertEqual((os.geteuid(), os.getegid(), tuple(os.getgroups())), own)

    def test_real_and_saved_ids_are_left_alone(self) -> None:
        ids, groups = kernel.ThreadIds(), tuple(os.getgroups())
        ids.set(12345, 23456, (), uid_first=False)
        try:
            uids, gids = os.getresuid(), os.getresgid()
        finally:
            ids.set(0, 0, groups, uid_first=True)
        self.assertEqual((uids, gids), ((0, 12345, 0), (0, 23456, 0)))

    def test_more_groups_than_there_may_be_are_an_error(self) -> None:
        ids, before = kernel.ThreadIds(), os.getresuid()
        with self.assertRaises(OSError) as raised:
            ids.set(12345, 23456, tuple(range(65537)), uid_first=False)
        self.assertEqual((raised.exception.errno, os.getresuid()), (errno.EINVAL, before))

    def test_this_machines_numbers_are_known(self) -> None:
        self.assertTrue(kernel.can_switch_ids())

    async def test_who_is_not_root_may_not(self) -> None:
        out = await self.run_child(
            "from tests.inside import NOBODY, become; from plumberd.effects import kernel\n"
            "become(NOBODY)\n"
            "try: kernel.ThreadIds().set(0, 0, (), uid_first=False)\n"
            "except PermissionError: print('refused')\n"
        )
        self.assertEqual(out, "refused\n")


class Capabilities(ChildTestCase):
    @needs_root
    def test_root_has_them(self) -> None:
        self.assertTrue(kernel.effective_capabilities() & (1 << kernel.CAP_SETUID))

    @needs_root
    async def test_who_is_not_root_has_none(self) -> None:
        out = await self.run_child(
            "from tests.inside import NOBODY, become; from plumberd.effects import kernel\n"
            "become(NOBODY); print(kernel.effective_capabilities())"
        )
        self.assertEqual(out, "0\n")

    @needs_root
    async def test_what_is_dropped_is_gone_for_good_and_the_rest_stays(self) -> None:
        out = await self.run_child(
            "import os, sys; from plumberd.effects import kernel\n"
            "before = kernel.effective_capabilities()\n"
            "mask = 1 << kernel.CAP_DAC_OVERRIDE | 1 << kernel.CAP_CHOWN\n"
            "kernel.drop_capabilities(mask)\n"
            "print(kernel.effective_capabilities() == before & ~mask)\n"
            "os.chmod(sys.argv[1], 0); os.setresuid(-1, 65534, -1); os.setresuid(-1, 0, -1)\n"
            "print(kernel.effective_capabilities() & mask)\n",
            self.folder(),
        )
        self.assertEqual(out, "True\n0\n")


class DescriptorLimit(ChildTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))

    def test_the_soft_limit_becomes_the_hard_one(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        self.assertEqual(kernel.raise_descriptor_limit(), hard)
        self.assertEqual(resource.getrlimit(resource.RLIMIT_NOFILE), (hard, hard))

    def test_a_limit_that_cannot_be_raised_stays_as_it_is(self) -> None:
        def refuse(*args: object) -> None:
            raise ValueError("not allowed to raise maximum limit")

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.patch(resource, "setrlimit", refuse)
        self.assertEqual(kernel.raise_descriptor_limit(), hard - 1)


class Taken(CleanTestCase):
    """What a client has not taken yet, as a broker sees it."""

    def test_a_byte_is_untaken_until_it_is_read(self) -> None:
        left, right = self.pair()
        self.assertFalse(kernel.is_untaken(left.fileno()))
        left.sendall(b"x")
        self.assertTrue(kernel.is_untaken(left.fileno()))
        right.recv(1)
        self.assertFalse(kernel.is_untaken(left.fileno()))

    def test_what_the_kernel_shows_in_passing_is_no_byte(self) -> None:
        self.patch(kernel, "unsent_bytes", lambda fd: 1)
        self.assertFalse(kernel.is_untaken(0))

    def test_where_the_peer_has_gone_nothing_is_untaken(self) -> None:
        left, right = self.pair()
        left.sendall(b"x")
        right.close()
        self.assertFalse(kernel.is_untaken(left.fileno()))
