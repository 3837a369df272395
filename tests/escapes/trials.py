"""Every trial on one machine.

Run as ``unshare -n -p -f --mount-proc python -m tests.escapes.trials FOLDER``; it prints what came
of them, as JSON.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.escapes import cage
from tests.escapes.askers import ASKERS, Asker, Asking, outcome
from tests.escapes.attempts import (
    ATTEMPTS,
    FAMILIES,
    LOCKED_ONLY,
    OUTBOUND_ONLY,
    POSSIBLE,
    REFUSED,
    SILENT,
    Held,
    share,
)
from tests.escapes.cage import CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, Outside, Program
from tests.escapes.expected import BY_CAPABILITY, COUNTERED
from tests.escapes.machine import CAGED, CLIENT, ELSEWHERE, HERE, OTHER, OUTSIDE, Machine
from tests.escapes.sent import Sending

OUTBOUND: dict[str, Program] = {"locked": CAGED, "direct": OUTSIDE, "relayed": CAGED, "framed": CAGED, "local": CAGED}
"""Who gets which mode, and tries."""

ACCEPTED: dict[str, Program] = {"locked": CAGED, "direct": OUTSIDE, "relayed": CAGED, "local": CAGED}
"""Likewise, with what a claimant is handed; nothing is framed for those."""

CAPABLE: dict[str, Program] = {
    "none": CAGED,
    "all, in a user namespace of its own": Program(CLIENT, is_root_of_its_own=True),
    "CAP_NET_RAW, CAP_NET_BIND_SERVICE": Program(None, capabilities=(CAP_NET_RAW, CAP_NET_BIND_SERVICE)),
    "CAP_NET_ADMIN": Program(None, capabilities=(CAP_NET_ADMIN,)),
}
"""Which capabilities a program in a cage may have."""

FIREWALLS: dict[str, tuple[str, str, str]] = {
    "a routing rule": (
        "ip",
        # Local addresses come first otherwise, and everything here is local.
        "ip rule add pref 100 lookup local && ip rule del pref 0 && ip rule add pref 10 uidrange {uid}-{uid} prohibit",
        "ip rule add pref 0 lookup local && ip rule del pref 10 && ip rule del pref 100",
    ),
    "a packet filter": (
        "nft",
        "nft 'table inet escapes {{ chain out {{ type filter hook output priority 0;"
        " meta skuid {uid} meta l4proto tcp reject with tcp reset; }}; }}'",
        "nft delete table inet escapes",
    ),
}
"""What speaks of a user: the program that it needs, what puts it in force, and what takes it away."""


COUNTER_MEASURES = """
table inet escapes {
    chain out {
        type filter hook output priority 0;
        exthdr rt exists drop
        fib saddr type != local drop
    }
}
"""
"""What docs/security.md proposes against what a `locked` IPv6 socket can still send."""


class Trials:
    """The trials of one machine that has started."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._claims = 0

    def outcomes(self) -> dict[str, Any]:
        """Return what came of all of them."""
        machine = self._machine
        told: dict[str, Any] = {"out": defaultdict(dict), "in": defaultdict(dict), "capable": {}}
        told["askers"] = dict(self._askers())
        told["firewalls"] = dict(self._firewalls())
        told["sent"] = Sending(machine.folder, machine.rundir("auto"), machine.brokers["auto"]).outcomes()
        for family in HERE:
            for mode, program in OUTBOUND.items():
                told["out"][mode][family.name] = {
                    name: self._outbound(mode, program, family, name) for name in self._attempts(family, mode)
                }
            for mode, program in ACCEPTED.items():
                told["in"][mode][family.name] = {
                    name: self._accepted(mode, program, family, name)
                    for name in self._attempts(family, mode)
                    if name not in OUTBOUND_ONLY
                }
        for capabilities, program in CAPABLE.items():
            told["capable"][capabilities] = {
                name: self._outbound("locked", program, socket.AF_INET, name) for name in BY_CAPABILITY
            }
        told["countered"] = self._countered()
        told["without_daemon"] = self._without_daemon(socket.AF_INET)
        return told

    def _attempts(self, family: socket.AddressFamily, mode: str) -> Iterator[str]:
        for name in ATTEMPTS:
            # One end of a pair is the same whatever addresses lie behind it: each attempt is made once.
            families = FAMILIES[name] if mode in ("locked", "direct") else FAMILIES[name][:1]
            if family in families and (mode == "locked" or name not in LOCKED_ONLY):
                yield name

    def _held(self, sock: socket.socket, outside: Outside, family: socket.AddressFamily, broker: str) -> Held:
        machine = self._machine
        forbidden = (ELSEWHERE[family], machine.forbidden[ELSEWHERE[family]].getsockname()[1])
        return Held(
            sock, outside, family, machine.far[family], forbidden, machine.daemons[broker][family], machine.receiver
        )

    def _outbound(self, mode: str, program: Program, family: socket.AddressFamily, name: str) -> str:
        machine = self._machine
        service = "here" if mode == "local" else mode
        routes = "" if mode == "local" else f"{service} {machine.uri(family)}?framing=libipc-zig"

        def work(outside: Outside) -> str:
            answer = cage.look_up(machine.rundir("auto"), service, routes)
            sock = answer.granted()
            if answer.word != mode:
                raise AssertionError(f"wanted {mode}: {answer.members}")
            return ATTEMPTS[name](self._held(sock, outside, family, "auto"))

        return machine.run(program, work)

    def _accepted(self, mode: str, program: Program, family: socket.AddressFamily, name: str) -> str:
        machine = self._machine
        broker = mode if mode in ("direct", "relayed") else "auto"
        self._claims += 1
        service = f"c{self._claims}"

        def work(outside: Outside) -> str:
            with cage.dial(machine.rundir(broker, "plumberd")) as claim:
                claimed = cage.ask_on(claim, op="serve", service=service)
                if not claimed.members["ok"]:
                    raise AssertionError(claimed.members)
                if mode == "local":
                    outside.ask("look_up", broker, service)
                elif not outside.ask("is_let_in", broker, family, service):
                    raise AssertionError(f"a caller of {service} was not let in")
                handed = cage.take(claim)
                if handed.word != mode:
                    raise AssertionError(f"wanted {mode}: {handed.members}")
                return ATTEMPTS[name](self._held(handed.granted(), outside, family, broker))

        return machine.run(program, work)

    def _countered(self) -> dict[str, str]:
        """Try again, behind a packet filter, what the lock lets through."""
        if shutil.which("nft") is None:
            return {}
        subprocess.run(["nft", "-f", "-"], check=True, input=COUNTER_MEASURES, text=True)
        told = {name: self._outbound("locked", CAGED, socket.AF_INET6, name) for name in COUNTERED}
        subprocess.run(["nft", "delete", "table", "inet", "escapes"], check=True)
        return told

    def _without_daemon(self, family: socket.AddressFamily) -> dict[str, str]:
        """Have a dialled and an accepted socket, and then no broker any more."""
        machine = self._machine

        def work(outside: Outside) -> str:
            dialled = cage.look_up(machine.rundir("auto"), "locked", f"locked {machine.uri(family)}").granted()
            with cage.dial(machine.rundir("auto", "plumberd")) as claim:
                cage.ask_on(claim, op="serve", service="c-last")
                outside.ask("is_let_in", "auto", family, "c-last")
                accepted = cage.take(claim).granted()
                outside.ask("stop_broker")
            told = {}
            for name, sock in (("dialled", dialled), ("accepted", accepted)):
                held = self._held(sock, outside, family, "auto")
                share(held)
                held.listen(held.daemon)
                told[f"{name}: be connected to there"] = POSSIBLE if outside.ask("reaches", held.daemon) else SILENT
                told[f"{name}: tcpd listens there meanwhile"] = (
                    POSSIBLE if outside.ask("can_listen", held.daemon) else REFUSED
                )
                held.disconnect()
            outside.ask("keep_listening", held.daemon)
            for name, sock in (("dialled", dialled), ("accepted", accepted)):
                held = self._held(sock, outside, family, "auto")
                try:
                    held.listen(held.daemon)
                except OSError:
                    told[f"{name}: where somebody else keeps tcpd's socket"] = REFUSED
            return json.dumps(told)

        outcomes: dict[str, str] = json.loads(machine.run(CAGED, work))
        return outcomes

    def _askers(self) -> Iterator[tuple[str, str]]:
        machine = self._machine
        setuid_cat = os.path.join(machine.folder, "cat")
        shutil.copy("/bin/cat", setuid_cat)
        os.chmod(setuid_cat, 0o4755)
        request = {"op": "lookup", "service": "free", "routes": f"free {machine.uri(socket.AF_INET)}"}

        def ask(work: Asker, outside: Outside) -> str:
            return work(Asking(outside, machine.rundir("auto"), machine.rundir("direct"), request, setuid_cat))

        for name, (program, work) in ASKERS.items():
            yield name, machine.run(program, functools.partial(ask, work))

    def _firewalls(self) -> Iterator[tuple[str, dict[str, str]]]:
        machine = self._machine
        routes = f"locked {machine.uri(socket.AF_INET)}"

        def ask(outside: Outside) -> str:
            return outcome(cage.look_up(machine.rundir("auto"), "locked", routes))

        for name, (needed, begin, end) in FIREWALLS.items():
            if shutil.which(needed) is None:
                continue
            subprocess.run(["sh", "-ec", begin.format(uid=CLIENT)], check=True)
            yield name, {str(uid): machine.run(Program(uid), ask) for uid in (CLIENT, OTHER)}
            subprocess.run(["sh", "-ec", end], check=True)


def main() -> None:
    """Try everything, and print what came of it."""
    machine = Machine(sys.argv[1])
    try:
        machine.start()
        print(json.dumps(Trials(machine).outcomes()))
    except BaseException:
        for name, broker in machine.brokers.items():
            print(f"-- {name}\n{broker.output[-4000:]}", file=sys.stderr)
        raise
    finally:
        machine.stop()


if __name__ == "__main__":
    main()
