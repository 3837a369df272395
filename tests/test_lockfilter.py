"""plumberd.pure.lockfilter: the program, run against packets by an interpreter of classic BPF."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.lockfilter import INSTRUCTION_BYTES, lock_program
from plumberd.pure.uri import IPAddress
from tests.tables import PROPERTY, each

NETWORK_OFFSET = 0xFFF00000
"""SKF_NET_OFF of linux/filter.h, as the unsigned number that an instruction holds."""

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

PEER4 = ipaddress.ip_address("192.0.2.7")
PEER6 = ipaddress.ip_address("2001:db8:1:2:3:4:5:6")
HERE4 = ipaddress.ip_address("198.51.100.1")
HERE6 = ipaddress.ip_address("2001:db8::1")


@dataclass(frozen=True)
class Packet:
    """One arriving segment: its IP header, and what follows that."""

    network: bytes
    transport: bytes


def segment(source: IPAddress, port: int, flags: int, data: bytes = b"", to_port: int = 40000) -> Packet:
    """Build a segment that arrives from *source* and *port*."""
    transport = struct.pack(">HHIIBBHHH", port, to_port, 1, 1, 5 << 4, flags, 1000, 0, 0) + data
    if isinstance(source, ipaddress.IPv4Address):
        size = 20 + len(transport)
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 6, 0, source.packed, HERE4.packed)
    else:
        header = struct.pack(">IHBB16s16s", 6 << 28, len(transport), 6, 64, source.packed, HERE6.packed)
    return Packet(header, transport)


def accepted_bytes(program: bytes, packet: Packet) -> int:
    """Run *program* as the kernel does; return how many bytes it lets through, 0 to drop the segment."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        if code in (0x20, 0x28, 0x30):  # load 4, 2 or 1 bytes from a fixed place
            size = {0x20: 4, 0x28: 2, 0x30: 1}[code]
            data, offset = (packet.network, k - NETWORK_OFFSET) if k >= NETWORK_OFFSET else (packet.transport, k)
            if offset + size > len(data):
                return 0  # the kernel drops what a program reads beyond
            accumulator = int.from_bytes(data[offset : offset + size], "big")
        elif code == 0x15:  # jump if equal
            at += if_true if accumulator == k else if_false
        elif code == 0x45:  # jump if a bit is set
            at += if_true if accumulator & k else if_false
        elif code == 0x06:  # return
            return int(k)
        else:
            raise AssertionError(f"the interpreter does not know instruction {code:#x}")


def passes(packet: Packet, address: IPAddress, port: int) -> bool:
    """Tell whether the lock for *address* and *port* lets the whole of *packet* through."""
    accepted = accepted_bytes(lock_program(address, port), packet)
    if 0 < accepted < len(packet.transport):
        raise AssertionError(f"cut to {accepted} bytes")
    return accepted > 0


