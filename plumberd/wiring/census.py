"""How many of the TCP sockets that were handed over still live, and who may have one more.

They have left this process, so the kernel is asked which there are: where a limit
is reached, and every so often, so that what is closed is forgotten. Who finds the
limit reached waits for that answer and is refused only if it confirms it. Where
the kernel does not answer, nothing is counted, and nobody is refused.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from plumberd.effects import sockdiag
from plumberd.effects.poll import Poll
from plumberd.effects.sockdiag import Dump, SocketGoneError
from plumberd.pure.inetdiag import TcpSocket, cookie_of
from plumberd.pure.limits import Limits
from plumberd.pure.living import Check, HandedOver, Living
from plumberd.pure.refusals import Refusal, Refused

CHECK_SECONDS = 60.0
"""How often the dead are taken out while there are entries, so that what is told is not old."""

RESTS = 10
"""After a dump there is none for so many times as long as it took: they never take more than a part of the time."""

REST_SECONDS = 5.0
"""The longest rest; so long, at most, a user at the limit is refused for a socket that it has just closed."""

_NEVER = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EINVAL)
"""What a kernel without sock_diag, or a filter that forbids netlink, says; it will say the same again."""

Resume = Callable[["Refused | None"], None]
Found = Callable[[bytes], object]
Ended = Callable[["OSError | None"], None]


class _Dump(Protocol):
    def start(self) -> None: ...
    def cancel(self) -> None: ...


class Census:
    """Counts handed-over sockets by user, and keeps the limits of them.

    :ivar living: what was handed over and was not closed when the kernel was last asked.
    :ivar why_not: why nothing is counted, or nothing.
    """

    _log = Logger("plumberd.census")

    def __init__(
        self,
        poll: Poll,
        clock: IReactorTime,
        limits: Limits,
        *,
        dump: Callable[[Found, Ended], _Dump] | None = None,
    ) -> None:
        """Find out whether the kernel tells, unless *dump* stands in its place."""
        self._poll = poll
        self._clock = clock
        self.per_uid, self.total = limits.handed_over_per_uid, limits.handed_over
        self.living = Living()
        self.why_not = ""
        self._expected: dict[object, int] = {}
        """Who was let in and has no socket yet, and whose it will be."""
        self._expected_of: dict[int, int] = {}
        self._waiting: dict[object, tuple[int, Resume]] = {}
        self._afterwards: list[Callable[[], None]] = []
        self._dump = dump or (lambda found, ended: Dump(poll, clock, found, ended))
        self._running: _Dump | None = None
        self._check = Check(self.living)
        """The last look at who lives, or the one under way."""
        self._began = self._rested = float("-inf")
        self._timer: IDelayedCall | None = None
        self._looks: set[Dump] = set()
        self._failed = False
        if dump is None and (why_not := sockdiag.try_sock_diag()):
            self._count_no_more(why_not)

    # -- one lookup

    def admit(self, owner: object, uid: int, resume: Resume) -> bool:
        """Ask, before it is connected, for one more socket of *uid*'s; *owner* asks for one at a time.

        ``True``: go on. ``False``: wait; *resume* is called later, with ``None`` or the refusal. Unless it
        is refused, :meth:`add` or :meth:`withdraw` follows.

        :raises Refused: ``busy`` where the kernel has just confirmed that the limit is reached.
        """
        self.withdraw(owner)
        if self._has_room(uid):
            self._expect(owner, uid)
            return True
        if self._running is None and self._clock.seconds() < self._rested and self._is_confirmed(uid):
            raise self._busy(uid)
        self._waiting[owner] = (uid, resume)
        self._look_in(0)
        return False

    def add(self, owner: object, sock: socket.socket, uid: int, service: str, mode: str, pid: int, ident: int) -> None:
        """Count *sock*, which goes to its client now, in the place that *owner* asked for; it stays the caller's.

        The rest is what :class:`plumberd.pure.living.HandedOver` tells of it.
        """
        self.withdraw(owner)
        if self.why_not:
            return
        try:
            cookie = sockdiag.socket_cookie(sock)
        except OSError as e:
            self._count_no_more(os.strerror(e.errno or 0))
            return
        # Of a service's name there is one copy, however many connections have it.
        self.living.add(HandedOver(cookie, uid, sys.intern(service), mode, pid, self._clock.seconds(), ident))
        if self._timer is None:
            self._look_in(CHECK_SECONDS)

    def withdraw(self, owner: object) -> None:
        """Forget what *owner* asked for: there will be no socket. Idempotent."""
        self._waiting.pop(owner, None)
        uid = self._expected.pop(owner, None)
        if uid is not None:
            left = self._expected_of[uid] - 1
            if left:
                self._expected_of[uid] = left
            else:
                del self._expected_of[uid]

    def is_waiting(self, owner: object) -> bool:
        """Tell whether *owner* waits for the kernel's answer: at its deadline a limit is in its way."""
        return owner in self._waiting

    # -- all of them

    @property
    def used(self) -> int:
        """How many count: handed over and not known to be closed, or being made."""
        return len(self.living) + len(self._expected)

    def used_of(self, uid: int) -> int:
        """How many of *uid*'s do."""
        return self.living.count_of(uid) + self._expected_of.get(uid, 0)

    def change(self, limits: Limits) -> None:
        """Take other limits: what lives goes on living, and who waits goes on if there is room now."""
        self.per_uid, self.total = limits.handed_over_per_uid, limits.handed_over
        self._let_in()

    def refresh(self, done: Callable[[], None]) -> None:
        """Call *done* later, when what is closed by now is forgotten; or when the kernel did not tell."""
        self._afterwards.append(done)
        self._look_in(0)

    def look(self, done: Callable[[dict[int, TcpSocket] | OSError], None]) -> None:
        """Give *done*, later, what the kernel knows of each living socket, by its cookie.

        :raises OSError: the kernel does not tell.
        """

        def ended(result: dict[int, TcpSocket] | OSError) -> None:
            self._looks.discard(dump)
            done(result)

        dump = sockdiag.look_for(self._poll, self._clock, {entry.cookie for entry in self.living}, ended)
        self._looks.add(dump)

    def destroy(self, cookie: int, done: Callable[[Exception | None], None]) -> None:
        """Close one of the living sockets, at both ends; *done* gets, later, ``None``, a DestroyError or an OSError.

        :raises SocketGoneError: it is none of the living.
        :raises OSError: the kernel does not tell.
        """
        entry = self.living.find(cookie)
        if entry is None:
            raise SocketGoneError
        uid = entry.uid

        def ended(error: Exception | None) -> None:
            self._looks.discard(dump)
            if error is None or isinstance(error, SocketGoneError):
                self.living.remove(uid, cookie)
            done(error)

        dump = sockdiag.find_and_destroy(self._poll, self._clock, cookie, ended)
        self._looks.add(dump)

    def close(self) -> None:
        """Stop asking; nobody is told anything any more."""
        self._waiting.clear()
        self._afterwards.clear()
        self.living.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if self._running is not None:
            self._running.cancel()
            self._running = None
        for dump in self._looks:
            dump.cancel()
        self._looks.clear()

    # -- asking the kernel

    def _look_in(self, seconds: float) -> None:
        """See to it that the kernel is asked in so many seconds, or as soon as it has rested."""
        if self._running is not None:  # its end looks again at what is wanted
            return
        now = self._clock.seconds()
        wait = max(seconds, self._rested - now)
        if self._timer is None:
            self._timer = self._clock.callLater(wait, self._ask)
        elif self._timer.getTime() > now + wait:
            self._timer.reset(wait)

    def _ask(self) -> None:
        self._timer = None
        self._began = self._clock.seconds()
        self._check = check = Check(self.living)
        if self.why_not or not check.unseen:
            self._ended(None)
            return
        self._running = self._dump(lambda body: check.saw(cookie_of(body)), self._ended)
        try:
            self._running.start()
        except OSError as e:
            self._ended(e)

    def _ended(self, error: OSError | None) -> None:
        self._running = None
        now = self._clock.seconds()
        self._rested = now + min(RESTS * (now - self._began), REST_SECONDS)
        if error is None:
            self._check.end()
            self._failed = False
        else:
            self._has_failed(error)
        self._let_in()
        for uid, resume, owner in [(uid, resume, owner) for owner, (uid, resume) in self._waiting.items()]:
            if owner in self._waiting and self._is_confirmed(uid):
                del self._waiting[owner]
                self._tell(resume, self._busy(uid))
        afterwards, self._afterwards = self._afterwards, []
        for done in afterwards:
            self._tell(done)
        if self._waiting or self._afterwards:
            self._look_in(0)
        elif self.living:
            self._look_in(CHECK_SECONDS)

    def _has_failed(self, error: OSError) -> None:
        why = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _NEVER:
            self._count_no_more(why)
            return
        if not self._failed:  # told once, until it works again
            self._failed = True
            self._log.warn("the kernel does not tell which connections live; counting begins anew: {why}", why=why)
        self._forget()

    def _count_no_more(self, why_not: str) -> None:
        self.why_not = why_not
        self._forget()
        self._log.warn(
            "handed-over connections are not counted, and handed_over and handed_over_per_uid do not hold: "
            "sock_diag: {why}",
            why=why_not,
        )

    def _forget(self) -> None:
        self.living.clear()
        self._check = Check(self.living)

    # -- who may go on

    def _has_room(self, uid: int) -> bool:
        return bool(self.why_not) or (self.used_of(uid) < self.per_uid and self.used < self.total)

    def _is_confirmed(self, uid: int) -> bool:
        """Tell whether what was seen to live, and what is being made, reaches a limit without anything else."""
        seen_of = self._check.seen_of(uid) + self._expected_of.get(uid, 0)
        return seen_of >= self.per_uid or self._check.seen + len(self._expected) >= self.total

    def _busy(self, uid: int) -> Refused:
        if self.used_of(uid) >= self.per_uid:
            reason = f"handed_over_per_uid={self.per_uid}: uid {uid} has so many live connections already"
        else:
            reason = f"handed_over={self.total}: so many connections that were handed over live already"
        return Refused(Refusal.BUSY, reason)

    def _expect(self, owner: object, uid: int) -> None:
        self._expected[owner] = uid
        self._expected_of[uid] = self._expected_of.get(uid, 0) + 1

    def _let_in(self) -> None:
        for owner, (uid, resume) in list(self._waiting.items()):
            if owner in self._waiting and self._has_room(uid):
                del self._waiting[owner]
                self._expect(owner, uid)
                self._tell(resume, None)

    def _tell(self, told: Callable[..., None], *args: object) -> None:
        try:
            told(*args)
        except Exception:
            self._log.failure("what follows a count failed")  # and the others are still told
