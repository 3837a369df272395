"""plumberd.effects.conversation: what holds for one client's connection, whatever it asks."""

from __future__ import annotations

import dataclasses
import functools
import os
import select
import socket
from typing import Any
from unittest import mock

from twisted.internet.task import Clock

from plumberd.effects.conversation import Conversation, Received
from plumberd.effects.deadline import Deadlines
from plumberd.effects.poll import Poll
from plumberd.pure.dialects import DIALECTS, Dialect, Request, Send
from plumberd.pure.limits import Limits
from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase
from tests.support import CleanTestCase, Readers, dial, in_thread, native_frame, native_read, read_all, until
from tests.test_closing import QUICK_SECONDS, lingering, seconds_of

LOOKUP = native_frame({"op": "lookup", "service": "pong"})


class ConversationTestCase(RunningTestCase):
    def start(self, **limits: Any) -> tuple[PlumberdService, Broker]:
        service = self.run_broker(limits=Limits(**limits))
        assert service.broker is not None
        self.serve(service.settings.rundir, "pong")
        return service, service.broker

    def client(self, service: PlumberdService, name: str = "plumberd") -> socket.socket:
        return self.owned(dial(service.settings.rundir, name))


class Unread(ConversationTestCase):
    async def test_a_descriptor_behind_a_shut_connection_is_still_on_the_account(self) -> None:
        service, broker = self.start(unread_descriptors_per_uid=4)
        for count in range(1, 5):
            sock = self.client(service)
            sock.sendall(LOOKUP)
            await until(lambda count=count: len(self.outcomes) == count)  # type: ignore[misc]
            sock.shutdown(socket.SHUT_RDWR)
        await until(lambda: broker.conversations == 0)
        self.assertEqual(broker.unread.active, 4)

    async def test_a_descriptor_whose_client_has_really_gone_is_not(self) -> None:
        service, broker = self.start()
        sock = self.client(service)
        sock.sendall(LOOKUP)
        await until(lambda: self.outcomes)
        sock.close()
        await until(lambda: broker.conversations == 0)
        self.assertEqual(broker.unread.active, 0)

    async def test_nothing_is_sent_before_the_descriptor_was_taken(self) -> None:
        service, _ = self.start()
        sock = self.client(service)
        sock.sendall(LOOKUP + LOOKUP)
        await until(lambda: self.outcomes)
        self.assertEqual(len(self.outcomes), 1)
        for _ in range(2):
            answer, fds = await in_thread(native_read, sock)
            self.assertTrue(answer["ok"])
            for fd in fds:
                os.close(fd)
        await until(lambda: len(self.outcomes) == 2)


class Order(ConversationTestCase):
    async def test_requests_before_a_broken_one_are_answered_first(self) -> None:
        service, _ = self.start()
        sock = self.client(service)
        sock.sendall(LOOKUP + native_frame({"op": "status", "id": 1}) + b"\xff\xff\xff\xff")
        answer, fds = await in_thread(native_read, sock)
        self.assertTrue(answer["ok"])
        for fd in fds:
            os.close(fd)
        self.assertEqual((await in_thread(native_read, sock))[0]["id"], 1)
        self.assertEqual((await in_thread(native_read, sock))[0]["error"], "bad-request")
        self.assertEqual(await in_thread(read_all, sock), b"")

    async def test_a_large_request_in_many_reads_is_understood(self) -> None:
        service, _ = self.start()
        sock = self.client(service)
        routes = ";".join(f"other{n} tcp://h{n}.example/x" for n in range(1500))
        sock.sendall(native_frame({"op": "lookup", "service": "pong", "routes": routes}))
        answer, fds = await in_thread(native_read, sock)
        self.assertTrue(answer["ok"], answer)
        for fd in fds:
            os.close(fd)

    async def test_a_client_that_never_reads_its_answers_is_dropped(self) -> None:
        service, broker = self.start(handshake_seconds=0.2)
        sock = self.client(service)
        sock.sendall(native_frame({"op": "status"}) * 50)
        await until(lambda: broker.conversations == 0)


