"""Who is at the other end of a connection that a local service has accepted: the op `whois`.

A service knows of such a connection by the random name that its peer, this
process, is bound to (:func:`plumberd.effects.dial_unix.token_of`). Tokens stand in
/proc/net/unix for everybody to read, so they are no secret, and what is told
depends on who asks: root, the broker's own user, and the user whose service it is.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plumberd.effects.credentials import maker_of
from plumberd.effects.dial_unix import token_of
from plumberd.pure.policy.subject import UNMAPPED
from plumberd.pure.record import timestamp
from plumberd.pure.refusals import Refusal, Refused


@dataclass(frozen=True)
class _Caller:
    """One caller that is being carried.

    :ivar uid: of who listens on the service's socket.
    """

    uid: int
    told: Mapping[str, Any]


class Whois:
    """Every caller that is carried to a local service, as long as it is."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """*now*: seconds since 1970."""
        self._now = now
        self._callers: dict[str, _Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def enter(self, sock: socket.socket, service: str, told: Mapping[str, Any]) -> str:
        """Remember who is carried over *sock*, our connection to a local service; return its token.

        :param service: as the caller named it.
        :param told: what is told of it (:func:`plumberd.wiring.clients.registrations.told_of`).
        :returns: nothing where the connection has no token, since it leads elsewhere, or its other end is gone.
        """
        token = token_of(sock)
        if not token:
            return ""
        try:
            _, uid, _ = maker_of(sock)
        except OSError:
            return ""
        since = timestamp(self._now())
        # In another network namespace a program may have given itself the same name: it is of another user.
        self._callers[token] = _Caller(uid, {"service": service, **told, "since": since, "connected_by": os.geteuid()})
        return token

    def leave(self, token: str) -> None:
        """Forget a caller. Idempotent."""
        self._callers.pop(token, None)

    def tell(self, token: object, uid: int) -> dict[str, Any]:
        """Return what the user *uid* is told of the connection with *token*.

        :raises Refused: ``bad-request`` where that is none, ``unknown-service`` where there is no such
            connection (any more), ``denied`` where it is another user's.
        """
        if not isinstance(token, str) or not token:
            raise Refused(
                Refusal.BAD_REQUEST, "token: wanted the name that getpeername shows, without the NUL in front"
            )
        caller = self._callers.get(token)
        if caller is None:
            raise Refused(Refusal.UNKNOWN_SERVICE, "no connection that is carried here now has this token")
        if uid not in (0, os.geteuid()) and (uid != caller.uid or uid == UNMAPPED):
            raise Refused(Refusal.DENIED, "this connection was made to another user's service")
        return dict(caller.told)
