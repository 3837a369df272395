"""Certificates that end soon are told in the log, once a day, in time for somebody to do something."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from plumberd.pure.tls import expiring
from plumberd.wiring.core import Core

DAY_SECONDS = 24 * 3600.0


class ExpiryNotice:
    """Tells, when it is started and a day after each time, what has ended or will have within the notice."""

    _log = Logger("plumberd")

    def __init__(self, core: Core, now: Callable[[], float] = time.time) -> None:
        """*now* gives seconds since 1970."""
        self._core = core
        self._now = now
        self._timer: IDelayedCall | None = None

    def tell(self) -> None:
        """Tell it now, of the settings in force, and again tomorrow."""
        self.stop()
        settings = self._core.settings
        for one in expiring(settings.tls, settings.peers, self._now()):
            self._log.warn("{what}", what=str(one))
        self._timer = self._core.reactor.callLater(DAY_SECONDS, self.tell)

    def stop(self) -> None:
        """Tell nothing any more. Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
