"""URIs of lookups and routes: a strict grammar of our own.

    scheme://[user[:password]@]host[:port][/service][?options]
    scheme://user@password:host:port/service                     (the first documents' form)
    unix:///name   unix://name   name                            (a local service)

RFC 3986 sections 3.1 to 3.4 give the frame. Stricter than it, on purpose: hosts
are DNS names or addresses and nothing else, a port is 1 to 65535 without
leading zeros, there is no fragment, no zone id (RFC 6874), one path segment,
and no control character in any part, percent-encoded or not. Libraries accept
port 99999 and line breaks in hosts; a firewall cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from plumberd.pure.host import IPAddress as IPAddress
from plumberd.pure.host import UriError as UriError
from plumberd.pure.host import literal_address, percent_decode
from plumberd.pure.host import parse_host as parse_host
from plumberd.pure.host import show_host as show_host
from plumberd.pure.names import SCHEMES, is_service

URI_BYTES = 4096
"""Longest URI; a lookup's whole list of pairs has its own limit."""

DEFAULT_PORTS = {"tcp": 9000, "tls": 9001, "udp": 9000, "ws": 80, "wss": 443}

FRAMINGS = ("raw", "libipc-2019", "libipc-2020", "libipc-2023", "libipc-zig")
"""What ``?framing=`` may say: how the messages look that are cut into packets."""

_WEB_OPTIONS = ("framing", "path", "protocol", "text")
_OPTIONS = {
    "tcp": ("framing",),
    "unix": ("framing",),
    "udp": ("framing",),
    "tls": ("framing", "alpn"),
    "ws": _WEB_OPTIONS,
    "wss": _WEB_OPTIONS,
}

