"""plumberd.effects.udp_far: a relay's far side on a connected UDP socket."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.effects.messages import MessageEnd, message_pair
from plumberd.effects.poll import Poll
from plumberd.effects.udp import DATAGRAM_BYTES, new_socket
from plumberd.effects.udp_far import UdpFar
from plumberd.pure.datagrams import HEADER_BYTES, Counts, Session
from plumberd.pure.shape import Shape, SocketType
from tests.children import ChildTestCase, needs_root
from tests.datagram_peer import CLOSE, END, Peer
from tests.support import CleanTestCase, in_thread, real_reactor, until

IDENT = b"session!"


class FarTestCase(CleanTestCase):
    with_session = False

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.ended: list[str] = []
        self.large: list[tuple[int, int]] = []
        self.server = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        self.server.bind(("127.0.0.1", 0))
        sock = new_socket(socket.AF_INET)
        sock.connect(self.server.getsockname())
        self.server.connect(sock.getsockname())
        ours, theirs = message_pair(Shape(SocketType.SEQPACKET))
        self.program = self.owned(theirs)
        self.far = UdpFar(self.poll, sock, Session(IDENT) if self.with_session else None)
        near = MessageEnd(ours, "raw")
        self.relay = DatagramRelay(
            self.poll,
            real_reactor,
            near,
            self.far,
            60.0,
            lambda relay: self.ended.append(relay.ending),
            too_large=lambda *told: self.large.append(told),
        )
        self.addCleanup(self.relay.abort)
        self.relay.start()

    async def end(self) -> str:
        await until(lambda: self.ended)
        return self.ended[0]


class Bare(FarTestCase):
    async def test_each_message_is_a_datagram_and_each_datagram_a_message(self) -> None:
        for message in (b"one", bytes(DATAGRAM_BYTES)):
            await in_thread(self.program.send, message)
            self.assertEqual(await in_thread(self.server.recv, 70000), message)
            self.server.send(message)
            self.assertEqual(await in_thread(self.program.recv, 70000), message)
        self.assertEqual(self.relay.counts, Counts(sent=2, received=2))

    async def test_one_that_is_too_long_is_left_out_and_the_others_go(self) -> None:
        for message in (b"one", bytes(DATAGRAM_BYTES + 1), b"two", bytes(DATAGRAM_BYTES + 2)):
            await in_thread(self.program.send, message)
        self.assertEqual([await in_thread(self.server.recv, 9) for _ in range(2)], [b"one", b"two"])
        await until(lambda: self.relay.counts.too_large == 2)
        self.assertEqual(self.large, [(DATAGRAM_BYTES + 1, DATAGRAM_BYTES)])

    async def test_a_program_that_does_not_read_leaves_the_rest_to_the_kernel(self) -> None:
        for number in range(600):
            self.server.send(number.to_bytes(2, "big") + bytes(1000))
        await until(lambda: not self.relay.has_room)
        got = [int.from_bytes((await in_thread(self.program.recv, 2000))[:2], "big") for _ in range(500)]
        self.assertEqual(got, [*range(500)])

    async def test_nobody_there_ends_it(self) -> None:
        self.server.close()
        self.program.send(b"x")
        self.assertEqual(await self.end(), "refused by right: nobody listens there")
        self.assertEqual(await in_thread(self.program.recv, 9), b"")

    async def test_the_end_of_the_program_is_told_to_nobody(self) -> None:
        self.program.close()
        self.assertEqual(await self.end(), "closed")
        self.server.settimeout(0)
        with self.assertRaises((BlockingIOError, ConnectionRefusedError)):
            self.server.recv(9)


class OfASession(FarTestCase):
    with_session = True

    def setUp(self) -> None:
        super().setUp()
        self.peer = Peer(self.server, IDENT)

    async def test_messages_have_the_header_and_are_counted(self) -> None:
        for message in (b"one", b"two"):
            self.program.send(message)
            self.assertEqual(await in_thread(self.peer.receive), message)
            self.peer.send(message)
            self.assertEqual(await in_thread(self.program.recv, 100), message)
        self.server.send(self.peer.datagram(b"late", 7))
        self.server.send(self.peer.datagram(b"late", 7))
        self.assertEqual([await in_thread(self.program.recv, 100) for _ in range(2)], [b"late"] * 2)
        self.assertEqual(self.relay.counts, Counts(sent=2, received=4, lost=5, repeated=1))

    async def test_the_header_counts_for_the_limit(self) -> None:
        self.assertEqual(self.far.limit_bytes, DATAGRAM_BYTES - HEADER_BYTES)
        for size in (DATAGRAM_BYTES, DATAGRAM_BYTES - HEADER_BYTES):
            await in_thread(self.program.send, bytes(size))
        self.assertEqual(await in_thread(self.peer.receive), bytes(DATAGRAM_BYTES - HEADER_BYTES))
        self.assertEqual(self.relay.counts, Counts(sent=1, too_large=1))

    async def test_what_is_of_no_such_session_is_passed_over(self) -> None:
        for datagram in (b"", b"x" * 30, Peer(self.server, b"another!").datagram(b"forged"), b"\2" + bytes(20)):
            self.server.send(datagram)
        self.peer.send(b"true")
        self.assertEqual(await in_thread(self.program.recv, 100), b"true")

    async def test_an_end_either_way_leaves_the_other(self) -> None:
        self.program.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(self.server.recv, 100), END + IDENT + bytes(4))
        self.peer.send(b"answer")
        self.assertEqual(await in_thread(self.program.recv, 100), b"answer")
        self.peer.end()
        self.assertEqual(await in_thread(self.program.recv, 100), b"")
        self.assertEqual(await self.end(), "closed")

    async def test_a_close_is_told_both_ways(self) -> None:
        self.program.send(b"last")
        self.program.close()
        self.assertEqual(await in_thread(self.peer.receive), b"last")
        closing: Any = END + IDENT + struct.pack(">I", 1), CLOSE + IDENT + struct.pack(">I", 1)
        self.assertIn(await in_thread(self.server.recv, 100), closing)
        self.assertEqual(await self.end(), "closed")

    async def test_the_far_side_s_close_ends_it_behind_its_last_message(self) -> None:
        self.peer.send(b"last")
        self.server.send(CLOSE + IDENT + struct.pack(">I", 3))
        self.assertEqual(await in_thread(self.program.recv, 100), b"last")
        self.assertEqual(await in_thread(self.program.recv, 100), b"")
        self.assertEqual((await self.end(), self.relay.counts), ("closed; 2 lost", Counts(received=1, lost=2)))

    async def test_what_an_interface_s_full_queue_does_not_take_is_dropped_and_the_rest_goes(self) -> None:
        send, full = self.far._sender.send, [OSError(errno.ENOBUFS, "No buffer space available")] * 2

        def fails_twice(datagrams: list[bytes]) -> int:
            if full:
                raise full.pop()
            return send(datagrams)

        self.patch(self.far._sender, "send", fails_twice)
        for message in (b"one", b"two"):
            self.program.send(message)
        self.assertEqual(await in_thread(self.peer.receive), b"two")
        self.assertEqual((self.relay.counts, self.ended), (Counts(sent=1, dropped=1), []))

    async def test_that_nobody_listens_is_believed_to_who_quotes_the_session(self) -> None:
        self.server.close()
        self.program.send(b"x")
        self.assertEqual(await self.end(), "refused by right: nobody listens there")

    @needs_root
    async def test_and_not_to_who_has_guessed_the_port(self) -> None:
        here, there = self.server.getpeername(), self.server.getsockname()
        raw = self.owned(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        for payload in (b"", b"\1\6another!" + bytes(4)):
            raw.sendto(unreachable(here, there, payload), (here[0], 0))
            self.server.send(self.peer.datagram(b"behind it", 0))
            self.assertEqual(await in_thread(self.program.recv, 100), b"behind it")
            self.program.send(b"still")
            self.assertEqual(await in_thread(self.peer.receive), b"still")
        self.assertEqual(self.ended, [])
        raw.sendto(unreachable(here, there, b"\1\6" + IDENT + bytes(4)), (here[0], 0))
        self.assertIn("nobody listens there", await self.end())


def unreachable(here: tuple[str, int], there: tuple[str, int], payload: bytes) -> bytes:
    """Return ICMP's word that nobody takes a datagram that was sent from *here*, as anybody can make it up."""

    def summed(data: bytes) -> bytes:
        total = sum(struct.unpack(f">{len(data) // 2}H", data))
        return struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)

    udp = struct.pack(">HHHH", here[1], there[1], 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(here[0]) + socket.inet_aton(there[0])
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + addresses
    icmp = b"\3\3\0\0" + bytes(4) + ip[:10] + summed(ip) + ip[12:] + udp
    return icmp[:2] + summed(icmp) + icmp[4:]


NARROW = """
import os, socket, subprocess, sys, time
from twisted.internet import reactor, task
from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.effects.messages import MessageEnd, message_pair
from plumberd.effects.poll import Poll
from plumberd.effects.udp import limit_of, new_socket
from plumberd.effects.udp_far import UdpFar
from plumberd.pure.shape import Shape, SocketType

def ip(words, pid=None):
    into = ["nsenter", "--target", str(pid), "--net"] if pid else []
    subprocess.run([*into, "ip", *words.split()], check=True)

SLEEP = "import os; print('up', flush=True); os.read(0, 1)"
ECHO = '''
import socket
sock = socket.socket(type=socket.SOCK_DGRAM); sock.bind(("10.2.0.2", 4000)); print("up", flush=True)
while True:
    data, source = sock.recvfrom(9000); sock.sendto(str(len(data)).encode(), source)
'''
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
router, far = (subprocess.Popen(["unshare", "--net", sys.executable, "-c", SLEEP], **pipes) for _ in range(2))
for process in (router, far):
    process.stdout.readline()
ip("link add near type veth peer name left"); ip(f"link set left netns {router.pid}")
ip("link add right type veth peer name far", router.pid); ip(f"link set far netns {far.pid}", router.pid)
ip("addr add 10.1.0.2/24 dev near"); ip("link set near up")
for words in ("addr add 10.1.0.1/24 dev left", "addr add 10.2.0.1/24 dev right", "link set left up"):
    ip(words, router.pid)
ip("link set right mtu 1300 up", router.pid)
inside = ["nsenter", "--net", "--target"]
subprocess.run([*inside, str(router.pid), "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"], check=True)
for words in ("addr add 10.2.0.2/24 dev far", "link set far mtu 1300 up", "route add default via 10.2.0.1"):
    ip(words, far.pid)
ip("route add default via 10.1.0.1")
echo = subprocess.Popen([*inside, str(far.pid), sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
echo.stdout.readline()

sock = new_socket(socket.AF_INET); sock.connect(("10.2.0.2", 4000))
ours, program = message_pair(Shape(SocketType.SEQPACKET))
program.setblocking(False)
poll = Poll(reactor, reactor)
far_side = UdpFar(poll, sock)
told = [("at first", far_side.limit_bytes)]
relay = DatagramRelay(poll, reactor, MessageEnd(ours, "raw"), far_side, 60.0, lambda relay: None,
                      too_large=lambda *large: told.append(("too large", *large)))
relay.start()

def talk(ends):
    if time.monotonic() > ends:
        print("too late", told)
        return reactor.stop()
    try:
        told.append(("came back", int(program.recv(100))))
        print(told, far_side.limit_bytes, relay.counts.too_large)
        return reactor.stop()
    except BlockingIOError:
        pass
    program.send(bytes(1400))  # the first is lost on the way, and ICMP tells why; the next ones are not sent
    program.send(bytes(1272))
    reactor.callLater(0.05, talk, ends)

reactor.callWhenRunning(talk, time.monotonic() + 15)
reactor.run()
relay.abort(); poll.close(); program.close()
for process in (echo, router, far):
    process.kill(); process.wait()
"""


class OnANarrowPath(ChildTestCase):
    @needs_root
    async def test_the_limit_follows_what_icmp_tells(self) -> None:
        child = self.child(NARROW, within=("unshare", "--net"))
        status, said, err = await in_thread(child.finish)
        self.assertEqual(status, 0, err)
        first, *others = said.split("), (")
        self.assertEqual(first, "[('at first', 1472")
        self.assertIn("'too large', 1400, 1272", others)
        self.assertTrue(others[-1].startswith("'came back', 1272)] 1272 "), said)
