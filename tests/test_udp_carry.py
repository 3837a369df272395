"""plumberd.wiring.dialing.udp_carry: a client's messages to any UDP server, and how the client's end looks."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from plumberd.framing import Message, decode_packet, encode
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.wiring.service import PlumberdService
from tests.datagram_peer import take
from tests.ports import free_port
from tests.running import RunningTestCase
from tests.support import (
    dialled,
    in_thread,
    native_ask,
    native_frame,
    native_lookup,
    read_exactly,
    until,
    zig_lookup,
)
from tests.tables import each
from tests.test_generations import libipc_2019_lookup


class CarryTestCase(RunningTestCase):
    def serve_udp(self, answer: Callable[[bytes], bytes | None] = lambda data: data, host: str = "127.0.0.1") -> int:
        """Run a UDP server of anybody's; return its port."""
        sock = self.owned(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind((host, 0))
        sock.settimeout(None)
        port: int = sock.getsockname()[1]

        def serve() -> None:
            while True:
                data, address = sock.recvfrom(70000)
                if data == b"stop":
                    return
                said = answer(data)
                if said is not None:
                    sock.sendto(said, address)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()

        async def stop() -> None:
            sock.sendto(b"stop", (host, port))
            await in_thread(thread.join)

        self.addCleanup(stop)
        return port

    async def connected(self, broker: PlumberdService, uri: str, **more: Any) -> tuple[dict[str, Any], socket.socket]:
        """Look *uri* up, which is granted."""
        answer, sock = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=uri, **more)
        assert sock is not None, answer
        return answer, self.owned(sock)


class AnyServer(CarryTestCase):
    @each(("stream", socket.SOCK_STREAM), ("seqpacket", socket.SOCK_SEQPACKET), ("dgram", socket.SOCK_DGRAM))
    async def test_a_native_client_has_its_messages_in_the_type_that_it_asks_for(self, kind: str, type_: int) -> None:
        broker = self.run_broker()
        answer, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}", type=kind)
        self.assertEqual((answer["mode"], answer["message_bytes"], sock.type), ("relayed", 65507, type_))
        for message in (b"one", b"another", os.urandom(1400)):
            sock.send(message)
            self.assertEqual(await in_thread(sock.recv, 65536), message)

    async def test_over_ipv6(self) -> None:
        broker = self.run_broker()
        _, sock = await self.connected(broker, f"udp://[::1]:{self.serve_udp(host='::1')}", type="seqpacket")
        sock.send(b"hello")
        self.assertEqual(await in_thread(sock.recv, 100), b"hello")

    async def test_answers_that_come_together_are_single_reads_on_a_stream(self) -> None:
        broker = self.run_broker()
        port = self.serve_udp(lambda data: b"answer " + data)
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{port}", type="seqpacket")
        _, stream = await self.connected(broker, f"udp://127.0.0.1:{port}")
        for number in range(5):
            sock.send(b"%d" % number)
        self.assertEqual(
            [await in_thread(sock.recv, 100) for _ in range(5)], [b"answer %d" % number for number in range(5)]
        )
        for number in range(5):
            stream.send(b"%d" % number)  # those that are read together are one message
        got = [await in_thread(stream.recv, 100)]
        while sum(len(part) - len(b"answer ") for part in got) < 5:
            got.append(await in_thread(stream.recv, 100))
        self.assertEqual(b"".join(part.removeprefix(b"answer ") for part in got), b"01234")

    @each(("libipc-zig",), ("libipc-2023",))
    async def test_the_uri_may_say_how_a_stream_s_messages_look(self, framing: str) -> None:
        broker = self.run_broker()
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}?framing={framing}")
        sock.sendall(b"".join(encode(framing, Message(message)) for message in (b"a", b"", b"bc")))
        wanted = b"".join(encode(framing, Message(message)) for message in (b"a", b"", b"bc"))
        self.assertEqual(await in_thread(read_exactly, sock, len(wanted)), wanted)

    async def test_the_current_generation_s_client_has_its_own(self) -> None:
        broker = self.run_broker()
        text = f"dns;dns udp://127.0.0.1:{self.serve_udp(bytes.upper)}".encode()
        said, sock = await in_thread(zig_lookup, broker.settings.rundir, text)
        assert sock is not None, said
        self.owned(sock).sendall(b"\0\0\0\5hello")
        self.assertEqual(await in_thread(read_exactly, sock, 9), b"\0\0\0\5HELLO")

    async def test_the_oldest_generation_s_client_has_its_own(self) -> None:
        broker = self.run_broker()
        text = f"dns;dns udp://127.0.0.1:{self.serve_udp(bytes.upper)}".encode()
        packet, sock = await in_thread(libipc_2019_lookup, broker.settings.rundir, text)
        assert sock is not None, packet
        self.owned(sock).send(encode("libipc-2019", Message(b"hello", 7)))
        self.assertEqual(decode_packet("libipc-2019", await in_thread(sock.recv, 100)), Message(b"HELLO"))

    async def test_a_service_s_configured_framing_is_its_client_s(self) -> None:
        broker = self.run_broker(framings={"dns": "libipc-zig"})
        routes = f"dns udp://127.0.0.1:{self.serve_udp()}"
        _, sock = await in_thread(native_lookup, broker.settings.rundir, "dns", routes)
        assert sock is not None
        self.owned(sock).sendall(b"\0\0\0\1x")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"\0\0\0\1x")

    async def test_framed_it_is_written_message_by_message(self) -> None:
        broker = self.run_broker("allow out any udp:any handover=framed")
        port = self.serve_udp()
        answer, sock = await self.connected(broker, f"udp://127.0.0.1:{port}?framing=libipc-zig")
        self.assertEqual(answer["mode"], "framed")
        sock.sendall(b"\0\0\0\1a\0\0\0\1b")
        self.assertEqual([await in_thread(sock.recv, 100) for _ in range(2)], [b"\0\0\0\1a", b"\0\0\0\1b"])

    @each(("locked", Mode.LOCKED), ("direct", Mode.DIRECT))
    async def test_a_udp_socket_is_never_handed_over(self, word: str, mode: Mode) -> None:
        broker = self.run_broker(handover=mode)
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri="udp://127.0.0.1:9")
        self.assertEqual(answer["error"], "not-possible")
        self.assertIn(f"handover={word}: udp carries it", answer["reason"])


