"""plumberd.pure.uri: one strict grammar, one spelling of everything, and no secret that shows."""

from __future__ import annotations

import ipaddress

from hypothesis import assume, example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.uri import (
    DEFAULT_PORTS,
    URI_BYTES,
    Uri,
    UriError,
    format_uri,
    has_password,
    mask,
    parse_host,
    parse_port,
    parse_uri,
    show_host,
)
from tests.strategies import uris
from tests.tables import PROPERTY, each

LABEL = "a" * 63
LONGEST_HOST = ".".join([LABEL, LABEL, LABEL, "b" * 61])
"""253 characters (RFC 1035, 3.1)."""

FRAGMENTS = (
    *("tls", "tcp", "unix", "pong", "user", "secret", "a.example", "1.2.3.4", "::1", "::ffff:1.2.3.4", "fe80::1%25lo"),
    *("://", "//", "@", ":", "/", "?", "#", "&", "=", ";", "[", "]", "%", "%2", "%00", "%20", "%2f", "%40", "%c3%bc"),
    *("0", "1", "65535", "65536", "0x7f", "017", ".", "-", "_", "*", " ", "\t", "\n", "\x00", "\x7f", "\x9b"),
    *("ü", "ß", "\u3002", "\u200d", "\u0301", "\u202e", "\u0661", "\uff11", "\u05d0", "xn--", "\ud800", "\U0001f600"),
)
pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
texts = st.one_of(st.text(max_size=60), pieces, pieces.map(lambda text: "tls://" + text))


