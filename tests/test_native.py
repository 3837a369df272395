"""plumberd.pure.dialects.native: a length, then a JSON object, in both directions."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.dialects.base import Decoder, Malformed, Refused, Request
from plumberd.pure.dialects.native import (
    IDENT_CHARS,
    MESSAGE_BYTES,
    MOST_WORDS,
    OPS,
    NativeDecoder,
    answer,
    grant,
    refuse,
)
from plumberd.pure.pairs import Pairs
from plumberd.pure.refusals import Refusal
from plumberd.pure.shape import SocketType
from tests import codec_contract
from tests.codec_contract import LIMIT, fed
from tests.tables import PROPERTY, each

DGRAM = SocketType.DGRAM

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(
    ("op", "id", "service", "routes", "uri", "services", "type", "control", "as", "after", "fd", "")
)
messages = st.dictionaries(members, json_values | st.sampled_from((*OPS, "pong", "tcp", "tls://h:1")), max_size=5)


def framed(payload: bytes) -> bytes:
    """Frame *payload*."""
    return struct.pack(">I", len(payload)) + payload


def frame(message: Any) -> bytes:
    """Frame *message* as JSON."""
    return framed(json.dumps(message).encode())


def decoded(message: Any) -> Request | Refused:
    """Return what the one *message* is read as."""
    (found,) = fed(NativeDecoder(LIMIT), frame(message))
    return found


def opened(data: bytes) -> Any:
    """Return the JSON of one answer, after checking its frame."""
    length, payload = struct.unpack(">I", data[:4])[0], data[4:]
    if length != len(payload):
        raise AssertionError(f"a length of {length} in front of {len(payload)} bytes")
    return json.loads(payload)


class Contract(codec_contract.DecoderContract):
    message = frame({"op": "lookup", "id": 7, "service": "pong", "routes": "pong tcp://127.0.0.1:9700/pong"})
    request = Request("lookup", "pong", Pairs(b"pong tcp://127.0.0.1:9700/pong"), ident=7)

    def decoder(self, limit: int = LIMIT) -> Decoder:
        return NativeDecoder(limit)

    def of_size(self, size: int) -> bytes:
        return framed(json.dumps({"op": "status"}).encode().ljust(size))


class Requests(SynchronousTestCase):
    @each(
        ("service", {"op": "lookup", "service": "pong"}, Request("lookup", "pong")),
        (
            "routes",
            {"op": "lookup", "service": "pong", "routes": "pong tls://é.example"},
            Request("lookup", "pong", Pairs("pong tls://é.example".encode())),
        ),
        ("empty_routes", {"op": "lookup", "service": "pong", "routes": ""}, Request("lookup", "pong")),
        ("uri", {"op": "lookup", "uri": "tcp://h:1/x"}, Request("lookup", uri="tcp://h:1/x")),
        (
            "null_is_missing",
            {"op": "lookup", "service": "pong", "routes": None, "uri": None, "id": None},
            Request("lookup", "pong"),
        ),
        ("stream", {"op": "lookup", "service": "a", "type": "stream"}, Request("lookup", "a", type=SocketType.STREAM)),
        (
            "seqpacket",
            {"op": "lookup", "uri": "udp://h", "type": "seqpacket"},
            Request("lookup", uri="udp://h", type=SocketType.SEQPACKET),
        ),
        ("dgram", {"op": "lookup", "uri": "udp://h", "type": "dgram"}, Request("lookup", uri="udp://h", type=DGRAM)),
        ("null_type", {"op": "lookup", "service": "a", "type": None}, Request("lookup", "a")),
        ("status", {"op": "status"}, Request("status")),
        ("status_with_id", {"op": "status", "id": "x"}, Request("status", ident="x")),
        ("why", {"op": "why", "service": "pong"}, Request("why", members={"service": "pong"})),
        (
            "explain",
            {"op": "explain", "direction": "out", "service": "pong", "as": ["user:alice", "confined"]},
            Request("explain", members={"direction": "out", "service": "pong", "as": ["user:alice", "confined"]}),
        ),
        ("confine", {"op": "confine", "services": ["a", "b"]}, Request("confine", members={"services": ["a", "b"]})),
        (
            "confine_with_all",
            {"op": "confine", "services": ["a"], "routes": "a tcp://h:1", "control": True, "id": 1},
            Request("confine", ident=1, members={"services": ["a"], "routes": "a tcp://h:1", "control": True}),
        ),
        (
            "confine_with_nulls",
            {"op": "confine", "services": ["a"], "routes": None, "control": None},
            Request("confine", members={"services": ["a"]}),
        ),
        (
            "most_words",
            {"op": "confine", "services": ["a"] * MOST_WORDS},
            Request("confine", members={"services": ["a"] * MOST_WORDS}),
        ),
        ("serve", {"op": "serve", "service": "pong"}, Request("serve", members={"service": "pong"})),
        ("ss", {"op": "ss"}, Request("ss")),
        ("ss_after", {"op": "ss", "after": "12"}, Request("ss", members={"after": "12"})),
        ("kill", {"op": "kill", "connection": "12"}, Request("kill", members={"connection": "12"})),
    )
    def test_a_request_is_read(self, _: str, message: Any, request: Request) -> None:
        self.assertEqual(decoded(message), request)

    @each(
        ("no_op", {"service": "pong"}, "op: wanted one of lookup, status"),
        ("null_op", {"op": None}, "op: wanted one of"),
        ("unknown_op", {"op": "destroy"}, "op: wanted one of"),
        ("op_of_another_type", {"op": ["lookup"]}, "op: wanted one of"),
        ("op_of_another_case", {"op": "LOOKUP", "service": "pong"}, "op: wanted one of"),
        ("unknown_member", {"op": "lookup", "service": "pong", "route": "x"}, "it knows routes, service, type, uri"),
        ("member_of_another_op", {"op": "status", "service": "pong"}, "it knows no member of its own"),
        ("service_number", {"op": "lookup", "service": 5}, "service: wanted a string"),
        ("service_list", {"op": "lookup", "service": ["pong"]}, "service: wanted a string"),
        ("service_false", {"op": "lookup", "service": False}, "service: wanted a string"),
        ("routes_object", {"op": "lookup", "service": "pong", "routes": {"pong": "x"}}, "routes: wanted a string"),
        ("uri_number", {"op": "lookup", "uri": 0}, "uri: wanted a string"),
        (
            "type_unknown",
            {"op": "lookup", "service": "a", "type": "raw"},
            "type: wanted one of stream, seqpacket, dgram",
        ),
        ("type_empty", {"op": "lookup", "service": "a", "type": ""}, "type: wanted one of stream, seqpacket, dgram"),
        ("type_number", {"op": "lookup", "service": "a", "type": 1}, "type: wanted a string"),
        ("type_of_status", {"op": "status", "type": "stream"}, "it knows no member of its own"),
        ("both", {"op": "lookup", "service": "pong", "uri": "tcp://h:1"}, "found both"),
        ("neither", {"op": "lookup"}, "service (with routes) or uri alone"),
        ("routes_alone", {"op": "lookup", "routes": "x y"}, "service (with routes) or uri alone"),
        ("routes_and_uri", {"op": "lookup", "routes": "x y", "uri": "tcp://h:1"}, "service (with routes) or uri alone"),
        ("empty_service", {"op": "lookup", "service": ""}, "is no name of a service"),
        ("path", {"op": "lookup", "service": "../x"}, "is no name of a service"),
        ("services_text", {"op": "confine", "services": "pong"}, "services: wanted a list of at most 64 strings"),
        ("services_numbers", {"op": "confine", "services": [1]}, "services: wanted a list of at most 64 strings"),
        ("services_nested", {"op": "confine", "services": [["a"]]}, "services: wanted a list of at most 64 strings"),
        ("services_object", {"op": "confine", "services": {"a": 1}}, "services: wanted a list of at most 64 strings"),
        (
            "too_many_words",
            {"op": "explain", "as": ["confined"] * (MOST_WORDS + 1)},
            "as: wanted a list of at most 64 strings",
        ),
        ("control_number", {"op": "confine", "services": ["a"], "control": 1}, "control: wanted true or false"),
        ("control_text", {"op": "confine", "services": ["a"], "control": "true"}, "control: wanted true or false"),
        ("confine_service", {"op": "confine", "service": "a"}, "it knows control, routes, services"),
        ("serve_number", {"op": "serve", "service": 5}, "service: wanted a string"),
        ("serve_services", {"op": "serve", "services": ["a"]}, "it knows service"),
        ("ss_number", {"op": "ss", "after": 12}, "after: wanted a string"),
        ("kill_number", {"op": "kill", "connection": 12}, "connection: wanted a string"),
        ("kill_after", {"op": "kill", "after": "12"}, "it knows connection"),
        ("accepted", {"op": "accepted"}, "op: wanted one of"),
    )
    def test_a_request_without_sense_is_refused_with_its_id(self, _: str, message: Any, reason: str) -> None:
        for ident in ("mine", 8):
            refused = decoded({**message, "id": ident})
            assert isinstance(refused, Refused)
            self.assertEqual((refused.word, refused.ident), (Refusal.BAD_REQUEST, ident))
            self.assertIn(reason, refused.reason)

    @each(("plumberd",), ("tcp",), ("pong.lock",))
    def test_a_reserved_name_is_denied(self, name: str) -> None:
        refused = decoded({"op": "lookup", "service": name, "id": 1})
        assert isinstance(refused, Refused)
        self.assertEqual((refused.word, refused.ident), (Refusal.DENIED, 1))

    def test_the_stream_goes_on_behind_a_refused_request(self) -> None:
        stream = frame({"op": "x", "id": 1}) + frame({"op": "status", "id": 2})
        refused, request = fed(NativeDecoder(LIMIT), stream)
        self.assertEqual(refused.ident, 1)
        self.assertEqual(request, Request("status", ident=2))

    @each(
        ("empty", b""),
        ("blank", b" "),
        ("text", b"lookup pong"),
        ("cut", b'{"op": "lookup"'),
        ("two", b'{"op": "status"}{"op": "status"}'),
        ("comma", b'{"op": "status",}'),
        ("quotes", b"{'op': 'status'}"),
        ("not_utf_8", b'{"op": "\xff"}'),
        ("nul", b"\0"),
        ("control", b'{"op": "sta\ntus"}'),
        ("deep_lists", b"[" * 60000),
        ("deep_objects", b'{"op":' * 10000),
        ("deep_and_closed", b'{"op": ' + b"[" * 30000 + b"]" * 30000 + b"}"),
        ("long_number", b'{"op": ' + b"9" * 5000 + b"}"),
    )
    def test_what_is_no_json_is_malformed(self, _: str, payload: bytes) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(NativeDecoder(LIMIT), framed(payload))
        self.assertEqual(str(caught.exception), "a message that is not JSON")

    @each(("list", []), ("string", "status"), ("number", 5), ("null", None), ("true", True))
    def test_what_is_no_object_is_malformed(self, _: str, message: Any) -> None:
        with self.assertRaises(Malformed) as caught:
            fed(NativeDecoder(LIMIT), frame(message))
        self.assertEqual(str(caught.exception), "a message that is no JSON object")

    def test_no_configured_limit_goes_beyond_the_protocol_s(self) -> None:
        decoder = NativeDecoder(10**9)
        (request,) = fed(decoder, framed(b'{"op":"status"}'.ljust(MESSAGE_BYTES)))
        self.assertEqual(request, Request("status"))
        with self.assertRaises(Malformed):
            fed(decoder, struct.pack(">I", MESSAGE_BYTES + 1))

    @PROPERTY
    @given(messages)
    def test_every_object_is_a_request_or_a_refusal_that_can_be_answered(self, message: dict[str, Any]) -> None:
        found = decoded(message)
        if isinstance(found, Refused):
            self.assertEqual(opened(refuse(found.ident, found.word, found.reason))["error"], found.word.value)
        else:
            self.assertIn(found.op, OPS)
            self.assertIs(found.service is None, found.op != "lookup" or found.uri is not None)


class Packets(SynchronousTestCase):
    """A whole payload is one request: what a control socket brings."""

    def test_it_is_read_like_any_other(self) -> None:
        payload = json.dumps({"op": "lookup", "service": "pong", "id": 7}).encode()
        self.assertEqual(NativeDecoder(LIMIT).one(payload), Request("lookup", "pong", ident=7))

    @each(
        ("nothing", b"", "a message that is not JSON"),
        ("text", b"lookup pong", "a message that is not JSON"),
        ("framed", frame({"op": "status"}), "a message that is not JSON"),
        ("list", b"[]", "a message that is no JSON object"),
        ("no_op", b"{}", "op: wanted one of"),
        ("deep", b"[" * 900, "a message that is not JSON"),
    )
    def test_what_is_none_is_a_refusal_and_never_an_error(self, _: str, payload: bytes, reason: str) -> None:
        refused = NativeDecoder(LIMIT).one(payload)
        assert isinstance(refused, Refused)
        self.assertEqual((refused.word, refused.ident), (Refusal.BAD_REQUEST, None))
        self.assertIn(reason, refused.reason)

    def test_nothing_is_kept_of_one_for_the_next(self) -> None:
        decoder = NativeDecoder(LIMIT)
        decoder.one(b'{"op": "sta')
        self.assertFalse(decoder.pending)
        self.assertEqual(decoder.one(b'{"op": "status"}'), Request("status"))

    @each(("configured", 1000, 1000), ("the_protocol_s", 10**9, MESSAGE_BYTES))
    def test_the_longest_is_that_of_any_request(self, _: str, limit: int, longest: int) -> None:
        self.assertEqual(NativeDecoder(limit).limit_bytes, longest)

    @PROPERTY
    @given(st.binary(max_size=200) | messages.map(lambda message: json.dumps(message).encode()))
    def test_whatever_comes_is_a_request_or_a_refusal(self, payload: bytes) -> None:
        self.assertIsInstance(NativeDecoder(LIMIT).one(payload), (Request, Refused))


class Marks(SynchronousTestCase):
    @each(
        ("zero", 0),
        ("number", 12345),
        ("negative", -1),
        ("largest", 2**63 - 1),
        ("empty", ""),
        ("text", "a mark"),
        ("not_ascii", "é\u2028\U0001f600"),
        ("half_a_character", "\ud800"),
        ("longest", "x" * IDENT_CHARS),
    )
    def test_an_id_comes_back_as_it_was(self, _: str, ident: str | int) -> None:
        request = decoded({"op": "lookup", "service": "pong", "id": ident})
        assert isinstance(request, Request)
        (send,) = grant(request, "direct", "1: allow out any any")
        for data in (send.data, refuse(request.ident, Refusal.BUSY, "x")):
            echoed = opened(data)["id"]
            self.assertEqual((type(echoed), echoed), (type(ident), ident))

    @each(
        ("too_long", "x" * (IDENT_CHARS + 1)),
        ("too_large", 2**63),
        ("too_small", -(2**63)),
        ("float", 1.5),
        ("true", True),
        ("list", [1]),
        ("object", {"a": 1}),
    )
    def test_any_other_id_is_refused_and_not_echoed(self, _: str, ident: Any) -> None:
        refused = decoded({"op": "status", "id": ident})
        assert isinstance(refused, Refused)
        self.assertEqual((refused.word, refused.ident), (Refusal.BAD_REQUEST, None))
        self.assertIn("id: wanted a number or a string of at most 128 characters", refused.reason)

    def test_no_id_is_no_member_of_the_answer(self) -> None:
        (send,) = grant(Request("lookup", "pong"), "direct", "")
        self.assertNotIn("id", opened(send.data))
        self.assertNotIn("id", opened(refuse(None, Refusal.BUSY, "x")))


class Answers(SynchronousTestCase):
    def test_a_grant_is_one_message_with_the_descriptor_the_mode_and_the_rule(self) -> None:
        (send,) = grant(Request("lookup", "pong", ident=1), "locked", "1: allow out pong any")
        self.assertTrue(send.descriptor)
        self.assertEqual(
            opened(send.data), {"id": 1, "ok": True, "fd": True, "mode": "locked", "rule": "1: allow out pong any"}
        )

    @each(*((word.value, word) for word in Refusal))
    def test_a_refusal_is_the_word_and_the_reason(self, name: str, word: Refusal) -> None:
        self.assertEqual(opened(refuse("x", word, "why é")), {"id": "x", "ok": False, "error": name, "reason": "why é"})

    def test_an_answer_is_ascii_on_the_wire(self) -> None:
        self.assertEqual(answer(None, {"a": "é"}), b'\0\0\0\x0e{"a":"\\u00e9"}')
