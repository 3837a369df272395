"""What strains a broker: clients that die, stop, vanish or flood it, each while another one is served.

Run as ``unshare -n -p -f --mount-proc python -m tests.escapes.strains FOLDER``; it prints, for
each strain, what was wrong, or :data:`FINE`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.escapes import cage
from tests.escapes.cage import DEADLINE_SECONDS, Program, ask_on, dial, framed, take, until
from tests.escapes.machine import CLIENT, HERE, OTHER, Machine

FINE = "fine"

SERVED_SECONDS = 4.0
"""Within that another client is served, on a busy machine too; else it has waited for somebody."""

POOLED = 4
"""Descriptors of pipes that a broker may keep for the next relay."""

QUIET_SECONDS = 0.2
"""So long nothing has to happen."""


class Broker:
    """One broker with short patience, and what it holds.

    :ivar forgotten: descriptors that have been left unread so far: they stay on their users' account for a while.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        here = f"tcp:{HERE[socket.AF_INET]}:1-65535"
        rules = [f"allow out relay {here} handover=relayed", f"allow out any {here}", "allow out here unix:here"]
        rules += ["allow out relay any handover=relayed", "allow in any any", "allow serve any"]
        options = [word for rule in rules for word in ("--rule", rule)]
        options += ["--limit", "handshake_seconds=1", "--limit", "connect_seconds=6"]
        self.process = machine.begin("strained", *machine.tcpd(), *options)
        self.port = machine.ports(self.process)[socket.AF_INET]
        self.rundir = machine.rundir("strained")
        machine.open_to_all("strained")
        machine.serve("strained", "here")
        self.server = socket.create_server((HERE[socket.AF_INET], 0), backlog=4096)
        self.uri = f"tcp://{HERE[socket.AF_INET]}:{self.server.getsockname()[1]}"
        self.before = self.process.descriptors()
        self.forgotten = 0

    @property
    def request(self) -> dict[str, Any]:
        """A lookup of a TCP connection."""
        return {"op": "lookup", "service": "strain", "routes": self.routes("strain")}

    def routes(self, service: str) -> str:
        """Return the variable's value that leads *service* to the server."""
        return f"{service} {self.uri}"

    @contextlib.contextmanager
    def accepted(self) -> Iterator[socket.socket]:
        """Yield the server's end of the last connection; those before it are left over from others."""
        sock, _ = self.server.accept()
        while cage.is_ready(self.server):
            sock.close()
            sock, _ = self.server.accept()
        sock.settimeout(DEADLINE_SECONDS)
        with sock:
            yield sock

    def connect(self) -> socket.socket:
        """Connect to the native socket."""
        return dial(f"{self.rundir}/plumberd")

    def now(self) -> dict[str, int]:
        """Return what the broker has to do now, without who asks for it."""
        with self.connect() as sock:
            told: dict[str, int] = ask_on(sock, op="status").members["now"]
        told["clients"] -= 1
        return told

    def check_serves(self, seconds: float = SERVED_SECONDS) -> None:
        """Check that another client, of another user, is served at once."""
        began = time.monotonic()
        cage.look_up(self.rundir, "here").granted().close()
        took = time.monotonic() - began
        if took > seconds:
            raise AssertionError(f"another client waited for {took:.1f} s")

    def check_as_before(self) -> None:
        """Check that nothing is left of anybody."""
        self.check_serves()
        until(lambda: self.process.descriptors() <= self.before + POOLED, "its descriptors are as before")
        until(lambda: self._held() <= self.forgotten, f"{self.forgotten} unread descriptors are left, and nothing else")

    def _held(self) -> int:
        return sum(self.now().values())

    def check_hangs_up(self, unread: int) -> None:
        """Check that clients that read nothing are hung up on, and that others are served meanwhile."""
        self.forgotten += unread
        self.check_serves()
        until(lambda: self.now()["clients"] == 0, "clients that read nothing are hung up on")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let it do nothing for so long."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)


