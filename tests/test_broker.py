"""plumberd.wiring.clients.broker: lookups in every dialect, over real sockets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from typing import Any

from plumberd.pure.limits import Limits
from plumberd.pure.modes import Mode
from plumberd.wiring.clients.broker import Broker
from plumberd.wiring.dialing import served
from plumberd.wiring.service import PlumberdService
from tests.ports import free_port
from tests.running import RunningTestCase, leading
from tests.support import (
    DEADLINE_SECONDS,
    dial,
    dialled,
    in_thread,
    libipc_2023_lookup,
    native_ask,
    native_frame,
    native_lookup,
    native_read,
    open_descriptors,
    read_all,
    read_exactly,
    take_socket,
    until,
    zig_lookup,
)


def zig_ok(rundir: str, text: bytes) -> socket.socket:
    data, sock = zig_lookup(rundir, text)
    assert data == b"ok"
    assert sock is not None
    return sock


def c_ok(rundir: str, text: bytes) -> socket.socket:
    data, sock = libipc_2023_lookup(rundir, text)
    assert data == bytes.fromhex("0200000002006f6b")
    assert sock is not None
    return sock


def native_ok(rundir: str, text: bytes) -> socket.socket:
    service, _, routes = text.decode().partition(";")
    answer, sock = native_lookup(rundir, service, routes or None)
    assert answer["ok"] is True
    assert sock is not None
    return sock


DIALECTS = {"native": native_ok, "libipc-2023": c_ok, "libipc-zig": zig_ok}


class Granted(RunningTestCase):
    """The same lookups through every dialect; methods are made below, one a dialect."""

    async def check_local(self, look_up: Any) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        sock = self.owned(await in_thread(look_up, service.settings.rundir, b"pong"))
        self.assertEqual(await in_thread(_bounce, sock), b"hello")
        self.assertEqual(sock.family, socket.AF_UNIX)
        self.assertEqual(self.outcomes[-1].mode, "local")
        await self.wait_until_idle(service)

    async def check_tcp_server(self, look_up: Any) -> None:
        service = self.run_broker()
        port = self.serve_tcp()
        text = f"web; other tls://x.example/y ;web tcp://127.0.0.1:{port} ".encode()
        sock = self.owned(await in_thread(look_up, service.settings.rundir, text))
        self.assertEqual(await in_thread(_bounce, sock), b"hello")
        self.assertEqual(sock.getpeername(), ("127.0.0.1", port))
        await self.wait_until_idle(service)

    async def check_handed_over_socket(self, look_up: Any) -> None:
        service = self.run_broker()
        port = self.serve_tcp()
        sock = await in_thread(look_up, service.settings.rundir, f"web;web tcp://127.0.0.1:{port}".encode())
        self.addCleanup(sock.close)
        self.assertFalse(fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK)
        self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
        self.assertEqual(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
        self.assertEqual(sock.type, socket.SOCK_STREAM)

    async def check_relayed(self, look_up: Any) -> None:
        service = self.run_broker(handover=Mode.RELAYED)
        port = self.serve_tcp()
        sock = await in_thread(look_up, service.settings.rundir, f"web;web tcp://127.0.0.1:{port}".encode())
        self.addCleanup(sock.close)
        self.assertEqual(sock.family, socket.AF_UNIX)
        self.assertFalse(fcntl.fcntl(sock.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK)
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"hello")
        await until(lambda: self.outcomes[-1].verdict == "ended")
        self.assertEqual((self.outcomes[-1].up, self.outcomes[-1].down), (5, 5))

    async def check_lookup_in_dribbles(self, look_up: Any) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")
        name, bytes_ = {
            native_ok: ("plumberd", native_frame({"op": "lookup", "service": "pong"})),
            c_ok: ("network", struct.pack(">BIB", 3, 4, 3) + b"pong"),
            zig_ok: ("ipc", struct.pack(">I", 4) + b"pong"),
        }[look_up]

        def dribble() -> list[int]:
            with dialled(service.settings.rundir, name) as sock:
                for at in range(len(bytes_)):
                    sock.sendall(bytes_[at : at + 1])
                if name == "network":
                    sock.recv(2_000_000)
                return socket.recv_fds(sock, 1400, 1)[1]

        fds = await in_thread(dribble)
        sock = take_socket(fds)
        assert sock is not None
        self.assertEqual(await in_thread(_bounce, self.owned(sock)), b"hello")


for _name, _look_up in DIALECTS.items():
    for _check in [m for m in dir(Granted) if m.startswith("check_")]:

        async def _test(self: Granted, check: str = _check, look_up: Any = _look_up) -> None:
            await getattr(self, check)(look_up)

        setattr(Granted, f"test_{_check.removeprefix('check_')}_in_{_name.replace('-', '_')}", _test)


class TwoBrokers(RunningTestCase):
    """The main job: near broker, tcpd, far service."""

    def start(self) -> tuple[PlumberdService, PlumberdService, str]:
        far = self.run_broker("allow in pong tcp:127.0.0.1", tcpd=("tcp:0:interface=127.0.0.1",))
        near = self.run_broker()
        return near, far, f"pong;pong tcp://127.0.0.1:{self.tcpd_port(far)}/pong"

    async def test_every_dialect_reaches_a_far_service(self) -> None:
        near, far, text = self.start()
        self.serve(far.settings.rundir, "pong")
        for look_up in DIALECTS.values():
            sock = self.owned(await in_thread(look_up, near.settings.rundir, text.encode()))
            self.assertEqual(await in_thread(_bounce, sock), b"hello")
            sock.close()
        await self.wait_until_idle(near)
        await self.wait_until_idle(far)

    async def test_a_services_own_first_bytes_are_the_clients(self) -> None:
        near, far, text = self.start()
        self.serve(far.settings.rundir, "pong", lambda sock: sock.sendall(b"welcome"))
        sock = self.owned(await in_thread(zig_ok, near.settings.rundir, text.encode()))
        self.assertEqual(await in_thread(read_all, sock), b"welcome")

    async def test_bytes_behind_the_far_sides_ok_are_the_clients(self) -> None:
        near = self.run_broker()
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"okearly"), sock.recv(1)))
        answer, sock = await in_thread(native_lookup, near.settings.rundir, "pong", f"pong tcp://127.0.0.1:{port}/pong")
        assert sock is not None
        self.assertEqual(answer["mode"], "locked")
        self.assertEqual(await in_thread(read_exactly, self.owned(sock), 5), b"early")

    async def test_a_redirect_sends_a_local_name_to_a_distant_service(self) -> None:
        far = self.run_broker("allow in authd tcp:any", tcpd=("tcp:0:interface=127.0.0.1",))
        from plumberd.pure.policy.route import Routes, parse_redirect

        target = parse_redirect("authd", f"tcp://127.0.0.1:{self.tcpd_port(far)}/authd")
        near = self.run_broker(routes=Routes(leading(authd=target)))
        self.serve(far.settings.rundir, "authd")
        self.serve(near.settings.rundir, "authd", lambda sock: sock.sendall(b"the local one"))
        sock = self.owned(await in_thread(zig_ok, near.settings.rundir, b"authd"))
        self.assertEqual(await in_thread(_bounce, sock), b"hello")


class Refusals(RunningTestCase):
    async def refusals(self, rundir: str, text: bytes) -> list[bytes]:
        """Ask in every dialect; return what each was told."""
        service, _, routes = text.decode("latin-1").partition(";")
        answer, _ = await in_thread(native_lookup, rundir, service, routes or None)
        native = f"{answer['error']}: {answer['reason']}".encode()
        c, _ = await in_thread(libipc_2023_lookup, rundir, text)
        zig, _ = await in_thread(zig_lookup, rundir, text)
        self.assertEqual(c[:1] + c[5:6], b"\2\0")
        self.assertEqual(struct.unpack(">I", c[1:5])[0], len(c) - 6)
        self.assertTrue(c.endswith(b"\0"))
        self.assertNotEqual(len(c) - 6, 2)
        self.assertTrue(zig.startswith(b"no "))
        return [native, c[6:-1], zig[3:]]

    async def check(self, text: bytes, word: str, said: str, *rules: str, **settings: Any) -> None:
        service = self.run_broker(*rules, **settings)
        for told in await self.refusals(service.settings.rundir, text):
            self.assertTrue(told.decode().startswith(word + ": "), told)
            self.assertIn(said, told.decode())
        self.assertEqual([o.verdict for o in self.outcomes], [word] * 3)

    def test_a_service_that_is_not_there(self) -> Any:
        return self.check(b"nope", "unknown-service", "nope")

    def test_a_reserved_name(self) -> Any:
        return self.check(b"ipc", "denied", "reserved")

    def test_a_reserved_name_in_a_uri(self) -> Any:
        return self.check(b"x;x tcp://127.0.0.1/tcp", "denied", "reserved")

    def test_a_name_that_leaves_the_directory(self) -> Any:
        return self.check(b"../etc", "bad-request", "no name of a service")

    def test_a_name_with_a_slash(self) -> Any:
        return self.check(b"a/b", "bad-request", "no name of a service")

    def test_a_uri_that_is_none(self) -> Any:
        return self.check(b"x;x tcp://h:99999/x", "bad-request", "65535")

    def test_a_scheme_that_is_not_known(self) -> Any:
        return self.check(b"x;x gopher://h/x", "bad-request", "gopher")

    def test_a_scheme_that_is_not_served(self) -> Any:
        self.patch(served, "SERVED", ("tcp", "unix"))  # all that there are is served
        return self.check(b"x;x ws://127.0.0.1/x", "not-possible", "ws")

    def test_a_scheme_that_is_not_served_is_told_only_to_those_who_may_use_it(self) -> Any:
        return self.check(b"x;x tls://127.0.0.1/x", "denied", "rule 1", "deny out x tls:any")

    def test_credentials_over_plain_tcp(self) -> Any:
        return self.check(b"x;x tcp://user:secret@127.0.0.1/x", "bad-request", "plain tcp")

    def test_a_rule_by_service(self) -> Any:
        return self.check(b"x;x tcp://127.0.0.1:1/x", "denied", "rule 1", "deny out x any")

    def test_a_rule_by_address(self) -> Any:
        return self.check(b"x;x tcp://127.0.0.1:1/x", "denied", "rule 1", "deny out any tcp:127.0.0.1")

    def test_a_rule_for_the_service_that_the_uri_names(self) -> Any:
        return self.check(b"x;x tcp://127.0.0.1:1/secret", "denied", "rule 1", "deny out secret any")

    def test_a_metadata_address(self) -> Any:
        return self.check(b"x;x tcp://169.254.169.254:80", "denied", "metadata")

    def test_a_metadata_address_in_another_spelling(self) -> Any:
        return self.check(b"x;x tcp://[::ffff:169.254.169.254]:80", "denied", "metadata")

    async def test_a_port_where_nobody_listens(self) -> None:
        port = free_port()
        await self.check(f"x;x tcp://127.0.0.1:{port}/x".encode(), "unreachable", "refused")

    async def test_a_far_side_that_answers_garbage(self) -> None:
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")))
        await self.check(f"x;x tcp://127.0.0.1:{port}/x".encode(), "unreachable", "'HT'")

    async def test_a_far_side_that_hangs_up(self) -> None:
        port = self.serve_tcp(lambda sock: sock.recv(64))
        await self.check(f"x;x tcp://127.0.0.1:{port}/x".encode(), "unreachable", "hung up")

    async def test_a_far_side_that_refuses_with_hostile_text(self) -> None:
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"no \x1b[31mred\n" + b"x" * 600)))
        service = self.run_broker()
        for told in await self.refusals(service.settings.rundir, f"x;x tcp://127.0.0.1:{port}/x".encode()):
            self.assertNotIn(b"\x1b", told)
            self.assertNotIn(b"\n", told)
            self.assertLess(len(told), 300)

    async def test_a_far_side_that_says_nothing(self) -> None:
        port = self.serve_tcp(lambda sock: read_all(sock))
        service = self.run_broker(limits=Limits(connect_seconds=0.2))
        answer, _ = await in_thread(native_lookup, service.settings.rundir, "x", f"x tcp://127.0.0.1:{port}/x")
        self.assertEqual((answer["ok"], answer["error"]), (False, "timeout"))
        await self.wait_until_idle(service)

    async def test_a_mode_that_is_not_possible_is_an_error_and_not_a_weaker_one(self) -> None:
        service = self.run_broker("allow out x any handover=direct")
        port = self.serve_tcp()

        def as_other_uid() -> bytes:
            return _in_child_of_uid(
                12345,
                service.settings.rundir,
                native_frame({"op": "lookup", "service": "x", "routes": f"x tcp://127.0.0.1:{port}"}),
            )

        os.chmod(service.settings.rundir, 0o1777)
        os.chmod(os.path.dirname(service.settings.rundir), 0o755)
        os.chmod(os.path.join(service.settings.rundir, "plumberd"), 0o666)
        told = await in_thread(as_other_uid)
        self.assertIn(b'"not-possible"', told)
        self.assertIn(b"uid 12345", told)

    async def test_passwords_show_nowhere(self) -> None:
        service = self.run_broker()
        text = b"x;other tls://u:hunter2@h/x;x tls://u:hunter2@127.0.0.1:99999/x"
        for told in await self.refusals(service.settings.rundir, text):
            self.assertNotIn(b"hunter2", told)
        self.assertNotIn("hunter2", repr(self.outcomes) + "".join(map(str, self.outcomes)))


class BadClients(RunningTestCase):
    def start(self, **limits: Any) -> tuple[PlumberdService, str, Broker]:
        service = self.run_broker(limits=Limits(**{"connect_seconds": 5.0, "handshake_seconds": 5.0, **limits}))
        assert service.broker is not None
        self.serve(service.settings.rundir, "pong")
        return service, service.settings.rundir, service.broker

    async def check_still_serves(self, service: PlumberdService) -> None:
        await self.wait_until_idle(service)
        sock = self.owned(await in_thread(zig_ok, service.settings.rundir, b"pong"))
        self.assertEqual(await in_thread(_bounce, sock), b"hello")

    async def tell(self, rundir: str, name: str, data: bytes) -> bytes:
        def one() -> bytes:
            with dialled(rundir, name) as sock:
                sock.sendall(data)
                return read_all(sock)

        return await in_thread(one)

    async def test_messages_that_are_too_long_get_their_refusal(self) -> None:
        service, rundir, _ = self.start()
        self.assertIn(
            b"bad-request: a message of 65537 bytes", await self.tell(rundir, "ipc", struct.pack(">I", 65537))
        )
        self.assertIn(b"bad-request", await self.tell(rundir, "network", struct.pack(">BIB", 3, 2**32 - 1, 3)))
        self.assertIn(b"bad-request", await self.tell(rundir, "plumberd", b"GET / HTTP/1.1\r\n\r\n"))
        self.assertEqual([o.verdict for o in self.outcomes], ["bad-request"] * 3)
        await self.check_still_serves(service)

    async def test_a_message_of_a_wrong_type_gets_its_refusal(self) -> None:
        service, rundir, _ = self.start()
        told = await self.tell(rundir, "network", struct.pack(">BIB", 2, 4, 42) + b"pong")
        self.assertIn(b"a lookup has 3 and 3", told)
        await self.check_still_serves(service)

    async def test_a_truncated_message_gets_its_refusal_and_one_event(self) -> None:
        service, rundir, _ = self.start()

        def one() -> bytes:
            with dialled(rundir, "ipc") as sock:
                sock.sendall(struct.pack(">I", 100) + b"pong")
                sock.shutdown(socket.SHUT_WR)
                return read_all(sock)

        self.assertIn(b"in the middle of a message", await in_thread(one))
        self.assertEqual(len(self.outcomes), 1)
        await self.check_still_serves(service)

    async def test_an_idle_client_is_dropped_in_time(self) -> None:
        service, rundir, _ = self.start(handshake_seconds=0.5)
        self.assertEqual(await self.tell(rundir, "ipc", b""), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["timeout"])
        await self.check_still_serves(service)

    async def test_a_client_that_never_finishes_is_told_and_dropped(self) -> None:
        service, rundir, _ = self.start(handshake_seconds=0.5)
        self.assertIn(b"timeout", await self.tell(rundir, "ipc", b"\0\0"))
        await self.check_still_serves(service)

    async def test_a_client_that_hangs_up_cancels_what_it_asked_for(self) -> None:
        service, rundir, broker = self.start()
        port = self.serve_tcp(lambda sock: read_all(sock))
        text = f"x;x tcp://127.0.0.1:{port}/x".encode()
        with dialled(rundir, "ipc") as sock:
            sock.sendall(struct.pack(">I", len(text)) + text)
            await until(lambda: broker.lookups.active)
        await self.wait_until_idle(service)
        self.assertEqual([o.verdict for o in self.outcomes], ["gone"])

    async def test_descriptors_that_nobody_asked_for_are_closed_at_once(self) -> None:
        service, rundir, _ = self.start()
        kept, given = self.pair()

        def one() -> None:
            with dialled(rundir, "ipc") as sock:
                socket.send_fds(sock, [b"\0\0"], [given.fileno()])
                given.close()
                self.assertEqual(read_all(kept), b"")

        with contextlib.suppress(OSError):  # where the kernel refuses them already (SO_PASSRIGHTS)
            await in_thread(one)
        given.close()
        self.assertEqual(await in_thread(read_all, kept), b"")
        await self.check_still_serves(service)

    async def test_a_descriptor_that_is_not_taken_is_given_up_and_stays_on_the_account(self) -> None:
        service, rundir, broker = self.start(handshake_seconds=0.5, connect_seconds=0.5, unread_descriptors_per_uid=2)
        socks = []
        for _ in range(2):
            sock = self.owned(dial(rundir, "ipc"))
            sock.sendall(struct.pack(">I", 4) + b"pong")
            socks.append(sock)
        await until(lambda: broker.conversations == 0 and broker.unread.active == 2)
        # The queues of this user's clients are full of them: no more until these are gone.
        answer, _ = await in_thread(native_lookup, rundir, "pong")
        self.assertEqual(answer["error"], "busy")
        self.assertIn("unread_descriptors_per_uid", answer["reason"])

    test_a_descriptor_that_is_not_taken_is_given_up_and_stays_on_the_account.timeout = DEADLINE_SECONDS  # type: ignore[attr-defined]

    async def test_a_client_that_dies_between_ok_and_descriptor_costs_nothing(self) -> None:
        service, rundir, _ = self.start()
        before = len(open_descriptors())
        for _ in range(20):
            with dialled(rundir, "network") as sock:
                sock.sendall(struct.pack(">BIB", 3, 4, 3) + b"pong")
        await self.wait_until_idle(service)
        await until(lambda: len(open_descriptors()) <= before)
        await self.check_still_serves(service)

    async def test_the_descriptor_waits_until_ok_was_taken(self) -> None:
        service, rundir, _ = self.start()
        with dialled(rundir, "network") as sock:
            sock.sendall(struct.pack(">BIB", 3, 4, 3) + b"pong")
            await until(lambda: self.outcomes)
            # One recv of plenty takes ok alone: the byte with the descriptor is not behind it yet.
            self.assertEqual(await in_thread(sock.recv, 2_000_000), bytes.fromhex("0200000002006f6b"))
            data, fds, _, _ = await in_thread(socket.recv_fds, sock, 100, 1)
            self.assertEqual((len(data), len(fds)), (1, 1))
            os.close(fds[0])

    async def test_many_lookups_at_once_are_all_served(self) -> None:
        service, rundir, _ = self.start()
        text = struct.pack(">I", 4) + b"pong"
        socks = []
        for _ in range(500):
            sock = socket.socket(socket.AF_UNIX)
            self.addCleanup(sock.close)
            sock.settimeout(DEADLINE_SECONDS)
            sock.connect(os.path.join(rundir, "ipc"))
            sock.sendall(text)
            socks.append(sock)

        def take() -> int:
            count = 0
            for sock in socks:
                data, fds, _, _ = socket.recv_fds(sock, 1400, 1)
                count += data == b"ok" and len(fds) == 1
                for fd in fds:
                    os.close(fd)
            return count

        self.assertEqual(await in_thread(take), 500)
        await self.check_still_serves(service)

    async def test_a_user_with_too_many_connections_is_turned_away(self) -> None:
        service, rundir, broker = self.start(connections_per_uid=3)
        for _ in range(3):
            self.owned(dial(rundir, "ipc"))
        await until(lambda: broker.conversations == 3)
        self.assertEqual(await self.tell_quietly(rundir), b"")
        self.assertEqual([o.verdict for o in self.outcomes], ["busy"])

    async def tell_quietly(self, rundir: str) -> bytes:
        def one() -> bytes:
            with dialled(rundir, "ipc") as sock:
                try:
                    return read_all(sock)
                except ConnectionResetError:
                    return b""

        return await in_thread(one)


class Conversations(RunningTestCase):
    async def test_pipelined_requests_are_answered_in_their_order(self) -> None:
        service = self.run_broker()
        self.serve(service.settings.rundir, "pong")

        def ask() -> list[tuple[Any, bool, int]]:
            found = []
            with dialled(service.settings.rundir, "plumberd") as sock:
                requests: list[dict[str, Any]] = [
                    {"op": "lookup", "service": name, "id": n}
                    for n, name in enumerate(["pong", "nope", "pong", "a/b", "pong"])
                ]
                requests.append({"op": "status", "id": "last"})
                sock.sendall(b"".join(map(native_frame, requests)))
                for _ in requests:
                    answer, fds = native_read(sock)
                    found.append((answer["id"], answer["ok"], len(fds)))
                    for fd in fds:
                        os.close(fd)
            return found

        self.assertEqual(
            await in_thread(ask),
            [(0, True, 1), (1, False, 0), (2, True, 1), (3, False, 0), (4, True, 1), ("last", True, 0)],
        )
        await self.wait_until_idle(service)

    async def test_a_client_may_half_close_behind_its_request(self) -> None:
        service = self.run_broker()
        port = self.serve_tcp(lambda sock: (sock.recv(64), sock.sendall(b"okbye")))

        def ask() -> bytes:
            with dialled(service.settings.rundir, "plumberd") as sock:
                sock.sendall(native_frame({"op": "lookup", "service": "x", "routes": f"x tcp://127.0.0.1:{port}/x"}))
                sock.shutdown(socket.SHUT_WR)
                answer, fds = native_read(sock)
                got = take_socket(fds)
                assert answer["ok"]
                assert got is not None
                with got:
                    return read_all(got)

        self.assertEqual(await in_thread(ask), b"bye")

    async def test_status_tells_the_broker_s_own_user_everything(self) -> None:
        service = self.run_broker("deny out x any")
        answer, _ = await in_thread(native_ask, service.settings.rundir, op="status")
        self.assertEqual(answer["rules"], ["deny out x any"])
        self.assertEqual(answer["you"]["uid"], os.geteuid())
        self.assertFalse(answer["you"]["confined"])


def _bounce(sock: socket.socket) -> bytes:
    sock.sendall(b"hello")
    return read_exactly(sock, 5)


def _in_child_of_uid(uid: int, rundir: str, data: bytes) -> bytes:
    """Ask as another user, in a process of its own; return the raw answer."""
    import subprocess
    import sys

    code = (
        "import os,socket,sys\n"
        f"os.setgroups([]);os.setresgid({uid},{uid},{uid});os.setresuid({uid},{uid},{uid})\n"
        "s=socket.socket(socket.AF_UNIX);s.settimeout(10)\n"
        f"s.connect({os.path.join(rundir, 'plumberd')!r})\n"
        f"s.sendall({data!r})\n"
        "sys.stdout.buffer.write(s.recv(65536))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_SECONDS, check=True
    ).stdout
