"""Run every case against a client: one line for each, and a count."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests import conformance
from tests.conformance import answers, asking, talks
from tests.conformance.case import Play
from tests.conformance.stage import Stage
from tests.conformance.streams import Mismatch

CASES = [*asking.CASES.all, *answers.CASES.all, *talks.CASES.all]
OK, FAILED, MISUSED = 0, 1, 2
SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases; return the exit status."""
    args = _parser().parse_args(argv)
    chosen = [(name, play) for name, play in CASES if args.only in name]
    if args.list:
        print("\n".join(name for name, _ in chosen))
        return OK
    if not args.client:
        print("python -m tests.conformance: wanted a CLIENT; --help tells more", file=sys.stderr)
        return MISUSED
    began = time.monotonic()
    failed = 0
    for name, play in chosen:
        found = run(play, args.client, args.seconds)
        failed += found is not None
        print(f"ok   {name}" if found is None else f"FAIL {name}: {found}", flush=True)
    seconds = time.monotonic() - began
    print(f"{len(chosen)} cases: {len(chosen) - failed} ok, {failed} failed, in {seconds:.1f} s")
    return OK if chosen and not failed else FAILED


def run(play: Play, client: Sequence[str], seconds: float) -> str | None:
    """Run one case; return what was wanted and what was found, or ``None`` if they are the same."""
    stage = Stage(client, seconds)
    try:
        play(stage)
    except Mismatch as e:
        return "; ".join([str(e), *(client.state() for client in stage.clients)]).replace("\n", "\\n")
    except OSError as e:
        return f"{type(e).__name__}: {e}"
    finally:
        stage.close()
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=conformance.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--only TEXT] [--seconds N] [--list] CLIENT [ARG…]",
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="only the cases whose name has TEXT in it")
    parser.add_argument(
        "--seconds", metavar="N", type=float, default=SECONDS, help="a case's time [default: %(default)g]"
    )
    parser.add_argument("--list", action="store_true", help="print the cases' names and run none")
    parser.add_argument("client", nargs=argparse.REMAINDER, metavar="CLIENT [ARG…]", help="SERVICE is put behind it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
