"""plumberd.effects.call: the caller's handshake on a real socket takes its own bytes and no more."""

from __future__ import annotations

import socket
import struct

from plumberd.effects.call import SchemeCall, TcpCall
from plumberd.effects.poll import Poll
from plumberd.pure.carry import carry
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import Uri
from tests.support import CleanTestCase, in_thread, read_all, read_exactly, real_reactor, until


class CallTestCase(CleanTestCase):
    """Calls ``pong`` at a far side that the test plays."""

    def setUp(self) -> None:
        super().setUp()
        self.poll = Poll(real_reactor, real_reactor)
        self.addCleanup(self.poll.close)
        self.results: list[Refused | None] = []

    def call(self) -> tuple[socket.socket, socket.socket, TcpCall]:
        """Return the near socket, the far one, and the handshake that has begun."""
        near, far = self.tcp_pair()
        near.setblocking(False)
        call = TcpCall(self.poll, near, "pong", self.results.append)
        call.start()
        return near, far, call

    async def answered(self, *parts: bytes, then_close: bool = False) -> Refused | None:
        """Answer in *parts*, each when the one before was read; return the result."""
        near, far, _ = self.call()
        self.assertEqual(await in_thread(read_exactly, far, 4), b"pong")
        for part in parts:
            far.sendall(part)
            await in_thread(lambda: None)
        if then_close:
            far.shutdown(socket.SHUT_WR)
        await until(lambda: self.results)
        self.assertFalse(self.poll.watches(near.fileno()))
        (result,) = self.results
        return result


class Granted(CallTestCase):
    async def test_ok(self) -> None:
        self.assertIsNone(await self.answered(b"ok"))

    async def test_ok_in_two_parts(self) -> None:
        self.assertIsNone(await self.answered(b"o", b"k"))

    async def test_the_name_goes_out_raw_and_alone(self) -> None:
        near, far, _ = self.call()
        self.assertEqual(await in_thread(far.recv, 100), b"pong")
        near.close()
        self.assertEqual(await in_thread(read_all, far), b"")

    async def test_what_stands_behind_ok_is_left_in_the_socket(self) -> None:
        near, far, _ = self.call()
        far.sendall(b"okbanner")
        await until(lambda: self.results)
        self.assertEqual((self.results, near.recv(100)), ([None], b"banner"))

    async def test_the_socket_stays_open_for_its_owner(self) -> None:
        near, far, _ = self.call()
        far.sendall(b"ok")
        await until(lambda: self.results)
        near.sendall(b"request")
        self.assertEqual(await in_thread(read_exactly, far, 11), b"pongrequest")


class NotGranted(CallTestCase):
    """A table: what the far side answers, and what becomes of it. One method a row."""

    async def check(self, word: Refusal, reason: str, *parts: bytes, then_close: bool = True) -> None:
        result = await self.answered(*parts, then_close=then_close)
        assert result is not None
        self.assertEqual(result.word, word)
        self.assertIn(reason, result.reason)

    async def test_no_with_a_word(self) -> None:
        await self.check(Refusal.UNKNOWN_SERVICE, "the far side refused: unknown-service", b"no unknown-service")

    async def test_no_with_a_reason_of_its_own(self) -> None:
        await self.check(Refusal.DENIED, "the far side refused: go away", b"no ", b"go away")

    async def test_no_in_single_bytes(self) -> None:
        await self.check(Refusal.DENIED, "refused: denied", *[b"no denied"[n : n + 1] for n in range(9)])

    async def test_a_bare_close(self) -> None:
        await self.check(Refusal.UNREACHABLE, "hung up")

    async def test_something_else(self) -> None:
        await self.check(Refusal.UNREACHABLE, "neither ok nor no", b"HTTP/1.1 400", then_close=False)

    async def test_a_close_in_the_middle_of_ok(self) -> None:
        await self.check(Refusal.UNREACHABLE, "", b"o")

    async def test_a_refusal_without_an_end_is_cut(self) -> None:
        await self.check(Refusal.DENIED, "refused", b"no " + b"x" * 2000, then_close=False)

    async def test_a_reset(self) -> None:
        _, far, _ = self.call()
        await in_thread(read_exactly, far, 4)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        await until(lambda: self.results)
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.UNREACHABLE)
        self.assertIn("lost during the handshake", self.results[0].reason)

    async def test_a_far_side_that_is_gone_before_the_call(self) -> None:
        near, far = self.tcp_pair()
        near.setblocking(False)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        TcpCall(self.poll, near, "pong", self.results.append).start()
        await until(lambda: self.results)
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.UNREACHABLE)

    async def test_a_far_side_that_takes_not_even_the_name(self) -> None:
        near, _far = self.tcp_pair()
        near.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                near.send(b"x" * 65536)
        TcpCall(self.poll, near, "pong", self.results.append).start()
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.UNREACHABLE)


