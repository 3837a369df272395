"""plumberd.wiring.expiry: told at the start and every day, of what is in force by then."""

from __future__ import annotations

import dataclasses
from unittest import mock

from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.tls import EXPIRY_NOTICE_SECONDS, TlsSettings
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.expiry import DAY_SECONDS, ExpiryNotice
from tests.issued import root


class Notice(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        issued = dataclasses.replace(root().issue("a.example").value, name="a.example")
        self.core = mock.Mock(reactor=self.clock, settings=Settings("/run/ipc", tls=TlsSettings((issued,))))
        self.notice = ExpiryNotice(self.core, lambda: issued.ends - EXPIRY_NOTICE_SECONDS - 1 + self.clock.seconds())
        self.told: list[str] = []
        log = mock.Mock(spec=Logger)
        log.warn.side_effect = lambda _format, what: self.told.append(what)
        self.patch(ExpiryNotice, "_log", log)

    def test_it_is_told_from_the_day_on_that_the_notice_begins_and_every_day(self) -> None:
        self.notice.tell()
        self.assertEqual(self.told, [])
        for day in (1, 2, 3):
            self.clock.advance(DAY_SECONDS)
            self.assertEqual(len(self.told), day)
        self.assertIn("a.example", self.told[0])
        self.assertIn("expires on", self.told[0])
        self.notice.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_in_force_counts(self) -> None:
        self.notice.tell()
        self.core.settings = Settings("/run/ipc")
        self.clock.advance(DAY_SECONDS)
        self.assertEqual(self.told, [])
        self.notice.stop()
        self.notice.stop()
