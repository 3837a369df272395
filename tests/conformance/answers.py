"""What a client makes of the broker's answers, in whatever pieces they come."""

from __future__ import annotations

from typing import Any

from tests.conformance.case import (
    GRANTED,
    PING,
    Cases,
    Pieces,
    Talk,
    asked,
    cut,
    granted,
    not_granted,
    single,
    whole,
    with_id,
)
from tests.conformance.stage import MESSAGE_BYTES, Stage, frame, message
from tests.conformance.streams import carry

CASES = Cases()

WORDS = (
    "denied",
    "unauthenticated",
    "unknown-service",
    "unreachable",
    "timeout",
    "bad-request",
    "busy",
    "not-possible",
    "a-word-of-tomorrow",
)
REASON = "no rule lets conformance out; wanted one like allow out conformance any"
TRUE = b'{"ok":true,"fd":true,"mode":"locked","rule":"1"}'
FAKED = 'it is said that {"ok":true,"fd":true} is the answer, "ok":true'


@CASES.each(
    ("takes an answer that comes whole", whole),
    ("takes an answer that comes byte by byte", single),
    ("takes an answer whose first byte alone has the descriptor, and the rest follows", cut(1)),
    ("takes an answer whose length comes first, with the descriptor", cut(4)),
    ("takes an answer whose last byte comes late", cut(-1)),
)
def in_pieces(stage: Stage, pieces: Pieces) -> None:
    granted(stage, pieces).works()


@CASES.each(
    ("takes an answer whose members it does not know", {"a": 1, "b": None, "c": -2.5e3, **GRANTED, "z": False}),
    ("takes an answer in another order", {"rule": "1", "mode": "direct", "fd": True, "ok": True}),
    ("takes an answer with what looks like a refusal in a string", {"rule": '"ok":false,"error":"denied', **GRANTED}),
    ("takes an answer with backslashes and quotes at a string's end", {"rule": 'a\\"b\\\\', "ok": True, "fd": True}),
    ("takes an answer with characters beyond ASCII", {**GRANTED, "rule": "ünïcödé €𝄞"}),
)
def with_members(stage: Stage, members: dict[str, Any]) -> None:
    granted(stage, members=members).works()


@CASES.each(
    ("takes an answer with blanks between its words", b' {\t"ok" : true ,\r\n "fd" :\ttrue , "rule" : "1" } \n'),
    ("takes an answer in UTF-8", '{"ok":true,"fd":true,"mode":"direct","rule":"ünïcödé €𝄞"}'.encode()),
)
def as_written(stage: Stage, payload: bytes) -> None:
    broker, lookup, client, _ = asked(stage)
    far, theirs = stage.service()
    with theirs:
        lookup.send(frame(payload), theirs.fileno())
    Talk(broker, lookup, client, far).works()


@CASES.one("takes an answer as long as any may be")
def longest(stage: Stage) -> None:
    broker, lookup, client, request = asked(stage)
    answer = with_id(request, {"ok": True, "fd": True, "rule": ""})
    answer["rule"] = "x" * (MESSAGE_BYTES + 4 - len(message(**answer)))
    far, theirs = stage.service()
    with theirs:
        lookup.send(message(**answer), theirs.fileno())
    Talk(broker, lookup, client, far).works()


@CASES.one("takes an answer behind which the broker hangs up")
def hangs_up_behind(stage: Stage) -> None:
    talk = granted(stage)
    talk.lookup.close()
    talk.up(PING)
    talk.end_up()
    talk.end_down()
    talk.client.check_succeeds()


@CASES.one("takes an answer in the middle of which it is stopped and continued")
def interrupted(stage: Stage) -> None:
    broker, lookup, client, request = asked(stage)
    far, theirs = stage.service()
    answer = message(**with_id(request, GRANTED))
    client.stop_and_continue()
    with theirs:
        lookup.send(answer[:2], theirs.fileno())
    client.stop_and_continue()
    lookup.send(answer[2:20])
    client.stop_and_continue()
    lookup.send(answer[20:])
    Talk(broker, lookup, client, far).works()


@CASES.one("keeps one descriptor at most")
def two_descriptors(stage: Stage) -> None:
    broker, lookup, client, request = asked(stage)
    far, theirs = stage.service()
    other, others = stage.service()
    with theirs, others:
        lookup.send(message(**with_id(request, GRANTED)), theirs.fileno(), others.fileno())
    carry((far, other), lambda: far.ended or other.ended, "one of two descriptors closed", stage.deadline)
    if far.ended and other.ended:
        client.check_fails()
    else:
        Talk(broker, lookup, client, other if far.ended else far).works()


@CASES.each(*((f"ends after the refusal {word}, with its reason", word) for word in WORDS))
def refused(stage: Stage, word: str) -> None:
    _, lookup, client, request = asked(stage)
    lookup.send(message(**with_id(request, {"ok": False, "error": word, "reason": REASON})))
    client.check_fails(word, REASON)
    lookup.check_ended()


