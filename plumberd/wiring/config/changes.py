"""What a reload changes, in lines for people: ``limits.relays: 500 → 600``. Secrets show as ``***``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plumberd.pure.login import LoginSettings
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.route import Choice
from plumberd.pure.policy.rule import Rule
from plumberd.pure.web_safety import WebSettings
from plumberd.wiring.config.mistakes import key_text
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.config.values import show_time

AT_START = ("rundir", "group", "dialects", "parts")
"""What a running process keeps until it is started again: where its sockets are, whose, and which."""

NONE = "none"

_HIDDEN = {
    "tls": "other contents",
    "peer": "other contents or another secret",
    "web": "other tokens",
    "auth": "other contents or other arguments",
}
_HIDDEN_IN_ROUTES = "another secret or another endpoint string"
"""What has changed where nothing of it can be seen."""


@dataclass(frozen=True)
class Changes:
    """The difference between two settings.

    :ivar lines: one for each value, rule and listener; none where nothing has changed.
    :ivar needs_restart: the keys of those that cannot change in a running process.
    """

    lines: tuple[str, ...]
    needs_restart: tuple[str, ...]


@dataclass(frozen=True)
class _Value:
    """A value, and what is shown of it."""

    value: Any
    text: str


def changes(old: Settings, new: Settings) -> Changes:
    """Return what is different in *new*."""
    lines: list[str] = []
    needs_restart: list[str] = []
    before, after = _values(old), _values(new)
    for key in dict.fromkeys([*before, *after]):
        was, is_ = before.get(key, _Value(None, NONE)), after.get(key, _Value(None, NONE))
        if was.value == is_.value:
            continue
        line = f"{key}: {was.text} → {is_.text}"
        if was.text == is_.text:
            line = f"{key}: {is_.text}, with {_HIDDEN.get(key.partition('.')[0], _HIDDEN_IN_ROUTES)}"
        if key in AT_START:
            needs_restart.append(key)
            line += " (takes a new start)"
        lines.append(line)
    lists = _lists(old), _lists(new)
    for key in dict.fromkeys([*lists[0], *lists[1]]):
        lines += _list_lines(key, lists[0].get(key, ()), lists[1].get(key, ()))
    lines += _rule_lines(old.policy.rules, new.policy.rules)
    return Changes(tuple(lines), tuple(needs_restart))


def _values(settings: Settings) -> dict[str, _Value]:
    """Return every value that can be only one, by its key."""
    defaults = settings.policy.defaults
    plain = {
        "rundir": settings.rundir,
        "group": _group(settings.group, settings.gid),
        "admin_group": _group(settings.admin_group, settings.admin_gid),
        "dialects": ",".join(settings.dialects),
        "parts": ",".join(sorted(settings.parts)) or "all",
        "handover": settings.handover.value,
        "default.in": "allow" if defaults[Direction.IN] else "deny",
        "default.out": "allow" if defaults[Direction.OUT] else "deny",
        "audit.file": settings.audit_file or NONE,
        "audit.journal": "true" if settings.audit_journal else "false",
        "audit_only": show_time(settings.audit_only_seconds) if settings.audit_only_seconds else NONE,
    }
    found = {key: _Value(text, text) for key, text in plain.items()}
    found.update(_choices("redirect", settings.routes.redirects))
    found.update(_choices("routes", settings.routes.routes))
    for name, framing in settings.framings.items():
        found[key_text(("services", name, "framing"))] = _Value(framing, framing)
    for name in sorted(settings.proxied):
        found[key_text(("services", name, "proxy"))] = _Value("v2", "v2")
    found.update(_tls(settings))
    found.update(_auth(settings.logins))
    found.update(_web(settings.web))
    for limit in dataclasses.fields(settings.limits):
        value = getattr(settings.limits, limit.name)
        found[f"limits.{limit.name}"] = _Value(value, f"{value:g}" if isinstance(value, float) else str(value))
    return found


def _tls(settings: Settings) -> Iterator[tuple[str, _Value]]:
    tls = settings.tls
    for one in tls.certificates:
        yield key_text(("tls", "certificates", one.chain_file)), _Value(one, str(one))
    if tls.psk_file is not None:
        yield "tls.psk_file", _Value((tls.psk_file, tls.psks), f"{tls.psk_file}, {len(tls.psks)} for callers")
    yield "tls.trust", _Value(tls.trust, str(tls.trust))
    yield "tls.crl", _Value(tls.crls, ", ".join(dict.fromkeys(one.file for one in tls.crls)) or NONE)
    yield "tls.client_certificates", _Value(tls.client_certificates, tls.client_certificates.value)
    yield "tls.alpn", _Value(tls.alpn, ",".join(tls.alpn) or NONE)
    yield "tls.gateways", _Value(settings.gateways, ", ".join(map(str, settings.gateways)) or NONE)
    for name, peer in settings.peers.items():
        yield key_text(("peer", name)), _Value(peer, str(peer))


def _auth(logins: LoginSettings) -> Iterator[tuple[str, _Value]]:
    if logins.password_file is not None:
        text = f"{logins.password_file} ({logins.passwords})"
        yield "auth.password_file", _Value((logins.password_file, logins.passwords), text)
    if logins.checkers:
        yield "auth.checkers", _Value(logins.checkers, ", ".join(logins.checker_names))


def _web(web: WebSettings) -> Iterator[tuple[str, _Value]]:
    if web.token_file is not None:
        yield "web.token_file", _Value((web.token_file, web.tokens), f"{web.token_file} ({len(web.tokens)})")
    yield "web.page", _Value(web.page, "true" if web.page else "false")


def _choices(table: str, choices: Mapping[str, tuple[Choice, ...]]) -> Iterator[tuple[str, _Value]]:
    for name, found in choices.items():
        yield key_text((table, name)), _Value(found, "; else ".join(map(str, found)))


def _lists(settings: Settings) -> dict[str, Sequence[str]]:
    """Return every list but the rules', whose order counts; theirs does not."""
    found: dict[str, list[str]] = {
        "listen.tcpd": list(settings.tcpd),
        "listen.tlsd": list(settings.tlsd),
        "listen.webipcd": [str(one) for one in settings.webipcd],
        "web.hosts": [str(one) for one in settings.web.hosts],
        "web.origins": [str(one) for one in settings.web.origins],
        "web.proxies": [str(one) for one in settings.web.proxies],
        "listen.udpd": list(settings.udpd),
        "service_users": [f"uid {uid}" for uid in sorted(settings.service_uids)],
        "broker_users": [f"uid {uid}" for uid in sorted(settings.broker_uids)],
    }
    for key, published in (("publish", settings.publish), ("publish_tls", settings.publish_tls)):
        for name, listener in published:
            found.setdefault(key_text(("listen", key, name)), []).append(listener)
    return {key: listed for key, listed in found.items() if listed}


def _list_lines(key: str, old: Iterable[Any], new: Iterable[Any]) -> Iterator[str]:
    before, after = Counter(old), Counter(new)
    for gone in (before - after).elements():
        yield f"{key}: - {gone}"
    for come in (after - before).elements():
        yield f"{key}: + {come}"


def _rule_lines(old: Sequence[Rule], new: Sequence[Rule]) -> Iterator[str]:
    yield from _list_lines("rules", old, new)
    both = Counter(old) & Counter(new)
    kept = [list(_kept(rules, Counter(both))) for rules in (old, new)]
    moved = next((number for (_, was), (number, is_) in zip(*kept, strict=True) if was != is_), None)
    if moved is not None:
        yield f"rules: another order, from rule {moved} on"


def _kept(rules: Iterable[Rule], both: Counter[Rule]) -> Iterator[tuple[int, Rule]]:
    """Yield those of *rules*, with their numbers, that stand in *both*."""
    for number, rule in enumerate(rules, 1):
        if both[rule]:
            both[rule] -= 1
            yield number, rule


def _group(name: str | None, gid: int | None) -> str:
    return NONE if name is None else f"{name} (gid {gid})"
