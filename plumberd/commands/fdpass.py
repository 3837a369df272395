"""``plumb fdpass``: a connection for who started this, over the UNIX socket that is its standard output."""

from __future__ import annotations

import argparse
import socket

from plumberd import client
from plumberd.commands.output import ERROR, OK, complain

STANDARD_OUTPUT = 1


def run(args: argparse.Namespace) -> int:
    """Connect, and send the descriptor away, with one byte, as OpenSSH's ``ProxyUseFdpass`` expects it."""
    try:
        out = socket.socket(fileno=STANDARD_OUTPUT)
    except OSError:
        out = None
    if out is None or out.family != socket.AF_UNIX:
        if out is not None:
            out.detach()
        complain("standard output is no UNIX socket; ssh makes it one with -o ProxyUseFdpass=yes")
        return ERROR
    try:
        is_uri = "://" in args.target
        service, uri = (None, args.target) if is_uri else (args.target, None)
        with client.connect(service, uri=uri, rundir=args.rundir) as sock:
            socket.send_fds(out, [b"\0"], [sock.fileno()])
    except BrokenPipeError:
        complain("nobody wants the connection any more")
        return ERROR
    finally:
        out.detach()
    return OK