OPTIONS: dict[str, frozenset[str]] = {scheme: frozenset(_OPTIONS.get(scheme, ())) for scheme in SCHEMES}
"""The options that each scheme knows (``?name=value``). An unknown one is a mistake, never ignored."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")  # RFC 3986, 3.1
_UNRESERVED = "A-Za-z0-9._~\\-"  # RFC 3986, 2.3
_SUB_DELIMS = "!$&'()*+,;="  # RFC 3986, 2.2
_USERINFO = re.compile(rf"(?:[{_UNRESERVED}{re.escape(_SUB_DELIMS)}]|%[0-9A-Fa-f]{{2}})*\Z")
_ALPN = re.compile(r"[!-+\--~]{1,64}(?:,[!-+\--~]{1,64}){0,7}\Z")  # RFC 7301, in printable characters
_WEB_PATH = re.compile(r"/[!-\"$-~]{0,1023}\Z")  # RFC 3986, 3.3 and 3.4, with a query and no fragment
_WEB_PROTOCOL = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\Z")  # RFC 6455, 4.1: a token of HTTP
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


@dataclass(frozen=True)
class Uri:
    """A parsed URI.

    :ivar scheme: one of :data:`~plumberd.pure.names.SCHEMES`, lower case.
    :ivar host: a DNS name (lower case, IDNA's ASCII form, no trailing dot) or an
        address in its canonical form without brackets; empty for ``unix``.
    :ivar port: 1 to 65535, the scheme's default filled in; 0 for ``unix``.
    :ivar service: what the plumberd handshake names; ``None`` means no handshake.
    """

    scheme: str
    host: str
    port: int
    service: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> IPAddress | None:
        """The host as an address, or ``None`` where it is a name."""
        return literal_address(self.host)

    def option(self, name: str) -> str | None:
        """Return an option's value."""
        return dict(self.options).get(name)

    def __str__(self) -> str:
        """The URI for people: a password shows as ``***``."""
        return _print(self, secret=False)


def parse_uri(text: str) -> Uri:
    """Parse *text*.

    :raises UriError: for anything that is not exactly one of the forms above.
    """
    if len(text) > URI_BYTES:
        raise UriError(f"a URI of {len(text)} characters: at most {URI_BYTES} are accepted")
    if any(c <= " " or c == "\x7f" for c in text):
        raise UriError(f"blank or control character in {mask(text)!r}")
    if "://" not in text:
        if is_service(text):
            return Uri("unix", "", 0, text)
        raise _error(text, "wanted scheme://host[:port][/service] or the name of a local service")
    scheme, rest = text.split("://", 1)
    if not _SCHEME.match(scheme):
        raise _error(text, "the scheme is malformed")
    scheme = scheme.lower()
    if scheme not in SCHEMES:
        raise _error(text, f"scheme {scheme[:32]!r} is not known; known are {', '.join(SCHEMES)}")
    if "#" in rest:
        raise _error(text, "a fragment has no meaning here")
    rest, question, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    options = _options(text, scheme, query) if question else ()
    service = _service(text, path) if path else None
    if scheme == "unix":
        return _unix(text, authority, service, options)
    if service is not None and any(name in ("path", "protocol") for name, _ in options):
        raise _error(text, "path and protocol are for a far side without a service: the service is the path")
    user, password, hostport = _userinfo(text, authority)
    host, port = _hostport(text, hostport, DEFAULT_PORTS[scheme])
    return Uri(scheme, host, port, service, user, password, options)


def format_uri(uri: Uri) -> str:
    """Print *uri* with its password, for the wire; :func:`parse_uri` reads it back as the same value."""
    return _print(uri, secret=True)


def has_password(text: str) -> bool:
    """Tell whether a password stands in *text*; of what cannot be parsed, whether one may have been meant."""
    try:
        return parse_uri(text).password is not None
    except UriError:
        user, at, host = text.partition("://")[2].rpartition("@")
        return bool(at) and (":" in user or (host.count(":") > 1 and not host.startswith("[")))


def mask(text: str) -> str:
    """Hide what may be a secret in text that could not be parsed.

    Everything between ``://`` and the last ``@`` or ``:`` behind it goes, and what
    follows a ``:`` and is no port; so do the values of options. Without ``://``
    everything before them goes, but only where there is an ``@``.
    """
    head, sep, rest = text.partition("://")
    if not sep:
        head, rest = "", head
    cut = max(rest.rfind("@"), rest.rfind(":")) if sep or "@" in rest else -1
    if cut >= 0:
        rest = "***" + rest[cut:]
    if sep:
        # a password whose host was forgotten, tls://user:password
        rest = re.sub(r":(?!\d{1,5}(?:[/?]|\Z))[^/?]*", ":***", rest)
        rest = re.sub(r"=[^&]*", "=***", rest)
    return (head + sep + rest)[:200]


def parse_port(text: str) -> int:
    """Return a port, 1 to 65535, written in decimal digits without leading zeros.

    :raises UriError: otherwise; like :func:`parse_host` it does not repeat *text*.
    """
    if not _PORT.match(text) or int(text) > 65535:
        raise UriError("the port: wanted a number from 1 to 65535, without leading zeros")
    return int(text)


def _error(text: str, why: str) -> UriError:
    return UriError(f"{mask(text)!r}: {why}")


def _encode(text: str) -> str:
    return "".join(chr(b) if re.match(rf"[{_UNRESERVED}]", chr(b)) and b < 128 else f"%{b:02X}" for b in text.encode())


def _userinfo(text: str, authority: str) -> tuple[str | None, str | None, str]:
    """Split the authority into user, password and host[:port]."""
    user, at, hostport = authority.rpartition("@")
    if not at:
        return None, None, hostport
    parts = hostport.split(":")
    if not hostport.startswith("[") and len(parts) == 3 and re.fullmatch(r"[0-9]+", parts[2]):
        # the first documents' form: tls://user@password:host:port/service
        if ":" in user:
            raise _error(text, "two passwords")
        name, secret, hostport = user, parts[0], f"{parts[1]}:{parts[2]}"
    else:
        name, colon, secret = user.partition(":")
        if not colon:
            return _credential(text, name), None, hostport
    return _credential(text, name), _credential(text, secret), hostport


def _credential(text: str, part: str) -> str:
    if not _USERINFO.match(part):
        raise _error(text, "user or password hold a character that has to be percent-encoded")
    try:
        return percent_decode(part)
    except UriError as e:
        raise _error(text, str(e)) from None


def _hostport(text: str, hostport: str, default: int) -> tuple[str, int]:
    if hostport.startswith("["):
        host, bracket, rest = hostport.partition("]")
        host += bracket
        if rest and not rest.startswith(":"):
            raise _error(text, "only :port may stand behind an IPv6 address")
        port = rest[1:] if rest else None
    else:
        host, colon, rest = hostport.partition(":")
        port = rest if colon else None
    try:
        return parse_host(host), default if port is None else parse_port(port)
    except UriError as e:
        raise _error(text, str(e)) from None


def _service(text: str, path: str) -> str:
    try:
        service = percent_decode(path)
    except UriError as e:
        raise _error(text, str(e)) from None
    if not is_service(service):
        raise _error(text, "the path is not one valid name of a service")
    return service


def _options(text: str, scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, equals, value = part.partition("=")
        if not equals or not _OPTION_NAME.match(name):
            raise _error(text, "options are written ?name=value&name=value")
        if name in found:
            raise _error(text, "an option stands twice")
        if name not in OPTIONS[scheme]:
            known = ", ".join(sorted(OPTIONS[scheme])) or "none"
            raise _error(text, f"an option that {scheme} does not know; known: {known}")
        try:
            found[name] = percent_decode(value)
            if name == "alpn" and not _ALPN.match(found[name]):
                raise UriError("alpn: wanted the names of protocols, separated by commas: h2,http/1.1")
            if name == "path" and not _WEB_PATH.match(found[name]):
                raise UriError("path: wanted what stands behind the host in a URL, percent-encoded: %2Fchat")
            if name == "protocol" and not _WEB_PROTOCOL.match(found[name]):
                raise UriError("protocol: wanted the name of one subprotocol")
            if name == "text" and found[name] != "yes":
                raise UriError("text: wanted yes")
            if name == "framing" and found[name] not in FRAMINGS:
                raise UriError(f"framing: wanted one of {', '.join(FRAMINGS)}")
        except UriError as e:
            raise _error(text, str(e)) from None
    return tuple(found.items())


def _unix(text: str, authority: str, service: str | None, options: tuple[tuple[str, str], ...]) -> Uri:
    if authority and service:
        raise _error(text, "a local service is unix:///name or unix://name")
    if authority:
        service = _service(text, authority)
    if service is None:
        raise _error(text, "the name of the local service is missing")
    return Uri("unix", "", 0, service, None, None, options)


def _print(uri: Uri, *, secret: bool) -> str:
    query = "&".join(f"{k}={_encode(v)}" for k, v in uri.options)
    tail = (f"/{uri.service}" if uri.service else "") + (f"?{query}" if query else "")
    if uri.scheme == "unix":
        return f"unix://{tail}"
    user = ""
    if uri.user is not None:
        user = _encode(uri.user)
        if uri.password is not None:
            user += ":" + (_encode(uri.password) if secret else "***")
        user += "@"
    return f"{uri.scheme}://{user}{show_host(uri.host)}:{uri.port}{tail}"
