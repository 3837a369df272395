"""plumberd.effects.conversation: what holds for one client's connection, whatever it asks."""

from __future__ import annotations

import functools
import os
import select
import socket
from typing import Any
from unittest import mock

from twisted.internet.task import Clock

from plumberd.effects.conversation import Conversation
from plumberd.effects.deadline import Deadlines
from plumberd.effects.poll import Poll
from plumberd.pure.dialects import DIALECTS, Request
from plumberd.pure.limits import Limits
from plumberd.wiring.broker import Broker
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
        self.assertTrue(poll_peer.poll(0), "nothing was sent, so there was nothing to wait for")


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
