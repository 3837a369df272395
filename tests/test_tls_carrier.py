"""plumberd.effects.tls_carrier: who carries what, what comes right behind a handshake, a full socket, faults."""

from __future__ import annotations

import contextlib
import socket
import threading

from OpenSSL import SSL

from plumberd.effects.openssl import Buffer
from plumberd.effects.tls_carrier import SEAL_BYTES, ByOpenSsl, Records
from plumberd.effects.tls_ending import TlsFault, Want
from plumberd.effects.tls_wire import Wire, count_protected
from plumberd.pure.tls_records import ALERT, DATA, HANDSHAKE, MOST_RECORDS, SUITES
from tests.support import in_thread
from tests.tables import each
from tests.tls_peers import Peer, TlsTestCase, our_context, shake_both
from tests.tls_records import KEY_UPDATE, Keys, RecordPeer

AES = SUITES["TLS_AES_128_GCM_SHA256"]
OURS, THEIRS = bytes(32), bytes(range(32))


class Chosen(TlsTestCase):
    @each(("1.2", ByOpenSsl), ("1.3", Records))
    def test_by_the_version(self, version: str, carrier: type) -> None:
        left, right = self.pair()
        wires = (
            self.wire_of(left, our_context(False, version), server=False),
            self.wire_of(right, our_context(True, version), server=True),
        )
        shake_both(*wires)
        for wire in wires:
            self.assertIs(type(wire._carrier), carrier)
            self.assertEqual(wire.writes_apart, version == "1.2")
            wire.let_go()
            self.assertEqual(wire.connection is None, version == "1.3")

    @each(*((name,) for name in SUITES))
    def test_every_suite_of_1_3_is_carried_by_our_own_records(self, suite: str) -> None:
        context: SSL.Context = our_context(False, "1.3")
        context.set_tls13_ciphersuites(suite.encode())
        left, right = self.pair()
        client = self.wire_of(left, context, server=False)
        server = self.wire_of(right, our_context(True, "1.3"), server=True)
        shake_both(client, server)
        self.assertEqual(client.cipher, suite)
        self.assertIs(type(client._carrier), Records)
        client.send(b"there")
        server.send(b"back")
        self.assertEqual((server.recv(9), client.recv(9)), (b"there", b"back"))

    def test_protected_records_are_counted(self) -> None:
        flight = b"\x14\3\3\0\1\1" + b"\x17\3\3\0\2??" * 2
        self.assertEqual([count_protected(one) for one in (b"", flight, flight[6:13])], [0, 2, 1])


class RightBehind(TlsTestCase):
    """What arrives in one piece with the last word of a handshake is not lost, and not read twice."""

    @each(("1.2", False), ("1.3", False), ("1.3", True))
    async def test_data(self, version: str, server: bool) -> None:
        """*server*: our side is. In 1.2 it has the last word of the handshake, and nothing comes right behind it."""
        far, near = self.tcp_pair()
        peer = Peer(far, not server, version)
        shaking = in_thread(peer.handshake, b"right behind")
        wire = await self.shake(near, our_context(server, version), server=server)
        await shaking
        assert isinstance(wire, Wire)
        got = b""
        while len(got) < 12:
            with contextlib.suppress(BlockingIOError):
                got += wire.recv(5)
        self.assertEqual(got, b"right behind")
        with self.assertRaises(BlockingIOError):
            wire.recv(5)


