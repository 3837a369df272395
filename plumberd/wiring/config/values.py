"""Single values, as options and the configuration have them alike: text in, checked value out.

Each mistake is a ValueError (or Refused) whose text says what was found and what
would be accepted, without the option's or the key's name: who asks puts it in
front.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import endpoints
from twisted.internet.task import Clock

from plumberd.effects.accounts import Accounts
from plumberd.pure.dialects import DIALECTS
from plumberd.pure.limits import Limits
from plumberd.pure.modes import GENERAL_WISHES, Mode
from plumberd.pure.policy.route import PLACEHOLDER, Endpoint, Target
from plumberd.pure.policy.subject import Condition, parse_condition
from plumberd.pure.tls import ClientCertificates, parse_peer_key
from plumberd.pure.uri import FRAMINGS, Uri
from plumberd.pure.web_safety import Network, Origin, Place, WebError, parse_origin, parse_place, parse_proxy
from plumberd.wiring.config.mistakes import ValueMistake, unwanted
from plumberd.wiring.config.settings import PARTS, Group, WebListener
from plumberd.wiring.inbound.listening import (
    EndpointError,
    full_datagram_description,
    full_description,
    is_plain,
)

_client_from_string: Callable[[Any, str], object] = endpoints.clientFromString

AUDIT_ONLY_SECONDS = 7 * 24 * 3600
"""Longest time for which refusals may be granted: who has not looked at the log in a week has forgotten it."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_TIME = re.compile(r"([1-9][0-9]{0,6})([smhd])\Z")


def path(text: str) -> str:
    """Return the path of a file or directory, as it is."""
    if not text or "\0" in text:
        raise unwanted(text, "a path")
    return text


def group(name: str, accounts: Accounts) -> Group:
    """Return a group by its name."""
    gid = accounts.gid_of(name)
    if gid is None:
        raise unwanted(name, "the name of a group that exists")
    return Group(name, gid)


def user(word: str, accounts: Accounts) -> int:
    """Return a uid, by name or number."""
    uid = accounts.uid_of_word(word)
    if uid is None:
        raise unwanted(word, "the name of a user that exists, or a uid")
    return uid


def verdict(word: str) -> bool:
    """Return what a default says: whether it lets through."""
    if word not in ("allow", "deny"):
        raise unwanted(word, "allow or deny")
    return word == "allow"


def part(word: str) -> str:
    """Return a part that runs alone."""
    if word not in PARTS:
        raise unwanted(word, " or ".join(PARTS))
    return word


def dialect(name: str) -> str:
    """Return a dialect to speak."""
    if name not in DIALECTS:
        raise unwanted(name, f"some of {','.join(DIALECTS)}")
    return name


def dialects(names: Sequence[str]) -> tuple[str, ...]:
    """Return the dialects to speak, each once."""
    found = tuple(dict.fromkeys(dialect(name) for name in names or ("",)))
    if len({DIALECTS[name].socket_name for name in found}) < len(found):
        raise unwanted(",".join(found), "libipc-2020 or libipc-2023: both have the same socket")
    return found


def handover(word: str) -> Mode:
    """Return how TCP sockets are handed over where no rule says it."""
    for mode in GENERAL_WISHES:
        if mode.value == word:
            return mode
    raise unwanted(word, "|".join(mode.value for mode in GENERAL_WISHES))


def framing(word: str) -> str:
    """Return how a service's messages look."""
    if word not in FRAMINGS:
        raise unwanted(word, f"one of {', '.join(FRAMINGS)}")
    return word


def proxy_version(word: str) -> str:
    """Return which version of the PROXY protocol a service reads."""
    if word != "v2":
        raise unwanted(word, "v2")
    return word


def identity(word: str) -> Condition:
    """Return what a gateway proves, as rules say it."""
    condition = parse_condition(word)
    if condition.is_local:
        raise unwanted(word, "what a remote peer proves: cert:, spiffe:, psk: or login:")
    return condition


