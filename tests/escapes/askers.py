"""Who asks? Programs that are not who they were, or not where they were, when they connected.

Each asks for something that nobody in a cage may have without a rule, and that every local
user may have otherwise. What comes of it is a mode; or *needs a rule*, as for who is confined; or
*somebody else*: who asks is not believed to be who connected.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.escapes import cage
from tests.escapes.cage import (
    CLONE_NEWNET,
    CLONE_NEWUSER,
    Answer,
    Outside,
    Program,
    ask_control,
    ask_on,
    dial,
    enter_cage,
    framed,
    map_ids,
    system_call,
    take,
)
from tests.inside import add_seccomp_filter, become

NEEDS_A_RULE, SOMEBODY_ELSE = "needs a rule", "somebody else"

CLIENT, OTHER, SUBORDINATE = 4242, 4243, 104242

UNCAGED = Program(CLIENT, caged=False)
ROOT = Program(None, caged=False, capabilities=None)


@dataclass
class Asking:
    """What an asker has.

    :ivar rundir: the broker's run directory.
    :ivar direct_rundir: that of a broker that hands over nothing but `direct`.
    :ivar request: for what only a rule grants to who is confined.
    :ivar setuid_cat: a program that writes a file to its standard output, as root.
    """

    outside: Outside
    rundir: str
    direct_rundir: str
    request: dict[str, Any]
    setuid_cat: str

    def connect(self) -> socket.socket:
        """Connect to the native socket."""
        return dial(f"{self.rundir}/plumberd")

    def ask_on(self, sock: socket.socket) -> str:
        """Ask on a connection; say what came of it."""
        return outcome(ask_on(sock, **self.request))


def outcome(answer: Answer) -> str:
    """Return the mode, or why not."""
    members = answer.members
    if members["ok"]:
        return str(members.get("mode", "ok"))
    reason = members["reason"]
    if "somebody else by now" in reason:
        return SOMEBODY_ELSE
    return NEEDS_A_RULE if "needs a rule" in reason or "confined" in reason else str(members["error"])


Asker = Callable[[Asking], str]

ASKERS: dict[str, tuple[Program, Asker]] = {}
"""Every asker by its name, which is its row in docs/security.md."""


def asker(name: str, program: Program) -> Callable[[Asker], Asker]:
    """Put a function into :data:`ASKERS`."""

    def add(work: Asker) -> Asker:
        ASKERS[name] = program, work
        return work

    return add


def in_child(work: Callable[[], str]) -> str:
    """Run *work* in a child of this process; return what it returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            said = work()
        except BaseException as e:
            said = repr(e)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(pid, 0)  # until then nobody else can have its pid
    return said


@asker("a program in no cage", UNCAGED)
def in_no_cage(asking: Asking) -> str:
    return asking.ask_on(asking.connect())


@asker("a program in a cage", Program(CLIENT))
def in_a_cage(asking: Asking) -> str:
    return asking.ask_on(asking.connect())


@asker("one that is root in a user namespace of its own, in no cage", UNCAGED)
def in_a_user_namespace(asking: Asking) -> str:
    system_call("unshare", CLONE_NEWUSER)
    map_ids("self", f"0 {CLIENT} 1", f"0 {CLIENT} 1")
    return asking.ask_on(asking.connect())


@asker("connects, goes into a cage, asks", ROOT)
def caged_after_connecting(asking: Asking) -> str:
    sock = asking.connect()
    enter_cage()
    return asking.ask_on(sock)


@asker("connects, asks, goes into a cage before it is looked at", ROOT)
def caged_after_asking(asking: Asking) -> str:
    asking.outside.ask("pause")
    try:
        sock = asking.connect()
        sock.sendall(framed(asking.request))
        enter_cage()
    finally:
        asking.outside.ask("resume")
    return outcome(take(sock))


@asker("connects in a cage, leaves it, asks", ROOT)
def out_of_the_cage(asking: Asking) -> str:
    outside = os.open("/proc/self/ns/net", os.O_RDONLY)
    enter_cage()
    sock = asking.connect()
    system_call("setns", outside, CLONE_NEWNET)
    return asking.ask_on(sock)


@asker("a thread that has gone into a cage by itself asks for a process that has not", ROOT)
def caged_thread(asking: Asking) -> str:
    sock = asking.connect()
    said: list[str] = []

    def work() -> None:
        enter_cage()
        said.append(asking.ask_on(sock))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return said[0]


