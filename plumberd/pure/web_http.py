"""HTTP/1.1 as far as it comes before a WebSocket, or before one of our own pages: one request, one answer.

The headers are read by the websockets library, which is strict: no folded lines, no blank before a
colon, nothing that two readers might take differently. One connection is one request: with
``Connection: close`` there is no second one to be taken for a part of the first.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from websockets.datastructures import Headers
from websockets.exceptions import SecurityError
from websockets.http11 import parse_headers
from websockets.streams import StreamReader

from plumberd.pure.handshake import FAR_SIDE_REFUSED, SaidNo
from plumberd.pure.refusals import Refusal, Refused, printable

REQUEST_BYTES = 16384
"""Longest head of a request."""

ANSWER_BYTES = 16384
"""Longest head of an answer."""

_HEAD_ENDS = b"\r\n\r\n"
_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z/-]")  # a method, or HTTP/; TLS and the like begin with other bytes
_REQUEST_LINE = re.compile(
    r"(?P<method>[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (?P<target>[!-~]+) HTTP/(?P<version>\d\.\d)\Z"
)
_STATUS_LINE = re.compile(r"HTTP/1\.1 (?P<status>[1-5][0-9]{2})(?: .*)?\Z")

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
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of a header."""
        return tuple(value for key, value in self.headers if key == name)


class _Head:
    """Gathers a head, whatever it is dealt out in.

    :ivar rest: what stood behind it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._got = b""
        self.rest = b""

    def receive(self, data: bytes) -> tuple[str, tuple[tuple[str, str], ...]] | None:
        """Take what one read has brought; return the first line and the headers when all of them are there.

        :raises HttpError: they are none; what is wrong is not repeated, for it may be a token.
        """
        self._got += data
        head, mark, rest = self._got.partition(_HEAD_ENDS)
        if len(head) > self._most_bytes:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the head is too long")
        if not mark:
            # What begins like nothing that there is need not be waited for.
            if self._got and not _BEGINS.match(self._got):
                raise HttpError(HTTPStatus.BAD_REQUEST, "that is no HTTP/1.1")
            return None
        self._got, self.rest = b"", rest
        first, _, lines = (head + mark).partition(b"\r\n")
        reader = StreamReader()
        reader.feed_data(lines)
        try:
            found = _run(parse_headers(reader.read_line))
        except SecurityError:
            raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too many headers, or too long ones") from None
        except (ValueError, EOFError):
            raise HttpError(HTTPStatus.BAD_REQUEST, "a line of the head is no header of HTTP/1.1") from None
        return first.decode("latin-1"), tuple((name.lower(), value) for name, value in found.raw_items())


def _run(parsing: Generator[None, None, Headers]) -> Headers:
    """Return what *parsing* comes to, whose bytes are all there."""
    try:
        next(parsing)
    except StopIteration as e:
        found: Headers = e.value
        return found
    raise EOFError


class RequestReader:
    """Reads one request."""

    def __init__(self) -> None:
        self._head = _Head(REQUEST_BYTES)

    @property
    def rest(self) -> bytes:
        """What stood behind it."""
        return self._head.rest

    def receive(self, data: bytes) -> HttpRequest | None:
        """Take what one read has brought; return the request when it is there.

        :raises HttpError: it is none, or has a body.
        """
        found = self._head.receive(data)
        if found is None:
            return None
        line, headers = found
        asked = _REQUEST_LINE.match(line)
        if asked is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, "that is no request of HTTP/1.1")
        request = HttpRequest(asked["method"], asked["target"], headers)
        if asked["version"] != "1.1":
            raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "wanted HTTP/1.1")
        if request.one("host") is None:  # RFC 9112, 3.2
            raise HttpError(HTTPStatus.BAD_REQUEST, "a request without Host")
        if request.all("transfer-encoding") or (request.one("content-length") or "0") != "0":
            raise HttpError(HTTPStatus.BAD_REQUEST, "a request with a body")
        return request


class AnswerReader:
    """Reads the head of one answer, to a request for an upgrade."""

    def __init__(self) -> None:
        self._head = _Head(ANSWER_BYTES)

    @property
    def rest(self) -> bytes:
        """What stood behind it; of a refusal, the beginning of its body."""
        return self._head.rest

    def receive(self, data: bytes) -> HttpAnswer | None:
        """Take what one read has brought, empty at the end; return the head when it is there.

        :raises HttpError: it is none.
        """
        if not data:
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side hung up instead of answering")
        try:
            found = self._head.receive(data)
        except HttpError as e:
            raise HttpError(HTTPStatus.BAD_GATEWAY, f"the far side speaks no HTTP: {e}") from None
        if found is None:
            return None
        told = _STATUS_LINE.match(found[0])
        if told is None:
            raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side speaks no HTTP: its first line is no status")
        return HttpAnswer(int(told["status"]), found[1])


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
    if (answer.first("upgrade") or "").lower() != "websocket" or answer.all("sec-websocket-accept") != (
        accept_of(key),
    ):
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side switches to something that is no WebSocket")
    if answer.first("sec-websocket-extensions") is not None:
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side uses an extension that was not offered")
    chosen = answer.all("sec-websocket-protocol")
    if len(chosen) > 1 or not set(chosen) <= set(protocols):
        raise HttpError(HTTPStatus.BAD_GATEWAY, "the far side chose a subprotocol that was not offered")


def refusal_of(answer: HttpAnswer, body: bytes) -> Refused:
    """Return the refusal that a far side's *answer* is; a webipcd's body begins with the word."""
    said = printable(body).replace("?", " ").strip()
    word = said.partition(":")[0]
    known = {one.value: one for one in Refusal}
    text = f"{FAR_SIDE_REFUSED}: {answer.status} {said}".rstrip()
    if word in known and STATUS[known[word]] == answer.status:
        return SaidNo(known[word], f"{FAR_SIDE_REFUSED}: {said}")
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


def refusal(
    status: HTTPStatus,
    text: str,
    now: float,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    has_body: bool = True,
) -> bytes:
    """Return the answer that is a refusal: a word, and a sentence where there is one to tell."""
    if status is HTTPStatus.UNAUTHORIZED:
        headers = (*headers, ("WWW-Authenticate", "Bearer"))
    headers = (*headers, ("Cache-Control", "no-store"))
    body = (text + "\n").encode("ascii", "replace")
    return answer(status, body, "text/plain; charset=utf-8", now, headers, has_body=has_body)
