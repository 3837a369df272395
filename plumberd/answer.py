"""What a client says to a broker and hears from it: a request's bytes, an answer as it arrives, what may go wrong.

A message is a 4-byte big-endian length and a JSON object; a descriptor comes with
an answer's first byte. Nothing here waits.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from typing import Any

REQUEST_BYTES = 65536
ANSWER_BYTES = 65536
LENGTH_BYTES = 4
_LENGTH = struct.Struct(">I")
_FD = struct.Struct("i")
_SPACE = socket.CMSG_SPACE(_FD.size)


class Error(OSError):
    """Something is wrong between this program and the broker; the message says what to do."""


class NoBroker(Error):
    """No broker answers; the message says where was looked."""


class Refused(Error):
    """The broker refused.

    :ivar word: one of the closed list in docs/protocol.md: ``denied``, ``unreachable``, …
    :ivar reason: a sentence for a person.
    :ivar answer: the broker's whole answer, for what it tells besides.
    """

    def __init__(self, word: str, reason: str, answer: dict[str, Any] | None = None) -> None:
        super().__init__(f"{word}: {reason}")
        self.word = word
        self.reason = reason
        self.answer = answer or {}


def timed_out(seconds: float) -> Error:
    """Return the error for a lookup that took longer than *seconds*."""
    return Error(errno.ETIMEDOUT, f"the broker did not answer within {seconds:g} seconds")


def encode_request(request: dict[str, Any]) -> bytes:
    """Return the bytes of a request, which are the first on a connection to the native socket.

    :raises Error: it is longer than a message may be.
    """
    payload = json.dumps(request).encode()
    if len(payload) > REQUEST_BYTES:
        raise Error(errno.EMSGSIZE, f"a request of {len(payload)} bytes; a message holds {REQUEST_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class Answer:
    """One answer as it arrives, and the descriptor that comes with it.

    It owns the descriptor until it is taken; :meth:`close` closes one that was not.
    """

    def __init__(self) -> None:
        self._data = b""
        self._wanted = _LENGTH.size
        self._fd = -1

    @property
    def missing_bytes(self) -> int:
        """How much to read next, and no more; 0 when the answer is complete."""
        return self._wanted - len(self._data)

    def receive(self, sock: socket.socket) -> bool:
        """Read once from *sock*, as :meth:`add` and :meth:`add_descriptor`.

        :raises BlockingIOError: nothing is there, on a non-blocking socket.
        :raises TimeoutError: nothing came, on one with a timeout.
        :raises Error: as :meth:`add`.
        """
        try:
            data, ancillary, _, _ = sock.recvmsg(self.missing_bytes, _SPACE, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, TimeoutError):
            raise
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                # There is room for a second one: the kernel rounds up.
                for (fd,) in _FD.iter_unpack(payload[: len(payload) // _FD.size * _FD.size]):
                    self.add_descriptor(fd)
        return self.add(data)

    def add(self, data: bytes) -> bool:
        """Take bytes, none at the stream's end; return whether the answer is complete.

        :raises Error: the broker hung up before it was, or it is too long.
        """
        if not data:
            raise Error(errno.ECONNRESET, "the broker hung up without an answer")
        self._data += data
        if self._wanted == _LENGTH.size <= len(self._data):
            (length,) = _LENGTH.unpack_from(self._data)
            if length > ANSWER_BYTES:
                raise Error(errno.EPROTO, f"the broker announces an answer of {length} bytes")
            self._wanted += length
        self._data = self._data[: self._wanted]
        return not self.missing_bytes

    def add_descriptor(self, fd: int) -> None:
        """Own *fd*, instead of one that came before."""
        self.close()
        self._fd = fd

    def take(self) -> tuple[dict[str, Any], int]:
        """Return the complete answer and the descriptor, the caller's from now on, or -1.

        :raises Refused: the broker says no.
        :raises Error: this is no answer.
        """
        try:
            answer = json.loads(self._data[_LENGTH.size :])
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise Error(errno.EPROTO, "the broker's answer is no JSON object")
        if answer.get("ok") is not True:
            raise Refused(str(answer.get("error")), str(answer.get("reason")), answer)
        fd, self._fd = self._fd, -1
        return answer, fd

    def take_socket(self, what: str = "granted the lookup") -> tuple[socket.socket, dict[str, Any]]:
        """Like :meth:`take` for a lookup: return the blocking socket, the caller's, and the answer.

        :param what: the broker did, for the error.
        :raises Error: besides, where there is no descriptor, or it is no socket.
        """
        answer, fd = self.take()
        if fd < 0:
            raise Error(errno.EPROTO, f"the broker {what} and sent no descriptor")
        try:
            return socket.socket(fileno=fd), answer
        except OSError:
            os.close(fd)
            raise Error(errno.EPROTO, f"the broker {what} and sent a descriptor that is no socket") from None

    def close(self) -> None:
        """Close the descriptor, if there is one that was not taken. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
