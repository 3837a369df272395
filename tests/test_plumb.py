"""plumberd.plumb: the command itself, as a process of its own, against a broker that does as it is told."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
from typing import Any

from plumberd import plumb
from tests.fake_broker import grant, refuse, send
from tests.plumb_case import PlumbTestCase, answer_with
from tests.support import DEADLINE_SECONDS, in_thread, read_all, until
from tests.tables import each

DATA = random.Random(1).randbytes(5 << 20)
STATUS = {
    "ok": True,
    "version": "1.2",
    "rundir": "/run/ipc",
    "dialects": {"native": "plumberd"},
    "you": {"uid": 1000, "gid": 1000, "pid": 77, "confined": False, "connections": 1},
}


class Connect(PlumbTestCase):
    async def test_standard_input_goes_there_and_the_answer_to_standard_output(self) -> None:
        def serve(sock: socket.socket) -> None:
            sock.sendall(b"answer to " + read_all(sock))

        rundir = self.serving(serve)
        self.assertEqual(
            await self.finished("--rundir", rundir, "connect", "pong", stdin=b"request"), (0, "answer to request", "")
        )
        self.assertEqual(self.requests, [{"op": "lookup", "service": "pong"}])

    async def test_five_megabytes_each_way_at_once_are_byte_exact(self) -> None:
        got: list[bytes] = []

        def serve(sock: socket.socket) -> None:
            def send_all() -> None:
                sock.sendall(DATA)
                sock.shutdown(socket.SHUT_WR)

            sending = threading.Thread(target=send_all)
            sending.start()
            got.append(read_all(sock))
            sending.join()

        child = self.plumb("--rundir", self.serving(serve), "connect", "pong")
        out, err = await in_thread(child.process.communicate, DATA, DEADLINE_SECONDS)
        self.assertTrue(out == DATA)
        await until(lambda: got)
        self.assertTrue(got == [DATA])
        self.assertEqual((child.process.returncode, err), (0, b""))

    async def test_the_far_sides_end_is_the_end_of_standard_output_and_the_rest_still_goes(self) -> None:
        got: list[bytes] = []

        def serve(sock: socket.socket) -> None:
            sock.sendall(b"bye")
            sock.shutdown(socket.SHUT_WR)
            got.append(read_all(sock))

        child = self.plumb("--rundir", self.serving(serve), "connect", "pong")
        assert child.process.stdout is not None
        self.assertEqual(await in_thread(child.process.stdout.read), b"bye")
        self.assertIsNone(child.process.poll())
        status, _, err = await in_thread(child.finish, b"late")
        await until(lambda: got)
        self.assertEqual((status, err, got), (0, "", [b"late"]))

    async def test_a_uri_is_asked_for_as_one(self) -> None:
        rundir = self.serving(lambda sock: None)
        await self.finished("--rundir", rundir, "connect", "tcp://h.example:7/pong")
        self.assertEqual(self.requests, [{"op": "lookup", "uri": "tcp://h.example:7/pong"}])

    async def test_the_documented_line_sends_its_routes(self) -> None:
        rundir = self.serving(lambda sock: None)
        routes = "authd tls://user@passwd:example.com:9000/authd"
        await self.finished("connect", "authd", environ={"IPC_NETWORKD": routes, "IPC_RUNDIR": rundir})
        self.assertEqual(self.requests, [{"op": "lookup", "service": "authd", "routes": routes}])

    @each(
        ("connect", ("connect", "tls://user:hunter2@h.example/authd")),
        ("the_first_documents_form", ("connect", "tls://user@hunter2:h.example:9001/authd")),
        ("exec", ("exec", "tls://user:hunter2@h.example/authd", "--", "true")),
        ("fdpass", ("fdpass", "wss://user:hunter2@h.example/authd")),
        ("explain", ("explain", "out", "authd", "tls://user:hunter2@h.example/authd")),
        ("one_that_is_no_uri", ("connect", "tls://user:hunter2@h.example:99999/authd")),
    )
    def test_a_password_on_the_command_line_is_refused(self, _: str, words: tuple[str, ...]) -> None:
        rundir = self.serving(lambda sock: None)
        status, out, err = self.ran("--rundir", rundir, *words)
        self.assertEqual((status, out, self.requests), (2, "", []))
        self.assertIn("shows in ps: write the URI into $IPC_NETWORKD", err)
        self.assertNotIn("hunter2", err)

    async def test_a_user_alone_is_not(self) -> None:
        rundir = self.serving(lambda sock: None)
        await self.finished("--rundir", rundir, "connect", "tls://build@h.example/authd")
        self.assertEqual(self.requests, [{"op": "lookup", "uri": "tls://build@h.example/authd"}])

    async def test_a_connection_that_breaks_is_status_2(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                given = socket.create_connection(listener.getsockname())
                far, _ = listener.accept()
            grant(sock, given)
            with far:
                far.settimeout(DEADLINE_SECONDS)
                far.recv(4)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        status, out, _ = await self.finished("--rundir", self.broker(answer), "connect", "pong", stdin=b"ping")
        self.assertEqual((status, out), (2, ""))

    async def test_a_line_that_is_longer_than_the_way_takes_is_status_2_and_what_came_before_is_answered(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            grant(sock, given, message_bytes=1472)
            with ours:
                ours.settimeout(DEADLINE_SECONDS)
                while message := ours.recv(65536):
                    ours.send(b"answer to " + message)

        self.assertEqual(
            await self.finished(
                "--rundir", self.broker(answer), "connect", "--messages", "pong", stdin=b"one\r\n" + b"x" * 1473
            ),
            (2, "answer to one\n", "plumb: line 2 has 1473 bytes: a message has at most 1472 here\n"),
        )
        self.assertEqual(self.requests, [{"op": "lookup", "service": "pong", "type": "seqpacket"}])

    async def test_an_interruption_is_status_130_without_a_traceback(self) -> None:
        def serve(sock: socket.socket) -> None:
            sock.sendall(b"here\n")
            read_all(sock)

        child = self.plumb("--rundir", self.serving(serve), "connect", "pong")
        self.assertEqual(await in_thread(child.line), "here")
        os.kill(child.pid, signal.SIGINT)
        await in_thread(child.process.wait, DEADLINE_SECONDS)
        assert child.process.stderr is not None
        self.assertEqual((child.process.returncode, child.process.stderr.read()), (130, b""))


class Statuses(PlumbTestCase):
    async def test_a_refusal_is_status_1_with_its_word_and_reason(self) -> None:
        rundir = self.broker(refuse("denied", "rule 3 denies it"))
        self.assertEqual(
            await self.finished("--rundir", rundir, "connect", "pong"),
            (1, "", "plumb: refused: denied: rule 3 denies it\n"),
        )

    async def test_no_broker_is_status_2_and_says_where_was_looked(self) -> None:
        rundir = self.folder()
        self.assertEqual(
            await self.finished("--rundir", rundir, "connect", "pong"),
            (2, "", f"plumb: no broker answers; looked at {rundir}/plumberd (No such file or directory)\n"),
        )

    async def test_garbage_is_status_2_without_a_traceback(self) -> None:
        rundir = self.broker(lambda sock, _: send(sock, b"\0\0\0\5hello"))
        status, out, err = await self.finished("--rundir", rundir, "status")
        self.assertEqual((status, out, err.count("\n")), (2, "", 1))
        self.assertIn("no JSON object", err)

    async def test_a_command_that_does_not_exist_is_status_2(self) -> None:
        status, _, err = await self.finished("frobnicate")
        self.assertEqual(status, 2)
        self.assertIn("frobnicate", err)

    async def test_no_command_is_status_2(self) -> None:
        status, _, err = await self.finished()
        self.assertEqual(status, 2)
        self.assertIn("COMMAND", err)

    async def test_a_reader_that_has_gone_is_no_traceback(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            child = self.plumb("--rundir", self.broker(answer_with(STATUS)), "status", stdout=writer)
        finally:
            os.close(writer)
        _, err = await in_thread(child.process.communicate, b"", DEADLINE_SECONDS)
        self.assertEqual((child.process.returncode, err), (2, b""))


class Quick(PlumbTestCase):
    async def test_it_imports_nothing_that_is_slow(self) -> None:
        slow = {"twisted", "zope", "asyncio", "threading", "subprocess", "ctypes", "logging"}
        code = f"import sys, plumberd.plumb\nprint([m for m in sys.modules if m.split('.')[0] in {slow}])"
        self.assertEqual(await self.run_child(code), "[]\n")


class Words(PlumbTestCase):
    """What stands behind a lone ``--`` is another program's."""

    def parsed(self, *words: str) -> Any:
        return plumb.parser().parse_args(words)

    def test_the_program_s_words_are_left_as_they_are(self) -> None:
        args = self.parsed("--rundir", "/r", "restrict", "a", "b", "--", "cmd", "--rundir", "x", "--", "-h", "")
        self.assertEqual((args.rundir, args.services), ("/r", ["a", "b"]))
        self.assertEqual(args.command, ["cmd", "--rundir", "x", "--", "-h", ""])

    def test_options_stand_anywhere_in_front(self) -> None:
        for words in (("--max", "3", "pong"), ("pong", "--max", "3"), ("pong", "--max=3")):
            args = self.parsed("serve", *words, "--", "cat")
            self.assertEqual((args.service, args.max, args.command), ("pong", 3, ["cat"]))

    def test_lists_grow(self) -> None:
        args = self.parsed("sandbox", "--read", "/a", "--read", "/b", "--setenv", "A=1", "--", "true")
        self.assertEqual((args.read, args.write, args.setenv, args.services), (["/a", "/b"], [], ["A=1"], []))

    def test_a_command_that_takes_no_program_has_the_dashes_to_itself(self) -> None:
        self.assertEqual(self.parsed("connect", "--", "-pong").target, "-pong")

    async def test_help_says_where_the_program_stands(self) -> None:
        for name in ("exec", "serve", "restrict", "sandbox"):
            status, out, _ = await self.finished(name, "--help")
            self.assertEqual(status, 0)
            self.assertIn("-- CMD [ARG…]", out)
