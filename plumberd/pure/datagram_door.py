"""The called side's door: who proves that answers reach it is let in, and until then nothing is kept.

A cookie is the time it was made and a keyed hash over that, the caller's
address and port, its nonce and the service. It can be checked without having
been kept. Keys are changed, and the one before is still good for a while.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from plumberd.pure import datagrams
from plumberd.pure.datagrams import COOKIE_BYTES

KEY_BYTES = 32

COOKIE_SECONDS = 15
"""How old a cookie may be that comes back: some repetitions of both datagrams on a slow path."""

KEY_SECONDS = 120
"""How long a key makes cookies; it checks them for as long again."""

_TIME = struct.Struct(">I")
_TIMES = 1 << 32
_HASH_BYTES = COOKIE_BYTES - _TIME.size


@dataclass(frozen=True)
class Opening:
    """An open with a cookie of ours, from where that was sent.

    :ivar nonce: with the address it names this opening: the same again is the same caller, who missed the answer.
    """

    nonce: bytes
    service: str


ENDED = 16384
"""So many openings are remembered that are over; beyond that the oldest are forgotten."""

ENDED_PER_ACCOUNT = 1024
"""… and so many of one account; further ones are not."""


class Ended:
    """Openings that were refused, or whose sessions are over, for as long as their cookies are good.

    The same open once more is no new one: it is answered again, and that is all.
    """

    def __init__(self) -> None:
        self._openings: OrderedDict[Hashable, tuple[tuple[bytes, ...], str, float]] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def add(self, opening: Hashable, answers: tuple[bytes, ...], account: str, now: float) -> None:
        """Remember that *opening* is over, and what it is answered from now on."""
        self._forget_old(now)
        if self._counts[account] >= ENDED_PER_ACCOUNT or opening in self._openings:
            return
        self._openings[opening] = (answers, account, now)
        self._counts[account] += 1
        if len(self._openings) > ENDED:
            self._forget_first()

    def answers(self, opening: Hashable, now: float) -> tuple[bytes, ...]:
        """Return how to answer *opening* once more; nothing where it is a new one."""
        self._forget_old(now)
        found = self._openings.get(opening)
        return found[0] if found is not None else ()

    def _forget_old(self, now: float) -> None:
        # A cookie was made before its session, and its age is in whole seconds.
        while self._openings and now - next(iter(self._openings.values()))[2] > COOKIE_SECONDS + 1:
            self._forget_first()

    def _forget_first(self) -> None:
        _, (_, account, _) = self._openings.popitem(last=False)
        self._counts[account] -= 1
        if not self._counts[account]:
            del self._counts[account]


class Door:
    """Makes cookies and checks them. It grows with nobody's datagrams: it holds two keys."""

    def __init__(self, key: bytes, now: float) -> None:
        """*key*: random, :data:`KEY_BYTES` long. *now* and all other times: seconds of one clock."""
        self._keys: tuple[bytes, ...] = (key,)
        self._made = now

    def wants_key(self, now: float) -> bool:
        """Tell whether it is time for another key."""
        return now - self._made >= KEY_SECONDS

    def change_key(self, key: bytes, now: float) -> None:
        """Make cookies with *key* from now on; those of the one before are still good, unless that is too old."""
        keep = now - self._made < 2 * KEY_SECONDS
        self._keys = (key, self._keys[0]) if keep else (key,)
        self._made = now

    def receive(self, datagram: bytes, source: bytes, now: float) -> bytes | Opening | None:
        """Take what belongs to no session; return the answer, an opening, or ``None``: it is passed over.

        :param source: the caller's address and port, in any form that is always the same.
        """
        request = datagrams.parse_request(datagram)
        if request is None:
            return datagrams.other_version(datagram)
        if not request.cookie:
            made = _TIME.pack(int(now) % _TIMES)
            text = made + self._hash(self._keys[0], made, source, request)
            return datagrams.cookie(request.nonce, text)
        if not self._is_good(request, source, now):
            return None
        return Opening(request.nonce, request.service)

    def _is_good(self, request: datagrams.Request, source: bytes, now: float) -> bool:
        made = request.cookie[: _TIME.size]
        age = (int(now) - _TIME.unpack(made)[0]) % _TIMES
        if age > COOKIE_SECONDS:
            return False
        proof = request.cookie[_TIME.size :]
        return any(hmac.compare_digest(proof, self._hash(key, made, source, request)) for key in self._keys)

    @staticmethod
    def _hash(key: bytes, made: bytes, source: bytes, request: datagrams.Request) -> bytes:
        name = request.service.encode("latin-1")
        # Each part has a length that is known or told, so that no two questions look the same.
        text = made + request.nonce + bytes((len(source), len(name))) + source + name
        return hashlib.blake2s(text, key=key, digest_size=_HASH_BYTES).digest()
