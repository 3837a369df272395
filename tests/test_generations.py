"""Every generation of clients with every kind of local service, and over two brokers."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from plumberd.effects.pumps import PACKET_BYTES
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase
from tests.support import (
    DEADLINE_SECONDS,
    in_thread,
    libipc_2023_lookup,
    native_lookup,
    read_exactly,
    take_socket,
    until,
    zig_lookup,
)

WITH_2020 = ("native", "libipc-2019", "libipc-2020", "libipc-zig")
"""libipc-2020 in the place of libipc-2023."""

HEADER = struct.Struct(">BIB")


def old_message(payload: bytes) -> bytes:
    """A data message of the older generations."""
    return HEADER.pack(2, len(payload), 42) + payload


def zig_message(payload: bytes) -> bytes:
    """A message of the current generation."""
    return struct.pack(">I", len(payload)) + payload


def dial_packets(rundir: str, name: str) -> socket.socket:
    """Connect to a socket for packets in the run directory."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(DEADLINE_SECONDS)
    sock.connect(os.path.join(rundir, name))
    return sock


def libipc_2019_lookup(rundir: str, text: bytes) -> tuple[bytes, socket.socket | None]:
    """Look up as the oldest generation does: one packet, and one packet back with the descriptor."""
    with dial_packets(rundir, "network-0-0") as sock:
        sock.send(HEADER.pack(3, len(text), 3) + text)
        data, fds, _, _ = socket.recv_fds(sock, 100, 1)
        return data, take_socket(fds)


def libipc_2020_lookup(rundir: str, text: bytes) -> tuple[bytes, socket.socket | None]:
    """Look up as 0.7.2 does: a packet with ok, then a packet with the descriptor."""
    with dial_packets(rundir, "network") as sock:
        sock.send(HEADER.pack(3, len(text), 3) + text)
        data = sock.recv(2_000_000)
        if data[6:] != b"ok":
            return data, None
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        return data, take_socket(fds)


def native(rundir: str, text: bytes) -> tuple[bytes, socket.socket | None]:
    service, _, routes = text.decode().partition(";")
    answer, sock = native_lookup(rundir, service, routes or None)
    return str(answer).encode(), sock


CLIENTS: dict[str, Callable[[str, bytes], tuple[bytes, socket.socket | None]]] = {
    "libipc-2019": libipc_2019_lookup,
    "libipc-2020": libipc_2020_lookup,
    "libipc-2023": libipc_2023_lookup,
    "libipc-zig": zig_lookup,
    "native": native,
}
SERVICES = {
    "libipc-2019": ("-0-0", socket.SOCK_SEQPACKET),
    "libipc-2020": ("", socket.SOCK_SEQPACKET),
    "libipc-2023": ("", socket.SOCK_STREAM),
    "libipc-zig": ("", socket.SOCK_STREAM),
}


def dialects_for(client: str) -> tuple[str, ...]:
    """The dialects that a broker for *client* speaks."""
    return WITH_2020 if client == "libipc-2020" else ("native", "libipc-2019", "libipc-2023", "libipc-zig")


class GenerationsTestCase(RunningTestCase):
    def serve_generation(self, rundir: str, name: str, generation: str) -> None:
        """Run a service of *generation* that bounces each message."""
        suffix, kind = SERVICES[generation]
        listener = self.owned(socket.socket(socket.AF_UNIX, kind))
        listener.bind(os.path.join(rundir, name + suffix))
        listener.listen(16)
        self.serve_on(listener, bounce_packets if kind == socket.SOCK_SEQPACKET else bounce_stream)

    async def look_up(self, client: str, service: PlumberdService, text: bytes) -> socket.socket:
        told, sock = await in_thread(CLIENTS[client], service.settings.rundir, text)
        self.assertIsNotNone(sock, told)
        assert sock is not None
        kind = socket.SOCK_SEQPACKET if client in ("libipc-2019", "libipc-2020") else socket.SOCK_STREAM
        self.assertEqual(sock.type, kind)
        return self.owned(sock)

    async def check_messages(self, client: str, sock: socket.socket) -> None:
        """Two messages sent together, and a large one, come back one by one."""
        make = zig_message if client == "libipc-zig" else old_message
        large = random.Random(5).randbytes(150_000)
        messages = [make(b"hello"), make(b""), make(b"bounce me\0"), make(large)]

        def talk() -> list[bytes]:
            if sock.type == socket.SOCK_SEQPACKET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                for message in messages:
                    sock.send(message)
                return [sock.recv(2_000_000) for _ in messages]
            sending = threading.Thread(target=sock.sendall, args=(b"".join(messages),))
            sending.start()
            back = [read_exactly(sock, len(message)) for message in messages]
            sending.join()
            return back

        self.assertTrue(await in_thread(talk) == messages)


