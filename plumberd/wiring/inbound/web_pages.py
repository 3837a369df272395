"""What webipcd answers by itself, under ``/-/``: its own files, and which services there are for a caller."""

from __future__ import annotations

import functools
import os
import stat
import time
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice

import plumberd
from plumberd.pure.names import check_service, is_reserved, is_service
from plumberd.pure.pairs import Pairs
from plumberd.pure.policy.decide import Question
from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.peer import Destination
from plumberd.pure.policy.route import EVERY, find_way
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.web_http import HttpError, answer
from plumberd.pure.web_request import Own
from plumberd.pure.web_safety import WebSettings
from plumberd.pure.who import RemoteWho
from plumberd.wiring.core import Core

BY_NAME = "services"
"""Below it: which services there are, and each by its name."""

MOST_SERVICES = 1000
"""So many are listed."""

LISTENING_SECONDS = 1.0
"""How old what is known of the run directory may be: a thousand sockets are some milliseconds' work."""

LIBRARY = "plumb.js"
"""The one file that is there without ``[web] page``."""

Page = bytes

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FILES = {LIBRARY: LIBRARY, "": "index.html", "page.js": "page.js", "page.css": "page.css", "icon.svg": "icon.svg"}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing of another place, nothing that stands in the page itself."""

OWN_ONLY = ("Cross-Origin-Resource-Policy", "same-origin")
"""Keeps pages of other origins from embedding an answer, and browsers from giving it to their processes."""

_HEADERS = (
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    OWN_ONLY,
    ("Cache-Control", "no-cache"),
)

_PLACES = ("", "-0-0")


def page_of(asked: Own, web: WebSettings) -> Page | None:
    """Return the answer that is a file; ``None`` where it depends on who asks.

    :raises HttpError: 404, where there is nothing of that name, or the page is off.
    """
    name, below, service = asked.path.partition("/")
    if name == BY_NAME and (web.page or (below and service)):
        return None
    file = _FILES.get(asked.path)
    if file is None or not (web.page or file == LIBRARY):
        raise HttpError(HTTPStatus.NOT_FOUND, "nothing of that name")
    kind = _TYPES[os.path.splitext(file)[1]]
    return answer(HTTPStatus.OK, _read(file), kind, time.time(), _HEADERS, has_body=asked.has_body)


def tell_of(core: Core, name: str, who: RemoteWho) -> None:
    """Check what a WebSocket to *name* would come to, as far as that can be told without a connection.

    :raises Refused: what it would be refused with.
    """
    check_service(name)
    verdict = core.decide(_question(name, who))
    if not verdict.granted:
        raise Refused(Refusal.DENIED, verdict.reason)
    local = find_way(name, Pairs(), core.settings.routes, who.subject, for_caller=True).local_service
    if local is not None and core.registrations.find(local) is None and not _is_there(core, local):
        raise Refused(Refusal.UNKNOWN_SERVICE, f"no local service is called {local}")


class Listening:
    """The services that listen in the run directory, which is read when somebody asks, and once a second at most."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._names: frozenset[str] = frozenset()
        self._until = 0.0

    def names(self) -> frozenset[str]:
        """Return their names."""
        now = self._core.reactor.seconds()
        if now >= self._until:
            self._names = frozenset(_listening(self._core.settings.rundir))
            self._until = now + LISTENING_SECONDS
        return self._names


def list_services(core: Core, listening: Listening, who: RemoteWho) -> list[str]:
    """Return the services that *who* would be let into: those that listen, are claimed, or lead elsewhere."""
    routes = core.settings.routes
    elsewhere = {*(claim.service for claim in core.registrations), *routes.routes, *routes.redirects} - {EVERY}
    names = sorted(elsewhere | listening.names())
    return list(islice((name for name in names if core.decide(_question(name, who)).granted), MOST_SERVICES))


def _listening(rundir: str) -> Iterator[str]:
    try:
        with os.scandir(rundir) as entries:
            for entry in entries:
                name = entry.name.removesuffix(_PLACES[1])
                if is_service(name) and not is_reserved(name) and _is_socket(entry.path):
                    yield name
    except OSError:
        pass  # then those are left that need no socket


def _question(name: str, who: RemoteWho) -> Question:
    to = Destination(who.scheme, None, None if who.address is None else (who.address,), None)
    return Question(Direction.IN, name, to, who.subject)


def _is_there(core: Core, name: str) -> bool:
    return any(_is_socket(os.path.join(core.settings.rundir, name + place)) for place in _PLACES)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


@functools.cache
def _read(file: str) -> bytes:
    """Return a file of the package; of them there are few."""
    with open(os.path.join(os.path.dirname(plumberd.__file__), "web", file), "rb") as opened:
        return opened.read()
