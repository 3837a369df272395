"""Who is at the other end of a connection to the broker, and what the connection may ask for.

Most connections are as free as who made them. One that is restricted may look up
the services that were named, by the ways that were named with them, and nothing
else, for ever: it is made to be inherited, and who inherits it is not known.
"""

from __future__ import annotations

import dataclasses
import socket
from dataclasses import dataclass

from plumberd.effects.credentials import Inspector, Sender
from plumberd.pure.dialects import Request
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho


@dataclass(frozen=True)
class Permit:
    """What a restricted connection may look up.

    :ivar who: who restricted it, and on whose behalf everything is decided.
    :ivar pairs: the routes that were given with it; those of later lookups do not count.
    """

    who: LocalWho
    services: frozenset[str]
    pairs: Pairs


@dataclass
class Asker:
    """One connection's other end.

    :ivar maker: pid, uid and gid of who made the connection.
    :ivar permit: what it may look up, where it is restricted.
    """

    maker: Sender
    permit: Permit | None = None

    @property
    def uid(self) -> int:
        """On whose account the connection is."""
        return self.maker[1]

    def who(self, inspector: Inspector, sock: socket.socket, sender: Sender | None) -> LocalWho:
        """Return who asks, for rules and for the log.

        :raises Refused: ``denied`` where the sender is another user than the maker.
        :raises OSError: where it can't be had for now.
        """
        if self.permit is None:
            return inspector.who(sock, self.maker, sender)
        pid = sender[0] if sender is not None else self.permit.who.pid
        return dataclasses.replace(self.permit.who, pid=pid)

    def pairs_for(self, request: Request) -> Pairs:
        """Return the routes that count for a lookup.

        :raises Refused: ``denied`` for what a restricted connection may not look up.
        """
        if self.permit is None:
            return request.pairs
        if request.service is None or request.service not in self.permit.services:
            wanted = ", ".join(sorted(self.permit.services))
            raise Refused(Refusal.DENIED, f"this connection is restricted, for ever, to looking up {wanted}")
        return self.permit.pairs


def restrict(who: LocalWho, services: frozenset[str], pairs: Pairs) -> Permit:
    """Return the permit that *who* gives away: never more than it has, and nothing ``direct``."""
    return Permit(dataclasses.replace(who, restricted=True, same_cgroup=False), services, pairs)
