"""``plumb sandbox``: a program in an empty network namespace, with a control socket for the services that it needs."""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

from plumberd import client
from plumberd.commands.become import become, drop_inherited, pass_on
from plumberd.commands.cage import CageError, bubblewrap_words, environment, home_of, shown
from plumberd.commands.forward import ForwardError, Forwarding, parse_forwarding
from plumberd.commands.output import ERROR, complain
from plumberd.inherited import VARIABLE

TRIAL_SECONDS = 20

FORBIDDEN = (
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor wants a profile for it",
    ),
)
"""Files, the values with which they forbid user namespaces, and what to say of it."""

_UNSHARE = ("--user", "--map-current-user", "--net")
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def run(args: argparse.Namespace) -> int:
    """Make the cage, and become the program in it."""
    services = [name for words in args.services for name in words.split(",") if name]
    try:
        ports = [_parse_port(word) for word in args.udp]
        services += [one.target for one in ports if one.target not in services]
        if args.services and not services:
            raise CageError("--services: wanted names, with commas between them")
        environ = environment(os.environ, args.setenv)
        bubblewrap, unshare = shutil.which("bwrap"), shutil.which("unshare")
        if bubblewrap is not None:
            words = _with_bubblewrap(bubblewrap, args, environ)
        elif args.read or args.write:
            raise CageError("--read and --write: that wants bubblewrap (bwrap), which is not installed")
        elif ports:
            raise CageError("--udp: that wants bubblewrap (bwrap), which is not installed")
        elif unshare is not None:
            words = [unshare, *_UNSHARE, "--"]
            complain("bubblewrap is not installed: no network, but files, UNIX sockets and processes are in reach")
        else:
            raise CageError("neither bubblewrap (bwrap) nor unshare is installed")
        _try(words)
    except CageError as e:
        complain(e)
        return ERROR
    control = client.control_socket(services, rundir=args.rundir) if services else None
    drop_inherited(os.environ)
    kept = -1 if control is None else pass_on(control)
    if control is not None:
        environ[VARIABLE] = str(kept)
    _close_all_but(kept)
    if bubblewrap is None:
        _die_with_parent()
    elif ports:
        from plumberd.commands.cage_ports import with_ports  # late: few want any

        words[1:1] = with_ports(ports, kept)
    return become([*words, *args.command], environ)


def _parse_port(word: str) -> Forwarding:
    """Return what ``--udp`` says.

    :raises CageError: it is something else.
    """
    try:
        found = parse_forwarding(word)
    except ForwardError as e:
        raise CageError(f"--udp {e}") from None
    if not found.port or "://" in found.target:
        raise CageError(f"--udp {word}: wanted [ADDRESS:]PORT=SERVICE: a service that may be looked up, and no URI")
    return found


def _with_bubblewrap(bubblewrap: str, args: argparse.Namespace, environ: dict[str, str]) -> list[str]:
    """Return bubblewrap's words in front of the command; set the variables that depend on the cage's files.

    :raises CageError: for paths that make no sense.
    """
    cwd, home = os.getcwd(), home_of(environ)
    files = shown(cwd, home, args.read, args.write)
    if not any(cwd == one.path or cwd.startswith(one.path + "/") for one in files):
        complain(f"{cwd} is empty in the cage; --read and --write name what is needed of it")
    environ.update(HOME=home, PWD=cwd)
    return [bubblewrap, *bubblewrap_words(cwd, home, files), "--"]


def _try(words: Sequence[str]) -> None:
    """Make such a cage for nothing at all.

    :raises CageError: telling why there can't be one.
    """
    try:
        trial = subprocess.run(  # noqa: S603 - our own words
            [*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CageError(f"the cage cannot be made: {e}") from None
    if trial.returncode:
        said = trial.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {trial.returncode}"]
        hints = "; ".join(hint for path, value, hint in FORBIDDEN if _holds(path, value))
        raise CageError(f"the cage cannot be made: {said[-1]}{f' ({hints})' if hints else ''}")


def _holds(path: str, value: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == value
    except OSError:
        return False


def _close_all_but(kept: int) -> None:
    """Let the program inherit its standard descriptors and *kept* alone: any other could be a way out."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != kept:
            try:
                os.set_inheritable(int(name), False)
            except OSError:
                continue  # it was the listing's own


def _die_with_parent() -> None:
    """What bubblewrap would see to: end with who started this, and gain nothing by set-uid programs."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3):
            raise OSError(ctypes.get_errno(), f"prctl({option})")
