"""plumberd.pure.inetdiag: the kernel's answers are read as they are meant, and never beyond their end."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import struct
import sys

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.inetdiag import (
    LISTENING,
    LIVING,
    STATES,
    Answer,
    MalformedError,
    TcpInfo,
    TcpSocket,
    cookie_of,
    destroy_request,
    dump_request,
    tcp_socket,
)
from tests.tables import PROPERTY, each

SEQUENCE = 7
SOCKET, NOOP, FAILED, DONE, OVERRUN = 20, 1, 2, 3, 4

# Taken from a Linux 6.18, with little-endian numbers: the beginning of tcp_info follows each socket.
CAPTURED_4 = bytes.fromhex(
    "02010000a8c696357f0000010000000000000000000000007f0000010000000000000000000000000000000017000000000000000000000005"
    "000000000000000000000046a70100050008000000000008000f00000000000c001500010000000000000006001600520000008c0002000100"
    "00000007aa01400d0300409c0000008000001802000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0ffff0000d7ff00001d0000000e000000ffffff7f0a000000cbff00000300000000000000d7ff000000000000c4f3268307000000ffffffff"
    "ffffffff01000000000000000500000000000000"
)
CAPTURED_6 = bytes.fromhex(
    "0a010000d6b6d1f90000000000000000000000000000000100000000000000000000000000000001000000001900000000000000000000000"
    "50000000000000000000000"
    "4aa70100"
)


def message(kind: int, body: bytes, sequence: int = SEQUENCE) -> bytes:
    """Frame one message as the kernel does, padded."""
    return struct.pack("=IHHII", 16 + len(body), kind, 2, sequence, 4711) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """Frame one attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def body(cookie: int, *attributes: bytes, family: int = 2, state: int = 1) -> bytes:
    """Return what tells of a socket."""
    low, high = cookie & 0xFFFFFFFF, cookie >> 32
    ident = struct.pack(">HH16s16s", 40000, 443, b"\x7f\0\0\1", b"\xc0\0\2\1") + struct.pack("=III", 3, low, high)
    return struct.pack("=BBBB48sIIIII", family, state, 0, 0, ident, 0, 11, 22, 1000, 99) + b"".join(attributes)


def error(number: int, kind: int = FAILED) -> bytes:
    """Return a message with a number, as the kernel tells one."""
    return message(kind, struct.pack("=i", -number))


END = error(0, DONE)


class Requests(SynchronousTestCase):
    def test_a_dump_asks_for_every_living_tcp_socket_of_a_family(self) -> None:
        request = dump_request(2, LIVING, SEQUENCE)
        self.assertEqual(struct.unpack_from("=IHHII", request), (len(request), 20, 0x301, SEQUENCE, 0))
        self.assertEqual(struct.unpack_from("=BBBBI", request, 16), (2, 6, 0, 0, 0xF3E))
        self.assertEqual(request[24:], bytes(40) + b"\xff" * 8)

    def test_closed_sockets_and_those_in_time_wait_are_not_asked_for(self) -> None:
        (states,) = struct.unpack_from("=I", dump_request(10, LIVING, SEQUENCE), 20)
        asked_for = {name for number, name in enumerate(STATES) if states & 1 << number}
        self.assertEqual(asked_for & {"time-wait", "closed", ""}, set())
        self.assertLessEqual({"established", "fin-wait-1", "fin-wait-2", "close-wait", "last-ack", "listen"}, asked_for)

    def test_listening_ones_may_be_asked_for_alone_and_info_besides(self) -> None:
        request = dump_request(10, LISTENING, SEQUENCE, info=True)
        self.assertEqual(struct.unpack_from("=BBBBI", request, 16), (10, 6, 2, 0, 1 << 10))

    def test_an_end_names_the_very_socket(self) -> None:
        raw = body(2**40 + 5)
        request = destroy_request(tcp_socket(raw), SEQUENCE)
        self.assertEqual(struct.unpack_from("=IHHII", request), (len(request), 21, 0x5, SEQUENCE, 0))
        self.assertEqual(struct.unpack_from("=BB", request, 16), (2, 6))
        self.assertEqual(request[24:], raw[4:52])


