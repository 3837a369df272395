"""A machine: a network namespace with brokers, servers and services, and programs that are forked into it.

It is the process that makes it, which is in a fresh namespace and has one thread. What its
programs want to know of the outside, they ask it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

from tests.escapes import attempts, cage
from tests.escapes.attempts import NOTHING_SECONDS, Address, Held
from tests.escapes.cage import Outside, Program, is_ready
from tests.process.running import TWISTD
from tests.process.running import Program as Process

HERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""The machine's address."""
ELSEWHERE = {socket.AF_INET: "192.0.2.66", socket.AF_INET6: "2001:db8::66"}
"""Where the forbidden server is."""

CLIENT, OTHER = 4242, 4243
"""Two users."""

CAGED = Program(CLIENT)
OUTSIDE = Program(None, caged=False)
"""The broker's own user, in no cage and without capabilities; alone it may have `direct`."""

_PACKET_OUTGOING = 4
_ETH_P_ALL = 3
_CALLERS = 24


class Machine:
    """The namespace that this process is in."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.kept: list[socket.socket] = []
        self.brokers: dict[str, Process] = {}
        self._children: list[int] = []
        self._sharing: socket.socket | None = None
        self.program = CAGED
        self._network()
        self._sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._sniffer.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        self._sniffer.bind(("lo", _ETH_P_ALL))
        self._sniffer.setblocking(False)
        self._seen: list[bytes] = []
        self.forbidden: dict[str, socket.socket] = {}
        self.receiver = os.path.join(folder, "receiver")

    # -- what is there

    def _network(self) -> None:
        commands = ["ip link set lo up"]
        for address in (*HERE.values(), *ELSEWHERE.values()):
            commands.append(f"ip addr add {address}/{128 if ':' in address else 32} dev lo")
        for family, address in attempts.PROHIBITED.items():
            commands.append(f"ip {'-6' if family == socket.AF_INET6 else '-4'} route add prohibit {address}")
        subprocess.run(["sh", "-ec", "\n".join(commands)], check=True)

    def start(self) -> None:
        """Start the servers, the services and the brokers."""
        for family, host in ELSEWHERE.items():
            listener = socket.create_server((host, 0), family=family, backlog=64)
            self.forbidden[host] = listener
        self._fork(self._receive, self._unix_listener(self.receiver), OTHER)
        far = self.begin("far", *self.tcpd(), "--allow", "in", "any", "any")
        far_ports = self.ports(far)
        for name in ("pong", "secret"):
            self.serve("far", name)
        rules = []
        for family, port in far_ports.items():
            host = f"[{HERE[family]}]" if family == socket.AF_INET6 else HERE[family]
            rules.append(f"allow out pong tcp:{host}:{port}")
            for mode in ("locked", "direct", "relayed", "framed"):
                rules.append(f"allow out {mode} tcp:{host}:{port} handover={mode}")
        self.far = {family: (HERE[family], port) for family, port in far_ports.items()}
        rules += ["allow out here unix:here", "allow out c* unix:any", "allow in c* any", "allow serve c*"]
        options = [word for rule in rules for word in ("--rule", rule)]
        for mode in ("auto", "direct", "relayed"):
            self.begin(mode, *self.tcpd(), "--handover", mode, *options)
        self.daemons = {
            mode: {family: (HERE[family], port) for family, port in self.ports(self.brokers[mode]).items()}
            for mode in ("auto", "direct", "relayed")
        }
        self.serve("auto", "here")
        for mode in self.daemons:
            self.open_to_all(mode)

    def open_to_all(self, broker: str) -> None:
        """Let every user ask: these trials are about what comes behind the run directory's group."""
        os.chmod(self.rundir(broker), 0o755)
        os.chmod(self.rundir(broker, "plumberd"), 0o666)

    def serve(self, broker: str, name: str) -> None:
        """Run a local service in a broker's run directory."""
        self._fork(functools.partial(self._serve, name), self._unix_listener(self.rundir(broker, name)))

    def uri(self, family: socket.AddressFamily) -> str:
        """Return the URI of the far broker's service."""
        host, port = self.far[family]
        return f"tcp://{f'[{host}]' if ':' in host else host}:{port}/pong"

    def rundir(self, broker: str, *names: str) -> str:
        """Return a path in a broker's run directory."""
        return os.path.join(self.folder, broker, *names)

    def begin(self, name: str, *options: str) -> Process:
        """Start a broker, without waiting for it."""
        broker = Process([*TWISTD, "plumberd", "--rundir", self.rundir(name), *options], cwd=self.folder)
        self.brokers[name] = broker
        return broker

    def ports(self, broker: Process) -> dict[socket.AddressFamily, int]:
        """Wait until a broker serves; return the ports of its tcpd."""
        broker.wait_for("export IPC_NETWORKD")
        found = {}
        for family, host in HERE.items():
            shown = f"\\[{host}\\]" if ":" in host else host
            found[family] = int(broker.wait_for(rf"tcpd on {shown}:(\d+)").group(1))
        return found

    @staticmethod
    def tcpd() -> list[str]:
        """Return the options with which a broker listens on each of the machine's addresses."""
        v6 = HERE[socket.AF_INET6].replace(":", "\\:")
        return ["--tcpd", f"tcp:0:interface={HERE[socket.AF_INET]}", "--tcpd", f"tcp6:0:interface={v6}"]

    def _unix_listener(self, path: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(64)
        return listener

    def _fork(self, work: Callable[[socket.socket], None], listener: socket.socket, uid: int | None = None) -> None:
        pid = os.fork()
        if pid:
            listener.close()
            self._children.append(pid)
            return
        try:
            if uid is not None:
                Program(uid, caged=False).become()
            work(listener)
        finally:
            os._exit(1)

    @staticmethod
    def _serve(name: str, listener: socket.socket) -> None:
        """Say *name* to everybody, and to what they say how many descriptors came with it; in LibIPC's messages."""
        talking: dict[int, socket.socket] = {}
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    sock, _ = listener.accept()
                    talking[sock.fileno()] = sock
                    poll.register(sock, select.POLLIN)
                    with contextlib.suppress(OSError):
                        sock.send(len(name).to_bytes(4, "big") + name.encode())
                    continue
                try:
                    data, fds, _, _ = socket.recv_fds(talking[fd], 1000, 10)
                    if data:
                        talking[fd].send(b"\0\0\0\1%d" % len(fds))
                except OSError:
                    data, fds = b"", []
                for one in fds:
                    os.close(one)
                if not data:
                    poll.unregister(fd)
                    talking.pop(fd).close()

    @staticmethod
    def _receive(listener: socket.socket) -> None:
        """Take sockets, and connect each where its sender says; tell what came of it."""
        while True:
            asking, _ = listener.accept()
            with asking:
                order, fds, _, _ = socket.recv_fds(asking, 1000, 1)
                family, address = json.loads(order)
                with socket.socket(fileno=fds[0]) as sock:
                    held = Held(sock, Outside(asking), socket.AddressFamily(family), address, address, address, "")
                    try:
                        held.disconnect()
                        outcome = held.connect(tuple(address))
                    except OSError:
                        outcome = attempts.REFUSED
                asking.send(outcome.encode())

    def stop(self) -> None:
        """End everything that was started."""
        for broker in self.brokers.values():
            broker.end()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    # -- what programs may ask for

    @property
    def answers(self) -> dict[str, Callable[..., Any]]:
        """What is done for them, outside."""
        return {
            "has_caller": self._has_caller,
            "has_seen": self._has_seen,
            "reaches": self._reaches,
            "can_listen": self._can_listen,
            "can_name": self._can_name,
            "shared_port": self._shared_port,
            "are_lost": self._are_lost,
            "stop_sharing": self._stop_sharing,
            "set_fast_open": self._set_fast_open,
            "look_up": self._look_up,
            "pause": lambda: os.kill(self.brokers["auto"].pid, signal.SIGSTOP),
            "resume": lambda: os.kill(self.brokers["auto"].pid, signal.SIGCONT),
            "is_let_in": self._is_let_in,
            "stop_broker": self._stop_broker,
            "keep_listening": self._keep_listening,
        }

    def _has_caller(self, address: Address) -> bool:
        listener = self.forbidden[address[0]]
        if not is_ready(listener):
            return False
        listener.accept()[0].close()
        return True

    def _see(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                packet, where = self._sniffer.recvfrom(65536)
                if where[2] == _PACKET_OUTGOING:
                    self._seen.append(packet)

    def _has_seen(self, address: Address, marker: str) -> bool:
        """Tell whether a packet went to *address*: one with *marker* in it, or, without one, one with SYN."""
        self._see()
        to = socket.inet_pton(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, address[0])
        for packet in self._seen:
            v6 = packet[0] >> 4 == 6
            destination = packet[24:40] if v6 else packet[16:20]
            tcp = packet[40:] if v6 else packet[(packet[0] & 15) * 4 :]
            if destination == to and (bytes.fromhex(marker) in packet if marker else tcp[13] & 0x12 == 0x02):
                return True
        return False

    def _reaches(self, address: Address) -> bool:
        sock = self._begin_call(address)
        return is_ready(sock, NOTHING_SECONDS, select.POLLOUT) and not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )

    def _begin_call(self, address: Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        self.kept.append(sock)
        sock.setblocking(False)
        sock.connect_ex(tuple(address))
        return sock

    def _can_listen(self, address: Address) -> bool:
        with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as daemons do
            try:
                sock.bind(tuple(address))
                sock.listen()
            except OSError:
                return False
            return True

    def _stop_broker(self) -> None:
        self.brokers["auto"].stop()

    def _keep_listening(self, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.kept.append(socket.create_server(tuple(address), family=family))

    def _can_name(self, name: str) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.bind(name)
            except OSError:
                return False
            return True

    def _shared_port(self, host: str) -> int:
        uid = self.program.uid or 0
        sock = self._sharing = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        os.fchown(sock.fileno(), uid, uid)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, 0))
        sock.listen(2 * _CALLERS)
        return int(sock.getsockname()[1])

    def _are_lost(self, address: Address) -> bool:
        """Tell whether some of many callers do not reach the one who has listened there first."""
        callers = [self._begin_call(address) for _ in range(_CALLERS)]
        assert self._sharing is not None
        self._sharing.setblocking(False)
        reached = 0
        is_ready(callers[-1], NOTHING_SECONDS, select.POLLOUT)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._sharing.accept()[0].close()
                reached += 1
        return reached < _CALLERS

    def _stop_sharing(self) -> None:
        if self._sharing is not None:
            self._sharing.close()
            self._sharing = None

    @staticmethod
    def _set_fast_open(value: int) -> None:
        with open("/proc/sys/net/ipv4/tcp_fastopen", "w", encoding="ascii") as file:
            file.write(str(value))

    def _is_let_in(self, broker: str, family: int, service: str) -> bool:
        """Call a service as a remote caller does."""
        sock = socket.create_connection(self.daemons[broker][socket.AddressFamily(family)], cage.DEADLINE_SECONDS)
        self.kept.append(sock)
        sock.sendall(service.encode())
        if sock.recv(2) != b"ok":
            return False
        sock.sendall(b"x")  # so that the service's first bytes may come at once
        return True

    def _look_up(self, broker: str, service: str) -> None:
        """Reach a service as a local client does."""
        self.kept.append(cage.look_up(self.rundir(broker), service).granted())

    def run(self, program: Program, work: Callable[[Outside], str]) -> str:
        """Run *work* in a child that is *program*; return what came of it, and forget what it has done here."""
        self._see()
        self._seen.clear()  # what was sent before is not this child's
        kept = len(self.kept)
        self.program = program
        try:
            return str(cage.fork(program, work, self.answers))
        finally:
            for sock in self.kept[kept:]:
                sock.close()
            del self.kept[kept:]
            self._set_fast_open(1)
