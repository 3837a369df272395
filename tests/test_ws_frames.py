"""plumberd.pure.ws_frames: against tables, against RFC 6455's own examples, and against a library."""

from __future__ import annotations

import itertools
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from plumberd.pure.ws_frames import (
    BAD_DATA,
    BINARY,
    CLOSE,
    EMPTY_FRAGMENTS,
    FIN,
    HEADS,
    NO_CODE,
    PIECE,
    PING,
    PONG,
    PROTOCOL_ERROR,
    REASON_BYTES,
    START,
    TEXT,
    TOO_BIG,
    Closing,
    Form,
    FrameDecoder,
    WsError,
    close_payload,
    frame,
    parse_close,
)
from tests.tables import PROPERTY, each

LIMIT = 100_000
MASK = b"\x37\xfa\x21\x3d"
BIG = bytes(range(256)) * 300


def decode(*parts: bytes, masked: bool = False, form: Form = Form.WHOLE) -> tuple[list[tuple[int, bytes]], int | None]:
    decoder = FrameDecoder(masked=masked, limit_bytes=LIMIT, form=form)
    found = [one for part in parts for one in decoder.feed(part)]
    return found, decoder.error.code if decoder.error else None


class Examples(SynchronousTestCase):
    """Those of RFC 6455, 5.7."""

    @each(
        ("8105 48656c6c6f", False, [(TEXT, b"Hello")]),
        ("8185 37fa213d 7f9f4d5158", True, [(TEXT, b"Hello")]),
        ("0103 48656c 8002 6c6f", False, [(TEXT, b"Hello")]),
        ("8905 48656c6c6f", False, [(PING, b"Hello")]),
        ("8a85 37fa213d 7f9f4d5158", True, [(PONG, b"Hello")]),
        ("827e0100" + "ab" * 256, False, [(BINARY, b"\xab" * 256)]),
        ("827f0000000000010000" + "cd" * 65536, False, [(BINARY, b"\xcd" * 65536)]),
    )
    def test_it_is_read(self, text: str, masked: bool, wanted: list[tuple[int, bytes]]) -> None:
        data = bytes.fromhex(text)
        self.assertEqual(decode(data, masked=masked), (wanted, None))
        if len(data) < 1000:
            singly = [data[at : at + 1] for at in range(len(data))]
            self.assertEqual(decode(*singly, masked=masked), (wanted, None))

    def test_a_mask_is_put_on_as_it_is_taken_off(self) -> None:
        self.assertEqual(frame(FIN | TEXT, b"Hello", MASK), bytes.fromhex("818537fa213d7f9f4d5158"))


