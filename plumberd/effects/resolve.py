"""Names to addresses, without blocking the reactor.

A name is resolved absolutely, once: the hosts file, then DNS with a trailing
dot, so that no search domain turns ``db.example`` into ``db.example.corp``.
getaddrinfo blocks and cannot be cancelled, so it runs in threads of its own,
few for each user and in all: a hanging name server delays the one who asked for it.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.names import hosts as hosts_file
from twisted.python.filepath import FilePath

from plumberd.pure.address import unmapped
from plumberd.pure.admission import Admission, FairQueue
from plumberd.pure.limits import Limits
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.uri import IPAddress

Answer = tuple[IPAddress, ...]
Resolved = Callable[[Answer | Refused], None]

MOST_ADDRESSES = 64
"""Of a name that has more, the first count: the rules judge each, and each may have to be tried."""

_search_hosts: Callable[[FilePath[str], bytes], list[str]] = hosts_file.searchFileForAll


@dataclass(eq=False)
class Resolution:
    """One question under way.

    :ivar begun: whether it has a thread; until then it waits for its turn.
    """

    name: str
    key: Hashable
    done: Resolved | None
    begun: bool = False

    def cancel(self) -> None:
        """Forget it; *done* will not be called. The thread goes on until the name server answers."""
        self.done = None


class Resolver:
    """Resolves names in daemon threads, ``resolving`` at most, started when they are needed.

    :ivar places: who is being served; its keys are those of :meth:`resolve`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorFromThreads,
        lookup: Callable[[str], Answer | Refused] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """*lookup* is the blocking function; of *limits* those of resolving and of waiting count."""
        self._reactor = reactor
        self._lookup = lookup or look_up
        self.places: FairQueue[Hashable, Resolution] = FairQueue(*_places(limits or Limits()))
        self._work: queue.SimpleQueue[Resolution | None] = queue.SimpleQueue()
        self._threads = 0
        self._closed = False

    def resolve(self, name: str, key: Hashable, done: Resolved) -> Resolution:
        """Resolve *name* on behalf of *key*; *done* is called later, unless cancelled."""
        one = Resolution(name, key, done)
        admission = self.places.enter(key, one)
        if admission is Admission.NOW:
            self._begin(one)
        elif admission is Admission.FULL:
            reason = f"waiting_per_uid={self.places.waiting_per_key}: so many names wait to be resolved already"
            self._reactor.callFromThread(self._tell, one, Refused(Refusal.BUSY, reason))
        return one

    def change(self, limits: Limits) -> None:
        """Take other limits: what fits now begins, what is under way goes on; threads stay for later names."""
        for following in self.places.change(*_places(limits)):
            self._begin_if_wanted(following)

    def close(self) -> None:
        """End the threads; nothing is called any more."""
        self._closed = True
        for _ in range(self._threads):
            self._work.put(None)

    def _begin_if_wanted(self, one: Resolution | None) -> None:
        """Begin what has a place; what was cancelled in the meantime gives it to the next."""
        while one is not None and one.done is None:
            one = self.places.leave(one.key)
        if one is not None:
            self._begin(one)

    def _begin(self, one: Resolution) -> None:
        one.begun = True
        if self._threads < self.places.active:
            self._threads += 1
            threading.Thread(target=self._run, name="resolver", daemon=True).start()
        self._work.put(one)

    def _run(self) -> None:
        while (one := self._work.get()) is not None:
            try:
                answer = self._lookup(one.name)
            except Exception:  # else its user's place would be lost, and with four of them all names
                self._log.failure("resolving {name} failed", name=one.name)
                answer = Refused(Refusal.UNREACHABLE, f"{one.name} cannot be resolved here")
            if self._closed:
                return
            if not isinstance(answer, Refused):
                answer = answer[:MOST_ADDRESSES]
            self._reactor.callFromThread(self._finish, one, answer)

    def _finish(self, one: Resolution, answer: Answer | Refused) -> None:
        self._begin_if_wanted(self.places.leave(one.key))
        self._tell(one, answer)

    def _tell(self, one: Resolution, answer: Answer | Refused) -> None:
        if one.done is not None and not self._closed:
            one.done(answer)


def _places(limits: Limits) -> tuple[int, int, int]:
    return limits.resolving_per_uid, limits.resolving, limits.waiting_per_uid


def look_up(name: str, hosts: str = "/etc/hosts") -> Answer | Refused:
    """Return the addresses of *name*, in the order of preference (RFC 6724). Blocks."""
    texts: list[str] = []
    texts += _search_hosts(FilePath(hosts), name.encode("ascii"))
    if not texts:
        try:
            found = socket.getaddrinfo(name + ".", None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            return Refused(Refusal.UNREACHABLE, f"{name} has no address: {getattr(e, 'strerror', None) or e}")
        texts = [str(info[4][0]) for info in found]
    addresses: dict[IPAddress, None] = {}
    for text in texts:
        try:
            address = unmapped(ipaddress.ip_address(text))
        except ValueError:
            continue
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
            continue  # a zone id, which no rule could name
        addresses[address] = None
    if not addresses:
        return Refused(Refusal.UNREACHABLE, f"{name} has no usable address")
    return tuple(addresses)
