"""Reads the files of TLS: certificates and keys, pre-shared keys, authorities, revocation lists, passwords.

They are trusted like a configuration (:mod:`plumberd.effects.trusted_file`). A
secret may be read by its owner and its group alone: the group is for a daemon
that runs as a user of its own and reads a key that it must not be able to change,
root's (``0640``, as Debian's ``ssl-cert`` has it); a configuration that holds a
password may be read like that, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import Encoding

from plumberd.effects.trusted_file import FileError, read_trusted
from plumberd.pure import certificates
from plumberd.pure.certificates import FILE_BYTES, TRUST_BYTES, CertificateError
from plumberd.pure.psk import FILE_BYTES as PSK_BYTES
from plumberd.pure.psk import PreSharedKey, PskError, parse_keys
from plumberd.pure.refusals import printable
from plumberd.pure.tls import Authority, Certificate, RevocationList
from plumberd.pure.tokens import FILE_BYTES as TOKEN_FILE_BYTES
from plumberd.pure.tokens import TOKEN_CHARS, TokenError, Tokens, is_token, parse_tokens

T = TypeVar("T")

PASSWORD_BYTES = 1024
"""Longest password."""

_SECRET_MODE = 0o037
"""What others, and the group beyond reading, may do with a secret: nothing."""


class TlsFileError(Exception):
    """A file cannot be used.

    :ivar file: its path.
    :ivar mistakes: sentences that begin with the path, and the line where there is one; none holds a secret.
    """

    def __init__(self, file: str, mistakes: Sequence[tuple[int, str]]) -> None:
        self.file = file
        self.mistakes = tuple(f"{file}:{line}: {text}" if line else f"{file}: {text}" for line, text in mistakes)
        super().__init__("; ".join(self.mistakes))


class TlsFiles:
    """Reads them as the user that we are. Each file is read anew whenever it is asked for."""

    def __init__(self) -> None:
        self._uid = os.geteuid()

    def certificate(self, chain_file: str, key_file: str) -> Certificate:
        """Return a certificate with its chain and its key.

        :raises TlsFileError: where one of them cannot be read, is weak, or does not belong to the other. The
            path in front says which one it is.
        """
        pem, chain = self._parsed(chain_file, FILE_BYTES, certificates.parse_chain)
        if b"PRIVATE KEY-----" in pem:
            self._read_secret(chain_file, FILE_BYTES)
        key_pem = self._read_secret(key_file, FILE_BYTES)

        def parse(data: bytes) -> None:
            certificates.check_pair(chain[0], certificates.parse_key(data))

        _taken(key_file, parse, key_pem)
        return Certificate(
            chain_file,
            key_file,
            b"".join(one.public_bytes(Encoding.PEM) for one in chain),
            key_pem,
            certificates.subject(chain[0]),
            certificates.dns_names(chain[0]),
            certificates.kind(chain[0]),
            certificates.begins(chain),
            certificates.ends(chain),
        )

    def authorities(self, file: str) -> tuple[Authority, ...]:
        """Return the certificates of a file, each of which is trusted.

        :raises TlsFileError: where there is none, or a weak one.
        """

        def parse(pem: bytes) -> tuple[Authority, ...]:
            found = []
            for one in certificates.parse_certificates(pem):
                weak = certificates.weakness(one, is_anchor=True)
                if weak is not None:
                    raise CertificateError(f"the certificate of {certificates.subject(one)} has {weak}")
                name, begins, ends = certificates.subject(one), certificates.begins([one]), certificates.ends([one])
                found.append(Authority(file, one.public_bytes(Encoding.PEM), name, begins, ends))
            return tuple(found)

        return self._parsed(file, TRUST_BYTES, parse)[1]

    def revocation_lists(self, file: str) -> tuple[RevocationList, ...]:
        """Return the revocation lists of a file.

        :raises TlsFileError: where there is none.
        """

        def parse(pem: bytes) -> tuple[RevocationList, ...]:
            found = []
            for one in certificates.parse_revocation_lists(pem):
                name = printable(one.issuer.rfc4514_string(), 80)
                ends = one.next_update_utc
                at = None if ends is None else int(ends.timestamp())
                found.append(RevocationList(file, one.public_bytes(Encoding.PEM), name, at))
            return tuple(found)

        return self._parsed(file, TRUST_BYTES, parse)[1]

    def keys(self, file: str) -> tuple[PreSharedKey, ...]:
        """Return the pre-shared keys of a file.

        :raises TlsFileError: with every mistake in it.
        """
        data = self._read_secret(file, PSK_BYTES)
        try:
            return parse_keys(data)
        except PskError as e:
            raise TlsFileError(file, e.mistakes) from None

    def token(self, file: str) -> str:
        """Return the bearer token that a file holds, in its only line.

        :raises TlsFileError: where it holds anything else.
        """
        text = self._read_secret(file, TOKEN_CHARS + 2).decode("latin-1").removesuffix("\n").removesuffix("\r")
        if not is_token(text):
            raise TlsFileError(file, [(0, "wanted one line with a token, as plumb token new prints it")])
        return text

    def tokens(self, file: str) -> Tokens:
        """Return the digests of tokens of a file.

        :raises TlsFileError: with every mistake in it.
        """
        data = self._read_secret(file, TOKEN_FILE_BYTES)
        try:
            return parse_tokens(data)
        except TokenError as e:
            raise TlsFileError(file, e.mistakes) from None

    def find(self, keys: Sequence[PreSharedKey], identity: str) -> PreSharedKey | None:
        """Return the key that is called *identity*, or ``None``."""
        return next((one for one in keys if one.identity == identity), None)

    def password(self, file: str) -> str:
        """Return the password that a file holds, in its only line.

        :raises TlsFileError: where it holds anything else.
        """
        data = self._read_secret(file, PASSWORD_BYTES + 2)
        try:
            text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise TlsFileError(file, [(0, "the password is not UTF-8")]) from None
        if not text or len(text.encode()) > PASSWORD_BYTES or not text.isprintable():
            wanted = f"wanted one line with the password, 1 to {PASSWORD_BYTES} bytes of printable characters"
            raise TlsFileError(file, [(0, wanted)])
        return text

    def _parsed(self, file: str, most_bytes: int, parse: Callable[[bytes], T]) -> tuple[bytes, T]:
        try:
            data = read_trusted(file, most_bytes, self._uid).data
        except FileError as e:
            raise TlsFileError(file, [(0, str(e))]) from None
        return data, _taken(file, parse, data)

    def _read_secret(self, file: str, most_bytes: int) -> bytes:
        try:
            read = read_trusted(file, most_bytes, self._uid)
        except FileError as e:
            raise TlsFileError(file, [(0, str(e))]) from None
        if read.mode & _SECRET_MODE:
            text = f"a secret that others can read (mode {read.mode:04o}): chmod 0600, or 0640 for a daemon's group"
            raise TlsFileError(file, [(0, text)])
        return read.data


class UnreadFiles(TlsFiles):
    """Takes every file for a good one, without looking: for who tries a configuration out that is not this machine's.

    Nothing that comes of it can be proved to anybody.
    """

    def certificate(self, chain_file: str, key_file: str) -> Certificate:
        """See :meth:`TlsFiles.certificate`."""
        return Certificate(chain_file, key_file, b"", b"", ends=2**40)

    def authorities(self, file: str) -> tuple[Authority, ...]:
        """See :meth:`TlsFiles.authorities`."""
        return (Authority(file, b"", ends=2**40),)

    def revocation_lists(self, file: str) -> tuple[RevocationList, ...]:
        """See :meth:`TlsFiles.revocation_lists`."""
        return (RevocationList(file, b""),)

    def keys(self, file: str) -> tuple[PreSharedKey, ...]:
        """See :meth:`TlsFiles.keys`. Nobody knows which there are; one stands for them."""
        return (PreSharedKey("unread", b""),)

    def find(self, keys: Sequence[PreSharedKey], identity: str) -> PreSharedKey:
        """See :meth:`TlsFiles.find`."""
        return PreSharedKey(identity, b"")

    def password(self, file: str) -> str:
        """See :meth:`TlsFiles.password`."""
        return ""

    def token(self, file: str) -> str:
        """See :meth:`TlsFiles.token`."""
        return ""


def _taken(file: str, parse: Callable[[bytes], T], data: bytes) -> T:
    try:
        return parse(data)
    except CertificateError as e:
        raise TlsFileError(file, [(0, str(e))]) from None
