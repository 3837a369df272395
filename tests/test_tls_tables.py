"""``[tls]`` and ``[peer]``: what they come to, and every mistake in them and in their files."""

from __future__ import annotations

import os
import traceback

from plumberd.commands.offline import Configured
from plumberd.pure.tls import ClientCertificates, Trust
from plumberd.wiring.config.changes import changes
from plumberd.wiring.config.mistakes import ConfigurationError
from tests.configured import ConfiguredTestCase
from tests.issued import DAY, NOW, root, rsa_key
from tests.tables import each

ROOT = root()
OWN = ROOT.issue("a.example")
SECOND = ROOT.issue("b.example")
KEYS = "laptop:" + "0f" * 16 + "\ncaller:" + "f0" * 16 + "\n"


class TlsTablesTestCase(ConfiguredTestCase):
    def setUp(self) -> None:
        super().setUp()
        for name, own in (("a", OWN), ("b", SECOND)):
            self.write(own.chain, f"{name}.pem")
            self.write(own.key_pem, f"{name}.key", 0o600)
        self.write(ROOT.pem, "ca.pem")
        self.write(ROOT.revoke(), "crl.pem")
        self.write(KEYS, "psk", 0o600)
        self.write("s3cret\n", "password", 0o600)


class Read(TlsTablesTestCase):
    def test_without_them_nothing_is_proved_and_the_system_s_authorities_are_believed(self) -> None:
        tls = self.settings("").tls
        self.assertEqual((tls.certificates, tls.psks, tls.trust), ((), (), Trust(True, ())))
        self.assertFalse(tls.can_listen)

    def test_all_certificates_with_the_single_one_in_front(self) -> None:
        tls = self.settings(
            "[tls]\ncertificate = 'a.pem'\nprivate_key = 'a.key'\n"
            "certificates = [{ certificate = 'b.pem', private_key = 'b.key' }]"
        ).tls
        self.assertEqual([one.name for one in tls.certificates], ["a.example", "b.example"])
        self.assertEqual(tls.certificates[0].chain_file, self.path("a.pem"))
        self.assertEqual(tls.certificates[1].key, SECOND.key_pem)

    def test_whom_to_believe(self) -> None:
        for said, system, files in (
            ("'ca.pem'", False, 1),
            ("['ca.pem', 'system']", True, 1),
            ("'system'", True, 0),
            ("['./ca.pem', 'ca.pem']", False, 2),
        ):
            found = self.settings(f"[tls]\ntrust = {said}\ncrl = 'crl.pem'").tls
            self.assertEqual((found.trust.system, len(found.trust.authorities)), (system, files), said)
            self.assertEqual([one.file for one in found.crls], [self.path("crl.pem")])

    def test_paths_are_meant_from_the_file_that_says_them(self) -> None:
        self.write("[tls]\ncertificate = '../a.pem'\nprivate_key = '../a.key'", "more/tls.toml")
        self.write("peer.'h.example:1'.trust = ['../ca.pem']", "more/peer.toml")
        settings = self.settings("include = ['more/*.toml']\n[tls]\npsk_file = 'psk'")
        self.assertEqual([one.name for one in settings.tls.certificates], ["a.example"])
        self.assertEqual(settings.tls.psk_file, self.path("psk"))
        self.assertEqual(str(settings.peers["h.example:1"].trust), self.path("ca.pem"))

    def test_what_is_asked_of_callers_and_what_is_spoken(self) -> None:
        tls = self.settings("[tls]\nclient_certificates = 'required'\nalpn = ['h2', 'http/1.1']").tls
        self.assertEqual((tls.client_certificates, tls.alpn), (ClientCertificates.REQUIRED, ("h2", "http/1.1")))

    def test_what_is_proved_to_a_peer_by_its_one_name(self) -> None:
        peers = self.settings(
            "tls.psk_file = 'psk'\n"
            "[peer.'Auth.Example.COM:9001']\npsk = 'laptop'\n"
            "[peer.'[2001:DB8::1]:443']\ncertificate = 'a.pem'\nprivate_key = 'a.key'\n"
            "login = 'alice'\npassword_file = 'password'\ntrust = 'ca.pem'\n"
        ).peers
        self.assertEqual(sorted(peers), ["[2001:db8::1]:443", "auth.example.com:9001"])
        first, second = peers["auth.example.com:9001"], peers["[2001:db8::1]:443"]
        self.assertEqual(first.psk and (first.psk.identity, first.psk.key), ("laptop", b"\x0f" * 16))
        self.assertEqual(second.certificate and second.certificate.name, "a.example")
        self.assertEqual((second.login, second.password), ("alice", "s3cret"))
        self.assertEqual(second.trust and len(second.trust.authorities), 1)

    def test_a_key_that_is_proved_to_a_peer_is_accepted_from_no_caller(self) -> None:
        said = "tls.psk_file = 'psk'\n"
        both = self.settings(said).tls.psks
        self.assertEqual([one.identity for one in both], ["laptop", "caller"])
        left = self.settings(said + "peer.'h.example:1'.psk = 'laptop'").tls.psks
        self.assertEqual([one.identity for one in left], ["caller"])

    def test_an_expired_certificate_is_no_mistake(self) -> None:
        old = ROOT.issue("old.example", begins=NOW - 9 * DAY, ends=NOW - DAY)
        self.write(old.chain, "a.pem")
        self.write(old.key_pem, "a.key", 0o600)
        settings = self.settings("[tls]\ncertificate = 'a.pem'\nprivate_key = 'a.key'")
        self.assertEqual([one.name for one in settings.tls.certificates], ["old.example"])

    def test_who_only_asks_a_configuration_needs_none_of_its_files(self) -> None:
        path = self.write(
            "rules = ['allow in a tls:any for psk:caller']\n[tls]\ncertificate = '/none/a.pem'\n"
            "private_key = '/none/a.key'\ntrust = '/none/ca.pem'\ncrl = '/none/crl.pem'\npsk_file = '/none/psk'\n"
            "[listen]\ntlsd = ['9001']\n[peer.'h.example:1']\npsk = 'laptop'\n"
            "[peer.'h.example:2']\nlogin = 'alice'\npassword_file = '/none/password'"
        )
        answer = Configured(path).explain({"direction": "in", "service": "a", "peer": "tls:h.example", "as": []})
        self.assertFalse(answer["granted"])


