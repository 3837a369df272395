"""What the benchmark measures: the processes, started on loopback addresses, and ended again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOAD = HERE / "load"

SPREAD = "127.0.0.*"
ADDRESSES = tuple(f"127.0.0.{n}" for n in range(1, 17))
"""What load makes of SPREAD. Everything listens on all of these, and connections are spread over them."""

SERVICE = "bench"

RULES = tuple(f"deny out any tcp:10.0.0.{n}" for n in range(1, 11))
"""Every lookup goes through these before the default lets it out."""

MANY = 10_000
"""Rules of the broker that has many; networks, hosts and users in turn, so that each kind is there by the thousand."""

START_SECONDS = 15.0
STOP_SECONDS = 10.0

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_CAPBSET_DROP = 24
CAP_NET_ADMIN = 12  # linux/capability.h

HAPROXY = """\
global
    nbthread 1
    maxconn 8000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend hop
{binds}
    default_backend next
backend next
    balance roundrobin
{servers}
"""


class BenchError(Exception):
    """Something that is measured did not start or did not work; the message says which and how."""


@dataclass(frozen=True)
class Contender:
    """One way of connecting.

    :ivar how: load's last arguments.
    :ivar load: the program that is the client.
    """

    name: str
    how: tuple[str, ...]
    load: Path = LOAD


DIRECT = "direct TCP"
LOCKED = "mode locked"
UNLOCKED = "mode direct"
RELAYED = "mode relayed"
MANY_RULES = "10,000 rules"
TWO_PLUMBERDS = "two plumberds"
TWO_HAPROXIES = "two HAProxies"


class Stage:
    """A context manager that owns the processes and their directory, and leaves nothing of either."""

    def __init__(self) -> None:
        self._processes: list[tuple[str, subprocess.Popen[str]]] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="bench-")
        self._directory = Path(self._temporary.name)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second interrupt must not leave half of it behind
        for _, process in self._processes:
            process.terminate()
        for _, process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._temporary.cleanup()

    def start(self) -> tuple[Contender, ...]:
        """Start everything and return the contenders, the direct connection first.

        :raises BenchError: where something does not come up.
        """
        far = self._make_directory("far")
        port = self._start_server(far / SERVICE)
        tcpd = free_port()
        listening = [word for a in ADDRESSES for word in ("--tcpd", f"tcp:{tcpd}:interface={a}")]
        self._start_plumberd(far, *listening, "--allow", "in", SERVICE, "tcp:any")
        locked = self._start_broker("locked")
        # The mode for brokers that cannot lock sockets: so this one cannot.
        unlocked = self._start_broker("direct", before=drop_net_admin)
        relayed = self._start_broker("relayed")
        many = self._start_many_rules()
        second = self._start_haproxy("second", port)
        first = self._start_haproxy("first", second)
        for at in (first, second, tcpd):
            self._wait_for(socket.AF_INET, *((address, at) for address in ADDRESSES))
        uri = f"tcp://{SPREAD}:{port}"
        return (
            Contender(DIRECT, ("direct", SPREAD, str(port))),
            Contender(LOCKED, ("broker", locked, uri)),
            Contender(MANY_RULES, ("broker", many, uri)),
            Contender(UNLOCKED, ("broker", unlocked, uri)),
            Contender(RELAYED, ("broker", relayed, uri)),
            Contender(TWO_PLUMBERDS, ("broker", locked, f"tcp://{SPREAD}:{tcpd}/{SERVICE}")),
            Contender(TWO_HAPROXIES, ("direct", SPREAD, str(first))),
        )

    def check(self) -> None:
        """Check that everything still runs.

        :raises BenchError: with the end of what the dead process has said.
        """
        for name, process in self._processes:
            if process.poll() is not None:
                said = self._log(name).read_text(errors="replace")[-2000:]
                raise BenchError(f"{name} has ended with status {process.returncode}\n{said}")

    def place(self, cpus: set[int]) -> None:
        """Let everything run on *cpus* alone: what was started, this program, and what it starts from now on."""
        for pid in (0, *(process.pid for _, process in self._processes)):
            os.sched_setaffinity(pid, cpus)

    def _start_server(self, path: Path) -> int:
        server = self._spawn("server", [str(LOAD), "serve", str(path)], stdout=subprocess.PIPE)
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            server.wait(STOP_SECONDS)
            self.check()
        return int(line)

    def _start_broker(self, mode: str, before: Callable[[], None] | None = None) -> str:
        rules = [word for rule in RULES for word in ("--rule", rule)]
        return self._start_plumberd(self._make_directory(mode), "--handover", mode, *rules, before=before)

    def _start_many_rules(self) -> str:
        """Start a broker like the first, with a file of rules of which none matches."""
        config = self._directory / "many.toml"
        lines = "\n".join(f'    "{rule}",' for rule in many_rules())
        config.write_text(f"rules = [\n{lines}\n]\n")
        config.chmod(0o600)
        return self._start_plumberd(self._make_directory("many"), "--handover", "locked", "--config", str(config))

    def _start_plumberd(self, rundir: Path, *options: str, before: Callable[[], None] | None = None) -> str:
        """Start one that is called like its run directory; return the path of its native socket."""
        # This interpreter's twistd, not one that PATH finds first.
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = [twistd, "-n", "--pidfile=", "plumberd", "--rundir", str(rundir), *options]
        self._spawn(rundir.name, command, before=before)
        path = str(rundir / "plumberd")
        self._wait_for(socket.AF_UNIX, path)
        return path

    def _start_haproxy(self, name: str, to_port: int) -> int:
        port = free_port()
        binds = "\n".join(f"    bind {address}:{port}" for address in ADDRESSES)
        servers = "\n".join(f"    server s{n} {address}:{to_port}" for n, address in enumerate(ADDRESSES))
        config = self._directory / f"{name}.cfg"
        config.write_text(HAPROXY.format(binds=binds, servers=servers))
        self._spawn(f"haproxy-{name}", [found("haproxy"), "-db", "-q", "-f", str(config)])
        return port

    def _spawn(
        self, name: str, command: Sequence[str], *, stdout: int | None = None, before: Callable[[], None] | None = None
    ) -> subprocess.Popen[str]:
        def in_child() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # whatever kills this program, no process is left behind
            if before is not None:
                before()

        with open(self._log(name), "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log,
                text=True,
                # An interrupt at the terminal is for this program alone, which ends the rest.
                start_new_session=True,
                preexec_fn=in_child,  # safe: this program has one thread
            )
        self._processes.append((name, process))
        return process

    def _wait_for(self, family: int, *addresses: Any) -> None:
        """Wait until somebody accepts at each of *addresses*.

        :raises BenchError: where that takes too long, or where one of the processes has ended.
        """
        deadline = time.monotonic() + START_SECONDS
        for address in addresses:
            while True:
                with socket.socket(family) as probe:
                    if probe.connect_ex(address) == 0:
                        break
                self.check()
                if time.monotonic() > deadline:
                    raise BenchError(f"nobody listens at {address} after {START_SECONDS:g} seconds")
                time.sleep(0.02)

    def _make_directory(self, name: str) -> Path:
        directory = self._directory / name
        directory.mkdir(0o700)
        return directory

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"


def many_rules() -> Iterator[str]:
    """Yield :data:`MANY` rules."""
    for n in range(MANY):
        if n % 3 == 0:
            yield f"deny out any tcp:10.{n >> 8}.{n & 255}.0/24"
        elif n % 3 == 1:
            yield f"deny out any tcp:h{n}.example.com:80-443"
        else:
            yield f"deny out any any for uid:{100_000 + n}"


def free_port() -> int:
    """Return a port that is free on every one of the addresses at this moment."""
    while True:
        with contextlib.ExitStack() as probes:
            port = 0
            try:
                for address in ADDRESSES:
                    probe = probes.enter_context(socket.socket())
                    probe.bind((address, port))
                    port = probe.getsockname()[1]
            except OSError:
                continue
            return port


def found(*names: str) -> str:
    """Return the path of a program, which may lie where only root's PATH leads.

    :raises BenchError: where there is none.
    """
    for name in names:
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin")
        if path is not None:
            return path
    raise BenchError(f"{names[0]} is not installed, and it is what plumberd is compared with")


def with_children(pid: int) -> tuple[int, ...]:
    """Return *pid*, what it has started, which does the work for some, and so on."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return (pid, *(found for child in children for found in with_children(int(child))))


def memory_of(pids: tuple[int, ...]) -> int:
    """Return the bytes of memory that *pids* have, what they share counted in shares (PSS)."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def prctl(option: int, argument: int) -> None:
    """Call prctl(2) for this process.

    :raises OSError: where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def drop_net_admin() -> None:
    """See to it that the program that is executed next has no CAP_NET_ADMIN."""
    with contextlib.suppress(OSError):  # who may not drop it has none
        prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN)
