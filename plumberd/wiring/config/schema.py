"""The configuration's keys and their types, and the one converter that checks both.

A key is a field here; a table is a class, and a word that Python keeps for itself
has a ``_`` behind it. Types are strict, since TOML has them: ``"5"`` is no
number, and ``true`` is none either. What a string has to be is a type too, so
that whatever is wrong with it is found together with everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NewType, TypeVar, get_args, get_origin, get_type_hints

from cattrs import Converter
from cattrs.cols import list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, override

from plumberd.effects.accounts import Accounts
from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.pure.names import check_service
from plumberd.pure.policy.route import Choice, parse_redirect, parse_route
from plumberd.pure.policy.rule import Rule, bind_rule, parse_rule
from plumberd.pure.policy.subject import Condition
from plumberd.pure.psk import check_identity
from plumberd.pure.tls import ALPN_NAMES, ClientCertificates, check_alpn, check_login, parse_pin
from plumberd.pure.web_safety import Network, Origin, Place
from plumberd.wiring.config import values
from plumberd.wiring.config.mistakes import UnknownKey, gather, key_names, text, unwanted
from plumberd.wiring.config.route_tables import one_or_more, parse_table
from plumberd.wiring.config.settings import Group, WebListener

Hook = Callable[[Any, Any], Any]
"""Value and type in, checked value out."""

T = TypeVar("T")

Directory = NewType("Directory", str)
Word = NewType("Word", str)
Dialects = NewType("Dialects", tuple[str, ...])
Part = NewType("Part", str)
Uid = NewType("Uid", int)
Verdict = NewType("Verdict", bool)
Listener = NewType("Listener", str)
PlainListener = NewType("PlainListener", str)
DatagramListener = NewType("DatagramListener", str)
ServiceName = NewType("ServiceName", str)
FramingName = NewType("FramingName", str)
ProxyVersion = NewType("ProxyVersion", str)
Seconds = NewType("Seconds", int)
Words = NewType("Words", tuple[str, ...])
Protocols = NewType("Protocols", tuple[str, ...])
Proxies = NewType("Proxies", tuple[Network | str, ...])
Identities = NewType("Identities", tuple[Condition, ...])
PeerName = NewType("PeerName", str)
KeyName = NewType("KeyName", str)
Login = NewType("Login", str)
Pins = NewType("Pins", tuple[str, ...])
RouteTable = NewType("RouteTable", dict[str, tuple[Choice, ...]])
RedirectTable = NewType("RedirectTable", dict[str, tuple[Choice, ...]])
LimitTable = NewType("LimitTable", dict[str, float])


@dataclass(frozen=True)
class Located:
    """A rule's text, or what stands in its place, with where it was written."""

    value: object
    file: str
    index: int
    line: int | None = None

    @property
    def source(self) -> str:
        """What the rule says of itself."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Default:
    """``[default]``."""

    in_: Verdict | None = None
    out: Verdict | None = None


@dataclass(frozen=True)
class Listen:
    """``[listen]``."""

    tcpd: list[Listener] = field(default_factory=list)
    publish: dict[ServiceName, list[Listener]] = field(default_factory=dict)
    tlsd: list[PlainListener] = field(default_factory=list)
    udpd: list[DatagramListener] = field(default_factory=list)
    publish_tls: dict[ServiceName, list[PlainListener]] = field(default_factory=dict)
    webipcd: list[WebListener] = field(default_factory=list)


@dataclass(frozen=True)
class Service:
    """``[services.NAME]``."""

    framing: FramingName | None = None
    proxy: ProxyVersion | None = None


@dataclass(frozen=True)
class CertificateFiles:
    """One of ``tls.certificates``."""

    certificate: Directory | None = None
    private_key: Directory | None = None


@dataclass(frozen=True)
class Tls:
    """``[tls]``."""

    certificate: Directory | None = None
    private_key: Directory | None = None
    certificates: list[CertificateFiles] = field(default_factory=list)
    trust: Words = Words(())
    crl: Words = Words(())
    psk_file: Directory | None = None
    client_certificates: ClientCertificates = ClientCertificates.NONE
    alpn: Protocols = Protocols(())
    gateways: Identities = Identities(())


@dataclass(frozen=True)
class Peer:
    """``[peer."HOST:PORT"]``."""

    psk: KeyName | None = None
    certificate: Directory | None = None
    private_key: Directory | None = None
    login: Login | None = None
    password_file: Directory | None = None
    pin: Pins = Pins(())
    trust: Words = Words(())
    forward: bool = False
    token_file: Directory | None = None


@dataclass(frozen=True)
class Web:
    """``[web]``."""

    hosts: list[Place] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    proxies: Proxies = Proxies(())
    token_file: Directory | None = None
    page: bool = False


@dataclass(frozen=True)
class Auth:
    """``[auth]``."""

    password_file: Directory | None = None
    checkers: list[Word] = field(default_factory=list)


@dataclass(frozen=True)
class Audit:
    """``[audit]``."""

    file: Directory | None = None
    journal: bool = False


@dataclass(frozen=True)
class Configuration:
    """All keys, each at the top of a file; what is not there is what the option says, or its default."""

    include: list[Word] = field(default_factory=list)
    rundir: Directory | None = None
    group: Group | None = None
    admin_group: Group | None = None
    dialects: Dialects | None = None
    handover: Mode | None = None
    parts: list[Part] = field(default_factory=list)
    service_users: list[Uid] = field(default_factory=list)
    broker_users: list[Uid] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    default: Default = field(default_factory=Default)
    routes: RouteTable = field(default_factory=lambda: RouteTable({}))
    redirect: RedirectTable = field(default_factory=lambda: RedirectTable({}))
    listen: Listen = field(default_factory=Listen)
    services: dict[ServiceName, Service] = field(default_factory=dict)
    tls: Tls = field(default_factory=Tls)
    peer: dict[PeerName, Peer] = field(default_factory=dict)
    web: Web = field(default_factory=Web)
    auth: Auth = field(default_factory=Auth)
    limits: LimitTable = field(default_factory=lambda: LimitTable({}))
    audit: Audit = field(default_factory=Audit)
    audit_only: Seconds | None = None


def structure(table: Mapping[str, Any], accounts: Accounts) -> Configuration:
    """Return the configuration that *table* says; in ``rules`` stand :class:`Located` values.

    :raises Exception: a group of all mistakes, as :func:`plumberd.wiring.config.mistakes.flatten` takes it.
    """
    return _converter(accounts).structure(table, Configuration)


def key_paths(schema: type = Configuration, prefix: str = "") -> list[str]:
    """Return every key as it is written in TOML; ``NAME`` stands for each member of a table of any names."""
    found: list[str] = []
    types = get_type_hints(schema)
    for key, name in zip(key_names(schema), types, strict=True):
        path, type_ = prefix + key, types[name]
        if type_ in (RouteTable, RedirectTable, LimitTable):
            path, type_ = f"{path}.NAME", str
        elif get_origin(type_) is dict:
            path, type_ = f"{path}.NAME", get_args(type_)[1]
        found += key_paths(type_, f"{path}.") if type_ in _TABLES else [path]
    return found


_TABLES = (Default, Listen, Service, Tls, Peer, Web, Auth, Audit)


def _converter(accounts: Accounts) -> Converter:
    """Return a converter that looks names of users and groups up in *accounts*."""
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    factories = ((dataclasses.is_dataclass, _tables), (_is(list), _arrays), (_is(dict), _open_tables))
    for predicate, factory in factories:
        converter.register_structure_hook_factory(predicate, factory)
    converter.register_structure_hook(bool, _truth)
    converter.register_structure_hook(Rule, lambda value, _: _rule(value, accounts))
    words: dict[Any, Callable[[str], Any]] = {
        Word: str,
        Directory: values.path,
        Group: lambda word: values.group(word, accounts),
        Mode: values.handover,
        Part: values.part,
        Uid: lambda word: values.user(word, accounts),
        Verdict: values.verdict,
        Listener: values.listener,
        PlainListener: values.plain_listener,
        WebListener: values.web_listener,
        Place: values.host,
        Origin: values.origin,
        DatagramListener: values.datagram_listener,
        ClientCertificates: values.client_certificates,
        PeerName: values.peer_name,
        KeyName: check_identity,
        Login: check_login,
        ServiceName: check_service,
        FramingName: values.framing,
        ProxyVersion: values.proxy_version,
        Seconds: values.audit_only,
    }
    for type_, parse in words.items():
        converter.register_structure_hook(type_, _word(parse))
    converter.register_structure_hook(Words, lambda value, _: one_or_more(value, values.path))
    converter.register_structure_hook(Pins, lambda value, _: one_or_more(value, parse_pin))
    converter.register_structure_hook(Identities, lambda value, _: _each(value, values.identity))
    converter.register_structure_hook(Proxies, lambda value, _: _each(value, values.proxy))
    converter.register_structure_hook(Protocols, lambda value, _: _protocols(value))
    converter.register_structure_hook(Dialects, lambda value, _: values.dialects(_each(value, values.dialect)))
    converter.register_structure_hook(LimitTable, lambda value, _: _limits(value))
    converter.register_structure_hook(RouteTable, lambda value, _: parse_table(value, parse_route, accounts))
    converter.register_structure_hook(RedirectTable, lambda value, _: parse_table(value, parse_redirect, accounts))
    return converter


def _tables(type_: Any, converter: Converter) -> Hook:
    """Make the hook for a table of known keys."""
    renamed = {f.name: override(rename=f.name[:-1]) for f in dataclasses.fields(type_) if f.name.endswith("_")}
    make: Any = make_dict_structure_fn  # its overrides and its own options are both keyword arguments
    build = make(type_, converter, _cattrs_forbid_extra_keys=True, **renamed)
    return _only(dict, "a table", build)


def _arrays(type_: Any, converter: Converter) -> Hook:
    """Make the hook for an array; cattrs alone would take a string for one of letters."""
    return _only(list, "an array, between [ and ]", list_structure_factory(type_, converter))


def _open_tables(type_: Any, converter: Converter) -> Hook:
    """Make the hook for a table of any names."""
    return _only(dict, "a table", mapping_structure_factory(type_, converter))


def _is(origin: object) -> Callable[[Any], bool]:
    return lambda type_: get_origin(type_) is origin


def _only(kind: type, wanted: str, build: Callable[[Any, Any], Any]) -> Hook:
    def structure_only(value: object, type_: Any) -> Any:
        if not isinstance(value, kind):
            raise unwanted(value, wanted)
        return build(value, type_)

    return structure_only


def _word(parse: Callable[[str], Any]) -> Hook:
    return lambda value, _: parse(text(value))


def _truth(value: object, _: Any) -> bool:
    if not isinstance(value, bool):
        raise unwanted(value, "true or false")
    return value


def _rule(value: Any, accounts: Accounts) -> Rule:
    assert isinstance(value, Located)
    rule = parse_rule(text(value.value), value.source)
    return bind_rule(rule, accounts.uid_of, accounts.gid_of) if rule.conditions else rule


def _each(value: object, parse: Callable[[str], T]) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise unwanted(value, "an array, between [ and ]")
    return tuple(gather(enumerate(value), lambda _, word: parse(text(word))))


def _protocols(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > ALPN_NAMES:
        raise unwanted(value, f"an array, between [ and ], of at most {ALPN_NAMES}")
    return tuple(gather(enumerate(value), lambda _, word: check_alpn(text(word))))


def _limits(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise unwanted(value, "a table")
    known = [f.name for f in dataclasses.fields(Limits)]

    def limit(name: str, number: object) -> tuple[str, float]:
        if name not in known:
            raise UnknownKey(name, known)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise unwanted(number, "a number of seconds" if name.endswith("_seconds") else "a whole number")
        return name, values.limit(name, str(number))

    return dict(gather(value.items(), limit))
