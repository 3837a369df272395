"""Connect an administrator's route that is a Twisted client endpoint string."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import endpoints
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from plumberd.effects.endpoint_relay import Half, HalfFactory
from plumberd.pure.refusals import Refusal, Refused, printable
from plumberd.wiring.core import Core

_client_from_string: Callable[[Any, str], IStreamClientEndpoint] = endpoints.clientFromString


class EndpointDial:
    """One connection being made; its transport is relayed to a socket pair, whose other end *done* gets and owns.

    :param account: on whose account the relay is, from the start on.
    :param ended: told when a relay that was begun is over, with the bytes up and down.
    """

    def __init__(
        self,
        core: Core,
        description: str,
        account: str,
        done: Callable[[socket.socket | Refused], None],
        ended: Callable[[Half, int, int], None],
    ) -> None:
        self._core = core
        self._description = description
        self._account = account
        self._done: Callable[[socket.socket | Refused], None] | None = done
        self._ended = ended
        self._connecting: Deferred[Any] | None = None
        self._half = Half(core.poll, ended=self._half_ended)

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: the string makes no endpoint, or too much is carried already.
        """
        try:
            endpoint = _client_from_string(self._core.reactor, self._description)
        except Exception as e:  # each endpoint parser has errors of its own
            raise Refused(Refusal.UNREACHABLE, f"the route makes no endpoint: {type(e).__name__}") from None
        self._core.begin_relay(self._account)
        try:
            connecting = endpoint.connect(HalfFactory(lambda: self._half))
        except Exception:
            self._core.end_relay(self._account, self._half)
            raise
        self._connecting = connecting
        connecting.addCallbacks(self._connected, self._failed)

    def cancel(self) -> None:
        """Give up; *done* will not be called."""
        self._done = None
        if self._connecting is not None:
            self._connecting.cancel()

    def _connected(self, _: object) -> None:
        done, half = self._done, self._half
        if done is None:
            half.abort()
            return
        if half.lost:
            done(Refused(Refusal.UNREACHABLE, "the far side hung up at once"))
            return
        self._core.relays.add(half)
        try:
            ours, theirs = socket.socketpair()
        except OSError as e:
            half.abort()
            done(Refused(Refusal.BUSY, f"no descriptors for a relay: {e.strerror}"))
            return
        try:
            local = self._core.adopt(ours)
        except OSError as e:
            theirs.close()
            half.abort()
            done(Refused(Refusal.BUSY, f"no descriptors for a relay: {e.strerror}"))
            return
        local.join(half)
        done(theirs)

    def _half_ended(self, half: Half) -> None:
        self._core.end_relay(self._account, half)
        if half.other is not None:
            self._ended(half, half.other.moved, half.moved)

    def _failed(self, failure: Failure) -> None:
        if self._half.wire is None:  # else it ends by itself
            self._core.end_relay(self._account, self._half)
        if self._done is not None:
            self._done(Refused(Refusal.UNREACHABLE, printable(failure.getErrorMessage())))
