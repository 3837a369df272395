"""Clients of webipcd that block: a WebSocket by a library, and HTTP as it is written."""

from __future__ import annotations

import socket
import ssl
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


def opened(
    port: int, service: str = "pong", *protocols: str, context: ssl.SSLContext | None = None, **more: Any
) -> ClientConnection:
    """Open a WebSocket; it blocks, and is closed by who opened it."""
    scheme = "ws" if context is None else "wss"
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
