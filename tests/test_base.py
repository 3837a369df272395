"""plumberd.pure.dialects.base: frames cut out of a stream, and what a request shows of itself."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.base import Decoder, FrameDecoder, Malformed, Refused, Request, Send
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from tests import codec_contract
from tests.codec_contract import LIMIT, byte_by_byte, fed
from tests.tables import each


class Plain(FrameDecoder):
    """The smallest dialect: the payload is the operation."""

    def request(self, payload: bytes) -> Request | Refused:
        if payload == b"bad":
            raise Malformed("a bad payload")
        if payload == b"refused":
            return Refused(Refusal.DENIED, "no")
        return Request(payload.decode("latin-1"))


class Marked(Plain):
    """One with another header: the length stands behind a mark that must be 7."""

    header = struct.Struct("<BI")

    def length(self, fields: tuple[int, ...]) -> int:
        if fields[0] != 7:
            raise Malformed(f"mark {fields[0]}")
        return fields[1]


def frame(payload: bytes) -> bytes:
    """Frame *payload* as the default header says."""
    return struct.pack(">I", len(payload)) + payload


class PlainContract(codec_contract.DecoderContract):
    message = frame(b"hello")
    request = Request("hello")

    def decoder(self, limit: int = LIMIT) -> Decoder:
        return Plain(limit)

    def of_size(self, size: int) -> bytes:
        return frame(b"x" * size)


class MarkedContract(codec_contract.DecoderContract):
    message = struct.pack("<BI", 7, 5) + b"hello"
    request = Request("hello")

    def decoder(self, limit: int = LIMIT) -> Decoder:
        return Marked(limit)

    def of_size(self, size: int) -> bytes:
        return struct.pack("<BI", 7, size) + b"x" * size


class Frames(SynchronousTestCase):
    def test_an_empty_payload_is_a_message(self) -> None:
        decoder = Plain(10)
        self.assertEqual(fed(decoder, frame(b"") * 2), [Request(""), Request("")])
        self.assertFalse(decoder.pending)

    def test_a_limit_of_nothing_takes_empty_payloads_only(self) -> None:
        self.assertEqual(fed(Plain(0), frame(b"")), [Request("")])
        with self.assertRaises(Malformed):
            fed(Plain(0), frame(b"x"))

    @each(("largest", 2**32 - 1), ("sign", 2**31), ("one_more_than_the_limit", 11))
    def test_a_length_beyond_the_limit_is_malformed_at_once(self, _: str, length: int) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(Plain(10), struct.pack(">I", length))
        self.assertEqual(str(caught.exception), f"a message of {length} bytes: at most 10 are accepted")

    def test_a_bad_header_is_malformed_as_soon_as_it_is_whole(self) -> None:
        decoder = Marked(10)
        self.assertEqual(fed(decoder, b"\x08\0\0\0"), [])
        with self.assertRaises(Malformed) as caught:
            fed(decoder, b"\0")
        self.assertEqual(str(caught.exception), "mark 8")

    def test_a_refused_request_ends_nothing(self) -> None:
        stream = frame(b"a") + frame(b"refused") + frame(b"b")
        wanted = [Request("a"), Refused(Refusal.DENIED, "no"), Request("b")]
        self.assertEqual(fed(Plain(10), stream), wanted)
        self.assertEqual(fed(Plain(10), *byte_by_byte(stream)), wanted)

    def test_a_malformed_payload_ends_the_stream(self) -> None:
        got: list[Request | Refused] = []
        with self.assertRaises(Malformed):
            got.extend(Plain(10).feed(frame(b"a") + frame(b"bad") + frame(b"b")))
        self.assertEqual(got, [Request("a")])

    def test_a_dialect_has_to_say_what_its_payloads_are(self) -> None:
        with self.assertRaises(TypeError):
            FrameDecoder(10)  # type: ignore[abstract]


class Values(SynchronousTestCase):
    def test_a_request_shows_neither_its_routes_nor_its_uri(self) -> None:
        request = Request("lookup", None, Pairs(b"a tls://u:hunter2@h"), "tls://u:hunter2@h")
        self.assertNotIn("hunter2", f"{request!r} {request}")

    def test_a_request_has_no_routes_no_uri_and_no_mark_until_they_are_given(self) -> None:
        request = Request("status")
        self.assertEqual((request.service, request.pairs, request.uri, request.ident), (None, Pairs(b""), None, None))

    def test_what_is_sent_carries_no_descriptor_until_that_is_said(self) -> None:
        self.assertFalse(Send(b"ok").descriptor)
