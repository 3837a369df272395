"""Measure plumberd's TLS against HAProxy, stunnel, nginx and hitch; README.md says what the figures mean.

    python bench/tls.py [--quick] [--json] [--rounds N] [--seconds S] [--idle N]

It starts everything itself, on loopback addresses and in a temporary directory,
and ends and removes all of it, after an interrupt too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from arguments import read_arguments
from stage import BenchError, memory_of
from tls_stage import GROUP, HAPROXIES, PLUMBERDS, SUITE, TlsContender, TlsStage

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

ONE_STREAM = "one stream"
EIGHT_STREAMS = "eight streams"
HANDSHAKES = "handshakes, 16 clients"
MEMORY = "memory of an idle connection"

MEASURES = (
    Measure(ONE_STREAM, "MB/s", ("stream", "1", "{seconds}"), 1e6, repeats=2),
    Measure(EIGHT_STREAMS, "MB/s", ("stream", "8", "{seconds}"), 1e6),
    Measure("round trips", "1/s", ("pingpong", "{seconds}")),
    Measure(HANDSHAKES, "1/s", ("setups", "16", "{seconds}", "{most}"), repeats=2),
)

GOALS = (
    Goal(ONE_STREAM, PLUMBERDS, HAPROXIES, 1.5),
    Goal(EIGHT_STREAMS, PLUMBERDS, HAPROXIES, 1.1),
    Goal(HANDSHAKES, PLUMBERDS, HAPROXIES, 1.0),
)
MEMORY_GOAL = 0.5
"""plumberd's memory of an idle connection is to be at most this part of HAProxy's."""

WARM = 100
"""Connections before those that count: the first ones pay for pools and tables."""


def measure_memory(contender: TlsContender, count: int) -> float:
    """Return the KiB of memory that both hops have for one of *count* connections that have carried little.

    :raises OSError: where a connection fails.
    """
    with contextlib.ExitStack() as held:
        for number in range(WARM):
            round_trip(held.enter_context(open_connection(contender, number)))
        before = memory_of(contender.pids)
        for number in range(count):
            round_trip(held.enter_context(open_connection(contender, number)))
        return (memory_of(contender.pids) - before) / count / 1024


def open_connection(contender: TlsContender, turn: int) -> socket.socket:
    """Open a connection as load does; *turn* chooses among the addresses."""
    kind, at, last = contender.how
    spread = f"127.0.0.{turn % 16 + 1}"
    if kind == "direct":
        return socket.create_connection((spread, int(last)), HANGING_SECONDS)
    with socket.socket(socket.AF_UNIX) as broker:
        broker.settimeout(HANGING_SECONDS)
        broker.connect(at)
        request = json.dumps({"op": "lookup", "uri": last.replace("127.0.0.*", spread)}).encode()
        broker.sendall(struct.pack(">I", len(request)) + request)
        answer, fds, _, _ = socket.recv_fds(broker, 4096, 1)
    if not fds:
        raise BenchError(f"the broker refuses: {answer!r}")
    sock = socket.socket(fileno=fds[0])
    sock.settimeout(HANGING_SECONDS)
    return sock


def round_trip(sock: socket.socket) -> None:
    """Send one message and read it back."""
    message = b"e" * 64
    sock.sendall(message)
    got = b""
    while len(got) < len(message):
        part = sock.recv(64)
        if not part:
            raise BenchError("a connection ends where it should be idle")
        got += part


def table(results: Results, memory: dict[str, float]) -> Iterator[str]:
    """Yield the lines of the table: medians, and behind each its ratio to two HAProxies."""
    labels = {m.name: f"{m.name}, {m.unit}" for m in MEASURES} | {MEMORY: f"{MEMORY}, KiB"}
    wide = max(map(len, labels.values()))
    yield " " * wide + "".join(f"{name:>17}" for name in memory)
    for measure in (m.name for m in MEASURES):
        cells = "".join(
            f"{statistics.median(results[measure][name]):>11,.0f}{ratio(results, measure, name, HAPROXIES):>6.2f}"
            for name in memory
        )
        yield f"{labels[measure]:<{wide}}{cells}"
    cells = "".join(f"{figure:>11,.1f}{figure / memory[HAPROXIES]:>6.2f}" for figure in memory.values())
    yield f"{labels[MEMORY]:<{wide}}{cells}"


def sentences(results: Results, memory: dict[str, float]) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each goal: what it is, what was reached, what is wanted, whether it holds."""
    for goal in GOALS:
        reached = ratio(results, goal.measure, goal.contender, goal.against)
        yield goal.measure, reached, goal.at_least, reached >= goal.at_least
    reached = memory[PLUMBERDS] / memory[HAPROXIES]
    yield MEMORY, reached, MEMORY_GOAL, reached <= MEMORY_GOAL


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 where it ran, whether or not the goals hold."""
    arguments = read_arguments(words, "Measure plumberd's TLS against other relays.", rounds=6, seconds=0.8, idle=1000)

    def measure() -> None:
        try:
            with TlsStage() as stage:
                contenders = [c for c in stage.start() if isinstance(c, TlsContender)]
                results = run_all(stage, contenders, arguments.rounds, arguments.seconds, MEASURES)
                show_progress("memory")
                memory = {c.name: measure_memory(c, arguments.idle) for c in contenders}
                show_progress("")
        except OSError as e:  # of a connection that was to be idle
            raise BenchError(str(e)) from e
        report(arguments, results, memory)

    return run_measuring("bench-tls", measure)


def report(arguments: argparse.Namespace, results: Results, memory: dict[str, float]) -> None:
    """Print what was measured."""
    context: dict[str, Any] = {
        **surroundings(),
        "suite": f"{SUITE}, {GROUP}, ECDSA P-256",
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "idle": arguments.idle,
    }
    goals = list(sentences(results, memory))
    if arguments.json:
        names = ("measure", "reached", "wanted", "holds")
        found = {
            **context,
            "runs": results,
            "memory": memory,
            "goals": [dict(zip(names, g, strict=True)) for g in goals],
        }
        print(json.dumps(found, indent=2))
        return
    print("; ".join(f"{name} {value}" for name, value in context.items()))
    print("medians, and behind each its ratio to two HAProxies\n")
    print("\n".join(table(results, memory)), end="\n\n")
    for measure, reached, wanted, holds in goals:
        verdict = "holds" if holds else "MISSED"
        most = "at most " if measure == MEMORY else ""
        print(f"{verdict}: {measure}: {PLUMBERDS} have {reached:.2f} of {HAPROXIES}; the goal is {most}{wanted:.2f}")


if __name__ == "__main__":
    sys.exit(main())
