"""Random values that several tests draw: names, hosts, networks, URIs, who asks, rules and questions."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hypothesis import strategies as st

from plumberd.pure.address import unmapped
from plumberd.pure.modes import WISHES, Mode
from plumberd.pure.names import SCHEMES, is_reserved
from plumberd.pure.policy.decide import Policy, Question
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import ANY, Destination, IPNetwork, Peer, Ports
from plumberd.pure.policy.rule import Action, Rule
from plumberd.pure.policy.subject import UNMAPPED, Condition, Standing, Subject
from plumberd.pure.uri import FRAMINGS, IPAddress, Uri

NETWORK_SCHEMES = tuple(scheme for scheme in SCHEMES if scheme != "unix")

services = st.from_regex(r"[a-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(
    lambda name: name not in ANY and not is_reserved(name)
)
globs = st.from_regex(r"[A-Za-z0-9_.*?-]{1,12}", fullmatch=True).filter(
    lambda glob: glob not in ANY and ("*" in glob or "?" in glob)
)
labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,6}[a-z0-9_])?", fullmatch=True).filter(
    lambda label: not label.startswith("xn--")
)
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
networks: st.SearchStrategy[IPNetwork] = st.builds(
    lambda address, length: ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False),
    addresses,
    st.integers(0, 128),
)


def networks_of(*texts: str) -> tuple[IPNetwork, ...]:
    """Return networks, of both families."""
    return tuple(map(ipaddress.ip_network, texts))


NESTED = networks_of(
    *("0.0.0.0/0", "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "169.254.0.0/15", "192.0.2.0/24", "192.0.2.4/30"),
    *("198.51.0.0/16", "198.51.100.0/24", "198.51.100.0/30", "224.0.0.0/4", "100.64.0.0/10"),
    *("::/0", "64:ff9b::/96", "2001:db8::/32", "2001:db8::/64", "fe80::/10", "fe80::/9", "ff00::/8", "::/128"),
)
"""Networks within one another, of both families; some lie within a zone, some hold one and more."""


@dataclass(frozen=True)
class Words:
    """What rules and questions are made of. Globs stand in rules alone, suffixes for ``*.NAME``."""

    services: st.SearchStrategy[str]
    globs: st.SearchStrategy[str]
    names: st.SearchStrategy[str]
    suffixes: st.SearchStrategy[str]
    addresses: st.SearchStrategy[IPAddress]
    networks: st.SearchStrategy[IPNetwork]
    ports: st.SearchStrategy[int]
    ranges: st.SearchStrategy[Ports]
    schemes: tuple[str, ...]
    local: st.SearchStrategy[Condition]
    proved: st.SearchStrategy[Condition]


def _kind(kind: str, regex: str) -> st.SearchStrategy[Condition]:
    return st.from_regex(regex, fullmatch=True).map(lambda value: Condition(kind, value))


EVERY = Words(
    services,
    globs,
    names,
    names,
    addresses,
    networks,
    ports,
    st.tuples(ports, ports).map(lambda two: (min(two), max(two))),
    NETWORK_SCHEMES,
    st.one_of(
        _kind("user", r"[a-z_][A-Za-z0-9_.@\\$+-]{0,12}"),
        _kind("group", r"[a-z_][A-Za-z0-9_.@\\$+-]{0,12}"),
        st.integers(0, 2**32 - 2).filter(lambda n: n != UNMAPPED).map(lambda n: Condition("uid", str(n), n)),
        _kind("unit", r"[A-Za-z0-9:_.@\\]{1,12}\.(service|scope|slice|socket)"),
        _kind("unit", r"(/[!-.0-~]{1,6}){1,4}"),
    ),
    st.one_of(
        names.map(lambda name: Condition("cert", name)),
        names.map(lambda name: Condition("cert", f"*.{name}")),
        _kind("spiffe", r"//[a-z0-9][a-z0-9._-]{0,7}(/[A-Za-z0-9_-]{1,5}){0,3}"),
        _kind("psk", r"[!-~]{1,12}"),
        _kind("login", r"[!-~]{1,12}"),
    ),
)
"""All that the grammar allows."""

FEW = Words(
    st.sampled_from(("pong", "audio")),
    st.sampled_from(("p*", "*o*", "p?ng", "?????", "*io", "po*ng", "p*p", "pong*", "*audio")),
    st.sampled_from(("a.example", "b.example", "x.b.example")),
    st.sampled_from(("example", "b.example", "x.b.example")),
    st.sampled_from((*DANGEROUS, ipaddress.ip_address("198.51.100.1"), ipaddress.ip_address("2001:db8::9"))),
    st.sampled_from(NESTED),
    st.sampled_from((80, 443)),
    st.sampled_from(((80, 80), (443, 443), (80, 443), (81, 65535))),
    ("tcp", "tls"),
    st.sampled_from(
        (
            Condition("user", "alice", 1000),
            Condition("group", "audio", 27),
            Condition("uid", "1001", 1001),
            Condition("unit", "ci.service"),
        )
    ),
    st.sampled_from(
        (
            Condition("cert", "a.example"),
            Condition("cert", "*.b.example"),
            Condition("spiffe", "//d.example/w"),
            Condition("psk", "laptop"),
            Condition("login", "alice"),
        )
    ),
)
"""So few that a question is often one that a rule speaks of."""

locals_: st.SearchStrategy[Subject] = st.builds(
    Subject,
    st.sampled_from((Standing.LOCAL, Standing.CONFINED)),
    st.sampled_from((0, 1000, 1001, UNMAPPED, None)),
    st.frozensets(st.sampled_from((27, 100, UNMAPPED)), max_size=2),
    st.sampled_from((None, "/system.slice/ci.service", "/user.slice")),
)
"""Local clients, some of whom can't be told whole."""

