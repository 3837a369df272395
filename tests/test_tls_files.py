"""The files of TLS: what is read of them, and what is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from plumberd.effects.tls_files import TlsFileError, TlsFiles, UnreadFiles
from tests.configured import ConfiguredTestCase
from tests.issued import DAY, NOW, root, rsa_key
from tests.tables import each

ROOT = root()
OWN = ROOT.authority("between").issue("a.example", "b.example", ends=NOW + 9 * DAY)
KEYS = b"laptop:00112233445566778899aabbccddeeff\n"


class TlsFilesTestCase(ConfiguredTestCase):
    def mistake(self, read: Callable[..., Any], *words: str) -> str:
        """Return the one mistake in what cannot be read, without this test's folder."""
        with self.assertRaises(TlsFileError) as caught:
            read(*words)
        (found,) = self.bare(caught.exception.mistakes)
        return found

    def own(self, chain: bytes = OWN.chain, key: bytes = OWN.key_pem, *, mode: int = 0o600) -> tuple[str, str]:
        """Write a certificate and its key."""
        return self.write(chain, "cert.pem"), self.write(key, "key.pem", mode)


class Certificates(TlsFilesTestCase):
    def test_one_is_read_with_its_chain_and_its_key(self) -> None:
        chain, key = self.own(b"a comment\n" + OWN.chain)
        found = TlsFiles().certificate(chain, key)
        self.assertEqual((found.chain_file, found.key_file), (chain, key))
        self.assertEqual((found.chain, found.key), (OWN.chain, OWN.key_pem))
        self.assertEqual((found.name, found.dns_names, found.kind), ("a.example", ("a.example", "b.example"), "EC"))
        self.assertEqual((found.begins, found.ends), ((NOW - DAY).timestamp(), (NOW + 9 * DAY).timestamp()))

    def test_one_that_has_expired_is_read(self) -> None:
        old = ROOT.issue("a.example", begins=NOW - 9 * DAY, ends=NOW - DAY)
        found = TlsFiles().certificate(*self.own(old.chain, old.key_pem))
        self.assertLess(found.ends, NOW.timestamp())

    def test_both_may_stand_in_one_file_which_is_a_secret_then(self) -> None:
        path = self.write(OWN.key_pem + OWN.chain, "both.pem", 0o600)
        self.assertEqual(TlsFiles().certificate(path, path).dns_names, ("a.example", "b.example"))
        os.chmod(path, 0o644)
        self.assertIn("both.pem: a secret that others can read", self.mistake(TlsFiles().certificate, path, path))

    def test_a_chain_with_a_key_in_it_is_a_secret_too(self) -> None:
        chain, key = self.own(OWN.chain + OWN.key_pem)
        self.assertIn("cert.pem: a secret that others can read", self.mistake(TlsFiles().certificate, chain, key))

    @each(
        ("no_certificate", b"", OWN.key_pem, "cert.pem: no certificate in it"),
        ("no_key", OWN.chain, OWN.chain, "key.pem: no private key in it"),
        ("another_key", OWN.chain, ROOT.key_pem, "key.pem: the key does not belong to the certificate of a.example"),
        ("a_broken_chain", OWN.chain + OWN.chain, OWN.key_pem, "cert.pem: the chain is broken"),
        (
            "a_weak_key",
            ROOT.issue("a", key=rsa_key(1024)).chain,
            OWN.key_pem,
            "cert.pem: the certificate of a has a weak key",
        ),
    )
    def test_each_mistake_names_the_file(self, _: str, chain: bytes, key: bytes, wanted: str) -> None:
        found = self.mistake(TlsFiles().certificate, *self.own(chain, key))
        self.assertTrue(found.startswith(wanted), found)

    def test_a_file_that_is_not_there_is_named(self) -> None:
        chain, key = self.own()
        self.assertEqual(
            self.mistake(TlsFiles().certificate, self.path("none.pem"), key), "none.pem: No such file or directory"
        )
        self.assertEqual(
            self.mistake(TlsFiles().certificate, chain, self.path("none.key")), "none.key: No such file or directory"
        )


class Modes(TlsFilesTestCase):
    """Who may read and write a secret."""

    @each((0o600,), (0o400,), (0o640,), (0o440,))
    def test_its_owner_may_and_its_group_may_read(self, mode: int) -> None:
        chain, key = self.own(mode=mode)
        self.assertEqual(TlsFiles().certificate(chain, key).key, OWN.key_pem)

    @each((0o644,), (0o604,), (0o601,), (0o650,))
    def test_others_may_not(self, mode: int) -> None:
        files = TlsFiles()
        for read, data in ((files.keys, KEYS), (files.password, b"secret\n")):
            path = self.write(data, "secret", mode)
            said = f"secret: a secret that others can read (mode {mode:04o}): chmod 0600, or 0640 for a daemon's group"
            self.assertEqual(self.mistake(read, path), said)
        self.assertIn("key.pem: a secret", self.mistake(files.certificate, *self.own(mode=mode)))

    @each((0o660,), (0o606,), (0o620,))
    def test_nobody_else_may_write_anything(self, mode: int) -> None:
        for read, data in ((TlsFiles().keys, KEYS), (TlsFiles().authorities, ROOT.pem)):
            self.assertIn("others can write it", self.mistake(read, self.write(data, "file", mode)))

    def test_a_certificate_is_no_secret(self) -> None:
        chain, key = self.own()
        os.chmod(chain, 0o644)
        self.assertEqual(TlsFiles().certificate(chain, key).chain, OWN.chain)

    def test_a_folder_that_others_can_write_is_refused(self) -> None:
        path = self.write(KEYS, "keys", 0o600)
        os.chmod(self.home, 0o777)
        self.assertIn("others can write its folder", self.mistake(TlsFiles().keys, path))


