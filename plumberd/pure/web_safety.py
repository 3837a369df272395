"""Whether a browser's request may be answered at all, and for whom it comes through a reverse proxy.

A page of any site may let a browser connect to any address, loopback too, and a name may be made
to lead there (DNS rebinding). So the Host that was asked for has to be one that was configured, and
the page has to be of that very Host, or of a configured origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from plumberd.pure.address import unmapped
from plumberd.pure.tokens import Tokens
from plumberd.pure.uri import IPAddress, UriError, parse_host, parse_port, show_host
from plumberd.pure.web_http import HttpError, HttpRequest

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""The hosts that are answered where none are configured, with any port."""

UNIX = "unix"
"""Among proxies: whoever connects to a UNIX socket."""

_PORTS = {"http": 80, "https": 443}
_FOR = re.compile(r'for="?([^";,]*)"?\Z', re.IGNORECASE)  # RFC 7239, 4
_PROTO = re.compile(r'proto="?([A-Za-z]+)"?\Z', re.IGNORECASE)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class WebError(ValueError):
    """The text is no host, origin or proxy: what was wanted, what was found."""


@dataclass(frozen=True)
class Place:
    """A host, with a port or with any; in one spelling."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        return show_host(self.host) + ("" if self.port is None else f":{self.port}")


@dataclass(frozen=True)
class Origin:
    """Where a page is from (RFC 6454)."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{show_host(self.host)}{port}"


@dataclass(frozen=True)
class WebSettings:
    """What ``[web]`` says.

    :ivar hosts: what Host may say; none is loopback's.
    :ivar origins: pages of other hosts that are let in.
    :ivar proxies: who may say for whom a request comes; :data:`UNIX` is a member for UNIX sockets.
    :ivar token_file: an absolute path.
    :ivar tokens: what it held.
    :ivar page: whether our own page is there.
    """

    hosts: tuple[Place, ...] = ()
    origins: tuple[Origin, ...] = ()
    proxies: tuple[Network | str, ...] = ()
    token_file: str | None = None
    tokens: Tokens = field(default_factory=Tokens)
    page: bool = False

    def trusts(self, address: IPAddress | None) -> bool:
        """Tell whether *address*, none for a UNIX socket, is a proxy's."""
        if address is None:
            return UNIX in self.proxies
        return any(not isinstance(one, str) and address in one for one in self.proxies)


@dataclass(frozen=True)
class Source:
    """For whom a request comes.

    :ivar address: the caller's; ``None`` where nobody tells.
    :ivar encrypted: whether it came encrypted to here, or to the proxy.
    :ivar proxied: whether a trusted proxy says all this.
    """

    address: IPAddress | None
    encrypted: bool
    proxied: bool = False


def parse_place(text: str) -> Place:
    """Parse ``HOST[:PORT]``.

    :raises WebError: otherwise.
    """
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
    else:
        host, colon, rest = text.partition(":")
        rest = colon + rest
    try:
        if rest and not rest.startswith(":"):
            raise UriError("only :PORT may stand behind an IPv6 address")
        return Place(parse_host(host), parse_port(rest[1:]) if rest else None)
    except UriError as e:
        raise WebError(f"wanted HOST or HOST:PORT: {e}") from None


def parse_origin(text: str) -> Origin:
    """Parse ``https://HOST[:PORT]``.

    :raises WebError: otherwise; ``null`` is nobody's origin.
    """
    scheme, mark, rest = text.partition("://")
    if not mark or scheme not in _PORTS:
        raise WebError("wanted https://HOST or http://HOST, with :PORT where it is another than 443 or 80")
    place = parse_place(rest)
    return Origin(scheme, place.host, _PORTS[scheme] if place.port is None else place.port)


def parse_proxy(text: str) -> Network | str:
    """Parse an address, a network, or ``unix``.

    :raises WebError: otherwise.
    """
    if text == UNIX:
        return UNIX
    try:
        return ipaddress.ip_network(text)
    except ValueError as e:
        raise WebError(f"wanted an address, a network such as 10.0.0.0/8, or {UNIX}: {e}") from None


