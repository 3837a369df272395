"""Writes outcomes down as lines of JSON, in a thread of its own: no connection waits for a disk.

What is written is put into a queue with a limit. The thread looks up what only
people want to know (executables, names of users), makes the lines, and gives
them to the file and to the journal. Each of these keeps lines of its own for as
long as it can't be written, up to a limit as well: a full disk holds up no
journal. Only one that hangs holds up the other. Where lines are lost, a line
says how many; that something is wrong is said once in the log, and once that it
is over.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

from plumberd.effects.journal import JOURNAL_SOCKET, Journal
from plumberd.effects.logfile import LogError, LogFile
from plumberd.effects.processes import Process, UserNames, boot_seconds, process
from plumberd.pure.backlog import Backlog
from plumberd.pure.record import Line, Outcome, dropped, line
from plumberd.pure.who import LocalWho

LINES = 16384
"""So many outcomes may wait for the thread, and so many lines for a file or a journal that can't be written."""

AT_ONCE = 64
"""Outcomes that the thread takes at a time."""

RETRY_SECONDS = 1.0
"""How long a file or a journal that can't be written is left alone."""

PAUSE_LINES = 2
PAUSE_SECONDS = 0.00005
"""The pause after so many lines. Python runs one thread at a time, and lets one that asks wait for 5 ms
(sys.getswitchinterval): without pauses the reactor would wait as long after every system call."""

CLOSE_SECONDS = 1.0


class Target(Protocol):
    """Where lines go: :class:`~plumberd.effects.logfile.LogFile`, :class:`~plumberd.effects.journal.Journal`."""

    name: str

    def write(self, pending: deque[Line]) -> None:
        """Write, and take from the left of *pending* what is written; may block.

        :raises OSError: the rest could not be written.
        """

    def reopen(self) -> None:
        """Open it anew at the next write."""

    def close(self) -> None:
        """Close it."""


class _Dropped:
    """Stands among outcomes for those that there was no room for."""

    def __init__(self, count: int, since: float) -> None:
        self.count = count
        self.since = since


class AuditLog:
    """Writes to all of *targets*, which are its own. Its methods are for one thread, and none waits but :meth:`close`.

    :ivar names: of the targets.
    """

    def __init__(
        self,
        *targets: Target,
        most: int = LINES,
        log: Logger | None = None,
        retry_seconds: float = RETRY_SECONDS,
        look: Callable[[int], Process | None] = process,
        users: UserNames | None = None,
    ) -> None:
        """*most* lines are kept; *look* and *users* tell of processes and users, in the thread."""
        self.names = tuple(target.name for target in targets)
        self._log = log or Logger("plumberd.audit")
        self._retry_seconds = retry_seconds
        self._look = look
        self._users = users or UserNames()
        self._outlets = [_Outlet(target, most, self._log, retry_seconds) for target in targets]
        self._waiting: Backlog[tuple[float, float, Outcome] | _Dropped] = Backlog(most, _Dropped)
        self._behind = False
        self._awake = threading.Condition()
        self._reopen = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """How many lines were lost in all, at the target that lost the most."""
        return self._waiting.dropped + max((outlet.backlog.dropped for outlet in self._outlets), default=0)

    def write(self, batch: list[tuple[float, Outcome]]) -> None:
        """Have outcomes written soon, each with its time in seconds since 1970."""
        now = time.time()
        boot = boot_seconds() - now
        with self._awake:
            if self._closing:
                return
            lost = self._waiting.put([(when, boot, outcome) for when, outcome in batch], now)
            begins = bool(lost) and not self._behind
            self._behind = self._behind or begins
            if self._thread is None:  # not before the first: a thread does not outlive a fork
                self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
                self._thread.start()
            self._awake.notify()
        if begins:
            self._log.error(
                "the audit log is {lines} lines behind ({names} does not take them); from now on lines are lost",
                lines=len(self._waiting),
                names=" or ".join(self.names),
            )

    def reopen(self) -> None:
        """Open the file anew at the next line, and try at once where it can't be written. A rotated one is noticed."""
        with self._awake:
            self._reopen = True
            self._awake.notify()

    def close(self, wait_seconds: float = CLOSE_SECONDS) -> None:
        """Write what waits, then close the targets; come back after *wait_seconds* even where that takes longer.

        A thread that hangs owns them until it goes on, or the process ends. Idempotent.
        """
        with self._awake:
            self._closing = True
            self._awake.notify()
            thread = self._thread
        if thread is None:
            self._close()
            return
        thread.join(wait_seconds)
        if wait_seconds and thread.is_alive():
            self._log.error("the audit log hangs: {lines} lines may be lost", lines=len(self._waiting))

    # -- in the thread

    def _run(self) -> None:
        while True:
            with self._awake:
                self._awake.wait_for(self._is_due, self._patience())
                taken = self._waiting.take(AT_ONCE)
                recovered = self._behind and not self._waiting
                if recovered:
                    self._behind = False
                over = self._closing and not self._waiting
                reopen, self._reopen = self._reopen, False
            lines = self._lines(taken)
            for outlet in self._outlets:
                outlet.put(lines)
                if reopen:
                    outlet.reopen()
                outlet.write(at_once=over)
            if recovered:
                self._log.info(
                    "the audit log has caught up; {lines} lines were lost since the start", lines=self._waiting.dropped
                )
            if over:
                break
        self._close()

    def _is_due(self) -> bool:
        return bool(self._waiting) or self._closing or self._reopen

    def _patience(self) -> float | None:
        return self._retry_seconds if any(outlet.backlog for outlet in self._outlets) else None

    def _lines(self, taken: list[tuple[float, float, Outcome] | _Dropped]) -> list[Line]:
        seen: dict[int, Process | None] = {}  # a busy client is looked at once a batch
        lines: list[Line] = []
        for number, one in enumerate(taken, 1):
            if number % PAUSE_LINES == 0:
                time.sleep(PAUSE_SECONDS)
            if isinstance(one, _Dropped):
                lines.append(dropped(one.count, one.since, time.time()))
                continue
            when, boot, outcome = one
            try:
                lines.append(self._line(when, boot, outcome, seen))
            except Exception:  # else the thread would end, and every line after it were lost
                self._log.failure("an outcome could not be written down")
                lines.append(dropped(1, when, time.time()))
        return lines

    def _line(self, when: float, boot: float, outcome: Outcome, seen: dict[int, Process | None]) -> Line:
        who = outcome.who
        if not isinstance(who, LocalWho):
            return line(outcome, when, None if outcome.uid is None else self._users.name_of(outcome.uid))
        if who.pid not in seen:
            seen[who.pid] = self._look(who.pid)
        found = seen[who.pid]
        began = when + boot - max(outcome.seconds, 0.0)
        executable = found.executable if found is not None and found.lived_at(began) else None
        return line(outcome, when, self._users.name_of(who.uid), executable)

    def _close(self) -> None:
        for outlet in self._outlets:
            outlet.close()


