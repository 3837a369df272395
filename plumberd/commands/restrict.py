"""``plumb restrict``: a program that inherits a control socket for a few services, and for ever for no other."""

from __future__ import annotations

import argparse
import os

from plumberd import client
from plumberd.commands.become import NOT_FOUND, become, drop_inherited, is_there, pass_on
from plumberd.inherited import VARIABLE


def run(args: argparse.Namespace) -> int:
    """Have the control socket, and become the program."""
    if not is_there(args.command[0]):
        return NOT_FOUND
    control = client.control_socket(args.services, rundir=args.rundir)
    drop_inherited(os.environ)
    return become(args.command, {**os.environ, VARIABLE: str(pass_on(control))})