class QuickClient(socket.socket):
    """Our end of a connection whose client has taken and closed each descriptor before we get to run again."""

    client: socket.socket

    def sendmsg(self, *args: Any) -> int:
        sent = super().sendmsg(*args)
        _, fds, _, _ = socket.recv_fds(self.client, sent, 1)
        for fd in fds:
            os.close(fd)
        return sent


class Closing(CleanTestCase):
    def test_a_client_that_closes_its_copy_first_lets_us_wait_for_no_linger(self) -> None:
        poll = Poll(Readers(), Clock())  # type: ignore[arg-type]
        self.addCleanup(poll.close)
        client, ours = self.pair()
        sock = QuickClient(fileno=ours.detach())
        sock.client = client
        nobody = mock.Mock()
        patience = Deadlines(Clock(), 1.0)
        conversation = Conversation(
            poll, sock, DIALECTS["native"], patience, 1000, asked=nobody, broken=nobody, gone=nobody
        )
        self.addCleanup(conversation.close)
        handed_over, peer = lingering(self, 3600)
        grant = functools.partial(conversation.grant, Request("lookup", "pong"))
        self.assertLess(seconds_of(lambda fd: grant(fd, "locked", "", nobody), handed_over.detach()), QUICK_SECONDS)
        poll_peer = select.poll()
        poll_peer.register(peer, select.POLLIN)
        self.assertTrue(poll_peer.poll(QUICK_SECONDS * 1000), "nothing was sent, so there was nothing to wait for")


