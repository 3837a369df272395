"""Random values that several tests draw: names, hosts, addresses, URIs, rules and questions."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hypothesis import strategies as st

from plumberd.pure.address import unmapped
from plumberd.pure.modes import WISHES, Mode
from plumberd.pure.names import SCHEMES, is_reserved
from plumberd.pure.policy.decide import Policy, Question
from plumberd.pure.policy.rule import ANY, Destination, Direction, Peer, Rule
from plumberd.pure.uri import FRAMINGS, IPAddress, Uri

NETWORK_SCHEMES = tuple(scheme for scheme in SCHEMES if scheme != "unix")

services = st.from_regex(r"[a-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(
    lambda name: name not in ANY and not is_reserved(name)
)
labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,6}[a-z0-9_])?", fullmatch=True)
names = st.builds(
    lambda front, last: ".".join([*front, last]),
    st.lists(labels, max_size=3),
    st.from_regex(r"[a-z]{2,8}", fullmatch=True),
).filter(lambda name: name not in ANY)
ports = st.integers(1, 65535)

DANGEROUS = tuple(
    ipaddress.ip_address(text)
    for text in (
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "fe80::1",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "100.100.100.200",
        "192.0.2.7",
        "64:ff9b::7f00:1",
    )
)
"""Addresses of every zone; 192.0.2.7 is what tests take for the machine's own."""

OWN = frozenset((ipaddress.ip_address("192.0.2.7"),))

addresses: st.SearchStrategy[IPAddress] = st.one_of(st.sampled_from(DANGEROUS), st.ip_addresses()).map(unmapped)


@dataclass(frozen=True)
class Words:
    """What rules and questions are made of."""

    services: st.SearchStrategy[str]
    names: st.SearchStrategy[str]
    addresses: st.SearchStrategy[IPAddress]
    ports: st.SearchStrategy[int]
    schemes: tuple[str, ...]


EVERY = Words(services, names, addresses, ports, NETWORK_SCHEMES)
"""All that the grammar allows."""

FEW = Words(
    st.sampled_from(("pong", "audio")),
    st.sampled_from(("a.example", "b.example")),
    st.sampled_from((*DANGEROUS, ipaddress.ip_address("198.51.100.1"), ipaddress.ip_address("2001:db8::9"))),
    st.sampled_from((80, 443)),
    ("tcp", "tls"),
)
"""So few that a question is often one that a rule speaks of."""


def uris() -> st.SearchStrategy[Uri]:
    """URIs of every form, credentials of any characters that may be percent-encoded."""
    words = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=12)
    users = st.one_of(st.tuples(st.none(), st.none()), st.tuples(words, st.none()), st.tuples(words, words))
    options = st.sampled_from(FRAMINGS).map(lambda framing: (("framing", framing),)) | st.just(())
    remote = st.builds(
        lambda scheme, host, port, service, user, framing: Uri(
            scheme, host, port, service, user[0], user[1], framing if scheme == "tcp" else ()
        ),
        st.sampled_from(NETWORK_SCHEMES),
        st.one_of(names, st.ip_addresses().map(unmapped).map(str)),
        ports,
        st.none() | services,
        users,
        options,
    )
    local = st.builds(lambda service, framing: Uri("unix", "", 0, service, options=framing), services, options)
    return remote | local


def _peers(direction: Direction, words: Words) -> st.SearchStrategy[Peer]:
    named = words.schemes if direction is Direction.OUT else ("tls", "wss")
    schemes, some_port = st.sampled_from(words.schemes), st.none() | words.ports
    found = [
        st.just(Peer()),
        st.builds(Peer, schemes),
        st.builds(Peer, st.sampled_from(named), words.names, st.none(), some_port),
        st.builds(Peer, schemes, st.none(), words.addresses, some_port),
    ]
    if direction is Direction.OUT:
        found.append(st.builds(Peer, st.just("unix"), st.none() | words.services))
    return st.one_of(found)


def _rules(direction: Direction, allow: bool | None, words: Words) -> st.SearchStrategy[Rule]:
    def build(allows: bool, service: str | None, peer: Peer, handover: Mode | None) -> Rule:
        given = allows and direction is Direction.OUT
        return Rule(allows, direction, service, peer, handover if given else None)

    verdicts = st.booleans() if allow is None else st.just(allow)
    modes = st.sampled_from((None, None, *WISHES))
    return st.builds(build, verdicts, st.none() | words.services, _peers(direction, words), modes)


def rules(allow: bool | None = None, words: Words = FEW) -> st.SearchStrategy[Rule]:
    """Rules of both directions; *allow* fixes the verdict."""
    return _rules(Direction.IN, allow, words) | _rules(Direction.OUT, allow, words)


def questions(words: Words = FEW) -> st.SearchStrategy[Question]:
    """Questions of every kind: with addresses, without, and about local services."""
    known = st.none() | st.lists(words.addresses, min_size=1, max_size=3, unique=True).map(tuple)
    remote = st.builds(Destination, st.sampled_from(words.schemes), st.none() | words.names, known, words.ports)
    local = st.builds(lambda name: Destination("unix", name, None, None), words.services)
    return st.builds(
        Question,
        st.sampled_from(Direction),
        st.none() | words.services,
        st.one_of(remote, remote, local),
        st.booleans(),
    )


def cases() -> st.SearchStrategy[tuple[Policy, Question]]:
    """A policy and a question."""
    policies = st.builds(
        lambda drawn, inward, out: Policy(tuple(drawn), {Direction.IN: inward, Direction.OUT: out}, OWN),
        st.lists(rules(), max_size=4),
        st.booleans(),
        st.booleans(),
    )
    return st.tuples(policies, questions())