class OfASchemeDaemon(CallTestCase):
    """The same towards a scheme daemon of another process: one message, one answer."""

    QUESTION = bytes.fromhex("00000019") + b"tcp://192.0.2.1:9000/pong"

    async def ask(self, answer: bytes, then_close: bool = False) -> socket.socket:
        near, far = self.pair()
        near.setblocking(False)
        SchemeCall(self.poll, near, carry(Uri("tcp", "192.0.2.1", 9000, "pong")), self.results.append).start()
        self.assertEqual(await in_thread(read_exactly, far, len(self.QUESTION)), self.QUESTION)
        far.sendall(answer)
        if then_close:
            far.close()
        await until(lambda: self.results)
        self.assertFalse(self.poll.watches(near.fileno()))
        return near

    async def test_ok_and_what_stands_behind_it_is_left_in_the_socket(self) -> None:
        near = await self.ask(bytes.fromhex("00000002") + b"okbanner")
        self.assertEqual((self.results, near.recv(100)), ([None], b"banner"))

    async def test_no_with_a_word_and_a_reason(self) -> None:
        await self.ask(bytes.fromhex("00000011") + b"no timeout: later")
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.TIMEOUT)
        self.assertIn("no timeout: later", self.results[0].reason)

    async def test_a_bare_close(self) -> None:
        await self.ask(b"", then_close=True)
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.UNREACHABLE)
        self.assertIn("hung up", self.results[0].reason)

    async def test_something_else(self) -> None:
        await self.ask(b"HTTP/1.1 400")
        assert self.results[0] is not None
        self.assertEqual(self.results[0].word, Refusal.UNREACHABLE)


class Cancelled(CallTestCase):
    async def test_nothing_is_told_any_more_and_the_answer_is_not_read(self) -> None:
        near, far, call = self.call()
        call.cancel()
        self.assertFalse(self.poll.watches(near.fileno()))
        far.sendall(b"ok")
        near.settimeout(10)
        self.assertEqual(await in_thread(near.recv, 100), b"ok")
        self.assertEqual(self.results, [])

    async def test_an_end_that_goes_along_is_there_with_the_question_and_closed_here(self) -> None:
        (near, far), (ours, theirs) = self.pair(), self.pair()
        near.setblocking(False)
        call = SchemeCall(self.poll, near, b"\0\0\0\1x", self.results.append)
        call.send_along(ours)
        call.start()
        data, (fd,), _, _ = await in_thread(socket.recv_fds, far, 100, 1)
        with socket.socket(fileno=fd) as end:
            end.sendall(b"hello")
            self.assertEqual((data, theirs.recv(9), ours.fileno()), (b"\0\0\0\1x", b"hello", -1))
        far.sendall(b"\0\0\0\2ok")
        await until(lambda: self.results)
        self.assertEqual((self.results, await in_thread(read_all, theirs)), ([None], b""))

    def test_given_up_before_it_begins_the_end_is_closed_too(self) -> None:
        (near, _), (ours, theirs) = self.pair(), self.pair()
        call = SchemeCall(self.poll, near, b"x", self.results.append)
        call.send_along(ours)
        call.cancel()
        self.assertEqual(theirs.recv(9), b"")
