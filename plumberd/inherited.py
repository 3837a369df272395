"""The control socket that a program inherits in the place of a way to the broker: ``$PLUMB_FD`` is its number.

One packet is one request, and one end of a fresh stream socket pair comes with
it; the answer comes over that pair alone. So threads, and processes that have
inherited the same control socket, share it without a lock: none of them can read
what was meant for another. What it may be asked was settled, for ever, by who made it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from plumberd.answer import Error, NoBroker

VARIABLE = "PLUMB_FD"
_FD = struct.Struct("i")
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ECONNREFUSED)
_AGAIN = (errno.EAGAIN, errno.ETOOMANYREFS)
"""Its queue is full; or too many descriptors of this user are under way."""
_KIND = [socket.AF_UNIX, socket.SOCK_SEQPACKET]
_CLOSED = "who started this program has closed it, or did not pass it on (Python's subprocess wants pass_fds)"


def ask(value: str, payload: bytes) -> socket.socket:
    """Send one request; return the non-blocking socket on which its answer comes, the caller's.

    :param value: of the variable.
    :param payload: a JSON object, without a length.
    :raises BlockingIOError: not now; try again after a pause.
    :raises NoBroker: who made the control socket is gone.
    :raises Error: the variable names no control socket, or no descriptors are left.
    """
    control = borrow(value)
    try:
        answers, theirs = socket.socketpair()
        with theirs:
            try:
                answers.setblocking(False)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(theirs.fileno()))
                control.sendmsg([payload], [rights], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BaseException:
                answers.close()
                raise
    except OSError as e:
        if e.errno in _AGAIN:
            raise BlockingIOError(e.errno, e.strerror) from None
        if e.errno in _GONE:
            why = f"{VARIABLE}={value}: the broker behind this control socket is gone; start this program anew"
            raise NoBroker(errno.EPIPE, why) from None
        raise Error(e.errno, f"{VARIABLE}={value}: {os.strerror(e.errno or 0)}") from None
    finally:
        control.detach()  # it stays open: it is not ours
    return answers


def borrow(value: str) -> socket.socket:
    """Return the control socket that *value* names; it is still the process's, so that it is to be detached.

    Its file description is shared with other processes: whether it blocks is left as it is.

    :raises Error: it names none.
    """
    if not (value.isascii() and value.isdecimal() and len(value) <= 7):
        raise Error(errno.EBADF, f"{VARIABLE}={value}: wanted the number of a descriptor")
    try:
        # With family and type given, Python leaves the description as it is.
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK, 0, fileno=int(value))
    except OSError as e:
        found = "there is no such descriptor" if e.errno == errno.EBADF else "that is no control socket"
        raise Error(e.errno, f"{VARIABLE}={value}: {found}; {_CLOSED}") from None
    if [sock.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_DOMAIN, socket.SO_TYPE)] != _KIND:
        sock.detach()
        raise Error(errno.ENOTSOCK, f"{VARIABLE}={value}: that is no control socket; {_CLOSED}")
    return sock
