"""A running plumberd takes another configuration: by SIGHUP, and by the op."""

from __future__ import annotations

import os
import signal
import socket

from plumberd import client
from tests.process.running import ProcessTestCase, Program, frame


class Reloading(ProcessTestCase):
    def setUp(self) -> None:
        self.rundir = os.path.join(self.folder(), "r")
        self.config = os.path.join(self.folder(), "plumberd.toml")
        self.audit = os.path.join(self.folder(), "audit.jsonl")

    def write(self, text: str) -> None:
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    def start(self, text: str) -> Program:
        self.write(text)
        return self.broker(self.rundir, "--config", self.config)

    def hang_up(self, broker: Program, said: str) -> None:
        """Send SIGHUP, and wait until the log says what came of it."""
        broker.process.send_signal(signal.SIGHUP)
        broker.wait_for(said)

    def test_sighup_puts_the_new_file_in_force_and_nobody_is_cut_off(self) -> None:
        listener, port = self.listener()
        broker = self.start(f'rules = ["allow out web tcp:127.0.0.1:{port}"]\n[default]\nout = "deny"\n')
        routes = f"web tcp://127.0.0.1:{port}"
        with client.connect("web", routes, rundir=self.rundir) as before, listener.accept()[0] as far:
            self.write('[default]\nout = "deny"\n[listen]\ntcpd = ["tcp:0:interface=127.0.0.1"]\n')
            self.hang_up(broker, r"reloaded: rules: - allow out web")
            broker.wait_for(r"warning: tcpd listens.*no rule lets anyone in")
            with self.assertRaises(client.Refused) as refused:
                client.connect("web", routes, rundir=self.rundir)
            self.assertEqual(refused.exception.word, "denied")
            before.sendall(b"still")
            self.assertEqual(far.recv(5), b"still")
        self.assertEqual(broker.stop(), 0)
        self.assertEqual(os.listdir(self.rundir), [])

    def test_sighup_with_a_mistake_changes_nothing_and_the_log_has_all_of_them(self) -> None:
        broker = self.start('rules = ["deny out web any"]')
        self.pongd(self.rundir)
        self.write('rules = ["deny out web"]\nhandover = "never"\n')
        self.hang_up(broker, r"not reloaded: .*plumberd\.toml.*rules\[0\]")
        broker.wait_for(r"not reloaded: .*handover")
        with self.assertRaises(client.Refused):
            client.connect("web", "web tcp://127.0.0.1:1", rundir=self.rundir)
        with client.connect("pong", rundir=self.rundir) as sock:
            sock.sendall(frame(b"hello"))
            self.assertTrue(sock.recv(100))
        self.assertEqual(broker.stop(), 0)

    def test_many_at_once_end_with_what_was_written_last(self) -> None:
        broker = self.start("")
        for number in range(30):
            self.write(f'rules = ["deny out service{number} any"]')
            broker.process.send_signal(signal.SIGHUP)
        broker.wait_for(r"reloaded: rules: \+ deny out service29 any")
        answer, _ = client.ask({"op": "status"}, rundir=self.rundir)
        self.assertEqual(answer["rules"], ["deny out service29 any"])
        self.assertEqual(broker.stop(), 0)

    def test_the_op_says_what_changed_and_only_administrators_may_ask(self) -> None:
        broker = self.start("")
        self.write('rules = ["deny out x any"]')
        answer, _ = client.ask({"op": "reload"}, rundir=self.rundir)
        self.assertEqual((answer["ok"], answer["changes"]), (True, ["rules: + deny out x any"]))
        broker.wait_for(r"uid=\d+ gid=\d+ pid=\d+ asks for a reload")
        self.assertEqual(broker.stop(), 0)

    def test_the_audit_file_is_another_from_then_on(self) -> None:
        broker = self.start("")
        self.write(f'[audit]\nfile = "{self.audit}"\n')
        self.hang_up(broker, r"reloaded: audit\.file: none")
        with self.assertRaises(client.Refused):
            client.connect("nope", rundir=self.rundir)
        self.until(lambda: os.path.getsize(self.audit), "an outcome in the new file")
        self.assertEqual(broker.stop(), 0)

    def test_descriptors_are_as_many_after_hundreds_of_reloads(self) -> None:
        broker = self.start("")
        texts = [
            f'[audit]\nfile = "{self.audit}"\n[listen]\ntcpd = ["unix:{self.rundir}/callers"]\n',
            "[limits]\nconnect_seconds = 5\n",
        ]
        counts = []
        for number in range(40):
            self.write(texts[number % 2])
            answer, _ = client.ask({"op": "reload"}, rundir=self.rundir)
            self.assertTrue(answer["ok"], answer)
            if number % 2:
                counts.append(broker.descriptors())
        self.until(lambda: broker.descriptors() <= counts[0], "no descriptor more than after the first ones")
        self.assertEqual(broker.stop(), 0)

    def test_one_that_comes_while_it_stops_does_not_keep_it(self) -> None:
        broker = self.start('[listen]\ntcpd = ["tcp:0:interface=127.0.0.1"]\n')
        port = int(broker.wait_for(r"tcpd on 127\.0\.0\.1:(\d+)").group(1))
        with socket.create_connection(("127.0.0.1", port), 10):
            broker.process.send_signal(signal.SIGTERM)
            broker.process.send_signal(signal.SIGHUP)
            self.assertEqual(broker.wait(), 0)
        self.assertEqual(os.listdir(self.rundir), [])
