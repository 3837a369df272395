"""plumberd.pure.policy.seen: one line of the audit log, and what rules would have to grant."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from plumberd.pure.policy.direction import Direction
from plumberd.pure.policy.seen import (
    DROPPED,
    LINE_BYTES,
    LOCAL_STAYS,
    NO_ADDRESSES,
    NO_RECORD,
    NO_SERVICE,
    NO_WHO,
    NO_WORD,
    LeftOut,
    Seen,
    deciding_rule,
    is_refusal_to_be,
    read_record,
    seen_in,
)
from plumberd.pure.record import LISTED
from tests.tables import PROPERTY, each

IN, OUT = Direction.IN, Direction.OUT
V4 = ipaddress.ip_address("198.51.100.1")
V6 = ipaddress.ip_address("2001:db8::1")


def local(**members: Any) -> dict[str, Any]:
    """Who a local client is."""
    return {"kind": "local", "uid": 1000, "user": "alice", "confined": None, "identities": [], **members}


def remote(**members: Any) -> dict[str, Any]:
    """Who a remote caller is."""
    return {"kind": "remote", "scheme": "tcp", "address": str(V4), "port": 4711, "identities": [], **members}


def out(**members: Any) -> dict[str, Any]:
    """A record of a connection that went out."""
    return {
        "time": "2026-10-04T12:00:01.250Z",
        "direction": "out",
        "service": "pong",
        "uri": "tcp://h.example:9000/pong",
        "to": "tcp:h.example:9000",
        "who": local(),
        "verdict": "granted",
        "would": "denied",
        "rule": {"number": None, "text": "default out=deny", "source": None},
        "addresses": [str(V4)],
        "address": str(V4),
        **members,
    }


def inward(**members: Any) -> dict[str, Any]:
    """A record of a caller who came in."""
    caller: dict[str, Any] = {
        "direction": "in",
        "uri": None,
        "to": f"tcp:{V4}",
        "who": remote(),
        "addresses": [],
        "address": None,
    }
    return out(**{**caller, **members})


def local_service(**members: Any) -> dict[str, Any]:
    """A record of a connection to a local service."""
    return out(**{"uri": "unix:///pong", "to": "unix:pong", "addresses": [], "address": None, **members})


class SeenIn(SynchronousTestCase):
    @each(
        ("a name", out(), [Seen(OUT, "pong", 1000, "tcp", "h.example", None, 9000)]),
        (
            "an address",
            out(to=f"tcp:{V4}:1", uri=f"tcp://{V4}:1/pong"),
            [Seen(OUT, "pong", 1000, "tcp", None, V4, 1)],
        ),
        (
            "an address of the other family",
            out(to=f"tls:[{V6}]:1", uri=None, address=str(V6), addresses=[]),
            [Seen(OUT, "pong", 1000, "tls", None, V6, 1)],
        ),
        (
            "no service in the URI",
            out(uri="tcp://h.example:9000"),
            [Seen(OUT, "pong", 1000, "tcp", "h.example", None, 9000)],
        ),
        (
            "another service in the URI",
            out(uri="tcp://h.example:9000/audio"),
            [Seen(OUT, service, 1000, "tcp", "h.example", None, 9000) for service in ("pong", "audio")],
        ),
        (
            "a password that is masked",
            out(uri="tls://user:***@h.example:9001/audio", to="tls:h.example:9001"),
            [Seen(OUT, service, 1000, "tls", "h.example", None, 9001) for service in ("pong", "audio")],
        ),
        ("a local service", local_service(), [Seen(OUT, "pong", 1000, "unix", "pong")]),
        (
            "a local service of another name",
            local_service(to="unix:pong2", uri=None),
            [Seen(OUT, service, 1000, "unix", "pong2") for service in ("pong", "pong2")],
        ),
        (
            "a local service by a default, by a confined client",
            local_service(would=None, who=local(confined="another network namespace")),
            [Seen(OUT, "pong", 1000, "unix", "pong")],
        ),
        ("a caller's address", inward(), [Seen(IN, "pong", (), "tcp", None, V4)]),
        (
            "an IPv4-mapped caller",
            inward(who=remote(address=f"::ffff:{V4}")),
            [Seen(IN, "pong", (), "tcp", None, V4)],
        ),
        (
            "what a caller has proved",
            inward(who=remote(scheme="tls", identities=["spiffe://example.com/a", "cert:example.com"])),
            [Seen(IN, "pong", ("cert:example.com", "spiffe://example.com/a"), "tls")],
        ),
        (
            "a caller without an address who has proved something",
            inward(who=remote(scheme="tls", address=None, identities=["psk:laptop"])),
            [Seen(IN, "pong", ("psk:laptop",), "tls")],
        ),
        (
            "a caller who is carried on",
            out(who=remote(scheme="tls", identities=["cert:example.com"])),
            [Seen(OUT, "pong", ("cert:example.com",), "tcp", "h.example", None, 9000)],
        ),
    )
    def test_it_is_what_has_to_be_granted(self, label: str, record: dict[str, Any], wanted: list[Seen]) -> None:
        self.assertEqual(seen_in(record), tuple(wanted))

    @each(
        ("no service", out(service=None), NO_SERVICE),
        ("an empty service", out(service=""), NO_SERVICE),
        ("a service that is a glob", out(service="p*"), NO_WORD),
        ("a service called any", out(service="any"), NO_WORD),
        ("a service of several words", out(service="pong any for uid:0"), NO_WORD),
        ("a service with a line break", out(service='x",\n"allow in any any'), NO_WORD),
        ("a reserved service", out(service="ipc"), NO_WORD),
        ("a service that is no text", out(service=7), NO_WORD),
        ("a far service called any", out(uri="tcp://h.example:9000/any"), NO_WORD),
        ("a URI that is none", out(uri="tcp://h example"), NO_WORD),
        ("a host called any", out(to="tcp:any:9000"), NO_WORD),
        ("a host that is a glob", out(to="tcp:*.example:9000"), NO_WORD),
        ("a network", out(to="tcp:198.51.100.0/24:9000"), NO_WORD),
        ("any host", out(to="any"), NO_WORD),
        ("no port", out(to="tcp:h.example"), NO_WORD),
        ("a range of ports", out(to="tcp:h.example:1-65535"), NO_WORD),
        ("several words", out(to="tcp:h.example:9000 handover=direct"), NO_WORD),
        ("an endpoint without a host", out(to="ssl:?", uri=None), NO_WORD),
        ("nowhere", out(to=None), NO_WORD),
        ("a local service called any", local_service(to="unix:any"), NO_WORD),
        ("any local service", local_service(to="unix:*"), NO_WORD),
        ("an address that is none", out(address="127.1"), NO_WORD),
        ("addresses that are numbers", out(addresses=[2130706433]), NO_WORD),
        ("a loopback address", out(to="tcp:127.0.0.1:1", address="127.0.0.1", addresses=[]), "a loopback address"),
        ("a name with one", out(addresses=[str(V4), "::1"]), "a loopback address"),
        ("a name that was connected to one", out(address="127.0.0.1"), "a loopback address"),
        ("a loopback address in another spelling", out(to="tcp:[::ffff:127.0.0.1]:1"), "a loopback address"),
        ("a loopback address behind NAT64", out(to="tcp:[64:ff9b::7f00:1]:1"), "a loopback address"),
        ("a metadata address", out(to="tcp:169.254.169.254:80"), "a metadata address"),
        ("a link-local address", out(addresses=["fe80::1"]), "a link-local address"),
        ("an address with a zone", out(addresses=["2001:db8::1%1"]), "a link-local address"),
        ("a multicast address", out(to="tcp:224.0.0.1:80"), "a multicast address"),
        ("an unspecified address", out(to="tcp:0.0.0.0:80"), "an unspecified address"),
        ("a name without addresses", out(address=None, addresses=[]), NO_ADDRESSES),
        ("a name with more than are told", out(addresses=[str(V4)] * LISTED), NO_ADDRESSES),
        ("a local service by a default", local_service(would=None), LOCAL_STAYS),
        ("a user without a number", out(who=local(uid=65534, user="nobody")), NO_WHO),
        ("a client whose uid is not known", out(who=local(uid=None)), NO_WHO),
        ("a client whose uid is no number", out(who=local(uid=True)), NO_WHO),
        ("a client whose uid is no uid", out(who=local(uid=2**32 - 1)), NO_WHO),
        ("somebody else", out(who={"kind": "other"}), NO_WHO),
        ("a caller who is carried on and proves nothing", out(who=remote()), NO_WHO),
        ("a caller without an address", inward(who=remote(address=None)), NO_WHO),
        ("a caller from here", inward(who=remote(address="127.0.0.1")), "a loopback address"),
        ("a local caller", inward(who=local()), NO_WHO),
        ("a proof that is a wildcard", inward(who=remote(identities=["cert:*.example.com"])), NO_WORD),
        ("a proof that is none", inward(who=remote(identities=["user:root"])), NO_WORD),
        ("a proof of several words", inward(who=remote(identities=["psk:a for uid:0"])), NO_WORD),
        ("a proof in another spelling", inward(who=remote(identities=["cert:EXAMPLE.com"])), NO_WORD),
        ("proofs that are no list", inward(who=remote(identities="cert:example.com")), NO_RECORD),
    )
    def test_it_is_left_out(self, label: str, record: dict[str, Any], why: str) -> None:
        self.assertEqual(self.assertRaises(LeftOut, seen_in, record).reason, why)


class ReadRecord(SynchronousTestCase):
    def test_a_record_is_read(self) -> None:
        self.assertEqual(read_record(json.dumps(out()).encode()), out())

    @each(
        ("text", b"2026-10-04 plumberd starts"),
        ("no object", b"[]"),
        ("a number", b"7"),
        ("an empty object", b"{}"),
        ("an unknown direction", json.dumps(out(direction="sideways")).encode()),
        ("a claim to a service", json.dumps(out(direction="serve")).encode()),
        ("no direction", json.dumps(out(direction=None)).encode()),
        ("no verdict", json.dumps(out(verdict=None)).encode()),
        ("nobody", json.dumps(out(who=None)).encode()),
        ("no UTF-8", b'{"who":"\xff"}'),
        ("half a line", json.dumps(out()).encode()[:-1]),
        ("nested too deep", b"[" * 50000),
        ("a number too long", b'{"who":' + b"9" * 5000 + b"}"),
        ("too long a line", json.dumps(out(reason="x" * LINE_BYTES)).encode()),
    )
    def test_what_is_none_is_told(self, label: str, line: bytes) -> None:
        self.assertEqual(self.assertRaises(LeftOut, read_record, line).reason, NO_RECORD)

    def test_what_was_dropped_is_counted(self) -> None:
        line = b'{"time":"2026-10-04T12:00:01.250Z","dropped":12,"since":"2026-10-04T12:00:01.000Z"}'
        left = self.assertRaises(LeftOut, read_record, line)
        self.assertEqual((left.reason, left.count), (DROPPED, 12))

    @given(st.binary(max_size=300))
    @PROPERTY
    def test_no_bytes_are_more_than_left_out(self, line: bytes) -> None:
        with self.assertRaises(LeftOut):
            read_record(line)

    @given(
        st.dictionaries(
            st.sampled_from(sorted(out())),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=8),
                lambda some: st.lists(some, max_size=2) | st.dictionaries(st.sampled_from(sorted(local())), some),
                max_leaves=6,
            ),
        )
    )
    @PROPERTY
    def test_whatever_a_member_holds_it_is_read_or_left_out(self, members: dict[str, Any]) -> None:
        try:
            found = seen_in(read_record(json.dumps(out(**members)).encode()))
        except LeftOut as e:
            self.assertTrue(e.reason)
        else:
            self.assertTrue(found)


class WhatDecided(SynchronousTestCase):
    @each(
        ("a refusal that is only logged", out(), True),
        ("granted", out(would=None), False),
        ("something else", out(would=True), False),
    )
    def test_a_refusal_to_be(self, label: str, record: dict[str, Any], wanted: bool) -> None:
        self.assertIs(is_refusal_to_be(record), wanted)

    @each(
        ("a default", out(), None),
        ("a rule", out(rule={"number": 3}), {"number": 3}),
        ("nothing", out(rule=None), None),
        ("text", out(rule="3: deny"), None),
    )
    def test_the_deciding_rule(self, label: str, record: dict[str, Any], wanted: object) -> None:
        self.assertEqual(deciding_rule(record), wanted)
