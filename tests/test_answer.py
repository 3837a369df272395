"""plumberd.answer: a request's bytes and an answer's pieces; what client programs see of it is in test_client."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from plumberd.answer import ANSWER_BYTES, REQUEST_BYTES, Answer, Error, Refused, encode_request, timed_out
from tests.support import CleanTestCase
from tests.tables import PROPERTY, each


def framed(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


class Requests(CleanTestCase):
    def test_a_request_is_a_length_and_json(self) -> None:
        data = encode_request({"op": "lookup", "service": "pöng"})
        self.assertEqual(struct.unpack(">I", data[:4])[0], len(data) - 4)
        self.assertEqual(json.loads(data[4:]), {"op": "lookup", "service": "pöng"})

    def test_at_the_limit_it_goes_and_beyond_it_does_not(self) -> None:
        empty = len(encode_request({"op": "lookup", "routes": ""})) - 4
        self.assertEqual(
            len(encode_request({"op": "lookup", "routes": "x" * (REQUEST_BYTES - empty)})), 4 + REQUEST_BYTES
        )
        with self.assertRaises(Error) as raised:
            encode_request({"op": "lookup", "routes": "x" * (REQUEST_BYTES - empty + 1)})
        self.assertEqual(raised.exception.errno, errno.EMSGSIZE)
        self.assertIn("65537 bytes", str(raised.exception.strerror))


class Answers(CleanTestCase):
    def null(self) -> int:
        return os.open("/dev/null", os.O_RDONLY)

    @PROPERTY
    @given(
        st.dictionaries(st.text(max_size=9), st.text(max_size=40), max_size=6),
        st.lists(st.integers(min_value=1, max_value=20), max_size=60),
    )
    def test_however_it_is_cut_it_is_the_same_answer(self, members: dict[str, str], cuts: list[int]) -> None:
        data = framed(json.dumps({**members, "ok": True}).encode())
        answer = Answer()
        for cut in [*cuts, *[len(data)] * 2]:
            missing = answer.missing_bytes
            if not missing:
                break
            piece, data = data[: min(cut, missing)], data[min(cut, missing) :]
            self.assertEqual(answer.add(piece), not answer.missing_bytes)
        self.assertEqual(answer.take(), ({**members, "ok": True}, -1))
        self.assertEqual(data, b"")

    def test_what_is_behind_it_is_not_asked_for(self) -> None:
        left, right = self.pair()
        left.sendall(framed(b'{"ok":true}') + b"tail")
        answer = Answer()
        while not answer.receive(right):
            pass
        self.assertEqual(answer.take()[0], {"ok": True})
        self.assertEqual(right.recv(9), b"tail")

    def test_a_descriptor_that_is_not_taken_is_closed(self) -> None:
        answer = Answer()
        answer.add_descriptor(self.null())
        answer.add_descriptor(self.null())
        answer.close()
        answer.close()
        self.assertEqual(answer.missing_bytes, 4)

    @each(
        (b"", errno.ECONNRESET, "hung up"),
        (struct.pack(">I", ANSWER_BYTES + 1), errno.EPROTO, "65537 bytes"),
    )
    def test_bytes_that_are_no_answer(self, data: bytes, number: int, text: str) -> None:
        with self.assertRaises(Error) as raised:
            Answer().add(data)
        self.assertEqual(raised.exception.errno, number)
        self.assertIn(text, str(raised.exception.strerror))

    def test_a_refusal_keeps_the_descriptor_for_its_closing(self) -> None:
        answer = Answer()
        answer.add(framed(b'{"ok":false,"error":"busy","reason":"r"}')[:4])
        answer.add(framed(b'{"ok":false,"error":"busy","reason":"r"}')[4:])
        answer.add_descriptor(self.null())
        with self.assertRaises(Refused) as raised:
            answer.take()
        self.assertEqual((raised.exception.word, raised.exception.reason), ("busy", "r"))
        answer.close()

    def test_what_the_broker_did_stands_in_the_error(self) -> None:
        answer = Answer()
        for piece in (b"\0\0\0\x0b", b'{"ok":true}'):
            answer.add(piece)
        with self.assertRaises(Error) as raised:
            answer.take_socket("accepted a connection")
        self.assertEqual(raised.exception.strerror, "the broker accepted a connection and sent no descriptor")

    def test_a_socket_is_the_caller_s(self) -> None:
        answer = Answer()
        kept, given_away = socket.socketpair()
        with kept:
            answer.add_descriptor(given_away.detach())
            for piece in (b"\0\0\0\x0b", b'{"ok":true}'):
                answer.add(piece)
            sock, _ = answer.take_socket()
            answer.close()
            with sock:
                kept.sendall(b"x")
                self.assertEqual(sock.recv(1), b"x")

    def test_the_time_stands_in_the_error(self) -> None:
        self.assertEqual(timed_out(1.5).strerror, "the broker did not answer within 1.5 seconds")
