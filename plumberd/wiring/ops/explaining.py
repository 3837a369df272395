"""The op ``explain``: what is asked, as whom, and the answer; also offline, for a configuration in a file."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from plumberd.effects.accounts import Accounts
from plumberd.effects.resolve import look_up
from plumberd.pure.address import unmapped
from plumberd.pure.modes import Mode, Powers, choose_local_mode, choose_mode
from plumberd.pure.names import check_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Verdict
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.explain import Answer, Asked, Explanation, explain
from plumberd.pure.policy.peer import ANY, Destination, PeerError, parse_peer
from plumberd.pure.policy.route import Endpoint, destination
from plumberd.pure.policy.subject import (
    Condition,
    ConditionError,
    Standing,
    Subject,
    cgroup_path,
    parse_condition,
)
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import Uri
from plumberd.pure.who import LocalWho
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.served import CARRY_MESSAGES, carrier_of, check_leads_away, check_served

CONFINED = "confined"
"""The one word of ``as`` that is no condition of a rule."""

Explaining = Generator[str, Answer, Explanation]


def asked_of(members: Mapping[str, Any]) -> Asked:
    """Return what the members of a request ask to have explained.

    :raises Refused: ``bad-request``, or ``denied`` for a reserved name.
    """
    ways = [d.value for d in Direction]
    way = members.get("direction")
    if way not in ways:
        raise _bad(f"direction: wanted one of {', '.join(ways)}")
    direction = Direction(way)
    service, uri, peer = members.get("service"), members.get("uri"), members.get("peer")
    if service in ANY:
        service = None
    if service is not None:
        check_service(service)
    if direction is not Direction.IN and peer is not None:
        raise _bad("peer: only a caller has one; an address to go to is a uri, or a route of the service")
    if direction is not Direction.OUT and (uri is not None or members.get("routes")):
        raise _bad("uri and routes are for out alone")
    if direction is Direction.OUT:
        if (service is None) == (uri is None):
            raise _bad("wanted a service (with routes), or a uri without one")
        pairs = Pairs(str(members.get("routes", "")).encode("utf-8", "surrogatepass"))
        return Asked(direction, service, pairs, uri)
    if service is None:
        raise _bad("service: wanted the name of one")
    return Asked(direction, service, peer=_caller(peer) if direction is Direction.IN else None)


def subject_as(words: Sequence[str], asked: Asked) -> tuple[Subject, str]:
    """Return somebody described by conditions, and the same for people.

    A caller whose peer is ``tls:NAME`` has proved that name. A user that this machine has comes
    with his groups. Whoever has proved something is remote.

    :raises Refused: ``bad-request`` for a word that is no condition.
    """
    conditions: list[Condition] = []
    for word in words:
        if word != CONFINED:
            try:
                conditions.append(parse_condition(word))
            except ConditionError as e:
                raise _bad(f"as: {e}") from None
    if asked.peer is not None and asked.peer.name is not None:
        conditions.append(Condition("cert", asked.peer.name))
    remote = asked.direction is Direction.IN or any(not condition.is_local for condition in conditions)
    standing = Standing.REMOTE if remote else Standing.CONFINED if CONFINED in words else Standing.LOCAL
    accounts = Accounts()
    uid: int | None = None
    gids: set[int] = set()
    cgroup: str | None = None
    for condition in conditions:
        if condition.kind in ("user", "uid"):
            uid = accounts.uid_of(condition.value) if condition.kind == "user" else condition.number
            gids |= _groups_of(uid)
        elif condition.kind == "group":
            gid = accounts.gid_of(condition.value)
            gids |= set() if gid is None else {gid}
        elif condition.kind == "unit":
            cgroup = cgroup_path(condition.value)
    text = " ".join(words) or " ".join(map(str, conditions))
    text = text or ("a caller that has proved nothing" if remote else "a local client")
    return Subject(standing, uid, frozenset(gids), cgroup, frozenset(map(str, conditions))), text


def explaining(core: Core, asked: Asked, subject: Subject, who: str, client: LocalWho | None) -> Explaining:
    """Explain by what is in force in this process.

    :param client: who asks about itself; ``None`` for somebody described.
    """

    def mode_of(verdict: Verdict, target: Uri | Endpoint) -> str:
        if asked.direction is Direction.IN:
            if isinstance(target, Uri) and target.scheme == "unix":
                return _served(core, asked, target)
            to = target.destination() if isinstance(target, Endpoint) else destination(target)
            check_leads_away(core, asked.service or "", to, verdict.addresses)
            return _onward(target)
        wish = verdict.handover or core.settings.handover
        carrier = carrier_of(core, target, verdict.addresses)
        return _mode(wish, target, client or _described(subject, core.powers), core.powers, carrier)

    return explain(core.refreshed_policy(), core.settings.routes, asked, subject, who, mode_of)


def explain_offline(
    settings: Settings, members: Mapping[str, Any], powers: Powers, resolve: Callable[[str], Answer] = look_up
) -> dict[str, Any]:
    """Explain by *settings*, as the op would answer; a name is resolved as a lookup would.

    :param powers: what the broker is taken to be able to do.
    :raises Refused: ``bad-request``.
    """
    asked = asked_of(members)
    subject, who = subject_as(members.get("as", ()), asked)

    def mode_of(verdict: Verdict, target: Uri | Endpoint) -> str:
        if asked.direction is Direction.IN:
            return _onward(target)
        carrier = carrier_of(None, target, verdict.addresses)
        return _mode(verdict.handover or settings.handover, target, _described(subject, powers), powers, carrier)

    return run(explain(settings.whole_policy, settings.routes, asked, subject, who, mode_of), resolve).members


def run(steps: Explaining, resolve: Callable[[str], Answer]) -> Explanation:
    """Go through *steps*, resolving names where they want it."""
    try:
        name = next(steps)
        while True:
            name = steps.send(resolve(name))
    except StopIteration as done:
        explanation: Explanation = done.value
        return explanation


def _mode(wish: Mode, target: Uri | Endpoint, who: LocalWho, powers: Powers, carrier: str) -> str:
    if isinstance(target, Uri) and target.scheme == "unix":
        return choose_local_mode(wish, same_kind=True, packets=False).value
    check_served(target)
    messages = isinstance(target, Uri) and target.scheme in CARRY_MESSAGES
    return choose_mode(wish, who, powers, carrier=carrier, messages=messages).value


def _served(core: Core, asked: Asked, target: Uri) -> str:
    """Return the mode of a caller's connection to a local service: who has claimed that may get the socket itself."""
    registration = core.registrations.find(target.service)
    if registration is None or asked.peer is None or asked.peer.scheme != "tcp":
        return Mode.RELAYED.value
    return choose_mode(core.settings.handover, registration.who_now(core.inspector), core.powers).value