class Child:
    """A child that goes on until it is told to end."""

    def __init__(self, program: Program, work: Callable[[socket.socket], None]) -> None:
        """*work* gets a socket, with which it can say that it has got somewhere."""
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(DEADLINE_SECONDS)
        self.pid = os.fork()
        if self.pid == 0:
            self.sock.close()
            try:
                signal.alarm(int(DEADLINE_SECONDS))
                program.become()
                work(theirs)
            except BaseException as e:
                theirs.send(repr(e).encode()[:1000])
            finally:
                os._exit(1)
        theirs.close()

    def said(self) -> str:
        """Wait until it says something, and return that; nothing where it has ended."""
        return self.sock.recv(1000).decode()

    def stop(self) -> None:
        """Let it do nothing any more."""
        os.kill(self.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Kill it."""
        self.sock.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


Strain = Callable[[Broker], None]

STRAINS: dict[str, Strain] = {}
"""Every strain by its name."""

CAGED, OTHER_CAGED = Program(CLIENT), Program(OTHER)


def strain(name: str) -> Callable[[Strain], Strain]:
    """Put a function into :data:`STRAINS`."""

    def add(work: Strain) -> Strain:
        STRAINS[name] = work
        return work

    return add


def expect(found: object, wanted: object) -> None:
    """Check that something is what it should be."""
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")


@strain("clients that die before they are granted anything")
def dies_before_its_grant(broker: Broker) -> None:
    def work(outside: socket.socket) -> None:
        socks = [broker.connect() for _ in range(50)]
        for sock in socks:
            sock.sendall(framed(broker.request))
        outside.send(b"asked")
        signal.pause()

    with broker.paused():
        child = Child(CAGED, work)
        expect(child.said(), "asked")
        child.end()


def child_with_unread(broker: Broker, program: Program) -> Child:
    """Start a child with 50 answers that have come, and are not read."""

    def work(outside: socket.socket) -> None:
        socks = [broker.connect() for _ in range(50)]
        for sock in socks:
            sock.sendall(framed(broker.request))
        for sock in socks:
            sock.recv(1, socket.MSG_PEEK)
        outside.send(b"granted")
        signal.pause()

    child = Child(program, work)
    expect(child.said(), "granted")
    return child


@strain("clients that die between grant and hand-over, with the descriptor unread")
def dies_before_it_reads(broker: Broker) -> None:
    child = child_with_unread(broker, CAGED)
    child.end()


@strain("clients that never read their descriptor")
def never_reads(broker: Broker) -> None:
    child = child_with_unread(broker, OTHER_CAGED)
    broker.check_hangs_up(50)
    child.end()


@strain("a thousand confined clients at once")
def a_thousand(broker: Broker) -> None:
    def work(outside: socket.socket) -> None:
        socks = [broker.connect() for _ in range(100)]
        outside.send(b"connected")
        outside.recv(1)
        for sock in socks:
            sock.sendall(framed(broker.request))
        modes = {take(sock).word for sock in socks}
        outside.send("/".join(modes).encode())
        outside.recv(1)

    children = [Child(Program(5000 + number), work) for number in range(10)]
    for child in children:
        expect(child.said(), "connected")
    for child in children:
        child.sock.send(b"x")
    broker.check_serves(DEADLINE_SECONDS)  # all of them want their turn; what counts is that it has one
    for child in children:
        expect(child.said(), "locked")
    for child in children:
        child.end()


def _claim(broker: Broker, service: str) -> Child:
    """Return a caged child that has claimed *service*, and takes nothing."""

    def work(outside: socket.socket) -> None:
        with broker.connect() as claim:
            outside.send(str(ask_on(claim, op="serve", service=service).members["ok"]).encode())
            signal.pause()

    child = Child(CAGED, work)
    expect(child.said(), "True")
    return child


def _call(broker: Broker, service: str) -> tuple[socket.socket, bytes]:
    """Call as a remote caller; return the connection and what was answered."""
    sock = socket.create_connection((HERE[socket.AF_INET], broker.port), DEADLINE_SECONDS)
    sock.sendall(service.encode())
    return sock, sock.recv(100)


def _hung_up(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


@strain("a claimant that has stopped reading")
def stopped_claimant(broker: Broker) -> None:
    child = _claim(broker, "stopped")
    child.stop()
    broker.forgotten += 1  # the first connection lies in its queue
    callers = [_call(broker, "stopped") for _ in range(20)]
    expect({answer for _, answer in callers}, {b"ok"})
    broker.check_serves()
    for sock, _ in callers[1:]:
        expect(_hung_up(sock), True)
    sock, answer = _call(broker, "stopped")
    expect(answer[:2], b"no")  # nobody serves it any more
    for one in (sock, *(sock for sock, _ in callers)):
        one.close()
    child.end()


@strain("a claimant that dies with connections waiting")
def dead_claimant(broker: Broker) -> None:
    child = _claim(broker, "dead")
    child.stop()
    callers = [_call(broker, "dead") for _ in range(20)]
    child.end()
    for sock, answer in callers:
        expect((answer, _hung_up(sock)), (b"ok", True))
        sock.close()
    child = _claim(broker, "dead")  # the name is free
    child.end()


@strain("a control socket that is flooded with requests")
def flooded(broker: Broker) -> None:
    answer = cage.ask(broker.rundir, op="confine", services=["here"], control=True)
    with answer.granted() as control:

        def work(outside: socket.socket) -> None:
            request = json.dumps({"op": "lookup", "service": "here"}).encode()
            outside.send(b"begun")
            for number in range(6000):
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    payload = request if number % 3 else b"no request"
                    socket.send_fds(control, [payload], [theirs.fileno()] * (1 if number % 2 else 5))
            outside.send(b"done")
            signal.pause()

        child = Child(CAGED, work)
    expect(child.said(), "begun")
    for _ in range(20):
        broker.check_serves()
    expect(child.said(), "done")
    child.end()


@strain("a control socket whose holder never takes an answer")
def answers_untaken(broker: Broker) -> None:
    answer = cage.ask(broker.rundir, op="confine", services=["here"], control=True)
    with answer.granted() as control:

        def work(outside: socket.socket) -> None:
            kept = []
            for _ in range(200):
                ours, theirs = socket.socketpair()
                kept.append(ours)
                with theirs:
                    socket.send_fds(control, [b'{"op":"lookup","service":"here"}'], [theirs.fileno()])
            for sock in kept:
                sock.recv(1, socket.MSG_PEEK)
            outside.send(b"granted")
            signal.pause()

        child = Child(CAGED, work)
    expect(child.said(), "granted")
    broker.check_hangs_up(200)
    child.end()


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        user, system = file.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@strain("urgent bytes on a relayed connection")
def urgent(broker: Broker) -> None:
    def work(outside: socket.socket) -> None:
        sock = cage.look_up(broker.rundir, "relay", broker.routes("relay")).granted()
        for _ in range(20):
            sock.sendall(b"plain")
            with contextlib.suppress(OSError):
                sock.send(b"!", socket.MSG_OOB)
        outside.send(b"sent")
        sock.recv(1)
        outside.send(b"answered")
        signal.pause()

    child = Child(CAGED, work)
    with broker.accepted() as sock:
        expect(child.said(), "sent")
        read = b""
        while read.count(b"plain") < 20:
            read += sock.recv(1000)
        expect(read.replace(b"!", b""), b"plain" * 20)
        before = _cpu_seconds(broker.process.pid)
        expect(cage.is_ready(sock, QUIET_SECONDS), False)
        if _cpu_seconds(broker.process.pid) - before > QUIET_SECONDS / 2:
            raise AssertionError("the broker is busy with nothing")
        sock.send(b"x")
        expect(child.said(), "answered")
    child.end()


@strain("a far side whose network namespace vanishes")
def vanishing(broker: Broker) -> None:
    def far(outside: socket.socket) -> None:
        outside.send(b"caged")
        outside.recv(1)
        subprocess.run(["sh", "-ec", "ip link set far up; ip addr add 198.51.100.130/25 dev far"], check=True)
        with socket.create_server(("198.51.100.130", 0)) as listener:
            outside.send(str(listener.getsockname()[1]).encode())
            signal.pause()

    child = Child(Program(None, capabilities=None), far)
    expect(child.said(), "caged")
    wire = f"ip link add near type veth peer name far netns {child.pid}; ip link set near up"
    subprocess.run(["sh", "-ec", f"{wire}; ip addr add 198.51.100.129/25 dev near"], check=True)
    child.sock.send(b"x")
    uri = f"tcp://198.51.100.130:{child.said()}"
    granted = []
    for service in ("relay", "strain"):
        granted.append(cage.look_up(broker.rundir, service, f"{service} {uri}").granted())
    child.end()  # and with it its namespace, and with that the wire
    until(lambda: "near" not in [name for _, name in socket.if_nameindex()], "the wire is gone")
    refused = cage.look_up(broker.rundir, "strain", f"strain {uri}")
    expect(refused.word in ("unreachable", "timeout"), True)
    for sock in granted:
        with contextlib.suppress(OSError):
            sock.send(b"into nothing")
        sock.close()


def main() -> None:
    """Strain a broker in every way, and print what was wrong."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    machine = Machine(sys.argv[1])
    told = {}
    try:
        broker = Broker(machine)
        for name, work in STRAINS.items():
            try:
                work(broker)
                broker.check_as_before()
                told[name] = FINE
            except Exception as e:
                told[name] = f"{e!r}\n{broker.now()}\n{broker.process.output[-3000:]}"
        print(json.dumps(told))
    finally:
        machine.stop()


if __name__ == "__main__":
    main()
