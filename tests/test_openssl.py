"""plumberd.effects.openssl: the bindings are there, and pre-shared keys prove who has them."""

from __future__ import annotations

import gc
import inspect
import re
import socket
from pathlib import Path

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects import openssl
from plumberd.effects.openssl import Buffer, PskClient, PskServer
from plumberd.effects.tls_ending import EOF_REASON, TlsFault, Want
from plumberd.effects.tls_wire import Wire
from tests.support import CleanTestCase
from tests.tables import each
from tests.tls_peers import KEY, KEY_NAME, TlsTestCase, our_context, shake_both

OTHER_KEY = bytes(32)


class Bindings(SynchronousTestCase):
    def test_each_that_is_used_is_there(self) -> None:
        used = sorted(set(re.findall(r"_lib\.(\w+)", inspect.getsource(openssl))))
        self.assertGreater(len(used), 25)
        self.assertEqual([name for name in used if not hasattr(openssl._lib, name)], [])

    @each(
        ("SSL_read", "int(*)(SSL *, void *, int)"),
        ("SSL_write", "int(*)(SSL *, void *, int)"),
        ("SSL_CTX_set_keylog_callback", "void(*)(SSL *, char *)"),
        ("SSL_CTX_set_psk_server_callback", "int(*)(SSL *, char *, unsigned char *, unsigned int)"),
        ("SSL_CTX_set_psk_client_callback", "(SSL *, char *, char *, unsigned int, unsigned char *, unsigned int)"),
        ("SSL_CTX_set_psk_find_session_callback", "int(*)(SSL *, unsigned char *, size_t, SSL_SESSION * *)"),
    )
    def test_it_takes_what_it_is_given(self, name: str, shape: str) -> None:
        self.assertIn(shape, str(openssl._ffi.typeof(getattr(openssl._lib, name))))

    def test_no_other_module_touches_them(self) -> None:
        touching = [
            path.name
            for path in sorted(Path(openssl.__file__).parent.parent.rglob("*.py"))
            if re.search(
                r"SSL\._(lib|ffi)|openssl\._(lib|ffi)|connection\._ssl|_context\._context", path.read_text("utf-8")
            )
        ]
        self.assertEqual(touching, ["openssl.py"])


class Contexts(SynchronousTestCase):
    def test_unknown_groups_are_a_mistake(self) -> None:
        with self.assertRaisesRegex(ValueError, "P-1"):
            openssl.prepare_context(SSL.Context(SSL.TLS_METHOD), b"P-1")

    def test_a_mistake_leaves_nothing_behind_for_the_next_call(self) -> None:
        with self.assertRaises(ValueError):
            openssl.prepare_context(SSL.Context(SSL.TLS_METHOD), b"P-1")
        self.assertEqual(openssl._lib.ERR_peek_error(), 0)


class Buffers(SynchronousTestCase):
    def test_its_pointer_and_its_view_are_the_same_memory(self) -> None:
        buffer = Buffer(4)
        buffer.view[:] = b"abcd"
        self.assertEqual(bytes(openssl._ffi.buffer(buffer.pointer, 4)), b"abcd")

    def test_it_is_empty_at_first(self) -> None:
        buffer = Buffer(7)
        self.assertEqual((buffer.start, buffer.end, len(buffer.view)), (0, 0, 7))


