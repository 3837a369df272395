"""Where a name really goes: redirects and routes.

In this order: the administrator's redirect; the lookup's own pair for that
service; the configured route for it; the configured route ``*``; the local
service of that name. A redirect to a name is looked up again, at most 8 times.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from plumberd.pure.address import unmapped
from plumberd.pure.names import check_service, is_reserved, is_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.rule import Destination
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress, Uri, UriError, parse_host, parse_port, parse_uri

CHAIN = 8
"""Most redirects that one lookup follows."""

EVERY = "*"
"""The route for services that have none of their own."""

PLACEHOLDER = "{service}"
"""Stands for the wanted service in the route ``*``."""


class RouteError(ValueError):
    """A redirect or route makes no sense."""


@dataclass(frozen=True)
class Endpoint:
    """An administrator's route: a Twisted client endpoint string. Lookups cannot name one.

    :ivar description: the string.
    """

    description: str = field(repr=False)

    @property
    def scheme(self) -> str:
        """What rules see: the string's first word."""
        return self.description.partition(":")[0].lower()

    @property
    def special(self) -> bool:
        """Whether it does what a client could not do by itself, and so needs a rule.

        Dialling tcp, and tls with the system's trust or another, a client could do; opening a
        UNIX socket as the broker, or using a certificate of the machine, it could not.
        """
        words = _split(self.description)
        harmless = ("timeout", "bindAddress", "trustRoots", "host", "port")
        return self.scheme not in ("tcp", "tls") or any(
            word.partition("=")[0] not in harmless if "=" in word else at > 2 for at, word in enumerate(words) if at
        )

    def destination(self) -> Destination:
        """What rules see: host and port where the string has them in the usual places."""
        words = [w.replace("\\:", ":") for w in _split(self.description)]
        named = dict(w.split("=", 1) for w in words[1:] if "=" in w)
        plain = iter([w for w in words[1:] if "=" not in w])  # in host=a.example:443 the one left is the port
        host = named["host"] if "host" in named else next(plain, "")
        port = named["port"] if "port" in named else next(plain, "")
        try:
            to = _destination(self.scheme, parse_host(f"[{host}]" if ":" in host else host), parse_port(port))
        except UriError:
            return Destination(self.scheme, None, None, None, self.special)
        return dataclasses.replace(to, special=self.special)

    def __str__(self) -> str:
        return f"{self.scheme} endpoint"


Target = Uri | Endpoint | str
"""What a redirect or route leads to; a ``str`` is another name."""


@dataclass(frozen=True)
class Routes:
    """The administrator's redirects and routes, checked when they were read."""

    redirects: Mapping[str, Target] = field(default_factory=dict)
    routes: Mapping[str, Target] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """The result: where to go.

    :ivar target: a URI or an endpoint.
    :ivar steps: what led there, for ``explain`` and the log.
    """

    target: Uri | Endpoint
    steps: tuple[str, ...]


def find_way(service: str, pairs: Pairs, routes: Routes) -> Way:
    """Follow redirects and routes from *service* to a destination.

    :raises Refused: ``bad-request`` for a pair that is no URI, a chain that is too long, or a
        name that the route ``*`` has no place for; ``denied`` for a reserved name.
    """
    steps: list[str] = []
    name = service
    for _ in range(CHAIN + 1):
        target = routes.redirects.get(name)
        if isinstance(target, str):
            steps.append(f"redirect {name} to {target}")
            name = target
            continue
        if target is not None:
            return Way(target, (*steps, f"redirect {name} to {target}"))
        text = pairs.uri_of(name) if pairs.value else None
        if text is not None:
            uri = parse_target_uri(text)
            return Way(uri, (*steps, f"the lookup's own route {uri}"))
        for key in (name, EVERY):
            target = routes.routes.get(key)
            if target is not None:
                way = _fill(target, name)
                return Way(way, (*steps, f"route {key} = {way}"))
        return Way(Uri("unix", "", 0, name), (*steps, f"local service {name}"))
    raise Refused(Refusal.BAD_REQUEST, f"more than {CHAIN} redirects, beginning with {service}")


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
    if uri.scheme == "tcp" and uri.user is not None:
        raise Refused(Refusal.BAD_REQUEST, "credentials are not sent over plain tcp")
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


def check_loops(redirects: Mapping[str, Target]) -> None:
    """Check that every chain of redirects ends.

    :raises RouteError: naming the members of a loop, or a chain that is longer than 8.
    """
    for start in redirects:
        chain = [start]
        target = redirects.get(start)
        while isinstance(target, str):
            if target in chain:
                raise RouteError("a loop of redirects: " + " → ".join([*chain, target]))
            chain.append(target)
            target = redirects.get(target)
        if len(chain) > CHAIN + 1:
            raise RouteError(f"a chain of {len(chain) - 1} redirects, at most {CHAIN}: " + " → ".join(chain))


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


def _fill(target: Target, name: str) -> Uri | Endpoint:
    if not isinstance(target, str):
        return target
    try:
        return _target(target.replace(PLACEHOLDER, name))
    except RouteError:
        # a name such as "a..b" in the host's place
        raise Refused(Refusal.BAD_REQUEST, f"{name!r} does not fit into the route {EVERY}") from None


def _destination(scheme: str, host: str, port: int) -> Destination:
    address = _literal_address(host)
    if address is not None:
        return Destination(scheme, None, (unmapped(address),), port)
    return Destination(scheme, host, None, port)
