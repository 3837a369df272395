"""The broker: local clients on the run directory's sockets, in every dialect."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable

from twisted.logger import Logger

from plumberd.effects.accept import Acceptor
from plumberd.effects.audit import Outcome
from plumberd.effects.conversation import Conversation, Received
from plumberd.effects.credentials import Sender, maker_of
from plumberd.effects.deadline import Deadlines
from plumberd.effects.rundir import BoundSocket, bind_socket
from plumberd.pure.admission import FairQueue
from plumberd.pure.dialects import DIALECTS, Dialect, Kind, Request
from plumberd.pure.refusals import Refusal, Refused
from plumberd.wiring.core import Core
from plumberd.wiring.lookup import Lookup
from plumberd.wiring.operations import Operations

FORGOTTEN_SECONDS = 600.0
"""A descriptor that lies unread in a live client's queue stays on its user's account so long."""


class Broker:
    """Owns the listening sockets of the run directory."""

    _log = Logger("plumberd.broker")

    def __init__(self, core: Core) -> None:
        self._core = core
        self.lookups: FairQueue[int, Lookup] = FairQueue(1, 1, 1)
        self.unread: FairQueue[int, Lookup] = FairQueue(1, 1, 2**31)
        self.reconfigure()
        self._operations = Operations(core, self)
        self._forgotten = Deadlines(core.reactor, FORGOTTEN_SECONDS)
        self._under_way: dict[Conversation, Lookup] = {}
        self._conversations: dict[Conversation, Sender] = {}
        self._of_uid: dict[int, int] = {}
        self._bound: list[BoundSocket] = []
        self._acceptors: list[Acceptor] = []

    def reconfigure(self) -> None:
        """Take the limits that are in force now; who fits now has its turn."""
        limits, descriptors = self._core.settings.limits, self._core.descriptors
        for lookup in self.lookups.change(limits.lookups_per_uid, limits.lookups, limits.waiting_per_uid):
            self._core.poll.again(self._next_one(lookup))
        # What lies unread counts against the broker's own descriptors, for all users together.
        most = min(limits.unread_descriptors_per_uid, descriptors // 4)
        for lookup in self.unread.change(most, descriptors // 2, 2**31):
            lookup.send()

    @property
    def conversations(self) -> int:
        """How many clients are connected."""
        return len(self._conversations)

    @property
    def paths(self) -> tuple[str, ...]:
        """The sockets that are listened on."""
        return tuple(b.path for b in self._bound)

    def listen(self) -> None:
        """Make every dialect's socket in the run directory, or nothing.

        :raises RunDirError: telling what is in the way.
        """
        settings = self._core.settings
        try:
            for name in settings.dialects:
                dialect = DIALECTS[name]
                kind = socket.SOCK_SEQPACKET if dialect.kind is Kind.PACKET else socket.SOCK_STREAM
                bound = bind_socket(settings.rundir, dialect.socket_name, settings.gid, kind)
                self._bound.append(bound)
                self._core.own.add(bound.identity)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Begin to accept."""
        for name, bound in zip(self._core.settings.dialects, self._bound, strict=False):
            take = functools.partial(self._accepted, DIALECTS[name])
            acceptor = Acceptor(self._core.poll, self._core.reactor, bound.sock, take)
            self._acceptors.append(acceptor)
            acceptor.start()

    def stop(self) -> None:
        """Stop listening, hang up on every client, remove what was made."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
        for bound in self._bound:
            bound.close()
        self._bound.clear()
        for conversation in list(self._conversations):
            conversation.close()
        self._forgotten.close()

    # -- what conversations tell

    def _accepted(self, dialect: Dialect, sock: socket.socket) -> None:
        try:
            maker = maker_of(sock)
        except OSError:
            sock.close()
            return
        uid = maker[1]
        count = self._of_uid.get(uid, 0)
        limit = min(self._core.settings.limits.connections_per_uid, self._core.descriptors // 4)
        if count >= limit:
            sock.close()
            self._note("busy", f"uid={uid}", f"connections_per_uid: uid {uid} has {limit} connections already")
            return
        self._of_uid[uid] = count + 1
        conversation = Conversation(
            self._core.poll,
            sock,
            dialect,
            self._core.patience,
            self._core.settings.limits.lookup_bytes,
            asked=self._asked,
            broken=self._broken,
            gone=self._gone,
        )
        self._conversations[conversation] = maker
        try:
            conversation.start()
        except Exception:
            self._log.failure("a client could not be served")
            conversation.close()

    def _asked(self, conversation: Conversation, received: Received) -> None:
        request, maker = received.request, self._conversations[conversation]
        sender = received.sender
        if not isinstance(request, Request):
            self._refuse(conversation, maker, request.ident, request.word, request.reason)
        elif request.op == "lookup":
            lookup = Lookup(self._core, self, conversation, request, sender, maker)
            self._under_way[conversation] = lookup
            lookup.enter()
        else:
            try:
                self._operations.perform(conversation, request, maker, sender)
            except Refused as e:
                self._refuse(conversation, maker, request.ident, e.word, e.reason)

    def _broken(self, conversation: Conversation, word: Refusal, reason: str) -> None:
        maker = self._conversations[conversation]
        self._note(word.value, f"uid={maker[1]} pid={maker[0]}", f"{conversation.dialect.name}: {reason}")

    def _gone(self, conversation: Conversation) -> None:
        maker = self._conversations.pop(conversation)
        left = self._of_uid[maker[1]] - 1
        if left:
            self._of_uid[maker[1]] = left
        else:
            del self._of_uid[maker[1]]
        self._operations.gone(conversation)
        lookup = self._under_way.pop(conversation, None)
        if lookup is not None:
            lookup.cancel()

    # -- what lookups tell (see lookup.Places)

    def finished(self, lookup: Lookup) -> None:
        """See :class:`plumberd.wiring.lookup.Places`."""
        if self._under_way.get(lookup.conversation) is lookup:
            del self._under_way[lookup.conversation]
        if not lookup.admitted:
            self.lookups.withdraw(lookup.uid, lookup)
            return
        following = self.lookups.leave(lookup.uid)
        if following is not None:
            self._core.poll.again(self._next_one(following))

    def _next_one(self, lookup: Lookup) -> Callable[[], None]:
        lookup.admitted = True  # from now on the place is its own, to be given back
        return lookup.start

    def taken(self, lookup: Lookup, *, forgotten: bool) -> None:
        """See :class:`plumberd.wiring.lookup.Places`."""
        if forgotten:
            self._forgotten.set(lookup, lambda: self._make_room(lookup.uid))
        else:
            self._make_room(lookup.uid)

    def _make_room(self, uid: int) -> None:
        following = self.unread.leave(uid)
        if following is not None:
            following.send()

    # -- answers that are no lookups

    def connections_of(self, uid: int) -> int:
        """See :class:`plumberd.wiring.operations.Desk`."""
        return self._of_uid.get(uid, 0)

    def _refuse(
        self, conversation: Conversation, maker: Sender, ident: str | int | None, word: Refusal, reason: str
    ) -> None:
        self._note(word.value, f"uid={maker[1]} pid={maker[0]}", f"{conversation.dialect.name}: {reason}")
        conversation.refuse(ident, word, reason)

    def _note(self, verdict: str, who: str, reason: str) -> None:
        self._core.audit.note(Outcome(verdict, who=who, reason=reason))
