"""plumberd.pure.web_http: requests as browsers send them, and as nobody should."""

from __future__ import annotations

from http import HTTPStatus

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.refusals import Refusal
from plumberd.pure.web_http import (
    ANSWER_BYTES,
    REQUEST_BYTES,
    STATUS,
    AnswerReader,
    HttpAnswer,
    HttpError,
    RequestReader,
    accept_of,
    answer,
    asking,
    check_switched,
    refusal,
    refusal_of,
    switching,
)
from tests.tables import PROPERTY, each

GET = b"GET /pong HTTP/1.1\r\nHost: a\r\nAccept: x\r\n\r\n"


class Requests(SynchronousTestCase):
    def test_one_is_read_whole_byte_by_byte_and_with_what_stands_behind_it(self) -> None:
        for parts in ([GET], [GET[at : at + 1] for at in range(len(GET))], [GET + b"\x81\x80"]):
            reader = RequestReader()
            found = [one for part in parts if (one := reader.receive(part)) is not None]
            self.assertEqual([(one.method, one.target) for one in found], [("GET", "/pong")])
            self.assertEqual(found[0].headers, (("host", "a"), ("accept", "x")))
            self.assertEqual(reader.rest, parts[-1][len(GET) :] if len(parts) == 1 else b"")

    @each(
        ("nonsense", b"hello\r\n\r\n", 400),
        ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("an old version", b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 505),
        ("a folded header", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        ("two blanks", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("a blank before the colon", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("a body", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 400),
        ("a body to come", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("two lengths", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        ("many headers", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        ("too long", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * REQUEST_BYTES, 431),
    )
    def test_what_is_none(self, _: str, data: bytes, status: int) -> None:
        self.assertEqual(self.assertRaises(HttpError, RequestReader().receive, data).status, status)

    def test_what_is_wrong_is_told_without_repeating_it(self) -> None:
        for line in (b"Authorization: Bearer secret\x00", b"secret secret", b"Host : secret"):
            error = self.assertRaises(HttpError, RequestReader().receive, b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")
            self.assertNotIn("secret", str(error))

    @given(st.binary(max_size=300))
    @PROPERTY
    def test_any_bytes_are_a_request_or_a_mistake(self, data: bytes) -> None:
        reader = RequestReader()
        try:
            reader.receive(data)
        except HttpError as e:
            self.assertIn(e.status, HTTPStatus)

    def test_a_header_that_stands_twice_is_no_one_header(self) -> None:
        request = RequestReader().receive(
            b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: x\r\nOrigin: y\r\nL: a, b\r\nL: ,c\r\n\r\n"
        )
        assert request is not None
        self.assertRaises(HttpError, request.one, "origin")
        self.assertEqual((request.one("missing"), request.words("l")), (None, ("a", "b", "c")))


class Answers(SynchronousTestCase):
    def test_the_rfc_s_own_example(self) -> None:
        self.assertEqual(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    @each((None,), ("ipc",))
    def test_a_beginning_is_read_back(self, protocol: str | None) -> None:
        data = switching("dGhlIHNhbXBsZSBub25jZQ==", protocol)
        for parts in ([data + b"\x82\x00"], [data[at : at + 1] for at in range(len(data))]):
            reader = AnswerReader()
            found = [one for part in parts if (one := reader.receive(part)) is not None]
            self.assertEqual(found[0].status, 101)
            self.assertEqual(found[0].first("sec-websocket-protocol"), protocol)
            self.assertEqual(reader.rest, b"\x82\x00" if len(parts) == 1 else b"")

    def test_a_refusal_is_read_back(self) -> None:
        reader = AnswerReader()
        found = reader.receive(refusal(HTTPStatus.UNAUTHORIZED, "unauthenticated", 0))
        assert found is not None
        self.assertEqual((found.status, found.first("www-authenticate")), (401, "Bearer"))
        self.assertEqual(reader.rest, b"unauthenticated\n")

    @each(
        ("nothing", b""),
        ("another protocol", b"SSH-2.0-OpenSSH\r\n\r\n"),
        ("no end", b"HTTP/1.1 101 x\r\n" + b"x" * ANSWER_BYTES),
        ("no status", b"HTTP/1.1 abc\r\n\r\n"),
    )
    def test_what_is_none(self, _: str, data: bytes) -> None:
        self.assertRaises(HttpError, AnswerReader().receive, data)

    @given(st.binary(min_size=1, max_size=300))
    @PROPERTY
    def test_any_bytes_are_an_answer_or_a_mistake(self, data: bytes) -> None:
        for prefix in (b"", b"HTTP/1.1 101 x\r\n", b"HTTP/1.1 "):
            try:
                AnswerReader().receive(prefix + data + b"\r\n\r\n")
            except HttpError as e:
                self.assertEqual(e.status, HTTPStatus.BAD_GATEWAY)

    def test_every_refusal_has_its_status(self) -> None:
        self.assertEqual(set(STATUS), set(Refusal))
        self.assertEqual(
            [STATUS[word].value for word in Refusal], [403, 401, 404, 502, 504, 400, 503, 502], list(Refusal)
        )

    def test_a_page_says_what_it_is(self) -> None:
        data = answer(HTTPStatus.OK, b"body", "text/plain", 0, (("X", "y"),), has_body=False)
        head, _, body = data.partition(b"\r\n\r\n")
        self.assertEqual(body, b"")
        for line in (b"Content-Length: 4", b"X-Content-Type-Options: nosniff", b"Connection: close", b"X: y"):
            self.assertIn(line, head.split(b"\r\n"))


class Calling(SynchronousTestCase):
    KEY = "dGhlIHNhbXBsZSBub25jZQ=="

    def test_what_is_asked_is_a_request(self) -> None:
        data = asking("h.example:9080", "/pong", self.KEY, ("ipc",), (("Plumb-Hops", "1"),))
        found = RequestReader().receive(data)
        assert found is not None
        self.assertEqual((found.target, found.one("host"), found.one("plumb-hops")), ("/pong", "h.example:9080", "1"))
        self.assertEqual(found.words("sec-websocket-protocol"), ("ipc",))

    @each(
        ("no upgrade", {"upgrade": None}),
        ("another upgrade", {"upgrade": "h2c"}),
        ("another key", {"sec-websocket-accept": "x"}),
        ("an extension", {"sec-websocket-extensions": "permessage-deflate"}),
        ("another subprotocol", {"sec-websocket-protocol": "chat"}),
        ("a second key", {"Sec-WebSocket-Accept": "x"}),
        ("a second subprotocol", {"Sec-WebSocket-Protocol": "ipc"}),
    )
    def test_what_is_no_answer_to_it(self, _: str, changed: dict[str, str | None]) -> None:
        good = {"upgrade": "WebSocket", "sec-websocket-accept": accept_of(self.KEY), "sec-websocket-protocol": "ipc"}
        check_switched(HttpAnswer(101, tuple(good.items())), self.KEY, ("ipc",))
        bad = tuple((name.lower(), value) for name, value in {**good, **changed}.items() if value is not None)
        self.assertRaises(HttpError, check_switched, HttpAnswer(101, bad), self.KEY, ("ipc",))

    @each(
        (403, b"denied\n", "denied", "the far side refused: denied"),
        (404, b"unknown-service: no such", "unknown-service", "the far side refused: unknown-service: no such"),
        (503, b"denied", "busy", "the far side refused: 503 denied"),
        (502, b"not-possible: x", "not-possible", "the far side refused: not-possible: x"),
        (502, b"<html>", "unreachable", "the far side refused: 502 <html>"),
        (200, b"hello", "unreachable", "the far side answered 200"),
        (403, b"\x1b[31mred", "denied", "the far side refused: 403 [31mred"),
    )
    def test_a_refusal(self, status: int, body: bytes, word: str, text: str) -> None:
        found = refusal_of(HttpAnswer(status, ()), body)
        self.assertEqual(found.word.value, word)
        self.assertTrue(found.reason.startswith(text), found.reason)