class Accepted(SynchronousTestCase):
    @each(
        # those of the protocol's description
        ("tls://some.example.com/audio", Uri("tls", "some.example.com", 9001, "audio")),
        ("tcp://pong.example.com:9000/pong", Uri("tcp", "pong.example.com", 9000, "pong")),
        ("tcp://127.0.0.1:9700/pong", Uri("tcp", "127.0.0.1", 9700, "pong")),
        ("unix:///name", Uri("unix", "", 0, "name")),
        ("unix://name", Uri("unix", "", 0, "name")),
        ("name", Uri("unix", "", 0, "name")),
        ("tls://user@a.example:9000/x", Uri("tls", "a.example", 9000, "x", "user")),
        ("tls://user@password:host:9000/service", Uri("tls", "host", 9000, "service", "user", "password")),
        ("tls://user@passwd:example.com:9000/authd", Uri("tls", "example.com", 9000, "authd", "user", "passwd")),
        ("tls://auth.example.com/authd", Uri("tls", "auth.example.com", 9001, "authd")),
        ("tcp://h:1", Uri("tcp", "h", 1)),
        ("tls://user:password@host:1/s", Uri("tls", "host", 1, "s", "user", "password")),
        # default ports
        ("tcp://h", Uri("tcp", "h", 9000)),
        ("tls://h", Uri("tls", "h", 9001)),
        ("udp://h", Uri("udp", "h", 9000)),
        ("ws://h", Uri("ws", "h", 80)),
        ("wss://h", Uri("wss", "h", 443)),
        # an empty path names no service
        ("wss://h/", Uri("wss", "h", 443)),
        ("unix://name/", Uri("unix", "", 0, "name")),
        # IPv6
        ("tcp://[::1]", Uri("tcp", "::1", 9000)),
        ("tcp://[::1]:80/x", Uri("tcp", "::1", 80, "x")),
        ("tcp://[2001:DB8:0:0::5]:1", Uri("tcp", "2001:db8::5", 1)),
        ("tcp://[::ffff:1.2.3.4]:1", Uri("tcp", "1.2.3.4", 1)),
        ("tls://u:p@[::1]:1/x", Uri("tls", "::1", 1, "x", "u", "p")),
        # case, trailing dot, IDNA
        ("TLS://EXAMPLE.Com:1/Pong", Uri("tls", "example.com", 1, "Pong")),
        ("tls://example.com.:1", Uri("tls", "example.com", 1)),
        ("tls://1.2.3.4.:1", Uri("tls", "1.2.3.4", 1)),
        ("tls://bücher.example:1", Uri("tls", "xn--bcher-kva.example", 1)),
        ("tls://B%C3%9CCHER.example:1", Uri("tls", "xn--bcher-kva.example", 1)),
        ("tls://a\u3002example:1", Uri("tls", "a.example", 1)),
        ("tls://\uff11.2.3.4:1", Uri("tls", "1.2.3.4", 1)),
        ("tls://_srv.example:1", Uri("tls", "_srv.example", 1)),
        (f"tls://{LONGEST_HOST}:1", Uri("tls", LONGEST_HOST, 1)),
        # percent-encoding
        ("tls://%61.example:1/po%6eg", Uri("tls", "a.example", 1, "pong")),
        ("tls://u%40v:p%3A%2f%c3%bc@h:1", Uri("tls", "h", 1, None, "u@v", "p:/ü")),
        ("tls://u@p%3Aw:h:1", Uri("tls", "h", 1, None, "u", "p:w")),
        ("tls://u:%20%7e%c2%a0@h:1", Uri("tls", "h", 1, None, "u", " ~\xa0")),
        ("unix:///po%6eg", Uri("unix", "", 0, "pong")),
        # options
        ("tcp://h/x?framing=raw", Uri("tcp", "h", 9000, "x", options=(("framing", "raw"),))),
        ("tcp://h?framing=libipc-zig", Uri("tcp", "h", 9000, options=(("framing", "libipc-zig"),))),
        ("tcp://h?framing=r%61w", Uri("tcp", "h", 9000, options=(("framing", "raw"),))),
        ("unix:///x?framing=libipc-2019", Uri("unix", "", 0, "x", options=(("framing", "libipc-2019"),))),
        # user information at its edges
        ("tls://@h:1", Uri("tls", "h", 1, None, "")),
        ("tls://:@h:1", Uri("tls", "h", 1, None, "", "")),
        ("tls://u:@h:1", Uri("tls", "h", 1, None, "u", "")),
        ("tls://!$&'()*+,;=~-._:p@h:1", Uri("tls", "h", 1, None, "!$&'()*+,;=~-._", "p")),
        # ports at their limits
        ("tls://h:65535", Uri("tls", "h", 65535)),
        # what looks like a number but is a name
        ("tls://1.example:1", Uri("tls", "1.example", 1)),
        ("tls://0x7f.example:1", Uri("tls", "0x7f.example", 1)),
    )
    def test_a_uri_is_read(self, text: str, wanted: Uri) -> None:
        self.assertEqual(parse_uri(text), wanted)

    def test_the_longest_uri_is_read_and_one_character_more_is_not(self) -> None:
        front = "tls://u:"
        password = "p" * (URI_BYTES - len(front) - len("@h"))
        self.assertEqual(parse_uri(f"{front}{password}@h").password, password)
        with self.assertRaises(UriError) as caught:
            parse_uri(f"{front}{password}p@h")
        self.assertEqual(str(caught.exception), "a URI of 4097 characters: at most 4096 are accepted")

    def test_every_scheme_but_unix_has_a_default_port(self) -> None:
        self.assertEqual(DEFAULT_PORTS, {"tcp": 9000, "tls": 9001, "udp": 9000, "ws": 80, "wss": 443})