class _Outlet:
    """One target, and the lines that it has not taken yet."""

    def __init__(self, target: Target, most: int, log: Logger, retry_seconds: float) -> None:
        self.backlog: Backlog[Line] = Backlog(most, lambda count, since: dropped(count, since, time.time()))
        self._target = target
        self._log = log
        self._retry_seconds = retry_seconds
        self._retry_at: float | None = None
        """When one that failed is tried again."""

    def put(self, lines: list[Line]) -> None:
        self.backlog.put(lines, time.time())

    def reopen(self) -> None:
        self._target.reopen()
        self._retry_at = None if self._retry_at is None else 0.0

    def write(self, *, at_once: bool) -> None:
        """Write what waits, unless that has just failed; *at_once*: all the same."""
        if not self.backlog or (self._retry_at is not None and time.monotonic() < self._retry_at and not at_once):
            return
        try:
            while self.backlog:
                self._target.write(self.backlog.items)
                self.backlog.settle()
        except OSError as e:
            if self._retry_at is None:
                self._log.error(
                    "the audit log is not written, and connections go on without it: {reason}",
                    reason=str(e) if isinstance(e, LogError) else f"{self._target.name}: {e.strerror or e}",
                )
            self._retry_at = time.monotonic() + self._retry_seconds
            return
        if self._retry_at is not None:
            self._retry_at = None
            self._log.info(
                "the audit log is written again: {name}; {lines} lines were lost since the start",
                name=self._target.name,
                lines=self.backlog.dropped,
            )

    def close(self) -> None:
        if self.backlog:
            self._log.error("{lines} lines of the audit log are lost", lines=len(self.backlog))
        self._target.close()


def open_audit_log(file: str | None, journal: str | None = None, log: Logger | None = None) -> AuditLog:
    """Open the audit log: to a file, to the journal behind a socket (:data:`JOURNAL_SOCKET`), or to both.

    :raises LogError: naming what can't be written and why; then nothing is open.
    :raises OSError: where this process has no descriptor left.
    """
    targets: list[Target] = []
    try:
        if file is not None:
            targets.append(LogFile(file))
        if journal is not None:
            targets.append(Journal(journal))
    except BaseException:
        for target in targets:
            target.close()
        raise
    return AuditLog(*targets, log=log)


__all__ = ["JOURNAL_SOCKET", "AuditLog", "Target", "open_audit_log"]
