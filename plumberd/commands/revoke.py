"""``plumb ca revoke``: the authority's list of certificates that are taken back, made anew with some more."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from plumberd.commands import ca
from plumberd.commands.ca import AUTHORITY, NotWritten, read_authority
from plumberd.commands.output import ERROR, OK, complain, quoted, say, say_json

if TYPE_CHECKING:
    from plumberd.commands.issuing import RevocationList

DAYS = 365
FILE_BYTES = 16 << 20
"""Some 400,000 certificates."""

MODE = 0o644


def run(args: argparse.Namespace) -> int:
    """Write the list, with what it had and with *args.certificates*."""
    from plumberd.commands.issuing import IssuingError, revoke  # late: it brings the cryptography library along

    path = os.path.join(args.dir, f"{AUTHORITY}.crl")
    try:
        authority = read_authority(args.dir)
        old = _read(path, missing=b"")
        certificates = [(one, _read(one)) for one in args.certificates]
        made = revoke(authority, old, certificates, args.days or DAYS, ca.now())
        _replace(path, made.pem)
    except (OSError, IssuingError, NotWritten) as e:
        where = f"{e.filename}: " if isinstance(e, OSError) and e.filename else ""
        complain(f"{where}{e.strerror if isinstance(e, OSError) else e}")
        return ERROR
    path = os.path.abspath(path)
    if args.json:
        say_json({"crl": path, "added": list(made.added), "revoked": made.count, "ends": made.ends.isoformat()})
    else:
        say(_lines(path, made))
    return OK


def _lines(path: str, made: RevocationList) -> Iterator[str]:
    for added in made.added:
        yield f"taken back: {added}"
    yield f"{os.path.basename(path)}  the list, with {made.count} certificate{'s' * (made.count != 1)}"
    yield f"        It holds until {made.ends:%Y-%m-%d}; then nobody of the authority is believed: renew it before."
    yield ""
    yield "# wherever the authority is believed, in plumberd.toml, and then plumb reload"
    yield "[tls]"
    yield f"crl = {quoted(path)}"


def _read(path: str, missing: bytes | None = None) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES + 1)
    except FileNotFoundError:
        if missing is None:
            raise
        return missing
    if len(data) > FILE_BYTES:
        raise NotWritten(f"{path}: it is longer than {FILE_BYTES} bytes")
    return data


def _replace(path: str, data: bytes) -> None:
    """Put a whole new file in the place of the old one: a broker that reads it meanwhile reads one of the two."""
    temporary = f"{path}.{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, MODE)  # whatever the umask is
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
