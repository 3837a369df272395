"""plumberd.effects.dial_unix: to a local service as the client itself, and to nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from twisted.internet.task import Clock

from plumberd.effects.actas import ActAs
from plumberd.effects.credentials import maker_of
from plumberd.effects.dial_unix import RETRY_SECONDS, LocalServices, UnixDial
from plumberd.effects.kernel import peer_groups
from plumberd.effects.rundir import identity
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho
from tests.children import ChildTestCase, needs_root
from tests.inside import ids_of_threads
from tests.support import CleanTestCase, no_descriptors

CLIENT = LocalWho(12345, 23456, (7, 8), pid=1)


def oneself() -> LocalWho:
    return LocalWho(os.geteuid(), os.getegid(), tuple(os.getgroups()), os.getpid())


class DialTestCase(CleanTestCase):
    """Dials the service ``pong`` of a run directory."""

    def setUp(self) -> None:
        super().setUp()
        self.rundir = self.folder()
        os.chmod(self.rundir, 0o755)
        self.path = os.path.join(self.rundir, "pong")
        self.own: set[tuple[int, int]] = set()
        self.trusted = {0, os.geteuid()}
        self.services = LocalServices(self.rundir, ActAs(), self.trusted, self.own)
        self.clock = Clock()
        self.results: list[socket.socket | Refused] = []

    def serve(
        self,
        mode: int = 0o666,
        backlog: int = 8,
        uid: int | None = None,
        name: str = "pong",
        kind: int = socket.SOCK_STREAM,
    ) -> socket.socket:
        """Listen as a service does, as user *uid*."""
        sock = self.owned(socket.socket(socket.AF_UNIX, kind))
        self.path = os.path.join(self.rundir, name)
        sock.bind(self.path)
        os.chmod(self.path, mode)
        if uid is None:
            sock.listen(backlog)
        else:
            ActAs().call(LocalWho(uid, uid, (), 1), lambda: sock.listen(backlog))
        return sock

    def dial(self, service: str = "pong", who: LocalWho | None = None) -> socket.socket:
        return self.owned(self.services.dial(service, oneself() if who is None else who))

    def accept(self, listener: socket.socket) -> socket.socket:
        return self.owned(listener.accept()[0])

    def assert_refused(self, word: Refusal, reason: str, dial: Callable[[], socket.socket]) -> None:
        with self.assertRaises(Refused) as raised:
            dial()
        self.assertIs(raised.exception.word, word)
        self.assertIn(reason, raised.exception.reason)

    def start(self, who: LocalWho | None = None) -> UnixDial:
        """Begin an attempt that is repeated."""
        dial = UnixDial(self.clock, self.services, "pong", who, self.note)
        dial.start()
        self.addCleanup(dial.cancel)
        return dial

    def note(self, result: socket.socket | Refused) -> None:
        if isinstance(result, socket.socket):
            self.owned(result)
        self.results.append(result)

    def fill(self) -> socket.socket:
        """Fill the backlog of the service, which holds one."""
        sock = self.owned(socket.socket(socket.AF_UNIX))
        sock.connect(self.path)
        return sock


class Connected(DialTestCase):
    def test_bytes_go_both_ways(self) -> None:
        listener = self.serve()
        near = self.dial()
        near.settimeout(10)
        far = self.accept(listener)
        near.sendall(b"ping")
        self.assertEqual(far.recv(10), b"ping")
        far.sendall(b"pong")
        self.assertEqual(near.recv(10), b"pong")

    def test_the_socket_does_not_block(self) -> None:
        self.serve()
        sock = self.services.dial("pong", oneself())
        self.addCleanup(sock.close)
        self.assertFalse(os.get_blocking(sock.fileno()))

    def test_for_what_comes_in_the_broker_connects_as_itself(self) -> None:
        listener = self.serve()
        self.owned(self.services.dial("pong", None))
        self.assertEqual(maker_of(self.accept(listener)), (os.getpid(), os.geteuid(), os.getegid()))


@needs_root
class AsTheClient(DialTestCase):
    def assert_root_again(self) -> None:
        self.assertEqual((os.geteuid(), os.getegid()), (0, 0))
        self.assertEqual(set(ids_of_threads()), {"Uid:\t0\t0\t0\t0"})

    def test_the_service_sees_the_clients_uid_gid_and_groups(self) -> None:
        listener = self.serve()
        self.dial(who=CLIENT)
        accepted = self.accept(listener)
        self.assertEqual(maker_of(accepted)[1:], (12345, 23456))
        self.assertEqual(peer_groups(accepted), (7, 8))
        self.assert_root_again()

    def test_a_socket_that_is_roots_alone_refuses_the_client(self) -> None:
        self.serve(mode=0o600)
        self.assert_refused(Refusal.DENIED, "the mode of the socket of pong", lambda: self.dial(who=CLIENT))
        self.assert_root_again()

    def test_a_socket_that_is_roots_alone_lets_root_in(self) -> None:
        listener = self.serve(mode=0o600)
        self.dial()
        self.accept(listener)

    def test_a_socket_of_the_clients_group_lets_it_in(self) -> None:
        listener = self.serve(mode=0o660)
        os.chown(self.path, 0, 23456)
        self.dial(who=CLIENT)
        self.accept(listener)

    def test_a_socket_of_a_supplementary_group_lets_it_in(self) -> None:
        listener = self.serve(mode=0o660)
        os.chown(self.path, 0, 8)
        self.dial(who=CLIENT)
        self.accept(listener)

    def test_a_socket_of_another_group_refuses_it(self) -> None:
        self.serve(mode=0o660)
        os.chown(self.path, 0, 9)
        self.assert_refused(Refusal.DENIED, "does not let this user in", lambda: self.dial(who=CLIENT))

    def test_a_client_with_uid_0_in_no_group_of_roots_is_not_the_broker(self) -> None:
        listener = self.serve()
        self.dial(who=LocalWho(0, 23456, (7,), 1))
        accepted = self.accept(listener)
        self.assertEqual((maker_of(accepted)[1:], peer_groups(accepted)), ((0, 23456), (7,)))
        self.assert_root_again()

    def test_a_directory_that_is_closed_to_the_client_refuses_it(self) -> None:
        self.serve()
        os.chmod(self.rundir, 0o700)
        self.assert_refused(Refusal.DENIED, "does not let this user in", lambda: self.dial(who=CLIENT))

    def test_a_service_of_the_clients_own_does_not_count_without_trust(self) -> None:
        self.serve(uid=12345)
        self.assert_refused(Refusal.DENIED, "served by uid 12345", lambda: self.dial(who=CLIENT))

    def test_a_service_of_a_user_that_is_trusted_counts(self) -> None:
        listener = self.serve(uid=12345)
        self.trusted.add(12345)
        self.dial(who=CLIENT)
        self.accept(listener)

    def test_what_comes_in_reaches_no_service_without_trust_either(self) -> None:
        self.serve(uid=12345)
        self.assert_refused(Refusal.DENIED, "does not trust", lambda: self.services.dial("pong", None))


class Generations(DialTestCase):
    """Where a service listens, and with what; the kind like the client's own comes first."""

    def reached(self, *, packets: bool) -> tuple[str, int]:
        """Return the name and the kind of the socket that a lookup of ``pong`` reaches."""
        sock = self.owned(self.services.dial("pong", oneself(), packets=packets))
        return os.path.basename(sock.getpeername()), sock.type

    def serve_all(self) -> None:
        self.serve(name="pong")
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)

    def test_a_stream(self) -> None:
        self.serve()
        self.assertEqual(self.reached(packets=False), ("pong", socket.SOCK_STREAM))
        self.assertEqual(self.reached(packets=True), ("pong", socket.SOCK_STREAM))

    def test_packets(self) -> None:
        self.serve(kind=socket.SOCK_SEQPACKET)
        self.assertEqual(self.reached(packets=False), ("pong", socket.SOCK_SEQPACKET))
        self.assertEqual(self.reached(packets=True), ("pong", socket.SOCK_SEQPACKET))

    def test_packets_of_the_oldest_generation(self) -> None:
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)
        self.assertEqual(self.reached(packets=False), ("pong-0-0", socket.SOCK_SEQPACKET))
        self.assertEqual(self.reached(packets=True), ("pong-0-0", socket.SOCK_SEQPACKET))

    def test_of_both_the_stream_is_for_clients_of_streams(self) -> None:
        self.serve_all()
        self.assertEqual(self.reached(packets=False), ("pong", socket.SOCK_STREAM))

    def test_of_both_the_packets_are_for_clients_of_packets(self) -> None:
        self.serve_all()
        self.assertEqual(self.reached(packets=True), ("pong-0-0", socket.SOCK_SEQPACKET))

    def test_a_stale_socket_does_not_hide_a_live_one_of_the_oldest_generation(self) -> None:
        self.serve().close()
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)
        self.assertEqual(self.reached(packets=False), ("pong-0-0", socket.SOCK_SEQPACKET))

    def test_a_stream_at_the_oldest_generations_place_is_none_of_its_services(self) -> None:
        self.serve(name="pong-0-0")
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "no local service is called pong", self.dial)

    def test_a_datagram_socket_is_of_no_generation(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(self.path)
            self.assert_refused(Refusal.NOT_POSSIBLE, "a socket of another type", self.dial)

    def test_a_full_backlog_is_waited_for_and_no_other_place_is_tried(self) -> None:
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)
        self.serve(backlog=0)
        self.fill()
        with self.assertRaises(BlockingIOError):
            self.services.dial("pong", oneself())

    @needs_root
    def test_a_refusal_by_mode_is_one_and_no_other_place_is_tried(self) -> None:
        self.serve(mode=0o600)
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)
        self.assert_refused(Refusal.DENIED, "does not let this user in", lambda: self.dial(who=CLIENT))

    @needs_root
    def test_a_strangers_socket_beside_the_services_keeps_nobody_from_it(self) -> None:
        self.serve(uid=12345)
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET)
        self.assertEqual(self.reached(packets=False), ("pong-0-0", socket.SOCK_SEQPACKET))

    @needs_root
    def test_where_nothing_but_a_strangers_and_a_stale_one_is_there_the_strangers_is_told(self) -> None:
        self.serve(name="pong-0-0", kind=socket.SOCK_SEQPACKET, uid=12345)
        self.serve().close()
        self.assert_refused(Refusal.DENIED, "served by uid 12345", self.dial)

    def test_a_repeated_attempt_knows_the_clients_kind(self) -> None:
        self.serve_all()
        dial = UnixDial(self.clock, self.services, "pong", None, self.note, packets=True)
        dial.start()
        (result,) = self.results
        assert isinstance(result, socket.socket)
        self.assertEqual(result.type, socket.SOCK_SEQPACKET)


