"""Where a name really goes: redirects and routes.

In this order: the administrator's redirect; the lookup's own pair for that
service; the configured route for it; the configured route ``*``; the local
service of that name. A redirect to a name is looked up again, at most 8 times. A
redirect or route may depend on who asks, and may have alternatives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from plumberd.pure.address import unmapped
from plumberd.pure.login import check_credentials
from plumberd.pure.names import check_service, is_reserved, is_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.subject import ANYBODY, Condition, Subject, all_hold
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri, UriError, parse_host, parse_port, parse_uri

CHAIN = 8
"""Most redirects that one lookup follows."""

EVERY = "*"
"""The route for services that have none of their own."""

ALTERNATIVES = 16
"""Most targets that stand for one another."""

PLACEHOLDER = "{service}"
"""Stands for the wanted service in the route ``*``."""


class RouteError(ValueError):
    """A redirect or route makes no sense."""


@dataclass(frozen=True)
class Endpoint:
    """An administrator's route: a Twisted client endpoint string. Lookups cannot name one.

    :ivar description: the string.
    :ivar chosen: whether a part of it is the name of a service that a client has chosen.
    """

    description: str = field(repr=False)
    chosen: bool = False

    @property
    def scheme(self) -> str:
        """What rules see: the string's first word."""
        return self.description.partition(":")[0].lower()

    @property
    def special(self) -> bool:
        """Whether it does what a client could not do by itself, and so needs a rule.

        Dialling tcp, and tls with the system's trust or another, a client could do; opening a
        UNIX socket as the broker, or using a certificate of the machine, it could not. Nor could it
        have the broker resolve a name of its own choice: what Twisted makes of that, no rule has seen.
        """
        words = _split(self.description)
        harmless = ("timeout", "bindAddress", "trustRoots", "host", "port")
        return (
            self.chosen
            or self.scheme not in ("tcp", "tls")
            or any(
                word.partition("=")[0] not in harmless if "=" in word else at > 2 for at, word in enumerate(words) if at
            )
        )

    def destination(self) -> Destination:
        """What rules see: host and port where the string has them in the usual places."""
        words = [w.replace("\\:", ":") for w in _split(self.description)]
        named = dict(w.split("=", 1) for w in words[1:] if "=" in w)
        plain = iter([w for w in words[1:] if "=" not in w])  # in host=a.example:443 the one left is the port
        host = named["host"] if "host" in named else next(plain, "")
        port = named["port"] if "port" in named else next(plain, "")
        to = Destination(self.scheme, None, None, None)
        with contextlib.suppress(UriError):
            to = _destination(self.scheme, parse_host(f"[{host}]" if ":" in host else host), None)
            to = dataclasses.replace(to, port=parse_port(port))  # a name (https) is no number
        hidden = to.name is None and to.addresses is None  # nobody can tell where it leads
        return dataclasses.replace(to, special=self.special or hidden)

    def __str__(self) -> str:
        return f"{self.scheme} endpoint"


Target = Uri | Endpoint | str
"""What a redirect or route leads to; a ``str`` is another name, or a route's text with ``{service}`` in it."""


@dataclass(frozen=True)
class Choice:
    """Where a name leads, for whom.

    :ivar targets: alternatives: the next is for when one cannot be reached.
    :ivar conditions: all of them have to hold; none is everybody.
    """

    targets: tuple[Target, ...]
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            raise RouteError("wanted at least one target")
        if len(self.targets) > ALTERNATIVES:
            raise RouteError(f"{len(self.targets)} alternatives, at most {ALTERNATIVES} are accepted")
        if len(self.targets) > 1 and any(isinstance(t, str) and PLACEHOLDER not in t for t in self.targets):
            raise RouteError("alternatives are URIs or endpoint strings; another name stands alone")

    def __str__(self) -> str:
        whom = "".join(f" for {condition}" for condition in self.conditions)
        return " or ".join(map(str, self.targets)) + whom


Table = Mapping[str, tuple[Choice, ...]]
"""Names with their choices, the first of which that holds counts."""


