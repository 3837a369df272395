"""``plumb token new``: a bearer token, and the line that a listener knows it by."""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Iterator

from plumberd.commands.output import ERROR, OK, complain, plain, quoted, say, say_json
from plumberd.commands.secret_file import NotAppended, append_line
from plumberd.pure.tokens import FILE_BYTES, TOKEN_BYTES, TokenError, check_name, format_line, new_token, parse_tokens

FILE = "/etc/plumberd/tokens"
"""Where the printed lines say that the digests are, unless they were written somewhere."""


def run(args: argparse.Namespace) -> int:
    """Make a token of 256 random bits; print it once, and append its line to a file where that is wanted."""
    try:
        name, token = check_name(args.name), new_token(secrets.token_bytes(TOKEN_BYTES))
    except TokenError as e:
        complain(f"{args.name}: {e}")
        return ERROR
    line = format_line(name, token)
    if args.append is not None:
        try:
            append_line(args.append, line, FILE_BYTES, lambda data: _check(data, name))
        except (OSError, NotAppended) as e:
            complain(f"{args.append}: {e.strerror if isinstance(e, OSError) else e}")
            return ERROR
    if args.json:
        say_json({"name": name, "token": token, "line": line, "file": args.append})
    else:
        say(lines_of(name, token, line, args.append))
    return OK


def _check(data: bytes, name: str) -> None:
    """Check what is in the file already.

    :raises NotAppended: it has mistakes, or one of that name.
    """
    try:
        tokens = parse_tokens(data)
    except TokenError as e:
        raise NotAppended(str(e)) from None
    if any(known == name for known, _ in tokens.digests):
        raise NotAppended(f"it has a token called {name} already")


def lines_of(name: str, token: str, line: str, appended: str | None) -> Iterator[str]:
    """Yield what to write where."""
    here = "" if appended is None else f"; {plain(appended)} has it"
    yield "# the token, which is shown this once: for the page, or the program, that calls"
    yield token
    yield ""
    yield f"# the machine that listens: a line of the file that web.token_file names, mode 0600{here}"
    yield line
    yield ""
    yield "# there, in plumberd.toml"
    yield "[web]"
    yield f"token_file = {quoted(FILE if appended is None else os.path.abspath(appended))}"
    yield f"# and a rule: allow in SERVICE wss:any for token:{name}"
