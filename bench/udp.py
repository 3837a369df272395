"""Measure plumberd's datagrams against socat and a direct socket; README.md says what the figures mean.

    python bench/udp.py [--quick] [--json] [--rounds N] [--seconds S]

It starts everything itself, on a loopback address and in a temporary directory,
and ends and removes all of it, after an interrupt too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence

from arguments import read_arguments
from udp_stage import DIRECT, PLUMBERD, SOCAT, TWO_PLUMBERDS, TWO_SOCATS, UDP_LOAD, UdpStage

from bench import Goal, Measure, Results, ratio, run_all, run_measuring, surroundings

ROUND_TRIPS = "round trips, 64 bytes"
THIRTY_TWO = "echo, 32 under way, 64 bytes"
ONE_WAY = "one way, 64 bytes"
ONE_WAY_LARGE = "one way, 1200 bytes"
RATE = 20_000
ARRIVED = f"arrived of {RATE:,} a second"

MEASURES = (
    Measure(ROUND_TRIPS, "1/s", ("echo", "{seconds}", "1", "64"), repeats=2),
    Measure(THIRTY_TWO, "1/s", ("echo", "{seconds}", "32", "64"), repeats=2),
    Measure(ONE_WAY, "1/s", ("oneway", "{seconds}", "64"), repeats=2),
    Measure(ONE_WAY_LARGE, "1/s", ("oneway", "{seconds}", "1200")),
    Measure(ARRIVED, "%", ("percent", "{seconds}", str(RATE), "64")),
)

GOALS = tuple(
    Goal(measure, mine, theirs, 1.0)
    for mine, theirs in ((PLUMBERD, SOCAT), (TWO_PLUMBERDS, TWO_SOCATS))
    for measure in (ROUND_TRIPS, THIRTY_TWO, ONE_WAY, ONE_WAY_LARGE)
)


def table(results: Results) -> Iterator[str]:
    """Yield the lines of the table: medians, and behind each its ratio to the direct socket."""
    labels = {m.name: f"{m.name}, {m.unit}" for m in MEASURES}
    wide = max(map(len, labels.values()))
    names = list(results[ROUND_TRIPS])
    yield " " * wide + "".join(f"{name:>18}" for name in names)
    for measure in MEASURES:
        digits = 1 if measure.unit == "%" else 0
        cells = "".join(
            f"{statistics.median(results[measure.name][name]):>12,.{digits}f}"
            f"{ratio(results, measure.name, name, DIRECT):>6.2f}"
            for name in names
        )
        yield f"{labels[measure.name]:<{wide}}{cells}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 where it ran, whether or not the goals hold."""
    arguments = read_arguments(words, "Measure plumberd's datagrams against socat.", rounds=6, seconds=1.0)

    def measure() -> None:
        with UdpStage() as stage:
            results = run_all(stage, stage.start(), arguments.rounds, arguments.seconds, MEASURES)
        report(arguments, results)

    if not UDP_LOAD.exists():
        print(f"bench: {UDP_LOAD} is not there; make bench-udp builds it", file=sys.stderr)
        return 1
    return run_measuring("bench-udp", measure)


def report(arguments: argparse.Namespace, results: Results) -> None:
    """Print what was measured."""
    context = {**surroundings(), "rounds": arguments.rounds, "seconds": arguments.seconds}
    reached = [(goal, ratio(results, goal.measure, goal.contender, goal.against)) for goal in GOALS]
    if arguments.json:
        goals = [
            {"measure": g.measure, "contender": g.contender, "against": g.against, "reached": r, "holds": r >= 1.0}
            for g, r in reached
        ]
        print(json.dumps({**context, "runs": results, "goals": goals}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in context.items()))
    print("medians; behind each the median of its ratios to the direct socket\n")
    print("\n".join(table(results)), end="\n\n")
    for goal, found in reached:
        verdict = "holds" if found >= goal.at_least else "MISSED"
        print(f"{verdict}: {goal.measure}: {goal.contender} has {found:.2f} of {goal.against}")


if __name__ == "__main__":
    sys.exit(main())
