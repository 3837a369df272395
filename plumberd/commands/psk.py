"""``plumb psk new``: a pre-shared key for two machines, and the lines for each of them."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Iterator

from plumberd.commands.output import ERROR, OK, complain, plain, quoted, say, say_json
from plumberd.commands.secret_file import NotAppended, append_line
from plumberd.pure.psk import FILE_BYTES, NEW_KEY_BYTES, PreSharedKey, PskError, check_identity, format_key, parse_keys

FILE = "/etc/plumberd/psk"
"""Where the printed lines say that the keys are, unless they were written somewhere."""


def run(args: argparse.Namespace) -> int:
    """Make a key of 256 random bits; print it, and append it to a file where that is wanted."""
    try:
        key = PreSharedKey(check_identity(args.name), secrets.token_bytes(NEW_KEY_BYTES))
    except PskError as e:
        complain(f"{args.name}: {e}")
        return ERROR
    if args.append is not None:
        try:
            append(args.append, key)
        except (OSError, NotAppended) as e:
            complain(f"{args.append}: {e.strerror if isinstance(e, OSError) else e}")
            return ERROR
    if args.json:
        say_json({"identity": key.identity, "line": format_key(key), "file": args.append})
    else:
        say(lines_of(key, args.append))
    return OK


def append(path: str, key: PreSharedKey) -> None:
    """Write the line of *key* behind those of the file at *path*, which is made with mode 0600 if it is not there.

    :raises NotAppended: others can read it, its keys have mistakes, or one is called that already.
    :raises OSError: it cannot be opened or written.
    """

    def check(data: bytes) -> None:
        try:
            keys = parse_keys(data) if data.strip() else ()
        except PskError as e:
            raise NotAppended(str(e)) from None
        if any(one.identity == key.identity for one in keys):
            raise NotAppended(f"it has a key called {key.identity} already")

    append_line(path, format_key(key), FILE_BYTES, check)


def lines_of(key: PreSharedKey, appended: str | None) -> Iterator[str]:
    """Yield what to write where."""
    here = "" if appended is None else f"; {plain(appended)} has it here"
    file = quoted(FILE if appended is None else os.path.abspath(appended))
    yield f"# both machines: a line of the file that tls.psk_file names, mode 0600{here}"
    yield format_key(key)
    yield ""
    yield "# the machine that listens, in plumberd.toml"
    yield "[tls]"
    yield f"psk_file = {file}"
    yield "[listen]"
    yield 'tlsd = ["0.0.0.0:9001"]'
    yield f"# and a rule: allow in SERVICE tls:any for psk:{key.identity}"
    yield ""
    yield "# the machine that connects, in plumberd.toml"
    yield "[tls]"
    yield f"psk_file = {file}"
    yield '[peer."HOST:9001"]'
    yield f"psk = {quoted(key.identity)}"