class OwnRecords(TlsTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.far, self.near = self.pair()
        self.near.setblocking(False)
        self.far.settimeout(5)
        self.carrier = Records(self.near, AES, OURS, THEIRS, 0, server=True)
        self.reads, self.writes = Keys(OURS), Keys(THEIRS)

    def buffer(self, data: bytes) -> Buffer:
        buffer = Buffer(len(data))
        buffer.view[:] = data
        buffer.end = len(data)
        return buffer

    def read(self, room: int = 1 << 17) -> tuple[bytes, Want | None, OSError | None]:
        buffer = Buffer(room)
        count, want, fault = self.carrier.read(buffer)
        self.assertEqual(count, buffer.end)
        return bytes(buffer.view[:count]), want, fault

    def record(self) -> tuple[int, bytes]:
        """Read one record that was written."""
        header = self.far.recv(5, socket.MSG_WAITALL)
        return self.reads.open(header + self.far.recv(int.from_bytes(header[3:], "big"), socket.MSG_WAITALL))

    def test_a_part_of_a_record_is_kept(self) -> None:
        record = self.writes.seal(DATA, b"whole")
        self.far.sendall(record[:9])
        self.assertEqual(self.read(), (b"", Want.READ, None))
        self.far.sendall(record[9:])
        self.assertEqual(self.read(), (b"whole", Want.READ, None))

    def test_it_stops_where_the_longest_record_has_no_room(self) -> None:
        for _ in range(3):
            self.far.sendall(self.writes.seal(DATA, bytes(16384)))
        got, want, fault = self.read(room=34_000)
        self.assertEqual((len(got), want, fault), (2 * 16384, None, None))
        self.assertEqual(len(self.read()[0]), 16384)

    def test_a_flood_of_tiny_records_is_read_in_turns(self) -> None:
        records = b"".join(self.writes.seal(DATA, b"x") for _ in range(3 * MOST_RECORDS))
        sending = threading.Thread(target=self.far.sendall, args=(records,))
        sending.start()
        self.addCleanup(sending.join)
        got, rounds = b"", 0
        while len(got) < 3 * MOST_RECORDS:
            part, want, fault = self.read()
            self.assertIsNone(fault)
            self.assertLessEqual(len(part), MOST_RECORDS)
            self.assertTrue(part or want is Want.READ)
            got += part
            rounds += 1
        self.assertGreaterEqual(rounds, 3)

    def test_nothing_is_kept_behind_an_end(self) -> None:
        self.far.sendall(self.writes.seal(ALERT, b"\1\0") + bytes(50_000))
        self.assertEqual(self.read(), (b"", None, None))
        self.assertEqual(self.carrier._part, b"")

    def test_a_full_socket_keeps_no_more_than_one_piece(self) -> None:
        buffer = self.buffer(bytes(range(256)) * 4096)
        self.assertIs(self.carrier.write(buffer), Want.WRITE)
        self.assertLessEqual(len(self.carrier._unsent), SEAL_BYTES * 1.01)
        got = bytearray()
        while len(got) < 1 << 20:
            got += self.record()[1]
            if self.carrier._gone:
                self.carrier.write(buffer)
        self.assertTrue(bytes(got) == bytes(range(256)) * 4096)

    def test_an_end_waits_for_room_and_is_said_once(self) -> None:
        with self.assertRaises(BlockingIOError):
            while True:
                self.near.send(bytes(4096))
        self.assertIs(self.carrier.close_notify(), Want.WRITE)
        self.assertIs(self.carrier.close_notify(), Want.WRITE)
        taken = b""
        while self.carrier.close_notify() is not None:
            taken += self.far.recv(1 << 16)
        self.far.setblocking(False)
        tail = taken + self.far.recv(1 << 20)
        self.assertEqual(self.reads.open(tail[-24:]), (ALERT, b"\1\0"))
        self.assertEqual(tail[:-24].strip(b"\0"), b"")

    def test_who_wants_new_keys_gets_them_before_more_is_said(self) -> None:
        self.far.sendall(self.writes.seal(HANDSHAKE, KEY_UPDATE + b"\1"))
        self.writes.update()
        self.far.sendall(self.writes.seal(DATA, b"new"))
        self.assertEqual(self.read()[0], b"new")
        self.assertIsNone(self.carrier.write(self.buffer(b"answer")))
        self.assertEqual(self.record(), (HANDSHAKE, KEY_UPDATE + b"\0"))
        self.reads.update()
        self.assertEqual(self.record(), (DATA, b"answer"))

    def test_what_is_owed_goes_in_front_of_what_is_written_first(self) -> None:
        self.carrier.owe(b"the last words")
        self.assertIsNone(self.carrier.write(self.buffer(b"x")))
        self.assertEqual(self.far.recv(14), b"the last words")
        self.assertEqual(self.record(), (DATA, b"x"))
        self.assertIsNone(self.carrier.write(self.buffer(b"y")))
        self.assertEqual(self.record(), (DATA, b"y"))

    def test_what_is_owed_goes_in_front_of_an_end_too(self) -> None:
        self.carrier.owe(b"the last words")
        self.assertIsNone(self.carrier.close_notify())
        self.assertEqual(self.far.recv(14), b"the last words")
        self.assertEqual(self.record(), (ALERT, b"\1\0"))

    def test_worn_keys_are_changed(self) -> None:
        self.carrier = Records(self.near, AES, OURS, THEIRS, 1 << 24, server=True)
        self.reads.sequence = 1 << 24
        self.assertIsNone(self.carrier.write(self.buffer(b"x")))
        self.assertEqual(self.record(), (HANDSHAKE, KEY_UPDATE + b"\0"))
        self.reads.update()
        self.assertEqual(self.record(), (DATA, b"x"))

    def test_what_was_changed_on_the_way_is_a_fault_which_the_far_side_is_told(self) -> None:
        changed = bytearray(self.writes.seal(DATA, b"changed"))
        changed[-1] ^= 1
        self.far.sendall(changed)
        got, want, fault = self.read()
        self.assertEqual((got, want), (b"", None))
        assert isinstance(fault, TlsFault)
        self.assertEqual((fault.how, fault.alert), ("garbled", None))
        self.assertEqual(self.record(), (ALERT, b"\2\x14"))

    def test_an_alert_is_told_with_its_number(self) -> None:
        self.far.sendall(self.writes.seal(DATA, b"x") + self.writes.seal(ALERT, b"\2\x74"))
        got, _, fault = self.read()
        assert isinstance(fault, TlsFault)
        self.assertEqual((got, fault.how, fault.alert), (b"x", "broken off", 116))

    def test_an_end_of_the_socket_is_a_truncation_also_in_the_middle_of_a_record(self) -> None:
        self.far.sendall(self.writes.seal(DATA, b"x") + self.writes.seal(DATA, b"cut off")[:12])
        self.far.shutdown(socket.SHUT_WR)
        got, _, fault = self.read()
        assert isinstance(fault, TlsFault)
        self.assertEqual((got, fault.how), (b"x", "truncated"))

    def test_a_reset_is_what_it_is(self) -> None:
        far, near = self.tcp_pair()
        near.setblocking(False)
        carrier = Records(near, AES, OURS, THEIRS, 0, server=True)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        count, want, fault = carrier.read(Buffer(1 << 17))
        self.assertEqual((count, want, type(fault)), (0, None, ConnectionResetError))

    async def test_no_ticket_of_a_server_is_taken_for_data_and_its_records_count_on(self) -> None:
        far, near = self.tcp_pair()
        peer = RecordPeer(far)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True, "1.3"), server=True)
        await shaking
        assert isinstance(wire, Wire)
        wire.send(b"behind the tickets")
        self.assertEqual(await in_thread(peer.receive), (DATA, b"behind the tickets"))
