"""One machine for every test of a run: its trials are made once."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from twisted.trial import unittest

from tests.children import SOURCES

TRIALS_SECONDS = 150.0
"""All of the trials take a tenth of that on an idle machine."""

_NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Its processes end with their namespace, whatever becomes of them."""


@functools.cache
def outcomes() -> dict[str, Any]:
    """Return what came of every trial; see :mod:`tests.escapes.trials`."""
    return _run("tests.escapes.trials")


@functools.cache
def strains() -> dict[str, str]:
    """Return what was wrong with every strain; see :mod:`tests.escapes.strains`."""
    return _run("tests.escapes.strains")


def _run(module: str) -> dict[str, Any]:
    folder = tempfile.mkdtemp(prefix="pl")
    try:
        os.chmod(folder, 0o755)
        # Another user could not write down what was measured.
        environ = {k: v for k, v in os.environ.items() if k != "COVERAGE_PROCESS_CONFIG"} | {"PYTHONPATH": SOURCES}
        done = subprocess.run(
            [*_NAMESPACES, sys.executable, "-m", module, folder],
            capture_output=True,
            timeout=TRIALS_SECONDS,
            check=False,
            env=environ,
            text=True,
        )
        if done.returncode:
            raise AssertionError(f"{module} broke off:\n{done.stderr}")
        told: dict[str, Any] = json.loads(done.stdout)
        return told
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class EscapeTestCase(unittest.SynchronousTestCase):
    """Compares what came of the trials with what has to."""

    timeout = TRIALS_SECONDS

    if os.geteuid() != 0:
        skip = "wants root"
