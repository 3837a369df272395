"""``plumb learn``: the audit log in, a draft of rules out."""

from __future__ import annotations

import argparse
import contextlib
import pwd
import sys
from collections.abc import Iterator
from typing import BinaryIO

from plumberd.commands.output import ERROR, OK, complain, say_json
from plumberd.pure.policy.learn import Draft, Learner, draft_toml
from plumberd.pure.policy.seen import LINE_BYTES


def run(args: argparse.Namespace) -> int:
    """Print the draft; without a file standard input is read."""
    files = args.files or ["-"]
    if files.count("-") > 1:
        complain("-: standard input can be read once")
        return ERROR
    if not args.files and sys.stdin.isatty():
        complain("wanted the audit log: its files, or - for standard input")
        return ERROR
    learner = Learner(everything=args.all, uid_of=uid_of)
    for file in files:
        try:
            with contextlib.ExitStack() as opened:
                stream = sys.stdin.buffer if file == "-" else opened.enter_context(open(file, "rb"))
                for line in lines_in(stream):
                    learner.add(line)
        except OSError as e:
            complain(f"{file}: {e.strerror or e}")
            return ERROR
    draft = learner.draft()
    if args.json:
        say_json(members_of(draft))
    else:
        sys.stdout.write(draft_toml(draft))
    return OK


def lines_in(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines; of one that is too long, one byte more than is read as a record, and never the rest."""
    while line := stream.readline(LINE_BYTES + 1):
        yield line
        while len(line) > LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES + 1)
            if len(line) <= LINE_BYTES:
                break


def members_of(draft: Draft) -> dict[str, object]:
    """Return the draft for programs."""
    return {
        "rules": [
            {"rule": rule.normal, "count": tally.count, "last": tally.last or None} for rule, tally in draft.rules
        ],
        "events": draft.events,
        "left_out": draft.left,
        "refused_by": draft.refusing,
    }


def uid_of(name: str) -> int | None:
    """Return the uid of a user of this machine, ``None`` where there is no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None
