"""plumberd.pure.dialects.libipc: four generations, against bytes read off the wire of their own programs."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.base import Decoder, Malformed, Refused, Request, Send
from plumberd.pure.dialects.libipc import (
    Libipc2023Decoder,
    LibipcPacketDecoder,
    LibipcZigDecoder,
    grant_2019,
    grant_2023,
    grant_zig,
    refuse_2019,
    refuse_2023,
    refuse_zig,
)
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from tests import codec_contract
from tests.codec_contract import LIMIT, fed
from tests.tables import PROPERTY, each

LOOKUP_2023 = bytes.fromhex("030000002303706f6e673b706f6e67207463703a2f2f3132372e302e302e313a393730302f706f6e67")
"""Client to broker: lookup of pong with the variable's value ``pong tcp://127.0.0.1:9700/pong``."""

GRANTED_2023 = bytes.fromhex("0200000002006f6b")
"""Broker to client; the descriptor follows by itself with one byte of any value."""

GRANTED_2019 = bytes.fromhex("00")
"""Broker to client, 2019: one packet, the descriptor attached."""

DATA_2023 = bytes.fromhex("02000000062a68656c6c6f00")
"""Client to service: a data message of user type 42. To the broker it means nothing."""

LOOKUP_ZIG = bytes.fromhex("00000023706f6e673b706f6e67207463703a2f2f3132372e302e302e313a393730302f706f6e67")
"""Client to broker: the same lookup."""

GRANTED_ZIG = bytes.fromhex("6f6b")
"""Broker to client: in one sendmsg, the descriptor attached."""

PONG = Request("lookup", "pong", Pairs(b"pong tcp://127.0.0.1:9700/pong"))

TEXTS = (
    ("without_a_semicolon", b"pong", Request("lookup", "pong")),
    ("without_pairs", b"pong;", Request("lookup", "pong")),
    ("with_the_nul_of_a_c_string", b"pong\0", Request("lookup", "pong")),
    (
        "of_another",
        b"pong;audio tls://a.example/audio",
        Request("lookup", "pong", Pairs(b"audio tls://a.example/audio")),
    ),
)
BAD_TEXTS = (
    ("empty", b"", Refusal.BAD_REQUEST),
    ("path", b"../pong;", Refusal.BAD_REQUEST),
    ("not_utf_8", b"\xff;", Refusal.BAD_REQUEST),
    ("broker", b"ipc;", Refusal.DENIED),
    ("scheme", b"tcp;", Refusal.DENIED),
)


def frame_2023(payload: bytes, kind: int = 3, user: int = 3) -> bytes:
    """Frame *payload* as the programs of 2023 do."""
    return struct.pack(">BIB", kind, len(payload), user) + payload


def frame_zig(payload: bytes) -> bytes:
    """Frame *payload* as LibIPC does."""
    return struct.pack(">I", len(payload)) + payload


class Contract2023(codec_contract.DecoderContract):
    message = LOOKUP_2023
    request = PONG

    def decoder(self, limit: int = LIMIT) -> Decoder:
        return Libipc2023Decoder(limit)

    def of_size(self, size: int) -> bytes:
        return frame_2023(b"pong;".ljust(size, b"x"))


class ContractZig(codec_contract.DecoderContract):
    message = LOOKUP_ZIG
    request = PONG

    def decoder(self, limit: int = LIMIT) -> Decoder:
        return LibipcZigDecoder(limit)

    def of_size(self, size: int) -> bytes:
        return frame_zig(b"pong;".ljust(size, b"x"))


