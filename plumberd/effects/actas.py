"""Do one system call with a client's effective uid, gid and groups.

A broker that runs as root would open a service's 0600 socket for anybody, and
the service would see root. So it connects as the client. For this thread alone,
set back at once, or the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from plumberd.effects import kernel
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.who import LocalWho

T = TypeVar("T")


class ActAs:
    """Knows the broker's own ids and whether it may take on others."""

    def __init__(self) -> None:
        self._uid, self._gid, self._groups = os.geteuid(), os.getegid(), tuple(sorted(os.getgroups()))
        needed = 1 << kernel.CAP_SETUID | 1 << kernel.CAP_SETGID
        capable = kernel.effective_capabilities() & needed == needed
        self.can_switch = capable and kernel.can_switch_ids()
        self._ids = kernel.ThreadIds()

    def is_self(self, who: LocalWho) -> bool:
        """Tell whether *who* has exactly the broker's own ids; equal uids are not enough."""
        return (who.uid, who.gid) == (self._uid, self._gid) and tuple(sorted(who.groups)) == self._groups

    def call(self, who: LocalWho, work: Callable[[], T]) -> T:
        """Return what *work* returns, done as *who*. *work* must be one quick system call.

        :raises Refused: ``not-possible`` where the broker may not take on other ids.
        """
        if self.is_self(who):
            return work()
        if not self.can_switch:
            raise Refused(
                Refusal.NOT_POSSIBLE,
                f"a local service is connected to as the client, and this broker (uid {self._uid}) "
                f"cannot act as uid {who.uid}, gid {who.gid} with {len(who.groups)} groups: "
                "it wants root or CAP_SETUID and CAP_SETGID",
            )
        try:
            self._ids.set(who.uid, who.gid, who.groups, uid_first=False)
            return work()
        finally:
            self._back()

    def _back(self) -> None:
        try:
            self._ids.set(self._uid, self._gid, self._groups, uid_first=True)
        except OSError:
            os.write(2, b"plumberd: could not take back its own ids; ending\n")
            os._exit(70)