def check_host(request: HttpRequest, settings: WebSettings) -> Place:
    """Return what the request's Host says.

    :raises HttpError: 403, where it is none of ours.
    """
    text = request.one("host") or ""
    try:
        place = parse_place(text)
    except WebError:
        raise HttpError(HTTPStatus.FORBIDDEN, "the Host of the request is none") from None
    for one in settings.hosts or _LOOPBACK_PLACES:
        if one.host != place.host:
            continue
        if one.port in (None, place.port):
            return place
        if place.port is None and one.port in _PORTS.values():
            return one  # a browser leaves the usual port out; the scheme of its Origin tells which it is
    raise HttpError(HTTPStatus.FORBIDDEN, f"the Host {place} is none of web.hosts")


def check_origin(request: HttpRequest, place: Place, settings: WebSettings, *, encrypted: bool) -> bool:
    """Tell whether there is an Origin: then it is a browser's request, of a page that may ask.

    :param place: what :func:`check_host` has returned.
    :raises HttpError: 403, where the page may not.
    """
    text = request.one("origin")
    if text is None:
        return False
    try:
        origin = parse_origin(text)
    except WebError:
        raise HttpError(HTTPStatus.FORBIDDEN, "the Origin of the request is no page of http or https") from None
    if origin in settings.origins:
        return True
    port = _PORTS[origin.scheme] if place.port is None else place.port
    own = origin.host == place.host and origin.port == port
    if not own or (encrypted and origin.scheme != "https"):
        wanted = f"https://{place}" if encrypted else str(place)
        raise HttpError(HTTPStatus.FORBIDDEN, f"the page is of {origin}, which is neither {wanted} nor in web.origins")
    return True


def check_site(request: HttpRequest, *, has_origin: bool) -> bool:
    """Tell whether a browser asks, for a page that may.

    What a page embeds or fetches without reading it comes without an Origin, and the time that the answer takes
    would tell that page something. So the browser's own word counts (Fetch Metadata); who sends none is asked no more.

    :param has_origin: what :func:`check_origin` has returned; such a page was looked at already.
    :raises HttpError: 403, where a page of another site asks.
    """
    if has_origin:
        return True
    if request.one("sec-fetch-site") not in (None, "same-origin", "none"):
        raise HttpError(HTTPStatus.FORBIDDEN, "a page of another site asks, and does not say which (Sec-Fetch-Site)")
    return any(name.startswith("sec-fetch-") for name, _ in request.headers)


def source_of(request: HttpRequest, peer: IPAddress | None, settings: WebSettings, *, encrypted: bool) -> Source:
    """Return for whom *request* comes, whose connection is from *peer*.

    Only a trusted proxy is heard. Of several proxies in a row the last one that is not trusted is the caller.

    :raises HttpError: 400, where a trusted proxy says nothing, or two things, or what cannot be read.
    """
    if not settings.trusts(peer):
        return Source(peer, encrypted)
    old, new = bool(request.all("x-forwarded-for")), bool(request.all("forwarded"))
    if old == new:
        # A proxy that sets one of them passes the other on as the caller has sent it.
        what = "both Forwarded and X-Forwarded-For" if old else "neither Forwarded nor X-Forwarded-For"
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the reverse proxy sends {what}")
    if old:
        protos = request.words("x-forwarded-proto")
        hops = [(text, protos[-1] if protos else "") for text in request.words("x-forwarded-for")]
    else:
        hops = [_forwarded(text) for text in request.words("forwarded")]
    if not hops:
        raise HttpError(HTTPStatus.BAD_REQUEST, "the reverse proxy names nobody that it asks for")
    address, told = peer, ""
    for text, told in reversed(hops):  # noqa: B007 - the last one counts
        address = _address(text)
        if not settings.trusts(address):
            break
    return Source(address, encrypted or told.lower() in ("https", "wss"), True)


def _forwarded(element: str) -> tuple[str, str]:
    pairs = [pair.strip() for pair in element.split(";")]
    address = next((found[1] for pair in pairs if (found := _FOR.match(pair))), "")
    proto = next((found[1] for pair in pairs if (found := _PROTO.match(pair))), "")
    return address, proto


def _address(text: str) -> IPAddress:
    host = text
    if text.startswith("["):
        host = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        return unmapped(ipaddress.ip_address(host))
    except ValueError:
        raise HttpError(HTTPStatus.BAD_REQUEST, "what the reverse proxy says of the caller is no address") from None


def show_all(members: Sequence[object]) -> str:
    """Print a list for people."""
    return ", ".join(map(str, members)) or "none"


_LOOPBACK_PLACES = tuple(parse_place(text) for text in LOOPBACK)