@asker("a caged child asks on its parent's connection", ROOT)
def caged_child(asking: Asking) -> str:
    sock = asking.connect()

    def work() -> str:
        enter_cage()
        return asking.ask_on(sock)

    return in_child(work)


@asker("a parent asks on a connection that its caged child has made", ROOT)
def parent_of_a_caged_child(asking: Asking) -> str:
    ours, theirs = socket.socketpair()

    def work() -> str:
        enter_cage()
        with asking.connect() as sock:
            socket.send_fds(theirs, [b"x"], [sock.fileno()])
            theirs.recv(1)
        return ""

    child = threading.Thread(target=in_child, args=(work,))
    child.start()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=fds[0]) as sock:
        sock.settimeout(cage.DEADLINE_SECONDS)
        said = asking.ask_on(sock)
    ours.send(b"x")
    child.join()
    return said


@asker("a process of another user asks on a connection that it was passed", ROOT)
def another_user(asking: Asking) -> str:
    sock = asking.connect()

    def work() -> str:
        become(OTHER)
        return asking.ask_on(sock)

    return in_child(work)


@asker("connects, becomes another user, asks", ROOT)
def becomes_another(asking: Asking) -> str:
    sock = asking.connect()
    become(OTHER)
    return asking.ask_on(sock)


@asker("connects, becomes a set-uid program, which asks", UNCAGED)
def set_uid_program(asking: Asking) -> str:
    sock = asking.connect()
    request = os.memfd_create("request", 0)
    os.write(request, framed(asking.request))
    os.lseek(request, 0, os.SEEK_SET)

    answers = socket.socketpair()
    if os.fork() == 0:
        said = outcome(take(sock))
        answers[0].send(said.encode())
        os._exit(0)
    # The very process that has connected goes on as the program; a child of it answers for it.
    if os.fork() == 0:
        asking.outside.tell(answers[1].recv(100).decode())
        os._exit(0)
    os.dup2(request, 0)
    os.dup2(sock.fileno(), 1)
    os.execv(asking.setuid_cat, [asking.setuid_cat])


@asker("a second user of a user namespace asks for itself", ROOT)
def second_user(asking: Asking) -> str:
    return _in_user_namespace(lambda: _as_second_user(asking, asking.connect))


@asker("the second user of a user namespace asks on the first one's connection", ROOT)
def second_user_on_the_first_one_s(asking: Asking) -> str:
    def work() -> str:
        sock = asking.connect()
        return _as_second_user(asking, lambda: sock)

    return _in_user_namespace(work)


def _as_second_user(asking: Asking, connect: Callable[[], socket.socket]) -> str:
    os.setresgid(1, 1, 1)
    os.setresuid(1, 1, 1)
    sock = connect()
    told = asking.ask_on(sock)
    if told == SOMEBODY_ELSE:
        return told
    uid = ask_on(sock, op="status").members["you"]["uid"]
    return f"{told}, as uid {uid}"


def _in_user_namespace(work: Callable[[], str]) -> str:
    """Run *work* as root of a user namespace that has a second user."""
    ready, go = os.pipe(), os.pipe()

    def child() -> str:
        become(CLIENT)
        system_call("unshare", CLONE_NEWUSER)
        os.write(ready[1], b"%d" % os.getpid())
        os.read(go[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return work()

    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(in_child(child)))
    thread.start()
    pid = int(os.read(ready[0], 20))
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(f"0 {CLIENT} 1\n1 {SUBORDINATE} 1\n")
    os.write(go[1], b"x")
    thread.join()
    return said[0]


@asker("asks under a seccomp filter and dies; its pid is an unfiltered process's when it is looked at", ROOT)
def reused_pid(asking: Asking) -> str:
    """Root can say which pid is the next; others may have been quicker, so it is said again."""
    ours, theirs = socket.socketpair()

    def ask_and_die() -> str:
        add_seccomp_filter()
        with asking.connect() as sock:
            sock.sendall(framed(asking.request))
            socket.send_fds(theirs, [b"%d" % os.getpid()], [sock.fileno()])
        return ""

    asking.outside.ask("pause")
    try:
        in_child(ask_and_die)
        text, fds, _, _ = socket.recv_fds(ours, 20, 1)
        innocent = _take_pid(int(text))
    finally:
        asking.outside.ask("resume")
    with socket.socket(fileno=fds[0]) as sock:
        sock.settimeout(cage.DEADLINE_SECONDS)
        said = outcome(take(sock))
    os.kill(innocent, signal.SIGKILL)
    return said


def _take_pid(wanted: int) -> int:
    """Fork a child that has the pid *wanted*, and does nothing."""
    for _ in range(200):
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(wanted - 1))
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(cage.DEADLINE_SECONDS))
            signal.pause()
        if pid == wanted:
            return pid
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise AssertionError(f"pid {wanted} could not be had again")


