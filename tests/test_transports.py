"""plumberd.transports: plain sockets as Twisted's connections, and what their factories are told."""

from __future__ import annotations

import socket
import struct
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from zope.interface.verify import verifyObject

from plumberd.transports import CallerAddress, ServiceAddress, adopt, caller_of
from tests.lookup_contract import HELLO
from tests.support import CleanTestCase, in_thread, read_all, read_exactly, real_reactor
from tests.tables import each
from tests.test_endpoints import Talk


class Adopting(CleanTestCase):
    async def check(self, left: socket.socket, right: socket.socket, address: IAddress | None = None) -> list[Any]:
        """Adopt *right*; return the addresses that its factory was told."""
        told: list[Any] = []

        class Telling(Factory):
            protocol = Talk

            def buildProtocol(self, addr: Any) -> Any:
                told.append(addr)
                return super().buildProtocol(addr)

        talk: Any = adopt(real_reactor, right, Telling(), address)
        self.assertEqual(right.fileno(), -1)
        self.assertEqual(await in_thread(read_exactly, left, len(HELLO)), HELLO)
        left.sendall(HELLO)
        self.assertEqual(await talk.done, HELLO)
        return told

    async def test_a_unix_socket(self) -> None:
        await self.check(*self.pair())

    async def test_a_tcp_socket_has_its_own_address(self) -> None:
        left, right = self.tcp_pair()
        (told,) = await self.check(left, right)
        self.assertEqual((told.host, told.port), left.getsockname())

    async def test_another_address_is_told_where_one_is_given(self) -> None:
        address = CallerAddress("TCP", "192.0.2.7", 1234)
        self.assertEqual(await self.check(*self.pair(), address), [address])

    def test_a_socket_that_was_reset_is_an_error_of_twisted_s_and_closed(self) -> None:
        left, right = self.tcp_pair()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.close()
        with self.assertRaises(error.ConnectError):
            adopt(real_reactor, right, Factory.forProtocol(Talk))
        self.assertEqual(right.fileno(), -1)

    async def test_a_factory_that_fails_is_heard_and_the_socket_closed(self) -> None:
        class Failing(Factory):
            def buildProtocol(self, addr: Any) -> Any:
                raise RuntimeError("on purpose")

        left, right = self.pair()
        with self.assertRaises(RuntimeError):
            adopt(real_reactor, right, Failing())
        self.assertEqual(await in_thread(read_all, left), b"")

    async def test_a_protocol_that_fails_at_its_beginning_is_too(self) -> None:
        class Failing(Protocol):
            def connectionMade(self) -> None:
                raise RuntimeError("on purpose")

        left, right = self.pair()
        with self.assertRaises(RuntimeError):
            adopt(real_reactor, right, Factory.forProtocol(Failing))
        self.assertEqual(await in_thread(read_all, left), b"")

    async def test_a_factory_that_wants_none_has_none(self) -> None:
        class Refusing(Factory):
            def buildProtocol(self, addr: Any) -> Any:
                return None

        left, right = self.pair()
        self.assertIsNone(adopt(real_reactor, right, Refusing()))
        self.assertEqual(await in_thread(read_all, left), b"")


class Addresses(CleanTestCase):
    @each(
        (
            {"peer": {"scheme": "tcp", "address": "192.0.2.7", "port": 1234}, "mode": "locked", "rule": "r"},
            CallerAddress("TCP", "192.0.2.7", 1234, mode="locked", rule="r"),
        ),
        (
            {"peer": {"scheme": "unix", "uid": 1, "gid": 2, "pid": 3}, "mode": "local", "identities": []},
            CallerAddress("UNIX", uid=1, gid=2, pid=3, mode="local"),
        ),
        (
            {"peer": {"scheme": "tcp", "address": None, "port": 0}, "identities": ["cert:example.com"]},
            CallerAddress("UNIX", port=0, identities=("cert:example.com",)),
        ),
        ({}, CallerAddress("UNIX")),
    )
    def test_what_a_broker_tells_is_an_address(self, told: dict[str, Any], wanted: CallerAddress) -> None:
        self.assertEqual(caller_of(told), wanted)

    def test_they_are_addresses_for_twisted(self) -> None:
        for address in (CallerAddress("TCP"), ServiceAddress("pong")):
            self.assertTrue(verifyObject(IAddress, address))
