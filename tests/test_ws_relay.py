"""plumberd.effects.ws_relay: silence and ends of a WebSocket; what browsers see of them is in test_inbound_web."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from twisted.internet.task import Clock

from plumberd.effects import kernel
from plumberd.effects.pipes import PipePool
from plumberd.effects.poll import Poll
from plumberd.effects.relay import Relay
from plumberd.effects.ws_line import PlainLine
from plumberd.effects.ws_pumps import Session, WsReader, WsWriter
from plumberd.effects.ws_relay import CLOSE_SECONDS, DRAIN_SECONDS, LOST_SECONDS, PING_SECONDS, Lives, WsRelay
from plumberd.framing import Framing
from plumberd.pure.ws_frames import BINARY, CLOSE, FIN, PING, PONG, Form, FrameDecoder, close_payload, frame
from plumberd.pure.ws_messages import Inward, Outward, Subprotocol, form_of
from tests.support import DEADLINE_SECONDS, CleanTestCase, in_thread, read_all, read_exactly, real_reactor, until
from tests.tables import each

MASK = b"abcd"


class RelayTestCase(CleanTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.pipes = PipePool()
        self.addCleanup(self.pipes.close)
        self.clock = Clock()
        self.lives = Lives(self.clock)
        self.addCleanup(self.lives.close)
        self.ended: list[str] = []
        self.peer, wire = self.tcp_pair()
        self.service, ours = self.pair()
        session, line, raw = Session(), PlainLine(wire), Framing.RAW
        self.writer = writer = WsWriter(line, ours, wire, Outward(raw, packets=False, limit_bytes=1 << 20), session)
        form = form_of(Subprotocol.RAW, raw, packets=False)
        decoder = FrameDecoder(masked=True, limit_bytes=1 << 20, form=form)
        reader = WsReader(line, wire, ours, decoder, Inward(raw, packets=False), session, writer)
        more: dict[str, Any] = {"reader": reader, "writer": writer, "session": session, "lives": self.lives}
        self.relay = WsRelay(self.poll, real_reactor, self.pipes, wire, ours, self.done, **more)
        self.addCleanup(self._end)
        self.relay.start()

    def done(self, relay: Relay) -> None:
        self.ended.append(relay.ending)

    async def _end(self) -> None:
        self.relay.abort()
        await until(lambda: self.ended)

    async def turn(self) -> None:
        """Let the reactor turn a few times."""
        count = iter(range(5))
        await until(lambda: next(count) == 4)

    async def echo(self, data: bytes = b"hello") -> None:
        """Let a message through, and one back."""
        self.peer.sendall(frame(FIN | BINARY, data, MASK))
        self.assertEqual(await in_thread(read_exactly, self.service, len(data)), data)
        self.service.sendall(data)
        self.assertEqual(await in_thread(read_exactly, self.peer, len(data) + 2), frame(FIN | BINARY, data))


class Crowded(RelayTestCase):
    """With a service that writes, and a client that does not read yet."""

    async def crowd(self) -> int:
        """Let the service write until nobody takes more; return how many bytes that were."""
        self.service.setblocking(False)
        self.peer.setblocking(False)
        sent = quiet = 0

        def is_full() -> bool:
            nonlocal sent, quiet
            quiet += 1
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += self.service.send(bytes(65536))
                    quiet = 0
            return quiet > 5 and self.writer.holds

        await until(is_full)
        return sent

    def drain(self) -> bytes:
        """Return what has reached the client."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self.peer.recv(1 << 20)
        return found

    async def read(self, count: int, first: bytes = b"") -> int:
        """Read the next *count* bytes of messages, of which *first* has come already; return how many came."""
        decoder = FrameDecoder(masked=False, limit_bytes=1 << 20, form=Form.BYTES)
        got = 0

        def is_whole(data: bytes) -> bool:
            nonlocal got
            found = decoder.feed(data)
            while decoder.is_full:
                found += decoder.feed(b"")
            got += sum(len(piece) for opcode, piece in found if opcode not in (PING, PONG))
            return got >= count

        if not is_whole(first):
            await until(lambda: is_whole(self.drain()))
        self.peer.settimeout(DEADLINE_SECONDS)
        return got

    async def test_who_could_not_be_asked_for_want_of_room_is_not_given_up(self) -> None:
        self.clock.advance(PING_SECONDS)
        sent = await self.crowd()
        self.clock.advance(PING_SECONDS)  # it is time to ask, and there is no room for it
        self.assertEqual(await self.read(sent), sent)
        self.clock.advance(PING_SECONDS)
        self.assertEqual(await in_thread(read_exactly, self.peer, 2), b"\x89\x00")
        self.assertEqual(self.ended, [])

    async def test_who_does_not_read_may_take_its_time_as_long_as_its_kernel_is_heard_of(self) -> None:
        unheard = [LOST_SECONDS - 1]
        self.patch(kernel, "unheard_seconds", lambda sock: unheard[0])
        await self.crowd()
        for _ in range(10):
            self.clock.advance(PING_SECONDS)
        await self.turn()
        self.assertEqual(self.ended, [])
        unheard[0] = LOST_SECONDS + 1
        self.clock.advance(PING_SECONDS)
        await until(lambda: self.ended)
        self.assertEqual(self.ended, ["silent"])

    async def test_a_ping_of_who_reads_slowly_takes_no_turn_of_what_waits(self) -> None:
        sent, first = await self.crowd(), b""
        while self.writer.holds:  # there is room for what waits, and not enough yet for the poll to tell of
            with contextlib.suppress(BlockingIOError):
                first += self.peer.recv(65536)
            self.peer.send(frame(FIN | PING, b"?", MASK))
            await self.turn()
        self.assertEqual(await self.read(sent, first), sent)


