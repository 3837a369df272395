"""One local client's connection to a broker's socket: requests in, answers and descriptors out.

The bytes are the dialect's. What is the same for all of them is here: each
message's sender is taken along, descriptors that arrive are closed, one request
is answered before the next is looked at, nothing is sent before the client has
taken what was sent before, and a client that hangs up cancels what it asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from plumberd.effects import kernel
from plumberd.effects.closing import close_handed_over
from plumberd.effects.credentials import Sender, sender_of
from plumberd.effects.deadline import Deadlines
from plumberd.effects.poll import ERR, HUP, Poll
from plumberd.pure.dialects import Dialect, Kind, Malformed, Request, Send
from plumberd.pure.dialects.base import Refused as RefusedRequest
from plumberd.pure.refusals import Refusal

READ_BYTES = 8192
"""A lookup is rarely longer; what is takes several reads."""
PACKET_HEADER_BYTES = 6
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD
_ANCILLARY_BYTES = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_FD = struct.Struct("i")

_RESTING, _READING, _ASKED, _ANSWERING = range(4)
"""States: waiting for the client's bytes; in the loop that reads them; a request is with
:attr:`Conversation._asked`; its answer is on the way, and not all of it taken."""

Done = Callable[[bool], None]
"""``done(taken)``: whether the client has taken all of an answer."""


@dataclass(frozen=True)
class Received:
    """A request with its sender, ``None`` where several processes sent parts of it."""

    request: Request | RefusedRequest
    sender: Sender | None


class Conversation:
    """Owns the accepted socket, and each descriptor from :meth:`grant` until it is sent or dropped."""

    def __init__(
        self,
        poll: Poll,
        sock: socket.socket,
        dialect: Dialect,
        patience: Deadlines,
        limit_bytes: int,
        *,
        asked: Callable[[Conversation, Received], None],
        broken: Callable[[Conversation, Refusal, str], None],
        gone: Callable[[Conversation], None],
    ) -> None:
        """Prepare; :meth:`start` begins.

        :param patience: how long a client may take for its request, and to take its answer.
        :param asked: a request arrived; it is answered by :meth:`grant`, :meth:`answer` or :meth:`refuse`.
        :param broken: the client broke its dialect or was too slow; it has been told, and the
            connection ends.
        :param gone: the connection is over, called once; whatever was being done for it is cancelled.
        """
        self.sock = sock
        self.dialect = dialect
        self._poll = poll
        self._patience = patience
        self._decoder = dialect.decoder(limit_bytes)
        # One read takes one packet, and what does not fit of it is lost.
        self._read_bytes = READ_BYTES if dialect.kind is Kind.STREAM else limit_bytes + PACKET_HEADER_BYTES + 1
        self._asked = asked
        self._broken = broken
        self._gone = gone
        self._received: deque[Received] = deque()
        self._sender: Sender | None = None
        self._state = _RESTING
        self._ended = False
        self._malformed = ""
        self._closed = False
        self._sends: tuple[Send, ...] = ()
        self._fd = -1
        self._done: Done | None = None
        self._last = False
        self._untaken = False
        self._served = False
        self._in_loop = False
        self._idle: Callable[[], None] | None = None
        self.left_unread = False
        """Whether a descriptor was sent that the client has not taken; it lies in a live client's queue."""

    def start(self, received: Received | None = None) -> None:
        """Read what is there already, then wait for more; *received* is a request that came another way."""
        if received is not None:
            self._received.append(received)
        self._patience.set(self, self._too_slow)
        self._poll.watch(self.sock.fileno(), self._ready)
        self._read()

    def grant(self, request: Request, fd: int, mode: str, rule: str, done: Done, message_bytes: int = 0) -> None:
        """Hand *fd* over. It is closed here, once, sent or not.

        :param message_bytes: the longest message that goes through, where that is known.
        :param done: told whether the client has taken it.
        """
        if self._closed:
            os.close(fd)
            done(False)
            return
        self._fd = fd
        self._send(self.dialect.grant(request, mode, rule, message_bytes), not self.dialect.conversation, done)

    def answer(self, data: bytes) -> None:
        """Send an answer without a descriptor; an empty one is the end of the connection."""
        if not data:
            self.close()
        elif not self._closed:
            self._send((Send(data),), not self.dialect.conversation, None)

    def refuse(self, ident: str | int | None, word: Refusal, reason: str) -> None:
        """Refuse in the client's dialect; in a dialect of one lookup the connection ends."""
        self.answer(self.dialect.refuse(ident, word, reason))

    @property
    def is_resting(self) -> bool:
        """Whether nothing is under way, so that something may be pushed."""
        return self._state == _RESTING and not self._closed

    def serve(self, idle: Callable[[], None]) -> None:
        """Stay open while nothing is asked, and call *idle* whenever something may be pushed."""
        self._idle = idle

    def push(self, send: Send, fd: int, done: Done) -> None:
        """Send what nobody asked for, while :attr:`is_resting`. *fd* is closed here, once, sent or not.

        A client that does not take it in time is one that has gone.

        :param done: told whether the client has taken it.
        """
        if self._closed:
            os.close(fd)
            done(False)
            return
        self._fd = fd
        self._send((send,), False, done)

    def close(self) -> None:
        """End the connection, drop what was not sent, tell whom it concerns. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._done is not None and self._fd < 0 and self._untaken:
            # It was sent. Where the client has really gone, the kernel has dropped it with the queue.
            with contextlib.suppress(OSError):
                self.left_unread = kernel.is_untaken(self.sock.fileno())
        self._patience.cancel(self)
        self._poll.forget(self.sock.fileno())
        self.sock.close()
        self._received.clear()
        self._drop()
        done, self._done = self._done, None
        if done is not None:
            done(False)
        self._gone(self)

    def _ready(self, events: int) -> None:
        if self._state == _ANSWERING:
            self._continue()
        elif self._state == _RESTING:
            self._read()
        if events & (HUP | ERR):
            # Gone; what it asked for is cancelled. A half-close shows no HUP.
            self.close()

    def _read(self) -> None:
        """Read and ask until there is nothing more to read, or a request waits for its answer."""
        self._state = _READING
        self._in_loop = True
        while self._state == _READING and not self._closed:
            if self._received:
                self._state = _ASKED
                self._patience.cancel(self)
                self._asked(self, self._received.popleft())
            elif self._malformed:
                self._fail(Refusal.BAD_REQUEST, self._malformed)
            elif self._ended:
                self.close()
            else:
                self._receive()
        self._in_loop = False

    def _receive(self) -> None:
        try:
            data, ancillary, _, _ = self.sock.recvmsg(self._read_bytes, _ANCILLARY_BYTES, _FLAGS)
        except BlockingIOError:
            self._state = _RESTING
            if self._idle is not None:
                if self._decoder.pending and not self._patience.is_set(self):
                    self._patience.set(self, self._too_slow)
                self._idle()
            return
        except OSError:
            self.close()
            return
        sender = self._take_ancillary(ancillary)
        if data:
            self._decode(data, sender)
            return
        self._ended = True
        if self._decoder.pending:
            self._fail(Refusal.BAD_REQUEST, "the connection ended in the middle of a message")

    def _take_ancillary(self, ancillary: Iterable[tuple[int, int, bytes]]) -> Sender | None:
        sender: Sender | None = None
        for level, kind, data in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS:
                sender = sender_of(data)
            elif kind == socket.SCM_RIGHTS:
                for (fd,) in _FD.iter_unpack(data[: len(data) // 4 * 4]):
                    close_handed_over(fd)  # nobody asked for it
        return sender

    def _decode(self, data: bytes, sender: Sender | None) -> None:
        first = self._sender if self._decoder.pending else sender
        mixed = None if first != sender else sender
        try:
            for request in self._decoder.feed(data):
                self._received.append(Received(request, mixed))
                mixed = sender  # what follows in the same message has one sender
        except Malformed as e:
            self._malformed = str(e)  # behind the requests before it
            return
        self._sender = mixed

    def _fail(self, word: Refusal, reason: str) -> None:
        """Refuse what is no request, and end."""
        self._received.clear()
        self._broken(self, word, reason)
        answer = self.dialect.refuse(None, word, reason)
        if answer:
            self._send((Send(answer),), True, None)
        else:
            self.close()

    def _too_slow(self) -> None:
        if self._state == _ANSWERING:
            self.close()  # it does not take its answer
        elif self._decoder.pending:
            self._fail(Refusal.TIMEOUT, f"no complete request within {self._patience.seconds:g} seconds")
        else:
            if not self._served:
                self._broken(self, Refusal.TIMEOUT, f"no request within {self._patience.seconds:g} seconds")
            self.close()

    def _send(self, sends: tuple[Send, ...], last: bool, done: Done | None) -> None:
        self._state = _ANSWERING
        self._sends = sends
        self._last = last
        self._done = done
        self._patience.set(self, self._too_slow)
        self._continue()

    def _continue(self) -> None:
        """Send the next part if the client has taken the one before; finish behind the last."""
        try:
            if self._untaken:
                if kernel.is_untaken(self.sock.fileno()):
                    return
                self._untaken = False
            if self._sends:
                self._send_next()
                return  # that it was taken comes as an edge
        except OSError:
            self.close()
            return
        self._finish()

    def _send_next(self) -> None:
        send = self._sends[0]
        self._sends = self._sends[1:]
        self._untaken = True
        if send.descriptor:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(self._fd))]
            sent = self.sock.sendmsg([send.data], ancillary, _SEND_FLAGS)
            self._drop()
        else:
            sent = self.sock.send(send.data, _SEND_FLAGS)
        if sent < len(send.data):
            self.close()  # a client that lets its queue fill up

    def _finish(self) -> None:
        self._served = True
        self._state = _READING
        done, self._done = self._done, None
        if done is not None:
            done(True)
        if self._last:
            self.close()
        elif not self._closed:
            if self._idle is None or self._decoder.pending:
                self._patience.set(self, self._too_slow)
            else:
                self._patience.cancel(self)
            if not self._in_loop:
                self._read()

    def _drop(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_handed_over(fd)  # whoever has it by now may be closing it too
