"""From a connected TCP socket to a WebSocket: TLS where it is wss, then one request, and its answer."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall

from plumberd.effects.tls_wire import Wire
from plumberd.effects.ws_line import Line, PlainLine, TlsLine
from plumberd.pure.login import authorization_for
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.shape import Shape, SocketType
from plumberd.pure.tls import peer_key
from plumberd.pure.uri import DEFAULT_PORTS, Uri, show_host
from plumberd.pure.web_http import AnswerReader, HttpAnswer, HttpError, asking, check_switched, refusal_of
from plumberd.pure.web_request import HOPS
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.tls_dial import TlsDial
from plumberd.wiring.dialing.ws_ends import protocol_of

BODY_BYTES = 512
"""So much is read of why the far side refuses."""

BODY_SECONDS = 1.0
"""So long that is waited for, when the status has come: the refusal itself is known by then."""


class _Step(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


class WsDial:
    """One way to a WebSocket on *sock*, which stays its caller's; *done* gets the line, still watched by nobody."""

    def __init__(
        self,
        core: Core,
        sock: socket.socket,
        uri: Uri,
        hops: int,
        shape: Shape,
        done: Callable[[Line | Refused], None],
        mark: Callable[[str], None],
    ) -> None:
        """*hops*: how many gateways the connection has come through, this one included.

        *shape*: what the client's end is like, which says what the messages mean.
        *mark* is told the name of each step that is over.
        """
        self._core = core
        self._sock = sock
        self._uri = uri
        self._hops = hops
        self._shape = shape
        self._done = done
        self._mark = mark
        self._step: _Step | None = None
        self._line: Line = PlainLine(sock)
        self._key = base64.b64encode(os.urandom(16)).decode("ascii")
        self._protocols = self._offered()
        self._unsent = b""
        self._reader = AnswerReader()
        self._answer: HttpAnswer | None = None
        self._body = b""
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begin; *done* may be called before this returns.

        :raises Refused: what was asked for cannot be said, or carried.
        """
        if self._shape.type is SocketType.DGRAM:
            raise Refused(
                Refusal.NOT_POSSIBLE,
                "type=dgram: a WebSocket is a connection that ends, which a datagram socket cannot tell; "
                "ask for seqpacket",
            )
        uri = self._uri
        self._unsent = self._request()
        if uri.scheme == "ws":
            self._ask()
            return
        inside = Uri("tls", uri.host, uri.port, options=(("alpn", "http/1.1"),))
        step = TlsDial(self._core, self._sock, inside, 0, None, self._secured, self._mark)
        self._step = step
        step.start()

    def cancel(self) -> None:
        """Give up; *done* will not be called."""
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        if self._sock.fileno() >= 0:
            self._core.poll.forget(self._sock.fileno())

    def _offered(self) -> tuple[str, ...]:
        if self._uri.service is not None:
            return (protocol_of(self._uri, self._shape).value,)
        told = self._uri.option("protocol")
        return (told,) if told is not None else ()

    def _request(self) -> bytes:
        uri = self._uri
        peer = self._core.settings.peers.get(peer_key(uri.host, uri.port))
        headers = [(HOPS, str(self._hops))] if uri.service is not None and self._hops else []
        authorization = authorization_for(uri, peer)
        if authorization is not None:
            headers.append(("Authorization", authorization))
        host = show_host(uri.host) + ("" if uri.port == DEFAULT_PORTS[uri.scheme] else f":{uri.port}")
        target = f"/{uri.service}" if uri.service is not None else uri.option("path") or "/"
        return asking(host, target, self._key, self._protocols, headers)

    def _secured(self, result: Wire | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._done(result)
            return
        self._line = TlsLine(result, self._core.buffers)
        self._ask()

    def _ask(self) -> None:
        poll, fd = self._core.poll, self._sock.fileno()
        try:
            if poll.watches(fd):
                poll.redirect(fd, self._ready)
            else:
                poll.watch(fd, self._ready)
        except OSError as e:
            self._done(Refused(Refusal.BUSY, f"the far side cannot be watched: {e.strerror}"))
            return
        self._ready(0)

    def _ready(self, events: int) -> None:
        self._line.told(events)
        result: Line | Refused
        try:
            if self._unsent or self._line.holds:
                self._send()
            found = self._read()
            if found is None:
                return
            result = found
        except BlockingIOError:
            return
        except HttpError as e:
            result = Refused(Refusal.UNREACHABLE, str(e))
        except OSError as e:
            text = os.strerror(e.errno) if e.errno else str(e) or "error"
            result = Refused(Refusal.UNREACHABLE, f"the far side was lost during the handshake: {text}")
        self._finish(result)

    def _end(self, answer: HttpAnswer) -> None:
        """Wait for no more of why it is refused."""
        self._finish(self._refusal(answer))

    def _finish(self, result: Line | Refused) -> None:
        self.cancel()
        self._mark("handshake")
        self._done(result)

    def _send(self) -> None:
        if not self._line.flush():
            return
        while self._unsent:
            count = self._line.send(self._unsent)
            self._unsent = self._unsent[count:]
            if not count or self._line.holds:
                return

    def _read(self) -> Line | Refused | None:
        """Read on; return what has come of it, when that is known."""
        while True:
            data = self._line.recv()
            if self._answer is None:
                self._answer = self._reader.receive(data)
                if self._answer is None:
                    continue
                if self._answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                    check_switched(self._answer, self._key, self._protocols)
                    self._check_service(self._answer)
                    self._line.give_back(self._reader.rest)
                    return self._line
                self._body = self._reader.rest
                self._timer = self._core.reactor.callLater(BODY_SECONDS, self._end, self._answer)
            else:
                self._body += data
            if not data or len(self._body) >= self._wanted(self._answer):
                return self._refusal(self._answer)

    def _refusal(self, answer: HttpAnswer) -> Refused:
        """Return why it is refused, and that nothing was proved, where that is what this machine could have done."""
        refused, uri = refusal_of(answer, self._body[:BODY_BYTES]), self._uri
        peer = self._core.settings.peers.get(peer_key(uri.host, uri.port))
        is_about_proof = refused.word in (Refusal.DENIED, Refusal.UNAUTHENTICATED)
        if uri.scheme != "ws" or not is_about_proof or peer is None or (peer.token is None and peer.login is None):
            return refused
        reason = f"{refused.reason}; what this machine could prove there is not sent over ws, only over wss"
        return Refused(refused.word, reason)

    def _check_service(self, answer: HttpAnswer) -> None:
        if self._uri.service is not None and answer.first("sec-websocket-protocol") not in self._protocols:
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side speaks WebSocket, and is no plumberd")

    def _wanted(self, answer: HttpAnswer) -> int:
        """Return how much of the body is worth waiting for."""
        told = answer.first("content-length") or ""
        return min(int(told), BODY_BYTES) if told.isdecimal() and len(told) < 10 else BODY_BYTES
