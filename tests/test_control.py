"""plumberd.effects.control: one packet is one request, and its answer goes where it says and nowhere else."""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from typing import Any

from twisted.internet.defer import DeferredList

from plumberd.effects.closing import Closer
from plumberd.effects.control import A_ROUND, MOST_DESCRIPTORS, ControlSocket
from plumberd.effects.credentials import Sender
from plumberd.effects.kernel import is_untaken
from plumberd.effects.poll import Poll
from plumberd.pure.limits import Limits
from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.service import PlumberdService
from tests.children import ChildTestCase
from tests.holders import Control, control_of, last_answer
from tests.running import QUICK, RunningTestCase
from tests.support import (
    CleanTestCase,
    dial,
    in_thread,
    native_ask,
    native_frame,
    no_descriptors,
    read_all,
    real_reactor,
    until,
)
from tests.tables import each
from tests.test_closing import QUICK_SECONDS, lingering

LIMIT = 1000


class ControlTestCase(CleanTestCase):
    """Our end alone, with whatever is asked kept."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.closer = Closer(real_reactor)
        self.addCleanup(until, lambda: not self.closer.active)
        self.asked: list[tuple[bytes, Sender | None]] = []
        self.socks: list[socket.socket] = []
        self.ended = 0

    def control(self) -> Control:
        """Start our end; return the other one."""

        def take(sock: socket.socket, payload: bytes, sender: Sender | None) -> None:
            self.was_blocking = sock.getblocking()
            self.socks.append(self.owned(sock))
            self.asked.append((payload, sender))

        def end(control: ControlSocket) -> None:
            self.ended += 1

        self.ours = control = ControlSocket(self.poll, LIMIT, take, end, self.closer)
        self.addCleanup(control.close)
        control.start()
        return Control(self.owned(socket.socket(fileno=control.theirs.detach())))

    async def check_unanswered(self, control: Control, payload: bytes, *fds: int) -> None:
        """Send what is no request: nobody is asked, and what is sent next is asked as ever."""
        control.send(payload, *fds)
        control.begin_with(b"next").close()
        await until(lambda: self.asked)
        self.assertEqual([payload for payload, _ in self.asked], [b"next"])


class Packets(ControlTestCase):
    async def test_a_packet_brings_its_sender_and_where_its_answer_goes(self) -> None:
        with self.control().begin_with(b"a request") as sock:
            await until(lambda: self.asked)
            self.assertEqual(self.asked, [(b"a request", (os.getpid(), os.geteuid(), os.getegid()))])
            self.assertFalse(self.was_blocking)
            self.assertFalse(os.get_inheritable(self.socks[0].fileno()))
            self.socks[0].send(b"an answer")
            self.assertEqual(sock.recv(100), b"an answer")

    async def test_packets_that_wait_already_are_read(self) -> None:
        control = self.control()
        for number in range(3 * A_ROUND):
            control.begin_with(b"%d" % number).close()
        await until(lambda: len(self.asked) == 3 * A_ROUND)
        self.assertEqual([payload for payload, _ in self.asked], [b"%d" % n for n in range(3 * A_ROUND)])

    async def test_a_request_as_long_as_the_limit_is_taken(self) -> None:
        self.control().begin_with(b"x" * LIMIT).close()
        await until(lambda: self.asked)
        self.assertEqual(self.asked[0][0], b"x" * LIMIT)

    async def test_a_longer_one_is_not(self) -> None:
        control = self.control()
        left, right = self.pair()
        await self.check_unanswered(control, b"x" * (LIMIT + 1), right.fileno())
        right.close()
        self.assertEqual(await in_thread(read_all, left), b"")

    async def test_an_empty_packet_is_neither_a_request_nor_the_end(self) -> None:
        control = self.control()
        await self.check_unanswered(control, b"")
        self.assertEqual(self.ended, 0)

    async def test_an_empty_packet_with_a_descriptor_is_no_request(self) -> None:
        left, right = self.pair()
        await self.check_unanswered(self.control(), b"", right.fileno())
        right.close()
        self.assertEqual(await in_thread(read_all, left), b"")

    async def test_a_flood_lets_others_have_their_turn(self) -> None:
        control = self.control()
        for _ in range(4 * A_ROUND):
            control.begin_with(b"flood").close()
        rounds = []

        def one() -> None:
            rounds.append(len(self.asked))
            if len(self.asked) < 4 * A_ROUND:
                real_reactor.callLater(0, one)

        real_reactor.callLater(0, one)
        await until(lambda: len(self.asked) == 4 * A_ROUND and rounds[-1] == 4 * A_ROUND)
        self.assertLessEqual(max(b - a for a, b in itertools.pairwise(rounds)), 2 * A_ROUND)


class Descriptors(ControlTestCase):
    """What is no end of a fresh pair is closed, and nobody is asked. Each test checks that nothing is left open."""

    async def test_a_packet_without_any_is_not_answered(self) -> None:
        await self.check_unanswered(self.control(), b"where to?")

    async def test_one_with_two_is_not(self) -> None:
        left, right = self.pair()
        await self.check_unanswered(self.control(), b"x", left.fileno(), right.fileno())

    async def test_one_with_as_many_as_there_can_be_is_not(self) -> None:
        _, right = self.pair()
        await self.check_unanswered(self.control(), b"x", *[right.fileno()] * MOST_DESCRIPTORS)

    async def test_a_file_is_not_written_into(self) -> None:
        path = os.path.join(self.folder(), "file")
        with open(path, "wb") as file:
            await self.check_unanswered(self.control(), b"x", file.fileno())
        self.assertEqual(os.path.getsize(path), 0)

    @each(
        ("packets", socket.AF_UNIX, socket.SOCK_SEQPACKET),
        ("datagrams", socket.AF_UNIX, socket.SOCK_DGRAM),
        ("unconnected", socket.AF_UNIX, socket.SOCK_STREAM),
        ("tcp", socket.AF_INET, socket.SOCK_STREAM),
        ("udp", socket.AF_INET, socket.SOCK_DGRAM),
    )
    async def test_a_socket_of_another_kind_is_not(self, _: str, family: int, kind: int) -> None:
        await self.check_unanswered(self.control(), b"x", self.owned(socket.socket(family, kind)).fileno())

    async def test_one_end_of_packets_is_not(self) -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with left, right:
            await self.check_unanswered(self.control(), b"x", right.fileno())

    async def test_its_own_other_end_is_not(self) -> None:
        control = self.control()
        await self.check_unanswered(control, b"x", control.sock.fileno())

    async def test_a_tcp_connection_is_not(self) -> None:
        left, _ = self.tcp_pair()
        await self.check_unanswered(self.control(), b"x", left.fileno())

    async def test_a_listening_socket_is_not(self) -> None:
        listener = self.unix_listener(os.path.join(self.folder(), "s"))
        await self.check_unanswered(self.control(), b"x", listener.fileno())

    @each(("by_path", ""), ("abstract", "\0plumberd-test-"))
    async def test_neither_end_of_a_connection_to_somebody_is(self, _: str, prefix: str) -> None:
        # The broker's bytes would be taken for the broker's own request there.
        path = f"{prefix}{os.getpid()}" if prefix else os.path.join(self.folder(), "s")
        listener = self.unix_listener(path)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            accepted, _ = listener.accept()
            with accepted:
                control = self.control()
                control.send(b"x", sock.fileno())
                await self.check_unanswered(control, b"x", accepted.fileno())

    async def test_where_there_are_no_descriptors_left_the_sender_is_hung_up_on_and_may_ask_again(self) -> None:
        control = self.control()
        left, right = self.pair()
        control.send(b"x", right.fileno())
        right.close()
        with no_descriptors():
            self.poll.doRead()
        self.assertEqual((await in_thread(read_all, left), self.asked), (b"", []))
        control.begin_with(b"again").close()
        await until(lambda: self.asked)
        self.assertEqual(self.asked[0][0], b"again")


class Slow(ControlTestCase):
    """Descriptors whose close takes long; each would otherwise stop everybody."""

    async def test_a_lingering_socket_keeps_who_sent_it_waiting_and_nobody_else(self) -> None:
        slow, quick = self.control(), self.control()
        sock, peer = lingering(self)
        slow.send(b"x", sock.fileno())
        sock.close()
        slow.begin_with(b"behind it").close()
        await until(lambda: self.closer.active)
        began = time.monotonic()
        quick.begin_with(b"quick").close()
        await until(lambda: self.asked)
        self.assertLess(time.monotonic() - began, QUICK_SECONDS)
        self.assertEqual([payload for payload, _ in self.asked], [b"quick"])
        peer.close()  # with bytes unread: a reset, and nothing is waited for any more
        await until(lambda: len(self.asked) == 2)
        self.assertEqual(self.asked[1][0], b"behind it")

    async def test_what_lies_in_the_queue_of_one_that_is_closed_stops_nobody(self) -> None:
        control = self.control()
        socks = [lingering(self) for _ in range(3)]
        for sock, _ in socks:
            control.send(b"x", sock.fileno())
            sock.close()
        began = time.monotonic()
        self.ours.close()
        self.assertLess(time.monotonic() - began, QUICK_SECONDS)
        for _, peer in socks:
            peer.close()
        await until(lambda: not self.closer.active)
        self.assertEqual(self.ended, 1)

    async def test_an_answer_socket_with_something_in_its_queue_is_none(self) -> None:
        control = self.control()
        sock, peer = lingering(self)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(ours, [b"x"], [sock.fileno()])
                sock.close()
                control.send(b"x", theirs.fileno())
            await until(lambda: self.closer.active)
            self.assertEqual(self.asked, [])
            peer.close()
            await until(lambda: not self.closer.active)

    async def test_nothing_can_be_put_into_the_queue_of_an_answer_socket(self) -> None:
        with self.control().begin_with(b"x") as sock:
            await until(lambda: self.asked)
            self.assertRaises(BrokenPipeError, socket.send_fds, sock, [b"x"], [sock.fileno()])
            self.socks[0].send(b"an answer")
            self.assertEqual(sock.recv(100), b"an answer")

    async def test_a_sender_whose_threads_are_busy_is_not_read(self) -> None:
        self.closer = Closer(real_reactor, 1)
        slow, other = self.control(), self.control()
        sock, peer = lingering(self)
        slow.send(b"x", sock.fileno())
        sock.close()
        await until(lambda: self.closer.active)
        other.begin_with(b"later").close()
        turns: list[int] = []
        real_reactor.callLater(0, lambda: real_reactor.callLater(0, turns.append, 1))
        await until(lambda: turns)
        self.assertEqual(self.asked, [])
        peer.close()
        await until(lambda: self.asked)
        self.assertEqual(self.asked[0][0], b"later")


class Ends(ControlTestCase):
    async def test_it_ends_when_the_last_copy_of_the_other_end_is_closed(self) -> None:
        control = self.control()
        copy = control.sock.dup()
        control.sock.close()
        with copy:
            socket.send_fds(copy, [b"no descriptor"], [])
            await until(lambda: not is_untaken(copy.fileno()))
            self.assertEqual(self.ended, 0)
        await until(lambda: self.ended)
        self.assertEqual(self.ended, 1)

    async def test_what_was_asked_before_the_end_is_still_asked(self) -> None:
        control = self.control()
        control.begin_with(b"last words").close()
        control.sock.close()
        await until(lambda: self.ended)
        self.assertEqual([payload for payload, _ in self.asked], [b"last words"])

    async def test_a_half_closed_other_end_is_the_end(self) -> None:
        control = self.control()
        control.sock.shutdown(socket.SHUT_WR)
        await until(lambda: self.ended)
        self.assertEqual(self.ended, 1)

    def test_closing_tells_once_and_closes_what_was_not_given_away(self) -> None:
        ended: list[ControlSocket] = []
        control = ControlSocket(self.poll, LIMIT, lambda *_: None, ended.append, self.closer)
        control.start()
        control.close()
        control.close()
        self.assertEqual(ended, [control])
        self.assertEqual(control.theirs.fileno(), -1)

    async def test_one_that_is_closed_with_packets_waiting_asks_for_nobody_any_more(self) -> None:
        control = self.control()
        for _ in range(2 * A_ROUND):
            control.begin_with(b"x").close()
        await until(lambda: self.asked)
        seen = len(self.asked)
        self.ours.close()
        turns: list[int] = []
        real_reactor.callLater(0, lambda: real_reactor.callLater(0, turns.append, 1))
        await until(lambda: turns)
        self.assertEqual(len(self.asked), seen)


class BrokerTestCase(RunningTestCase):
    def start(self, *rules: str, limits: Limits = QUICK, **settings: Any) -> tuple[PlumberdService, Broker, str]:
        service = self.run_broker(*rules, limits=limits, **settings)
        assert service.broker is not None
        return service, service.broker, service.settings.rundir

    async def control(self, rundir: str, *services: str, routes: str | None = None) -> Control:
        control = await in_thread(control_of, rundir, *services, routes=routes)
        self.owned(control.sock)
        return control


class Shared(BrokerTestCase):
    """Control sockets of a whole broker."""

    async def test_a_lookup_is_answered_over_its_pair_and_there_alone(self) -> None:
        _, broker, rundir = self.start()
        self.serve(rundir, "pong")
        control = await self.control(rundir, "pong")
        answer, sock = await in_thread(control.lookup, "pong", id="mine")
        assert sock is not None
        with sock:
            self.assertEqual((answer["id"], answer["ok"], answer["mode"]), ("mine", True, "local"))
            sock.sendall(b"hello")
            self.assertEqual(await in_thread(sock.recv, 5), b"hello")
        control.sock.setblocking(False)
        self.assertRaises(BlockingIOError, control.sock.recv, 1)
        await until(lambda: broker.conversations == 0)

    async def test_answers_to_many_at_once_never_cross(self) -> None:
        service, _, rundir = self.start()
        names = [f"s{number}" for number in range(20)]
        for name in names:
            self.serve(rundir, name, lambda sock, name=name: sock.sendall(name.encode()))
        control = await self.control(rundir, *names)

        def one(number: int) -> tuple[int, str, bytes]:
            answer, sock = control.lookup(names[number % len(names)], id=number)
            assert sock is not None
            with sock:
                return answer["id"], names[number % len(names)], read_all(sock)

        results = await DeferredList([in_thread(one, number) for number in range(100)])
        self.assertEqual(
            [result for _, result in results],
            [(n, names[n % len(names)], names[n % len(names)].encode()) for n in range(100)],
        )
        self.assertEqual(len([o for o in self.outcomes if o.verdict == "granted"]), 100)
        control.sock.close()
        await self.wait_until_idle(service)

    @each(
        ("no_json", b"lookup pong", "not JSON"),
        ("framed", b"\0\0\0\x0f" + b'{"op":"status"}', "not JSON"),
        ("no_object", b"[]", "no JSON object"),
        ("unknown_op", b'{"op":"destroy"}', "op: wanted one of"),
        ("no_sense", b'{"op":"lookup"}', "service (with routes) or uri alone"),
    )
    async def test_what_makes_no_sense_is_told_so(self, _label: str, payload: bytes, reason: str) -> None:
        _, _, rundir = self.start()
        control = await self.control(rundir, "pong")
        with control.begin_with(payload) as sock:
            answer, _ = await in_thread(last_answer, sock)
        self.assertEqual((answer["ok"], answer["error"]), (False, "bad-request"))
        self.assertIn(reason, answer["reason"])
        self.assertIn(f"pid={os.getpid()}", str(self.outcomes[-1].who))

    async def test_a_request_that_is_too_long_is_hung_up_on(self) -> None:
        _, _, rundir = self.start(limits=Limits(lookup_bytes=500))
        control = await self.control(rundir, "pong")
        with control.begin(op="lookup", service="pong", routes="x" * 500) as sock:
            self.assertEqual(await in_thread(read_all, sock), b"")
        answer, _ = await in_thread(control.lookup, "pong")
        self.assertEqual(answer["error"], "unknown-service")

    async def test_a_connection_to_the_broker_itself_is_no_place_for_an_answer(self) -> None:
        _, broker, rundir = self.start()
        control = await self.control(rundir, "pong")
        for name in ("plumberd", "ipc"):
            with dial(rundir, name) as sock:
                control.send(json.dumps({"op": "lookup", "service": "pong"}).encode(), sock.fileno())
        answer, _ = await in_thread(control.lookup, "pong")
        self.assertEqual(answer["error"], "unknown-service")
        await until(lambda: broker.conversations == 0)
        self.assertEqual([o.verdict for o in self.outcomes], ["unknown-service"])

    async def test_who_hangs_up_cancels_what_was_asked_for(self) -> None:
        service, broker, rundir = self.start()
        listener, port = self.listener()
        control = await self.control(rundir, "x", routes=f"x tcp://127.0.0.1:{port}/x")
        sock = control.begin(op="lookup", service="x")
        await until(lambda: broker.lookups.active)
        sock.close()
        await until(lambda: self.outcomes)
        self.assertEqual([o.verdict for o in self.outcomes], ["gone"])
        listener.close()
        control.sock.close()
        await self.wait_until_idle(service)

    async def test_who_does_not_take_its_answer_is_hung_up_on(self) -> None:
        service, broker, rundir = self.start(limits=Limits(handshake_seconds=0.5))
        self.serve(rundir, "pong")
        control = await self.control(rundir, "pong")
        with control.begin(op="lookup", service="pong"):
            await until(lambda: self.outcomes)
            await until(lambda: broker.conversations == 0)
            self.assertEqual(broker.unread.active, 1)  # it lies in a live client's queue
        control.sock.close()


class Counted(BrokerTestCase):
    """A control socket is a connection of who asked for it, and so is each request on it."""

    async def test_they_are_given_back(self) -> None:
        service, broker, rundir = self.start()
        uid = os.geteuid()
        first = await self.control(rundir, "pong")
        second = await self.control(rundir, "pong")
        await until(lambda: broker.connections_by_uid == {uid: 2})
        await in_thread(first.lookup, "pong")
        first.sock.close()
        await until(lambda: broker.connections_by_uid == {uid: 1})
        second.sock.close()
        await until(lambda: broker.connections_by_uid == {})
        self.assertEqual((broker.conversations, broker.controls), (0, 0))

    async def test_one_that_is_held_counts_against_the_limit(self) -> None:
        _, broker, rundir = self.start(limits=Limits(connections_per_uid=2))
        held = await self.control(rundir, "pong")
        await until(lambda: broker.conversations == 0)
        with dial(rundir, "plumberd") as idle:
            await until(lambda: broker.conversations == 1)
            with dial(rundir, "plumberd") as sock:
                self.assertEqual(await in_thread(_end_of, sock), b"")
            idle.close()
        self.assertEqual([o.verdict for o in self.outcomes], ["busy"])
        self.assertIn(f"connections_per_uid=2: uid {os.geteuid()} has so many", self.outcomes[0].reason)
        held.sock.close()
        await until(lambda: broker.connections_by_uid == {})

    async def test_a_control_socket_too_many_names_the_limit(self) -> None:
        _, broker, rundir = self.start(limits=Limits(connections_per_uid=1))
        answer = await in_thread(lambda: native_ask(rundir, op="confine", services=["pong"], control=True)[0])
        self.assertEqual(answer["error"], "busy")
        self.assertIn("connections_per_uid=1", answer["reason"])
        self.assertEqual([o.verdict for o in self.outcomes], ["busy"])
        await until(lambda: broker.connections_by_uid == {})

    async def test_requests_too_many_are_hung_up_on_and_the_next_one_is_served(self) -> None:
        service, broker, rundir = self.start(limits=Limits(connections_per_uid=3))
        listener, port = self.listener()  # accepts, and never answers
        control = await self.control(rundir, "x", "pong", routes=f"x tcp://127.0.0.1:{port}/x")
        await until(lambda: broker.conversations == 0)
        waiting = [control.begin(op="lookup", service="x") for _ in range(2)]
        await until(lambda: broker.conversations == 2)
        with control.begin(op="lookup", service="pong") as sock:
            self.assertEqual(await in_thread(read_all, sock), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["busy"])
        for sock in waiting:
            sock.close()
        await until(lambda: broker.conversations == 0)
        answer, _ = await in_thread(control.lookup, "pong")
        self.assertEqual(answer["error"], "unknown-service")
        listener.close()

    async def test_one_that_its_asker_never_takes_is_forgotten_with_it(self) -> None:
        _, broker, rundir = self.start()
        sock = dial(rundir, "plumberd")
        sock.sendall(native_frame({"op": "confine", "services": ["pong"], "control": True}))
        await until(lambda: broker.controls == 1)
        sock.close()
        await until(lambda: broker.connections_by_uid == {})
        self.assertEqual(broker.controls, 0)


class Stopping(BrokerTestCase):
    async def test_a_broker_that_stops_hangs_up_on_holders_and_on_who_waits(self) -> None:
        service, broker, rundir = self.start()
        listener, port = self.listener()
        control = await self.control(rundir, "x", routes=f"x tcp://127.0.0.1:{port}/x")
        with control.begin(op="lookup", service="x") as sock:
            await until(lambda: broker.lookups.active)
            await service.stopService()
            self.assertEqual(await in_thread(read_all, sock), b"")
        self.assertEqual(control.sock.recv(1), b"")
        with self.assertRaises(OSError):
            control.begin(op="lookup", service="x").close()
        self.assertEqual((broker.controls, dict(broker.connections_by_uid)), (0, {}))
        listener.close()

    async def test_packets_that_wait_when_it_stops_are_closed(self) -> None:
        service, _, rundir = self.start()
        control = await self.control(rundir, "pong")
        socks = [control.begin(op="lookup", service="pong") for _ in range(5)]
        await service.stopService()
        for sock in socks:
            with sock:
                self.assertEqual(await in_thread(_end_of, sock), b"")


class Inherited(BrokerTestCase, ChildTestCase):
    async def test_processes_that_share_it_each_get_their_own_answer(self) -> None:
        _, _, rundir = self.start()
        self.serve(rundir, "pong", lambda sock: sock.sendall(sock.recv(100)[::-1]))
        control = await self.control(rundir, "pong")
        code = (
            "import json,socket,sys\n"
            "control=socket.socket(fileno=int(sys.argv[1]))\n"
            "for turn in range(20):\n"
            "    ours,theirs=socket.socketpair()\n"
            "    request={'op':'lookup','service':'pong','id':sys.argv[2]}\n"
            "    socket.send_fds(control,[json.dumps(request).encode()],[theirs.fileno()])\n"
            "    theirs.close()\n"
            "    data,fds,_,_=socket.recv_fds(ours,4096,1)\n"
            "    assert json.loads(data[4:])['id']==sys.argv[2],data\n"
            "    with socket.socket(fileno=fds[0]) as sock:\n"
            "        sock.sendall(sys.argv[2].encode())\n"
            "        assert sock.recv(100)==sys.argv[2].encode()[::-1]\n"
            "print('done')\n"
        )
        fd = control.sock.fileno()
        children = [self.child(code, fd, f"child {number}", pass_fds=[fd]) for number in range(3)]
        control.sock.close()
        for child in children:
            self.assertEqual(await in_thread(child.finish), (0, "done\n", ""))
        pids = {getattr(o.who, "pid", None) for o in self.outcomes}
        self.assertEqual(pids, {child.pid for child in children})


def _end_of(sock: socket.socket) -> bytes:
    """Read to the end; who is hung up on with bytes unread is reset."""
    try:
        return read_all(sock)
    except ConnectionResetError:
        return b""
