"""plumberd.effects.accept: every connection is taken, also after descriptors ran out."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger

from plumberd.effects import accept
from plumberd.effects.accept import PAUSE_SECONDS, Acceptor
from plumberd.effects.poll import Poll
from tests.support import CleanTestCase, Readers, no_descriptors


class Aborted(socket.socket):
    """A listener whose first connection is gone before it is accepted, and is not the last."""

    aborts = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.aborts:
            self.aborts -= 1
            raise ConnectionAbortedError
        return super().accept()


class AcceptTestCase(CleanTestCase):
    """An acceptor on a UNIX socket, whose rounds and clock are the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.poll = Poll(Readers(), self.clock)  # type: ignore[arg-type]
        self.addCleanup(self.poll.close)
        self.path = os.path.join(self.folder(), "s")
        self.sock = self.unix_listener(self.path)
        self.taken: list[socket.socket] = []

    def acceptor(self, take: Any = None) -> Acceptor:
        self.sock.setblocking(False)
        acceptor = Acceptor(self.poll, self.clock, self.sock, take or self.take)
        acceptor.start()
        self.addCleanup(acceptor.stop)
        return acceptor

    def take(self, sock: socket.socket) -> None:
        self.taken.append(self.owned(sock))
        sock.setblocking(False)

    def connect(self, count: int = 1) -> list[socket.socket]:
        clients = [self.owned(socket.socket(socket.AF_UNIX)) for _ in range(count)]
        for client in clients:
            client.connect(self.path)
        return clients


class Accepting(AcceptTestCase):
    def test_all_that_wait_are_taken_in_their_order(self) -> None:
        self.acceptor()
        for number, client in enumerate(self.connect(3)):
            client.sendall(b"%d" % number)
        self.poll.doRead()
        self.assertEqual([sock.recv(10) for sock in self.taken], [b"0", b"1", b"2"])

    def test_what_is_taken_blocks_until_its_owner_says_otherwise(self) -> None:
        kinds = []

        def take(sock: socket.socket) -> None:
            kinds.append(os.get_blocking(sock.fileno()))
            sock.close()

        self.acceptor(take)
        self.connect()
        self.poll.doRead()
        self.assertEqual(kinds, [True])

    def test_what_is_taken_is_not_inherited(self) -> None:
        self.acceptor()
        self.connect()
        self.poll.doRead()
        self.assertFalse(self.taken[0].get_inheritable())

    def test_a_round_takes_no_more_than_its_share_and_the_next_one_goes_on(self) -> None:
        self.patch(accept, "A_ROUND", 2)
        self.acceptor()
        self.connect(5)
        counts = []
        for _ in range(4):
            self.poll.doRead()
            counts.append(len(self.taken))
        self.assertEqual(counts, [2, 4, 5, 5])

    def test_one_that_is_gone_already_does_not_hold_up_the_next(self) -> None:
        self.sock.close()
        os.unlink(self.path)
        self.sock = self.owned(Aborted(socket.AF_UNIX))
        self.sock.bind(self.path)
        self.sock.listen()
        self.acceptor()
        self.connect(2)
        self.poll.doRead()
        self.assertEqual(len(self.taken), 2)

    def test_one_that_cannot_be_served_is_logged_and_closed_and_the_next_is_taken(self) -> None:
        def take(sock: socket.socket) -> None:
            if not self.taken:
                self.taken.append(sock)
                raise ZeroDivisionError
            self.take(sock)

        self.acceptor(take)
        first, second = self.connect(2)
        self.poll.doRead()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(first.recv(1), b"")
        self.taken[1].sendall(b"x")
        self.assertEqual(second.recv(1), b"x")


class Stopping(AcceptTestCase):
    def test_nobody_is_taken_any_more(self) -> None:
        acceptor = self.acceptor()
        acceptor.stop()
        self.connect()
        self.poll.doRead()
        self.assertEqual(self.taken, [])

    def test_who_was_taken_stays_connected(self) -> None:
        acceptor = self.acceptor()
        (client,) = self.connect()
        self.poll.doRead()
        acceptor.stop()
        client.sendall(b"x")
        self.assertEqual(self.taken[0].recv(1), b"x")

    def test_the_listening_socket_stays_open(self) -> None:
        self.acceptor().stop()
        (client,) = self.connect()
        client.sendall(b"x")
        self.assertEqual(self.owned(self.sock.accept()[0]).recv(1), b"x")

    def test_it_may_be_closed_before(self) -> None:
        acceptor = self.acceptor()
        self.sock.close()
        acceptor.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class NoDescriptors(AcceptTestCase):
    """The limit is lowered for a moment, so that accept fails."""

    def round_without_descriptors(self) -> None:
        """Make a round in which every number is in use."""
        with no_descriptors():
            self.poll.doRead()

    def log(self) -> list[str]:
        """Take what was logged as an error."""
        return [str(f["log_format"]) for f in self.events if f["log_level"].name == "error"]

    def acceptor(self, take: Any = None) -> Acceptor:
        self.events: list[LogEvent] = []
        self.patch(Acceptor, "_log", Logger("test", observer=cast(ILogObserver, self.events.append)))
        return super().acceptor(take)

    def test_accepting_pauses_and_comes_back_and_nobody_is_lost(self) -> None:
        self.acceptor()
        (client,) = self.connect()
        self.round_without_descriptors()
        self.assertEqual(self.taken, [])
        self.poll.doRead()  # it rests: the reactor is not kept busy
        self.assertEqual(self.taken, [])
        self.clock.advance(PAUSE_SECONDS)
        self.poll.doRead()
        self.taken[0].sendall(b"x")
        self.assertEqual(client.recv(1), b"x")

    def test_it_is_logged_once_while_it_lasts(self) -> None:
        self.acceptor()
        self.connect()
        for _ in range(3):
            self.round_without_descriptors()
            self.clock.advance(PAUSE_SECONDS)
        self.assertEqual(self.log(), ["no descriptors left: accepting pauses ({error})"])

    def test_it_is_logged_again_when_it_comes_again(self) -> None:
        self.acceptor()
        for _ in range(2):
            self.connect()
            self.round_without_descriptors()
            self.clock.advance(PAUSE_SECONDS)
            self.poll.doRead()
        self.assertEqual((len(self.log()), len(self.taken)), (2, 2))

    def test_stopping_in_the_pause_leaves_no_delayed_call(self) -> None:
        acceptor = self.acceptor()
        self.connect()
        self.round_without_descriptors()
        acceptor.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.poll.doRead()
        self.assertEqual(self.taken, [])

    def test_any_other_error_is_logged_and_pauses_too(self) -> None:
        self.sock, _ = self.listener()
        acceptor = self.acceptor()
        self.sock.shutdown(socket.SHUT_RDWR)
        self.poll.doRead()
        self.assertEqual(self.log(), ["accepting failed: {error}"])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        acceptor.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
