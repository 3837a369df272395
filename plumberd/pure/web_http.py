"""HTTP/1.1 as far as it comes before a WebSocket, or before one of our own pages: one request, one answer.

h11 reads; it is strict, and what it refuses is refused here. One connection is one request: with
``Connection: close`` there is no second one to be taken for a part of the first.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from plumberd.pure.handshake import SaidNo
from plumberd.pure.refusals import Refusal, Refused, printable

REQUEST_BYTES = 16384
"""Longest head of a request."""

ANSWER_BYTES = 16384
"""Longest head of an answer."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3

STATUS = {
    Refusal.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Refusal.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Refusal.DENIED: HTTPStatus.FORBIDDEN,
    Refusal.UNKNOWN_SERVICE: HTTPStatus.NOT_FOUND,
    Refusal.UNREACHABLE: HTTPStatus.BAD_GATEWAY,
    Refusal.NOT_POSSIBLE: HTTPStatus.BAD_GATEWAY,
    Refusal.BUSY: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
}
"""Which status a refusal is."""


class HttpError(ValueError):
    """What came is no request, or no answer.

    :ivar status: to answer it with.
    """

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class HttpRequest:
    """A request without a body.

    :ivar target: as it was asked for.
    :ivar headers: names in lower case, in their order.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a header."""
        return tuple(value for key, value in self.headers if key == name)

    def one(self, name: str) -> str | None:
        """Return the value of a header that may stand once.

        :raises HttpError: it stands there twice: two readers might take another for the one that counts.
        """
        found = self.all(name)
        if len(found) > 1:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"the header {name} stands there {len(found)} times")
        return found[0] if found else None

    def words(self, name: str) -> tuple[str, ...]:
        """Return the members of a header that is a list, separated by commas."""
        return tuple(word for value in self.all(name) for part in value.split(",") if (word := part.strip(" \t")))


@dataclass(frozen=True)
class HttpAnswer:
    """The head of an answer."""

    status: int
    headers: tuple[tuple[str, str], ...]

    def first(self, name: str) -> str | None:
        """Return the first value of a header."""
        return next((value for key, value in self.headers if key == name), None)


class RequestReader:
    """Reads one request.

    :ivar rest: what stood behind it.
    """

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        self.rest = b""

    def receive(self, data: bytes) -> HttpRequest | None:
        """Take what one read has brought; return the request when it is there.

        :raises HttpError: it is none, or has a body.
        """
        try:
            self._connection.receive_data(data)
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                return None
            if not isinstance(event, h11.Request):
                raise HttpError(HTTPStatus.BAD_REQUEST, "no request")
            if not isinstance(self._connection.next_event(), h11.EndOfMessage):
                raise HttpError(HTTPStatus.BAD_REQUEST, "a request with a body")
        except h11.RemoteProtocolError as e:
            # h11's own words repeat what it has read, and that may hold a token.
            text = "the head is too long" if e.error_status_hint == 431 else "that is no request of HTTP/1.1"
            raise HttpError(HTTPStatus(e.error_status_hint or 400), text) from None
        if event.http_version != b"1.1":
            raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "wanted HTTP/1.1")
        self.rest = self._connection.trailing_data[0]
        return HttpRequest(
            event.method.decode("ascii", "replace"),
            event.target.decode("ascii", "replace"),
            tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
        )


class AnswerReader:
    """Reads the head of one answer, to a request for an upgrade.

    :ivar rest: what stood behind it; of a refusal, the beginning of its body.
    """

    def __init__(self) -> None:
        self._got = b""
        self.rest = b""

    def receive(self, data: bytes) -> HttpAnswer | None:
        """Take what one read has brought, empty at the end; return the head when it is there.

        :raises HttpError: it is none.
        """
        if not data:
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side hung up instead of answering")
        self._got += data
        head, mark, rest = self._got.partition(b"\r\n\r\n")
        if not mark:
            if len(self._got) > ANSWER_BYTES:
                raise HttpError(HTTPStatus.BAD_GATEWAY, f"an answer whose head is longer than {ANSWER_BYTES} bytes")
            return None
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_BYTES)
        connection.send(h11.Request(method="GET", target="/", headers=_ASKED))
        connection.send(h11.EndOfMessage())
        try:
            connection.receive_data(head + mark)
            event = connection.next_event()
        except h11.RemoteProtocolError as e:
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side speaks no HTTP") from e
        if not isinstance(event, h11.Response | h11.InformationalResponse):
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side sent no answer")
        self.rest = rest
        headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
        return HttpAnswer(event.status_code, headers)


_ASKED = [("Host", "x"), ("Connection", "Upgrade"), ("Upgrade", "websocket")]


def accept_of(key: str) -> str:
    """Return what proves that *key*, of a request, was read (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()).decode("ascii")


def asking(host: str, target: str, key: str, protocols: Sequence[str], headers: Sequence[tuple[str, str]]) -> bytes:
    """Return the request for a WebSocket.

    :param host: with its port, where that is not the scheme's own.
    :param key: 16 random bytes, in base64.
    """
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *((f"Sec-WebSocket-Protocol: {', '.join(protocols)}",) if protocols else ()),
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join((*lines, "", "")).encode("ascii")


def check_switched(answer: HttpAnswer, key: str, protocols: Sequence[str]) -> None:
    """Check that *answer* is the beginning of a WebSocket to who asked with *key* and *protocols*.

    :raises HttpError: it says what was not asked for.
    """
    if (answer.first("upgrade") or "").lower() != "websocket" or answer.first("sec-websocket-accept") != accept_of(key):
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side switches to something that is no WebSocket")
    if answer.first("sec-websocket-extensions") is not None:
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side uses an extension that was not offered")
    chosen = answer.first("sec-websocket-protocol")
    if chosen is not None and chosen not in protocols:
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side chose a subprotocol that was not offered")


def refusal_of(answer: HttpAnswer, body: bytes) -> Refused:
    """Return the refusal that a far side's *answer* is; a webipcd's body begins with the word."""
    said = printable(body).replace("?", " ").strip()
    word = said.partition(":")[0]
    known = {one.value: one for one in Refusal}
    text = f"the far side refused: {answer.status} {said}".rstrip()
    if word in known and STATUS[known[word]] == answer.status:
        return SaidNo(known[word], f"the far side refused: {said}")
    for refusal_word, status in STATUS.items():
        if status == answer.status:
            return SaidNo(refusal_word, text)
    return Refused(Refusal.UNREACHABLE, f"the far side answered {answer.status}, and opened no WebSocket")


def switching(key: str, protocol: str | None) -> bytes:
    """Return the answer that is the beginning of a WebSocket."""
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {accept_of(key)}",
    ]
    if protocol is not None:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def answer(
    status: HTTPStatus,
    body: bytes,
    kind: str,
    now: float,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    has_body: bool = True,
) -> bytes:
    """Return a whole answer, behind which the connection ends.

    :param kind: the body's type.
    :param now: seconds since 1970, for the date.
    :param has_body: whether the body goes along, and not its length alone (HEAD).
    """
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(now, usegmt=True)}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join((*lines, "", "")).encode("ascii") + (body if has_body else b"")


def refusal(status: HTTPStatus, text: str, now: float, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return the answer that is a refusal: a word, and a sentence where there is one to tell."""
    if status is HTTPStatus.UNAUTHORIZED:
        headers = (*headers, ("WWW-Authenticate", "Bearer"))
    headers = (*headers, ("Cache-Control", "no-store"))
    return answer(status, (text + "\n").encode("ascii", "replace"), "text/plain; charset=utf-8", now, headers)