class PushingTestCase(CleanTestCase):
    """A conversation alone, whose clock and rounds are the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        readers: Any = Readers()
        self.poll = Poll(readers, self.clock)
        self.addCleanup(self.poll.close)
        self.patience = Deadlines(self.clock, 5.0)
        self.addCleanup(self.patience.close)
        self.asked: list[Received] = []
        self.told: list[object] = []

    def converse(
        self, received: Received | None = None, dialect: Dialect = DIALECTS["native"]
    ) -> tuple[Conversation, socket.socket]:
        """Begin; return it, and the client's end."""
        client, ours = self.pair()
        ours.setblocking(False)
        client.setblocking(False)
        conversation = Conversation(
            self.poll,
            ours,
            dialect,
            self.patience,
            1000,
            asked=lambda _, received: self.asked.append(received),
            broken=lambda *_: self.told.append("broken"),
            gone=lambda _: self.told.append("gone"),
        )
        self.addCleanup(conversation.close)
        conversation.start(received)
        return conversation, client

    def serving(self) -> tuple[Conversation, socket.socket]:
        """Return one that may be pushed to, and tells when it may."""
        conversation, client = self.converse()
        conversation.serve(lambda: self.told.append("idle"))
        self.turn()
        return conversation, client

    def turn(self) -> None:
        """Let everything that is ready be seen."""
        for _ in range(3):
            self.poll.doRead()
            self.clock.advance(0)

    def push(self, conversation: Conversation, data: bytes = b"unasked") -> int:
        """Push a pipe's end; return the other one."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        conversation.push(Send(data, descriptor=True), writing, self.told.append)
        return reading

    def take(self, client: socket.socket) -> tuple[bytes, int]:
        """Take what was sent, and how many descriptors came with it."""
        data, fds, _, _ = socket.recv_fds(client, 100, 4)
        for fd in fds:
            os.close(fd)
        return data, len(fds)


class Pushing(PushingTestCase):
    def test_what_is_pushed_comes_with_its_descriptor_and_who_pushed_is_told(self) -> None:
        conversation, client = self.serving()
        self.assertTrue(conversation.is_resting)
        self.push(conversation)
        self.assertFalse(conversation.is_resting)
        self.assertEqual(self.take(client), (b"unasked", 1))
        self.told.clear()
        self.turn()
        self.assertEqual(self.told, [True, "idle"])
        self.assertTrue(conversation.is_resting)

    def test_it_is_idle_again_only_when_it_was_taken(self) -> None:
        conversation, client = self.serving()
        self.push(conversation)
        self.told.clear()
        self.turn()
        self.assertEqual((self.told, conversation.is_resting), ([], False))
        self.take(client)
        self.turn()
        self.assertEqual(self.told, [True, "idle"])

    def test_what_is_pushed_when_it_is_idle_follows_at_once(self) -> None:
        conversation, client = self.converse()
        left = [b"first", b"second", b"third"]

        def idle() -> None:
            if left:
                self.push(conversation, left.pop(0))

        conversation.serve(idle)
        client.sendall(native_frame({"op": "status"}))
        self.turn()
        conversation.answer(b"the answer")
        got = []
        for _ in range(4):
            got.append(self.take(client))
            self.turn()
        self.assertEqual(got, [(b"the answer", 0), (b"first", 1), (b"second", 1), (b"third", 1)])

    def test_a_request_behind_it_waits_until_it_was_taken(self) -> None:
        conversation, client = self.serving()
        self.push(conversation)
        client.sendall(native_frame({"op": "status"}))
        self.turn()
        self.assertEqual(self.asked, [])
        self.take(client)
        self.turn()
        self.assertEqual([received.request for received in self.asked], [Request("status")])
        self.assertFalse(conversation.is_resting)

    def test_nothing_is_idle_while_a_request_is_answered(self) -> None:
        conversation, client = self.serving()
        self.told.clear()
        client.sendall(native_frame({"op": "status"}))
        self.turn()
        conversation.answer(b"an answer")
        self.turn()
        self.assertEqual((self.told, conversation.is_resting), ([], False))
        self.take(client)
        self.turn()
        self.assertEqual((self.told, conversation.is_resting), (["idle"], True))

    def test_one_that_is_not_taken_in_time_ends_it(self) -> None:
        conversation, _ = self.serving()
        self.push(conversation)
        self.told.clear()
        self.clock.advance(6.0)
        self.assertEqual(self.told, [False, "gone"])
        self.assertTrue(conversation.left_unread)

    def test_one_whose_client_has_hung_up_is_told_so(self) -> None:
        conversation, client = self.serving()
        self.push(conversation)
        client.close()
        self.told.clear()
        self.turn()
        self.assertEqual(self.told[-1], "gone")
        self.assertFalse(conversation.left_unread)

    def test_one_for_a_client_that_has_gone_already_is_closed(self) -> None:
        conversation, client = self.serving()
        client.close()
        self.told.clear()
        reading = self.push(conversation)
        self.assertEqual((self.told, os.read(reading, 1)), ([False, "gone"], b""))

    def test_behind_the_end_it_is_closed_and_told_at_once(self) -> None:
        conversation, _ = self.serving()
        conversation.close()
        self.told.clear()
        reading = self.push(conversation)
        self.assertEqual((self.told, os.read(reading, 1)), ([False], b""))
        self.assertEqual((conversation.is_resting, self.patience.is_set(conversation)), (False, False))

    def test_a_queue_that_is_full_ends_it(self) -> None:
        conversation, _ = self.serving()
        conversation.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.told.clear()
        self.push(conversation, b"x" * 100_000)
        self.assertEqual(self.told, [False, "gone"])


class Serving(PushingTestCase):
    def claiming(self) -> tuple[Conversation, socket.socket]:
        """Return a conversation that serves, and has told its client so."""
        conversation, client = self.converse()
        client.sendall(native_frame({"op": "serve", "service": "pong"}))
        self.turn()
        conversation.serve(lambda: None)
        conversation.answer(b"an answer")
        self.take(client)
        self.turn()
        return conversation, client

    def test_who_serves_may_ask_nothing_for_as_long_as_it_likes(self) -> None:
        conversation, client = self.claiming()
        self.assertFalse(self.patience.is_set(conversation))
        self.clock.advance(1000.0)
        self.assertEqual(self.told, [])
        self.assertTrue(conversation.is_resting)

    def test_who_does_not_is_hung_up_on(self) -> None:
        conversation, client = self.converse()
        client.sendall(native_frame({"op": "status"}))
        self.turn()
        conversation.answer(b"an answer")
        self.take(client)
        self.turn()
        self.clock.advance(6.0)
        self.assertEqual(self.told, ["gone"])

    def test_a_request_that_has_begun_has_its_deadline_here_too(self) -> None:
        conversation, client = self.converse()
        request = native_frame({"op": "serve", "service": "pong"})
        client.sendall(request + request[:6])
        self.turn()
        conversation.serve(lambda: None)
        conversation.answer(b"an answer")
        self.take(client)
        self.turn()
        self.clock.advance(6.0)
        self.assertEqual(self.told, ["broken"])

    def test_one_that_begins_while_it_rests_has_its_deadline_too(self) -> None:
        conversation, client = self.claiming()
        client.sendall(native_frame({"op": "status"})[:6])
        self.turn()
        self.clock.advance(6.0)
        self.assertEqual(self.told, ["broken"])

    def test_its_end_of_sending_is_the_end(self) -> None:
        _, client = self.serving()
        client.shutdown(socket.SHUT_WR)
        self.told.clear()
        self.turn()
        self.assertEqual(self.told, ["gone"])


class Beginning(PushingTestCase):
    """A conversation that begins with a request which came another way."""

    ONE_ANSWER = dataclasses.replace(DIALECTS["native"], conversation=False)

    def test_that_is_asked_first_with_its_sender(self) -> None:
        received = Received(Request("status"), (1, 2, 3))
        self.converse(received, self.ONE_ANSWER)
        self.assertEqual(self.asked, [received])

    def test_it_ends_behind_the_answer(self) -> None:
        conversation, client = self.converse(Received(Request("status"), None), self.ONE_ANSWER)
        conversation.answer(b"an answer")
        self.assertEqual(self.told, [])
        self.assertEqual(self.take(client), (b"an answer", 0))
        self.turn()
        self.assertEqual((self.told, client.recv(1)), (["gone"], b""))

    def test_what_comes_over_it_is_not_looked_at(self) -> None:
        conversation, client = self.converse(Received(Request("status"), None), self.ONE_ANSWER)
        client.sendall(native_frame({"op": "lookup", "service": "pong"}))
        self.turn()
        conversation.answer(b"an answer")
        self.take(client)
        self.turn()
        self.assertEqual((len(self.asked), self.told), (1, ["gone"]))

    def test_a_client_that_hangs_up_before_the_answer_is_gone(self) -> None:
        _, client = self.converse(Received(Request("status"), None), self.ONE_ANSWER)
        client.close()
        self.turn()
        self.assertEqual(self.told, ["gone"])

    def test_an_answer_that_is_not_taken_in_time_is_the_end(self) -> None:
        conversation, _ = self.converse(Received(Request("status"), None), self.ONE_ANSWER)
        conversation.answer(b"an answer")
        self.clock.advance(6.0)
        self.assertEqual(self.told, ["gone"])


class Senders(ConversationTestCase):
    async def test_a_child_that_inherited_the_connection_is_not_taken_for_its_parent(self) -> None:
        service, _ = self.start()
        sock = self.client(service)
        sock.settimeout(None)

        def child() -> None:
            import subprocess
            import sys

            code = f"import os;os.write({sock.fileno()}, {LOOKUP!r})"
            subprocess.run([sys.executable, "-c", code], pass_fds=[sock.fileno()], check=True, timeout=20)

        await in_thread(child)
        answer, _ = await in_thread(native_read, sock)
        self.assertEqual(answer["error"], "denied")
        self.assertIn("confined", answer["reason"])