class Local(GenerationsTestCase):
    """Methods are made below: every client with every service on one machine."""

    async def check(self, client: str, generation: str) -> None:
        service = self.run_broker(dialects=dialects_for(client))
        self.serve_generation(service.settings.rundir, "pong", generation)
        sock = await self.look_up(client, service, b"pong")
        await self.check_messages(client, sock)
        same = (sock.type == socket.SOCK_SEQPACKET) == (SERVICES[generation][1] == socket.SOCK_SEQPACKET)
        self.assertEqual(self.outcomes[0].mode, "local" if same else "relayed")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(sock.recv, 100), b"")
        sock.close()
        await self.wait_until_idle(service)


class Far(GenerationsTestCase):
    """Methods are made below: every client with every service, over two brokers."""

    async def check(self, client: str, generation: str) -> None:
        far = self.run_broker("allow in pong any", tcpd=("tcp:0:interface=127.0.0.1",))
        near = self.run_broker(dialects=dialects_for(client))
        self.serve_generation(far.settings.rundir, "pong", generation)
        sock = await self.look_up(client, near, f"pong;pong tcp://127.0.0.1:{self.tcpd_port(far)}/pong".encode())
        await self.check_messages(client, sock)
        sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)


def fits(client: str, generation: str) -> bool:
    """The formats of a message are the same, or nobody cuts the stream by the wrong one."""
    packets = SERVICES[generation][1] == socket.SOCK_SEQPACKET
    return not (client == "libipc-zig" and packets)


for _client in CLIENTS:
    for _generation in SERVICES:
        if not fits(_client, _generation):
            continue
        for _case in (Local, Far):

            async def _test(self: Any, client: str = _client, generation: str = _generation) -> None:
                await self.check(client, generation)

            _name = f"test_{_client}_client_with_{_generation}_service".replace("-", "_")
            setattr(_case, _name, _test)