class Faults(CleanTestCase):
    def test_an_alert_has_its_number(self) -> None:
        self.assertEqual(TlsFault("broken off", 1042, "").alert, 42)
        self.assertIsNone(TlsFault("garbled", 281, "").alert)

    def test_a_peer_that_hangs_up_has_truncated(self) -> None:
        left, right = self.pair()
        left.setblocking(False)
        connection = openssl.connect(our_context(True), left, server=True)
        self.assertIs(openssl.do_handshake(openssl.ssl_of(connection)), Want.READ)
        right.close()
        with self.assertRaises(TlsFault) as caught:
            openssl.do_handshake(openssl.ssl_of(connection))
        self.assertEqual((caught.exception.how, caught.exception.reason), ("truncated", EOF_REASON))

    def test_a_number_of_another_part_of_openssl_is_none_of_tls(self) -> None:
        with self.assertRaises(SSL.Error):
            SSL.Context(SSL.TLS_METHOD).set_cipher_list(b"no such")
        openssl._lib.SSL_CTX_set_cipher_list(our_context(True)._context, b"no such")
        self.assertEqual(getattr(openssl._fault(openssl._lib.SSL_ERROR_SSL), "reason", None), 185)
        bio = openssl._lib.BIO_new_mem_buf(b"no PEM", 6)
        openssl._lib.PEM_read_bio_X509(bio, openssl._ffi.NULL, openssl._ffi.NULL, openssl._ffi.NULL)
        openssl._lib.BIO_free(bio)
        self.assertEqual(getattr(openssl._fault(openssl._lib.SSL_ERROR_SSL), "reason", None), 0)

    def test_errors_that_others_have_left_behind_are_not_taken_for_ours(self) -> None:
        left, _ = self.pair()
        left.setblocking(False)
        ssl = openssl.ssl_of(openssl.connect(our_context(True), left, server=True))
        with self.assertRaises(ValueError):
            openssl.prepare_context(our_context(True), b"P-1")
        openssl._lib.SSL_CTX_set1_curves_list(our_context(True)._context, b"P-1")  # and this is not cleared
        self.assertIs(openssl.do_handshake(ssl), Want.READ)


