"""What holds for a lookup on the native socket, however a program waits for it.

Subclass :class:`LookupContract` with one way; :class:`CancelContract` with one that can be given up.
The broker is a real one, or, where it has to misbehave, a script in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from twisted.internet import defer

from plumberd import client
from plumberd.pure.modes import Mode
from tests.running import RunningTestCase
from tests.support import DEADLINE_SECONDS, in_thread, native_frame, native_read, read_all, read_exactly, until

HELLO = b"hello"
GRANTED = native_frame({"ok": True, "fd": True, "mode": "local", "rule": "default for local services"})
BIG_ROUTES = "other " + "x" * 60_000
"""A lookup that does not fit into one small buffer."""


@dataclass(frozen=True)
class Failure:
    """How a lookup failed: ``refused``, ``nobody``, ``late`` or ``error``; and what it says."""

    kind: str
    text: str


@dataclass(frozen=True)
class Attempt:
    """A lookup under way.

    :ivar result: what the service answers to :data:`HELLO`; or ``Failure``; or ``None``: given up.
    :ivar cancel: gives it up.
    """

    result: defer.Deferred[bytes | Failure | None]
    cancel: Callable[[], None]


def explained(error: client.Error) -> Failure:
    """Return what an error of :mod:`plumberd.client` says."""
    if isinstance(error, client.Refused):
        return Failure("refused", f"{error.word}: {error.reason}")
    if isinstance(error, client.NoBroker):
        return Failure("nobody", str(error.strerror))
    return Failure("late" if error.errno == errno.ETIMEDOUT else "error", str(error.strerror))


def silent(case: RunningTestCase, rundir: str) -> list[str]:
    """Run a broker that says nothing; return a list that tells when it was asked, and when its client has gone."""
    told: list[str] = []

    def answer(sock: socket.socket) -> None:
        native_read(sock)
        told.append("asked")
        read_all(sock)
        told.append("ended")

    case.serve(rundir, "plumberd", answer)
    return told


class LookupContract(RunningTestCase):
    """Granted, refused, too late; and a broker that does not behave."""

    def begin(self, service: str, routes: str | None, rundir: str | None, timeout: float) -> Attempt:
        """Begin to look up; on the connection, say :data:`HELLO`, read as many bytes, and close."""
        raise NotImplementedError

    def look_up(
        self,
        service: str = "pong",
        routes: str | None = None,
        *,
        rundir: str | None,
        timeout: float = DEADLINE_SECONDS,
    ) -> defer.Deferred[bytes | Failure | None]:
        """Look up to the end."""
        return self.begin(service, routes, rundir, timeout).result

    # -- a broker that behaves

    async def test_a_local_service(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")
        self.assertEqual(await self.look_up(rundir=broker.settings.rundir), HELLO)
        await self.wait_until_idle(broker)

    async def test_a_tcp_server(self) -> None:
        broker = self.run_broker()
        routes = f"web tcp://127.0.0.1:{self.serve_tcp()}"
        self.assertEqual(await self.look_up("web", routes, rundir=broker.settings.rundir), HELLO)
        await self.wait_until_idle(broker)

    async def test_a_tcp_server_over_ipv6(self) -> None:
        broker = self.run_broker()
        routes = f"web tcp://[::1]:{self.serve_tcp(host='::1')}"
        self.assertEqual(await self.look_up("web", routes, rundir=broker.settings.rundir), HELLO)

    async def test_a_relayed_connection(self) -> None:
        broker = self.run_broker(handover=Mode.RELAYED)
        routes = f"web tcp://127.0.0.1:{self.serve_tcp()}"
        self.assertEqual(await self.look_up("web", routes, rundir=broker.settings.rundir), HELLO)
        await self.wait_until_idle(broker)

    async def test_a_service_behind_another_broker(self) -> None:
        far = self.run_broker("allow in pong tcp:127.0.0.1", tcpd=("tcp:0:interface=127.0.0.1",))
        near = self.run_broker()
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(b"early") or read_all(sock))
        routes = f"pong tcp://127.0.0.1:{self.tcpd_port(far)}/pong"
        self.assertEqual(await self.look_up("pong", routes, rundir=near.settings.rundir), b"early")
        await self.wait_until_idle(far)

    async def test_a_refusal(self) -> None:
        broker = self.run_broker("deny out pong any")
        self.serve(broker.settings.rundir, "pong")
        failure = await self.look_up(rundir=broker.settings.rundir)
        said = "rule 1 denies it; it would take a rule in front of that one: allow out pong unix:pong"
        self.assertEqual(failure, Failure("refused", f"denied: {said}"))
        await self.wait_until_idle(broker)

    async def test_many_at_once(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")
        attempts = [self.look_up(rundir=broker.settings.rundir) for _ in range(8)]
        self.assertEqual([await attempt for attempt in attempts], [HELLO] * 8)
        await self.wait_until_idle(broker)

    # -- where it looks, and what it asks

    async def test_without_a_broker_it_tells_where_it_has_looked(self) -> None:
        empty, stale = self.folder(), self.folder()
        self.unix_listener(f"{stale}/plumberd").close()
        places = {"IPC_RUNDIR": empty, "RUNDIR": stale, "XDG_RUNTIME_DIR": "/nonexistent"}
        with mock.patch.dict(os.environ, places), mock.patch("plumberd.pure.places.SYSTEM", "/nonexistent/too"):
            failure = await self.look_up(rundir=None)
        gone = "No such file or directory"
        said = (
            f"no broker answers; looked at {empty}/plumberd ({gone}), {stale}/plumberd (Connection refused), "
            f"/nonexistent/ipc/plumberd ({gone}), /nonexistent/too/plumberd ({gone})"
        )
        self.assertEqual(failure, Failure("nobody", said))

    async def test_the_first_live_broker_is_asked(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")
        with mock.patch.dict(os.environ, {"IPC_RUNDIR": self.folder(), "RUNDIR": broker.settings.rundir}):
            self.assertEqual(await self.look_up(rundir=None), HELLO)

    async def test_a_directory_that_others_can_write_is_not_trusted(self) -> None:
        broker = self.run_broker()
        os.chmod(broker.settings.rundir, 0o777)
        failure = await self.look_up(rundir=broker.settings.rundir)
        assert isinstance(failure, Failure)
        self.assertEqual(failure.kind, "error")
        self.assertIn("its sticky bit is not set", failure.text)

    async def test_the_routes_are_the_environment_s_unless_it_is_told_others(self) -> None:
        rundir = self.folder()
        asked: list[dict[str, Any]] = []

        def answer(sock: socket.socket) -> None:
            asked.append(native_read(sock)[0])
            sock.sendall(native_frame({"ok": False, "error": "denied", "reason": "no"}))

        self.serve(rundir, "plumberd", answer)
        for environ in ({"IPC_NETWORKD": "a tcp://h", "IPC_NETWORK": "b"}, {"IPC_NETWORKD": "", "IPC_NETWORK": "b"}):
            with mock.patch.dict(os.environ, environ):
                for routes in (None, "c tcp://h", ""):
                    self.assertEqual(
                        await self.look_up("pong", routes, rundir=rundir), Failure("refused", "denied: no")
                    )
        wanted = ["a tcp://h", "c tcp://h", None, "b", "c tcp://h", None]
        self.assertEqual([request.get("routes") for request in asked], wanted)
        self.assertEqual({(request["op"], request["service"]) for request in asked}, {("lookup", "pong")})

    # -- brokers that do not behave

    def given(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection, the second one blocking, as a broker gives it away."""
        kept, given = self.pair()
        given.setblocking(True)
        return kept, given

    def script(self, *steps: bytes, end: bool = True) -> tuple[str, socket.socket]:
        """Run a broker that reads a request and answers in *steps*, a descriptor with the first byte of the first.

        :param end: hang up then, else wait until the client does.
        :returns: the run directory, and the other end of what the descriptor belongs to.
        """
        rundir = self.folder()
        kept, given = self.given()

        def answer(sock: socket.socket) -> None:
            native_read(sock)
            with given:
                socket.send_fds(sock, [steps[0][:1]], [given.fileno()])
            for step in (steps[0][1:], *steps[1:]):
                sock.sendall(step)
            if not end:
                read_all(sock)

        self.serve(rundir, "plumberd", answer)
        return rundir, kept

    async def check_closed(self, kept: socket.socket) -> None:
        """Nobody but *kept* has this connection any more."""
        self.assertEqual(await in_thread(read_all, kept), b"")

    async def test_an_answer_byte_by_byte(self) -> None:
        rundir, kept = self.script(*(GRANTED[at : at + 1] for at in range(len(GRANTED))), end=False)
        lookup = self.look_up(rundir=rundir)
        self.assertEqual(await in_thread(read_exactly, kept, 5), HELLO)
        kept.sendall(HELLO)
        self.assertEqual(await lookup, HELLO)
        await self.check_closed(kept)

    async def test_a_broker_that_hangs_up_closes_what_it_had_given(self) -> None:
        for cut in (1, 4, 5, len(GRANTED) - 1):
            rundir, kept = self.script(GRANTED[:cut])
            self.assertEqual(
                await self.look_up(rundir=rundir), Failure("error", "the broker hung up without an answer"), cut
            )
            await self.check_closed(kept)

    async def test_a_broker_that_hangs_up_before_it_reads(self) -> None:
        rundir = self.folder()
        self.serve(rundir, "plumberd", socket.socket.close)
        for routes in ("", BIG_ROUTES):
            failure = await self.look_up("pong", routes, rundir=rundir)
            self.assertEqual(failure, Failure("error", "the broker hung up without an answer"))

    async def test_what_a_broker_says_before_it_reads_is_heard(self) -> None:
        rundir = self.folder()
        busy = native_frame({"ok": False, "error": "busy", "reason": "connections_per_uid"})
        self.serve(rundir, "plumberd", lambda sock: sock.sendall(busy))
        failure = await self.look_up("pong", BIG_ROUTES, rundir=rundir)
        self.assertEqual(failure, Failure("refused", "busy: connections_per_uid"))

    async def test_answers_that_are_none(self) -> None:
        refused = native_frame({"ok": False, "error": "denied", "reason": "a reason"})
        for answer, failure in (
            (b"\0\0\0\4what", Failure("error", "the broker's answer is no JSON object")),
            (b"\0\0\0\2[]", Failure("error", "the broker's answer is no JSON object")),
            (b"\0\0\0\0", Failure("error", "the broker's answer is no JSON object")),
            (b"\0\0\0\4\xff\xff\xff\xff", Failure("error", "the broker's answer is no JSON object")),
            (b"\0\1\0\1", Failure("error", "the broker announces an answer of 65537 bytes")),
            (refused, Failure("refused", "denied: a reason")),
            (native_frame({}), Failure("refused", "None: None")),
        ):
            rundir, kept = self.script(answer)
            self.assertEqual(await self.look_up(rundir=rundir), failure)
            await self.check_closed(kept)

    async def test_a_grant_without_a_descriptor(self) -> None:
        rundir = self.folder()
        self.serve(rundir, "plumberd", lambda sock: (native_read(sock), sock.sendall(GRANTED)))
        failure = await self.look_up(rundir=rundir)
        self.assertEqual(failure, Failure("error", "the broker granted the lookup and sent no descriptor"))

    async def test_a_descriptor_that_is_no_socket(self) -> None:
        rundir = self.folder()

        def answer(sock: socket.socket) -> None:
            native_read(sock)
            with open(os.devnull, "rb") as file:
                socket.send_fds(sock, [GRANTED], [file.fileno()])

        self.serve(rundir, "plumberd", answer)
        failure = await self.look_up(rundir=rundir)
        said = "the broker granted the lookup and sent a descriptor that is no socket"
        self.assertEqual(failure, Failure("error", said))

    async def test_of_several_descriptors_one_is_kept_and_the_others_are_closed(self) -> None:
        rundir = self.folder()
        pairs = [self.given() for _ in range(2)]

        def answer(sock: socket.socket) -> None:
            native_read(sock)
            socket.send_fds(sock, [GRANTED], [given.fileno() for _, given in pairs])
            for _, given in pairs:
                given.close()

        self.serve(rundir, "plumberd", answer)
        lookup = self.look_up(rundir=rundir)
        kept = pairs[1][0]
        self.assertEqual(await in_thread(read_exactly, kept, 5), HELLO)
        kept.sendall(HELLO)
        self.assertEqual(await lookup, HELLO)
        for kept, _ in pairs:
            await self.check_closed(kept)

    # -- time

    async def test_a_broker_that_says_nothing(self) -> None:
        rundir = self.folder()
        told = silent(self, rundir)
        failure = await self.look_up(rundir=rundir, timeout=0.5)
        self.assertEqual(failure, Failure("late", "the broker did not answer within 0.5 seconds"))
        await until(lambda: told == ["asked", "ended"])

    async def test_a_broker_that_stops_in_the_middle_of_its_answer(self) -> None:
        rundir, kept = self.script(GRANTED[:9], end=False)
        failure = await self.look_up(rundir=rundir, timeout=0.5)
        self.assertEqual(failure, Failure("late", "the broker did not answer within 0.5 seconds"))
        await self.check_closed(kept)

    async def test_the_time_is_for_the_whole_answer(self) -> None:
        rundir = self.folder()

        def answer(sock: socket.socket) -> None:
            native_read(sock)
            for at in range(len(GRANTED)):  # each in time, all together not
                sock.sendall(GRANTED[at : at + 1])
                sock.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)
                    return

        self.serve(rundir, "plumberd", answer)
        failure = await self.look_up(rundir=rundir, timeout=0.3)
        self.assertEqual(failure, Failure("late", "the broker did not answer within 0.3 seconds"))

    def full(self) -> tuple[str, socket.socket, list[int]]:
        """Return a run directory, a listener there that has room for nobody, and a list that grows with attempts."""
        rundir = self.folder()
        listener = self.unix_listener(f"{rundir}/plumberd", backlog=0)
        while True:
            sock = self.owned(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            if sock.connect_ex(f"{rundir}/plumberd"):
                break
        attempts: list[int] = []
        attempt = client.Search.attempt

        def count(search: client.Search) -> socket.socket | None:
            attempts.append(1)
            return attempt(search)

        self.patch(client.Search, "attempt", count)
        return rundir, listener, attempts

    async def test_a_full_backlog_is_waited_for(self) -> None:
        rundir, listener, attempts = self.full()
        kept, given = self.given()
        lookup = self.look_up(rundir=rundir)
        await until(lambda: len(attempts) > 2)

        def answer() -> None:
            filler, _ = listener.accept()
            filler.close()
            sock, _ = listener.accept()
            with sock, given:
                native_read(sock)
                socket.send_fds(sock, [GRANTED], [given.fileno()])
            kept.sendall(read_exactly(kept, 5))

        await in_thread(answer)
        self.assertEqual(await lookup, HELLO)

    async def test_a_full_backlog_is_not_waited_for_for_ever(self) -> None:
        rundir, _, _ = self.full()
        failure = await self.look_up(rundir=rundir, timeout=0.1)
        self.assertEqual(failure, Failure("late", "the broker did not answer within 0.1 seconds"))


class CancelContract(LookupContract):
    """Given up at every step, it leaves nothing."""

    async def test_cancelled_while_the_broker_decides(self) -> None:
        rundir = self.folder()
        told = silent(self, rundir)
        attempt = self.begin("pong", None, rundir, DEADLINE_SECONDS)
        await until(lambda: told)
        attempt.cancel()
        self.assertIsNone(await attempt.result)
        await until(lambda: told == ["asked", "ended"])

    async def test_cancelled_with_the_descriptor_in_hand(self) -> None:
        rundir, kept = self.script(GRANTED[:9], end=False)
        received: list[int] = []
        add = client.Answer.add

        def count(answer: client.Answer, data: bytes) -> bool:
            received.extend(data)
            return add(answer, data)

        self.patch(client.Answer, "add", count)
        attempt = self.begin("pong", None, rundir, DEADLINE_SECONDS)
        await until(lambda: len(received) == 9)
        attempt.cancel()
        self.assertIsNone(await attempt.result)
        await self.check_closed(kept)

    async def test_cancelled_while_the_backlog_is_full(self) -> None:
        rundir, _, attempts = self.full()
        attempt = self.begin("pong", None, rundir, DEADLINE_SECONDS)
        await until(lambda: len(attempts) > 2)
        attempt.cancel()
        self.assertIsNone(await attempt.result)

    async def test_cancelled_at_any_moment_a_real_broker_and_this_process_keep_nothing(self) -> None:
        broker = self.run_broker()
        self.serve(broker.settings.rundir, "pong")
        for rounds in range(12):
            attempt = self.begin("pong", None, broker.settings.rundir, DEADLINE_SECONDS)
            for _ in range(rounds):
                await in_thread(lambda: None)  # a turn of the reactor
            attempt.cancel()
            self.assertIn(await attempt.result, (HELLO, None))
        await self.wait_until_idle(broker)
