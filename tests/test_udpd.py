"""plumberd.wiring.inbound.udpd: the socket that all callers share, and strangers, for whom nothing is kept."""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import os
import random
import socket
import struct
import threading
import time
from typing import Any

from plumberd.pure.datagram_door import COOKIE_SECONDS, Door
from plumberd.pure.datagrams import PADDED_BYTES
from plumberd.pure.limits import Limits
from plumberd.wiring.inbound import udpd
from plumberd.wiring.inbound.tcpd import ListenError, Wanted, wanted_by
from plumberd.wiring.inbound.udpd import UdpListening
from plumberd.wiring.service import PlumberdService
from tests.children import needs_root
from tests.datagram_peer import CLOSE, HELLO, NO, OK, OPEN, No, Peer, asked, call, connected, cookie_for
from tests.running import RunningTestCase
from tests.support import in_thread, native_ask, native_lookup, read_all, real_reactor, until
from tests.tables import each

LISTEN = "udp:0:interface=127.0.0.1"


class UdpdTestCase(RunningTestCase):
    """A broker that takes datagrams, and whoever sends them."""

    def far(self, *rules: str, **settings: Any) -> PlumberdService:
        """Start a broker that callers reach, whose services have messages without headers."""
        settings.setdefault("udpd", (LISTEN,))
        settings.setdefault("framings", {"pong": "raw"})
        return self.run_broker(*rules, **settings)

    def listening(self, service: PlumberdService) -> UdpListening:
        """Return where it listens for datagrams."""
        assert service.tcpd is not None
        (found,) = service.tcpd.datagram_ports
        return found

    def uri(self, service: PlumberdService, name: str = "pong", query: str = "") -> str:
        """Return the URI of a service behind it."""
        return f"udp://127.0.0.1:{self.listening(service).port}/{name}{query}"

    async def look_up(
        self, near: PlumberdService, uri: str, kind: str = "seqpacket"
    ) -> tuple[dict[str, Any], socket.socket]:
        """Return the answer and the connection, which have to be there."""
        answer, sock = await in_thread(native_ask, near.settings.rundir, op="lookup", uri=uri, type=kind)
        assert sock is not None, answer
        return answer, self.owned(sock)

    async def call(self, service: PlumberdService, name: bytes = b"pong") -> Peer:
        """Return a session, by an implementation of its own."""
        peer = await in_thread(call, "127.0.0.1", self.listening(service).port, name)
        self.addCleanup(peer.sock.close)
        return peer

    def connected(self, service: PlumberdService) -> socket.socket:
        """Return a socket of a stranger's."""
        return self.owned(connected("127.0.0.1", self.listening(service).port))


