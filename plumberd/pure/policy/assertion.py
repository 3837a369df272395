"""What a policy is meant to do, a line each: the files of ``plumb test``.

    granted|refused in|out|serve SERVICE [URI|PEER] [at ADDRESS]... [as WHO]... [mode MODE]

    granted out pong tls://pong.example.com:9000/pong as user:alice
    refused in pong tcp:192.0.2.7          # nobody from there

``at`` gives the addresses of the URI's name, since no test asks a name server.
Empty lines and what follows a ``#`` say nothing.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from plumberd.pure.address import unmapped
from plumberd.pure.modes import Mode
from plumberd.pure.names import WANTED, is_reserved, is_service
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import ANY, PeerError, parse_peer
from plumberd.pure.policy.subject import KINDS, ConditionError, parse_condition
from plumberd.pure.refusals import printable
from plumberd.pure.uri import IPAddress, UriError, parse_host, parse_uri

FILE_BYTES = 4 << 20
"""Longest file, as of a configuration."""

LINE_CHARS = 8192
"""Longest line; a URI alone may have half of it."""

CONFINED = "confined"
"""The WHO that is no condition of a rule."""

MODES = tuple(mode.value for mode in Mode if mode is not Mode.AUTO)
_KEYWORDS = ("at", "as", "mode")
_ONE_CALLER = "SCHEME:ADDRESS, as tcp:192.0.2.7 or wss:192.0.2.7, or tls:NAME or wss:NAME"


class AssertionsError(ValueError):
    """The text is no list of assertions.

    :ivar mistakes: all of them: the number of the line, counted from 1 (0 for the whole text), and
        what is wrong there.
    """

    def __init__(self, mistakes: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"line {number}: {text}" for number, text in mistakes))
        self.mistakes = mistakes


class _Mistake(Exception):
    """One line is wrong; the argument says what would be accepted."""


@dataclass(frozen=True)
class Assertion:
    """One line.

    :ivar number: of the line, counted from 1.
    :ivar text: its words as they were written, without the comment.
    :ivar granted: what is wanted.
    :ivar service: ``None`` for a lookup that names none.
    :ivar target: the URI of the lookup, or the caller; ``None`` where the service alone is asked for.
    :ivar addresses: those that the name in the URI has.
    :ivar who: words of rules, and :data:`CONFINED`.
    :ivar mode: of the hand-over that is wanted, where that matters.
    """

    number: int
    text: str
    granted: bool
    direction: Direction
    service: str | None
    target: str | None = None
    addresses: tuple[IPAddress, ...] = ()
    who: tuple[str, ...] = ()
    mode: str | None = None


def parse_assertions(text: str) -> tuple[Assertion, ...]:
    """Parse a whole file.

    :raises AssertionsError: with every mistake in it; a text without an assertion is one.
    """
    if len(text) > FILE_BYTES:
        raise AssertionsError([(0, f"{len(text)} characters, at most {FILE_BYTES} are read")])
    found: list[Assertion] = []
    mistakes: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            words = _words(line)
            if words:
                found.append(_assertion(number, words))
        except _Mistake as e:
            mistakes.append((number, str(e)))
    if not found and not mistakes:
        mistakes.append((0, "no assertion in it"))
    if mistakes:
        raise AssertionsError(mistakes)
    return tuple(found)


def check_target(direction: Direction, service: str | None, target: str | None) -> None:
    """Check what stands behind a service, in an assertion and in a question.

    :raises ValueError: naming what is wrong and what would be accepted; passwords are masked.
    """
    if direction is Direction.SERVE:
        if target is not None:
            raise ValueError(f"{_show(target)}: who serves has no far end")
    elif direction is Direction.IN:
        if target is None:
            raise ValueError("wanted the caller behind the service: tcp:ADDRESS, or tls:NAME")
        _check_caller(target)
    elif target is not None:
        uri = parse_uri(target)
        if ";" in target:
            raise ValueError("a ; ends a pair: percent-encode it as %3B")
        if uri.scheme == "unix" and service is None:
            raise ValueError(f"{_show(target)}: a local service is looked up by its name, in the place of any")
    elif service is None:
        raise ValueError("wanted a URI behind any")


def check_who(text: str) -> None:
    """Check one WHO of a question.

    :raises ValueError: naming what would be accepted.
    """
    if text == CONFINED:
        return
    try:
        parse_condition(text)
    except ConditionError as e:
        raise ValueError(f"{e} (or {CONFINED})" if text.partition(":")[0] not in KINDS else str(e)) from None


def parse_service(word: str) -> str | None:
    """Return a service, or ``None`` for ``any``: a lookup that names none.

    :raises ValueError: it is no name, or a reserved one.
    """
    if word in ANY:
        return None
    if not is_service(word):
        raise ValueError(f"{_show(word)} is no service: wanted {WANTED}, or any")
    if is_reserved(word):
        raise ValueError(f"{_show(word)} is reserved for plumberd itself, and never granted to anybody")
    return word


def _words(line: str) -> list[str]:
    line = line.removesuffix("\r")
    if len(line) > LINE_CHARS:
        raise _Mistake(f"a line of {len(line)} characters, at most {LINE_CHARS} are read")
    if any((c < " " and c != "\t") or c == "\x7f" for c in line):
        raise _Mistake("a control character")
    words: list[str] = []
    for word in line.split():
        if word.startswith("#"):
            break
        words.append(word)
    return words


def _assertion(number: int, words: list[str]) -> Assertion:
    if len(words) < 3:
        raise _Mistake("wanted granted|refused in|out|serve SERVICE [URI|PEER] [at ADDRESS]... [as WHO]... [mode MODE]")
    verdict, way, name, *rest = words
    if verdict not in ("granted", "refused"):
        raise _Mistake(f"{_show(verdict)}: wanted granted or refused")
    if way not in [direction.value for direction in Direction]:
        raise _Mistake(f"{_show(way)}: wanted in, out or serve")
    direction, granted = Direction(way), verdict == "granted"
    target = rest.pop(0) if rest and rest[0] not in _KEYWORDS else None
    try:
        service = parse_service(name)
        if service is None and direction is not Direction.OUT:
            raise ValueError("any: wanted the name of one service")
        check_target(direction, service, target)
        said = _said(rest)
        for who in said["as"]:
            check_who(who)
        addresses = tuple(_address(text) for text in said["at"])
    except ValueError as e:
        raise _Mistake(str(e)) from None
    if addresses and not _has_name(direction, target):
        raise _Mistake("at: gives the addresses of the name in a URI, and there is none")
    if said["mode"] and not granted:
        raise _Mistake("mode: nothing is handed over where it is refused")
    if len(said["mode"]) > 1 or (said["mode"] and said["mode"][0] not in MODES):
        raise _Mistake(f"mode: wanted one of {', '.join(MODES)}")
    mode = said["mode"][0] if said["mode"] else None
    return Assertion(number, " ".join(words), granted, direction, service, target, addresses, tuple(said["as"]), mode)


def _said(words: list[str]) -> dict[str, list[str]]:
    """Return what stands behind each keyword."""
    said: dict[str, list[str]] = {keyword: [] for keyword in _KEYWORDS}
    while words:
        keyword = words.pop(0)
        if keyword not in said:
            raise ValueError(f"{_show(keyword)}: wanted at ADDRESS, as WHO or mode MODE")
        if not words:
            raise ValueError(f"{keyword}: nothing stands behind it")
        word = words.pop(0)
        if word in said[keyword]:
            raise ValueError(f"{keyword} {_show(word)}: stands twice")
        said[keyword].append(word)
    return said


def _has_name(direction: Direction, target: str | None) -> bool:
    if direction is not Direction.OUT or target is None:
        return direction is Direction.OUT  # where a configured route leads is not known here
    uri = parse_uri(target)
    return uri.scheme != "unix" and uri.address is None


def _address(text: str) -> IPAddress:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return unmapped(ipaddress.ip_address(parse_host(f"[{bare}]" if ":" in bare else bare)))
    except (UriError, ValueError):
        raise ValueError(f"at {_show(text)}: wanted an address") from None


def _check_caller(text: str) -> None:
    """Refuse what is no one caller: an address, or a name that a certificate proves."""
    if "@" in text:  # the message about it would show a password
        raise ValueError(f"a caller has no user and no password: wanted {_ONE_CALLER}")
    try:
        peer = parse_peer(text, Direction.IN)
    except PeerError as e:
        raise ValueError(str(e)) from None
    if peer.scheme is None or (peer.name is None and peer.address is None) or peer.name in ANY:
        raise ValueError(f"{_show(text)}: wanted one caller, {_ONE_CALLER}")


def _show(text: str) -> str:
    return repr(printable(text, 80)) if "@" not in text else "text with an @"
