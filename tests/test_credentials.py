"""plumberd.effects.credentials: real processes, and who they turn out to be."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any

from plumberd.effects import credentials
from plumberd.effects.credentials import Inspector, Sender, maker_of, sender_of
from plumberd.pure.policy.subject import parse_cgroup
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from tests.children import Child, ChildTestCase, needs_root
from tests.support import in_thread

ASK = """
import os, signal, socket, sys
{before}
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
{between}
sock.sendall(b"?")
{behind}
sock.recv(1)
"""

FORK = """
if os.fork():
    os.wait()
    os._exit(0)
"""


class InspectorTestCase(ChildTestCase):
    """A listener as the broker's, and clients that connect and send one message."""

    def setUp(self) -> None:
        super().setUp()
        folder = self.folder()
        os.chmod(folder, 0o755)
        self.path = os.path.join(folder, "s")
        self.broker_socket = self.unix_listener(self.path)
        os.chmod(self.path, 0o666)
        self.broker_socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.inspector = Inspector()

    def client(
        self, before: str = "", between: str = "", behind: str = "", within: Sequence[str] = (), **options: Any
    ) -> Child:
        """Start a process that runs *before*, connects, runs *between*, sends, runs *behind*, and waits."""
        code = ASK.format(before=before, between=between, behind=behind)
        return self.child(code, self.path, within=within, **options)

    def receive(self) -> tuple[socket.socket, Sender, Sender]:
        """Return the next connection, its maker and the first message's sender. Blocks."""
        sock = self.owned(self.broker_socket.accept()[0])
        _, ancillary, _, _ = sock.recvmsg(1, 1000)
        ((_, kind, data),) = ancillary
        assert kind == socket.SCM_CREDENTIALS
        return sock, maker_of(sock), sender_of(data)

    async def who(self, *args: str, **options: Any) -> LocalWho:
        """Return what the inspector says of such a client."""
        self.client(*args, **options)
        return self.inspector.who(*await in_thread(self.receive))