class Refused(SynchronousTestCase):
    @each(
        ("", "wanted scheme://host"),
        ("a b", "blank or control"),
        ("/pong", "wanted scheme://host"),
        ("tls:example.com:443", "wanted scheme://host"),
        ("example.com:9000", "wanted scheme://host"),
        # scheme
        ("://h", "the scheme is malformed"),
        ("1tls://h", "the scheme is malformed"),
        ("t%6cs://h", "the scheme is malformed"),
        ("ssl://h", "scheme 'ssl' is not known; known are tcp, tls, udp, ws, wss, unix"),
        ("http://h/", "scheme 'http' is not known"),
        ("file:///etc/passwd", "scheme 'file' is not known"),
        # host
        ("tls://", "the host is missing"),
        ("tls:///pong", "the host is missing"),
        ("tls://:9000", "the host is missing"),
        ("tls://u@:1", "the host is missing"),
        ("tls://.", "neither a name nor an address"),
        ("tls://a..b", "neither a name nor an address"),
        ("tls://a.example..", "neither a name nor an address"),
        ("tls://-a.example", "neither a name nor an address"),
        ("tls://a-.example", "neither a name nor an address"),
        ("tls://a*b", "neither a name nor an address"),
        ("tls://*.example", "neither a name nor an address"),
        ("tls://a%2Fb", "neither a name nor an address"),
        ("tls://a%20", "neither a name nor an address"),
        ("tls://a%C2%A0", "neither a name nor an address"),
        ("tls://%5B::1%5D", "neither a name nor an address"),
        (f"tls://{LABEL}a.example", "neither a name nor an address"),
        (f"tls://{LONGEST_HOST}b", "longer than 253"),
        ("tls://xn--\u00fc.example", "no valid internationalised name"),
        ("tls://a\u202e.example", "no valid internationalised name"),
        ("tls://\U0001f600.example", "no valid internationalised name"),
        ("tls://a\ud800.example", "no valid internationalised name"),
        # addresses in any but the ordinary spelling
        ("tls://2130706433", "four decimal numbers"),
        ("tls://127.1", "four decimal numbers"),
        ("tls://0x7f000001", "four decimal numbers"),
        ("tls://0X7F.1", "four decimal numbers"),
        ("tls://127.0.0.0x1", "four decimal numbers"),
        ("tls://0177.0.0.1", "four decimal numbers"),
        ("tls://017700000001", "four decimal numbers"),
        ("tls://1.2.3.256", "four decimal numbers"),
        ("tls://1.2.3.4.5", "four decimal numbers"),
        ("tls://a.0x", "four decimal numbers"),
        ("tls://%31.2.3", "four decimal numbers"),
        ("tls://\uff11.2", "four decimal numbers"),
        # IPv6
        ("tls://::1", "the host is missing"),
        ("tls://2001:db8::1", "four decimal numbers"),
        ("tls://fe80:db8::1", "the port: wanted"),
        ("tls://[::1", "wants both brackets"),
        ("tls://[::1]9000", "only :port may stand behind"),
        ("tls://[::1]]:1", "only :port may stand behind"),
        ("tls://[::g]", "no IPv6 address"),
        ("tls://[]", "no IPv6 address"),
        ("tls://[1.2.3.4]", "no IPv6 address"),
        ("tls://[a.example]", "no IPv6 address"),
        ("tls://[::1/64", "wants both brackets"),
        ("tls://[fe80::1%25eth0]", "zone ids"),
        ("tls://[fe80::1%eth0]", "zone ids"),
        ("tls://[::%31]", "zone ids"),
        # port
        ("tls://h:", "the port: wanted"),
        ("tls://h:0", "the port: wanted"),
        ("tls://h:65536", "the port: wanted"),
        ("tls://h:99999", "the port: wanted"),
        ("tls://h:4294967376", "the port: wanted"),
        ("tls://h:0080", "the port: wanted"),
        ("tls://h:+80", "the port: wanted"),
        ("tls://h:-1", "the port: wanted"),
        ("tls://h:8_0", "the port: wanted"),
        ("tls://h:%38%30", "the port: wanted"),
        ("tls://h:\u0661", "the port: wanted"),
        ("tls://h:http", "the port: wanted"),
        ("tls://h:1:2", "the port: wanted"),
        # control characters and blanks
        ("tls://h\n", "blank or control"),
        ("tls://h/pong\r\n", "blank or control"),
        ("tls://h /x", "blank or control"),
        ("tls://a\x00b", "blank or control"),
        ("tls://a\x7fb", "blank or control"),
        ("pong\n", "blank or control"),
        ("tls://a%00.example", "percent-encoded control"),
        ("tls://a.example%0d%0a", "percent-encoded control"),
        ("tls://a%c2%85b", "percent-encoded control"),
        ("tls://h/po%0Ang", "percent-encoded control"),
        ("tls://u%0a@h", "percent-encoded control"),
        ("tls://u:p%7f@h", "percent-encoded control"),
        ("tls://u:p%1f@h", "percent-encoded control"),
        ("tls://u:p%c2%9f@h", "percent-encoded control"),
        ("tls://a\x9b.example", "no valid internationalised name"),
        # percent-encoding
        ("tls://a%", "two hexadecimal digits"),
        ("tls://a%4", "two hexadecimal digits"),
        ("tls://a%zz", "two hexadecimal digits"),
        ("tls://a%+1", "two hexadecimal digits"),
        ("tls://h/%ff", "not UTF-8"),
        ("tls://h/%ed%a0%80", "not UTF-8"),
        ("tls://u%4@h", "has to be percent-encoded"),
        # user information
        ("tls://a@b@h", "has to be percent-encoded"),
        ("tls://ü@h", "has to be percent-encoded"),
        ("tls://u:p:q@h:1", "has to be percent-encoded"),
        ("tls://u:p@q:h:1", "two passwords"),
        # path
        ("tls://h/a/b", "not one valid name"),
        ("tls://h//a", "not one valid name"),
        ("tls://h/a/", "not one valid name"),
        ("tls://h/..", "not one valid name"),
        ("tls://h/%2e%2e", "not one valid name"),
        ("tls://h/a%2Fb", "not one valid name"),
        ("tls://h/-a", "not one valid name"),
        ("tls://h/" + "x" * 65, "not one valid name"),
        # fragment and options
        ("tls://h/x#y", "a fragment"),
        ("tls://h#", "a fragment"),
        ("tls://h?", "options are written"),
        ("tls://h?x", "options are written"),
        ("tls://h?&x=1", "options are written"),
        ("tls://h?X=1", "options are written"),
        ("tls://h?=1", "options are written"),
        ("tls://h?verify=no", "an option that tls does not know; known: alpn, framing"),
        ("unix:///x?a=b", "an option that unix does not know; known: framing"),
        ("tls://h?framing=what", "framing: wanted one of"),
        ("tcp://h?framing=raw&framing=raw", "an option stands twice"),
        ("tcp://h?framing=raw&x=1", "an option that tcp does not know"),
        ("tcp://h?framing=RAW", "framing: wanted one of raw, libipc-2019"),
        ("tcp://h?framing=", "framing: wanted one of"),
        ("tcp://h?framing=r%0aw", "percent-encoded control"),
        ("tcp://h?framing=%zz", "two hexadecimal digits"),
        # local services
        ("unix://", "name of the local service is missing"),
        ("unix:///", "name of the local service is missing"),
        ("unix:///run/ipc/pong", "not one valid name"),
        ("unix:///../pong", "not one valid name"),
        ("unix://a/b", "unix:///name or unix://name"),
        ("unix://u@pong", "not one valid name"),
        ("unix://pong:1", "not one valid name"),
    )
    def test_anything_else_is_refused_with_its_reason(self, text: str, reason: str) -> None:
        with self.assertRaises(UriError) as caught:
            parse_uri(text)
        self.assertIn(reason, str(caught.exception))


