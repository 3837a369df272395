"""plumberd.pure.policy.peer: the far end of a rule, and of a connection."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.names import SCHEMES
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import ANYWHERE, Destination, Peer, PeerError, Ports, is_within, parse_peer
from plumberd.pure.uri import IPAddress
from tests.strategies import EVERY, NESTED, NETWORK_SCHEMES, networks_of, peers
from tests.tables import PROPERTY, each

IN, OUT = Direction.IN, Direction.OUT
V4 = ipaddress.ip_address("192.0.2.7")
V6 = ipaddress.ip_address("2001:db8::7")


def net(scheme: str, network: str, ports: Ports | None = None) -> Peer:
    """Return the peer that is a network, or one address."""
    return Peer(scheme, network=ipaddress.ip_network(network), ports=ports)


class Read(SynchronousTestCase):
    @each(
        ("any", Peer()),
        ("*", Peer()),
        ("tcp:any", Peer("tcp")),
        ("tcp:*", Peer("tcp")),
        ("tcp://any", Peer("tcp")),
        ("tcp://*", Peer("tcp")),
        ("tcp:any:25", Peer("tcp", ports=(25, 25))),
        ("tcp:*:25-30", Peer("tcp", ports=(25, 30))),
        ("tcp:any:any", Peer("tcp")),
        ("tls:x:443", Peer("tls", "x", ports=(443, 443))),
        ("tls://x:443", Peer("tls", "x", ports=(443, 443))),
        ("tcp:example.com:any", Peer("tcp", "example.com")),
        ("tcp:example.com:*", Peer("tcp", "example.com")),
        ("tcp:EXAMPLE.com.", Peer("tcp", "example.com")),
        ("tcp:ex%61mple.com", Peer("tcp", "example.com")),
        ("tcp:bücher.example", Peer("tcp", "xn--bcher-kva.example")),
        ("udp:a_b.example", Peer("udp", "a_b.example")),
        # every name below one
        ("tls:*.example.com", Peer("tls", suffix="example.com")),
        ("tls://*.Example.com.:443", Peer("tls", suffix="example.com", ports=(443, 443))),
        ("tls:*.com", Peer("tls", suffix="com")),
        ("wss:*.bücher.example", Peer("wss", suffix="xn--bcher-kva.example")),
        # addresses
        ("tcp:192.0.2.7", net("tcp", "192.0.2.7/32")),
        ("tcp:192.0.2.7:65535", net("tcp", "192.0.2.7/32", (65535, 65535))),
        ("tcp:192%2E0.2.7", net("tcp", "192.0.2.7/32")),
        ("tcp:192.0.2.7.", net("tcp", "192.0.2.7/32")),
        ("tcp:[2001:db8::7]", net("tcp", "2001:db8::7/128")),
        ("tcp:[2001:DB8:0::7]:1", net("tcp", "2001:db8::7/128", (1, 1))),
        ("tcp://[2001:db8::7]:*", net("tcp", "2001:db8::7/128")),
        ("tcp:[::ffff:192.0.2.7]:1", net("tcp", "192.0.2.7/32", (1, 1))),
        ("tcp:[::ffff:c000:207]", net("tcp", "192.0.2.7/32")),
        # networks
        ("tcp:192.0.2.0/24", net("tcp", "192.0.2.0/24")),
        ("tcp:192.0.2.0/24:80-90", net("tcp", "192.0.2.0/24", (80, 90))),
        ("tcp:192.0.2.7/32", net("tcp", "192.0.2.7/32")),
        ("tcp:0.0.0.0/0", net("tcp", "0.0.0.0/0")),
        ("tcp:128.0.0.0/1", net("tcp", "128.0.0.0/1")),
        ("tcp:[2001:db8::]/32", net("tcp", "2001:db8::/32")),
        ("tcp:[2001:db8::]/32:443", net("tcp", "2001:db8::/32", (443, 443))),
        ("tcp:[::]/0", net("tcp", "::/0")),
        ("tcp:[2001:db8::7]/128", net("tcp", "2001:db8::7/128")),
        ("tcp:[::ffff:192.0.2.0]/120:1", net("tcp", "192.0.2.0/24", (1, 1))),
        ("tcp:[::ffff:0.0.0.0]/96", net("tcp", "0.0.0.0/0")),
        ("tcp:[::ffff:192.0.2.7]/128", net("tcp", "192.0.2.7/32")),
        # ports
        ("tcp:x:1", Peer("tcp", "x", ports=(1, 1))),
        ("tcp:x:65535", Peer("tcp", "x", ports=(65535, 65535))),
        ("tcp:x:80-80", Peer("tcp", "x", ports=(80, 80))),
        ("tcp:x:1-65535", Peer("tcp", "x", ports=(1, 65535))),
        # local services
        ("unix:pong", Peer("unix", "pong")),
        ("unix://pong", Peer("unix", "pong")),
        ("unix:any", Peer("unix")),
        ("unix:*", Peer("unix")),
        ("unix://*", Peer("unix")),
    )
    def test_a_peer_is_read(self, text: str, wanted: Peer) -> None:
        self.assertEqual(parse_peer(text, OUT), wanted)

    @each(
        ("", "is no peer: wanted any, SCHEME:any or SCHEME:HOST[:PORT]; schemes are tcp, tls, udp, ws, wss, unix"),
        ("**", "is no peer"),
        ("example.com", "is no peer"),
        ("tcp", "is no peer"),
        ("TCP:x", "is no peer"),
        ("ssl:x", "is no peer"),
        ("t*:x", "is no peer"),
        ("tcp:", "the host is missing"),
        ("tcp://", "the host is missing"),
        ("tcp::80", "the host is missing"),
        ("tcp:///x", "the host is missing"),
        ("tcp:a..b", "neither a name nor an address"),
        ("tcp:-a", "neither a name nor an address"),
        ("tcp:a%00b", "percent-encoded control"),
        ("tcp:ANY", "no host is called any"),
        ("tcp:any.", "no host is called any"),
        ("tcp:any/8", "no host is called any"),
        ("tcp://any/pong", "no host is called any"),
        ("tcp:*/0", "the only wildcard in a host is *.NAME, for every name below NAME"),
        # wildcards
        ("tcp:*example.com", "the only wildcard"),
        ("tcp:a.*.example.com", "the only wildcard"),
        ("tcp:a*.example.com", "the only wildcard"),
        ("tcp:*.*.example.com", "the only wildcard"),
        ("tcp:example.*", "the only wildcard"),
        ("tcp:**.example.com", "the only wildcard"),
        ("tcp:%2A.example.com", "neither a name nor an address"),
        ("tcp:*.", "the host is missing"),
        ("tcp:*.any", "no host is called any"),
        ("tcp:*.192.0.2.7", "an address has no wildcard: a network is written 192.0.2.0/24"),
        ("tcp:192.0.2.*", "the only wildcard"),
        ("tcp:*.example.com/24", "only an address has a prefix length"),
        # addresses in other spellings
        ("tcp:127.1", "four decimal numbers"),
        ("tcp:0x7f000001", "four decimal numbers"),
        ("tcp:2130706433", "four decimal numbers"),
        ("tcp:0177.0.0.1", "four decimal numbers"),
        ("tcp:2001:db8::7", "an IPv6 address stands in brackets"),
        ("tcp:::1", "an IPv6 address stands in brackets"),
        ("tcp:2001:db8::/32", "an IPv6 address stands in brackets"),
        ("tcp:[2001:db8::7", "wants both brackets"),
        ("tcp:[192.0.2.7]", "no IPv6 address"),
        ("tcp:[fe80::1%eth0]", "zone ids"),
        ("tcp:[2001:db8::7]443", "only /LENGTH and :PORT may stand behind an IPv6 address"),
        # networks
        ("tcp:192.0.2.7/24", "192.0.2.7 is not where a network of that length begins; wanted 192.0.2.0/24"),
        ("tcp:[2001:db8::7]/32", "2001:db8::7 is not where a network of that length begins; wanted [2001:db8::]/32"),
        ("tcp:[::ffff:192.0.2.7]/120", "192.0.2.7 is not where a network of that length begins; wanted 192.0.2.0/24"),
        ("tcp:192.0.2.0/33", "at most 32"),
        ("tcp:[2001:db8::]/129", "at most 128"),
        ("tcp:[::ffff:192.0.2.7]/129", "at most 32"),
        ("tcp:[::ffff:0.0.0.0]/95", "has a length of 96 or more; write it as IPv4"),
        ("tcp:[::ffff:0.0.0.0]/0", "has a length of 96 or more; write it as IPv4"),
        ("tcp:192.0.2.0/", "the length of a network is a number behind its address"),
        ("tcp:192.0.2.0/024", "the length of a network is a number"),
        ("tcp:192.0.2.0/0x18", "the length of a network is a number"),
        ("tcp:192.0.2.0/+24", "the length of a network is a number"),
        ("tcp:192.0.2.0/24 ", "the length of a network is a number"),
        ("tcp:192.0.2.0/\u0662\u0664", "the length of a network is a number"),
        ("tcp:192.0.2.0/1000", "the length of a network is a number"),
        ("tcp:192.0.2.0/255.255.255.0", "the length of a network is a number"),
        ("tcp:192.0.2.0/24/24", "the length of a network is a number"),
        ("tcp:example.com/24", "only an address has a prefix length"),
        ("tcp://example.com/pong", "and no path stands here"),
        # ports
        ("tcp:x:0", "the port: wanted a number"),
        ("tcp:x:65536", "the port: wanted a number"),
        ("tcp:x:080", "the port: wanted a number"),
        ("tcp:x:", "the port: wanted a number"),
        ("tcp:x:http", "the port: wanted a number"),
        ("tcp:x:80-", "the port: wanted a number"),
        ("tcp:x:-80", "the port: wanted a number"),
        ("tcp:x:80-90-100", "the port: wanted a number"),
        ("tcp:x:0-80", "the port: wanted a number"),
        ("tcp:x:80-65536", "the port: wanted a number"),
        ("tcp:x:80-any", "the port: wanted a number"),
        ("tcp:x:80,90", "the port: wanted a number"),
        ("tcp:x:90-80", "a range of ports is written FIRST-LAST"),
        ("tcp:x:80/pong", "no path stands here: the service is the word in front of the peer"),
        ("tcp:192.0.2.0:80/24", "no path stands here"),
        ("tcp:192.0.2.0/24:", "the port: wanted a number"),
        ("tcp:[2001:db8::]/32:0", "the port: wanted a number"),
        # local services
        ("unix:", "wanted unix:NAME, the name of a local service"),
        ("unix:/run/pong", "wanted unix:NAME"),
        ("unix:///pong", "wanted unix:NAME"),
        ("unix:po*", "wanted unix:NAME"),
        ("unix:pong:80", "wanted unix:NAME"),
        ("unix:" + "x" * 65, "wanted unix:NAME"),
    )
    def test_anything_else_is_refused_with_what_is_wrong(self, text: str, reason: str) -> None:
        with self.assertRaises(PeerError) as caught:
            parse_peer(text, OUT)
        self.assertIn(reason, str(caught.exception))
        self.assertIn(repr(text), str(caught.exception))

    @each(
        ("any", Peer()),
        ("tcp:any", Peer("tcp")),
        ("udp:any:1", Peer("udp", ports=(1, 1))),
        ("tcp:192.0.2.0/24", net("tcp", "192.0.2.0/24")),
        ("ws:[2001:db8::7]", net("ws", "2001:db8::7/128")),
        ("tls:example.com", Peer("tls", "example.com")),
        ("wss:*.example.com", Peer("wss", suffix="example.com")),
    )
    def test_a_caller_is_what_it_proves_or_where_it_comes_from(self, text: str, wanted: Peer) -> None:
        self.assertEqual(parse_peer(text, IN), wanted)

    @each(
        ("tcp:example.com", "a tcp peer proves no name, so this would never match; wanted tcp:ADDRESS, or tls:example"),
        ("udp:example.com:80", "a udp peer proves no name"),
        ("ws:*.example.com", "wanted ws:ADDRESS, or tls:*.example.com"),
        ("unix:pong", "a remote peer has no local name; unix: stands in out rules"),
        ("unix:any", "a remote peer has no local name"),
    )
    def test_a_caller_is_not_called_what_it_cannot_prove(self, text: str, reason: str) -> None:
        with self.assertRaises(PeerError) as caught:
            parse_peer(text, IN)
        self.assertIn(reason, str(caught.exception))

    @PROPERTY
    @given(st.sampled_from((IN, OUT)).flatmap(lambda way: st.tuples(st.just(way), peers(way, EVERY))))
    def test_printing_and_reading_are_inverse(self, drawn: tuple[Direction, Peer]) -> None:
        way, peer = drawn
        self.assertEqual(parse_peer(str(peer), way), peer)
        self.assertEqual(parse_peer(str(peer).replace(":", "://", 1), way), peer)

    @PROPERTY
    @given(
        st.sampled_from((*SCHEMES, "ssl", "")),
        st.text(max_size=20)
        | st.lists(
            st.sampled_from(
                ("*", ".", "any", "a", "[", "]", "::", ":", "/", "-", "24", "80", "127.1", "//", "@", "%2e")
            ),
            max_size=8,
        ).map("".join),
        st.sampled_from((IN, OUT)),
    )
    def test_whatever_is_written_is_a_peer_or_a_mistake(self, scheme: str, rest: str, way: Direction) -> None:
        try:
            peer = parse_peer(f"{scheme}:{rest}", way)
        except PeerError:
            return
        self.assertEqual(parse_peer(str(peer), way), peer)

    @each(
        ("tcp:[::ffff:192.0.2.0]/120", "tcp:192.0.2.0/24"),
        ("tcp:192.0.2.7/32", "tcp:192.0.2.7"),
        ("tls://*.Example.com:1-2", "tls:*.example.com:1-2"),
        ("*", "any"),
        ("unix://*", "unix:any"),
        ("tcp:*:80-80", "tcp:any:80"),
        ("tcp:[2001:DB8::]/32:any", "tcp:[2001:db8::]/32"),
    )
    def test_there_is_one_normal_form(self, text: str, normal: str) -> None:
        self.assertEqual(str(parse_peer(text, OUT)), normal)


class Holds(SynchronousTestCase):
    @each(
        ("tcp:example.com", "example.com", True),
        ("tcp:example.com", "www.example.com", False),
        ("tcp:example.com", "com", False),
        ("tcp:*.example.com", "www.example.com", True),
        ("tcp:*.example.com", "a.b.example.com", True),
        ("tcp:*.example.com", "example.com", False),
        ("tcp:*.example.com", "evilexample.com", False),
        ("tcp:*.example.com", "www.example.com.evil.example", False),
        ("tcp:*.example.com", ".example.com", True),  # no host is called so
        ("tcp:192.0.2.7", "192.0.2.7", False),
        ("tcp:any", "example.com", False),
        ("unix:pong", "pong", True),
        ("unix:pong", "pong2", False),
    )
    def test_a_name_is_itself_and_a_wildcard_all_below_and_not_itself(self, text: str, name: str, holds: bool) -> None:
        peer = parse_peer(text, OUT)
        self.assertEqual(peer.has_name(name), holds)
        self.assertFalse(peer.has_name(None))

    @each(
        ("tcp:x", 1, True),
        ("tcp:x:80", 80, True),
        ("tcp:x:80", 79, False),
        ("tcp:x:80-90", 79, False),
        ("tcp:x:80-90", 80, True),
        ("tcp:x:80-90", 90, True),
        ("tcp:x:80-90", 91, False),
    )
    def test_a_port_lies_between_the_first_and_the_last(self, text: str, port: int, holds: bool) -> None:
        for untold in (True, False):
            self.assertEqual(parse_peer(text, OUT).has_port(port, untold=untold), holds)

    def test_a_port_that_nobody_knows_is_what_the_one_who_asks_says(self) -> None:
        for untold in (True, False):
            self.assertIs(parse_peer("tcp:x:80", OUT).has_port(None, untold=untold), untold)
            self.assertTrue(parse_peer("tcp:x", OUT).has_port(None, untold=untold))

    @each(
        ("tcp:192.0.2.7", V4),
        ("tcp:[2001:db8::7]", V6),
        ("tcp:192.0.2.7/32", V4),
        ("tcp:192.0.2.6/31", None),
        ("tcp:x", None),
        ("any", None),
    )
    def test_an_address_is_a_network_of_full_length(self, text: str, address: IPAddress | None) -> None:
        self.assertEqual(parse_peer(text, OUT).address, address)

    @each(
        ("itself", "192.0.2.0/24", "192.0.2.0/24", True),
        ("one_in_a_larger", "192.0.2.0/24", "192.0.0.0/16", True),
        ("one_in_a_smaller", "192.0.0.0/16", "192.0.2.0/24", False),
        ("apart", "192.0.2.0/24", "198.51.100.0/24", False),
        ("six", "2001:db8::/64", "2001:db8::/32", True),
        ("four_in_six", "192.0.2.0/24", "::/0", False),
        ("six_in_four", "::/128", "0.0.0.0/0", False),
    )
    def test_one_network_is_within_another_of_its_family(self, _: str, inner: str, outer: str, within: bool) -> None:
        self.assertEqual(is_within(*networks_of(inner, outer)), within)

    def test_within_means_that_no_address_is_outside(self) -> None:
        for inner in NESTED:
            for outer in NESTED:
                ends = (inner.network_address, inner.broadcast_address)
                same = inner.version == outer.version
                self.assertEqual(is_within(inner, outer), same and all(end in outer for end in ends))

    def test_anywhere_is_any(self) -> None:
        self.assertEqual((str(ANYWHERE), ANYWHERE), ("any", Peer()))


class Shown(SynchronousTestCase):
    @each(
        (Destination("tcp", "a.example", (V4,), 80), "tcp:a.example:80"),
        (Destination("tcp", None, (V4, V6), 80), "tcp:192.0.2.7:80"),
        (Destination("tcp", None, (V6,), 80), "tcp:[2001:db8::7]:80"),
        (Destination("unix", "pong", None, None), "unix:pong"),
        (Destination("tls", None, None, None), "tls:?"),
    )
    def test_a_destination_reads_as_the_peer_of_a_rule(self, to: Destination, shown: str) -> None:
        self.assertEqual((str(to), to.as_peer(OUT)), (shown, shown))

    def test_a_caller_reads_as_a_peer_without_its_source_port(self) -> None:
        self.assertEqual(Destination("tcp", None, (V4,), 51234).as_peer(IN), "tcp:192.0.2.7")

    @PROPERTY
    @given(
        st.builds(Destination, st.sampled_from(NETWORK_SCHEMES), EVERY.names, st.none(), st.none() | EVERY.ports)
        | st.builds(
            lambda scheme, address, port: Destination(scheme, None, (address,), port),
            st.sampled_from(NETWORK_SCHEMES),
            EVERY.addresses,
            st.none() | EVERY.ports,
        )
    )
    def test_what_is_shown_of_a_destination_is_the_peer_that_means_just_it(self, to: Destination) -> None:
        peer = parse_peer(str(to), OUT)
        self.assertEqual((peer.name, peer.address), (to.name, to.addresses[0] if to.addresses else None))
        self.assertEqual(peer.ports, None if to.port is None else (to.port, to.port))