def limit(name: str, text: str) -> float:
    """Return a limit's value."""
    value: float = getattr(Limits().with_value(name, text), name)
    return value


def audit_only(text: str) -> int:
    """Return a time in seconds: ``30s``, ``10m``, ``2h``, ``1d``."""
    found = _TIME.match(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= AUDIT_ONLY_SECONDS:
        raise unwanted(text, "a time such as 30s, 10m, 2h or 1d, at most 7d: it is to end by itself")
    return seconds


def show_time(seconds: int) -> str:
    """Print a time as :func:`audit_only` reads it."""
    unit = next(u for u in ("d", "h", "m", "s") if seconds % _UNITS[u] == 0)
    return f"{seconds // _UNITS[unit]}{unit}"


def listener(text: str) -> str:
    """Return a whole server endpoint string."""
    try:
        return full_description(text)
    except EndpointError as e:
        if "@" in text:  # a URI with a password in the wrong place
            raise unwanted(text, "PORT, HOST:PORT or a Twisted server endpoint string") from None
        raise ValueMistake(str(e)) from None


def datagram_listener(text: str) -> str:
    """Return what is listened on for datagrams, for it or for its short form."""
    try:
        return full_datagram_description(text)
    except EndpointError as e:
        raise ValueMistake(str(e)) from None


def plain_listener(text: str) -> str:
    """Return a whole server endpoint string whose port has a socket of its own: TLS is read from that."""
    found = listener(text)
    if not is_plain(found):
        raise unwanted(found.partition(":")[0] + ":…", "PORT, HOST:PORT, or an endpoint of tcp, tcp6, unix or systemd")
    return found


def web_listener(text: str) -> WebListener:
    """Return where webipcd listens: as :func:`plain_listener`, with ``tls:`` in front of what is inside TLS."""
    is_tls = text.startswith("tls:")
    return WebListener(plain_listener(text.removeprefix("tls:")), is_tls)


def host(text: str) -> Place:
    """Return a host that browsers may ask for, with a port or any."""
    try:
        return parse_place(text)
    except WebError as e:
        raise ValueMistake(f"{text!r}: {e}") from None


def origin(text: str) -> Origin:
    """Return where a page may be from."""
    try:
        return parse_origin(text)
    except WebError as e:
        raise ValueMistake(f"{text!r}: {e}") from None


def proxy(text: str) -> Network | str:
    """Return who may say for whom a request comes."""
    try:
        return parse_proxy(text)
    except WebError as e:
        raise ValueMistake(f"{text!r}: {e}") from None


def client_certificates(word: str) -> ClientCertificates:
    """Return what is asked of callers."""
    for wanted in ClientCertificates:
        if wanted.value == word:
            return wanted
    raise unwanted(word, ", ".join(one.value for one in ClientCertificates))


def peer_name(text: str) -> str:
    """Return *text*, which names a destination, as it is: where it was written is found by that."""
    parse_peer_key(text)
    return text


def target(parse: Callable[[str, str], Target], name: str, text: str) -> Target:
    """Return where a redirect or route leads, having tried whether an endpoint string makes an endpoint.

    :param parse: :func:`~plumberd.pure.policy.route.parse_redirect` or ``parse_route``.
    """
    found = parse(name, text)
    leads_to = parse(name, text.replace(PLACEHOLDER, "x")) if PLACEHOLDER in text else found
    if isinstance(leads_to, Endpoint):
        try:
            _client_from_string(Clock(), leads_to.description)
        except Exception as e:  # each endpoint parser has errors of its own
            why = str(e) if str(e) and "@" not in text else type(e).__name__
            raise ValueMistake(f"no client endpoint: {why}") from None
    return found


def has_password(found: Target) -> bool:
    """Tell whether a secret stands in it."""
    return isinstance(found, Uri) and found.password is not None