def _onward(target: Uri | Endpoint) -> str:
    """Return the mode of a caller's connection that leads on from here."""
    check_served(target)
    return Mode.RELAYED.value


def _described(subject: Subject, powers: Powers) -> LocalWho:
    uid = powers.uid if subject.uid is None else subject.uid
    return LocalWho(uid, uid, tuple(subject.gids), 0, "" if subject.standing is Standing.LOCAL else "as was said")


def _groups_of(uid: int | None) -> set[int]:
    try:
        entry = pwd.getpwuid(uid if uid is not None else -1)
    except (KeyError, OverflowError):
        return set()
    return set(os.getgrouplist(entry.pw_name, entry.pw_gid))


def _caller(text: str | None) -> Destination:
    """Return the far end of a caller, written like the PEER of a rule: of one that has an address or a name."""
    if text is None:
        return Destination("tcp", None, None, None)
    try:
        peer = parse_peer(text, Direction.IN)
    except PeerError as e:
        raise _bad(f"peer: {e}") from None
    if peer.scheme is None or peer.suffix is not None or (peer.network is not None and peer.address is None):
        raise _bad(f"peer: {text!r} is not one caller: wanted SCHEME:ADDRESS, or tls:NAME")
    address = peer.address
    return Destination(peer.scheme, peer.name, None if address is None else (unmapped(address),), None)


def _bad(reason: str) -> Refused:
    return Refused(Refusal.BAD_REQUEST, reason)