class Carried(UdpdTestCase):
    async def test_between_two_brokers_messages_go_both_ways_and_the_end_is_passed_on(self) -> None:
        far, near = self.far("allow in pong udp:any"), self.run_broker()
        self.serve(far.settings.rundir, "pong")
        answer, sock = await self.look_up(near, self.uri(far))
        self.assertEqual((answer["mode"], answer["message_bytes"]), ("relayed", 65493))
        for message in (b"one", b"another", os.urandom(1400)):
            sock.send(message)
            self.assertEqual(await in_thread(sock.recv, 65536), message)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"")
        sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)
        told = {(o.verdict, o.direction): (o.up, o.down) for o in self.outcomes}
        self.assertEqual(told["ended", "in"], (1410, 1410))
        self.assertEqual(told["ended", "out"], (1410, 1410))

    async def test_another_implementation_is_understood(self) -> None:
        far = self.far("allow in pong udp:127.0.0.1")
        self.serve(far.settings.rundir, "pong")
        peer = await self.call(far)
        for message in (b"one", b"two"):
            peer.send(message)
            self.assertEqual(await in_thread(peer.receive), message)
        peer.end()
        self.assertIsNone(await in_thread(peer.receive))
        await self.wait_until_idle(far)

    async def test_over_ipv6_and_on_all_addresses(self) -> None:
        for listen, host in (("udp:0:interface=\\:\\:1", "::1"), ("udp:0:interface=\\:\\:", "::1")):
            far = self.far("allow in pong udp:[::1]", udpd=(listen,))
            self.serve(far.settings.rundir, "pong")
            peer = await in_thread(call, host, self.listening(far).port, b"pong")
            self.addCleanup(peer.sock.close)
            peer.send(b"hello")
            self.assertEqual(await in_thread(peer.receive), b"hello")
            peer.close()
            await self.wait_until_idle(far)

    async def test_on_all_addresses_the_answer_comes_from_the_one_that_was_asked(self) -> None:
        far = self.far("allow in pong udp:any", udpd=("udp:0:interface=0.0.0.0",))
        self.serve(far.settings.rundir, "pong")
        peer = await in_thread(call, "127.1.2.3", self.listening(far).port, b"pong")  # a connected socket
        self.addCleanup(peer.sock.close)
        for _ in range(3):
            peer.send(b"hello")
            self.assertEqual(await in_thread(peer.receive), b"hello")
        peer.close()
        await self.wait_until_idle(far)

    async def test_two_from_one_address_have_their_own(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        peers = [await self.call(far) for _ in range(2)]
        for number, peer in enumerate(peers):
            peer.send(bytes((number,)))
        self.assertEqual([await in_thread(peer.receive) for peer in peers], [b"\0", b"\1"])
        self.assertEqual(self.listening(far).sessions, 2)

    async def test_a_large_burst_arrives_in_order_over_loopback(self) -> None:
        far, near = self.far("allow in pong udp:any", framings={"pong": "libipc-zig"}), self.run_broker()
        self.serve(far.settings.rundir, "pong")
        _, sock = await self.look_up(near, self.uri(far, query="?framing=libipc-zig"), "stream")
        messages = [os.urandom(random.randrange(1, 1400)) for _ in range(2000)]
        data = b"".join(len(message).to_bytes(4, "big") + message for message in messages)

        def talk() -> bytes:
            got = b""
            for at in range(0, len(data), 20000):
                sock.sendall(data[at : at + 20000])
                while len(got) < at:
                    got += sock.recv(65536)
            while len(got) < len(data):
                got += sock.recv(65536)
            return got

        self.assertTrue(await in_thread(talk) == data)


class Gone(UdpdTestCase):
    """A service that sends and sends, to a caller who may not be there."""

    PUSHED = 0.01

    def pushing(self, **settings: Any) -> PlumberdService:
        """Start a broker whose service does nothing else."""
        far = self.far("allow in pong udp:any", **settings)
        server = self.owned(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        server.bind(os.path.join(far.settings.rundir, "pong"))
        server.listen()

        def push() -> None:
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                while True:
                    sock.send(b"news")
                    time.sleep(self.PUSHED)

        thread = threading.Thread(target=push)
        thread.start()
        self.addCleanup(in_thread, thread.join)
        return far

    async def test_one_whose_socket_is_gone_has_no_session_any_more(self) -> None:
        far = self.pushing()
        peer = await self.call(far)
        self.assertEqual(await in_thread(peer.receive), b"news")
        peer.sock.close()
        await self.wait_until_idle(far)
        self.assertIn("the caller is gone: nobody listens there", self.outcomes[-1].reason)

    async def test_one_who_says_nothing_for_too_long_is_given_up(self) -> None:
        far = self.pushing(limits=Limits(datagram_idle_seconds=0.3))
        peer = await self.call(far)
        before = real_reactor.seconds()
        while await in_thread(peer.receive) is not None:
            self.assertLess(real_reactor.seconds() - before, 10)
        await self.wait_until_idle(far)
        self.assertIn("idle for 0.3 seconds", self.outcomes[-1].reason)

    async def test_one_who_says_to_be_here_is_not(self) -> None:
        far = self.pushing(limits=Limits(datagram_idle_seconds=1.0))
        peer = await self.call(far)
        before = real_reactor.seconds()
        while real_reactor.seconds() - before < 2.5:
            peer.here()
            self.assertEqual(await in_thread(peer.receive), b"news")
        peer.close()
        await self.wait_until_idle(far)

    async def test_a_near_broker_says_it_for_a_client_that_listens_alone(self) -> None:
        limits = Limits(datagram_idle_seconds=1.0)
        far, near = self.pushing(limits=limits), self.run_broker(limits=limits)
        _, sock = await self.look_up(near, self.uri(far))
        before = real_reactor.seconds()
        while real_reactor.seconds() - before < 2.5:
            self.assertEqual(await in_thread(sock.recv, 100), b"news")
        sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)

    async def test_data_that_waits_leaves_room_for_handshakes(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        peer, listening = await self.call(far), self.listening(far)
        at_most, listening._data_bytes = listening._data_bytes, 0  # as if it was full
        peer.send(b"hello")
        await until(lambda: listening._waiting)
        another = await self.call(far)
        listening._data_bytes = at_most
        self.assertEqual(await in_thread(peer.receive), b"hello")
        for one in (peer, another):
            one.close()
        await self.wait_until_idle(far)


class LetIn(UdpdTestCase):
    """Who is, and who is told what."""

    async def test_every_refusal_is_the_same(self) -> None:
        far = self.far("allow in pong udp:127.0.0.1", "allow in gone udp:any")
        for name in (b"ping", b"gone", b"plumberd", b"../x", b"\xff"):
            with self.assertRaises(No) as caught:
                await self.call(far, name)
            self.assertEqual(str(caught.exception), "denied", name)
        await self.wait_until_idle(far)
        self.assertEqual(self.listening(far).openings, 0)
        self.assertEqual(
            [o.verdict for o in self.outcomes],
            ["denied", "unknown-service", "denied", "bad-request", "bad-request"],
        )

    async def test_a_refusal_takes_its_time(self) -> None:
        far = self.far()
        before = real_reactor.seconds()
        with self.assertRaises(No):
            await self.call(far)
        self.assertGreaterEqual(real_reactor.seconds() - before, 0.045)

    async def test_the_near_broker_tells_its_client(self) -> None:
        far, near = self.far(), self.run_broker()
        answer, _ = await in_thread(native_ask, near.settings.rundir, op="lookup", uri=self.uri(far))
        self.assertEqual((answer["error"], answer["reason"]), ("denied", "the far side refused: denied"))

    async def test_an_open_that_is_said_again_has_the_same_session(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        sock, nonce = self.connected(far), os.urandom(8)
        cookie = await in_thread(cookie_for, sock, nonce, b"pong")
        answers = []
        for _ in range(3):
            sock.send(asked(OPEN, nonce, b"pong", cookie))
            answers.append(await in_thread(sock.recv, 100))
        self.assertEqual(len(set(answers)), 1)
        self.assertEqual((self.listening(far).sessions, self.listening(far).openings), (1, 1))

    async def test_one_that_is_said_again_behind_its_end_is_no_other(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        for name, first in ((b"pong", OK), (b"ping", NO)):
            sock, nonce = self.connected(far), os.urandom(8)
            cookie = await in_thread(cookie_for, sock, nonce, name)
            sock.send(asked(OPEN, nonce, name, cookie))
            answer = await in_thread(sock.recv, 200)
            self.assertEqual(answer[:2], first)
            if first == OK:
                sock.send(CLOSE + answer[10:18] + bytes(4))
            await self.wait_until_idle(far)
            before = len(self.outcomes)
            for _ in range(3):
                sock.send(asked(OPEN, nonce, name, cookie))
                self.assertEqual(await in_thread(sock.recv, 200), answer)
                if first == OK:
                    self.assertEqual((await in_thread(sock.recv, 200))[:10], CLOSE + answer[10:18])
            self.assertEqual(self.listening(far).openings, 0)
            self.assertEqual(len(self.outcomes), before)

    async def test_it_is_answered_on_a_listener_that_lets_nobody_in_any_more(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        sock, nonce = self.connected(far), os.urandom(8)
        cookie = await in_thread(cookie_for, sock, nonce, b"pong")
        other = await in_thread(cookie_for, sock, b"another.", b"pong")
        sock.send(asked(OPEN, nonce, b"pong", cookie))
        answer = await in_thread(sock.recv, 100)
        listening = self.listening(far)
        listening.stop()
        sock.send(asked(OPEN, b"another.", b"pong", other))
        sock.send(asked(OPEN, nonce, b"pong", cookie))
        self.assertEqual(await in_thread(sock.recv, 100), answer)
        self.assertEqual(listening.openings, 1)
        sock.send(CLOSE + answer[10:18] + bytes(4))
        await until(lambda: listening.is_closed)

    async def test_a_turn_ends_with_so_many_openings(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        listening, sock = self.listening(far), self.connected(far)
        nonces = [os.urandom(8) for _ in range(udpd.OPENINGS + 3)]
        cookies = [await in_thread(cookie_for, sock, nonce, b"pong") for nonce in nonces]
        for nonce, cookie in zip(nonces, cookies, strict=True):  # the reactor does not turn meanwhile
            sock.send(asked(OPEN, nonce, b"pong", cookie))
        self.assertFalse(listening._read_one({}))
        self.assertEqual(listening.openings, udpd.OPENINGS)
        listening._read()
        self.assertEqual(listening.openings, len(nonces))
        await until(lambda: listening.sessions == len(nonces))
        for _ in nonces:
            sock.send(CLOSE + (await in_thread(sock.recv, 100))[10:18] + bytes(4))
        await self.wait_until_idle(far)

    async def test_the_log_tells_of_too_many_handshakes_once_a_second(self) -> None:
        far = self.far(limits=Limits(handshakes_per_address=1))
        sock = self.connected(far)
        nonces = [os.urandom(8) for _ in range(60)]
        cookies = [await in_thread(cookie_for, sock, nonce, b"pong") for nonce in nonces]
        for nonce, cookie in zip(nonces, cookies, strict=True):
            sock.send(asked(OPEN, nonce, b"pong", cookie))
        await in_thread(sock.recv, 200)
        await self.wait_until_idle(far)
        told = [o for o in self.outcomes if o.verdict == "busy"]
        self.assertIn(len(told), (1, 2))
        self.assertIn("handshakes_per_address=1", told[0].reason)

    async def test_handshakes_and_relays_are_limited_by_address(self) -> None:
        far = self.far("allow in pong udp:any", limits=Limits(relays_per_peer=1))
        self.serve(far.settings.rundir, "pong")
        peer = await self.call(far)
        with self.assertRaises(No):
            await self.call(far)
        self.assertIn("relays_per_peer=1", self.outcomes[-1].reason)
        peer.close()
        await self.wait_until_idle(far)
        await self.call(far)

    async def test_a_claimed_service_is_handed_its_end(self) -> None:
        from plumberd import client

        far = self.far("allow in pong udp:any", "allow serve pong")
        serving = await in_thread(client.serve, "pong", rundir=far.settings.rundir)
        begun = in_thread(next, iter(serving))
        await until(lambda: far.core and list(far.core.registrations))
        peer = await self.call(far)
        sock, told = await begun
        self.owned(sock)
        peer.send(b"hello")
        self.assertEqual(await in_thread(sock.recv, 100), b"hello")
        self.assertEqual(told["peer"]["scheme"], "udp")
        await in_thread(serving.close)

    async def test_the_way_on_may_be_udp_or_tcp(self) -> None:
        from plumberd.pure.policy.route import Routes, parse_route
        from tests.running import leading

        far = self.far("allow in pong any", tcpd=("tcp:0:interface=127.0.0.1",))
        self.serve(far.settings.rundir, "pong")
        for target in (self.uri(far), f"tcp://127.0.0.1:{self.tcpd_port(far)}/pong"):
            scheme = target.partition(":")[0]
            gateway = self.far(
                "allow in pong any",
                f"allow out pong {scheme}:127.0.0.1:{target.split(':')[2].partition('/')[0]}",
                routes=Routes({}, leading(pong=parse_route("pong", target))),
            )
            peer = await self.call(gateway)
            for message in (b"one", b"two"):
                peer.send(message)
                self.assertEqual(await in_thread(peer.receive), message, target)
            peer.close()
            await self.wait_until_idle(gateway)
            await self.wait_until_idle(far)

    async def test_messages_go_from_udp_to_a_websocket_and_back_again(self) -> None:
        from plumberd.pure.policy.route import Routes, parse_route
        from plumberd.wiring.config.settings import WebListener
        from tests.running import leading

        web = (WebListener("tcp:0:interface=127.0.0.1"),)

        def routes(target: str) -> Routes:
            return Routes({}, leading(pong=parse_route("pong", target)))

        far = self.far("allow in pong any", webipcd=web, framings={"pong": "libipc-zig"})
        self.serve(far.settings.rundir, "pong")
        ws, udp = self.tcpd_port(far), self.listening(far).port
        there = routes(f"ws://127.0.0.1:{ws}/pong")
        first = self.far("allow in pong any", f"allow out pong ws:127.0.0.1:{ws}", routes=there)
        back = (f"allow out pong udp:127.0.0.1:{udp}", "allow in pong any")
        second = self.far(*back, webipcd=web, routes=routes(f"udp://127.0.0.1:{udp}/pong"))
        peer = await self.call(first)
        near = self.run_broker()
        _, sock = await self.look_up(near, f"ws://127.0.0.1:{self.tcpd_port(second)}/pong")
        for message in (b"one", b"two", os.urandom(1300)):
            peer.send(message)
            self.assertEqual(await in_thread(peer.receive), message)
            sock.send(message)
            self.assertEqual(await in_thread(sock.recv, 65536), message)

    async def test_a_tcp_caller_may_be_led_on_by_udp(self) -> None:
        from plumberd.pure.policy.route import Routes, parse_route
        from tests.running import leading

        far = self.far("allow in pong any", framings={"pong": "libipc-zig"})
        self.serve(far.settings.rundir, "pong")
        gateway = self.run_broker(
            "allow in pong any",
            f"allow out pong udp:127.0.0.1:{self.listening(far).port}",
            tcpd=("tcp:0:interface=127.0.0.1",),
            routes=Routes({}, leading(pong=parse_route("pong", self.uri(far)))),
        )

        def talk() -> bytes:
            with socket.create_connection(("127.0.0.1", self.tcpd_port(gateway)), 10) as sock:
                sock.sendall(b"pong")
                self.assertEqual(sock.recv(2), b"ok")
                sock.sendall(b"\0\0\0\5hello")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        self.assertEqual(await in_thread(talk), b"\0\0\0\5hello")
        await self.wait_until_idle(gateway)
        await self.wait_until_idle(far)


class Strangers(UdpdTestCase):
    """Nothing is kept for them, no answer is longer than its request, and no session takes what is theirs."""

    @needs_root
    async def test_a_hundred_thousand_spoofed_requests_leave_nothing_and_stop_nobody(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        listening, callers = self.listening(far), far.tcpd.callers if far.tcpd else None
        assert callers is not None
        asked_of_door = [0]
        receive = Door.receive

        def counting(door: Door, *args: Any) -> Any:
            asked_of_door[0] += 1
            return receive(door, *args)

        self.patch(Door, "receive", counting)
        raw = self.owned(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        raw.settimeout(None)
        wanted, sent = 100_000, 0
        rng = random.Random(1)
        gc.collect()
        objects = len(gc.get_objects())
        lookups = 0
        while sent < wanted:
            burst = [spoofed(rng, listening.port, OPEN if number % 2 else HELLO) for number in range(1000)]
            sending = in_thread(send_all, raw, burst, ("127.0.0.1", 0))
            if sent % 20_000 == 0:  # somebody else has their turn meanwhile
                answer, sock = await in_thread(native_lookup, far.settings.rundir, "pong")
                assert sock is not None, answer
                sock.close()
                lookups += 1
            await sending
            sent += len(burst)
            await until(lambda: asked_of_door[0] >= sent)  # noqa: B023
        gc.collect()
        self.assertEqual((listening.openings, listening.sessions, lookups), (0, 0, 5))
        self.assertEqual((len(callers.peers), callers.handshakes.active), (0, 0))
        self.assertEqual(len(far.core.relays if far.core else (1,)), 0)
        self.assertLess(len(gc.get_objects()) - objects, 2000)

    # Four seconds on an idle machine.
    test_a_hundred_thousand_spoofed_requests_leave_nothing_and_stop_nobody.timeout = 120.0  # type: ignore[attr-defined]

    async def test_no_answer_is_longer_than_its_request(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        sock, nonce = self.connected(far), os.urandom(8)
        cookie = await in_thread(cookie_for, sock, nonce, b"pong")
        stranger = Peer(sock, os.urandom(8))
        requests = [
            asked(HELLO, nonce, b"pong"),
            asked(OPEN, nonce, b"pong", cookie),
            asked(OPEN, os.urandom(8), b"ping", os.urandom(20)),
            b"\2" + asked(HELLO, nonce, b"pong")[1:],
            b"\2\3" + nonce.ljust(300),
            stranger.datagram(b""),
            stranger.datagram(b"x" * 100),
            b"\1\7" + os.urandom(12),
        ]
        answered = 0
        for request in requests:  # each from a place of its own, so that no late answer is taken for another's
            caller = sock if cookie in request else self.connected(far)
            caller.send(request)
            caller.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                self.assertLessEqual(len(await in_thread(caller.recv, 65536)), len(request), request)
                answered += 1
        self.assertGreater(answered, 5)

    @each(
        ("shorter_than_padded", asked(HELLO, b"nonce...", b"pong")[: PADDED_BYTES - 1]),
        ("a_bad_cookie", asked(OPEN, b"nonce...", b"pong", bytes(20))),
        ("a_close", b"\1\10" + bytes(12)),
        ("an_ok", b"\1\4" + bytes(16)),
        ("a_no", b"\1\5" + bytes(200)),
        ("empty", b""),
        ("zeros", bytes(200)),
        ("another_version_s_data", b"\2\6" + bytes(200)),
    )
    async def test_what_is_no_request_is_not_answered(self, _: str, datagram: bytes) -> None:
        far = self.far("allow in pong udp:any")
        sock = self.connected(far)
        sock.send(datagram)
        sock.send(asked(HELLO, b"behind..", b"pong"))  # is answered, and nothing before it was
        self.assertEqual((await in_thread(sock.recv, 100))[2:10], b"behind..")

    async def test_garbage_beside_a_session_and_in_it_is_survived(self) -> None:
        """Whatever comes, nothing fails (trial sees what is logged), and who is there is served."""
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        peer, stranger, rng = await self.call(far), self.connected(far), random.Random(2)
        cookie = await in_thread(cookie_for, stranger, b"nonce...", b"pong")
        seeds = [
            asked(HELLO, b"nonce...", b"pong"),
            asked(OPEN, b"nonce...", b"ping", cookie),
            peer.datagram(b"x", 0),
            b"\1\7" + peer.session + bytes(4),
        ]
        for number in range(1500):
            garbage = bytearray(rng.choice(seeds) if number % 3 else rng.randbytes(rng.randrange(200)))
            for _ in range(rng.randrange(4)):
                if garbage:
                    garbage[rng.randrange(len(garbage))] = rng.randrange(256)
            # Of its own session anything but its end; from elsewhere anything.
            is_end = bytes(garbage[:10]) in (b"\1\7" + peer.session, b"\1\10" + peer.session)
            (stranger if is_end or number % 2 else peer.sock).send(garbage[: rng.choice((None, 13, 40))])
            if number % 100 == 0:
                await in_thread(lambda: None)
        peer.sent = 1 << 31
        peer.send(b"still there")
        while not (came := await in_thread(peer.sock.recv, 65536)).endswith(b"still there"):
            self.assertLess(len(came), 128)  # cookies, closes of sessions that are none, and echoes
        self.assertEqual(came[:10], b"\1\6" + peer.session)

    async def test_data_from_elsewhere_does_not_enter_a_session(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        peer = await self.call(far)
        stranger = self.connected(far)
        for datagram in (
            peer.datagram(b"another port"),
            b"\1\7" + peer.session + bytes(4),
            b"\1\10" + peer.session + bytes(4),
        ):
            stranger.send(datagram)
        peer.sock.send(Peer(peer.sock, os.urandom(8)).datagram(b"another session"))
        peer.send(b"true")
        said = []
        while (message := await in_thread(peer.sock.recv, 100))[:2] != b"\1\6":
            said.append(message[:2])
        self.assertEqual((message[14:], said), (b"true", [b"\1\10"]))  # the close of the session that is none
        self.assertEqual(self.listening(far).sessions, 1)

    async def test_a_cookie_that_comes_back_too_late_or_from_elsewhere_opens_nothing(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        sock, nonce = self.connected(far), os.urandom(8)
        cookie = await in_thread(cookie_for, sock, nonce, b"pong")
        elsewhere = self.connected(far)
        elsewhere.send(asked(OPEN, nonce, b"pong", cookie))
        later = real_reactor.seconds() + COOKIE_SECONDS + 1
        self.patch(far.core.reactor if far.core else None, "seconds", lambda: later)
        sock.send(asked(OPEN, nonce, b"pong", cookie))
        for one in (sock, elsewhere):
            one.send(asked(HELLO, b"behind..", b"pong"))
            self.assertEqual((await in_thread(one.recv, 100))[:2], b"\1\2")
        self.assertEqual((self.listening(far).openings, self.outcomes), (0, []))

    @needs_root
    async def test_what_was_sent_to_everybody_is_not_answered(self) -> None:
        far = self.far("allow in pong udp:any", udpd=("udp:0:interface=0.0.0.0",))
        sock = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.bind(("127.0.0.1", 0))
        port = self.listening(far).port
        sock.sendto(asked(HELLO, b"to all..", b"pong"), ("127.255.255.255", port))
        sock.sendto(asked(HELLO, b"behind..", b"pong"), ("127.0.0.1", port))
        self.assertEqual((await in_thread(sock.recv, 100))[2:10], b"behind..")


class Lived(UdpdTestCase):
    """How sessions and listeners end."""

    async def test_idle_it_ends_on_both_sides_and_the_far_one_is_told(self) -> None:
        far = self.far("allow in pong udp:any", limits=Limits(datagram_idle_seconds=0.2))
        self.serve(far.settings.rundir, "pong")
        peer = await self.call(far)
        self.assertIsNone(await in_thread(peer.receive))
        await self.wait_until_idle(far)
        self.assertEqual(self.outcomes[-1].reason, "idle for 0.2 seconds")
        peer.send(b"too late")
        self.assertIsNone(await in_thread(peer.receive))  # a close again, for there is no such session

    async def test_a_service_that_goes_ends_it(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(b"bye"))
        peer = await self.call(far)
        self.assertEqual(await in_thread(peer.receive), b"bye")
        self.assertIsNone(await in_thread(peer.receive))
        await self.wait_until_idle(far)
        self.assertEqual((self.listening(far).openings, self.listening(far).sessions), (0, 0))

    async def test_a_listener_that_is_not_wanted_lets_nobody_in_and_its_sessions_go_on(self) -> None:
        far = self.far("allow in pong udp:any")
        assert far.tcpd is not None
        self.serve(far.settings.rundir, "pong")
        peer, listening, stranger = await self.call(far), self.listening(far), self.connected(far)
        wanted = wanted_by(far.settings)
        far.tcpd.listen_on([], lambda *_: None)
        stranger.send(asked(HELLO, b"nonce...", b"pong"))
        peer.send(b"still")
        self.assertEqual(await in_thread(peer.receive), b"still")
        stranger.settimeout(0)
        with self.assertRaises(BlockingIOError):
            stranger.recv(100)
        far.tcpd.listen_on(wanted, lambda *_: None)  # the same once more, whose port is still taken
        self.assertIs(self.listening(far), listening)
        await self.call(far)
        far.tcpd.listen_on([], lambda *_: None)
        self.assertFalse(listening.is_closed)
        for session in list(far.core.relays if far.core else ()):
            session.abort()
        self.assertTrue(listening.is_closed)

    async def test_a_port_that_is_taken_is_a_mistake_and_all_stays_as_it_was(self) -> None:
        far = self.far()
        assert far.tcpd is not None
        taken = Wanted(f"udp:{self.listening(far).port}:interface=127.0.0.1", datagrams=True)
        with self.assertRaises(ListenError) as caught:
            far.tcpd.listen_on([*wanted_by(far.settings), taken], lambda *_: None)
        self.assertIn(f"--udpd {taken.description}: Address already in use", str(caught.exception))
        self.assertEqual(far.tcpd.addresses, [f"udpd on 127.0.0.1:{self.listening(far).port}"])

    async def test_it_is_known_where_it_listens(self) -> None:
        far = self.far(udpd=("udp:0:interface=0.0.0.0",))
        listening = self.listening(far)
        for text, here in (("127.0.0.1", True), ("192.0.2.77", False), ("::1", False)):
            self.assertEqual(listening.is_here(ipaddress.ip_address(text), listening.port), here, text)
        self.assertFalse(listening.is_here(ipaddress.ip_address("127.0.0.1"), 1))

    async def test_keys_are_changed(self) -> None:
        far = self.far()
        made: list[bytes] = []
        change = Door.change_key

        def note(door: Door, key: bytes, now: float) -> None:
            made.append(key)
            change(door, key, now)

        self.patch(Door, "change_key", note)
        self.patch(Door, "wants_key", lambda door, now: True)
        sock = self.connected(far)
        await in_thread(cookie_for, sock, b"nonce...", b"pong")
        await in_thread(cookie_for, sock, b"nonce...", b"pong")
        self.assertEqual([len(key) for key in made], [32, 32])
        self.assertNotEqual(*made)

    async def test_a_flood_takes_turns(self) -> None:
        far = self.far()
        self.patch(udpd, "A_TURN", 2)
        sock = self.connected(far)
        for _ in range(7):
            sock.send(asked(HELLO, b"nonce...", b"pong"))
        self.assertEqual({len(await in_thread(sock.recv, 100)) for _ in range(7)}, {30})


class Parts(UdpdTestCase):
    """With udpd in a process of its own, the broker gives it the client's pair to carry."""

    async def test_a_broker_has_its_clients_messages_carried(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        broker = self.run_broker(parts=frozenset(("broker",)))
        daemon = self.run_broker(rundir=broker.settings.rundir, parts=frozenset(("udpd",)))
        for kind in ("seqpacket", "stream", "dgram"):
            answer, sock = await self.look_up(broker, self.uri(far), kind)
            self.assertEqual(answer["mode"], "relayed")
            for message in (b"one", b"another"):
                sock.send(message)
                self.assertEqual(await in_thread(sock.recv, 65536), message)
            sock.close()
            self.assertEqual(len(broker.core.relays if broker.core else (1,)), 0)
            if kind != "dgram":
                await self.wait_until_idle(daemon)
                await self.wait_until_idle(far)

    async def test_how_long_messages_may_be_is_told_and_the_kernel_refuses_longer_ones(self) -> None:
        far = self.far("allow in pong udp:any")
        self.serve(far.settings.rundir, "pong")
        broker = self.run_broker(parts=frozenset(("broker",)))
        self.run_broker(rundir=broker.settings.rundir, parts=frozenset(("udpd",)))
        for kind in ("seqpacket", "dgram"):
            answer, sock = await self.look_up(broker, self.uri(far), kind)
            limit = answer["message_bytes"]
            self.assertEqual(limit, 65493)
            longest = random.Random(kind).randbytes(limit)
            sock.send(longest)
            self.assertTrue(await in_thread(sock.recv, 70000) == longest)
            with self.assertRaises(OSError) as caught:
                sock.send(bytes(limit + 2))  # where it is odd the kernel rounds it up
            self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    async def test_its_refusals_are_the_client_s(self) -> None:
        far = self.far()
        broker = self.run_broker(parts=frozenset(("broker",)))
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=self.uri(far))
        self.assertEqual(answer["error"], "unreachable")
        daemon = self.run_broker(rundir=broker.settings.rundir, parts=frozenset(("udpd",)))
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=self.uri(far))
        self.assertEqual(answer["error"], "denied")
        await self.wait_until_idle(broker)
        await self.wait_until_idle(daemon)


def spoofed(rng: random.Random, port: int, kind: bytes) -> bytes:
    """Return an IP packet from any address of 127/8, with a hello or an open that no cookie was made for."""
    cookie = rng.randbytes(20) if kind == OPEN else b""
    payload = asked(kind, rng.randbytes(8), b"pong", cookie)
    source = 127 << 24 | rng.randrange(1, 1 << 24)
    udp = struct.pack(">HHHH", rng.randrange(1024, 65535), port, 8 + len(payload), 0) + payload
    return struct.pack(">BBHHHBBHI4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, source, b"\x7f\0\0\1") + udp


def send_all(sock: socket.socket, packets: list[bytes], to: tuple[str, int]) -> None:
    """Send every one."""
    for packet in packets:
        sock.sendto(packet, to)