@CASES.one("ends after a refusal that comes before the request is read, with its reason")
def refused_at_once(stage: Stage) -> None:
    broker = stage.broker()
    client = stage.client(broker)
    lookup = broker.accept(client)
    lookup.sock.sendall(message(ok=False, error="busy", reason=REASON))
    lookup.close()
    client.check_fails("busy", REASON)


@CASES.each(
    ("ends after a refusal that comes byte by byte", single, False),
    ("ends after a refusal behind which the broker hangs up", whole, True),
    ("ends after a refusal that comes with a descriptor, which it does not use", whole, False),
)
def refused_in_pieces(stage: Stage, pieces: Pieces, hang_up: bool) -> None:
    answer = message(ok=False, error="busy", reason=REASON)
    not_granted(stage, answer, "busy", REASON, pieces=pieces, hang_up=hang_up)


@CASES.each(
    ("is not fooled by a grant in the reason", message(ok=False, error="denied", reason=FAKED), FAKED),
    ("is not fooled by a grant in the error", message(reason=REASON, error='x","ok":true', ok=False), REASON),
    ("is not fooled by a grant in a name", message(**{'x","ok":true,"y': 1}, ok=False, error="busy", reason="r"), "r"),
    ("is not fooled by a backslash at a string's end", frame(rb'{"reason":"x\\","ok":false,"error":",\"ok\":true"}')),
    ("is not fooled by a NUL character in the reason", message(ok=False, error="busy", reason="a\0b"), "busy"),
    ("is not fooled by a grant within another object", frame(b'{"was":{"ok":true,"fd":true},"ok":false}')),
)
def refused_with(stage: Stage, answer: bytes, *words: str) -> None:
    not_granted(stage, answer, *words)


@CASES.each(
    ("takes no answer that is empty", b""),
    ("takes no answer that is no JSON", b"ok"),
    ("takes no answer that is cut off", TRUE[:-1]),
    ("takes no answer that is cut off within a string", TRUE[:-2]),
    ("takes no answer with something behind it", TRUE + b"x"),
    ("takes no answer with another behind it", TRUE + TRUE),
    ("takes no answer with a NUL byte behind it", TRUE + b"\0"),
    ("takes no answer with NUL bytes in front", b"\0" + TRUE),
    ("takes no answer that is a list", b"[" + TRUE + b"]"),
    ("takes no answer that is a word", b"true"),
    ("takes no answer that is a string", b'"\\"ok\\":true"'),
    ("takes no answer that is an empty object", b"{}"),
    ("takes no answer without ok", b'{"fd":true,"mode":"locked"}'),
    ("takes no answer whose ok is a string", b'{"ok":"true","fd":true}'),
    ("takes no answer whose ok is a number", b'{"ok":1,"fd":true}'),
    ("takes no answer whose ok is null", b'{"ok":null,"fd":true}'),
    ("takes no answer whose OK is in capitals", b'{"OK":true,"fd":true}'),
    ("takes no answer that has single quotes", TRUE.replace(b'"', b"'")),
    ("takes no answer without commas", TRUE.replace(b",", b" ")),
    ("takes no answer without colons", TRUE.replace(b":", b",")),
)
def no_answer(stage: Stage, payload: bytes) -> None:
    not_granted(stage, frame(payload))


@CASES.each(
    ("takes no answer whose announced length is one byte too much", MESSAGE_BYTES + 1),
    ("takes no answer whose announced length is 2 GiB", 2**31 - 1),
    ("takes no answer whose announced length has the highest bit set", 2**31),
    ("takes no answer whose announced length is as large as can be", 2**32 - 1),
)
def oversized(stage: Stage, length: int) -> None:
    not_granted(stage, length.to_bytes(4, "big") + TRUE)


@CASES.each(
    ("takes no grant without a descriptor, which is announced", b"true"),
    ("takes no grant without a descriptor, and without an announcement", b"false"),
)
def no_descriptor(stage: Stage, announced: bytes) -> None:
    _, lookup, client, _ = asked(stage)
    lookup.send(frame(b'{"ok":true,"fd":' + announced + b',"mode":"direct","rule":"1"}'))
    client.check_fails()
    lookup.check_ended()


@CASES.one("notices a broker that hangs up without reading the request")
def hangs_up_at_once(stage: Stage) -> None:
    broker = stage.broker()
    client = stage.client(broker)
    broker.accept(client).close()
    client.check_fails()
    broker.check_left_alone()


@CASES.one("notices a broker that hangs up without an answer")
def hangs_up(stage: Stage) -> None:
    broker, lookup, client, _ = asked(stage)
    lookup.close()
    client.check_fails()
    broker.check_left_alone()


@CASES.each(
    ("notices a broker that hangs up within the length", 2),
    ("notices a broker that hangs up behind the length", 4),
    ("notices a broker that hangs up in the middle of the answer", 20),
    ("notices a broker that hangs up before the answer's last byte", -1),
)
def hangs_up_within(stage: Stage, position: int) -> None:
    not_granted(stage, frame(TRUE)[:position], hang_up=True)