class Refused(CarryTestCase):
    @each(
        ("multicast", "224.0.0.1"),
        ("multicast6", "[ff02::1]"),
        ("broadcast", "255.255.255.255"),
        ("unspecified", "0.0.0.0"),
    )
    async def test_many_machines_are_not_possible_though_a_rule_names_them(self, what: str, host: str) -> None:
        broker = self.run_broker(f"allow out any udp:{host}")
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=f"udp://{host}:9/pong")
        self.assertEqual(answer["error"], "not-possible")
        self.assertIn("single machines alone", answer["reason"], what)

    async def test_a_network_s_broadcast_address_is_unreachable(self) -> None:
        broker = self.run_broker()
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri="udp://127.255.255.255:9")
        self.assertEqual((answer["error"], "Permission denied" in answer["reason"]), ("unreachable", True))

    async def test_the_rules_decide_by_scheme(self) -> None:
        broker = self.run_broker("deny out any udp:any")
        port = self.serve_udp()
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=f"udp://127.0.0.1:{port}")
        self.assertEqual(answer["error"], "denied")

    async def test_a_silent_far_side_is_a_timeout(self) -> None:
        broker = self.run_broker(limits=Limits(connect_seconds=0.3))
        port = self.serve_udp(lambda data: None)
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=f"udp://127.0.0.1:{port}/pong")
        self.assertEqual(answer["error"], "timeout")
        await self.wait_until_idle(broker)

    async def test_a_client_that_hangs_up_while_the_far_side_is_silent_leaves_nothing(self) -> None:
        broker = self.run_broker()
        asked: list[bytes] = []
        port = self.serve_udp(lambda data: asked.append(data))
        for kind in ("stream", "seqpacket", "dgram"):
            with dialled(broker.settings.rundir, "plumberd") as sock:
                uri = f"udp://127.0.0.1:{port}/pong"
                sock.sendall(native_frame({"op": "lookup", "uri": uri, "type": kind}))
                asked.clear()
                await until(lambda: asked)
            await self.wait_until_idle(broker)
        self.assertEqual({outcome.verdict for outcome in self.outcomes}, {"gone"})

    async def test_what_is_denied_by_now_is_refused_though_the_far_side_has_let_it_in(self) -> None:
        broker = self.run_broker()
        sock = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        uri = f"udp://127.0.0.1:{sock.getsockname()[1]}/pong"
        looking = in_thread(native_ask, broker.settings.rundir, op="lookup", uri=uri, type="seqpacket")
        await until(lambda: broker.core and broker.core.relay_places.active)
        self.put_in_force(broker, "deny out any udp:any")
        peer, _ = await in_thread(take, sock)
        assert peer is not None
        answer, got = await looking
        self.assertEqual((answer["error"], got), ("denied", None))
        self.assertIsNone(await in_thread(peer.receive))  # a close: the client's end was closed
        await self.wait_until_idle(broker)

    async def test_one_too_many_is_busy(self) -> None:
        broker = self.run_broker(limits=Limits(relays=1))
        uri = f"udp://127.0.0.1:{self.serve_udp()}"
        _, sock = await self.connected(broker, uri, type="seqpacket")
        answer, _ = await in_thread(native_ask, broker.settings.rundir, op="lookup", uri=uri)
        self.assertEqual((answer["error"], "relays=1" in answer["reason"]), ("busy", True))
        sock.close()
        await self.wait_until_idle(broker)
        _, sock = await self.connected(broker, uri, type="seqpacket")

    async def test_a_login_does_not_go_in_the_clear(self) -> None:
        broker = self.run_broker()
        answer, _ = await in_thread(
            native_ask, broker.settings.rundir, op="lookup", uri="udp://carol:secret@127.0.0.1:9/pong"
        )
        self.assertEqual(answer["error"], "bad-request")
        self.assertNotIn("secret", answer["reason"])


