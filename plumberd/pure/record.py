"""An outcome, and what is written down of it: one JSON object a line.

Every line of an outcome has every member, in the order of :data:`MEMBERS`;
docs/audit.md says what each means, and programs read it. A member is added at
the end, and none changes its meaning.

Nothing here holds a password: URIs print theirs as ``***``, and text that came
from elsewhere is looked through for URIs once more.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from plumberd.pure.policy.decide import Verdict
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import destination
from plumberd.pure.refusals import Refusal
from plumberd.pure.uri import IPAddress, Uri, mask
from plumberd.pure.who import LocalWho, RemoteWho

MEMBERS = (
    "time",
    "id",
    "direction",
    "service",
    "uri",
    "to",
    "who",
    "verdict",
    "would",
    "reason",
    "rule",
    "mode",
    "addresses",
    "address",
    "ms",
    "steps",
    "up",
    "down",
    "generation",
)
"""Of an outcome's line, in their order."""

WHO_MEMBERS = (
    "kind",
    "uid",
    "gid",
    "pid",
    "user",
    "exe",
    "cgroup",
    "confined",
    "scheme",
    "address",
    "port",
    "identities",
    "via",
    "text",
)
RULE_MEMBERS = ("number", "text", "source")
DROPPED_MEMBERS = ("time", "dropped", "since")
"""Of the line that stands for those that were not written."""

STEPS = ("name", "queue", "who", "route", "resolve", "connect", "tls", "login", "handshake", "handover")
"""Whose time is measured."""

REFUSED = frozenset(word.value for word in Refusal)
"""The verdicts that are refusals."""

TEXT_CHARS = 4096
"""Longest text of a member; a path of the kernel's has as many at most."""

LISTED = 64
"""Most members of a list; a hostile name may have thousands of addresses."""

INFO, NOTICE, WARNING = 6, 5, 4  # syslog(3)

_MASKED = re.compile(r"[^@]*\*\*\*@[^@]*\Z")


@dataclass(slots=True)
class Outcome:
    """What became of one attempt. It holds no secret that it prints.

    :ivar verdict: ``granted``, ``ended``, ``gone``, or the word of a refusal.
    :ivar direction: ``out``, ``in``, ``serve``; empty where it was no attempt yet.
    :ivar service: what was asked for; empty for none.
    :ivar to: where it went, or would have gone: a value that prints without its password; empty for
        a caller whose service is on this machine.
    :ivar who: who asked; a value.
    :ivar rule: the rule or default that decided, where there is no *decided*.
    :ivar mode: of the hand-over; ``relayed`` for what comes in.
    :ivar seconds: from the request to the outcome.
    :ivar reason: a sentence.
    :ivar up, down: bytes carried, for the end of a relay.
    :ivar decided: what the rules said.
    :ivar uri: where it went, where that is a URI.
    :ivar address: what was connected to.
    :ivar addresses: those that the name has.
    :ivar steps: names of :data:`STEPS` and how long each took, in seconds.
    :ivar ident: the same for all outcomes of one connection; 0 for none.
    :ivar generation: the configuration's that decided.
    :ivar uid: the local client's, where *who* does not know it yet.
    """

    verdict: str
    direction: str = ""
    service: str = ""
    to: object = ""
    who: object = ""
    rule: str = ""
    mode: str = ""
    seconds: float = 0.0
    reason: str = ""
    up: int = 0
    down: int = 0
    decided: Verdict | None = None
    uri: Uri | None = None
    address: IPAddress | None = None
    addresses: tuple[IPAddress, ...] = ()
    steps: tuple[tuple[str, float], ...] = ()
    ident: int = 0
    generation: int = 0
    uid: int | None = None

    @property
    def ruling(self) -> str:
        """The rule or default that decided, with its number."""
        return self.rule if self.decided is None else self.decided.rule

    def __str__(self) -> str:
        """One line for people."""
        local = self.uri is None or self.uri.scheme == "unix"
        to = str((self.to if local else self.uri) or self.uri or "")
        words = [self.verdict, self.direction, self.service or ("-" if self.direction else ""), to]
        text = " ".join(w for w in words if w)
        would = self.decided.would if self.decided is not None else ""
        pairs = (("mode", self.mode), ("would", would), ("rule", self.ruling), ("who", str(self.who)))
        for key, value in pairs:
            if value:
                text += f" {key}=[{value}]" if " " in value else f" {key}={value}"
        if self.up or self.down:
            text += f" up={self.up} down={self.down}"
        text += f" {self.seconds * 1000:.1f} ms" if self.seconds else ""
        return text + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Line:
    """One line, ready to be written.

    :ivar data: the JSON object in ASCII, without the end of the line.
    :ivar priority: syslog's.
    """

    data: bytes
    verdict: str = ""
    direction: str = ""
    service: str = ""
    priority: int = INFO


def record(outcome: Outcome, when: float, user: str | None = None, executable: str | None = None) -> dict[str, Any]:
    """Return the members of *outcome*'s line.

    :param when: seconds since 1970.
    :param user, executable: of a local client, where they are known.
    """
    decided = outcome.decided
    ended = outcome.verdict == "ended"
    return {
        "time": timestamp(when),
        "id": outcome.ident or None,
        "direction": outcome.direction or None,
        "service": _text(outcome.service),
        "uri": _uri(outcome),
        "to": _to(outcome),
        "who": _who(outcome, user, executable),
        "verdict": outcome.verdict,
        "would": (decided.would or None) if decided is not None else None,
        "reason": _text(outcome.reason or (decided.reason if decided is not None else "")),
        "rule": _rule(outcome),
        "mode": outcome.mode or None,
        "addresses": [_address(address) for address in _addresses(outcome)[:LISTED]],
        "address": None if outcome.address is None else _address(outcome.address),
        "ms": _ms(outcome.seconds),
        "steps": _steps(outcome),
        "up": outcome.up if ended else None,
        "down": outcome.down if ended else None,
        "generation": outcome.generation,
    }