class SchemeDaemons(DialTestCase):
    """<run directory>/tcp of another process, asked by the broker as itself."""

    def dial_scheme(self) -> socket.socket:
        return self.owned(self.services.dial_scheme("tcp"))

    def test_it_is_reached(self) -> None:
        listener = self.serve(name="tcp", mode=0o600)
        sock = self.services.dial_scheme("tcp")
        self.addCleanup(sock.close)
        self.assertFalse(os.get_blocking(sock.fileno()))
        sock.sendall(b"x")
        self.assertEqual(self.accept(listener).recv(1), b"x")

    @needs_root
    def test_the_broker_asks_as_itself(self) -> None:
        listener = self.serve(name="tcp")
        self.dial_scheme()
        self.assertEqual(maker_of(self.accept(listener)), (os.getpid(), 0, os.getegid()))

    def test_none_is_there(self) -> None:
        self.assert_refused(Refusal.UNREACHABLE, "there is no socket, it does not run", self.dial_scheme)

    def test_a_stale_one(self) -> None:
        self.serve(name="tcp").close()
        self.assert_refused(Refusal.UNREACHABLE, "the socket is stale", self.dial_scheme)

    def test_one_with_a_full_backlog(self) -> None:
        self.serve(name="tcp", backlog=0)
        self.fill()
        self.assert_refused(Refusal.UNREACHABLE, "its queue is full", self.dial_scheme)

    def test_a_symlink_is_not_followed(self) -> None:
        self.serve(name="other")
        os.symlink(self.path, os.path.join(self.rundir, "tcp"))
        self.assert_refused(Refusal.UNREACHABLE, "is no socket", self.dial_scheme)

    def test_one_of_the_brokers_own_sockets_under_that_name(self) -> None:
        self.serve(name="ipc")
        self.own.add(identity(self.path))
        os.link(self.path, os.path.join(self.rundir, "tcp"))
        self.assert_refused(Refusal.UNREACHABLE, "a socket of the broker itself", self.dial_scheme)

    @needs_root
    def test_a_strangers(self) -> None:
        self.serve(name="tcp", uid=12345)
        self.assert_refused(Refusal.DENIED, "served by uid 12345", self.dial_scheme)


