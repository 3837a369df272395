"""plumberd.pure.dialects: the one table, and what holds for every row of it."""

from __future__ import annotations

import json
import struct

from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects import DEFAULT, DIALECTS, Dialect, Kind
from plumberd.pure.dialects.base import Request
from plumberd.pure.names import is_reserved
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from tests.codec_contract import LIMIT, byte_by_byte, fed
from tests.tables import each

TEXT = b"pong;pong tcp://127.0.0.1:9700/pong"
LOOKUPS = {
    "native": json.dumps({"op": "lookup", "service": "pong", "routes": "pong tcp://127.0.0.1:9700/pong"}).encode(),
    "libipc-2019": TEXT,
    "libipc-2020": TEXT,
    "libipc-2023": TEXT,
    "libipc-zig": TEXT,
}
ROWS = tuple(DIALECTS.items())


def framed(name: str) -> bytes:
    """Frame the lookup of dialect *name*."""
    payload = LOOKUPS[name]
    length = struct.pack(">I", len(payload))
    return b"\3" + length + b"\3" + payload if name.startswith("libipc-20") else length + payload


class Table(SynchronousTestCase):
    @each(
        ("native", "plumberd", Kind.STREAM, True),
        ("libipc-2019", "network-0-0", Kind.PACKET, False),
        ("libipc-2020", "network", Kind.PACKET, False),
        ("libipc-2023", "network", Kind.STREAM, False),
        ("libipc-zig", "ipc", Kind.STREAM, False),
    )
    def test_a_dialect_has_the_socket_its_clients_look_for(
        self, name: str, socket: str, kind: Kind, conversation: bool
    ) -> None:
        row = DIALECTS[name]
        self.assertEqual((row.name, row.socket_name, row.kind), (name, socket, kind))
        self.assertIs(row.conversation, conversation)

    def test_no_two_dialects_of_the_default_share_a_socket(self) -> None:
        names = [DIALECTS[name].socket_name for name in DEFAULT]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(DEFAULT[0], "native")

    @each(*ROWS)
    def test_no_service_can_be_called_as_a_dialect_s_socket(self, _: str, row: Dialect) -> None:
        self.assertTrue(is_reserved(row.socket_name) and is_reserved(row.socket_name + ".lock"))


class EveryDialect(SynchronousTestCase):
    @each(*ROWS)
    def test_reads_the_same_lookup(self, name: str, row: Dialect) -> None:
        wanted = [Request("lookup", "pong", Pairs(b"pong tcp://127.0.0.1:9700/pong"))]
        self.assertEqual(fed(row.decoder(LIMIT), framed(name)), wanted)
        if row.kind is Kind.STREAM:
            self.assertEqual(fed(row.decoder(LIMIT), *byte_by_byte(framed(name))), wanted)

    @each(*ROWS)
    def test_sends_the_descriptor_once_and_last(self, _: str, row: Dialect) -> None:
        sends = row.grant(Request("lookup", "pong"), "locked", "1: allow out pong any")
        self.assertEqual([send.descriptor for send in sends], [False] * (len(sends) - 1) + [True])
        self.assertTrue(all(send.data for send in sends))

    @each(*ROWS)
    def test_refuses_with_the_word(self, name: str, row: Dialect) -> None:
        for word in Refusal:
            data = row.refuse(None, word, "a reason")
            if name == "libipc-2019":
                self.assertEqual(data, b"")  # its clients are hung up on without a word
                continue
            self.assertIn(word.value.encode(), data)
            self.assertIn(b"a reason", data)
