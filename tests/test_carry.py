"""plumberd.pure.carry: the question to a scheme daemon and its answer."""

from __future__ import annotations

import ipaddress

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.carry import (
    ANSWER_BYTES,
    CarryAnswer,
    CarryRequest,
    carry,
    carry_messages,
    carry_tls,
    no,
    ok,
    parse_carried,
)
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import URI_BYTES, Uri, UriError, parse_uri
from tests.tables import each

QUESTION = bytes.fromhex("000000197463703a2f2f3132372e302e302e313a393730302f706f6e67")
"""As the current generation's broker sends it."""


class Question(SynchronousTestCase):
    def test_it_is_what_libipc_sends(self) -> None:
        self.assertEqual(carry(Uri("tcp", "127.0.0.1", 9700, "pong")), QUESTION)

    def test_neither_user_nor_options_go_along(self) -> None:
        uri = Uri("tcp", "127.0.0.1", 9700, "pong", "user", "secret", (("framing", "raw"),))
        self.assertEqual(carry(uri), QUESTION)

    def test_it_is_read_whole_and_byte_by_byte(self) -> None:
        self.assertEqual(CarryRequest().receive(QUESTION), "tcp://127.0.0.1:9700/pong")
        request = CarryRequest()
        told = [request.receive(QUESTION[n : n + 1]) for n in range(len(QUESTION))]
        self.assertEqual(told, [None] * (len(QUESTION) - 1) + ["tcp://127.0.0.1:9700/pong"])

    @each(
        ("a_tail", QUESTION + b"x"),
        ("nothing", b"\0\0\0\0"),
        ("too_long", (URI_BYTES + 1).to_bytes(4, "big")),
        ("http", b"GET / HTTP/1.1\r\n"),
    )
    def test_anything_else_is_refused(self, _: str, data: bytes) -> None:
        with self.assertRaises(Refused) as caught:
            CarryRequest().receive(data)
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)


