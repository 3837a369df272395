"""What the native socket answers besides lookups, and who may ask for it."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.logger import Logger

from plumberd.effects.audit import Outcome
from plumberd.effects.conversation import Conversation
from plumberd.effects.credentials import Sender
from plumberd.pure.admission import FairQueue
from plumberd.pure.dialects import Request
from plumberd.pure.dialects.native import answer
from plumberd.pure.fitting import fitted, shortened
from plumberd.pure.names import check_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Question, Verdict
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import Answer
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.subject import UNMAPPED
from plumberd.pure.refusals import REASON_BYTES, Refusal, Refused
from plumberd.pure.who import LocalWho
from plumberd.wiring.clients.asker import Asker, Permit, restrict
from plumberd.wiring.clients.registrations import Registration
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.approach import guard
from plumberd.wiring.inbound.tcpd import Tcpd
from plumberd.wiring.ops import accounting
from plumberd.wiring.ops.explaining import Explaining, asked_of, explaining, subject_as
from plumberd.wiring.ops.status import about_client, about_everything
from plumberd.wiring.ops.usage import usage

LISTS = ("rules", "routes", "redirects", "publish", "tcpd", "serving", "limits")
"""What may be too long of a `status`."""


class Right(enum.Enum):
    """Who may ask for an operation."""

    EVERYBODY = "every client, confined ones too"
    ADMITTED = "every client that is not confined, about itself"
    ADMIN = "root, the broker's own user, and the admin group"


RIGHTS = {
    "lookup": Right.EVERYBODY,
    "status": Right.ADMITTED,
    "explain": Right.ADMITTED,
    "why": Right.ADMITTED,
    "reload": Right.ADMIN,
    "confine": Right.ADMITTED,
    "serve": Right.EVERYBODY,
    "ss": Right.ADMITTED,
    "kill": Right.ADMIN,
    "whois": Right.ADMITTED,
}
"""Every operation; `status`, `explain` and `ss` tell an administrator more."""


class Desk(Protocol):
    """What operations ask the broker for."""

    lookups: FairQueue[int, Any]
    unread: FairQueue[int, Any]

    @property
    def paths(self) -> tuple[str, ...]: ...
    @property
    def conversations(self) -> int: ...
    @property
    def controls(self) -> int: ...

    @property
    def connections_by_uid(self) -> Mapping[int, int]: ...
    @property
    def connections_per_uid(self) -> int: ...

    def taken(self, sender: Any, *, forgotten: bool) -> None:
        """See :class:`plumberd.wiring.clients.registrations.Places`."""

    def restrict(self, conversation: Conversation, permit: Permit) -> None:
        """Make a connection look up what *permit* says, and no more, for ever."""

    def give_control(self, conversation: Conversation, request: Request, permit: Permit) -> None:
        """Answer with a control socket that is restricted so."""

    def refuse(self, conversation: Conversation, request: Request, refused: Refused) -> None:
        """Tell a client that its request is refused, and note it."""


class Operations:
    """Answers one request at a time for each conversation; what it does for one that ends is cancelled."""

    _log = Logger("plumberd")

    def __init__(self, core: Core, desk: Desk, tcpd: Tcpd) -> None:
        self._core = core
        self._tcpd = tcpd
        self._desk = desk
        self._resolving: dict[Conversation, Any] = {}
        self._looks = accounting.Looks(core.census)
        self._claims: dict[Registration, tuple[Outcome, float]] = {}
        self._run: dict[str, Callable[[Conversation, Request, LocalWho], None]] = {
            "status": self._status,
            "explain": self._explain,
            "why": self._why,
            "reload": self._reload,
            "confine": self._confine,
            "serve": self._serve,
            "ss": self._ss,
            "kill": self._kill,
            "whois": self._whois,
        }

    def perform(self, conversation: Conversation, request: Request, asker: Asker, sender: Sender | None) -> None:
        """Answer *request*, now or when a name is resolved; whatever goes wrong is its refusal."""
        refuse = functools.partial(self._desk.refuse, conversation, request)
        guard(refuse, self._perform, conversation, request, asker, sender)

    def _perform(self, conversation: Conversation, request: Request, asker: Asker, sender: Sender | None) -> None:
        who = asker.who(self._core.inspector, conversation.sock, sender)
        if asker.permit is not None:
            raise Refused(Refusal.DENIED, "a restricted connection may look up, no more")
        self._check(RIGHTS[request.op], request.op, who)
        self._run[request.op](conversation, request, who)

    def reconfigure(self) -> None:
        """End the claims that the rules in force now do not allow."""
        self._core.registrations.judge(lambda service, who: bool(self._may_serve(service, who).granted))

    def gone(self, conversation: Conversation) -> None:
        """The client hung up: nobody waits for the name any more, and what it served is free."""
        for registration in self._core.registrations.gone(conversation):
            granted, began = self._claims.pop(registration)
            seconds = self._core.reactor.seconds() - began
            self._core.audit.note(dataclasses.replace(granted, verdict="ended", seconds=seconds))
        self._looks.forget(conversation)
        self._stop_resolving(conversation)

    def is_admin(self, who: LocalWho) -> bool:
        """Tell whether *who* may see and change everything; nobody confined may."""
        if who.confined:
            return False
        admin_gid = self._core.settings.admin_gid
        if UNMAPPED in (who.uid, admin_gid):
            return False  # that may be anybody
        return who.uid in (0, os.geteuid()) or (admin_gid is not None and admin_gid in (who.gid, *who.groups))

    def _check(self, right: Right, what: str, who: LocalWho) -> None:
        if right is not Right.EVERYBODY and who.confined:
            raise Refused(Refusal.DENIED, f"a confined client may look up, no more ({who.confined})")
        if right is Right.ADMIN and not self.is_admin(who):
            raise Refused(Refusal.DENIED, f"{what} is for {Right.ADMIN.value}")

    # -- the operations

    def _status(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        members = {"ok": True, **about_client(self._core, who, self._desk.connections_by_uid.get(who.uid, 0))}
        is_admin = self.is_admin(who)
        if is_admin:
            members.update(about_everything(self._core, self._desk))
        members["limits"] = usage(self._core, self._desk, self._tcpd, who, is_admin)
        conversation.answer(answer(request.ident, shortened(members, LISTS)))

    def _explain(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        asked = asked_of(request.members)
        words = request.members.get("as", ())
        described = bool(words) or asked.peer is not None or asked.direction.value == "in"
        if described:
            self._check(Right.ADMIN, "to explain as somebody else", who)
            subject, text = subject_as(words, asked)
        else:
            subject, text = who.subject, str(who)
        steps = explaining(self._core, asked, subject, text, None if described else who)
        self._go_on(conversation, request, who, steps, None)

    def _go_on(
        self, conversation: Conversation, request: Request, who: LocalWho, steps: Explaining, found: Answer | None
    ) -> None:
        self._stop_resolving(conversation)
        try:
            name = next(steps) if found is None else steps.send(found)
        except StopIteration as done:
            conversation.answer(answer(request.ident, fitted({"ok": True, **done.value.members})))
            return
        refuse = functools.partial(self._desk.refuse, conversation, request)

        def resolved(result: Answer) -> None:
            guard(refuse, self._go_on, conversation, request, who, steps, result)

        def too_slow() -> None:
            self._stop_resolving(conversation)
            seconds = self._core.connect_deadline.seconds
            refuse(Refused(Refusal.TIMEOUT, f"not done within connect_seconds={seconds:g}: {name} was not resolved"))

        self._resolving[conversation] = self._core.resolver.resolve(name, f"uid {who.uid}", resolved)
        self._core.connect_deadline.set(conversation, too_slow)

    def _stop_resolving(self, conversation: Conversation) -> None:
        resolution = self._resolving.pop(conversation, None)
        if resolution is not None:
            resolution.cancel()
            self._core.connect_deadline.cancel(conversation)

    def _why(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        refusals = self._core.audit.refusals_of(who.uid, request.members.get("service"))
        conversation.answer(answer(request.ident, shortened({"ok": True, "refusals": refusals}, ("refusals",))))

    def _reload(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        self._log.info("{who} asks for a reload", who=str(who))

        def done(told: dict[str, Any]) -> None:
            conversation.answer(answer(request.ident, shortened(told, ("changes", "warnings", "mistakes"))))

        self._core.reload(done)

    def _confine(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        services = frozenset(check_service(name) for name in request.members.get("services", ()))
        if not services:
            raise Refused(Refusal.BAD_REQUEST, "services: wanted the names of some")
        pairs = Pairs(str(request.members.get("routes", "")).encode("utf-8", "surrogatepass"))
        permit = restrict(who, services, pairs)
        if request.members.get("control"):
            self._desk.give_control(conversation, request, permit)
        elif self._core.registrations.has_claims(conversation):
            raise Refused(Refusal.NOT_POSSIBLE, "who has claimed a service is handed its connections: confine another")
        else:
            self._desk.restrict(conversation, permit)
            conversation.answer(answer(request.ident, {"ok": True, "services": sorted(services)}))

    def _serve(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        service = check_service(str(request.members.get("service", "")))
        verdict = self._may_serve(service, who)
        core, ident = self._core, self._core.audit.new_ident()
        granted = Outcome(
            "granted", "serve", service, who=who, decided=verdict, ident=ident, generation=core.generation, uid=who.uid
        )
        try:
            if not verdict.granted:
                raise Refused(Refusal.DENIED, verdict.reason)
            registration = core.registrations.claim(service, who, conversation, self._desk)
        except Refused as e:
            core.audit.note(dataclasses.replace(granted, verdict=e.word.value, reason=e.reason))
            conversation.refuse(request.ident, e.word, e.reason[:REASON_BYTES])
            return
        core.audit.note(granted)
        self._claims[registration] = (granted, core.reactor.seconds())
        conversation.answer(answer(request.ident, {"ok": True, "service": service, "rule": verdict.rule}))

    def _may_serve(self, service: str, who: LocalWho) -> Verdict:
        to = Destination("unix", service, None, None)
        return self._core.decide(Question(Direction.SERVE, service, to, self._core.subject_of(who)))

    def _ss(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        uid = None if self.is_admin(who) else who.uid
        done = functools.partial(self._answer_late, conversation, request)
        accounting.tell(self._core.census, self._looks, conversation, uid, request.members.get("after"), done)

    def _kill(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        connection = str(request.members.get("connection", ""))

        def ended(result: dict[str, Any] | Refused) -> None:
            if not isinstance(result, Refused):
                self._log.info("{who} has ended the connection {connection}", who=str(who), connection=connection)
            self._answer_late(conversation, request, result)

        accounting.end(self._core.census, connection, ended)

    def _whois(self, conversation: Conversation, request: Request, who: LocalWho) -> None:
        told = self._core.whois.tell(request.members.get("token"), who.uid)
        conversation.answer(answer(request.ident, shortened({"ok": True, **told}, ("identities",))))

    def _answer_late(self, conversation: Conversation, request: Request, result: dict[str, Any] | Refused) -> None:
        """Answer when the kernel has; a client that has gone meanwhile gets nothing."""
        if isinstance(result, Refused):
            self._desk.refuse(conversation, request, result)
        else:
            conversation.answer(answer(request.ident, result))
