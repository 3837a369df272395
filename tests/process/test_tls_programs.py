"""Relays of TLS whose far side is the program openssl: everything arrives, and new keys stall nothing."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import subprocess
from typing import IO

from plumberd.effects.openssl import PskClient, PskServer
from plumberd.effects.tls_wire import Wire
from tests.support import in_thread, read_all, read_exactly, until
from tests.tables import each
from tests.tls_peers import KEY, KEY_NAME, TlsTestCase, certificate_file, our_context

MIB = 1 << 20
DATA = random.Random(1).randbytes(2 * MIB).hex().translate(str.maketrans("abcdef", "!#$%&*")).encode()
"""4 MiB in which the programs find none of their commands."""

TIMES = 16
WHOLE = hashlib.sha256(DATA * TIMES).hexdigest()
VERSIONS = {"1.2": "-tls1_2", "1.3": "-tls1_3"}


def push(pipe: IO[bytes], *, close: bool = False) -> None:
    for _ in range(TIMES):
        pipe.write(DATA)
    pipe.flush()
    if close:
        pipe.close()


def push_socket(sock: socket.socket) -> None:
    for _ in range(TIMES):
        sock.sendall(DATA)


def digest_of(pipe: IO[bytes], length: int) -> str:
    digest = hashlib.sha256()
    while length and (data := pipe.read(min(length, 1 << 18))):
        digest.update(data)
        length -= len(data)
    return digest.hexdigest()


def digest_of_socket(sock: socket.socket, length: int) -> str:
    with sock.makefile("rb") as file:
        return digest_of(file, length)


class ProgramsTestCase(TlsTestCase):
    timeout = 90.0

    def openssl(self, *words: str) -> subprocess.Popen[bytes]:
        stderr = subprocess.DEVNULL if "-quiet" in words else subprocess.STDOUT
        process = subprocess.Popen(["openssl", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        self.addCleanup(self._end_program, process)
        return process

    def _end_program(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:  # what it has not taken
                continue

    async def beside_client(self, *words: str, keys: bool = False) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Run s_client against a relay of ours; return it and our side's plain socket."""
        listener, port = self.listener()
        program = self.openssl("s_client", "-connect", f"127.0.0.1:{port}", *words)
        near, _ = await in_thread(listener.accept)
        self.owned(near)
        context = our_context(True)
        if keys:
            PskServer({KEY_NAME: KEY}).attach(context, b"ECDHE+AESGCM")
        wire = await self.shake(near, context, server=True)
        assert isinstance(wire, Wire), wire
        self.assertEqual(wire.psk_identity, KEY_NAME if keys else None)
        plain, inner = self.pair()
        self.relay_of(wire, near, inner)
        return program, plain

    async def beside_server(self, *words: str, keys: bool = False) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Run a relay of ours against s_server; return it and our side's plain socket."""
        with certificate_file() as path:
            how = ("-nocert",) if keys else ("-cert", path)
            program = self.openssl("s_server", "-accept", "127.0.0.1:0", "-naccept", "1", *how, *words)
            assert program.stdout is not None
            while not (found := re.match(rb"ACCEPT .*:(\d+)", line := await in_thread(program.stdout.readline))):
                self.assertTrue(line, "s_server has ended")
        far = self.owned(socket.create_connection(("127.0.0.1", int(found[1]))))
        context = our_context(False)
        if keys:
            PskClient(KEY_NAME, KEY).attach(context)
        wire = await self.shake(far, context, server=False)
        assert isinstance(wire, Wire), wire
        self.assertEqual(wire.psk_identity, KEY_NAME if keys else None)
        plain, inner = self.pair()
        self.relay_of(wire, far, inner)
        return program, plain


