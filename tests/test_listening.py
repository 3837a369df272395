"""plumberd.wiring.inbound.listening: what --tcpd takes, and raw sockets behind Twisted's ports."""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import Any

from twisted.internet import endpoints
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from plumberd.wiring.inbound.listening import (
    BACKLOG,
    EndpointError,
    full_datagram_description,
    full_description,
    is_plain,
    parse_datagram_description,
    raw_socket,
)
from tests.support import CleanTestCase, in_thread, real_reactor
from tests.tables import each

server_from_string: Any = endpoints.serverFromString


class ForDatagrams(SynchronousTestCase):
    """What --udpd takes."""

    @each(
        ("9000", "udp:9000:interface=127.0.0.1", ("127.0.0.1", 9000)),
        ("localhost:9000", "udp:9000:interface=127.0.0.1", ("127.0.0.1", 9000)),
        ("0.0.0.0:9000", "udp:9000:interface=0.0.0.0", ("0.0.0.0", 9000)),
        ("[2001:DB8:0::1]:9000", r"udp:9000:interface=2001\:db8\:\:1", ("2001:db8::1", 9000)),
        ("udp:0", "udp:0:interface=127.0.0.1", ("127.0.0.1", 0)),
        ("udp:9000:interface=192.0.2.1", "udp:9000:interface=192.0.2.1", ("192.0.2.1", 9000)),
        (r"udp:9000:interface=\:\:", r"udp:9000:interface=\:\:", ("::", 9000)),
    )
    def test_every_form_becomes_the_whole_one_and_that_is_read(
        self, text: str, wanted: str, place: tuple[str, int]
    ) -> None:
        self.assertEqual(full_datagram_description(text), wanted)
        self.assertEqual(full_datagram_description(wanted), wanted)
        self.assertEqual(parse_datagram_description(wanted), place)

    @each(
        ("", "wanted PORT, HOST:PORT or udp:PORT:interface=ADDRESS"),
        ("tcp:9000", "wanted PORT, HOST:PORT or udp:PORT:interface=ADDRESS"),
        ("tcp:9000:interface=127.0.0.1", "wanted PORT"),
        ("unix:/tmp/x", "wanted PORT"),
        ("udp:", "wanted PORT"),
        ("udp:9000:mode=1", "wanted PORT"),
        ("0", "port 0 is not within 1 to 65535"),
        ("65536", "port 65536 is not within 1 to 65535"),
        ("udp:65536", "port 65536 is not within 1 to 65535"),
        ("a.example:9000", "'a.example' is no address to listen on"),
        ("udp:9000:interface=a.example", "'a.example' is no address to listen on"),
        ("224.0.0.1:9000", "224.0.0.1 is a multicast address"),
    )
    def test_anything_else_is_refused_with_what_would_be_accepted(self, text: str, reason: str) -> None:
        with self.assertRaises(EndpointError) as caught:
            full_datagram_description(text)
        self.assertIn(reason, str(caught.exception))


class Accepted(SynchronousTestCase):
    @each(
        ("9000", "tcp:9000:interface=127.0.0.1"),
        ("1", "tcp:1:interface=127.0.0.1"),
        ("65535", "tcp:65535:interface=127.0.0.1"),
        ("localhost:9000", "tcp:9000:interface=127.0.0.1"),
        ("192.0.2.1:9000", "tcp:9000:interface=192.0.2.1"),
        ("0.0.0.0:9000", "tcp:9000:interface=0.0.0.0"),
        ("[::1]:9000", r"tcp6:9000:interface=\:\:1"),
        ("[2001:DB8:0::1]:9000", r"tcp6:9000:interface=2001\:db8\:\:1"),
        ("[::]:9000", r"tcp6:9000:interface=\:\:"),
    )
    def test_a_short_form_becomes_an_endpoint_string(self, text: str, wanted: str) -> None:
        self.assertEqual(full_description(text), wanted)
        server_from_string(Clock(), wanted)

    @each(
        ("tcp:9000",),
        ("tcp:0",),
        ("tcp:65535:interface=127.0.0.1",),
        ("tcp:port=9000:interface=127.0.0.1:backlog=100000",),
        (r"tcp6:9000:interface=\:\:1",),
        (r"tcp6:9000:interface=2001\:db8\:\:9999",),
        ("unix:/run/x",),
        ("unix:99999",),
        ("haproxy:tcp:9000:interface=127.0.0.1",),
        ("haproxy:unix:/run/99999",),
    )
    def test_an_endpoint_string_stays_as_it_is(self, text: str) -> None:
        self.assertEqual(full_description(text), text)


