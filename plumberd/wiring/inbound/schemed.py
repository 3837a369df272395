"""A scheme daemon's socket, ``<run directory>/tcp``, say: a broker of another process asks, and we carry.

It answers root, our own user and configured users only: who may ask here may
dial anything, for the broker has decided already.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Protocol

from plumberd.effects import kernel
from plumberd.effects.accept import Acceptor
from plumberd.effects.audit import Outcome
from plumberd.effects.credentials import UNTOLD, Sender, maker_of
from plumberd.effects.datagram_relay import DatagramRelay
from plumberd.effects.messages import MessageEnd
from plumberd.effects.poll import ERR, HUP
from plumberd.effects.pumps import Pump
from plumberd.effects.relay import Relay
from plumberd.effects.rundir import BoundSocket, bind_socket
from plumberd.effects.tls_pumps import make_tls_pumps
from plumberd.effects.tls_wire import Wire
from plumberd.effects.udp import new_socket
from plumberd.pure.address import unmapped
from plumberd.pure.carry import Carried, CarryRequest, no, ok, parse_carried
from plumberd.pure.policy.decide import PROVING
from plumberd.pure.policy.route import parse_target_uri
from plumberd.pure.refusals import Refusal, Refused
from plumberd.pure.shape import Shape, SocketType
from plumberd.pure.uri import IPAddress, Uri
from plumberd.wiring.core import Core
from plumberd.wiring.dialing.approach import guard
from plumberd.wiring.dialing.reach import Reach, Reached, Traveller
from plumberd.wiring.dialing.served import CARRY_MESSAGES
from plumberd.wiring.dialing.udp_carry import Reached as UdpReached
from plumberd.wiring.dialing.udp_carry import UdpCarry

READ_BYTES = 8192

_WANTED = "wanted a socket with the messages to carry, and how they look"
_TYPES = {
    socket.SOCK_STREAM: SocketType.STREAM,
    socket.SOCK_SEQPACKET: SocketType.SEQPACKET,
    socket.SOCK_DGRAM: SocketType.DGRAM,
}

_FD = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * _FD.size)
"""Room for the sender's credentials, and for some descriptors; the kernel closes what does not fit."""


class _Step(Protocol):
    def cancel(self) -> None: ...


class SchemeDaemon:
    """Owns the listening socket and every request until it is a relay."""

    def __init__(self, core: Core, scheme: str) -> None:
        self.core = core
        self.scheme = scheme
        self.requests: set[Carriage] = set()
        self._bound: BoundSocket | None = None
        self._acceptor: Acceptor | None = None

    def listen(self) -> None:
        """Listen on the socket.

        :raises RunDirError: telling what is in the way.
        """
        settings = self.core.settings
        self._bound = bind_socket(settings.rundir, self.scheme, settings.gid)
        if self.scheme in CARRY_MESSAGES:  # the end that has them comes along
            kernel.take_descriptors(self._bound.sock, wanted=True)
        self.core.own.add(self._bound.identity)

    def start(self) -> None:
        """Begin to accept."""
        if self._bound is not None:
            self._acceptor = Acceptor(self.core.poll, self.core.reactor, self._bound.sock, self._accepted)
            self._acceptor.start()

    def stop(self) -> None:
        """Stop listening, and drop what is not carried yet."""
        if self._acceptor is not None:
            self._acceptor.stop()
            self._acceptor = None
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        for request in list(self.requests):
            request.drop()

    def _accepted(self, sock: socket.socket) -> None:
        try:
            maker = maker_of(sock)
            why_not = self._why_not(sock, maker)
        except (OSError, Refused) as e:
            maker, why_not = (0, 0, 0), f"who asks can't be told: {e}"
        if why_not:
            sock.close()
            who = f"uid={maker[1]} pid={maker[0]}"
            self.core.audit.note(Outcome(Refusal.DENIED.value, who=who, reason=why_not))
            return
        Carriage(self, sock, maker[1]).start()

    def _why_not(self, sock: socket.socket, maker: Sender) -> str:
        """Return why who connected may not ask, or nothing. The rules are the broker's; here are none."""
        uid = maker[1]
        if uid not in self.core.settings.broker_uids | {0, os.geteuid()}:
            return "only root, our own user and --broker-user may ask the scheme daemon"
        confined = self.core.inspector.who(sock, maker, maker).confined
        if confined == UNTOLD and uid != os.geteuid():
            return ""  # another user's process can't be looked into; its namespace was compared by the socket
        return f"a confined process may not ask the scheme daemon ({confined})" if confined else ""


