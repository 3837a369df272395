"""plumberd.wiring.inbound.inbound_raw: a caller's own socket goes to who claimed the service, in a mode that fits."""

from __future__ import annotations

import dataclasses
import os
import socket
from typing import Any

from plumberd.effects.kernel import unread_bytes
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.policy.route import Routes, parse_redirect
from plumberd.pure.refusals import Refused
from plumberd.wiring.clients import registrations
from plumberd.wiring.inbound import inbound_raw
from plumberd.wiring.inbound.inbound import HOLD_SECONDS
from tests.children import ChildTestCase, needs_root
from tests.holders import Claim
from tests.running import leading
from tests.serving_case import ALLOW, PLAIN, ServingTestCase
from tests.support import in_thread, is_reset, read_all, read_exactly, until
from tests.test_inbound import LONG_HOLD_SECONDS

IN = "allow in pong any"
MY_UID = os.geteuid()
SO_DETACH_FILTER = 27
RESET = b"\1\0\0\0\0\0\0\0"
"""SO_LINGER, so that closing resets."""


class CallersTestCase(ServingTestCase):
    """Callers of a service that was claimed."""

    endpoint = PLAIN
    published = False
    first_bytes = b""
    address = "127.0.0.1"
    """What the service is told of a caller."""
    mode = "locked"
    """How its socket comes to the claimant, where the broker may choose."""

    def listen(self, *rules: str, **settings: Any) -> None:
        """Start a broker that listens for callers, for this kind of them."""
        rules = rules or (IN,)
        where = {"publish": (("pong", self.endpoint),)} if self.published else {"tcpd": (self.endpoint,)}
        self.start(*rules, ALLOW, **where, **settings)
        self.note_all()

    def note_all(self) -> None:
        """Keep the outcomes of callers alone."""
        self.core.audit.note = self._only_callers(self.core.audit.note)  # type: ignore[method-assign]

    def _only_callers(self, note: Any) -> Any:
        return lambda outcome: note(outcome) if outcome.direction == "in" else None

    def dial(self) -> socket.socket:
        """Connect as a caller."""
        assert self.service.tcpd is not None
        host: Any = self.service.tcpd.ports[0].getHost()
        if isinstance(getattr(host, "name", None), (bytes, str)):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(host.name)
        else:
            sock = socket.create_connection((host.host.removeprefix("::ffff:"), host.port))
        if self.first_bytes:
            sock.sendall(self.first_bytes)
        return self.owned(sock)

    async def call(self) -> socket.socket:
        """Connect, name the service, and take its ok."""
        sock = self.begin_call()
        await self.let_in(sock)
        return sock

    def begin_call(self) -> socket.socket:
        """Connect, and name the service."""
        sock = self.dial()
        if not self.published:
            sock.sendall(b"pong")
        return sock

    async def let_in(self, sock: socket.socket) -> None:
        """Take the ok, where there is one."""
        if not self.published:
            self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")

    async def called(self, claim: Claim) -> tuple[socket.socket, dict[str, Any], socket.socket]:
        """Call; return the caller's socket, what the claimant is told, and its own socket."""
        sock = await self.call()
        told, theirs = await self.take(claim)
        return sock, told, theirs

    async def refused(self) -> bytes:
        """Call; return all that comes back."""
        return await in_thread(end_of, self.begin_call())

    @property
    def verdicts(self) -> list[str]:
        return [outcome.verdict for outcome in self.outcomes]


def end_of(sock: socket.socket) -> bytes:
    """Read to the end; a dropped connection may end with a reset."""
    try:
        return read_all(sock)
    except ConnectionResetError:
        return b""


