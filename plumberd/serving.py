"""Be a service that listens on nothing: an iterator of accepted connections, for :func:`plumberd.client.serve`.

A thread takes each connection as the broker hands it over, for the broker waits
for no claimant, and holds it until somebody has time for it. Where the broker
goes away, it makes the claim again.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from plumberd.answer import Error, encode_request, timed_out
from plumberd.claim import Claim, claim_request, pauses, why_lost
from plumberd.search import Search

Accepted = tuple[socket.socket, dict[str, Any]]
"""A blocking socket, and what the broker tells of it: ``service``, ``mode``, ``peer``, ``identities``, ``rule``."""

REQUEST_SECONDS = 30.0
"""How long the thread waits for an answer before it tries again."""

END_SECONDS = 1.0
"""How long :meth:`Serving.close` waits for the thread, which needs a moment."""


class Serving:
    """The accepted connections of one service. It owns those that it holds; one that was taken is the taker's.

    Iterating waits for the next one, and ends after :meth:`close`. :meth:`fileno` is for select and
    poll: readable while a connection is held, which :meth:`take` then returns. Any thread may do
    all of it, and so may the handler of a signal. A child that is forked has a copy of all descriptors,
    and no thread: it calls :meth:`close`, which ends nothing for its parent.
    """

    def __init__(
        self,
        service: str,
        *,
        rundir: str | None = None,
        timeout: float = REQUEST_SECONDS,
        waiting: int = 128,
        log: Callable[[str], object] | None = None,
    ) -> None:
        """Claim *service*; the arguments and errors are those of :func:`plumberd.client.serve`."""
        self.service = service
        self._rundir = rundir
        self._most = waiting
        self._log = log
        self._held: deque[Accepted] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        with contextlib.ExitStack() as undo:
            # One counts what is held, the other tells the thread of the end.
            self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
            undo.callback(os.close, self._ready)
            self._ending = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self._ending)
            claim = self._make_claim(timeout)
            assert claim is not None  # there is no end yet
            undo.callback(claim.close)
            self._claim = claim
            self.rule = claim.rule or ""
            self._thread = threading.Thread(target=self._keep, name=f"serves {service}", daemon=True)
            self._thread.start()
            undo.pop_all()

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Serving:
        return self

    def __next__(self) -> Accepted:
        """Wait for the next connection; the end comes with :meth:`close`."""
        accepted = self.take()
        if accepted is None:
            raise StopIteration
        return accepted

    def fileno(self) -> int:
        """Return a descriptor that is readable while a connection is held; -1 after :meth:`close`."""
        return self._ready

    def take(self, timeout: float | None = None) -> Accepted | None:
        """Return the next connection, or ``None`` when there was none in *timeout* seconds, or there is an end."""
        with self._change:
            if not self._change.wait_for(lambda: self._held or self._closed, timeout) or self._closed:
                return None
            os.eventfd_read(self._ready)
            return self._held.popleft()

    def close(self) -> None:
        """Give the claim back, and close what is held. Idempotent."""
        if os.getpid() != self._process:  # the lock may be held there, and the thread's wake-up is shared
            self._finish()
            return
        with self._change:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._ending, 1)
            self._change.notify_all()
        if self._thread is not threading.current_thread():
            # Not for ever: a signal's handler may have interrupted who holds the lock.
            self._thread.join(END_SECONDS)

    def _finish(self) -> None:
        """Close everything."""
        self._closed = True
        self._claim.close()
        while self._held:
            self._held.pop()[0].close()
        fds, self._ready, self._ending = (self._ready, self._ending), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    # -- the thread's

    def _keep(self) -> None:
        """Take what comes, and make the claim again whenever it is lost, until the end."""
        try:
            while not self._closed:
                try:
                    self._take_all(self._claim)
                except Error as e:
                    self._say(f"the claim to {self.service} is lost, and will be made again: {why_lost(e)}")
                self._claim.close()
                self._claim_again()
        finally:
            with self._change:
                self._finish()
                self._change.notify_all()

    def _take_all(self, claim: Claim) -> None:
        """Hold what comes, until the end.

        :raises Error: the claim is lost.
        """
        while not self._is_over(claim.fileno()):
            with contextlib.suppress(BlockingIOError):
                accepted = claim.receive()
                if accepted is not None:
                    self._hold(accepted)

    def _hold(self, accepted: Accepted) -> None:
        with self._change:
            if len(self._held) < self._most:
                self._held.append(accepted)
                os.eventfd_write(self._ready, 1)
                self._change.notify()
                return
        accepted[0].close()
        self._say(f"a connection to {self.service} is closed: {self._most} wait already")

    def _say(self, line: str) -> None:
        if self._log is not None:
            with contextlib.suppress(Exception):  # it must not end the service
                self._log(line)

    def _claim_again(self) -> None:
        """Try until the claim is had, however long it takes, or there is an end."""
        told = ""
        for seconds in pauses():
            if self._is_over(None, seconds):
                return
            try:
                claim = self._make_claim(REQUEST_SECONDS)
            except Error as e:
                if (why := why_lost(e)) != told:
                    told = why
                    self._say(f"{self.service} cannot be claimed for now: {why}")
                continue
            if claim is not None:
                self._claim = claim
                self.rule = claim.rule or ""
                self._say(f"{self.service} is claimed again: {self.rule}")
            return

    def _make_claim(self, timeout: float) -> Claim | None:
        """Return a claim that is granted, the caller's; ``None`` at the end.

        :raises Error: it is not granted, or not in time.
        """
        ends = time.monotonic() + timeout
        search = Search(self._rundir)
        while (sock := search.attempt()) is None:
            if time.monotonic() > ends:
                raise timed_out(timeout)
            if self._is_over(None, search.pause_seconds):
                return None
        claim = Claim(sock)
        try:
            # A fresh connection's queue has room for it; a broker that has hung up may have said why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.send(encode_request(claim_request(self.service)))
            while claim.rule is None:
                if time.monotonic() > ends:
                    raise timed_out(timeout)
                if self._is_over(claim.fileno(), ends - time.monotonic()):
                    claim.close()
                    return None
                with contextlib.suppress(BlockingIOError):
                    claim.receive()
        except BaseException:
            claim.close()
            raise
        return claim

    def _is_over(self, fd: int | None, seconds: float | None = None) -> bool:
        """Wait until *fd* is readable, or for so long; tell whether the end has come."""
        poll = select.poll()
        poll.register(self._ending, select.POLLIN)
        if fd is not None:
            poll.register(fd, select.POLLIN)
        poll.poll(None if seconds is None else max(seconds, 0) * 1000)
        return self._closed
