"""What became of datagrams: of the connections that are over, and of those that live."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.pure.datagrams import Counts


class Traffic:
    """Counts what the relays of datagrams have counted, each once."""

    def __init__(self) -> None:
        self._over = Counts()

    def ended(self, relay: DatagramRelay) -> None:
        """Keep the counts of a relay that is over."""
        self._over.add(relay.counts)

    def told(self, relays: Iterable[object]) -> dict[str, Any]:
        """Return what ``status`` tells, with those of *relays* that live.

        ``message_bytes`` is the longest message that the narrowest of their paths takes.
        """
        total = Counts()
        total.add(self._over)
        live = [relay for relay in relays if isinstance(relay, DatagramRelay)]
        for relay in live:
            total.add(relay.counts)
        limits = [relay.far.limit_bytes for relay in live]
        return {"sessions": len(live), "message_bytes": min(limits, default=None), **vars(total)}
