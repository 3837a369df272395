"""Which library carries the frames of WebSockets: each echoes masked messages on a raw socket, and is timed.

    python bench/ws_codecs.py            wants wsproto and autobahn besides what plumberd needs

One process a codec, all with the same loop around it; the client sends frames that were made before. What is
told is one run's medians, interleaved: messages of 64 bytes one by one and in bulk, messages of 1 MiB, and the
memory of one idle codec. Every byte that comes back is counted, and those of the first round are compared.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from plumberd.pure.ws_frames import BINARY, FIN, PIECE, START, Form, FrameDecoder, frame, head

MASK = b"\x01\x02\x03\x04"
SMALL = frame(FIN | BINARY, bytes(64), MASK)
LARGE = frame(FIN | BINARY, bytes(1 << 20), MASK)
ROUNDS = 5

Echo = Callable[[bytes], bytes]
"""What one read has brought in, what is to be written out."""


def ours() -> Echo:
    """Return plumberd's own codec, as its relay has it."""
    decoder = FrameDecoder(masked=True, limit_bytes=4 << 20, form=Form.STARTED)

    def echo(data: bytes) -> bytes:
        out = []
        found = decoder.feed(data)
        while decoder.is_full:
            found += decoder.feed(b"")
        for kind, payload in found:
            if kind == START:
                out.append(head(FIN | BINARY, int.from_bytes(payload, "big")))
            elif kind == PIECE:
                out.append(payload)
            else:
                out.append(frame(FIN | kind, payload))
        return b"".join(out)

    return echo


def wsproto() -> Echo:
    """Return wsproto's, a whole connection whose handshake is over."""
    from wsproto.connection import Connection, ConnectionType
    from wsproto.events import BytesMessage

    connection = Connection(ConnectionType.SERVER)

    def echo(data: bytes) -> bytes:
        connection.receive_data(data)
        out = []
        for event in connection.events():
            assert isinstance(event, BytesMessage)
            out.append(connection.send(BytesMessage(event.data, message_finished=event.message_finished)))
        return b"".join(out)

    return echo


def websockets() -> Echo:
    """Return that of the websockets library without its input and output."""
    from websockets.protocol import State
    from websockets.server import ServerProtocol

    protocol = ServerProtocol(state=State.OPEN, max_size=4 << 20)

    def echo(data: bytes) -> bytes:
        protocol.receive_data(data)
        for event in protocol.events_received():
            protocol.send_binary(event.data)  # type: ignore[union-attr]
        return b"".join(protocol.data_to_send())

    return echo


def autobahn() -> Echo:
    """Return Autobahn's protocol for Twisted, behind a transport that keeps what is written."""
    from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
    from twisted.internet.testing import StringTransport

    class Protocol(WebSocketServerProtocol):  # type: ignore[misc]
        def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: N803 - its own name
            self.sendMessage(payload, isBinary)

    factory = WebSocketServerFactory("ws://127.0.0.1:9000")
    factory.protocol = Protocol
    factory.setProtocolOptions(openHandshakeTimeout=0, utf8validateIncoming=True)
    protocol: Any = factory.buildProtocol(None)
    transport = StringTransport()
    protocol.makeConnection(transport)
    protocol.dataReceived(
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:9000\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    transport.clear()

    def echo(data: bytes) -> bytes:
        protocol.dataReceived(data)
        out: bytes = transport.value()
        transport.clear()
        return out

    return echo


CODECS: dict[str, Callable[[], Echo]] = {
    "plumberd": ours,
    "websockets": websockets,
    "wsproto": wsproto,
    "autobahn": autobahn,
}


def serve(make: Callable[[], Echo], sock: socket.socket) -> None:
    """Echo what comes on *sock* until it ends, as a relay over epoll would."""
    echo = make()
    sock.setblocking(False)
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN)
    while True:
        poll.poll()
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            os._exit(0)
        out = memoryview(echo(data))
        while out:
            try:
                out = out[sock.send(out) :]
            except BlockingIOError:
                select.select((), (sock,), ())


class Client:
    """One connection to a process that echoes."""

    def __init__(self, make: Callable[[], Echo]) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.sock = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
        self.pid = os.fork()
        if self.pid == 0:
            self.sock.close()
            serve(make, theirs)
        theirs.close()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self.sock.close()
        os.waitpid(self.pid, 0)

    def one_by_one(self, count: int = 2000) -> float:
        """Return round trips a second."""
        began = time.perf_counter()
        for _ in range(count):
            self.sock.sendall(SMALL)
            if len(self.sock.recv(4096)) != 66:
                raise AssertionError("not one message came back")
        return count / (time.perf_counter() - began)

    def in_bulk(self, message: bytes, count: int) -> float:
        """Return messages a second, many of which are under way."""
        bulk = message * max(1, (256 * 1024) // len(message))
        per_bulk = len(bulk) // len(message)
        left = count // per_bulk * per_bulk * (len(message) - 4)  # as they come back, without the mask
        total, sent, out = count // per_bulk * per_bulk, 0, memoryview(b"")
        self.sock.setblocking(False)
        began = time.perf_counter()
        while left > 0:
            if not out and sent < total:
                out, sent = memoryview(bulk), sent + per_bulk
            ready = select.select((self.sock,), (self.sock,) if out else (), ())
            if ready[0]:
                left -= len(self.sock.recv(1 << 20))
            if ready[1]:
                out = out[self.sock.send(out) :]
        self.sock.setblocking(True)
        return total / (time.perf_counter() - began)


def idle_bytes(make: Callable[[], Echo]) -> float:
    """Return the memory of one codec that waits."""
    make()(SMALL)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [make() for _ in range(200)]
    size = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    tracemalloc.stop()
    return size


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", default=list(CODECS), help=f"of {', '.join(CODECS)}")
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in parser.parse_args().codecs}
    for _ in range(ROUNDS):
        for name, results in found.items():
            client = Client(CODECS[name])
            results.append((client.one_by_one(), client.in_bulk(SMALL, 40_000), client.in_bulk(LARGE, 100)))
            client.close()
    print(f"{'codec':<12}{'64 B, one by one':>18}{'64 B, in bulk':>16}{'1 MiB':>12}{'idle':>10}")
    for name, results in found.items():
        single, bulk, large = (statistics.median(column) for column in zip(*results, strict=True))
        idle = idle_bytes(CODECS[name])
        print(f"{name:<12}{single:>14,.0f} /s{bulk:>13,.0f} /s{large * 1.048576:>8,.0f} MB/s{idle / 1024:>6.1f} KiB")


if __name__ == "__main__":
    main()
