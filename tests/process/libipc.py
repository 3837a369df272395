"""Faithful fakes of the current generation's own daemons, written from what they do on the wire.

    python -m tests.process.libipc broker RUNDIR
    python -m tests.process.libipc tcpd RUNDIR

They are as unforgiving as the originals: one read takes an answer, a name is
what the first read brings, and the TCP daemon ends on a host name, a missing
port, a query or user information. What they must not be sent they complain of
on standard output, with a line that begins with ``VIOLATION``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import sys
import threading

URI = re.compile(rb"tcp://(\d+\.\d+\.\d+\.\d+):(\d+)/([A-Za-z0-9_.-]+)\Z")


def violation(what: str) -> None:
    """Complain."""
    print("VIOLATION", what, flush=True)


def read_message(sock: socket.socket) -> bytes:
    """Take one message with one read, as the original does."""
    data = sock.recv(10_000)
    if len(data) < 4 or struct.unpack(">I", data[:4])[0] != len(data) - 4:
        violation(f"one read did not take exactly one message: {data!r}")
        raise OSError("no message")
    return data[4:]


def broker(client: socket.socket, rundir: str) -> None:
    """Answer one lookup."""
    service, _, pairs = read_message(client).partition(b";")
    uri = None
    for pair in pairs.split(b";"):
        words = pair.split()
        if len(words) == 2 and words[0] == service:
            uri = words[1]
    if uri is None:
        with unix(os.path.join(rundir, service.decode())) as local:
            socket.send_fds(client, [b"ok"], [local.fileno()])
        return
    scheme = uri.partition(b"://")[0].decode()
    with unix(os.path.join(rundir, scheme)) as daemon:
        daemon.sendall(struct.pack(">I", len(uri)) + uri)
        if read_message(daemon) != b"ok":
            client.sendall(b"no")
            return
        socket.send_fds(client, [b"ok"], [daemon.fileno()])


def carry(asking: socket.socket) -> None:
    """The scheme daemon's socket: a URI comes, a connection is made and carried."""
    text = read_message(asking)
    match = URI.match(text)
    if match is None:
        violation(f"the TCP daemon ends on {text!r}")
        os._exit(1)
    host, port, name = match.groups()
    with socket.create_connection((host.decode(), int(port))) as far:
        far.sendall(name)
        answer = far.recv(64)  # one read takes the answer, and what has come with it is lost
        if answer != b"ok":
            if answer and not answer.startswith(b"no "):
                violation(f"one read did not take ok alone: {answer!r}")
            asking.sendall(struct.pack(">I", 2) + b"no")
            return
        asking.sendall(struct.pack(">I", 2) + b"ok")
        relay(asking, far)


def called(caller: socket.socket, rundir: str) -> None:
    """A caller over TCP names a service."""
    name = caller.recv(64).decode()
    with contextlib.closing(unix(os.path.join(rundir, name))) as service:
        caller.sendall(b"ok")
        relay(caller, service)


def relay(left: socket.socket, right: socket.socket) -> None:
    """Carry both ways until one side ends."""

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(right, left))
    back.start()
    copy(left, right)
    back.join()


def unix(path: str) -> socket.socket:
    """Connect to a UNIX socket."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def listen(path: str) -> socket.socket:
    """Listen on a UNIX socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(64)
    return sock


def serve(listener: socket.socket, answer: object, *args: object) -> None:
    """Give each connection a thread."""

    def one(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            answer(sock, *args)  # type: ignore[operator]

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=one, args=(sock,), daemon=True).start()


def main() -> None:
    """Run one daemon for ever."""
    part, rundir = sys.argv[1:]
    os.makedirs(rundir, exist_ok=True)
    if part == "broker":
        listener = listen(os.path.join(rundir, "ipc"))
        print("ready", flush=True)
        serve(listener, broker, rundir)
        return
    tcp = socket.create_server(("127.0.0.1", 0))
    listener = listen(os.path.join(rundir, "tcp"))
    threading.Thread(target=serve, args=(tcp, called, rundir), daemon=True).start()
    print(f"tcpd on 127.0.0.1:{tcp.getsockname()[1]}", flush=True)
    print("ready", flush=True)
    serve(listener, carry)


if __name__ == "__main__":
    main()
