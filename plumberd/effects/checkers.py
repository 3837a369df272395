"""What says whether a login is right: a password file of ours, and whatever twisted.cred has plugins for.

All of them are twisted.cred's checkers (ICredentialsChecker). Hashing blocks for a
tenth of a second, and Twisted's own checkers block too; both do it in threads.
Checkers that other people have written run in the reactor's thread, as their
interface has it.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from twisted.cred import strcred
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from plumberd.pure.login import LoginSettings
from plumberd.pure.passwords import Passwords

T = TypeVar("T")

THREADS = 2
"""So many passwords are checked at once; each takes a processor, and 32 MiB."""

PROVED = 1024
"""So many logins that were right are remembered."""

PROVED_SECONDS = 300.0
"""For so long: a program that makes many connections is checked once."""

BLOCKING = ("file", "unix")
"""Twisted's own checkers that do everything before they return."""

PLAIN = "memory"
"""Twisted's checker whose passwords stand in its own words; those of bytes never match them."""

_factories: Callable[[], Any] = strcred.findCheckerFactories
_find_factory: Callable[[str], Any] = strcred.findCheckerFactory
_make_checker: Callable[[str], Any] = strcred.makeChecker
_failure: Callable[..., Failure] = Failure


class CheckerError(ValueError):
    """Nothing of twisted.cred's is meant by it; the message repeats no argument, which may be secret."""


class InThreads(Protocol):
    """Runs what blocks."""

    def run(self, work: Callable[[], T]) -> Deferred[T]:
        """Call *work* in a thread, and fire with what comes of it, in the reactor's."""

    def close(self) -> None:
        """End the threads; nothing is fired any more."""


class Threads:
    """A few daemon threads, started when they are needed."""

    def __init__(self, reactor: IReactorFromThreads, most: int = THREADS) -> None:
        self._reactor = reactor
        self._most = most
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._under_way = 0
        self._closed = False

    def run(self, work: Callable[[], T]) -> Deferred[T]:
        """See :meth:`InThreads.run`."""
        done: Deferred[T] = Deferred()

        def one() -> None:
            result: T | Failure
            try:
                result = work()
            except Exception:
                result = _failure()
            if not self._closed:
                self._reactor.callFromThread(self._finish, done, result)

        self._under_way += 1
        if self._threads < min(self._under_way, self._most):
            self._threads += 1
            threading.Thread(target=self._run, name="logins", daemon=True).start()
        self._work.put(one)
        return done

    def close(self) -> None:
        """See :meth:`InThreads.close`."""
        self._closed = True
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (one := self._work.get()) is not None:
            one()

    def _finish(self, done: Deferred[T], result: T | Failure) -> None:
        self._under_way -= 1
        if not self._closed:
            done.callback(result)


@implementer(ICredentialsChecker)
class PasswordFile:
    """The users of a password file.

    A login that was right is remembered for a while, as a keyed hash: it says the same as asking
    again, for a file that was read once. The key is this object's alone.
    """

    credentialInterfaces = (IUsernamePassword,)  # noqa: N815 - Twisted's name

    def __init__(self, passwords: Passwords, threads: InThreads, clock: IReactorTime) -> None:
        self._passwords = passwords
        self._threads = threads
        self._clock = clock
        self._key = os.urandom(32)
        self._proved: OrderedDict[bytes, float] = OrderedDict()

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """Fire with the user's name, or fail with UnauthorizedLogin."""
        user, password = credentials.username, credentials.password
        mark = hashlib.blake2b(b"%d:%b%b" % (len(user), user, password), key=self._key).digest()
        if self._proved.get(mark, 0.0) > self._clock.seconds():
            return succeed(user)

        def verify() -> bool:
            return self._passwords.verify(user.decode(), password.decode())

        def told(right: bool) -> Any:
            if not right:
                return _failure(UnauthorizedLogin())
            self._proved.pop(mark, None)
            self._proved[mark] = self._clock.seconds() + PROVED_SECONDS
            if len(self._proved) > PROVED:
                self._proved.popitem(last=False)
            return user

        return self._threads.run(verify).addCallback(told)


