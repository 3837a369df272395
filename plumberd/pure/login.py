"""Logins: what callers' are checked against, and which one goes along with a lookup to a far side.

A lookup's own stands in its URI; what this machine itself proves stands in the
configuration, bound to one destination. Both travel within the handshake alone,
which is encrypted.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from plumberd.pure.passwords import Passwords
from plumberd.pure.plumb_handshake import Login
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.tls import PeerSettings
from plumberd.pure.uri import Uri

CARRYING = ("tls", "wss")
"""The schemes over which a login is sent: all others can be read on the way."""


@dataclass(frozen=True)
class LoginSettings:
    """What the logins of callers are checked against, in this order.

    :ivar password_file: a file of ours, as an absolute path.
    :ivar passwords: what it held.
    :ivar checkers: of twisted.cred: ``TYPE:ARGS``, whose arguments may be secret.
    """

    password_file: str | None = None
    passwords: Passwords = field(default_factory=Passwords)
    checkers: tuple[str, ...] = field(default=(), repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What checks, for people: without the arguments of the checkers of others."""
        mine = () if self.password_file is None else (self.password_file,)
        return (*mine, *self.checker_names)

    @property
    def checker_names(self) -> tuple[str, ...]:
        """The types of the checkers."""
        return tuple(checker.partition(":")[0] for checker in self.checkers)

    @property
    def can_check(self) -> bool:
        """Whether anybody could prove a login here."""
        return self.password_file is not None or bool(self.checkers)


def check_credentials(uri: Uri) -> None:
    """Check that what *uri* says of a user can be sent at all.

    :raises Refused: ``bad-request``.
    """
    if uri.user is None:
        return
    if uri.scheme not in CARRYING:
        where = " and ".join(CARRYING)
        raise Refused(Refusal.BAD_REQUEST, f"credentials are not sent over plain {uri.scheme}; {where} carry them")
    if uri.service is None and uri.scheme != "wss":
        raise Refused(
            Refusal.BAD_REQUEST, "credentials go to a plumberd, with the name of a service; the URI names none"
        )
    if not uri.user:
        raise Refused(Refusal.BAD_REQUEST, "a password without the name of a user")
    if ":" in uri.user:
        raise Refused(Refusal.BAD_REQUEST, "the name of a user holds no colon")


def authorization_for(uri: Uri, peer: PeerSettings | None) -> str | None:
    """Return what goes into HTTP's ``Authorization`` towards *uri*, if anything does: nothing where all can read it.

    The lookup's own login goes before what this machine proves there, of that a token before a login.

    :param peer: what the configuration says of that very host and port.
    :raises Refused: as :func:`login_for`.
    """
    if uri.scheme not in CARRYING:
        check_credentials(uri)
        return None
    if uri.user is None and peer is not None and peer.token is not None:
        return f"Bearer {peer.token}"
    login = login_for(uri, peer)
    if login is None:
        return None
    return "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode("ascii")


def login_for(uri: Uri, peer: PeerSettings | None) -> Login | None:
    """Return what goes into the handshake's ``authorization`` towards *uri*, if anything does.

    The lookup's own goes before what this machine proves there; a URI with a user and no password means
    the machine's login of that name.

    :param peer: what the configuration says of that very host and port.
    :raises Refused: ``bad-request`` where it cannot be sent, or where a password is missing.
    """
    check_credentials(uri)
    if uri.user is not None and uri.password is not None:
        return Login(uri.user, uri.password)
    if (uri.service is None and uri.scheme != "wss") or uri.scheme not in CARRYING:
        return None
    if peer is not None and peer.login is not None and peer.password is not None and uri.user in (None, peer.login):
        return Login(peer.login, peer.password)
    if uri.user is not None:
        raise Refused(
            Refusal.BAD_REQUEST,
            f"a user and no password: the configuration has no login of that name for {uri.host}:{uri.port}",
        )
    return None