callers: st.SearchStrategy[Subject] = st.builds(
    lambda words: Subject(Standing.REMOTE, words=words),
    st.frozensets(
        st.sampled_from(("cert:a.example", "cert:x.b.example", "spiffe://d.example/w", "psk:laptop", "login:alice")),
        max_size=2,
    ),
)
"""Remote callers and what they have proved."""


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


def peers(direction: Direction, words: Words = FEW) -> st.SearchStrategy[Peer]:
    """Peers of every kind that a rule of this direction may have."""
    if direction is Direction.SERVE:
        return st.just(Peer())
    named = st.sampled_from(words.schemes if direction is Direction.OUT else ("tls", "wss"))
    schemes, span = st.sampled_from(words.schemes), st.none() | words.ranges
    alone = words.addresses.map(lambda address: ipaddress.ip_network(address))
    found = [
        st.just(Peer()),
        st.builds(Peer, schemes, ports=span),
        st.builds(Peer, named, words.names, ports=span),
        st.builds(Peer, named, suffix=words.suffixes, ports=span),
        st.builds(Peer, schemes, network=alone, ports=span),
        st.builds(Peer, schemes, network=words.networks, ports=span),
    ]
    if direction is Direction.OUT:
        found.append(st.builds(Peer, st.just("unix"), st.none() | words.services))
    return st.one_of(found)


def conditions(direction: Direction, words: Words = FEW) -> st.SearchStrategy[tuple[Condition, ...]]:
    """What may stand behind the ``for`` of a rule of this direction; mostly nothing."""
    one = {
        Direction.IN: words.proved,
        Direction.OUT: words.local | words.proved,
        Direction.SERVE: words.local,
    }[direction]
    return st.just(()) | st.lists(one, max_size=2).map(tuple)


def _rules(direction: Direction, actions: tuple[Action, ...], words: Words) -> st.SearchStrategy[Rule]:
    def build(action: Action, service: str | None, peer: Peer, who: tuple[Condition, ...], mode: Mode | None) -> Rule:
        given = action.opens and direction is Direction.OUT
        return Rule(action, direction, service, peer, who, mode if given else None)

    possible = [action for action in actions if direction is not Direction.SERVE or action is not Action.LOG]
    return st.builds(
        build,
        st.sampled_from(possible),
        st.one_of(st.none(), st.none(), words.services, words.services, words.globs),
        st.one_of(st.just(Peer()), peers(direction, words)),
        st.one_of(st.just(()), conditions(direction, words)),
        st.sampled_from((None, None, *WISHES)),
    )


def rules(*actions: Action, words: Words = FEW, directions: tuple[Direction, ...] = ()) -> st.SearchStrategy[Rule]:
    """Rules, of all actions and directions where none is given; never a ``log serve``, which is no rule."""
    return st.one_of(
        [
            _rules(direction, actions or tuple(Action), words)
            for direction in directions or tuple(Direction)
            if direction is not Direction.SERVE or actions != (Action.LOG,)
        ]
    )


def questions(words: Words = FEW) -> st.SearchStrategy[Question]:
    """Questions of every kind: with addresses, without, about local services and endpoints, by everybody."""
    known = st.none() | st.lists(words.addresses, min_size=1, max_size=3, unique=True).map(tuple)
    schemes, anybody = st.sampled_from(words.schemes), locals_ | callers
    service = st.none() | words.services
    local = st.builds(lambda name: Destination("unix", name, None, None), words.services)
    remote = st.builds(Destination, schemes, st.none() | words.names, known, words.ports)
    endpoint = st.builds(
        Destination, st.sampled_from(("tls", "unix", "systemd")), st.none(), st.none(), st.none(), st.booleans()
    )
    caller = st.builds(Destination, schemes, st.none(), known, st.just(51234))
    outward = st.builds(Question, st.just(Direction.OUT), service, st.one_of(remote, remote, local, endpoint), anybody)
    return st.one_of(
        outward,
        outward,
        outward,
        st.builds(Question, st.just(Direction.IN), words.services, caller, callers),
        st.builds(
            lambda name, who: Question(Direction.SERVE, name, Destination("unix", name, None, None), who),
            words.services,
            locals_,
        ),
    )


def policies(least: int = 0, most: int = 4, directions: tuple[Direction, ...] = ()) -> st.SearchStrategy[Policy]:
    """Policies of *least* to *most* rules, with all defaults."""
    return st.builds(
        lambda drawn, inward, out: Policy(tuple(drawn), {Direction.IN: inward, Direction.OUT: out}, OWN),
        st.lists(rules(directions=directions), min_size=least, max_size=most),
        st.booleans(),
        st.booleans(),
    )


def cases(asked: st.SearchStrategy[Question] | None = None) -> st.SearchStrategy[tuple[Policy, Question]]:
    """A policy and a question; most rules are of the question's direction."""

    # made once: making a strategy for each question takes longer than drawing from it
    own = {direction: policies(least=1, directions=(direction,)) for direction in Direction}
    mixed = policies()

    def about(question: Question) -> st.SearchStrategy[tuple[Policy, Question]]:
        mine = own[question.direction]
        return st.tuples(st.one_of(mine, mine, mixed), st.just(question))

    return (questions() if asked is None else asked).flatmap(about)
