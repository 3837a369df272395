"""Every limit with its default, in one place. docs/protocol.md says what each means to a client."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


class LimitError(ValueError):
    """A limit that does not exist, or a value that makes no sense."""


@dataclass(frozen=True)
class Limits:
    """Limits; a count of 0 would let nobody in and is refused.

    :ivar connect_seconds: from a complete request to the connection, resolving and handshake included.
    :ivar handshake_seconds: for a request, for a peer's name, and for taking an answer.
    :ivar lookup_bytes: longest request.
    :ivar lookups_per_uid: lookups under way for one local user; further ones wait.
    :ivar lookups: lookups under way in all.
    :ivar waiting_per_uid: lookups of one user that wait; likewise, names of one user that wait to be resolved.
    :ivar resolving_per_uid: names being resolved for one local user; further ones wait.
    :ivar resolving: names being resolved in all.
    :ivar connections_per_uid: connections of one user to the broker's sockets.
    :ivar unread_descriptors_per_uid: descriptors sent to one user and not taken yet; further ones wait.
        Never more than a quarter of the descriptors that the broker may have.
    :ivar handed_over_per_uid: TCP sockets that were handed over to one local user and still live.
    :ivar handed_over: such sockets in all.
    :ivar handshakes_per_address: inbound connections of one address (an IPv6 /64 is one) before they are let in.
    :ivar handshakes: such connections in all.
    :ivar login_failures_per_minute: wrong logins of one address; further ones are not looked at.
    :ivar message_bytes: longest message of a WebSocket.
    :ivar relays: connections being carried.
    :ivar relays_per_peer: connections being carried for one local user, or for one remote address.
    :ivar datagram_idle_seconds: how long nothing has to go either way for a session of datagrams to be over.
    """

    connect_seconds: float = 10.0
    handshake_seconds: float = 5.0
    lookup_bytes: int = 65536
    lookups_per_uid: int = 64
    lookups: int = 512
    waiting_per_uid: int = 4096
    resolving_per_uid: int = 4
    resolving: int = 16
    connections_per_uid: int = 4096
    unread_descriptors_per_uid: int = 2048
    handed_over_per_uid: int = 10000
    handed_over: int = 50000
    handshakes_per_address: int = 256
    handshakes: int = 4096
    login_failures_per_minute: int = 10
    message_bytes: int = 4 << 20
    relays: int = 10000
    relays_per_peer: int = 5000
    datagram_idle_seconds: float = 120.0

    def with_value(self, name: str, text: str) -> Limits:
        """Return a copy with one limit changed.

        :raises LimitError: naming what would be accepted.
        """
        known = {f.name: f.type for f in dataclasses.fields(self)}
        if name not in known:
            raise LimitError(f"{name!r} is no limit: wanted one of {', '.join(known)}")
        seconds = name.endswith("_seconds")
        try:
            value = float(text) if seconds else int(text)
        except ValueError:
            kind = "number of seconds" if seconds else "whole number"
            raise LimitError(f"{name}={text!r}: wanted a {kind}") from None
        if not (0 < value <= (3600 if seconds else 10**9)):
            top = "0 up to 3600 seconds" if seconds else "1 up to 1000000000"
            raise LimitError(f"{name}={text}: wanted more than {top}" if seconds else f"{name}={text}: wanted {top}")
        changed: dict[str, Any] = {name: value}
        return dataclasses.replace(self, **changed)
