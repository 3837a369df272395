"""plumberd.pure.pairs: a lookup's text, and the client's own routes in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.names import is_reserved, is_service
from plumberd.pure.pairs import VARIABLES, Pairs, parse_lookup
from plumberd.pure.refusals import Refusal, Refused
from tests.tables import PROPERTY, each

PROTOCOL = b"audio tls://some.example.com/audio ;pong tcp://pong.example.com:9000/pong"


class Value(SynchronousTestCase):
    @each(
        ("protocol_first", PROTOCOL, "audio", "tls://some.example.com/audio"),
        ("protocol_second", PROTOCOL, "pong", "tcp://pong.example.com:9000/pong"),
        ("one", b"pong tcp://h:1", "pong", "tcp://h:1"),
        ("the_last_counts", b"pong tcp://a:1;x tcp://x:1;pong tcp://b:1", "pong", "tcp://b:1"),
        ("blanks_around", b"  \t pong   tcp://h:1 \r\n", "pong", "tcp://h:1"),
        ("nul_of_a_c_string", b"pong tcp://h:1\0", "pong", "tcp://h:1"),
        ("empty_pairs", b";;pong tcp://h:1;;", "pong", "tcp://h:1"),
        ("others_are_not_our_business", b"\xff\xfe ://;@@@;pong tcp://h:1;%%% %%%", "pong", "tcp://h:1"),
        ("a_later_name_without_uri_is_no_pair", b"pong tcp://h:1;pong", "pong", "tcp://h:1"),
        ("words_behind_stay_for_the_uri_to_refuse", b"pong tcp://h:1 more", "pong", "tcp://h:1 more"),
    )
    def test_the_last_pair_of_exactly_that_name_counts(self, _: str, value: bytes, service: str, uri: str) -> None:
        self.assertEqual(Pairs(value).uri_of(service), uri)

    @each(
        ("empty", b"", "pong"),
        ("another", PROTOCOL, "video"),
        ("a_prefix", b"pongd tcp://h:1", "pong"),
        ("a_longer_name", b"pon tcp://h:1", "pong"),
        ("another_case", b"Pong tcp://h:1", "pong"),
        ("no_uri", b"pong", "pong"),
        ("no_uri_but_a_blank", b"pong ", "pong"),
        ("no_blank", b"pong=tcp://h:1", "pong"),
        ("in_a_uri", b"x tls://h/pong;y pong", "pong"),
    )
    def test_no_other_pair_does(self, _: str, value: bytes, service: str) -> None:
        self.assertIsNone(Pairs(value).uri_of(service))

    def test_a_uri_that_is_not_utf_8_is_a_bad_request_that_does_not_repeat_it(self) -> None:
        with self.assertRaises(Refused) as caught:
            Pairs(b"pong tcp://hunter2\xff").uri_of("pong")
        self.assertEqual(caught.exception.word, Refusal.BAD_REQUEST)
        self.assertIn("pong", caught.exception.reason)
        self.assertNotIn("hunter2", caught.exception.reason)

    def test_the_value_never_shows(self) -> None:
        self.assertNotIn("hunter2", f"{Pairs(b'x tls://a:hunter2@h')!r} {Pairs(b'x tls://a:hunter2@h')}")

    def test_this_project_s_variable_comes_before_the_existing_programs_one(self) -> None:
        self.assertEqual(VARIABLES, ("IPC_NETWORKD", "IPC_NETWORK"))

    @PROPERTY
    @given(st.binary(max_size=60), st.binary(max_size=60).filter(lambda tail: b"pong" not in tail))
    def test_what_stands_in_front_never_hides_the_last_pair(self, front: bytes, tail: bytes) -> None:
        self.assertEqual(Pairs(front + b";pong tcp://h:1;" + tail).uri_of("pong"), "tcp://h:1")


class Lookup(SynchronousTestCase):
    def test_the_text_is_the_service_and_the_variable_s_whole_value(self) -> None:
        self.assertEqual(parse_lookup(b"pong;" + PROTOCOL), ("pong", Pairs(PROTOCOL)))

    @each(
        ("no_semicolon", b"pong", Pairs(b"")),
        ("no_pairs", b"pong;", Pairs(b"")),
        ("nul", b"pong\0", Pairs(b"")),
        ("blanks", b" pong \n;x y", Pairs(b"x y")),
    )
    def test_the_value_may_be_missing_and_blanks_may_stand_around(self, _: str, text: bytes, pairs: Pairs) -> None:
        self.assertEqual(parse_lookup(text), ("pong", pairs))

    @each(
        ("empty", b"", Refusal.BAD_REQUEST),
        ("no_name", b";pong tcp://h:1", Refusal.BAD_REQUEST),
        ("path", b"../pong;", Refusal.BAD_REQUEST),
        ("not_utf_8", b"\xff\xff;", Refusal.BAD_REQUEST),
        ("nul_inside", b"po\0ng;", Refusal.BAD_REQUEST),
        ("too_long", b"x" * 65, Refusal.BAD_REQUEST),
        ("the_broker", b"plumberd;", Refusal.DENIED),
        ("a_scheme", b"tcp;tcp tcp://h:1", Refusal.DENIED),
        ("a_lock", b"pong.lock", Refusal.DENIED),
    )
    def test_a_bad_name_is_refused(self, _: str, text: bytes, word: Refusal) -> None:
        with self.assertRaises(Refused) as caught:
            parse_lookup(text)
        self.assertEqual(caught.exception.word, word)

    @PROPERTY
    @given(st.binary(max_size=100))
    def test_whatever_arrives_is_a_free_well_formed_name_or_refused(self, text: bytes) -> None:
        try:
            name, _ = parse_lookup(text)
        except Refused:
            return
        self.assertTrue(is_service(name) and not is_reserved(name))
