"""plumberd.client: what a program gets, what it is told, and that nothing leaks whatever a broker does."""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from plumberd import client
from plumberd.effects.actas import ActAs
from plumberd.pure import places
from plumberd.pure.who import LocalWho
from tests.children import SOURCES, needs_root
from tests.fake_broker import Answering, FakeBrokerTestCase, frame, grant, refuse, send
from tests.support import in_thread, read_exactly

GID = 54321


class ClientTestCase(FakeBrokerTestCase):
    def setUp(self) -> None:
        super().setUp()
        clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
        patcher = mock.patch.dict(os.environ, clean, clear=True)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.null = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, self.null)
        self.patch(places, "SYSTEM", os.path.join(self.folder(), "system"))

    async def connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        return self.owned(await in_thread(client.connect, *args, **kwargs))

    async def fails(self, kind: type[Exception], work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the exception that *work* raises."""
        with self.assertRaises(kind) as raised:
            await in_thread(work, *args, **kwargs)
        return raised.exception


VARIABLES = ("IPC_RUNDIR", "RUNDIR", "XDG_RUNTIME_DIR", "IPC_NETWORKD", "IPC_NETWORK")


class Connected(ClientTestCase):
    async def test_the_socket_is_the_connection_itself(self) -> None:
        sock = await self.connect("pong", rundir=self.broker())
        sock.sendall(b"ping")
        self.assertEqual(await in_thread(read_exactly, sock, 4), b"ping")

    async def test_it_blocks_and_has_no_deadline(self) -> None:
        sock = await in_thread(client.connect, "pong", rundir=self.broker())
        self.addCleanup(sock.close)
        self.assertIsNone(sock.gettimeout())
        self.assertTrue(os.get_blocking(sock.fileno()))

    async def test_it_is_closed_on_exec(self) -> None:
        sock = await self.connect("pong", rundir=self.broker())
        self.assertTrue(fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)

    async def test_the_answer_tells_mode_and_rule(self) -> None:
        sock, answer = await in_thread(client.lookup, "pong", rundir=self.broker())
        self.owned(sock)
        self.assertEqual((answer["mode"], answer["rule"]), ("local", "a rule"))

    async def test_an_answer_in_single_bytes(self) -> None:
        def dribble(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            with given, ours:
                data = frame({"ok": True, "fd": True})
                send(sock, data[:1], given.fileno())
                for at in range(1, len(data)):
                    sock.sendall(data[at : at + 1])
                ours.sendall(b"x")

        sock = await self.connect("pong", rundir=self.broker(dribble))
        self.assertEqual(await in_thread(sock.recv, 1), b"x")

    async def test_bytes_behind_the_answer_are_no_part_of_it(self) -> None:
        def more(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            with given, ours:
                send(sock, frame({"ok": True, "fd": True}) + b"more", given.fileno())

        sock, answer = await in_thread(client.lookup, "pong", rundir=self.broker(more))
        self.owned(sock)
        self.assertEqual(answer, {"ok": True, "fd": True})


class Requests(ClientTestCase):
    """What the broker is asked; one method a row."""

    async def asked(self, wanted: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        await self.connect(*args, rundir=self.broker(), **kwargs)
        self.assertEqual(self.requests, [{"op": "lookup", **wanted}])

    async def test_a_service(self) -> None:
        await self.asked({"service": "pong"}, "pong")

    async def test_a_service_with_its_routes(self) -> None:
        await self.asked({"service": "pong", "routes": "pong tcp://h/pong"}, "pong", "pong tcp://h/pong")

    async def test_the_routes_of_the_environment(self) -> None:
        os.environ["IPC_NETWORKD"] = "a tcp://b ;pong tcp://h/pong"
        await self.asked({"service": "pong", "routes": "a tcp://b ;pong tcp://h/pong"}, "pong")

    async def test_the_older_variable(self) -> None:
        os.environ["IPC_NETWORK"] = "pong tcp://h/pong"
        await self.asked({"service": "pong", "routes": "pong tcp://h/pong"}, "pong")

    async def test_of_both_variables_this_projects_own_counts(self) -> None:
        os.environ.update(IPC_NETWORK="pong tcp://old/pong", IPC_NETWORKD="pong tcp://new/pong")
        await self.asked({"service": "pong", "routes": "pong tcp://new/pong"}, "pong")

    async def test_routes_of_the_callers_count_more_than_the_environment(self) -> None:
        os.environ["IPC_NETWORKD"] = "pong tcp://h/pong"
        await self.asked({"service": "pong", "routes": "pong tcp://i/pong"}, "pong", "pong tcp://i/pong")

    async def test_the_caller_may_want_none(self) -> None:
        os.environ["IPC_NETWORKD"] = "pong tcp://h/pong"
        await self.asked({"service": "pong"}, "pong", "")

    async def test_an_address_instead_of_a_service(self) -> None:
        os.environ["IPC_NETWORKD"] = "pong tcp://h/pong"
        await self.asked({"uri": "tcp://h.example:1"}, uri="tcp://h.example:1")

    async def test_any_other_request(self) -> None:
        def status(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": True, "version": "1"}))

        answer, fd = await in_thread(client.ask, {"op": "status", "id": 7}, rundir=self.broker(status))
        self.assertEqual((self.requests, answer, fd), ([{"op": "status", "id": 7}], {"ok": True, "version": "1"}, -1))

    def test_the_type_of_the_socket_goes_along_where_it_is_told(self) -> None:
        self.assertNotIn("type", client.lookup_request("pong", "", None))
        self.assertEqual(client.lookup_request("pong", "", None, "seqpacket")["type"], "seqpacket")

    def test_neither_a_service_nor_an_address_is_a_mistake(self) -> None:
        with self.assertRaises(ValueError):
            client.connect()

    def test_both_are_a_mistake(self) -> None:
        with self.assertRaises(ValueError) as caught:
            client.connect("pong", uri="tcp://h")
        self.assertEqual(str(caught.exception), "wanted a service or a uri, not both")


class NotGranted(ClientTestCase):
    """A table: what the broker does, and what is raised. No descriptor is left, whatever it sends."""

    async def check(self, answer: Answering, number: int, text: str, timeout: float = 10) -> None:
        error = await self.fails(client.Error, client.connect, "pong", rundir=self.broker(answer), timeout=timeout)
        self.assertEqual(error.errno, number)
        self.assertIn(text, error.strerror)
        self.assertNotIsInstance(error, (client.Refused, client.NoBroker))

    async def test_a_refusal_has_its_word_and_reason(self) -> None:
        rundir = self.broker(refuse("denied", "rule 3 denies it"))
        error = await self.fails(client.Refused, client.connect, "pong", rundir=rundir)
        self.assertEqual((error.word, error.reason), ("denied", "rule 3 denies it"))
        self.assertEqual(str(error), "denied: rule 3 denies it")
        self.assertIsInstance(error, OSError)

    async def test_a_descriptor_that_comes_with_a_refusal_is_closed(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": False, "error": "busy", "reason": "r"}), self.null)

        error = await self.fails(client.Refused, client.connect, "pong", rundir=self.broker(answer))
        self.assertEqual(error.word, "busy")

    async def test_a_hang_up_without_an_answer(self) -> None:
        await self.check(lambda *_: None, errno.ECONNRESET, "hung up")

    async def test_a_hang_up_before_the_request_is_read(self) -> None:
        rundir = os.path.join(self.folder(), "r")
        os.mkdir(rundir)
        listener = self.unix_listener(os.path.join(rundir, "plumberd"))

        def reject() -> None:
            listener.accept()[0].close()

        rejecting = in_thread(reject)
        error = await self.fails(client.Error, client.connect, "pong", rundir=rundir)
        await rejecting
        self.assertEqual(error.errno, errno.ECONNRESET)

    async def test_a_hang_up_in_the_middle_after_the_descriptor(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": True})[:-2], self.null)

        await self.check(answer, errno.ECONNRESET, "hung up")

    async def test_a_hang_up_in_the_middle_of_the_length_after_the_descriptor(self) -> None:
        await self.check(lambda sock, _: send(sock, b"\0\0", self.null), errno.ECONNRESET, "hung up")

    async def test_a_grant_without_a_descriptor(self) -> None:
        await self.check(lambda sock, _: send(sock, frame({"ok": True})), errno.EPROTO, "no descriptor")

    async def test_a_grant_with_a_descriptor_that_is_no_socket(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, frame({"ok": True, "fd": True}), self.null)

        await self.check(answer, errno.EPROTO, "no socket")

    async def test_garbage(self) -> None:
        await self.check(lambda sock, _: send(sock, b"\0\0\0\5hello", self.null), errno.EPROTO, "no JSON object")

    async def test_json_that_is_no_object(self) -> None:
        await self.check(lambda sock, _: send(sock, frame([True]), self.null), errno.EPROTO, "no JSON object")

    async def test_json_that_is_nested_beyond_measure(self) -> None:
        deep = b"[" * 60000
        await self.check(lambda sock, _: send(sock, struct.pack(">I", 60000) + deep), errno.EPROTO, "no JSON object")

    async def test_no_payload_at_all(self) -> None:
        await self.check(lambda sock, _: send(sock, bytes(4), self.null), errno.EPROTO, "no JSON object")

    async def test_an_answer_that_is_too_long(self) -> None:
        length = client.ANSWER_BYTES + 1
        await self.check(
            lambda sock, _: send(sock, struct.pack(">I", length), self.null), errno.EPROTO, f"{length} bytes"
        )

    async def test_what_a_refusal_tells_besides_is_kept(self) -> None:
        told = {"ok": False, "error": "bad-request", "reason": "1 mistake", "mistakes": [{"key": "grup"}]}
        error = await self.fails(
            client.Refused, client.connect, "pong", rundir=self.broker(lambda sock, _: send(sock, frame(told)))
        )
        self.assertEqual(error.answer, told)

    async def test_an_answer_at_the_limit_is_read(self) -> None:
        reason = "r" * (client.ANSWER_BYTES - len(frame({"ok": False, "error": "busy", "reason": ""})) + 4)
        error = await self.fails(client.Refused, client.connect, "pong", rundir=self.broker(refuse("busy", reason)))
        self.assertEqual(error.reason, reason)

    async def test_a_web_server(self) -> None:
        await self.check(lambda sock, _: send(sock, b"HTTP/1.1 400 Bad Request\r\n"), errno.EPROTO, "bytes")

    async def test_silence(self) -> None:
        await self.check(lambda sock, _: wait(sock), errno.ETIMEDOUT, "within 0.1 seconds", timeout=0.1)

    async def test_silence_after_the_descriptor(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, b"\0", self.null)
            wait(sock)

        await self.check(answer, errno.ETIMEDOUT, "within 0.1 seconds", timeout=0.1)

    async def test_an_answer_that_never_ends(self) -> None:
        def dribble(sock: socket.socket, request: dict[str, Any]) -> None:
            send(sock, struct.pack(">I", 60000))
            while True:  # until the client has gone
                sock.sendall(b" ")
                time.sleep(0.01)

        begin = time.monotonic()
        await self.check(dribble, errno.ETIMEDOUT, "within 0.3 seconds", timeout=0.3)
        self.assertLess(time.monotonic() - begin, 5)  # the deadline is for the whole lookup

    async def test_several_descriptors_at_once(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            with given, ours:
                send(sock, frame({"ok": True, "fd": True}), given.fileno(), given.fileno(), given.fileno())
                ours.sendall(b"x")

        sock = await self.connect("pong", rundir=self.broker(answer))
        self.assertEqual(await in_thread(sock.recv, 1), b"x")

    async def test_several_descriptors_after_one_another(self) -> None:
        def answer(sock: socket.socket, request: dict[str, Any]) -> None:
            given, ours = socket.socketpair()
            with given, ours:
                data = frame({"ok": True, "fd": True})
                send(sock, data[:1], self.null)
                send(sock, data[1:8], self.null)
                send(sock, data[8:], given.fileno())
                ours.sendall(b"x")

        sock = await self.connect("pong", rundir=self.broker(answer))
        self.assertEqual(await in_thread(sock.recv, 1), b"x")


class Finding(ClientTestCase):
    """The first of the directories that has a live broker counts."""

    def directories(self) -> list[str]:
        """Name four directories in the environment, in their order; none exists."""
        base = self.folder()
        os.environ.update(IPC_RUNDIR=base + "/a", RUNDIR=base + "/b", XDG_RUNTIME_DIR=base + "/c")
        return [base + "/a", base + "/b", base + "/c/ipc", places.SYSTEM]

    async def check(self, number: int) -> None:
        """Let brokers live in the directory of that number and those behind it."""
        directories = self.directories()
        for at, rundir in enumerate(directories[number:], number):
            self.broker(refuse("denied", f"broker {at}"), rundir)
        error = await self.fails(client.Refused, client.connect, "pong")
        self.assertEqual(error.reason, f"broker {number}")

    async def test_ipc_rundir_is_first(self) -> None:
        await self.check(0)

    async def test_rundir_is_second(self) -> None:
        await self.check(1)

    async def test_the_users_runtime_directory_is_third(self) -> None:
        await self.check(2)

    async def test_the_systems_is_last(self) -> None:
        await self.check(3)

    async def test_the_callers_counts_alone(self) -> None:
        self.broker(rundir=self.directories()[0])
        error = await self.fails(client.NoBroker, client.connect, "pong", rundir=self.folder())
        self.assertNotIn(os.environ["IPC_RUNDIR"], error.strerror)

    async def test_a_stale_socket_is_passed_over(self) -> None:
        first, second, *_ = self.directories()
        os.mkdir(first)
        self.unix_listener(os.path.join(first, "plumberd")).close()
        self.broker(refuse("denied", "the second"), second)
        error = await self.fails(client.Refused, client.connect, "pong")
        self.assertEqual(error.reason, "the second")

    async def test_where_there_is_none_all_places_are_told_with_what_was_found(self) -> None:
        first, second, third, last = self.directories()
        os.mkdir(first)
        self.unix_listener(os.path.join(first, "plumberd")).close()
        os.mkdir(second)
        error = await self.fails(client.NoBroker, client.connect, "pong")
        self.assertEqual(
            error.strerror,
            f"no broker answers; looked at {first}/plumberd (Connection refused), "
            f"{second}/plumberd (No such file or directory), {third}/plumberd (No such file or directory), "
            f"{last}/plumberd (No such file or directory)",
        )
        self.assertEqual(error.errno, errno.ENOENT)

    async def test_a_directory_that_others_can_write_is_refused_and_not_passed_over(self) -> None:
        first, second, *_ = self.directories()
        self.broker(rundir=first)
        self.broker(rundir=second)
        os.chmod(first, 0o777)
        error = await self.fails(client.Error, client.connect, "pong")
        self.assertEqual(error.errno, errno.EPERM)
        self.assertIn(f"{first}: others can write it and its sticky bit is not set", error.strerror)
        self.assertEqual(self.requests, [])

    async def test_one_that_a_group_can_write_is_refused_too(self) -> None:
        rundir = self.broker()
        os.chmod(rundir, 0o770)
        await self.fails(client.Error, client.connect, "pong", rundir=rundir)

    async def test_with_the_sticky_bit_it_is_accepted(self) -> None:
        rundir = self.broker()
        os.chmod(rundir, 0o1777)
        await self.connect("pong", rundir=rundir)

    async def test_a_full_backlog_is_waited_for(self) -> None:
        rundir = self.folder()
        listener = self.unix_listener(os.path.join(rundir, "plumberd"), backlog=0)
        filler = self.owned(socket.socket(socket.AF_UNIX))
        filler.connect(os.path.join(rundir, "plumberd"))
        asking = in_thread(client.connect, "pong", rundir=rundir)

        def serve() -> None:
            with listener.accept()[0]:  # the filler, behind which the client waits
                pass
            sock, _ = listener.accept()
            with sock:
                grant(sock, socket.socketpair()[0])

        await in_thread(serve)
        self.owned(await asking)

    async def test_one_that_stays_full_ends_in_time(self) -> None:
        rundir = self.folder()
        self.unix_listener(os.path.join(rundir, "plumberd"), backlog=0)
        filler = self.owned(socket.socket(socket.AF_UNIX))
        filler.connect(os.path.join(rundir, "plumberd"))
        error = await self.fails(client.Error, client.connect, "pong", rundir=rundir, timeout=0.1)
        self.assertEqual(error.errno, errno.ETIMEDOUT)

    async def test_the_connection_alone_can_be_had(self) -> None:
        sock = self.owned(await in_thread(client.find_broker, self.broker(refuse("busy", "r")), 10))
        sock.sendall(frame({"op": "status"}))
        self.assertEqual(json.loads((await in_thread(sock.recv, 1000))[4:])["error"], "busy")


class WhoServes(ClientTestCase):
    """In a sticky directory a neighbour may have put up the socket."""

    def served_by(self, uid: int, owner: int = 0) -> str:
        rundir = self.folder()
        os.chown(rundir, owner, -1)
        os.chmod(rundir, 0o1777)
        sock = self.owned(socket.socket(socket.AF_UNIX))
        sock.bind(os.path.join(rundir, "plumberd"))
        ActAs().call(LocalWho(uid, uid, (), 1), sock.listen)
        return rundir

    @needs_root
    def test_a_stranger_is_not_asked(self) -> None:
        rundir = self.served_by(12345)
        with self.assertRaises(client.Error) as raised:
            client.find_broker(rundir)
        self.assertEqual(raised.exception.errno, errno.EPERM)
        self.assertIn(f"{rundir}/plumberd is served by uid 12345", str(raised.exception.strerror))

    @needs_root
    def test_the_owner_of_the_directory_is(self) -> None:
        self.owned(client.find_broker(self.served_by(12345, owner=12345)))

    @needs_root
    def test_root_is_asked_in_anybodys_directory(self) -> None:
        self.owned(client.find_broker(self.served_by(0, owner=12345)))

    def test_a_directory_that_is_a_symlink_is_refused(self) -> None:
        link = os.path.join(self.folder(), "link")
        os.symlink(self.broker(), link)
        with self.assertRaises(client.Error) as raised:
            client.find_broker(link)
        self.assertIn("is a symbolic link", str(raised.exception.strerror))


class NotAdmitted(ClientTestCase):
    ASK = """
import grp, sys
from plumberd import client
from tests.inside import become
become(12345)
try:
    client.connect("pong", rundir=sys.argv[1])
except client.Error as e:
    print(type(e).__name__, e.errno, e.strerror)
"""

    async def check(self, gid: int, text: str, mode: int = 0o755) -> None:
        rundir = self.broker()
        os.chmod(os.path.dirname(rundir), 0o755)
        path = os.path.join(rundir, "plumberd")
        for place, bits in ((path, 0o660), (rundir, mode)):
            os.chown(place, 0, gid)
            os.chmod(place, bits)
        out = await self.run_child(self.ASK, rundir)
        self.assertEqual(out, f"Error {errno.EACCES} {path}: you may not ask this broker; {text}\n")
        self.assertEqual(self.requests, [])

    @needs_root
    async def test_the_group_to_join_is_named(self) -> None:
        known = grp.getgrall()[-1]
        await self.check(known.gr_gid, f"join the group {known.gr_name}")

    @needs_root
    async def test_a_group_without_a_name_is_told_by_its_number(self) -> None:
        await self.check(GID, f"join the group with gid {GID}")

    @needs_root
    async def test_where_the_directory_is_closed_its_group_counts(self) -> None:
        await self.check(GID, f"join the group with gid {GID}", mode=0o1770)

    @needs_root
    async def test_where_even_that_cannot_be_seen_it_says_so(self) -> None:
        rundir = self.broker()
        out = await self.run_child(self.ASK, rundir)
        self.assertTrue(out.endswith("; its directory is closed to you\n"), out)


class Quick(ClientTestCase):
    """A client starts quickly: measured, best of five; on a busy machine best of twenty.

    What counts is what it computes by itself, behind the standard library: a busy machine lets it wait besides.
    """

    IMPORT = """
import re, sys, time
import plumberd.client
for name in [name for name in sys.modules if name.split(".")[0] == "plumberd"]:
    del sys.modules[name]
re.purge()
began = time.process_time()
import plumberd.client
print(time.process_time() - began)
"""

    def own_milliseconds(self, cache: str) -> float:
        environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run(
            [sys.executable, "-c", self.IMPORT],
            cwd=SOURCES,
            env={**environ, "PYTHONPYCACHEPREFIX": cache},  # installed, it is compiled once
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        seconds = float(done.stdout)
        assert seconds > 0
        return seconds * 1000

    async def test_importing_it_costs_less_than_ten_milliseconds(self) -> None:
        cache = self.folder()
        taken: list[float] = []
        while len(taken) < 5 or (len(taken) < 20 and min(taken) >= 10):
            taken.append(await in_thread(self.own_milliseconds, cache))
        self.assertLess(min(taken), 10)

    async def test_it_needs_the_standard_library_alone(self) -> None:
        out = await self.run_child(
            "import sys; before = set(sys.modules); import plumberd.client\n"
            "names = {name.split('.')[0] for name in set(sys.modules) - before}\n"
            "print(sorted(n for n in names if n not in sys.stdlib_module_names and n != 'plumberd'))"
        )
        self.assertEqual(out, "[]\n")


def wait(sock: socket.socket) -> None:
    """Wait until the client has gone."""
    sock.recv(1)
