"""plumberd.wiring.inbound.inbound_proving: who is let in is who has proved it, with its handshake or its password."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import ensureDeferred

from plumberd.pure.plumb_handshake import Login
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.refusals import Refused
from plumberd.pure.tls import ClientCertificates, PeerSettings, TlsSettings
from plumberd.pure.uri import IPAddress
from tests.support import until
from tests.tables import each
from tests.test_inbound_tls import KEY, TlsTestCase, trusting


class Proved(TlsTestCase):
    """Who is let in is who has proved it."""

    def client(self, *names: str, **wanted: Any) -> PeerSettings:
        return PeerSettings(certificate=self.ca.issue(*names, **wanted).value)

    def asking(self, kind: ClientCertificates = ClientCertificates.OPTIONAL, **more: Any) -> TlsSettings:
        return TlsSettings((self.server.value,), trusting(self.ca), client_certificates=kind, **more)

    @each(
        ("peer", "allow in pong tls:b.example"),
        ("wildcard", "allow in pong tls:*.example"),
        ("who", "allow in pong any for cert:b.example"),
        ("spiffe", "allow in pong any for spiffe://example.org/web"),
        ("both", "allow in pong tls:any for cert:b.example for spiffe://example.org/web"),
    )
    async def test_a_certificate(self, _: str, rule: str) -> None:
        far = self.far(rule, tls=self.asking())
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        near = self.near(
            "allow out pong any", peer=self.client("b.example", uris=("spiffe://example.org/web",)), port=port
        )
        self.assertEqual(await self.exchange(await self.granted(near, port), b"hello"), b"hello")
        # without it, and with another one, nobody comes in
        for peer in (None, self.client("c.other")):
            other = self.near("allow out pong any", peer=peer, port=port)
            answer, sock = await self.ask(other, port)
            self.assertEqual((answer.get("error"), sock), ("denied", None))
        await self.idle(near, far)

    async def test_a_pre_shared_key_beside_certificates(self) -> None:
        far = self.far("allow in pong any for psk:laptop", tls=TlsSettings((self.server.value,), psks=(KEY,)))
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        near = self.near("allow out pong any", peer=PeerSettings(psk=KEY), port=port)
        self.assertEqual(await self.exchange(await self.granted(near, port), b"hello"), b"hello")
        answer, _ = await self.ask(self.near(), port)
        self.assertEqual(answer["error"], "denied")
        wrong = PreSharedKey("laptop", b"x" * 32)
        answer, _ = await self.ask(self.near("allow out pong any", peer=PeerSettings(psk=wrong), port=port), port)
        self.assertFalse(answer["ok"])
        await self.idle(near, far)

    async def test_a_name_is_no_key_and_a_key_no_name(self) -> None:
        named = PreSharedKey("b.example", bytes(range(32)))
        far = self.far("allow in pong tls:b.example", tls=self.asking(psks=(named,)))
        port = self.tcpd_port(far)
        answer, _ = await self.ask(self.near("allow out pong any", peer=PeerSettings(psk=named), port=port), port)
        self.assertEqual(answer["error"], "denied")
        await self.idle(far)

    async def test_what_this_machine_proves_needs_a_rule(self) -> None:
        far = self.far("allow in pong any", tls=self.asking())
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        near = self.near(peer=self.client("b.example"), port=port)
        answer, _ = await self.ask(near, port)
        self.assertEqual(answer["error"], "denied")
        self.assertIn("could not do by itself", answer["reason"])
        await self.idle(far)

    async def test_required_and_not_shown_is_no_connection(self) -> None:
        far = self.far("allow in pong any", tls=self.asking(ClientCertificates.REQUIRED))
        answer, _ = await self.ask(self.near(), self.tcpd_port(far))
        self.assertFalse(answer["ok"])
        await self.idle(far)


class OneUser:
    """Checks passwords, and knows one user."""

    def check(self, login: Login, address: IPAddress | None, done: Callable[[bool | Refused], None]) -> Any:
        done((login.user, login.password) == ("carol", "secret"))
        return self

    def cancel(self) -> None:
        return


class _Slow(OneUser):
    """Never answers."""

    def __init__(self) -> None:
        self.asked = self.cancelled = 0

    def check(self, login: Login, address: IPAddress | None, done: Callable[[bool | Refused], None]) -> Any:
        self.asked += 1
        return self

    def cancel(self) -> None:
        self.cancelled += 1


class LoggedIn(TlsTestCase):
    async def test_a_login_is_checked_and_proved(self) -> None:
        far, near = self.far("allow in pong any for login:carol"), self.near()
        assert far.core is not None
        far.core.logins = OneUser()
        self.serve(far.settings.rundir, "pong")
        port = self.tcpd_port(far)
        self.assertEqual(await self.exchange(await self.granted(near, port, user="carol:secret@"), b"hi"), b"hi")
        for user in ("carol:wrong@", "dave:secret@", ""):
            answer, _ = await self.ask(near, port, user=user)
            self.assertEqual(answer["error"], "denied", user)
        self.assertNotIn("secret", " ".join(map(str, self.outcomes)))
        await self.idle(near, far)

    async def test_where_nobody_checks_nobody_comes_in(self) -> None:
        far, near = self.far("allow in pong any"), self.near()
        answer, _ = await self.ask(near, self.tcpd_port(far), user="carol:secret@")
        self.assertEqual(answer["error"], "denied")
        await until(lambda: any(o.verdict == "unauthenticated" for o in self.outcomes))
        await self.idle(near, far)

    async def test_who_hangs_up_while_the_password_is_compared_leaves_nothing(self) -> None:
        far, near = self.far("allow in pong any for login:carol"), self.near()
        checker = _Slow()
        assert far.core is not None
        far.core.logins = checker
        self.serve(far.settings.rundir, "pong")
        asking = self.ask(near, self.tcpd_port(far), user="carol:secret@")
        task = ensureDeferred(asking)
        await until(lambda: checker.asked)
        await far.stopService()
        self.assertEqual(checker.cancelled, 1)
        answer, sock = await task
        self.assertEqual((answer["ok"], sock), (False, None))
        await self.idle(near)
