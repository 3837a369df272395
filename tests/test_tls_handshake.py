"""plumberd.effects.tls_handshake: it ends with a wire or a reason, and leaves the reactor its turns."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable

from OpenSSL import SSL

from plumberd.effects import openssl
from plumberd.effects.openssl import PskServer
from plumberd.effects.tls_handshake import TlsHandshake, Turns, refused
from plumberd.effects.tls_wire import Wire
from plumberd.pure.refusals import Refusal, Refused
from tests.support import in_thread, is_reset, until
from tests.tables import each
from tests.test_tls_pumps import reset
from tests.tls_peers import KEY, Peer, TlsTestCase, our_context, peer_context


class Ends(TlsTestCase):
    @each(("1.2", True), ("1.2", False), ("1.3", True), ("1.3", False))
    async def test_it_ends_with_a_wire_that_nobody_watches(self, version: str, server: bool) -> None:
        far, near = self.tcp_pair()
        peer = Peer(far, not server, version)
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(server), server=server)
        await shaking
        assert isinstance(wire, Wire), wire
        self.assertEqual((wire.version, wire.is_open), (f"TLSv{version}", True))
        self.assertFalse(self.poll.watches(near.fileno()))

    async def test_it_waits_for_a_peer_that_sends_byte_by_byte(self) -> None:
        far, near = self.tcp_pair()
        peer = Peer(far, False)
        send = far.sendall

        class Slow:
            """Sends one byte at a time."""

            def sendall(self, data: bytes) -> None:
                for at in range(len(data)):
                    send(data[at : at + 1])

            def recv(self, most: int) -> bytes:
                return far.recv(1)

        peer.sock = Slow()  # type: ignore[assignment]
        shaking = in_thread(peer.handshake)
        wire = await self.shake(near, our_context(True), server=True)
        await shaking
        self.assertIsInstance(wire, Wire)

    async def test_a_peer_that_never_speaks_is_waited_for_until_somebody_cancels(self) -> None:
        _, near = self.tcp_pair()
        near.setblocking(False)
        outcome: list[Wire | Refused] = []
        connection = openssl.connect(our_context(True), near, server=True)
        handshake = TlsHandshake(self.poll, near, connection, outcome.append, server=True)
        handshake.start()
        await until(lambda: True)
        self.assertTrue(self.poll.watches(near.fileno()))
        handshake.cancel()
        self.assertFalse(self.poll.watches(near.fileno()))
        self.assertEqual(outcome, [])

    async def test_one_that_cannot_be_watched_is_busy(self) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch(self.poll, "watch", refuse)
        _, near = self.tcp_pair()
        outcome = await self.shake(near, our_context(True), server=True)
        assert isinstance(outcome, Refused)
        self.assertIs(outcome.word, Refusal.BUSY)


def say(data: bytes) -> Callable[[socket.socket], None]:
    def far(sock: socket.socket) -> None:
        sock.sendall(data)
        with contextlib.suppress(OSError):
            while sock.recv(65536):
                pass
        sock.close()

    return far


def hang_up(sock: socket.socket) -> None:
    sock.recv(1)
    sock.shutdown(socket.SHUT_WR)


def speak(context: ssl.SSLContext, server: bool) -> Callable[[socket.socket], None]:
    def far(sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            tls = context.wrap_socket(sock, server_side=server)
            tls.recv(1)
            tls.close()

    return far


def client(**settings: object) -> Callable[[socket.socket], None]:
    context = peer_context(False)
    for name, value in settings.items():
        setattr(context, name, value)
    return speak(context, False)


def server(**settings: object) -> Callable[[socket.socket], None]:
    context = peer_context(True)
    for name, value in settings.items():
        setattr(context, name, value)
    return speak(context, True)


def client_with_ciphers(names: str) -> Callable[[socket.socket], None]:
    context = peer_context(False, "1.2")
    context.set_ciphers(names)
    return speak(context, False)


class Reasons(TlsTestCase):
    """What went wrong is named."""

    async def outcome(self, far: Callable[[socket.socket], None], context: SSL.Context, *, server: bool) -> Refused:
        there, here = self.tcp_pair()
        speaking = in_thread(far, there)
        outcome = await self.shake(here, context, server=server)
        here.close()
        await speaking
        assert isinstance(outcome, Refused), outcome
        return outcome

    @each(
        ("HTTP", say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Refusal.UNREACHABLE, "speaks is HTTP without TLS"),
        ("text", say(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n" * 3), Refusal.UNREACHABLE, "speaks is not TLS"),
        ("zeros", say(bytes(100)), Refusal.UNREACHABLE, "speaks is not TLS"),
        ("suites that are not ours", client_with_ciphers("AES256-SHA"), Refusal.UNREACHABLE, "no cipher suite in"),
    )
    async def test_of_a_caller(self, what: str, far: Callable[[socket.socket], None], word: Refusal, text: str) -> None:
        context = our_context(True)
        context.set_cipher_list(b"ECDHE+AESGCM")
        outcome = await self.outcome(far, context, server=True)
        self.assertIs(outcome.word, word)
        self.assertIn(text, outcome.reason)

    @each(
        ("HTTP", say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "speaks is not TLS"),
        ("a banner", say(b"220 mail.example.com ESMTP\r\n"), "speaks is not TLS"),
        ("an end", hang_up, "TLS: it hung up"),
        ("an old version", server(minimum_version=ssl.TLSVersion.TLSv1_1, maximum_version=ssl.TLSVersion.TLSv1_1), ""),
    )
    async def test_of_a_server(self, what: str, far: Callable[[socket.socket], None], text: str) -> None:
        outcome = await self.outcome(far, our_context(False), server=False)
        self.assertIs(outcome.word, Refusal.UNREACHABLE)
        self.assertIn(text, outcome.reason)

    async def test_a_reset_is_a_loss(self) -> None:
        def far(sock: socket.socket) -> None:
            sock.recv(1)
            reset(sock)

        outcome = await self.outcome(far, our_context(False), server=False)
        self.assertEqual(outcome.reason, "TLS: it was lost during the handshake: Connection reset by peer")

    async def test_a_server_that_is_not_believed_is_told_why(self) -> None:
        context = our_context(False)
        context.set_verify(SSL.VERIFY_PEER)
        outcome = await self.outcome(server(), context, server=False)
        self.assertIs(outcome.word, Refusal.UNREACHABLE)
        self.assertIn("its certificate is self-signed", outcome.reason)

    async def test_who_knows_better_is_asked_first(self) -> None:
        context = our_context(False)
        context.set_verify(SSL.VERIFY_PEER)
        there, here = self.tcp_pair()
        here.setblocking(False)
        outcomes: list[Wire | Refused] = []
        speaking = in_thread(server(), there)
        handshake = TlsHandshake(
            self.poll,
            here,
            openssl.connect(context, here, server=False),
            outcomes.append,
            server=False,
            fault_of=lambda connection: "its certificate is for b, and not for a",
        )
        handshake.start()
        await until(lambda: outcomes)
        here.close()
        await speaking
        assert isinstance(outcomes[0], Refused)
        self.assertEqual(outcomes[0].reason, "TLS: its certificate is for b, and not for a")

    async def test_a_caller_without_a_certificate_is_unauthenticated_where_one_is_wanted(self) -> None:
        context = our_context(True)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        outcome = await self.outcome(client(), context, server=True)
        self.assertIs(outcome.word, Refusal.UNAUTHENTICATED)
        self.assertIn("it shows no certificate", outcome.reason)

    async def test_a_caller_that_does_not_believe_us_says_so(self) -> None:
        far = client(verify_mode=ssl.CERT_REQUIRED)
        outcome = await self.outcome(far, our_context(True), server=True)
        self.assertIs(outcome.word, Refusal.UNAUTHENTICATED)
        self.assertIn("it broke the handshake off: unknown authority", outcome.reason)

    async def test_a_server_that_wants_a_certificate_says_so_at_the_first_read_of_tls_1_3(self) -> None:
        there, here = self.tcp_pair()
        context = peer_context(True, "1.3")
        context.verify_mode = ssl.CERT_REQUIRED
        speaking = in_thread(speak(context, True), there)
        wire = await self.shake(here, our_context(False), server=False)
        assert isinstance(wire, Wire)
        await speaking
        found: list[Refused] = []

        def read() -> bool:
            try:
                wire.recv(100)
            except BlockingIOError:
                return False
            except OSError as e:
                found.append(refused(wire, e))
            return True

        await until(read)
        self.assertIs(found[0].word, Refusal.UNAUTHENTICATED)
        self.assertEqual(found[0].reason, "TLS: it broke the handshake off: it wants a certificate")

    async def test_a_key_that_nobody_has_is_named(self) -> None:
        context = our_context(True, certified=False)
        PskServer({"other": bytes(32)}).attach(context, b"")
        client_context = our_context(False)
        openssl.PskClient("laptop", KEY).attach(client_context)

        def far(sock: socket.socket) -> None:
            sock.settimeout(None)
            connection = openssl.connect(client_context, sock, server=False)
            with contextlib.suppress(SSL.Error):
                connection.do_handshake()

        outcome = await self.outcome(far, context, server=True)
        self.assertIs(outcome.word, Refusal.UNAUTHENTICATED)
        self.assertEqual(outcome.reason, "TLS: no pre-shared key is called 'laptop' here")

    async def test_nothing_of_what_the_far_side_sent_is_in_a_reason(self) -> None:
        outcome = await self.outcome(say(b"\x1b[31mred\n" * 20), our_context(True), server=True)
        self.assertTrue(outcome.reason.isprintable())
        self.assertNotIn("red", outcome.reason)


class RoundOfPoll(TlsTestCase):
    def test_so_many_steps_have_their_turn_and_the_others_wait_for_the_next_round(self) -> None:
        turns, done = Turns(self.poll, 2), []
        for n in range(5):
            turns.take(lambda n=n: done.append(n))  # type: ignore[misc]
        self.assertEqual((done, turns.waiting), ([0, 1], 3))
        self.poll._resume()
        self.assertEqual((done, turns.waiting), ([0, 1, 2, 3], 1))
        self.poll._resume()
        self.assertEqual((done, turns.waiting), ([0, 1, 2, 3, 4], 0))

    def test_who_comes_later_does_not_overtake(self) -> None:
        turns, done = Turns(self.poll, 1), []
        turns.take(lambda: done.append("first"))
        turns.take(lambda: done.append("second"))
        self.poll._resume()
        turns.take(lambda: done.append("third"))
        self.assertEqual(done, ["first", "second"])
        self.poll._resume()
        self.assertEqual(done, ["first", "second", "third"])
        self.poll._resume()

    async def test_many_handshakes_share_the_turns_and_all_of_them_end(self) -> None:
        turns = Turns(self.poll, 1)
        outcomes: list[Wire | Refused] = []
        context = our_context(True)
        shaking = []
        for _ in range(12):
            far, near = self.tcp_pair()
            near.setblocking(False)
            connection = openssl.connect(context, near, server=True)
            handshake = TlsHandshake(self.poll, near, connection, outcomes.append, server=True, turns=turns)
            self.addCleanup(handshake.cancel)
            handshake.start()
            shaking.append(in_thread(Peer(far, False).handshake))
        for one in shaking:
            await one
        await until(lambda: len(outcomes) == 12)
        self.assertTrue(all(isinstance(one, Wire) for one in outcomes))
        self.assertEqual(turns.waiting, 0)

    async def test_one_that_was_cancelled_in_its_turn_does_nothing(self) -> None:
        turns = Turns(self.poll, 1)
        turns.take(lambda: None)
        far, near = self.tcp_pair()
        near.setblocking(False)
        outcomes: list[Wire | Refused] = []
        connection = openssl.connect(our_context(False), near, server=False)
        handshake = TlsHandshake(self.poll, near, connection, outcomes.append, server=False, turns=turns)
        handshake.start()
        self.assertEqual(turns.waiting, 1)
        handshake.cancel()
        await until(lambda: not turns.waiting)
        self.assertEqual(outcomes, [])
        near.close()
        self.assertFalse(await in_thread(is_reset, far))
