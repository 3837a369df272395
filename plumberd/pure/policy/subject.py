"""Who asks, as rules see it, and the conditions behind a rule's ``for``.

    user:NAME  group:NAME  uid:N  unit:NAME|/PATH        local, as the kernel tells
    cert:NAME  spiffe://DOMAIN/PATH                      proved by a remote peer
    psk:NAME  login:NAME  token:NAME                     likewise

A condition holds, does not, or can't be told: of a uid that this kernel cannot
name (65534), of a process whose cgroup can't be read. What can't be told opens
nothing: it fails an `allow` and fulfils a `deny`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from plumberd.pure.uri import UriError, parse_host

LOCAL_KINDS = ("user", "group", "uid", "unit")
PROVED_KINDS = ("cert", "spiffe", "psk", "login", "token")
KINDS = (*LOCAL_KINDS, *PROVED_KINDS)

UNMAPPED = 65534
"""What the kernel shows for every user and group that has no number in this namespace."""

VALUE_CHARS = 256
"""Longest value of a condition; a SPIFFE ID may have 2048 bytes, a cgroup path as many as it likes."""

_MOST_ID = 2**32 - 2  # the number after it means "no id"
_ACCOUNT = re.compile(r"[A-Za-z0-9_.@\\$+-]+\Z")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(?:service|scope|slice|socket|mount|swap)\Z")  # systemd.unit(5)
_PATH = re.compile(r"(?:/[!-.0-~]+)+\Z|/\Z")  # no empty part: no cgroup has one, and it would take ages to tell
_SPIFFE = re.compile(r"//[a-z0-9._-]+(?:/[A-Za-z0-9._-]+)*\Z")  # SPIFFE-ID, sections 2.1 and 2.2
_IDENTITY = re.compile(r"[!-~]+\Z")


class ConditionError(ValueError):
    """The text is no condition: what was wanted, what was found, what would be accepted."""


class Standing(enum.Enum):
    """What somebody could do without plumberd, which is where the defaults begin."""

    LOCAL = "local"
    """Whatever this machine can dial."""
    CONFINED = "confined"
    """Nothing, or it can't be told."""
    REMOTE = "remote"
    """Nothing here: it is not on this machine."""


@dataclass(frozen=True)
class Subject:
    """Who asks.

    :ivar uid: the effective one; ``None`` for who is not local.
    :ivar gids: the effective one and all supplementary ones.
    :ivar cgroup: the whole path, or ``None`` where it was not asked for or can't be told.
    :ivar words: what was proved, as conditions are written: ``cert:example.com``.
    """

    standing: Standing = Standing.LOCAL
    uid: int | None = None
    gids: frozenset[int] = frozenset()
    cgroup: str | None = None
    words: frozenset[str] = frozenset()

    @functools.cached_property
    def proved_names(self) -> tuple[str, ...]:
        """The DNS names that a certificate proves."""
        return tuple(word[5:] for word in sorted(self.words) if word.startswith("cert:"))


ANYBODY = Subject()
"""An unconfined local client of whom nothing else matters."""


class Holds(enum.Enum):
    """Whether a condition holds."""

    YES = "yes"
    NO = "no"
    UNTOLD = "it can't be told"


@dataclass(frozen=True)
class Condition:
    """One ``for``.

    :ivar kind: one of :data:`KINDS`.
    :ivar value: as it was written.
    :ivar number: the uid or gid of a name on this machine, once :func:`bind` has asked.
    """

    kind: str
    value: str
    number: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @property
    def is_local(self) -> bool:
        """Whether it speaks of local clients."""
        return self.kind in LOCAL_KINDS

    def holds(self, subject: Subject) -> Holds:
        """Tell whether it holds for *subject*. No proof, no match."""
        if self.is_local and subject.standing is Standing.REMOTE:
            return Holds.NO
        if str(self) in subject.words:
            return Holds.YES
        if self.kind == "cert":
            return _yes(any(_host_matches(self.value, name) for name in subject.proved_names))
        if not self.is_local:
            return Holds.NO
        if self.kind == "unit":
            return Holds.UNTOLD if subject.cgroup is None else _yes(subject.cgroup == cgroup_path(self.value))
        if subject.uid is None:
            return Holds.NO  # somebody who is described by words alone
        if self.number is None:
            return Holds.UNTOLD  # nobody has asked for the name's number
        if self.kind == "group":
            if self.number in subject.gids and subject.uid != UNMAPPED:
                return Holds.YES
            return Holds.UNTOLD if subject.uid == UNMAPPED or UNMAPPED in subject.gids else Holds.NO
        return Holds.UNTOLD if subject.uid == UNMAPPED else _yes(subject.uid == self.number)


def all_hold(conditions: Iterable[Condition], subject: Subject, *, opens: bool) -> bool:
    """Tell whether all of *conditions* hold, or, for a rule that does not open anything, may hold."""
    for condition in conditions:
        found = condition.holds(subject)
        if found is Holds.NO or (opens and found is Holds.UNTOLD):
            return False
    return True


def parse_condition(text: str) -> Condition:
    """Parse what stands behind a ``for``.

    :raises ConditionError: naming what is wrong and what would be accepted.
    """
    kind, colon, value = text.partition(":")
    if not colon or kind not in KINDS or not value:
        raise ConditionError(f"{text[:VALUE_CHARS]!r}: wanted for KIND:VALUE, with one of {', '.join(KINDS)}")
    if len(value) > VALUE_CHARS:
        raise ConditionError(f"{kind}: a value of {len(value)} characters, at most {VALUE_CHARS} are accepted")
    return _CHECKS[kind](kind, value)


