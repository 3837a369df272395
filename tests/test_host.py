"""plumberd.pure.host: every spelling of a host comes out as one, or is refused with a reason."""

from __future__ import annotations

import ipaddress
import socket

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.host import HOST_CHARS, UriError, literal_address, parse_host, percent_decode, show_host
from tests import strategies
from tests.tables import PROPERTY, each

NUMBER = "four decimal numbers"
NO_NAME = "neither a name nor an address"
NO_IDN = "no valid internationalised name"
NO_IPV6 = "no IPv6 address"

PIECES = (
    *("example", "com", "a", "xn--", "xn--bcher-kva", "127", "0", "1", "0x7f", "017", "2130706433", "255", "any", "*"),
    *(".", "-", "_", "%", "%2e", "%00", "%41", "%c3%bc", "[", "]", ":", "::", "/", "@", " ", "\n", "\x7f", "\x85"),
    *("\u00fc", "\u00df", "\u03c2", "\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u180e", "\u0301"),
    *("\u3002", "\uff0e", "\uff61", "\u2024", "\uff11", "\u2460", "\u24ea", "\u2488", "\u0661", "\u2100", "\uff0f"),
    *("\U0001d7cf", "\U0001f600", "\u212a", "\u0130", "\u017f", "\u05d0", "\u202e", "\ud800", "\uff3f", "\uff0a"),
)
"""What hosts are forged of."""