class Served:
    """What holds for every kind of listener."""

    async def test_caller_and_claimant_talk(self: Any) -> None:
        self.listen()
        claim = await self.claim()
        sock, told, theirs = await self.called(claim)
        port = sock.getsockname()[1] if self.address == "127.0.0.1" or ":" in (self.address or "") else None
        self.assertEqual(told["peer"]["scheme"], "tcp")
        self.assertEqual(told["peer"]["address"], self.address)
        if port is not None and not self.first_bytes:
            self.assertEqual(told["peer"]["port"], port)
        self.assertEqual(
            {key: value for key, value in told.items() if key != "peer"},
            {
                "ok": True,
                "op": "accepted",
                "fd": True,
                "service": "pong",
                "mode": self.mode,
                "identities": [],
                "rule": f"1: {IN}",
            },
        )
        await self.check_talks(sock, theirs)
        await self.check_talks(theirs, sock)
        self.assertTrue(os.get_blocking(theirs.fileno()) or theirs.gettimeout() is not None)

    async def test_the_caller_s_end_of_sending_is_no_more_than_that(self: Any) -> None:
        self.listen()
        sock, _, theirs = await self.called(await self.claim())
        sock.sendall(b"a question")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, theirs), b"a question")
        theirs.sendall(b"an answer")
        theirs.close()
        self.assertEqual(await in_thread(read_all, sock), b"an answer")
        sock.close()
        await until(lambda: not self.core.relays)

    async def test_the_service_s_end_of_sending_is_no_more_than_that(self: Any) -> None:
        self.listen()
        sock, _, theirs = await self.called(await self.claim())
        theirs.sendall(b"a banner")
        theirs.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"a banner")
        sock.sendall(b"an answer")
        sock.close()
        self.assertEqual(await in_thread(read_all, theirs), b"an answer")
        theirs.close()
        await until(lambda: not self.core.relays)

    async def test_what_the_caller_said_before_it_was_handed_over_arrives(self: Any) -> None:
        self.listen()
        claim = await self.claim()
        sock = await self.call()
        sock.sendall(b"early")
        _, theirs = await self.take(claim)
        self.assertEqual(await in_thread(read_exactly, theirs, 5), b"early")

    async def test_many_callers_each_have_a_connection_of_their_own(self: Any) -> None:
        self.listen()
        claim = await self.claim()
        socks = [await self.call() for _ in range(20)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%02d" % number)
        seen = {}
        for _ in socks:
            _, theirs = await self.take(claim)
            seen[await in_thread(read_exactly, theirs, 2)] = theirs
        for number, sock in enumerate(socks):
            seen[b"%02d" % number].sendall(b"you are %02d" % number)
            self.assertEqual(await in_thread(read_exactly, sock, 10), b"you are %02d" % number)

    async def test_the_log_tells_of_it_and_the_broker_holds_nothing_afterwards(self: Any) -> None:
        self.listen()
        claim = await self.claim()
        sock, _, theirs = await self.called(claim)
        self.assertEqual(self.verdicts, ["granted"])
        outcome = self.outcomes[0]
        self.assertEqual((outcome.service, outcome.mode, outcome.ruling), ("pong", self.mode, f"1: {IN}"))
        self.assertEqual(getattr(outcome.who.address, "compressed", None), self.address)
        assert self.service.tcpd is not None
        self.assertEqual((len(self.service.tcpd.peers), self.service.tcpd.callers.handshakes.active), (0, 0))
        claim.close()
        await self.check_talks(sock, theirs)
        sock.close()
        theirs.close()
        await until(lambda: not self.core.relays)
        self.assertEqual(self.verdicts, ["granted", "ended"] if self.mode == "relayed" else ["granted"])
        await self.wait_until_idle(self.service)

    async def test_without_a_claim_nobody_is_there(self: Any) -> None:
        self.listen()
        claim = await self.claim()
        claim.close()
        await until(lambda: not list(self.core.registrations))
        self.assertEqual(await self.refused(), b"" if self.published else b"no denied")
        self.assertEqual(self.verdicts, ["unknown-service"])

    async def test_without_a_rule_nobody_comes_in(self: Any) -> None:
        self.listen("deny in pong any")
        claim = await self.claim()
        self.assertEqual(await self.refused(), b"" if self.published else b"no denied")
        self.assertEqual(self.verdicts, ["denied"])
        claim.sock.setblocking(False)
        self.assertRaises(BlockingIOError, claim.sock.recv, 1)

    async def test_too_many_that_wait_are_one_refusal(self: Any) -> None:
        self.patch(registrations, "WAITING", 2)
        self.listen()
        await self.claim()
        for _ in range(3):
            await self.call()
        registration = self.core.registrations.find("pong")
        await until(lambda: registration.waiting == 2)
        self.assertEqual(await self.refused(), b"" if self.published else b"no denied")
        self.assertEqual((self.verdicts[-1], len(self.verdicts)), ("busy", 4))
        self.assertIn("2 connections wait for pong already", self.outcomes[-1].reason)

    async def test_a_claimant_that_takes_none_loses_its_claim_and_callers_are_hung_up_on(self: Any) -> None:
        self.listen(limits=Limits(handshake_seconds=0.3))
        claim = await self.claim()
        socks = [self.begin_call() for _ in range(3)]  # all are there before the first one's time is over
        for sock in socks:
            await self.let_in(sock)
        self.serve(self.rundir, "other")
        await until(lambda: not list(self.core.registrations))
        for sock in socks[1:]:
            self.assertEqual(await in_thread(end_of, sock), b"")
        claim.close()
        self.assertEqual(await in_thread(end_of, socks[0]), b"")
        await until(lambda: not self.core.relays)
        # It lay in the queue of a claimant that was alive, and stays on the account for a while.
        self.assertEqual(self.broker.unread.active, 1)


class Resets:
    """For listeners whose callers can reset."""

    async def test_a_caller_s_reset_is_the_service_s(self: Any) -> None:
        self.listen()
        sock, _, theirs = await self.called(await self.claim())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        if self.mode == "relayed":
            await in_thread(end_of, theirs)  # a UNIX end may see no more than the end
        else:
            self.assertTrue(await in_thread(is_reset, theirs))
        theirs.close()
        await until(lambda: not self.core.relays)

    async def test_a_service_s_reset_is_the_caller_s(self: Any) -> None:
        self.listen()
        sock, _, theirs = await self.called(await self.claim())
        sock.sendall(b"nobody reads this")
        await until(lambda: unread_bytes(theirs.fileno()))
        theirs.close()
        self.assertTrue(await in_thread(is_reset, sock))


class OverTcp(Served, Resets, CallersTestCase):
    pass


class OverTcp6(Served, Resets, CallersTestCase):
    endpoint = "tcp6:0:interface=\\:\\:1"
    address = "::1"


class OverMapped(Served, Resets, CallersTestCase):
    """IPv4 callers of a listener for IPv6."""

    endpoint = "tcp6:0:interface=\\:\\:ffff\\:127.0.0.1"


class OverProxied(Served, CallersTestCase):
    """Behind Twisted's PROXY-protocol endpoint, whose callers have no socket of their own."""

    endpoint = "haproxy:tcp:0:interface=127.0.0.1"
    first_bytes = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 9000\r\n"
    address = "192.0.2.7"
    mode = "relayed"

    async def test_the_proxy_s_header_tells_the_port(self) -> None:
        self.listen()
        _, told, _ = await self.called(await self.claim())
        self.assertEqual(told["peer"], {"scheme": "tcp", "address": "192.0.2.7", "port": 40000})


class OverUnix(Served, CallersTestCase):
    address = None  # type: ignore[assignment]
    mode = "local"

    def setUp(self) -> None:
        super().setUp()
        self.endpoint = f"unix:{os.path.join(self.folder(), 'tcpd')}"

    async def test_the_service_sees_who_has_called(self) -> None:
        self.listen()
        sock, told, theirs = await self.called(await self.claim())
        self.assertEqual(told["peer"], {"scheme": "tcp", "address": None, "port": 0})
        pid = int.from_bytes(theirs.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little")
        self.assertEqual((sock.family, theirs.family, pid), (socket.AF_UNIX, socket.AF_UNIX, os.getpid()))

    async def test_a_wish_to_relay_holds_for_it_too(self) -> None:
        self.listen(handover=Mode.RELAYED)
        sock, told, theirs = await self.called(await self.claim())
        self.assertEqual(told["mode"], "relayed")
        await self.check_talks(sock, theirs)
        sock.close()
        self.assertEqual(await in_thread(read_all, theirs), b"")


class Published(OverTcp):
    published = True


class PublishedOverTcp6(OverTcp6):
    published = True


class PublishedOverProxied(OverProxied):
    published = True


class PublishedOverUnix(OverUnix):
    published = True


class Relayed(Served, Resets, CallersTestCase):
    """Where the broker was told to relay everything."""

    mode = "relayed"

    def listen(self, *rules: str, **settings: Any) -> None:
        super().listen(*rules, handover=Mode.RELAYED, **settings)

    async def test_ok_comes_alone_and_the_service_s_first_bytes_afterwards(self) -> None:
        self.patch(inbound_raw, "HOLD_SECONDS", LONG_HOLD_SECONDS)
        self.listen()
        claim = await self.claim()
        sock = self.dial()
        sock.sendall(b"pong")
        _, theirs = await self.take(claim)
        theirs.sendall(b"a banner")
        self.assertEqual(await in_thread(sock.recv, 4096), b"ok")
        self.assertEqual(await in_thread(read_exactly, sock, 8), b"a banner")

    async def test_no_more_are_carried_than_allowed(self) -> None:
        self.listen(limits=Limits(relays=1))
        claim = await self.claim()
        sock, _, theirs = await self.called(claim)
        self.assertEqual(await self.refused(), b"no denied")
        self.assertEqual(self.verdicts, ["granted", "busy"])
        self.assertIn("relays=1: so many are carried already", self.outcomes[-1].reason)
        sock.close()
        theirs.close()
        await until(lambda: not self.core.relays)
        await self.called(claim)


class Ok(CallersTestCase):
    """LibIPC's caller takes ok with one read, and loses what comes with it."""

    async def test_it_comes_alone_and_the_service_s_first_bytes_afterwards(self) -> None:
        self.listen()
        claim = await self.claim()
        sock = self.dial()
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(sock.recv, 4096), b"ok")
        _, theirs = await self.take(claim)
        theirs.sendall(b"a banner")
        self.assertEqual(await in_thread(read_exactly, sock, 8), b"a banner")

    async def test_a_caller_that_says_nothing_is_handed_over_in_time(self) -> None:
        self.listen()
        claim = await self.claim()
        began = self.core.reactor.seconds()
        _, _, theirs = await self.called(claim)
        self.assertGreaterEqual(self.core.reactor.seconds() - began, HOLD_SECONDS)
        self.assertEqual(unread_bytes(theirs.fileno()), 0)

    async def test_one_that_speaks_is_handed_over_at_once_with_what_it_said(self) -> None:
        self.listen()
        self.hold(60.0)
        claim = await self.claim()
        sock = await self.call()
        sock.sendall(b"hello")
        _, theirs = await self.take(claim)
        self.assertEqual(await in_thread(read_exactly, theirs, 5), b"hello")

    async def test_one_that_ends_its_sending_is_handed_over_at_once(self) -> None:
        self.listen()
        self.hold(60.0)
        claim = await self.claim()
        sock = await self.call()
        sock.shutdown(socket.SHUT_WR)
        _, theirs = await self.take(claim)
        self.assertEqual(await in_thread(read_all, theirs), b"")
        theirs.sendall(b"a banner")
        self.assertEqual(await in_thread(read_exactly, sock, 8), b"a banner")

    async def test_one_that_resets_meanwhile_is_gone(self) -> None:
        self.listen()
        self.hold(60.0)
        claim = await self.claim()
        sock = await self.call()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        await until(lambda: self.outcomes)
        self.assertEqual(self.verdicts, ["gone"])
        await self.wait_until_nobody_waits()
        claim.sock.setblocking(False)
        self.assertRaises(BlockingIOError, claim.sock.recv, 1)

    async def test_a_claimant_that_goes_meanwhile_leaves_the_caller_hung_up_on(self) -> None:
        self.listen()
        self.hold(60.0)
        claim = await self.claim()
        sock = await self.call()
        claim.close()
        await until(lambda: not list(self.core.registrations))
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual(self.verdicts, ["busy"])
        self.assertIn("has just gone", self.outcomes[0].reason)
        await self.wait_until_nobody_waits()

    async def test_a_broker_that_stops_meanwhile_hangs_up(self) -> None:
        self.listen()
        self.hold(60.0)
        await self.claim()
        sock = await self.call()
        await self.service.stopService()
        self.assertEqual(await in_thread(end_of, sock), b"")

    async def test_a_short_deadline_for_connecting_says_nothing_behind_it(self) -> None:
        self.listen(limits=Limits(connect_seconds=0.02))
        claim = await self.claim()
        sock, _, theirs = await self.called(claim)
        await self.check_talks(sock, theirs)
        self.assertEqual(self.verdicts, ["granted"])

    def hold(self, seconds: float) -> None:
        assert self.service.tcpd is not None
        self.service.tcpd.callers.holding.change(seconds)

    async def wait_until_nobody_waits(self) -> None:
        assert self.service.tcpd is not None
        tcpd = self.service.tcpd
        await until(lambda: not tcpd.peers and not tcpd.callers.handshakes.active)


class Modes(CallersTestCase):
    async def test_a_locked_one_is_locked_to_its_caller(self) -> None:
        self.listen()
        _, told, theirs = await self.called(await self.claim())
        self.assertEqual((told["mode"], theirs.family), ("locked", socket.AF_INET))
        with self.assertRaises(PermissionError):
            theirs.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        self.assertEqual(theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)

    async def test_a_direct_one_is_bare(self) -> None:
        self.listen(handover=Mode.DIRECT)
        sock, told, theirs = await self.called(await self.claim())
        self.assertEqual((told["mode"], theirs.family), ("direct", socket.AF_INET))
        with self.assertRaises(FileNotFoundError):
            theirs.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        await self.check_talks(sock, theirs)

    async def test_a_relayed_one_is_no_tcp_socket(self) -> None:
        self.listen(handover=Mode.RELAYED)
        _, told, theirs = await self.called(await self.claim())
        self.assertEqual((told["mode"], theirs.family), ("relayed", socket.AF_UNIX))

    async def test_of_what_is_relayed_each_byte_is_counted(self) -> None:
        self.listen(handover=Mode.RELAYED)
        sock, _, theirs = await self.called(await self.claim())
        sock.sendall(b"12345")
        self.assertEqual(await in_thread(read_exactly, theirs, 5), b"12345")
        theirs.sendall(b"123")
        self.assertEqual(await in_thread(read_exactly, sock, 3), b"123")
        sock.close()
        theirs.close()
        await until(lambda: len(self.outcomes) == 2)
        ended = self.outcomes[1]
        self.assertEqual((ended.verdict, ended.up, ended.down), ("ended", 5, 3))

    @needs_root
    async def test_a_mode_that_is_not_possible_is_one_refusal_and_no_weaker_one(self) -> None:
        self.listen(handover=Mode.DIRECT)
        claim = await self.claim()
        (registration,) = self.core.registrations
        registration.who_now = lambda inspector: dataclasses.replace(registration.who, uid=12345)  # type: ignore[method-assign]
        self.assertEqual(await self.refused(), b"no denied")
        self.assertEqual(self.verdicts, ["not-possible"])
        self.assertIn("uid 12345", self.outcomes[0].reason)
        self.assertEqual(claim.sock.gettimeout() is None, False)

    async def test_a_claimant_that_is_confined_by_now_gets_no_bare_one(self) -> None:
        self.listen(handover=Mode.DIRECT)
        await self.claim()
        (registration,) = self.core.registrations
        registration.who_now = lambda inspector: dataclasses.replace(registration.who, confined="a cage")  # type: ignore[method-assign]
        self.assertEqual(await self.refused(), b"no denied")
        self.assertIn("confined (a cage)", self.outcomes[0].reason)

    async def test_one_who_is_another_user_by_now_gets_none(self) -> None:
        self.listen()
        await self.claim()
        (registration,) = self.core.registrations

        def refuse(inspector: Any) -> Any:
            from plumberd.pure.refusals import Refusal

            raise Refused(Refusal.DENIED, "somebody else by now")

        registration.who_now = refuse  # type: ignore[method-assign]
        self.assertEqual(await self.refused(), b"no denied")
        self.assertEqual((self.verdicts, self.outcomes[0].reason), (["denied"], "somebody else by now"))

    async def test_a_redirect_leads_callers_to_it(self) -> None:
        self.listen("allow in other any", routes=Routes(leading(other="pong")))
        claim = await self.claim()
        sock = self.dial()
        sock.sendall(b"other")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
        told, theirs = await self.take(claim)
        self.assertEqual((told["service"], told["rule"]), ("pong", "1: allow in other any"))
        await self.check_talks(sock, theirs)

    async def test_an_alternative_leads_to_it_relayed(self) -> None:
        gone = parse_redirect("other", "unix:///gone"), parse_redirect("other", "unix:///pong")
        from plumberd.pure.policy.route import Choice

        self.listen("allow in other any", routes=Routes({"other": (Choice(gone),)}))
        claim = await self.claim()
        sock = self.dial()
        sock.sendall(b"other")
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
        told, theirs = await self.take(claim)
        self.assertEqual(
            (told["mode"], told["peer"]["address"], told["rule"]), ("relayed", "127.0.0.1", "1: allow in other any")
        )
        await self.check_talks(sock, theirs)
        self.assertEqual(self.outcomes[-1].mode, "relayed")


@needs_root
class OtherUsers(CallersTestCase, ChildTestCase):
    async def test_the_socket_is_the_claimant_s_own(self) -> None:
        self.listen()
        os.chmod(os.path.dirname(self.rundir), 0o755)
        os.chmod(self.rundir, 0o1777)
        os.chmod(os.path.join(self.rundir, "plumberd"), 0o666)
        code = (
            "import os,sys\n"
            "from tests.inside import become\n"
            "from tests.holders import Claim\n"
            "become(12345,23456)\n"
            "claim=Claim(sys.argv[1])\n"
            "print(claim.serve('pong')['ok'],flush=True)\n"
            "told,sock=claim.take()\n"
            "status=os.fstat(sock.fileno())\n"
            "print(told['mode'],status.st_uid,status.st_gid,flush=True)\n"
            "sock.sendall(b'hello')\n"
        )
        child = self.child(code, self.rundir)
        self.assertEqual(await in_thread(child.line), "True")
        sock = await self.call()
        self.assertEqual(await in_thread(child.line), "locked 12345 23456")
        self.assertEqual(await in_thread(read_all, sock), b"hello")
        self.assertEqual(self.core.census.used_of(12345), 1)

    async def test_one_in_another_network_namespace_is_handed_a_locked_one(self) -> None:
        self.listen()
        code = (
            "import sys\n"
            "from tests.holders import Claim\n"
            "claim=Claim(sys.argv[1])\n"
            "print(claim.serve('pong')['ok'],flush=True)\n"
            "told,sock=claim.take()\n"
            "print(told['mode'],flush=True)\n"
            "sock.sendall(sock.recv(5))\n"
        )
        child = self.child(code, self.rundir, within=("unshare", "-n"))
        self.assertEqual(await in_thread(child.line), "True")
        sock = await self.call()
        self.assertEqual(await in_thread(child.line), "locked")
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(read_exactly, sock, 5), b"hello")