class Ended(CarryTestCase):
    async def test_the_log_tells_both_and_nothing_is_left(self) -> None:
        broker = self.run_broker()
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}", type="seqpacket")
        sock.send(b"hello")
        self.assertEqual(await in_thread(sock.recv, 100), b"hello")
        sock.close()
        await self.wait_until_idle(broker)
        granted, ended = self.outcomes
        self.assertEqual((granted.verdict, ended.verdict), ("granted", "ended"))
        self.assertEqual((ended.up, ended.down, ended.reason), (5, 5, "closed"))

    async def test_idle_it_ends(self) -> None:
        broker = self.run_broker(limits=Limits(datagram_idle_seconds=0.2))
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}", type="seqpacket")
        self.assertEqual(await in_thread(sock.recv, 100), b"")
        self.assertEqual(self.outcomes[-1].reason, "idle for 0.2 seconds")

    @each(("seqpacket",), ("stream",))
    async def test_nobody_there_is_the_end(self, kind: str) -> None:
        broker = self.run_broker()
        port = free_port()
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{port}", type=kind)
        sock.send(b"x")
        self.assertEqual(await in_thread(sock.recv, 100), b"")
        await until(lambda: self.outcomes[-1].verdict == "ended")
        self.assertIn("nobody listens there", self.outcomes[-1].reason)

    async def test_a_packet_that_is_too_long_is_refused_by_the_kernel_itself(self) -> None:
        broker = self.run_broker()
        answer, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}", type="seqpacket")
        longest = os.urandom(answer["message_bytes"])
        await in_thread(sock.send, longest)
        self.assertEqual(await in_thread(sock.recv, 70000), longest)
        with self.assertRaises(OSError) as caught:
            sock.send(bytes(answer["message_bytes"] + 2))
        self.assertEqual(caught.exception.errno, errno.EMSGSIZE)

    async def test_on_a_stream_it_is_counted_and_logged(self) -> None:
        broker = self.run_broker()
        assert broker.core is not None
        _, sock = await self.connected(broker, f"udp://127.0.0.1:{self.serve_udp()}?framing=libipc-zig")
        length = 65508
        await in_thread(sock.sendall, length.to_bytes(4, "big") + bytes(length) + b"\0\0\0\1x")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"\0\0\0\1x")
        told = broker.core.datagrams.told(broker.core.relays)
        self.assertEqual((told["too_large"], told["sent"], told["message_bytes"]), (1, 1, 65507))
