"""plumberd.wiring.inbound.inbound_udp: one caller by datagrams, and the service that it reaches."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any
from unittest import mock

from plumberd.effects import datagram_relay
from plumberd.effects.udp import Sender
from plumberd.framing import Message, decode_packet, encode
from plumberd.pure.datagrams import HEADER_BYTES, Session
from plumberd.pure.proxy_header import header
from plumberd.wiring.inbound import inbound_udp
from plumberd.wiring.inbound.inbound_udp import SessionFar, Source
from plumberd.wiring.service import PlumberdService
from tests.support import CleanTestCase, in_thread, no_descriptors, read_all, read_exactly, until
from tests.tables import each
from tests.test_udpd import UdpdTestCase


class Services(UdpdTestCase):
    """How messages look on a service's socket."""

    async def talked(self, far: PlumberdService, message: bytes = b"hello") -> bytes | None:
        peer = await self.call(far)
        peer.send(message)
        answer = await in_thread(peer.receive)
        peer.close()
        await self.wait_until_idle(far)
        return answer

    @each(
        ("by_default", {}, "libipc-zig"),
        ("as_configured", {"pong": "libipc-2023"}, "libipc-2023"),
        ("bare", {"pong": "raw"}, "raw"),
    )
    async def test_on_a_stream(self, _: str, framings: dict[str, str], framing: str) -> None:
        far = self.far("allow in pong udp:any", framings=framings)
        got: list[bytes] = []

        def answer(sock: socket.socket) -> None:
            got.append(read_exactly(sock, len(encode(framing, Message(b"hello")))))
            sock.sendall(encode(framing, Message(b"answer")))
            read_all(sock)

        self.serve(far.settings.rundir, "pong", answer)
        self.assertEqual(await self.talked(far), b"answer")
        self.assertEqual(got, [encode(framing, Message(b"hello"))])

    @each(("by_default", {}, "libipc-2019"), ("bare", {"pong": "raw"}, "raw"))
    async def test_in_packets(self, _: str, framings: dict[str, str], framing: str) -> None:
        far = self.far("allow in pong udp:any", framings=framings)
        listener = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.path.join(far.settings.rundir, "pong"))
        listener.listen()

        def answer(sock: socket.socket) -> None:
            said = decode_packet(framing, sock.recv(100)).payload
            sock.send(encode(framing, Message(said.upper())))
            read_all(sock)

        self.serve_on(listener, answer)
        self.assertEqual(await self.talked(far), b"HELLO")

    async def test_a_service_that_reads_proxy_headers_is_told_who_has_called_by_datagrams(self) -> None:
        far = self.far("allow in pong udp:any", proxied=frozenset(("pong",)))
        got: list[bytes] = []

        def answer(sock: socket.socket) -> None:
            got.append(read_exactly(sock, 16 + 12 + 3 + len("pong")))
            got.append(sock.recv(100))
            sock.sendall(b"answer")
            read_all(sock)

        self.serve(far.settings.rundir, "pong", answer)
        peer = await self.call(far)
        caller, here = (
            (ipaddress.ip_address("127.0.0.1"), name[1]) for name in (peer.sock.getsockname(), peer.sock.getpeername())
        )
        peer.send(b"hello")
        self.assertEqual(await in_thread(peer.receive), b"answer")
        self.assertEqual(got, [header(caller, here, service="pong", datagrams=True), b"hello"])

    async def test_what_makes_no_message_ends_the_session(self) -> None:
        far = self.far("allow in pong udp:any", framings={})
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(b"\xff" * 10) or read_all(sock))
        peer = await self.call(far)
        self.assertIsNone(await in_thread(peer.receive))
        await until(lambda: self.outcomes[-1].verdict == "ended")
        self.assertIn("a message of 4294967295 bytes", self.outcomes[-1].reason)


