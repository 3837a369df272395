"""``plumb ca`` and ``plumb cert``: an authority in a folder, and the certificates that it issues."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from plumberd.commands.output import ERROR, OK, complain, quoted, say, say_json
from plumberd.pure.policy.subject import ConditionError, parse_condition

if TYPE_CHECKING:
    from plumberd.commands.issuing import Made

FOLDER = "plumb-ca"
AUTHORITY = "ca"
FILE_BYTES = 1 << 20


class NotWritten(Exception):
    """Nothing was made; the argument says why."""


DAYS = 3650
CERTIFICATE_DAYS = 365


def run_ca(args: argparse.Namespace) -> int:
    """Make an authority, or take certificates back."""
    if args.action == "revoke":
        from plumberd.commands import revoke

        return revoke.run(args)
    if args.certificates:
        complain("plumb ca init: wanted nothing behind it; plumb cert NAME issues a certificate")
        return ERROR
    from plumberd.commands.issuing import new_authority  # late: it brings the cryptography library along

    name = args.name or f"plumb on {platform.node()}"[:64]

    def make() -> Made:
        return new_authority(name, args.days or DAYS, now())

    return _run(args, AUTHORITY, make, _authority_lines)


def run_cert(args: argparse.Namespace) -> int:
    """Issue a certificate."""
    from plumberd.commands.issuing import IssuingError, check_names, issue

    try:
        names = check_names(args.names)
    except IssuingError as e:
        complain(e)
        return ERROR
    both = args.server == args.client

    def make() -> Made:
        return issue(
            read_authority(args.dir),
            names,
            args.days or CERTIFICATE_DAYS,
            now(),
            server=both or args.server,
            client=both or args.client,
            spiffe=args.spiffe,
        )

    def lines(folder: str, file: str, made: Made) -> Iterator[str]:
        return _certificate_lines(folder, file, made, server=both or args.server, client=both or args.client)

    return _run(args, file_name(names[0]), make, lines)


def now() -> datetime.datetime:
    """Return the time."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def file_name(name: str) -> str:
    """Return what the files of a certificate are called: ``*`` and ``:`` are for shells and other systems."""
    return "_" + name if name == AUTHORITY else name.replace("*", "_").replace(":", "_")


def _run(
    args: argparse.Namespace, file: str, make: Callable[[], Made], lines: Callable[[str, str, Made], Iterator[str]]
) -> int:
    from plumberd.commands.issuing import IssuingError

    try:
        made = _write(args.dir, file, make)
    except (OSError, IssuingError, NotWritten) as e:
        where = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
        complain(f"{where}{e.strerror if isinstance(e, OSError) else e}")
        return ERROR
    folder = os.path.abspath(args.dir)
    if args.json:
        say_json(
            {
                "certificate": os.path.join(folder, f"{file}.pem"),
                "key": os.path.join(folder, f"{file}.key"),
                "names": list(made.names),
                "ends": made.ends.isoformat(),
                "pin": made.pin,
            }
        )
    else:
        say(lines(folder, file, made))
    return OK


def read_authority(folder: str) -> tuple[bytes, bytes]:
    """Return the certificate and the key of the authority in *folder*, both PEM.

    :raises OSError, NotWritten: there is none, or it cannot be read.
    """
    return _read(folder, f"{AUTHORITY}.pem"), _read(folder, f"{AUTHORITY}.key")


def _read(folder: str, name: str) -> bytes:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            return file.read(FILE_BYTES)
    except FileNotFoundError:
        raise NotWritten(f"{path}: there is no authority; plumb ca init makes one") from None


def _write(folder: str, file: str, make: Callable[[], Made]) -> Made:
    """Write both files of what *make* makes; neither where one of them is there already."""
    paths = os.path.join(folder, f"{file}.key"), os.path.join(folder, f"{file}.pem")
    for path in paths:
        if os.path.lexists(path):
            raise NotWritten(f"{path}: it is there already, and is never overwritten; move it away")
    made = make()
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
    written: list[str] = []
    try:
        for path, data, mode in zip(paths, (made.key, made.certificate), (0o600, 0o644), strict=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            written.append(path)
            with os.fdopen(fd, "wb") as out:
                os.fchmod(fd, mode)  # whatever the umask
                out.write(data)
    except OSError:
        for path in written:
            os.unlink(path)
        raise
    return made


def _authority_lines(folder: str, file: str, made: Made) -> Iterator[str]:
    yield f"{file}.key  the authority's key: it stays in {folder}, where no daemon needs it"
    yield f"{file}.pem  its certificate, {made.names[0]}, until {made.ends:%Y-%m-%d}: for whoever shall believe it"
    yield ""
    yield "# there, in plumberd.toml"
    yield "[tls]"
    yield f"trust = {_path(folder, file, 'pem')}"
    yield ""
    yield "# next: plumb cert NAME" + ("" if folder == os.path.abspath(FOLDER) else f" --dir {folder}")


def _certificate_lines(folder: str, file: str, made: Made, *, server: bool, client: bool) -> Iterator[str]:
    yield f"{file}.key  the key, for that machine alone, mode 0600"
    yield f"{file}.pem  the certificate, for {', '.join(made.names)}, until {made.ends:%Y-%m-%d}"
    pair = [f"certificate = {_path(folder, file, 'pem')}", f"private_key = {_path(folder, file, 'key')}"]
    if server:
        yield from ("", "# where it listens, in plumberd.toml", "[tls]", *pair, "[listen]", 'tlsd = ["0.0.0.0:9001"]')
    if client:
        yield from ("", "# where it connects, in plumberd.toml", '[peer."HOST:9001"]', *pair)
        proof = _proof(made.names)
        if proof is not None:
            yield "# and where it is listened for, with tls.client_certificates, a rule:"
            yield f"# allow in SERVICE tls:any for {proof}"


def _proof(names: Sequence[str]) -> str | None:
    """Return the condition of a rule that the certificate fulfils, if it proves a name."""
    for name in reversed(names):  # a SPIFFE ID stands last
        condition = name if name.startswith("spiffe:") else f"cert:{name}"
        with contextlib.suppress(ConditionError):
            if "*" not in condition:
                return str(parse_condition(condition))
    return None


def _path(folder: str, file: str, ending: str) -> str:
    return quoted(os.path.join(folder, f"{file}.{ending}"))
