"""Logins without hashes and without threads: whose passwords are known, and threads that work when a test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from zope.interface import implementer

from plumberd.pure.passwords import Passwords

T = TypeVar("T")


class Known(Passwords):
    """The users of a file, with passwords that cost nothing; remembers whom it was asked about."""

    def __init__(self, **users: str) -> None:
        super().__init__()
        self._users = users
        self.asked: list[str] = []

    def verify(self, user: str, password: str) -> bool:
        """See :meth:`Passwords.verify`."""
        self.asked.append(user)
        return self._users.get(user) == password


class InTurn:
    """Stands in the place of threads: works at once, or holds the work until :meth:`work`."""

    def __init__(self, *, holds: bool = False) -> None:
        self.held: list[Callable[[], None]] = []
        self.holds = holds
        self.closed = False

    def run(self, work: Callable[[], T]) -> Deferred[T]:
        """See :meth:`plumberd.effects.checkers.InThreads.run`."""
        if not self.holds:
            return maybeDeferred(work)
        done: Deferred[T] = Deferred()

        def now() -> None:
            maybeDeferred(work).chainDeferred(done)

        self.held.append(now)
        return done

    def work(self) -> None:
        """Do what is held next."""
        self.held.pop(0)()

    def close(self) -> None:
        """See :meth:`plumberd.effects.checkers.InThreads.close`."""
        self.closed = True


@implementer(ICredentialsChecker)
class Scripted:
    """A checker of somebody else's: says what it is told to, now or later."""

    credentialInterfaces = (IUsernamePassword,)  # noqa: N815 - Twisted's name

    def __init__(self, **answers: Any) -> None:
        """*answers*: for a user's name its avatar, an exception, or a Deferred; no for everybody else."""
        self._answers = answers
        self.asked: list[tuple[bytes, bytes]] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        """See :class:`twisted.cred.checkers.ICredentialsChecker`."""
        self.asked.append((credentials.username, credentials.password))
        answer = self._answers.get(credentials.username.decode(), UnauthorizedLogin())
        if isinstance(answer, Exception):
            raise answer
        return answer
