"""plumberd.commands.forward: UDP ports that lead to services, each sender with a connection of its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd import client
from plumberd.commands import forward
from plumberd.commands.forward import (
    IDLE_SECONDS,
    MOST_SENDERS,
    WAITING,
    Forwarder,
    ForwardError,
    Forwarding,
    bind,
    parse_forwarding,
)
from plumberd.effects.kernel import unread_bytes
from tests.fake_broker import grant
from tests.plumb_case import PlumbTestCase
from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread, until
from tests.tables import each
from tests.test_docs import section


class Parsed(SynchronousTestCase):
    @each(
        ("53=resolver", Forwarding("127.0.0.1", 53, "resolver")),
        ("0=x", Forwarding("127.0.0.1", 0, "x")),
        ("127.0.0.2:65535=a.b", Forwarding("127.0.0.2", 65535, "a.b")),
        ("[::1]:53=resolver", Forwarding("::1", 53, "resolver")),
        ("53=udp://192.0.2.1:53?framing=raw", Forwarding("127.0.0.1", 53, "udp://192.0.2.1:53?framing=raw")),
    )
    def test_a_port_and_where_it_leads(self, text: str, forwarding: Forwarding) -> None:
        self.assertEqual(parse_forwarding(text), forwarding)

    @each(("",), ("53",), ("53=",), ("=x",), ("65536=x",), ("-1=x",), ("x=y",), ("host:53=x",), ("[::1=x",), ("٣=x",))
    def test_what_is_none_is_told_with_an_example(self, text: str) -> None:
        with self.assertRaises(ForwardError) as caught:
            parse_forwarding(text)
        self.assertIn("such as 53=resolver", str(caught.exception))

    @each(("65536",), ("99999",), ("9" * 5000,))
    def test_of_a_port_that_there_is_not_the_range_is_told(self, number: str) -> None:
        with self.assertRaises(ForwardError) as caught:
            parse_forwarding(f"{number}=x")
        self.assertEqual(str(caught.exception), f"{number}=x: wanted a port from 0 to 65535, such as 53=resolver")

    def test_it_is_shown_with_its_address(self) -> None:
        self.assertEqual(str(Forwarding("::1", 53, "x")), "udp [::1]:53 leads to x")

    def test_its_limits_are_those_of_the_document(self) -> None:
        text = section("plumb.md", "plumb forward")
        self.assertIn(f"in {IDLE_SECONDS:g} seconds", text)
        self.assertIn(f"more than {MOST_SENDERS} ", text)


def echo(sock: socket.socket) -> None:
    """Send every packet back."""
    while data := sock.recv(65536):
        sock.send(data)


def echo_one(sock: socket.socket) -> None:
    """Send one packet back, and end."""
    sock.send(sock.recv(100))


class Carried(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.gone: list[str] = []

    def forward(
        self, serve: Callable[[socket.socket], None] = echo, *, begins: threading.Event | None = None, **options: Any
    ) -> int:
        """Forward a port to services that *serve*, once that *begins*; return it."""
        port = bind(Forwarding("127.0.0.1", 0, "x"))
        threads: list[threading.Thread] = []

        def connect(target: str) -> socket.socket:
            self.asked.append(target)
            if begins is not None:
                begins.wait(DEADLINE_SECONDS)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.settimeout(DEADLINE_SECONDS)

            def run() -> None:
                with ours:
                    serve(ours)
                self.gone.append(target)

            threads.append(threading.Thread(target=run))
            threads[-1].start()
            return theirs

        number: int = port.getsockname()[1]
        self.serve(Forwarder(options.pop("connect", connect), **options), port, threads)
        return number

    def serve(self, forwarder: Forwarder, port: socket.socket, threads: list[threading.Thread]) -> None:
        self.forwarder = forwarder
        self.port = port
        reader, writer = os.pipe()
        serving = threading.Thread(target=forwarder.serve, args=([(port, "service")], reader))
        serving.start()

        async def stop() -> None:
            os.write(writer, b"x")
            await in_thread(serving.join)
            for thread in threads:
                await in_thread(thread.join)
            for fd in (reader, writer):
                os.close(fd)
            port.close()

        self.addCleanup(stop)

    def sender(self, port: int) -> socket.socket:
        """Return a socket that sends there."""
        sock = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", port))
        return sock

    async def all_is_read(self) -> None:
        """Wait until the forwarder has read everything that was sent."""
        await until(lambda: not unread_bytes(self.port.fileno()))

    async def test_each_sender_has_its_own_connection_and_its_own_answers(self) -> None:
        port = self.forward()
        senders = [self.sender(port) for _ in range(3)]
        for turn in range(2):
            for number, sender in enumerate(senders):
                sender.send(b"%d %d" % (turn, number))
            for number, sender in enumerate(senders):
                self.assertEqual(await in_thread(sender.recv, 100), b"%d %d" % (turn, number))
        self.assertEqual(self.asked, ["service"] * 3)

    async def test_what_comes_before_the_connection_waits_as_far_as_there_is_room(self) -> None:
        go = threading.Event()
        sender = self.sender(self.forward(begins=go))
        for number in range(WAITING + 10):
            sender.send(bytes((number,)))
        await self.all_is_read()
        go.set()
        got = [(await in_thread(sender.recv, 100))[0] for _ in range(WAITING)]
        self.assertEqual(got[:WAITING], [*range(WAITING)])

    async def test_a_sender_that_is_silent_is_given_up_and_begins_anew(self) -> None:
        sender = self.sender(self.forward(idle_seconds=0.5))
        for turn in (1, 2):
            sender.send(b"x")
            self.assertEqual(await in_thread(sender.recv, 100), b"x")
            await until(lambda: len(self.gone) == turn)  # noqa: B023
        self.assertEqual(len(self.asked), 2)

    async def test_of_too_many_the_one_that_was_silent_longest_is_given_up(self) -> None:
        port = self.forward(most=2)
        senders = [self.sender(port) for _ in range(3)]
        for sender in (senders[0], senders[1], senders[0], senders[2]):
            sender.send(b"x")
            self.assertEqual(await in_thread(sender.recv, 100), b"x")
        await until(lambda: len(self.gone) == 1)
        senders[0].send(b"still")
        self.assertEqual(await in_thread(senders[0].recv, 100), b"still")
        self.assertEqual(len(self.asked), 3)

    async def test_as_long_as_too_many_lookups_last_new_senders_have_none(self) -> None:
        go = threading.Event()
        begun: list[str] = []

        def slowly(target: str) -> socket.socket:
            begun.append(target)
            go.wait(DEADLINE_SECONDS)
            raise client.Refused("denied", "too late")

        self.patch(forward, "complain", lambda text: None)
        port = self.forward(connect=slowly, most=2)
        for _ in range(20):
            self.sender(port).send(b"x")
        await until(lambda: len(begun) >= 4)
        for _ in range(20):
            self.sender(port).send(b"x")
        await self.all_is_read()  # what is read when there is room begins a lookup
        go.set()
        await until(lambda: not self.forwarder._live)
        self.assertLess(len(begun), 10)
        await until(lambda: self.sender(port).send(b"x") and len(begun) >= 5)

    async def test_descriptors_beyond_1024_are_waited_for_too(self) -> None:
        for _ in range(1100):
            self.addCleanup(os.close, os.dup(0))
        sender = self.sender(self.forward())
        for message in (b"one", b"two"):
            sender.send(message)
            self.assertEqual(await in_thread(sender.recv, 100), message)
        self.assertEqual(len(self.asked), 1)

    async def test_without_a_thread_the_datagram_is_lost_and_the_next_one_is_not(self) -> None:
        told: list[str] = []
        self.patch(forward, "complain", lambda text: told.append(str(text)))
        sender = self.sender(self.forward())
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
            sender.send(b"x")
            await until(lambda: told)
        self.assertEqual(told, ["no thread for another sender: can't start new thread"])
        sender.send(b"y")
        self.assertEqual(await in_thread(sender.recv, 100), b"y")

    async def test_a_service_that_ends_leaves_the_next_datagram_a_new_one(self) -> None:
        sender = self.sender(self.forward(echo_one))
        for _ in range(2):
            sender.send(b"x")
            self.assertEqual(await in_thread(sender.recv, 100), b"x")
            await until(lambda: not self.forwarder._senders)
        self.assertEqual(len(self.asked), 2)

    async def test_an_empty_datagram_ends_nothing(self) -> None:
        sender = self.sender(self.forward())
        sender.send(b"")
        sender.send(b"x")
        self.assertEqual(await in_thread(sender.recv, 100), b"x")

    async def test_a_refusal_is_told_once_in_a_row(self) -> None:
        told: list[str] = []
        tried: list[str] = []
        self.patch(forward, "complain", lambda text: told.append(str(text)))

        def refuse(target: str) -> socket.socket:
            tried.append(target)
            raise client.Refused("denied", "rule 1 denies it")

        port = self.forward(connect=refuse)
        for turn in (1, 2, 3):
            self.sender(port).send(b"x")
            await until(lambda: len(tried) == turn and not self.forwarder._live)  # noqa: B023
        self.assertEqual(told, ["service: denied: rule 1 denies it"])


class Command(PlumbTestCase):
    async def test_it_tells_the_port_and_carries(self) -> None:
        requests: list[dict[str, Any]] = []

        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            requests.append(request)
            given, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            grant(sock, given)
            with ours:
                ours.settimeout(DEADLINE_SECONDS)
                echo(ours)

        rundir = self.broker(answer)
        child = self.plumb("--rundir", rundir, "forward", "0=resolver")
        line = await in_thread(child.line)
        self.assertTrue(line.startswith("udp 127.0.0.1:") and line.endswith(" leads to resolver"), line)
        sender = self.owned(socket.socket(type=socket.SOCK_DGRAM))
        sender.connect(("127.0.0.1", int(line.split()[1].rpartition(":")[2])))
        sender.send(b"hello")
        self.assertEqual(await in_thread(sender.recv, 100), b"hello")
        self.assertEqual((requests[0]["service"], requests[0]["type"]), ("resolver", "seqpacket"))
        child.end()

    async def test_a_port_that_is_taken_and_words_that_make_no_sense_are_errors(self) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            status, _, err = await self.finished("forward", f"{taken.getsockname()[1]}=x")
        self.assertEqual((status, "Address already in use" in err), (2, True))
        status, _, err = await self.finished("forward", "nonsense")
        self.assertEqual((status, "wanted [ADDRESS:]PORT=SERVICE|URI" in err), (2, True))
