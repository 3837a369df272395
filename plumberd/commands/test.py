"""``plumb test``: does the policy do what it is meant to do?"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from plumberd import client
from plumberd.commands.explain import request_of, verdict_of
from plumberd.commands.output import ERROR, OK, REFUSED, complain, say, say_json
from plumberd.pure.policy.assertion import FILE_BYTES, Assertion, AssertionsError, parse_assertions
from plumberd.pure.refusals import Refusal

Prove = Callable[[Assertion], dict[str, Any]]
"""Returns the explanation of an assertion; raises :class:`Undecided`."""


class Undecided(Exception):
    """There is no verdict; the argument says why."""


def run(args: argparse.Namespace) -> int:
    """Try every assertion; tell those that fail."""
    try:
        with open(args.file, encoding="utf-8") as file:
            assertions = parse_assertions(file.read(FILE_BYTES + 1))
    except (OSError, UnicodeDecodeError) as e:
        complain(f"{args.file}: {e.strerror if isinstance(e, OSError) else 'no UTF-8'}")
        return ERROR
    except AssertionsError as e:
        for number, text in e.mistakes:
            complain(f"{args.file}:{number}: {text}" if number else f"{args.file}: {text}")
        return ERROR
    prove = _prover(args)
    if prove is None:
        return ERROR
    failures = [failure for one in assertions if (failure := failure_of(one, prove, args.file)) is not None]
    if args.json:
        say_json({"assertions": len(assertions), "failed": len(failures), "failures": failures})
    else:
        say(line for failure in failures for line in lines_of(failure))
        say([f"{len(assertions)} assertion{'' if len(assertions) == 1 else 's'}, {len(failures)} failed"])
    return REFUSED if failures else OK


def failure_of(assertion: Assertion, prove: Prove, file: str) -> dict[str, Any] | None:
    """Return what is wrong, or ``None`` where the policy does what is wanted.

    What the rules grant and this version cannot do (``not-possible``) is granted: it is the policy
    that is tried. A mode that is wanted has to be one that is there.
    """
    wanted = "granted" if assertion.granted else "refused"
    if assertion.mode is not None:
        wanted += f", {assertion.mode}"
    failure = {"file": file, "line": assertion.number, "assertion": assertion.text, "wanted": wanted}
    try:
        answer = prove(assertion)
    except Undecided as e:
        return {**failure, "found": f"no verdict: {e}", "reason": "", "rule": None}
    granted = answer["granted"] or answer["word"] == Refusal.NOT_POSSIBLE.value
    if granted is assertion.granted and (assertion.mode is None or answer["mode"] == assertion.mode):
        return None
    found = ": ".join(verdict_of(answer))
    return {**failure, "found": found, "reason": answer["reason"], "rule": answer["rule"]}


def lines_of(failure: dict[str, Any]) -> list[str]:
    """Return a failure for people."""
    lines = [
        f"{failure['file']}:{failure['line']}: {failure['assertion']}",
        f"    wanted  {failure['wanted']}",
        f"    found   {failure['found']}",
    ]
    return [*lines, f"    reason  {failure['reason']}"] if failure["reason"] else lines


def _prover(args: argparse.Namespace) -> Prove | None:
    """Return what asks the configuration, or else the broker; ``None`` where it was said what is wrong."""
    if args.config is None:
        return lambda assertion: _ask_broker(assertion, args.rundir)
    from plumberd.commands.offline import AddressesError, Configured, UnreadableError  # late: it brings Twisted along

    try:
        configured = Configured(args.config)
    except UnreadableError as e:
        for mistake in e.mistakes:
            complain(mistake)
        return None

    def prove(assertion: Assertion) -> dict[str, Any]:
        try:
            return configured.prove(_request(assertion), assertion.addresses)
        except AddressesError as e:
            raise Undecided(f"the addresses of {e} decide; give them: at ADDRESS") from None
        except client.Refused as e:
            raise Undecided(e.reason) from None

    return prove


def _ask_broker(assertion: Assertion, rundir: str | None) -> dict[str, Any]:
    if assertion.addresses:
        raise Undecided("a running broker asks its own name server; at is for --config")
    try:
        answer, _ = client.ask(_request(assertion), rundir=rundir)
    except client.Refused as e:
        raise Undecided(f"{e.word}: {e.reason}") from None
    if answer["word"] in (Refusal.UNREACHABLE.value, Refusal.TIMEOUT.value):
        raise Undecided(answer["reason"])  # a name that has no address today says nothing about the rules
    return answer


def _request(assertion: Assertion) -> dict[str, Any]:
    return request_of(assertion.direction, assertion.service or "any", assertion.target, assertion.who)
