"""plumberd.wiring.service: everything starts or nothing, and everything is taken back."""

from __future__ import annotations

import os
from typing import Any

from plumberd.wiring.config.options import Options
from plumberd.wiring.config.settings import Settings
from plumberd.wiring.plugin import makeService
from plumberd.wiring.service import PlumberdService
from tests.running import RunningTestCase
from tests.support import in_thread, native_ask, real_reactor


class Service(RunningTestCase):
    def options(self, *words: str) -> Options:
        options = Options()
        options.parseOptions(list(words))
        return options

    async def test_it_serves_and_stops_and_leaves_an_empty_directory(self) -> None:
        service = self.run_broker(tcpd=("tcp:0:interface=127.0.0.1",))
        answer, _ = await in_thread(native_ask, service.settings.rundir, op="status")
        self.assertTrue(answer["ok"])
        await service.stopService()
        self.assertEqual(os.listdir(service.settings.rundir), [])
        await service.stopService()  # once more does nothing

    async def test_relays_end_with_it(self) -> None:
        far = self.run_broker("allow in pong any", tcpd=("tcp:0:interface=127.0.0.1",))
        self.serve(far.settings.rundir, "pong")
        import socket

        sock = self.owned(socket.create_connection(("127.0.0.1", self.tcpd_port(far)), 10))
        sock.sendall(b"pong")
        self.assertEqual(await in_thread(sock.recv, 2), b"ok")
        await far.stopService()
        with self.assertRaises(ConnectionResetError):
            await in_thread(sock.recv, 1)

    def check_nothing_left(self, settings: Settings, said: str) -> None:
        service = PlumberdService(settings, real_reactor)
        with self.assertRaises(SystemExit) as caught:
            service.startService()
        self.assertIn(said, str(caught.exception))
        if os.path.isdir(settings.rundir):
            self.assertEqual(os.listdir(settings.rundir), [])

    def test_a_port_that_is_taken_leaves_nothing(self) -> None:
        _, port = self.listener()
        folder = os.path.join(self.folder(), "r")
        self.check_nothing_left(Settings(folder, tcpd=(f"tcp:{port}:interface=127.0.0.1",)), "--tcpd")
        self.check_nothing_left(
            Settings(folder, publish=(("pong", f"tcp:{port}:interface=127.0.0.1"),)), "--publish pong"
        )

    def test_a_directory_that_cannot_be_trusted_is_told(self) -> None:
        folder = self.folder()
        os.chmod(folder, 0o777)
        self.check_nothing_left(Settings(folder), "sticky bit")

    def test_the_plugin_s_two_names_fit_together(self) -> None:
        folder = self.folder()
        service: Any = makeService(self.options("--rundir", folder, "--rule", "deny in any any"))
        self.assertEqual(service.settings.rundir, folder)
        self.assertEqual([str(rule) for rule in service.settings.policy.rules], ["deny in any any"])
