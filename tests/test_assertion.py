"""plumberd.pure.policy.assertion: what a policy is meant to do, a line each."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.assertion import (
    FILE_BYTES,
    LINE_CHARS,
    MODES,
    Assertion,
    AssertionsError,
    check_target,
    check_who,
    parse_assertions,
    parse_service,
)
from plumberd.pure.policy.direction import Direction
from tests.tables import PROPERTY, each

IN, OUT, SERVE = Direction.IN, Direction.OUT, Direction.SERVE
V4 = ipaddress.ip_address("192.0.2.7")
V6 = ipaddress.ip_address("2001:db8::7")


class Read(SynchronousTestCase):
    @each(
        (
            "granted out pong tls://pong.example.com:9000/pong as user:alice",
            Assertion(1, "", True, OUT, "pong", "tls://pong.example.com:9000/pong", (), ("user:alice",)),
        ),
        ("refused out pong", Assertion(1, "", False, OUT, "pong")),
        ("refused out any tcp://192.0.2.7:80", Assertion(1, "", False, OUT, None, "tcp://192.0.2.7:80")),
        ("refused out * tcp://192.0.2.7:80", Assertion(1, "", False, OUT, None, "tcp://192.0.2.7:80")),
        ("granted out pong unix:///pong2", Assertion(1, "", True, OUT, "pong", "unix:///pong2")),
        ("granted in pong tcp:192.0.2.7", Assertion(1, "", True, IN, "pong", "tcp:192.0.2.7")),
        ("granted in pong tcp://192.0.2.7", Assertion(1, "", True, IN, "pong", "tcp://192.0.2.7")),
        ("granted in pong tcp:[2001:db8::7]", Assertion(1, "", True, IN, "pong", "tcp:[2001:db8::7]")),
        ("granted in pong tls:example.com", Assertion(1, "", True, IN, "pong", "tls:example.com")),
        (
            "granted in pong tls:192.0.2.7 as psk:laptop mode relayed",
            Assertion(1, "", True, IN, "pong", "tls:192.0.2.7", (), ("psk:laptop",), "relayed"),
        ),
        ("granted serve pong as user:alice", Assertion(1, "", True, SERVE, "pong", None, (), ("user:alice",))),
        (
            "granted out pong tcp://a.example:1 at 192.0.2.7 at [2001:db8::7] as confined as uid:7 mode locked",
            Assertion(1, "", True, OUT, "pong", "tcp://a.example:1", (V4, V6), ("confined", "uid:7"), "locked"),
        ),
        (
            "granted out pong mode direct as uid:7 at 2001:db8::7",
            Assertion(1, "", True, OUT, "pong", None, (V6,), ("uid:7",), "direct"),
        ),
        (
            "granted out pong tcp://a.example at ::ffff:192.0.2.7",
            Assertion(1, "", True, OUT, "pong", "tcp://a.example", (V4,)),
        ),
    )
    def test_an_assertion_is_read(self, text: str, wanted: Assertion) -> None:
        (found,) = parse_assertions(text)
        self.assertEqual(found.text, text)
        self.assertEqual(found, Assertion(**{**wanted.__dict__, "text": text}))

    def test_comments_and_empty_lines_say_nothing(self) -> None:
        text = "# first\n\n  \t\ngranted out pong   # why\r\n   #granted\nrefused  out\taudio"
        self.assertEqual(
            [(one.number, one.text) for one in parse_assertions(text)],
            [(4, "granted out pong"), (6, "refused out audio")],
        )

    def test_every_mode_that_a_hand_over_can_have_may_be_wanted(self) -> None:
        self.assertEqual(MODES, ("locked", "direct", "relayed", "framed", "local"))
        for mode in MODES:
            self.assertEqual(parse_assertions(f"granted out pong mode {mode}")[0].mode, mode)


class Wrong(SynchronousTestCase):
    @each(
        ("granted", "wanted granted|refused in|out|serve SERVICE"),
        ("granted out", "wanted granted|refused in|out|serve SERVICE"),
        ("allow out pong", "'allow': wanted granted or refused"),
        ("granted up pong", "'up': wanted in, out or serve"),
        ("granted out p*", "'p*' is no service"),
        ("granted out ipc", "'ipc' is reserved"),
        ("granted out any", "wanted a URI behind any"),
        ("granted out any unix:///pong", "a local service is looked up by its name"),
        ("granted out any pong", "a local service is looked up by its name"),
        ("granted in any tcp:192.0.2.7", "any: wanted the name of one service"),
        ("granted serve any", "any: wanted the name of one service"),
        ("granted out pong tcp:h.example:1", "wanted scheme://host"),
        ("granted out pong ftp://h.example", "scheme 'ftp' is not known"),
        ("granted out pong tcp://h.example:0", "the port"),
        ("granted out pong tls://a;b@h.example", "percent-encode it as %3B"),
        ("granted out pong tcp://h.example tcp://h.example", "wanted at ADDRESS, as WHO or mode MODE"),
        ("granted in pong", "wanted the caller behind the service"),
        ("granted in pong as cert:example.com", "wanted the caller behind the service"),
        ("granted in pong any", "wanted one caller"),
        ("granted in pong tcp:any", "wanted one caller"),
        ("granted in pong tcp:192.0.2.0/24", "wanted one caller"),
        ("granted in pong tls:*.example.com", "wanted one caller"),
        ("granted in pong tcp:example.com", "a tcp peer proves no name"),
        ("granted in pong 192.0.2.7", "is no peer"),
        ("granted serve pong tcp:192.0.2.7", "who serves has no far end"),
        ("granted out pong as", "as: nothing stands behind it"),
        ("granted out pong as alice", "wanted for KIND:VALUE"),
        ("granted out pong as alice", "(or confined)"),
        ("granted out pong as uid:-1", "uid:-1: wanted a number"),
        ("granted out pong as confined as confined", "as 'confined': stands twice"),
        ("granted out pong at h.example", "wanted an address"),
        ("granted out pong at 127.1", "wanted an address"),
        ("granted out pong at 192.0.2.0/24", "wanted an address"),
        ("granted out pong at [192.0.2.7", "wanted an address"),
        ("granted out pong tcp://192.0.2.7:1 at 192.0.2.7", "there is none"),
        ("granted out pong unix:///a at 192.0.2.7", "there is none"),
        ("granted in pong tcp:192.0.2.7 at 192.0.2.7", "there is none"),
        ("granted out pong mode auto", "mode: wanted one of locked"),
        ("granted out pong mode", "mode: nothing stands behind it"),
        ("granted out pong mode locked mode direct", "mode: wanted one of locked"),
        ("refused out pong mode locked", "nothing is handed over where it is refused"),
        ("granted out pong\x1b", "a control character"),
        ("granted out pong\0", "a control character"),
        ("granted out pong " + "x" * LINE_CHARS, "characters, at most"),
    )
    def test_it_is_told_what_would_be_accepted(self, text: str, said: str) -> None:
        ((number, found),) = self.assertRaises(AssertionsError, parse_assertions, text).mistakes
        self.assertEqual(number, 1)
        self.assertIn(said, found)

    def test_every_mistake_is_told_at_once_with_its_line(self) -> None:
        text = "granted out pong\nallow out pong\n\ngranted out\n"
        error = self.assertRaises(AssertionsError, parse_assertions, text)
        self.assertEqual([number for number, _ in error.mistakes], [2, 4])
        self.assertIn("line 2: 'allow'", str(error))

    @each(("nothing", ""), ("comments alone", "# granted out pong\n\n"))
    def test_a_text_without_an_assertion_is_a_mistake(self, label: str, text: str) -> None:
        self.assertEqual(
            self.assertRaises(AssertionsError, parse_assertions, text).mistakes, [(0, "no assertion in it")]
        )

    def test_a_text_that_is_too_long_is_not_looked_through(self) -> None:
        ((number, said),) = self.assertRaises(AssertionsError, parse_assertions, "#" * (FILE_BYTES + 1)).mistakes
        self.assertEqual(number, 0)
        self.assertIn(f"at most {FILE_BYTES}", said)

    def test_a_password_is_never_in_a_mistake(self) -> None:
        text = "\n".join(
            (
                "granted out pong tls://user:secret@h.example:0",
                "granted out tls://user:secret@h.example",
                "granted in pong tls://user:secret@h.example",
                "granted serve pong tls://user:secret@h.example",
                "granted out pong tls://h.example tls://user:secret@h.example",
                "granted out pong at user:secret@h.example",
                "tls://user:secret@h.example out pong",
            )
        )
        error = self.assertRaises(AssertionsError, parse_assertions, text)
        self.assertEqual(len(error.mistakes), 7)
        self.assertNotIn("secret", str(error))

    @given(st.text(max_size=200))
    @PROPERTY
    def test_whatever_stands_there_is_read_or_told(self, text: str) -> None:
        try:
            found = parse_assertions(text)
        except AssertionsError as e:
            self.assertTrue(all(said for _, said in e.mistakes))
        else:
            self.assertTrue(found)


class Parts(SynchronousTestCase):
    """What a question on the command line is checked by, too."""

    def test_a_lookup_of_a_service_needs_no_address_and_any_does(self) -> None:
        check_target(OUT, "pong", None)
        self.assertRaises(ValueError, check_target, OUT, None, None)

    def test_a_service_is_a_name_or_any(self) -> None:
        self.assertEqual((parse_service("pong"), parse_service("any"), parse_service("*")), ("pong", None, None))

    @each(("confined",), ("user:alice",), ("cert:example.com",), ("unit:ci.service",))
    def test_a_who_is_one_of_the_rules_or_confined(self, word: str) -> None:
        check_who(word)
        self.assertRaises(ValueError, check_who, f"for {word}")
