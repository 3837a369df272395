"""plumberd.pure.shape: what a client's end of a connection is like."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from plumberd.framing import Framing
from plumberd.pure.shape import STREAM, Shape, SocketType
from plumberd.pure.uri import parse_uri
from tests.tables import each


class Shapes(SynchronousTestCase):
    @each((SocketType.STREAM, False), (SocketType.SEQPACKET, True), (SocketType.DGRAM, True))
    def test_what_keeps_messages_apart(self, kind: SocketType, packets: bool) -> None:
        self.assertEqual((kind.packets, Shape(kind).packets), (packets, packets))

    def test_by_default_it_is_a_stream_of_bytes(self) -> None:
        self.assertEqual((STREAM.type, Framing(STREAM.framing)), (SocketType.STREAM, Framing.RAW))

    @each(
        ("the_uri_s", "tcp://h:1?framing=libipc-zig", "raw", "libipc-zig"),
        ("its_own", "tcp://h:1", "libipc-2023", "libipc-2023"),
        ("raw_by_the_uri", "tcp://h:1?framing=raw", "libipc-2023", "raw"),
    )
    def test_the_framing_is_the_uri_s_before_its_own(self, _: str, uri: str, own: str, framing: str) -> None:
        self.assertEqual(Shape(framing=own).framing_for(parse_uri(uri)), framing)

    def test_without_a_uri_it_is_its_own(self) -> None:
        self.assertEqual(Shape(framing="libipc-2019").framing_for(None), "libipc-2019")