texts = st.one_of(st.text(max_size=30), st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
hosts = st.one_of(strategies.names, st.ip_addresses().map(lambda a: show_host(str(a))))


def a_label(plain: str) -> str:
    """Return what the punycode of *plain* looks like as a label, whether it may stand there or not."""
    return "xn--" + plain.encode("punycode").decode("ascii")


class Spellings(SynchronousTestCase):
    """Each row is one host in several spellings."""

    @each(
        ("upper case", "a.example", "A.EXAMPLE", "a.Example"),
        ("trailing dot", "a.example", "a.example.", "A.Example."),
        ("percent-encoding", "a.example", "%61.example", "%41.example", "a%2eexample", "a%2Eexample%2e", "a.exampl%65"),
        ("other full stops", "a.example", "a\u3002example", "a\uff0eexample", "a\uff61example", "a.example\u3002"),
        ("percent-encoded full stop", "a.example", "a%E3%80%82example", "a%ef%bc%8eexample"),
        ("full width", "a.example", "\uff41.example", "a.\uff25xample"),
        ("enclosed", "a.example", "\u24d0.example", "\u24b6.\u24d4\u24e7\u24d0\u24dc\u24df\u24db\u24d4"),
        ("mathematical", "a.example", "\U0001d41a.example", "\U0001d68a.\U0001d68e\U0001d6a1ample"),
        ("Kelvin", "k.example", "\u212a.example", "%e2%84%aa.example"),
        ("long s", "s.example", "\u017f.example"),
        ("soft hyphen", "a.example", "a.exa\u00admple", "a%C2%AD.example"),
        ("zero width", "a.example", "a\u200b.example", "\u2060a.example", "a.\ufeffexample", "a.exam%E2%80%8Bple"),
        ("ligature", "office.example", "o\ufb03ce.example"),
        ("IDNA", "xn--bcher-kva.example", "b\u00fccher.example", "B\u00dcCHER.example", "XN--BCHER-KVA.example"),
        ("IDNA, composed of two", "xn--bcher-kva.example", "bu\u0308cher.example", "bu%cc%88cher.example"),
        ("IDNA in full width", "xn--bcher-kva.example", "\uff58\uff4e\uff0d\uff0dbcher\uff0dkva.example"),
        ("IDNA beside a service's label", "_tcp.xn--bcher-kva.example", "_tcp.b\u00fccher.example"),
        ("IDNA beside odd hyphens", "r3---sn.xn--bcher-kva", "r3---sn.b\u00fccher"),
        ("IPv4", "127.0.0.1", "127.0.0.1.", "127%2e0.0.1", "%31%32%37.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        ("IPv4 in full width", "127.0.0.1", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"),
        ("IPv4 enclosed", "127.0.0.1", "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "\U0001d7cf27.0.0.1"),
        ("IPv6", "::1", "[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::0.0.0.1]"),
        ("IPv6, upper case", "2001:db8::ab", "[2001:DB8::AB]", "[2001:0db8:0::00ab]"),
    )
    def test_they_are_one_host(self, _: str, host: str, *texts: str) -> None:
        self.assertEqual([parse_host(text) for text in texts], [host] * len(texts))
        self.assertEqual(parse_host(show_host(host)), host)

    @each(
        ("German sharp s", "fa\u00df.example", "fass.example", "xn--fa-hia.example"),
        ("Greek final sigma", "\u03c3\u03c2.example", "\u03c3\u03c3.example", "xn--3xab.example"),
        ("joiner between letters that it joins", "\u0915\u094d\u200d\u0937", "\u0915\u094d\u0937", "xn--11b2ezcw70k"),
        ("Cyrillic a", "\u0430.example", "a.example", "xn--80a.example"),
        ("dotted I", "\u0130.example", "i.example", "xn--i-9bb.example"),
        ("Arabic digits beside Latin letters", "\u0661x", "1x", None),
    )
    def test_letters_that_only_look_alike_are_another_host(self, _: str, text: str, other: str, host: str) -> None:
        try:
            found = parse_host(text)
        except UriError:
            found = None
        self.assertEqual(found, host)
        self.assertNotEqual(found, parse_host(other))


class Refused(SynchronousTestCase):
    @each(
        # what inet_aton reads as 127.0.0.1, or would
        ("2130706433", NUMBER),
        ("0x7f000001", NUMBER),
        ("0X7F000001", NUMBER),
        ("017700000001", NUMBER),
        ("127.1", NUMBER),
        ("127.0.1", NUMBER),
        ("0177.0.0.1", NUMBER),
        ("0x7f.0.0.1", NUMBER),
        ("0x7f.1", NUMBER),
        ("127.0.0.0x1", NUMBER),
        ("127.0.0.01", NUMBER),
        ("0127.0.0.1", NUMBER),
        ("00000177.1", NUMBER),
        ("127.0.0.1..", NUMBER + "|" + NO_NAME),
        ("0", NUMBER),
        ("0.", NUMBER),
        ("0x", NUMBER),
        ("256.256.256.256", NUMBER),
        ("127.0.0.1.1", NUMBER),
        ("4294967296", NUMBER),
        ("a.1", NUMBER),
        ("a.0x1f", NUMBER),
        ("\uff12\uff11\uff13\uff10\uff17\uff10\uff16\uff14\uff13\uff13", NUMBER),
        ("\uff10\uff58\uff17\uff46.1", NUMBER),
        ("%30x7f.1", NUMBER),
        ("12\u00ad7.1", NUMBER),
        # brackets: an IPv6 address in one pair of them, and nothing else
        ("[example.com]", NO_IPV6),
        ("[[example.com]]", NO_IPV6),
        ("[[::1]]", NO_IPV6),
        ("[127.0.0.1]", NO_IPV6),
        ("[2130706433]", NO_IPV6),
        ("[]", NO_IPV6),
        ("[::1", "both brackets"),
        ("[::1].", "both brackets"),
        ("[::1]]", NO_IPV6),
        ("::1", NUMBER + "|" + NO_NAME),
        ("::1]", NO_NAME),
        ("%5B::1%5D", NO_NAME),
        ("%5bexample.com%5d", NO_NAME),
        ("[v1.x]", NO_IPV6),
        ("[::1/128]", NO_IPV6),
        ("[::127.0.0.01]", NO_IPV6),
        ("[::127.1]", NO_IPV6),
        ("[\uff11::1]", NO_IPV6),
        ("[::\u0661]", NO_IPV6),
        ("[:\u200b:1]", NO_IPV6),
        ("[1::2::3]", NO_IPV6),
        ("[12345::1]", NO_IPV6),
        # zone ids, in every spelling
        ("[fe80::1%eth0]", "zone ids"),
        ("[fe80::1%25eth0]", "zone ids"),
        ("[::1%]", "zone ids"),
        ("[::1%2]", "zone ids"),
        ("[::ffff:127.0.0.1%1]", "zone ids"),
        # dots
        (".", NO_NAME),
        ("..", NO_NAME),
        (".a.example", NO_NAME),
        ("a..example", NO_NAME),
        ("a.example..", NO_NAME),
        ("a.example.%2e", NO_NAME),
        ("a.example.\u3002", NO_NAME),
        ("a\u3002\uff0eexample", NO_NAME),
        # full stops and other signs that only look so, or decompose
        ("a\u2024example", NO_IDN),
        ("\u2488example", NO_IDN),
        ("a\uff0fb", NO_NAME),
        ("a\u2100b", NO_NAME),
        ("a\uff20b", NO_NAME),
        ("a\uff1ab", NO_NAME),
        ("a\uff03b", NO_NAME),
        ("a\uff1fb", NO_NAME),
        ("a\uff05b", NO_NAME),
        ("\uff0a.example", NO_NAME),
        ("\u2044.example", NO_IDN),
        # what there is nothing of
        ("", "missing"),
        ("\u00ad", NO_NAME),
        ("\u200b.example", NO_NAME),
        ("%C2%AD", NO_NAME),
        # percent-encoding: once, of what may stand there
        ("%2561.example", NO_NAME),
        ("%25", NO_NAME),
        ("a%2fb", NO_NAME),
        ("a%40b", NO_NAME),
        ("a%3a80", NO_NAME),
        ("a%20b", NO_NAME),
        ("a%2a", NO_NAME),
        ("a%5cb", NO_NAME),
        ("a%00.example", "control character"),
        ("a.example%0d%0a", "control character"),
        ("a%7f", "control character"),
        ("a%C2%85", "control character"),
        ("a%", "two hexadecimal digits"),
        ("a%u0061", "two hexadecimal digits"),
        ("%C0%AE", "not UTF-8"),
        ("%ed%a0%80", "not UTF-8"),
        # other characters
        ("*", NO_NAME),
        ("*.example", NO_NAME),
        ("a*.example", NO_NAME),
        ("a?.example", NO_NAME),
        ("a b", NO_NAME),
        ("a\tb", NO_NAME),
        ("a\n", NO_NAME),
        ("a\x00b", NO_NAME),
        ("127.0.0.1 a.example", NO_NAME),
        ("a\\b", NO_NAME),
        ("a\u00a0b", NO_NAME),
        ("a\u2028b", NO_IDN),
        ("a\x85b", NO_IDN),
        ("-a.example", NO_NAME),
        ("a-.example", NO_NAME),
        ("\uff0da.example", NO_NAME),
        # the word for every host
        ("any", "in rules that is every host"),
        ("ANY", "in rules that is every host"),
        ("any.", "in rules that is every host"),
        ("%61ny", "in rules that is every host"),
        ("\uff41ny", "in rules that is every host"),
        ("an\u00ady", "in rules that is every host"),
        # joiners where they join nothing, other scripts' digits, emoji, text that turns around
        ("a\u200d.example", NO_IDN),
        ("a\u200cb.example", NO_IDN),
        ("\u0661\u0662\u0667.\u0660.\u0660.\u0661", NO_IDN),
        ("\U0001f600.example", NO_IDN),
        ("a\u202eb.example", NO_IDN),
        ("\u0301a.example", NO_IDN),
        ("\ud800.example", NO_IDN),
        ("xn--\u00fc.example", NO_IDN),
        # an ASCII form that stands for ASCII, for nothing, or for what is written otherwise
        ("xn--example-.com", NO_NAME),
        ("example.com.xn--", NO_NAME),
        ("xn--example.com", NO_IDN),
        ("xn--a.com", NO_IDN),
        ("xn---bbk.com", NO_IDN),
        ("xn--0.com", NO_IDN),
        ("a.xn--99999999.com", NO_IDN),
        (a_label("\uff41dmin") + ".com", NO_IDN),
        (a_label("b\u00dccher") + ".com", NO_IDN),
        (a_label("bu\u0308cher") + ".com", NO_IDN),
        (a_label("exa\u00admple") + ".com", NO_IDN),
        (a_label("exa\u200bmple") + ".com", NO_IDN),
        (a_label("a\u200d") + ".com", NO_IDN),
        (a_label("a\u3002b") + ".com", NO_IDN),
        (a_label("\u2460") + ".com", NO_IDN),
    )
    def test_the_reason_says_why(self, text: str, reasons: str) -> None:
        with self.assertRaises(UriError) as caught:
            parse_host(text)
        self.assertTrue(any(reason in str(caught.exception) for reason in reasons.split("|")), caught.exception)

    @each(
        ("ASCII", "a" * 60),
        ("other letters", "\u00fc" * 60),
        ("letters that vanish", "\u00ad" * 60),
        ("letters that grow", "\ufdfa" * 60),
        ("numbers", "1" * 60),
    )
    def test_a_long_one_is_refused_at_once(self, _: str, label: str) -> None:
        with self.assertRaises(UriError):
            parse_host(".".join([label] * 60))

    def test_the_longest_and_one_more(self) -> None:
        longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
        self.assertEqual(len(longest), HOST_CHARS)
        self.assertEqual(parse_host(longest + "."), longest)
        with self.assertRaises(UriError) as caught:
            parse_host(longest + "d")
        self.assertIn(f"longer than {HOST_CHARS}", str(caught.exception))


class Accepted(SynchronousTestCase):
    @each(
        ("localhost",),
        ("a",),
        ("_dmarc.example",),
        ("1a",),
        ("1.example",),
        ("0x7f.example",),
        ("0xg",),
        ("1e3",),
        ("1_0",),
        ("a--b",),
        ("r3---sn-abc.example",),
        ("any.example",),
        ("company",),
        ("xn--bcher-kva",),
        ("xn--g6h.com",),
        ("xn--ls8h.la",),
    )
    def test_a_name_that_is_written_so_stays_as_it_is(self, text: str) -> None:
        self.assertEqual(parse_host(text), text)


class Properties(SynchronousTestCase):
    @PROPERTY
    @given(hosts)
    def test_printing_and_reading_are_inverse(self, text: str) -> None:
        host = parse_host(text)
        self.assertEqual(parse_host(show_host(host)), host)

    @PROPERTY
    @given(texts)
    @example("\u2460\u2461\u2466.\u24ea.\u24ea.\u2460")
    @example("xn--11b2ezcw70k")
    @example("_a.\u00fc")
    def test_what_is_accepted_is_in_its_last_form_already(self, text: str) -> None:
        host = accepted(text)
        if host is not None:
            self.assertEqual(parse_host(show_host(host)), host)

    @PROPERTY
    @given(texts)
    @example("a%00")
    @example("\uff0a.example")
    def test_what_is_accepted_holds_letters_digits_and_three_signs(self, text: str) -> None:
        host = accepted(text) or ""
        self.assertEqual(set(host) - set("abcdefghijklmnopqrstuvwxyz0123456789-._:"), set())
        self.assertFalse(":" in host and literal_address(host) is None)

    @PROPERTY
    @given(texts)
    @example("127.0.0.1")
    @example("1.2.3.4.")
    @example("0x7f.example")
    @example("\uff10x7f")
    def test_what_is_accepted_as_a_name_is_an_address_to_nobody(self, text: str) -> None:
        host = accepted(text)
        if host is None or literal_address(host) is not None:
            return
        for reads in (socket.inet_aton, ipaddress.ip_address):
            with self.assertRaises((OSError, ValueError)):
                reads(host)
        for spelling in (host, host + "."):
            with self.assertRaises(socket.gaierror):
                socket.getaddrinfo(spelling, None, flags=socket.AI_NUMERICHOST)

    @PROPERTY
    @given(st.integers(0, 2**32 - 1), st.data())
    def test_an_address_that_inet_aton_reads_is_refused_or_the_same(self, number: int, data: st.DataObject) -> None:
        inner = ipaddress.IPv4Address(number)
        text = data.draw(st.sampled_from(numeric_spellings(inner)))
        self.assertEqual(socket.inet_aton(text), inner.packed)
        self.assertIn(accepted(text), (None, str(inner)))
        if text != str(inner):
            self.assertIsNone(accepted(text))

    @PROPERTY
    @given(st.ip_addresses())
    def test_an_address_is_told_as_one(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        self.assertEqual(literal_address(str(address)), address)

    @PROPERTY
    @given(texts)
    def test_decoding_is_done_once_and_leaves_no_control_character(self, text: str) -> None:
        try:
            plain = percent_decode(text)
        except UriError:
            return
        if "%" not in text and text.isprintable():
            self.assertEqual(plain, text)
        self.assertEqual([c for c in plain if c < " " or "\x7f" <= c <= "\x9f"], [])


def accepted(text: str) -> str | None:
    """Return the host, or ``None`` where it is refused; any other error is a failure."""
    try:
        return parse_host(text)
    except UriError:
        return None


def numeric_spellings(inner: ipaddress.IPv4Address) -> list[str]:
    """Return ways in which inet_aton reads *inner*: decimal, octal, hexadecimal, with one to four parts."""
    found = []
    for parts in range(1, 5):
        last = int(inner) & (1 << 8 * (5 - parts)) - 1
        numbers = [*inner.packed[: parts - 1], last]
        for form in ("{}", "0{:o}", "0x{:x}", "0X{:08X}", "000{:o}"):
            found.append(".".join(form.format(number) for number in numbers))
        found.append(".".join([*(str(number) for number in numbers[:-1]), hex(last)]))
    return found