class NotConnected(DialTestCase):
    """A table: what lies at the name, and what the client is told. One method a row."""

    def test_nothing(self) -> None:
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "no local service is called pong", self.dial)

    def test_a_stale_socket(self) -> None:
        self.serve().close()
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "nobody listens on the socket of pong", self.dial)

    def test_a_file(self) -> None:
        with open(self.path, "w", encoding="ascii"):
            pass
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "is no socket", self.dial)

    def test_a_directory(self) -> None:
        os.mkdir(self.path)
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "is no socket", self.dial)

    def test_a_symlink_to_a_live_socket(self) -> None:
        self.serve()
        os.symlink(self.path, self.path + "2")
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "is no socket", lambda: self.dial("pong2"))

    def test_the_brokers_own_socket_under_another_name(self) -> None:
        self.serve()
        os.link(self.path, self.path + "2")
        self.own.add(identity(self.path))
        self.assert_refused(Refusal.DENIED, "a socket of the broker itself", lambda: self.dial("pong2"))

    def test_a_reserved_name(self) -> None:
        self.unix_listener(os.path.join(self.rundir, "ipc"))
        self.assert_refused(Refusal.DENIED, "reserved", lambda: self.dial("ipc"))

    def test_a_name_that_leaves_the_directory(self) -> None:
        self.serve()
        self.assert_refused(Refusal.BAD_REQUEST, "no name of a service", lambda: self.dial("../x/pong"))

    def test_a_path_that_is_too_long(self) -> None:
        self.services.path = os.path.join(self.rundir, "d" * 40)
        self.assert_refused(Refusal.UNKNOWN_SERVICE, "longer than 107 bytes", lambda: self.dial("p" * 64))


