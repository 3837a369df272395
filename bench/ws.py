"""Measure webipcd against websockify and a relay on Node's ws; README.md says what the figures mean.

    python bench/ws.py [--quick] [--json] [--rounds N] [--seconds S] [--idle N]

It starts everything itself, on loopback addresses and in a temporary directory,
and ends and removes all of it, after an interrupt too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from arguments import read_arguments
from stage import BenchError
from ws_stage import IPC, NODE, RAW, WEBSOCKIFY, WS_LOAD, WsContender, WsStage

from bench import (
    HANGING_SECONDS,
    Goal,
    Measure,
    Results,
    ratio,
    run_all,
    run_measuring,
    show_progress,
    surroundings,
)

LATENCY = "round trips, one CPU"
MESSAGES = "16 connections"
PIPELINED = "pipelined"
DOWN = "to the browser"
UP = "from the browser"
SETUPS = "set-ups, 16 clients"
MEMORY = "memory of an idle connection"

MEASURES = (
    Measure(LATENCY, "1/s", ("echo", "1", "1", "{seconds}"), one_cpu=True),
    Measure("round trips", "1/s", ("echo", "1", "1", "{seconds}")),
    Measure(MESSAGES, "1/s", ("echo", "16", "1", "{seconds}"), repeats=2),
    Measure(PIPELINED, "1/s", ("echo", "1", "64", "{seconds}"), repeats=2),
    Measure(DOWN, "MB/s", ("down", "{seconds}"), 1e6, repeats=2),
    Measure(UP, "MB/s", ("up", "{seconds}"), 1e6, repeats=2),
    Measure(SETUPS, "1/s", ("setups", "16", "{seconds}", "{most}")),
)

GOALS = tuple(
    Goal(measure.name, contender, against, 1.0)
    for measure in MEASURES
    for contender in (RAW, IPC)
    for against in (WEBSOCKIFY, NODE)
)
"""Ahead of both in everything."""

WARM = 50
"""Connections before those that count: the first ones pay for pools and tables."""


def measure_alone(name: str, count: int) -> float:
    """Measure the memory of one contender's processes, which have done nothing before.

    :raises OSError: where a connection fails.
    """
    show_progress(f"memory: {name}")
    with WsStage() as stage:
        (contender,) = (c for c in stage.start() if isinstance(c, WsContender) and c.name == name)
        return measure_memory(contender, count)


def measure_memory(contender: WsContender, count: int) -> float:
    """Return the KiB of memory that a relay has for one of *count* connections that have carried little.

    :raises OSError: where a connection fails.
    """
    with contextlib.ExitStack() as held:
        for _ in range(WARM):
            held.enter_context(open_idle(contender))
        before = contender.memory_bytes()
        for _ in range(count):
            held.enter_context(open_idle(contender))
        return (contender.memory_bytes() - before) / count / 1024


def open_idle(contender: WsContender) -> socket.socket:
    """Open a WebSocket, and send one message and read it back."""
    host, port, path, protocol = contender.how
    sock = socket.create_connection((host, int(port)), HANGING_SECONDS)
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read(sock, 1)
    if b" 101 " not in head.partition(b"\r\n")[0]:
        raise BenchError(f"{contender.name} refuses: {head!r}")
    message, mask = b"e" * 64, os.urandom(4)
    sock.sendall(b"\x82\xc0" + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(message)))
    back = b""
    while len(back) < len(message):
        _, length = read(sock, 2)
        back += read(sock, length)
    if back != message:
        raise BenchError(f"{contender.name} sends back {back!r}")
    return sock


def read(sock: socket.socket, count: int) -> bytes:
    """Read *count* bytes."""
    got = b""
    while len(got) < count:
        part = sock.recv(count - len(got))
        if not part:
            raise BenchError("a connection ends where it should be idle")
        got += part
    return got


def table(results: Results, memory: dict[str, float]) -> Iterator[str]:
    """Yield the lines of the table: medians, and behind each its ratio to the relay on Node's ws."""
    labels = {m.name: f"{m.name}, {m.unit}" for m in MEASURES} | {MEMORY: f"{MEMORY}, KiB"}
    wide = max(map(len, labels.values()))
    yield " " * wide + "".join(f"{name:>19}" for name in memory)
    for measure in (m.name for m in MEASURES):
        cells = "".join(
            f"{statistics.median(results[measure][name]):>12,.0f}{ratio(results, measure, name, NODE):>7.2f}"
            for name in memory
        )
        yield f"{labels[measure]:<{wide}}{cells}"
    cells = "".join(f"{figure:>12,.1f}{figure / memory[NODE]:>7.2f}" for figure in memory.values())
    yield f"{labels[MEMORY]:<{wide}}{cells}"


def judge(results: Results, memory: dict[str, float]) -> Iterator[tuple[str, str, str, float, bool]]:
    """Yield each goal: what is measured, whose, against whom, what was reached, whether it holds."""
    for goal in GOALS:
        reached = ratio(results, goal.measure, goal.contender, goal.against)
        yield goal.measure, goal.contender, goal.against, reached, reached >= goal.at_least
    for contender in (RAW, IPC):
        for against in (WEBSOCKIFY, NODE):
            reached = memory[contender] / memory[against]
            yield MEMORY, contender, against, reached, reached <= 1


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 where it ran, whether or not the goals hold."""
    arguments = read_arguments(
        words, "Measure webipcd against other relays of WebSockets.", rounds=6, seconds=0.8, idle=300, most_idle=2000
    )

    def measure() -> None:
        if not WS_LOAD.exists():
            raise BenchError(f"{WS_LOAD} is not there; make bench-ws builds it")
        try:
            with WsStage() as stage:
                contenders = [c for c in stage.start() if isinstance(c, WsContender)]
                results = run_all(stage, contenders, arguments.rounds, arguments.seconds, MEASURES)
            memory = {c.name: measure_alone(c.name, arguments.idle) for c in contenders}
            show_progress("")
        except OSError as e:  # of a connection that was to be idle
            raise BenchError(str(e)) from e
        report(arguments, results, memory)

    return run_measuring("bench-ws", measure)


def report(arguments: argparse.Namespace, results: Results, memory: dict[str, float]) -> None:
    """Print what was measured."""
    context: dict[str, Any] = {
        **surroundings(),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "idle": arguments.idle,
    }
    goals = list(judge(results, memory))
    if arguments.json:
        names = ("measure", "contender", "against", "reached", "holds")
        told = [dict(zip(names, goal, strict=True)) for goal in goals]
        print(json.dumps({**context, "runs": results, "memory": memory, "goals": told}, indent=2))
        return
    print("; ".join(f"{name} {value}" for name, value in context.items()))
    print(f"medians, and behind each its ratio to a relay on {NODE}\n")
    print("\n".join(table(results, memory)), end="\n\n")
    for measure, contender, against, reached, holds in goals:
        wanted = "at most 1.00" if measure == MEMORY else "1.00"
        verdict = "holds" if holds else "MISSED"
        print(f"{verdict}: {measure}: {contender} has {reached:.2f} of {against}; the goal is {wanted}")


if __name__ == "__main__":
    sys.exit(main())