@dataclass(frozen=True)
class Routes:
    """The administrator's redirects and routes, checked when they were read."""

    redirects: Table = field(default_factory=dict)
    routes: Table = field(default_factory=dict)

    @property
    def asks_who(self) -> bool:
        """Whether any choice is for some clients only."""
        return any(self._conditions())

    @property
    def asks_unit(self) -> bool:
        """Whether any choice depends on a cgroup."""
        return any(condition.kind == "unit" for condition in self._conditions())

    def _conditions(self) -> Iterator[Condition]:
        for table in (self.redirects, self.routes):
            for choices in table.values():
                for choice in choices:
                    yield from choice.conditions


@dataclass(frozen=True)
class Step:
    """One step of a way, for people.

    :ivar kind: ``redirect`` or ``route``.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Way:
    """The result: where to go.

    :ivar targets: URIs and endpoints; the next is for when one cannot be reached.
    :ivar steps: what led there, for ``explain``.
    """

    targets: tuple[Uri | Endpoint, ...]
    steps: tuple[Step, ...] = ()

    @property
    def target(self) -> Uri | Endpoint:
        """The first, which is mostly the only one."""
        return self.targets[0]

    @property
    def local_service(self) -> str | None:
        """The service of this machine that it leads to, if it does."""
        target = self.target
        return target.service if isinstance(target, Uri) and target.scheme == "unix" else None


def find_way(
    service: str, pairs: Pairs, routes: Routes, subject: Subject = ANYBODY, *, for_caller: bool = False
) -> Way:
    """Follow redirects and routes from *service* to a destination.

    :param for_caller: a remote caller asks: the route ``*`` is not for it, so that this machine is a
        gateway for nothing but what names it.

    :raises Refused: ``bad-request`` for a pair that is no URI, a chain that is too long, or a
        name that the route ``*`` has no place for; ``denied`` for a reserved name.
    """
    steps: list[Step] = []
    name = service
    for _ in range(CHAIN + 1):
        choice = _choose(routes.redirects.get(name), subject)
        if choice is not None and choice.targets != (name,):
            steps.append(Step("redirect", f"{name} to {choice}"))
            target = choice.targets[0]
            if isinstance(target, str):
                name = target
                continue
            return Way(_fill_all(choice, name), tuple(steps))
        text = pairs.uri_of(name) if pairs.value else None
        if text is not None:
            uri = parse_target_uri(text)
            return Way((uri,), (*steps, Step("route", f"the lookup's own: {uri}")))
        for key in (name,) if for_caller else (name, EVERY):
            choice = _choose(routes.routes.get(key), subject)
            if choice is not None:
                targets = _fill_all(choice, name)
                filled = dataclasses.replace(choice, targets=targets)
                return Way(targets, (*steps, Step("route", f"{key} = {filled}")))
        return Way((Uri("unix", "", 0, name),), (*steps, Step("route", f"the local service {name}")))
    raise Refused(Refusal.BAD_REQUEST, f"more than {CHAIN} redirects, beginning with {service}")


def _choose(choices: tuple[Choice, ...] | None, subject: Subject) -> Choice | None:
    """Return the first choice that is for *subject*; what can't be told is for nobody."""
    for choice in choices or ():
        if not choice.conditions or all_hold(choice.conditions, subject, opens=True):
            return choice
    return None


def parse_target_uri(text: str) -> Uri:
    """Parse a client's URI and check the name in it.

    :raises Refused: ``bad-request`` or ``denied``.
    """
    if "@" in text:
        return _parse_target_uri(text)  # a password is not kept
    return _cached_target_uri(text)


def _parse_target_uri(text: str) -> Uri:
    try:
        uri = parse_uri(text)
    except UriError as e:
        raise Refused(Refusal.BAD_REQUEST, str(e)) from None
    if uri.service is not None:
        check_service(uri.service)
    check_credentials(uri)
    return uri


_cached_target_uri = functools.lru_cache(maxsize=1024)(_parse_target_uri)


@functools.lru_cache(maxsize=1024)
def _literal_address(host: str) -> IPAddress | None:
    return Uri("tcp", host, 0).address


def destination(uri: Uri) -> Destination:
    """Return what rules see of *uri*."""
    if uri.scheme == "unix":
        return Destination("unix", uri.service, None, None)
    return _destination(uri.scheme, uri.host, uri.port)


def parse_redirect(name: str, text: str) -> Target:
    """Parse ``--redirect NAME TEXT``: to another name, a URI or an endpoint string.

    :raises RouteError: naming what would be accepted.
    """
    _check(name)
    if is_service(text):
        if is_reserved(text):
            raise RouteError(f"{text!r} is reserved for plumberd itself")
        return text
    return _target(text)


