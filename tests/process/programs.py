"""Other people's programs that tests want, and plumb as a process that another user can start."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any
from unittest import SkipTest

from tests.plumb_case import bare_environ
from tests.process.running import ROOT, ProcessTestCase, Program

PYTHON = "/usr/bin/python3"
"""The system's own, which every user may start; the one that runs the tests may lie in a closed folder."""


def find(program: str) -> str:
    """Return the path of a program.

    :raises SkipTest: it is not installed; in the project's own run that is a failure.
    """
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI") == "true":
            raise AssertionError(f"{program} is missing")
        raise SkipTest(f"{program} is not installed")
    return found


PACKAGES = os.path.join(ROOT, "tests", "node")
"""Where ``npm ci`` installs what the tests want from npm."""


def find_package(name: str) -> str:
    """Return the folder of one of npm's packages.

    :raises SkipTest: it is not installed; in the project's own run that is a failure.
    """
    found = os.path.join(PACKAGES, "node_modules", name)
    if not os.path.isdir(found):
        if os.environ.get("CI") == "true":
            raise AssertionError(f"npm's package {name} is missing: npm ci in tests/node")
        raise SkipTest(f"npm's package {name} is not installed: npm ci in tests/node")
    return found


class ToolTestCase(ProcessTestCase):
    """Starts plumb as this user, or as one that has nothing."""

    uid = 0
    """As whom: 0 is who runs the tests."""

    def words(self, *words: str) -> list[str]:
        """Return the whole command line of plumb."""
        if not self.uid:
            return [sys.executable, "-m", "plumberd.plumb", *words]
        setpriv = [find("setpriv"), f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        return [*setpriv, find(PYTHON), "-m", "plumberd.plumb", *words]

    def environ(self, **environ: str) -> dict[str, str]:
        """Return the environment in which plumb runs."""
        return {**bare_environ(environ), "PYTHONPATH": self.sources()}

    def sources(self) -> str:
        """Return a folder in which plumberd lies, which every user may read."""
        if not hasattr(self, "_sources"):
            self._sources = self.folder()
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(f"{ROOT}/plumberd", f"{self._sources}/plumberd", ignore=ignored)
        return self._sources

    def start(self, *words: str, environ: dict[str, str] | None = None, **options: Any) -> Program:
        """Start plumb; the test ends it."""
        return self.program(*self.words(*words), env=self.environ(**(environ or {})), **options)

    def said(self, *words: str, environ: dict[str, str] | None = None, **options: Any) -> tuple[int, str]:
        """Run plumb to its end; return its status and what it printed."""
        program = self.start(*words, environ=environ, **options)
        return program.wait(), program.output
