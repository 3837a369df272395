"""The broker: local clients on the run directory's sockets, in every dialect."""

from __future__ import annotations

import dataclasses
import functools
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from twisted.logger import Logger

from plumberd.effects.accept import Acceptor
from plumberd.effects.audit import Outcome
from plumberd.effects.closing import IN_ALL, Closer
from plumberd.effects.control import ControlSocket
from plumberd.effects.conversation import Conversation, Received
from plumberd.effects.credentials import Sender, maker_of
from plumberd.effects.deadline import Deadlines
from plumberd.effects.rundir import BoundSocket, bind_socket
from plumberd.pure.admission import FairQueue
from plumberd.pure.dialects import DIALECTS, Dialect, Kind, Request
from plumberd.pure.dialects.native import NativeDecoder
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.wiring.clients.asker import Asker, Permit
from plumberd.wiring.clients.lookup import Lookup
from plumberd.wiring.core import Core
from plumberd.wiring.inbound.tcpd import Tcpd
from plumberd.wiring.ops.operations import Operations

_ONE_ANSWER = dataclasses.replace(DIALECTS["native"], conversation=False)
"""The native dialect as it is spoken where a control socket's answers go."""

FORGOTTEN_SECONDS = 600.0
"""A descriptor that lies unread in a live client's queue stays on its user's account so long."""


class _Sends(Protocol):
    """Who waits for room to send a descriptor: a lookup, or a claim."""

    @property
    def uid(self) -> int: ...
    def send(self) -> None: ...


