"""Carry lines between a socket that keeps messages apart and two descriptors, for ``plumb connect --messages``."""

from __future__ import annotations

import os
import select
import socket

MESSAGE_BYTES = 2 << 20
"""Longest message that is sent: what the broker carries in one packet. A longer line goes out in several."""

CHUNK_BYTES = 65536


def carry_lines(sock: socket.socket, source: int, sink: int) -> int:
    """Send each line of *source* as a message, without its end, and write each message as a line to *sink*; own *sock*.

    An empty line is none: on such a socket an empty message cannot be told from the end. What is written to a
    terminal is printable, whoever has sent it. The end of *source* ends that direction alone; a terminal is not
    waited for when the far side has closed.

    :returns: the exit status: 0, or 2 where the connection broke.
    """
    shows = os.isatty(sink)
    waiting = b""
    reading = True
    with sock:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLIN)
        poll.register(source, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if reading and source in ready:
                    data = os.read(source, CHUNK_BYTES)
                    *lines, waiting = (waiting + data).split(b"\n")
                    if not data or len(waiting) >= MESSAGE_BYTES:
                        lines.append(waiting)
                        waiting = b""
                    for line in lines:
                        _send(sock, line.removesuffix(b"\r"))
                    if not data:
                        reading = False
                        poll.unregister(source)
                        sock.shutdown(socket.SHUT_WR)
                if sock.fileno() in ready:
                    message = _receive(sock)
                    if not message:
                        return 0
                    _write(sink, (_shown(message) if shows else message) + b"\n")
        except OSError:
            return 2


def _send(sock: socket.socket, line: bytes) -> None:
    if line:
        sock.sendall(line)


def _receive(sock: socket.socket) -> bytes:
    """Return the next message, whole; ``b""`` is the end. The kernel makes none of more than some 4.2 MB."""
    length = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    return sock.recv(length) if length else b""


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


def _shown(message: bytes) -> bytes:
    """Return what a terminal prints of *message*, and does not obey."""
    text = message.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text).encode()
