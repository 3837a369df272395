"""Tell a local service who has called it, by the PROXY protocol: a header in front of the bytes."""

from __future__ import annotations

import ipaddress
import socket

from plumberd.pure.address import unmapped
from plumberd.pure.proxy_header import End, header
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import RemoteWho


def end_of(sock: socket.socket) -> End | None:
    """Return the address and port that *sock* is bound to, where it has any."""
    if sock.family == socket.AF_UNIX:
        return None
    host, port = sock.getsockname()[:2]
    return unmapped(ipaddress.ip_address(host.partition("%")[0])), port


def introduce(service: socket.socket, name: str, who: RemoteWho, here: End | None, version: str) -> None:
    """Send the header on *service*, on which nothing has been sent yet; nothing is carried without it.

    :param name: what the caller asked for.
    :param here: where it came in.
    :param version: of the TLS that it came in.
    :raises Refused: ``busy`` where the service takes nothing.
    """
    caller = None if who.address is None else (who.address, who.port)
    data = header(caller, here, version=version, identities=who.identities, service=name, datagrams=who.scheme == "udp")
    try:
        sent = service.send(data)
    except OSError as e:
        raise Refused(Refusal.BUSY, f"the service took no PROXY header: {e.strerror}") from None
    if sent != len(data):
        raise Refused(Refusal.BUSY, f"the service took {sent} of the {len(data)} bytes of the PROXY header")
