"""What holds for the decoder of every dialect, however its bytes are dealt out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.base import Decoder, Malformed, Refused, Request
from tests.tables import PROPERTY

LIMIT = 65536


def fed(decoder: Decoder, *parts: bytes) -> list[Request | Refused]:
    """Feed *parts* one after the other, and return every request that came out."""
    return [request for part in parts for request in decoder.feed(part)]


def byte_by_byte(data: bytes) -> list[bytes]:
    """Deal *data* out in single bytes."""
    return [data[at : at + 1] for at in range(len(data))]


class DecoderContract(SynchronousTestCase):
    """Subclass it with a dialect's decoder, one of its messages and the request in it."""

    message: bytes
    request: Request

    def decoder(self, limit: int = LIMIT) -> Decoder:
        """Return a new decoder of the dialect."""
        raise NotImplementedError

    def of_size(self, size: int) -> bytes:
        """Return a message whose payload has *size* bytes; at least 64 of them."""
        raise NotImplementedError

    def test_a_whole_message_is_one_request(self) -> None:
        decoder = self.decoder()
        self.assertEqual(fed(decoder, self.message), [self.request])
        self.assertFalse(decoder.pending)

    def test_byte_by_byte_it_is_the_same_request_and_pending_until_the_last(self) -> None:
        decoder = self.decoder()
        self.assertFalse(decoder.pending)
        for byte in byte_by_byte(self.message[:-1]):
            self.assertEqual(fed(decoder, byte), [])
            self.assertTrue(decoder.pending)
        self.assertEqual(fed(decoder, self.message[-1:]), [self.request])
        self.assertFalse(decoder.pending)

    def test_a_second_message_behind_it_is_a_second_request(self) -> None:
        decoder = self.decoder()
        self.assertEqual(fed(decoder, self.message + self.message), [self.request] * 2)
        self.assertFalse(decoder.pending)

    def test_a_partial_message_behind_it_is_pending_and_goes_on_with_the_next_bytes(self) -> None:
        for cut in range(1, len(self.message)):
            decoder = self.decoder()
            self.assertEqual(fed(decoder, self.message + self.message[:cut]), [self.request])
            self.assertTrue(decoder.pending)
            self.assertEqual(fed(decoder, self.message[cut:]), [self.request])
            self.assertFalse(decoder.pending)

    def test_nothing_fed_is_nothing_pending(self) -> None:
        decoder = self.decoder()
        self.assertEqual(fed(decoder, b""), [])
        self.assertFalse(decoder.pending)

    def test_what_is_not_asked_for_is_not_lost(self) -> None:
        decoder = self.decoder()
        first = next(iter(decoder.feed(self.message + self.message)))
        self.assertEqual(first, self.request)
        self.assertTrue(decoder.pending)
        self.assertEqual(fed(decoder, b""), [self.request])

    def test_a_message_at_the_limit_is_taken_and_one_byte_more_is_malformed(self) -> None:
        self.assertEqual(len(fed(self.decoder(200), self.of_size(200))), 1)
        with self.assertRaises(Malformed) as caught:
            fed(self.decoder(200), self.of_size(201))
        self.assertEqual(str(caught.exception), "a message of 201 bytes: at most 200 are accepted")

    def test_a_message_that_is_too_long_is_noticed_before_it_is_there(self) -> None:
        decoder = self.decoder(200)
        header = self.of_size(201)[:-201]
        with self.assertRaises(Malformed):
            fed(decoder, *byte_by_byte(header))

    def test_the_requests_before_a_malformed_message_still_come_out(self) -> None:
        got: list[Request | Refused] = []
        with self.assertRaises(Malformed):
            got.extend(self.decoder(200).feed(self.message + self.of_size(201)))
        self.assertEqual(got, [self.request])

    @PROPERTY
    @given(st.lists(st.binary(max_size=30), max_size=8))
    def test_garbage_is_malformed_refused_or_waits_and_nothing_else(self, parts: list[bytes]) -> None:
        try:
            got = fed(self.decoder(), *parts)
        except Malformed as e:
            self.assertTrue(str(e).isprintable())
        else:
            self.assertTrue(all(isinstance(one, Request | Refused) for one in got))

    @PROPERTY
    @given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 4))
    def test_however_the_bytes_are_dealt_out_the_requests_are_the_same(self, sizes: list[int], count: int) -> None:
        stream = self.message * count
        parts = []
        for size in sizes:
            parts.append(stream[:size])
            stream = stream[size:]
        self.assertEqual(fed(self.decoder(), *parts, stream), [self.request] * count)
