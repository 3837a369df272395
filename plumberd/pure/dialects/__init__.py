"""The dialects of the broker's sockets, as one table. A further one is one more row.

A dialect says which socket of the run directory it owns, how requests are cut
out of the bytes, and what is sent for a grant and for a refusal. It does no
input or output: a grant is a tuple of :class:`Send`, and whoever sends them
waits before each one until the client has taken everything before it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plumberd.pure.dialects import libipc, native
from plumberd.pure.dialects.base import (
    Decoder,
    Grant,
    Malformed,
    Refuse,
    Request,
    Send,
)

__all__ = [
    "DEFAULT",
    "DIALECTS",
    "Decoder",
    "Dialect",
    "Grant",
    "Kind",
    "Malformed",
    "Request",
    "Send",
]


class Kind(enum.Enum):
    """The type of a dialect's socket, and of the descriptors its clients expect."""

    STREAM = "stream"
    PACKET = "packet"


@dataclass(frozen=True)
class Dialect:
    """One row of the table.

    :ivar name: its word in ``--dialects``.
    :ivar socket_name: the file in the run directory.
    :ivar kind: the socket's type.
    :ivar framing: how this generation's messages look (:mod:`plumberd.framing`).
    :ivar conversation: whether further requests may follow the first on one connection.
    :ivar decoder: makes a decoder; its argument is the longest request in bytes.
    :ivar grant: what to send for a granted lookup.
    :ivar refuse: what to send for a refused one.
    :ivar bare: whether its clients' messages have no header: where messages are carried, what one write brings is one.
    """

    name: str
    socket_name: str
    kind: Kind
    framing: str
    conversation: bool
    decoder: Callable[[int], Decoder]
    grant: Grant
    refuse: Refuse
    bare: bool = False


DIALECTS: Mapping[str, Dialect] = {
    d.name: d
    for d in (
        Dialect(
            "native",
            "plumberd",
            Kind.STREAM,
            "libipc-2023",
            True,
            native.NativeDecoder,
            native.grant,
            native.refuse,
            bare=True,
        ),
        Dialect(
            "libipc-2019",
            "network-0-0",
            Kind.PACKET,
            "libipc-2019",
            False,
            libipc.LibipcPacketDecoder,
            libipc.grant_2019,
            libipc.refuse_2019,
        ),
        Dialect(
            "libipc-2020",
            "network",
            Kind.PACKET,
            "libipc-2020",
            False,
            libipc.LibipcPacketDecoder,
            libipc.grant_2023,
            libipc.refuse_2023,
        ),
        Dialect(
            "libipc-2023",
            "network",
            Kind.STREAM,
            "libipc-2023",
            False,
            libipc.Libipc2023Decoder,
            libipc.grant_2023,
            libipc.refuse_2023,
        ),
        Dialect(
            "libipc-zig",
            "ipc",
            Kind.STREAM,
            "libipc-zig",
            False,
            libipc.LibipcZigDecoder,
            libipc.grant_zig,
            libipc.refuse_zig,
        ),
    )
}

DEFAULT = tuple(name for name in DIALECTS if name != "libipc-2020")
"""The dialects that are served where ``--dialects`` says nothing; libipc-2023 has the path of libipc-2020."""
