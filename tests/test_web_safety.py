"""plumberd.pure.web_safety: whose pages may ask, and whom a reverse proxy speaks for."""

from __future__ import annotations

import ipaddress

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.web_http import HttpError, HttpRequest
from plumberd.pure.web_safety import (
    Origin,
    WebError,
    WebSettings,
    check_host,
    check_origin,
    check_site,
    parse_origin,
    parse_place,
    parse_proxy,
    source_of,
)
from tests.tables import each

LOOPBACK = ipaddress.ip_address("127.0.0.1")
PEER = ipaddress.ip_address("192.0.2.7")


def asking(**headers: str) -> HttpRequest:
    return HttpRequest("GET", "/pong", tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def settings(*hosts: str, origins: tuple[str, ...] = (), proxies: tuple[str, ...] = ()) -> WebSettings:
    return WebSettings(
        tuple(map(parse_place, hosts)), tuple(map(parse_origin, origins)), tuple(map(parse_proxy, proxies))
    )


class Hosts(SynchronousTestCase):
    @each(
        ("localhost", ()),
        ("LocalHost:9080", ()),
        ("127.0.0.1:1", ()),
        ("[::1]:9080", ()),
        ("ipc.example.com", ("ipc.example.com",)),
        ("ipc.example.com.", ("ipc.example.com",)),
        ("ipc.example.com:8443", ("ipc.example.com",)),
        ("ipc.example.com:8443", ("ipc.example.com:8443",)),
        ("ipc.example.com", ("ipc.example.com:443",)),
        ("ipc.example.com", ("ipc.example.com:8443", "ipc.example.com:80")),
    )
    def test_these_are_answered(self, host: str, hosts: tuple[str, ...]) -> None:
        check_host(asking(host=host), settings(*hosts))

    @each(
        ("evil.example", ()),
        ("127.0.0.1.evil.example", ()),
        ("127.0.0.2", ()),
        ("localhost", ("ipc.example.com",)),
        ("ipc.example.com", ("ipc.example.com:8443",)),
        ("ipc.example.com:80", ("ipc.example.com:8443",)),
        ("sub.ipc.example.com", ("ipc.example.com",)),
        ("", ()),
        ("localhost:99999", ()),
        ("localhost:", ()),
        ("user@localhost", ()),
        ("[::1", ()),
        ("[::1]x", ()),
        ("localhost, localhost", ()),
    )
    def test_these_are_not(self, host: str, hosts: tuple[str, ...]) -> None:
        error = self.assertRaises(HttpError, check_host, asking(host=host), settings(*hosts))
        self.assertEqual(error.status, 403)


class Origins(SynchronousTestCase):
    def check(self, origin: str, host: str, encrypted: bool, *origins: str) -> bool:
        held = settings(origins=origins)
        request = asking(host=host, origin=origin)
        return check_origin(request, check_host(request, held), held, encrypted=encrypted)

    @each(
        ("http://localhost", "localhost", False),
        ("http://localhost:80", "localhost", False),
        ("http://localhost:9080", "localhost:9080", False),
        ("https://localhost", "localhost:443", True),
        ("https://localhost", "localhost", False),
        ("http://[::1]:9080", "[::1]:9080", False),
        ("https://app.example.com", "localhost:1", True, "https://app.example.com"),
        ("http://app.example.com:8080", "localhost:1", True, "http://app.example.com:8080"),
    )
    def test_this_page_may(self, origin: str, host: str, encrypted: bool, *origins: str) -> None:
        self.assertTrue(self.check(origin, host, encrypted, *origins))

    @each(
        ("null", "localhost", False),
        ("http://evil.example", "localhost", False),
        ("http://localhost:9081", "localhost:9080", False),
        ("http://127.0.0.1:9080", "localhost:9080", False),
        ("http://localhost", "localhost:9080", False),
        ("http://localhost", "localhost:80", True),
        ("file://", "localhost", False),
        ("chrome-extension://abc", "localhost", False),
        ("https://app.example.com", "localhost", False, "http://app.example.com"),
        ("https://app.example.com:8443", "localhost", False, "https://app.example.com"),
        ("", "localhost", False),
    )
    def test_this_one_may_not(self, origin: str, host: str, encrypted: bool, *origins: str) -> None:
        self.assertEqual(self.assertRaises(HttpError, self.check, origin, host, encrypted, *origins).status, 403)

    def test_a_host_with_its_usual_port_is_its_own_page_s_and_not_the_other_scheme_s(self) -> None:
        held = settings("ipc.example.com:443")
        place = check_host(asking(host="ipc.example.com"), held)
        own, other = (asking(host="ipc.example.com", origin=f"{one}://ipc.example.com") for one in ("https", "http"))
        self.assertTrue(check_origin(own, place, held, encrypted=True))
        self.assertRaises(HttpError, check_origin, other, place, held, encrypted=False)

    def test_none_is_no_browser_and_two_are_a_mistake(self) -> None:
        held = settings()
        place = check_host(asking(host="localhost"), held)
        self.assertFalse(check_origin(asking(host="localhost"), place, held, encrypted=False))
        twice = HttpRequest("GET", "/", (("origin", "http://localhost"), ("origin", "http://localhost")))
        self.assertRaises(HttpError, check_origin, twice, place, held, encrypted=False)

    @each(
        ("none at all", {}, False), ("same-origin", {}, True), ("none", {}, True), ("cross-site", {"origin": "a"}, True)
    )
    def test_a_browser_says_whose_page_asks(self, site: str, more: dict[str, str], is_browser: bool) -> None:
        headers = more if site == "none at all" else {**more, "sec_fetch_site": site}
        self.assertEqual(check_site(asking(**headers), has_origin="origin" in more), is_browser)
        self.assertTrue(check_site(asking(sec_fetch_mode="navigate"), has_origin=False))

    @each(("cross-site",), ("same-site",), ("",), ("Same-Origin",), ("same-origin, none",))
    def test_another_site_s_page_may_not(self, site: str) -> None:
        error = self.assertRaises(HttpError, check_site, asking(sec_fetch_site=site), has_origin=False)
        self.assertEqual(error.status, 403)

    def test_both_are_printed_as_they_are_written(self) -> None:
        for text in ("https://app.example.com", "http://[::1]:8080"):
            self.assertEqual(str(parse_origin(text)), text)
        self.assertEqual(parse_origin("https://a.example:443"), Origin("https", "a.example", 443))
        for text in ("a.example", "[::1]:80", "a.example:1"):
            self.assertEqual(str(parse_place(text)), text)


class Proxies(SynchronousTestCase):
    @each(
        ("one", {"x_forwarded_for": "192.0.2.7", "x_forwarded_proto": "https"}, True),
        ("without proto", {"x_forwarded_for": "192.0.2.7"}, False),
        ("its own word", {"forwarded": 'for="192.0.2.7:4711";proto=https'}, True),
        ("in a row", {"x_forwarded_for": "203.0.113.9, 192.0.2.7, 10.0.0.1"}, False),
        ("what the caller says is passed over", {"forwarded": "for=203.0.113.9;proto=https, for=192.0.2.7"}, False),
        ("mapped", {"x_forwarded_for": "::ffff:192.0.2.7"}, False),
    )
    def test_the_caller_is(self, _: str, headers: dict[str, str], encrypted: bool) -> None:
        found = source_of(asking(**headers), LOOPBACK, settings(proxies=("127.0.0.1", "10.0.0.0/8")), encrypted=False)
        self.assertEqual((found.address, found.encrypted), (PEER, encrypted))

    def test_ipv6_stands_in_brackets_or_not(self) -> None:
        wanted = ipaddress.ip_address("2001:db8::7")
        for headers in ({"forwarded": 'for="[2001:db8::7]:80"'}, {"x_forwarded_for": "2001:db8::7"}):
            found = source_of(asking(**headers), None, settings(proxies=("unix",)), encrypted=False)
            self.assertEqual(found.address, wanted)

    @each(
        ("nothing", {}),
        ("both", {"x_forwarded_for": "192.0.2.7", "forwarded": "for=192.0.2.7"}),
        ("both, one of them empty", {"x_forwarded_for": "", "forwarded": "for=192.0.2.7"}),
        ("nobody", {"x_forwarded_for": ""}),
        ("nobody but commas", {"forwarded": ", ,"}),
        ("no address", {"x_forwarded_for": "unknown"}),
        ("a hidden one", {"forwarded": "for=_hidden"}),
        ("without for", {"forwarded": "proto=https"}),
    )
    def test_what_it_has_to_say_and_does_not(self, _: str, headers: dict[str, str]) -> None:
        held = settings(proxies=("127.0.0.1",))
        error = self.assertRaises(HttpError, source_of, asking(**headers), LOOPBACK, held, encrypted=False)
        self.assertEqual(error.status, 400)

    def test_nobody_else_is_heard(self) -> None:
        headers = {"x_forwarded_for": "127.0.0.1", "x_forwarded_proto": "https", "forwarded": "for=127.0.0.1"}
        for proxies in ((), ("127.0.0.1", "unix")):
            found = source_of(asking(**headers), PEER, settings(proxies=proxies), encrypted=False)
            self.assertEqual((found.address, found.encrypted), (PEER, False))
        self.assertIsNone(source_of(asking(**headers), None, settings(proxies=("127.0.0.1",)), encrypted=False).address)

    @each((parse_proxy, "localhost"), (parse_proxy, "10.0.0.1/8"), (parse_place, "a b"), (parse_origin, "ftp://a"))
    def test_what_cannot_be_written(self, parse: object, text: str) -> None:
        assert callable(parse)
        self.assertRaises(WebError, parse, text)
