"""plumberd.commands.revoke: the list grows, is renewed, is the authority's own, and is never half written."""

from __future__ import annotations

import json
import os
import subprocess
from unittest import SkipTest, mock

from cryptography import x509

from plumberd.pure.certificates import parse_certificates
from tests.commands.test_ca import CaTestCase
from tests.tables import each


class Revoked(CaTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.done("ca", "init")
        for name in ("laptop", "phone"):
            self.done("cert", name)

    def file(self, name: str) -> str:
        return os.path.join(self.dir, name)

    def listed(self) -> set[int]:
        with open(self.file("ca.crl"), "rb") as file:
            self.crl = x509.load_pem_x509_crl(file.read())
        return {one.serial_number for one in self.crl}

    def serial(self, name: str) -> int:
        with open(self.file(f"{name}.pem"), "rb") as file:
            return parse_certificates(file.read())[0].serial_number

    def test_what_is_taken_back_is_on_the_list_and_stays_there(self) -> None:
        out = self.done("ca", "revoke", self.file("laptop.pem"))
        self.assertRegex(out, r"\Ataken back: laptop, until \d{4}-\d\d-\d\d\nca\.crl  the list, with 1 certificate\n")
        self.assertEqual(self.listed(), {self.serial("laptop")})
        self.done("ca", "revoke", self.file("phone.pem"), self.file("laptop.pem"))
        self.assertEqual(self.listed(), {self.serial("laptop"), self.serial("phone")})
        self.assertEqual(self.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, 2)
        self.assertEqual(os.stat(self.file("ca.crl")).st_mode & 0o777, 0o644)
        self.assertEqual([one for one in os.listdir(self.dir) if one.startswith("ca.crl")], ["ca.crl"])

    def test_without_a_certificate_it_holds_for_longer(self) -> None:
        self.done("ca", "revoke", self.file("laptop.pem"), "--days", "1")
        self.listed()
        before = self.crl.next_update_utc
        out = json.loads(self.done("ca", "revoke", "--days", "9", "--json"))
        self.assertEqual(self.listed(), {self.serial("laptop")})
        after = self.crl.next_update_utc
        assert before is not None and after is not None
        self.assertEqual(((after - before).days, out["added"], out["revoked"]), (8, [], 1))

    def test_what_is_printed_is_a_configuration_and_openssl_believes_the_list(self) -> None:
        out = self.done("ca", "revoke", self.file("laptop.pem"))
        trust = f'[tls]\ntrust = "{self.file("ca.pem")}"\n'
        self.read(trust + out.partition("[tls]\n")[2])
        self.assertEqual(len(self.settings_read.tls.crls), 1)
        try:
            said = {
                name: subprocess.run(
                    [
                        "openssl",
                        "verify",
                        "-x509_strict",
                        "-crl_check",
                        "-CAfile",
                        self.file("ca.pem"),
                        "-CRLfile",
                        self.file("ca.crl"),
                        self.file(f"{name}.pem"),
                    ],
                    capture_output=True,
                    text=True,
                    timeout=20,
                    check=False,
                )
                for name in ("laptop", "phone")
            }
        except FileNotFoundError:
            raise SkipTest("there is no openssl") from None
        self.assertIn("certificate revoked", said["laptop"].stderr)
        self.assertEqual((said["phone"].returncode, said["phone"].stderr), (0, ""))

    def test_another_authority_s_certificate_is_none_of_ours(self) -> None:
        other = self.path("other")
        self.ran("ca", "init", "--dir", other)
        self.ran("cert", "laptop", "--dir", other)
        said = self.mistake("ca", "revoke", os.path.join(other, "laptop.pem"))
        self.assertEqual(said, "plumb: other/laptop.pem: laptop: the authority has not issued it")
        self.assertFalse(os.path.exists(self.file("ca.crl")))

    def test_another_authority_s_list_is_not_gone_on_with(self) -> None:
        other = self.path("other")
        self.ran("ca", "init", "--dir", other)
        self.ran("ca", "revoke", "--dir", other)
        os.rename(os.path.join(other, "ca.crl"), self.file("ca.crl"))
        self.assertEqual(self.mistake("ca", "revoke"), "plumb: the list before: it is another authority's")

    @each(
        (b"", "plumb: ca/x.pem: no certificate in it: wanted PEM, -----BEGIN CERTIFICATE-----"),
        (None, "plumb: ca/x.pem: No such file or directory"),
    )
    def test_no_certificate(self, data: bytes | None, wanted: str) -> None:
        if data is not None:
            with open(self.file("x.pem"), "wb") as file:
                file.write(data)
        self.assertEqual(self.mistake("ca", "revoke", self.file("x.pem")), wanted)

    def test_a_damaged_list_is_not_passed_over(self) -> None:
        with open(self.file("ca.crl"), "w") as file:
            file.write("damaged")
        self.assertRegex(self.mistake("ca", "revoke"), "^plumb: the list before: no revocation list in it")

    def test_the_old_list_stays_where_the_new_one_cannot_be_put(self) -> None:
        self.done("ca", "revoke", self.file("laptop.pem"))
        with mock.patch("plumberd.commands.revoke.os.rename", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(self.mistake("ca", "revoke", self.file("phone.pem")), "plumb: No space left on device")
        self.assertEqual(self.listed(), {self.serial("laptop")})
        self.assertEqual([one for one in os.listdir(self.dir) if one.startswith("ca.crl")], ["ca.crl"])


class NothingThere(CaTestCase):
    def test_no_authority(self) -> None:
        wanted = "plumb: ca/ca.pem: there is no authority; plumb ca init makes one"
        self.assertEqual(self.mistake("ca", "revoke"), wanted)

    def test_a_name_behind_init(self) -> None:
        self.assertRegex(self.mistake("ca", "init", "laptop"), "^plumb: plumb ca init: wanted nothing behind it")