class AnswerTestCase(SynchronousTestCase):
    def receive(self, *datagrams: bytes) -> tuple[list[int], Answer]:
        """Return the cookies of all of them, and the answer."""
        answer = Answer(SEQUENCE)
        return [cookie_of(found) for datagram in datagrams for found in answer.receive(datagram)], answer


class Answers(AnswerTestCase):
    def test_every_socket_is_told_and_then_the_end(self) -> None:
        first, second = message(SOCKET, body(1)), message(SOCKET, body(2**63 + 1))
        for datagrams in ((first + second + END,), (first, second, END), (first + second, END)):
            cookies, answer = self.receive(*datagrams)
            self.assertEqual((cookies, answer.over), ([1, 2**63 + 1], True))

    def test_before_the_end_it_is_not_over(self) -> None:
        self.assertFalse(self.receive(message(SOCKET, body(1)))[1].over)

    def test_what_follows_the_end_is_not_read(self) -> None:
        self.assertEqual(self.receive(END + message(SOCKET, body(1)), message(SOCKET, body(2)), b"nonsense")[0], [])

    def test_what_answers_something_else_is_passed_over(self) -> None:
        for other in (message(SOCKET, body(5), 8), message(NOOP, b""), message(77, b"new")):
            self.assertEqual(self.receive(other + message(SOCKET, body(1)) + END)[0], [1])

    def test_attributes_of_any_length_are_skipped_with_their_padding(self) -> None:
        for length in range(9):
            datagram = message(SOCKET, body(1, attribute(8, bytes(length)))) + message(SOCKET, body(2)) + END
            self.assertEqual(self.receive(datagram)[0], [1, 2])

    @each(("error", FAILED), ("done", DONE))
    def test_an_error_has_the_kernels_number(self, _: str, kind: int) -> None:
        with self.assertRaises(OSError) as caught:
            self.receive(message(SOCKET, body(1)), error(errno.ENOENT, kind))
        self.assertEqual(caught.exception.errno, errno.ENOENT)

    def test_an_acknowledgement_is_the_end(self) -> None:
        self.assertTrue(self.receive(error(0))[1].over)

    def test_an_end_without_a_number_is_one(self) -> None:
        self.assertTrue(self.receive(message(DONE, b""))[1].over)

    def test_a_part_that_is_lost_is_an_error(self) -> None:
        with self.assertRaises(OSError) as caught:
            self.receive(message(OVERRUN, b""))
        self.assertEqual(caught.exception.errno, errno.ENOBUFS)

    @each(
        ("a header that is cut off", message(SOCKET, body(1))[:15]),
        ("a length beyond the datagram", struct.pack("=IHHII", 89, SOCKET, 2, SEQUENCE, 0) + body(1)),
        ("a length within the header", struct.pack("=IHHII", 15, SOCKET, 2, SEQUENCE, 0) + body(1)),
        ("no length", bytes(16)),
        ("a short socket", message(SOCKET, body(1)[:71])),
        ("an error without a number", message(FAILED, b"")),
        ("text", b"HTTP/1.1 400 Bad Request\r\n"),
    )
    def test_what_is_malformed_is_an_error(self, _: str, datagram: bytes) -> None:
        with self.assertRaises(MalformedError):
            self.receive(datagram)


