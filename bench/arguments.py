"""What all benchmarks take on their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

QUICK_IDLE = 20


def read_arguments(
    words: Sequence[str] | None, description: str, *, rounds: int, seconds: float, idle: int = 0, most_idle: int = 5000
) -> argparse.Namespace:
    """Read the command line; a mistake is a message and exit status 2.

    :param rounds, seconds: unless it says otherwise.
    :param idle: the same; 0 where idle connections are not measured.
    :return: with quick, json, rounds and seconds, and idle where that is measured.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="see whether it works: one short round, no true figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="how often everything is measured [default: %(default)s]"
    )
    parser.add_argument("--seconds", type=float, default=seconds, help="how long each run lasts [default: %(default)s]")
    if idle:
        parser.add_argument(
            "--idle", type=int, default=idle, help="idle connections for their memory [default: %(default)s]"
        )
    arguments = parser.parse_args(words)
    if arguments.rounds < 1 or not 0.05 <= arguments.seconds <= 60:
        parser.error("wanted at least one round, and 0.05 to 60 seconds")
    if idle and not 10 <= arguments.idle <= most_idle:
        parser.error(f"wanted 10 to {most_idle} idle connections")
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 0.1
        if idle:
            arguments.idle = QUICK_IDLE
    return arguments