class Properties(SynchronousTestCase):
    @PROPERTY
    @given(texts)
    def test_arbitrary_text_is_read_or_a_uri_error(self, text: str) -> None:
        try:
            uri = parse_uri(text)
        except UriError:
            return
        self.assertEqual(parse_uri(format_uri(uri)), uri)

    @PROPERTY
    @given(texts)
    def test_what_is_read_holds_no_control_character_anywhere(self, text: str) -> None:
        try:
            uri = parse_uri(text)
        except UriError:
            return
        parts = (uri.scheme, uri.host, uri.service or "", uri.user or "", uri.password or "")
        self.assertFalse([c for part in parts for c in part if c < " " or "\x7f" <= c <= "\x9f"])

    @PROPERTY
    @given(uris())
    @example(Uri("tls", "h", 1, None, "", ""))
    @example(Uri("tls", "::1", 1, "x", "a:b@c", "p:1:2"))
    def test_printing_and_reading_are_inverse(self, uri: Uri) -> None:
        self.assertEqual(parse_uri(format_uri(uri)), uri)

    @PROPERTY
    @given(uris())
    def test_the_printed_form_is_normal_text(self, uri: Uri) -> None:
        printed = format_uri(uri)
        self.assertTrue(printed.isascii() and printed.isprintable() and " " not in printed)
        self.assertEqual(format_uri(parse_uri(printed)), printed)

    @PROPERTY
    @given(uris(), st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=4, max_size=12))
    def test_a_password_shows_in_neither_str_nor_repr(self, uri: Uri, secret: str) -> None:
        plain = Uri(uri.scheme, uri.host, uri.port, uri.service, uri.user or "u")
        masked = Uri(uri.scheme, uri.host, uri.port, uri.service, uri.user or "u", secret)
        assume(uri.scheme != "unix" and secret not in f"{plain} {plain!r} ***")
        encoded = format_uri(masked)[len(format_uri(plain).partition("@")[0]) :].partition("@")[0]
        self.assertNotIn(secret, f"{masked} {masked!r}")
        self.assertNotIn(encoded, f"{masked} {masked!r}")
        self.assertIn(":***@", str(masked))


SECRET = "hunter2"


