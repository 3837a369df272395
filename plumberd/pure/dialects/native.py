"""This project's own dialect: a 4-byte big-endian length, then a JSON object, in both directions."""

from __future__ import annotations

import functools
import json
import struct
from typing import Any

from plumberd.pure.dialects.base import FrameDecoder, Malformed, Refused, Request, Send
from plumberd.pure.names import check_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from plumberd.pure.refusals import Refused as RefusedError
from plumberd.pure.shape import SocketType

MESSAGE_BYTES = 65536
"""Longest message in either direction."""

IDENT_CHARS = 128
"""Longest ``id``; it is echoed, and an answer must stay small."""

MOST_WORDS = 64
"""Longest list: of words that say as whom something is to be explained, of services."""

OPS: dict[str, frozenset[str]] = {
    "lookup": frozenset(("service", "routes", "uri", "type")),
    "status": frozenset(),
    "explain": frozenset(("direction", "service", "routes", "uri", "peer", "as")),
    "why": frozenset(("service",)),
    "reload": frozenset(),
    "confine": frozenset(("services", "routes", "control")),
    "serve": frozenset(("service",)),
    "ss": frozenset(("after",)),
    "kill": frozenset(("connection",)),
    "whois": frozenset(("token",)),
}
"""Every operation with its own members; ``op`` and ``id`` belong to all."""

_LENGTH = struct.Struct(">I")
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class NativeDecoder(FrameDecoder):
    """Decodes requests; see docs/protocol.md for their members."""

    def __init__(self, limit: int) -> None:
        super().__init__(min(limit, MESSAGE_BYTES))

    @property
    def limit_bytes(self) -> int:
        """The longest request."""
        return self._limit

    def one(self, payload: bytes) -> Request | Refused:
        """Return the request that is *payload*, the whole of it; what is none comes as a refusal too."""
        try:
            return self.request(payload)
        except Malformed as e:
            return Refused(Refusal.BAD_REQUEST, str(e))

    def request(self, payload: bytes) -> Request | Refused:
        """See :meth:`FrameDecoder.request`."""
        try:
            message = json.loads(payload)
        except (ValueError, RecursionError):
            raise Malformed("a message that is not JSON") from None
        if not isinstance(message, dict):
            raise Malformed("a message that is no JSON object")
        ident = message.get("id")
        if not _is_ident(ident):
            return Refused(Refusal.BAD_REQUEST, f"id: wanted a number or a string of at most {IDENT_CHARS} characters")
        try:
            return _request(message, ident)
        except RefusedError as e:
            return Refused(e.word, e.reason, ident)


def grant(request: Request, mode: str, rule: str, message_bytes: int = 0) -> tuple[Send, ...]:
    """The answer, with the descriptor attached to its first byte."""
    if request.ident is None and not message_bytes:
        return _grant(mode, rule)
    members: dict[str, Any] = {"ok": True, "fd": True, "mode": mode, "rule": rule}
    if message_bytes:
        members["message_bytes"] = message_bytes
    return (Send(answer(request.ident, members), descriptor=True),)


@functools.lru_cache(maxsize=256)
def _grant(mode: str, rule: str) -> tuple[Send, ...]:
    """The same answer again and again: most clients give no ``id``."""
    return (Send(answer(None, {"ok": True, "fd": True, "mode": mode, "rule": rule}), descriptor=True),)


def refuse(ident: str | int | None, word: Refusal, reason: str) -> bytes:
    """The answer ``ok: false`` with the word and the reason."""
    return answer(ident, {"ok": False, "error": word.value, "reason": reason})


def answer(ident: str | int | None, members: dict[str, Any]) -> bytes:
    """Frame *members*, with the client's ``id`` in front where it gave one."""
    if ident is not None:
        members = {"id": ident, **members}
    payload = _encode(members).encode("ascii")
    return _LENGTH.pack(len(payload)) + payload


def _is_ident(ident: object) -> bool:
    if isinstance(ident, str):
        return len(ident) <= IDENT_CHARS
    return ident is None or (type(ident) is int and abs(ident) < 2**63)


def _request(message: dict[str, Any], ident: str | int | None) -> Request:
    op = message.get("op")
    if not isinstance(op, str) or op not in OPS:
        raise _bad(f"op: wanted one of {', '.join(OPS)}")
    unknown = message.keys() - OPS[op] - {"op", "id"}
    if unknown:
        allowed = ", ".join(sorted(OPS[op])) or "no member of its own"
        raise _bad(f"a member that {op} does not know; it knows {allowed}")
    if op != "lookup":
        return Request(op, ident=ident, members=_members(message))
    service, routes, uri = (_text(message, key) for key in ("service", "routes", "uri"))
    kind = _type(message)
    if service is not None:
        if uri is not None:
            raise _bad("wanted service (with routes) or uri, found both")
        pairs = Pairs(routes.encode("utf-8", "surrogatepass")) if routes else Pairs()
        return Request(op, check_service(service), pairs, ident=ident, type=kind)
    if uri is None or routes is not None:
        raise _bad("wanted service (with routes) or uri alone")
    return Request(op, uri=uri, ident=ident, type=kind)


def _members(message: dict[str, Any]) -> dict[str, Any]:
    """Return an operation's own members: strings, but for a few lists of them and one truth value."""
    members = {key: value for key, value in message.items() if key not in ("op", "id") and value is not None}
    for key, value in members.items():
        if key in ("as", "services"):
            if not isinstance(value, list) or not all(isinstance(w, str) for w in value) or len(value) > MOST_WORDS:
                raise _bad(f"{key}: wanted a list of at most {MOST_WORDS} strings")
        elif key == "control":
            if not isinstance(value, bool):
                raise _bad(f"{key}: wanted true or false")
        else:
            _text(message, key)
    return members


def _type(message: dict[str, Any]) -> SocketType | None:
    text = _text(message, "type")
    if text is None:
        return None
    try:
        return SocketType(text)
    except ValueError:
        raise _bad(f"type: wanted one of {', '.join(one.value for one in SocketType)}") from None


def _text(message: dict[str, Any], key: str) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise _bad(f"{key}: wanted a string")
    return value


def _bad(reason: str) -> RefusedError:
    return RefusedError(Refusal.BAD_REQUEST, reason)
