"""plumberd.effects.tls_wire: what both sides have agreed on, reads and writes, ends and faults."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.openssl import Buffer
from plumberd.effects.pumps import NOTHING
from plumberd.effects.tls_ending import TlsFault, Want
from plumberd.effects.tls_handshake import refused
from plumberd.effects.tls_wire import Wire
from tests.support import in_thread, read_exactly
from tests.tables import PROPERTY, each
from tests.tls_peers import Peer, TlsTestCase, our_context, shake_both
from tests.tls_records import DATA, RecordPeer

CLIENTS = {version: our_context(False, version) for version in ("1.2", "1.3")}
SERVERS = {version: our_context(True, version) for version in ("1.2", "1.3")}


class WireTestCase(TlsTestCase):
    def wires(self, version: str = "", client: SSL.Context | None = None, server: SSL.Context | None = None) -> None:
        """Connect two wires over a UNIX pair, and end the handshake."""
        self.left, self.right = self.pair()
        self.client = self.wire_of(self.left, client or our_context(False, version), server=False, name="localhost")
        self.server = self.wire_of(self.right, server or our_context(True, version), server=True)
        shake_both(self.client, self.server)


class Facts(WireTestCase):
    @each(("1.2",), ("1.3",))
    def test_the_version_and_the_suite(self, version: str) -> None:
        self.wires(version)
        for wire in (self.client, self.server):
            self.assertEqual(wire.version, f"TLSv{version}")
            self.assertIn("GCM", wire.cipher)

    def test_the_protocol_that_was_agreed_on(self) -> None:
        client, server = our_context(False), our_context(True)
        client.set_alpn_protos([b"other", b"plumb/1"])
        server.set_alpn_select_callback(lambda connection, offered: b"plumb/1")
        self.wires(client=client, server=server)
        self.assertEqual((self.client.alpn, self.server.alpn), ("plumb/1", "plumb/1"))

    def test_no_protocol_is_an_empty_one(self) -> None:
        self.wires()
        self.assertEqual((self.client.alpn, self.server.alpn), ("", ""))

    def test_what_the_far_side_has_shown(self) -> None:
        self.wires()
        (shown,) = self.client.peer_chain
        self.assertEqual(shown.subject.rfc4514_string(), "CN=localhost")
        self.assertEqual(self.server.peer_chain, ())

    def test_what_is_wrong_with_it(self) -> None:
        self.wires()
        self.assertEqual((self.client.verify_error, self.server.verify_error), (18, 0))

    def test_no_key_was_proved_where_there_is_none(self) -> None:
        self.wires()
        self.assertIsNone(self.client.psk_identity)
        self.assertIsNone(self.server.psk_identity)
        self.assertIsNone(self.server.psk_named)

    def test_the_handshake_is_over_once(self) -> None:
        self.wires()
        self.assertTrue(self.client.is_open)
        self.assertIsNone(self.client.handshake())

    def test_the_context_lives_as_long_as_the_wire(self) -> None:
        def alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes:
            return b"x"

        context = our_context(True)
        context.set_alpn_select_callback(alpn)
        client = our_context(False)
        client.set_alpn_protos([b"x"])
        left, right = self.pair()
        wires = self.wire_of(left, client, server=False), self.wire_of(right, context, server=True)
        del context, client
        gc.collect()
        shake_both(*wires)
        self.assertEqual(wires[1].alpn, "x")


class Off(WireTestCase):
    """What an attacker would like to have."""

    def test_compression_and_early_data_are(self) -> None:
        self.wires("1.3")
        self.server.send(b"x")
        self.assertEqual(self.client.recv(1), b"x")  # the tickets have come before
        session = openssl._lib.SSL_get1_session(self.client._ssl)
        try:
            self.assertEqual(openssl._lib.SSL_SESSION_get_max_early_data(session), 0)
        finally:
            openssl._lib.SSL_SESSION_free(session)

    def test_renegotiation_is_and_the_connection_goes_on(self) -> None:
        client = SSL.Context(SSL.TLS_METHOD)
        client.set_max_proto_version(SSL.TLS1_2_VERSION)
        left, right = self.pair()
        connection = openssl.connect(client, left, server=False)
        left.setblocking(False)
        self.client = Wire(connection, left, server=False)
        self.server = self.wire_of(right, our_context(True, "1.2"), server=True)
        shake_both(self.client, self.server)
        openssl._lib.SSL_renegotiate(openssl.ssl_of(connection))
        openssl.do_handshake(openssl.ssl_of(connection))  # sends the new hello
        with self.assertRaises(BlockingIOError):
            self.server.recv(100)
        self.assertEqual(openssl._lib.SSL_total_renegotiations(self.server._ssl), 0)
        self.server.send(b"still here")
        with self.assertRaises(TlsFault) as caught:  # OpenSSL's client takes the no for a failure
            self.client.recv(100)
        self.assertIn(caught.exception.reason, (339, 1100))


class Reads(WireTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.wires("1.3")

    def test_nothing_is_no_end(self) -> None:
        self.assertEqual(self.server.read_into(Buffer(100)), NOTHING)
        with self.assertRaises(BlockingIOError):
            self.server.recv(100)

    def test_several_records_come_at_once(self) -> None:
        for data in (b"one", b"two", b"three"):
            self.client.send(data)
        buffer = Buffer(100)
        self.assertEqual(self.server.read_into(buffer), 11)
        self.assertEqual(bytes(buffer.view[: buffer.end]), b"onetwothree")

    def test_what_does_not_fit_comes_with_the_next_read(self) -> None:
        self.client.send(b"onetwo")
        self.assertEqual((self.server.recv(3), self.server.recv(100)), (b"one", b"two"))

    def test_it_reads_behind_what_is_there(self) -> None:
        self.client.send(b"two")
        buffer = Buffer(100)
        buffer.view[:3] = b"one"
        buffer.end = 3
        self.assertEqual(self.server.read_into(buffer), 3)
        self.assertEqual(bytes(buffer.view[: buffer.end]), b"onetwo")

    def test_what_was_given_back_comes_first_and_in_order(self) -> None:
        self.client.send(b"three")
        self.server.give_back(b"two")
        self.server.give_back(b"one")
        self.assertEqual([self.server.recv(4), self.server.recv(4), self.server.recv(10)], [b"onet", b"wo", b"three"])

    def test_an_end_comes_behind_everything_and_again(self) -> None:
        self.client.send(b"x")
        self.assertTrue(self.client.close_notify())
        self.assertEqual([self.server.recv(9) for _ in range(3)], [b"x", b"", b""])

    def test_who_has_ended_may_still_read(self) -> None:
        self.client.close_notify()
        self.assertEqual(self.server.recv(9), b"")
        self.server.send(b"tail")
        self.server.close_notify()
        self.assertEqual((self.client.recv(9), self.client.recv(9)), (b"tail", b""))

    def test_a_fault_comes_behind_everything_and_again(self) -> None:
        self.client.send(b"x")
        self.left.setblocking(True)
        self.left.sendall(b"\x17\3\3\0\x20" + b"?" * 32)
        self.assertEqual(self.server.recv(9), b"x")
        for _ in range(2):
            with self.assertRaises(TlsFault) as caught:
                self.server.recv(9)
            self.assertEqual(caught.exception.how, "garbled")

    def test_an_end_of_the_socket_alone_is_a_truncation(self) -> None:
        self.client.send(b"x")
        self.left.shutdown(socket.SHUT_WR)
        self.assertEqual(self.server.recv(9), b"x")
        with self.assertRaises(TlsFault) as caught:
            self.server.recv(9)
        self.assertEqual(caught.exception.how, "truncated")


class Hasty(WireTestCase):
    def test_who_has_said_all_and_is_gone_before_its_tickets_is_heard(self) -> None:
        far, near = self.tcp_pair()
        peer = Peer(far, False, "1.3")
        wire = self.wire_of(near, our_context(True, "1.3"), server=True)
        with self.assertRaises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        peer.flush()
        self.assertIs(wire.handshake(), Want.READ)
        peer.handshake(b"one way message")
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        self.assertIsNone(wire.handshake())
        self.assertEqual(wire.recv(100), b"one way message")
        with self.assertRaises(OSError):
            wire.recv(100)


class Writes(WireTestCase):
    def test_one_write_goes_on_after_the_socket_was_full_wherever_its_bytes_stand_then(self) -> None:
        self.wires("1.3")
        data = bytes(range(256)) * 16 * 1024
        first, second = Buffer(len(data)), Buffer(len(data))
        for buffer in (first, second):
            buffer.view[:] = data
            buffer.end = len(data)
        self.assertFalse(self.server.write_from(first))
        first.view[:] = bytes(len(data))
        got, room = bytearray(), Buffer(1 << 18)
        while len(got) < len(data):
            room.start = room.end = 0
            if self.client.read_into(room) == NOTHING:
                self.server.write_from(second)
            else:
                got += room.view[: room.end]
        self.assertTrue(bytes(got) == data)

    def test_what_has_gone_is_out_of_the_buffer(self) -> None:
        self.wires()
        buffer = Buffer(8)
        buffer.view[:4] = b"four"
        buffer.end = 4
        self.assertTrue(self.client.write_from(buffer))
        self.assertEqual((buffer.start, buffer.end), (0, 0))

    async def test_records_are_as_long_as_they_may_be(self) -> None:
        far, near = self.tcp_pair()
        peer = RecordPeer(far)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True, "1.3"), server=True)
        await shaking
        assert isinstance(wire, Wire)
        wire.send(bytes(40_000))
        lengths: list[int] = []
        while sum(lengths) < 40_000:
            kind, data = await in_thread(peer.receive)
            self.assertEqual(kind, DATA)
            lengths.append(len(data))
        self.assertEqual(lengths, [16384, 16384, 7232])

    def test_a_socket_that_is_gone_is_an_error(self) -> None:
        self.wires()
        self.left.close()
        with self.assertRaises(OSError):
            for _ in range(3):
                self.server.send(b"x")

    def test_nothing_that_was_written_can_be_read_below(self) -> None:
        self.wires()
        self.client.send(b"attack at dawn")
        self.right.setblocking(True)
        self.assertNotIn(b"attack", read_exactly(self.right, 14 + 5 + 16))


class Changed(WireTestCase):
    """Whatever somebody changes on the way, both sides fail with a reason, or what arrives is what was sent."""

    @PROPERTY
    @given(
        version=st.sampled_from(("1.2", "1.3")),
        flight=st.integers(0, 7),
        at=st.floats(0, 1, exclude_max=True),
        old=st.integers(0, 9),
        new=st.binary(max_size=9),
    )
    def test_a_change_is_seen(self, version: str, flight: int, at: float, old: int, new: bytes) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        ends = [end for pair in pairs for end in pair]
        with contextlib.ExitStack() as open_ends:
            for end in ends:
                open_ends.enter_context(end)
                end.setblocking(False)
            client = Wire(openssl.connect(CLIENTS[version], ends[0], server=False), ends[0], server=False)
            server = Wire(openssl.connect(SERVERS[version], ends[2], server=True), ends[2], server=True)
            got = b""
            flights = 0
            failed: set[Wire] = set()
            for _ in range(8):
                for wire in (client, server):
                    with contextlib.suppress(BlockingIOError):
                        try:
                            if wire not in failed and not wire.is_open:
                                wire.handshake()
                            elif wire not in failed and wire is client:
                                wire.send(b"attack at dawn")
                            elif wire not in failed:
                                got += wire.recv(1000)
                        except OSError as e:
                            failed.add(wire)
                            self.assertTrue(refused(wire, e).reason.isprintable())
                for source, sink in ((ends[1], ends[3]), (ends[3], ends[1])):
                    with contextlib.suppress(OSError):
                        data = source.recv(1 << 16)
                        place = int(at * len(data))
                        changed = data[:place] + new + data[place + old :]
                        sink.send(changed if flights == flight else data)
                        flights += 1
            self.assertEqual(got.replace(b"attack at dawn", b""), b"")