class Sizes(UdpdTestCase):
    async def test_a_service_s_message_that_does_not_fit_is_left_out_and_counted(self) -> None:
        far = self.far("allow in pong udp:any", framings={})
        assert far.core is not None
        long = 65507
        frames = long.to_bytes(4, "big") + bytes(long) + b"\0\0\0\1x"
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(frames) or read_all(sock))
        peer = await self.call(far)
        self.assertEqual(await in_thread(peer.receive), b"x")
        told = far.core.datagrams.told(far.core.relays)
        self.assertEqual((told["too_large"], told["sent"], told["message_bytes"]), (1, 1, 65493))

    async def test_lost_repeated_and_late_messages_are_counted_and_delivered_as_they_come(self) -> None:
        far = self.far("allow in pong udp:any")
        assert far.core is not None
        self.serve(far.settings.rundir, "pong")
        peer = await self.call(far)
        for number in (0, 3, 3, 1):
            peer.sock.send(peer.datagram(bytes((number,)), number))
            self.assertEqual(await in_thread(peer.receive), bytes((number,)))
        told = far.core.datagrams.told(far.core.relays)
        self.assertEqual(
            (told["received"], told["lost"], told["repeated"], told["reordered"], told["sent"]), (4, 1, 1, 1, 4)
        )
        peer.close()
        await self.wait_until_idle(far)
        self.assertEqual(far.core.datagrams.told(()), {**told, "sessions": 0, "message_bytes": None})

    async def test_without_room_on_the_socket_a_service_waits_and_nothing_of_its_is_lost(self) -> None:
        far = self.far("allow in pong udp:any", framings={})
        frames = b"".join(b"\0\0\0\4" + number.to_bytes(4, "big") for number in range(200))
        send = Sender.send
        refusals = [3]

        def without_room(sender: Sender, datagrams: list[bytes]) -> int:
            if refusals[0] and len(datagrams) > 1:
                refusals[0] -= 1
                sent = send(sender, datagrams[:1])
                sender.blocked = True  # the kernel tells of room at an edge: each datagram that has left is one
                return sent
            return send(sender, datagrams)

        self.patch(Sender, "send", without_room)
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(frames) or read_all(sock))
        peer = await self.call(far)
        got: list[int] = []
        while len(got) < 200:
            message = await in_thread(peer.receive)
            assert message is not None
            got.append(int.from_bytes(message, "big"))
        self.assertEqual((got, refusals), ([*range(200)], [0]))

    async def test_batches_are_turns(self) -> None:
        self.patch(datagram_relay, "A_TURN", 1)
        far = self.far("allow in pong udp:any", framings={})
        frames = b"".join(b"\0\0\0\4" + number.to_bytes(4, "big") for number in range(150))
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(frames) or read_all(sock))
        peer = await self.call(far)
        got = [await in_thread(peer.receive) for _ in range(150)]
        self.assertEqual(got, [number.to_bytes(4, "big") for number in range(150)])


class Limit(CleanTestCase):
    """How long a caller's messages may be."""

    def far_side(self, *address: object) -> SessionFar:
        shared, caller = mock.Mock(), mock.Mock(source=Source(address))
        shared.sender_to.return_value = mock.Mock(blocked=False, send=len)
        far = SessionFar(shared, caller, Session(b"session!"))
        far.relay = mock.Mock()
        return far

    def test_it_is_asked_with_the_interface(self) -> None:
        asked: list[tuple[object, ...]] = []

        def limit_to(address: tuple[object, ...]) -> int:
            asked.append(address)
            return 1000

        self.patch(inbound_udp, "limit_to", limit_to)
        self.assertEqual(self.far_side("fe80::1%near", 9, 0, 7).limit_bytes, 1000 - HEADER_BYTES)
        self.assertEqual(asked, [("fe80::1%near", 9, 0, 7)])

    def test_where_there_were_no_descriptors_it_is_asked_again_for_a_message_that_is_longer(self) -> None:
        with no_descriptors():
            far = self.far_side("127.0.0.1", 9)
            self.assertEqual((far.send([bytes(1000), b"x"]), far.limit_bytes), (2, 512 - HEADER_BYTES))
        relay: Any = far.relay
        relay.too_large.assert_called_once_with(1000, 512 - HEADER_BYTES)
        self.assertEqual((far.send([b"x"]), far.limit_bytes), (1, 512 - HEADER_BYTES))
        self.assertEqual((far.send([bytes(1000)]), far.limit_bytes), (1, 65507 - HEADER_BYTES))
        self.assertEqual((relay.too_large.call_count, far.counts.sent), (1, 3))
