"""plumberd.wiring.traffic: what became of datagrams, each counted once."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.pure.datagrams import Counts
from plumberd.wiring.traffic import Traffic


def relay(limit: int, **counts: int) -> Any:
    """Return one with these counts."""
    made = mock.Mock(spec=DatagramRelay, counts=Counts(**counts), far=mock.Mock(limit_bytes=limit))
    return made


class Told(SynchronousTestCase):
    def test_without_any_all_is_nothing(self) -> None:
        nothing = dict.fromkeys(vars(Counts()), 0)
        self.assertEqual(Traffic().told([object()]), {"sessions": 0, "message_bytes": None, **nothing})

    def test_those_that_live_and_those_that_are_over_are_added(self) -> None:
        traffic, live, over = Traffic(), relay(1400, sent=1, lost=2), relay(500, sent=10, too_large=1)
        traffic.ended(over)
        told = traffic.told([live, relay(65000), object()])
        self.assertEqual((told["sessions"], told["message_bytes"]), (2, 1400))
        self.assertEqual((told["sent"], told["lost"], told["too_large"]), (11, 2, 1))
        traffic.ended(live)
        self.assertEqual((traffic.told([])["sent"], traffic.told([])["sent"]), (11, 11))
