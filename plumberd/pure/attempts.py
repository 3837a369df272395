"""How often logins have failed lately: by address, which is stopped, and by user, who is only slowed down.

A user whom others could lock out by failing in his name would be theirs. So a
name costs time alone, and no more than two seconds; an address, an IPv6 /64 as a
whole, has so many failures a minute, and is asked no more until the first of them
is a minute old. What is remembered is bounded: who failed longest ago is
forgotten first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque

WINDOW_SECONDS = 60.0
"""For how long a failure counts."""

REMEMBERED = 4096
"""Addresses, and users, of whom failures are remembered."""

FREE_FAILURES = 3
"""A user's failures that cost nothing: fingers slip."""

DELAYS_SECONDS = (0.25, 0.5, 1.0, 2.0)
"""What each further one costs every login in that name; the last repeats. A handshake has 5 seconds."""


class Attempts:
    """The failures of the last minute. Times are seconds of one clock, and never go back."""

    def __init__(self, per_address: int) -> None:
        """*per_address*: so many failures of one address are heard in a minute."""
        self.per_address = per_address
        self._of_address: _Failures = OrderedDict()
        self._of_user: _Failures = OrderedDict()

    def wait_seconds(self, address: str, now: float) -> float:
        """Return in how many seconds *address* is heard again; 0 where it is now.

        :param address: as :func:`account_of_address` returns it.
        """
        times = _lately(self._of_address, address, now)
        if len(times) < self.per_address:
            return 0.0
        return times[len(times) - self.per_address] + WINDOW_SECONDS - now

    def delay_seconds(self, user: str, now: float) -> float:
        """Return how long a login in the name of *user* waits before it is looked at."""
        failures = len(_lately(self._of_user, _key(user), now)) - FREE_FAILURES
        return DELAYS_SECONDS[min(failures, len(DELAYS_SECONDS)) - 1] if failures > 0 else 0.0

    def failed(self, address: str, user: str, now: float) -> None:
        """Remember a failure."""
        _remember(self._of_address, address, now, self.per_address)
        _remember(self._of_user, _key(user), now, FREE_FAILURES + len(DELAYS_SECONDS))

    @property
    def remembered(self) -> int:
        """How many addresses and users are remembered."""
        return len(self._of_address) + len(self._of_user)


_Failures = OrderedDict[str | bytes, deque[float]]
"""Who failed when, the last of all at the end."""


def _key(user: str) -> bytes:
    """Return *user*, whoever that may be, as few bytes."""
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _lately(failures: _Failures, who: str | bytes, now: float) -> deque[float]:
    times = failures.get(who)
    if times is None:
        return deque()
    while times and times[0] + WINDOW_SECONDS <= now:
        times.popleft()
    if not times:
        del failures[who]
    return times


def _remember(failures: _Failures, who: str | bytes, now: float, most: int) -> None:
    times = failures.setdefault(who, deque())
    times.append(now)
    while len(times) > most:
        times.popleft()
    failures.move_to_end(who)
    while len(failures) > REMEMBERED:
        failures.popitem(last=False)