class Carriage:
    """One request: its URI, the connection, ok, and then a relay."""

    def __init__(self, daemon: SchemeDaemon, sock: socket.socket, uid: int) -> None:
        self._daemon = daemon
        self._core = daemon.core
        self._sock = sock
        self._account = f"broker of uid {uid}"
        self._counted = False
        self._request = CarryRequest()
        self._uri: Uri | None = None
        self._step: _Step | None = None
        self._far: socket.socket | None = None
        self._wire: Wire | None = None
        self._end: socket.socket | None = None
        """Of a client's pair, whose messages are to be carried."""
        self._asked = Carried("")
        self._answering = False
        self._began = self._core.reactor.seconds()

    def start(self) -> None:
        """Wait for the URI."""
        self._sock.setblocking(False)
        self._daemon.requests.add(self)
        self._core.patience.set(self, self._too_slow)
        self._core.poll.watch(self._sock.fileno(), self._ready)

    def drop(self) -> None:
        """Close what is open. Idempotent."""
        self._leave()
        if self._far is not None:
            self._far.close()
            self._far = None
        if self._end is not None:
            self._end.close()
            self._end = None
        if self._sock.fileno() >= 0:
            self._core.poll.forget(self._sock.fileno())
            self._sock.close()

    def _ready(self, events: int) -> None:
        if events & (HUP | ERR):
            self.drop()
        elif self._answering:
            self._go_on()
        elif self._uri is None:
            self._read()

    def _read(self) -> None:
        try:
            while self._uri is None:
                data = self._receive()
                if not data:
                    self.drop()
                    return
                text = self._request.receive(data)
                if text is not None:
                    self._dial(text)
        except BlockingIOError:
            return
        except Refused as e:
            self._refuse(e)
        except OSError:
            self.drop()

    def _receive(self) -> bytes:
        """Read; keep the first end that comes along, where that has messages to be carried, and close all else."""
        data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, packed in ancillary:
            if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                continue  # who has sent it, which is not asked for here
            for (fd,) in _FD.iter_unpack(packed[: len(packed) // _FD.size * _FD.size]):
                if self._end is None and self._daemon.scheme in CARRY_MESSAGES:
                    self._end = _as_end(fd)
                else:
                    os.close(fd)
        return data

    def _dial(self, text: str) -> None:
        asked = self._asked = parse_carried(text)
        uri = self._uri = parse_target_uri(asked.text)
        self._core.patience.cancel(self)
        self._core.connect_deadline.set(self, self._too_slow)
        mine = self._daemon.scheme
        if uri.scheme != mine:
            raise Refused(Refusal.NOT_POSSIBLE, f"this is the scheme daemon of {mine}, not of {uri.scheme}")
        if mine in PROVING and not asked.ruled and self._core.proves(uri):
            raise Refused(Refusal.DENIED, "this machine proves who it is there, and no rule of the broker's allows it")
        if asked.address is not None:
            self._resolved((asked.address,))
        elif uri.address is not None:
            self._resolved((unmapped(uri.address),))
        else:
            self._step = self._core.resolver.resolve(uri.host, self._account, self._resolved)

    def _resolved(self, answer: tuple[IPAddress, ...] | Refused) -> None:
        self._step = None
        if isinstance(answer, Refused):
            self._refuse(answer)
            return
        assert self._uri is not None
        if self._uri.scheme == "udp":
            guard(self._refuse, self._carry_messages, self._uri, answer)
            return
        traveller, done = Traveller(self._account, carries=True), self._reached
        if self._uri.scheme in CARRY_MESSAGES:
            end = self._end
            if end is None or not self._asked.framing:
                self._refuse(Refused(Refusal.BAD_REQUEST, _WANTED))
                return
            shape = Shape(_TYPES[end.type], self._asked.framing)
            traveller = Traveller(
                self._account, shape=shape, framed=self._asked.framed, ended=self._end_carried, end=end
            )
            done = self._end_reached
        reach = Reach(self._core, self._uri, answer, traveller, done, _unmarked)
        self._step = reach
        guard(self._refuse, reach.start)

    def _carry_messages(self, uri: Uri, addresses: tuple[IPAddress, ...]) -> None:
        """Carry those of the end that has come along.

        :raises Refused: there is none, or it cannot be carried.
        """
        end, self._end = self._end, None
        if end is None or not self._asked.framing:
            raise Refused(Refusal.BAD_REQUEST, _WANTED)
        near = MessageEnd(end, self._asked.framing, framed=self._asked.framed)
        self._step = step = UdpCarry(
            self._core, uri, addresses, near, self._account, None, new_socket, self._messages_reached, self._carried
        )
        step.start()

    def _messages_reached(self, result: UdpReached | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
            return
        self._note("granted", "")
        with contextlib.suppress(OSError):  # where the broker is gone, so is the client's end
            self._sock.send(ok(result.message_bytes))
        self.drop()

    def _end_reached(self, result: Reached | Refused) -> None:
        """The end that came along is carried, or it is not."""
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
            return
        self._end = None  # the relay's
        self._note("granted", "")
        with contextlib.suppress(OSError):  # where the broker is gone, so is the client's end
            self._sock.send(ok())
        self.drop()

    def _end_carried(self, ending: str, up: int, down: int) -> None:
        self._note("ended", ending, up, down)

    def _reached(self, result: Reached | Refused) -> None:
        self._step = None
        if isinstance(result, Refused):
            self._refuse(result)
        else:
            self._far, self._wire = result.sock, result.wire
            self._answer()

    def _answer(self) -> None:
        try:
            self._core.begin_relay(self._account)
        except Refused as e:
            self._refuse(e)
            return
        self._counted = self._answering = True
        self._core.connect_deadline.cancel(self)
        self._core.patience.set(self, self._too_slow)
        try:
            self._sock.send(ok())
        except OSError:
            self.drop()
            return
        self._go_on()

    def _go_on(self) -> None:
        """Relay as soon as the broker has taken the answer, with its one read."""
        if kernel.is_untaken(self._sock.fileno()):
            return
        far, self._far = self._far, None
        assert far is not None
        self._counted = False  # the relay's from now on
        self._leave()
        self._note("granted", "")
        core = self._core
        forth: Pump | None = None
        back: Pump | None = None
        if self._wire is not None:
            back, forth = make_tls_pumps(self._wire, far, self._sock, core.buffers)
        relay = Relay(core.poll, core.reactor, core.pipes, self._sock, far, self._carried, forth=forth, back=back)
        self._core.relays.add(relay)
        relay.start()

    def _carried(self, relay: Relay | DatagramRelay) -> None:
        if isinstance(relay, Relay):  # the other has given its place back
            self._core.end_relay(self._account, relay)
        self._note("ended", relay.ending, relay.up, relay.down)

    def _refuse(self, refused: Refused) -> None:
        self._note(refused.word.value, refused.reason)
        with contextlib.suppress(OSError):  # where the broker is gone, that was its answer
            self._sock.send(no(refused.word, refused.reason))
        self.drop()

    def _too_slow(self) -> None:
        if self._answering:  # nothing may stand behind the ok that was not taken
            self._note(Refusal.TIMEOUT.value, "the broker did not take the answer")
            self.drop()
        else:
            self._refuse(Refused(Refusal.TIMEOUT, "the request or the far side took too long"))

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self._core.relay_places.leave(self._account)
        self._daemon.requests.discard(self)
        self._core.patience.cancel(self)
        self._core.connect_deadline.cancel(self)
        step, self._step = self._step, None
        if step is not None:
            step.cancel()

    def _note(self, verdict: str, reason: str, up: int = 0, down: int = 0) -> None:
        self._core.audit.note(
            Outcome(
                verdict,
                "out",
                (self._uri.service if self._uri else None) or "",
                self._uri or "",
                "a broker",
                mode="relayed" if verdict in ("granted", "ended") else "",
                seconds=self._core.reactor.seconds() - self._began,
                reason=reason,
                up=up,
                down=down,
            )
        )


def _as_end(fd: int) -> socket.socket | None:
    """Return the end of a UNIX pair that *fd* is; what is none is closed."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    if sock.family == socket.AF_UNIX:
        return sock
    sock.close()
    return None


def _unmarked(step: str) -> None:
    """The steps of a carriage are timed by nobody: the broker that asked times the whole."""