# -- connections that are made to be inherited


def _control(asking: Asking, *services: str, routes: str) -> socket.socket:
    answer = cage.ask(asking.rundir, op="confine", services=list(services), routes=routes, control=True)
    return answer.granted()


def _caged_on_control(asking: Asking, request: dict[str, Any]) -> str:
    control = _control(asking, "free", routes=asking.request["routes"])

    def work() -> str:
        enter_cage()
        become(CLIENT)
        return outcome(ask_control(control, **request))

    return in_child(work)


@asker("a caged child asks on a control socket for its service", ROOT)
def control_for_its_service(asking: Asking) -> str:
    return _caged_on_control(asking, {"op": "lookup", "service": "free"})


@asker("… for another service", ROOT)
def control_for_another(asking: Asking) -> str:
    return _caged_on_control(asking, {**asking.request, "service": "pong"})


@asker("… for its service by a way of its own", ROOT)
def control_by_its_own_way(asking: Asking) -> str:
    return _caged_on_control(asking, {"op": "lookup", "service": "free", "routes": "free unix:///here"})


@asker("… by a URI", ROOT)
def control_by_uri(asking: Asking) -> str:
    return _caged_on_control(asking, {"op": "lookup", "uri": asking.request["routes"].split()[1]})


@asker("… for its service, where a rule wants `direct`", ROOT)
def control_for_direct(asking: Asking) -> str:
    routes = asking.request["routes"].replace("free ", "direct ")
    control = _control(asking, "direct", routes=routes)
    return in_child(lambda: outcome(ask_control(control, op="lookup", service="direct")))


@asker("… for anything but a lookup (status, explain, why, confine, serve, ss, kill, reload)", ROOT)
def control_for_no_lookup(asking: Asking) -> str:
    requests: tuple[dict[str, Any], ...] = (
        {"op": "status"},
        {"op": "explain", "direction": "out", "service": "free"},
        {"op": "why"},
        {"op": "confine", "services": ["free"]},
        {"op": "serve", "service": "c0"},
        {"op": "ss"},
        {"op": "kill", "connection": "1"},
        {"op": "reload"},
    )
    words = {_caged_on_control(asking, request) for request in requests}
    return "/".join(sorted(words))


@asker("a caged child asks on a connection that was restricted before it inherited it, for its service", ROOT)
def restricted(asking: Asking) -> str:
    sock = asking.connect()
    ask_on(sock, op="confine", services=["free"], routes=asking.request["routes"])

    def work() -> str:
        enter_cage()
        return outcome(ask_on(sock, op="lookup", service="free"))

    return in_child(work)


@asker("who has restricted it asks on it for another service", ROOT)
def restricted_for_ever(asking: Asking) -> str:
    sock = asking.connect()
    ask_on(sock, op="confine", services=["free"], routes=asking.request["routes"])
    return outcome(ask_on(sock, **{**asking.request, "service": "pong"}))


@asker("one in a cage wants a control socket", Program(CLIENT))
def control_from_a_cage(asking: Asking) -> str:
    return outcome(cage.ask(asking.rundir, op="confine", services=["free"], control=True))


@asker("one in a cage that sees the run directory connects to a service's own socket", Program(CLIENT))
def around_the_broker(asking: Asking) -> str:
    with dial(f"{asking.rundir}/here") as sock:
        return "connected" if sock.recv(100).endswith(b"here") else "refused"


# -- claims


@asker("a claimant goes into a cage behind its claim, where only `direct` is handed over", ROOT)
def caged_behind_its_claim(asking: Asking) -> str:
    with dial(f"{asking.direct_rundir}/plumberd") as claim:
        ask_on(claim, op="serve", service="c-caged")
        if not asking.outside.ask("is_let_in", "direct", socket.AF_INET, "c-caged"):
            raise AssertionError("nobody was let in while it was in no cage")
        take(claim)
        enter_cage()
        return "direct" if asking.outside.ask("is_let_in", "direct", socket.AF_INET, "c-caged") else "refused"


@asker("a child of a claimant claims a service on the inherited connection, in a cage", ROOT)
def claim_of_a_child(asking: Asking) -> str:
    sock = asking.connect()

    def work() -> str:
        enter_cage()
        become(OTHER)
        return outcome(ask_on(sock, op="serve", service="c-child"))

    return in_child(work)
