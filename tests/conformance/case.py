"""Lists of cases, and what many of them do alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.conformance.stage import ROUTES, SECRET, SERVICE, Broker, Client, Lookup, Stage, message
from tests.conformance.streams import Mismatch, Stream, carry, shown

Play = Callable[[Stage], None]
"""A case: raises :class:`Mismatch` where the client is not as it has to be."""

GRANTED: dict[str, Any] = {"ok": True, "fd": True, "mode": "locked", "rule": "1: allow out conformance any"}
PING, PONG = b"ping\n", b"pong\n"

Pieces = Callable[[bytes], Sequence[bytes]]
"""Cuts an answer into what is sent at a time."""


class Cases:
    """A list of cases, by name, in the order in which they are run."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Play]] = []

    def each(self, *rows: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Put one case on the list for each row: its name, and the arguments that follow the stage."""

        def put(play: Callable[..., None]) -> Callable[..., None]:
            for name, *arguments in rows:
                self.all.append((name, functools.partial(_play, play, arguments)))
            return play

        return put

    def one(self, name: str) -> Callable[[Play], Play]:
        """Put a case on the list."""

        def put(play: Play) -> Play:
            self.all.append((name, play))
            return play

        return put


def _play(play: Callable[..., None], arguments: Sequence[Any], stage: Stage) -> None:
    play(stage, *arguments)


def whole(data: bytes) -> Sequence[bytes]:
    """Send everything at once."""
    return (data,)


def single(data: bytes) -> Sequence[bytes]:
    """Send byte by byte."""
    return [data[n : n + 1] for n in range(len(data))]


def cut(position: int) -> Pieces:
    """Send in two pieces."""
    return lambda data: (data[:position], data[position:])


@dataclass
class Talk:
    """A client that has been granted its connection, and the service at the other end of it."""

    broker: Broker
    lookup: Lookup
    client: Client
    far: Stream

    def until(self, done: Callable[[], object], wanted: str) -> None:
        """Carry bytes at all ends until *done*."""
        carry((self.client.stdin, self.client.stdout, self.far), done, wanted, self.broker.deadline)

    def up(self, data: bytes) -> None:
        """Send *data* from standard input to the service."""
        wanted = bytes(self.far.inbox) + data
        self.client.stdin.put(data)
        self.until(lambda: len(self.far.inbox) >= len(wanted), f"{shown(data)} at the service")
        check_same(self.far.inbox, wanted, "at the service")

    def down(self, data: bytes) -> None:
        """Send *data* from the service to standard output."""
        wanted = bytes(self.client.stdout.inbox) + data
        self.far.put(data)
        self.until(lambda: len(self.client.stdout.inbox) >= len(wanted), f"{shown(data)} on standard output")
        check_same(self.client.stdout.inbox, wanted, "on standard output")

    def end_up(self) -> None:
        """End standard input; the service has to see it."""
        self.client.stdin.put(b"", end=True)
        self.until(lambda: self.far.ended, "the end of standard input at the service")

    def end_down(self) -> None:
        """End the service's bytes; standard output has to end."""
        self.far.put(b"", end=True)
        self.until(lambda: self.client.stdout.ended, "the end of the service's bytes on standard output")

    def finish(self) -> None:
        """End what has not ended, and check that the client has done nothing besides."""
        up, down = bytes(self.far.inbox), bytes(self.client.stdout.inbox)
        self.end_up()
        self.end_down()
        self.client.check_succeeds()
        check_same(self.far.inbox, up, "at the service")
        check_same(self.client.stdout.inbox, down, "on standard output")
        self.lookup.check_ended()
        self.broker.check_left_alone()

    def works(self) -> None:
        """Send a little both ways, and finish."""
        self.up(PING)
        self.down(PONG)
        self.finish()


def asked(stage: Stage) -> tuple[Broker, Lookup, Client, dict[str, Any]]:
    """Start a broker and a client, and read the request."""
    broker = stage.broker()
    client = stage.client(broker)
    lookup = broker.accept(client)
    request = lookup.request()
    check_request(request, SERVICE, ROUTES)
    return broker, lookup, client, request


def granted(stage: Stage, pieces: Pieces = whole, *, tcp: bool = False, members: dict[str, Any] = GRANTED) -> Talk:
    """Start a broker and a client, and grant the request."""
    broker, lookup, client, request = asked(stage)
    far, theirs = stage.tcp_service() if tcp else stage.service()
    first, *rest = pieces(message(**with_id(request, members)))
    with theirs:
        lookup.send(first, theirs.fileno())
    for piece in rest:
        lookup.send(piece)
    return Talk(broker, lookup, client, far)


def not_granted(stage: Stage, data: bytes, *words: str, pieces: Pieces = whole, hang_up: bool = False) -> None:
    """Answer with *data*, a descriptor on its first byte; the client has to fail, and not to use the descriptor."""
    broker, lookup, client, _ = asked(stage)
    client.stdin.put(SECRET)
    far, theirs = stage.service()
    first, *rest = pieces(data)
    with theirs:
        lookup.send(first, theirs.fileno())
    for piece in rest:
        lookup.send(piece)
    if hang_up:
        lookup.close()
    client.check_fails(*words)
    carry((far,), lambda: far.ended, "the descriptor closed", stage.deadline)
    if far.inbox:
        raise Mismatch("a descriptor that is left unused", far.inbox)
    if not hang_up:
        lookup.check_ended()
    broker.check_left_alone()


def with_id(request: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    """Return an answer's members, with the request's ``id`` in front where it has one."""
    return members if request.get("id") is None else {"id": request["id"], **members}


def check_request(request: dict[str, Any], service: str, routes: str) -> None:
    """Check that *request* is a lookup of *service* with *routes*, and nothing else."""
    found = {name: value for name, value in request.items() if name != "id" and value is not None}
    if not found.get("routes"):
        found.pop("routes", None)
    wanted = {"op": "lookup", "service": service, **({"routes": routes} if routes else {})}
    if found != wanted:
        raise Mismatch(f"the request {shown(wanted)}", found)


def check_same(found: bytes | bytearray, wanted: bytes, where: str) -> None:
    """Check that the very bytes arrived."""
    if found == wanted:
        return
    position = next((n for n, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(wanted))
    raise Mismatch(
        f"{len(wanted)} bytes {where}, {shown(wanted[position : position + 20])} at {position}",
        f"{len(found)} bytes, {shown(found[position : position + 20])} there",
    )