class Mistaken(TlsTablesTestCase):
    @each(
        ("no_key", "certificate = 'a.pem'", "tls: certificate and private_key belong together"),
        ("no_certificate", "private_key = 'a.key'", "tls: certificate and private_key belong together"),
        (
            "not_there",
            "certificate = 'none.pem'\nprivate_key = 'a.key'",
            "tls.certificate: none.pem: No such file or directory",
        ),
        (
            "key_not_there",
            "certificate = 'a.pem'\nprivate_key = 'none.key'",
            "tls.private_key: none.key: No such file or directory",
        ),
        (
            "another_key",
            "certificate = 'a.pem'\nprivate_key = 'b.key'",
            "tls.private_key: b.key: the key does not belong to the certificate of a.example",
        ),
        (
            "one_of_several",
            "certificates = [{ certificate = 'a.pem', private_key = 'a.key' },"
            " { certificate = 'b.pem', private_key = 'a.key' }]",
            "tls.certificates[1].private_key: a.key: the key does not belong to the certificate of b.example",
        ),
        (
            "half_of_several",
            "certificates = [{ certificate = 'a.pem' }]",
            "tls.certificates[0]: certificate and private_key",
        ),
        ("none_of_several", "certificates = [{}]", "tls.certificates[0]: wanted certificate and private_key"),
        ("trust", "trust = ['ca.pem', 'a.key']", "tls.trust: a.key: no certificate in it"),
        ("crl", "crl = 'ca.pem'", "tls.crl: ca.pem: no revocation list in it"),
        ("keys", "psk_file = 'ca.pem'", "tls.psk_file: ca.pem: a secret that others can read (mode 0644)"),
    )
    def test_each_in_tls_is_told_with_its_key_and_its_file(self, _: str, text: str, wanted: str) -> None:
        (found,) = self.mistakes(f"[tls]\n{text}")
        self.assertTrue(found.startswith(f"plumberd.toml: {wanted}"), found)

    @each(
        ("no_key", "certificate = 'a.pem'", ": certificate and private_key belong together"),
        (
            "a_weak_key",
            "certificate = 'weak.pem'\nprivate_key = 'a.key'",
            ".certificate: weak.pem: the certificate of w has a weak key",
        ),
        ("an_unknown_key", "psk = 'desktop'", ".psk: desktop: no key of that name in psk"),
        ("no_password", "login = 'alice'", ": login and password_file belong together"),
        ("no_login", "password_file = 'password'", ": login and password_file belong together"),
        ("password", "login = 'a'\npassword_file = 'a.pem'", ".password_file: a.pem: a secret that others can read"),
        ("trust", "trust = 'crl.pem'", ".trust: crl.pem: no certificate in it"),
        ("a_key_and_trust", "psk = 'laptop'\ntrust = 'ca.pem'", ".trust: with a pre-shared key no certificate is"),
        (
            "a_key_and_a_pin",
            f"psk = 'laptop'\npin = 'sha256:{'0' * 64}'",
            ".pin: with a pre-shared key no certificate is",
        ),
    )
    def test_each_of_a_peer_too(self, _: str, text: str, wanted: str) -> None:
        self.write(ROOT.issue("w", key=rsa_key(1024)).chain, "weak.pem")
        (found,) = self.mistakes(f"tls.psk_file = 'psk'\n[peer.'h.example:1']\n{text}")
        self.assertTrue(found.startswith(f'plumberd.toml: peer."h.example:1"{wanted}'), found)

    def test_a_key_without_a_file_of_keys(self) -> None:
        found = self.mistakes("peer.'h.example:1'.psk = 'laptop'")
        self.assertEqual(
            found, ['plumberd.toml: peer."h.example:1".psk: the key is looked for in tls.psk_file, which is not said']
        )

    def test_a_destination_that_stands_twice(self) -> None:
        found = self.mistakes("[peer.'h.example:1']\n[peer.'H.example.:1']")
        self.assertEqual(found, ['plumberd.toml: peer."H.example.:1": the same destination as h.example:1'])

    def test_every_mistake_of_the_file_of_keys(self) -> None:
        self.write("a:short\nb\n" + KEYS, "psk", 0o600)
        found = self.mistakes("tls.psk_file = 'psk'")
        self.assertEqual(
            [line.split(": ")[:3] for line in found], [["plumberd.toml", "tls.psk_file", f"psk:{n}"] for n in (1, 2)]
        )

    def test_all_of_them_at_once_with_those_of_other_keys(self) -> None:
        found = self.mistakes(
            "rundir = 5\n[tls]\ncertificate = 'none'\nprivate_key = 'a.key'\ntrust = 'none'\nalpn = ['']\n"
            "[peer.'h.example:1']\ntrust = 'none'\n[peer.h]\n"
        )
        keys = [line.split(": ")[1] for line in found]
        self.assertEqual(
            keys, ["rundir", "tls.alpn[0]", "peer.h", "tls.certificate", "tls.trust", 'peer."h.example:1".trust']
        )

    @each(
        ("listen.tlsd = ['9001']", "listen.tlsd"),
        ("listen.publish_tls.web = ['9001']", "listen.publish_tls"),
        (
            "listen.tlsd = ['9001']\ntls.psk_file = 'psk'\npeer.'h:1'.psk = 'laptop'\npeer.'h:2'.psk = 'caller'",
            "listen.tlsd",
        ),
    )
    def test_a_listener_wants_something_to_prove(self, text: str, key: str) -> None:
        (found,) = self.mistakes(text)
        self.assertTrue(found.startswith(f"plumberd.toml: {key}: wants something that a listener can prove"), found)


