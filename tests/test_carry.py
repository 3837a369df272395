"""plumberd.pure.carry: the question to a scheme daemon and its answer."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.carry import ANSWER_BYTES, CarryAnswer, CarryRequest, carry, no, ok
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import URI_BYTES, Uri
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
                self.tail = data
                return True
            if not part:
                return False

    def test_ok_is_read_and_not_one_byte_more(self) -> None:
        self.assertTrue(self.feed(ok() + b"the client's"))
        self.assertEqual(self.tail, b"the client's")
        self.assertEqual(ok(), bytes.fromhex("000000026f6b"))

    @each(*((word.value, word) for word in Refusal))
    def test_our_own_refusals_keep_their_word(self, _: str, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            self.feed(no(word, "a reason"))
        self.assertEqual(caught.exception.word, word)
        self.assertIn("a reason", caught.exception.reason)

    @each(
        ("no", b"\0\0\0\2no"),
        ("ne", b"\0\0\0\2ne"),
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
