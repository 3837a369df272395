"""Contexts: who is believed, and what is said where somebody is not; real handshakes over socket pairs."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import socket
import ssl
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.tls_contexts import KEPT, NO_KEY, Contexts, fault_of, group
from plumberd.effects.tls_ending import TlsFault
from plumberd.pure import certificates
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import Authority, ClientCertificates, PeerSettings, RevocationList, TlsSettings, Trust
from tests.issued import DAY, NOW, Issued, ec_key, root, rsa_key, self_signed, with_sha1
from tests.support import CleanTestCase
from tests.tables import each

HOST = "pong.example.com"
PORT = 9001
ROOT = root()
OTHER = root("another authority")
KEY = PreSharedKey("laptop", b"0123456789abcdef0123456789abcdef")
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def trust(*authorities: Issued) -> Trust:
    """Return the trust in these, and in nobody else."""
    return Trust(False, tuple(Authority("ca.pem", one.pem) for one in authorities))


def crls(*pems: bytes) -> tuple[RevocationList, ...]:
    return tuple(RevocationList("crl.pem", pem) for pem in pems)


def settings(*own: Issued, believes: Trust | None = None, **members: Any) -> TlsSettings:
    """Return what is said about TLS."""
    return TlsSettings(tuple(one.value for one in own), trust(ROOT) if believes is None else believes, **members)


def out(tls: TlsSettings, peer: PeerSettings | None = None) -> Contexts:
    """Return how to go out where *peer* is said of :data:`HOST`."""
    return Contexts(tls, {f"{HOST}:{PORT}": peer} if peer else {})


def listening(tls: TlsSettings, alpn: Sequence[str] = ()) -> SSL.Context:
    """Return how to meet callers."""
    return Contexts(tls, {}).inward(alpn).context


class HandshakeTestCase(CleanTestCase):
    def meet(self, client: SSL.Connection, server: SSL.Connection) -> None:
        """Let both sides go on until they are done, or one of them has failed.

        :raises TlsFault: of whoever fails first.
        """
        waiting: list[Any] = [openssl.ssl_of(client), openssl.ssl_of(server)]
        for _ in range(20):
            waiting = [one for one in waiting if openssl.do_handshake(one) is not None]
            if not waiting:
                return
        self.fail("the handshake does not end")

    def sides(
        self, outward: Contexts, inward: SSL.Context, host: str = HOST, alpn: Sequence[str] = ()
    ) -> tuple[SSL.Connection, SSL.Connection]:
        """Return both sides of a connection that has not begun."""
        left, right = self.pair()
        left.setblocking(False)
        right.setblocking(False)
        found = outward.outward(host, PORT, alpn)
        client = openssl.connect(found.context, left, server=False)
        if found.server_name:
            client.set_tlsext_host_name(found.server_name.encode())
        return client, openssl.connect(inward, right, server=True)

    def met(self, outward: Contexts, inward: SSL.Context, host: str = HOST) -> tuple[SSL.Connection, SSL.Connection]:
        """Return both sides behind a handshake."""
        client, server = self.sides(outward, inward, host)
        self.meet(client, server)
        return client, server

    def refusal(self, outward: Contexts, inward: SSL.Context, host: str = HOST) -> str:
        """Return why the client does not believe the server."""
        client, server = self.sides(outward, inward, host)
        with self.assertRaises(TlsFault):
            self.meet(client, server)
        return fault_of(client) or ""

    def refusal_of_client(self, outward: Contexts, inward: SSL.Context) -> str:
        """Return why the server does not believe the client. In TLS 1.3 the client is done before."""
        client, server = self.sides(outward, inward)
        with self.assertRaises(TlsFault):
            self.meet(client, server)
        return fault_of(server) or ""


class Servers(HandshakeTestCase):
    """What a destination shows, and what becomes of it."""

    @each(
        ("the_name", ROOT.issue(HOST), HOST),
        ("one_of_several_names", ROOT.issue("a.example", HOST), HOST),
        ("a_wildcard", ROOT.issue("*.example.com"), HOST),
        ("an_address", ROOT.issue(addresses=["192.0.2.1"]), "192.0.2.1"),
        ("an_ipv6_address", ROOT.issue(addresses=["2001:db8::1"]), "2001:db8::1"),
        ("rsa", ROOT.issue(HOST, key=rsa_key(2048)), HOST),
        ("p_384", ROOT.issue(HOST, key=ec_key(ec.SECP384R1())), HOST),
        ("ed25519", ROOT.issue(HOST, key=ed25519.Ed25519PrivateKey.generate()), HOST),
        ("an_authority_between", ROOT.authority("between").issue(HOST), HOST),
    )
    def test_who_is_believed(self, _: str, shown: Issued, host: str) -> None:
        client, server = self.met(out(settings()), listening(settings(shown)), host)
        self.assertIsNone(fault_of(client))
        self.assertEqual(client.get_protocol_version_name(), "TLSv1.3")
        self.assertEqual(client.get_peer_certificate(as_cryptography=True), shown.certificate)

    @each(
        ("self_signed", self_signed(HOST), "its certificate is self-signed, and not one that is trusted here"),
        (
            "another_authority",
            OTHER.issue(HOST),
            "unknown authority: its certificate was issued by nobody who is trusted here",
        ),
        (
            "another_authority_that_shows_itself",
            OTHER.issue(HOST).behind(OTHER.certificate),
            "unknown authority: its chain ends in an authority that is not trusted here",
        ),
        ("expired", ROOT.issue(HOST, begins=NOW - 9 * DAY, ends=NOW - DAY), "its certificate has expired"),
        ("not_yet_valid", ROOT.issue(HOST, begins=NOW + DAY), "its certificate is not valid yet"),
        ("wrong_name", ROOT.issue("ping.example.com"), f"its certificate is for ping.example.com, and not for {HOST}"),
        ("wildcard_too_deep", ROOT.issue("*.com"), f"its certificate is for *.com, and not for {HOST}"),
        (
            "wildcard_of_a_sister",
            ROOT.issue("*.example.net"),
            f"its certificate is for *.example.net, and not for {HOST}",
        ),
        ("an_address_for_a_name", ROOT.issue(addresses=["192.0.2.1"]), f"is for 192.0.2.1, and not for {HOST}"),
        (
            "a_uri_alone",
            ROOT.issue(uris=["spiffe://a/b"]),
            f"its certificate is for no name at all, and not for {HOST}",
        ),
        ("for_clients", ROOT.issue(HOST, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]), "is not for this purpose"),
        ("rsa_1024", ROOT.issue(HOST, key=rsa_key(1024)), "its certificate has a weak key"),
        (
            "an_authority_on_p_192",
            ROOT.authority("between", key=ec_key(ec.SECP192R1())).issue(HOST),
            "an authority in its chain has a weak key",
        ),
        (
            "an_authority_on_p_224",
            ROOT.authority("between", key=ec_key(ec.SECP224R1())).issue(HOST),
            "an authority in its chain has a weak key: the curve secp224r1, and one of at least 256 bits is wanted",
        ),
        (
            "an_expired_authority_between",
            ROOT.authority("between", begins=NOW - 9 * DAY, ends=NOW - DAY).issue(HOST),
            "an authority in its chain has expired",
        ),
        ("no_authority_between", ROOT.issue("between").issue(HOST), "an authority in its chain is no authority"),
    )
    def test_who_is_not(self, _: str, shown: Issued, wanted: str) -> None:
        with mock.patch("plumberd.effects.tls_contexts.LEVEL", b"@SECLEVEL=0"):  # it would not show a weak one else
            inward = listening(settings(shown))
        self.assertIn(wanted, self.refusal(out(settings()), inward))

    def test_a_weak_signature_is_told(self) -> None:
        with mock.patch("plumberd.effects.tls_contexts.LEVEL", b"@SECLEVEL=0"):
            inward = listening(settings(with_sha1(ROOT, HOST)))
        self.assertIn("has a weak signature", self.refusal(out(settings()), inward))

    def test_an_address_is_told_from_another(self) -> None:
        inward = listening(settings(ROOT.issue("a.example", addresses=["192.0.2.1"])))
        said = self.refusal(out(settings()), inward, "192.0.2.2")
        self.assertEqual(said, "its certificate is for a.example, 192.0.2.1, and not for 192.0.2.2")

    def test_names_that_others_chose_are_printable_and_few(self) -> None:
        names = [f"n{number}.example" for number in range(9)]
        said = self.refusal(out(settings()), listening(settings(ROOT.issue("a\x1b[31m.example", *names))))
        self.assertEqual(
            said, f"its certificate is for a?[31m.example, n0.example, n1.example and 7 more, and not for {HOST}"
        )

    def test_every_reason_is_its_own(self) -> None:
        bad = [self_signed(HOST), OTHER.issue(HOST), ROOT.issue(HOST, ends=NOW - DAY / 2), ROOT.issue("a.example")]
        said = [self.refusal(out(settings()), listening(settings(one))) for one in bad]
        self.assertEqual(len(set(said)), len(bad), said)

    def test_what_was_found_once_holds_for_the_same_certificate_host_and_place_alone(self) -> None:
        contexts = Contexts(settings(believes=trust(ROOT)), {"b.example:9001": PeerSettings()})
        inward = listening(settings(ROOT.issue(HOST)))
        for _ in range(2):
            self.met(contexts, inward)
            self.assertIn("and not for b.example", self.refusal(contexts, inward, "b.example"))
        with mock.patch("plumberd.effects.tls_contexts.certificates.weakness") as asked:
            self.met(contexts, inward)
            asked.assert_not_called()

    def test_few_of_them_are_remembered(self) -> None:
        contexts = out(settings())
        inward = listening(settings(ROOT.issue("*.example.com")))
        with mock.patch("plumberd.effects.tls_contexts.KEPT", 4):
            for number in range(9):
                self.met(contexts, inward, f"h{number}.example.com")
        (believer,) = contexts._believers.values()
        self.assertLessEqual(len(believer._checked), 4)

    def test_a_connection_is_not_kept_for_what_is_known_of_it(self) -> None:
        client, server = self.sides(out(settings()), listening(settings(self_signed(HOST))))
        self.assertRaises(TlsFault, self.meet, client, server)
        self.assertIsNotNone(fault_of(client))
        gone = weakref.ref(client)
        del client
        gc.collect()
        self.assertIsNone(gone())


class Trusted(HandshakeTestCase):
    def test_the_system_s_authorities_are_believed_unless_others_are_named(self) -> None:
        inward = listening(settings(OTHER.issue(HOST)))
        with tempfile.NamedTemporaryFile() as file:
            file.write(OTHER.pem)
            file.flush()
            with mock.patch.dict(os.environ, {"SSL_CERT_FILE": file.name, "SSL_CERT_DIR": "/nowhere"}):
                self.met(out(TlsSettings()), inward)
                both = out(TlsSettings(trust=Trust(True, trust(ROOT).authorities)))
                self.met(both, inward)
                self.met(both, listening(settings(ROOT.issue(HOST))))
                self.assertIn("unknown authority", self.refusal(out(settings()), inward))

    def test_a_peer_s_own_trust_is_all_that_counts_there(self) -> None:
        outward = out(settings(), PeerSettings(trust=trust(OTHER)))
        self.met(outward, listening(settings(OTHER.issue(HOST))))
        self.assertIn("unknown authority", self.refusal(outward, listening(settings(ROOT.issue(HOST)))))

    def test_a_certificate_that_nobody_else_has_issued_may_be_trusted_itself(self) -> None:
        shown = self_signed(HOST)
        self.met(out(settings(believes=trust(shown))), listening(settings(shown)))

    def test_an_authority_may_be_trusted_below_one_that_is_not(self) -> None:
        between = OTHER.authority("between")
        self.met(out(settings(believes=trust(between))), listening(settings(between.issue(HOST))))
        sister = OTHER.issue(HOST)
        self.assertIn("unknown", self.refusal(out(settings(believes=trust(between))), listening(settings(sister))))


class Pins(HandshakeTestCase):
    def test_the_key_that_is_pinned_is_believed(self) -> None:
        shown = ROOT.issue(HOST)
        pinned = PeerSettings(pins=("sha256:" + "0" * 64, certificates.pin(shown.certificate)))
        self.met(out(settings(), pinned), listening(settings(shown)))

    def test_a_new_certificate_of_the_same_key_is_believed(self) -> None:
        key = ec_key()
        pinned = PeerSettings(pins=(certificates.pin(ROOT.issue(HOST, key=key).certificate),))
        self.met(out(settings(), pinned), listening(settings(ROOT.issue(HOST, key=key))))

    def test_another_key_is_not_and_the_one_that_was_found_is_told(self) -> None:
        shown = ROOT.issue(HOST)
        said = self.refusal(out(settings(), PeerSettings(pins=("sha256:" + "0" * 64,))), listening(settings(shown)))
        self.assertEqual(
            said, f"its key is another than the one that is pinned: it has {certificates.pin(shown.certificate)}"
        )

    def test_the_authority_s_key_is_none_of_the_server_s(self) -> None:
        pinned = PeerSettings(pins=(certificates.pin(ROOT.certificate),))
        shown = ROOT.issue(HOST).behind(ROOT.certificate)
        self.assertIn("its key is another", self.refusal(out(settings(), pinned), listening(settings(shown))))

    def test_a_pin_makes_nothing_good_that_is_bad_otherwise(self) -> None:
        for shown in (self_signed(HOST), ROOT.issue("ping.example.com"), ROOT.issue(HOST, ends=NOW - DAY / 2)):
            pinned = PeerSettings(pins=(certificates.pin(shown.certificate),))
            self.assertIn("its certificate", self.refusal(out(settings(), pinned), listening(settings(shown))))


class Revoked(HandshakeTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.shown = ROOT.issue(HOST)

    def said(self, shown: Issued, *pems: bytes, believes: Trust | None = None) -> str:
        outward = out(settings(crls=crls(*pems), believes=believes))
        return self.refusal(outward, listening(settings(shown)))

    def test_a_certificate_that_was_taken_back_is_refused(self) -> None:
        self.assertEqual(self.said(self.shown, ROOT.revoke(self.shown)), "its certificate was revoked")

    def test_another_one_of_the_same_authority_is_not(self) -> None:
        lists = crls(ROOT.revoke(self.shown))
        self.met(out(settings(crls=lists)), listening(settings(ROOT.issue(HOST))))

    def test_an_authority_between_that_was_taken_back_is_refused_with_all_that_it_has_issued(self) -> None:
        between = ROOT.authority("between")
        self.assertEqual(
            self.said(between.issue(HOST), ROOT.revoke(between), between.revoke()),
            "an authority in its chain was revoked",
        )

    def test_authorities_without_a_list_are_believed_beside_those_that_have_one(self) -> None:
        lists = crls(OTHER.revoke())
        self.met(out(settings(crls=lists)), listening(settings(self.shown)))
        between = ROOT.authority("between")
        self.met(out(settings(crls=crls(ROOT.revoke()))), listening(settings(between.issue(HOST))))

    def test_a_list_that_is_too_old_lets_nobody_pass(self) -> None:
        old = ROOT.revoke(begins=NOW - 9 * DAY, ends=NOW - DAY)
        self.assertIn("the revocation list of its authority has expired", self.said(self.shown, old))

    def test_a_list_that_somebody_else_has_signed_lets_nobody_pass(self) -> None:
        forged = root("test authority").revoke()
        self.assertIn("nobody knows whether its certificate was revoked", self.said(self.shown, forged))

    def test_a_caller_s_certificate_that_was_taken_back_is_refused(self) -> None:
        mine = ROOT.issue("laptop")
        tls = settings(self.shown, crls=crls(ROOT.revoke(mine)), client_certificates=ClientCertificates.OPTIONAL)
        outward = out(settings(), PeerSettings(certificate=mine.value))
        self.assertEqual(self.refusal_of_client(outward, listening(tls)), "its certificate was revoked")


class Callers(HandshakeTestCase):
    """What a listener asks of callers."""

    def setUp(self) -> None:
        super().setUp()
        self.shown = ROOT.issue(HOST)

    def inward(self, wanted: ClientCertificates, believes: Trust | None = None) -> SSL.Context:
        believes = trust(OTHER) if believes is None else believes
        return listening(settings(self.shown, believes=believes, client_certificates=wanted))

    def proved(self, wanted: ClientCertificates, mine: Issued | None) -> x509.Certificate | None:
        outward = out(settings(), PeerSettings(certificate=mine.value if mine else None))
        _, server = self.met(outward, self.inward(wanted))
        return server.get_peer_certificate(as_cryptography=True)

    def test_where_none_is_asked_for_none_is_shown(self) -> None:
        self.assertIsNone(self.proved(ClientCertificates.NONE, OTHER.issue("laptop")))

    def test_where_one_is_optional_it_may_be_shown_or_not(self) -> None:
        mine = OTHER.issue("laptop")
        self.assertEqual(self.proved(ClientCertificates.OPTIONAL, mine), mine.certificate)
        self.assertIsNone(self.proved(ClientCertificates.OPTIONAL, None))

    def test_where_one_is_required_it_is_shown(self) -> None:
        mine = OTHER.issue("laptop")
        self.assertEqual(self.proved(ClientCertificates.REQUIRED, mine), mine.certificate)

    def test_whatever_goes_wrong_with_a_stranger_s_certificate_it_is_refused_and_nothing_of_it_is_kept(self) -> None:
        inward = self.inward(ClientCertificates.OPTIONAL)
        outward = out(settings(), PeerSettings(certificate=OTHER.issue("laptop").value))

        def odd(believer: object, found: object, code: int, depth: int, host: str | None) -> str | None:
            if host is None:  # it is the caller's
                raise TypeError("odd")
            return None

        with mock.patch("plumberd.effects.tls_contexts._Believer._fault", odd):
            client, server = self.sides(outward, inward)
            with self.assertRaises(TlsFault):
                self.meet(client, server)
        self.assertEqual(fault_of(server), "a certificate in its chain cannot be read")
        gone = weakref.ref(server)
        del client, server
        self.assertIsNone(gone())

    def test_where_one_is_required_nobody_comes_in_without(self) -> None:
        client, server = self.sides(out(settings()), self.inward(ClientCertificates.REQUIRED))
        with self.assertRaises(TlsFault) as caught:
            self.meet(client, server)
        self.assertIn("did not return a certificate", str(caught.exception))

    @each(
        ("of_another_authority", ROOT.issue("laptop"), "unknown authority"),
        ("self_signed", self_signed("laptop"), "its certificate is self-signed"),
        ("expired", OTHER.issue("laptop", ends=NOW - DAY / 2), "its certificate has expired"),
        ("for_servers", OTHER.issue("laptop", purposes=[ExtendedKeyUsageOID.SERVER_AUTH]), "is not for this purpose"),
        (
            "a_weak_authority",
            OTHER.authority("between", key=ec_key(ec.SECP224R1())).issue("laptop"),
            "has a weak key: the curve secp224r1",
        ),
    )
    def test_a_bad_one_is_refused_even_where_it_is_optional(self, _: str, mine: Issued, wanted: str) -> None:
        with mock.patch("plumberd.effects.tls_contexts.LEVEL", b"@SECLEVEL=0"):
            outward = out(settings(), PeerSettings(certificate=mine.value))
        self.assertIn(wanted, self.refusal_of_client(outward, self.inward(ClientCertificates.OPTIONAL)))

    def test_callers_are_told_whose_certificates_are_believed(self) -> None:
        client, _ = self.met(out(settings()), self.inward(ClientCertificates.OPTIONAL))
        self.assertEqual([one.CN for one in client.get_client_ca_list()], ["another authority"])


class Several(HandshakeTestCase):
    """Several certificates on one listener."""

    def shown_to(self, inward: SSL.Context, name: str | None, algorithms: str | None = None) -> x509.Certificate | None:
        """Return what a caller is shown; Python's own TLS asks."""
        left, right = self.pair()
        left.setblocking(False)
        right.setblocking(False)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if algorithms is not None:
            context.maximum_version = TLS12
            context.set_ciphers(algorithms)
        client = context.wrap_socket(left, server_hostname=name, do_handshake_on_connect=False)
        self.owned(client).setblocking(False)
        server = openssl.connect(inward, right, server=True)
        for _ in range(10):
            with_client = True
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                with_client = False
            if openssl.do_handshake(openssl.ssl_of(server)) is None and with_client:
                break
        found = client.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(found) if found else None

    def test_the_caller_s_name_chooses(self) -> None:
        first, second, wild = ROOT.issue("a.example"), ROOT.issue("b.example", "c.example"), ROOT.issue("*.d.example")
        inward = listening(settings(first, second, wild))
        for name, wanted in (
            ("a.example", first),
            ("c.example", second),
            ("B.EXAMPLE", second),
            ("x.d.example", wild),
            ("d.example", first),
            ("unknown.example", first),
            (None, first),
        ):
            self.assertEqual(self.shown_to(inward, name), wanted.certificate, name)

    def test_of_two_kinds_for_the_same_name_the_caller_is_shown_the_one_that_it_can_read(self) -> None:
        between = ROOT.authority("between")
        short, long = between.issue(HOST), ROOT.issue(HOST, key=rsa_key(2048))
        inward = listening(settings(short, long))
        self.assertEqual(self.shown_to(inward, HOST, "ECDHE-ECDSA-AES128-GCM-SHA256"), short.certificate)
        self.assertEqual(self.shown_to(inward, HOST, "ECDHE-RSA-AES128-GCM-SHA256"), long.certificate)

    def test_each_is_shown_with_its_own_chain(self) -> None:
        between = ROOT.authority("between")
        for own in (
            (between.issue("a.example"), ROOT.issue("b.example")),
            (ROOT.issue("a.example", key=rsa_key(2048)),),
        ):
            inward = listening(settings(*own, between.issue(HOST)))
            client, _ = self.met(out(settings()), inward)
            self.assertEqual(len(client.get_peer_cert_chain() or ()), 2)
            client, _ = self.met(out(settings()), inward, own[-1].value.dns_names[0])
            self.assertEqual(len(client.get_peer_cert_chain() or ()), 1)

    def test_only_what_is_for_the_same_names_and_of_another_kind_is_put_together(self) -> None:
        a, a_rsa = ROOT.issue("a.example").value, ROOT.issue("a.example", key=rsa_key(2048)).value
        b, a_again = ROOT.issue("b.example").value, ROOT.issue("a.example").value
        self.assertEqual(group([a, b, a_rsa, a_again]), [(a, a_rsa), (b,), (a_again,)])

    def test_callers_certificates_are_asked_for_whatever_name_they_give(self) -> None:
        mine = ROOT.issue("laptop")
        tls = settings(ROOT.issue("a.example"), ROOT.issue(HOST), client_certificates=ClientCertificates.REQUIRED)
        _, server = self.met(out(settings(), PeerSettings(certificate=mine.value)), listening(tls))
        self.assertEqual(server.get_peer_certificate(as_cryptography=True), mine.certificate)


