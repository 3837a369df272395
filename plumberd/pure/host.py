"""Hosts: one spelling for each, or a refusal.

A rule and a URI mean the same host only if they are compared in one form. Here it
is: a DNS name in lower case, in IDNA's ASCII form and without its trailing dot,
or an address in its canonical form. What other programs read as an address
(``127.1``, ``0x7f000001``, ``017700000001``) is refused, so that no name is an
address to whoever dials it.
"""

from __future__ import annotations

import ipaddress
import re

HOST_CHARS = 253
"""Longest host name (RFC 1035, 3.1), without its trailing dot."""

EVERY_HOST = "any"
"""What rules call every host. One that is really called so could not be told apart in a rule."""

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z")  # RFC 1123, 2.1; _ as in SRV names
_ENDS_IN_NUMBER = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\Z")
"""A host whose last label looks like this is meant as an address (URL standard, 3.5)."""

_ACE = "xn--"  # RFC 5890, 2.3.2.5
_JOINERS = "\u200c\u200d"  # RFC 5892, A.1 and A.2: invisible, and of use between some letters only


class UriError(ValueError):
    """The text is no URI of ours, or no host. The message says what was wanted; secrets in it are masked."""


def parse_host(text: str) -> str:
    """Return the one spelling of a host: rules and URIs compare this.

    Brackets around IPv6, upper case, one trailing dot, percent-encoding and
    IDNA forms all come out the same.

    The message does not repeat *text*: of a URI that was cut wrongly it may be the password.

    :raises UriError: for anything that is neither a DNS name nor an address in its
        ordinary spelling, and for the word that stands for every host in rules.
    """
    if text.startswith("["):
        return _parse_brackets(text)
    host = percent_decode(text) if "%" in text else text
    if not host:
        raise UriError("the host is missing")
    if len(host) <= HOST_CHARS + 1 and not host.isascii():
        host = _to_ascii(host)
    host = host.lower().removesuffix(".")
    if len(host) > HOST_CHARS:
        raise UriError(f"a host name longer than {HOST_CHARS} characters")
    labels = host.split(".")
    if _ENDS_IN_NUMBER.match(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise UriError("the host is no address: IPv4 is written as four decimal numbers") from None
    if not all(_LABEL.match(label) for label in labels):
        raise UriError("the host is neither a name nor an address (IPv6 stands in brackets)")
    if host == EVERY_HOST:
        raise UriError(f"no host is called {EVERY_HOST}: in rules that is every host")
    if not all(_is_a_label(label) for label in labels if label.startswith(_ACE)):
        raise UriError("the host is no valid internationalised name (RFC 5891)")
    return host


def show_host(host: str) -> str:
    """Print a host as it stands in a URI: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def literal_address(host: str) -> IPAddress | None:
    """Return what :func:`parse_host` gave as an address, or ``None`` where it is a name."""
    if not host or not (host[-1].isdigit() or ":" in host):
        return None
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def percent_decode(text: str) -> str:
    """Decode once (RFC 3986, 2.1).

    :raises UriError: for malformed escapes, control characters and broken UTF-8.
    """
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "%":
            digits = text[at + 1 : at + 3]
            if not re.fullmatch(r"[0-9A-Fa-f]{2}", digits):
                raise UriError("a % wants two hexadecimal digits behind it")
            out.append(int(digits, 16))
            at += 3
        else:
            out += text[at].encode("utf-8", "surrogatepass")
            at += 1
    try:
        decoded = out.decode("utf-8")
    except UnicodeDecodeError:
        raise UriError("percent-encoded text is not UTF-8") from None
    if any(c < " " or "\x7f" <= c <= "\x9f" for c in decoded):
        raise UriError("a percent-encoded control character")
    return decoded


def _parse_brackets(text: str) -> str:
    if not text.endswith("]"):
        raise UriError("an IPv6 address wants both brackets")
    if "%" in text:
        raise UriError("zone ids are not accepted")
    try:
        address = ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        raise UriError("what stands in brackets is no IPv6 address") from None
    return str(address.ipv4_mapped or address)  # one host, one spelling; it is dialled as IPv4


def _to_ascii(host: str) -> str:
    """Return the ASCII form of a host that holds other characters, mapped as UTS 46 says.

    Letters that IDNA 2003 and 2008 treat differently (the German sharp s) are letters of
    their own, as they are to browsers. Labels that are ASCII already may hold a ``_``.
    """
    import idna  # late: it loads 100 KiB of tables that ASCII hosts never need

    try:
        labels = idna.uts46_remap(host, std3_rules=False).split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)
    except ValueError:  # idna's own errors are among them
        raise UriError("the host is no valid internationalised name (RFC 5891)") from None


def _is_a_label(label: str) -> bool:
    """Tell whether a label that begins as an ASCII form does stand for other characters, and in their one form.

    Name servers compare the ASCII; but a resolver that decodes it first would be led to another
    host than the rules have seen. Symbols, which no internationalised name may hold, but which
    are registered, pass in this form.
    """
    import idna

    try:
        plain = label[len(_ACE) :].encode("ascii").decode("punycode")
        return (
            not plain.isascii()
            and idna.uts46_remap(plain, std3_rules=False) == plain
            and all(idna.valid_contextj(plain, at) for at, c in enumerate(plain) if c in _JOINERS)
            and _ACE + plain.encode("punycode").decode("ascii") == label
        )
    except ValueError:
        return False
