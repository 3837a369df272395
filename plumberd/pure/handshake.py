"""The handshake of plain tcp, between TCP daemons of this project and of LibIPC.

    caller                      called
    1  connect
    2  ``pong`` (raw, no end mark)
                                3  the name is what the first read brings
                                4  ``ok``, or ``no <reason>`` to the end of the stream
    5  the stream is the client's

Nothing may follow the name before the answer, and whoever reads the answer
reads exactly its two bytes: what stands behind them belongs to the client.
"""

from __future__ import annotations

from plumberd.pure.names import SERVICE_CHARS, check_service
from plumberd.pure.refusals import Refusal, Refused, printable

GRANTED = b"ok"
"""The answer, raw."""

NAME_READ_BYTES = SERVICE_CHARS + 1
"""How much the called side reads; one byte more than a name, so that a longer one is noticed."""

REFUSAL_BYTES = 512
"""Longest ``no <reason>``."""

FAR_SIDE_REFUSED = "the far side refused"
"""With these words begins the reason of every refusal that is not ours."""


def call(service: str) -> bytes:
    """Return what the caller sends."""
    return service.encode("ascii")


def called(first_read: bytes) -> str:
    """Return the name in what the first read brought.

    :raises Refused: ``bad-request`` or ``denied``.
    """
    return check_service(first_read.decode("latin-1"))


def refusal(word: Refusal) -> bytes:
    """Return what the called side sends to a peer that has proved nothing: the same for every refusal."""
    return b"no " + Refusal.DENIED.value.encode()


class SaidNo(Refused):
    """The far side itself refused: that is an answer, whatever its word, and nobody asks elsewhere for another."""


class Caller:
    """The caller's side, told what it reads and telling how much it may read."""

    def __init__(self) -> None:
        self._got = b""

    @property
    def wanted_bytes(self) -> int:
        """How many bytes may be read next, and not one more."""
        if self._got[:1] == b"n":
            return REFUSAL_BYTES - len(self._got)
        return len(GRANTED) - len(self._got)

    def receive(self, data: bytes) -> bool:
        """Take what one read brought, empty at the end of the stream; tell whether it is granted.

        :raises SaidNo: when the far side said no.
        :raises Refused: when it hung up, or said anything else.
        """
        self._got += data
        if self._got == GRANTED:
            return True
        if data and GRANTED.startswith(self._got):
            return False
        if b"no ".startswith(self._got[:3]):
            if data and len(self._got) < REFUSAL_BYTES:
                return False
            raise self._refused()
        raise Refused(
            Refusal.UNREACHABLE,
            f"the far side answered {printable(self._got[:16])!r}, neither ok nor no: is it a plumberd?",
        )

    def _refused(self) -> Refused:
        if not self._got:
            return Refused(Refusal.UNREACHABLE, "the far side hung up instead of answering")
        return said_no(printable(self._got[3:]))


def said_no(said: str) -> SaidNo:
    """Return the refusal that stands behind a far side's ``no``; an unknown word is ``denied``."""
    word, _, _ = said.partition(" ")
    for refusal_word in Refusal:
        if word.rstrip(":") == refusal_word.value:
            return SaidNo(refusal_word, f"{FAR_SIDE_REFUSED}: {said}")
    return SaidNo(Refusal.DENIED, f"{FAR_SIDE_REFUSED}: {said or 'it gave no reason'}")