class Silence(RelayTestCase):
    async def test_who_is_silent_is_asked_and_who_does_not_answer_is_given_up(self) -> None:
        self.clock.advance(PING_SECONDS)  # it has just begun
        self.clock.advance(PING_SECONDS)
        self.assertEqual(await in_thread(read_exactly, self.peer, 2), b"\x89\x00")
        self.clock.advance(PING_SECONDS)
        await until(lambda: self.ended)
        self.assertEqual(self.ended, ["silent"])
        self.assertEqual(await in_thread(read_all, self.service), b"")

    async def test_who_answers_goes_on(self) -> None:
        self.clock.advance(PING_SECONDS)
        for _ in range(3):
            self.clock.advance(PING_SECONDS)
            self.assertEqual(await in_thread(read_exactly, self.peer, 2), b"\x89\x00")
            self.peer.sendall(frame(FIN | PONG, b"", MASK))
            await self.echo()
            self.clock.advance(PING_SECONDS)
        self.assertEqual(self.ended, [])

    async def test_who_talks_is_not_asked(self) -> None:
        for _ in range(5):
            await self.echo()
            self.clock.advance(PING_SECONDS)
        self.assertEqual(self.ended, [])


class AfterTheUsual(RelayTestCase):
    """What comes when nothing waits goes on by a shorter way: it must end where the long one does."""

    async def test_a_message_and_a_close_that_come_together(self) -> None:
        await self.echo()
        close = frame(FIN | CLOSE, close_payload(1000), MASK)
        self.peer.sendall(frame(FIN | BINARY, b"last", MASK) + close)
        self.assertEqual(await in_thread(read_all, self.service), b"last")
        self.service.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, self.peer), frame(FIN | CLOSE, close_payload(1000)))

    async def test_a_message_and_the_service_s_end_that_come_together(self) -> None:
        await self.echo()
        self.service.sendall(b"last")
        self.service.close()
        wanted = frame(FIN | BINARY, b"last") + frame(FIN | CLOSE, close_payload(1000))
        self.assertEqual(await in_thread(read_exactly, self.peer, len(wanted)), wanted)

    async def test_a_message_and_a_mistake_that_come_together(self) -> None:
        await self.echo()
        self.peer.sendall(frame(FIN | BINARY, b"last", MASK) + frame(FIN | BINARY, b"unmasked"))
        self.assertEqual(await in_thread(read_all, self.service), b"last")
        wanted = frame(FIN | CLOSE, close_payload(1002, "a client's frame without mask"))
        self.assertEqual(await in_thread(read_exactly, self.peer, len(wanted)), wanted)

    async def test_a_mistake_ends_the_connection_behind_our_close(self) -> None:
        await self.echo()
        self.peer.sendall(frame(FIN | BINARY, b"unmasked"))
        said = frame(FIN | CLOSE, close_payload(1002, "a client's frame without mask"))
        self.assertEqual(await in_thread(read_all, self.peer), said)  # nobody waits for the client's Close

    async def test_a_ping_is_answered(self) -> None:
        await self.echo()
        self.peer.sendall(frame(FIN | PING, b"?", MASK))
        self.assertEqual(await in_thread(read_exactly, self.peer, 3), frame(FIN | PONG, b"?"))
        await self.echo(b"and it goes on")

    async def test_more_than_the_other_side_takes_waits_for_it(self) -> None:
        await self.echo()
        data = bytes(range(256)) * 40_000  # beyond every buffer, and beyond what one read brings
        sending = in_thread(self.peer.sendall, frame(FIN | BINARY, data, MASK))
        self.assertEqual(await in_thread(read_exactly, self.service, len(data)), data)
        await sending
        sending = in_thread(self.service.sendall, data)
        got = FrameDecoder(masked=False, limit_bytes=1 << 20, form=Form.BYTES)
        back = b""
        while len(back) < len(data):
            found = got.feed(await in_thread(self.peer.recv, 1 << 20))
            while got.is_full:
                found += got.feed(b"")
            back += b"".join(piece for _, piece in found)
        self.assertEqual(back, data)
        await sending
        await self.echo(b"and it goes on")


