"""Users' passwords as a file holds them: hashed with scrypt (RFC 7914), ``user:$scrypt$...`` a line.

    alice:$scrypt$ln=15,r=8,p=1$<salt>$<hash>

What stands behind the first colon is a PHC string: salt and hash in base64
without padding, the cost as three numbers. Blank lines, and lines that begin
with ``#``, say nothing.

Whoever is asked for, and whether there is such a user, the same is computed: one
hash for each cost that the file has. So time tells nobody who is in it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

FILE_BYTES = 1 << 20
"""Longest file; ten thousand users fit into it."""

USER_CHARS = 255
PASSWORD_BYTES = 1024
"""Longest password, as of those that this machine itself proves."""

SALT_BYTES = 16
HASH_BYTES = 32
"""How long those are that are made here."""

MOST_SALT_BYTES = 64
LEAST_SALT_BYTES = 8
MOST_HASH_BYTES = 64
LEAST_HASH_BYTES = 16

LEAST_MEMORY_BYTES = 16 << 20
"""``ln=14,r=8``: what RFC 7914's author held for the least in 2009, for whoever logs in by hand."""

MOST_MEMORY_BYTES = 128 << 20
MOST_WORK_BYTES = 256 << 20
"""Memory times ``p``, of all the different costs in a file: each is computed for every login, in a second or two.

Two threads are all that check passwords, and a handshake has 5 seconds.
"""

WANTED_USER = f"a name of 1 to {USER_CHARS} printable ASCII characters without blank or colon, and no # in front"

_USER = re.compile(r"(?!#)[!-9;-~]{1,255}\Z")  # a rule's `login:` has the same characters
_PHC = re.compile(
    r"\$scrypt\$ln=([1-9][0-9]?),r=([1-9][0-9]{0,3}),p=([1-9][0-9]{0,3})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)\Z"
)


class PasswordError(ValueError):
    """A name, a password or a file of them makes no sense.

    :ivar mistakes: all of them: the number of the line, counted from 1 (0 for the whole), and what is wrong
        there; neither a password nor a hash is repeated.
    """

    def __init__(self, mistakes: list[tuple[int, str]]) -> None:
        super().__init__("; ".join(f"line {number}: {text}" if number else text for number, text in mistakes))
        self.mistakes = mistakes


@dataclass(frozen=True)
class Cost:
    """What one hash costs: RFC 7914's N as its logarithm, r and p."""

    ln: int = 15
    r: int = 8
    p: int = 1

    @property
    def work_bytes(self) -> int:
        """How much memory all of its passes go through; time is in proportion to that."""
        return self.memory_bytes * self.p

    @property
    def memory_bytes(self) -> int:
        """How much memory one hash takes."""
        return 128 * self.r << self.ln

    def __str__(self) -> str:
        return f"ln={self.ln},r={self.r},p={self.p}"


@dataclass(frozen=True)
class Entry:
    """One user."""

    user: str
    cost: Cost
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)


class Passwords:
    """Every user of a file. Prints how many there are, and nothing of them."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._of = {entry.user: entry for entry in entries}
        costs = dict.fromkeys(entry.cost for entry in self._of.values())
        # Stand-ins for whoever is not there; their salt is as good as any, since nothing matches them.
        self._nobody = tuple(Entry("", cost, bytes(SALT_BYTES), bytes(HASH_BYTES)) for cost in costs)

    def verify(self, user: str, password: str) -> bool:
        """Tell whether *password* is *user*'s. Takes the same time whoever it is; blocks for that long."""
        mine = self._of.get(user)
        tried = password if is_password(password) else ""
        right = False
        for nobody in self._nobody:
            entry = mine if mine is not None and mine.cost == nobody.cost else nobody
            same = hmac.compare_digest(_digest(tried, entry), entry.digest)
            right |= same and entry is mine
        return right

    def __len__(self) -> int:
        return len(self._of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Passwords) and self._of == other._of

    def __hash__(self) -> int:
        return hash(tuple(self._of.values()))

    def __str__(self) -> str:
        return f"{len(self)} user{'s' if len(self) != 1 else ''}"

    def __repr__(self) -> str:
        return f"<{self}>"


def check_user(text: str) -> str:
    """Return *text*, the name of a user.

    :raises PasswordError: otherwise; it does not repeat *text*, which may be more than a name.
    """
    if not _USER.match(text):
        raise PasswordError([(0, f"wanted {WANTED_USER}")])
    return text


def is_password(text: str) -> bool:
    """Tell whether *text* can be a password: the handshake of a plumberd, too, takes no other."""
    if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in text):
        return False
    return 0 < len(text.encode()) <= PASSWORD_BYTES


def make_entry(user: str, password: str, salt: bytes, cost: Cost | None = None) -> Entry:
    """Return the entry of a user. Blocks while it computes.

    :param salt: random, :data:`SALT_BYTES` long.
    :raises PasswordError: for what is no name, or no password.
    """
    if not is_password(password):
        wanted = f"wanted a password of 1 to {PASSWORD_BYTES} bytes, without control characters"
        raise PasswordError([(0, wanted)])
    empty = Entry(check_user(user), cost or Cost(), salt, bytes(HASH_BYTES))
    return Entry(empty.user, empty.cost, salt, _digest(password, empty))


