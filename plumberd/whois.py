"""What a service asks its broker about a connection that it has accepted: by which token, and whether to believe it.

The broker's end is bound to a random abstract name (unix(7)), which getpeername
shows. Abstract names are one for each network namespace: a local program could
give itself the name of somebody else's connection in another one. But then it is
not the broker who has connected, and SO_PEERCRED tells that.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from plumberd.answer import Error

TOKEN_BEGINS = b"\0plumberd-"

_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)


def token_of(sock: socket.socket) -> str:
    """Return what the op ``whois`` is asked with about *sock*, an accepted connection.

    :raises Error: no broker has made it for a caller from outside.
    """
    name: object = None
    if sock.family == socket.AF_UNIX:
        try:
            name = sock.getpeername()
        except OSError as e:
            raise Error(e.errno or errno.ENOTCONN, f"who is at the other end cannot be told: {e.strerror}") from None
    if isinstance(name, bytes) and name.startswith(TOKEN_BEGINS):
        return name[1:].decode("ascii", "replace")
    why = "a program on this machine has connected: SO_PEERCRED tells who it is"
    if sock.family != socket.AF_UNIX:
        why = "it was handed over, and who hands over tells of whom"
    raise Error(errno.ENODATA, f"this is no connection that a broker has made for a caller from outside: {why}")


def check_maker(sock: socket.socket, answer: dict[str, Any]) -> None:
    """Check that who has connected is who carries callers, as the broker's *answer* says.

    :raises Error: it is somebody who has only given himself the same name.
    """
    _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != answer.get("connected_by"):
        raise Error(
            errno.EPERM, f"uid {uid} has connected under the name of somebody else's connection: believe nothing"
        )
