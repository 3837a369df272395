"""The Twisted service: starts everything or nothing, and takes everything back."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any, cast

from twisted.application.service import IService, Service
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from plumberd.effects.rundir import RunDirError, open_rundir
from plumberd.wiring.announce import announcement
from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.config.doubts import WARNING
from plumberd.wiring.config.options import Options
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import Core, make_core
from plumberd.wiring.expiry import ExpiryNotice
from plumberd.wiring.inbound.schemed import SchemeDaemon
from plumberd.wiring.inbound.tcpd import ListenError, Tcpd, Wanted, wanted_by
from plumberd.wiring.ops.reload import Reload, audit_log_of


class PlumberdService(Service):
    """The broker and its scheme daemons in one process."""

    _log = Logger("plumberd")

    def __init__(self, settings: Settings, reactor: Any = None) -> None:
        self.settings = settings
        self._reactor = reactor
        self.core: Core | None = None
        self.broker: Broker | None = None
        self.tcpd: Tcpd | None = None
        self.scheme_daemons: tuple[SchemeDaemon, ...] = ()
        self._reload: Reload | None = None
        self._expiry: ExpiryNotice | None = None

    def privilegedStartService(self) -> None:
        """Make the run directory and listen, before ``twistd --uid`` gives root up."""
        start: Callable[[], None] = super().privilegedStartService
        start()
        self._listen()

    def startService(self) -> None:
        """Listen if that was not done yet, and begin to accept.

        :raises SystemExit: one line for people, where something is in the way; nothing listens then.
        """
        self._listen()
        start: Callable[[], None] = super().startService
        start()
        assert self.core is not None and self.broker is not None
        assert self.tcpd is not None
        if self._uid != os.geteuid():
            self.core.know_yourself()
        self.broker.start()
        for daemon in self.scheme_daemons:
            daemon.start()
        if self._reactor is None:
            # Behind the reactor's own handlers, which it installs when it begins to run.
            self.core.reactor.callLater(0, self._running, self.core)
        else:
            self._announce()

    def _running(self, core: Core) -> None:
        """Signals are answered from now on; only then is it said that everything is there."""
        if self.core is core:
            _stop_cleanly_on_sigterm(core.reactor)
            _reload_on_sighup(core)
            self._announce()

    def _announce(self) -> None:
        assert self.core is not None and self.tcpd is not None
        lines = announcement(
            self.settings,
            self.core.powers,
            has_pidfds=self.core.inspector.has_pidfds,
            addresses=self.tcpd.addresses,
        )
        for line in lines:
            if line.startswith(WARNING):
                self._log.warn("{line}", line=line)
            else:
                self._log.info("{line}", line=line)

        self._expiry = ExpiryNotice(self.core)
        self._expiry.tell()

    def stopService(self) -> defer.Deferred[None]:
        """Stop listening, end what is under way, remove what was made."""
        stop: Callable[[], None] = super().stopService
        stop()
        return defer.Deferred.fromCoroutine(self._stop())

    def _listen(self) -> None:
        if self.core is not None:
            return
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor  # late: the reactor is chosen by twistd's options
        self._uid = os.geteuid()
        self.core = core = make_core(reactor, self.settings)
        self.tcpd = tcpd = Tcpd(core)
        self.broker = Broker(core, tcpd)
        self.scheme_daemons = tuple(SchemeDaemon(core, scheme) for scheme in self.settings.served_schemes)
        try:
            open_rundir(self.settings.rundir, self.settings.gid)
            if self.settings.runs_broker:
                self.broker.listen()
            for daemon in self.scheme_daemons:
                daemon.listen()
        except RunDirError as e:
            self._give_up(str(e))
        try:
            self.core.audit.set_sink(audit_log_of(self.settings))
            self.tcpd.listen_on(wanted_by(self.settings), self._told_late)
        except ListenError as e:
            self._give_up(str(e))
        except OSError as e:
            self._give_up(f"--audit: {e.strerror or e}")
        self.core.reload = self._reload = Reload(self.core, self.broker, self.tcpd)

    def _told_late(self, wanted: Wanted, failure: Failure) -> None:
        """An endpoint that fails only after the start ends the process, loudly."""
        if self.core is not None:
            self._log.critical("{wanted}: {error}", wanted=str(wanted), error=failure.getErrorMessage())
            self.core.reactor.stop()

    def _give_up(self, reason: str) -> None:
        assert self.core is not None and self.broker is not None and self.tcpd is not None
        self.broker.stop()
        for daemon in self.scheme_daemons:
            daemon.stop()
        self.tcpd.stop()
        self.core.close()
        raise SystemExit(f"plumberd: {reason}")

    async def _stop(self) -> None:
        core, broker, tcpd = self.core, self.broker, self.tcpd
        if core is None or broker is None or tcpd is None:
            return
        self.core = None
        if self._reload is not None:
            self._reload.stop()
        if self._expiry is not None:
            self._expiry.stop()
        broker.stop()
        for daemon in self.scheme_daemons:
            daemon.stop()
        await defer.DeferredList(tcpd.stop())
        await core.end_relays()
        core.close()
        self._log.info("plumberd has stopped")


def _stop_cleanly_on_sigterm(reactor: Any) -> None:
    """Make SIGTERM an ordinary stop with exit status 0; twistd would end itself with the signal again."""
    with contextlib.suppress(ValueError):  # not the main thread: then it is somebody else's business
        signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(reactor.stop))


def _reload_on_sighup(core: Core) -> None:
    """Make SIGHUP read the configuration again; the log says what came of it."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGHUP, lambda *_: core.reactor.callFromThread(core.reload, _told))


def _told(answer: object) -> None:
    """What came of a reload by a signal stands in the log."""


def makeService(options: Options) -> IService:
    """Make the service out of parsed options; Twisted's plugin calls this."""
    assert options.settings is not None
    return cast(IService, PlumberdService(options.settings))
