"""What a request to webipcd asks for: a service over a WebSocket, or something of our own under ``/-/``."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from http import HTTPStatus

from plumberd.pure.plumb_handshake import Login
from plumberd.pure.tokens import is_token
from plumberd.pure.web_http import HttpError, HttpRequest
from plumberd.pure.ws_messages import Subprotocol

OWN = "/-/"
"""Where our own pages are; no service is called that."""

VERSION = "13"
"""Of the protocol (RFC 6455, 4.1)."""

TOKEN = "plumb.token."  # noqa: S105 - what stands in front of one
"""In front of a token among the subprotocols: the one place where a browser lets a page say anything."""

HOPS = "Plumb-Hops"
"""The header in which a gateway tells how many there have been, so that a loop ends."""

PROTOCOLS = 16
"""Most subprotocols that are offered."""

_NUMBER = re.compile(r"(?:0|[1-9][0-9]{0,3})\Z")
_KEY_BYTES = 16
_TARGET = re.compile(r"/[!-~]*\Z")


@dataclass(frozen=True)
class Proof:
    """What the caller shows of itself, not looked at yet.

    :ivar token: a bearer token.
    :ivar login: a user and a password.
    """

    token: str | None = field(default=None, repr=False)
    login: Login | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Upgrade:
    """A WebSocket is wanted.

    :ivar name: of the service, as it was written.
    :ivar key: of the request.
    :ivar protocol: what its messages mean.
    :ivar is_offered: whether that was offered, and so is to be said.
    """

    name: str
    key: str
    protocol: Subprotocol
    is_offered: bool


@dataclass(frozen=True)
class Own:
    """Something of our own is wanted.

    :ivar path: behind ``/-/``, without a query.
    """

    path: str
    has_body: bool


def parse_request(request: HttpRequest) -> Upgrade | Own:
    """Return what is asked for.

    :raises HttpError: nothing that there is.
    """
    path = request.target.partition("?")[0]
    if not _TARGET.match(request.target):
        raise HttpError(HTTPStatus.BAD_REQUEST, "wanted a path: /NAME of a service")
    if path.startswith(OWN):
        if request.method not in ("GET", "HEAD"):
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "wanted GET")
        return Own(path.removeprefix(OWN), request.method == "GET")
    if request.method != "GET":
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "wanted GET")
    return _upgrade(request, path)


def proof_of(request: HttpRequest, *, is_browser: bool, encrypted: bool) -> Proof:
    """Return what the caller shows.

    :param is_browser: a browser asks: then a user and a password are none, for it would send them with
        every page's requests.
    :raises HttpError: 400, where it cannot be read, or may not be sent like that.
    """
    token = _offered_token(request)
    header = request.one("authorization")
    if header is None:
        return Proof(token)
    kind, _, value = header.partition(" ")
    if token is not None:
        raise HttpError(HTTPStatus.BAD_REQUEST, "two proofs: a token among the subprotocols, and Authorization")
    if kind.lower() == "bearer" and is_token(value.strip()):
        return Proof(value.strip())
    if kind.lower() == "basic":
        if is_browser:
            raise HttpError(HTTPStatus.BAD_REQUEST, "a page shows a token, and no user and password")
        if not encrypted:
            raise HttpError(HTTPStatus.BAD_REQUEST, "a user and a password are taken only where all is encrypted")
        return Proof(login=_login(value.strip()))
    raise HttpError(HTTPStatus.BAD_REQUEST, "Authorization: wanted Bearer and a token")


def hops_of(request: HttpRequest) -> int:
    """Return how many gateways of ours the request says that it has come through.

    :raises HttpError: 400, where that is no number.
    """
    text = request.one(HOPS.lower())
    if text is None:
        return 0
    if not _NUMBER.match(text):
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{HOPS}: wanted a number")
    return int(text)


def _upgrade(request: HttpRequest, path: str) -> Upgrade:
    wants = {word.lower() for word in request.words("connection")}
    if "upgrade" not in wants or "websocket" not in {word.lower() for word in request.words("upgrade")}:
        raise HttpError(HTTPStatus.BAD_REQUEST, "this is a WebSocket's address: wanted Upgrade: websocket")
    if request.one("sec-websocket-version") != VERSION:
        raise HttpError(HTTPStatus.UPGRADE_REQUIRED, f"wanted Sec-WebSocket-Version: {VERSION}")
    key = request.one("sec-websocket-key") or ""
    try:
        is_key = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise HttpError(HTTPStatus.BAD_REQUEST, "wanted a Sec-WebSocket-Key of 16 bytes")
    if "?" in request.target:
        raise HttpError(HTTPStatus.BAD_REQUEST, "behind the name of a service no query means anything")
    offered = _offered(request)
    known = [one for one in offered if one in _KNOWN]
    if offered and not known:
        raise HttpError(
            HTTPStatus.BAD_REQUEST, f"none of the subprotocols that are offered is known: {', '.join(_KNOWN)} are"
        )
    return Upgrade(path.removeprefix("/"), key, Subprotocol(known[0]) if known else Subprotocol.IPC, bool(known))


_KNOWN = tuple(one.value for one in Subprotocol)


def _offered(request: HttpRequest) -> tuple[str, ...]:
    offered = request.words("sec-websocket-protocol")
    if len(offered) > PROTOCOLS:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"more than {PROTOCOLS} subprotocols")
    return offered


def _offered_token(request: HttpRequest) -> str | None:
    tokens = [one.removeprefix(TOKEN) for one in _offered(request) if one.startswith(TOKEN)]
    if not tokens:
        return None
    if len(tokens) > 1 or not is_token(tokens[0]):
        raise HttpError(HTTPStatus.BAD_REQUEST, f"wanted one subprotocol {TOKEN}TOKEN")
    return tokens[0]


def _login(text: str) -> Login:
    try:
        user, colon, password = base64.b64decode(text, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon or not user or not user.isprintable() or not password.isprintable():
        raise HttpError(HTTPStatus.BAD_REQUEST, "Authorization: Basic holds no user and password")
    return Login(user, password)