class Secrets(TlsTablesTestCase):
    """What is secret shows nowhere."""

    def test_in_no_value_no_change_no_mistake_and_no_traceback(self) -> None:
        secrets = ["s3cret", "0f" * 16, OWN.key_pem.decode().splitlines()[1], r"\x0f\x0f"]
        text = (
            "[tls]\ncertificate = 'a.pem'\nprivate_key = 'a.key'\npsk_file = 'psk'\n"
            "[peer.'h.example:1']\npsk = 'laptop'\nlogin = 'alice'\npassword_file = 'password'\n"
        )
        nothing = self.settings("")
        settings = self.settings(text)
        shown = [repr(settings), str(settings), *changes(nothing, settings).lines]
        for name, data in (
            ("a.key", b"s3cret" + OWN.key_pem[:80]),
            ("psk", b"s3cret"),
            ("password", b"s3cret\ns3cret"),
        ):
            self.write(data, name, 0o600)
        with self.assertRaises(ConfigurationError) as caught:
            self.settings(text)
        error = caught.exception
        self.assertEqual(len(error.mistakes), 3)
        shown += [str(error), repr(error), *traceback.format_exception(error)]
        for secret in secrets:
            self.assertEqual([text for text in shown if secret in text], [], secret)

    def test_files_that_have_changed_are_read_anew(self) -> None:
        text = "[tls]\ncertificate = 'a.pem'\nprivate_key = 'a.key'"
        old = self.settings(text)
        self.write(SECOND.chain, "a.pem")
        os.remove(self.path("a.key"))
        self.write(SECOND.key_pem, "a.key", 0o600)
        (line,) = changes(old, self.settings(text)).lines
        self.assertIn("a.example, until ", line)
        self.assertIn(" → b.example, until ", line)
