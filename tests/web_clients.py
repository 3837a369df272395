"""Clients of webipcd that block: a WebSocket by a library, and HTTP as it is written."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from plumberd.pure.web_safety import WebSettings, parse_origin, parse_place, parse_proxy
from plumberd.wiring.config.settings import WebListener
from tests.support import DEADLINE_SECONDS, read_all

LISTEN = (WebListener("tcp:0:interface=127.0.0.1"),)
"""For ``webipcd`` of settings."""

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def web(*hosts: str, origins: tuple[str, ...] = (), proxies: tuple[str, ...] = (), **more: Any) -> WebSettings:
    """Return what ``[web]`` says."""
    places, pages = tuple(map(parse_place, hosts)), tuple(map(parse_origin, origins))
    return WebSettings(places, pages, tuple(map(parse_proxy, proxies)), **more)


class _OneAtATime(ssl.SSLSocket):
    """TLS that two threads use: Python 3.11 lets both into OpenSSL at once, and what one writes may get lost."""

    def do_handshake(self, block: bool = False) -> None:
        """See :meth:`ssl.SSLSocket.do_handshake`; behind it there may be two threads."""
        super().do_handshake(block)
        self._turn = threading.Lock()

    def _do(self, work: Callable[[], Any]) -> Any:
        while True:
            with self._turn:
                timeout = self.gettimeout()
                self.settimeout(0)
                try:
                    return work()
                except ssl.SSLWantReadError:
                    reads = True
                except ssl.SSLWantWriteError:
                    reads = False
                finally:
                    if self.fileno() >= 0:
                        self.settimeout(timeout)
            select.select([self] if reads else [], [] if reads else [self], [], timeout)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """See :meth:`socket.socket.recv`."""
        found: bytes = self._do(lambda: super(_OneAtATime, self).recv(buflen, flags))
        return found

    def send(self, data: Any, flags: int = 0) -> int:
        """See :meth:`socket.socket.send`; ``sendall`` calls it."""
        count: int = self._do(lambda: super(_OneAtATime, self).send(data, flags))
        return count


def opened(
    port: int, service: str = "pong", *protocols: str, context: ssl.SSLContext | None = None, **more: Any
) -> ClientConnection:
    """Open a WebSocket; it blocks, and is closed by who opened it."""
    scheme = "ws" if context is None else "wss"
    if context is not None:
        context.sslsocket_class = _OneAtATime
    connection: ClientConnection = connect(
        f"{scheme}://127.0.0.1:{port}/{service}",
        subprotocols=[Subprotocol(one) for one in protocols] or None,
        compression=None,
        open_timeout=DEADLINE_SECONDS,
        close_timeout=DEADLINE_SECONDS,
        max_size=None,
        ssl=context,
        proxy=None,
        **more,
    )
    return connection


def http(port: int, head: str, host: str = "localhost") -> tuple[int, dict[str, str], bytes]:
    """Send the lines of *head*, the first of which is the request's; return status, headers and body."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE_SECONDS) as sock:
        first, _, rest = head.partition("\r\n")
        sock.sendall(f"{first} HTTP/1.1\r\nHost: {host}\r\n{rest}\r\n".encode())
        return parsed(read_all(sock))


def parsed(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Cut an answer into its parts."""
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}, body
