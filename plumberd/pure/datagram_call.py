"""The caller's side of the handshake over datagrams: what to send, when again, and what the answers mean.

No socket and no clock: who drives it sends what it says, waits as long as it
says, and gives it what comes.
"""

from __future__ import annotations

from plumberd.pure import datagrams
from plumberd.pure.handshake import said_no

RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""How long after each sending the same datagram goes out again while no answer has come; the last one repeats.

Only the handshake is repeated, and the lookup's own deadline ends it.
"""


OPENS = 3
"""How often a cookie is brought back without an answer; then there is another hello."""


class DatagramCall:
    """One handshake.

    :ivar session: when it is granted, the session's name.
    """

    def __init__(self, nonce: bytes, service: str) -> None:
        """*nonce*: random, :data:`~plumberd.pure.datagrams.NONCE_BYTES` long; nobody else may know it."""
        self._nonce = nonce
        self._service = service
        self._tries = 0
        self._hello = self.outgoing = datagrams.hello(nonce, service)
        self.session = b""

    @property
    def pause_seconds(self) -> float:
        """How long to wait for an answer to what was sent, before it is sent again."""
        return RETRY_SECONDS[min(max(self._tries, 1), len(RETRY_SECONDS)) - 1]

    def send(self) -> bytes:
        """Return what is to be sent now, for the first time or again."""
        if self._tries >= OPENS and self.outgoing != self._hello:
            self.outgoing = self._hello  # the cookie may be too old by now, or its key gone
            self._tries = 0
        self._tries += 1
        return self.outgoing

    def receive(self, datagram: bytes) -> bool:
        """Take one; tell whether something changed: there is another datagram to send, or :attr:`session`.

        What is none of this call's is passed over: anybody can send us a datagram.

        :raises SaidNo: the far side refused.
        """
        if self.session:
            return False
        reply = datagrams.parse_reply(datagram, self._nonce)
        if reply is None:
            return False
        if reply.kind == datagrams.NO:
            raise said_no(reply.said)
        if reply.kind == datagrams.OK:
            self.session = reply.body
            return True
        brought = datagrams.open_(self._nonce, reply.body, self._service)
        if brought == self.outgoing:
            return False  # an answer to a hello that was sent twice
        # Another cookie, where the first was too old or its key gone, is brought back too.
        self.outgoing = brought
        self._tries = 0
        return True
