"""Between a broker and a scheme daemon of another process, on ``<run directory>/<scheme>``.

The current generation's own form, so that either side may be LibIPC's: one
message (length 4 B big endian, payload) with the URI; the answer is a message
``ok``, or ``no`` and a reason, or the end of the connection. From the ok on that
same connection carries the client's data. Where it was messages that were given
away to be carried, ``ok`` may be followed by a blank and how long they may be.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass, field

from plumberd.pure.address import unmapped
from plumberd.pure.refusals import Refusal, Refused, printable
from plumberd.pure.uri import FRAMINGS, URI_BYTES, IPAddress, Uri, format_uri

ANSWER_BYTES = 512
"""Longest answer that is read."""

_LENGTH = struct.Struct(">I")
_OK = re.compile(rb"ok(?: ([1-9][0-9]{0,8}))?")
_ADDRESS = "address="
_RULED = "&ruled=yes"
_MESSAGES = "&messages="
"""What a broker of ours puts behind the URI, for a scheme daemon of ours; no client's URI has such options."""

_ONE_BY_ONE = ",framed"


def carry(uri: Uri) -> bytes:
    """Return the question. LibIPC's daemon ends on a name, a missing port, a query or user information.

    :param uri: with an IPv4 address and a service.
    """
    text = f"{uri.scheme}://{uri.host}:{uri.port}/{uri.service}".encode("ascii")
    return _LENGTH.pack(len(text)) + text


def carry_tls(uri: Uri, address: IPAddress, *, ruled: bool) -> bytes:
    """Return the question for TLS: the name has to be proved, and the connection goes to the address that was judged.

    :param ruled: whether a rule let it through: else nothing that this machine could prove is proved there.
    """
    text = format_uri(uri)
    text += f"{'&' if '?' in text else '?'}{_ADDRESS}{address}" + (_RULED if ruled else "")
    data = text.encode("ascii")
    if len(data) > URI_BYTES:
        raise Refused(Refusal.BAD_REQUEST, f"a URI of {len(data)} bytes: at most {URI_BYTES} are carried")
    return _LENGTH.pack(len(data)) + data


def carry_messages(uri: Uri, address: IPAddress, framing: str, *, framed: bool, ruled: bool = False) -> bytes:
    """Return the question for a scheme that carries messages; the end that has them goes along as a descriptor.

    :param framing: how they look on that end.
    :param framed: whether each is to be written by itself, when the last was taken.
    :param ruled: as for :func:`carry_tls`.
    """
    text = format_uri(uri)
    text += f"{'&' if '?' in text else '?'}{_ADDRESS}{address}" + (_RULED if ruled else "")
    text += f"{_MESSAGES}{framing}{_ONE_BY_ONE if framed else ''}"
    data = text.encode("ascii")
    if len(data) > URI_BYTES:
        raise Refused(Refusal.BAD_REQUEST, f"a URI of {len(data)} bytes: at most {URI_BYTES} are carried")
    return _LENGTH.pack(len(data)) + data


@dataclass(frozen=True)
class Carried:
    """What a broker asks of a scheme daemon.

    :ivar text: the URI, as its text.
    :ivar address: where it goes, whatever the URI's name resolves to; a broker of LibIPC's says none.
    :ivar ruled: whether a rule of the broker's let it through.
    :ivar framing: how the messages look on the end that comes along; empty where none does.
    :ivar framed: whether each of them is to be written by itself.
    """

    text: str = field(repr=False)
    address: IPAddress | None = None
    ruled: bool = False
    framing: str = ""
    framed: bool = False


def parse_carried(text: str) -> Carried:
    """Take what only a broker may say off the end of a URI.

    :raises Refused: ``bad-request`` where the address is none, or a framing does not exist.
    """
    text, _, framing = text.partition(_MESSAGES)
    framed = framing.endswith(_ONE_BY_ONE)
    framing = framing.removesuffix(_ONE_BY_ONE)
    if framing and framing not in FRAMINGS:
        raise Refused(Refusal.BAD_REQUEST, f"framing: wanted one of {', '.join(FRAMINGS)}")
    ruled = text.endswith(_RULED)
    text = text.removesuffix(_RULED)
    for mark in ("?", "&"):
        before, found, address = text.rpartition(mark + _ADDRESS)
        if found:
            try:
                return Carried(before, unmapped(ipaddress.ip_address(address)), ruled, framing, framed)
            except ValueError:
                raise Refused(Refusal.BAD_REQUEST, "what the broker says is no address") from None
    return Carried(text, framing=framing, framed=framed)


def ok(message_bytes: int = 0) -> bytes:
    """Return the answer of a scheme daemon that has connected.

    :param message_bytes: the longest message that goes through, where it carries messages and knows that.
    """
    text = b"ok %d" % message_bytes if message_bytes else b"ok"
    return _LENGTH.pack(len(text)) + text


def no(word: Refusal, reason: str) -> bytes:
    """Return the answer of one that has not."""
    text = f"no {word.value}: {reason}".encode("ascii", "replace")[:ANSWER_BYTES]
    return _LENGTH.pack(len(text)) + text


class CarryRequest:
    """The scheme daemon's side: the one message with the URI."""

    def __init__(self) -> None:
        self._got = b""

    def receive(self, data: bytes) -> str | None:
        """Take what one read brought; return the URI when it is complete.

        :raises Refused: ``bad-request`` where it is none.
        """
        self._got += data
        if len(self._got) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._got)
        if not 0 < length <= URI_BYTES:
            raise Refused(Refusal.BAD_REQUEST, f"a message of {length} bytes: wanted a URI of at most {URI_BYTES}")
        text = self._got[_LENGTH.size :]
        if len(text) > length:
            raise Refused(Refusal.BAD_REQUEST, "bytes behind the URI, before the answer")
        if len(text) < length:
            return None
        return text.decode("utf-8", "replace")


class CarryAnswer:
    """The broker's side: reads the answer and not one byte more.

    :ivar message_bytes: the longest message that goes through, where the scheme daemon has told; else 0.
    """

    def __init__(self) -> None:
        self._got = b""
        self.message_bytes = 0

    @property
    def wanted_bytes(self) -> int:
        """How many bytes may be read next."""
        if len(self._got) < _LENGTH.size:
            return _LENGTH.size - len(self._got)
        return _LENGTH.size + self._length() - len(self._got)

    def receive(self, data: bytes) -> bool:
        """Take what one read brought, empty at the end of the stream; tell whether it is granted.

        :raises Refused: when the scheme daemon said no, hung up, or said anything else.
        """
        self._got += data
        if len(self._got) >= _LENGTH.size:
            if not 0 < self._length() <= ANSWER_BYTES:
                raise Refused(Refusal.UNREACHABLE, "the scheme daemon answered with something else than a message")
            if not self.wanted_bytes:
                return self._judge(self._got[_LENGTH.size :])
        if not data:
            raise Refused(Refusal.UNREACHABLE, "the scheme daemon hung up instead of answering")
        return False

    def _length(self) -> int:
        return int(_LENGTH.unpack_from(self._got)[0])

    def _judge(self, answer: bytes) -> bool:
        granted = _OK.fullmatch(answer)
        if granted is not None:
            self.message_bytes = int(granted[1] or 0)
            return True
        said = printable(answer)
        word, _, _ = said.removeprefix("no ").partition(":")
        for refusal in Refusal:
            if word == refusal.value:
                return self._refuse(refusal, said)
        return self._refuse(Refusal.UNREACHABLE, said)

    def _refuse(self, word: Refusal, said: str) -> bool:
        raise Refused(word, f"the scheme daemon said: {said}")
