"""Carry lines between a socket that keeps messages apart and two descriptors, for ``plumb connect --messages``."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable

MESSAGE_BYTES = 2 << 20
"""Longest message that is sent: what the broker carries in one packet."""

CHUNK_BYTES = 65536

_OVERHEAD_BYTES = 32
"""What of a send buffer a packet may not fill (net/unix/af_unix.c)."""


def carry_lines(
    sock: socket.socket, source: int, sink: int, complain: Callable[[str], None], longest: int | None = None
) -> int:
    """Send each line of *source* as a message, without its end, and write each message as a line to *sink*; own *sock*.

    A carriage return before a line's end is taken off as well. An empty line is none: on such a socket an empty
    message cannot be told from the end. What is written to a terminal is printable, whoever has sent it.

    The end of *source* ends that direction alone; it is not waited for when the far side has ended. A line that is
    too long is that end too, once *complain* was told. What the far side sent before it broke off, or refused to
    take more, is delivered.

    :param longest: bytes of a message that the way takes, if that is known; never more than :data:`MESSAGE_BYTES`.
    :returns: the exit status: 0, or 2 where the connection broke, or a line was too long.
    """
    with sock:
        sock.setblocking(False)
        return _Lines(sock, source, sink, complain, min(longest or MESSAGE_BYTES, MESSAGE_BYTES)).carry()


class _Lines:
    """Both directions. Nothing is read of the source while a line waits, and what comes is shown meanwhile."""

    def __init__(
        self, sock: socket.socket, source: int, sink: int, complain: Callable[[str], None], longest: int
    ) -> None:
        self._sock = sock
        self._source = source
        self._sink = sink
        self._complain = complain
        self._longest = longest
        self._shows = os.isatty(sink)
        self._begun = b""
        """A line without its end so far."""
        self._lines: deque[bytes] = deque()
        self._number = 0
        """So many lines have gone."""
        self._is_open = True
        """Whether the source is read."""
        self._is_cut = False
        """Whether the last line was not read to its end."""
        self._is_shut = False
        self._has_ended = False
        """Whether the far side has."""
        self._was_reset = False
        self._status = 0

    def carry(self) -> int:
        """Return the exit status when all is done."""
        try:
            while not self._has_ended or self._lines:
                ready = self._wait()
                if self._source in ready:
                    self._read()
                if self._sock.fileno() in ready and not self._has_ended:
                    self._show()
                if self._lines:
                    self._send()
                if not (self._is_open or self._lines or self._is_shut):
                    self._shut()
        except OSError:
            return 2
        return self._status

    def _shut(self) -> None:
        self._is_shut = True
        with contextlib.suppress(OSError):  # the far side is gone; reading tells
            self._sock.shutdown(socket.SHUT_WR)

    def _wait(self) -> set[int]:
        poll = select.poll()
        wanted = (0 if self._has_ended else select.POLLIN) | (select.POLLOUT if self._lines else 0)
        poll.register(self._sock.fileno(), wanted)
        if self._is_open and not self._lines:
            poll.register(self._source, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _read(self) -> None:
        data = os.read(self._source, CHUNK_BYTES)
        *lines, self._begun = (self._begun + data).split(b"\n")
        self._lines += lines
        self._is_cut = len(self._begun) > self._longest + 1  # one more may be the carriage return of a line that fits
        if not data or self._is_cut:
            self._is_open = False
            self._lines.append(self._begun)

    def _send(self) -> None:
        """Send what there is room for."""
        try:
            while self._lines:
                line = self._lines[0].removesuffix(b"\r")
                if len(line) > self._longest:
                    self._give_up(len(line), self._longest)
                    return
                if line:
                    self._sock.send(line)
                self._lines.popleft()
                self._number += 1
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno == errno.EMSGSIZE:
                room = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _OVERHEAD_BYTES
                self._give_up(len(line), room)
                return
            self._status = 2
            self._stop()

    def _give_up(self, count: int, most: int) -> None:
        more = " or more" if self._is_cut and len(self._lines) == 1 else ""
        self._complain(f"line {self._number + 1} has {count} bytes{more}: a message has at most {most} here")
        self._status = 2
        self._stop()

    def _stop(self) -> None:
        """Send nothing more."""
        self._is_open = False
        self._lines.clear()

    def _show(self) -> None:
        """Write the next message to the sink."""
        try:
            message = _receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            if self._was_reset:
                raise
            # The kernel tells of a reset once, and in front of the messages that came before it.
            self._was_reset = True
            self._status = 2
            self._stop()
            return
        if message:
            _write(self._sink, (_shown(message) if self._shows else message) + b"\n")
        else:
            self._has_ended = True
            self._is_open = False


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
