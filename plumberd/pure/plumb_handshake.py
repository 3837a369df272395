"""The handshake inside tls, between plumberds: ALPN ``plumb/1``.

    caller                              called
    ``service\\n``
    ``key: value\\n`` ...
    ``\\n``
                                        ``ok\\n``, or ``no <reason>\\n``
    the stream is the client's

4 KiB at most from the caller, 512 bytes from the called side. Whoever reads the
one or the other may read more than that: what stands behind belongs to the
stream, and :attr:`rest` has it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from plumberd.pure.handshake import said_no
from plumberd.pure.names import check_service
from plumberd.pure.refusals import Refusal, Refused, printable

ALPN = b"plumb/1"

REQUEST_BYTES = 4096
"""Longest request, headers and the empty line included."""

ANSWER_BYTES = 512
"""Longest answer, its line end included."""

GRANTED = b"ok\n"

AUTHORIZATION = "authorization"
HOPS = "hops"
CALLER = "caller"
"""The headers that mean something; others are for who comes later, and are passed over."""

MOST_HOPS = 8
"""Most gateways that one connection goes through: two that lead to each other would go on for ever."""

_KEY = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
_BASIC = "basic "


@dataclass(frozen=True)
class Login:
    """A user's name and password; the password shows nowhere."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Request:
    """What the caller wants.

    :ivar login: what it says who it is, if it does.
    :ivar hops: how many gateways it has come through.
    :ivar caller: what it says of its own caller, as a gateway; see :mod:`plumberd.pure.forwarded`.
    """

    service: str
    login: Login | None = None
    hops: int = 0
    caller: str | None = None


def request(service: str, login: Login | None = None, hops: int = 0, caller: str | None = None) -> bytes:
    """Return what the caller sends.

    :raises Refused: ``bad-request`` for a login that has no place in it, ``not-possible`` for a chain that
        is too long.
    """
    if hops > MOST_HOPS:
        raise Refused(Refusal.NOT_POSSIBLE, f"a chain of more than {MOST_HOPS} gateways: do two lead to each other?")
    lines = [service]
    if hops:
        lines.append(f"{HOPS}: {hops}")
    if caller is not None:
        lines.append(f"{CALLER}: {caller}")
    if login is not None:
        if ":" in login.user:
            raise Refused(Refusal.BAD_REQUEST, "the name of a user holds no colon")
        secret = base64.b64encode(f"{login.user}:{login.password}".encode()).decode("ascii")
        lines.append(f"{AUTHORIZATION}: {_BASIC}{secret}")
    data = "".join(f"{line}\n" for line in [*lines, ""]).encode("ascii")
    if len(data) > REQUEST_BYTES:
        raise Refused(Refusal.BAD_REQUEST, f"a request of {len(data)} bytes, at most {REQUEST_BYTES} are accepted")
    return data


def refusal(word: Refusal, reason: str = "") -> bytes:
    """Return the refusal that the called side sends; to who has proved nothing, the word ``denied`` alone."""
    text = f"no {word.value}" + (f": {printable(reason)}" if reason else "")
    return text.encode("ascii")[: ANSWER_BYTES - 1] + b"\n"


class Called:
    """The called side: told what it reads, until the request is complete.

    :ivar rest: what came behind the request; it is the stream's.
    """

    def __init__(self) -> None:
        self._got = bytearray()
        self.rest = b""

    @property
    def wanted_bytes(self) -> int:
        """How much may be read next."""
        return REQUEST_BYTES + 1 - len(self._got)

    def receive(self, data: bytes) -> Request | None:
        """Take what one read brought; return the request when it is complete.

        :raises Refused: ``bad-request``, or ``denied`` for a reserved name.
        """
        self._got += data
        end = self._got.find(b"\n\n", 0, REQUEST_BYTES)
        if end < 0:
            if len(self._got) >= REQUEST_BYTES:
                raise Refused(Refusal.BAD_REQUEST, f"a request without an end within {REQUEST_BYTES} bytes")
            return None
        self.rest = bytes(self._got[end + 2 :])
        return _parse(bytes(self._got[:end]))


class Caller:
    """The caller's side: told what it reads, until the answer is complete.

    :ivar rest: what came behind the answer; it is the client's.
    """

    def __init__(self) -> None:
        self._got = b""
        self.rest = b""

    @property
    def wanted_bytes(self) -> int:
        """How much may be read next."""
        return ANSWER_BYTES + 1 - len(self._got)

    def receive(self, data: bytes) -> bool:
        """Take what one read brought, empty at the end of the stream; tell whether it is granted.

        :raises SaidNo: when the far side said no.
        :raises Refused: when it hung up, or said anything else.
        """
        self._got += data
        line, end, rest = self._got.partition(b"\n")
        if not end:
            if (
                data
                and len(self._got) <= ANSWER_BYTES
                and (b"ok".startswith(line) or line[:3] in (b"no ", b"no", b"n"))
            ):
                return False
            raise Refused(Refusal.UNREACHABLE, _no_answer(self._got))
        if line == b"ok":
            self.rest = rest
            return True
        if line.startswith(b"no "):
            raise said_no(printable(line[3:]))
        raise Refused(Refusal.UNREACHABLE, _no_answer(line))


def _no_answer(got: bytes) -> str:
    if not got:
        return "the far side hung up instead of answering"
    return f"the far side answered {printable(got[:16])!r}, neither ok nor no: is it a plumberd?"


def _parse(head: bytes) -> Request:
    try:
        first, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Refused(Refusal.BAD_REQUEST, "a request that is not ASCII") from None
    service = check_service(first)
    headers = _headers(lines)
    return Request(service, _login(headers), _hops(headers), headers.get(CALLER))


def _headers(lines: list[str]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(": ")
        key = key.lower()
        if not colon or not _KEY.match(key) or any(not " " <= c <= "~" for c in value):
            raise Refused(Refusal.BAD_REQUEST, "a header is written key: value, in printable ASCII characters")
        if key in found:
            raise Refused(Refusal.BAD_REQUEST, f"the header {key} stands twice")
        found[key] = value
    return found


def _hops(headers: Mapping[str, str]) -> int:
    text = headers.get(HOPS, "0")
    if not re.fullmatch(r"[0-9]{1,3}", text):
        raise Refused(Refusal.BAD_REQUEST, f"{HOPS}: wanted a number")
    return int(text)


def _login(headers: Mapping[str, str]) -> Login | None:
    value = headers.get(AUTHORIZATION)
    if value is None:
        return None
    if not value.lower().startswith(_BASIC):
        raise Refused(Refusal.BAD_REQUEST, f"{AUTHORIZATION}: wanted basic and base64 of user:password")
    try:
        text = base64.b64decode(value[len(_BASIC) :], validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise Refused(
            Refusal.BAD_REQUEST, f"{AUTHORIZATION}: what stands there is no base64 of user:password"
        ) from None
    user, colon, password = text.partition(":")
    if not colon or not user or any(c < " " or c == "\x7f" for c in text):
        raise Refused(Refusal.BAD_REQUEST, f"{AUTHORIZATION}: wanted user:password, without control characters")
    return Login(user, password)
