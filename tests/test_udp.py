"""plumberd.effects.udp: nothing is fragmented, the limit is known, and several go out in one call."""

from __future__ import annotations

import errno
import ipaddress
import socket
import subprocess
import sys
from unittest import mock

from plumberd.effects import udp
from plumberd.effects.udp import (
    DATAGRAM_BYTES,
    SEGMENTS,
    IcmpError,
    Sender,
    check_one,
    hear_errors,
    limit_of,
    limit_to,
    new_socket,
    read_error,
    send_buffer,
)
from plumberd.pure.refusals import Refusal, Refused
from tests.children import needs_root
from tests.support import CleanTestCase, until
from tests.tables import each


class UdpTestCase(CleanTestCase):
    def connection(self, host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
        """Return a socket of ours, connected to the second one."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        far = self.owned(socket.socket(family, socket.SOCK_DGRAM))
        far.bind((host, 0))
        near = new_socket(family)
        self.addCleanup(near.close)
        near.connect(far.getsockname())
        return near, far


class Limits(UdpTestCase):
    @each(("127.0.0.1", 65507), ("::1", 65488))
    def test_it_is_what_loopback_takes(self, host: str, limit: int) -> None:
        near, far = self.connection(host)
        self.assertEqual(limit_of(near), limit)
        self.assertEqual(limit_to(far.getsockname()), limit)
        self.assertEqual(near.send(bytes(limit)), limit)
        self.assertEqual(len(far.recv(70000)), limit)
        with self.assertRaises(OSError) as caught:
            near.send(bytes(limit + 1))
        self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    def check_apart(self, script: str, *words: str) -> None:
        """Check what *script* says in a network namespace of its own."""
        said = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", script], capture_output=True, text=True, timeout=20
        )
        self.assertEqual(said.stdout.split(), [*words], said.stderr)

    @needs_root
    def test_on_a_narrower_interface_it_is_smaller_and_nothing_is_fragmented(self) -> None:
        script = (
            "import errno, subprocess; from plumberd.effects.udp import *\n"
            "for words in ('link set lo up mtu 1500', 'addr add 2001:db8::1/128 dev lo'):\n"
            "    subprocess.run(['ip', *words.split()], check=True)\n"
            "print(limit_to(('127.0.0.1', 9)), limit_to(('2001:db8::1', 9, 0, 0)))\n"
            "sock = new_socket(socket.AF_INET); sock.connect(('127.0.0.1', 9)); sock.send(bytes(1472))\n"
            "try: sock.send(bytes(1473))\n"
            "except OSError as e: print(errno.errorcode[e.errno])\n"
        )
        self.check_apart(script, "1472", "1452", "EMSGSIZE")

    @needs_root
    def test_of_a_link_local_address_it_is_its_interface_s(self) -> None:
        script = (
            "import subprocess; from plumberd.effects.udp import *\n"
            "for words in ('link add name near type veth peer name far', 'link set near mtu 1400 up',\n"
            "              'link set far up', 'addr add fe80::1/64 dev near nodad'):\n"
            "    subprocess.run(['ip', *words.split()], check=True)\n"
            "print(limit_to(('fe80::2', 9, 0, socket.if_nametoindex('near'))))\n"
        )
        self.check_apart(script, "1352")

    def test_what_the_kernel_does_not_tell_is_what_every_path_takes(self) -> None:
        with new_socket(socket.AF_INET) as sock:  # connected to nothing
            self.assertEqual(limit_of(sock), 548)
        with new_socket(socket.AF_INET6) as sock:
            self.assertEqual(limit_of(sock), 1232)


class One(UdpTestCase):
    @each(
        ("224.0.0.1",),
        ("ff02::1",),
        ("0.0.0.0",),
        ("::",),
        ("255.255.255.255",),
        ("0.1.2.3",),
        ("64:ff9b::e000:1",),
        ("::ffff:0:0",),
    )
    def test_what_is_not_one_machine_s_address_is_not_possible(self, text: str) -> None:
        with self.assertRaises(Refused) as caught:
            check_one(ipaddress.ip_address(text))
        self.assertEqual(caught.exception.word, Refusal.NOT_POSSIBLE)
        self.assertIn(text, caught.exception.reason)

    @each(("127.0.0.1",), ("192.0.2.255",), ("2001:db8::1",))
    def test_others_are(self, text: str) -> None:
        check_one(ipaddress.ip_address(text))

    def test_an_interface_s_own_broadcast_address_the_kernel_refuses(self) -> None:
        with new_socket(socket.AF_INET) as sock, self.assertRaises(PermissionError):
            sock.connect(("127.255.255.255", 9))


class Errors(UdpTestCase):
    @each(("127.0.0.1",), ("::1",))
    async def test_what_icmp_tells_comes_with_the_datagram_that_it_is_about(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock, gone = new_socket(family), socket.socket(family, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        hear_errors(sock)
        gone.bind((host, 0))
        address = gone.getsockname()
        gone.close()
        sock.sendto(b"is there anybody", address)
        found: list[IcmpError] = []

        def look() -> bool:
            told = read_error(sock)
            found.extend([told] if told is not None else [])
            return bool(found)

        await until(look)
        (told,) = found
        self.assertEqual((told.code, told.address[:2]), (errno.ECONNREFUSED, address[:2]))
        self.assertEqual(told.datagram, b"is there anybody")
        self.assertIsNone(read_error(sock))

    def test_as_much_may_wait_to_be_sent_as_the_kernel_lets_us(self) -> None:
        sock = self.owned(new_socket(socket.AF_INET))
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertGreaterEqual(send_buffer(sock, 4 << 20), before)


class Sent(UdpTestCase):
    @each(
        ("none", []),
        ("one", [b"one"]),
        ("equal", [bytes((number,)) * 100 for number in range(SEGMENTS + 10)]),
        ("a_shorter_last", [b"aaaa", b"bbbb", b"cc"]),
        ("a_shorter_one_between", [b"aaaa", b"bb", b"cccc", b"dddd"]),
        ("longer_and_longer", [b"a", b"bb", b"ccc"]),
        ("empty_ones", [b"", b"a", b"", b"", b"bb", b"bb", b""]),
        ("large", [bytes((number,)) * 30000 for number in range(5)]),
        ("largest", [bytes(DATAGRAM_BYTES)] * 2),
    )
    def test_each_arrives_by_itself_in_order(self, _: str, datagrams: list[bytes]) -> None:
        near, far = self.connection()
        for sender in (Sender(near), Sender(self.owned(socket.socket(type=socket.SOCK_DGRAM)), far.getsockname())):
            done = 0
            while done < len(datagrams):
                done += sender.send(datagrams[done : done + 3])
                got = [far.recv(70000) for _ in range(done - (done - 1) % 3 - 1, done)]
                self.assertEqual(got, datagrams[done - len(got) : done])

    def test_several_of_one_size_are_one_call(self) -> None:
        near, far = self.connection()
        calls = mock.Mock(wraps=near)
        self.assertEqual(Sender(calls).send([b"abc"] * 10 + [b"x"]), 11)
        self.assertEqual([call[0] for call in calls.method_calls], ["sendmsg"])
        self.assertEqual([far.recv(100) for _ in range(11)], [b"abc"] * 10 + [b"x"])

    @each((errno.EINVAL,), (errno.EIO,), (errno.ENOPROTOOPT,))
    def test_where_they_cannot_be_cut_each_goes_by_itself_from_then_on(self, code: int) -> None:
        near, far = self.connection()
        calls = mock.Mock(wraps=near)
        calls.sendmsg.side_effect = OSError(code, "no")
        sender = Sender(calls)
        for _ in range(2):
            self.assertEqual(sender.send([b"abc"] * 3), 3)
        self.assertEqual([call[0] for call in calls.method_calls], ["sendmsg", *["send"] * 6])
        self.assertEqual([far.recv(100) for _ in range(6)], [b"abc"] * 6)

    def test_one_that_is_too_long_is_told_when_it_is_the_first(self) -> None:
        near, _ = self.connection()
        sender, long = Sender(near), bytes(DATAGRAM_BYTES + 1)
        self.assertEqual(sender.send([b"a", long, b"b"]), 1)
        self.assertFalse(sender.blocked)
        with self.assertRaises(OSError) as caught:
            sender.send([long, b"b"])
        self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    def test_without_room_it_tells_how_many_went(self) -> None:
        full = mock.Mock()
        full.send.side_effect = [1, BlockingIOError]
        sender = Sender(full)
        self.assertEqual(sender.send([b"a", b"bb"]), 1)
        self.assertTrue(sender.blocked)
        full.send.side_effect = [2]
        self.assertEqual(sender.send([b"bb"]), 1)
        self.assertFalse(sender.blocked)

    def test_a_socket_without_the_right_to_more_takes_what_it_gets(self) -> None:
        sock = mock.Mock(family=socket.AF_INET)
        sock.setsockopt.side_effect = [None, PermissionError, None]
        udp.prepare(sock, 1 << 20)
        self.assertEqual(sock.setsockopt.call_args.args, (socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20))
