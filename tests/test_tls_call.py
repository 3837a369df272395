"""plumberd.effects.tls_call: the asking side of the handshake inside TLS, against wires that behave and that do not."""

from __future__ import annotations

from collections import deque
from typing import Any

from plumberd.effects.poll import Poll
from plumberd.effects.tls_call import PlumbCall
from plumberd.pure.plumb_handshake import request
from plumberd.pure.refusals import Refusal, Refused
from tests.support import CleanTestCase, Readers, real_reactor
from tests.tables import each

QUESTION = request("pong")


class FakeWire:
    """Gives what it is told to, and keeps what is said: ``None`` is nothing now, an exception is raised."""

    def __init__(self, *reads: bytes | BaseException | None, sends: tuple[BaseException | None, ...] = ()) -> None:
        self.reads = deque(reads)
        self.sends = deque(sends)
        self.sent: list[bytes] = []
        self.given_back = b""

    def send(self, data: bytes) -> int:
        if self.sends and (error := self.sends.popleft()) is not None:
            raise error
        self.sent.append(data)
        return len(data)

    def recv(self, most: int) -> bytes:
        if not self.reads:
            raise BlockingIOError
        read = self.reads.popleft()
        if read is None:
            raise BlockingIOError
        if isinstance(read, BaseException):
            raise read
        return read

    def give_back(self, data: bytes) -> None:
        self.given_back += data


class Call(CleanTestCase):
    def call(self, wire: FakeWire) -> list[Refused | None]:
        """Ask over *wire*; edges come as long as it has something to give."""
        results: list[Refused | None] = []
        readers: Any = Readers()
        poll = Poll(readers, real_reactor)
        self.addCleanup(poll.close)
        near, far = self.pair()
        call = PlumbCall(poll, near, wire, QUESTION, results.append)  # type: ignore[arg-type]
        call.start()
        while not results and (wire.reads or wire.sends):
            call._ready(0)
        self.assertFalse(results and poll.watches(near.fileno()))
        call.cancel()
        return results

    @each(("whole", (b"ok\n",)), ("in_pieces", (b"o", None, b"k", None, b"\n")), ("later", (None, None, b"ok\n")))
    def test_ok_however_it_comes(self, _: str, reads: tuple[bytes | None, ...]) -> None:
        wire = FakeWire(*reads)
        self.assertEqual(self.call(wire), [None])
        self.assertEqual((wire.sent, wire.given_back), ([QUESTION], b""))

    def test_what_comes_behind_the_ok_is_the_client_s(self) -> None:
        wire = FakeWire(b"ok\nearly")
        self.assertEqual(self.call(wire), [None])
        self.assertEqual(wire.given_back, b"early")

    def test_a_question_that_cannot_go_at_once_goes_later_and_once(self) -> None:
        wire = FakeWire(b"ok\n", sends=(BlockingIOError(), BlockingIOError(), None))
        self.assertEqual(self.call(wire), [None])
        self.assertEqual(wire.sent, [QUESTION])

    @each(
        ("no", (b"no denied\n",), Refusal.DENIED),
        ("hung_up", (b"",), Refusal.UNREACHABLE),
        ("something_else", (b"HTTP/1.1 400\n",), Refusal.UNREACHABLE),
        ("lost", (ConnectionResetError(104, "reset"),), Refusal.UNREACHABLE),
    )
    def test_everything_else_is_a_refusal_told_once(self, _: str, reads: tuple[Any, ...], word: Refusal) -> None:
        (result,) = self.call(FakeWire(*reads))
        assert result is not None
        self.assertIs(result.word, word)

    def test_cancelled_it_tells_nothing(self) -> None:
        self.assertEqual(self.call(FakeWire()), [])
