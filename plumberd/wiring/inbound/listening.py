"""Server endpoint strings: the short forms, checks, and raw sockets behind plain ports."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import endpoints
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.task import Clock

from plumberd.effects import kernel

server_from_string: Callable[[Any, str], IStreamServerEndpoint] = endpoints.serverFromString
_quote: Callable[[str], str] = endpoints.quoteStringArgument

BACKLOG = 4096
"""Twisted's own is 50."""

PLAIN = ("tcp", "tcp6", "unix", "systemd")
"""Endpoints whose ports have a socket of their own; ``ssl:`` and ``haproxy:`` ports only look the same."""

_SHORT = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9-]*\.[A-Za-z0-9.-]*|localhost):)?(?P<port>[0-9]+)\Z")
"""A host has a dot or brackets: ``tcp:9000`` is an endpoint string."""

_DATAGRAMS = re.compile(r"udp:(?P<port>[0-9]+)(?::interface=(?P<host>(?:[0-9A-Za-z.-]|\\:)+))?\Z")

_WANTED_DATAGRAMS = "wanted PORT, HOST:PORT or udp:PORT:interface=ADDRESS"

_PORT = re.compile(r"(?<=:)(?:port=)?([0-9]+)(?=:|\Z)")


class EndpointError(ValueError):
    """The string is no server endpoint; the message says what would be accepted."""


def full_description(text: str) -> str:
    """Return the endpoint string for *text*: a short form ``PORT`` or ``HOST:PORT``, or a whole string.

    No host is loopback.

    :raises EndpointError: where it makes no endpoint.
    """
    short = _SHORT.match(text)
    if short:
        port, host = int(short["port"]), short["host"]
        _check_port(text, port)
        if host is None:
            return f"tcp:{port}:interface=127.0.0.1"
        return _with_host(text, host.strip("[]"), port)
    for number in _PORT.findall(text) if text.partition(":")[0] in ("tcp", "tcp6", "ssl", "haproxy") else ():
        _check_port(text, int(number), zero=True)
    try:
        server_from_string(Clock(), text)
    except Exception as e:  # each endpoint parser has errors of its own
        why = " ".join(str(e).split()) or type(e).__name__
        raise EndpointError(f"{text!r}: {why}; {_WANTED}") from None
    return text


_WANTED = "wanted PORT, HOST:PORT or a Twisted server endpoint string such as tcp:9000:interface=127.0.0.1"


def full_datagram_description(text: str) -> str:
    """Return what is listened on for datagrams, ``udp:PORT:interface=ADDRESS``, for that, ``PORT`` or ``HOST:PORT``.

    No host is loopback. Twisted has no endpoint strings of this kind.

    :raises EndpointError: it is none of these.
    """
    short = _SHORT.match(text)
    if short is None:
        host, port = parse_datagram_description(text)
    else:
        host, port = short["host"] or "127.0.0.1", int(short["port"])
        _check_port(text, port)
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise EndpointError(f"{text!r}: {host!r} is no address to listen on; {_WANTED_DATAGRAMS}") from None
    if address.is_multicast:
        raise EndpointError(f"{text!r}: {host} is a multicast address; {_WANTED_DATAGRAMS}")
    return f"udp:{port}:interface={_quote(str(address))}"


def parse_datagram_description(description: str) -> tuple[str, int]:
    """Return host and port of ``udp:PORT[:interface=ADDRESS]``.

    :raises EndpointError: it is something else.
    """
    found = _DATAGRAMS.match(description)
    if found is None:
        raise EndpointError(f"{description!r}: {_WANTED_DATAGRAMS}")
    port = int(found["port"])
    _check_port(description, port, zero=True)
    return (found["host"] or "127.0.0.1").replace("\\:", ":"), port


def is_plain(description: str) -> bool:
    """Tell whether the endpoint's port has a raw socket that can be accepted from."""
    return description.partition(":")[0] in PLAIN


def raw_socket(port: Any) -> socket.socket:
    """Take accepting over from a Twisted port that is listening; the port still owns the socket."""
    port.stopReading()
    sock: socket.socket = port.socket
    if sock.family == socket.AF_UNIX:
        kernel.take_descriptors(sock, wanted=False)  # what is accepted inherits that
    sock.listen(BACKLOG)
    return sock


def _with_host(text: str, host: str, port: int) -> str:
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise EndpointError(f"{text!r}: {host!r} is no address to listen on; {_WANTED}") from None
    scheme = "tcp" if address.version == 4 else "tcp6"
    return f"{scheme}:{port}:interface={_quote(str(address))}"


def _check_port(text: str, port: int, *, zero: bool = False) -> None:
    if not (port <= 65535 and (port or zero)):
        raise EndpointError(f"{text!r}: port {port} is not within 1 to 65535; {_WANTED}")