class Ends(RelayTestCase):
    @each(("in_order", 1000, "", "closed"), ("of_its_own", 4001, "go away\x1b[2J", "closed with 4001 go away?[2J"))
    async def test_the_log_tells_with_what_the_far_side_has_closed(
        self, _: str, code: int, reason: str, ending: str
    ) -> None:
        self.peer.sendall(frame(FIN | CLOSE, close_payload(code, reason), MASK))
        self.assertEqual(await in_thread(read_all, self.service), b"")
        self.service.close()
        await in_thread(read_all, self.peer)
        self.peer.close()
        await until(lambda: self.ended)
        self.assertEqual(self.ended, [ending])

    async def test_the_far_side_s_close_is_waited_for_and_not_for_ever(self) -> None:
        self.service.close()
        self.assertEqual(await in_thread(read_exactly, self.peer, 4), b"\x88\x02\x03\xe8")
        self.clock.advance(CLOSE_SECONDS - 1)
        await self.turn()
        self.assertEqual(self.ended, [])
        self.clock.advance(CLOSE_SECONDS)
        await until(lambda: self.ended)
        self.assertEqual(self.ended, ["closed"])

    async def test_its_close_ends_it(self) -> None:
        self.service.close()
        await in_thread(read_exactly, self.peer, 4)
        self.peer.sendall(frame(FIN | CLOSE, close_payload(1000), MASK))
        await until(lambda: self.ended)
        self.assertEqual(self.ended, ["closed"])

    async def test_behind_its_close_the_service_has_a_while(self) -> None:
        self.peer.sendall(frame(FIN | CLOSE, close_payload(3000), MASK))
        self.assertEqual(await in_thread(read_all, self.service), b"")
        self.service.sendall(b"bye")
        self.assertEqual(await in_thread(read_exactly, self.peer, 5), b"\x82\x03bye")
        self.clock.advance(DRAIN_SECONDS)
        self.assertEqual(await in_thread(read_all, self.peer), b"\x88\x02\x0b\xb8")
        await until(lambda: self.ended)

    async def test_a_connection_that_breaks_ends_both(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.peer.close()
        await until(lambda: self.ended)
        self.assertEqual(self.ended, ["reset by left"])
        self.assertEqual(await in_thread(read_all, self.service), b"")

    async def test_an_abort_says_that_we_go(self) -> None:
        self.relay.abort()
        self.assertEqual(await in_thread(read_all, self.peer), b"\x88\x02\x03\xe9")
        self.assertEqual(self.ended, ["aborted"])