class Others(TlsFilesTestCase):
    def test_keys_are_read_and_every_mistake_is_told_with_its_line(self) -> None:
        self.assertEqual(TlsFiles().keys(self.write(KEYS, "keys", 0o600))[0].identity, "laptop")
        with self.assertRaises(TlsFileError) as caught:
            TlsFiles().keys(self.write(b"a:short\n" + KEYS + b"s3cret\n", "keys", 0o600))
        found = self.bare(caught.exception.mistakes)
        self.assertEqual([one.partition(": ")[0] for one in found], ["keys:1", "keys:3"])
        self.assertNotIn("s3cret", str(caught.exception))

    def test_authorities_are_read_each_with_its_name_and_its_end(self) -> None:
        second = root("second", ends=NOW + 3 * DAY)
        found = TlsFiles().authorities(self.write(ROOT.pem + second.pem, "ca.pem"))
        self.assertEqual([one.name for one in found], ["test authority", "second"])
        self.assertEqual([one.pem for one in found], [ROOT.pem, second.pem])
        self.assertEqual(found[1].ends, (NOW + 3 * DAY).timestamp())

    def test_a_weak_authority_is_a_mistake(self) -> None:
        weak = root("weak", rsa_key(1024))
        found = self.mistake(TlsFiles().authorities, self.write(weak.pem, "ca.pem"))
        self.assertIn("ca.pem: the certificate of weak has a weak key", found)

    def test_revocation_lists_are_read_each_with_its_authority_and_its_end(self) -> None:
        path = self.write(ROOT.revoke(OWN, ends=NOW + 2 * DAY), "crl.pem")
        (found,) = TlsFiles().revocation_lists(path)
        self.assertEqual((found.name, found.ends), ("CN=test authority", (NOW + 2 * DAY).timestamp()))
        self.assertIn("no revocation list", self.mistake(TlsFiles().revocation_lists, self.write(ROOT.pem, "crl.pem")))

    @each(
        (b"secret", "secret"),
        (b"secret\n", "secret"),
        (b"secret\r\n", "secret"),
        (b" two words \n", " two words "),
        ("größer\n".encode(), "größer"),
        (b"x" * 1024 + b"\n", "x" * 1024),
    )
    def test_a_password_is_read(self, data: bytes, wanted: str) -> None:
        self.assertEqual(TlsFiles().password(self.write(data, "password", 0o600)), wanted)

    @each((b"",), (b"\n",), (b"s3cret\ns3cret\n",), (b"s3cret\0",), (b"s3cret\xff",), (b"s3cret" * 200,))
    def test_anything_else_is_none_and_not_repeated(self, data: bytes) -> None:
        self.assertNotIn("s3cret", self.mistake(TlsFiles().password, self.write(data, "password", 0o600)))


class OfTokens(TlsFilesTestCase):
    @each((b"abc", "abc"), (b"abc\n", "abc"), (b"a-b_c.~/+=\r\n", "a-b_c.~/+="))
    def test_a_token_is_read(self, data: bytes, wanted: str) -> None:
        self.assertEqual(TlsFiles().token(self.write(data, "token", 0o600)), wanted)

    @each((b"",), (b"s3cret s3cret",), (b"s3cret\ns3cret",), (b"s3cret" * 50,), (b"s3cret\xff",))
    def test_anything_else_is_none_and_not_repeated(self, data: bytes) -> None:
        self.assertNotIn("s3cret", self.mistake(TlsFiles().token, self.write(data, "token", 0o600)))

    def test_both_kinds_of_files_are_secrets(self) -> None:
        for read in (TlsFiles().token, TlsFiles().tokens):
            self.assertIn("others can read", self.mistake(read, self.write(b"abc", "token", 0o644)))

    def test_a_file_of_tokens_tells_its_lines(self) -> None:
        self.assertIn("tokens:2: ", self.mistake(TlsFiles().tokens, self.write(b"\ns3cret", "tokens", 0o600)))


class Unread(TlsFilesTestCase):
    def test_whoever_tries_a_configuration_out_needs_no_file(self) -> None:
        files = UnreadFiles()
        self.assertEqual(files.certificate("/cert", "/key").key, b"")
        self.assertEqual([one.file for one in files.authorities("/ca")], ["/ca"])
        self.assertEqual([one.file for one in files.revocation_lists("/crl")], ["/crl"])
        self.assertEqual(files.find(files.keys("/keys"), "laptop").key, b"")
        self.assertEqual((files.password("/password"), files.token("/token")), ("", ""))
