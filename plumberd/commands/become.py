"""Other programs that ``plumb`` starts, or becomes: their descriptors, variables and signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence

from plumberd import client
from plumberd.commands.output import complain
from plumberd.inherited import VARIABLE, borrow

CANNOT_RUN, NOT_FOUND = 126, 127
"""Exit statuses as of a shell: the command is there and does not run; it is not there."""

UCSPI = (
    "PROTO",
    "TCPREMOTEIP",
    "TCPREMOTEPORT",
    "TCPREMOTEHOST",
    "TCPREMOTEINFO",
    "TCPLOCALIP",
    "TCPLOCALPORT",
    "TCPLOCALHOST",
    "UNIXREMOTEEUID",
    "UNIXREMOTEEGID",
    "UNIXREMOTEPID",
    "UNIXREMOTEPATH",
    "UNIXLOCALPATH",
    "PLUMB_SERVICE",
    "PLUMB_MODE",
    "PLUMB_RULE",
    "PLUMB_IDENTITIES",
)
"""Every variable that tells of a connection; those of another connection are taken out of an environment."""

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def become(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Become another program: its exit status and its signals are its own. Return only where that fails.

    What Python ignores (SIGPIPE, SIGXFSZ) is as usual again.

    :returns: the exit status; the reason stands on standard error.
    """
    ignored = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    try:
        os.execvpe(words[0], [*words], dict(environ))  # noqa: S606 - it is what was asked for
    except FileNotFoundError:
        complain(f"{words[0]}: not found")
        return NOT_FOUND
    except (OSError, ValueError) as e:
        complain(f"{words[0]}: {e.strerror if isinstance(e, OSError) else e}")
        return CANNOT_RUN
    finally:
        for number, what in ignored.items():
            signal.signal(number, what)


def is_there(word: str) -> bool:
    """Tell whether there is such a program; where there is none, say so."""
    if shutil.which(word) is None:
        complain(f"{word}: not found")
        return False
    return True


def pass_on(control: socket.socket) -> int:
    """Make *control* one that the next program inherits; return its number, the lowest from 3 on that is free.

    It is closed here; the descriptor of that number is the process's.
    """
    with control:
        fd = fcntl.fcntl(control.fileno(), fcntl.F_DUPFD, 3)
    return fd


def without_connection(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that tells of no connection."""
    return {name: value for name, value in environ.items() if name not in UCSPI}


def connection_variables(sock: socket.socket) -> dict[str, str]:
    """Return what UCSPI's variables say of a TCP socket, or of a UNIX one."""
    if sock.family not in _INTERNET:
        return {"PROTO": "UNIX"}
    variables = {"PROTO": "TCP"}
    for names, tell in (
        (("TCPLOCALIP", "TCPLOCALPORT"), sock.getsockname),
        (("TCPREMOTEIP", "TCPREMOTEPORT"), sock.getpeername),
    ):
        try:
            host, port = tell()[:2]
        except OSError:
            continue  # the far side has gone already
        variables.update(zip(names, (host.partition("%")[0], str(port)), strict=True))
    return variables


def keep_free(fds: Sequence[int], environ: dict[str, str]) -> None:
    """Move the control socket that *environ* names away from *fds*, which will be something else."""
    value = environ.get(VARIABLE, "")
    if value in {str(fd) for fd in fds}:
        environ[VARIABLE] = str(fcntl.fcntl(int(value), fcntl.F_DUPFD, max(fds) + 1))


def drop_inherited(environ: Mapping[str, str]) -> None:
    """Close the control socket that *environ* names, if it is one: the next program gets another, or none."""
    value = environ.get(VARIABLE)
    if value:
        with contextlib.suppress(client.Error):
            borrow(value).close()
