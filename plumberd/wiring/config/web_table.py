"""``[web]`` of a configuration, with the tokens of the file that it names."""

from __future__ import annotations

from plumberd.effects.tls_files import TlsFileError, TlsFiles
from plumberd.pure.tokens import Tokens
from plumberd.pure.web_safety import WebSettings
from plumberd.wiring.config.configuration import Reading
from plumberd.wiring.config.mistakes import Mistake


class WebTable:
    """Reads it; adds to *mistakes* whatever is wrong."""

    def __init__(self, reading: Reading, mistakes: list[Mistake], reads_keys: bool = True) -> None:
        """:param reads_keys: whether the file of tokens is looked into at all."""
        self._reading = reading
        self._mistakes = mistakes
        self._reads = reads_keys

    def settings(self) -> WebSettings:
        """Return what browsers may ask; with mistakes it is worth nothing."""
        table = self._reading.configuration.web
        file = None
        tokens = Tokens()
        if table.token_file is not None:
            file = self._reading.absolute(table.token_file, "web", "token_file")
            tokens = self._tokens(file)
        return WebSettings(tuple(table.hosts), tuple(table.origins), table.proxies, file, tokens, table.page)

    def _tokens(self, file: str) -> Tokens:
        if not self._reads:
            return Tokens()
        try:
            return TlsFiles().tokens(file)
        except TlsFileError as e:
            place = self._reading.file_of("web", "token_file")
            assert place is not None  # it stands in some file
            self._mistakes += [Mistake(place.name, "web.token_file", text) for text in e.mistakes]
            return Tokens()
