"""The two names that Twisted's ServiceMaker looks for."""

from plumberd.wiring.config.options import Options
from plumberd.wiring.service import makeService

__all__ = ["Options", "makeService"]