class Packets(SynchronousTestCase):
    """2019 and 2020: one packet is one message."""

    def test_a_packet_is_one_request_and_nothing_is_ever_pending(self) -> None:
        decoder = LibipcPacketDecoder(LIMIT)
        for _ in range(2):
            self.assertEqual(fed(decoder, LOOKUP_2023), [PONG])
            self.assertFalse(decoder.pending)

    def test_a_packet_at_the_limit_is_taken_and_one_byte_more_is_malformed(self) -> None:
        self.assertEqual(len(fed(LibipcPacketDecoder(200), frame_2023(b"pong;".ljust(200, b"x")))), 1)
        with self.assertRaises(Malformed) as caught:
            fed(LibipcPacketDecoder(200), frame_2023(b"pong;".ljust(201, b"x")))
        self.assertEqual(str(caught.exception), "a message of 201 bytes: at most 200 are accepted")

    @each(
        ("empty", b"", "a packet of 0 bytes"),
        ("half_a_header", LOOKUP_2023[:5], "a packet of 5 bytes: a lookup begins with a header of 6"),
        ("cut", LOOKUP_2023[:-1], "34 bytes of payload that announces 35"),
        ("two_in_one", LOOKUP_2023 * 2, "76 bytes of payload that announces 35"),
        ("data", DATA_2023, "a message of type 2, user type 42: a lookup has 3 and 3"),
        ("type", frame_2023(b"pong", kind=2), "a message of type 2, user type 3"),
        ("user_type", frame_2023(b"pong", user=0), "a message of type 3, user type 0"),
        ("zig", LOOKUP_ZIG, "a message of type 0, user type 111"),
    )
    def test_a_packet_that_is_no_whole_lookup_is_malformed(self, _: str, packet: bytes, reason: str) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(LibipcPacketDecoder(LIMIT), packet)
        self.assertIn(reason, str(caught.exception))

    @PROPERTY
    @given(st.binary(max_size=40) | st.binary(max_size=30).map(frame_2023))
    def test_garbage_is_malformed_or_refused_or_a_request(self, packet: bytes) -> None:
        try:
            found = fed(LibipcPacketDecoder(LIMIT), packet)
        except Malformed:
            return
        self.assertEqual(len(found), 1)
        self.assertEqual(packet[:1] + packet[5:6], b"\3\3")


class Lookups(SynchronousTestCase):
    @each(*TEXTS)
    def test_every_generation_reads_the_same_text(self, _: str, text: bytes, request: Request) -> None:
        self.assertEqual(fed(LibipcPacketDecoder(LIMIT), frame_2023(text)), [request])
        self.assertEqual(fed(Libipc2023Decoder(LIMIT), frame_2023(text)), [request])
        self.assertEqual(fed(LibipcZigDecoder(LIMIT), frame_zig(text)), [request])

    @each(*BAD_TEXTS)
    def test_every_generation_refuses_a_bad_name_and_goes_on(self, _: str, text: bytes, word: Refusal) -> None:
        for got in (
            fed(LibipcPacketDecoder(LIMIT), frame_2023(text), LOOKUP_2023),
            fed(Libipc2023Decoder(LIMIT), frame_2023(text) + LOOKUP_2023),
            fed(LibipcZigDecoder(LIMIT), frame_zig(text) + LOOKUP_ZIG),
        ):
            refused, following = got
            self.assertIsInstance(refused, Refused)
            self.assertEqual(getattr(refused, "word", None), word)
            self.assertEqual(following, PONG)

    def test_a_variable_of_10000_bytes_is_read(self) -> None:
        value = b";".join(b"service%04d tls://host.example/x" % n for n in range(300))
        (request,) = fed(LibipcZigDecoder(LIMIT), frame_zig(b"pong;" + value))
        self.assertEqual(request, Request("lookup", "pong", Pairs(value)))

    @each(
        ("data", DATA_2023, "a message of type 2, user type 42: a lookup has 3 and 3"),
        ("type", frame_2023(b"pong", kind=2), "a message of type 2, user type 3: a lookup has 3 and 3"),
        ("user_type", frame_2023(b"pong", user=0), "a message of type 3, user type 0: a lookup has 3 and 3"),
        ("zig", LOOKUP_ZIG, "a message of type 0, user type 111: a lookup has 3 and 3"),
        ("text", b"GET / HTTP/1.1\r\n", "a message of type 71, user type 32: a lookup has 3 and 3"),
    )
    def test_any_other_type_of_message_is_malformed(self, _: str, data: bytes, reason: str) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(Libipc2023Decoder(LIMIT), data)
        self.assertEqual(str(caught.exception), reason)

    def test_the_type_is_judged_before_the_length(self) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(Libipc2023Decoder(10), frame_2023(b"x" * 11, kind=9))
        self.assertIn("type 9", str(caught.exception))

    @each(("text", b"GET / HTTP/1.1\r\n"), ("2023", LOOKUP_2023), ("json", b'{"op": "status"}'))
    def test_other_protocols_are_too_long_for_the_current_generation(self, _: str, data: bytes) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(LibipcZigDecoder(LIMIT), data)
        self.assertIn("at most 65536", str(caught.exception))


