"""``[tls]`` and ``[peer."HOST:PORT"]`` of a configuration, with what stands in the files that they name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from plumberd.effects.tls_files import TlsFileError, TlsFiles, UnreadFiles
from plumberd.pure.psk import PreSharedKey
from plumberd.pure.tls import SYSTEM, Certificate, PeerSettings, TlsSettings, Trust, parse_peer_key
from plumberd.wiring.config.configuration import Reading
from plumberd.wiring.config.mistakes import Mistake, Path, key_text
from plumberd.wiring.config.schema import Peer

T = TypeVar("T")


class TlsTables:
    """Reads them; adds to *mistakes* whatever is wrong, all of it, each with its key and its file."""

    def __init__(self, reading: Reading, mistakes: list[Mistake], reads_keys: bool = True) -> None:
        """:param reads_keys: whether the files are looked into at all."""
        self._reading = reading
        self._mistakes = mistakes
        self._files = TlsFiles() if reads_keys else UnreadFiles()

    def settings(self) -> tuple[TlsSettings, dict[str, PeerSettings]]:
        """Return what holds for listeners and in general, and what for each peer; with mistakes it is worth nothing."""
        table = self._reading.configuration.tls
        certificates = [self._certificate(("tls",), table.certificate, table.private_key)]
        for number, one in enumerate(table.certificates):
            certificates.append(self._certificate(("tls", "certificates", number), one.certificate, one.private_key))
        keys: tuple[PreSharedKey, ...] = ()
        psk_file = None if table.psk_file is None else self._reading.absolute(table.psk_file, "tls", "psk_file")
        if psk_file is not None:
            keys = self._read(("tls", "psk_file"), self._files.keys, psk_file) or ()
        trust = self._trust(("tls", "trust"), table.trust) or Trust()
        crls = self._each(("tls", "crl"), table.crl, self._files.revocation_lists)
        peers = self._peers(keys)
        proved = {peer.psk.identity for peer in peers.values() if peer.psk is not None}
        tls = TlsSettings(
            tuple(one for one in certificates if one is not None),
            trust,
            tuple(one for found in crls for one in found),
            psk_file,
            tuple(one for one in keys if one.identity not in proved),
            table.client_certificates,
            table.alpn,
        )
        return tls, peers

    def _peers(self, keys: tuple[PreSharedKey, ...]) -> dict[str, PeerSettings]:
        found: dict[str, PeerSettings] = {}
        written: dict[str, str] = {}
        for text, table in self._reading.configuration.peer.items():
            name = parse_peer_key(text)
            if name in found:
                self._mistake(("peer", text), f"the same destination as {written[name]}")
                continue
            written[name] = text
            found[name] = self._peer(("peer", text), table, keys)
        return found

    def _peer(self, path: Path, table: Peer, keys: tuple[PreSharedKey, ...]) -> PeerSettings:
        psk = None
        if table.psk is not None:
            psk = self._psk((*path, "psk"), table.psk, keys)
            beside = [key for key in ("certificate", "pin", "trust") if getattr(table, key)]
            if beside:
                text = "with a pre-shared key no certificate is shown or looked at; leave one of the two out"
                self._mistake((*path, beside[0]), text)
        password_file = password = None
        if (table.login is None) != (table.password_file is None):
            self._mistake(path, "login and password_file belong together")
        elif table.password_file is not None:
            at = (*path, "password_file")
            password_file = self._absolute(at, table.password_file)
            password = self._read(at, self._files.password, password_file)
        token_file = token = None
        if table.token_file is not None:
            at = (*path, "token_file")
            token_file = self._absolute(at, table.token_file)
            token = self._read(at, self._files.token, token_file)
        return PeerSettings(
            psk,
            self._certificate(path, table.certificate, table.private_key),
            table.login,
            password_file,
            password,
            table.pin,
            self._trust((*path, "trust"), table.trust),
            table.forward,
            token_file,
            token,
        )

    def _psk(self, path: Path, identity: str, keys: tuple[PreSharedKey, ...]) -> PreSharedKey | None:
        found = self._files.find(keys, identity)
        table = self._reading.configuration.tls
        if table.psk_file is None:
            self._mistake(path, "the key is looked for in tls.psk_file, which is not said")
        elif found is None and keys:
            self._mistake(path, f"{identity}: no key of that name in {table.psk_file}")
        return found

    def _certificate(self, path: Path, chain: str | None, key: str | None) -> Certificate | None:
        if chain is None and key is None:
            if len(path) > 2:
                self._mistake(path, "wanted certificate and private_key")
            return None
        if chain is None or key is None:
            self._mistake(path, "certificate and private_key belong together; both may name the same file")
            return None
        chain_file = self._absolute((*path, "certificate"), chain)
        key_file = self._absolute((*path, "private_key"), key)
        try:
            return self._files.certificate(chain_file, key_file)
        except TlsFileError as e:
            self._told((*path, "private_key" if e.file == key_file else "certificate"), e)
            return None

    def _trust(self, path: Path, words: tuple[str, ...]) -> Trust | None:
        if not words:
            return None
        found = self._each(path, tuple(word for word in words if word != SYSTEM), self._files.authorities)
        return Trust(SYSTEM in words, tuple(one for authorities in found for one in authorities))

    def _each(self, path: Path, words: tuple[str, ...], read: Callable[[str], T]) -> list[T]:
        found = [self._read(path, read, self._absolute(path, word)) for word in words]
        return [one for one in found if one is not None]

    def _read(self, path: Path, read: Callable[[str], T], file: str) -> T | None:
        try:
            return read(file)
        except TlsFileError as e:
            self._told(path, e)
            return None

    def _absolute(self, path: Path, file: str) -> str:
        return self._reading.absolute(file, *map(str, path))

    def _told(self, path: Path, error: TlsFileError) -> None:
        for text in error.mistakes:
            self._mistake(path, text)

    def _mistake(self, path: Path, text: str) -> None:
        file = self._reading.file_of(*map(str, path))
        assert file is not None  # whatever is looked at here stands in some file
        self._mistakes.append(Mistake(file.name, key_text(path), text))