class NotConfined(InspectorTestCase):
    def test_this_very_process(self) -> None:
        client = self.owned(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        client.sendall(b"?")
        with open("/proc/self/cgroup", "rb") as file:
            cgroup = parse_cgroup(file.read())
        self.assertIsNotNone(cgroup)
        self.assertEqual(
            self.inspector.who(*self.receive()),
            LocalWho(
                os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid(), "", same_cgroup=True, cgroup=cgroup
            ),
        )

    async def test_another_process_of_this_user(self) -> None:
        who = await self.who()
        self.assertEqual((who.uid, who.gid, who.confined, who.same_cgroup), (os.geteuid(), os.getegid(), "", True))

    @needs_root
    async def test_another_user_with_its_gid_and_groups(self) -> None:
        who = await self.who("from tests.inside import become; become(12345, 23456, [7, 8])")
        self.assertEqual((who.uid, who.gid, who.groups, who.confined), (12345, 23456, (7, 8), ""))

    @needs_root
    async def test_a_user_with_more_groups_than_python_asks_for(self) -> None:
        who = await self.who("from tests.inside import become; become(12345, 23456, range(1000, 1300))")
        self.assertEqual((who.groups, who.confined), (tuple(range(1000, 1300)), ""))

    async def test_a_process_that_connected_before_it_changed_its_directory_and_name(self) -> None:
        who = await self.who("", "os.chdir('/'); open('/proc/self/comm', 'w').write('x y) z')")
        self.assertEqual(who.confined, "")

    async def test_its_cgroup_is_told_only_if_that_is_asked_for(self) -> None:
        self.inspector = Inspector(tell_cgroup=False)
        self.assertEqual((await self.who()).same_cgroup, False)

    async def test_asking_leaves_no_descriptor(self) -> None:
        self.client()
        sock, maker, sender = await in_thread(self.receive)
        before = os.listdir("/proc/self/fd")
        for _ in range(10):
            self.inspector.who(sock, maker, sender)
        self.assertEqual(len(os.listdir("/proc/self/fd")), len(before))


@needs_root
class Confined(InspectorTestCase):
    """One method a cage."""

    async def check(self, why: str, *args: str, **options: Any) -> None:
        who = await self.who(*args, **options)
        self.assertEqual((who.confined, who.same_cgroup), (why, False))

    async def test_in_another_network_namespace(self) -> None:
        await self.check("another network namespace", within=("unshare", "-n"))

    async def test_gone_into_another_network_namespace_after_connecting(self) -> None:
        await self.check("another network namespace", "", UNSHARE_NET)

    async def test_come_back_from_another_network_namespace_after_connecting(self) -> None:
        back = "own = os.open('/proc/self/ns/net', os.O_RDONLY)\n" + UNSHARE_NET
        await self.check("another network namespace", back, "libc.setns(own, 0)")

    async def test_under_a_seccomp_filter(self) -> None:
        await self.check(
            "more seccomp filters than its system's first process",
            "from tests.inside import add_seccomp_filter; add_seccomp_filter()",
        )

    async def test_gone_under_a_seccomp_filter_after_connecting(self) -> None:
        await self.check(
            "more seccomp filters than its system's first process",
            "from tests.inside import add_seccomp_filter",
            "add_seccomp_filter()",
        )

    async def test_under_a_seccomp_filter_in_a_pid_namespace_of_its_own(self) -> None:
        await self.check(
            "more seccomp filters than its system's first process",
            FORK + "from tests.inside import add_seccomp_filter; add_seccomp_filter()",
            within=("unshare", "-p", "-f"),
        )

    async def test_another_user_that_cannot_be_looked_at(self) -> None:
        def refuse(pid: str) -> tuple[int, int]:
            raise PermissionError(13, "Permission denied")

        self.patch(credentials, "_net_of", refuse)
        await self.check("it can't be told where it runs")


class SystemOfItsOwn(InspectorTestCase):
    """In a container everybody has a filter, process 1 too."""

    @needs_root
    async def test_with_as_many_filters_as_its_process_1_it_is_not_confined(self) -> None:
        who = await self.who(
            "from tests.inside import add_seccomp_filter; add_seccomp_filter()" + FORK, within=("unshare", "-p", "-f")
        )
        self.assertEqual(who.confined, "")

    @needs_root
    async def test_with_one_more_than_its_process_1_it_is_confined(self) -> None:
        who = await self.who(
            "from tests.inside import add_seccomp_filter; add_seccomp_filter()" + FORK + "add_seccomp_filter()",
            within=("unshare", "-p", "-f"),
        )
        self.assertEqual(who.confined, "more seccomp filters than its system's first process")

    @needs_root
    async def test_process_1_itself_is_not_confined(self) -> None:
        who = await self.who(
            "from tests.inside import add_seccomp_filter; add_seccomp_filter()", within=("unshare", "-p", "-f")
        )
        self.assertEqual(who.confined, "")

    @needs_root
    async def test_where_process_1_is_out_of_sight_it_counts_as_confined(self) -> None:
        # Too many ancestors: the walk gives up, and does not guess.
        self.patch(credentials, "_ANCESTORS", 0)
        who = await self.who(
            "from tests.inside import add_seccomp_filter; add_seccomp_filter()" + FORK, within=("unshare", "-p", "-f")
        )
        self.assertEqual(who.confined, "it can't be told where it runs")


class SentByAnother(InspectorTestCase):
    WHY = "not sent by the process that connected"

    async def test_a_child_that_inherited_the_connection(self) -> None:
        client = self.owned(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        child = self.child(
            "import os, sys; os.write(int(sys.argv[1]), b'?'); sys.stdin.read()",
            client.fileno(),
            pass_fds=(client.fileno(),),
        )
        who = self.inspector.who(*await in_thread(self.receive))
        self.assertEqual((who.pid, who.confined, who.same_cgroup), (child.pid, self.WHY, False))

    @needs_root
    async def test_a_caged_child_that_inherited_the_connection(self) -> None:
        who = await self.who("", FORK + UNSHARE_NET)
        self.assertEqual(who.confined, self.WHY)

    def test_parts_of_several_processes(self) -> None:
        client = self.owned(socket.socket(socket.AF_UNIX))
        client.connect(self.path)
        client.sendall(b"?")
        sock, maker, _ = self.receive()
        who = self.inspector.who(sock, maker, None)
        self.assertEqual((who.pid, who.confined), (os.getpid(), self.WHY))


class AnotherUser(InspectorTestCase):
    """Who has come by somebody else's connection is told to make one of his own."""

    async def refused(self, *args: str) -> None:
        self.client(*args)
        received = await in_thread(self.receive)
        with self.assertRaises(Refused) as raised:
            self.inspector.who(*received)
        self.assertIs(raised.exception.word, Refusal.DENIED)
        self.assertIn("make a connection of your own", raised.exception.reason)

    @needs_root
    async def test_a_process_that_has_changed_its_user_since_it_connected(self) -> None:
        await self.refused("from tests.inside import become", "become(12345)")

    @needs_root
    async def test_a_process_that_has_changed_its_group_since_it_connected(self) -> None:
        await self.refused("", "os.setresgid(23456, 23456, 23456)")

    @needs_root
    async def test_a_child_of_another_user_that_inherited_the_connection(self) -> None:
        await self.refused("from tests.inside import become", FORK + "become(12345)")

    @needs_root
    async def test_a_set_uid_program_is_whom_it_acts_as(self) -> None:
        who = await self.who("os.setresgid(23456, 0, 0); os.setresuid(12345, 0, 0)")
        self.assertEqual((who.uid, who.gid, who.confined), (0, 0, ""))


class Gone(InspectorTestCase):
    WHY = "it can't be told where it runs"

    async def test_a_process_that_died(self) -> None:
        child = self.client()
        received = await in_thread(self.receive)
        child.end()
        self.assertEqual(self.inspector.who(*received).confined, self.WHY)

    async def test_a_process_that_died_and_is_not_waited_for(self) -> None:
        child = self.client()
        received = await in_thread(self.receive)
        os.kill(child.pid, signal.SIGKILL)
        await in_thread(os.waitid, os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        self.assertEqual(self.inspector.who(*received).confined, self.WHY)

    async def test_a_process_that_died_while_it_was_looked_at(self) -> None:
        child = self.client()
        received = await in_thread(self.receive)
        original = credentials._filters

        def filters_and_end(status: bytes) -> int:
            child.end()
            return original(status)

        self.patch(credentials, "_filters", filters_and_end)
        self.assertEqual(self.inspector.who(*received).confined, self.WHY)

    async def test_a_process_that_has_become_another_program_is_still_looked_at(self) -> None:
        who = await self.who("", "", "os.set_inheritable(sock.fileno(), True); " + EXEC_CAT)
        self.assertEqual(who.confined, "")


class OldKernel(InspectorTestCase):
    """Without pidfds of peers (Linux 6.5) nothing can be proved, so everybody counts as confined."""

    def setUp(self) -> None:
        super().setUp()

        def refuse(sock: socket.socket) -> int:
            raise OSError(92, "Protocol not available")

        self.patch(credentials, "_peer_pidfd", refuse)

    async def test_everybody_counts_as_confined(self) -> None:
        self.assertEqual((await self.who()).confined, "this kernel has no pidfds of peers")

    def test_the_inspector_tells_that_it_is_so(self) -> None:
        self.assertFalse(Inspector().has_pidfds)
        self.assertTrue(self.inspector.has_pidfds)


class HiddenProcesses(InspectorTestCase):
    """With hidepid a broker that is not root can't look at process 1."""

    def setUp(self) -> None:
        super().setUp()
        read = credentials._read

        def hide(path: str) -> bytes:
            if path == "/proc/1/status":
                raise FileNotFoundError(2, "No such file or directory")
            return read(path)

        self.patch(credentials, "_read", hide)
        self.inspector = Inspector()

    async def test_who_has_no_filter_is_not_confined(self) -> None:
        self.assertEqual((await self.who()).confined, "")

    async def test_who_has_one_counts_as_confined(self) -> None:
        who = await self.who("from tests.inside import add_seccomp_filter; add_seccomp_filter()")
        self.assertEqual(who.confined, "more seccomp filters than its system's first process")


class Small(ChildTestCase):
    def test_a_senders_bytes_are_pid_uid_and_gid(self) -> None:
        self.assertEqual(sender_of(struct.pack("iII", 7, 8, 9)), (7, 8, 9))

    def test_bytes_behind_them_do_not_count(self) -> None:
        self.assertEqual(sender_of(struct.pack("iIII", 7, 8, 9, 10)), (7, 8, 9))

    def test_the_maker_of_a_pair_is_this_process(self) -> None:
        left, _ = self.pair()
        self.assertEqual(maker_of(left), (os.getpid(), os.geteuid(), os.getegid()))

    def test_a_field_that_is_not_there_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            credentials._field(b"Name:\tx\nUid:\t1\n", b"NSpid:")

    def test_a_field_is_not_taken_from_the_middle_of_a_line(self) -> None:
        self.assertEqual(credentials._field(b"Name:\tUid:5\nUid:\t1\n", b"Uid:").strip(), b"1")


UNSHARE_NET = "import ctypes; libc = ctypes.CDLL(None); assert libc.unshare(0x40000000) == 0\n"
EXEC_CAT = f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', 'import time; time.sleep(60)'])"
