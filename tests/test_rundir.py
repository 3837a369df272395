"""plumberd.effects.rundir: only a directory that can be trusted, and never somebody's live socket."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import Any

from twisted.trial.unittest import SkipTest

from plumberd.effects import kernel, rundir
from plumberd.effects.rundir import (
    PATH_BYTES,
    BoundSocket,
    RunDirError,
    bind_socket,
    check_path,
    identity,
    open_rundir,
    untrusted_because,
)
from tests.children import ChildTestCase, needs_root
from tests.support import CleanTestCase, in_thread

GID = 23456
FOREIGN_UID = 12345


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


class RunDirTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.rundir = os.path.join(self.folder(), "r")
        self.path = os.path.join(self.rundir, "ipc")

    def assert_refused(self, reason: str, work: Any, *args: Any) -> None:
        with self.assertRaises(RunDirError) as raised:
            work(*args)
        self.assertIn(reason, str(raised.exception))


class NewDirectory(RunDirTestCase):
    def test_it_is_sticky_and_open_to_its_owner_and_group_alone(self) -> None:
        open_rundir(self.rundir, None)
        self.assertEqual(mode_of(self.rundir), 0o1770)

    def test_the_umask_does_not_matter(self) -> None:
        self.addCleanup(os.umask, os.umask(0o777))
        open_rundir(self.rundir, None)
        self.assertEqual(mode_of(self.rundir), 0o1770)

    @needs_root
    def test_it_belongs_to_the_group_that_is_named(self) -> None:
        open_rundir(self.rundir, GID)
        status = os.stat(self.rundir)
        self.assertEqual((status.st_uid, status.st_gid, mode_of(self.rundir)), (os.geteuid(), GID, 0o1770))

    def test_without_a_group_it_belongs_to_the_brokers_own(self) -> None:
        open_rundir(self.rundir, None)
        self.assertEqual(os.stat(self.rundir).st_gid, os.getegid())

    def test_in_a_folder_that_does_not_exist_it_cannot_be_made(self) -> None:
        self.assert_refused("No such file or directory", open_rundir, self.rundir + "/deeper/still", None)

    def test_a_group_that_cannot_be_given_leaves_no_directory(self) -> None:
        def refuse(*args: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", refuse)
        self.assert_refused("cannot give", open_rundir, self.rundir, GID)
        self.assertFalse(os.path.exists(self.rundir))


class ExistingDirectory(RunDirTestCase):
    """A table of modes and kinds; one method a row."""

    def accepted(self, mode: int) -> None:
        os.mkdir(self.rundir)
        os.chmod(self.rundir, mode)
        before = os.stat(self.rundir)
        open_rundir(self.rundir, GID)
        after = os.stat(self.rundir)
        self.assertEqual((after.st_mode, after.st_gid), (before.st_mode, before.st_gid))

    def refused(self, mode: int) -> None:
        os.mkdir(self.rundir)
        os.chmod(self.rundir, mode)
        self.assert_refused(f"(mode {mode:04o}); chmod +t it", open_rundir, self.rundir, None)
        self.assertEqual(mode_of(self.rundir), mode)

    def test_0700_is_left_as_it_is(self) -> None:
        self.accepted(0o700)

    def test_0755_is_left_as_it_is(self) -> None:
        self.accepted(0o755)

    def test_1770_is_left_as_it_is(self) -> None:
        self.accepted(0o1770)

    def test_1777_is_left_as_it_is(self) -> None:
        self.accepted(0o1777)

    def test_3770_is_left_as_it_is(self) -> None:
        self.accepted(0o3770)

    def test_0770_is_refused(self) -> None:
        self.refused(0o770)

    def test_0777_is_refused(self) -> None:
        self.refused(0o777)

    def test_0720_is_refused(self) -> None:
        self.refused(0o720)

    def test_0702_is_refused(self) -> None:
        self.refused(0o702)

    def test_2770_is_refused(self) -> None:
        self.refused(0o2770)

    @needs_root
    def test_a_foreign_owner_is_refused(self) -> None:
        os.mkdir(self.rundir, 0o700)
        os.chown(self.rundir, FOREIGN_UID, -1)
        self.assert_refused(f"belongs to uid {FOREIGN_UID}", open_rundir, self.rundir, None)

    def test_a_symlink_to_a_good_directory_is_refused(self) -> None:
        real = self.folder()
        os.symlink(real, self.rundir)
        self.assert_refused("symbolic links are not followed", open_rundir, self.rundir, None)

    def test_a_dangling_symlink_is_refused(self) -> None:
        os.symlink(self.folder() + "/nowhere", self.rundir)
        self.assert_refused("symbolic links are not followed", open_rundir, self.rundir, None)

    def test_a_file_is_refused(self) -> None:
        with open(self.rundir, "w", encoding="ascii"):
            pass
        self.assert_refused("no directory", open_rundir, self.rundir, None)


class Trust(RunDirTestCase):
    @needs_root
    def test_roots_directory_is_trusted_by_everybody(self) -> None:
        os.mkdir(self.rundir, 0o755)
        self.assertIsNone(untrusted_because(self.rundir, FOREIGN_UID))

    @needs_root
    def test_ones_own_is_trusted(self) -> None:
        os.mkdir(self.rundir, 0o700)
        os.chown(self.rundir, FOREIGN_UID, -1)
        self.assertIsNone(untrusted_because(self.rundir, FOREIGN_UID))

    def test_where_there_is_none_it_is_an_error(self) -> None:
        with self.assertRaises(FileNotFoundError):
            untrusted_because(self.rundir, 0)


class Paths(RunDirTestCase):
    def test_107_bytes_fit(self) -> None:
        long = "/" + "d" * (PATH_BYTES - 5)
        self.assertEqual(check_path(long, "ipc"), long + "/ipc")

    def test_108_bytes_do_not(self) -> None:
        self.assert_refused("at most 107 bytes", check_path, "/" + "d" * (PATH_BYTES - 4), "ipc")

    def test_bytes_count_and_not_characters(self) -> None:
        self.assert_refused("at most 107 bytes", check_path, "/" + "é" * 60, "ipc")

    def test_a_longer_directory_is_refused_before_it_is_made(self) -> None:
        long = os.path.join(os.path.dirname(self.rundir), "d" * 100)
        self.assert_refused("choose a shorter directory", open_rundir, long, None)
        self.assertFalse(os.path.exists(long))

    def test_the_kernel_takes_a_path_of_107_bytes(self) -> None:
        folder = os.path.dirname(self.rundir)
        long = os.path.join(folder, "d" * (PATH_BYTES - len(folder) - 5))
        os.mkdir(long, 0o700)
        bound = bind_socket(long, "ipc", None)
        self.addCleanup(bound.close)
        self.assertEqual(len(bound.path), PATH_BYTES)


class BindTestCase(RunDirTestCase):
    def setUp(self) -> None:
        super().setUp()
        open_rundir(self.rundir, None)

    def bind(self, gid: int | None = None) -> BoundSocket:
        bound = bind_socket(self.rundir, "ipc", gid)
        self.addCleanup(bound.close)
        return bound

    def connect(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = self.owned(socket.socket(socket.AF_UNIX, kind))
        sock.connect(self.path)
        return sock

    def listen(self, kind: int, backlog: int = 8) -> socket.socket:
        """Listen at the path as somebody else would."""
        sock = self.owned(socket.socket(socket.AF_UNIX, kind))
        sock.bind(self.path)
        if kind != socket.SOCK_DGRAM:
            sock.listen(backlog)
        return sock

    def content(self) -> list[str]:
        return sorted(os.listdir(self.rundir))


class Bound(BindTestCase):
    def test_it_can_be_connected_to(self) -> None:
        bound = self.bind()
        client = self.connect()
        accepted = self.owned(bound.sock.accept()[0])
        accepted.sendall(b"x")
        self.assertEqual(client.recv(1), b"x")

    def test_it_may_be_one_for_packets(self) -> None:
        bound = bind_socket(self.rundir, "ipc", None, socket.SOCK_SEQPACKET)
        self.addCleanup(bound.close)
        client = self.connect(socket.SOCK_SEQPACKET)
        accepted = self.owned(bound.sock.accept()[0])
        accepted.sendall(b"one")
        accepted.sendall(b"two")
        self.assertEqual((client.recv(10), client.recv(10)), (b"one", b"two"))

    def test_accepting_does_not_block(self) -> None:
        with self.assertRaises(BlockingIOError):
            self.bind().sock.accept()

    def test_it_is_not_inherited(self) -> None:
        self.assertFalse(self.bind().sock.get_inheritable())

    def test_it_knows_device_and_inode_of_its_path(self) -> None:
        self.assertEqual(self.bind().identity, identity(self.path))

    def test_every_message_tells_its_sender(self) -> None:
        bound = self.bind()
        self.connect().sendall(b"x")
        accepted = self.owned(bound.sock.accept()[0])
        _, ((level, kind, _),), _, _ = accepted.recvmsg(1, 1000)
        self.assertEqual((level, kind), (socket.SOL_SOCKET, socket.SCM_CREDENTIALS))

    def test_a_message_of_before_the_accept_tells_its_sender_too(self) -> None:
        bound = self.bind()
        self.assertEqual(bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED), 1)

    def test_descriptors_are_not_taken_where_the_kernel_can_refuse_them(self) -> None:
        bound = self.bind()
        try:
            takes = bound.sock.getsockopt(socket.SOL_SOCKET, kernel.SO_PASSRIGHTS)
        except OSError:
            raise SkipTest("before Linux 6.16 they arrive, and are closed") from None
        self.assertEqual(takes, 0)
        client = self.connect()
        with self.assertRaises(PermissionError):
            socket.send_fds(client, [b"x"], [0])


class Modes(BindTestCase):
    """One method a umask."""

    def check(self, umask: int) -> None:
        self.addCleanup(os.umask, os.umask(umask))
        self.bind()
        self.assertEqual(mode_of(self.path), 0o660)
        self.assertEqual(os.umask(umask), umask)

    def test_with_umask_0(self) -> None:
        self.check(0)

    def test_with_umask_022(self) -> None:
        self.check(0o022)

    def test_with_umask_077(self) -> None:
        self.check(0o077)

    def test_with_umask_777(self) -> None:
        self.check(0o777)

    def test_at_no_moment_is_it_wider(self) -> None:
        modes: list[int] = []
        for module, name in ((os, "chown"), (rundir, "_prepare"), (rundir, "identity")):
            self.watch(module, name, modes)
        self.addCleanup(os.umask, os.umask(0))
        self.bind(os.getegid())
        self.assertEqual(modes, [0o660] * len(modes))
        self.assertGreaterEqual(len(modes), 3)

    def watch(self, module: Any, name: str, modes: list[int]) -> None:
        original = getattr(module, name)

        def look(*args: Any) -> Any:
            if os.path.exists(self.path):
                modes.append(mode_of(self.path))
            return original(*args)

        self.patch(module, name, look)

    @needs_root
    def test_it_belongs_to_the_group_that_is_named(self) -> None:
        self.bind(GID)
        self.assertEqual((os.stat(self.path).st_gid, mode_of(self.path)), (GID, 0o660))

    def test_the_lock_file_is_its_owners_alone(self) -> None:
        self.addCleanup(os.umask, os.umask(0))
        self.bind()
        self.assertEqual(mode_of(self.path + ".lock"), 0o600)


class WhatLiesThere(BindTestCase):
    """Live sockets are left alone, stale ones are taken over; one method a kind."""

    def live(self, kind: int, backlog: int = 8) -> None:
        other = self.listen(kind, backlog)
        before = identity(self.path)
        self.assert_refused("listen", self.bind)
        self.assertEqual((identity(self.path), self.content()), (before, ["ipc"]))
        self.assertEqual(other.getsockname(), self.path)

    def stale(self, kind: int) -> None:
        self.listen(kind).close()
        self.bind()
        self.connect()

    def test_a_live_stream_socket_is_left_alone(self) -> None:
        self.live(socket.SOCK_STREAM)

    def test_a_live_seqpacket_socket_is_left_alone(self) -> None:
        self.live(socket.SOCK_SEQPACKET)

    def test_a_live_stream_socket_with_a_full_backlog_is_left_alone(self) -> None:
        self.full(socket.SOCK_STREAM)

    def test_a_live_seqpacket_socket_with_a_full_backlog_is_left_alone(self) -> None:
        self.full(socket.SOCK_SEQPACKET)

    def full(self, kind: int) -> None:
        other = self.listen(kind, 0)
        filler = self.connect(kind)
        self.assert_refused("somebody listens there already", self.bind)
        self.owned(other.accept()[0]).sendall(b"x")
        self.assertEqual(filler.recv(1), b"x")

    def test_a_live_datagram_socket_is_left_alone(self) -> None:
        other = self.listen(socket.SOCK_DGRAM)
        self.assert_refused("unknown type", self.bind)
        self.connect(socket.SOCK_DGRAM).send(b"x")
        self.assertEqual(other.recv(1), b"x")

    def test_a_stale_stream_socket_is_taken_over(self) -> None:
        self.stale(socket.SOCK_STREAM)

    def test_a_stale_seqpacket_socket_is_taken_over(self) -> None:
        self.stale(socket.SOCK_SEQPACKET)

    def test_a_stale_datagram_socket_is_taken_over(self) -> None:
        self.stale(socket.SOCK_DGRAM)

    def test_a_stale_lock_file_is_taken_over(self) -> None:
        with open(self.path + ".lock", "w", encoding="ascii") as lock:
            lock.write("12345\n")
        self.bind()
        self.connect()

    def test_a_file_is_left_alone(self) -> None:
        with open(self.path, "w", encoding="ascii") as file:
            file.write("precious")
        self.assert_refused("exists and is no socket", self.bind)
        with open(self.path, encoding="ascii") as file:
            self.assertEqual(file.read(), "precious")

    def test_a_directory_is_left_alone(self) -> None:
        os.mkdir(self.path)
        self.assert_refused("exists and is no socket", self.bind)
        self.assertEqual(self.content(), ["ipc"])

    def test_a_symlink_is_not_followed(self) -> None:
        target = os.path.join(self.folder(), "s")
        self.unix_listener(target).close()
        os.symlink(target, self.path)
        self.assert_refused("exists and is no socket", self.bind)
        self.assertTrue(os.path.exists(target))

    def test_a_lock_file_that_is_a_symlink_is_not_followed(self) -> None:
        target = os.path.join(self.folder(), "file")
        os.symlink(target, self.path + ".lock")
        self.assert_refused("cannot open the lock file", self.bind)
        self.assertFalse(os.path.exists(target))


class Locks(BindTestCase):
    def test_a_second_starter_is_told_that_another_is_running(self) -> None:
        self.bind()
        self.assert_refused("another broker holds its lock file", self.bind)
        self.connect()

    def test_when_the_first_has_stopped_the_second_may_start(self) -> None:
        self.bind().close()
        self.bind()
        self.connect()

    def test_a_lock_held_by_another_generations_daemon_counts(self) -> None:
        lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        self.addCleanup(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self.assert_refused("another broker holds its lock file", self.bind)
        self.assertEqual(self.content(), ["ipc.lock"])

    def test_a_lock_file_that_is_unlinked_while_it_is_taken_is_taken_anew(self) -> None:
        flock = fcntl.flock
        left = [2]

        def flock_as_the_other_stops(lock: int, how: int) -> None:
            flock(lock, how)
            if left[0]:
                left[0] -= 1
                os.unlink(self.path + ".lock")

        self.patch(fcntl, "flock", flock_as_the_other_stops)
        self.bind()
        self.assertEqual(left, [0])
        self.assert_refused("another broker holds its lock file", self.bind)

    def test_the_lock_is_not_inherited(self) -> None:
        bound = self.bind()
        self.assertFalse(os.get_inheritable(bound._lock))


class Closing(BindTestCase):
    def test_it_removes_the_socket_and_the_lock_file(self) -> None:
        self.bind().close()
        self.assertEqual(self.content(), [])

    def test_a_second_time_it_does_nothing(self) -> None:
        bound = self.bind()
        bound.close()
        other = self.bind()
        bound.close()
        self.assertEqual((identity(self.path), self.content()), (other.identity, ["ipc", "ipc.lock"]))

    def test_a_socket_that_has_taken_the_path_is_left_alone(self) -> None:
        bound = self.bind()
        os.rename(self.path, self.path + "-old")
        other = self.listen(socket.SOCK_STREAM)
        bound.close()
        self.connect()
        self.assertEqual((other.getsockname(), self.content()), (self.path, ["ipc", "ipc-old"]))

    def test_a_lock_file_that_is_anothers_is_left_alone(self) -> None:
        bound = self.bind()
        os.unlink(self.path + ".lock")
        with open(self.path + ".lock", "w", encoding="ascii"):
            pass
        bound.close()
        self.assertEqual(self.content(), ["ipc.lock"])

    def test_a_path_that_is_gone_already_is_no_error(self) -> None:
        bound = self.bind()
        os.unlink(self.path)
        bound.close()
        self.assertEqual(self.content(), [])

    def test_clients_are_refused_from_then_on(self) -> None:
        bound = self.bind()
        client = self.connect()
        bound.close()
        with self.assertRaises(ConnectionResetError):
            client.recv(1)
        with self.assertRaises(FileNotFoundError):
            self.connect()


class Failures(BindTestCase):
    """Nothing is left where it can't be had: no socket, no lock file, no descriptor."""

    def test_a_group_that_cannot_be_given(self) -> None:
        def refuse(*args: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(os, "chown", refuse)
        self.assert_refused("cannot listen on", self.bind, GID)
        self.assertEqual(self.content(), [])

    def test_an_interruption(self) -> None:
        def interrupt(sock: socket.socket) -> None:
            raise KeyboardInterrupt

        self.patch(rundir, "_prepare", interrupt)
        with self.assertRaises(KeyboardInterrupt):
            self.bind()
        self.assertEqual(self.content(), [])

    def test_a_directory_that_is_not_there(self) -> None:
        self.assert_refused("cannot open the lock file", bind_socket, self.rundir + "x", "ipc", None)

    def test_a_name_that_is_too_long(self) -> None:
        self.assert_refused("at most 107 bytes", bind_socket, self.rundir, "x" * 100, None)
        self.assertEqual(self.content(), [])


class AsAnother(ChildTestCase):
    BIND = """
import sys
from tests.inside import NOBODY, become
from plumberd.effects.rundir import RunDirError, bind_socket
become(NOBODY)
try:
    bind_socket(sys.argv[1], "ipc", None)
except RunDirError as e:
    print(e)
"""

    @needs_root
    async def test_a_socket_that_cannot_be_probed_is_left_alone(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0o1777)
        path = os.path.join(folder, "ipc")
        self.unix_listener(path)
        os.chmod(path, 0o600)
        out = await self.run_child(self.BIND, folder)
        self.assertEqual(out, f"{path}: cannot tell whether somebody listens there: Permission denied\n")
        self.assertEqual(os.listdir(folder), ["ipc"])

    @needs_root
    async def test_the_lock_file_of_anothers_broker_stops_it(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0o1777)
        bound = bind_socket(folder, "ipc", None)
        self.addCleanup(bound.close)
        out = await self.run_child(self.BIND, folder)
        self.assertEqual(out, f"cannot open the lock file {folder}/ipc.lock: Permission denied\n")
        client = self.owned(socket.socket(socket.AF_UNIX))
        await in_thread(client.connect, bound.path)