class Keys(HandshakeTestCase):
    """Pre-shared keys."""

    def test_a_key_proves_both_sides_and_no_certificate_is_looked_at(self) -> None:
        outward = out(settings(), PeerSettings(psk=KEY))
        for own in ((), (self_signed("whoever.example"),)):
            client, server = self.met(outward, listening(settings(*own, psks=(KEY,))))
            self.assertIsNone(client.get_peer_certificate())
            self.assertIsNone(fault_of(client) or fault_of(server))

    def test_who_does_not_know_the_key_is_not_believed_for_a_good_certificate(self) -> None:
        said = self.refusal(out(settings(), PeerSettings(psk=KEY)), listening(settings(ROOT.issue(HOST))))
        self.assertEqual(said, NO_KEY)

    def test_who_has_another_key_of_that_name_is_not_believed(self) -> None:
        other = dataclasses.replace(KEY, key=b"f" * 32)
        self.assertRaises(
            TlsFault, self.met, out(settings(), PeerSettings(psk=other)), listening(settings(psks=(KEY,)))
        )

    def test_a_caller_without_key_is_shown_the_certificate(self) -> None:
        shown = ROOT.issue(HOST)
        client, _ = self.met(out(settings()), listening(settings(shown, psks=(KEY,))))
        self.assertEqual(client.get_peer_certificate(as_cryptography=True), shown.certificate)

    def test_a_key_is_enough_where_a_certificate_is_required(self) -> None:
        tls = settings(ROOT.issue(HOST), psks=(KEY,), client_certificates=ClientCertificates.REQUIRED)
        client, _ = self.met(out(settings(), PeerSettings(psk=KEY)), listening(tls))
        self.assertIsNone(client.get_peer_certificate())

    def test_in_tls_1_2_too(self) -> None:
        outward = out(settings(), PeerSettings(psk=KEY))
        outward.outward(HOST, PORT).context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client, _ = self.met(outward, listening(settings(ROOT.issue(HOST), psks=(KEY,))))
        self.assertEqual(
            (client.get_protocol_version_name(), client.get_cipher_name()), ("TLSv1.2", "ECDHE-PSK-CHACHA20-POLY1305")
        )


