"""plumberd.claim: what comes on a claim, in whatever pieces, and whose each descriptor is."""

from __future__ import annotations

import itertools
import socket
from typing import Any

from plumberd.answer import Error, NoBroker, Refused
from plumberd.claim import LONGEST_PAUSE_SECONDS, Claim, claim_request, pauses, peer_of, why_lost
from tests.fake_broker import frame, send
from tests.support import CleanTestCase, is_reset, read_all
from tests.tables import each

GRANTED = {"ok": True, "service": "pong", "rule": "1: allow serve pong"}
ACCEPTED = {"ok": True, "op": "accepted", "fd": True, "service": "pong", "mode": "direct", "identities": []}


class ClaimTestCase(CleanTestCase):
    def claim(self) -> tuple[Claim, socket.socket]:
        """Return a claim, and the broker's end."""
        broker, ours = self.pair()
        ours.setblocking(False)
        claim = Claim(ours)
        self.addCleanup(claim.close)
        return claim, broker

    def granted(self) -> tuple[Claim, socket.socket]:
        claim, broker = self.claim()
        send(broker, frame(GRANTED))
        self.assertIsNone(claim.receive())
        return claim, broker


class Taking(ClaimTestCase):
    def test_it_is_had_when_it_is_granted(self) -> None:
        claim, broker = self.claim()
        self.assertIsNone(claim.rule)
        with self.assertRaises(BlockingIOError):
            claim.receive()
        send(broker, frame(GRANTED))
        self.assertIsNone(claim.receive())
        self.assertEqual(claim.rule, "1: allow serve pong")

    def test_each_connection_comes_with_what_is_told_of_it(self) -> None:
        claim, broker = self.granted()
        for number in range(3):
            far, near = self.pair()
            peer = {"scheme": "tcp", "address": "192.0.2.7", "port": number}
            send(broker, frame({**ACCEPTED, "peer": peer, "rule": "2: allow in pong"}), near.fileno())
            near.close()
            accepted = claim.receive()
            assert accepted is not None
            sock, told = accepted
            with sock:
                far.sendall(b"x")
                self.assertEqual(sock.recv(1), b"x")
                self.assertIsNone(sock.gettimeout())
            self.assertEqual(
                told,
                {"service": "pong", "mode": "direct", "identities": [], "peer": peer, "rule": "2: allow in pong"},
            )
            self.assertEqual(peer_of(told), peer)

    def test_byte_by_byte_it_is_the_same(self) -> None:
        claim, broker = self.granted()
        far, near = self.pair()
        data = frame(ACCEPTED)
        send(broker, data[:1], near.fileno())
        near.close()
        for at in range(1, len(data)):
            with self.assertRaises(BlockingIOError):
                claim.receive()
            send(broker, data[at : at + 1])
        accepted = claim.receive()
        assert accepted is not None
        accepted[0].close()
        self.assertEqual(read_all(far), b"")

    def test_one_that_has_arrived_in_part_is_closed_with_the_claim(self) -> None:
        claim, broker = self.granted()
        far, near = self.pair()
        send(broker, frame(ACCEPTED)[:-1], near.fileno())
        near.close()
        with self.assertRaises(BlockingIOError):
            claim.receive()
        claim.close()
        claim.close()
        self.assertEqual((claim.fileno(), read_all(far)), (-1, b""))

    def test_a_descriptor_with_the_grant_is_closed(self) -> None:
        claim, broker = self.claim()
        far, near = self.pair()
        send(broker, frame(GRANTED), near.fileno())
        near.close()
        claim.receive()
        self.assertEqual(read_all(far), b"")


class Losing(ClaimTestCase):
    def check(self, claim: Claim, kind: type[Error], text: str) -> None:
        with self.assertRaises(Error) as raised:
            claim.receive()
        self.assertIs(type(raised.exception), kind)
        self.assertEqual(why_lost(raised.exception), text)

    def test_a_refusal(self) -> None:
        claim, broker = self.claim()
        send(broker, frame({"ok": False, "error": "denied", "reason": "pong is claimed already"}))
        self.check(claim, Refused, "denied: pong is claimed already")

    def test_a_refusal_later(self) -> None:
        claim, broker = self.granted()
        send(broker, frame({"ok": False, "error": "timeout", "reason": "too slow"}))
        self.check(claim, Refused, "timeout: too slow")

    def test_a_hang_up(self) -> None:
        claim, broker = self.granted()
        broker.close()
        self.check(claim, Error, "the broker hung up")

    def test_a_reset(self) -> None:
        claim, broker = self.granted()
        self.addCleanup(is_reset, broker)
        broker.shutdown(socket.SHUT_RDWR)
        self.check(claim, Error, "the broker hung up")

    @each(
        (ACCEPTED, "the broker accepted a connection and sent no descriptor"),
        ([], "the broker's answer is no JSON object"),
    )
    def test_a_message_that_is_none(self, message: Any, text: str) -> None:
        claim, broker = self.granted()
        send(broker, frame(message))
        self.check(claim, Error, text)

    def test_what_people_are_told(self) -> None:
        self.assertEqual(why_lost(NoBroker(2, "no broker answers")), "no broker answers")


class Values(CleanTestCase):
    def test_the_request(self) -> None:
        self.assertEqual(claim_request("pong"), {"op": "serve", "service": "pong"})

    def test_pauses_double_up_to_the_longest(self) -> None:
        found = [*itertools.islice(pauses(), 12)]
        self.assertEqual(found[:4], [0.1, 0.2, 0.4, 0.8])
        self.assertEqual(found[-1], LONGEST_PAUSE_SECONDS)
        self.assertEqual(found, sorted(found))

    @each(({},), ({"peer": None},), ({"peer": "tcp"},), ({"peer": []},))
    def test_a_peer_that_is_none_is_nobody(self, told: dict[str, Any]) -> None:
        self.assertEqual(peer_of(told), {})
