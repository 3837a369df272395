"""``plumb``: the users' tool. It imports no Twisted, and of its commands only the one that runs.

Exit statuses: 0 granted or done, 1 refused or failed, 2 something is wrong here.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from plumberd import client, pump
from plumberd.commands.output import ERROR, OK, REFUSED, complain


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    args = parser().parse_args(argv)
    try:
        status = int(args.run(args) or OK)
        sys.stdout.flush()  # here, where it may fail
        return status
    except client.Refused as e:
        complain(f"refused: {e.word}: {e.reason}")
        return REFUSED
    except client.Error as e:
        complain(e.strerror or e)
        return ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ERROR
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = argparse.ArgumentParser(prog="plumb", description="Connect to services through the local plumberd.")
    whole.add_argument(
        "--rundir", metavar="DIR", help="the broker's run directory [default: the first with a live one]"
    )
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_connect(commands)
    _add_explain(commands)
    _add_why(commands)
    _add_status(commands)
    _add_reload(commands)
    _add_test(commands)
    _add_learn(commands)
    _add_env(commands)
    return whole


def _connect(args: argparse.Namespace) -> int:
    target = args.target
    if "://" in target:
        sock = client.connect(uri=target, rundir=args.rundir)
    else:
        sock = client.connect(target, rundir=args.rundir)
    return pump.carry(sock, 0, 1)


def _late(module: str, function: str = "run") -> Any:
    """Return a command that is imported when it runs: the quick ones do not pay for the others."""

    def run(args: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"plumberd.commands.{module}"), function)(args))

    return run


def _add(commands: Any, name: str, words: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=words, description=f"{words.capitalize()}.")
    command.set_defaults(run=run)
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")


def _add_connect(commands: Any) -> None:
    command = _add(commands, "connect", "connect standard input and output to a service", _connect)
    command.add_argument("target", metavar="SERVICE|URI", help="pong, or tcp://host:port[/service]")


def _add_explain(commands: Any) -> None:
    command = _add(commands, "explain", "tell what would become of a connection, and why", _late("explain"))
    command.add_argument("direction", choices=("in", "out", "serve"), help="seen from this machine")
    command.add_argument("service", metavar="SERVICE", help="its name; any for a lookup that names none")
    command.add_argument(
        "target", metavar="URI|PEER", nargs="?", help="out: where to [default: as a lookup]; in: the caller"
    )
    command.add_argument(
        "--as",
        dest="who",
        action="append",
        default=[],
        metavar="WHO",
        help="as somebody else: user:NAME and the other words of rules, confined; may be repeated",
    )
    command.add_argument("--config", metavar="FILE", help="ask this configuration, and no broker")
    _add_json(command)


def _add_why(commands: Any) -> None:
    command = _add(commands, "why", "tell your own last refusals, and what to do about them", _late("why"))
    command.add_argument("service", metavar="SERVICE", nargs="?", help="of this one alone")
    _add_json(command)


def _add_status(commands: Any) -> None:
    command = _add(commands, "status", "tell what runs where", _late("status"))
    command.add_argument("--limits", action="store_true", help="tell the use against each limit instead")
    _add_json(command)


def _add_reload(commands: Any) -> None:
    _add_json(_add(commands, "reload", "have the broker read its configuration again", _late("reload")))


def _add_test(commands: Any) -> None:
    command = _add(commands, "test", "try what a policy is meant to do", _late("test"))
    command.add_argument("file", metavar="FILE", help="assertions, a line each: granted|refused in|out|serve SERVICE …")
    command.add_argument("--config", metavar="FILE", help="ask this configuration, and no broker")
    _add_json(command)


def _add_learn(commands: Any) -> None:
    command = _add(commands, "learn", "draft rules that grant what an audit log has seen", _late("learn"))
    command.add_argument("files", metavar="AUDIT-FILE", nargs="*", help="the log; - or nothing for standard input")
    command.add_argument("--all", action="store_true", help="also what was granted by a default")
    _add_json(command)


def _add_env(commands: Any) -> None:
    _add_json(_add(commands, "env", "print the lines that a client exports", _late("status", "run_env")))


if __name__ == "__main__":
    sys.exit(main())
