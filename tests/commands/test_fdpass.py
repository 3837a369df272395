"""plumberd.commands.fdpass: a connection goes to who started it; ssh itself is in tests/process/test_ssh.py."""

from __future__ import annotations

import os
import socket
import subprocess

from tests.fake_broker import refuse
from tests.plumb_case import PlumbTestCase
from tests.support import in_thread, read_all


class Passing(PlumbTestCase):
    async def test_one_byte_comes_with_the_descriptor_and_it_ends(self) -> None:
        def serve(sock: socket.socket) -> None:
            sock.sendall(read_all(sock)[::-1])

        left, right = self.pair()
        child = self.plumb("--rundir", self.serving(serve), "fdpass", "pong", stdout=right.fileno())
        data, fds, _, _ = await in_thread(socket.recv_fds, left, 9, 9)
        self.assertEqual((data, len(fds)), (b"\0", 1))
        sock = self.owned(socket.socket(fileno=fds[0]))
        self.assertEqual(await in_thread(child.process.wait), 0)
        sock.sendall(b"abc")
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(await in_thread(read_all, sock), b"cba")
        self.assertEqual(self.requests, [{"op": "lookup", "service": "pong"}])

    async def test_an_address_is_asked_for_as_one(self) -> None:
        left, right = self.pair()
        words = ("--rundir", self.serving(lambda sock: None), "fdpass", "tcp://h.example:22")
        child = self.plumb(*words, stdout=right.fileno())
        _, fds, _, _ = await in_thread(socket.recv_fds, left, 9, 9)
        for fd in fds:
            os.close(fd)
        await in_thread(child.process.wait)
        self.assertEqual(self.requests, [{"op": "lookup", "uri": "tcp://h.example:22"}])

    async def test_a_standard_output_that_is_no_unix_socket_is_a_mistake_and_nobody_is_asked(self) -> None:
        rundir = self.serving(lambda sock: None)
        said = b"plumb: standard output is no UNIX socket; ssh makes it one with -o ProxyUseFdpass=yes\n"
        tcp = self.tcp_pair()[0]
        for out in (subprocess.PIPE, subprocess.DEVNULL, tcp.fileno()):
            child = self.plumb("--rundir", rundir, "fdpass", "pong", stdout=out)
            _, err = await in_thread(child.process.communicate)
            self.assertEqual((child.process.returncode, err), (2, said))
        self.assertEqual(self.requests, [])

    async def test_a_refusal_is_status_1(self) -> None:
        _, right = self.pair()
        rundir = self.broker(refuse("denied", "no rule"))
        child = self.plumb("--rundir", rundir, "fdpass", "pong", stdout=right.fileno())
        _, err = await in_thread(child.process.communicate)
        self.assertEqual((child.process.returncode, err), (1, b"plumb: refused: denied: no rule\n"))

    async def test_a_starter_that_has_gone_is_told(self) -> None:
        left, right = self.pair()
        left.close()
        child = self.plumb("--rundir", self.serving(lambda sock: None), "fdpass", "pong", stdout=right.fileno())
        _, err = await in_thread(child.process.communicate)
        self.assertEqual((child.process.returncode, err), (2, b"plumb: nobody wants the connection any more\n"))