class Agreement(HandshakeTestCase):
    """What both sides may agree on."""

    def python(self, **wanted: Any) -> ssl.SSLContext:
        """Return a caller that believes everybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for name, value in wanted.items():
            setattr(context, name, value)
        return context

    def call(
        self, context: ssl.SSLContext, inward: SSL.Context, session: ssl.SSLSession | None = None
    ) -> tuple[ssl.SSLObject, SSL.Connection]:
        """Call as Python does, until the first bytes have come back."""
        left, right = self.pair()
        left.setblocking(False)
        right.setblocking(False)
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(to_client, to_server, server_hostname=HOST, session=session)
        server = openssl.connect(inward, right, server=True)
        done = [False, False]
        for _ in range(10):
            if not done[0]:
                try:
                    client.do_handshake()
                    done[0] = True
                except ssl.SSLWantReadError:
                    pass
            if to_server.pending:
                left.send(to_server.read())
            done[1] = done[1] or openssl.do_handshake(openssl.ssl_of(server)) is None
            self._carry(left, to_client)
            if all(done):
                break
        server.send(b"x")
        self._carry(left, to_client)
        self.assertEqual(client.read(1), b"x")
        return client, server

    def _carry(self, sock: socket.socket, bio: ssl.MemoryBIO) -> None:
        with contextlib.suppress(BlockingIOError):
            bio.write(sock.recv(65536))

    @each(
        ("1.3", TLS13, "TLSv1.3", "TLS_AES_128_GCM_SHA256"),
        ("1.2", TLS12, "TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"),
    )
    def test_versions_and_suites(self, _: str, version: ssl.TLSVersion, wanted: str, suite: str) -> None:
        client, _server = self.call(self.python(maximum_version=version), listening(settings(ROOT.issue(HOST))))
        self.assertEqual((client.version(), (client.cipher() or ("",))[0]), (wanted, suite))
        self.assertIsNone(client.compression())

    @each(
        ("AES128-GCM-SHA256",),
        ("ECDHE-ECDSA-AES128-SHA256",),
        ("DHE-RSA-AES128-GCM-SHA256",),
        ("PSK-AES128-GCM-SHA256",),
    )
    def test_suites_without_ephemeral_keys_or_authenticated_encryption_are_refused(self, suite: str) -> None:
        context = self.python(maximum_version=TLS12)
        context.set_ciphers(suite + ":@SECLEVEL=0")
        inward = listening(settings(ROOT.issue(HOST), ROOT.issue(HOST, key=rsa_key(2048))))
        self.assertRaises((ssl.SSLError, TlsFault), self.call, context, inward)

    def test_older_versions_are_refused(self) -> None:
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_min_proto_version(SSL.TLS1_VERSION)
        context.set_max_proto_version(SSL.TLS1_1_VERSION)
        context.set_cipher_list(b"ALL:@SECLEVEL=0")
        left, right = self.pair()
        left.setblocking(False)
        right.setblocking(False)
        client = openssl.connect(context, left, server=False)
        with self.assertRaises(TlsFault) as caught:
            self.meet(client, openssl.connect(listening(settings(ROOT.issue(HOST))), right, server=True))
        self.assertIn("protocol", str(caught.exception))

    def test_a_caller_comes_back_with_a_ticket_and_its_certificate_is_still_known(self) -> None:
        mine = ROOT.issue("laptop")
        context = self.python()
        with tempfile.NamedTemporaryFile() as file:
            file.write(mine.chain + mine.key_pem)
            file.flush()
            context.load_cert_chain(file.name)
        inward = listening(settings(ROOT.issue(HOST), client_certificates=ClientCertificates.REQUIRED))
        for version in (TLS12, TLS13):
            context.maximum_version = version
            client, _ = self.call(context, inward)
            again, server = self.call(context, inward, client.session)
            self.assertTrue(again.session_reused, version)
            self.assertEqual(server.get_peer_certificate(as_cryptography=True), mine.certificate)

    def test_a_ticket_of_another_listener_or_generation_is_worth_nothing(self) -> None:
        tls = settings(ROOT.issue(HOST))
        for version in (TLS12, TLS13):
            context = self.python(maximum_version=version)
            client, _ = self.call(context, listening(tls))
            again, _ = self.call(context, listening(tls), client.session)
            self.assertFalse(again.session_reused, version)

    def test_where_there_are_keys_nobody_comes_back_with_a_ticket(self) -> None:
        inward = listening(settings(ROOT.issue(HOST), psks=(KEY,)))
        for version in (TLS12, TLS13):
            context = self.python(maximum_version=version)
            client, _ = self.call(context, inward)
            again, _ = self.call(context, inward, client.session)
            self.assertFalse(again.session_reused, version)

    def test_renegotiation_is_refused(self) -> None:
        client, server = self.sides(out(settings()), listening(settings(ROOT.issue(HOST))))
        for connection in (client, server):
            self.assertTrue(connection.set_options(0) & SSL.OP_NO_RENEGOTIATION)

    def test_the_first_protocol_of_ours_that_is_offered_is_chosen(self) -> None:
        inward = listening(settings(ROOT.issue(HOST)), ["plumb/1", "http/1.1"])
        for offered, wanted in (
            (["http/1.1", "plumb/1"], b"plumb/1"),
            (["http/1.1"], b"http/1.1"),
            (["h2"], b""),
            ([], b""),
        ):
            client, server = self.sides(out(settings()), inward, alpn=offered)
            self.meet(client, server)
            self.assertEqual(client.get_alpn_proto_negotiated(), wanted)
            self.assertEqual(server.get_alpn_proto_negotiated(), wanted)

    def test_the_name_is_sent_and_an_address_is_not(self) -> None:
        names = []
        inward = listening(settings(ROOT.issue(HOST, addresses=["192.0.2.1"])))
        for host in (HOST, "192.0.2.1"):
            _, server = self.met(out(settings()), inward, host)
            names.append(server.get_servername())
        self.assertEqual(names, [HOST.encode(), None])


class Generation(HandshakeTestCase):
    def test_each_destination_has_a_context_which_is_kept(self) -> None:
        contexts = out(settings())
        one = contexts.outward(HOST, PORT)
        self.assertIs(contexts.outward(HOST, PORT), one)
        others = [contexts.outward(HOST, PORT, ["h2"]), contexts.outward(HOST, 1), contexts.outward("b.example", PORT)]
        self.assertEqual(len({id(other.context) for other in (one, *others)}), 4)

    def test_few_are_kept(self) -> None:
        contexts = out(settings())
        first = weakref.ref(contexts.outward("h0.example", 1).context)
        for number in range(KEPT):
            contexts.outward(f"h{number}.example", 2)
        gc.collect()
        self.assertIsNone(first())

    def test_the_system_s_authorities_are_read_once(self) -> None:
        with mock.patch.object(SSL.Context, "set_default_verify_paths") as read:
            contexts = Contexts(TlsSettings(), {f"{HOST}:{PORT}": PeerSettings(certificate=ROOT.issue("me").value)})
            for host in ("a.example", "b.example", HOST):
                contexts.outward(host, PORT)
            self.assertEqual(read.call_count, 1)

    def test_what_may_be_proved_to_one_destination_is_offered_to_no_other(self) -> None:
        mine = ROOT.issue("laptop")
        contexts = out(settings(), PeerSettings(certificate=mine.value))
        inward = listening(settings(ROOT.issue(HOST), client_certificates=ClientCertificates.OPTIONAL))
        shown = []
        for port in (PORT, PORT + 1):
            left, right = self.pair()
            left.setblocking(False)
            right.setblocking(False)
            server = openssl.connect(inward, right, server=True)
            self.meet(openssl.connect(contexts.outward(HOST, port).context, left, server=False), server)
            shown.append(server.get_peer_certificate(as_cryptography=True))
        self.assertEqual(shown, [mine.certificate, None])

    def test_a_peer_s_own_settings_hold_for_an_address_too(self) -> None:
        peers = {"[2001:db8::1]:9001": PeerSettings(trust=trust(OTHER))}
        contexts = Contexts(settings(), peers)
        self.met(contexts, listening(settings(OTHER.issue(addresses=["2001:db8::1"]))), "2001:db8::1")

    def test_each_listener_has_its_own(self) -> None:
        contexts = Contexts(settings(ROOT.issue(HOST)), {})
        self.assertIsNot(contexts.inward().context, contexts.inward().context)

    def test_a_listener_wants_something_to_prove(self) -> None:
        self.assertRaises(ValueError, Contexts(settings(), {}).inward)
