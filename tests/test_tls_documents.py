"""docs/tls.md: every configuration in it is understood, and every fault in its table has its own words."""

from __future__ import annotations

import os
import re
from pathlib import Path

from plumberd.pure.verification import verify_reason
from plumberd.wiring.config.assemble import read_settings
from plumberd.wiring.config.settings import CommandLine
from tests.support import CleanTestCase

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "tls.md"
_BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Configurations(CleanTestCase):
    def test_every_one_is_understood_and_says_something_of_tls(self) -> None:
        blocks = _BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
        self.assertEqual(len(blocks), 4)
        folder = self.folder()
        for number, block in enumerate(blocks):
            path = os.path.join(folder, f"{number}.toml")
            with open(path, "w", encoding="utf-8") as file:
                file.write(block)
            os.chmod(path, 0o600)
            settings = read_settings(CommandLine(config=path, folder=folder), reads_keys=False)
            self.assertTrue(settings.tlsd or settings.peers, block)
            self.assertTrue(settings.policy.rules, block)


class Faults(CleanTestCase):
    def test_the_words_of_the_table_are_those_that_are_said(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        for code, words in ((18, "self-signed"), (10, "expired"), (9, "not valid yet"), (23, "revoked")):
            self.assertIn(words, verify_reason(code))
            self.assertIn(words, text)