class Keys(TlsTestCase):
    """Pre-shared keys between two wires of ours; what other programs make of them is in tests/process."""

    def wires(
        self,
        version: str,
        known: dict[str, bytes],
        name: str = KEY_NAME,
        key: bytes | None = KEY,
        *,
        certified: bool = False,
        suites: bytes = b"",
    ) -> tuple[Wire, Wire]:
        left, right = self.pair()
        client_context = our_context(False, version)
        if key is not None:
            PskClient(name, key).attach(client_context)
        server_context = our_context(True, version, certified=certified)
        PskServer(known).attach(server_context, b"ECDHE+AESGCM" if certified else b"")
        for context in (client_context, server_context) if suites else ():
            context.set_tls13_ciphersuites(suites)
        return (
            self.wire_of(left, client_context, server=False),
            self.wire_of(right, server_context, server=True),
        )

    @each(("1.2",), ("1.3",))
    def test_both_sides_know_the_key_by_its_name(self, version: str) -> None:
        client, server = self.wires(version, {"other": OTHER_KEY, KEY_NAME: KEY})
        shake_both(client, server)
        self.assertEqual((client.psk_identity, server.psk_identity), (KEY_NAME, KEY_NAME))
        self.assertEqual((server.version, server.peer_chain, client.peer_chain), (f"TLSv{version}", (), ()))

    @each(("1.2",), ("1.3",))
    def test_the_callbacks_live_as_long_as_the_context(self, version: str) -> None:
        client, server = self.wires(version, {KEY_NAME: KEY})
        gc.collect()
        shake_both(client, server)
        self.assertEqual(server.psk_identity, KEY_NAME)

    @each(("1.2",), ("1.3",))
    def test_a_key_of_any_length_and_a_name_of_any_letters_work(self, version: str) -> None:
        for name, key in (("küche", b"k" * 16), ("a b:c", b"\0" * 64)):
            client, server = self.wires(version, {name: key}, name, key)
            shake_both(client, server)
            self.assertEqual(server.psk_identity, name)

    @each(("1.2",), ("1.3",))
    def test_a_wrong_key_proves_nothing(self, version: str) -> None:
        client, server = self.wires(version, {KEY_NAME: OTHER_KEY})
        with self.assertRaises(TlsFault):
            shake_both(client, server)
        self.assertIsNone(server.psk_identity)
        self.assertIsNone(server.psk_named)

    @each(("1.2",), ("1.3",))
    def test_an_unknown_name_is_refused_and_told_here(self, version: str) -> None:
        client, server = self.wires(version, {"other": OTHER_KEY})
        with self.assertRaises(TlsFault):
            shake_both(client, server)
        self.assertIsNone(server.psk_identity)
        self.assertEqual(server.psk_named, KEY_NAME)

    @each(("1.2",), ("1.3",))
    def test_who_has_no_key_gets_the_certificate(self, version: str) -> None:
        client, server = self.wires(version, {KEY_NAME: KEY}, key=None, certified=True)
        shake_both(client, server)
        self.assertIsNone(server.psk_identity)
        self.assertEqual(len(client.peer_chain), 1)

    @each(("1.2",), ("1.3",))
    def test_a_key_goes_before_the_certificate(self, version: str) -> None:
        client, server = self.wires(version, {KEY_NAME: KEY}, certified=True)
        shake_both(client, server)
        self.assertEqual((server.psk_identity, client.peer_chain), (KEY_NAME, ()))

    def test_a_key_that_is_found_and_passed_over_proves_nothing(self) -> None:
        # The suite that is agreed on has another hash than the key, so OpenSSL asks for the certificate.
        client, server = self.wires("1.3", {KEY_NAME: KEY}, certified=True, suites=b"TLS_AES_256_GCM_SHA384")
        shake_both(client, server)
        self.assertEqual((server.psk_identity, client.psk_identity), (None, None))
        self.assertEqual(len(client.peer_chain), 1)

    def test_an_unknown_name_before_a_certificate_proves_nothing(self) -> None:
        client, server = self.wires("1.3", {"other": OTHER_KEY}, certified=True)
        shake_both(client, server)
        self.assertEqual((server.psk_identity, client.psk_identity), (None, None))
        self.assertEqual(len(client.peer_chain), 1)

    @each(("1.2",), ("1.3",))
    def test_the_key_exchange_is_ephemeral(self, version: str) -> None:
        client, server = self.wires(version, {KEY_NAME: KEY})
        shake_both(client, server)
        self.assertTrue(version == "1.3" or server.cipher.startswith("ECDHE-PSK-"))
        self.assertEqual(openssl._ffi.string(openssl._lib.SSL_get0_group_name(server._ssl)).lower(), b"x25519")

    def test_a_key_of_somebody_who_was_here_before_is_nobody_elses(self) -> None:
        client, server = self.wires("1.3", {KEY_NAME: KEY}, certified=True)
        keys = openssl.psk_of(server._context)
        assert isinstance(keys, PskServer)
        shake_both(client, server)
        left, right = self.pair()
        keys._named[openssl._number(server._ssl)] = KEY_NAME, True
        assert server.connection is not None
        again = Wire(server.connection, right, server=True)  # stands for an SSL object at the same address
        self.assertIsNone(again.psk_named)
        self.assertEqual(keys._named, {})

    def test_keys_may_change_while_the_context_lives(self) -> None:
        known: dict[str, bytes] = {}
        client, server = self.wires("1.3", known)
        known[KEY_NAME] = KEY
        shake_both(client, server)
        self.assertEqual(server.psk_identity, KEY_NAME)

    def test_nothing_of_a_key_shows(self) -> None:
        for one in (PskClient(KEY_NAME, b"hunter2" * 5), PskServer({KEY_NAME: b"hunter2" * 5})):
            self.assertNotIn("hunter2", repr(one))

    def test_contexts_without_keys_have_none(self) -> None:
        self.assertIsNone(openssl.psk_of(our_context(True)))


class Sockets(TlsTestCase):
    def test_the_socket_stays_its_callers(self) -> None:
        left, right = self.pair()
        wire = self.wire_of(left, our_context(False), server=False)
        del wire
        gc.collect()
        left.setblocking(True)
        right.sendall(b"x")
        self.assertEqual(left.recv(1), b"x")
        self.assertEqual(left.family, socket.AF_UNIX)