class Translation(GenerationsTestCase):
    async def test_a_refused_client_of_2019_is_hung_up_on_without_a_word(self) -> None:
        service = self.run_broker(dialects=("libipc-2019",))

        def ask() -> bytes:
            with dial_packets(service.settings.rundir, "network-0-0") as sock:
                sock.send(HEADER.pack(3, 4, 3) + b"nope")
                return sock.recv(100)

        self.assertEqual(await in_thread(ask), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["unknown-service"])

    async def test_a_refused_client_of_2020_is_told_in_a_packet(self) -> None:
        service = self.run_broker(dialects=WITH_2020)
        told, sock = await in_thread(libipc_2020_lookup, service.settings.rundir, b"nope")
        self.assertIsNone(sock)
        self.assertTrue(told[6:].startswith(b"unknown-service: "))
        self.assertTrue(told.endswith(b"\0"))

    async def test_packets_that_are_no_lookup_are_refused(self) -> None:
        service = self.run_broker(dialects=("libipc-2019", "native"))
        for packet in (b"x", HEADER.pack(3, 9, 3) + b"pong", HEADER.pack(2, 4, 3) + b"pong", b"\3" * 70_000):

            def ask(packet: bytes = packet) -> bytes:
                with dial_packets(service.settings.rundir, "network-0-0") as sock:
                    sock.send(packet)
                    return sock.recv(100)

            self.assertEqual(await in_thread(ask), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["bad-request"] * 4)

    async def test_a_frame_that_cannot_fit_closes_the_connection_with_an_event(self) -> None:
        service = self.run_broker()
        port = self.serve_tcp(lambda sock: (sock.sendall(HEADER.pack(2, PACKET_BYTES + 1, 0)), sock.recv(1)))
        sock = await self.look_up("libipc-2019", service, f"x;x tcp://127.0.0.1:{port}".encode())
        self.assertEqual(await in_thread(sock.recv, 100), b"")
        await until(lambda: self.outcomes[-1].verdict == "ended")
        self.assertIn(str(PACKET_BYTES + 1), self.outcomes[-1].reason)

    async def test_raw_makes_one_packet_of_one_read(self) -> None:
        service = self.run_broker()
        port = self.serve_tcp(lambda sock: (sock.sendall(b"no header at all"), sock.recv(1)))
        sock = await self.look_up("libipc-2019", service, f"x;x tcp://127.0.0.1:{port}?framing=raw".encode())
        self.assertEqual(await in_thread(sock.recv, 100), b"no header at all")

    async def test_a_stream_that_ends_within_a_message_is_an_error(self) -> None:
        service = self.run_broker()
        port = self.serve_tcp(lambda sock: sock.sendall(HEADER.pack(2, 100, 0) + b"half"))
        sock = await self.look_up("libipc-2019", service, f"x;x tcp://127.0.0.1:{port}".encode())
        self.assertEqual(await in_thread(sock.recv, 100), b"")
        await until(lambda: self.outcomes[-1].verdict == "ended")
        self.assertIn("middle of a message", self.outcomes[-1].reason)

    async def test_packets_cannot_be_locked(self) -> None:
        service = self.run_broker("allow out any any handover=locked")
        port = self.serve_tcp()
        told, sock = await in_thread(
            libipc_2019_lookup, service.settings.rundir, f"x;x tcp://127.0.0.1:{port}".encode()
        )
        self.assertIsNone(sock)
        self.assertEqual(self.outcomes[0].verdict, "not-possible")

    async def test_a_slow_reader_of_packets_loses_nothing(self) -> None:
        service = self.run_broker()
        messages = [old_message(random.Random(n).randbytes(40_000)) for n in range(300)]

        def push(sock: socket.socket) -> None:
            sock.sendall(b"".join(messages))

        port = self.serve_tcp(push)
        sock = await self.look_up("libipc-2019", service, f"x;x tcp://127.0.0.1:{port}".encode())
        got = await in_thread(lambda: [sock.recv(2_000_000) for _ in messages])
        self.assertTrue(got == messages)
        self.assertEqual(await in_thread(sock.recv, 10), b"")


class Framed(GenerationsTestCase):
    """handover=framed: one whole message a write, the next when the last was taken."""

    async def test_one_read_takes_one_message(self) -> None:
        service = self.run_broker("allow out any any handover=framed")
        for client, make in (("libipc-zig", zig_message), ("libipc-2023", old_message)):
            # The kernel shows a reader that waits already no more than 36,544 bytes of a write at once.
            messages = [make(b"first"), make(b"second"), make(b"x" * 30_000), make(b"last")]
            port = self.serve_tcp(lambda sock, data=b"".join(messages): (sock.sendall(data), sock.recv(1)))
            sock = await self.look_up(client, service, f"x;x tcp://127.0.0.1:{port}".encode())
            self.assertEqual(self.outcomes[-1].mode, "framed")

            def read(sock: socket.socket = sock, count: int = len(messages)) -> list[bytes]:
                return [sock.recv(2_000_000) for _ in range(count)]

            self.assertTrue(await in_thread(read) == messages)
            sock.close()

    async def test_what_the_client_sends_is_carried_as_it_is(self) -> None:
        service = self.run_broker("allow out any any handover=framed")
        self.serve(service.settings.rundir, "pong")
        sock = await self.look_up("libipc-zig", service, b"pong")
        self.assertEqual(self.outcomes[-1].mode, "framed")
        sock.sendall(zig_message(b"a") + zig_message(b"b"))
        self.assertEqual(await in_thread(sock.recv, 100), zig_message(b"a"))
        self.assertEqual(await in_thread(sock.recv, 100), zig_message(b"b"))

    async def test_it_is_not_for_clients_that_have_packets(self) -> None:
        service = self.run_broker("allow out any any handover=framed")
        self.serve(service.settings.rundir, "pong")
        _, sock = await in_thread(libipc_2019_lookup, service.settings.rundir, b"pong")
        self.assertIsNone(sock)
        self.assertEqual(self.outcomes[0].verdict, "not-possible")


def bounce_stream(sock: socket.socket) -> None:
    """Send everything back."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def bounce_packets(sock: socket.socket) -> None:
    """Send every packet back as one packet."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    while data := sock.recv(2_000_000):
        sock.send(data)
    sock.shutdown(socket.SHUT_WR)