def bind(
    conditions: Iterable[Condition], uid_of: Callable[[str], int | None], gid_of: Callable[[str], int | None]
) -> tuple[Condition, ...]:
    """Return *conditions* with the numbers of the users and groups that they name.

    :raises ConditionError: for a name that this machine does not have, or that the kernel cannot tell apart.
    """
    finders = {"user": uid_of, "group": gid_of}
    return tuple(_bound(c, finders[c.kind]) if c.kind in finders else c for c in conditions)


def _bound(condition: Condition, find: Callable[[str], int | None]) -> Condition:
    number = find(condition.value)
    if number is None:
        raise ConditionError(f"{condition}: wanted the name of a {condition.kind} that exists")
    if number == UNMAPPED:
        raise ConditionError(f"{condition}: {_UNMAPPED_WHY}")
    return dataclasses.replace(condition, number=number)


def cgroup_path(unit: str) -> str:
    """Return the whole cgroup path of a unit of the system: of ``ci.service``, ``/system.slice/ci.service``.

    A slice lies within the slices that its name is made of, an instance (``ci@1.service``) in a slice
    of its template, ``system-ci.slice`` (systemd.slice(5)). A path is one already.
    """
    if unit.startswith("/"):
        return unit
    if unit == "init.scope":
        return "/init.scope"  # systemd.special(7)
    if not unit.endswith(".slice"):
        template, at, _ = unit.partition("@")
        # dashes would make more slices of it, and so they are escaped (systemd-escape(1))
        escaped = re.sub(r"[-\\]", lambda found: f"\\x{ord(found[0]):02x}", template)
        return f"/system.slice/{f'system-{escaped}.slice/' if at else ''}{unit}"
    parts = unit.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def parse_cgroup(text: bytes) -> str | None:
    """Return the path in what ``/proc/PID/cgroup`` holds (cgroups(7)), or ``None`` where there is none.

    With version 1 every controller has a tree of its own; the one that systemd names counts, as
    it does where both versions are mounted. A path outside of the reader's own cgroup namespace
    begins with ``/..`` and is no unit's, and one that was deleted says so behind it.
    """
    unified: str | None = None
    # Only a line feed ends a line: everything else may stand in a name, which anybody may choose.
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        plain = path.startswith("/") and not path.startswith("/..") and not path.endswith(" (deleted)")
        if controllers == "name=systemd":
            return path if plain else None
        if number == "0" and not controllers and plain:
            unified = path
    return unified


_UNMAPPED_WHY = f"{UNMAPPED} is what the kernel shows for everybody whom it cannot name; no rule can speak of it"


def _host_matches(pattern: str, name: str) -> bool:
    return name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern


def _yes(true: bool) -> Holds:
    return Holds.YES if true else Holds.NO


def _account(kind: str, value: str) -> Condition:
    if not _ACCOUNT.match(value) or value.isdecimal():
        raise ConditionError(f"{value!r} is no name of a {kind}; a number is written uid:N")
    return Condition(kind, value)


def _uid(kind: str, value: str) -> Condition:
    if not re.fullmatch(r"0|[1-9][0-9]{0,9}", value) or int(value) > _MOST_ID:
        raise ConditionError(f"uid:{value}: wanted a number from 0 to {_MOST_ID}")
    if int(value) == UNMAPPED:
        raise ConditionError(f"uid:{value}: {_UNMAPPED_WHY}")
    return Condition(kind, value, int(value))


def _unit(kind: str, value: str) -> Condition:
    if not (_PATH.match(value) or _UNIT.match(value)):
        raise ConditionError(f"unit:{value}: wanted a system unit such as ci.service, or a whole cgroup path: /a/b")
    if value.endswith(".slice") and "/" not in value and "" in value.removesuffix(".slice").split("-"):
        raise ConditionError(f"unit:{value}: a slice's name is made of names with one dash between; the root is unit:/")
    return Condition(kind, value)


def _cert(kind: str, value: str) -> Condition:
    wild = value.startswith("*.")
    try:
        host = parse_host(value[2:] if wild else value)
    except UriError as e:
        raise ConditionError(f"cert:{value}: {e}") from None
    if host[-1].isdigit() or ":" in host:
        raise ConditionError(f"cert:{value}: wanted a DNS name, or *.NAME")
    return Condition(kind, f"*.{host}" if wild else host)


def _spiffe(kind: str, value: str) -> Condition:
    if not _SPIFFE.match(value) or any(part in (".", "..") for part in value.split("/")):
        raise ConditionError(f"spiffe:{value}: wanted spiffe://DOMAIN/PATH")
    return Condition(kind, value)


def _identity(kind: str, value: str) -> Condition:
    if not _IDENTITY.match(value):
        raise ConditionError(f"{kind}: wanted printable ASCII characters without blanks")
    return Condition(kind, value)


_CHECKS: dict[str, Callable[[str, str], Condition]] = {
    "user": _account,
    "group": _account,
    "uid": _uid,
    "unit": _unit,
    "cert": _cert,
    "spiffe": _spiffe,
    "psk": _identity,
    "login": _identity,
    "token": _identity,
}