class Mistakes(SynchronousTestCase):
    @each(
        ("a mask of a server", "8185 37fa213d 7f9f4d5158", False, PROTOCOL_ERROR),
        ("none of a client", "8105 48656c6c6f", True, PROTOCOL_ERROR),
        ("a reserved bit", "c105 48656c6c6f", False, PROTOCOL_ERROR),
        ("opcode 3", "8300", False, PROTOCOL_ERROR),
        ("opcode 11", "8b00", False, PROTOCOL_ERROR),
        ("a ping in fragments", "0900", False, PROTOCOL_ERROR),
        ("a long ping", "897e007e" + "00" * 126, False, PROTOCOL_ERROR),
        ("a continuation of nothing", "8000", False, PROTOCOL_ERROR),
        ("a message within another", "0100 8100", False, PROTOCOL_ERROR),
        ("a long length for a short one", "827e0005 0000000000", False, PROTOCOL_ERROR),
        ("a longer one", "827f0000000000000100", False, PROTOCOL_ERROR),
        ("the highest bit", "827f8000000000000000", False, PROTOCOL_ERROR),
        ("too long", "827f00000000000f4240", False, TOO_BIG),
        ("bad UTF-8", "8102 c328", False, BAD_DATA),
        ("UTF-8 that ends early", "8101 c3", False, BAD_DATA),
        ("bad over two fragments", "0101 c3 8001 28", False, BAD_DATA),
        ("a surrogate", "8103 eda080", False, BAD_DATA),
    )
    def test_it_is_told(self, _: str, text: str, masked: bool, code: int) -> None:
        self.assertEqual(decode(bytes.fromhex(text), masked=masked), ([], code))

    def test_what_stood_in_front_comes_out_and_nothing_more_follows(self) -> None:
        good, bad = frame(FIN | BINARY, b"good"), bytes.fromhex("8300")
        self.assertEqual(decode(good + bad + good, good), ([(BINARY, b"good")], PROTOCOL_ERROR))

    def test_fragments_together_may_not_be_longer_than_one_message(self) -> None:
        half = bytes(LIMIT // 2 + 1)
        self.assertEqual(decode(frame(BINARY, half), frame(FIN, half)), ([], TOO_BIG))
        exactly = bytes(LIMIT // 2)
        self.assertEqual(decode(frame(BINARY, exactly), frame(FIN, exactly))[1], None)

    def test_empty_fragments_have_a_number_and_others_the_length_of_a_message(self) -> None:
        empty = frame(0, b"")
        found, code = decode(frame(BINARY, b"a"), *[empty] * EMPTY_FRAGMENTS, frame(FIN, b"b"))
        self.assertEqual((found, code), ([(BINARY, b"ab")], None))
        self.assertEqual(decode(frame(BINARY, b"a"), *[empty] * (EMPTY_FRAGMENTS + 1)), ([], TOO_BIG))
        short = [frame(0, b"a")] * (2 * EMPTY_FRAGMENTS)
        self.assertEqual(decode(frame(BINARY, b""), *short, frame(FIN, b""))[0], [(BINARY, b"a" * len(short))])

    @each(
        ("fragments", frame(BINARY, b"a", MASK), frame(0, b"a", MASK)),
        ("empty_fragments", frame(BINARY, b"a", MASK), frame(0, b"", MASK)),
        ("bytes_of_a_long_frame", b"\x81\xff" + LIMIT.to_bytes(8, "big") + MASK, b"a"),
    )
    def test_what_is_kept_of_a_message_costs_no_more_than_its_length(
        self, _: str, first: bytes, each_time: bytes
    ) -> None:
        decoder = FrameDecoder(masked=True, limit_bytes=LIMIT)
        decoder.feed(first)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for _time in range(LIMIT // 2):
            decoder.feed(each_time)
        kept, _peak = tracemalloc.get_traced_memory()
        self.assertLess(kept, LIMIT)

    def test_of_thousands_of_frames_some_are_read_at_once_and_none_is_lost(self) -> None:
        for form in Form:
            decoder = FrameDecoder(masked=True, limit_bytes=LIMIT, form=form)
            data = (frame(FIN | BINARY, b"a", MASK) + frame(FIN | PONG, b"", MASK)) * HEADS + frame(
                FIN | PING, b"", MASK
            )
            found = [decoder.feed(data + b"\x82")]
            while decoder.is_full:
                found.append(decoder.feed(b""))
            self.assertEqual([len(some) for some in found], [HEADS, HEADS, 1], form)
            kind = PIECE if form is Form.BYTES else BINARY
            self.assertEqual(list(itertools.chain(*found)), [(kind, b"a"), (PONG, b"")] * HEADS + [(PING, b"")])
            self.assertEqual(decoder.feed(b"\x81" + MASK + b"\0"), [(kind, MASK[:1])])

    def test_a_mistake_behind_thousands_of_frames_is_found_when_they_are_read(self) -> None:
        decoder = FrameDecoder(masked=False, limit_bytes=LIMIT)
        decoder.feed(frame(FIN | PONG, b"") * (HEADS + 1) + frame(3, b""))
        self.assertIsNone(decoder.error)
        self.assertEqual(decoder.feed(b""), [(PONG, b"")])
        self.assertTrue(decoder.error is not None and not decoder.is_full)

    def test_a_letter_may_lie_over_two_fragments(self) -> None:
        self.assertEqual(decode(frame(TEXT, b"\xc3"), frame(FIN, b"\xa4")), ([(TEXT, "ä".encode())], None))

    def test_after_a_mistake_nothing_is_kept(self) -> None:
        decoder = FrameDecoder(masked=False, limit_bytes=LIMIT)
        decoder.feed(frame(BINARY, bytes(1000)) + b"\x83\x00" + bytes(1000))
        self.assertEqual(decoder.pending_bytes, 0)


class Forms(SynchronousTestCase):
    def test_control_frames_come_between_fragments(self) -> None:
        parts = (frame(BINARY, b"a"), frame(FIN | PING, b"!"), frame(FIN, b"b"))
        self.assertEqual(decode(*parts), ([(PING, b"!"), (BINARY, b"ab")], None))
        self.assertEqual(decode(*parts, form=Form.BYTES), ([(PIECE, b"a"), (PING, b"!"), (PIECE, b"b")], None))

    def test_a_large_message_is_begun_and_goes_on_in_pieces(self) -> None:
        data = frame(FIN | BINARY, BIG, MASK)
        parts = [data[at : at + 10_001] for at in range(0, len(data), 10_001)]
        found, error = decode(*parts, frame(FIN | BINARY, b"x", MASK), masked=True, form=Form.STARTED)
        self.assertIsNone(error)
        self.assertEqual(found[0], (START, len(BIG).to_bytes(8, "big")))
        self.assertEqual({kind for kind, _ in found[1:-1]}, {PIECE})
        self.assertEqual(b"".join(payload for _, payload in found[1:-1]), BIG)
        self.assertEqual(found[-1], (BINARY, b"x"))

    def test_nothing_is_kept_of_a_message_in_pieces(self) -> None:
        decoder = FrameDecoder(masked=True, limit_bytes=LIMIT, form=Form.STARTED)
        decoder.feed(frame(FIN | BINARY, BIG, MASK)[:50_000])
        self.assertEqual(decoder.pending_bytes, 0)

    def test_bytes_have_no_limit(self) -> None:
        data = bytes(3 * LIMIT)
        found, error = decode(frame(FIN | BINARY, data, MASK), masked=True, form=Form.BYTES)
        self.assertEqual((b"".join(payload for _, payload in found), error), (data, None))

    @each(("whole", b"\xc3\x28"), ("at the end", b"ab\xc3"))
    def test_text_in_pieces_is_checked(self, _: str, text: bytes) -> None:
        data = frame(FIN | TEXT, text)
        self.assertEqual(decode(data, form=Form.BYTES)[1], BAD_DATA)
        self.assertEqual(decode(*(data[at : at + 1] for at in range(len(data))), form=Form.BYTES)[1], BAD_DATA)


class Closes(SynchronousTestCase):
    @each(
        (b"", Closing(NO_CODE)),
        (b"\x03\xe8", Closing(1000)),
        (b"\x03\xe8bye", Closing(1000, "bye")),
        (b"\x0b\xb8", Closing(3000)),
        (b"\x13\x87", Closing(4999)),
    )
    def test_it_says(self, payload: bytes, wanted: Closing) -> None:
        self.assertEqual(parse_close(payload), wanted)

    @each(
        (b"\x03", PROTOCOL_ERROR),
        (b"\x03\xe7", PROTOCOL_ERROR),
        (b"\x03\xed", PROTOCOL_ERROR),
        (b"\x03\xee", PROTOCOL_ERROR),
        (b"\x03\xf7", PROTOCOL_ERROR),
        (b"\x07\xd0", PROTOCOL_ERROR),
        (b"\x13\x88", PROTOCOL_ERROR),
        (b"\x03\xe8\xff", BAD_DATA),
    )
    def test_it_says_nothing_that_may_be_said(self, payload: bytes, code: int) -> None:
        self.assertEqual(self.assertRaises(WsError, parse_close, payload).code, code)

    def test_a_long_reason_is_cut_between_letters(self) -> None:
        payload = close_payload(1000, "ä" * REASON_BYTES)
        self.assertLessEqual(len(payload), 125)
        self.assertEqual(parse_close(payload).reason, "ä" * (REASON_BYTES // 2))


KINDS = st.sampled_from((TEXT, BINARY, PING, PONG))
LENGTHS = st.integers(0, 300) | st.sampled_from((65535, 65536))
MESSAGES = st.lists(st.tuples(KINDS, LENGTHS, st.integers(0, 255)), max_size=5)


def sound(kind: int, length: int, letter: int) -> tuple[int, bytes]:
    """Make of what was drawn a message that there may be."""
    if kind in (PING, PONG):
        return kind, bytes([letter]) * min(length, 125)
    return kind, bytes([letter % 128]) * length if kind == TEXT else bytes([letter]) * length


class Library(SynchronousTestCase):
    """What a library writes is read, and what is written a library reads, however it is dealt out."""

    @given(MESSAGES, st.integers(1, 20_000), st.sampled_from(list(Form)))
    @PROPERTY
    def test_what_it_writes(self, drawn: list[tuple[int, int, int]], size: int, form: Form) -> None:
        messages = [sound(*one) for one in drawn]
        data = b"".join(
            TheirFrame(Opcode(kind), payload).serialize(mask=True, extensions=[]) for kind, payload in messages
        )
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        found, error = decode(*parts, masked=True, form=form)
        self.assertIsNone(error)
        if form is Form.WHOLE:
            self.assertEqual(found, messages)
        carried = b"".join(payload for kind, payload in found if kind in (TEXT, BINARY, PIECE))
        self.assertEqual(carried, b"".join(payload for kind, payload in messages if kind in (TEXT, BINARY)))

    @given(MESSAGES)
    @PROPERTY
    def test_what_it_reads(self, drawn: list[tuple[int, int, int]]) -> None:
        messages = [sound(*one) for one in drawn]
        protocol = ServerProtocol(state=State.OPEN, max_size=None)
        for kind, payload in messages:
            protocol.receive_data(frame(FIN | kind, payload, MASK))
        found = [
            (int(one.opcode), bytes(one.data)) for one in protocol.events_received() if isinstance(one, TheirFrame)
        ]
        self.assertEqual(found, messages)

    @given(st.binary(max_size=400), st.sampled_from(list(Form)), st.booleans())
    @PROPERTY
    def test_any_bytes_are_frames_or_a_mistake(self, data: bytes, form: Form, masked: bool) -> None:
        whole = decode(data, masked=masked, form=form)
        singly = decode(*(data[at : at + 1] for at in range(len(data))), masked=masked, form=form)
        self.assertEqual(whole[1], singly[1])
        if form is Form.WHOLE:
            self.assertEqual(whole[0], singly[0])
        for kind, payload in whole[0]:
            if kind == CLOSE:
                self.assertLessEqual(len(payload), 125)
