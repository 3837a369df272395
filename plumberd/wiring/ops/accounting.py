"""The ops ``ss`` and ``kill``: connections that have left this process and still live, as the kernel tells of them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from plumberd.effects.sockdiag import DestroyError
from plumberd.pure.inetdiag import TcpSocket
from plumberd.pure.living import HandedOver
from plumberd.pure.record import timestamp
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import show_host
from plumberd.wiring.census import Census

A_PAGE = 120
"""Connections in one answer, in which the longest fit; the next page begins behind the last one's id."""


Seen = Callable[["dict[int, TcpSocket] | OSError"], None]
Done = Callable[["dict[str, Any] | Refused"], None]


class Looks:
    """One look at the kernel's sockets at a time: who asks meanwhile shares the next one."""

    _log = Logger("plumberd")

    def __init__(self, census: Census) -> None:
        self._census = census
        self._is_looking = False
        self._asked: dict[object, Seen] = {}
        """Whom the look under way is for."""
        self._waiting: dict[object, Seen] = {}

    def ask(self, owner: object, seen: Seen) -> None:
        """Give *seen*, later, what the kernel knows of each living socket; *owner* asks once at a time.

        :raises OSError: the kernel does not tell.
        """
        self._waiting[owner] = seen
        if not self._is_looking:
            try:
                self._begin()
            except OSError:
                self.forget(owner)
                raise

    def forget(self, owner: object) -> None:
        """Nobody waits for what *owner* has asked. Idempotent."""
        self._asked.pop(owner, None)
        self._waiting.pop(owner, None)

    def _begin(self) -> None:
        self._census.look(self._looked)
        self._is_looking = True
        self._asked, self._waiting = self._waiting, {}

    def _looked(self, result: dict[int, TcpSocket] | OSError) -> None:
        self._is_looking = False
        asked, self._asked = self._asked, {}
        if self._waiting:
            try:
                self._begin()
            except OSError as e:
                asked, self._waiting, result = {**asked, **self._waiting}, {}, e
        for seen in asked.values():
            try:
                seen(result)
            except Exception:
                self._log.failure("what follows a look at the sockets failed")  # and the others are still told


def page_of(census: Census, uid: int | None, after: str | None) -> tuple[list[HandedOver], int]:
    """Return a page of what is thought to live, by id, and how many more there are.

    :param uid: whose; ``None`` is everybody's.
    :param after: the id behind which the page begins.
    :raises Refused: ``bad-request`` where *after* is none.
    """
    behind = _cookie(after) if after is not None else -1
    entries = census.living if uid is None else census.living.of(uid)
    found = [entry for entry in entries if entry.cookie > behind]
    page = heapq.nsmallest(A_PAGE, found, key=lambda entry: entry.cookie)
    return page, len(found) - len(page)


def rows(page: list[HandedOver], known: dict[int, TcpSocket], now: float) -> list[dict[str, Any]]:
    """Return what is told of the connections of *page* that the kernel still knows.

    :param now: seconds since the epoch.
    """
    return [_row(entry, known[entry.cookie], now) for entry in page if entry.cookie in known]


def tell(census: Census, looks: Looks, owner: object, uid: int | None, after: str | None, done: Done) -> None:
    """Give *done*, later, the members of the answer to ``ss``, unless *owner* is forgotten by *looks*.

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
        looks.ask(owner, looked)
    except OSError as e:
        raise Refused(Refusal.BUSY, f"the kernel does not tell of its sockets: {e.strerror}") from None


def end(census: Census, connection: str, done: Done) -> None:
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
