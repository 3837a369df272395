"""The header of the PROXY protocol, version 2, for local services that read who has called.

https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt, sections 2.2 and 2.2.6. Besides the
addresses it says, for a caller inside TLS, that it is, and what was proved.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from plumberd.pure.uri import IPAddress

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_PROXIED = 0x21  # version 2, command PROXY
_UNSPECIFIED, _IPV4, _IPV6 = 0x00, 0x10, 0x20
_STREAM, _DATAGRAMS = 0x01, 0x02
_AUTHORITY = 0x02
_SSL = 0x20
_SSL_VERSION = 0x21
_CLIENT_SSL, _CLIENT_CERTIFICATE = 0x01, 0x02

IDENTITIES = 0xE0
"""The first type for applications' own use: what was proved, as conditions of rules, separated by blanks."""

IDENTITIES_BYTES = 4096
"""So much of them is told; whole words, and no more."""

End = tuple[IPAddress, int]


def header(
    caller: End | None,
    here: End | None,
    *,
    version: str = "",
    identities: Iterable[str] = (),
    service: str = "",
    datagrams: bool = False,
) -> bytes:
    """Return the header.

    :param caller, here: both ends of the connection, of one family; else no address is told.
    :param version: of TLS, where the caller is inside it: ``TLSv1.3``.
    :param service: what it asked for.
    :param datagrams: whether its messages come in datagrams.
    """
    words = sorted(identities)
    vectors = _vector(_AUTHORITY, service.encode("ascii")) if service else b""
    if version:
        certified = any(word.startswith(("cert:", "spiffe:")) for word in words)
        flags = _CLIENT_SSL | (_CLIENT_CERTIFICATE if certified else 0)
        proved = 0 if certified else 1
        vectors += _vector(_SSL, struct.pack("!BI", flags, proved) + _vector(_SSL_VERSION, version.encode("ascii")))
    if words:
        vectors += _vector(IDENTITIES, _fitting(words))
    family, addresses = _addresses(caller, here, _DATAGRAMS if datagrams else _STREAM)
    return SIGNATURE + struct.pack("!BBH", _PROXIED, family, len(addresses) + len(vectors)) + addresses + vectors


def _addresses(caller: End | None, here: End | None, transport: int) -> tuple[int, bytes]:
    if caller is None or here is None or caller[0].version != here[0].version:
        return _UNSPECIFIED, b""
    ports = struct.pack("!HH", caller[1], here[1])
    family = _IPV4 if caller[0].version == 4 else _IPV6
    return family | transport, caller[0].packed + here[0].packed + ports


def _vector(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


def _fitting(words: list[str]) -> bytes:
    told = b""
    for word in words:
        longer = (told + b" " if told else b"") + word.encode("ascii")
        if len(longer) > IDENTITIES_BYTES:
            break
        told = longer
    return told