class Answer(SynchronousTestCase):
    def feed(self, data: bytes) -> bool:
        """Give exactly what is wanted, as the reader of a socket would."""
        answer = CarryAnswer()
        while True:
            part, data = data[: answer.wanted_bytes], data[answer.wanted_bytes :]
            if answer.receive(part):
                self.tail, self.message_bytes = data, answer.message_bytes
                return True
            if not part:
                return False

    def test_ok_is_read_and_not_one_byte_more(self) -> None:
        self.assertTrue(self.feed(ok() + b"the client's"))
        self.assertEqual(self.tail, b"the client's")
        self.assertEqual((ok(), self.message_bytes), (bytes.fromhex("000000026f6b"), 0))

    def test_how_long_messages_may_be_stands_behind_it(self) -> None:
        self.assertTrue(self.feed(ok(65507)))
        self.assertEqual((ok(65507), self.message_bytes), (b"\0\0\0\x08ok 65507", 65507))

    @each(*((word.value, word) for word in Refusal))
    def test_our_own_refusals_keep_their_word(self, _: str, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            self.feed(no(word, "a reason"))
        self.assertEqual(caught.exception.word, word)
        self.assertIn("a reason", caught.exception.reason)

    @each(
        ("no", b"\0\0\0\2no"),
        ("ne", b"\0\0\0\2ne"),
        ("no_number", b"\0\0\0\3ok "),
        ("a_word_behind_it", b"\0\0\0\5ok at"),
        ("nothing_goes_through", b"\0\0\0\4ok 0"),
        ("out_of_all_bounds", b"\0\0\0\x0dok 1234567890"),
        ("an_end_of_line", b"\0\0\0\5ok 1\n"),
        ("hang_up", b""),
        ("hang_up_within", b"\0\0\0\2o"),
        ("empty", b"\0\0\0\0"),
        ("too_long", (ANSWER_BYTES + 1).to_bytes(4, "big")),
        ("raw", b"ok\r\n"),
    )
    def test_everything_else_is_unreachable(self, _: str, data: bytes) -> None:
        with self.assertRaises(Refused) as caught:
            self.feed(data)
        self.assertEqual(caught.exception.word, Refusal.UNREACHABLE)

    def test_a_hostile_reason_is_printable(self) -> None:
        with self.assertRaises(Refused) as caught:
            self.feed(b"\0\0\0\x08no \x1b[31m")
        self.assertNotIn("\x1b", caught.exception.reason)


class InsideTls(SynchronousTestCase):
    """What a broker of ours says to a tlsd of ours besides the URI."""

    def text(self, uri: str, address: str, *, ruled: bool) -> str:
        question = carry_tls(parse_uri(uri), ipaddress.ip_address(address), ruled=ruled)
        received = CarryRequest().receive(question)
        assert received is not None
        return received

    @each(
        ("plain", "tls://a.example:9001/pong", "192.0.2.1", False),
        ("ruled", "tls://a.example:9001/pong", "192.0.2.1", True),
        ("options", "tls://a.example:443?alpn=h2%2Chttp/1.1", "2001:db8::1", True),
        ("login", "tls://carol:p%26address=x@a.example:9001/pong", "192.0.2.1", False),
    )
    def test_it_is_understood(self, _: str, uri: str, address: str, ruled: bool) -> None:
        carried = parse_carried(self.text(uri, address, ruled=ruled))
        self.assertEqual(parse_uri(carried.text), parse_uri(uri))
        self.assertEqual((carried.address, carried.ruled), (ipaddress.ip_address(address), ruled))
        self.assertNotIn("carol", repr(carried))

    def test_a_broker_of_libipc_says_neither(self) -> None:
        carried = parse_carried("tls://a.example:9001/pong")
        self.assertEqual((carried.text, carried.address, carried.ruled), ("tls://a.example:9001/pong", None, False))

    def test_what_is_no_address_is_refused_and_too_long_is_not_sent(self) -> None:
        with self.assertRaises(Refused):
            parse_carried("tls://a.example:9001/pong?address=b.example")
        with self.assertRaises(Refused):
            carry_tls(parse_uri("tls://u:" + "x" * 4060 + "@a.example/pong"), ipaddress.ip_address("::1"), ruled=True)

    def test_no_client_can_say_them(self) -> None:
        for option in ("address=192.0.2.1", "ruled=yes", "alpn=h2&ruled=yes"):
            with self.assertRaises(UriError):
                parse_uri(f"tls://a.example:9001/pong?{option}")


class WithMessages(SynchronousTestCase):
    """What a broker of ours says to a udpd of ours besides the URI."""

    @each(
        ("raw", "udp://a.example:9000/pong", "192.0.2.1", "raw", False),
        ("framed", "udp://a.example:9000/pong?framing=libipc-zig", "2001:db8::1", "libipc-zig", True),
        ("no_service", "udp://192.0.2.1:53", "192.0.2.1", "libipc-2019", False),
    )
    def test_it_is_understood(self, _: str, uri: str, address: str, framing: str, framed: bool) -> None:
        where = ipaddress.ip_address(address)
        text = CarryRequest().receive(carry_messages(parse_uri(uri), where, framing, framed=framed))
        assert text is not None
        carried = parse_carried(text)
        self.assertEqual(parse_uri(carried.text), parse_uri(uri))
        self.assertEqual((carried.address, carried.framing, carried.framed), (where, framing, framed))

    @each((True,), (False,))
    def test_a_rule_is_told_with_it(self, ruled: bool) -> None:
        where = ipaddress.ip_address("192.0.2.1")
        uri = parse_uri("wss://a.example/pong?text=yes")
        text = CarryRequest().receive(carry_messages(uri, where, "raw", framed=True, ruled=ruled))
        assert text is not None
        carried = parse_carried(text)
        self.assertEqual((carried.ruled, carried.framing, carried.framed), (ruled, "raw", True))
        self.assertEqual(parse_uri(carried.text), uri)

    def test_a_framing_that_does_not_exist_is_refused_and_too_long_is_not_sent(self) -> None:
        with self.assertRaises(Refused):
            parse_carried("udp://a.example:9000/pong?address=192.0.2.1&messages=telex")
        with self.assertRaises(Refused):
            uri = Uri("udp", "a" * 4096, 1)
            carry_messages(uri, ipaddress.ip_address("::1"), "raw", framed=False)

    def test_no_client_can_say_it(self) -> None:
        for option in ("address=192.0.2.1", "messages=raw", "framing=raw&messages=raw"):
            with self.assertRaises(UriError):
                parse_uri(f"udp://a.example:9000/pong?{option}")
