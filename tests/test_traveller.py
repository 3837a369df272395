"""plumberd.wiring.dialing.traveller: who says nothing gets a stream, as the broker itself, and nothing is told."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.shape import STREAM
from plumberd.wiring.dialing import reach
from plumberd.wiring.dialing.traveller import Reached, Traveller


class Defaults(SynchronousTestCase):
    def test_who_says_nothing(self) -> None:
        made = Traveller("uid 0")
        self.assertEqual(
            (made.shape, made.who, made.caller, made.framed, made.carries), (STREAM, None, None, False, False)
        )

    def test_what_is_reached_does_not_fit_unless_it_says_so(self) -> None:
        with socket.socket() as sock:
            made = Reached(sock)
        self.assertEqual((made.fits, made.told, made.address), (False, False, None))

    def test_it_is_found_where_connections_are_made(self) -> None:
        self.assertIs(reach.Traveller, Traveller)
        self.assertIs(reach.Reached, Reached)
