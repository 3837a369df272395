"""From a connected TCP socket to TLS: the handshake, and inside it the one that names a service."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Protocol

from plumberd.effects import openssl
from plumberd.effects.tls_call import PlumbCall
from plumberd.effects.tls_contexts import fault_of
from plumberd.effects.tls_handshake import TlsHandshake
from plumberd.effects.tls_wire import Wire
from plumberd.pure.forwarded import show_caller
from plumberd.pure.login import login_for
from plumberd.pure.plumb_handshake import ALPN, request
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls import peer_key
from plumberd.pure.uri import Uri
from plumberd.pure.who import RemoteWho
from plumberd.wiring.core import Core


class _Step(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


class TlsDial:
    """One way into TLS on *sock*, which stays its caller's; *done* gets the wire."""

    def __init__(
        self,
        core: Core,
        sock: socket.socket,
        uri: Uri,
        hops: int,
        caller: RemoteWho | None,
        done: Callable[[Wire | Refused], None],
        mark: Callable[[str], None],
    ) -> None:
        """*hops*: how many gateways the connection has come through, this one included.

        *caller*: the remote caller it is for; told where that peer's configuration says so.
        *mark* is told the name of each step that is over.
        """
        self._core = core
        self._sock = sock
        self._uri = uri
        self._hops = hops
        self._caller = caller
        self._done = done
        self._mark = mark
        self._step: _Step | None = None
        self._wire: Wire | None = None

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: what would be said has no place in the handshake.
        """
        uri = self._uri
        offered = (ALPN.decode("ascii"),) if uri.service is not None else tuple(_alpn(uri))
        outward = self._core.tls.outward(uri.host, uri.port, offered)
        connection = openssl.connect(outward.context, self._sock, server=False)
        if outward.server_name:
            connection.set_tlsext_host_name(outward.server_name.encode("ascii"))
        self._go(
            TlsHandshake(
                self._core.poll,
                self._sock,
                connection,
                self._secured,
                server=False,
                fault_of=fault_of,
                turns=self._core.turns,
                speaks_at_once=uri.service is not None,
            )
        )

    def cancel(self) -> None:
        """Give up; *done* will not be called."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def _go(self, step: _Step) -> None:
        self._step = step
        step.start()

    def _secured(self, result: Wire | Refused) -> None:
        self._step = None
        self._mark("tls")
        if isinstance(result, Refused) or self._uri.service is None:
            self._done(result)
            return
        if result.alpn != ALPN.decode("ascii"):
            self._say_no_more(result)
            self._done(Refused(Refusal.UNREACHABLE, "the far side speaks TLS, and is no plumberd (ALPN plumb/1)"))
            return
        self._wire = result
        try:
            peer = self._core.settings.peers.get(peer_key(self._uri.host, self._uri.port))
            told = show_caller(self._caller) if self._caller and peer and peer.forward else None
            question = request(self._uri.service, login_for(self._uri, peer), self._hops, told)
        except Refused as e:
            self._say_no_more(result)
            self._done(e)
            return
        self._go(PlumbCall(self._core.poll, self._sock, result, question, self._answered))

    @staticmethod
    def _say_no_more(wire: Wire) -> None:
        """End in order, as far as that can be done now: the handshake's last words have not gone yet."""
        with contextlib.suppress(OSError):
            wire.close_notify()

    def _answered(self, result: Refused | None) -> None:
        self._step = None
        self._mark("handshake")
        assert self._wire is not None
        self._done(self._wire if result is None else result)


def _alpn(uri: Uri) -> list[str]:
    told = uri.option("alpn")
    return told.split(",") if told else []
