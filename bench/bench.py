"""Measure plumberd against a direct connection and against HAProxy; README.md says what the figures mean.

    python bench/bench.py [--quick] [--json] [--rounds N] [--seconds S]

It starts everything itself, on loopback addresses and in a temporary directory,
and ends and removes all of it, after an interrupt too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, NoReturn

from arguments import read_arguments
from stage import DIRECT, LOAD, LOCKED, MANY_RULES, TWO_HAPROXIES, BenchError, Contender, Stage

REST_SECONDS = 0.1
"""Between two runs, for what one contender still has to close and to log."""

HANGING_SECONDS = 60.0

MOST_SETUPS_A_SECOND = 40_000
"""A run of set-ups ends after so many for each of its seconds, whatever its time: no machine runs out of ports."""


@dataclass(frozen=True)
class Measure:
    """One thing that is measured.

    :ivar mode: load's first arguments; a run's seconds stand at ``{seconds}``, its most set-ups at ``{most}``.
    :ivar scale: divides what load prints, to give *unit*.
    :ivar one_cpu: everything runs on one CPU. Where one thing is under way at a time little is lost
        by that, and otherwise the scheduler's choice of CPUs decides, up to threefold.
    :ivar repeats: how often it is measured a round; often where a small difference counts.
    """

    name: str
    unit: str
    mode: tuple[str, ...]
    scale: float = 1.0
    one_cpu: bool = False
    repeats: int = 1

    def arguments(self, seconds: float) -> list[str]:
        """Return load's first arguments for a run of *seconds*."""
        most = round(seconds * MOST_SETUPS_A_SECOND)
        return [word.format(seconds=f"{seconds:g}", most=most) for word in self.mode]


@dataclass(frozen=True)
class Goal:
    """What plumberd wants to reach: one contender's figure divided by another's."""

    measure: str
    contender: str
    against: str
    at_least: float


ONE_STREAM = "one stream, one CPU"
MANY_SETUPS = "set-ups, 64 clients"

MEASURES = (
    Measure(ONE_STREAM, "MB/s", ("stream", "1", "{seconds}"), 1e6, one_cpu=True, repeats=3),
    Measure("one stream", "MB/s", ("stream", "1", "{seconds}"), 1e6),
    Measure("eight streams", "MB/s", ("stream", "8", "{seconds}"), 1e6),
    Measure("round trips, one CPU", "1/s", ("pingpong", "{seconds}"), one_cpu=True),
    Measure("set-ups, 1 client, one CPU", "1/s", ("setups", "1", "{seconds}", "{most}"), one_cpu=True),
    Measure("set-ups, 16 clients", "1/s", ("setups", "16", "{seconds}", "{most}")),
    Measure(MANY_SETUPS, "1/s", ("setups", "64", "{seconds}", "{most}")),
)

GOALS = (
    Goal(ONE_STREAM, LOCKED, DIRECT, 0.95),
    Goal(MANY_SETUPS, LOCKED, TWO_HAPROXIES, 0.40),
    Goal(MANY_SETUPS, MANY_RULES, LOCKED, 0.90),
)

Results = dict[str, dict[str, list[float]]]
"""Measure's name → contender's name → one figure a run, in the measure's unit."""


def run_all(
    stage: Stage, contenders: Sequence[Contender], rounds: int, seconds: float, measures: Sequence[Measure] = MEASURES
) -> Results:
    """Measure everything *rounds* times; the contenders take turns at each measure.

    Every other turn goes through them backwards, so that a machine that grows slower or
    faster favours nobody.

    :raises BenchError: where anything fails.
    """
    results: Results = {m.name: {c.name: [] for c in contenders} for m in measures}
    cpus, chooses = os.sched_getaffinity(0), any(m.one_cpu for m in measures)
    for number in range(rounds):
        for measure in measures:
            show_progress(f"round {number + 1} of {rounds}: {measure.name}")
            if chooses:
                stage.place({max(cpus)} if measure.one_cpu else cpus)
            for turn in range(number, number + measure.repeats):
                for contender in contenders if turn % 2 == 0 else reversed(contenders):
                    results[measure.name][contender.name].append(run(measure, contender, seconds))
                    stage.check()
                    time.sleep(REST_SECONDS)
    show_progress("")
    return results


