"""``plumb exec``: a program that finds a connection on its descriptors 6 and 7, as UCSPI's clients do."""

from __future__ import annotations

import argparse
import os

from plumberd import client
from plumberd.commands.become import become, connection_variables, keep_free, without_connection

READ, WRITE = 6, 7
"""Where UCSPI's clients have the connection: to read from, and to write to."""


def run(args: argparse.Namespace) -> int:
    """Connect, and become the program."""
    is_uri = "://" in args.target
    sock, answer = client.lookup(
        None if is_uri else args.target, uri=args.target if is_uri else None, rundir=args.rundir
    )
    environ = {
        **without_connection(os.environ),
        **connection_variables(sock),
        "PLUMB_SERVICE": "" if is_uri else args.target,
        "PLUMB_MODE": str(answer.get("mode", "")),
        "PLUMB_RULE": str(answer.get("rule", "")),
    }
    wanted = (0, 1) if args.stdio else (READ, WRITE)
    keep_free(wanted, environ)
    fd = sock.detach()
    for number in wanted:
        if fd == number:
            os.set_inheritable(fd, True)
        else:
            os.dup2(fd, number)
    # Else its own number is closed by the exec: it came close-on-exec.
    return become(args.command, environ)
