"""What a gateway tells the next machine about its own caller: the header ``caller`` of the handshake inside tls.

    ``caller: 203.0.113.9 4711 cert:web.example.com login:alice``

The address and port that the caller came from, ``- 0`` where it has none, and what it has proved. It is
the gateway's word and no more: it counts only where the configuration trusts that gateway.
"""

from __future__ import annotations

import ipaddress
import re

from plumberd.pure.plumb_handshake import CALLER
from plumberd.pure.policy.subject import ConditionError, parse_condition
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress
from plumberd.pure.who import RemoteWho

_NOBODY = "-"
_PORT = re.compile(r"(?:0|[1-9][0-9]{0,4})\Z")


def show_caller(who: RemoteWho) -> str:
    """Return the header's value for *who*."""
    address = _NOBODY if who.address is None else str(who.address)
    return " ".join((address, str(who.port), *sorted(who.identities)))


def parse_caller(text: str, gateway: RemoteWho) -> RemoteWho:
    """Return who has called *gateway*, as rules and services here see it from now on.

    :raises Refused: ``bad-request``: half of an identity would be another one, so that all of it counts or none.
    """
    address, _, rest = text.partition(" ")
    port, *words = rest.split(" ")
    if not _PORT.match(port) or int(port) > 65535:
        raise Refused(Refusal.BAD_REQUEST, f"{CALLER}: wanted an address and a port in front")
    for word in words:
        _check(word)
    via = " ".join(sorted(gateway.identities))
    return RemoteWho(gateway.scheme, _address(address), int(port), frozenset(words), via)


def _address(text: str) -> IPAddress | None:
    if text == _NOBODY:
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise Refused(Refusal.BAD_REQUEST, f"{CALLER}: wanted an IP address or {_NOBODY}") from None
    if isinstance(found, ipaddress.IPv6Address) and (found.ipv4_mapped or found.scope_id):
        raise Refused(Refusal.BAD_REQUEST, f"{CALLER}: wanted an address without zone, and IPv4 as itself")
    return found


def _check(word: str) -> None:
    try:
        condition = parse_condition(word)
    except ConditionError as e:
        raise Refused(Refusal.BAD_REQUEST, f"{CALLER}: {e}") from None
    if condition.is_local or str(condition) != word:
        raise Refused(Refusal.BAD_REQUEST, f"{CALLER}: wanted what a remote peer proves, as rules say it")