class Counted(CallersTestCase):
    """Sockets that left the broker count for the claimant's user, until the kernel is done with them."""

    async def test_one_too_many_is_one_refusal_and_the_log_names_the_limit(self) -> None:
        self.listen(limits=Limits(handed_over_per_uid=1))
        claim = await self.claim()
        sock, _, theirs = await self.called(claim)
        self.assertEqual(self.core.census.used_of(MY_UID), 1)
        self.assertEqual(await self.refused(), b"no denied")
        self.assertEqual(self.verdicts, ["granted", "busy"])
        self.assertIn(f"handed_over_per_uid=1: uid {MY_UID} has so many", self.outcomes[-1].reason)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        self.assertTrue(await in_thread(is_reset, theirs))
        theirs.close()
        done: list[int] = []
        self.core.census.refresh(lambda: done.append(1))
        await until(lambda: done)
        await self.called(claim)

    async def test_one_that_is_refused_counts_no_more(self) -> None:
        self.listen()
        self.hold()
        await self.claim()
        sock = await self.call()
        self.assertEqual(self.core.census.used, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        await until(lambda: self.outcomes)
        self.assertEqual(self.core.census.used, 0)

    def hold(self) -> None:
        assert self.service.tcpd is not None
        self.service.tcpd.callers.holding.change(60.0)

    def wait_for_the_count(self) -> list[Any]:
        """Let everybody wait for the kernel's answer; return what will go on."""
        waiting: list[Any] = []

        def admit(owner: object, uid: int, resume: Any) -> bool:
            waiting.append(resume)
            self.core.census._waiting[owner] = (uid, resume)
            return False

        self.core.census.admit = admit  # type: ignore[method-assign]
        return waiting

    async def test_who_waits_for_the_count_goes_on_when_it_is_there(self) -> None:
        self.listen()
        claim = await self.claim()
        waiting = self.wait_for_the_count()
        sock = self.dial()
        sock.sendall(b"pong")
        await until(lambda: waiting)
        waiting[0](None)
        self.assertEqual(await in_thread(read_exactly, sock, 2), b"ok")
        await self.take(claim)

    async def test_who_waits_too_long_is_refused_and_not_let_in_afterwards(self) -> None:
        self.listen(limits=Limits(connect_seconds=0.1))
        claim = await self.claim()
        waiting = self.wait_for_the_count()
        self.assertEqual(await self.refused(), b"no denied")
        self.assertEqual(self.verdicts, ["busy"])
        self.assertIn("not done within connect_seconds=0.1: handed_over_per_uid=10000", self.outcomes[0].reason)
        self.assertEqual(self.core.census._waiting, {})
        self.assertEqual(len(waiting), 1)
        claim.sock.setblocking(False)
        self.assertRaises(BlockingIOError, claim.sock.recv, 1)

    async def test_who_hangs_up_meanwhile_is_gone(self) -> None:
        self.listen()
        await self.claim()
        waiting = self.wait_for_the_count()
        sock = self.dial()
        sock.sendall(b"pong")
        await until(lambda: waiting)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        await until(lambda: self.outcomes)
        self.assertEqual((self.verdicts, self.core.census._waiting), (["gone"], {}))

    async def test_under_other_rules_it_is_decided_again(self) -> None:
        self.listen()
        await self.claim()
        waiting = self.wait_for_the_count()
        sock = self.dial()
        sock.sendall(b"pong")
        await until(lambda: waiting)
        self.put_in_force(self.service, "deny in pong any", ALLOW)  # which lets those go on who wait
        self.assertEqual(await in_thread(read_all, sock), b"no denied")
        self.assertEqual(self.verdicts, ["denied"])


class OtherRules(CallersTestCase):
    """A reload while a caller has been told ok, and was not handed over yet."""

    async def begin(self, **settings: Any) -> tuple[Claim, socket.socket]:
        self.listen(**settings)
        assert self.service.tcpd is not None
        self.service.tcpd.callers.holding.change(60.0)
        return await self.claim(), await self.call()

    async def test_that_still_let_it_in_change_nothing_but_what_is_told(self) -> None:
        claim, sock = await self.begin()
        self.put_in_force(self.service, "allow in any tcp:127.0.0.1", ALLOW)
        sock.sendall(b"hello")
        told, theirs = await self.take(claim)
        self.assertEqual(told["rule"], "1: allow in any tcp:127.0.0.1")
        self.assertEqual(await in_thread(read_exactly, theirs, 5), b"hello")

    async def test_that_do_not_hang_up(self) -> None:
        claim, sock = await self.begin()
        self.put_in_force(self.service, "deny in any any", ALLOW)
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual(self.verdicts, ["denied"])
        claim.sock.setblocking(False)
        self.assertRaises(BlockingIOError, claim.sock.recv, 1)

    async def test_with_another_redirect_it_is_hung_up_on(self) -> None:
        _, sock = await self.begin()
        self.put_in_force(self.service, IN, ALLOW, routes=Routes(leading(pong="other")))
        sock.sendall(b"hello")
        self.assertEqual(await in_thread(end_of, sock), b"")
        self.assertEqual((self.verdicts, self.outcomes[0].reason), (["denied"], "it leads to other by now"))
