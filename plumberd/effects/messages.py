"""One end that has messages: a UNIX socket on which a program sends and takes them, in its own framing.

What comes out of it and goes into it is payloads: a scheme that carries messages
needs to know nothing of how they look on the program's socket.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque

from plumberd.effects import kernel
from plumberd.framing import FrameCutter, Framing, FramingError, Message, decode_packet, encode
from plumberd.pure.shape import Shape, SocketType

READ_BYTES = 65536
"""One read: the longest packet, and the longest message without a header on a stream."""

MESSAGE_BYTES = 1 << 20
"""Longest message that is cut out of a stream; one that is longer ends the connection."""

QUEUE_MESSAGES = 256
"""How many messages wait for a program that does not read."""

QUEUE_BYTES = 1 << 20
"""How many bytes of them do."""


class Room:
    """How many bytes may wait for all the programs together that share it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, count: int, *, always: bool = False) -> bool:
        """Take room for so many, if there is some, or *always*; tell whether it was taken."""
        if self.held_bytes + count > self._most_bytes and not always:
            return False
        self.held_bytes += count
        return True

    def give_back(self, count: int) -> None:
        """So many do not wait any more."""
        self.held_bytes -= count


_SEND = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_TYPES = {
    SocketType.STREAM: socket.SOCK_STREAM,
    SocketType.SEQPACKET: socket.SOCK_SEQPACKET,
    SocketType.DGRAM: socket.SOCK_DGRAM,
}

_LEAST_BUFFER_BYTES = 4608
"""The kernel makes no send buffer smaller (SOCK_MIN_SNDBUF)."""

_OVERHEAD_BYTES = 32
"""What of a send buffer a packet may not fill (net/unix/af_unix.c)."""


def message_pair(shape: Shape) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a new pair, ours and that of a client whose end has this shape; the caller owns both.

    :raises OSError: there are no descriptors.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, _TYPES[shape.type])
    kernel.take_descriptors(ours, wanted=False)
    return ours, theirs