class Grants(SynchronousTestCase):
    def test_2019_sends_one_byte_with_the_descriptor(self) -> None:
        self.assertEqual(grant_2019(PONG, "locked", "1: allow out pong any"), (Send(GRANTED_2019, descriptor=True),))

    def test_2023_sends_ok_first_and_the_descriptor_with_one_byte_after_that_was_taken(self) -> None:
        ok, byte = grant_2023(PONG, "locked", "1: allow out pong any")
        self.assertEqual(ok, Send(GRANTED_2023, descriptor=False))
        self.assertEqual((len(byte.data), byte.descriptor), (1, True))

    def test_zig_sends_ok_and_the_descriptor_at_once(self) -> None:
        self.assertEqual(grant_zig(PONG, "locked", "1: allow out pong any"), (Send(GRANTED_ZIG, descriptor=True),))


class Refusing(SynchronousTestCase):
    @each(*((word.value, word) for word in Refusal))
    def test_2019_is_hung_up_on_without_a_word(self, _: str, word: Refusal) -> None:
        self.assertEqual(refuse_2019(None, word, "a reason"), b"")

    @each(*((word.value, word) for word in Refusal))
    def test_2023_sends_a_message_that_is_no_ok_and_ends_with_a_nul(self, name: str, word: Refusal) -> None:
        data = refuse_2023(None, word, "a reason")
        kind, length, user = struct.unpack(">BIB", data[:6])
        self.assertEqual((kind, user, data[6:]), (2, 0, f"{name}: a reason\0".encode()))
        self.assertEqual(length, len(data) - 6)
        self.assertNotEqual(length, 2)

    @each(*((word.value, word) for word in Refusal))
    def test_zig_sends_a_raw_no(self, name: str, word: Refusal) -> None:
        self.assertEqual(refuse_zig(None, word, "a reason"), f"no {name}: a reason".encode())

    def test_long_reasons_are_cut_so_that_the_clients_buffers_hold_them(self) -> None:
        cut = refuse_2023(None, Refusal.DENIED, "x" * 5000)
        self.assertEqual((len(cut), cut[-1:], cut.count(b"\0", 6)), (6 + 401, b"\0", 1))
        self.assertEqual(struct.unpack(">I", cut[1:5]), (401,))
        self.assertEqual(len(refuse_zig(None, Refusal.DENIED, "x" * 5000)), 1400)

    @PROPERTY
    @given(st.sampled_from(Refusal), st.text(st.characters(codec="utf-8")))
    def test_whatever_the_reason_no_client_takes_a_refusal_for_a_grant(self, word: Refusal, reason: str) -> None:
        message = refuse_2023(None, word, reason)
        self.assertNotEqual(struct.unpack(">I", message[1:5]), (2,))
        self.assertEqual((len(message) - 6,), struct.unpack(">I", message[1:5]))
        self.assertEqual(message[-1:], b"\0")
        raw = refuse_zig(None, word, reason)
        self.assertTrue(raw.startswith(b"no ") and len(raw) <= 1400)
