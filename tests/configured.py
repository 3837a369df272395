"""Tests of configurations: files in a folder of the test's own, and what is said of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.mistakes import ConfigurationError
from plumberd.wiring.config.settings import CommandLine, Settings
from tests.support import CleanTestCase


class ConfiguredTestCase(CleanTestCase):
    """Writes configurations, and reads them as a start does."""

    def setUp(self) -> None:
        super().setUp()
        self.addCleanup(os.umask, os.umask(0o022))
        self.home = self.folder()

    def path(self, name: str) -> str:
        """Return the path of a file of this test's."""
        return os.path.join(self.home, name)

    def write(self, text: str | bytes, name: str = "plumberd.toml", mode: int = 0o644) -> str:
        """Write a file that can be trusted; return its path."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        os.chmod(path, mode)
        return path

    def settings(self, text: str = "", line: CommandLine | None = None) -> Settings:
        """Return what a configuration and the command line come to."""
        path = self.write(text)
        return read_settings(line or CommandLine(path))

    def mistakes(self, text: str | bytes, name: str = "plumberd.toml", mode: int = 0o644) -> list[str]:
        """Return all mistakes of a configuration, each without this test's folder in front."""
        return self.mistakes_in(self.write(text, name, mode))

    def mistakes_in(self, path: str) -> list[str]:
        """Return all mistakes of the configuration at *path*."""
        with self.assertRaises(ConfigurationError) as caught:
            read_settings(CommandLine(path))
        return self.bare(str(caught.exception).splitlines())

    def bare(self, lines: Iterable[str]) -> list[str]:
        """Take this test's folder out of *lines*."""
        return [line.replace(self.home + "/", "") for line in lines]


def cpu_seconds(started: float = 0.0) -> float:
    """Return how long this process has computed since *started*, whatever others do meanwhile."""
    return time.process_time() - started