def run(measure: Measure, contender: Contender, seconds: float) -> float:
    """Run load once; return its figure in the measure's unit.

    :raises BenchError: where a byte was wrong, a connection failed, or load hangs.
    """
    command = [str(contender.load), *measure.arguments(seconds), *contender.how]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + HANGING_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{contender.name}, {measure.name}: it hangs") from None
    if done.returncode:
        raise BenchError(f"{contender.name}, {measure.name}: {done.stderr.strip()}")
    return float(done.stdout) / measure.scale


def ratio(results: Results, measure: str, contender: str, against: str) -> float:
    """Return the median of one contender's figures, each divided by the other's of the same turn."""
    mine, other = results[measure][contender], results[measure][against]
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def judge(results: Results) -> Iterator[tuple[Goal, float]]:
    """Yield each goal with what was reached."""
    for goal in GOALS:
        yield goal, ratio(results, goal.measure, goal.contender, goal.against)


def show_progress(text: str) -> None:
    """Show what is going on, where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def table(results: Results) -> Iterator[str]:
    """Yield the lines of the table: medians, and behind each its ratio to direct TCP."""
    names = list(results[ONE_STREAM])
    labels = {m.name: f"{m.name}, {m.unit}" for m in MEASURES}
    wide = max(map(len, labels.values()))
    yield " " * wide + "".join(f"{name:>16}" for name in names)
    for measure, label in labels.items():
        cells = ""
        for name in names:
            against = f"{ratio(results, measure, name, DIRECT):.2f}" if name != DIRECT else ""
            cells += f"{statistics.median(results[measure][name]):>11,.0f}{against:>5}"
        yield f"{label:<{wide}}{cells}"


def sentence(goal: Goal, reached: float) -> str:
    """Say whether *goal* holds."""
    verdict = "holds" if reached >= goal.at_least else "MISSED"
    wanted = f"the goal is {goal.at_least:.2f}"
    return f"{verdict}: {goal.measure}: {goal.contender} has {reached:.2f} of {goal.against}; {wanted}"


def as_json(results: Results, context: dict[str, Any]) -> str:
    """Return everything as JSON: each run's figure, medians, ratios and goals."""
    measures = {
        m.name: {
            "unit": m.unit,
            "contenders": {
                name: {
                    "median": statistics.median(figures),
                    "ratio": ratio(results, m.name, name, DIRECT),
                    "runs": figures,
                }
                for name, figures in results[m.name].items()
            },
        }
        for m in MEASURES
    }
    goals = [{**asdict(g), "reached": reached, "holds": reached >= g.at_least} for g, reached in judge(results)]
    return json.dumps({**context, "measures": measures, "goals": goals}, indent=2)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End in order on a signal, as on an interrupt at the terminal."""
    raise KeyboardInterrupt


def run_measuring(target: str, measure: Callable[[], None]) -> int:
    """Run *measure*, which starts and ends everything itself; return the exit status.

    :param target: of make, that builds what is needed.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if not LOAD.exists():
        print(f"bench: {LOAD} is not there; make {target} builds it", file=sys.stderr)
        return 1
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        measure()
    except BenchError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what was started is ended", file=sys.stderr)
        return 130
    return 0


def surroundings() -> dict[str, Any]:
    """Return when and on what is measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 where it ran, whether or not the goals hold."""
    arguments = read_arguments(words, "Measure plumberd against direct TCP and HAProxy.", rounds=8, seconds=0.6)

    def measure() -> None:
        with Stage() as stage:
            results = run_all(stage, stage.start(), arguments.rounds, arguments.seconds)
        report(arguments, results)

    return run_measuring("bench", measure)


def report(arguments: argparse.Namespace, results: Results) -> None:
    """Print what was measured."""
    context = {**surroundings(), "rounds": arguments.rounds, "seconds": arguments.seconds}
    if arguments.json:
        print(as_json(results, context))
        return
    print(", ".join(f"{key} {value}" for key, value in context.items()))
    print("medians; behind each the median of its ratios to direct TCP\n")
    print("\n".join(table(results)))
    print()
    print("\n".join(sentence(goal, reached) for goal, reached in judge(results)))


if __name__ == "__main__":
    raise SystemExit(main())