class Secrets(SynchronousTestCase):
    @each(
        ("tls://user:hunter2@h/x", True),
        ("tls://user@hunter2:h:9000/x", True),
        ("tls://user:@h/x", True),
        ("tls://user:hunter2@h:99999/x", True),
        ("tls://user@hunter2:h:99999/x", True),
        ("gopher://user:hunter2@h", True),
        ("tls://user@h:9000/x", False),
        ("tls://user@h:99999/x", False),
        ("tls://user@[::1]:99999/x", False),
        ("tls://h:9000/x", False),
        ("tls://h:99999/x", False),
        ("pong", False),
        ("user:hunter2", False),
    )
    def test_whether_a_password_stands_in_it(self, text: str, has: bool) -> None:
        self.assertIs(has_password(text), has)


class Mask(SynchronousTestCase):
    @each(
        ("tls://user:hunter2@h:1/x", "tls://***:1/x"),
        ("tls://user:hunter2@h/x", "tls://***@h/x"),
        ("tls://user@hunter2:h:1/x", "tls://***:1/x"),
        ("tls://a:b@hunter2@h", "tls://***@h"),
        ("tls://h", "tls://h"),
        ("tls://h/x", "tls://h/x"),
        ("tls://h:99999", "tls://***:99999"),
        ("user:hunter2@h", "***@h"),
        ("@h", "***@h"),
        ("tls://@h", "tls://***@h"),
        ("user@hunter2:h:1/x", "***:1/x"),
        ("tls:user:hunter2@h", "***@h"),
        ("tls:h:443", "tls:h:443"),
        ("pong", "pong"),
        ("", ""),
        ("://", "://"),
    )
    def test_everything_up_to_the_last_at_or_colon_goes(self, text: str, shown: str) -> None:
        self.assertEqual(mask(text), shown)

    def test_long_text_is_cut_after_it_was_masked_and_not_before(self) -> None:
        text = "tls://user:" + SECRET * 1000 + "@h/" + "x" * 500
        self.assertEqual(mask(text), ("tls://***@h/" + "x" * 500)[:200])

    @each(
        ("tls://me@my:hunter2:h:9000/x",),
        ("tls://me@hunter$2%%:h:9000/x",),
        ("tls://me@hunter2:h:port/x",),
        ("tls://me:hunter2@h:port/x",),
        ("tls://me:pa:hunter2@h:1/x",),
        ("tls://me:hunter2?@h:1/x",),
        ("tls://me:?hunter2=1@h:1/x",),
        ("tls://me:?hunter2=1&hunter2=2@h:1/x",),
        ("tls://me:/hunter2@h:1/x",),
        ("tls://me:#hunter2@h:1/x",),
        ("tls://me:[hunter2@h:1/x",),
        ("tls://[hunter2@h:1/x",),
        ("tls://hunter2]@h:1/x",),
        ("tls:// hunter2@h:1/x",),
        ("ssl://me:hunter2@h:1/x",),
        ("tls://me@hunter2:300.1:1/x",),
        ("tls://me@hunter2*:1/x",),
        ("me@hunter2:h:9000/x",),
        ("me:hunter2@h",),
        ("unix://me:hunter2@h",),
        ("unix:///hunter2@h",),
    )
    def test_an_error_shows_no_secret(self, text: str) -> None:
        with self.assertRaises(UriError) as caught:
            parse_uri(text)
        self.assertNotIn("hunter", str(caught.exception))

    @PROPERTY
    @given(st.text(max_size=20), pieces, st.text(max_size=20))
    def test_nothing_between_the_scheme_and_the_last_at_leaks(self, before: str, middle: str, host: str) -> None:
        """Neither out of mask() nor out of the error of what can't be read."""
        text = f"tls://{before}{SECRET}{middle}@{host}"
        assume(SECRET not in host)
        self.assertNotIn(SECRET, mask(text))
        try:
            uri = parse_uri(text)
        except UriError as e:
            self.assertNotIn(SECRET, str(e))
        else:
            self.assertIn(SECRET, f"{uri.user}{uri.password}")

    @PROPERTY
    @given(pieces, st.sampled_from(("@", ":")), st.text("abc./", max_size=8))
    def test_of_what_cannot_be_read_nothing_before_the_last_at_or_colon_leaks(
        self, middle: str, mark: str, tail: str
    ) -> None:
        text = f"tls://{SECRET}{middle}{mark}{tail}"
        try:
            parse_uri(text)
        except UriError as e:
            self.assertNotIn(SECRET, str(e))