class Large(ProgramsTestCase):
    @each(("1.2",), ("1.3",))
    async def test_64_mib_each_way_at_once_with_a_client(self, version: str) -> None:
        program, plain = await self.beside_client(VERSIONS[version], "-quiet")
        assert program.stdin is not None
        assert program.stdout is not None
        sending = [in_thread(push, program.stdin), in_thread(push_socket, plain)]
        got = [
            in_thread(digest_of, program.stdout, TIMES * len(DATA)),
            in_thread(digest_of_socket, plain, TIMES * len(DATA)),
        ]
        for one in got:
            self.assertEqual(await one, WHOLE)
        for sent in sending:
            await sent

    @each(("1.2",), ("1.3",))
    async def test_a_client_that_ends_first_has_said_everything(self, version: str) -> None:
        program, plain = await self.beside_client(VERSIONS[version], "-quiet", "-no_ign_eof")
        assert program.stdin is not None
        sending = in_thread(push, program.stdin, close=True)
        got = in_thread(read_all, plain)
        await sending
        self.assertTrue(await got == DATA * TIMES)

    @each(("1.2",), ("1.3",))
    async def test_a_client_gets_everything_where_our_side_ends_first(self, version: str) -> None:
        program, plain = await self.beside_client(VERSIONS[version], "-quiet")
        assert program.stdout is not None
        sending = in_thread(plain.sendall, DATA)
        got = in_thread(digest_of, program.stdout, 2 * len(DATA))
        await sending
        plain.shutdown(socket.SHUT_WR)
        self.assertEqual(await got, hashlib.sha256(DATA).hexdigest())
        await until(lambda: self.ended)

    @each(("1.2",), ("1.3",))
    async def test_a_server_sends_64_mib(self, version: str) -> None:
        program, plain = await self.beside_server(VERSIONS[version])
        assert program.stdin is not None
        pushing = in_thread(push, program.stdin)
        self.assertEqual(await in_thread(digest_of_socket, plain, TIMES * len(DATA)), WHOLE)
        await pushing

    @each(("1.2",), ("1.3",))
    async def test_a_server_answers_line_by_line(self, version: str) -> None:
        _, plain = await self.beside_server(VERSIONS[version], "-rev")
        for word in (b"abc", b"x" * 5000):
            plain.sendall(word + b"\n")
            self.assertEqual(await in_thread(read_exactly, plain, len(word) + 1), word[::-1] + b"\n")


class Keys(ProgramsTestCase):
    @each(("1.2",), ("1.3",))
    async def test_a_client_proves_a_key(self, version: str) -> None:
        program, plain = await self.beside_client(
            VERSIONS[version], "-quiet", "-psk_identity", KEY_NAME, "-psk", KEY.hex(), keys=True
        )
        assert program.stdin is not None
        program.stdin.write(b"hello")
        program.stdin.flush()
        self.assertEqual(await in_thread(read_exactly, plain, 5), b"hello")

    @each(("1.2",), ("1.3",))
    async def test_a_server_proves_a_key(self, version: str) -> None:
        words = ("-rev", "-psk_identity", KEY_NAME, "-psk", KEY.hex())
        _, plain = await self.beside_server(VERSIONS[version], *words, keys=True)
        plain.sendall(b"abc\n")
        self.assertEqual(await in_thread(read_exactly, plain, 4), b"cba\n")


class NewKeys(ProgramsTestCase):
    @each(("K",), ("k",))
    async def test_a_client_changes_its_keys_and_may_ask_us_to(self, command: str) -> None:
        program, plain = await self.beside_client("-tls1_3")
        pipe = program.stdin
        assert pipe is not None

        def say(line: bytes) -> None:
            pipe.write(line)
            pipe.flush()

        say(b"before\n")
        self.assertEqual(await in_thread(read_exactly, plain, 7), b"before\n")
        say(command.encode() + b"\n")
        await in_thread(self.hear, program, b"KEYUPDATE")
        say(b"after\n")
        self.assertEqual(await in_thread(read_exactly, plain, 6), b"after\n")
        plain.sendall(b"and so do we\n")
        await in_thread(self.hear, program, b"and so do we")

    def hear(self, program: subprocess.Popen[bytes], text: bytes) -> None:
        assert program.stdout is not None
        while text not in (line := program.stdout.readline()):
            self.assertTrue(line, f"{text!r} was not said")
