"""The ops ``ss`` and ``kill``: connections that have left this process and still live, as the kernel tells of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from plumberd.effects.sockdiag import DestroyError
from plumberd.pure.inetdiag import TcpSocket
from plumberd.pure.living import HandedOver
from plumberd.pure.record import timestamp
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import show_host
from plumberd.wiring.census import Census

A_PAGE = 150
"""Connections in one answer, which has a limit; the next page begins behind the last one's id."""


def page_of(census: Census, uid: int | None, after: str | None) -> tuple[list[HandedOver], int]:
    """Return a page of what is thought to live, by id, and how many more there are.

    :param uid: whose; ``None`` is everybody's.
    :param after: the id behind which the page begins.
    :raises Refused: ``bad-request`` where *after* is none.
    """
    behind = _cookie(after) if after is not None else -1
    entries = census.living if uid is None else census.living.of(uid)
    found = sorted((entry for entry in entries if entry.cookie > behind), key=lambda entry: entry.cookie)
    return found[:A_PAGE], len(found[A_PAGE:])


def rows(page: list[HandedOver], known: dict[int, TcpSocket], now: float) -> list[dict[str, Any]]:
    """Return what is told of the connections of *page* that the kernel still knows.

    :param now: seconds since the epoch.
    """
    return [_row(entry, known[entry.cookie], now) for entry in page if entry.cookie in known]


def tell(census: Census, uid: int | None, after: str | None, done: Callable[[dict[str, Any] | Refused], None]) -> None:
    """Give *done*, later, the members of the answer to ``ss``.

    :raises Refused: nothing is counted here, or *after* makes no sense.
    """
    if census.why_not:
        raise Refused(Refusal.NOT_POSSIBLE, f"handed-over connections are not counted here: {census.why_not}")
    page, more = page_of(census, uid, after)

    def looked(result: dict[int, TcpSocket] | OSError) -> None:
        if isinstance(result, OSError):
            done(Refused(Refusal.BUSY, f"the kernel does not tell of its sockets: {result.strerror}"))
            return
        last = str(page[-1].cookie) if page and more else None
        done({"ok": True, "connections": rows(page, result, time.time()), "more": more, "after": last})

    try:
        census.look(looked)
    except OSError as e:
        raise Refused(Refusal.BUSY, f"the kernel does not tell of its sockets: {e.strerror}") from None


def end(census: Census, connection: str, done: Callable[[dict[str, Any] | Refused], None]) -> None:
    """End one connection; *done* gets, later, the members of the answer to ``kill``.

    :raises Refused: it is none that was handed over and lives, or the kernel cannot.
    """

    def ended(error: Exception | None) -> None:
        done({"ok": True, "connection": connection} if error is None else _why_not(error))

    try:
        census.destroy(_cookie(connection), ended)
    except (DestroyError, OSError) as e:
        raise _why_not(e) from None


def _why_not(error: Exception) -> Refused:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return Refused(Refusal.NOT_POSSIBLE, f"it was not ended: {text}")


def _cookie(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        raise Refused(Refusal.BAD_REQUEST, "wanted the id of a connection, as ss tells it")
    return int(text)


def _row(entry: HandedOver, found: TcpSocket, now: float) -> dict[str, Any]:
    info = found.info
    return {
        "id": str(entry.cookie),
        "attempt": entry.ident,
        "service": entry.service,
        "uid": entry.uid,
        "pid": entry.pid,
        "mode": entry.mode,
        "handed_over": timestamp(entry.at),
        "age_seconds": round(max(now - entry.at, 0.0), 1),
        "state": found.state,
        "local": _address(found.local),
        "remote": _address(found.remote),
        "bytes_sent": info.bytes_acked if info else None,
        "bytes_received": info.bytes_received if info else None,
        "rtt_ms": round(info.rtt_seconds * 1000, 3) if info and info.rtt_seconds is not None else None,
        "held": found.inode != 0,
    }


def _address(where: tuple[Any, int]) -> str:
    return f"{show_host(str(where[0]))}:{where[1]}"
