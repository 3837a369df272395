"""What a client's end of a connection is like: the type of its socket, and how messages look on it.

Bytes of a stream fit any end, or are cut for it on their way. A scheme that
carries messages (``udp``, say) has to know beforehand, and makes the client's
end itself.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from plumberd.pure.uri import Uri


class SocketType(enum.Enum):
    """What a native lookup's ``type`` may say."""

    STREAM = "stream"
    SEQPACKET = "seqpacket"
    DGRAM = "dgram"

    @property
    def packets(self) -> bool:
        """Whether the socket keeps messages apart by itself."""
        return self is not SocketType.STREAM


@dataclass(frozen=True)
class Shape:
    """The client's end.

    :ivar framing: how the client's messages look, a name of :class:`plumberd.framing.Framing`: on a stream
        one behind the other, in packets each by itself. ``raw``: one read, one packet, is a message.
    """

    type: SocketType = SocketType.STREAM
    framing: str = "raw"

    @property
    def packets(self) -> bool:
        """Whether it is one that keeps messages apart by itself."""
        return self.type.packets

    def framing_for(self, uri: Uri | None) -> str:
        """Return how messages look, where *uri* may say it better."""
        return (uri.option("framing") if uri is not None else None) or self.framing


STREAM = Shape()
"""Bytes, for whoever carries messages in them in a way that is nobody else's business."""