class Repeated(DialTestCase):
    """A full backlog is no refusal: it is tried again until it works, or until somebody cancels."""

    def test_a_free_place_is_taken_at_once(self) -> None:
        self.serve()
        self.start()
        self.assertEqual((len(self.results), self.clock.getDelayedCalls()), (1, []))

    def test_a_refusal_is_told_at_once(self) -> None:
        self.start()
        (result,) = self.results
        assert isinstance(result, Refused)
        self.assertEqual((result.word, self.clock.getDelayedCalls()), (Refusal.UNKNOWN_SERVICE, []))

    def test_a_full_backlog_is_told_by_dial_itself(self) -> None:
        self.serve(backlog=0)
        self.fill()
        with self.assertRaises(BlockingIOError):
            self.dial()

    def test_with_a_full_backlog_it_goes_on_until_there_is_a_place(self) -> None:
        listener = self.serve(backlog=0)
        self.fill()
        self.start()
        for pause in (*RETRY_SECONDS, RETRY_SECONDS[-1], RETRY_SECONDS[-1]):
            (call,) = self.clock.getDelayedCalls()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), pause)
            self.clock.advance(pause)
        self.assertEqual(self.results, [])
        self.accept(listener)
        self.clock.advance(RETRY_SECONDS[-1])
        (result,) = self.results
        assert isinstance(result, socket.socket)
        result.sendall(b"x")
        self.assertEqual(self.accept(listener).recv(1), b"x")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_service_that_goes_away_meanwhile_is_a_refusal(self) -> None:
        listener = self.serve(backlog=0)
        self.fill()
        self.start()
        listener.close()
        self.clock.advance(RETRY_SECONDS[0])
        (result,) = self.results
        assert isinstance(result, Refused)
        self.assertEqual(result.word, Refusal.UNKNOWN_SERVICE)

    @needs_root
    def test_the_later_tries_are_made_as_the_client_too(self) -> None:
        listener = self.serve(backlog=0)
        self.fill()
        self.start(CLIENT)
        self.accept(listener)
        self.clock.advance(RETRY_SECONDS[0])
        self.assertEqual(maker_of(self.accept(listener))[1:], (12345, 23456))

    def test_cancelled_it_ends_without_a_word(self) -> None:
        listener = self.serve(backlog=0)
        self.fill()
        self.start().cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.accept(listener)
        self.clock.advance(1)
        self.assertEqual(self.results, [])

    def test_cancelling_twice_is_cancelling(self) -> None:
        self.serve(backlog=0)
        self.fill()
        dial = self.start()
        dial.cancel()
        dial.cancel()
        self.assertEqual((self.results, self.clock.getDelayedCalls()), ([], []))

    def test_without_descriptors_it_is_busy(self) -> None:
        self.serve()
        with no_descriptors():
            self.start()
        (result,) = self.results
        assert isinstance(result, Refused)
        self.assertEqual(result.word, Refusal.BUSY)


class BrokerWithoutRoot(ChildTestCase):
    DIAL = """
import os, sys
from tests.inside import NOBODY, become
from plumberd.effects.actas import ActAs
from plumberd.effects.dial_unix import LocalServices
from plumberd.pure.refusals import Refused
from plumberd.pure.who import LocalWho
become(NOBODY)
services = LocalServices(sys.argv[1], ActAs(), {0, NOBODY}, set())
for who in (LocalWho(NOBODY, NOBODY, (), 1), LocalWho(NOBODY, NOBODY, (7,), 1), LocalWho(0, 0, (), 1)):
    try:
        services.dial("pong", who)
        print("connected")
    except Refused as e:
        print(e.word.value)
"""

    @needs_root
    async def test_it_connects_for_those_with_its_own_ids_alone(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0o755)
        self.unix_listener(os.path.join(folder, "pong"))
        os.chmod(os.path.join(folder, "pong"), 0o666)
        self.assertEqual(await self.run_child(self.DIAL, folder), "connected\nnot-possible\nnot-possible\n")