def line(outcome: Outcome, when: float, user: str | None = None, executable: str | None = None) -> Line:
    """Return *outcome*'s line; the parameters are those of :func:`record`."""
    data = _encode(record(outcome, when, user, executable))
    would = outcome.decided is not None and outcome.decided.would
    priority = NOTICE if would or outcome.verdict in REFUSED else INFO
    return Line(data, outcome.verdict, outcome.direction, outcome.service, priority)


def dropped(count: int, since: float, when: float) -> Line:
    """Return the line that stands for *count* others that were not written; *since*: when the first was dropped."""
    return Line(
        _encode({"time": timestamp(when), "dropped": count, "since": timestamp(since)}),
        verdict="dropped",
        priority=WARNING,
    )


def refusal(outcome: Outcome, when: float) -> dict[str, Any]:
    """Return what a refused client is told later of its refusal."""
    return {
        "time": timestamp(when),
        "service": _text(outcome.service),
        "uri": _uri(outcome),
        "to": _to(outcome),
        "word": outcome.verdict,
        "reason": _text(outcome.reason),
        "rule": _text(outcome.ruling),
    }


def timestamp(when: float) -> str:
    """Return *when*, seconds since 1970, as RFC 3339 has it: UTC, with milliseconds."""
    seconds = int(when)
    return f"{_second(seconds)}.{int((when - seconds) * 1000):03}Z"


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_address = functools.lru_cache(maxsize=4096)(str)
"""An address as text; printing one costs as much as a tenth of a line."""

# ASCII: no reader's terminal obeys what a client has put into it, and none disputes the encoding.
_json = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def _encode(members: dict[str, Any]) -> bytes:
    return _json(members).encode("ascii")


def _text(text: str) -> str | None:
    if not text:
        return None
    if "://" in text and "@" in text:
        text = " ".join(_without_password(word) for word in text.split(" "))
    if not text.isascii():
        # a path that is not UTF-8: a lone surrogate would be no JSON that everybody reads
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text[:TEXT_CHARS]


def _without_password(word: str) -> str:
    """Mask a URI with a user in it. What is masked already stays as it is, and readable."""
    _, sep, rest = word.partition("://")
    if not sep or "@" not in rest or _MASKED.match(rest):
        return word
    return mask(word)


def _uri(outcome: Outcome) -> str | None:
    uri = outcome.to if outcome.uri is None and isinstance(outcome.to, Uri) else outcome.uri
    return None if uri is None else str(uri)[:TEXT_CHARS]


def _to(outcome: Outcome) -> str | None:
    """Return where it went as the PEER of an ``out`` rule, of whatever direction it was."""
    to = outcome.to or outcome.uri or ""
    if isinstance(to, Uri):
        to = destination(to)
    return to.as_peer(Direction.OUT) if isinstance(to, Destination) else _text(str(to))


def _addresses(outcome: Outcome) -> tuple[IPAddress, ...]:
    if outcome.addresses or not isinstance(outcome.to, Destination):
        return outcome.addresses
    return outcome.to.addresses or ()


def _who(outcome: Outcome, user: str | None, executable: str | None) -> dict[str, Any]:
    members: dict[str, Any] = dict.fromkeys(WHO_MEMBERS)
    members["identities"] = []
    who = outcome.who
    if isinstance(who, LocalWho):
        members["kind"] = "local"
        members["uid"] = who.uid
        members["gid"] = who.gid
        members["pid"] = who.pid
        members["user"] = _text(user or "")
        members["exe"] = _text(executable or "")
        members["cgroup"] = _text(who.cgroup or "")
        members["confined"] = _text(who.confined)
    elif isinstance(who, RemoteWho):
        members["kind"] = "remote"
        members["scheme"] = who.scheme
        members["address"] = None if who.address is None else _address(who.address)
        members["port"] = who.port or None
        members["identities"] = [_text(identity) for identity in sorted(who.identities)[:LISTED]]
        members["via"] = _text(who.via)
    else:
        members["kind"] = "other" if outcome.uid is None else "local"
        members["uid"] = outcome.uid
        members["user"] = None if outcome.uid is None else _text(user or "")
        members["text"] = _text(str(who))
    return members


def _rule(outcome: Outcome) -> dict[str, Any]:
    decided = outcome.decided
    if decided is None:
        return {"number": None, "text": _text(outcome.rule), "source": None}
    text = decided.rule if decided.number is None else decided.rule.removeprefix(f"{decided.number}: ")
    return {"number": decided.number, "text": _text(text), "source": _text(decided.source)}


def _steps(outcome: Outcome) -> dict[str, float]:
    took: dict[str, float] = {}
    for name, seconds in outcome.steps:
        took[name] = took.get(name, 0.0) + seconds  # one that was tried again counts once, with all of its time
    return {name: _ms(seconds) for name, seconds in took.items()}


def _ms(seconds: float) -> float:
    return int(seconds * 1e6) / 1000 if seconds > 0 else 0.0  # below 0 where the clock was set back meanwhile
