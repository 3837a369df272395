"""plumberd.framing: every generation's messages, whole, byte by byte, with a tail, and broken."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.framing import (
    DATA,
    LIMIT_BYTES,
    LOOKUP,
    Decoder,
    FrameCutter,
    Framing,
    FramingError,
    Message,
    decode_packet,
    encode,
)
from tests.tables import PROPERTY, each

HELLO = bytes.fromhex("02000000062a68656c6c6f00")
"""Read off the wire of libipc: a data message of user type 42, ``hello`` with its NUL."""

LOOKUP_OF_PONG = bytes.fromhex("030000002303706f6e673b706f6e67207463703a2f2f3132372e302e302e313a393730302f706f6e67")
BOUNCE_ME = bytes.fromhex("00000009626f756e6365206d65")
"""Read off the wire of LibIPC."""

SAMPLES = (
    ("libipc_2019", "libipc-2019", HELLO, Message(b"hello\0", 42)),
    ("libipc_2020", "libipc-2020", HELLO, Message(b"hello\0", 42)),
    ("libipc_2023", "libipc-2023", HELLO, Message(b"hello\0", 42)),
    ("a_lookup", "libipc-2019", LOOKUP_OF_PONG, Message(b"pong;pong tcp://127.0.0.1:9700/pong", LOOKUP, LOOKUP)),
    ("the_types_largest_values", "libipc-2023", b"\xff\0\0\0\1\xffx", Message(b"x", 255, 255)),
    ("no_payload", "libipc-2023", b"\2\0\0\0\0\0", Message(b"")),
    ("libipc_zig", "libipc-zig", BOUNCE_ME, Message(b"bounce me")),
    ("no_payload_in_zig", "libipc-zig", b"\0\0\0\0", Message(b"")),
    ("a_payload_that_looks_like_a_header", "libipc-zig", b"\0\0\0\4\xff\xff\xff\xff", Message(b"\xff" * 4)),
)
TYPED = tuple(framing for framing in Framing if framing.typed)
FRAMED = tuple(framing for framing in Framing if framing is not Framing.RAW)

framings = st.sampled_from(FRAMED)
payloads = st.binary(max_size=40)
messages = st.builds(Message, payloads, st.integers(0, 255), st.integers(0, 255))


def carried(framing: Framing, message: Message) -> Message:
    """Return what *framing* leaves of *message*."""
    return message if framing.typed else Message(message.payload)


def dealt(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Deal *stream* out in pieces of these sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(stream[:size])
        stream = stream[size:]
    return [*parts, stream]


class Encoding(SynchronousTestCase):
    @each(*SAMPLES)
    def test_it_is_what_goes_over_the_wire(self, _: str, framing: str, data: bytes, message: Message) -> None:
        self.assertEqual(encode(framing, message), data)
        self.assertEqual(encode(Framing(framing), message), data)

    def test_raw_is_the_payload_itself(self) -> None:
        self.assertEqual(encode("raw", Message(b"hello", 42)), b"hello")

    def test_zig_and_raw_have_no_place_for_types(self) -> None:
        self.assertEqual(encode("libipc-zig", Message(b"bounce me", 42, 3)), BOUNCE_ME)

    def test_a_message_is_data_unless_it_says_otherwise(self) -> None:
        self.assertEqual(Message(b""), Message(b"", 0, DATA))

    def test_a_payload_longer_than_the_header_can_say_is_refused(self) -> None:
        class Long(bytes):
            def __len__(self) -> int:
                return 2**32

        for framing in FRAMED:
            with self.assertRaises(FramingError) as caught:
                encode(framing, Message(Long()))
            self.assertIn("a message of 4294967296 bytes", str(caught.exception))

    @each(("user_type", 256), ("user_type", -1), ("kind", 256), ("kind", -1))
    def test_a_type_that_is_no_byte_is_refused(self, name: str, value: int) -> None:
        with self.assertRaises(FramingError) as caught:
            Message(b"", **{name: value})
        self.assertEqual(str(caught.exception), f"{name} {value}: wanted 0 to 255")


class Framings(SynchronousTestCase):
    @each(
        ("raw", 0, False, False, "pong"),
        ("libipc-2019", 6, True, True, "pong-0-0"),
        ("libipc-2020", 6, True, True, "pong"),
        ("libipc-2023", 6, True, False, "pong"),
        ("libipc-zig", 4, False, False, "pong"),
    )
    def test_each_has_its_header_and_its_kind_of_socket(
        self, word: str, header: int, typed: bool, packets: bool, name: str
    ) -> None:
        one = Framing(word)
        self.assertEqual(
            (one.header_bytes, one.typed, one.packets, one.socket_name("pong")), (header, typed, packets, name)
        )

    def test_one_that_does_not_exist_is_refused_everywhere_with_those_that_do(self) -> None:
        for use in (
            lambda: Framing("libipc-2024"),
            lambda: encode("libipc-2024", Message(b"")),
            lambda: decode_packet("libipc-2024", b""),
            lambda: Decoder("libipc-2024"),
            lambda: FrameCutter("libipc-2024"),
        ):
            with self.assertRaises(ValueError) as caught:
                use()
            self.assertEqual(
                str(caught.exception),
                "'libipc-2024' is no framing: wanted one of raw, libipc-2019, libipc-2020, libipc-2023, libipc-zig",
            )


class Decoding(SynchronousTestCase):
    @each(*SAMPLES)
    def test_a_whole_message(self, _: str, framing: str, data: bytes, message: Message) -> None:
        decoder = Decoder(framing)
        self.assertEqual([*decoder.feed(data)], [message])
        self.assertFalse(decoder.pending)

    @each(*SAMPLES)
    def test_byte_by_byte_it_is_pending_until_the_last(
        self, _: str, framing: str, data: bytes, message: Message
    ) -> None:
        decoder = Decoder(framing)
        self.assertFalse(decoder.pending)
        for at in range(len(data) - 1):
            self.assertEqual([*decoder.feed(data[at : at + 1])], [])
            self.assertTrue(decoder.pending)
        self.assertEqual([*decoder.feed(data[-1:])], [message])
        self.assertFalse(decoder.pending)

    @each(*SAMPLES)
    def test_with_a_tail_that_goes_on_later(self, _: str, framing: str, data: bytes, message: Message) -> None:
        for cut in range(1, len(data)):
            decoder = Decoder(framing)
            self.assertEqual([*decoder.feed(data + data + data[:cut])], [message] * 2)
            self.assertTrue(decoder.pending)
            self.assertEqual([*decoder.feed(data[cut:])], [message])
            self.assertFalse(decoder.pending)

    def test_nothing_is_nothing(self) -> None:
        for framing in Framing:
            decoder = Decoder(framing)
            self.assertEqual(([*decoder.feed(b"")], decoder.pending), ([], False))

    def test_what_is_not_asked_for_is_kept_and_comes_next(self) -> None:
        decoder = Decoder("libipc-zig")
        decoder.feed(BOUNCE_ME)  # and nobody looks
        self.assertTrue(decoder.pending)
        self.assertEqual(next(decoder.feed(BOUNCE_ME)), Message(b"bounce me"))
        self.assertEqual([*decoder.feed(b"")], [Message(b"bounce me")])
        self.assertFalse(decoder.pending)

    def test_raw_is_one_message_a_read_and_never_pending(self) -> None:
        decoder = Decoder("raw", 4)
        self.assertEqual([*decoder.feed(b"abcd")], [Message(b"abcd")])
        self.assertEqual([*decoder.feed(b"abcdefghi")], [Message(b"abcd"), Message(b"efgh"), Message(b"i")])
        self.assertFalse(decoder.pending)

    @PROPERTY
    @given(framings, st.lists(messages, max_size=6), st.lists(st.integers(0, 30), max_size=30))
    def test_however_it_is_dealt_out_what_was_encoded_comes_back(
        self, framing: Framing, sent: list[Message], sizes: list[int]
    ) -> None:
        stream = b"".join(encode(framing, message) for message in sent)
        decoder = Decoder(framing)
        got = [message for part in dealt(stream, sizes) for message in decoder.feed(part)]
        self.assertEqual(got, [carried(framing, message) for message in sent])
        self.assertFalse(decoder.pending)


class Limits(SynchronousTestCase):
    def test_a_message_at_the_limit_is_taken_and_one_byte_more_is_not(self) -> None:
        for framing in FRAMED:
            good = Message(b"x" * 20)
            self.assertEqual([*Decoder(framing, 20).feed(encode(framing, good))], [good])
            with self.assertRaises(FramingError) as caught:
                [*Decoder(framing, 20).feed(encode(framing, Message(b"x" * 21)))]
            self.assertEqual(str(caught.exception), "a message of 21 bytes: at most 20 are accepted")

    def test_the_header_alone_tells_so_nothing_is_collected_in_vain(self) -> None:
        for framing in FRAMED:
            header = encode(framing, Message(b"x" * (LIMIT_BYTES + 1)))[: framing.header_bytes]
            decoder = Decoder(framing)
            self.assertEqual([*decoder.feed(header[:-1])], [])
            with self.assertRaises(FramingError):
                [*decoder.feed(header[-1:])]

    def test_the_messages_in_front_of_a_broken_one_come_out_and_then_nothing_more(self) -> None:
        decoder = Decoder("libipc-zig", 9)
        got: list[Message] = []
        with self.assertRaises(FramingError):
            got.extend(decoder.feed(BOUNCE_ME + BOUNCE_ME + b"GET /"))
        self.assertEqual(got, [Message(b"bounce me")] * 2)
        with self.assertRaises(FramingError):
            [*decoder.feed(BOUNCE_ME)]

    def test_no_limit_below_1(self) -> None:
        for make in (Decoder, FrameCutter):
            with self.assertRaises(ValueError) as caught:
                make("raw", 0)
            self.assertEqual(str(caught.exception), "limit_bytes 0: wanted at least 1")

    @PROPERTY
    @given(st.sampled_from(Framing), st.lists(st.binary(max_size=30), max_size=8))
    def test_garbage_is_messages_or_an_error_and_nothing_else(self, framing: Framing, parts: list[bytes]) -> None:
        decoder = Decoder(framing, 50)
        try:
            for part in parts:
                for message in decoder.feed(part):
                    self.assertLessEqual(len(message.payload), 50)
        except FramingError as e:
            self.assertTrue(str(e).isprintable())


class Packets(SynchronousTestCase):
    @each(*SAMPLES)
    def test_one_packet_is_one_message(self, _: str, framing: str, data: bytes, message: Message) -> None:
        self.assertEqual(decode_packet(framing, data), message)

    def test_raw_is_the_packet_itself_even_an_empty_one(self) -> None:
        for data in (b"", b"\0", HELLO):
            self.assertEqual(decode_packet("raw", data), Message(data))

    @each(
        ("nothing", "libipc-2019", b"", "a packet of 0 bytes: a header alone has 6"),
        ("half_a_header", "libipc-2019", HELLO[:5], "a packet of 5 bytes: a header alone has 6"),
        ("half_a_header_of_zig", "libipc-zig", BOUNCE_ME[:3], "a packet of 3 bytes: a header alone has 4"),
        ("cut", "libipc-2020", HELLO[:-1], "a packet with 5 bytes behind its header, which announces 6"),
        ("more", "libipc-2020", HELLO + b"x", "a packet with 7 bytes behind its header, which announces 6"),
        ("two", "libipc-2019", HELLO * 2, "a packet with 18 bytes behind its header, which announces 6"),
        ("cut_zig", "libipc-zig", BOUNCE_ME[:-1], "a packet with 8 bytes behind its header, which announces 9"),
    )
    def test_anything_else_is_no_message(self, _: str, framing: str, data: bytes, said: str) -> None:
        with self.assertRaises(FramingError) as caught:
            decode_packet(framing, data)
        self.assertEqual(str(caught.exception), said)

    @PROPERTY
    @given(framings, messages)
    def test_what_was_encoded_comes_back(self, framing: Framing, message: Message) -> None:
        self.assertEqual(decode_packet(framing, encode(framing, message)), carried(framing, message))


class Cutting(SynchronousTestCase):
    @each(*SAMPLES)
    def test_frames_come_out_unchanged(self, _: str, framing: str, data: bytes, __: Message) -> None:
        cutter = FrameCutter(framing)
        self.assertEqual(cutter.feed(data * 3), [data] * 3)
        self.assertFalse(cutter.pending)

    @each(*SAMPLES)
    def test_byte_by_byte_and_with_a_tail(self, _: str, framing: str, data: bytes, __: Message) -> None:
        cutter = FrameCutter(framing)
        for at in range(len(data) - 1):
            self.assertEqual((cutter.feed(data[at : at + 1]), cutter.pending), ([], True))
        self.assertEqual((cutter.feed(data[-1:] + data + data[:3]), cutter.pending), ([data, data], True))
        self.assertEqual((cutter.feed(data[3:]), cutter.pending), ([data], False))

    def test_raw_comes_out_at_once_in_pieces_that_fit(self) -> None:
        cutter = FrameCutter("raw", 4)
        self.assertEqual((cutter.feed(b"abcdefghi"), cutter.pending), ([b"abcd", b"efgh", b"i"], False))
        self.assertEqual(cutter.feed(b""), [])

    def test_frames_in_front_of_a_broken_one_come_out_first(self) -> None:
        cutter = FrameCutter("libipc-2019", 6)
        self.assertIsNone(cutter.error)
        self.assertEqual(cutter.feed(HELLO + b"GET / HTTP/1.1\r\n"), [HELLO])
        self.assertIn("at most 6 are accepted", str(cutter.error))
        for _ in range(2):
            with self.assertRaises(FramingError):
                cutter.feed(b"")

    def test_a_broken_one_alone_is_told_at_once(self) -> None:
        with self.assertRaises(FramingError) as caught:
            FrameCutter("libipc-zig", 100).feed(b"GET / HTTP/1.1\r\n")
        self.assertEqual(str(caught.exception), "a message of 1195725856 bytes: at most 100 are accepted")

    def test_no_more_at_once_than_were_asked_for(self) -> None:
        cutter = FrameCutter("libipc-zig")
        self.assertEqual(cutter.feed(bytes(4 * 5) + b"\0\0", 2), [bytes(4)] * 2)
        self.assertEqual(cutter.feed(b"\0\1x", 2), [bytes(4)] * 2)
        self.assertEqual(cutter.feed(b"", 2), [bytes(4), b"\0\0\0\1x"])
        self.assertEqual(cutter.feed(b"", 2), [])
        self.assertFalse(cutter.pending)

    @PROPERTY
    @given(framings, st.lists(messages, max_size=6), st.binary(max_size=3), st.lists(st.integers(0, 30), max_size=30))
    def test_put_together_again_they_are_the_stream(
        self, framing: Framing, sent: list[Message], tail: bytes, sizes: list[int]
    ) -> None:
        stream = b"".join(encode(framing, message) for message in sent)
        cutter = FrameCutter(framing)
        frames = [frame for part in dealt(stream + tail, sizes) for frame in cutter.feed(part)]
        self.assertEqual(frames, [encode(framing, message) for message in sent])
        self.assertEqual(cutter.pending, bool(tail))

    @PROPERTY
    @given(st.binary(max_size=100), st.integers(1, 10))
    def test_raw_pieces_are_the_stream_too(self, stream: bytes, limit: int) -> None:
        pieces = FrameCutter("raw", limit).feed(stream)
        self.assertEqual(b"".join(pieces), stream)
        self.assertTrue(all(0 < len(piece) <= limit for piece in pieces))


class Importing(SynchronousTestCase):
    def test_it_needs_the_standard_library_alone(self) -> None:
        code = "import sys, plumberd.framing; print({m.partition('.')[0] for m in sys.modules} & {'twisted', 'zope'})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout, "set()\n")
