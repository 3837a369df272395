"""``plumb``: the users' tool. It imports no Twisted, so that it starts quickly."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from plumberd import client, pump
from plumberd.pure.places import broker_rundir

OK, REFUSED, ERROR = 0, 1, 2
"""Exit statuses: done; the broker refused; something is wrong here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    args = _parser().parse_args(argv)
    try:
        status = int(args.run(args) or OK)
        sys.stdout.flush()  # here, where it may fail
        return status
    except client.Refused as e:
        print(f"plumb: refused: {e.word}: {e.reason}", file=sys.stderr)
        return REFUSED
    except client.Error as e:
        print(f"plumb: {e.strerror or e}", file=sys.stderr)
        return ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ERROR
    except KeyboardInterrupt:
        return 130


def _connect(args: argparse.Namespace) -> int:
    target = args.target
    if "://" in target:
        sock = client.connect(uri=target, rundir=args.rundir)
    else:
        sock = client.connect(target, rundir=args.rundir)
    return pump.carry(sock, 0, 1)


def _status(args: argparse.Namespace) -> None:
    answer, _ = client.ask({"op": "status"}, rundir=args.rundir)
    del answer["ok"]
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(_lines(answer)))


def _lines(answer: dict[str, Any]) -> list[str]:
    you = answer["you"]
    lines = [
        f"plumberd {answer['version']} serves {answer['rundir']}",
        f"speaks   {', '.join(f'{name} on {path}' for name, path in answer['dialects'].items())}",
        f"you      uid {you['uid']}, pid {you['pid']}, {'confined' if you['confined'] else 'not confined'}",
    ]
    if "pid" in answer:
        now = answer["now"]
        lines += [
            f"runs     pid {answer['pid']}, for {answer['uptime_seconds']:.0f} s",
            f"tcpd     {', '.join(answer['tcpd']) or 'off'}",
            f"default  in={answer['defaults']['in']} out={answer['defaults']['out']}",
            *(f"rule {n:<3} {rule}" for n, rule in enumerate(answer["rules"], 1)),
            *(f"redirect {name} to {to}" for name, to in answer["redirects"].items()),
            *(f"route    {name} = {to}" for name, to in answer["routes"].items()),
            f"handover {answer['handover']}",
            f"now      {', '.join(f'{value} {key}' for key, value in now.items())}".replace("_", " "),
            f"so far   {', '.join(f'{value} {key}' for key, value in answer['counts'].items()) or 'nothing'}",
        ]
    return lines


def _env(args: argparse.Namespace) -> None:
    rundir = args.rundir
    if rundir is None:
        try:
            answer, _ = client.ask({"op": "status"})
            rundir = answer["rundir"]
        except client.Error as e:
            print(f"plumb: {e.strerror or e}; telling where one would be", file=sys.stderr)
            rundir = broker_rundir(os.environ, os.geteuid())
    values = {"IPC_RUNDIR": rundir, "RUNDIR": rundir}
    if args.json:
        print(json.dumps(values))
    else:
        import shlex  # late: only here

        for name, value in values.items():
            print(f"export {name}={shlex.quote(value)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plumb", description="Connect to services through the local plumberd.")
    parser.add_argument(
        "--rundir", metavar="DIR", help="the broker's run directory [default: the first with a live one]"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    connect = commands.add_parser("connect", help="connect standard input and output to a service")
    connect.add_argument("target", metavar="SERVICE|URI", help="pong, or tcp://host:port[/service]")
    connect.set_defaults(run=_connect)

    status = commands.add_parser("status", help="tell what runs where")
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(run=_status)

    env = commands.add_parser("env", help="print the lines that a client exports")
    env.add_argument("--json", action="store_true", help="for programs")
    env.set_defaults(run=_env)
    return parser


if __name__ == "__main__":
    sys.exit(main())