class Peer(SynchronousTestCase):
    @each(
        ("v4", PEER4),
        ("v6", PEER6),
        ("v6_of_small_words", ipaddress.ip_address("::1")),
        ("v4_of_large_ones", ipaddress.ip_address("255.255.255.254")),
    )
    def test_the_agreed_peer_s_segments_pass_whole(self, _: str, peer: IPAddress) -> None:
        self.assertTrue(passes(segment(peer, 443, ACK, b"x" * 1448), peer, 443))

    @each(
        ("port", PEER4, PEER4, 444),
        ("port_with_the_bytes_swapped", PEER4, PEER4, 0xBB01),
        ("v4_next_address", PEER4, PEER4 + 1, 443),
        ("v4_first_byte", PEER4, ipaddress.ip_address("193.0.2.7"), 443),
        ("v4_our_own", PEER4, HERE4, 443),
        ("v6_port", PEER6, PEER6, 442),
        ("v6_first_word", PEER6, ipaddress.ip_address("2002:db8:1:2:3:4:5:6"), 443),
        ("v6_second_word", PEER6, ipaddress.ip_address("2001:db8:2:2:3:4:5:6"), 443),
        ("v6_third_word", PEER6, ipaddress.ip_address("2001:db8:1:2:3:5:5:6"), 443),
        ("v6_last_word", PEER6, ipaddress.ip_address("2001:db8:1:2:3:4:5:7"), 443),
        ("v6_our_own", PEER6, HERE6, 443),
    )
    def test_anybody_else_s_are_dropped(self, _: str, peer: IPAddress, source: IPAddress, port: int) -> None:
        self.assertFalse(passes(segment(source, port, ACK, b"data"), peer, 443))

    def test_it_is_the_source_port_that_counts_and_not_ours(self) -> None:
        self.assertFalse(passes(segment(PEER4, 40000, ACK, to_port=443), PEER4, 443))

    @each(("v4", PEER4), ("v6", PEER6))
    def test_a_segment_cut_short_is_dropped(self, _: str, peer: IPAddress) -> None:
        whole = segment(peer, 443, ACK)
        for length in range(14):
            self.assertFalse(passes(Packet(whole.network, whole.transport[:length]), peer, 443))
        self.assertTrue(passes(Packet(whole.network, whole.transport[:14]), peer, 443))

    def test_ip_options_do_not_hide_the_peer(self) -> None:
        packet = segment(PEER4, 443, ACK)
        longer = Packet(b"\x46" + packet.network[1:] + b"\x01\x01\x01\x00", packet.transport)
        self.assertTrue(passes(longer, PEER4, 443))


class Flags(SynchronousTestCase):
    @each(
        ("syn", SYN),
        ("syn_ack", SYN | ACK),
        ("syn_fin", SYN | FIN),
        ("syn_rst", SYN | RST),
        ("syn_ecn", SYN | ECE | CWR),
        ("all", 0xFF),
    )
    def test_no_syn_passes_not_even_the_peer_s(self, _: str, flags: int) -> None:
        self.assertFalse(passes(segment(PEER4, 443, flags), PEER4, 443))
        self.assertFalse(passes(segment(PEER6, 443, flags), PEER6, 443))

    @each(
        ("ack", ACK),
        ("data", ACK | PSH),
        ("end", ACK | FIN),
        ("reset", RST),
        ("reset_ack", RST | ACK),
        ("urgent", ACK | URG),
        ("congestion", ACK | ECE | CWR),
        ("none", 0),
        ("all_but_syn", 0xFF & ~SYN),
    )
    def test_everything_else_of_the_peer_passes(self, _: str, flags: int) -> None:
        self.assertTrue(passes(segment(PEER4, 443, flags), PEER4, 443))
        self.assertTrue(passes(segment(PEER6, 443, flags), PEER6, 443))


class Program(SynchronousTestCase):
    @PROPERTY
    @given(st.ip_addresses(), st.integers(1, 65535), st.ip_addresses(), st.integers(0, 65535), st.integers(0, 255))
    def test_a_segment_passes_if_and_only_if_it_is_the_peer_s_without_syn(
        self, peer: IPAddress, port: int, source: IPAddress, source_port: int, flags: int
    ) -> None:
        for a in (peer, source):
            for p in (port, source_port):
                if a.version == peer.version:
                    wanted = (a, p) == (peer, port) and not flags & SYN
                    self.assertEqual(passes(segment(a, p, flags), peer, port), wanted)

    @each(("v4", PEER4, 8), ("v6", PEER6, 14))
    def test_it_is_short_and_every_way_through_it_ends(self, _: str, peer: IPAddress, length: int) -> None:
        program = lock_program(peer, 443)
        instructions = list(struct.iter_unpack("=HBBI", program))
        self.assertEqual((len(instructions), INSTRUCTION_BYTES), (length, 8))
        for at, (code, if_true, if_false, _k) in enumerate(instructions):
            if code in (0x15, 0x45):
                self.assertLess(at + 1 + max(if_true, if_false), length)
        self.assertEqual([code for code, *_ in instructions][-2:], [0x06, 0x06])
