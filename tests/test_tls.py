"""What is said about TLS, as values."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import (
    EXPIRY_NOTICE_SECONDS,
    Authority,
    Certificate,
    PeerSettings,
    RevocationList,
    TlsError,
    TlsSettings,
    Trust,
    check_alpn,
    check_login,
    choose,
    expiring,
    parse_peer_key,
    parse_pin,
    peer_key,
)
from plumberd.pure.uri import parse_uri
from tests.tables import PROPERTY, each

DAY = 24 * 3600
NOW = 1_800_000_000  # 2027-01-15
DIGEST = "0123456789abcdef" * 4


class PeerKey(SynchronousTestCase):
    @each(
        ("auth.example.com:9001", "auth.example.com:9001"),
        ("Auth.Example.COM.:9001", "auth.example.com:9001"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("192.0.2.1:443", "192.0.2.1:443"),
        ("[2001:DB8::0:1]:443", "[2001:db8::1]:443"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1:443"),
    )
    def test_each_has_one_spelling(self, text: str, wanted: str) -> None:
        self.assertEqual(parse_peer_key(text), wanted)
        uri = parse_uri(f"tls://{text}")
        self.assertEqual(peer_key(uri.host, uri.port), wanted)

    @each(
        ("auth.example.com",),
        ("auth.example.com:",),
        (":9001",),
        ("auth.example.com:0",),
        ("auth.example.com:65536",),
        ("auth.example.com:https",),
        ("2001:db8::1:443",),
        ("127.1:443",),
        ("*.example.com:443",),
        ("user:secret@auth.example.com:9001",),
        ("tls://auth.example.com:9001",),
        ("any:9001",),
        ("",),
    )
    def test_what_is_none(self, text: str) -> None:
        with self.assertRaises(TlsError) as caught:
            parse_peer_key(text)
        self.assertNotIn("secret", str(caught.exception))


class Words(SynchronousTestCase):
    @each(
        (f"sha256:{DIGEST}",),
        (f"SHA256:{DIGEST.upper()}",),
        ("sha256:" + ":".join(DIGEST[at : at + 2] for at in range(0, 64, 2)),),
    )
    def test_a_pin_has_one_spelling(self, text: str) -> None:
        self.assertEqual(parse_pin(text), f"sha256:{DIGEST}")

    @each((DIGEST,), (f"sha256:{DIGEST[:-1]}",), (f"sha256:{DIGEST}0",), (f"sha1:{DIGEST[:40]}",), ("",), ("sha256:",))
    def test_what_is_no_pin(self, text: str) -> None:
        self.assertRaises(TlsError, parse_pin, text)

    @each(("plumb/1",), ("h2",), ("http/1.1",), ("x" * 255,))
    def test_the_name_of_a_protocol(self, text: str) -> None:
        self.assertEqual(check_alpn(text), text)

    @each(("",), ("x" * 256,), ("two words",), ("ä",), ("a\n",))
    def test_what_is_none(self, text: str) -> None:
        self.assertRaises(TlsError, check_alpn, text)

    @each(("alice",), ("alice@example.com",), ("Jürgen Groß",), ("x" * 255,))
    def test_the_name_of_a_user(self, text: str) -> None:
        self.assertEqual(check_login(text), text)

    @each(("",), ("alice:secret",), ("x" * 256,), ("a\nb",), ("a\0",))
    def test_what_is_no_name_of_a_user(self, text: str) -> None:
        with self.assertRaises(TlsError) as caught:
            check_login(text)
        self.assertNotIn("secret", str(caught.exception))


class Choice(SynchronousTestCase):
    """Which of several certificates a caller is shown."""

    OWN = (("a.example", "b.example"), ("*.c.example",), ("x.c.example", "*.b.example"))

    @each(
        ("a.example", 0),
        ("A.Example", 0),
        ("b.example.", 0),
        ("y.c.example", 1),
        ("x.c.example", 2),
        ("z.b.example", 2),
        ("c.example", 0),
        ("y.y.c.example", 0),
        ("other.example", 0),
        ("", 0),
        (None, 0),
        ("*", 0),
    )
    def test_by_the_name_that_it_asks_for(self, name: str | None, wanted: int) -> None:
        self.assertEqual(choose(self.OWN, name), wanted)

    @PROPERTY
    @given(st.text(), st.lists(st.lists(st.text(max_size=5)).map(tuple), min_size=1))
    def test_there_is_always_one(self, name: str, own: list[tuple[str, ...]]) -> None:
        self.assertIn(choose(own, name), range(len(own)))


def certificate(ends: float, **members: Any) -> Certificate:
    return Certificate("cert.pem", "key.pem", b"", b"", **{"name": "a.example", "ends": int(NOW + ends), **members})


class Expiries(SynchronousTestCase):
    @each(
        (-1, "has expired on 2027-01-15"),
        (-3 * DAY, "has expired on 2027-01-12"),
        (0, "has expired on 2027-01-15"),
        (1, "expires on 2027-01-15, today"),
        (DAY, "expires on 2027-01-16, in 1 day"),
        (9.5 * DAY, "expires on 2027-01-24, in 9 days"),
        (EXPIRY_NOTICE_SECONDS, "expires on 2027-01-29, in 14 days"),
    )
    def test_from_14_days_before_on_it_is_told(self, left: float, wanted: str) -> None:
        (found,) = expiring(TlsSettings((certificate(left),)), {}, NOW)
        self.assertEqual(str(found), f"certificate cert.pem (a.example) {wanted}")

    def test_before_that_nothing_is(self) -> None:
        self.assertEqual(expiring(TlsSettings((certificate(EXPIRY_NOTICE_SECONDS + 1),)), {}, NOW), ())

    def test_one_that_is_not_valid_yet_is_told(self) -> None:
        (found,) = expiring(TlsSettings((certificate(90 * DAY, begins=NOW + DAY),)), {}, NOW)
        self.assertEqual(str(found), "certificate cert.pem (a.example) is valid from 2027-01-16 on, and not yet")

    def test_every_kind_is_told_the_first_to_end_first_and_each_once(self) -> None:
        old = Authority("ca.pem", b"", "the authority", ends=NOW + 2 * DAY)
        late = RevocationList("crl.pem", b"", "CN=it", NOW - 1)
        tls = TlsSettings((certificate(3 * DAY),), Trust(False, (old,)), (late,))
        own = Certificate("mine.pem", "mine.key", b"", b"", "me", ends=NOW + DAY)
        peers = {"a:1": PeerSettings(certificate=own, trust=Trust(False, (old,))), "b:1": PeerSettings(certificate=own)}
        self.assertEqual(
            [str(one) for one in expiring(tls, peers, NOW)],
            [
                "revocation list crl.pem (CN=it) should have been renewed on 2027-01-15: whatever it covers is refused",
                "certificate mine.pem (me) expires on 2027-01-16, in 1 day",
                "authority ca.pem (the authority) expires on 2027-01-17, in 2 days",
                "certificate cert.pem (a.example) expires on 2027-01-18, in 3 days",
            ],
        )

    def test_a_list_that_is_to_be_renewed_is_told_only_when_it_is_late(self) -> None:
        fresh = RevocationList("crl.pem", b"", "CN=it", NOW + 1)
        for_ever = RevocationList("crl.pem", b"", "CN=it", None)
        self.assertEqual(expiring(TlsSettings(crls=(fresh, for_ever)), {}, NOW), ())


class Secrets(SynchronousTestCase):
    def test_none_shows_in_a_repr(self) -> None:
        secret = b"s3cret" * 4
        own = Certificate("cert.pem", "key.pem", b"", secret)
        key = PreSharedKey("laptop", secret)
        peer = PeerSettings(key, own, "alice", "password", "s3cret")
        for value in (TlsSettings((own,), psks=(key,)), peer):
            self.assertNotIn("s3cret", repr(value))
            self.assertIn("key.pem", repr(value))

    def test_two_that_differ_in_a_secret_alone_are_not_equal(self) -> None:
        self.assertNotEqual(PeerSettings(password="a"), PeerSettings(password="b"))