class Properties(AnswerTestCase):
    cookies = st.lists(st.integers(0, 2**64 - 1), max_size=8)

    @PROPERTY
    @given(cookies, st.lists(st.integers(0, 9), max_size=4))
    def test_however_the_messages_are_spread_over_datagrams_the_sockets_are_the_same(
        self, cookies: list[int], cuts: list[int]
    ) -> None:
        messages = [message(SOCKET, body(cookie, attribute(2, bytes(9)))) for cookie in cookies] + [END]
        ends = sorted({min(cut, len(messages)) for cut in cuts} | {0, len(messages)})
        datagrams = [b"".join(messages[a:b]) for a, b in itertools.pairwise(ends)]
        found, answer = self.receive(*datagrams)
        self.assertEqual((found, answer.over), (cookies, True))

    @PROPERTY
    @given(cookies, st.data())
    def test_a_datagram_that_is_cut_off_tells_of_whole_sockets_only_and_never_that_it_is_over(
        self, cookies: list[int], data: st.DataObject
    ) -> None:
        whole = b"".join(message(SOCKET, body(cookie, attribute(2, bytes(9)))) for cookie in cookies) + END
        cut = data.draw(st.integers(0, len(whole) - 1))
        answer = Answer(SEQUENCE)
        found: list[int] = []
        try:
            for raw in answer.receive(whole[:cut]):
                found.append(cookie_of(raw))
                tcp_socket(raw)
        except MalformedError:
            pass
        self.assertEqual(found, cookies[: len(found)])
        self.assertFalse(answer.over)

    @PROPERTY
    @given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: message(SOCKET, body(1)[:72] + tail)))
    def test_no_bytes_do_anything_but_make_sockets_or_errors(self, datagram: bytes) -> None:
        answer = Answer(SEQUENCE)
        try:
            for raw in answer.receive(datagram):
                self.assertIsInstance(tcp_socket(raw), TcpSocket)
        except (MalformedError, OSError) as e:
            self.assertTrue(str(e))


class Sockets(SynchronousTestCase):
    def test_its_members_are_what_they_are_called(self) -> None:
        found = tcp_socket(body(2**33 + 1, state=8))
        self.assertEqual(
            found,
            TcpSocket(
                cookie=2**33 + 1,
                state="close-wait",
                local=(ipaddress.ip_address("127.0.0.1"), 40000),
                remote=(ipaddress.ip_address("192.0.2.1"), 443),
                uid=1000,
                inode=99,
                unread_bytes=11,
                unsent_bytes=22,
                info=None,
                family=2,
                ident=body(2**33 + 1)[4:52],
            ),
        )

    def test_a_real_one(self) -> None:
        found = tcp_socket(CAPTURED_4)
        loopback = ipaddress.ip_address("127.0.0.1")
        self.assertEqual((found.local, found.remote), ((loopback, 43206), (loopback, 38453)))
        self.assertEqual((found.cookie, found.state, found.inode, found.unread_bytes), (23, "established", 108358, 5))
        self.assertEqual(found.info, TcpInfo(2.9e-05, 0.0, 1, 5))

    def test_a_real_one_of_ipv6(self) -> None:
        found = tcp_socket(CAPTURED_6)
        loopback = ipaddress.ip_address("::1")
        self.assertEqual((found.local, found.remote), ((loopback, 54966), (loopback, 53753)))
        self.assertEqual((found.cookie, found.info), (25, None))

    if sys.byteorder != "little":
        test_a_real_one.skip = test_a_real_one_of_ipv6.skip = "captured elsewhere"  # type: ignore[attr-defined]

    @each((0, None), (71, None), (72, 0.000033), (136, 0.000033), (400, 0.000033))
    def test_of_a_shorter_tcp_info_there_is_what_fits(self, length: int, rtt: float | None) -> None:
        raw = bytearray(400)
        struct.pack_into("=I", raw, 68, 33)
        struct.pack_into("=II", raw, 44, 2500, 0)
        struct.pack_into("=II", raw, 52, 1500, 0)
        struct.pack_into("=QQ", raw, 120, 7, 8)
        info = tcp_socket(body(1, attribute(5, b"x"), attribute(2, bytes(raw[:length])))).info
        assert info is not None
        self.assertEqual(info.rtt_seconds, rtt)
        self.assertEqual(info.idle_seconds, 1.5 if length >= 56 else None)
        self.assertEqual((info.bytes_acked, info.bytes_received), (7, 8) if length >= 136 else (None, None))

    def test_a_state_that_is_not_known_yet_is_told_by_its_number(self) -> None:
        self.assertEqual(tcp_socket(body(1, state=99)).state, "state-99")

    @each(
        ("another family", body(1, family=1)),
        ("too short", body(1)[:71]),
        ("an attribute beyond the end", body(1) + struct.pack("=HH", 9, 5) + b"1234"),
        ("an attribute without length", body(1) + bytes(4)),
    )
    def test_what_is_malformed_is_an_error(self, _: str, raw: bytes) -> None:
        with self.assertRaises(MalformedError):
            tcp_socket(raw)
