"""The handshake over datagrams once more, from docs/protocol.md alone: nothing of plumberd is in it."""

from __future__ import annotations

import os
import socket
import struct

DEADLINE_SECONDS = 20.0
HELLO, COOKIE, OPEN, OK, NO, DATA, END, CLOSE, HERE = (bytes((1, kind)) for kind in range(1, 10))


class No(Exception):
    """The called side refused; the text is its word."""


def asked(kind: bytes, nonce: bytes, name: bytes, cookie: bytes = b"") -> bytes:
    """Return a hello or an open."""
    return (kind + nonce + cookie + bytes((len(name),)) + name).ljust(128, b"\0")


class Peer:
    """A side with a session, on a connected socket that it owns."""

    def __init__(self, sock: socket.socket, session: bytes) -> None:
        self.sock = sock
        self.session = session
        self.sent = 0

    def datagram(self, message: bytes, number: int | None = None) -> bytes:
        """Return one of data; the next number if none is told."""
        return DATA + self.session + struct.pack(">I", self.sent if number is None else number) + message

    def send(self, message: bytes) -> None:
        """Send one message."""
        self.sock.send(self.datagram(message))
        self.sent += 1

    def receive(self) -> bytes | None:
        """Return the next message, or ``None`` at an end or a close."""
        datagram = self.sock.recv(65536)
        if datagram[:2] in (END, CLOSE):
            return None
        if datagram[:2] != DATA or datagram[2:10] != self.session:
            raise AssertionError(f"no data of this session: {datagram.hex()}")
        return datagram[14:]

    def end(self) -> None:
        """Tell that no more comes."""
        self.sock.send(END + self.session + struct.pack(">I", self.sent))

    def here(self) -> None:
        """Tell that somebody still listens."""
        self.sock.send(HERE + self.session + struct.pack(">I", self.sent))

    def close(self) -> None:
        """Tell that it is over, and close the socket."""
        with self.sock as sock:
            sock.send(CLOSE + self.session + struct.pack(">I", self.sent))


def connected(host: str, port: int) -> socket.socket:
    """Return a socket that is connected there; the caller owns it."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(DEADLINE_SECONDS)
    sock.connect((host, port))
    return sock


def cookie_for(sock: socket.socket, nonce: bytes, name: bytes) -> bytes:
    """Say hello; return the cookie."""
    sock.send(asked(HELLO, nonce, name))
    answer = sock.recv(65536)
    if answer[:10] != COOKIE + nonce or len(answer) != 30:
        raise AssertionError(f"no cookie: {answer.hex()}")
    return answer[10:]


def call(host: str, port: int, name: bytes) -> Peer:
    """Return a session with the service *name*.

    :raises No: the called side refuses.
    """
    sock, nonce = connected(host, port), os.urandom(8)
    try:
        cookie = cookie_for(sock, nonce, name)
        sock.send(asked(OPEN, nonce, name, cookie))
        answer = sock.recv(65536)
        if answer[:10] == NO + nonce:
            raise No(answer[10:].decode())
        if answer[:10] != OK + nonce or len(answer) != 18:
            raise AssertionError(f"neither ok nor no: {answer.hex()}")
        return Peer(sock, answer[10:])
    except BaseException:
        sock.close()
        raise


def take(sock: socket.socket, word: bytes = b"") -> tuple[Peer | None, bytes]:
    """Let one caller in on a bound *sock*, which is connected to it then; or refuse it with *word*.

    :returns: the session, and the name that was asked for.
    """
    datagram, address = sock.recvfrom(65536)
    if datagram[:2] != HELLO or len(datagram) < 128:
        raise AssertionError(f"no hello: {datagram.hex()}")
    nonce, name = datagram[2:10], datagram[11 : 11 + datagram[10]]
    cookie = os.urandom(20)
    sock.sendto(COOKIE + nonce + cookie, address)
    again, hello = address, datagram
    while (again, datagram) == (address, hello):  # it is said again where the answer takes its time
        datagram, again = sock.recvfrom(65536)
    if (again, datagram) != (address, asked(OPEN, nonce, name, cookie)):
        raise AssertionError(f"not the open to that cookie: {datagram.hex()}")
    if word:
        sock.sendto(NO + nonce + word, address)
        return None, name
    session = os.urandom(8)
    sock.connect(address)
    sock.send(OK + nonce + session)
    return Peer(sock, session), name
