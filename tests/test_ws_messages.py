"""plumberd.pure.ws_messages: messages to streams and packets in every framing, and back."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.framing import Decoder, Framing, FramingError, Message, decode_packet, encode
from plumberd.pure.ws_frames import BINARY, FIN, PIECE, PING, START, TEXT, Form, FrameDecoder, frame
from plumberd.pure.ws_messages import LONG_BYTES, MESSAGES, Inward, Outward, Subprotocol, form_of
from tests.tables import PROPERTY, each

LIMIT = 1 << 20
MASK = b"\x01\x02\x03\x04"
FRAMED = tuple(framing for framing in Framing if framing is not Framing.RAW)


def read(data: bytes, masked: bool = False) -> list[tuple[int, bytes]]:
    decoder = FrameDecoder(masked=masked, limit_bytes=2 * LIMIT)
    found = decoder.feed(data)
    while decoder.is_full:
        found += decoder.feed(b"")
    assert decoder.error is None
    return found


class Forms(SynchronousTestCase):
    @each(
        (Subprotocol.RAW, Framing.RAW, False, Form.BYTES),
        (Subprotocol.RAW, Framing.LIBIPC_ZIG, False, Form.BYTES),
        (Subprotocol.IPC, Framing.RAW, False, Form.BYTES),
        (Subprotocol.IPC, Framing.RAW, True, Form.WHOLE),
        (Subprotocol.IPC, Framing.LIBIPC_ZIG, False, Form.STARTED),
        (Subprotocol.IPC_TEXT, Framing.LIBIPC_2023, False, Form.STARTED),
        (Subprotocol.IPC, Framing.LIBIPC_2019, True, Form.WHOLE),
    )
    def test_how_messages_are_wanted(self, protocol: Subprotocol, framing: Framing, packets: bool, form: Form) -> None:
        self.assertIs(form_of(protocol, framing, packets=packets), form)


class ToService(SynchronousTestCase):
    @each(*((framing.value,) for framing in FRAMED))
    def test_each_message_is_one_of_the_stream(self, name: str) -> None:
        frames = [
            (BINARY, b"one"),
            (PING, b"!"),
            (TEXT, b""),
            (START, (5).to_bytes(8, "big")),
            (PIECE, b"th"),
            (PIECE, b"ree"),
        ]
        (data,) = Inward(Framing(name), packets=False).pieces(frames)
        self.assertEqual([m.payload for m in Decoder(name).feed(data)], [b"one", b"", b"three"])

    @each(*((framing.value,) for framing in FRAMED))
    def test_each_message_is_one_packet(self, name: str) -> None:
        found = Inward(Framing(name), packets=True).pieces([(BINARY, b"one"), (TEXT, b"two")])
        self.assertEqual([decode_packet(name, one).payload for one in found], [b"one", b"two"])

    def test_raw_is_the_bytes_and_an_empty_packet_would_be_the_end(self) -> None:
        self.assertEqual(Inward(Framing.RAW, packets=False).pieces([(PIECE, b"a"), (PIECE, b"b")]), [b"ab"])
        self.assertEqual(
            Inward(Framing.RAW, packets=True).pieces([(BINARY, b"a"), (BINARY, b""), (TEXT, b"b")]), [b"a", b"b"]
        )

    def test_nothing_to_write_is_no_piece(self) -> None:
        self.assertEqual(Inward(Framing.LIBIPC_ZIG, packets=False).pieces([(PING, b"")]), [])

    def test_what_the_header_has_no_room_for(self) -> None:
        inward = Inward(Framing.LIBIPC_ZIG, packets=False)
        self.assertRaises(FramingError, inward.pieces, [(START, (1 << 32).to_bytes(8, "big"))])


class FromService(SynchronousTestCase):
    def outward(self, framing: Framing, *, packets: bool = False, text: bool = False, masked: bool = False) -> Outward:
        return Outward(framing, packets=packets, limit_bytes=LIMIT, text=text, masks=(lambda: MASK) if masked else None)

    @each(*((framing.value, masked) for framing in FRAMED for masked in (False, True)))
    def test_each_message_of_a_stream_however_it_is_dealt_out(self, name: str, masked: bool) -> None:
        payloads = [b"one", b"", b"x" * 125, b"y" * 126, b"z" * 65536, b"Z" * 65537, b"w" * 200_000, b"last"]
        data = b"".join(encode(name, Message(payload)) for payload in payloads)
        for size in (7, 65536, len(data)):
            outward = self.outward(Framing(name), masked=masked)
            out = b"".join(outward.frames(data[at : at + size]) for at in range(0, len(data), size))
            self.assertEqual(read(out, masked), [(BINARY, payload) for payload in payloads])
            self.assertFalse(outward.pending)

    def test_one_message_by_itself_goes_the_short_way_and_looks_the_same(self) -> None:
        for length in (0, 1, 125, 126, 4095, 4096, 4097, 65535, 65536):
            payload, framing = bytes(length), Framing.LIBIPC_ZIG
            outward = Outward(framing, packets=False, limit_bytes=65536)
            self.assertEqual(outward.frames(encode(framing, Message(payload))), frame(FIN | BINARY, payload), length)
            self.assertFalse(outward.pending)
            inward = Inward(framing, packets=False)
            self.assertEqual(inward.pieces([(BINARY, payload)]), [encode(framing, Message(payload))], length)
        for text in (b"\0\0\0", b"\0\0\0\2x", b"\0\0\0\1xy"):
            outward = Outward(Framing.LIBIPC_ZIG, packets=False, limit_bytes=65536)
            outward.frames(text)
            self.assertTrue(outward.pending, text)

    @each((False, False), (True, False), (False, True))
    def test_of_thousands_of_short_messages_some_go_out_at_once_and_none_is_lost(
        self, text: bool, masked: bool
    ) -> None:
        outward = self.outward(Framing.LIBIPC_ZIG, text=text, masked=masked)
        payloads = [b"", b"a"] * MESSAGES + [b"last"]
        data = b"".join(encode(Framing.LIBIPC_ZIG, Message(payload)) for payload in payloads)
        found = [read(outward.frames(data + b"\0\0"), masked)]
        while outward.is_full:
            found.append(read(outward.frames(b""), masked))
        self.assertEqual([len(some) for some in found], [MESSAGES, MESSAGES, 1])
        self.assertEqual([payload for some in found for _, payload in some], payloads)
        self.assertTrue(outward.pending)
        self.assertEqual(read(outward.frames(b"\0\1b"), masked)[0][1], b"b")

    def test_a_text_that_comes_byte_by_byte_is_not_copied_for_each(self) -> None:
        outward, long = self.outward(Framing.LIBIPC_ZIG, text=True), b"a" * LIMIT
        data = encode(Framing.LIBIPC_ZIG, Message(long))
        self.assertEqual(outward.frames(data[:-21]) + outward.frames(data[-21:-20]), b"")
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        found = b"".join(outward.frames(data[at : at + 1]) for at in range(len(data) - 20, len(data) - 1))
        _, peak = tracemalloc.get_traced_memory()
        self.assertEqual(found, b"")
        self.assertLess(peak, LIMIT // 2)
        self.assertEqual(read(outward.frames(data[-1:])), [(TEXT, long)])

    def test_of_a_long_message_nothing_is_kept(self) -> None:
        outward = self.outward(Framing.LIBIPC_ZIG)
        data = encode(Framing.LIBIPC_ZIG, Message(bytes(LONG_BYTES + 1)))
        self.assertGreater(len(outward.frames(data[:1000])), 990)
        self.assertTrue(outward.pending)

    @each(*((framing.value,) for framing in FRAMED))
    def test_each_packet_is_one_message(self, name: str) -> None:
        outward = self.outward(Framing(name), packets=True)
        self.assertEqual(read(outward.frames(encode(name, Message(b"one")))), [(BINARY, b"one")])
        self.assertRaises(FramingError, outward.frames, encode(name, Message(b"one")) + b"x")

    def test_raw_is_one_message_a_read(self) -> None:
        outward = self.outward(Framing.RAW)
        self.assertEqual(read(outward.frames(b"ab") + outward.frames(b"c")), [(BINARY, b"ab"), (BINARY, b"c")])

    def test_text_where_it_is_text(self) -> None:
        outward = self.outward(Framing.RAW, text=True)
        self.assertEqual(
            read(outward.frames("ä".encode()) + outward.frames(b"\xff")), [(TEXT, "ä".encode()), (BINARY, b"\xff")]
        )
        long = "ä".encode() * LONG_BYTES
        data = encode(Framing.LIBIPC_ZIG, Message(long))
        outward = self.outward(Framing.LIBIPC_ZIG, text=True)
        self.assertEqual(read(outward.frames(data[:1000]) + outward.frames(data[1000:])), [(TEXT, long)])

    def test_a_message_that_is_too_long(self) -> None:
        for framing in (Framing.LIBIPC_ZIG, Framing.LIBIPC_2023):
            data = encode(framing, Message(bytes(LIMIT + 1)))
            self.assertRaises(FramingError, self.outward(framing).frames, data[:100])
        self.assertRaises(FramingError, self.outward(Framing.RAW, packets=True).frames, bytes(LIMIT + 1))
        cut = self.outward(Framing.RAW).frames(bytes(2 * LIMIT + 1))
        self.assertEqual(cut, 2 * frame(FIN | BINARY, bytes(LIMIT)) + frame(FIN | BINARY, bytes(1)))

    @given(st.lists(st.binary(max_size=300), max_size=10), st.integers(1, 400), st.sampled_from(FRAMED))
    @PROPERTY
    def test_there_and_back_is_the_same(self, payloads: list[bytes], size: int, framing: Framing) -> None:
        data = b"".join(encode(framing, Message(payload)) for payload in payloads)
        outward, inward = self.outward(framing, masked=True), Inward(framing, packets=False)
        decoder = FrameDecoder(masked=True, limit_bytes=LIMIT, form=Form.STARTED)
        back = b""
        for at in range(0, len(data), size):
            back += b"".join(inward.pieces(decoder.feed(outward.frames(data[at : at + size]))))
        self.assertEqual(back, data)

    @given(st.binary(max_size=200), st.sampled_from(list(Framing)), st.booleans())
    @PROPERTY
    def test_any_bytes_are_messages_or_a_mistake(self, data: bytes, framing: Framing, packets: bool) -> None:
        try:
            read(self.outward(framing, packets=packets).frames(data))
        except FramingError:
            return
