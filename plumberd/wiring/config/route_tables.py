"""The tables ``[routes]`` and ``[redirect]``: where a name leads, its alternatives, and for whom.

    web = "tls:example.com:443"
    pong = ["tcp://a.example/pong", "tcp://b.example/pong"]
    authd = [{to = "authd-next", for = "group:beta"}, {to = "authd-old"}]

An array of strings holds alternatives, an array of tables choices, the first of
which whose conditions all hold counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from plumberd.effects.accounts import Accounts
from plumberd.pure.policy.route import Choice, Target
from plumberd.pure.policy.subject import Condition, bind, parse_condition
from plumberd.wiring.config.mistakes import UnknownKey, gather, text, unwanted
from plumberd.wiring.config.values import target

T = TypeVar("T")
Parse = Callable[[str, str], Target]
"""``parse_route`` or ``parse_redirect``."""

_WANTED = "a string, an array of strings alone, or an array of tables alone, each with to and for"


CHOICE_KEYS = ("to", "for")
"""What one choice may have."""


def parse_table(value: object, parse: Parse, accounts: Accounts) -> dict[str, tuple[Choice, ...]]:
    """Return the choices for each name of a table.

    :raises Exception: a group of all mistakes, as cattrs makes it, or the one that there is.
    """
    if not isinstance(value, dict):
        raise unwanted(value, "a table of names and where they lead")

    def entry(name: str, entry: object) -> tuple[str, tuple[Choice, ...]]:
        return name, _choices(name, entry, parse, accounts)

    return dict(gather(value.items(), entry))


def _choices(name: str, entry: object, parse: Parse, accounts: Accounts) -> tuple[Choice, ...]:
    if isinstance(entry, str):
        return (Choice((target(parse, name, entry),)),)
    if isinstance(entry, list) and entry:
        if all(isinstance(one, str) for one in entry):
            return (Choice(one_or_more(entry, lambda text: target(parse, name, text))),)
        if all(isinstance(one, dict) for one in entry):
            return tuple(gather(enumerate(entry), lambda _, one: _choice(name, one, parse, accounts)))
    raise unwanted(entry, _WANTED)


def _choice(name: str, table: dict[str, Any], parse: Parse, accounts: Accounts) -> Choice:
    targets: tuple[Target, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def member(key: str, value: object) -> None:
        nonlocal targets, conditions
        if key == "to":
            targets = one_or_more(value, lambda text: target(parse, name, text))
        elif key == "for":
            conditions = one_or_more(value, lambda text: _condition(text, accounts))
        else:
            raise UnknownKey(key, CHOICE_KEYS)

    gather({"to": None, **table}.items(), member)
    return Choice(targets, conditions)


def one_or_more(value: object, parse: Callable[[str], T]) -> tuple[T, ...]:
    """Return what a string says, or an array of them."""
    if isinstance(value, str):
        return (parse(value),)
    if isinstance(value, list) and value:  # an empty one would say the same as none, and mean the opposite
        return tuple(gather(enumerate(value), lambda _, one: parse(text(one))))
    raise unwanted(value, "a string, or an array of strings")


def _condition(word: str, accounts: Accounts) -> Condition:
    (condition,) = bind([parse_condition(word)], accounts.uid_of, accounts.gid_of)
    return condition