def format_entry(entry: Entry) -> str:
    """Return the line of *entry*, without its end; :func:`parse_file` reads it back."""
    return f"{entry.user}:$scrypt${entry.cost}${_encode(entry.salt)}${_encode(entry.digest)}"


def parse_file(data: bytes) -> Passwords:
    """Return the users of a file.

    :raises PasswordError: with every mistake in it.
    """
    found: dict[str, Entry] = {}
    lines: dict[str, int] = {}
    costs: set[Cost] = set()
    mistakes: list[tuple[int, str]] = []
    for number, line in enumerate(_lines(data), 1):
        if not line or line.startswith(b"#"):
            continue
        try:
            entry = _parse_line(line)
        except PasswordError as e:
            mistakes += [(number, text) for _, text in e.mistakes]
            continue
        if entry.user in found:
            mistakes.append((number, f"{entry.user} stands in line {lines[entry.user]} already"))
            continue
        found[entry.user], lines[entry.user] = entry, number
        if entry.cost not in costs:
            work = sum(cost.work_bytes for cost in costs | {entry.cost})
            if work > MOST_WORK_BYTES:
                known = ", ".join(sorted(map(str, costs)))
                most = f"a login computes {work >> 20} MiB then, at most {MOST_WORK_BYTES >> 20} are accepted"
                mistakes.append((number, f"{entry.user}: {entry.cost} is one more cost beside {known}: {most}"))
            else:
                costs.add(entry.cost)
    if mistakes:
        raise PasswordError(mistakes)
    return Passwords(found.values())


def with_entry(data: bytes, entry: Entry) -> bytes:
    """Return the file *data* with *entry* in the place of the user's own line, or behind all others."""
    new = format_entry(entry).encode("ascii")
    lines = _lines(data)
    is_there = any(_is_of(line, entry.user) for line in lines)
    lines = [new if _is_of(line, entry.user) else line for line in lines]
    return _joined(lines if is_there else [*lines, new])


def without_user(data: bytes, user: str) -> bytes:
    """Return the file *data* without the line of *user*.

    :raises PasswordError: there is none.
    """
    lines = _lines(data)
    left = [line for line in lines if not _is_of(line, user)]
    if len(left) == len(lines):
        raise PasswordError([(0, f"no user of that file is called {user}")])
    return _joined(left)


def _parse_line(line: bytes) -> Entry:
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        raise _error("a byte that is not ASCII") from None
    user, colon, phc = text.partition(":")
    if not colon:
        raise _error("wanted user:$scrypt$ln=…,r=…,p=…$salt$hash; plumb passwd writes it")
    check_user(user)
    found = _PHC.match(phc)
    if not found:
        scheme = re.match(r"\$([a-z0-9-]{1,32})\$", phc)
        if scheme and scheme[1] != "scrypt":
            raise _error(f"{user}: a password hashed with {scheme[1]}; wanted scrypt: plumb passwd makes it")
        raise _error(f"{user}: wanted $scrypt$ln=…,r=…,p=…$salt$hash, in base64 without = at the end")
    ln, r, p = (int(number) for number in found.groups()[:3])
    cost = _checked(user, Cost(ln, r, p))
    salt = _decode(user, "salt", found[4], LEAST_SALT_BYTES, MOST_SALT_BYTES)
    return Entry(user, cost, salt, _decode(user, "hash", found[5], LEAST_HASH_BYTES, MOST_HASH_BYTES))


def _checked(user: str, cost: Cost) -> Cost:
    if cost.memory_bytes < LEAST_MEMORY_BYTES:
        raise _error(f"{user}: {cost} is too cheap: at least ln=14,r=8,p=1, which takes 16 MiB")
    if cost.memory_bytes > MOST_MEMORY_BYTES or cost.work_bytes > MOST_WORK_BYTES:
        raise _error(f"{user}: {cost} is too dear: at most ln=17,r=8,p=2, which takes 128 MiB twice")
    return cost


def _decode(user: str, what: str, text: str, least: int, most: int) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise _error(f"{user}: the {what} is no base64") from None
    if not least <= len(data) <= most:
        raise _error(f"{user}: a {what} of {len(data)} bytes: {least} to {most} are accepted")
    return data


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _digest(password: str, entry: Entry) -> bytes:
    cost = entry.cost
    return hashlib.scrypt(
        # Keyboards differ in how they write one and the same letter (RFC 8265, 4.2).
        unicodedata.normalize("NFC", password).encode(),
        salt=entry.salt,
        n=1 << cost.ln,
        r=cost.r,
        p=cost.p,
        maxmem=cost.memory_bytes + 128 * cost.r * (cost.p + 2) + 4096,
        dklen=len(entry.digest),
    )


def _lines(data: bytes) -> list[bytes]:
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    return lines[:-1] if not lines[-1] else lines


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _is_of(line: bytes, user: str) -> bool:
    return line.startswith(user.encode() + b":")


def _error(text: str) -> PasswordError:
    return PasswordError([(0, text)])