class Parts(SynchronousTestCase):
    @each(
        ("a.example", "a.example"),
        ("A.EXAMPLE.", "a.example"),
        ("1.2.3.4", "1.2.3.4"),
        ("[2001:DB8::0]", "2001:db8::"),
        ("[::ffff:1.2.3.4]", "1.2.3.4"),
        ("b%c3%bccher", "xn--bcher-kva"),
    )
    def test_a_host_has_one_spelling(self, text: str, host: str) -> None:
        self.assertEqual(parse_host(text), host)
        self.assertEqual(parse_host(show_host(host)), host)

    @each(("1", 1), ("80", 80), ("65535", 65535))
    def test_a_port_is_read(self, text: str, port: int) -> None:
        self.assertEqual(parse_port(text), port)

    @each(("",), ("0",), ("65536",), ("01",), (" 1",), ("1\n",), ("1e3",), ("\u0661",), ("9" * 5000,))
    def test_no_other_port_is(self, text: str) -> None:
        with self.assertRaises(UriError):
            parse_port(text)

    @each(("::1", "[::1]"), ("1.2.3.4", "1.2.3.4"), ("a.example", "a.example"))
    def test_ipv6_is_shown_in_brackets(self, host: str, shown: str) -> None:
        self.assertEqual(show_host(host), shown)

    def test_an_option_is_found_by_its_name(self) -> None:
        uri = parse_uri("tcp://h?framing=raw")
        self.assertEqual((uri.option("framing"), uri.option("other")), ("raw", None))
        self.assertIsNone(parse_uri("tcp://h").option("framing"))

    @each(
        ("tcp://1.2.3.4", ipaddress.IPv4Address("1.2.3.4")),
        ("tcp://[::1]", ipaddress.IPv6Address("::1")),
        ("tcp://a.example", None),
        ("tcp://a.b1", None),
        ("unix://x", None),
    )
    def test_a_host_that_is_an_address_is_told_as_one(self, text: str, address: object) -> None:
        self.assertEqual(parse_uri(text).address, address)

    @each(
        ("tls://u:secret@h:1/x", "tls://u:***@h:1/x"),
        ("tls://u:@h", "tls://u:***@h:9001"),
        ("tls://u@h", "tls://u@h:9001"),
        ("tcp://[::1]/x", "tcp://[::1]:9000/x"),
        ("pong", "unix:///pong"),
        ("tcp://h/x?framing=raw", "tcp://h:9000/x?framing=raw"),
        ("tls://u%40:secret@h", "tls://u%40:***@h:9001"),
    )
    def test_a_uri_for_people_has_everything_but_the_password(self, text: str, shown: str) -> None:
        self.assertEqual(str(parse_uri(text)), shown)


class Web(SynchronousTestCase):
    @each(
        ("ws://h/pong", 80, "pong", ()),
        ("wss://h/pong?framing=libipc-zig&text=yes", 443, "pong", (("framing", "libipc-zig"), ("text", "yes"))),
        (
            "ws://h:9080?path=%2Fchat%3Froom%3D1&protocol=chat",
            9080,
            None,
            (("path", "/chat?room=1"), ("protocol", "chat")),
        ),
    )
    def test_what_is_said_of_websockets(
        self, text: str, port: int, service: str | None, options: tuple[tuple[str, str], ...]
    ) -> None:
        found = parse_uri(text)
        self.assertEqual((found.port, found.service, found.options), (port, service, options))
        self.assertEqual(parse_uri(format_uri(found)), found)

    @each(
        ("ws://h/pong?path=%2Fx", "the service is the path"),
        ("ws://h/pong?protocol=x", "the service is the path"),
        ("ws://h?path=x", "path: wanted"),
        ("ws://h?path=%2Fa%20b", "path: wanted"),
        ("ws://h?path=%2Fa%23b", "path: wanted"),
        ("ws://h?path=%2Fa%0D%0AX: y", "blank"),
        ("ws://h?path=%2Fa%0D%0AX:y", ""),
        ("ws://h?protocol=a,b", "protocol: wanted"),
        ("ws://h?protocol=", "protocol: wanted"),
        ("ws://h?text=no", "text: wanted yes"),
        ("tcp://h?text=yes", "an option that tcp does not know"),
    )
    def test_what_is_not(self, text: str, wanted: str) -> None:
        self.assertIn(wanted, str(self.assertRaises(UriError, parse_uri, text)))
