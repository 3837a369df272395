"""A relay's far side on a connected UDP socket of our own: datagrams as they are, or those of a session."""

from __future__ import annotations

import errno
import os
import socket

from plumberd.effects.datagram_relay import BATCH, Far
from plumberd.effects.poll import ERR, OUT, Poll
from plumberd.effects.udp import DATAGRAM_BYTES, GONE, SOFT, Sender, hear_errors, limit_of, read_error
from plumberd.pure.datagrams import HEADER_BYTES, Session

_ROUNDS = 4
"""Batches that are read before others have their turn."""


_ERRORS = 64
"""What ICMP has told is read so many at a time."""


class UdpFar(Far):
    """Owns *sock* until it is closed. The kernel lets in only what comes from where it is connected.

    Whom ICMP says to be gone is gone, where there is no session. With one it has to quote it: anybody
    can send ICMP, and the port of a connection is quickly guessed.
    """

    def __init__(self, poll: Poll, sock: socket.socket, session: Session | None = None) -> None:
        super().__init__()
        self._poll = poll
        self._sock = sock
        self._session = session
        self._sender = Sender(sock)
        self._header_bytes = HEADER_BYTES if session is not None else 0
        self._limit = limit_of(sock) - self._header_bytes
        self._again = False
        self._blocked = self._failed = False
        if session is not None:
            self.counts = session.counts
            hear_errors(sock)

    @property
    def limit_bytes(self) -> int:
        """See :attr:`Far.limit_bytes`."""
        return self._limit

    def start(self) -> None:
        """See :meth:`Far.start`."""
        if self._poll.watches(self._sock.fileno()):
            self._poll.redirect(self._sock.fileno(), self._ready)
            self._poll.tell_room(self._sock.fileno(), wanted=False)
            self._read()  # what came since: there is no further edge for it
        else:
            self._poll.watch(self._sock.fileno(), self._ready, room=False)

    def send(self, messages: list[bytes]) -> int:
        """See :meth:`Far.send`."""
        assert self.relay is not None
        done = 0
        while done < len(messages):
            fitting = messages[done:] if done else messages
            limit = self._limit
            for at, message in enumerate(fitting):
                if len(message) > limit:
                    fitting = fitting[:at]
                    break
            if not fitting:
                self.relay.too_large(len(messages[done]), limit)
                done += 1
                continue
            sent = self._send(fitting)
            done += sent
            if self._blocked:
                self._poll.tell_room(self._sock.fileno(), wanted=True)
                break
        return done

    def _send(self, messages: list[bytes]) -> int:
        """Send what fits as far as is known; return how many are done with."""
        session = self._session
        datagrams = messages if session is None else [session.data(message) for message in messages]
        sent = 0
        try:
            sent = self._sender.send(datagrams)
            self._failed = False
            self._blocked = self._sender.blocked
        except OSError as e:
            self._limit = limit_of(self._sock) - self._header_bytes
            if e.errno != errno.EMSGSIZE:
                if session is None:
                    raise
                session.unsent(len(datagrams))
                return self._pass_over(e)
            assert self.relay is not None
            self.relay.too_large(len(messages[0]), min(self._limit, len(messages[0]) - 1))
            if session is not None:
                session.unsent(len(datagrams))
            return 1
        if session is None:
            self.counts.sent += sent
        else:
            session.unsent(len(datagrams) - sent)
        return sent

    def _pass_over(self, error: OSError) -> int:
        """Go on where a session's datagram was not sent because of an earlier one; return how many are done with.

        :raises OSError: there is no way any more.
        """
        assert self._session is not None
        gone = self._why_gone()
        if gone is not None:
            raise gone
        failed, self._failed = self._failed, not self._failed
        if not failed:
            return 0  # once more
        if error.errno not in SOFT:
            raise error
        self.counts.dropped += 1
        return 1

    def _why_gone(self) -> OSError | None:
        """Read what ICMP has told; return the error that quotes the session, where the far side is not there."""
        session, gone = self._session, None
        assert session is not None
        for _ in range(_ERRORS):
            told = read_error(self._sock)
            if told is None:
                break
            if told.code == errno.EMSGSIZE:
                self._limit = limit_of(self._sock) - self._header_bytes
            elif told.code in GONE and session.is_quoted(told.datagram):
                gone = OSError(told.code, os.strerror(told.code))
        return gone

    def here(self) -> None:
        """See :meth:`Far.here`."""
        if self._session is not None:
            self._tell(self._session.here())

    def read_on(self) -> None:
        """See :meth:`Far.read_on`."""
        self._read()

    def end(self) -> None:
        """See :meth:`Far.end`."""
        if self._session is not None:
            self._tell(self._session.end())

    def close(self, *, tell: bool) -> None:
        """See :meth:`Far.close`."""
        if self._sock.fileno() < 0:
            return
        if tell and self._session is not None:
            self._tell(self._session.close())
        self._poll.forget(self._sock.fileno())
        self._sock.close()

    def _tell(self, datagram: bytes) -> None:
        try:
            self._sock.send(datagram)
        except OSError:
            return  # it is told once; the idle time ends it there

    def _ready(self, events: int) -> None:
        assert self.relay is not None
        if events & OUT and self._blocked:
            self._blocked = False
            self._poll.tell_room(self._sock.fileno(), wanted=False)
            self.relay.resume()
        if events & ~OUT and self._sock.fileno() >= 0:
            self._read()
        if events & ERR and self._session is not None and self._sock.fileno() >= 0:
            gone = self._why_gone()
            if gone is not None:
                self._give_up(gone)

    def _read_again(self) -> None:
        self._again = False
        if self._sock.fileno() >= 0:
            self._read()

    def _read(self) -> None:
        """Give the relay what has come, while the program reads it; the rest stays with the kernel."""
        relay, receive = self.relay, self._sock.recv
        assert relay is not None
        for _ in range(_ROUNDS):
            if not relay.has_room:
                return
            datagrams: list[bytes] = []
            failure: OSError | None = None
            try:
                for _ in range(BATCH):
                    datagrams.append(receive(DATAGRAM_BYTES))
            except BlockingIOError:
                pass
            except OSError as e:
                failure = e
            is_over = not datagrams or len(datagrams) < BATCH
            if datagrams:
                self._take(datagrams)
            if self._sock.fileno() < 0:
                return
            if failure is not None and not self._survives(failure):
                return
            if is_over and failure is None:
                return
        if not self._again:
            self._again = True
            self._poll.again(self._read_again)

    def _take(self, datagrams: list[bytes]) -> None:
        relay, session = self.relay, self._session
        assert relay is not None
        if session is None:
            self.counts.received += len(datagrams)
            relay.received(datagrams)
            return
        relay.heard(session, datagrams)

    def _survives(self, error: OSError) -> bool:
        """Take what ICMP has told; tell whether the far side is still there."""
        if error.errno == errno.EMSGSIZE:
            self._limit = limit_of(self._sock) - self._header_bytes
            return True
        gone = error if self._session is None else self._why_gone()
        if gone is None:
            return True
        self._give_up(gone)
        return False

    def _give_up(self, error: OSError) -> None:
        assert self.relay is not None
        how = "nobody listens there" if error.errno == errno.ECONNREFUSED else f"{error.strerror}"
        self.relay.far_closed(f"refused by right: {how}")