def parse_route(name: str, text: str) -> Target:
    """Parse ``--route NAME TEXT``: a URI or an endpoint string; in the route ``*``, ``{service}`` is the name.

    :raises RouteError: naming what would be accepted.
    """
    if name != EVERY:
        _check(name)
    elif PLACEHOLDER in text:
        target = _target(text.replace(PLACEHOLDER, "x"))
        if isinstance(target, Uri) and target.password is not None:
            raise RouteError("a route for every service cannot hold a password")
        return text
    if text and PLACEHOLDER in text:
        raise RouteError(f"{PLACEHOLDER} stands only in the route {EVERY}")
    target = _target(text)
    return target


def check_loops(redirects: Table) -> None:
    """Check that every chain of redirects ends, whoever asks.

    A loop is one also where no single client would meet all of its conditions: that can change
    with a group's members. A conditional choice that leads to its own name is none; it ends the
    redirecting.

    :raises RouteError: naming the members of a loop, or a chain that is longer than 8.
    """
    longest: dict[str, list[str]] = {}

    def follow(name: str, chain: list[str]) -> list[str]:
        if name in chain:
            raise RouteError("a loop of redirects: " + " → ".join([*chain[chain.index(name) :], name]))
        if name not in longest:
            if len(chain) > CHAIN:
                whole = [*chain, name]
                raise RouteError(f"a chain of {len(whole) - 1} redirects, at most {CHAIN}: " + " → ".join(whole))
            tails = [follow(target, [*chain, name]) for target in _names_after(redirects, name)]
            longest[name] = [name, *max(tails, key=len, default=[])]
        if len(chain) + len(longest[name]) > CHAIN + 1:
            whole = [*chain, *longest[name]]
            raise RouteError(f"a chain of {len(whole) - 1} redirects, at most {CHAIN}: " + " → ".join(whole))
        return longest[name]

    for start in redirects:
        follow(start, [])


def _names_after(redirects: Table, name: str) -> list[str]:
    choices = redirects.get(name, ())
    plain = len(choices) == 1 and not choices[0].conditions
    names = [target for choice in choices for target in choice.targets if isinstance(target, str)]
    return names if plain else [target for target in names if target != name]


def _check(name: str) -> None:
    try:
        check_service(name)
    except Refused as e:
        raise RouteError(e.reason) from None


def _target(text: str) -> Uri | Endpoint:
    if "://" in text or is_service(text):
        try:
            return parse_target_uri(text)
        except Refused as e:
            raise RouteError(e.reason) from None
    words = _split(text)
    if len(words) < 2 or not words[0].isalnum():
        raise RouteError("wanted a URI, or a Twisted client endpoint string such as tls:example.com:443")
    if words[0] == "tcp" and len(words) == 3 and not any("=" in w for w in words):
        # the plain endpoint string is the plain URI: its socket can be handed over
        host = words[1].replace("\\:", ":")
        return _target(f"tcp://{f'[{host}]' if ':' in host else host}:{words[2]}")
    return Endpoint(text)


def _split(text: str) -> list[str]:
    """Split an endpoint string at its unescaped colons."""
    words = [""]
    escaped = False
    for c in text:
        if c == ":" and not escaped:
            words.append("")
        else:
            words[-1] += c
        escaped = c == "\\" and not escaped
    return words


def _fill_all(choice: Choice, name: str) -> tuple[Uri | Endpoint, ...]:
    return tuple(_fill(target, name) for target in choice.targets)


def _fill(target: Target, name: str) -> Uri | Endpoint:
    if not isinstance(target, str):
        return target
    try:
        filled = _target(target.replace(PLACEHOLDER, name))
        return dataclasses.replace(filled, chosen=True) if isinstance(filled, Endpoint) else filled
    except RouteError:
        # a name such as "a..b" in the host's place
        raise Refused(Refusal.BAD_REQUEST, f"{name!r} does not fit into the route {EVERY}") from None


def _destination(scheme: str, host: str, port: int | None) -> Destination:
    address = _literal_address(host)
    if address is not None:
        return Destination(scheme, None, (unmapped(address),), port)
    return Destination(scheme, host, None, port)
