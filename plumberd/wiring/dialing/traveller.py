"""For whom a connection is made, and what comes of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from plumberd.effects.dial_tcp import Owner
from plumberd.effects.tls_wire import Wire
from plumberd.pure.shape import STREAM, Shape
from plumberd.pure.uri import IPAddress
from plumberd.pure.who import LocalWho, RemoteWho


@dataclass(frozen=True)
class Traveller:
    """For whom a connection is made.

    :ivar account: on whose account what is carried for it is.
    :ivar who: the local client, as whom local services are connected to; ``None`` is the broker itself.
    :ivar owner: whom a TCP socket is given to before it connects.
    :ivar shape: what the end has to be like that is wanted.
    :ivar framed: whether each message is to be written by itself, when the last was taken.
    :ivar ended: told how it ended, and the bytes up and down, when what something else carries is over, which
        began with its connection.
    :ivar caller: the remote caller, where it is one.
    :ivar rule: what has let that in.
    :ivar carries: whether who asks carries what is inside TLS by itself, and so gets the wire.
    :ivar end: one end of a client's pair, where the client has the other already; its owner's until it is carried.
    :ivar hops: how many gateways the connection will have come through.
    """

    account: str
    who: LocalWho | None = None
    owner: Owner | None = None
    shape: Shape = STREAM
    framed: bool = False
    ended: Callable[[str, int, int], None] | None = None
    caller: RemoteWho | None = None
    rule: str = ""
    hops: int = 0
    end: socket.socket | None = None
    carries: bool = False


@dataclass(frozen=True)
class Reached:
    """A connection, whose socket belongs to who got it.

    :ivar address: that a TCP socket is connected to.
    :ivar wire: TLS on the socket, for who carries it by itself.
    :ivar told: whether the service there has been told already who it is connected to.
    :ivar fits: whether it is the end already that the traveller's shape asks for, so that nothing is put before it.
    :ivar message_bytes: the longest message that goes through, where that is known.
    """

    sock: socket.socket
    address: IPAddress | None = None
    wire: Wire | None = None
    told: bool = False
    fits: bool = False
    message_bytes: int = 0