class Refused(SynchronousTestCase):
    @each(
        ("", "''"),
        ("0", "port 0 is not within 1 to 65535"),
        ("65536", "port 65536 is not within"),
        ("99999999", "port 99999999 is not within"),
        ("localhost:0", "port 0 is not within"),
        ("192.0.2.1:65536", "port 65536 is not within"),
        ("[::1]:99999999", "port 99999999 is not within"),
        ("tcp:65536", "port 65536 is not within"),
        ("tcp:99999999:interface=127.0.0.1", "port 99999999 is not within"),
        ("tcp:port=99999999", "port 99999999 is not within"),
        ("tcp6:99999999", "port 99999999 is not within"),
        ("haproxy:tcp:99999999", "port 99999999 is not within"),
        ("-1", "'-1'"),
        ("9000 ", "'9000 '"),
        ("9000\n", "9000"),
        ("٩٠٠٠", "٩٠٠٠"),
        ("example.com:9000", "'example.com' is no address to listen on"),
        ("1.2.3:9000", "'1.2.3' is no address to listen on"),
        ("999.0.0.1:9000", "'999.0.0.1' is no address to listen on"),
        ("[::1", "'[::1'"),
        ("[::g]:9000", "'[::g]:9000'"),
        ("[127.0.0.1.5]:9000", "is no address to listen on"),
        ("::1:9000", "'::1:9000'"),
        ("myhost:9000", "'myhost:9000'"),
        ("*:9000", "'*:9000'"),
        ("tcp:http-and-more", "'tcp:http-and-more'"),
        ("tcp", "'tcp'"),
        ("tcp:9000:nonsense=1", "'tcp:9000:nonsense=1'"),
        ("ssl:9000:privateKey=/nonexistent/key", "/nonexistent/key"),
    )
    def test_anything_else_is_refused_with_what_would_be_accepted(self, text: str, reason: str) -> None:
        with self.assertRaises(EndpointError) as raised:
            full_description(text)
        message = str(raised.exception)
        self.assertIn(reason, message)
        self.assertIn("wanted PORT, HOST:PORT or a Twisted server endpoint string", message)
        self.assertEqual(message.count("\n"), 0)


class Plain(SynchronousTestCase):
    @each(
        ("tcp:9000", True),
        (r"tcp6:9000:interface=\:\:1", True),
        ("unix:/run/x", True),
        ("systemd:domain=INET:index=0", True),
        ("ssl:443:privateKey=x", False),
        ("haproxy:tcp:9000", False),
        ("tcpish:9000", False),
    )
    def test_endpoints_whose_ports_have_a_socket_of_their_own_are_known(self, text: str, wanted: bool) -> None:
        self.assertEqual(is_plain(text), wanted)


class RawSocket(CleanTestCase):
    """The port owns the socket, and this code accepts from it."""

    async def listen(self, description: str) -> tuple[Any, list[Protocol]]:
        made: list[Protocol] = []

        class Note(Protocol):
            def connectionMade(self) -> None:
                made.append(self)

        port = await server_from_string(real_reactor, description).listen(Factory.forProtocol(Note))
        self.addCleanup(port.stopListening)
        return port, made

    async def check(self, description: str, family: int) -> None:
        port, made = await self.listen(description)
        sock = raw_socket(port)
        client = self.owned(socket.socket(family))
        await in_thread(client.connect, sock.getsockname())
        await in_thread(lambda: None)  # the reactor had its turns, and took nothing
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        self.assertEqual(len(await in_thread(poll.poll, 10_000)), 1)
        accepted = self.owned(sock.accept()[0])
        accepted.sendall(b"x")
        self.assertEqual(await in_thread(client.recv, 1), b"x")
        self.assertEqual(made, [])

    async def test_over_ipv4(self) -> None:
        await self.check("tcp:0:interface=127.0.0.1", socket.AF_INET)

    async def test_over_ipv6(self) -> None:
        await self.check(r"tcp6:0:interface=\:\:1", socket.AF_INET6)

    async def test_over_unix(self) -> None:
        await self.check("unix:" + os.path.join(self.folder(), "s"), socket.AF_UNIX)

    async def test_its_backlog_is_longer_than_twisteds(self) -> None:
        port, _ = await self.listen("tcp:0:interface=127.0.0.1")
        sock = raw_socket(port)
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as most:
            wanted = min(BACKLOG, int(most.read()))
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        (backlog,) = struct.unpack_from("I", info, 28)  # tcpi_sacked: of a listener, its backlog
        self.assertEqual(backlog, wanted)

    async def test_stopping_the_port_closes_it(self) -> None:
        port, _ = await self.listen("tcp:0:interface=127.0.0.1")
        sock = raw_socket(port)
        await port.stopListening()
        self.assertEqual(sock.fileno(), -1)