@implementer(ICredentialsChecker)
class Blocking:
    """A checker that blocks, asked in a thread."""

    def __init__(self, checker: Any, threads: InThreads) -> None:
        """*checker* has its answer when its method returns."""
        self.credentialInterfaces = checker.credentialInterfaces
        self._checker = checker
        self._threads = threads

    def requestAvatarId(self, credentials: Any) -> Deferred[Any]:
        """See :class:`twisted.cred.checkers.ICredentialsChecker`."""

        def ask() -> Any:
            answers: list[Any] = []
            maybeDeferred(self._checker.requestAvatarId, credentials).addBoth(answers.append)
            if not answers:
                raise RuntimeError("a checker that was to block does not")
            if isinstance(answers[0], Failure):
                answers[0].raiseException()
            return answers[0]

        return self._threads.run(ask)


@dataclass(frozen=True)
class Checker:
    """A checker, and what it is called in the log."""

    name: str
    checker: Any

    def ask(self, credentials: Any) -> Deferred[Any]:
        """Fire with whom *credentials* prove, or fail, with UnauthorizedLogin where they prove nobody."""
        return maybeDeferred(self.checker.requestAvatarId, credentials)


def make_checkers(settings: LoginSettings, threads: InThreads, clock: IReactorTime) -> tuple[Checker, ...]:
    """Return what *settings* name, in their order.

    :raises CheckerError: as :func:`make_checker`.
    """
    found = []
    if settings.password_file is not None:
        found.append(Checker(settings.password_file, PasswordFile(settings.passwords, threads, clock)))
    for description in settings.checkers:
        name = description.partition(":")[0]
        made = make_checker(description)
        found.append(Checker(name, Blocking(made, threads) if name in BLOCKING else made))
    return tuple(found)


def make_checker(description: str) -> Any:
    """Return the checker of twisted.cred that ``TYPE:ARGS`` means.

    :raises CheckerError: for a type that there is not, or that knows no user names and passwords, and
        where it does not take its arguments.
    """
    name = description.partition(":")[0]
    _factory(name)
    try:
        return _make_checker(description)
    except Exception as e:  # each has errors of its own, with what it was told in them
        raise CheckerError(f"{name}: it does not take its arguments ({type(e).__name__})") from None


def checker_types() -> tuple[str, ...]:
    """Return the types of checkers that know user names and passwords."""
    found = {str(f.authType) for f in _factories() if IUsernamePassword in f.credentialInterfaces}
    return tuple(sorted(found - {PLAIN}))


def checker_table() -> str:
    """Return the types of checkers with how their arguments look, for people."""
    known = checker_types()
    formats = {str(f.authType): str(f.argStringFormat) for f in _factories()}
    lines = [f"  {name:<12} {formats[name]}" for name in known]
    return "\n".join(["--auth TYPE[:ARGS], where TYPE is one of", *lines, "--help-auth-type TYPE tells more of one."])


def checker_help(name: str) -> str:
    """Return what there is to say of one type.

    :raises CheckerError: there is none of that name, or it knows no user names and passwords.
    """
    factory = _factory(name)
    help_lines = [line.rstrip() for line in str(factory.authHelp).strip().splitlines()]
    return "\n".join([f"--auth {name}[:ARGS]", f"ARGS: {factory.argStringFormat}", "", *help_lines])


def _factory(name: str) -> Any:
    known = checker_types()
    if name == PLAIN:
        raise CheckerError(f"{PLAIN} holds passwords in its own words, which ps shows: write a file with plumb passwd")
    try:
        factory = _find_factory(name)
    except strcred.InvalidAuthType:
        raise CheckerError(f"no such type: wanted TYPE[:ARGS] with one of {', '.join(known)}") from None
    if name not in known:
        raise CheckerError(f"{factory.authType} checks no user names and passwords; these do: {', '.join(known)}")
    return factory
