"""plumberd.pure.tls_records: the records of RFC 8448, what has no place behind a handshake, new keys and limits."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.tls_records import (
    ALERT,
    CONTENT_BYTES,
    DATA,
    HANDSHAKE,
    MOST_IN_VAIN,
    MOST_RECORDS,
    OVERHEAD_BYTES,
    PAYING_BYTES,
    SUITES,
    Alerted,
    Opener,
    Sealer,
    Suite,
    Unreadable,
    asked_content_bytes,
    expand,
    message_of,
)
from tests.tables import PROPERTY, each
from tests.tls_records import Keys

SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
"""The client's first traffic secret in RFC 8448, 3."""

RECORD = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a29"
    "77014bd1e3deae63aeebb21694915e4"
)
"""… and the first record that it protects: 50 bytes, 0 to 49."""

AES = SUITES["TLS_AES_128_GCM_SHA256"]
TICKET = b"\4\0\0\x0a" + b"t" * 10
KEY_UPDATE = b"\x18\0\0\1"


class RecordsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.sealer = Sealer(AES, SECRET)
        self.opener = Opener(AES, SECRET, is_client=True)

    def opened(self, data: bytes, room: int = 1 << 18) -> bytes:
        """Return the content of *data*; what is no whole record is kept in ``self.rest``."""
        raw, out = memoryview(bytearray(data)), memoryview(bytearray(room))
        start, end, self.left = self.opener.open_into(raw, 0, len(raw), out, 0)
        self.rest = bytes(raw[start:])
        return bytes(out[:end])

    def sealed(self, data: bytes) -> bytes:
        """Return the records of *data*."""
        room = memoryview(bytearray(data + b"?"))
        out = memoryview(bytearray(len(data) + OVERHEAD_BYTES * (len(data) // CONTENT_BYTES + 1)))
        length = self.sealer.seal_into(room, 0, len(data), out)
        self.assertEqual(bytes(room), data + b"?")
        return bytes(out[:length])

    def fails(self, alert: int, *records: tuple[int, bytes]) -> None:
        """The opener ends with *alert* at the last of *records*, behind the content of those before."""
        *good, last = (self.sealer.seal(kind, content) for kind, content in records)
        for record in good:
            self.opened(record)
            self.assertIsNone(self.opener.fault)
        self.opened(last)
        assert isinstance(self.opener.fault, Unreadable), self.opener.fault
        self.assertEqual(self.opener.fault.alert, alert)


class Examples(RecordsTestCase):
    """RFC 8448, 3."""

    def test_the_key_and_the_nonce_s_base(self) -> None:
        self.assertEqual(expand(AES, SECRET, b"key", 16).hex(), "17422dda596ed5d9acd890e3c63f5051")
        self.assertEqual(expand(AES, SECRET, b"iv", 12).hex(), "5b78923dee08579033e523d9")

    def test_a_record_is_read(self) -> None:
        self.assertEqual(self.opened(RECORD), bytes(range(50)))

    def test_the_same_is_written(self) -> None:
        self.assertEqual(self.sealed(bytes(range(50))), RECORD)
        self.assertEqual(Sealer(AES, SECRET).seal(DATA, bytes(range(50))), RECORD)


class ThereAndBack(RecordsTestCase):
    @each(*((name,) for name in SUITES))
    def test_every_suite(self, name: str) -> None:
        suite: Suite = SUITES[name]
        secret = bytes(range(suite.hash_bytes))
        self.sealer, self.opener = Sealer(suite, secret), Opener(suite, secret, is_client=False)
        data = bytes(range(256)) * 200
        self.assertEqual(self.opened(self.sealed(data)), data)

    @each((0,), (1,), (CONTENT_BYTES - 1,), (CONTENT_BYTES,), (CONTENT_BYTES + 1,), (5 * CONTENT_BYTES,))
    def test_every_length(self, length: int) -> None:
        data = bytes(length)
        records = self.sealed(data)
        self.assertEqual(len(records), length + OVERHEAD_BYTES * -(-length // CONTENT_BYTES))
        self.assertEqual((self.opened(records), self.rest), (data, b""))

    @PROPERTY
    @given(st.lists(st.binary(min_size=1, max_size=400), max_size=6), st.lists(st.integers(1, 500), max_size=8))
    def test_however_it_is_dealt_out(self, pieces: list[bytes], cuts: list[int]) -> None:
        self.setUp()
        stream = b"".join(self.sealed(piece) for piece in pieces)
        got = part = b""
        for cut in (*cuts, len(stream)):
            data, stream = stream[:cut], stream[cut:]
            got += self.opened(part + data)
            part = self.rest
        self.assertEqual((got, part), (b"".join(pieces), b""))

    def test_an_independent_reader_reads_it_and_an_independent_writer_is_read(self) -> None:
        other = Keys(SECRET)
        records = [self.sealed(b"one"), self.sealer.seal(ALERT, b"\1\0")]
        self.assertEqual([other.open(record) for record in records], [(DATA, b"one"), (ALERT, b"\1\0")])
        self.assertEqual(self.opened(Keys(SECRET).seal(DATA, b"two")), b"two")

    def test_padding_is_taken_off(self) -> None:
        padded = Keys(SECRET)
        header = b"\x17\3\3" + (7 + 5 + 16).to_bytes(2, "big")
        body = padded._aead.encrypt(padded._nonce(), b"padded\x17" + bytes(5), header)
        self.assertEqual(self.opened(header + body), b"padded")

    def test_what_has_no_room_is_left(self) -> None:
        records = self.sealed(b"one") + self.sealed(b"two")
        self.assertEqual(self.opened(records, room=6), b"one")
        self.assertEqual(self.opened(self.rest), b"two")

    def test_a_writer_may_begin_behind_records(self) -> None:
        self.opened(self.sealer.seal(HANDSHAKE, TICKET))
        self.sealer = Sealer(AES, SECRET, sequence=1)
        self.assertEqual(self.opened(self.sealed(b"x")), b"x")


class Ends(RecordsTestCase):
    def test_an_orderly_one_comes_behind_everything_and_nothing_behind_it(self) -> None:
        data = self.sealed(b"last") + self.sealer.seal(ALERT, b"\1\0") + self.sealed(b"too late")
        self.assertEqual(self.opened(data), b"last")
        self.assertTrue(self.opener.ended)
        self.assertIsNone(self.opener.fault)

    def test_a_cancelling_user_is_no_end(self) -> None:
        self.assertEqual(self.opened(self.sealer.seal(ALERT, b"\1\x5a") + self.sealed(b"x")), b"x")

    def test_whoever_breaks_off_says_why_and_what_was_said_before_is_read(self) -> None:
        self.assertEqual(self.opened(self.sealed(b"x") + self.sealer.seal(ALERT, b"\2\x2d")), b"x")
        assert isinstance(self.opener.fault, Alerted)
        self.assertEqual(self.opener.fault.alert, 45)

    @PROPERTY
    @given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
    def test_a_change_is_seen(self, at: int, change: int) -> None:
        self.setUp()
        changed = bytearray(RECORD)
        changed[at] ^= change
        self.assertEqual(self.opened(bytes(changed)), b"")
        if self.opener.fault is None:  # its length says that it goes on
            self.assertEqual(self.rest, bytes(changed))

    def test_a_record_that_comes_twice_is_seen(self) -> None:
        self.assertEqual(self.opened(RECORD + RECORD), bytes(range(50)))
        assert isinstance(self.opener.fault, Unreadable)
        self.assertEqual(self.opener.fault.alert, 20)


class OutOfPlace(RecordsTestCase):
    @each(
        ("a record that is not protected", b"\x15\3\3\0\2\2\0", 10),
        ("a change of the cipher", b"\x14\3\3\0\1\1", 10),
        ("another protocol", b"HTTP/1.1 400", 10),
        ("a record that is too long", b"\x17\3\3\x41\1", 22),
        ("the longest that is not", b"\x17\3\3\x41\0", None),
        ("a record that holds nothing", b"\x17\3\3\0\x10" + bytes(16), 50),
    )
    def test_a_header(self, what: str, data: bytes, alert: int | None) -> None:
        self.opened(data)
        fault = self.opener.fault
        self.assertEqual(fault.alert if isinstance(fault, Unreadable) else None, alert)

    @each(
        ("an alert of one byte", [(ALERT, b"\2")], 50),
        ("an alert of three bytes", [(ALERT, b"\2\0\0")], 50),
        ("no message at all", [(HANDSHAKE, b"")], 10),
        ("a hello", [(HANDSHAKE, b"\1\0\0\0")], 10),
        ("a wish for a certificate", [(HANDSHAKE, b"\x0d\0\0\0")], 10),
        ("a message that is too long", [(HANDSHAKE, b"\4\1\0\1")], 47),
        ("keys that are wanted otherwise", [(HANDSHAKE, KEY_UPDATE + b"\2")], 47),
        ("new keys of a wrong length", [(HANDSHAKE, b"\x18\0\0\2\0\0")], 47),
        ("a message behind new keys", [(HANDSHAKE, KEY_UPDATE + b"\0" + TICKET)], 10),
        ("data in the middle of a message", [(HANDSHAKE, TICKET[:7]), (DATA, b"x")], 10),
        ("an end in the middle of a message", [(HANDSHAKE, TICKET[:7]), (ALERT, b"\1\0")], 10),
        ("too many that are empty", [(DATA, b"")] * (MOST_IN_VAIN + 1), 10),
        ("too many tickets", [(HANDSHAKE, TICKET)] * (MOST_IN_VAIN + 1), 10),
    )
    def test_a_record(self, what: str, records: Sequence[tuple[int, bytes]], alert: int) -> None:
        self.fails(alert, *records)

    def test_too_many_new_keys(self) -> None:
        for _ in range(MOST_IN_VAIN):
            self.opened(self.sealer.seal_new_keys())
        self.assertIsNone(self.opener.fault)
        self.opened(self.sealer.seal_new_keys())
        assert isinstance(self.opener.fault, Unreadable)

    def test_a_client_s_ticket(self) -> None:
        self.opener = Opener(AES, SECRET, is_client=False)
        self.fails(10, (HANDSHAKE, TICKET))

    def test_a_record_without_a_type(self) -> None:
        keys = Keys(SECRET)
        header = b"\x17\3\3" + (8 + 16).to_bytes(2, "big")
        self.opened(header + keys._aead.encrypt(keys._nonce(), bytes(8), header))
        assert isinstance(self.opener.fault, Unreadable)
        self.assertEqual(self.opener.fault.alert, 10)

    def test_more_content_than_a_record_has(self) -> None:
        keys = Keys(SECRET)
        plain = bytes(CONTENT_BYTES + 1) + b"\x17"
        header = b"\x17\3\3" + (len(plain) + 16).to_bytes(2, "big")
        self.opened(header + keys._aead.encrypt(keys._nonce(), plain, header))
        assert isinstance(self.opener.fault, Unreadable)
        self.assertEqual(self.opener.fault.alert, 22)

    @each((CONTENT_BYTES, 0, None), (CONTENT_BYTES, 1, 22), (CONTENT_BYTES - 9, 9, None), (1, CONTENT_BYTES, 22))
    def test_the_longest_one_with_its_padding(self, length: int, padding: int, alert: int | None) -> None:
        keys = Keys(SECRET)
        plain = bytes(length) + b"\x17" + bytes(padding)
        header = b"\x17\3\3" + (len(plain) + 16).to_bytes(2, "big")
        got = self.opened(header + keys._aead.encrypt(keys._nonce(), plain, header))
        self.assertEqual(got, b"" if alert else bytes(length))
        self.assertEqual(getattr(self.opener.fault, "alert", None), alert)


class Messages(RecordsTestCase):
    def test_tickets_are_passed_over_in_parts_and_several_at_once(self) -> None:
        stream = TICKET * 3
        for part in (stream[:2], stream[2:20], stream[20:]):
            self.assertEqual(self.opened(self.sealer.seal(HANDSHAKE, part)), b"")
        self.assertEqual(self.opened(self.sealed(b"x")), b"x")

    def test_data_makes_up_for_what_brought_nothing_by_its_length(self) -> None:
        data = bytes(PAYING_BYTES)
        for _ in range(3 * MOST_IN_VAIN):
            self.opened(self.sealer.seal(DATA, b"") + self.sealed(b"x"))
            self.assertEqual(self.opened(self.sealed(data)), data)
        for _ in range(MOST_IN_VAIN):
            self.opened(self.sealer.seal(DATA, b"") + self.sealed(b"x"))
        self.assertIsNone(self.opener.fault)
        self.opened(self.sealer.seal(DATA, b""))
        assert isinstance(self.opener.fault, Unreadable)

    def test_what_was_written_makes_up_too(self) -> None:
        for _ in range(3 * MOST_IN_VAIN):
            self.opened(self.sealer.seal_new_keys())
            self.opener.pay(PAYING_BYTES)
        self.assertIsNone(self.opener.fault)

    def test_so_many_are_read_at_once(self) -> None:
        records = b"".join(self.sealed(b"a") for _ in range(MOST_RECORDS + 3))
        self.assertEqual(self.opened(records), b"a" * MOST_RECORDS)
        self.assertEqual(self.left, 0)
        self.assertEqual(self.opened(self.rest), b"aaa")
        self.assertEqual((self.left, self.rest), (MOST_RECORDS - 3, b""))

    def test_new_keys_without_a_wish(self) -> None:
        self.assertEqual(self.opened(self.sealer.seal_new_keys() + self.sealed(b"new")), b"new")
        self.assertFalse(self.opener.owes_keys)

    def test_new_keys_that_are_wanted_here_too(self) -> None:
        data = self.sealer.seal(HANDSHAKE, KEY_UPDATE + b"\1")
        self.sealer.update()
        self.assertEqual(self.opened(data + self.sealed(b"new")), b"new")
        self.assertTrue(self.opener.owes_keys)

    def test_an_independent_reader_follows(self) -> None:
        other = Keys(SECRET)
        self.assertEqual(other.open(self.sealer.seal_new_keys()), (HANDSHAKE, KEY_UPDATE + b"\0"))
        other.update()
        self.assertEqual(other.open(self.sealed(b"new")), (DATA, b"new"))

    def test_keys_wear_out(self) -> None:
        self.assertFalse(Sealer(AES, SECRET, (1 << 24) - 1).is_worn)
        worn = Sealer(AES, SECRET, 1 << 24)
        self.assertTrue(worn.is_worn)
        worn.seal_new_keys()
        self.assertFalse(worn.is_worn)


class Short(SynchronousTestCase):
    """Clients that ask for short records (RFC 6066, 4)."""

    def hello(self, extensions: bytes) -> bytes:
        body = b"\3\3" + bytes(32) + b"\2id" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2, "big") + extensions
        return b"\1" + len(body).to_bytes(3, "big") + body

    @each(
        ("nothing", b"", CONTENT_BYTES),
        ("512", b"\0\1\0\1\1", 512),
        ("4096, behind another", b"\0\x17\0\0\0\1\0\1\4", 4096),
        ("what is not defined", b"\0\1\0\1\5", CONTENT_BYTES),
        ("the same bytes in another extension", b"\0\x17\0\5\0\1\0\1\1", CONTENT_BYTES),
        ("cut off", b"\0\1\0\1", CONTENT_BYTES),
    )
    def test_what_is_asked_for(self, what: str, extensions: bytes, wanted: int) -> None:
        self.assertEqual(asked_content_bytes(self.hello(extensions)), wanted)

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_whatever_a_hello_is_there_is_an_answer(self, data: bytes) -> None:
        self.assertIn(asked_content_bytes(data + b"\0\1\0\1\1" + data), (512, 1024, 2048, 4096, CONTENT_BYTES))
        self.assertLessEqual(len(message_of(data)), len(data))

    def test_a_message_in_several_records(self) -> None:
        self.assertEqual(message_of(b"\x16\3\1\0\2ab\x16\3\3\0\1c\x14\3\3\0\1\1"), b"abc")

    def test_short_records_are_written(self) -> None:
        sealer, opener = Sealer(AES, SECRET, most=512), Opener(AES, SECRET, is_client=True)
        data = bytes(range(256)) * 5
        room, out = memoryview(bytearray(data + b"?")), memoryview(bytearray(2000))
        length = sealer.seal_into(room, 0, len(data), out)
        self.assertEqual(length, len(data) + 3 * OVERHEAD_BYTES)
        got = memoryview(bytearray(2000))
        _, end, _ = opener.open_into(out, 0, length, got, 0)
        self.assertEqual(bytes(got[:end]), data)