def bound_packets(sock: socket.socket, longest_bytes: int) -> bool:
    """Let the kernel itself answer EMSGSIZE for packets on *sock* that are longer; tell whether it can.

    It looks at the send buffer, and makes none so small as most paths would want it. Who owns
    the socket can make its buffer larger again, and then is not told.
    """
    buffer_bytes = longest_bytes + _OVERHEAD_BYTES
    if sock.type == socket.SOCK_STREAM or buffer_bytes < _LEAST_BUFFER_BYTES:
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, -(-buffer_bytes // 2))  # the kernel doubles it
    return True


class MessageEnd:
    """Reads and writes the messages of one program. It owns *sock* until :meth:`close`.

    On a stream without headers one read is one message, and each is written by itself, when the
    last was taken; so it is on any stream with *framed*.

    :ivar ended: the program sends no more.
    :ivar was_emptied: whether the last reading has left nothing there: an edge tells of more.
    :ivar dropped: messages that the program was too slow for, or that its socket cannot tell from its end.
    """

    def __init__(
        self,
        sock: socket.socket,
        framing: str,
        *,
        framed: bool = False,
        queue_bytes: int = QUEUE_BYTES,
        room: Room | None = None,
    ) -> None:
        """*queue_bytes* wait at most, within what *room* has left, if there is one."""
        self.sock = sock
        self._queue_bytes = queue_bytes
        self._room = Room(queue_bytes) if room is None else room
        sock.setblocking(False)
        self._framing = Framing(framing)
        self._is_stream = sock.type == socket.SOCK_STREAM
        self._bare = self._framing is Framing.RAW
        self._cutter = FrameCutter(self._framing, MESSAGE_BYTES) if self._is_stream and not self._bare else None
        self._one_by_one = self._is_stream and (framed or self._bare)
        self._tells_empty = not self._bare or sock.type == socket.SOCK_DGRAM
        self._in_part = self._is_uncut = False
        self._fault = ""
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self.ended = self.was_emptied = self._was_reset = False
        self.dropped = 0

    @property
    def holds(self) -> bool:
        """Whether there is something that the program has not taken."""
        return bool(self._queue)

    def read(self, most: int) -> list[bytes]:
        """Return up to *most* messages, of as many reads at most; sets :attr:`ended`.

        One read may bring thousands of short ones: the rest of them is for the next time.

        :raises FramingError: what came makes no message; everything before that has been read.
        :raises OSError: the socket is broken; everything before that has been read.
        """
        if self._fault:
            raise FramingError(self._fault)
        messages: list[bytes] = []
        receive, cutter = self.sock.recv, self._cutter
        self.was_emptied = False
        try:
            for _ in range(most):
                data = b"" if self._is_uncut else receive(READ_BYTES)
                if not data and not self._is_uncut and self.sock.type != socket.SOCK_DGRAM:
                    self.ended = True
                    break
                if cutter is not None:
                    frames = cutter.feed(data, most - len(messages))
                    messages += [decode_packet(self._framing, frame).payload for frame in frames]
                    self._is_uncut = cutter.error is not None or len(messages) == most
                    if len(messages) == most:
                        break
                elif self._bare:
                    messages.append(data)
                else:
                    messages.append(decode_packet(self._framing, data).payload)
        except BlockingIOError:
            self.was_emptied = True
        except FramingError as e:
            self._fault = str(e)
            if not messages:
                raise
        except ConnectionResetError:
            if self._was_reset and not messages:
                raise
            # It has closed with something unread. Of packets that is told first, once, and what is queued behind it.
            self._was_reset = True
            return messages or self.read(most)
        if self._was_reset and (self.ended or self.was_emptied):
            self.ended, self.was_emptied = not messages, False  # with messages, it is told the next time
            if self.ended:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return messages

    def write(self, messages: list[bytes]) -> None:
        """Write what can be written, hold what may wait, and drop the rest.

        :raises OSError: the program takes no more.
        """
        if not self._tells_empty:
            whole = [message for message in messages if message]
            self.dropped += len(messages) - len(whole)
            messages = whole
        if not self._bare:
            messages = [encode(self._framing, Message(message)) for message in messages]
        at = 0
        if not self._queue and not self._one_by_one and not self._is_stream:
            send = self.sock.send  # packets, one system call each: the usual way
            try:
                for message in messages:
                    send(message, _SEND)
                    at += 1
            except BlockingIOError:
                pass
            except OSError as e:
                if e.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self.dropped += 1
                at += 1
        is_stuck = False
        for message in messages[at:] if at else messages:
            is_waiting = self._wait(message)
            if not is_waiting and not is_stuck:
                self.flush()
                is_waiting = self._wait(message)
                is_stuck = not is_waiting
            self.dropped += not is_waiting
        if self._queue:
            self.flush()

    def _wait(self, message: bytes) -> bool:
        """Let *message* wait, if there is room; tell whether there was."""
        count = len(message)
        if len(self._queue) >= QUEUE_MESSAGES or self._queued_bytes + count > self._queue_bytes:
            return False
        if not self._room.take(count):
            # Others have filled it. Who has taken all that came is not to suffer for them: the next one goes at once.
            if self._queue or kernel.is_untaken(self.sock.fileno()):
                return False
            self._room.take(count, always=True)
        self._queue.append(message)
        self._queued_bytes += count
        return True

    def flush(self) -> None:
        """Write what waits, as far as it goes.

        :raises OSError: the program takes no more.
        """
        queue = self._queue
        while queue:
            if self._one_by_one and not self._in_part and kernel.is_untaken(self.sock.fileno()):
                return
            piece = queue[0]
            try:
                count = self.sock.send(piece, _SEND)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self.dropped += 1
                count = len(piece)
            self._queued_bytes -= count
            self._room.give_back(count)
            self._in_part = count < len(piece)
            if self._in_part:
                queue[0] = piece[count:]
            else:
                queue.popleft()

    def pass_end(self) -> None:
        """Tell the program that no more will come; its own messages still do."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # it is gone; reading tells

    def forget(self) -> None:
        """Hold nothing any more: nobody takes it."""
        self._queue.clear()
        self._room.give_back(self._queued_bytes)
        self._queued_bytes = 0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.forget()
        self.sock.close()
