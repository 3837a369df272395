"""Checks the logins of callers: who is asked, in which order, how often, and that time tells nothing.

limits of its address → its user's delay → its turn → every checker, until one
says yes. A no is told a whole number of :data:`FLOOR_SECONDS` after the asking
began, whether there is such a user, and whichever checker was asked last. One
login of an address is looked at at a time; the others wait, so that failures are
counted one by one. Who hangs up is checked to the end all the same: else nobody
who hangs up would ever have failed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from plumberd.effects.checkers import THREADS, Checker, InThreads, Threads, make_checkers
from plumberd.pure.address import account_of_address
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.attempts import Attempts
from plumberd.pure.host import IPAddress
from plumberd.pure.login import LoginSettings
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.refusals import Refusal, Refused

FLOOR_SECONDS = 0.25
"""A no comes after that, or twice that and so on: more than a hash takes, and much more than not finding a user."""

CHECKER_SECONDS = 10.0
"""A checker that has not answered by then has failed."""

WAITING_PER_ADDRESS = 64
"""Logins of one address that wait for their turn."""

WAITING = 4096
"""Logins under way, waiting ones included."""

Done = Callable[["bool | Refused"], None]
"""Told whether it is right; or that it was not looked at, or could not be."""

_credentials_of: Callable[[bytes, bytes], Any] = UsernamePassword


class Check:
    """One login being checked."""

    def __init__(self, logins: Logins, login: Login, account: str, done: Done) -> None:
        self.login = login
        self.account = account
        self.done: Done | None = done
        self.timer: IDelayedCall | None = None
        self.answer: Deferred[Any] | None = None
        self.began = 0.0
        self.left: deque[Checker] = deque()
        self.generation = 0
        self.failed_checker = ""
        self._logins = logins

    def cancel(self) -> None:
        """Forget it; *done* will not be called. What is being looked at is looked at to the end."""
        if self.done is not None:
            self.done = None
            self._logins.forget(self)


class Logins:
    """Checks logins. Closed, it calls nobody any more."""

    _log = Logger("plumberd.logins")

    def __init__(
        self,
        reactor: Any,
        settings: LoginSettings | None = None,
        failures_per_minute: int = 10,
        threads: InThreads | None = None,
    ) -> None:
        """Prepare.

        :param reactor: for time, and for threads where *threads* are not given.
        :param failures_per_minute: so many are heard from one address.
        :raises CheckerError: as :func:`plumberd.effects.checkers.make_checkers`.
        """
        self._clock = reactor
        self._threads = threads or Threads(reactor)
        self._attempts = Attempts(failures_per_minute)
        self._places: FairQueue[str, Check] = FairQueue(1, THREADS, WAITING_PER_ADDRESS)
        self._turns: deque[Check] = deque()
        self._is_going_on = False
        self._live: set[Check] = set()
        self._generation = 0
        self._checkers: tuple[Checker, ...] = ()
        self.change(settings or LoginSettings(), failures_per_minute)

    @property
    def can_check(self) -> bool:
        """Whether there is anything that could say yes."""
        return bool(self._checkers)

    @property
    def under_way(self) -> int:
        """How many logins are being looked at, or wait for that."""
        return len(self._live)

    def change(self, settings: LoginSettings, failures_per_minute: int) -> None:
        """Ask what *settings* name from now on, also about what is under way; forget what was right.

        :raises CheckerError: then nothing has changed.
        """
        self._checkers = make_checkers(settings, self._threads, self._clock)
        self._attempts.per_address = failures_per_minute
        self._generation += 1

    def check(self, login: Login, address: IPAddress | None, done: Done) -> Check:
        """Tell *done*, later, whether *login* is right: who logs in is then ``login:`` and the name in it.

        ``busy`` comes without a look at it: too many of that address have failed, or too many wait.
        ``not-possible`` is what cannot be told: a checker has failed, and no other said yes.

        :param address: the caller's; all that have none are one.
        """
        one = Check(self, login, account_of_address(address), done)
        wait = self._attempts.wait_seconds(one.account, self._clock.seconds())
        if len(self._live) >= WAITING:
            self._later(one, 0, lambda: self._tell(one, Refused(Refusal.BUSY, f"{WAITING} logins wait already")))
        elif wait:
            self._later(one, 0, lambda: self._tell(one, self._too_many(one, wait)))
        else:
            delay = self._attempts.delay_seconds(login.user, self._clock.seconds())
            self._later(one, delay, lambda: self._enter(one))
        return one

    def forget(self, one: Check) -> None:
        """Let go of what waits; what is being asked about goes on."""
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        elif not self._places.withdraw(one.account, one):
            return
        self._live.discard(one)

    def close(self) -> None:
        """End. Idempotent."""
        live, self._live = self._live, set()
        for one in live:
            one.cancel()
            if one.answer is not None:
                one.answer.cancel()
        self._turns.clear()
        self._threads.close()

    # -- the steps

    def _enter(self, one: Check) -> None:
        admission = self._places.enter(one.account, one)
        if admission is Admission.NOW:
            self._turn(one)
        elif admission is Admission.FULL:
            reason = f"{WAITING_PER_ADDRESS} logins from {one.account} wait already"
            self._tell(one, Refused(Refusal.BUSY, reason))

    def _turn(self, one: Check) -> None:
        """Look at *one* now; what that makes room for comes behind it, and not within."""
        self._turns.append(one)
        if self._is_going_on:
            return
        self._is_going_on = True
        try:
            while self._turns:
                self._begin(self._turns.popleft())
        finally:
            self._is_going_on = False

    def _begin(self, one: Check) -> None:
        one.began = self._clock.seconds()
        wait = self._attempts.wait_seconds(one.account, one.began)
        if wait:  # others of its address have failed while it waited
            self._leave(one)
            self._tell(one, self._too_many(one, wait))
        else:
            self._ask(one)

    def _ask(self, one: Check) -> None:
        one.generation, one.left, one.failed_checker = self._generation, deque(self._checkers), ""
        self._ask_next(one)

    def _ask_next(self, one: Check) -> None:
        if not one.left:
            self._said_no(one)
            return
        checker = one.left.popleft()
        login = one.login
        answer = checker.ask(_credentials_of(login.user.encode(), login.password.encode()))
        one.answer = answer.addTimeout(CHECKER_SECONDS, self._clock)
        answer.addCallbacks(self._proved, self._not_proved, callbackArgs=(one,), errbackArgs=(one, checker.name))
        answer.addErrback(lambda failure: self._log.failure("a login could not be answered", failure))

    def _proved(self, avatar: object, one: Check) -> None:
        who = avatar.decode("utf-8", "replace") if isinstance(avatar, bytes) else avatar
        if one not in self._live:
            return  # closed
        if one.generation != self._generation:
            self._ask(one)
        elif who != one.login.user:
            # A checker that takes another spelling for the same user: rules would see somebody else.
            self._ask_next(one)
        else:
            self._leave(one)
            self._tell(one, True)

    def _not_proved(self, failure: Failure, one: Check, name: str) -> None:
        if one not in self._live:
            return
        if not isinstance(failure.value, UnauthorizedLogin):
            # Its words may hold the password.
            self._log.error("logins: {name} failed: {error}", name=name, error=type(failure.value).__name__)
            one.failed_checker = one.failed_checker or name
        self._ask_next(one)

    def _said_no(self, one: Check) -> None:
        now = self._clock.seconds()
        self._attempts.failed(one.account, one.login.user, now)
        self._leave(one)
        if one.done is None:
            self._live.discard(one)
            return
        result: bool | Refused = False
        if one.failed_checker:
            reason = f"the login cannot be checked: {one.failed_checker} failed, and the log says how"
            result = Refused(Refusal.NOT_POSSIBLE, reason)
        due = one.began + FLOOR_SECONDS * max(math.ceil((now - one.began) / FLOOR_SECONDS), 1)
        self._later(one, max(due - now, 0.0), lambda: self._tell(one, result))

    # -- small parts

    def _leave(self, one: Check) -> None:
        following = self._places.leave(one.account)
        if following is not None:
            self._turn(following)

    def _later(self, one: Check, seconds: float, what: Callable[[], None]) -> None:
        def now() -> None:
            one.timer = None
            what()

        self._live.add(one)
        one.timer = self._clock.callLater(seconds, now)

    def _tell(self, one: Check, result: bool | Refused) -> None:
        self._live.discard(one)
        done, one.done = one.done, None
        if done is not None:
            done(result)

    def _too_many(self, one: Check, wait: float) -> Refused:
        limit = f"login_failures_per_minute={self._attempts.per_address}"
        reason = f"{limit}: so many logins from {one.account} have failed; {math.ceil(wait)} s to wait"
        return Refused(Refusal.BUSY, reason)
