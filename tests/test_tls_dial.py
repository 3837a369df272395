"""plumberd.wiring.dialing.tls_dial: what is offered and said to whom, and that a given-up one leaves nothing."""

from __future__ import annotations

import socket

from plumberd.effects.tls_wire import Wire
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls import TlsSettings
from plumberd.pure.uri import Uri, parse_uri
from plumberd.wiring.dialing.tls_dial import TlsDial
from plumberd.wiring.service import PlumberdService
from tests.support import in_thread, until
from tests.test_inbound_tls import LISTEN, TlsTestCase


class TlsDialTestCase(TlsTestCase):
    def dial(self, near: PlumberdService, port: int, uri: Uri) -> tuple[TlsDial, list[Wire | Refused], list[str]]:
        """Begin; the socket is closed at the end of the test."""
        core = near.core
        assert core is not None
        sock = self.owned(socket.create_connection(("127.0.0.1", port), 10))
        sock.setblocking(False)
        results: list[Wire | Refused] = []
        steps: list[str] = []
        dial = TlsDial(core, sock, uri, 0, None, results.append, steps.append)
        dial.start()
        self.addCleanup(dial.cancel)
        return dial, results, steps


class Dialled(TlsDialTestCase):
    async def test_with_a_service_it_is_a_plumberd_that_has_said_ok(self) -> None:
        far, near = self.far("allow in pong any"), self.near()
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        _, results, steps = self.dial(near, port, parse_uri(f"tls://127.0.0.1:{port}/pong"))
        await until(lambda: results)
        assert isinstance(results[0], Wire)
        self.assertEqual((results[0].alpn, steps), ("plumb/1", ["tls", "handshake"]))
        await until(lambda: any(o.verdict == "granted" for o in self.outcomes))

    async def test_without_one_the_uri_s_protocols_are_offered_and_nothing_is_said(self) -> None:
        tls = TlsSettings((self.server.value,), alpn=("h2", "http/1.1"))
        far = self.far("allow in web any", tlsd=(), publish_tls=(("web", LISTEN),), tls=tls)
        self.serve(far.settings.rundir, "web")
        port = self.tcpd_port(far)
        for option, agreed in (("?alpn=http/1.1", "http/1.1"), ("?alpn=http/1.1,h2", "h2"), ("", "")):
            _, results, steps = self.dial(self.near(), port, parse_uri(f"tls://127.0.0.1:{port}{option}"))
            await until(lambda results=results: results)  # type: ignore[misc]
            assert isinstance(results[0], Wire)
            self.assertEqual((results[0].alpn, steps), (agreed, ["tls"]))

    async def test_a_server_that_never_answers_is_given_up_without_a_trace(self) -> None:
        listener, port = self.listener()
        near = self.near()
        dial, results, _ = self.dial(near, port, parse_uri(f"tls://127.0.0.1:{port}/pong"))
        accepted, _ = await in_thread(listener.accept)
        dial.cancel()
        accepted.close()
        self.assertEqual(results, [])
        assert near.core is not None

    async def test_a_server_that_hangs_up_is_unreachable(self) -> None:
        listener, port = self.listener()
        _, results, _ = self.dial(self.near(), port, parse_uri(f"tls://127.0.0.1:{port}/pong"))
        accepted, _ = await in_thread(listener.accept)
        accepted.close()
        await until(lambda: results)
        assert isinstance(results[0], Refused)
        self.assertIs(results[0].word, Refusal.UNREACHABLE)