class Broker:
    """Owns the listening sockets of the run directory."""

    _log = Logger("plumberd.broker")

    def __init__(self, core: Core, tcpd: Tcpd) -> None:
        self._core = core
        self.lookups: FairQueue[int, Lookup] = FairQueue(1, 1, 1)
        self.unread: FairQueue[int, _Sends] = FairQueue(1, 1, 2**31)
        self._have_room: deque[_Sends] = deque()
        self._is_sending = False
        self._take_limits()
        self._operations = Operations(core, self, tcpd)
        self._forgotten = Deadlines(core.reactor, FORGOTTEN_SECONDS)
        self._under_way: dict[Conversation, Lookup] = {}
        self._conversations: dict[Conversation, Asker] = {}
        self._controls: dict[ControlSocket, int] = {}
        # What one packet brings may be as many descriptors as a thread holds.
        self._closer = Closer(core.reactor, min(IN_ALL, max(core.descriptors // 1024, 2)))
        self._of_uid: dict[int, int] = {}
        self._bound: list[BoundSocket] = []
        self._acceptors: list[Acceptor] = []

    def reconfigure(self) -> None:
        """Take the settings that are in force now: who fits now has its turn, who may not serve any more is ended."""
        self._take_limits()
        self._operations.reconfigure()

    def _take_limits(self) -> None:
        limits, descriptors = self._core.settings.limits, self._core.descriptors
        for lookup in self.lookups.change(limits.lookups_per_uid, limits.lookups, limits.waiting_per_uid):
            self._core.poll.again(self._next_one(lookup))
        # What lies unread counts against the broker's own descriptors, for all users together.
        most = min(limits.unread_descriptors_per_uid, descriptors // 4)
        self._have_room.extend(self.unread.change(most, descriptors // 2, 2**31))
        self._send_all()

    @property
    def conversations(self) -> int:
        """How many clients are connected."""
        return len(self._conversations)

    @property
    def controls(self) -> int:
        """How many control sockets somebody may ask on."""
        return len(self._controls)

    @property
    def connections_by_uid(self) -> Mapping[int, int]:
        """How many connections each user has."""
        return self._of_uid

    @property
    def connections_per_uid(self) -> int:
        """How many one user may have; never more than a quarter of the descriptors."""
        return min(self._core.settings.limits.connections_per_uid, self._core.descriptors // 4)

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
        for control in list(self._controls):
            control.close()
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
        self._serve(dialect, sock, Asker(maker))

    def _serve(self, dialect: Dialect, sock: socket.socket, asker: Asker, received: Received | None = None) -> None:
        """Begin to talk on *sock*, and own it."""
        if not self._enter(asker.uid):
            self._note("busy", f"uid={asker.uid}", self._too_many(asker.uid))
            sock.close()
            return
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
        self._conversations[conversation] = asker
        try:
            conversation.start(received)
        except Exception:
            self._log.failure("a client could not be served")
            conversation.close()

    def _enter(self, uid: int) -> bool:
        """Count one more connection of a user; tell whether it may have it."""
        count = self._of_uid.get(uid, 0)
        if count >= self.connections_per_uid:
            return False
        self._of_uid[uid] = count + 1
        return True

    def _too_many(self, uid: int) -> str:
        return f"connections_per_uid={self.connections_per_uid}: uid {uid} has so many connections already"

    def _leave(self, uid: int) -> None:
        left = self._of_uid[uid] - 1
        if left:
            self._of_uid[uid] = left
        else:
            del self._of_uid[uid]

    def _asked(self, conversation: Conversation, received: Received) -> None:
        request, asker = received.request, self._conversations[conversation]
        sender = received.sender
        if not isinstance(request, Request):
            self._refuse(conversation, request.ident, request.word, request.reason)
        elif request.op == "lookup":
            lookup = Lookup(self._core, self, conversation, request, sender, asker)
            self._under_way[conversation] = lookup
            lookup.enter()
        else:
            self._operations.perform(conversation, request, asker, sender)

    def _broken(self, conversation: Conversation, word: Refusal, reason: str) -> None:
        pid, uid, _ = self._conversations[conversation].maker
        self._note(word.value, f"uid={uid} pid={pid}", f"{conversation.dialect.name}: {reason}")

    def _gone(self, conversation: Conversation) -> None:
        self._leave(self._conversations.pop(conversation).uid)
        self._operations.gone(conversation)
        lookup = self._under_way.pop(conversation, None)
        if lookup is not None:
            lookup.cancel()

    # -- what lookups tell (see lookup.Places)

    def finished(self, lookup: Lookup) -> None:
        """See :class:`plumberd.wiring.clients.lookup.Places`."""
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

    def taken(self, sender: _Sends, *, forgotten: bool) -> None:
        """See :class:`~plumberd.wiring.clients.lookup.Places`, and that of the registrations."""
        if forgotten:
            self._forgotten.set(sender, lambda: self._make_room(sender.uid))
        else:
            self._make_room(sender.uid)

    def _make_room(self, uid: int) -> None:
        following = self.unread.leave(uid)
        if following is not None:
            self._have_room.append(following)
            self._send_all()

    def _send_all(self) -> None:
        """Let those send that have room now: one after the other, for one that has no use for it makes room again."""
        if self._is_sending:
            return
        self._is_sending = True
        try:
            while self._have_room:
                self._have_room.popleft().send()
        finally:
            self._is_sending = False

    # -- what operations ask for (see operations.Desk)

    def restrict(self, conversation: Conversation, permit: Permit) -> None:
        """See :class:`plumberd.wiring.ops.operations.Desk`."""
        self._conversations[conversation].permit = permit

    def give_control(self, conversation: Conversation, request: Request, permit: Permit) -> None:
        """See :class:`plumberd.wiring.ops.operations.Desk`."""
        uid, gid = permit.who.uid, permit.who.gid
        if not self._enter(uid):
            raise Refused(Refusal.BUSY, self._too_many(uid))
        decoder = NativeDecoder(self._core.settings.limits.lookup_bytes)

        def asked(sock: socket.socket, payload: bytes, sender: Sender | None) -> None:
            pid = permit.who.pid if sender is None else sender[0]
            self._serve(_ONE_ANSWER, sock, Asker((pid, uid, gid), permit), Received(decoder.one(payload), sender))

        try:
            control = ControlSocket(self._core.poll, decoder.limit_bytes, asked, self._control_ended, self._closer, uid)
        except OSError as e:
            self._leave(uid)
            raise Refused(Refusal.BUSY, f"no descriptors for a control socket: {e.strerror}") from None
        self._controls[control] = uid
        try:
            control.start()
        except OSError as e:
            control.close()
            raise Refused(Refusal.BUSY, f"a control socket cannot be watched: {e.strerror}") from None
        conversation.grant(request, control.theirs.detach(), "control", "", _forget)

    def _control_ended(self, control: ControlSocket) -> None:
        self._leave(self._controls.pop(control))

    def refuse(self, conversation: Conversation, request: Request, refused: Refused) -> None:
        """See :class:`plumberd.wiring.ops.operations.Desk`."""
        self._refuse(conversation, request.ident, refused.word, refused.reason)

    def _refuse(self, conversation: Conversation, ident: str | int | None, word: Refusal, reason: str) -> None:
        reason = reason[:REASON_BYTES]
        if conversation in self._conversations:  # else it was that which went wrong
            pid, uid, _ = self._conversations[conversation].maker
            self._note(word.value, f"uid={uid} pid={pid}", f"{conversation.dialect.name}: {reason}")
            conversation.refuse(ident, word, reason)

    def _note(self, verdict: str, who: str, reason: str) -> None:
        self._core.audit.note(Outcome(verdict, who=who, reason=reason))


def _forget(taken: bool) -> None:
    """Whether a control socket was taken shows when its other end is closed."""
