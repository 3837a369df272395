"""``plumb status`` and ``plumb env``: what runs where, how full it is, and the lines that a client exports."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import Any

from plumberd import client
from plumberd.commands.output import OK, aligned, complain, say, say_json
from plumberd.pure.places import broker_rundir

_WAYS = ("tcpd", "tlsd", "udpd", "webipcd")
"""How remote callers come in, beside published services."""


def run(args: argparse.Namespace) -> int:
    """Tell what runs where, or with ``--limits`` the use against each limit."""
    answer, _ = client.ask({"op": "status"}, rundir=args.rundir)
    del answer["ok"]
    limits = answer.pop("limits", [])
    if args.limits:
        if args.json:
            say_json(limits)
        else:
            say(limit_lines(limits))
    elif args.json:
        say_json({**answer, "limits": limits} if limits else answer)
    else:
        say(lines_of(answer))
    return OK


def lines_of(answer: dict[str, Any]) -> list[str]:
    """Return the answer for people: about themselves, and for an administrator about everything."""
    you = answer["you"]
    lines = [
        f"plumberd {answer['version']} serves {answer['rundir']}",
        f"speaks   {', '.join(f'{name} on {path}' for name, path in answer['dialects'].items())}",
        f"you      uid {you['uid']}, pid {you['pid']}, {'confined' if you['confined'] else 'not confined'}",
    ]
    if "pid" in answer:
        now, claims = answer["now"], answer.get("serving", ())  # an older broker tells of none
        lines += [
            f"runs     pid {answer['pid']}, for {answer['uptime_seconds']:.0f} s",
            *_listening_lines(answer),
            *(f"expiring {sentence}" for sentence in answer.get("expiring", ())),
            f"default  in={answer['defaults']['in']} out={answer['defaults']['out']}",
            *(f"rule {n:<3} {rule}" for n, rule in enumerate(answer["rules"], 1)),
            *(f"redirect {name} to {to}" for name, to in answer["redirects"].items()),
            *(f"route    {name} = {to}" for name, to in answer["routes"].items()),
            *(f"claim    {c['service']} by uid {c['uid']}, pid {c['pid']}; {c['waiting']} wait" for c in claims),
            f"handover {answer['handover']}",
            f"now      {', '.join(f'{value} {key}' for key, value in now.items())}".replace("_", " "),
            *_datagram_lines(answer.get("datagrams", {})),
            f"so far   {', '.join(f'{value} {key}' for key, value in answer['counts'].items()) or 'nothing'}",
        ]
    return lines


def _listening_lines(answer: dict[str, Any]) -> list[str]:
    """Return where remote callers may come in; an older broker has not all of these ways."""
    lines = [f"{way:<8} {', '.join(answer[way])}" for way in _WAYS if answer.get(way)]
    lines += [f"publish  {published}" for published in answer.get("publish", ())]
    lines += [f"publish  {published}, inside TLS" for published in answer.get("publish_tls", ())]
    return lines or ["remote   no callers (--tcpd, --tlsd, --udpd, --webipcd)"]


def _datagram_lines(told: dict[str, Any]) -> list[str]:
    """Return what became of datagrams, where there were any."""
    counts = {key: value for key, value in told.items() if key not in ("sessions", "message_bytes") and value}
    if not counts and not told.get("sessions"):
        return []
    longest = told.get("message_bytes")
    limit = f", of at most {longest} bytes a message" if longest is not None else ""
    said = ", ".join(f"{value} {key}".replace("_", " ") for key, value in counts.items())
    return [f"datagrams {told.get('sessions', 0)} sessions{limit}; {said or 'none so far'}"]


def limit_lines(limits: list[dict[str, Any]]) -> list[str]:
    """Return a table: each limit, what is used of it, how full that is, and by whom. The fullest stand out."""
    if not limits:
        return ["this broker tells of no limits"]
    rows: list[tuple[object, ...]] = [("limit", "used", "of", "full", "by")]
    for one in limits:
        used, limit = one["used"], one["limit"]
        full = "" if used is None or not limit else f"{used / limit:.0%}"
        most = limit if isinstance(limit, int) else f"{limit:g}"
        rows.append((one["name"], "-" if used is None else used, most, full, one.get("of") or ""))
    return aligned(rows)


def run_env(args: argparse.Namespace) -> int:
    """Print where the broker is as a shell takes it."""
    rundir = args.rundir
    if rundir is None:
        try:
            answer, _ = client.ask({"op": "status"})
            rundir = answer["rundir"]
        except client.Error as e:
            complain(f"{e.strerror or e}; telling where one would be")
            rundir = broker_rundir(os.environ, os.geteuid())
    values = {"IPC_RUNDIR": rundir, "RUNDIR": rundir}
    if args.json:
        say_json(values)
    else:
        for name, value in values.items():
            print(f"export {name}={shlex.quote(value)}")
    return OK
