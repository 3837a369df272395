"""Read the configuration again: whole, or not at all.

Everything that can fail comes first: reading, the audit log, the listeners. Then
the new settings are in force at once. Connections that are made stay; what is
under way is decided again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from plumberd.effects.auditlog import JOURNAL_SOCKET, AuditLog, open_audit_log
from plumberd.pure.refusals import Refusal
from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.config.assemble import reread
from plumberd.wiring.config.changes import changes
from plumberd.wiring.config.doubts import WARNING, doubts
from plumberd.wiring.config.mistakes import ConfigurationError, Mistake
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.core import Core
from plumberd.wiring.inbound.tcpd import ListenError, Tcpd, Wanted, wanted_by

_log = Logger("plumberd")

Done = Callable[[dict[str, Any]], None]


def audit_log_of(settings: Settings) -> AuditLog | None:
    """Open the audit log that *settings* want, if any.

    :raises OSError: a sentence that says what is in the way.
    """
    if settings.audit_file is None and not settings.audit_journal:
        return None
    return open_audit_log(settings.audit_file, JOURNAL_SOCKET if settings.audit_journal else None)


class Reload:
    """Reads the configuration of one running service again, each time it is called."""

    def __init__(self, core: Core, broker: Broker, tcpd: Tcpd, read: Callable[[Settings], Settings] | None = None):
        """*read* returns the next settings, or raises :exc:`ConfigurationError`."""
        self._core = core
        self._broker = broker
        self._tcpd = tcpd
        self._is_reading = False
        self._asked: list[Done] = []
        """Who asked while it was being read: what they have just written may not be in that."""
        self._stopped = False
        self._read = read or (lambda old: reread(old.source, old.generation + 1))

    def __call__(self, done: Done) -> None:
        """Read it, and give *done*, later, the answer of the op ``reload``; the log says the same.

        Files, and directories of users, may be slow, and ten thousand rules take their time: they are
        read in a thread, while everybody is served by what is in force.
        """
        if self._stopped:
            done(_STOPPED)
            return
        self._asked.append(done)
        if not self._is_reading:
            self._begin()

    def _begin(self) -> None:
        self._is_reading = True
        asked, self._asked = self._asked, []
        self._core.reactor.callInThread(self._work, self._core.settings, asked)

    def stop(self) -> None:
        """Put nothing in force any more: it would listen anew."""
        self._stopped = True

    # -- in the thread

    def _work(self, old: Settings, asked: Sequence[Done]) -> None:
        result: Settings | ConfigurationError
        try:
            result = self._read(old)
        except ConfigurationError as e:
            result = e
        except Exception:
            _log.failure("reading the configuration failed")
            result = ConfigurationError([Mistake(old.config or "plumberd", "", "reading it failed; the log says how")])
        warnings = _warnings(result, self._core) if isinstance(result, Settings) else []
        self._core.reactor.callFromThread(self._finish, old, result, warnings, asked)

    # -- in the reactor again

    def _finish(
        self, old: Settings, result: Settings | ConfigurationError, warnings: Sequence[str], asked: Sequence[Done]
    ) -> None:
        try:
            answer = self._answer(old, result, warnings)
        except Exception:
            _log.failure("the reload failed")
            answer = _refusal(Refusal.UNREACHABLE, "the broker failed; its log says how")
        self._is_reading = False
        for done in asked:
            done(answer)
        if self._asked:
            self._begin()

    def _answer(self, old: Settings, result: Settings | ConfigurationError, warnings: Sequence[str]) -> dict[str, Any]:
        if self._stopped:
            return _STOPPED
        try:
            if isinstance(result, ConfigurationError):
                raise result
            lines = self._put_in_force(old, result)
        except ConfigurationError as e:
            return self._refused(e.mistakes)
        for line in lines or ("nothing has changed",):
            _log.info("reloaded: {line}", line=line)
        for warning in warnings:
            _log.warn("warning: {line}", line=warning)
        return {"ok": True, "generation": self._core.generation, "changes": list(lines), "warnings": list(warnings)}

    def _put_in_force(self, old: Settings, new: Settings) -> Sequence[str]:
        found = changes(old, new)
        where = new.config or "the command line"
        if found.needs_restart:
            why = "it cannot change while plumberd runs: start it anew"
            raise ConfigurationError([Mistake(where, key, why) for key in found.needs_restart])
        is_new_log = (old.audit_file, old.audit_journal) != (new.audit_file, new.audit_journal)
        log: AuditLog | None = None
        if is_new_log:
            try:
                log = audit_log_of(new)
            except OSError as e:
                raise ConfigurationError([Mistake(where, "audit", e.strerror or str(e))]) from None
        try:
            self._tcpd.listen_on(wanted_by(new), self._late)
        except ListenError as e:
            if log is not None:
                log.close(0)
            raise ConfigurationError([Mistake(where, "listen", str(e))]) from None
        if is_new_log:
            self._core.audit.set_sink(log)
        else:
            self._core.audit.reopen()
        self._core.reconfigure(new)
        self._broker.reconfigure()
        self._tcpd.reconfigure()
        return found.lines

    def _refused(self, mistakes: Sequence[Mistake]) -> dict[str, Any]:
        for mistake in mistakes:
            _log.error("not reloaded: {mistake}", mistake=str(mistake))
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) != 1 else ''}"
        shown = [{"file": m.file, "key": m.key, "text": m.text, "line": m.line} for m in mistakes[:MOST_MISTAKES]]
        return {**_refusal(Refusal.BAD_REQUEST, f"{count}; the configuration in force stays"), "mistakes": shown}

    def _late(self, wanted: Wanted, failure: Failure) -> None:
        _log.error("{wanted}: {error}", wanted=str(wanted), error=failure.getErrorMessage())


MOST_MISTAKES = 100
"""So many are told in an answer, which has a limit; the log has all of them."""


def _warnings(settings: Settings, core: Core) -> list[str]:
    """Return what is doubtful in *settings*; with many rules that takes its time too."""
    lines = doubts(settings, core.powers, has_pidfds=core.inspector.has_pidfds)
    return [line.removeprefix(WARNING) for line in lines if line.startswith(WARNING)]


def _refusal(word: Refusal, reason: str) -> dict[str, Any]:
    return {"ok": False, "error": word.value, "reason": reason, "mistakes": []}


_STOPPED = _refusal(Refusal.NOT_POSSIBLE, "plumberd is stopping")
