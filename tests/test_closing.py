"""plumberd.effects.closing: nobody waits for what somebody else has made slow to close."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import time
from typing import Any
from unittest import mock

from plumberd.effects import closing
from plumberd.effects.closing import Closer, close_handed_over
from tests.children import ChildTestCase
from tests.support import CleanTestCase, in_thread, read_all, real_reactor, until

LINGER_SECONDS = 10
"""As long as a plain close of a lingering socket takes, unless its peer goes."""

QUICK_SECONDS = 5
"""Less than that is no waiting, on a busy machine too."""


def lingering(case: CleanTestCase, linger_seconds: int = LINGER_SECONDS) -> tuple[socket.socket, socket.socket]:
    """Return a TCP socket whose close waits, since its peer does not read, and the peer."""
    listener = case.owned(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    sock = socket.create_connection(listener.getsockname())
    peer = case.owned(listener.accept()[0])
    sock.setblocking(False)
    sock.send(bytes(1 << 20))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger_seconds))
    return sock, peer


def seconds_of(close: object, fd: int) -> float:
    """Return how long closing *fd* takes."""
    assert callable(close)
    began = time.monotonic()
    close(fd)
    return time.monotonic() - began


class HandedOver(ChildTestCase):
    def test_a_plain_close_waits_for_the_linger(self) -> None:
        sock, _ = lingering(self, 1)
        self.assertGreater(seconds_of(os.close, sock.detach()), 0.5)

    def test_this_one_does_not(self) -> None:
        sock, peer = lingering(self, 3600)
        self.assertLess(seconds_of(close_handed_over, sock.detach()), QUICK_SECONDS)

    async def test_what_was_sent_arrives_all_the_same(self) -> None:
        sock, peer = lingering(self, 3600)
        unsent = 1 << 20
        peer.setblocking(False)
        close_handed_over(sock.detach())
        peer.settimeout(10)
        got = await in_thread(read_all, peer)
        self.assertEqual(got, bytes(len(got)))
        self.assertGreater(len(got), 2304)
        self.assertLessEqual(len(got), unsent)

    def test_it_closes_and_leaves_no_timer(self) -> None:
        left, right = self.pair()
        close_handed_over(os.dup(left.fileno()))
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))
        fd = left.detach()
        close_handed_over(fd)
        self.assertEqual(right.recv(1), b"")
        self.assertRaises(OSError, os.fstat, fd)

    def test_what_is_closed_already_is_told(self) -> None:
        left, _ = self.pair()
        fd = left.detach()
        os.close(fd)
        self.assertRaises(OSError, close_handed_over, fd)
        self.assertEqual(signal.getitimer(signal.ITIMER_REAL), (0.0, 0.0))

    async def test_another_thread_than_the_main_one_just_closes(self) -> None:
        left, right = self.pair()
        fd = left.detach()
        with mock.patch("signal.setitimer") as setitimer:
            await in_thread(close_handed_over, fd)
        setitimer.assert_not_called()
        self.assertEqual(right.recv(1), b"")

    async def test_somebody_else_s_alarm_is_left_alone(self) -> None:
        out = await self.run_child(
            "import os, signal\n"
            "from plumberd.effects.closing import close_handed_over\n"
            "mine = lambda *_: None\n"
            "signal.signal(signal.SIGALRM, mine)\n"
            "signal.setitimer(signal.ITIMER_REAL, 1000)\n"
            "close_handed_over(os.open('/dev/null', os.O_RDONLY))\n"
            "print(signal.getsignal(signal.SIGALRM) is mine, signal.getitimer(signal.ITIMER_REAL)[0] > 900)\n"
        )
        self.assertEqual(out, "True True\n")

    async def test_an_alarm_that_was_ignored_interrupts_too(self) -> None:
        out = await self.run_child(
            "import signal\n"
            "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
            "from tests.test_closing import HandedOver\n"
            "case = HandedOver('test_this_one_does_not')\n"
            "case.test_this_one_does_not()\n"
            "case.doCleanups()\n"
            "print('quick')\n"
        )
        self.assertEqual(out, "quick\n")


class Aside(CleanTestCase):
    """The threads."""

    def setUp(self) -> None:
        super().setUp()
        self.closer = Closer(real_reactor, 4)
        self.go = threading.Event()
        self.addCleanup(self.go.set)
        self.done: list[str] = []
        self.kept: list[socket.socket] = []

    def slow(self) -> Any:
        """Closing takes until :meth:`finish`."""

        def close(fd: int) -> None:
            self.go.wait()
            os.close(fd)

        return mock.patch.object(closing, "os", mock.Mock(close=close))

    async def finish(self) -> None:
        self.go.set()
        await until(lambda: not self.closer.active)

    def fds(self, count: int) -> list[int]:
        """Return descriptors, each of which is one end of a pair whose other one the test keeps."""
        pairs = [socket.socketpair() for _ in range(count)]
        self.kept += [self.owned(ours) for ours, _ in pairs]
        return [theirs.detach() for _, theirs in pairs]

    def are_closed(self) -> bool:
        """Tell whether all of them are closed; their numbers may be others' by now."""
        poll = select.poll()
        for ours in self.kept:
            poll.register(ours, 0)
        return [events for _, events in poll.poll(0)] == [select.POLLHUP] * len(self.kept)

    async def test_all_are_closed_and_then_it_is_told_in_the_reactor_s_thread(self) -> None:
        fds = self.fds(5)
        threads: list[int] = []
        self.closer.close("a", fds, lambda: threads.append(threading.get_ident()))
        await until(lambda: threads)
        self.assertEqual(threads, [threading.main_thread().ident])
        self.assertTrue(self.are_closed())
        self.assertEqual(self.closer.active, 0)

    async def test_one_that_cannot_be_closed_keeps_the_others_from_nothing(self) -> None:
        first, last = self.fds(2)
        self.closer.close("a", [first, 1 << 30, last], lambda: self.done.append("all"))
        await until(lambda: self.done)
        self.assertTrue(self.are_closed())

    async def test_a_lingering_socket_holds_up_a_thread_alone(self) -> None:
        sock, peer = lingering(self)
        began = time.monotonic()
        self.closer.close("a", [sock.detach()], lambda: self.done.append("slow"))
        self.assertLess(time.monotonic() - began, QUICK_SECONDS)
        self.closer.close("b", self.fds(1), lambda: self.done.append("quick"))
        await until(lambda: self.done)
        self.assertEqual(self.done, ["quick"])
        peer.close()  # with bytes unread, so a reset, which ends the wait
        await until(lambda: not self.closer.active)
        self.assertEqual(self.done, ["quick", "slow"])

    async def test_a_user_whose_threads_are_busy_waits_and_others_do_not(self) -> None:
        with self.slow():
            self.closer.close("a", self.fds(1))
            self.assertFalse(self.closer.has_room("a", lambda: self.done.append("room")))
            self.assertTrue(self.closer.has_room("b", lambda: self.done.append("never")))
            await self.finish()
        self.assertEqual(self.done, ["room"])
        self.assertTrue(self.closer.has_room("a", lambda: self.done.append("never")))

    async def test_all_of_them_busy_leave_room_for_nobody(self) -> None:
        with self.slow():
            for key in "abcd":
                self.closer.close(key, self.fds(1))
            self.assertFalse(self.closer.has_room("e", lambda: self.done.append("room")))
            await self.finish()
        self.assertEqual(set(self.done), {"room"})

    async def test_what_comes_all_the_same_is_closed_when_there_is_room(self) -> None:
        with self.slow():
            first, second = self.fds(2)
            self.closer.close("a", [first], lambda: self.done.append("first"))
            self.closer.close("a", [second], lambda: self.done.append("second"))
            self.assertEqual(self.closer.active, 1)
            self.assertFalse(self.are_closed())
            await self.finish()
        self.assertEqual(self.done, ["first", "second"])
        self.assertTrue(self.are_closed())

    async def test_without_threads_it_is_closed_on_the_spot(self) -> None:
        (fd,) = self.fds(1)
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
            self.closer.close("a", [fd], lambda: self.done.append("done"))
        self.assertTrue(self.are_closed())
        await until(lambda: self.done)
        self.assertEqual(self.closer.active, 0)
